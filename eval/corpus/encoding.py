"""`encode`: a data set in, parquet shards of vectors out, on datatrove.

A plan is made once and kept in the folder. Each of its tasks reads its part of the rows and writes one shard;
datatrove runs the tasks here, on Slurm or on Ray, and keeps a marker for each that is done, so that a second call does
the rest.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, IterableDataset

from ...trainers.data.tables import Table
from ...utils.files import alone_in, recorded_source, write_atomically
from ...utils.progress import progress
from ...utils.results import CodeFacts, EncodePlan, EncodeResult, WordFacts
from ...utils.untrusted import is_hub_id
from . import shards
from .embedders import BATCH_TOKENS, Embedder, Output, embedded_windows, load_embedder
from .index import INDEX_FOLDER
from .precision import Precision, calibration, check_precision
from .rows import columns_of, split_of, spread
from .shards import (
    CARD_FILE,
    DATA_FOLDER,
    PLAN_FILE,
    PROGRESS_FOLDER,
    RESULT_FILE,
    SHARD_NAME,
    STATE_FOLDER,
    WORDS_FILE,
    Counts,
    kept_words,
    open_shards,
    short,
)
from .words import entries_in

EXECUTORS = ("local", "ray", "slurm")
SHARD_BYTES, SHARD_ROWS = 2**28, 100_000  # of a shard, at most
SAMPLED = 16  # rows by which a data set is known again
CALIBRATED = 2_048  # texts that the ranges of int8 are taken from
WORD_BYTES = 4_096  # of the words column, where the number of entries is not given
_HOW_TO_READ = {
    "float32": "Vectors are as the model gives them, divided by their length.",
    "float16": "Vectors are as the model gives them, divided by their length and rounded.",
    "int8": "Each number is a step between the lowest and the highest value that a sample had (sentence-transformers' "
    "`quantize_embeddings`), which the shards' metadata hold; `scale` makes the length 1.",
    "2bit": "Four numbers a byte, the first in the lowest bits: bit 0 is the sign, bit 1 says 3 in place of 1, for "
    "numbers beyond the vector's standard deviation; 0 comes back as -1; `scale` makes the length 1.",
    "ubinary": "A bit for each number, its sign (`numpy.packbits`); `scale` makes the length 1.",
}
SECONDS_BETWEEN_LOOKS = 1.0  # at what the workers have done


def encode(
    checkpoint: str | os.PathLike,
    dataset_name: Any,
    output_dir: str | os.PathLike,
    *,
    dataset_config_name: str | None = None,
    dataset_revision: str | None = None,
    split: str = "train",
    streaming: bool = False,
    text_column: str = "text",
    id_column: str | None = None,
    columns: Sequence[str] | None = None,
    revision: str | None = None,
    concepts: bool = False,
    precision: Precision = "float32",
    ranges_from: str | os.PathLike | None = None,
    max_length: int | None = None,
    words: str | os.PathLike | None = None,
    word_entries: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    workers: int = 1,
    executor: str = "local",
    executor_options: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> EncodeResult | None:
    """Encode a corpus into parquet shards that say themselves what they are; a second call does what is missing.

    Args:
        checkpoint: folder or Hub id of a checkpoint of this package, or of a model of sentence-transformers.
        dataset_name: Hub id, folder, file or glob of parquet, JSON lines, CSV or text, `hf://` too, or a `Dataset`.
        output_dir: for the shards; a folder of its own.
        dataset_config_name, dataset_revision, split: of the data set.
        streaming: read without a download; each file of the data set is a task, so that one file is one worker's.
        text_column: what is encoded; null and blank texts get a vector of zeros.
        id_column: unique; None numbers the documents.
        columns: that are kept next to the vectors; None keeps the text, which BM25 and reading need.
        revision: commit, branch or tag of a checkpoint on the Hub.
        concepts: all C vectors of a text, one after the other, in place of the pooled one.
        precision: one of float32, float16, int8, 2bit, ubinary.
        ranges_from: folder of shards whose ranges int8 takes, so that both can be searched together; None: ranges of
            these texts.
        max_length: tokens after which a text is cut; None: the model's limit, at most 32,768.
        words: file that `WordWeights.save` wrote, for a column of the heaviest words and pairs.
        word_entries: of that column; None: what fits into 4 KiB.
        batch_tokens: of a batch, padding included.
        workers: processes that encode at the same time; one uses all cores by threads.
        executor: "local", or "ray" or "slurm", which must be there.
        executor_options: of datatrove's executor, such as partition and time of Slurm.
        overwrite: encode again what is there.

    Returns:
        What was encoded; None where Slurm has taken the tasks: the same call, made when they are done, finishes.

    Raises:
        ValueError: a source, column, option or model that is none or does not fit; a folder of another plan, or of
            other files; ids that are not unique; a text that is none, with its row.
        ChildProcessError: a worker was killed.
        OSError: a shard cannot be written.
    """
    if find_spec("datatrove") is None:
        raise ValueError("encode needs datatrove: pip install 'concept-encoder[corpus]'")
    from . import steps

    if executor not in EXECUTORS:
        raise ValueError(f"executor must be one of {', '.join(EXECUTORS)}, got {executor!r}")
    for name, number in (("workers", workers), ("batch_tokens", batch_tokens)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    check_precision(precision)
    if ranges_from is not None and precision != "int8":
        raise ValueError(f"ranges_from is for precision 'int8', got {precision!r}")
    if words is None and word_entries is not None:
        raise ValueError(f"word_entries={word_entries} is for words: give their file, or leave it out")
    options = {"config": dataset_config_name, "revision": dataset_revision, "streaming": streaming}
    table = split_of(dataset_name, options, split)
    named = isinstance(dataset_name, str | os.PathLike)
    output: Output = "concepts" if concepts else "pooled"
    embedder = load_embedder(checkpoint, revision, output, max_length)
    code = CodeFacts(
        model=embedder.name,
        revision=embedder.revision,
        digest=embedder.digest,
        output=output,
        shape=list(embedder.shape),
        precision=precision,
        calibration=None if ranges_from is None else _ranges_of(ranges_from),
        max_length=embedder.max_length,
        dtype="float32",
        words=None if words is None else _word_facts(words, word_entries),
    )
    draft = EncodePlan(
        code=code,
        checkpoint=str(recorded_source(os.fspath(checkpoint))),
        dataset=str(recorded_source(os.fspath(dataset_name))) if named else "data in memory",
        sample="",
        split=split,
        streaming=isinstance(table.rows, IterableDataset),
        text_column=text_column,
        id_column=id_column,
        columns=[text_column] if columns is None else list(columns),
        documents=None,
        tasks=1,
        batch_tokens=batch_tokens,
    )
    _check_columns(table, draft)
    folder = Path(output_dir)
    with alone_in(folder):
        _check_ours(folder)
        if overwrite:
            _remove(folder)
        plan = _kept_or_new(folder, table, draft, embedder, workers)
        if words is not None:
            shutil.copyfile(words, folder / WORDS_FILE)  # for the queries of a search
        _forget_broken(folder, plan)
        threads = max(1, torch.get_num_threads() // workers) if executor == "local" and workers > 1 else None
        source = os.fspath(dataset_name) if named else dataset_name
        encoder = steps.EncodeCorpus(
            str(folder),
            os.fspath(checkpoint),
            plan,
            _schema(table, plan),
            None if words is None else os.fspath(words),
            threads,
        )
        pipeline = [steps.ReadCorpus(source, options, plan), encoder]
        state = str(folder / STATE_FOLDER)
        engine = steps.executor(
            executor, executor_options or {}, pipeline, tasks=plan.tasks, workers=workers, logging_dir=state
        )
        started, before = time.perf_counter(), _encoded(folder, plan)
        with _watching(folder, plan, before):
            engine.run()
        left = engine.get_incomplete_ranks()
        if left and executor == "slurm":
            return None
        if left:
            raise ChildProcessError(
                f"{len(left)} of {plan.tasks} shards are not done; {state}/logs says why. The others stay: run "
                "the same again"
            )
        return _finished(folder, plan, before, time.perf_counter() - started, workers)


# ---------------------------------------------------------------------------------------------------------------- plan


def _kept_or_new(folder: Path, table: Table, draft: EncodePlan, embedder: Embedder, workers: int) -> EncodePlan:
    """The plan of the folder, checked to be the same as what is asked for, or one that is made now."""
    path = folder / PLAN_FILE
    sample = _sample(table, draft)
    draft.sample = hashlib.sha256(json.dumps(sample, default=str, sort_keys=True).encode()).hexdigest()[:16]
    if path.is_file():
        kept = EncodePlan.load(path)
        free = {"documents", "tasks", "code", "checkpoint", "dtype"}  # a model that moved is known by its weights
        own, its = ({**each.as_dict(), **each.as_dict()["code"]} for each in (draft, kept))
        if draft.code.calibration is None:
            free.add("calibration")  # of texts, which the sample compares
        differing = [name for name in own if name not in free and own[name] != its[name]]
        if differing:
            name = next((each for each in differing if each != "sample"), "sample")  # other columns are other rows too
            raise ValueError(
                f"{folder} was begun with {name} {short(its[name])}, now it is "
                f"{short(own[name])}; choose another --output_dir, "
                "or --overwrite it"
            )
        return kept
    texts = [text for row in sample if (text := row[draft.text_column] or "").strip()]
    embedder.choose_dtype(texts, draft.batch_tokens)
    draft.code.dtype = embedder.dtype  # type: ignore[assignment]
    if draft.code.precision == "int8" and draft.code.calibration is None:
        draft.code.calibration = shards.as_text(_calibration(table, draft, embedder))
    rows = table.rows
    if isinstance(rows, Dataset):
        draft.documents = len(rows)
        most = min(SHARD_ROWS, max(1, SHARD_BYTES // shards.bytes_per_document(draft.code)))
        draft.tasks = max(min(workers, len(rows)), -(-len(rows) // most))
    else:
        known = (rows.info.splits or {}).get(draft.split)
        draft.documents, draft.tasks = getattr(known, "num_examples", None), max(1, rows.num_shards)
    draft.save(path)
    return draft


def _calibration(table: Table, plan: EncodePlan, embedder: Embedder) -> np.ndarray:
    """The ranges of int8, of texts from all over the data set, a few of them in memory at a time."""
    rows = spread(table, [plan.text_column], CALIBRATED)
    read = (row[plan.text_column] or "" for row in rows)
    windows = iter(lambda: list(islice(read, 64)), [])
    found = np.concatenate([vectors for _, vectors, _ in embedded_windows(embedder, windows, plan.batch_tokens)])
    kept = found[found.any(1)]
    return calibration(kept if len(kept) else np.array([[-1.0], [1.0]]).repeat(shards.width(plan.code), 1))


def _ranges_of(folder: str | os.PathLike) -> str:
    code = open_shards(folder).code
    if code.calibration is None:
        raise ValueError(f"ranges_from must be a corpus of precision 'int8', {folder} is {code.precision!r}")
    return code.calibration


def _check_ours(folder: Path) -> None:
    """ValueError for a folder of something else, before anything in it is touched."""
    foreign = min((each.name for each in folder.iterdir() if not each.name.startswith(".")), default=None)
    if foreign is not None and not (folder / PLAN_FILE).is_file():
        raise ValueError(f"{folder} holds {foreign} and no {PLAN_FILE}; choose another --output_dir, of its own")


def _check_columns(table: Table, plan: EncodePlan) -> None:
    table.check_texts(plan.text_column, "text_column")
    if plan.id_column is not None:
        table.check_column(plan.id_column, "id_column")
    twice = next((name for name in plan.columns if plan.columns.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"columns has {twice!r} more than once")
    for name in plan.columns:
        table.check_column(name, "columns")
        if name in shards.RESERVED:
            raise ValueError(f"columns cannot have {name!r}, which shards have already; rename it, or give id_column")


def _sample(table: Table, plan: EncodePlan) -> list[dict[str, Any]]:
    """Rows by which a data set is known again, and from which its types are read."""
    return list(spread(table, columns_of(plan), SAMPLED))


def _schema(table: Table, plan: EncodePlan) -> pa.Schema:
    """Of the columns that are kept."""
    if table.rows.features is not None:
        whole = table.rows.features.arrow_schema
        return pa.schema([pa.field(name, whole.field(name).type) for name in plan.columns])
    return pa.Table.from_pylist(_sample(table, plan)).select(plan.columns).schema


def _word_facts(words: str | os.PathLike, entries: int | None) -> WordFacts:
    if entries is not None and entries < 1:
        raise ValueError(f"word_entries must be at least 1, got {entries}")
    weights = kept_words(os.fspath(words))
    return WordFacts(
        digest=hashlib.sha256(Path(words).read_bytes()).hexdigest()[:16],
        entries=entries or entries_in(WORD_BYTES),
        columns=len(weights.idf),
    )


# ------------------------------------------------------------------------------------------------------------- running


@contextlib.contextmanager
def _watching(folder: Path, plan: EncodePlan, before: Counts) -> Iterator[None]:
    """A bar of what all tasks have done; documents/s and time left are the bar's, tokens/s ours."""
    stop, started = threading.Event(), time.perf_counter()
    bar = progress(total=plan.documents, initial=before.documents, desc="Encoding", unit="document", unit_scale=True)

    def look() -> None:
        while not stop.wait(SECONDS_BETWEEN_LOOKS):
            documents = tokens = 0
            for path in (folder / PROGRESS_FOLDER).glob("*.json"):
                with contextlib.suppress(ValueError, OSError):  # it is being written
                    found = json.loads(path.read_text())
                    documents, tokens = documents + found["documents"], tokens + found["tokens"]
            rate = (tokens - before.tokens) / (time.perf_counter() - started)
            bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
            bar.update(max(0, documents - bar.n))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
        bar.close()


def _encoded(folder: Path, plan: EncodePlan) -> Counts:
    """Of the shards that are done; what a killed task has said of itself is forgotten."""
    counts = Counts()
    for rank in range(plan.tasks):
        path = folder / DATA_FOLDER / SHARD_NAME.format(rank)
        if path.is_file():
            counts += shards.read_facts(path)[1]
        else:
            (folder / PROGRESS_FOLDER / f"{rank:05d}.json").unlink(missing_ok=True)
    return counts


def _forget_broken(folder: Path, plan: EncodePlan) -> None:
    """Shards that cannot be read, and marks of shards that are gone, so that they are made again.

    Raises:
        ValueError: a shard of another model, or a parquet file that is none of the plan's.
    """
    names = {SHARD_NAME.format(rank): rank for rank in range(plan.tasks)}
    for path in (folder / DATA_FOLDER).glob("*.parquet"):
        if path.name not in names:
            raise ValueError(f"{path} is no shard of this folder's plan; take it out")
        try:
            code, _ = shards.read_facts(path)
        except ValueError as error:
            if "is broken" not in str(error):
                raise
            path.unlink()
            continue
        shards.check_same(plan.code, code, str(folder / PLAN_FILE), str(path))
    for name, rank in names.items():
        if not (folder / DATA_FOLDER / name).is_file():
            (folder / STATE_FOLDER / "completions" / f"{rank:05d}").unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    for name in (DATA_FOLDER, STATE_FOLDER, INDEX_FOLDER):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (PLAN_FILE, RESULT_FILE, CARD_FILE, WORDS_FILE):
        (folder / name).unlink(missing_ok=True)


def _finished(folder: Path, plan: EncodePlan, before: Counts, seconds: float, workers: int) -> EncodeResult:
    found = open_shards(folder)
    if plan.id_column is not None:
        check_ids(found.files)
    done = found.counts.documents - before.documents
    path = folder / RESULT_FILE
    if not done and path.is_file():
        return EncodeResult.load(path)
    result = EncodeResult(
        plan=plan,
        documents=found.counts.documents,
        empty=found.counts.empty,
        tokens=found.counts.tokens,
        bytes=sum(file.stat().st_size for file in found.files),
        seconds=seconds,
        documents_per_second=done / seconds if done else None,
        tokens_per_second=(found.counts.tokens - before.tokens) / seconds if done else None,
        workers=workers,
    )
    write_atomically(folder / CARD_FILE, corpus_card(result))
    result.save(path)
    result.folder = folder
    return result


def check_ids(files: Sequence[Path]) -> None:
    """ValueError for an id that two documents have; 8 bytes of memory a document."""
    hashes: list[np.ndarray] = []
    for table in shards.read_tables(files, ["id"]):
        digests = (hashlib.blake2b(each.encode(), digest_size=8).digest() for each in table["id"].to_pylist())
        hashes.append(np.frombuffer(b"".join(digests), np.uint64))
    values, counts = np.unique(np.concatenate(hashes), return_counts=True) if hashes else (np.empty(0), np.empty(0))
    twice = set(values[counts > 1].tolist())
    seen: dict[str, Path] = {}
    for path in files if twice else ():
        for table in shards.read_tables([path], ["id"]):
            for each in table["id"].to_pylist():
                if int.from_bytes(hashlib.blake2b(each.encode(), digest_size=8).digest(), sys.byteorder) not in twice:
                    continue
                if each in seen:
                    raise ValueError(
                        f"id {each!r} is in {seen[each]} and again in {path}: ids must be unique. Give another "
                        "id_column, or none, and encode with overwrite"
                    )
                seen[each] = path


def corpus_card(result: EncodeResult) -> str:
    """README.md of an encoded corpus: its files as a data set, and what its vectors are."""
    plan, code = result.plan, result.plan.code
    rows = {
        "model": code.model,
        "revision": code.revision or "not on the Hub",
        "weights (SHA-256)": code.digest,
        "vectors": f"{code.output}, {' x '.join(map(str, code.shape))}, {code.precision}, of unit length",
        "longest text": f"{code.max_length:,} tokens",
        "words": "none" if code.words is None else f"{code.words.entries:,} entries, table {code.words.digest}",
        "source": f"{plan.dataset}, split {plan.split}, column {plan.text_column}",
        "documents": f"{result.documents:,}, of them {result.empty:,} empty",
        "tokens": f"{result.tokens:,}",
        "bytes": f"{result.bytes:,}",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    # A name of its own, since `load_dataset` keeps what it has read of a local folder under the configuration's name.
    name = hashlib.sha256(json.dumps(result.as_dict(), sort_keys=True).encode()).hexdigest()[:8]
    base = f"source_datasets:\n- {plan.dataset}\n" if is_hub_id(plan.dataset) else ""
    return f"""---
configs:
- config_name: encoded-{name}
  data_files:
  - split: {plan.split}
    path: {DATA_FOLDER}/*.parquet
tags:
- embeddings
- concept-encoder
{base}---

# {plan.dataset}, encoded with {code.model}

| | |
| --- | --- |
{table}

A text without words has a vector of zeros. {_HOW_TO_READ[code.precision]}

```python
from datasets import load_dataset
import concept_encoder as ce

rows = load_dataset("{{this repository}}", split="{plan.split}")
hits = ce.search("folder of a download", "a question")
```
"""
