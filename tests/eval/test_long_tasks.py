"""Tasks on long texts: drawn by novel, in folds, by a linear model of pooled outputs, and in parts of a batch."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from small_tasks import WORDS

from concept_encoder.eval.benchmarks import finetuning, tuning
from concept_encoder.eval.benchmarks.baselines import bag_of_tokens
from concept_encoder.eval.benchmarks.finetuning import finetune_task
from concept_encoder.eval.benchmarks.protocols import PROTOCOLS, Protocol
from concept_encoder.eval.benchmarks.registry import BENCHMARKS, LONG_TASKS, Task, load_benchmark
from concept_encoder.trainers.data.microworld import microworld_corpus, microworld_tokenizer
from concept_encoder.trainers.weights.sketch import sketch
from concept_encoder.utils.results import PredictionsResult

# Task -> examples of train and of what is scored (of one fold where there are ten), classes
REAL = {
    "novel_authors": (638, 329, 33),
    "article_bias": (8000, 1300, 3),
    "movie_reviews_long": (1600, 200, 2),
    "hyperpartisan": (580, 65, 2),
}


def long_table(rows: int, seed: int, folds: bool) -> Dataset:
    """Texts of about 300 words, in which one of two words is said twice, towards the end."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % 2
    texts = []
    for label in labels:
        words = [*rng.choice(WORDS[2:], 300), WORDS[label], *rng.choice(WORDS[2:], 20), WORDS[label]]
        texts.append(" ".join(words))
    columns = {"text": texts, "label": labels.tolist(), "novel": [f"novel {i // 8}" for i in range(rows)]}
    return Dataset.from_dict(columns | ({"fold": (np.arange(rows) // 2 % 10).tolist()} if folds else {}))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sketch")
    tokenizer = microworld_tokenizer()
    texts = microworld_corpus("train", 50)["text"][:]
    sketch(tokenizer, texts, 4, 16, hidden_dropout_prob=0.0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(finetuning, "RESAMPLES", 200)


def row(name: str, folder: Path, rows: int = 60) -> Task:
    for split, size in (("train", rows), ("test", 40)):
        table = long_table(size, len(split), name == "hyperpartisan")
        table.to_parquet(folder / f"{split}.parquet")
    return dataclasses.replace(BENCHMARKS[name], dataset_id=str(folder), num_labels=2)


def test_a_frozen_encoder_and_its_bag_read_to_the_end(checkpoint, tmp_path):
    task = row("novel_authors", tmp_path / "data")
    whole = finetune_task(str(checkpoint), task, PROTOCOLS["frozen"], tmp_path / "out")
    short = finetune_task(str(checkpoint), task, Protocol.load("frozen", max_length=64), tmp_path / "out")
    assert (whole.split, whole.head, whole.steps, whole.train_examples) == ("test", "LogisticRegression", 0, 60)
    assert whole.primary.value > 0.8 > 0.7 > short.primary.value
    assert whole.primary.controls["bag_of_tokens"].value > 0.9
    assert whole.settings == {"max_train_examples": None, "max_length": 8192} and whole.selected.learning_rate is None
    assert (whole.id, short.id) == ("novel_authors.frozen", "novel_authors.frozen+max_length=64")
    with pytest.raises(ValueError, match="learning_rates would be ignored: protocol frozen trains nothing but a lin"):
        Protocol.load("frozen", learning_rates=(0.1,))


def test_intervals_are_over_novels(checkpoint, tmp_path, monkeypatch):
    seen = []
    intervals = finetuning.bootstrap_intervals

    def spy(*args, units, **options):
        seen.append(units)
        return intervals(*args, units=units, **options)

    monkeypatch.setattr(finetuning, "bootstrap_intervals", spy)
    finetune_task(str(checkpoint), row("novel_authors", tmp_path / "data"), PROTOCOLS["frozen"], tmp_path / "out")
    assert seen == [[f"novel {i // 8}" for i in range(40)]]


def test_ten_folds_score_every_example_once(checkpoint, tmp_path):
    task = row("hyperpartisan", tmp_path / "data")
    found = [load_benchmark(task, fold=fold) for fold in range(10)]
    assert [len(each["validation"]) for each in found] == [10] * 10 and len(found[3]["train"]) == 90
    assert set(found[3]["validation"]["unit"]) == {"3"} and "3" not in set(found[3]["train"]["unit"])
    result = finetune_task(str(checkpoint), task, PROTOCOLS["frozen"], tmp_path)
    assert (result.split, result.train_examples, result.validation_examples) == ("10 folds", 90, 100)
    predictions = PredictionsResult.load(tmp_path / "finetune" / "predictions" / "hyperpartisan.frozen.json")
    assert predictions.references == [label for each in found for label in each["validation"]["label"]]
    right = np.equal(predictions.run["0"], predictions.references).mean()
    assert result.primary.value == pytest.approx(right) and right > 0.8
    cells = {path.name for path in (tmp_path / "finetune" / "hyperpartisan.frozen").glob("*.json")}
    assert len(cells) == 30 and {"run.fold=9.frozen.json", "bag_of_tokens.fold=0.json"} < cells
    cell = tmp_path / "finetune" / "hyperpartisan.frozen" / "run.fold=4.frozen.json"
    assert len(json.loads(cell.read_text())["predictions"]) == 10


@pytest.mark.slow
def test_long_texts_are_trained_on_in_parts_of_a_batch_with_the_same_gradients(checkpoint, tmp_path, monkeypatch):
    task = row("movie_reviews_long", tmp_path / "data")
    protocol = PROTOCOLS["quick"].override(epochs=2, batch_sizes=(16,), max_length=8192)
    whole = finetune_task(str(checkpoint), task, protocol, tmp_path / "whole")
    monkeypatch.setattr(tuning, "TOKENS_AT_ONCE", 1000)
    parts = finetune_task(str(checkpoint), task, protocol, tmp_path / "parts")
    assert whole.steps == parts.steps == 8 and whole.padding_share < 0.02
    losses = [[log["loss"] for log in each.log_history if "loss" in log] for each in (whole, parts)]
    assert len(losses[0]) == 8 and losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_a_batch_is_parted_by_its_longest_text(pretrained, monkeypatch):
    class Prepared:
        encoded = {"train": Dataset.from_dict({"input_ids": [[1] * 5, [1] * 8192]})}

    assert [tuning._texts_at_once(Prepared, size) for size in (1, 4, 8, 32, 24, 7)] == [1, 4, 8, 8, 8, 7]
    monkeypatch.setattr(tuning, "TOKENS_AT_ONCE", 100)
    assert tuning._texts_at_once(Prepared, 32) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG_TASKS)
def test_real_rows(seeded_hub, name):
    train, scored, classes = REAL[name]
    data = load_benchmark(name)
    sizes = data["train"].num_rows, data["validation"].num_rows
    assert sum(sizes) == train + scored
    assert BENCHMARKS[name].fold_column is not None or sizes == (train, scored)
    assert len(set(data["train"]["label"])) == BENCHMARKS[name].num_labels == classes


@pytest.mark.slow
def test_the_bag_of_movie_reviews_is_the_known_one(seeded_hub):
    data = load_benchmark("movie_reviews_long")
    predictions = bag_of_tokens(BENCHMARKS["movie_reviews_long"], data["train"], data["validation"])
    assert (predictions == np.asarray(data["validation"]["label"])).mean() == pytest.approx(0.935, abs=0.011)
