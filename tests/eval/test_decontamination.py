import itertools
import os

import numpy as np
import pytest
from datasets import Dataset, load_dataset
from killing import killed_at, visible

from concept_encoder.eval.benchmarks import decontamination as corpora
from concept_encoder.eval.benchmarks.decontamination import (
    CorpusPlan,
    SentenceIndex,
    build_corpus,
    format_contamination,
    load_plan,
    words,
)
from concept_encoder.eval.benchmarks.registry import Task
from concept_encoder.trainers.data.corpora import DataArguments
from concept_encoder.utils.results import ContaminationResult

HELD_OUT = ["A man is playing a large flute.", "Two dogs run on the wet sand near the sea.", "Yes."]


def test_words_are_what_is_left_without_case_and_punctuation():
    assert words('  "A man\'s DOG, ran!" ') == "a man s dog ran"


@pytest.mark.parametrize(
    ("sentence", "exact", "near"),
    [
        ("a man is playing a LARGE flute", True, True),
        ("yes!", True, False),  # one word has no bigram
        ("A man is playing a flute.", False, True),  # 4 of 7 bigrams: above one half
        ("Two dogs run on the sand near the sea.", False, True),
        ("A man is cooking a large meal.", False, False),
        ("The sea near the wet sand: dogs on the run, two.", False, False),
        ("", False, False),
    ],
)
def test_matches_by_hand(sentence, exact, near):
    found = SentenceIndex(HELD_OUT).matches([sentence, "something else entirely"])
    assert [bool(mask[0]) for mask in found] == [exact, near]
    assert not any(mask[1] for mask in found)


@pytest.mark.slow
def test_resemblance_is_the_jaccard_index_whatever_the_chunk(monkeypatch):
    generator = np.random.default_rng(0)
    vocabulary = [f"w{i}" for i in range(6)]
    draw = [" ".join(generator.choice(vocabulary, generator.integers(1, 7))) for _ in range(400)]
    held_out, texts = draw[:100], draw[100:]

    def shingles(text):
        tokens = text.split()
        return set(itertools.pairwise(tokens))

    expected = [
        any(
            shingles(a) and shingles(b) and 2 * len(shingles(a) & shingles(b)) >= len(shingles(a) | shingles(b))
            for b in held_out
        )
        for a in texts
    ]
    assert 20 < sum(expected) < 280
    for chunk in (corpora.CHUNK, 7):
        monkeypatch.setattr(corpora, "CHUNK", chunk)
        assert SentenceIndex(held_out).matches(texts)[1].tolist() == expected


@pytest.fixture
def sources(tmp_path):
    """A benchmark with three splits, and two corpora of pairs, one of documents."""
    bench = tmp_path / "bench"
    bench.mkdir()
    for split, texts in (("train", ["a b c d", "e f g h"]), ("validation", HELD_OUT[:1]), ("test", HELD_OUT[1:])):
        rows = {"s1": texts, "s2": texts[::-1], "label": [-1] * len(texts)}
        Dataset.from_dict(rows).to_parquet(bench / f"{split}-00000-of-00001.parquet")
    pairs = {
        "a": ["a man is playing a large flute", "clean one here", "a b c d", "rejected"],
        "b": ["clean", "and its clean partner", "Hello. Two dogs run on the sand near the sea!", "row"],
        "label": [1, 1, 1, 0],
    }
    Dataset.from_dict(pairs).to_parquet(tmp_path / "pairs.parquet")
    row = Task(name="mrpc", dataset_id=str(bench), config=None, sentence_columns=("s1", "s2"), licence="none")
    columns = {"text_column": "a", "partner_column": "b", "packing": "truncated"}
    source = DataArguments(dataset_name=str(tmp_path / "pairs.parquet"), keep_rows="label=1", **columns)
    return CorpusPlan((source, source), (row,))


@pytest.mark.slow
@pytest.mark.parametrize(("owner", "name"), [(corpora.ContaminationResult, "save"), (os, "replace")])
def test_killed_while_it_writes_the_same_call_can_be_made_again(sources, tmp_path, owner, name):
    before = visible(tmp_path)
    assert killed_at(lambda: build_corpus(sources, tmp_path / "out"), owner, name)
    assert visible(tmp_path) == before
    build_corpus(sources, tmp_path / "out")
    assert visible(tmp_path / "out") == {corpora.TRAIN_FILE, corpora.CHECK_FILE}


@pytest.mark.slow
def test_a_corpus_keeps_the_rows_of_which_no_sentence_is_in_another_split(sources, tmp_path):
    result = build_corpus(sources, tmp_path / "out")
    rows = load_dataset(str(tmp_path / "out"), split="train")
    assert rows.to_dict() == {"text": ["clean one here"] * 2, "partner": ["and its clean partner"] * 2}
    assert result.benchmark_sentences == {"mrpc": 3}
    assert [{k: getattr(row, k) for k in ("rows", "exact", "near", "kept")} for row in result.sources] == [
        {"rows": 3, "exact": 1, "near": 1, "kept": 1}
    ] * 2
    assert ContaminationResult.load(tmp_path / "out" / corpora.CHECK_FILE) == result
    assert "a b label=1 | 3 | 1 | 1 | 1 |" in format_contamination(result)
    with pytest.raises(ValueError, match="out is not empty; name a new folder"):
        build_corpus(sources, tmp_path / "out")


@pytest.mark.slow
def test_a_source_of_which_nothing_is_left_is_named(sources, tmp_path):
    Dataset.from_dict({"a": HELD_OUT[:1], "b": ["x"], "label": [1]}).to_parquet(tmp_path / "pairs.parquet")
    with pytest.raises(ValueError, match=r"every row of .*pairs\.parquet' matches a benchmark; leave the source out"):
        build_corpus(sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("[1]", "must hold `sources` and `keep_clean_of`"),
        ("{sources: [], keep_clean_of: [mrpc]}", "each with at least one entry"),
        ("{sources: [{dataset_name: a/b, packing: packed}], keep_clean_of: [mrpc]}", "unknown field 'packing'"),
        ("{sources: [{dataset_name: a/b}], keep_clean_of: [nothing]}", "Unknown task 'nothing'"),
        (
            "{sources: [{dataset_name: a/b}, {dataset_name: a/b, partner_column: c}], keep_clean_of: [mrpc]}",
            "some sources have a partner_column and some have none",
        ),
    ],
)
def test_plans_that_say_nothing_usable_are_refused(plan, message, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(plan)
    with pytest.raises(ValueError, match=message):
        load_plan(path)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("{sources: [1], keep_clean_of: [mrpc]}", r"`sources` must be a list of mappings of fields, got \[1\]"),
        ("{sources: {dataset_name: a/b}, keep_clean_of: [mrpc]}", "`sources` must be a list of mappings"),
        ("{sources: [{}], keep_clean_of: mrpc}", "`keep_clean_of` must be a list of names of tasks, got 'mrpc'"),
        ("{sources: [{max_train_documents: many}], keep_clean_of: [mrpc]}", "max_train_documents .* int, got 'many'"),
        ("{sources: [{dataset_name: 5}], keep_clean_of: [mrpc]}", "dataset_name of a source must be str, got 5"),
        ("{sources: [{corpus_seed: true}], keep_clean_of: [mrpc]}", "corpus_seed of a source must be int, got True"),
    ],
)
def test_values_of_the_wrong_kind_in_a_plan_are_named(plan, message, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(plan)
    with pytest.raises(ValueError, match=message):
        load_plan(path)


def test_null_is_the_default(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text("{sources: [{dataset_name: a/b, corpus_seed: null}], keep_clean_of: [mrpc]}")
    assert load_plan(path).sources[0].corpus_seed == 0


def test_the_plans_in_the_tree_read(request):
    folder = request.config.rootpath / "scripts" / "corpora"
    plans = {path.stem: load_plan(path) for path in folder.glob("*.yaml")}
    assert {name: plan.sources[0].partner_column is not None for name, plan in plans.items()} == {
        "prose": False,
        "sentence_pairs": True,
    }
