"""The retrieval verb on small collections: rankers worked by hand, what is kept and what is done again, long texts."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.sparse as sp
import torch

pytest.importorskip("pytrec_eval", reason="the extra retrieval is not installed")
pytest.importorskip("bm25s", reason="the extra retrieval is not installed")

from small_tasks import WORDS, save_pretrained

import concept_encoder as ce
from concept_encoder.eval.benchmarks import rankers
from concept_encoder.eval.benchmarks.rankers import (
    Ranker,
    Remembered,
    Scored,
    bm25,
    chunks,
    fused_ranks,
    fused_scores,
    kept,
    quantized,
    random_slots,
    sketches,
    token_means,
    words_codes,
)
from concept_encoder.eval.benchmarks.retrieval import RESULT_FOLDER, retrieval
from concept_encoder.eval.benchmarks.retrieval_tasks import Collection
from concept_encoder.eval.corpus.embedders import Embedder
from concept_encoder.eval.corpus.words import WordWeights
from concept_encoder.eval.loading.checkpoints import read_texts
from concept_encoder.trainers.data.microworld import microworld_corpus, microworld_tokenizer
from concept_encoder.trainers.weights.sketch import sketch
from concept_encoder.utils.results import RetrievalResult

DOCUMENTS = [f"the {a} sees the {b} and the {b}" for a in WORDS[:4] for b in WORDS[4:8]] + [""]
QUERIES = [f"a {WORDS[i]} and a {WORDS[4 + i]}" for i in range(4)]


@pytest.fixture(scope="module")
def tokenizer():
    return microworld_tokenizer()


@pytest.fixture(scope="module")
def weights(tokenizer):
    return WordWeights.fit(microworld_corpus("train", 50)["text"][:], tokenizer)


@pytest.fixture
def task():
    documents = {f"d{i}": text for i, text in enumerate(DOCUMENTS)}
    answers = {f"q{i}": {f"d{4 * i + i}": 1} for i in range(4)}
    data = Collection(documents, {f"q{i}": text for i, text in enumerate(QUERIES)}, answers)
    return ce.RetrievalTask(name="small", data=data)


@pytest.fixture
def words_file(weights, tmp_path):
    weights.save(tmp_path / "words.safetensors")
    return tmp_path / "words.safetensors"


def reading(weights):
    return Remembered(lambda texts, pairs: weights.encode(texts, pairs=pairs))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("run")
    sketch(tokenizer, microworld_corpus("train", 50)["text"][:], 4, 6).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_sketch_finds_what_its_queries_name_and_is_laid_next_to_every_baseline(
    checkpoint, task, words_file, tmp_path
):
    (result,) = retrieval(checkpoint, [task], tmp_path, words=words_file, cache_dir=tmp_path / "kept")
    rows = {row.ranker: row for row in result.rows}
    assert result.rows[0].ranker == "run" and result.primary.value > 0.9 and result.verdict == "above chance"
    assert result.chance["ndcg_at_10"] == pytest.approx(0.267, abs=0.01)
    known = {"random_init", "bm25", "bm25_unstemmed", "bm25_word_pieces", "words", "words_pairs", "words_128"}
    assert known < set(rows) and {"random_slots_128", "token_mean", "bm25_run_ranks", "words_run"} < set(rows)
    assert (rows["run"].bytes_per_text, rows["words_128"].bytes_per_text) == (4 * 6 * 4, 128)
    assert rows["words"].bytes_per_text is None and rows["bm25"].bytes_per_text is None
    assert rows["bm25"].scores["ndcg_at_10"].value == 1
    less = rows["random_init"].scores["ndcg_at_10"]
    assert less.difference == pytest.approx(result.primary.value - less.value)
    assert result.rows[0].scores["ndcg_at_10"].difference is None and "recall_at_100" not in result.chance
    loaded = RetrievalResult.load(tmp_path / RESULT_FOLDER / "small.json", tmp_path)
    assert loaded == result and (result.documents, result.queries, result.longest_document) == (17, 4, 8)


@pytest.mark.slow
def test_a_task_that_is_done_is_not_done_again_unless_something_is_another(
    checkpoint, task, words_file, tmp_path, monkeypatch
):
    options = {"words": words_file, "cache_dir": tmp_path / "kept"}
    (first,) = retrieval(checkpoint, [task], tmp_path, **options)
    with monkeypatch.context() as patched:
        patched.setattr(rankers, "bm25", None)
        patched.setattr(ce.Checkpoint, "encode", None)
        assert retrieval(checkpoint, [task], tmp_path, **options) == [first]
    with pytest.raises(FileExistsError, match=r"small\.json exists, of another max_length; give --ov"):
        retrieval(checkpoint, [task], tmp_path, **options, max_length=8)
    (cut,) = retrieval(checkpoint, [task], tmp_path, **options, max_length=3, overwrite=True)
    assert cut.primary.value < first.primary.value


def test_what_knows_nothing_of_the_run_is_kept_for_the_next_one(tmp_path):
    calls = []

    def score(queries, documents):
        calls.append(len(documents))
        return Scored(np.ones((len(queries), len(documents)), np.float32), 2.5, None)

    ranker = Ranker("ones", "ones", score, settings=[1])
    first, again = (kept(ranker, ["q"], ["a", "b"], tmp_path) for _ in range(2))
    assert (
        calls == [2]
        and np.array_equal(first.scores, again.scores)
        and (again.seconds, again.bytes_per_text)
        == (
            2.5,
            None,
        )
    )
    kept(ranker, ["q"], ["a", "c"], tmp_path)
    kept(dataclasses.replace(ranker, settings=[2]), ["q"], ["a", "b"], tmp_path)
    kept(dataclasses.replace(ranker, settings=None), ["q"], ["a", "b"], tmp_path)
    assert len(calls) == 4 and len(list(tmp_path.iterdir())) == 3
    for path in tmp_path.iterdir():
        path.write_bytes(b"broken")
    assert np.array_equal(kept(ranker, ["q"], ["a", "b"], tmp_path).scores, first.scores) and len(calls) == 5


def test_too_many_scores_at_once_are_refused(monkeypatch):
    monkeypatch.setattr(rankers, "LARGEST", 5)
    with pytest.raises(ValueError, match="2 queries times 3 documents are more than 5 scores; give fewer queries in"):
        kept(Ranker("none", "", lambda q, d: None), ["q"] * 2, ["d"] * 3)


def test_bm25_is_its_formula(weights):
    documents = ["cats run", "cats cats sleep well", "dogs bark"]
    scores = bm25("bm25", weights).score(["a cat running", "birds", ""], documents).scores
    lengths, mean = np.array([2, 4, 2]), 8 / 3
    norm = 1.5 * (1 - 0.75 + 0.75 * lengths / mean)
    cat = np.log(1 + (3 - 2 + 0.5) / 2.5) * np.array([1, 2, 0]) / (np.array([1, 2, 0]) + norm)
    run = np.log(1 + (3 - 1 + 0.5) / 1.5) * np.array([1, 0, 0]) / (np.array([1, 0, 0]) + norm)
    np.testing.assert_allclose(scores, [cat + run, np.zeros(3), np.zeros(3)], atol=1e-6)
    unstemmed = bm25("bm25_unstemmed", weights).score(["a cat running"], documents).scores
    assert not unstemmed.any()
    assert not bm25("bm25", weights).score(["cat"], ["", "."]).scores.any()


def test_codes_of_words_are_cosines_of_their_rows(weights):
    found = {
        ranker.name: ranker.score(QUERIES, DOCUMENTS) for ranker in words_codes(weights, reading(weights), (5, 10))
    }
    asked = weights.encode(QUERIES)
    np.testing.assert_allclose(
        found["words_pairs_5"].scores, (asked @ weights.encode(DOCUMENTS, 2).T).toarray(), atol=1e-6
    )
    assert (found["words_pairs_5"].bytes_per_text, found["words"].bytes_per_text) == (5, None)
    assert not found["words"].scores[:, -1].any()  # the empty text


def test_random_slots_are_those_of_the_warm_start(weights, tokenizer):
    project = random_slots(50, 4, 6, seed=3)
    random = np.random.RandomState(3)
    slot, values = random.randint(0, 4, 50), random.randn(50, 6) / np.sqrt(6)
    for token in (0, 17, 49):
        expected = np.zeros((4, 6))
        expected[slot[token]] = values[token]
        np.testing.assert_allclose(project[token].toarray()[0], expected.ravel(), rtol=1e-6)
    found = sketches(weights, reading(weights))[0].score(QUERIES, DOCUMENTS)
    assert found.bytes_per_text == 128 and np.isfinite(found.scores).all() and not found.scores[:, -1].any()


def test_codes_of_one_and_two_bits():
    codes = np.array([[0.1, -0.2, 3.0, -0.1], [0, 0, 0, 0]])
    np.testing.assert_allclose(quantized(codes, 1)[0], np.array([1, -1, 1, -1]) / 2)
    np.testing.assert_allclose(quantized(codes, 2)[0], np.array([1, -1, 3, -1]) / np.sqrt(12))
    assert not quantized(codes, 2)[1].any()


def test_means_of_tokens_count_every_token(tokenizer):
    table = np.random.default_rng(0).standard_normal((len(tokenizer), 4)).astype(np.float32)
    cat, dog = (tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("cat", "dog"))
    mean, parts = (each.score(["cat"], ["cat cat dog", ""]).scores for each in token_means(table, tokenizer))
    whole = (2 * table[cat] + table[dog]) / 3
    unit = table[cat] / np.linalg.norm(table[cat])
    np.testing.assert_allclose(mean, [[unit @ whole / np.linalg.norm(whole), 0]], atol=1e-6)
    three = np.concatenate([whole, np.maximum(table[cat], table[dog]), np.minimum(table[cat], table[dog])])
    np.testing.assert_allclose(parts[0, 0], np.tile(unit, 3) @ three / np.sqrt(3) / np.linalg.norm(three), atol=1e-6)


def test_chunks_hold_every_character_and_no_more_tokens_than_fit(tokenizer):
    text = " ".join(WORDS * 7)
    (found, empty) = chunks([text, ""], tokenizer, 12)
    assert "".join(found) == text and empty == [""]
    assert [len(tokenizer(piece)["input_ids"]) for piece in found] == [12] * 7


def test_another_encoder_reads_the_beginning_or_takes_its_best_chunk(tokenizer, monkeypatch):
    read = []

    class Counting(Embedder):
        """Counts of the first three words, of unit length; reads texts of up to 5 tokens."""

        name, digest, max_length, shape, device = "mine", "abc", 5, (3,), torch.device("cpu")

        def __init__(self):
            self.tokenizer = tokenizer

        def batches(self, texts, batch_tokens, role):
            read.extend((text.strip(), role) for text in texts)
            counts = torch.tensor([[float(text.split().count(word)) for word in WORDS[:3]] for text in texts])
            yield np.arange(len(texts)), {"counts": counts}, 1

        def output(self, features, role):
            return features["counts"]

    monkeypatch.setattr(rankers, "load_embedder", lambda source: Counting())
    beginning, best_chunk = rankers.sentence_encoders("owner/mine")
    documents = ["cat cat cat dog dog dog", "dog", "horse horse horse cat cat dog"]
    found = beginning.score(["dog"], documents)
    np.testing.assert_allclose(found.scores, [[0, 1, 0]], atol=1e-6)
    assert (beginning.name, best_chunk.name, found.bytes_per_text) == ("mine", "mine_maxp", 12)
    assert [each.settings for each in (beginning, best_chunk)] == [["mine", "abc", False], ["mine", "abc", True]]
    whole = best_chunk.score(["dog"], documents)
    np.testing.assert_allclose(whole.scores, [[1, 1, 1 / np.sqrt(5)]], atol=1e-6)
    assert whole.bytes_per_text is None
    assert read.count(("dog", "query")) == read.count(("dog", "document")) == 1  # beginnings are read once


def test_fusions():
    first, second = np.array([[3.0, 2.0, 1.0]], np.float32), np.array([[0.0, 9.0, 1.0]], np.float32)
    np.testing.assert_allclose(fused_ranks(first, second), [[1 / 61 + 1 / 63, 1 / 62 + 1 / 61, 1 / 63 + 1 / 62]])
    standard = [(row - row.mean()) / row.std() for row in (first, second)]
    np.testing.assert_allclose(fused_scores(first, second, 0.5), standard[0] + 0.5 * standard[1], atol=1e-6)
    assert fused_scores(np.zeros((1, 3), np.float32), second, 1).argmax() == 1  # a ranker that finds nothing


@pytest.mark.slow
def test_a_text_longer_than_the_tokenizer_says_is_read_whole_unless_positions_are_learned(
    checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr("concept_encoder.eval.loading.checkpoints.WHOLE", 32)
    monkeypatch.setattr("concept_encoder.eval.loading.checkpoints.PART", 16)
    text = "cat " * 700 + "dog"  # the tokenizer says 512
    whole, cut = (ce.load(checkpoint).encode([text, "dog"], max_length=limit) for limit in (None, 512))
    assert whole.shape == (2, 24) and whole[0] @ whole[1] > cut[0] @ cut[1] + 0.01
    model, tokenizer = ce.load(checkpoint).encoder, ce.load(checkpoint).tokenizer
    ids = torch.tensor([tokenizer(text, truncation=False)["input_ids"]])
    with torch.no_grad():
        at_once = torch.nn.functional.normalize(model(ids).pooler_output, dim=-1)
    np.testing.assert_allclose(whole[0], at_once[0], atol=1e-5)
    learned = ce.load(save_pretrained(tmp_path / "learned"))
    np.testing.assert_allclose(learned.encode([text]), learned.encode([text], max_length=64), atol=1e-6)


@pytest.mark.slow
def test_32768_tokens_are_read_in_parts(checkpoint):
    opened = ce.load(checkpoint)
    lengths = []
    handle = opened.encoder.embeddings.register_forward_hook(lambda module, given, out: lengths.append(out.shape[1]))
    try:
        ((_, output),) = read_texts(
            opened.encoder, opened.tokenizer, ["cat " * 32_766], max_length=opened.text_limit()
        )
    finally:
        handle.remove()
    assert max(lengths) <= 512 and sum(lengths) == 32_768 and torch.isfinite(output.pooler_output).all()


def test_what_cannot_be_is_refused(checkpoint, task, words_file, tmp_path):
    with pytest.raises(ValueError, match="max_length must be at least 3, got 2"):
        retrieval(checkpoint, [task], tmp_path, words=words_file, max_length=2)
    with pytest.raises(ValueError, match="words must be a file of word weights, or a corpus of the language with"):
        retrieval(checkpoint, [task], tmp_path)
    with pytest.raises(ValueError, match="Unknown retrieval task 'beir'"):
        retrieval(checkpoint, ["beir"], tmp_path)
    assert not (tmp_path / RESULT_FOLDER).exists()


@pytest.mark.slow
def test_words_of_a_corpus(checkpoint, task, tmp_path):
    corpus = tmp_path / "prose.jsonl"
    corpus.write_text("\n".join(json.dumps({"text": text}) for text in microworld_corpus("train", 20)["text"]))
    (result,) = retrieval(checkpoint, [task], tmp_path / "out", words=corpus, cache_dir=tmp_path / "kept")
    assert isinstance(result.settings["words"], str) and result.rows[0].ranker == "run"
    (named,) = retrieval(checkpoint, [task], tmp_path / "named", words="microworld", cache_dir=tmp_path / "kept")
    assert named.settings["words"] != result.settings["words"]
    assert sp.issparse(WordWeights.fit(["a cat"], microworld_tokenizer()).encode(["cat"]))
