"""The house has floors: imports go down only, and only scripts face the command line."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from typing import NamedTuple

import pytest
from house import PACKAGE, ROOT, module_name, package_files

FLOORS = ("configuration_concept", "reading_concept", "modeling_concept", "utils", "trainers", "eval", "scripts")
# What `from_pretrained(..., trust_remote_code=True)` may ask of a machine that has transformers and nothing else.
REMOTE_CODE_REQUIREMENTS = {"torch", "transformers", "huggingface_hub", "safetensors"}
OF_AN_EXTRA = {  # the modules that may ask for it
    "eval/explorer/app.py": "explore",
    "eval/corpus/embedders.py": "st",
    "eval/corpus/precision.py": "st",
    "eval/corpus/steps.py": "corpus",
    "eval/judging/subjects.py": "st",
    "scripts/dev/corpus.py": "st",
}
READS_ARGV_WITHOUT_ARGUMENTS = {"parse_args", "parse_known_args", "parse_args_into_dataclasses"}


class Import(NamedTuple):
    """One imported module. `name` is absolute, `level` the number of leading dots, `guarded` = inside a try."""

    name: str
    level: int
    guarded: bool
    line: int


def module_exists(name: str) -> bool:
    path = ROOT.joinpath(*name.split(".")[1:])
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports(source: str, module: str, is_package: bool) -> Iterator[Import]:
    """Every import of a source, those inside functions included, relative names made absolute."""
    tree = ast.parse(source)
    guarded = {id(node) for block in ast.walk(tree) if isinstance(block, ast.Try) for node in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, 0, id(node) in guarded, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                is_module = base.split(".")[0] == PACKAGE and module_exists(submodule)
                yield Import(submodule if is_module else base, node.level, id(node) in guarded, node.lineno)


def floor(module: str) -> int:
    """Index in FLOORS; `__init__` and `__main__` at the root show what is on all of them, and are the roof."""
    parts = module.split(".")
    return FLOORS.index(parts[1]) if parts[1:] and parts[1] in FLOORS else len(FLOORS)


def import_violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """What a module imports against the rules of the house, one line each."""
    found = []
    own = floor(module)
    for item in imports(source, module, is_package):
        where = f"{module}:{item.line} imports {item.name}"
        if item.name.split(".")[0] in FLOORS:
            found.append(f"{where} by a top-level name; the package is {PACKAGE}")
            continue
        if item.name.split(".")[0] != PACKAGE:
            continue
        if own == len(FLOORS):
            if item.level:
                found.append(f"{where} relatively; the root imports absolutely")
            continue
        if own == FLOORS.index("scripts"):
            if item.level:
                found.append(f"{where} relatively; scripts are run as files")
            elif floor(item.name) == own and not module.startswith(f"{PACKAGE}.scripts.dev."):
                found.append(f"{where}; a script imports no script")
        elif not item.level:
            found.append(f"{where} absolutely; inside the package imports are relative")
        if item.name == PACKAGE:
            if own != FLOORS.index("scripts"):
                found.append(f"{where}, the root, which shows what is above")
        elif floor(item.name) > own:
            found.append(f"{where}; imports go down only: {' <- '.join(FLOORS)}")
    return found


def remote_code_violations(source: str, module: str) -> list[str]:
    """What keeps a root module from loading as remote code: other packages, and files that would not travel."""
    found = []
    for item in imports(source, module, is_package=False):
        top = item.name.split(".")[0]
        if top == PACKAGE:
            if item.level != 1 or item.name.count(".") != 1:
                found.append(f"{module}:{item.line} imports {item.name}; only `from .name import x` travels")
        elif top not in REMOTE_CODE_REQUIREMENTS | sys.stdlib_module_names and not item.guarded:
            found.append(f"{module}:{item.line} imports {top} outside a try; loading would demand it")
    return found


def command_line_violations(source: str, module: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        reads = isinstance(node, ast.Attribute) and node.attr == "argv"
        reads |= isinstance(node, ast.ImportFrom) and node.module == "sys" and "argv" in {a.name for a in node.names}
        reads |= (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", None) in READS_ARGV_WITHOUT_ARGUMENTS
            and not node.args
            and not node.keywords
        )
        if reads:
            found.append(f"{module}:{node.lineno} reads the command line, which only scripts do")
    return found


@pytest.mark.parametrize("path", package_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_module_keeps_to_its_floor(path):
    module, source = module_name(path), path.read_text(encoding="utf-8")
    found = import_violations(source, module, is_package=path.name == "__init__.py")
    if path.parent == ROOT and path.name not in ("__init__.py", "__main__.py"):
        found += remote_code_violations(source, module)
    if ROOT / "scripts" not in path.parents:
        found += command_line_violations(source, module)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("folder", ["trainers", "eval"])
def test_a_stub_keeps_to_its_floor(folder):
    source = (ROOT / folder / "__init__.pyi").read_text(encoding="utf-8")
    assert not import_violations(source, f"{PACKAGE}.{folder}", is_package=True)


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.name)
def test_tests_import_the_package_by_its_name(path):
    names = {item.name.split(".")[0] for item in imports(path.read_text(encoding="utf-8"), "tests", is_package=False)}
    assert not names & set(FLOORS), f"{path.name} imports a part of {PACKAGE} by a top-level name"


def imported_test_files(source: str) -> list[str]:
    """Test files that a source imports, those inside the text of a script included."""
    return re.findall(r"^\s*(?:from|import) +(test_\w+)", source, re.MULTILINE)


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.name)
def test_no_test_file_is_imported(path):
    assert imported_test_files(path.read_text(encoding="utf-8")) == [], "what tests share is in tests/support"


def test_an_imported_test_file_is_found():
    source = "import test_a\ndef f():\n    from test_b import x\nSCRIPT = '''\nfrom test_c import y\n'''"
    assert imported_test_files(source) == ["test_a", "test_b", "test_c"]


def test_no_module_is_called_like_one_of_the_standard_library():
    """Within the package and among the pieces of the tests, which are on the path."""
    paths = [*package_files(), *(ROOT / "tests").rglob("*.py")]
    names = {part for path in paths for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not names & sys.stdlib_module_names


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("configuration_concept", "from .modeling_concept import X", "imports go down only"),
        ("modeling_concept", "from .trainers.data import X", "imports go down only"),
        ("trainers.trainer", "def f():\n    from ..eval.report import X", "imports go down only"),
        ("trainers.trainer", "from ..scripts import pretrain", "imports go down only"),
        ("trainers.trainer", "from concept_encoder.modeling_concept import X", "inside the package"),
        ("trainers.trainer", "from .. import X", "the root"),
        ("trainers.trainer", "import modeling_concept", "by a top-level name"),
        ("eval.gates", "import trainers.data", "by a top-level name"),
        ("scripts.analyze", "from concept_encoder.scripts.pretrain import main", "a script imports no script"),
        ("scripts.analyze", "from .pretrain import main", "scripts are run as files"),
    ],
)
def test_import_rules_catch(module, source, message, monkeypatch):
    monkeypatch.setattr(f"{__name__}.module_exists", lambda name: name == f"{PACKAGE}.scripts.pretrain")
    assert any(message in line for line in import_violations(source, f"{PACKAGE}.{module}"))


def test_import_rules_catch_a_relative_root():
    found = import_violations("from .modeling_concept import X", PACKAGE, is_package=True)
    assert len(found) == 1
    assert "imports absolutely" in found[0]


def test_import_rules_allow_going_down():
    allowed = "import torch\nfrom ..modeling_concept import X\nfrom ..trainers.data import Y\nfrom .gates import Z"
    assert import_violations(allowed, f"{PACKAGE}.eval.report") == []
    assert import_violations("from concept_encoder.eval.report.report import X", f"{PACKAGE}.scripts.report") == []
    page = "from concept_encoder.scripts.dev.scaling import REFERENCE"  # this repository's pages share their pieces
    assert import_violations(page, f"{PACKAGE}.scripts.dev.speed.measure") == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import datasets", "outside a try"),
        ("def f():\n    import sklearn", "outside a try"),
        ("from . import configuration_concept", "travels"),
    ],
)
def test_remote_code_rules_catch(source, message, monkeypatch):
    monkeypatch.setattr(f"{__name__}.module_exists", lambda name: False)
    assert any(message in line for line in remote_code_violations(source, f"{PACKAGE}.modeling_concept"))


def test_remote_code_rules_allow_guarded_and_required():
    source = "import math\nimport torch\ntry:\n    import flash_attn\nexcept ImportError:\n    flash_attn = None"
    assert remote_code_violations(source, f"{PACKAGE}.modeling_concept") == []


@pytest.mark.parametrize(
    "source",
    ["import sys\nprint(sys.argv)", "from sys import argv", "parser.parse_args()", "p.parse_args_into_dataclasses()"],
)
def test_command_line_rules_catch(source):
    assert command_line_violations(source, f"{PACKAGE}.trainers.recipes")
    assert command_line_violations("parser.parse_args(arguments)", f"{PACKAGE}.trainers.recipes") == []


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_subpackage_is_listed():
    folders = {path.parent for path in package_files() if ROOT / "scripts" / "dev" not in (path.parent, *path.parents)}
    without_init = [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").is_file()]
    assert not without_init, f"folders of modules without __init__.py: {without_init}"
    existing = {module_name(folder / "__init__.py") for folder in folders}
    assert existing == set(pyproject()["tool"]["setuptools"]["packages"])


def test_every_third_party_import_is_declared():
    """Each floor's imports are in the dependencies or in an extra that this floor may ask for."""
    project = pyproject()["project"]
    extras = project["optional-dependencies"]

    def names(requirements: list[str]) -> set[str]:
        return {requirement.split(">=")[0].split("[")[0].lower() for requirement in requirements}

    base = names(project["dependencies"])
    allowed = {"trainers": base | names(extras["train"]), "root": base}
    allowed["utils"] = allowed["trainers"]
    allowed["eval"] = allowed["scripts"] = allowed["trainers"] | names(extras["eval"])
    distributions = packages_distributions()
    missing = []
    for path in package_files():
        part = path.relative_to(ROOT).parts[0] if path.parent != ROOT else "root"
        extra = OF_AN_EXTRA.get(path.relative_to(ROOT).as_posix())
        known = allowed[part] | (names(extras[extra]) if extra else set())
        for item in imports(path.read_text(encoding="utf-8"), module_name(path), path.name == "__init__.py"):
            top = item.name.split(".")[0]
            if top in sys.stdlib_module_names or top == PACKAGE or item.guarded:
                continue
            provided_by = {name.lower().replace("-", "_") for name in distributions.get(top, [top])}
            if not provided_by & {name.replace("-", "_") for name in known}:
                missing.append(f"{path.relative_to(ROOT)}:{item.line} imports {top}")
    assert not missing, "not declared in pyproject.toml:\n" + "\n".join(missing)
