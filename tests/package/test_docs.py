"""Every command and snippet of README.md, CONTRIBUTING.md, CHANGELOG.md and docs/ does what the page says.

Python blocks are run page by page, each page in one namespace, in a scratch folder that holds a tiny run under
`runs/mine` and `organisation/checkpoint`. Sessions (`pycon`) are doctests. Commands are read by their own `main`,
stopped where its work would begin; blocks below `<!-- run -->` are run for real. YAML blocks are recipes.
"""

import doctest
import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
import torch
import yaml
from accelerate.commands.launch import launch_command_parser

from concept_encoder.eval.benchmarks import protocols
from concept_encoder.eval.benchmarks.comparison import find_variants
from concept_encoder.eval.benchmarks.registry import find_benchmark
from concept_encoder.scripts import COMMANDS
from concept_encoder.trainers import recipes
from concept_encoder.trainers.recipes import Recipe, find_recipe
from concept_encoder.utils.command_line import command_name

ROOT = Path(__file__).resolve().parents[2]
# A diary, and pages that their own tests compare with a rendering.
RENDERED = {"LOG.md", "GATE_1.md", "SPEED.md", "SCALING.md", "RETRIEVAL.md", "ENCODER.md", "CORPUS.md"}
PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY", "CODE_OF_CONDUCT")]
PAGES += sorted(path for path in (ROOT / "docs").rglob("*.md") if path.name not in RENDERED)
LANGUAGES = {"bash", "python", "pycon", "yaml", "text", "bibtex"}
RUN = "<!-- run -->"
FENCE = re.compile(
    rf"^(?P<run>{RUN}\n\n?)?(?P<indent> *)```(?P<language>\S*)\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S
)

# Where the work of a command begins, with arguments read and checked: functions of the package that are stopped. Of a
# command that is not here it is the verb of its name.
WORK = {
    "compare": "compare eval.benchmarks.comparison.plan_comparison",
    "explore": "explore eval.explorer.space.write_space",
    "generate": "eval.concepts.sampling.load_sampler",
    "pretrain": "pretrain trainers.planning.plan_pretraining",
    "pretrain_twin": "pretrain",
    "search": "eval.corpus.searching.open_index eval.corpus.index.Index.build",
}
# The same for the scripts of this repository, in their own modules.
DEV_WORK = {
    "benchmark.py": "measure",
    "cards.py": "render_cards",
    "corpus.py": "render_page",
    "encoder_table.py": "measure_all",
    "gate_1.py": "render_page",
    "retrieval.py": "render_page",
    "sampling_steps.py": "sampling_steps",
    "scaling.py": "render_page",
    "soak.py": "soak",
}


class Block(NamedTuple):
    """A fenced block: its language, its text, the line it begins on, and whether to run it for real."""

    language: str
    text: str
    line: int
    run: bool


def blocks(page: Path, *languages: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        body = "".join(line.removeprefix(match["indent"]) for line in match["text"].splitlines(keepends=True))
        line = text.count("\n", 0, match.start("text")) + 1
        found.append(Block(match["language"], body, line, match["run"] is not None))
    assert len(found) * 2 == len(re.findall(r"^ *```", text, re.M)), f"{page.name}: a fence is not closed"
    return [block for block in found if not languages or block.language in languages]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def pages_with(*languages: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, *languages)]


def commands(block: Block) -> list[list[str]]:
    """Words of each command: lines joined at a backslash, comments left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [each for each in words if each]


@pytest.fixture
def scratch(pretrained, tmp_path, monkeypatch) -> Path:
    """The working directory of a page's reader: the scripts, and a run."""
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    for name in ("runs/mine", "organisation/checkpoint"):
        shutil.copytree(pretrained, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -------------------------------------------------------------------------------------------------------------- blocks


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_its_language(page):
    unknown = [block.line for block in blocks(page) if block.language not in LANGUAGES]
    assert not unknown, f"lines {unknown}: a block is one of {', '.join(sorted(LANGUAGES))}"


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("python"), ids=name_of)
def test_python_blocks_run(page, scratch):
    namespace: dict = {"__name__": "__page__"}
    for block in blocks(page, "python"):
        # Blank lines in front, so that a traceback names the page's own line.
        exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", pages_with("pycon"), ids=name_of)
def test_sessions_print_what_they_say(page, scratch):
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    namespace: dict = {}
    for block in blocks(page, "pycon"):
        session = parser.get_doctest(block.text, namespace, page.name, str(page), block.line - 1)
        assert session.examples, f"{page.name}:{block.line} holds no >>>"
        runner.run(session, out=report.append, clear_globs=False)
        namespace = session.globs
    assert not runner.failures, "".join(report)


@pytest.mark.parametrize("page", pages_with("yaml"), ids=name_of)
def test_yaml_blocks_are_recipes(page, tmp_path):
    for path in (ROOT / "scripts" / "recipes").glob("*.yaml"):
        shutil.copy(path, tmp_path)
    for block in blocks(page, "yaml"):
        (tmp_path / "of_the_page.yaml").write_text(block.text, encoding="utf-8")
        Recipe.load(tmp_path / "of_the_page.yaml", bf16=False)


# ------------------------------------------------------------------------------------------------------------ commands


class Reached(Exception):
    """The script has read its arguments and begins to work."""


def stop(*args, **kwargs):
    raise Reached


def load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_script(words: list[str], monkeypatch) -> None:
    """`main` of a script of this repository takes the arguments."""
    path, arguments = Path(words[0]), words[1:]
    module = load_script(path)
    if arguments == ["--help"]:
        return
    monkeypatch.setattr(module, DEV_WORK[path.name], stop)
    with pytest.raises(Reached):
        module.main(arguments)


def check_concept_encoder(words: list[str], monkeypatch) -> None:
    """The command takes the arguments, and the recipes, tasks and fields that they name exist."""
    name, arguments = words[0].replace("-", "_"), words[1:]
    if name not in COMMANDS:
        raise ValueError(f"concept-encoder has no command {words[0]}")
    module = importlib.import_module(f"concept_encoder.scripts.{name}")
    if arguments in (["--help"], ["--fields"]):
        return
    for function in WORK.get(name, name).split():
        monkeypatch.setattr(f"concept_encoder.{function}", stop)
    # Recipes for GPUs ask for bfloat16, which transformers refuses to promise without one.
    on_cpu = name == "pretrain" and not torch.cuda.is_available()
    with pytest.raises(Reached):
        module.main([*arguments, *(["--bf16", "false"] if on_cpu else [])])
    if name == "compare":
        typed = module.command()
        named = typed.typed(arguments)["recipes"]
        for variant in find_variants(named if len(named) > 1 else named[0]):
            variant.load(0, Path("runs/compared"), typed.fields())
    for flag in ("--tasks", "--frozen"):
        if flag in arguments:
            rest = arguments[arguments.index(flag) + 1 :]
            for task in rest[: next((i for i, word in enumerate(rest) if word.startswith("--")), None)]:
                if not task.endswith(".yaml"):  # a reader's own; tests/eval/test_finetuning.py has one
                    find_benchmark(task)


def check_accelerate(words: list[str], monkeypatch) -> None:
    arguments = launch_command_parser().parse_args(words)
    if arguments.config_file is not None:
        assert (ROOT / arguments.config_file).is_file(), arguments.config_file
    assert arguments.module, "-m concept_encoder.scripts.pretrain is what runs wherever the package is installed"
    name = arguments.training_script.removeprefix("concept_encoder.scripts.")
    check_concept_encoder([name, *arguments.training_script_args], monkeypatch)


def check_make(words: list[str]) -> None:
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    unknown = [word for word in words if "=" not in word and word not in targets]
    assert not unknown, f"make {unknown[0]}: the Makefile has {', '.join(targets)}"


def check_pip(words: list[str]) -> None:
    known = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    asked = {extra for word in words for extras in re.findall(r"\[(.*)\]", word) for extra in extras.split(",")}
    assert words[0] == "install" and asked <= known, f"extras {asked - known} do not exist"


def check_command(words: list[str], monkeypatch) -> None:
    """ValueError or AssertionError if the command is not one that works here."""
    match words:
        case ["concept-encoder", *rest]:
            check_concept_encoder(rest, monkeypatch)
        case ["eval", "$(register-python-argcomplete concept-encoder)"]:
            pass
        case ["python", script, *rest] if script.startswith("scripts/dev/"):
            check_script([script, *rest], monkeypatch)
        case ["accelerate", "launch", *rest]:
            check_accelerate(rest, monkeypatch)
        case ["make", *rest]:
            check_make(rest)
        case ["pip", *rest]:
            check_pip(rest)
        case ["hf", "auth", "login"] | [".venv/bin/pre-commit", "install"]:
            pass
        case ["hf", "upload", _, _, "--repo-type", "space"]:
            pass
        case ["git", "tag" | "push" | "clone", *_] | ["cd", _]:
            pass
        case _:
            raise ValueError(f"no test knows the command {shlex.join(words)}")


@pytest.mark.parametrize("page", pages_with("bash"), ids=name_of)
def test_commands_are_read_by_their_scripts(page, scratch, monkeypatch, capsys):
    for block in blocks(page, "bash"):
        for words in commands(block):
            # Folders of other runs that the page's commands read; a tokenizer's has to be new.
            for word in words if "train-tokenizer" not in words else []:
                if re.fullmatch(r"runs/[\w-]+", word) and not Path(word).exists():
                    shutil.copytree("runs/mine", word)
            try:
                check_command(words, monkeypatch)
            except SystemExit:
                pytest.fail(f"{page.name}:{block.line}: {shlex.join(words)}\n{capsys.readouterr().err}")


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(block.run for block in blocks(page))], ids=name_of)
def test_blocks_marked_to_run_do(page, scratch):
    shutil.rmtree(scratch / "runs")
    for block in blocks(page, "bash"):
        if block.run:
            python = shlex.quote(sys.executable)
            script = f'set -eu\nconcept-encoder() {{ {python} -m concept_encoder "$@"; }}\n{block.text}'
            done = subprocess.run(["bash", "-c", script], cwd=scratch, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{page.name}:{block.line}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("concept-encoder finetune runs/mine --tasks mrpc", "--protocol"),
        ("concept-encoder finetune runs/mine --tasks mrpcc --protocol tuned", "Unknown task 'mrpcc'"),
        ("concept-encoder pretrain tinny", "Unknown recipe 'tinny'"),
        ("concept-encoder pretrain tiny --num_concept 3", "did you mean num_concepts"),
        ("concept-encoder compare tiny --output_dir runs/all --max_stepps 3", "did you mean max_steps"),
        (
            "accelerate launch --config_file scripts/accelerate/none.yaml -m concept_encoder.scripts.pretrain tiny",
            "none.yaml",
        ),
        ("make tests", "make tests"),
        ("pip install concept-encoder[trains]", "'trains'"),
        ("concept-encoder analise runs/mine", "no command analise"),
        ("accelerate launch scripts/pretrain.py tiny", "-m concept_encoder.scripts.pretrain"),
        ("python scripts/pretrain.py", "no test knows"),
    ],
)
def test_a_wrong_command_is_caught(command, message, scratch, monkeypatch, capsys):
    with pytest.raises((SystemExit, ValueError, AssertionError)) as caught:
        check_command(shlex.split(command), monkeypatch)
    assert message in f"{caught.value}{capsys.readouterr().err}"


def test_every_command_is_on_the_page_of_commands():
    page = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    commands, scripts = page.split("\n| script in ")
    assert set(re.findall(r"^\| `([a-z][a-z-]*)` \|", commands, re.M)) == set(map(command_name, COMMANDS))
    runnable = {path.name for path in (ROOT / "scripts" / "dev").glob("*.py") if "run(main)" in path.read_text()}
    assert set(re.findall(r"^\| `(\w+\.py)` \|", scripts, re.M)) == runnable


def test_options_named_in_a_sentence_exist(capsys):
    """Those of any command or script, of the fields of recipes and protocols, and of accelerate."""
    helps = [importlib.import_module(f"concept_encoder.scripts.{name}").command().format_help() for name in COMMANDS]
    for path in (ROOT / "scripts" / "dev").glob("*.py"):
        if "run(main)" in path.read_text(encoding="utf-8"):
            with pytest.raises(SystemExit):
                load_script(path).main(["--help"])
    known = set(
        re.findall(
            r"--\w+", "\n".join([*helps, capsys.readouterr().out, recipes.fields_help(), protocols.fields_help()])
        )
    )
    known |= {"--version"} | set(launch_command_parser()._option_string_actions)
    for page in PAGES:
        prose = FENCE.sub("", page.read_text(encoding="utf-8"))
        named = {option for code in re.findall(r"`([^`]+)`", prose) for option in re.findall(r"(?<!\S)--\w+", code)}
        assert named <= known, f"{name_of(page)}: {', '.join(sorted(named - known))}"


def test_pre_commit_and_ci_run_what_the_makefile_does():
    """One definition of the checks."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    for entry in (hook["entry"] for hook in hooks):
        assert f"{entry.removesuffix(' --force-exclude').replace('.venv/bin', '$(BIN)')} ." in makefile
    assert "make test " in (ROOT / ".ci" / "run").read_text()


# ------------------------------------------------------------------------------------------------- names, links, site


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_a_page_names_exist(page):
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    named = re.findall(r"`((?:scripts|trainers|eval|tests|docs|model_cards|\.github|\.ci)/[\w./*-]*)`", prose)
    named += re.findall(r"`([A-Z]+\.(?:md|cff)|pyproject\.toml)`", prose)
    missing = sorted(name for name in set(named) if not any(list(at.glob(name)) for at in (ROOT, ROOT / "docs")))
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_recipes_that_a_page_names_exist(page):
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    for name in re.findall(r"recipes? `(\w+)`", prose):
        find_recipe(name, ROOT / "scripts" / "recipes")


def test_entries_of_the_log_that_a_page_names_exist():
    headings = re.findall(r"^## (.*)$", (ROOT / "docs" / "LOG.md").read_text(encoding="utf-8"), re.M)
    named = 0
    for page in PAGES:
        prose = " ".join(page.read_text(encoding="utf-8").split())
        for entries in re.findall(r'LOG\.md\), ((?:"[^"]+"(?: and )?)+)', prose):
            for entry in re.findall(r'"([^"]+)"', entries):
                assert any(entry in heading for heading in headings), f"{name_of(page)}: {entry}"
                named += 1
    assert named > 5


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_to_other_places_are_well_formed(page):
    for link in re.findall(r"(?:\]\(|<)(\w+:[^)>\s]*)", page.read_text(encoding="utf-8")):
        parts = urlsplit(link)
        assert parts.scheme == "https" and "." in parts.netloc, link


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    """Links inside the site, their anchors, and every object of the API pages are what strict mode checks."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'concept-encoder[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "site/reference/model.html").read_text(encoding="utf-8")
    assert 'id="concept_encoder.modeling_concept.ConceptEncoderModel.forward"' in reference
    card = (tmp_path / "site/cards/microworld.html").read_text(encoding="utf-8")
    assert "<h1" in card and "model-index" not in card
