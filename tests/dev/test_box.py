"""How the model in the box is made: texts that are not judged on, whole sentences, the page of its figures."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from concept_encoder.scripts.dev.box import FORMS, PAGE, RECIPE, RESULTS, Texts, main, render_page
from concept_encoder.trainers.recipes import Recipe


@pytest.fixture
def data(tmp_path) -> Path:
    """Two sets that are judged on."""
    for name, columns in (
        ("nyu-mll/glue/stsb/validation-0", {"sentence1": ["A cat sleeps."], "sentence2": ["It is late!"], "idx": [7]}),
        ("mteb/scifact/queries-0", {"_id": ["1"], "text": ["Cells divide, at night"]}),
    ):
        path = tmp_path / f"{name}.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table(columns), path)
    return tmp_path


def test_what_is_judged_on_is_left_out(data):
    texts = Texts(data)
    assert texts.held == {"a cat sleeps", "it is late", "cells divide at night", "1"}
    given = ["A CAT sleeps", "A dog sleeps.", "A dog sleeps. ", None, " ", "cells divide: at night", "It is early."]
    texts.add("captions", given)
    assert sorted(texts.kept) == [("captions", "A dog sleeps."), ("captions", "It is early.")]
    assert texts.counts == {"captions": {"texts": 0, "held_out": 2, "near": 0}}
    texts.add("questions", [f"Who is number {number}?" for number in range(9)], most=4)
    assert sum(kind == "questions" for kind, _ in texts.kept) == 4


def test_passages_are_whole_sentences_of_60_to_110_words(data):
    sentences = [f"Sentence {number} has exactly seven short words." for number in range(100)]
    passages = Texts(data).passages(" ".join(sentences))
    assert " ".join(passages) == " ".join(sentences)
    assert all(50 <= len(passage.split()) <= 110 for passage in passages[:-1]) and len(passages) > 5
    assert Texts(data).passages("Too short.") == []


def test_the_recipe_and_its_forms():
    shared = {"dataset_name": "texts", "tokenizer_name": "t", "start_from": "start"}
    slots, mean = (Recipe.load(RECIPE, **shared, **FORMS[form]) for form in ("slots", "mean"))
    assert slots.model.num_concepts * slots.model.projection_size == 1024
    assert (mean.model.num_concepts, mean.model.projection_size) == (1, None)
    assert slots.objective.contrastive == 0 and slots.data.partner_column is None  # no pair, labelled or not


def test_the_page_is_fresh(tmp_path, monkeypatch):
    page = render_page(RESULTS)
    assert PAGE.read_text(encoding="utf-8") == page
    seeds = len(list(RESULTS.glob("slots-*.report.json")))
    judged = [page.count(word) for word in ("**PASS**", "**FAIL**", "**INCONCLUSIVE**", "not measured")]
    assert sum(judged) == 7 * seeds > 0
    monkeypatch.setattr("concept_encoder.scripts.dev.box.PAGE", tmp_path / "BOX.md")
    main(["page"])
    assert (tmp_path / "BOX.md").read_text(encoding="utf-8") == page
