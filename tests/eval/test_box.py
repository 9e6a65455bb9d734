"""The model in the box: it loads everywhere, is as small as promised, and is as good as its page says."""

from pathlib import Path

import numpy as np
import pytest
from helpers import run_without_package

import concept_encoder as ce
from concept_encoder.eval.benchmarks.registry import load_benchmark
from concept_encoder.eval.benchmarks.similarity import cosine
from concept_encoder.eval.hub.code_check import CODE
from concept_encoder.eval.loading.checkpoints import BOX_FOLDER, results_folder
from concept_encoder.eval.metrics.benchmark_score import benchmark_score
from concept_encoder.utils.results import Report

REPORT = Path(__file__).parents[2] / "docs" / "results" / "box" / "slots-43.report.json"
TEXTS = ["The cat is asleep.", "A cat sleeps in the barn.", "Shares fell sharply in London on Monday."]
CHILD = """
import sys

sys.modules["concept_encoder"] = None
import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

folder, texts = sys.argv[1], sys.argv[2:]
expected = np.load("expected.npy")
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
assert model.dtype == torch.float32, model.dtype
with torch.no_grad():
    pooled = model(**tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)).pooler_output
assert np.allclose(torch.nn.functional.normalize(pooled, dim=-1).numpy(), expected, atol=1e-5)
sentences = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
assert np.allclose(sentences.encode(texts), expected, atol=1e-5)
concepts = sentences.encode(texts, output_value="token_embeddings")
assert {tuple(each.shape)[0] for each in concepts} == {model.config.num_concepts}
"""


def test_three_lines_give_vectors_that_mean_something():
    encoder = ce.load()
    vectors = encoder.encode([*TEXTS, ""])
    assert vectors.shape == (4, encoder.config.projection_dim) and encoder.config.projection_dim <= 1024
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1, np.linalg.norm(vectors[3])], abs=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
    assert ce.load("box").folder == encoder.folder and encoder.hub_id is None and encoder.name == "box"


def test_it_is_small_and_carries_the_code_of_this_package():
    assert sum(path.stat().st_size for path in BOX_FOLDER.rglob("*")) <= 8e6
    for path in CODE:
        assert (BOX_FOLDER / path.name).read_bytes() == path.read_bytes(), "python scripts/dev/box.py code"
    assert ce.check_code(BOX_FOLDER)


def test_its_results_belong_elsewhere(tmp_path):
    with pytest.raises(ValueError, match="the model of the package has no place for results; give --output_dir"):
        results_folder("box", None)
    with pytest.raises(ValueError, match="has no place for results"):
        results_folder(ce.load(), None)
    assert results_folder("box", tmp_path) == tmp_path


def test_a_folder_of_that_name_is_meant_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "box").mkdir()
    monkeypatch.chdir(tmp_path)
    assert ce.load("box").folder == BOX_FOLDER
    with pytest.raises(ValueError, match="is not a checkpoint"):
        ce.load("./box")


@pytest.mark.slow
def test_it_loads_without_the_package(tmp_path):
    np.save(tmp_path / "expected.npy", ce.load().encode(TEXTS))
    run_without_package(CHILD, tmp_path, str(BOX_FOLDER), *TEXTS)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["stsb", "sts13", "sts15"])
def test_its_figures(task, seeded_hub):
    """A change of code that hurts it is seen: half an interval of its report is 0.01 to 0.02."""
    pairs = load_benchmark(task, ["validation"])["validation"]
    sides = (ce.load().encode(pairs[column][:]) for column in ("sentence1", "sentence2"))
    score = benchmark_score(task, cosine(*sides), np.asarray(pairs["label"]))["spearman"]
    (result,) = (each for each in Report.load(REPORT).similarity if each.task == task)
    expected = next(row for row in result.rows if row.id == "cosine, pooled, spearman")
    assert score == pytest.approx(expected.value, abs=0.003)
    assert expected.interval[0] < score < expected.interval[1]


@pytest.mark.slow
def test_a_novel_is_searched_as_make_run_does(tmp_path):
    pytest.importorskip("datatrove")
    novel = Path(ce.__file__).parent / "scripts" / "corpora" / "little_lord_fauntleroy.txt"
    ce.encode("box", novel, tmp_path / "encoded")
    (hits,) = ce.search(tmp_path / "encoded", "who won the race?", k=5)
    assert any("race" in hit.document["text"] for hit in hits)
