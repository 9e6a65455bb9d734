"""Indexes and search: exact scores, fusion, changes, kills, and faults by their names."""

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from killing import killed_at
from small_corpora import documents, encoded, word_weights

import concept_encoder as ce
from concept_encoder.eval.corpus import index as index_module
from concept_encoder.eval.corpus import shards
from concept_encoder.eval.corpus.embedders import embed_texts, load_embedder
from concept_encoder.eval.corpus.index import Index
from concept_encoder.eval.corpus.searching import BESIDE, choose_weights, query_embedder
from concept_encoder.scripts.search import main

pytest.importorskip("datatrove")
pytest.importorskip("sentence_transformers")
QUERY = "the doctor saw the dog in the garden"


@pytest.fixture(scope="module")
def corpus(pretrained, tmp_path_factory) -> Path:
    """60 documents with float32 vectors, words and texts."""
    folder = tmp_path_factory.mktemp("corpus")
    return encoded(pretrained, documents(60), folder / "out", words=word_weights(folder), word_entries=20)


@pytest.fixture
def index(corpus, tmp_path) -> Index:
    return Index.build(corpus, tmp_path / "index")


def scores_of(hits) -> dict[str, float]:
    return {hit.id: hit.score for hit in hits}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# -------------------------------------------------------------------------------------------------------------- scores


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "2bit", "ubinary"])
def test_exact_search_is_the_product_with_every_vector(pretrained, tmp_path, monkeypatch, precision):
    """In blocks and segments of a few documents."""
    monkeypatch.setattr(index_module, "SEGMENT_ROWS", 13)
    monkeypatch.setattr(index_module, "BLOCK_NUMBERS", 5 * 32)
    folder = encoded(pretrained, documents(40), tmp_path / "out", precision=precision)
    found = shards.open_shards(folder)
    (table,) = shards.read_tables(found.files)
    query = embed_texts(load_embedder(pretrained), [QUERY], "query")[0]  # stays in float
    wanted = shards.vectors(table, found.code) @ query
    blank = [f"d{row}" for row in range(9, 40, 10)]
    wanted[9::10] = -2  # below any cosine
    index = Index.build(folder)
    assert len(index.segments) == 4
    (hits,) = ce.search(index, QUERY, k=40, checkpoint=pretrained)
    order = np.argsort(-wanted, kind="stable")
    assert [hit.score for hit in hits] == pytest.approx(wanted[order].tolist(), abs=1e-5)
    assert {hit.id for hit in hits} == {f"d{row}" for row in range(40)}
    assert scores_of(hits) == pytest.approx(dict(zip(table["id"].to_pylist(), wanted.tolist(), strict=True)), abs=1e-5)
    assert hits[0].document.keys() == {"text"}
    worst = index.best(index.products(np.stack([query, -query])), 2, 40)  # the second is unlike every document
    assert worst.scores[1, 0] < 0
    for rows in worst.rows:
        assert sorted(index.document(row)["id"] for row in rows[-4:]) == sorted(blank)


@pytest.mark.slow
def test_words_are_added_and_weighted(index, corpus, pretrained):
    options = {"k": 60, "checkpoint": pretrained}
    found = scores_of(ce.search(index, QUERY, by=["words"], **options)[0])
    weights = index.word_weights
    exact = (weights.encode(documents(60)["text"][:], 20) @ weights.encode([QUERY]).T).toarray().ravel()
    assert found == pytest.approx(
        {f"d{row}": score for row, score in enumerate(exact.tolist()) if score > 0}, abs=1e-3
    )
    (hits,) = ce.search(index, QUERY, weights=[0.25, 2], **options)
    for hit in hits:
        assert hit.parts["words"] == pytest.approx(found.get(hit.id, 0), abs=1e-6)
        assert hit.score == pytest.approx(0.25 * hit.parts["vectors"] + 2 * hit.parts["words"], abs=1e-5)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    (hits,) = ce.search(index, QUERY, **options)
    for hit in hits:
        assert hit.score == pytest.approx(BESIDE * hit.parts["vectors"] + hit.parts["words"], abs=1e-5)
    (hits,) = ce.search(index, QUERY, by=["vectors"], **options)
    assert all(hit.score == hit.parts["vectors"] for hit in hits)


def test_bm25_is_that_of_bm25s(corpus, tmp_path):
    bm25s = pytest.importorskip("bm25s")
    index = Index.build(corpus, tmp_path / "index", bm25="text")
    texts = documents(60)["text"][:]
    theirs = bm25s.BM25()
    theirs.index(bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False), show_progress=False)
    wanted = theirs.get_scores(bm25s.tokenize(QUERY, stopwords="en", return_ids=False, show_progress=False)[0])
    (hits,) = ce.search(index, QUERY, k=60, by=["bm25"])
    assert {hit.id: hit.score * wanted.max() for hit in hits} == pytest.approx(
        {f"d{row}": float(score) for row, score in enumerate(wanted) if score > 0}, abs=1e-4
    )
    assert ce.search(index, "xyzzy", by=["bm25"]) == [[]]


def test_reciprocal_ranks(index, pretrained):
    options = {"k": 60, "checkpoint": pretrained}
    ranks = {
        name: {hit.id: place + 1 for place, hit in enumerate(ce.search(index, QUERY, by=[name], **options)[0])}
        for name in ("vectors", "words")
    }
    (hits,) = ce.search(index, QUERY, by=["vectors", "words"], fusion="rank", weights=[1, 3], **options)
    for hit in hits:
        first, second = (1 / (60 + rank[hit.id]) if hit.id in rank else 0 for rank in ranks.values())
        assert hit.score == pytest.approx(first + 3 * second)


@pytest.mark.slow
def test_weights_are_chosen_on_training_queries(index, pretrained):
    texts = documents(60)["text"][:5]
    queries = [" ".join(text.split()[:4]) for text in texts]
    chosen = choose_weights(index, queries, [[f"d{row}"] for row in range(5)], checkpoint=pretrained)
    assert sum(chosen) == pytest.approx(1)

    def quality(weights):
        options = {"k": 60, "checkpoint": pretrained}
        found = ce.search(index, queries, by=["vectors", "words"], weights=weights, **options)
        places = [[hit.id for hit in hits].index(f"d{row}") for row, hits in enumerate(found)]
        return sum(1 / (place + 1) for place in places)

    assert quality(chosen) >= max(quality((1, 0)), quality((0, 1)), quality((0.5, 0.5)))
    with pytest.raises(ValueError, match="weights are chosen for two sources on at least one query, got 1 and 1"):
        choose_weights(index, ["a"], [["d1"]], by=["words"])


@pytest.mark.slow
def test_concepts_that_matched(pretrained, tmp_path):
    folder = encoded(pretrained, documents(12), tmp_path / "out", concepts=True)
    (hits,) = ce.search(folder, QUERY, k=1, checkpoint=pretrained)
    asked, found = (
        embed_texts(load_embedder(pretrained, output="concepts"), [text])[0].reshape(4, 32)
        for text in (QUERY, hits[0].document["text"])
    )
    shares = (asked * found).sum(1)
    assert hits[0].concepts == [
        (int(place), pytest.approx(float(shares[place]), abs=1e-5)) for place in np.argsort(-shares)[:3]
    ]
    assert hits[0].score == pytest.approx(float(shares.sum()), abs=1e-5)


@pytest.mark.slow
def test_a_graph_finds_what_exact_search_finds(corpus, pretrained, tmp_path, monkeypatch):
    pytest.importorskip("usearch")
    monkeypatch.setattr(index_module, "SEGMENT_ROWS", 25)
    index = Index.build(corpus, tmp_path / "index", approximate=True)
    assert index.facts.approximate.recall_at_10 > 0.9
    assert index.facts.approximate.queries == 54  # documents with words
    index = index.delete(["d1"])
    options = {"k": 5, "checkpoint": pretrained}
    for by in (["vectors"], ["vectors", "words"]):
        exact, graph = (ce.search(index, QUERY, by=by, approximate=each, **options)[0] for each in (False, True))
        assert scores_of(exact) == pytest.approx(scores_of(graph), abs=1e-5)


# ------------------------------------------------------------------------------------------------------------- changes


@pytest.mark.slow
def test_documents_are_added_deleted_and_compacted(index, corpus, pretrained, tmp_path):
    query = {"k": 100, "checkpoint": pretrained}
    before = scores_of(ce.search(index, QUERY, **query)[0])
    more = encoded(
        pretrained, documents(20, first=60), tmp_path / "more", words=corpus / "words.safetensors", word_entries=20
    )
    grown = index.add(more)
    after = scores_of(ce.search(grown, QUERY, **query)[0])
    assert len(after) == 80 and {name: after[name] for name in before} == pytest.approx(before, abs=1e-6)
    best = max(after, key=lambda name: after[name])
    less = grown.delete([best, "d70"])
    assert (less.facts.documents, less.facts.deleted) == (78, 2)
    wanted = {name: score for name, score in after.items() if name not in (best, "d70")}
    assert scores_of(ce.search(less, QUERY, **query)[0]) == pytest.approx(wanted, abs=1e-6)
    compact = less.compact()
    assert (compact.facts.documents, compact.facts.deleted, len(compact.segments)) == (78, 0, 1)
    assert scores_of(ce.search(compact, QUERY, **query)[0]) == pytest.approx(wanted, abs=1e-6)
    again = Index.open(index.folder)
    assert scores_of(ce.search(again, QUERY, **query)[0]) == pytest.approx(wanted, abs=1e-6)
    words = {"words": corpus / "words.safetensors", "word_entries": 20}
    one = encoded(pretrained, documents(1, first=2), tmp_path / "one", **words)
    with pytest.raises(ValueError, match="id 'd2' comes twice; ids are unique: delete it from the index first"):
        again.add(one)
    with pytest.raises(ValueError, match=r"1 of the ids are not in .*, the first is 'x'"):
        again.add(one, instead_of=["d2", "x"])
    assert Index.open(index.folder).facts == again.facts
    assert again.add(one, instead_of=["d2"]).facts.documents == 78  # a document that has changed
    assert Index.open(index.folder).facts.generation == again.facts.generation + 1


def test_an_index_of_int8_grows_by_texts_with_its_ranges(pretrained, tmp_path):
    first = encoded(pretrained, documents(20), tmp_path / "first", precision="int8")
    more = encoded(
        pretrained, documents(10, first=20), tmp_path / "more", precision="int8", ranges_from=first / "data"
    )
    for other, message in (
        (encoded(pretrained, documents(9), tmp_path / "other", precision="int8"), "was begun with calibration"),
        (
            encoded(pretrained, documents(9), tmp_path / "2bit", precision="2bit"),
            "must be a corpus of precision 'int8'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            encoded(pretrained, documents(10, first=20), tmp_path / "more", precision="int8", ranges_from=other)
    grown = Index.build(first).add(more)
    exact = {row["key"]: row["text"] for row in documents(30)}
    (hits,) = ce.search(grown, QUERY, k=30, checkpoint=pretrained)
    assert len(hits) == 30
    vectors = embed_texts(load_embedder(pretrained), [QUERY, *(exact[hit.id] for hit in hits)])
    cosines = np.where(vectors[1:].any(1), vectors[1:] @ vectors[0], -2)
    np.testing.assert_allclose([hit.score for hit in hits], cosines, atol=0.01)


@pytest.mark.slow
def test_bm25_counts_what_was_added(corpus, pretrained, tmp_path):
    pytest.importorskip("bm25s")
    index = Index.build(corpus, tmp_path / "index", bm25="text")
    table = Dataset.from_dict({"key": ["new"], "text": ["zebra zebra"], "n": [0]})
    more = encoded(pretrained, table, tmp_path / "more", words=corpus / "words.safetensors", word_entries=20)
    grown = index.add(more)
    assert [hit.id for hit in ce.search(grown, "a zebra", by=["bm25"])[0]] == ["new"]
    assert ce.search(grown.delete(["new"]), "a zebra", by=["bm25"]) == [[]]
    assert len(list(grown.folder.glob("bm25-*"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "text", "other"])
def test_damaged_counts_of_bm25_are_named(corpus, pretrained, tmp_path, damage):
    pytest.importorskip("bm25s")
    index = Index.build(corpus, tmp_path / "index", bm25="text")
    (folder,) = index.folder.glob("bm25-*")
    paths = sorted(path.name for path in folder.iterdir())
    whole = {name: (folder / name).read_bytes() for name in paths}
    fewer = Index.build(encoded(pretrained, documents(9), tmp_path / "fewer"), bm25="text")
    for name in paths:
        if damage == "gone":
            (folder / name).unlink()
        elif damage == "other":
            (path,) = fewer.folder.glob(f"bm25-*/{name}")
            (folder / name).write_bytes(path.read_bytes())
        else:
            cut = {"cut": whole[name][: len(whole[name]) // 2], "empty": b"", "text": b"none"}
            (folder / name).write_bytes(cut[damage])
        with pytest.raises(ValueError, match=rf"{folder.name} .*; count again: --build --overwrite --bm25 text"):
            ce.search(Index.open(index.folder), QUERY, by=["bm25"])
        (folder / name).write_bytes(whole[name])
    assert ce.search(Index.open(index.folder), QUERY, by=["bm25"])[0]


@pytest.mark.slow
@pytest.mark.parametrize("change", ["build", "add", "replace", "delete", "compact"])
@pytest.mark.parametrize("moment", ["_write_segment", "sync_folder"])
def test_a_change_that_is_killed_leaves_the_index_as_it_was(corpus, pretrained, tmp_path, change, moment):
    index = Index.build(corpus, tmp_path / "index")
    before, facts = scores_of(ce.search(index, QUERY, k=60, checkpoint=pretrained)[0]), index.facts
    more = encoded(
        pretrained, documents(5, first=60), tmp_path / "more", words=corpus / "words.safetensors", word_entries=20
    )
    changes = {
        "build": lambda: Index.build(more, tmp_path / "index", overwrite=True),
        "add": lambda: index.add(more),
        "replace": lambda: index.add(more, instead_of=["d3"]),
        "delete": lambda: index.delete(["d3"]),
        "compact": index.compact,
    }
    killed = killed_at(changes[change], index_module, moment)
    assert killed or (change, moment) == ("delete", "_write_segment")  # which writes none
    opened = Index.open(tmp_path / "index")
    if killed:
        assert opened.facts == facts
        assert scores_of(ce.search(opened, QUERY, k=60, checkpoint=pretrained)[0]) == before
    changed = {
        "build": lambda: Index.build(more, tmp_path / "index", overwrite=True),
        "add": lambda: opened.add(more),
        "replace": lambda: opened.add(more, instead_of=["d4"]),
    }
    new = changed.get(change, lambda: opened.delete(["d4"]))()
    assert new.facts.documents == {"build": 5, "add": 65, "replace": 64}.get(change, 59 if killed else 58)
    held = {path.parent.name for path in (tmp_path / "index").rglob("codes.npy")}
    assert held == {each.name for each in new.facts.segments}  # nothing is left of what was killed


# -------------------------------------------------------------------------------------------------------------- faults


def test_a_full_disk_leaves_the_index_as_it_was(index, corpus, pretrained, tmp_path, monkeypatch):
    words = {"words": corpus / "words.safetensors", "word_entries": 20}
    more = encoded(pretrained, documents(5, first=60), tmp_path / "more", **words)
    before = files(index.folder)

    def full(path, *arrays):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    for name, change in (("save", lambda: index.add(more)), ("savez", lambda: index.delete(["d1"]))):
        with monkeypatch.context() as patch:
            patch.setattr(np, name, full)
            with pytest.raises(
                OSError, match=r"index could not be changed: .*No space left on device\. It is as it was"
            ):
                change()
        assert files(index.folder) == before
    assert index.add(more).facts.documents == 65


@pytest.mark.slow
def test_what_does_not_fit_together_is_named(index, corpus, pretrained, tmp_path):
    other = encoded(pretrained, documents(5, first=60), tmp_path / "other", precision="2bit")
    with pytest.raises(ValueError, match=r"precision '2bit'.*never mixed"):
        index.add(other)
    int8 = [
        encoded(pretrained, documents(5, first=first), tmp_path / str(first), precision="int8") for first in (80, 90)
    ]
    with pytest.raises(
        ValueError, match=r"90 and .* were rounded to int8 with .*: encode one of them again with ranges_from"
    ):
        Index.build(int8[0]).add(int8[1])
    with pytest.raises(ValueError, match="id 'd0' comes twice; ids are unique"):
        index.add(corpus)
    with pytest.raises(ValueError, match=r"2 of the ids are not in .*, the first is 'x1'"):
        index.delete(["d1", "x1", "x2"])
    with pytest.raises(ValueError, match="holds an index already; --add to it, or --overwrite it"):
        Index.build(corpus, index.folder)
    with pytest.raises(FileNotFoundError, match="holds no index"):
        Index.open(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"has no BM25; build it with --bm25 COLUMN"):
        ce.search(index, QUERY, by=["bm25"])
    with pytest.raises(ValueError, match=r"bm25 'title' is no column of the shards.* Columns: id, text"):
        Index.build(corpus, tmp_path / "other-index", bm25="title")
    without_words = encoded(pretrained, documents(5), tmp_path / "plain")
    with pytest.raises(ValueError, match="has no words; encode the corpus with --words FILE"):
        ce.search(without_words, QUERY, by=["words"])


def test_an_index_of_another_revision_is_named(index, pretrained, tmp_path):
    import torch

    from concept_encoder.modeling_concept import ConceptEncoderForDiffusionMLM

    checkpoint = ce.Checkpoint.open(pretrained)
    torch.manual_seed(1)
    later = ConceptEncoderForDiffusionMLM(checkpoint.config)
    later.save_pretrained(tmp_path / "later")
    checkpoint.tokenizer.save_pretrained(tmp_path / "later")
    with pytest.raises(ValueError, match=f"of run with weights {checkpoint.digest}, and .*later has "):
        query_embedder(index, tmp_path / "later")
    with pytest.raises(FileNotFoundError, match="it encodes the queries; say where it is now with --checkpoint"):
        query_embedder(index, tmp_path / "gone")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": ["meaning"]}, "by must be some of vectors, words, bm25, got 'meaning'"),
        ({"fusion": "max"}, "fusion must be one of sum, rank, got 'max'"),
        ({"weights": [1]}, "weights must be one for each of vectors, words, got 1"),
        ({"weights": [1, np.nan]}, "weights must be finite numbers from 0, not all 0, got 1 nan"),
        ({"weights": [np.inf, 1]}, "weights must be finite numbers from 0, not all 0, got inf 1"),
        ({"weights": [1, -0.5]}, "weights must be finite numbers from 0, not all 0, got 1 -0.5"),
        ({"weights": [0, 0]}, "weights must be finite numbers from 0, not all 0, got 0 0"),
        ({"by": ["words", "vectors", "words"]}, "by names 'words' more than once; weights say how much each counts"),
        ({"approximate": True}, "has no graph of neighbours; --build it with --approximate, and --overwrite"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"queries": ["a cat", " "]}, "query 2 of 2 is blank"),
    ],
)
def test_an_option_that_is_none_is_named(index, options, message):
    with pytest.raises(ValueError, match=message):
        ce.search(index, **{"queries": QUERY, **options})


def test_an_empty_corpus_has_no_hits(pretrained, tmp_path):
    table = Dataset.from_dict({"key": ["a"], "text": ["the cat"], "n": [0]})
    index = Index.build(encoded(pretrained, table, tmp_path / "out")).delete(["a"])
    assert ce.search(index, QUERY, checkpoint=pretrained) == [[]]
    assert ce.search(index.compact(), QUERY, checkpoint=pretrained) == [[]]


def test_the_command(corpus, pretrained, tmp_path, capsys):
    home = str(tmp_path / "index")
    main([str(corpus), "--build", "--index_dir", home])
    assert f"{home}: 60 documents, 0 deleted." in capsys.readouterr().err
    main([home, "--k", "2", QUERY, "--checkpoint", str(pretrained)])  # options anywhere
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    score, name, text = lines[0].split("\t")
    (hits,) = ce.search(home, QUERY, k=2, checkpoint=pretrained)
    assert (score, name) == (f"{hits[0].score:.4f}", hits[0].id) and hits[0].document["text"].startswith(text[:40])
    main([home, "--delete", name, "--compact"])
    assert "59 documents, 0 deleted." in capsys.readouterr().err
    for words, message in (
        ([], "there is nothing to do: give a QUERY, before an option that takes several words, or --build, "),
        ([QUERY, "--bm25", "text"], "--bm25 is for --build"),
        (["--build", "--add", "more"], "--build makes an index of FOLDER alone; --add in a command after it"),
        (["--delete", "d1", "--add", str(corpus)], "id 'd0' comes twice"),
    ):
        with pytest.raises(SystemExit):
            main([home, *words])
        assert message in capsys.readouterr().err
    assert Index.open(home).facts.documents == 59  # d1 too
    table = Dataset.from_dict({"key": ["d1"], "text": ["the cat has a new coat"], "n": [0]})
    words = {"words": corpus / "words.safetensors", "word_entries": 20}
    main([home, "--delete", "d1", "--add", str(encoded(pretrained, table, tmp_path / "one", **words))])
    assert "59 documents, 1 deleted." in capsys.readouterr().err
    assert "new coat" in {hit.id: hit.text for hit in ce.search(home, QUERY, k=60, checkpoint=pretrained)[0]}["d1"]
