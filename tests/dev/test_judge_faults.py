"""The seeded faults: the judge names each that it claims to see, and raises nothing on what is healthy."""

import dataclasses
from pathlib import Path

import pytest
import torch
from judged import WordVectors, word_task
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from concept_encoder.eval.benchmarks.registry import BENCHMARKS
from concept_encoder.eval.judging.judge import load_pairs
from concept_encoder.eval.judging.subjects import Subject, open_subject
from concept_encoder.scripts.dev.judge_faults import (
    BLIND,
    BOX,
    FAULTS,
    MINILM,
    OBJECT,
    RESULT,
    SCORE,
    TASK,
    Altered,
    healthy_records,
    main,
    raised_by,
    raised_by_record,
    render_page,
    same_concepts,
)
from concept_encoder.utils.untrusted import read_object

DOCS = Path(__file__).parents[2] / "docs"
CLAIMED = [fault for fault in FAULTS if fault.check != BLIND]


def of(*kinds: str) -> list:
    return [pytest.param(fault, id=fault.name) for fault in CLAIMED if fault.what in kinds]


@pytest.fixture(scope="module")
def words():
    return load_pairs(word_task(), 120, 0)


def test_the_page_is_fresh():
    assert (DOCS / "JUDGE.md").read_text(encoding="utf-8") == render_page(read_object(RESULT))


def test_at_full_size_every_fault_is_named_and_nothing_healthy_is():
    found = read_object(RESULT)
    rows = {(row["name"], row["what"]): row for row in found["faults"]}
    assert len(CLAIMED) >= 20 and set(rows) == {(fault.name, fault.what) for fault in FAULTS}
    for fault in FAULTS:
        row = rows[fault.name, fault.what]
        assert (row["how"], row["check"]) == (fault.how, fault.check)
        assert fault.check == BLIND or fault.check in row["raised"], fault.name
    assert len(found["healthy"]) >= 6 and not any(row["raised"] for row in found["healthy"])


@pytest.mark.parametrize("fault", of(SCORE))
def test_a_broken_score_is_named(fault):
    assert fault.check in raised_by_record(fault.breaks())


def test_healthy_scores_are_not():
    assert not [name for name, record in healthy_records().items() if raised_by_record(record)]


@pytest.mark.parametrize("fault", of(TASK))
def test_a_broken_benchmark_is_named(fault, words):
    subject = Subject(WordVectors())
    assert fault.check in raised_by(fault, subject, words)
    assert fault.check not in raised_by(fault._replace(breaks=lambda pairs: pairs), subject, words)


@pytest.fixture(scope="module")
def static(tokenizer):
    """A model of sentence-transformers without a layer."""
    weights = torch.randn(len(tokenizer), 64, generator=torch.Generator().manual_seed(0)).numpy()
    module = StaticEmbedding(tokenizer.backend_tokenizer, embedding_weights=weights)
    return open_subject(SentenceTransformer(modules=[module], device="cpu"))


def of_vectors() -> list:
    return [
        pytest.param(fault, id=fault.name)
        for fault in CLAIMED
        if fault.what == MINILM and fault.breaks.__qualname__.startswith("vectors.") and fault.check in QUICK
    ]


QUICK = ("batch", "crowding", "dead_dimensions", "rank", "duplicates")


@pytest.mark.parametrize("fault", of_vectors())
def test_broken_vectors_are_named(fault, static, words):
    assert fault.check in raised_by(fault, static, words)
    healthy = fault._replace(breaks=lambda subject: None)
    assert fault.check not in raised_by(healthy, static, words)


def test_a_change_leaves_the_healthy_model_alone(static):
    before = static.encode(["the cat sleeps"])
    changed = static.changed(next(iter(of_vectors())).values[0].breaks)
    assert any(isinstance(module, Altered) for module in changed.encoder)
    assert not any(isinstance(module, Altered) for module in static.encoder)
    assert (static.encode(["the cat sleeps"]) == before).all()


def test_concepts_that_repeat_each_other_are_named(pretrained, words):
    fault = next(fault for fault in CLAIMED if fault.what == BOX and fault.breaks is same_concepts)
    subject = open_subject(pretrained)
    assert raised_by(fault, subject, words) == ["same_inside"]
    assert raised_by(fault._replace(breaks=lambda subject: None), subject, words) == []


@pytest.fixture(scope="module")
def minilm(shared):
    return open_subject(shared / "data" / "models" / "sentence-transformers" / "all-MiniLM-L6-v2")


@pytest.fixture(scope="module")
def stsb(shared):
    folder = str(shared / "data" / "nyu-mll" / "glue" / "stsb")
    return load_pairs(dataclasses.replace(BENCHMARKS["stsb"], dataset_id=folder, config=None), 100, 0)


@pytest.mark.slow
@pytest.mark.parametrize("fault", of(MINILM, OBJECT))
def test_a_broken_minilm_is_named(fault, minilm, stsb):
    assert fault.check in raised_by(fault, minilm, stsb)


def test_models_need_boxes(capsys):
    with pytest.raises(SystemExit):
        main(["--models", "somewhere"])
    assert "--models needs --boxes" in capsys.readouterr().err


def test_the_command_writes_the_page(tmp_path):
    main(["--page", str(tmp_path / "PAGE.md")])
    assert (tmp_path / "PAGE.md").read_text(encoding="utf-8").startswith("# The judge, judged")
