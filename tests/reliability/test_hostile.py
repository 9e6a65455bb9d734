"""Every hostile input of `hostile.CASES` through the door that users have for it: a right answer, or one line."""

import io
import json
import os
import re
import subprocess
import sys
import time
from contextlib import redirect_stderr
from dataclasses import replace
from html import escape
from pathlib import Path

import evaluate
import markdown
import pytest
from hostile import CASES, Case, counts
from run_files import synthetic_pretrain, write_run
from small_tasks import small_task
from tokenizers import processors
from transformers import ByT5Tokenizer

from concept_encoder.configuration_concept import ConceptEncoderConfig
from concept_encoder.eval import metrics
from concept_encoder.eval.benchmarks.decontamination import load_plan
from concept_encoder.eval.benchmarks.protocols import Protocol
from concept_encoder.eval.benchmarks.registry import find_benchmark, load_benchmark
from concept_encoder.eval.benchmarks.tuning import prepare_task
from concept_encoder.eval.hub.card import CardFacts, render_card
from concept_encoder.eval.loading.checkpoints import checkpoint_folder
from concept_encoder.eval.report.gates import load_gates
from concept_encoder.eval.report.report import build_report
from concept_encoder.trainers.data.corpora import DataArguments, load_corpus, load_tokenizer, train_tokenizer
from concept_encoder.trainers.data.microworld import microworld_tokenizer
from concept_encoder.trainers.recipes import Recipe, find_recipe, read_data
from concept_encoder.trainers.weights.tensors import weight_files
from concept_encoder.utils.command_line import Parser
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


def corpus_at_home(folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    args = DataArguments(dataset_name="~/a.jsonl", tokenizer_name="~/words")
    assert (args.dataset_name, args.tokenizer_name) == (str(folder / "a.jsonl"), str(folder / "words"))
    assert len(load_corpus(args, "train")) == 1
    assert Path(checkpoint_folder("~")) == folder
    (folder / "x.yaml").write_text("{}")
    assert find_recipe("~/x.yaml") == folder / "x.yaml"
    read = Parser(prog="x")
    read.add_argument("--a")
    assert read.parse_args(["--a=~/b"]).a == str(folder / "b")
    assert read.parse_args(["--a", "~ b"]).a == "~ b"


def learned_tokenizer(folder: Path, kind: str, size: int = 300) -> None:
    if kind == "bytes":
        seed = ByT5Tokenizer()
        seed.add_special_tokens({"mask_token": "[MASK]"})
    else:
        seed = microworld_tokenizer()
    seed.save_pretrained(folder / kind)
    args = DataArguments(dataset_name=str(folder / "texts.txt"), tokenizer_name=str(folder / kind))
    assert len(train_tokenizer(args, size, folder / "learned")) <= size


def read_the_tokenizer(folder: Path) -> None:
    load_tokenizer(DataArguments(tokenizer_name=str(folder / "x")))


def pair_task(folder: Path, template: bool) -> None:
    tokenizer = microworld_tokenizer()
    if not template:
        tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    protocol = Protocol.load("reference", max_length=32)
    prepare_task(small_task("mrpc", folder), protocol, tokenizer, ConceptEncoderConfig())


def size(folder: Path, **fields) -> None:
    recipe = Recipe.load("tiny", output_dir=str(folder / "run"), use_cpu=True, **fields)
    recipe.model_config(load_tokenizer(recipe.data))


def measurement(folder: Path, name: str, **inputs) -> None:
    evaluate.load(str(Path(metrics.__file__).parent / name)).compute(**inputs)


def terminal(folder: Path, said: str) -> None:
    """The line of an error, as an ASCII terminal shows it."""
    command = "from concept_encoder.utils.command_line import Parser, run; import sys; words = sys.argv[1]\n"
    command += "run(lambda: Parser(prog='x').error(eval(words)))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LANG": "C", "LC_ALL": "C"}
    ran = subprocess.run(
        [sys.executable, "-c", command, ascii(said)], capture_output=True, text=True, env=environment, check=False
    )
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1 and "Traceback" not in ran.stderr
    raise ValueError(ran.stderr.strip())


def words(folder: Path, word: str) -> None:
    """What is typed, where the terminal is no UTF-8."""
    parser = Parser(prog="x")
    parser.add_argument("--a")
    parser.add_argument("b", nargs="?")
    said = io.StringIO()
    with redirect_stderr(said):
        try:
            parser.parse_args([word])
        except SystemExit as error:
            raise ValueError(f"status {error.code}: {said.getvalue()}") from None


def card(folder: Path, recipe: str) -> None:
    write_run(folder, pretrain=replace(synthetic_pretrain(), recipe=recipe))
    report = build_report(folder)
    text = str(render_card(report, CardFacts(repo_id="me/example", config={})))
    (line,) = (each for each in text.splitlines() if each.startswith("Recipe "))
    html = markdown.markdown(line)
    assert html.count("<code>") == 1 and "of the package concept-encoder" in html
    code, rest = html.split("</code>")
    words = " ".join(recipe.split())
    assert code.removeprefix("<p>Recipe <code>").strip() == escape(words, quote=False)
    assert rest.startswith(" of the package")


DOORS = {
    "yaml": lambda folder: read_yaml(folder / "x.yaml"),
    "recipe": recipe,
    "foreign recipe": lambda folder: read_data(folder / "x"),
    "task file": lambda folder: find_benchmark(str(folder / "x.yaml")),
    "task": task,
    "plan": lambda folder: load_plan(folder / "x.yaml"),
    "gates": lambda folder: load_gates(folder / "x.yaml"),
    "corpus": corpus_of_files,
    "corpus of a folder": lambda folder, path="x": corpus(folder, path),
    "corpus at home": corpus_at_home,
    "learned tokenizer": learned_tokenizer,
    "read tokenizer": read_the_tokenizer,
    "pair task": pair_task,
    "size": size,
    "measurement": measurement,
    "weight files": lambda folder: weight_files(folder / "x"),
    "terminal": terminal,
    "words": words,
    "card": card,
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}-{case.door}-{case.name}".replace(" ", "_"))
def test_a_right_answer_or_one_line(case: Case, tmp_path, monkeypatch):
    folder = tmp_path / "there"
    folder.mkdir()
    case.write(folder)
    options = {**case.options, **({"monkeypatch": monkeypatch} if case.door == "corpus at home" else {})}
    start = time.monotonic()
    said = None
    try:
        DOORS[case.door](folder, **options)
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


def test_the_counts_are_written_down():
    """docs/results/hostile.json: cases of each kind, for docs/RELIABILITY.md."""
    written = json.loads((Path(__file__).parents[2] / "docs" / "results" / "hostile.json").read_text(encoding="utf-8"))
    assert written == counts()
