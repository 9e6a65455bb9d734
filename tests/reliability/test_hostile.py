"""Every hostile input of `hostile.CASES` through the door that users have for it: a right answer, or one line."""

import re
import time
from pathlib import Path

import pytest
from hostile import CASES, Case

from concept_encoder.eval.benchmarks.decontamination import load_plan
from concept_encoder.eval.benchmarks.registry import find_benchmark, load_benchmark
from concept_encoder.eval.report.gates import load_gates
from concept_encoder.trainers.data.corpora import DataArguments, load_corpus
from concept_encoder.trainers.recipes import Recipe, read_data
from concept_encoder.utils.untrusted import read_yaml

SECONDS = 20  # of any refusal, on a busy machine; the worst took minutes


def corpus(folder: Path, path: str, keeps: int | None = None, **options) -> None:
    rows = load_corpus(DataArguments(dataset_name=str(folder / path), **options), "train")
    texts = [row["text"] for row in rows]
    assert texts and all(isinstance(text, str) and text.strip() for text in texts)
    assert keeps in (None, len(texts))


def corpus_of_files(folder: Path, glob: str | None = None, **options) -> None:
    names = sorted(path.name for path in folder.iterdir())
    corpus(folder, glob or names[0], **options)


def recipe(folder: Path, path: str = "x.yaml") -> None:
    Recipe.load(folder / path)


def task(folder: Path) -> None:
    data = load_benchmark(find_benchmark(str(folder / "own.yaml")))
    assert data["train"].column_names == ["sentence1", "sentence2", "label"]


DOORS = {
    "yaml": lambda folder: read_yaml(folder / "x.yaml"),
    "recipe": recipe,
    "foreign recipe": lambda folder: read_data(folder / "x"),
    "task file": lambda folder: find_benchmark(str(folder / "x.yaml")),
    "task": task,
    "plan": lambda folder: load_plan(folder / "x.yaml"),
    "gates": lambda folder: load_gates(folder / "x.yaml"),
    "corpus": corpus_of_files,
    "corpus of a folder": lambda folder: corpus(folder, "x"),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}-{case.door}-{case.name}".replace(" ", "_"))
def test_a_right_answer_or_one_line(case: Case, tmp_path):
    folder = tmp_path / "there"
    folder.mkdir()
    case.write(folder)
    start = time.monotonic()
    said = None
    try:
        DOORS[case.door](folder, **case.options)
    except (ValueError, OSError) as error:
        said = str(error)
    assert time.monotonic() - start < SECONDS
    if case.says is None:
        assert said is None
        return
    assert said is not None, "nothing was said"
    assert re.search(case.says, said), said.replace(str(folder), "")
    assert "\n" not in said.strip()
    assert "hunter2" not in said and "root:" not in said
