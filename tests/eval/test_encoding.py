"""`encode`: what is in a shard, what a second call does, and every fault by its name."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, IterableDataset, Value, load_dataset
from huggingface_hub import HfApi
from small_corpora import documents, encoded, shard_bytes, word_weights

import concept_encoder as ce
from concept_encoder.eval.corpus import embedders, encoding, shards
from concept_encoder.eval.corpus.embedders import embed_texts, load_embedder
from concept_encoder.eval.corpus.words import WordWeights
from concept_encoder.scripts.encode import main
from concept_encoder.utils.results import EncodeResult

pytest.importorskip("datatrove")
pytest.importorskip("sentence_transformers")


@pytest.fixture
def rows():
    return documents(40)


def stored(folder: Path) -> np.ndarray:
    """All vectors of a folder, in the order of its shards."""
    found = shards.open_shards(folder)
    return np.concatenate([shards.vectors(table, found.code) for table in shards.read_tables(found.files)])


# ----------------------------------------------------------------------------------------------------------- embedding


@pytest.mark.slow
def test_texts_are_embedded_as_by_the_checkpoint_itself(pretrained):
    texts = ["the cat saw the dog", "", "a boy " * 100, " \n", "the baker"]
    vectors = embed_texts(load_embedder(pretrained), texts, batch_tokens=70)
    wanted = ce.load(pretrained).encode([texts[0], texts[2], texts[4]])
    np.testing.assert_allclose(vectors[[0, 2, 4]], wanted, atol=1e-6)
    assert not vectors[[1, 3]].any()


def test_batches_keep_to_their_budget_and_read_every_token(pretrained):
    embedder = load_embedder(pretrained)
    texts = ["the cat", "the dog and the cat and the horse", *["the boy"] * 20, "the girl " * 100]
    batches = list(embedder.batches(texts, 50, "document"))
    assert sorted(row for rows, _, _ in batches for row in rows) == list(range(len(texts)))
    assert batches[0][1]["input_ids"].shape == (1, embedder.max_length)
    assert all(features["input_ids"].numel() <= 50 for _, features, _ in batches[1:])
    lengths = [len(ids) for ids in embedder.tokenizer(texts, truncation=True)["input_ids"]]
    assert sum(tokens for _, _, tokens in batches) == sum(lengths)


def test_of_a_long_text_only_what_is_read_is_tokenised(pretrained, monkeypatch):
    embedder = load_embedder(pretrained, max_length=8)
    seen = []
    tokenized = embedder._tokenized
    monkeypatch.setattr(embedder, "_tokenized", lambda texts: seen.append(max(map(len, texts))) or tokenized(texts))
    long = "the cat and the dog " * 500_000  # 10 MB
    assert (embed_texts(embedder, [long]) == embed_texts(embedder, [long[:1000]])).all()
    assert max(seen) <= 1000
    blank = " " * 5000 + "the cat and the dog"
    np.testing.assert_allclose(embed_texts(embedder, [blank]), embed_texts(embedder, [blank.strip()]), atol=1e-6)


def test_concepts_are_one_vector(pretrained):
    embedder = load_embedder(pretrained, output="concepts")
    vector = embed_texts(embedder, ["the cat"])[0]
    concepts = ce.load(pretrained).concepts(["the cat"])[0].ravel()
    assert embedder.shape == (4, 32)
    np.testing.assert_allclose(vector, concepts / np.linalg.norm(concepts), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "tokens"}, "output must be one of pooled, concepts, got 'tokens'"),
        ({"max_length": 0}, "max_length must be at least 1 token, got 0"),
        ({"max_length": 2}, "max_length must be at least 3, since 2 tokens are special, got 2"),
    ],
)
def test_an_encoder_that_cannot_be_is_named(pretrained, options, message):
    with pytest.raises(ValueError, match=message):
        load_embedder(pretrained, **options)


@pytest.mark.slow
def test_a_vector_that_is_not_finite_is_named(pretrained, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(embedders.Embedder, "vectors", lambda self, features, role="document": np.float32([np.nan]))
    with pytest.raises(ValueError, match="run gives no finite vector for text 0"):
        encoded(pretrained, rows, tmp_path / "out")
    assert shard_bytes(tmp_path / "out") == {}


@pytest.mark.slow
def test_a_model_of_sentence_transformers_by_the_same_call(shared, rows, tmp_path):
    model = shared / "data" / "models" / "sentence-transformers" / "all-MiniLM-L6-v2"
    if not model.is_dir():
        pytest.skip("the model is not in ../shared/data")
    folder = encoded(model, rows.select(range(12)), tmp_path / "out", max_length=32)
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(model)).float()
    theirs.max_seq_length = 32
    wanted = theirs.encode(rows["text"][:9], normalize_embeddings=True)
    np.testing.assert_allclose(stored(folder)[:9], wanted, atol=1e-5)
    assert not stored(folder)[9].any()
    with pytest.raises(ValueError, match="which has no concepts"):
        load_embedder(model, output="concepts")


# -------------------------------------------------------------------------------------------------------------- shards


@pytest.mark.slow
def test_shards_hold_ids_columns_vectors_and_what_they_are(pretrained, rows, tmp_path):
    folder = encoded(pretrained, rows, tmp_path / "out", columns=["n", "text"])
    table = load_dataset(str(folder), split="train")  # as anybody reads them
    assert table.column_names == ["id", "n", "text", "vector"]
    assert table["id"][:] == rows["key"][:] and table["text"][:] == rows["text"][:]
    assert table.features["vector"].length == 32
    wanted = embed_texts(load_embedder(pretrained), rows["text"][:])
    np.testing.assert_allclose(np.array(table["vector"][:]), wanted, atol=1e-6)
    found = shards.open_shards(folder)
    checkpoint = ce.Checkpoint.open(pretrained)
    assert (found.code.model, found.code.digest) == (checkpoint.name, checkpoint.digest)
    assert (found.counts.documents, found.counts.empty) == (40, 4)
    result = EncodeResult.load(folder / "encode.json")
    assert (result.documents, result.empty, result.tokens) == (40, 4, found.counts.tokens)
    assert result.bytes == sum(map(len, shard_bytes(folder).values()))
    card = (folder / "README.md").read_text()
    for fact in (checkpoint.name, checkpoint.digest, "float32", "40, of them 4 empty"):
        assert fact in card
    assert all(hasattr(ce, name) for name in re.findall(r"\bce\.(\w+)", card))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "2bit", "ubinary", "float16"])
def test_precisions_in_shards(pretrained, rows, tmp_path, precision):
    folder = encoded(pretrained, rows, tmp_path / "out", precision=precision)
    exact = embed_texts(load_embedder(pretrained), rows["text"][:])
    found = stored(folder)
    cosines = (found * exact).sum(1)
    assert not found[9].any()
    assert cosines[exact.any(1)].min() > {"int8": 0.999, "float16": 0.999, "2bit": 0.8, "ubinary": 0.6}[precision]
    code = shards.open_shards(folder).code
    assert (code.calibration is not None) == (precision == "int8")


@pytest.mark.slow
def test_words_are_in_a_column(pretrained, rows, tmp_path):
    path = word_weights(tmp_path)
    folder = encoded(pretrained, rows, tmp_path / "out", words=path, word_entries=5)
    found = shards.open_shards(folder)
    weights = WordWeights.load(folder / "words.safetensors")
    (table,) = shards.read_tables(found.files)
    held = shards.words(table, found.code.words.columns)
    wanted = weights.encode(rows["text"][:], 5)
    assert abs(held - wanted).max() < 1e-3
    assert held[9].nnz == 0
    with pytest.raises(ValueError, match="word_entries must be at least 1, got 0"):
        encoded(pretrained, rows, tmp_path / "other", words=path, word_entries=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv folder", "stream", "memory stream"])
def test_sources(pretrained, rows, tmp_path, kind):
    source: object = tmp_path / f"rows.{kind}"
    if kind in ("jsonl", "stream"):
        source = tmp_path / "rows.jsonl"
        rows.to_json(source)
    elif kind == "parquet":
        rows.to_parquet(source)
    elif kind == "csv folder":
        source = tmp_path / "rows"
        source.mkdir()
        rows.to_csv(source / "train.csv")
    else:
        source = IterableDataset.from_generator(rows.to_list().__iter__)
    result = ce.encode(pretrained, source, tmp_path / "out", streaming=kind == "stream", columns=["key"])
    assert (result.documents, result.empty) == (40, 4)
    table = load_dataset(str(tmp_path / "out"), split="train")
    assert table["key"][:] == rows["key"][:]
    assert len(set(table["id"])) == 40


@pytest.mark.slow
def test_a_source_on_the_hub(pretrained, seeded_hub, tmp_path):
    options = {"id_column": "_id", "columns": [], "max_length": 8}
    by_id = ce.encode(
        pretrained, "local/cranfield", tmp_path / "id", dataset_config_name="corpus", **{**options, "split": "corpus"}
    )
    by_file = ce.encode(
        pretrained, "hf://datasets/local/cranfield/corpus-00000-of-00001.parquet", tmp_path / "file", **options
    )
    assert by_id.documents == by_file.documents == 1400
    assert np.array_equal(stored(tmp_path / "id"), stored(tmp_path / "file"))


# ---------------------------------------------------------------------------------------------------------- once again


@pytest.mark.slow
def test_a_second_call_does_nothing_and_says_the_same(pretrained, rows, tmp_path, monkeypatch):
    first = ce.encode(pretrained, rows, tmp_path / "out", id_column="key")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "data").iterdir()}
    monkeypatch.setattr(embedders.Embedder, "vectors", None)
    assert ce.encode(pretrained, rows, tmp_path / "out", id_column="key") == first
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "data").iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float16"}, "was begun with precision 'float32', now it is 'float16'"),
        ({"columns": ["n"]}, r"was begun with columns \['text'\], now it is \['n'\]"),
        ({"max_length": 9}, "was begun with max_length 64, now it is 9"),
    ],
)
def test_another_plan_in_the_same_folder_is_refused(pretrained, rows, tmp_path, options, message):
    encoded(pretrained, rows, tmp_path / "out")
    before = shard_bytes(tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        encoded(pretrained, rows, tmp_path / "out", **options)
    assert shard_bytes(tmp_path / "out") == before
    load_dataset(str(tmp_path / "out"), split="train")
    ce.search(tmp_path / "out", "the cat", checkpoint=pretrained)
    encoded(pretrained, rows, tmp_path / "out", overwrite=True, **options)
    assert not (tmp_path / "out" / "index").exists()  # of what is there no more
    assert shard_bytes(tmp_path / "out") != before
    table = load_dataset(str(tmp_path / "out"), split="train")  # not what it has kept of the folder
    (held,) = shards.read_tables(shards.open_shards(tmp_path / "out").files)
    assert table.column_names == held.column_names and table["vector"][0] == held["vector"][0].as_py()


@pytest.mark.slow
def test_other_rows_under_the_same_plan_are_refused(pretrained, rows, tmp_path):
    encoded(pretrained, rows, tmp_path / "out")
    with pytest.raises(ValueError, match="was begun with sample"):
        encoded(pretrained, rows.select(range(1, 40)), tmp_path / "out")


def many_shards(monkeypatch, rows: int = 10) -> None:
    monkeypatch.setattr(encoding, "SHARD_ROWS", rows)


@pytest.mark.slow
def test_a_broken_or_lost_shard_is_made_again_bit_by_bit(pretrained, rows, tmp_path, monkeypatch):
    many_shards(monkeypatch)
    folder = encoded(pretrained, rows, tmp_path / "out")
    whole = shard_bytes(folder)
    assert len(whole) == 4
    broken, lost = folder / "data" / "00001.parquet", folder / "data" / "00002.parquet"
    broken.write_bytes(whole["00001.parquet"][:-20])
    lost.unlink()
    with pytest.raises(
        ValueError, match=r"00001.parquet is broken: .*remove it and run `concept-encoder encode` again"
    ):
        shards.open_shards(folder)
    encoded(pretrained, rows, folder)
    assert shard_bytes(folder) == whole


def test_a_shard_with_a_wrong_bit_is_named(pretrained, rows, tmp_path):
    """In a number of a vector, which compression keeps as it is."""
    path = encoded(pretrained, rows, tmp_path / "out") / "data" / "00000.parquet"
    found = pq.read_metadata(path).row_group(0)
    chunk = next(each for each in map(found.column, range(found.num_columns)) if "vector" in each.path_in_schema)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"00000\.parquet is broken: .*remove it and run `concept-encoder encode` again"
    ):
        list(shards.read_tables([path]))


@pytest.mark.slow
def test_killed_in_the_middle_the_next_call_does_what_is_missing(pretrained, rows, tmp_path, monkeypatch):
    many_shards(monkeypatch)
    whole = shard_bytes(encoded(pretrained, rows, tmp_path / "undisturbed"))
    finish = shards.os.replace

    class Third:
        """os.replace, whose third call for a shard is the last thing that the process does."""

        def __init__(self):
            self.calls = 0

        def __call__(self, source, target):
            self.calls += str(target).endswith(".parquet")
            if self.calls == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return finish(source, target)

    pid = os.fork()
    if not pid:
        shards.os.replace = Third()
        encoded(pretrained, rows, tmp_path / "out")
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    done = shard_bytes(tmp_path / "out")
    assert list(done) == ["00000.parquet", "00001.parquet"]
    before = {name: (tmp_path / "out" / "data" / name).stat().st_mtime_ns for name in done}
    folder = encoded(pretrained, rows, tmp_path / "out")
    assert shard_bytes(folder) == whole
    assert {name: (folder / "data" / name).stat().st_mtime_ns for name in done} == before


WORKERS = """
import sys
from concept_encoder.eval.corpus import encoding
encoding.SHARD_ROWS = 25
if __name__ == "__main__":
    result = encoding.encode(sys.argv[1], sys.argv[2], sys.argv[3], workers=2, id_column="key")
    print(result.documents)
"""


@pytest.mark.slow
def test_two_workers_one_of_them_killed(pretrained, tmp_path):
    """The kill has a name, and the rest is done by the next call: the same shards, bit by bit."""
    documents(200).to_json(tmp_path / "rows.jsonl")
    (tmp_path / "script.py").write_text(textwrap.dedent(WORKERS))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def started(folder: str) -> subprocess.Popen:
        words = [sys.executable, tmp_path / "script.py", pretrained, tmp_path / "rows.jsonl", tmp_path / folder]
        return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    undisturbed = started("undisturbed")
    out, errors = undisturbed.communicate(timeout=300)
    assert out == "200\n", errors
    disturbed = started("out")
    end = time.monotonic() + 200
    while not list((tmp_path / "out").glob("data/0*.parquet")):
        assert time.monotonic() < end and disturbed.poll() is None
        time.sleep(0.001)
    workers = subprocess.run(["pgrep", "-f", "-P", str(disturbed.pid), "forkserver"], capture_output=True, text=True)
    server = int(workers.stdout.split()[0])
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    out, errors = disturbed.communicate(timeout=300)
    if disturbed.returncode == 0:
        pytest.skip("everything was done before the kill")
    assert "ChildProcessError: a worker was killed" in errors and "are done and stay" in errors
    again = started("out")
    out, errors = again.communicate(timeout=300)
    assert out == "200\n", errors
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "undisturbed")


# -------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.slow
def test_a_full_disk_is_named_and_nothing_is_lost(pretrained, rows, tmp_path, monkeypatch):
    many_shards(monkeypatch)
    whole = shard_bytes(encoded(pretrained, rows, tmp_path / "undisturbed"))
    write, calls = pq.ParquetWriter.write_table, []

    def full(self, table):
        calls.append(table)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        write(self, table)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(OSError, match=r"could not be written: .*No space left on device\. Shards that are done stay"):
        encoded(pretrained, rows, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "data").iterdir()) == ["00000.parquet", "00001.parquet"]
    monkeypatch.undo()
    many_shards(monkeypatch)
    assert shard_bytes(encoded(pretrained, rows, tmp_path / "out")) == whole


@pytest.mark.slow
def test_ids_that_are_not_unique_are_named(pretrained, rows, tmp_path, monkeypatch):
    many_shards(monkeypatch)
    twice = rows.map(lambda row: {"key": "d3" if row["n"] == 33 else row["key"]})
    with pytest.raises(
        ValueError, match=r"id 'd3' is in .*00000\.parquet and again in .*00003.parquet: ids must be unique"
    ):
        encoded(pretrained, twice, tmp_path / "out")
    assert len(shard_bytes(tmp_path / "out")) == 4


@pytest.mark.slow
def test_shards_of_another_model_in_the_folder_are_named(pretrained, rows, tmp_path):
    folder = encoded(pretrained, rows, tmp_path / "out")
    other = encoded(pretrained, rows, tmp_path / "other", precision="float16")
    (folder / "data" / "extra.parquet").write_bytes((other / "data" / "00000.parquet").read_bytes())
    with pytest.raises(ValueError, match=r"extra\.parquet is no shard of this folder's plan; take it out"):
        encoded(pretrained, rows, folder)
    with pytest.raises(ValueError, match=r"precision 'float16'.*vectors of different models or precisions are never"):
        shards.open_shards(folder)
    (folder / "data" / "extra.parquet").unlink()
    (folder / "data" / "00000.parquet").write_bytes((other / "data" / "00000.parquet").read_bytes())
    with pytest.raises(ValueError, match=r"plan\.json of run"):
        encoded(pretrained, rows, folder)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_left_as_it_is(pretrained, rows, tmp_path, overwrite):
    folder = tmp_path / "model"
    shutil.copytree(pretrained, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"model holds .* and no plan\.json; choose another --output_dir, of its own"):
        encoded(folder, rows, folder, overwrite=overwrite)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_note_next_to_a_corpus_stays_when_it_is_encoded_again(pretrained, rows, tmp_path):
    folder = encoded(pretrained, rows, tmp_path / "out")
    (folder / "notes.txt").write_text("mine")
    assert shard_bytes(encoded(pretrained, rows, folder, overwrite=True)) and (folder / "notes.txt").exists()


@pytest.mark.slow
def test_no_file_of_a_corpus_names_a_folder_of_this_machine(pretrained, rows, tmp_path):
    ce.Index.build(encoded(pretrained, rows, tmp_path / "out"))
    paths = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(paths) > 8 and [path for path in paths if str(tmp_path).encode() in path.read_bytes()] == []


def test_a_parquet_file_that_is_no_shard_is_named(rows, tmp_path):
    rows.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"rows.parquet is no shard of an encoded corpus; `concept-encoder encode`"):
        shards.open_shards(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no shards"):
        shards.open_shards(tmp_path / "empty")


@pytest.mark.slow
def test_a_document_of_10_mb_between_short_ones(pretrained, tmp_path):
    texts = ["the cat", "the dog and the cat " * 500_000, "the boy"]
    folder = encoded(pretrained, Dataset.from_dict({"text": texts}), tmp_path / "out", id_column=None, columns=[])
    wanted = embed_texts(load_embedder(pretrained), ["the cat", "the dog and the cat " * 100, "the boy"])
    np.testing.assert_allclose(stored(folder), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ({"text": ["a", 3]}, {}, r"text_column 'text' must hold a text, got 3"),
        ({"body": ["a"]}, {}, "text_column 'text' is not in the split 'train'.* Columns: body"),
        ({"text": ["a"]}, {"columns": ["title"]}, "columns 'title' is not in"),
        ({"text": ["a"], "id": ["b"]}, {"columns": ["id"]}, "columns cannot have 'id', which shards have already"),
        ({"text": ["a"]}, {"columns": ["text", "text"]}, "columns has 'text' more than once"),
        ({"text": ["a"]}, {"word_entries": 9}, "word_entries=9 is for words: give their file, or leave it out"),
        ({"text": ["a", "b"], "key": ["b", None]}, {"id_column": "key"}, "row 2 of .*id_column 'key' is empty"),
        ({"text": ["a"]}, {"split": "test"}, "there is no split 'test' in the data set. Splits: train"),
        ({"text": ["a"]}, {"ranges_from": "x"}, "ranges_from is for precision 'int8', got 'float32'"),
        ({"text": ["a"]}, {"workers": 0}, "workers must be at least 1, got 0"),
        ({"text": ["a"]}, {"executor": "cloud"}, "executor must be one of local, ray, slurm, got 'cloud'"),
        ({"text": ["a"]}, {"executor_options": {"queue": 1}}, "executor_options do not fit LocalExecutor"),
    ],
)
def test_what_cannot_be_encoded_is_named(pretrained, tmp_path, table, options, message):
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(dict(zip(table, row, strict=True))) + "\n" for row in zip(*table.values(), strict=True))
    )
    source = Dataset.from_dict(table) if "got 3" not in message else tmp_path / "rows.jsonl"
    with pytest.raises(ValueError, match=message):
        ce.encode(pretrained, source, tmp_path / "out", **options)


@pytest.mark.slow
def test_null_texts_are_empty(pretrained, tmp_path):
    result = ce.encode(pretrained, Dataset.from_dict({"text": ["the cat", None]}), tmp_path / "out")
    assert (result.documents, result.empty) == (2, 1)
    for place, blank in enumerate((["", ""], [None, None], [" "])):
        table = Dataset.from_dict({"text": blank}, features=Features({"text": Value("string")}))
        for name, model in (("box", "box"), ("own", pretrained)):
            result = ce.encode(model, table, tmp_path / f"{name}-{place}")
            assert result.documents == result.empty == len(blank)


@pytest.mark.slow
def test_the_command(pretrained, rows, tmp_path, capsys):
    rows.to_json(tmp_path / "rows.jsonl")
    words = [
        str(pretrained),
        "--dataset_name",
        str(tmp_path / "rows.jsonl"),
        "--output_dir",
        str(tmp_path / "out"),
        "--id_column",
        "key",
    ]
    main([*words, "--precision", "2bit", "--columns", "n"])
    said = capsys.readouterr()
    assert said.out.startswith("40 documents, 4 of them empty, ") and "documents/s" in said.out
    assert f"concept-encoder search {tmp_path / 'out'} 'a question' --checkpoint {pretrained}\n" in said.err
    with pytest.raises(SystemExit):
        main([*words, "--executor_options", "partition"])
    assert "executor_options must be NAME=VALUE, got 'partition'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_corpus_is_pushed_as_a_data_set(pretrained, rows, tmp_path, hub, monkeypatch):
    many_shards(monkeypatch)
    folder = encoded(pretrained, rows, tmp_path / "out", precision="int8")
    (planned,) = ce.push(folder, "me/encoded", dry_run=True)
    assert planned.url is None
    own = {"README.md", "encode.json", "plan.json"}
    assert set(planned.files) == {*(f"data/{name}" for name in shard_bytes(folder)), *own}
    (upload,) = ce.push(folder, "me/encoded")
    assert upload.files == planned.files and "/datasets/me/encoded/tree/" in upload.url
    table = load_dataset("me/encoded", split="train")
    assert table["id"][:] == rows["key"][:]
    many_shards(monkeypatch, 40)
    ce.push(encoded(pretrained, rows, folder, precision="int8", overwrite=True), "me/encoded")
    there = HfApi().list_repo_files("me/encoded", repo_type="dataset")
    assert [name for name in there if name.startswith("data/")] == ["data/00000.parquet"]
    (folder / "data" / "00000.parquet").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"00000\.parquet is broken"):
        ce.push(folder, "me/encoded")
