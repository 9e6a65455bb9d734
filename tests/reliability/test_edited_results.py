"""Stored results with every kind of damage, through each command that reads them: one line that names the file."""

import functools
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from explorable import explorable
from run_files import write_synthetic_run
from tqdm import tqdm

from concept_encoder.eval.benchmarks import comparison, retrieval, tuning
from concept_encoder.eval.benchmarks.protocols import Protocol
from concept_encoder.eval.explorer.explorer import load_explorer
from concept_encoder.eval.report.report import build_report
from concept_encoder.utils.results import BagCell, Result, SeedCell, SweepCell, SweepRow

pytestmark = pytest.mark.slow


ANY_OBJECT = ("settings", "objective")  # may hold any JSON


def _places(node, path=()) -> Iterator[tuple]:
    """Where the numbers of a file are."""
    if isinstance(node, int | float) and not isinstance(node, bool):
        yield path
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from _places(value, (*path, key))


def _with(content: dict, path: tuple, value) -> dict:
    content = json.loads(json.dumps(content))
    functools.reduce(lambda node, key: node[key], path[:-1], content)[path[-1]] = value
    return content


def damaged(text: str) -> dict[str, str | bytes | None]:
    """What was done to a file -> its content; None: a folder has its name."""
    content = json.loads(text)
    own = [name for name in content if name not in ("kind", "schema")]
    found: dict[str, object] = {}
    for name in own:
        found[f"without {name}"] = {key: value for key, value in content.items() if key != name}
        found[f"{name} a list of lists"] = {**content, name: [["x"]]}
        if name not in ANY_OBJECT:
            found[f"{name} another object"] = {**content, name: {"x": {"y": "z"}}}
    first = next(path for path in _places(content) if path[0] not in ("schema", *ANY_OBJECT))
    for value in (math.nan, math.inf, -math.inf, 10**400, "many", True):
        found[f"{value!r:.9} for a number"] = _with(content, first, value)
    found |= {f"schema {value!r}": {**content, "schema": value} for value in (0, 99, True, "1", None)}
    found |= {f"kind {value!r}": {**content, "kind": value} for value in ("other", None)}
    found |= {"without a kind": {name: content[name] for name in own}, "a field more": {**content, "more": 1}}
    found |= {"a list": [content], "an empty object": {}, "null": None}
    written: dict[str, str | bytes | None] = {name: json.dumps(each) for name, each in found.items()}
    written["a field twice"] = f'{{"{own[0]}": 1, {text.strip()[1:]}'
    written |= {f"cut at {share:.0%}": text[: int(share * len(text))] for share in (0.01, 0.5, 0.99)}
    written |= {"empty": "", "words": "hello", "deep": "[" * 100_000, "bytes": b"\xff\xfe\0", "a folder": None}
    return written


SETTING = {"learning_rate": 0.1, "batch_size": 2, "epochs": 1}
MADE = {"steps": 1, "padding_share": 0.1, "seconds": 1.0, "device": "cpu", "head": "x", "log_history": []}
CELLS: dict[str, Result] = {
    "sweep": SweepCell(
        settings={"a": 1}, row=SweepRow(**SETTING, metrics={"accuracy": 0.5}), metrics_by_epoch=[], seconds=1.0
    ),
    "seed": SeedCell(
        settings={"a": 1}, seed=1, metrics={}, predictions=[1.0], newly_initialized=[], dropped=[], **MADE
    ),
    "bag": BagCell(settings={"a": 1}, metrics={"accuracy": 0.5}, predictions=[1.0]),
}


@pytest.fixture
def run(tmp_path) -> Path:
    return write_synthetic_run(tmp_path / "run")


def tried(path: Path, read) -> None:
    """Each case ends in an error of one line with the name of the file."""
    text = path.read_text()
    read()
    for name, content in damaged(text).items():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        said = "nothing"
        try:
            read()
        except (ValueError, OSError) as error:
            said = str(error)
        assert path.name in said and "\n" not in said.strip(), f"{name}: {said}"


RESULTS = ("pretrain", "geometry", "ledger", "similarity/microworld_similarity")
FINETUNED = "finetune/microworld_entailment.reference"


@pytest.mark.parametrize("name", [*RESULTS, FINETUNED])
def test_compare(run, name):
    protocol = Protocol.load("reference")
    tasks = ["microworld_similarity"], ["microworld_entailment"]
    tried(run / f"{name}.json", lambda: comparison._figures(run, *tasks, protocol))


@pytest.mark.parametrize("name", [*RESULTS, FINETUNED, "reading", "retrieval/needle_1024"])
def test_report(run, name):
    tried(run / f"{name}.json", lambda: build_report(run))


def test_retrieval(run):
    path = run / "retrieval" / "needle_1024.json"
    settings = json.loads(path.read_text())["settings"]
    tried(path, lambda: retrieval._existing(path, settings, overwrite=False))


@pytest.mark.parametrize("kind", CELLS)
def test_finetune(tmp_path, kind):
    CELLS[kind].save(tmp_path / "cell.json")
    cells = tuning.Cells(tmp_path, tqdm(disable=True))

    def again(_):
        pytest.fail("computed again")

    tried(tmp_path / "cell.json", lambda: cells.get("cell", type(CELLS[kind]), {"a": 1}, again))


def test_explore(tmp_path):
    folder = explorable(tmp_path)
    tried(folder / "pretrain.json", lambda: load_explorer(folder))
