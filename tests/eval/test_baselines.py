"""The bag of tokens knows words and nothing else; published scores name their source and split."""

import dataclasses
import json

import numpy as np
import pytest
from datasets import Dataset

from concept_encoder.eval.benchmarks.baselines import PUBLISHED_SCORES, bag_of_tokens, published_scores
from concept_encoder.eval.benchmarks.registry import BENCHMARKS, load_benchmark
from concept_encoder.eval.metrics.benchmark_score import TASK_METRICS, benchmark_score

WORDS = [f"word{i}" for i in range(40)]


def sentences(n: int, rng: np.random.Generator) -> list[str]:
    return [" ".join(rng.choice(WORDS, size=8, replace=False)) for _ in range(n)]


def sentiment(n: int, seed: int) -> Dataset:
    """Class 1 where the sentence names word0."""
    texts = sentences(n, np.random.default_rng(seed))
    return Dataset.from_dict({"sentence1": texts, "label": ["word0" in text.split() for text in texts]})


def similarity(n: int, seed: int) -> Dataset:
    """Pairs graded by the number of words in common."""
    rng = np.random.default_rng(seed)
    first, second, labels = sentences(n, rng), [], []
    for text in first:
        kept = int(rng.integers(0, 9))
        others = [word for word in WORDS if word not in text.split()]
        second.append(" ".join([*text.split()[:kept], *rng.choice(others, size=8 - kept, replace=False)]))
        labels.append(kept * 5 / 8)
    return Dataset.from_dict({"sentence1": first, "sentence2": second, "label": labels})


def shuffled(dataset: Dataset, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    names = [name for name in dataset.column_names if name != "label"]
    return dataset.map(lambda row: {name: " ".join(rng.permutation(row[name].split())) for name in names})


@pytest.mark.slow
def test_single_sentences():
    train, validation = sentiment(400, 0), sentiment(200, 1)
    predictions = bag_of_tokens(BENCHMARKS["sst2"], train, validation)
    assert benchmark_score("sst2", predictions, validation["label"][:])["accuracy"] > 0.95
    assert set(predictions) <= {0, 1}


@pytest.mark.slow
def test_pairs_and_their_overlap():
    train, validation = similarity(300, 0), similarity(150, 1)
    predictions = bag_of_tokens(BENCHMARKS["stsb"], train, validation)
    assert predictions.shape == (150,)
    assert benchmark_score("stsb", predictions, validation["label"][:])["pearson"] > 0.95
    classes = Dataset.from_dict({**train[:], "label": np.digitize(train["label"][:], [1.5, 3.5])})
    found = bag_of_tokens(BENCHMARKS["sick_entailment"], classes, validation)
    truth = np.digitize(validation["label"][:], [1.5, 3.5])
    assert benchmark_score("sick_entailment", found, truth)["accuracy"] > 0.85


@pytest.mark.slow
@pytest.mark.parametrize(("task", "make"), [("sst2", sentiment), ("stsb", similarity)])
def test_knows_neither_word_order_nor_validation_labels(task, make):
    train, validation = make(120, 2), make(60, 3)
    predictions = bag_of_tokens(BENCHMARKS[task], train, validation)
    for other in (validation, shuffled(validation), validation.remove_columns("label")):
        np.testing.assert_allclose(bag_of_tokens(BENCHMARKS[task], train, other), predictions, atol=1e-9)


@pytest.mark.slow
def test_cannot_read_word_order():
    """The pairs of the embedded paraphrase task share their words, paraphrases or not: at chance, as it should be."""
    row = BENCHMARKS["microworld_paraphrase"]
    data = load_benchmark(row)
    validation = data["validation"]
    predictions = bag_of_tokens(row, data["train"].select(range(1000)), validation)
    assert 0.42 < benchmark_score(row.name, predictions, validation["label"][:])["accuracy"] < 0.58


@pytest.mark.slow
def test_sentences_without_words():
    train = similarity(100, 4)
    empty = Dataset.from_dict({"sentence1": ["", "?!", "unseen"], "sentence2": ["word1", "", "unseen"]})
    assert np.isfinite(bag_of_tokens(BENCHMARKS["stsb"], train, empty)).all()


@pytest.mark.slow
def test_a_sample_of_a_large_training_split_chooses_the_regularisation(monkeypatch):
    train, validation = sentiment(400, 5), sentiment(100, 6)
    whole = bag_of_tokens(BENCHMARKS["sst2"], train, validation)
    monkeypatch.setattr("concept_encoder.eval.benchmarks.baselines.SEARCH_EXAMPLES", 100)
    assert (bag_of_tokens(BENCHMARKS["sst2"], train, validation) == whole).mean() > 0.9


@pytest.mark.slow
def test_beats_chance_on_real_pairs(shared):
    row = BENCHMARKS["stsb"]
    data = load_benchmark(dataclasses.replace(row, dataset_id=str(shared / "data" / row.dataset_id)))
    predictions = bag_of_tokens(row, data["train"], data["validation"])
    assert benchmark_score("stsb", predictions, data["validation"]["label"][:])["pearson"] > 0.70


@pytest.mark.parametrize(
    ("task", "train", "validation", "message"),
    [
        (
            "stsb",
            similarity(20, 0),
            sentiment(20, 0),
            "need the same columns sentence1 .* got sentence1, sen",
        ),
        ("stsb", Dataset.from_dict({"label": [0.0]}), similarity(20, 0), "need the same columns sentence1"),
        ("stsb", similarity(4, 0), similarity(20, 0), "stsb: the bag of tokens needs 5 .* got 4 examples"),
        ("sst2", Dataset.from_dict({"sentence1": ["a"] * 9, "label": [0] * 9}), sentiment(9, 0), "got 9 of class 0$"),
        (
            "sst2",
            Dataset.from_dict({"sentence1": ["a"] * 9, "label": [0] * 6 + [1] * 3}),
            sentiment(9, 0),
            "5 of each of at least two classes; got 6 of class 0, 3 of class 1",
        ),
        ("sst2", Dataset.from_dict({"sentence1": [], "label": []}), sentiment(9, 0), "got none"),
    ],
)
def test_refuses(task, train, validation, message):
    with pytest.raises(ValueError, match=message):
        bag_of_tokens(BENCHMARKS[task], train, validation)


def test_published_scores_are_complete():
    def refuse(constant):
        raise AssertionError(f"{constant} is not strict JSON")

    entries = json.loads(PUBLISHED_SCORES.read_text(encoding="utf-8"), parse_constant=refuse)
    assert {task for entry in entries for task in entry["scores"]} <= set(BENCHMARKS)
    for task in BENCHMARKS:
        for row in published_scores(task):
            assert row.metric in TASK_METRICS[task]
            assert 0 <= row.score <= 1
            assert row.split in ("validation", "test", "not stated")
            assert row.comparable == (row.split == "validation")
            assert row.parameters is None or 1e6 < row.parameters < 1e9
            assert row.source and row.note
    keys = [(task, row.model, row.metric) for task in BENCHMARKS for row in published_scores(task)]
    assert len(set(keys)) == len(keys)


def test_published_scores_of_one_task():
    rows = {(row.model, row.metric): row for row in published_scores("stsb")}
    assert rows["BERT-Tiny", "pearson"].score == 0.743
    assert not rows["BERT-Tiny", "pearson"].comparable
    assert rows["ELECTRA-Small", "spearman"].comparable
    assert rows["mean of GloVe embeddings, zero-shot cosine", "spearman"].split == "test"
    assert published_scores("microworld_similarity") == []
    with pytest.raises(ValueError, match=r"Unknown task 'stsB'\. Available: mrpc"):
        published_scores("stsB")
