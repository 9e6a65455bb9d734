"""The wheel: what it holds, and that it works where the repository is not."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from email.parser import Parser
from pathlib import Path
from statistics import median

import pytest

from concept_encoder.scripts import COMMANDS
from concept_encoder.utils.command_line import command_name

ROOT = Path(__file__).resolve().parents[2]
FILES = ("pyproject.toml", "LICENSE", "README.md", "py.typed")
FOLDERS = ("utils", "trainers", "eval", "scripts", "model_cards", "tests")

IMPORT_EVERYTHING = """
import importlib, json, pkgutil
import concept_encoder
names = [m.name for m in pkgutil.walk_packages(concept_encoder.__path__, "concept_encoder.")]
files = [importlib.import_module(name).__file__ for name in ["concept_encoder", *names]]
print(json.dumps(dict(zip(["concept_encoder", *names], files))))
"""


def run(*command: str, cwd: Path, timeout: float = 300, **environment: str) -> str:
    result = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: a build leaves folders behind, and a stale one would show in the next wheel."""
    source = tmp_path_factory.mktemp("concept-encoder-source")
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.pyi"), *(ROOT / name for name in (*FILES, *FOLDERS))]:
        if path.is_dir():
            shutil.copytree(path, source / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source)
    out = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(out), ".", cwd=source)
    (built,) = out.glob("*.whl")
    return built


def package_files_of_the_tree() -> set[str]:
    files = [*ROOT.glob("*.py"), ROOT / "__init__.pyi", ROOT / "py.typed", ROOT / "model_cards" / "template.md"]
    files += [path for path in (ROOT / "model_cards" / "box").rglob("*") if path.is_file()]
    for folder in ("utils", "trainers", "eval", "scripts"):
        files += [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    files = [path for path in files if ROOT / "scripts" / "dev" not in path.parents]
    return {path.relative_to(ROOT).as_posix() for path in files}


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    metadata = {name for name in names if ".dist-info/" in name}
    held = {name.removeprefix("concept_encoder/") for name in set(names) - metadata}
    assert held == package_files_of_the_tree()
    assert {Path(name).name for name in metadata} >= {"METADATA", "LICENSE"}


def test_wheel_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = Parser().parsestr(archive.read(name).decode())
    assert metadata["Name"] == "concept-encoder"
    assert metadata["License-Expression"] == "Apache-2.0"
    extras = "train eval explore corpus ann retrieval mteb cuda docs onnx st tensorboard trackio wandb test dev"
    assert set(metadata.get_all("Provides-Extra")) == set(extras.split())
    assert f"version: {metadata['Version']}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Folder of the wheel alone, to put before everything else that can be imported."""
    target = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel), cwd=target)
    return target


@pytest.mark.slow
def test_every_module_imports_from_the_wheel_alone(installed, tmp_path):
    pytest.importorskip("gradio", reason="the extra explore is not installed, which a module of the explorer imports")
    printed = run(sys.executable, "-c", IMPORT_EVERYTHING, cwd=tmp_path, PYTHONPATH=str(installed), HF_HUB_OFFLINE="1")
    files = json.loads(printed.splitlines()[-1])
    outside = {name: file for name, file in files.items() if not Path(file).is_relative_to(installed)}
    assert not outside
    modules = [name for name in package_files_of_the_tree() if name.endswith(".py")]
    assert len(files) == sum(not name.startswith("model_cards/") for name in modules)  # code of a model, not of ours


@pytest.mark.slow
def test_help_of_every_command_comes_at_once(installed, tmp_path):
    """Nothing heavy is imported, and so half of them answer in 1.5 s even where other processes run."""
    assert (installed / "bin" / "concept-encoder").is_file()
    seconds = []
    for words in ([], *([command_name(name)] for name in COMMANDS)):
        command = [sys.executable, "-X", "importtime", "-m", "concept_encoder", *words, "--help"]
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        start = time.perf_counter()
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0 and done.stdout.startswith("usage: concept-encoder"), done.stderr
        imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
        assert "concept_encoder" in imported
        assert not imported & {"torch", "transformers", "datasets", "huggingface_hub", "numpy"}, words
    assert median(seconds) < 1.5


@pytest.mark.slow
def test_a_run_from_the_wheel_alone(installed, tmp_path):
    """Recipes, templates and gates are in it."""

    def command(words: str) -> str:
        start = (sys.executable, "-m", "concept_encoder")
        return run(*start, *words.split(), cwd=tmp_path, timeout=900, PYTHONPATH=str(installed))

    sizes = "--max_train_documents 48 --max_validation_documents 64 --use_cpu true"
    assert "bits per token" in command(f"pretrain tiny --max_steps 2 {sizes}")
    assert "grades" in command("analyze runs/tiny --num_batches 4 --batch_size 8 --ledger_documents 8")
    assert command("report runs/tiny")
    assert {path.name for path in (tmp_path / "runs" / "tiny").iterdir()} >= {
        *("model.safetensors", "modeling_concept.py", "recipe.yaml", "geometry.json"),
        *("report.html", "report.md", "report.json"),
    }


def test_the_lowest_transformers_is_the_same_everywhere():
    floor = re.search(r'require_version\("transformers>=([0-9.]+)"', (ROOT / "configuration_concept.py").read_text())[
        1
    ]
    assert f"`transformers` ({floor} or newer)" in (ROOT / "model_cards/template.md").read_text()
    assert f"transformers from {floor} on" in (ROOT / "docs/explanation/limits.md").read_text().replace("\n  ", " ")
    assert re.search(r"^VERSIONS \?= ([0-9.]+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].startswith(floor)
