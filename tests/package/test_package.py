"""The wheel: what it holds, and that it works where the repository is not."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

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


def run(*command: str, cwd: Path, **environment: str) -> str:
    result = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: a build leaves folders behind, and a stale one would show in the next wheel."""
    source = tmp_path_factory.mktemp("concept-encoder-source")
    for path in [*ROOT.glob("*.py"), *(ROOT / name for name in (*FILES, *FOLDERS))]:
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
    files = [*ROOT.glob("*.py"), ROOT / "py.typed", ROOT / "model_cards" / "template.md"]
    for folder in ("utils", "trainers", "eval", "scripts"):
        files += [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    files = [path for path in files if ROOT / "scripts" / "dev" not in path.parents]
    return {path.relative_to(ROOT).as_posix() for path in files}


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
    extras = "train eval explore mteb cuda docs onnx st tensorboard trackio wandb test dev"
    assert set(metadata.get_all("Provides-Extra")) == set(extras.split())
    assert f"version: {metadata['Version']}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()


def test_every_module_imports_from_the_wheel_alone(wheel, tmp_path):
    target = tmp_path / "installed"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel), cwd=tmp_path)
    printed = run(sys.executable, "-c", IMPORT_EVERYTHING, cwd=tmp_path, PYTHONPATH=str(target), HF_HUB_OFFLINE="1")
    files = json.loads(printed.splitlines()[-1])
    outside = {name: file for name, file in files.items() if not Path(file).is_relative_to(target)}
    assert not outside
    assert len(files) == sum(name.endswith(".py") for name in package_files_of_the_tree())
