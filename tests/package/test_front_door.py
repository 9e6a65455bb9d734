"""The library's face: what it shows, that it costs nothing until it is used, and that transformers knows it."""

import ast
import inspect
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import concept_encoder
from concept_encoder import eval as evaluation
from concept_encoder import trainers
from concept_encoder.scripts import COMMANDS
from concept_encoder.utils.lazy import lazily

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "datasets", "numpy", "huggingface_hub")


def in_a_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("package", [concept_encoder, trainers, evaluation], ids=lambda package: package.__name__)
def test_every_name_of_a_stub_is_there(package):
    assert package.__all__ == dir(package) and package.__all__
    for name in package.__all__:
        assert getattr(package, name).__name__ == name


def test_there_is_a_verb_for_every_command_and_it_says_what_it_does():
    for name in set(COMMANDS) - {"pretrain_twin"}:
        verb = getattr(concept_encoder, name)
        assert inspect.isfunction(verb) and verb.__doc__, name


def test_import_star_brings_every_name():
    namespace: dict = {}
    exec("from concept_encoder import *", namespace)
    assert set(concept_encoder.__all__) <= set(namespace)


@pytest.mark.parametrize(
    ("package", "name", "hint"),
    [
        (concept_encoder, "analyse", "; did you mean analyze?"),
        (trainers, "ConceptTrainr", "ConceptTrainer"),
        (evaluation, "xyz", ""),
    ],
)
def test_an_unknown_name_is_an_attribute_error_with_the_nearest(package, name, hint):
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute '{name}'") as caught:
        getattr(package, name)
    assert hint in str(caught.value) and ("did you mean" in str(caught.value)) == bool(hint)
    with pytest.raises(ImportError):
        exec(f"from {package.__name__} import {name}")


def test_classes_pickle_under_their_own_module():
    for name in ("ConceptEncoderConfig", "ConceptTrainer", "Recipe", "Protocol"):
        assert pickle.loads(pickle.dumps(getattr(concept_encoder, name))) is getattr(concept_encoder, name)


def test_a_stub_is_read_relative_to_its_package(tmp_path):
    (tmp_path / "__init__.pyi").write_text("from .files import write_json as write_json\nimport os\n")
    get, names, shown = lazily("concept_encoder.utils", str(tmp_path / "__init__.py"))
    assert names() == shown == ["write_json"]
    assert get("write_json").__module__ == "concept_encoder.utils.files"


def test_a_library_that_is_not_installed_is_named_with_what_to_type():
    code = "import sys\nsys.modules['datasets'] = None\nimport concept_encoder as ce\n"
    tried = "try: ce.pretrain\nexcept ImportError as error: print(error)"
    said = " needs datasets: pip install 'concept-encoder[eval]'"
    assert in_a_process(code + tried) == "concept_encoder.pretrain" + said
    command = "from concept_encoder.scripts import main\nsys.argv[1:] = ['pretrain', 'tiny', '--dry_run']\nmain()"
    done = subprocess.run([sys.executable, "-c", code + command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"concept-encoder: error: the command{said}\n"


def test_a_stub_holds_imports_of_one_name_each_and_the_version():
    """What the reader of stubs and the type checkers both understand: `import x as x` shows x, `import x` does not."""
    for folder in (ROOT, ROOT / "trainers", ROOT / "eval"):
        for node in ast.parse((folder / "__init__.pyi").read_text(encoding="utf-8")).body:
            assert isinstance(node, ast.ImportFrom | ast.AnnAssign)
            assert isinstance(node, ast.AnnAssign) or all(alias.asname == alias.name for alias in node.names)


# ---------------------------------------------------------------------------------------------------------------- cost


def test_importing_the_packages_imports_nothing_heavy():
    code = "import sys, concept_encoder, concept_encoder.eval, concept_encoder.trainers, concept_encoder.scripts\n"
    assert in_a_process(code + f"print([name for name in {HEAVY} if name in sys.modules])") == "[]"


# -------------------------------------------------------------------------------------------------------- Auto classes

LOAD = """
import json
{first}
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer
for options in ({{}}, {{"trust_remote_code": True}}):
    found = [kind.from_pretrained({folder!r}, **options) for kind in (AutoConfig, AutoModel, AutoModelForMaskedLM)]
    AutoTokenizer.from_pretrained({folder!r}, **options)
    print(json.dumps([f"{{type(each).__module__}}.{{type(each).__name__}}" for each in found]))
"""
ORDERS = {
    "package first": "import concept_encoder",
    "Auto classes first": "from transformers import AutoModel; import concept_encoder",
    "configuration first": "from transformers import AutoConfig; import concept_encoder",
    "model file first": "import concept_encoder.modeling_concept",
}


@pytest.mark.slow
@pytest.mark.parametrize("first", ORDERS.values(), ids=ORDERS)
def test_auto_classes_give_the_installed_classes_trusted_or_not(pretrained, first):
    *_, plain, trusting = in_a_process(LOAD.format(first=first, folder=str(pretrained))).splitlines()
    assert plain == trusting
    assert json.loads(plain) == [
        "concept_encoder.configuration_concept.ConceptEncoderConfig",
        "concept_encoder.modeling_concept.ConceptEncoderModel",
        "concept_encoder.modeling_concept.ConceptEncoderForDiffusionMLM",
    ]
