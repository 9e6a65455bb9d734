"""transformers' own test-suite on our classes: fetched for the installed version, run, no failure allowed."""

import os
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import transformers

import concept_encoder

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / f"transformers-{transformers.__version__}"
PACKAGE = "transformers_tests"
# The source distribution leaves these out. Export is tested by test_export.py, autoregressive generation does not
# apply, and the last one holds values for the fields that every configuration shares.
STAND_INS = {
    "__init__.py": "",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/__init__.py": "",
    "utils/test_configuration_utils.py": "config_common_kwargs = {\n"
    '    "return_dict": False, "output_hidden_states": True, "output_attentions": True, "dtype": "float16",\n'
    '    "chunk_size_feed_forward": 5, "is_encoder_decoder": True, "architectures": ["Any"],\n'
    '    "id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}, "problem_type": "regression",\n'
    "}\n",
}
MODELS = sorted(
    name
    for name in concept_encoder.__all__
    if name.startswith("ConceptEncoder") and name not in ("ConceptEncoderConfig", "ConceptEncoderPreTrainedModel")
)
LEAST_PASSED = 80  # of about 170 per class; the rest need other hardware or architectures


def fetched_suite() -> Path:
    """Folder that holds the shared tests as a package; downloaded once per version of transformers."""
    if CACHE.is_dir():
        return CACHE
    CACHE.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--retries", "1", "--timeout", "20"]
        command += ["--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--dest", scratch]
        command += [f"transformers=={transformers.__version__}"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if result.returncode:
            pytest.skip(f"no source distribution of transformers: {result.stderr.strip().splitlines()[-1]}")
        (archive,) = Path(scratch).glob("transformers-*.tar.gz")
        folder = Path(scratch) / "suite"
        with tarfile.open(archive) as file:
            for member in file.getmembers():
                if member.isfile() and Path(member.name).match("transformers-*/tests/*.py"):
                    member.name = f"{PACKAGE}/{Path(member.name).name}"
                    file.extract(member, folder, filter="data")
        for name, source in STAND_INS.items():
            path = folder / PACKAGE / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(source)
        os.replace(folder, CACHE)
    return CACHE


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, dict[str, str]]:
    """Test class to test to what came of it: "passed", "skipped" or the message of a failure."""
    path = tmp_path_factory.mktemp("suite") / "report.xml"
    # Its marks are unknown to our configuration, which is strict about them.
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "-q", "-p", "no:cacheprovider", "-p", "no:warnings"]
    command += [f"--junitxml={path}", str(ROOT / "tests" / "support" / "shared_model_tests.py")]
    environment = {**os.environ, "PYTHONPATH": str(fetched_suite()), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert path.is_file(), result.stdout + result.stderr
    seen: dict[str, dict[str, str]] = defaultdict(dict)
    for case in ElementTree.parse(path).iter("testcase"):
        kinds = [(child.tag, child.get("message", "")) for child in case]
        bad = [f"{tag}: {message}" for tag, message in kinds if tag in ("failure", "error")]
        good = "skipped" if any(tag == "skipped" for tag, _ in kinds) else "passed"
        name, test = case.get("classname", "").split(".")[-1], case.get("name", "")
        if bad or test not in seen[name] or seen[name][test] == "passed":  # subtests are cases of the same name
            seen[name][test] = "; ".join(bad) or good
    return dict(seen)


def failures(tests: dict[str, str]) -> str:
    return "\n".join(f"{test}: {outcome}" for test, outcome in tests.items() if outcome not in ("passed", "skipped"))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_model_passes_the_shared_tests(outcomes, name):
    assert f"{name}Test" in outcomes, f"add a class for {name} to shared_model_tests.py"
    tests = outcomes[f"{name}Test"]
    assert not failures(tests), failures(tests)
    assert Counter(tests.values())["passed"] >= LEAST_PASSED


@pytest.mark.slow
def test_configuration_passes_the_shared_tests(outcomes):
    assert outcomes["ConfigTest"] == {"test_config": "passed"}
