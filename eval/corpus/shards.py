"""Shards of an encoded corpus: parquet files that say themselves what their vectors are.

A shard has a row for each document: `id`, the columns that were kept, `vector` as a list of fixed size, `scale` where
the precision needs one, and with words `word_ids` and `word_weights`.
"""

import base64
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp

from ...utils.results import CodeFacts, WordFacts
from .precision import DTYPES, SCALED, quantized, restored, stored_width
from .words import WordWeights

METADATA = b"concept_encoder"
DATA_FOLDER = "data"
SHARD_NAME = "{:05d}.parquet"
STATE_FOLDER = ".datatrove"  # hidden, so that `load_dataset` does not take its files for data
PROGRESS_FOLDER = f"{STATE_FOLDER}/progress"
# Next to the shards.
PLAN_FILE, RESULT_FILE, WORDS_FILE, CARD_FILE = "plan.json", "encode.json", "words.safetensors", "README.md"
RESERVED = ("id", "vector", "scale", "word_ids", "word_weights")  # columns of every shard
_BROKEN = (pa.ArrowException, OSError)


@dataclass(frozen=True)
class Counts:
    """Of the documents of a shard, or of some."""

    documents: int = 0
    empty: int = 0
    tokens: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.documents + other.documents, self.empty + other.empty, self.tokens + other.tokens)


@dataclass(frozen=True)
class Shards:
    """The shards of a folder, checked to be of one kind."""

    files: list[Path]
    code: CodeFacts
    counts: Counts


def width(code: CodeFacts) -> int:
    """Numbers of a vector."""
    return int(np.prod(code.shape))


def ranges(code: CodeFacts) -> np.ndarray | None:
    """(2, D) calibration of int8."""
    if code.calibration is None:
        return None
    return np.frombuffer(base64.b64decode(code.calibration), np.float32).reshape(2, -1)


def as_text(calibration: np.ndarray) -> str:
    return base64.b64encode(calibration.astype(np.float32).tobytes()).decode()


def bytes_per_document(code: CodeFacts) -> int:
    """Of vector and words, before any compression."""
    stored = stored_width(width(code), code.precision) * np.dtype(DTYPES[code.precision]).itemsize
    return stored + 4 * (code.precision in SCALED) + (0 if code.words is None else 6 * code.words.entries)


def document_table(
    code: CodeFacts,
    ids: Sequence[str],
    columns: dict[str, pa.Array],
    vectors: np.ndarray,
    words: sp.csr_matrix | None = None,
) -> pa.Table:
    """Rows of a shard.

    Args:
        code: what the vectors are.
        ids: of n documents.
        columns: that are kept, n values each.
        vectors: (n, D) float32 of unit length, or zeros.
        words: (n, columns) with words.
    """
    codes, scales = quantized(vectors, code.precision, ranges(code))
    return pa.table({"id": pa.array(ids, pa.string()), **columns, **code_columns(codes, scales, words)})


def code_columns(codes: np.ndarray, scales: np.ndarray | None, words: sp.csr_matrix | None) -> dict[str, pa.Array]:
    """Columns of vectors as they are stored, and of words."""
    columns = {"vector": pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), codes.shape[1])}
    if scales is not None:
        columns["scale"] = pa.array(scales)
    if words is not None:
        offsets = pa.array(words.indptr.astype(np.int32))
        columns["word_ids"] = pa.ListArray.from_arrays(offsets, pa.array(words.indices.astype(np.int32)))
        columns["word_weights"] = pa.ListArray.from_arrays(offsets, pa.array(words.data.astype(np.float16)))
    return columns


@contextmanager
def shard_writer(path: Path, code: CodeFacts) -> Iterator["ShardWriter"]:
    """A shard to write tables into, which gets its name when all is in it and on the disk.

    When the block raises nothing is left of it, and a kill leaves a file whose name begins with a dot: the next one of
    the same name replaces it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            writer = ShardWriter(file, code)
            try:
                yield writer
            except BaseException:
                writer.abandon()
                raise
            writer.close()
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class ShardWriter:
    """Tables of `document_table` into one file; what it counts goes into the file's metadata."""

    def __init__(self, file: Any, code: CodeFacts):
        self.file, self.code, self.counts = file, code, Counts()
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table, counts: Counts) -> None:
        self.counts += counts
        with _disk_named(self.file.name):
            self._write(table)

    def _write(self, table: pa.Table) -> None:
        if self._writer is None:
            options: dict[str, Any] = {"compression": "zstd", "use_dictionary": False, "write_statistics": ["id"]}
            options["write_page_checksum"] = True  # what compression cannot shrink it stores, and would not check
            self._writer = pq.ParquetWriter(self.file, table.schema, **options)
        self._writer.write_table(table)

    def close(self) -> None:
        if self._writer is None:  # no document: a shard without rows, so that none is missing
            nothing = np.zeros((0, width(self.code)), np.float32)
            words = None if self.code.words is None else sp.csr_matrix((0, self.code.words.columns), dtype=np.float32)
            self.write(document_table(self.code, [], {}, nothing, words), Counts())
        assert self._writer is not None
        content = {"code": asdict(self.code), "counts": asdict(self.counts)}
        with _disk_named(self.file.name):
            self._writer.add_key_value_metadata({METADATA: json.dumps(content, sort_keys=True).encode()})
            self._writer.close()
            self.file.flush()
            os.fsync(self.file.fileno())

    def abandon(self) -> None:
        """Close what will be removed, whatever state it is in."""
        with suppress(Exception):
            if self._writer is not None:
                self._writer.close()


@contextmanager
def _disk_named(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        said = " ".join(str(error).split())
        raise OSError(
            f"{path} could not be written: {said}. Shards that are done stay: make room, and run it again"
        ) from error


# ------------------------------------------------------------------------------------------------------------- reading


def read_facts(path: Path) -> tuple[CodeFacts, Counts]:
    """What the vectors of a shard are, and how many; ValueError for a file that is broken or no shard."""
    try:
        metadata = pq.read_metadata(path).metadata or {}
    except FileNotFoundError:
        raise
    except _BROKEN as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{path} is broken: {said}; remove it and run `concept-encoder encode` again") from error
    if METADATA not in metadata:
        raise ValueError(f"{path} is no shard of an encoded corpus; `concept-encoder encode` writes them")
    try:
        content = json.loads(metadata[METADATA])
        words = content["code"]["words"]
        code = CodeFacts(**{**content["code"], "words": None if words is None else WordFacts(**words)})
        return code, Counts(**content["counts"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} was written by another version ({error}); encode it again") from error


def open_shards(folder: str | os.PathLike) -> Shards:
    """The shards of a folder that `encode` wrote, of one shard, or of a folder of shards.

    Raises:
        FileNotFoundError: no shards there.
        ValueError: a shard that is broken or none; shards of different models or precisions.
    """
    path = Path(folder)
    if path.is_file():
        files = [path]
    else:
        files = sorted((path / DATA_FOLDER if (path / DATA_FOLDER).is_dir() else path).glob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"{path} holds no shards; `concept-encoder encode` writes them")
    facts = [read_facts(file) for file in files]
    code = facts[0][0]
    for file, (other, _) in zip(files, facts, strict=True):
        check_same(code, other, str(files[0]), str(file))
    return Shards(files, code, sum((counts for _, counts in facts), Counts()))


def check_same(code: CodeFacts, other: CodeFacts, where: str, elsewhere: str) -> None:
    """ValueError, naming what differs, unless vectors of both can be searched together."""
    own, its = asdict(code), asdict(other)
    differing = [name for name in own if own[name] != its[name]]
    if differing:
        if differing == ["calibration"]:
            raise ValueError(
                f"{elsewhere} and {where} were rounded to int8 with ranges of their own texts, so their codes do not "
                "compare: encode one of them again with ranges_from the other"
            )
        name = differing[0]
        first, second = (f"{name} {short(each[name])}" for each in (own, its))
        raise ValueError(
            f"{elsewhere} is of {other.model} ({second}), {where} of {code.model} ({first}); "
            "vectors of different models or precisions are never mixed: keep them in folders of their own"
        )


def read_tables(files: Sequence[Path], columns: Sequence[str] | None = None, rows: int = 8_192) -> Iterator[pa.Table]:
    """Rows of shards in their order, some at a time; ValueError for a shard that is broken inside."""
    for path in files:
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                for batch in file.iter_batches(rows, columns=columns):
                    yield pa.Table.from_batches([batch])
        except _BROKEN as error:
            said = " ".join(str(error).split())
            raise ValueError(f"{path} is broken: {said}; remove it and run `concept-encoder encode` again") from error


def stored_vectors(table: pa.Table, code: CodeFacts) -> tuple[np.ndarray, np.ndarray | None]:
    """(n, stored width) codes as they are in the shard, and their (n,) scales, None where they need none."""
    values = table["vector"].combine_chunks()
    values = values if isinstance(values, pa.Array) else pa.concat_arrays(values.chunks)
    codes = values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), -1)
    scales = table["scale"].to_numpy() if code.precision in SCALED else None
    return codes, scales


def vectors(table: pa.Table, code: CodeFacts) -> np.ndarray:
    """(n, D) float32 vectors of rows of a shard."""
    codes, scales = stored_vectors(table, code)
    return restored(codes, code.precision, width(code), scales, ranges(code))


def words(table: pa.Table, columns: int) -> sp.csr_matrix:
    """(n, columns) float32 words of rows of a shard."""
    ids, weights = (table[name].combine_chunks() for name in ("word_ids", "word_weights"))
    offsets = ids.offsets.to_numpy()
    content = (weights.flatten().to_numpy().astype(np.float32), ids.flatten().to_numpy(), offsets - offsets[0])
    return sp.csr_matrix(content, (len(ids), columns))


@lru_cache(maxsize=1)
def kept_words(path: str) -> WordWeights:
    """The weights in a file, read once in a process."""
    return WordWeights.load(path)


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
