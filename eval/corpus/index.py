"""An index over the shards of a corpus: exact search first, an approximate graph and BM25 on request.

An index is a folder of segments, which never change, and `index.json`, which names those that count. A change makes
new segments and then replaces that file: a change that is killed leaves the index as it was.

    index.json
    deleted-GENERATION.npz        rows of each segment that are no longer found
    bm25-GENERATION/              as bm25s writes it, over all segments
    words.safetensors             weights of words, for queries
    segments/NAME/documents.arrow ids and columns
    segments/NAME/codes.npy       (n, w) vectors as they are in the shards, and scales.npy
    segments/NAME/words-*.npy     an inverted file: of each word its documents and weights
    segments/NAME/graph.usearch   approximate neighbours
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
import torch

from ...utils.files import alone_in, sync_folder
from ...utils.progress import progress
from ...utils.results import ApproximateFacts, CodeFacts, EncodePlan, IndexFacts, SegmentFacts
from . import shards
from .precision import SCALED, restored
from .shards import PLAN_FILE, WORDS_FILE, check_same, open_shards, read_tables
from .words import WordWeights

INDEX_FILE, INDEX_FOLDER, SEGMENTS = "index.json", "index", "segments"
SEGMENT_ROWS = 2**16  # of a segment: what is sorted in memory while it is built
BLOCK_NUMBERS = 2**24  # of vectors that are unpacked at a time, 64 MiB
ASKED = 256  # documents by which the recall of a graph is measured
NEAREST = 10
BLANK = -2  # score of a text without a vector, below any cosine, which rounding takes a little beyond -1
OVERSAMPLED = 4  # times as many are taken from a graph, whose vectors may be rounded, and scored exactly


@dataclass(frozen=True)
class Found:
    """Rows of an index and their scores, best first.

    Attributes:
        rows: (q, k) numbers of documents, -1 where there are fewer.
        scores: (q, k).
    """

    rows: np.ndarray
    scores: np.ndarray


class Segment:
    """Documents that were added together, in files that are mapped into memory."""

    def __init__(self, folder: Path, code: CodeFacts):
        self.folder, self.code = folder, code

    @cached_property
    def documents(self) -> pa.Table:
        return pa.ipc.open_file(pa.memory_map(str(self.folder / "documents.arrow"))).read_all()

    @cached_property
    def _codes(self) -> np.ndarray:
        return np.load(self.folder / "codes.npy", mmap_mode="r")

    @cached_property
    def _scales(self) -> np.ndarray | None:
        return np.load(self.folder / "scales.npy") if self.code.precision in SCALED else None

    @cached_property
    def words(self) -> sp.csr_matrix | None:
        """(columns, n): of each word its documents."""
        if self.code.words is None:
            return None
        data, indices, indptr = (
            np.load(self.folder / f"words-{name}.npy", mmap_mode="r") for name in ("data", "indices", "indptr")
        )
        return sp.csr_matrix((data, indices, indptr), (self.code.words.columns, len(self)), copy=False)

    @cached_property
    def graph(self) -> Any:
        return _usearch().restore(str(self.folder / "graph.usearch"), view=True)

    def __len__(self) -> int:
        return len(self._codes)

    def vectors(self, rows: slice | np.ndarray) -> np.ndarray:
        """(n, D) float32 of some rows."""
        scales = None if self._scales is None else self._scales[rows]
        codes = np.ascontiguousarray(self._codes[rows])
        return restored(codes, self.code.precision, shards.width(self.code), scales, shards.ranges(self.code))

    def rows(self, rows: np.ndarray) -> pa.Table:
        """Some rows as they were in the shard."""
        scales = None if self._scales is None else self._scales[rows]
        words = None if self.words is None else self.words[:, rows].T.tocsr()
        table = self.documents.take(rows)
        for name, column in shards.code_columns(np.ascontiguousarray(self._codes[rows]), scales, words).items():
            table = table.append_column(name, column)
        return table

    def blocks(self) -> Iterator[slice]:
        size = max(1, BLOCK_NUMBERS // shards.width(self.code))
        for start in range(0, len(self), size):
            yield slice(start, min(len(self), start + size))


class Index:
    """The documents of a corpus, to be searched: `Index.build`, `Index.open`.

    Attributes:
        folder: where it is.
        facts: what `index.json` says.
    """

    def __init__(self, folder: Path, facts: IndexFacts):
        self.folder, self.facts = folder, facts
        self.segments = [Segment(folder / SEGMENTS / each.name, facts.code) for each in facts.segments]
        self.starts = np.cumsum([0, *(each.documents for each in facts.segments)])

    # -------------------------------------------------------------------------------------------------------- changes

    @classmethod
    def build(
        cls,
        encoded: str | os.PathLike,
        folder: str | os.PathLike | None = None,
        *,
        approximate: bool = False,
        bm25: str | None = None,
        overwrite: bool = False,
    ) -> "Index":
        """A new index of a folder that `encode` wrote.

        Args:
            encoded: folder of shards.
            folder: of the index; None: `index` in the folder of shards.
            approximate: build a graph of neighbours too, and measure its recall; needs the extra `ann`.
            bm25: column of texts that BM25 counts.
            overwrite: replace the index that is there.

        Raises:
            FileNotFoundError: no shards.
            ValueError: an index is there already; shards that are broken or of different models; ids that are not
                unique; no such column.
        """
        found = open_shards(encoded)
        home = Path(folder) if folder is not None else Path(encoded) / INDEX_FOLDER
        if (home / INDEX_FILE).exists() and not overwrite:
            raise ValueError(f"{home} holds an index already; --add to it, or --overwrite it")
        plan = Path(encoded) / PLAN_FILE
        facts = IndexFacts(
            generation=_generation(home),
            code=found.code,
            checkpoint=EncodePlan.load(plan).checkpoint if plan.is_file() else None,
            segments=[],
            deleted=0,
            bm25=bm25,
            approximate=ApproximateFacts(recall_at_10=None, queries=0) if approximate else None,
        )
        with _changing(home):
            if found.code.words is not None:
                shutil.copyfile(_words_file(Path(encoded)), home / WORDS_FILE)
            return cls(home, facts)._changed(read_tables(found.files), [])

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "Index":
        """The index of a folder; FileNotFoundError where there is none, ValueError for a broken one."""
        path = Path(folder) / INDEX_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no index; `concept-encoder search FOLDER --build` makes one")
        return cls(Path(folder), IndexFacts.load(path))

    def add(self, encoded: str | os.PathLike, instead_of: Iterable[str] = ()) -> "Index":
        """The index with the documents of another folder of shards.

        Args:
            encoded: folder of shards.
            instead_of: ids of documents that the new ones replace; they are deleted in the same change, so that a
                fault or a kill leaves them in.

        Raises:
            ValueError: shards of another model or precision; an id that is there already; one to be replaced that is
                not.
        """
        found = open_shards(encoded)
        check_same(self.facts.code, found.code, f"the index {self.folder}", str(encoded))
        with _changing(self.folder):
            return self._changed(read_tables(found.files), self._without(instead_of))

    def delete(self, ids: Iterable[str]) -> "Index":
        """The index without the documents of these ids; ValueError for an id that is not there."""
        with _changing(self.folder):
            return self._written(self.facts.segments, self._without(ids))

    def _without(self, ids: Iterable[str]) -> list[np.ndarray]:
        """Rows of each segment that are deleted when these ids are too."""
        wanted = pa.array(sorted(set(ids)), pa.string())
        deleted, seen = [], set()
        for place, segment in enumerate(self.segments):
            rows = np.flatnonzero(pc.is_in(segment.documents["id"], wanted).to_numpy(zero_copy_only=False))
            rows = np.setdiff1d(rows, self.deleted[place])
            seen |= set(segment.documents["id"].take(rows).to_pylist())
            deleted.append(np.union1d(self.deleted[place], rows))
        missing = sorted(set(wanted.to_pylist()) - seen)
        if missing:
            raise ValueError(f"{len(missing)} of the ids are not in {self.folder}, the first is {missing[0]!r}")
        return deleted

    def compact(self) -> "Index":
        """The index in as few segments as can be, without what was deleted."""

        def left() -> Iterator[pa.Table]:
            for segment, rows in zip(self.segments, self.deleted, strict=True):
                kept = _others(len(segment), rows)
                for start in range(0, len(kept), 8_192):
                    yield segment.rows(kept[start : start + 8_192])

        with _changing(self.folder):
            emptied = Index(self.folder, replace(self.facts, segments=[], deleted=0))
            return emptied._changed(left(), [])

    def _changed(self, tables: Iterable[pa.Table], deleted: list[np.ndarray]) -> "Index":
        """With the rows of tables of shards as new segments."""
        _drop_unnamed(self.folder)
        known = [segment.documents["id"] for segment in self.segments]
        known = [each.take(_others(len(each), rows)) for each, rows in zip(known, deleted, strict=True)]
        segments = list(self.facts.segments)
        for place, rows in enumerate(_grouped(tables, SEGMENT_ROWS)):
            _check_unique(rows["id"], known)
            known.append(rows["id"])
            name = f"{self.facts.generation + 1:06d}-{place:04d}"
            _write_segment(self.folder / SEGMENTS / name, rows, self.facts.code, self.facts.approximate is not None)
            segments.append(SegmentFacts(name=name, documents=len(rows)))
        return self._written(segments, [*deleted, *(np.empty(0, int) for _ in segments[len(deleted) :])])

    def _written(self, segments: list[SegmentFacts], deleted: list[np.ndarray]) -> "Index":
        """Make these what the index is, after all that belongs to them is on the disk."""
        generation = self.facts.generation + 1
        facts = replace(
            self.facts, generation=generation, segments=segments, deleted=sum(len(rows) for rows in deleted)
        )
        new = Index(self.folder, facts)
        self.folder.mkdir(parents=True, exist_ok=True)
        np.savez(self.folder / f"deleted-{generation}.npz", *deleted)
        if facts.bm25 is not None:
            new._count_words(self if segments == self.facts.segments else None)
        if facts.approximate is not None:
            facts.approximate = new._recall()
        sync_folder(self.folder)
        facts.save(self.folder / INDEX_FILE)
        _drop_unnamed(self.folder)
        return new

    def _count_words(self, same: "Index | None") -> None:
        """BM25 over all segments, or that of an index with the same ones."""
        target = self.folder / f"bm25-{self.facts.generation}"
        if same is not None:
            shutil.copytree(same.folder / f"bm25-{same.facts.generation}", target)
            return
        column = self.facts.bm25
        for segment in self.segments:
            if column not in segment.documents.column_names:
                raise ValueError(
                    f"bm25 {column!r} is no column of the shards; encode with --columns {column}. "
                    f"Columns: {', '.join(segment.documents.column_names)}"
                )
        texts = [each or "" for segment in self.segments for each in segment.documents[column].to_pylist()]
        counted = _bm25s().BM25()
        counted.index(word_tokens(texts), show_progress=False)
        counted.save(target, show_progress=False)

    def _recall(self) -> ApproximateFacts:
        """Of the graph against exact search, for documents in place of queries."""
        random = np.random.default_rng(0)
        rows = np.sort(random.choice(self.starts[-1], min(ASKED, int(self.starts[-1])), replace=False))
        if not len(rows):
            return ApproximateFacts(recall_at_10=None, queries=0)
        asked = self.vectors(rows)
        asked = asked[asked.any(1)]
        if not len(asked):
            return ApproximateFacts(recall_at_10=None, queries=0)
        exact = self.best(self.products(asked), len(asked), NEAREST).rows
        shares = []
        for query, wanted, found in zip(asked, exact, self.neighbours(asked, OVERSAMPLED * NEAREST), strict=True):
            found = found[found >= 0]
            scored = found[np.argsort(-(self.vectors(found) @ query), kind="stable")][:NEAREST]
            shares.append(len(set(wanted) & set(scored)) / max(1, (wanted >= 0).sum()))
        return ApproximateFacts(recall_at_10=float(np.mean(shares)), queries=len(asked))

    # --------------------------------------------------------------------------------------------------------- reading

    @cached_property
    def deleted(self) -> list[np.ndarray]:
        """Rows of each segment that are no longer found."""
        path = self.folder / f"deleted-{self.facts.generation}.npz"
        if not path.is_file():
            return [np.empty(0, int) for _ in self.segments]
        with np.load(path) as held:
            return [held[f"arr_{place}"] for place in range(len(self.segments))]

    @cached_property
    def is_deleted(self) -> np.ndarray:
        """(documents of all segments,)."""
        mask = np.zeros(self.starts[-1], bool)
        for start, rows in zip(self.starts, self.deleted, strict=False):
            mask[start + rows.astype(int)] = True
        return mask

    @cached_property
    def bm25(self) -> Any:
        if self.facts.bm25 is None:
            raise ValueError(f"{self.folder} has no BM25; build it with --bm25 COLUMN")
        folder = self.folder / f"bm25-{self.facts.generation}"
        again = f"count again: --build --overwrite --bm25 {self.facts.bm25}"
        package = _bm25s()
        try:
            counted = package.BM25.load(folder, mmap=True, show_progress=False)
        except Exception as error:  # of any class, from what reads JSON and arrays
            said = " ".join(str(error).split())
            raise ValueError(f"{folder} cannot be read, {type(error).__name__}: {said}; {again}") from error
        numbers, places, starts, documents = (
            counted.scores[name] for name in ("data", "indices", "indptr", "num_docs")
        )
        sizes = {len(numbers), len(places), int(starts[-1])}
        words = len(counted.vocab_dict) - ("" in counted.vocab_dict)  # which it adds, and never counts
        if documents != self.starts[-1] or len(sizes) > 1 or words != len(starts) - 1:
            raise ValueError(f"{folder} has files that do not belong together, or to these documents; {again}")
        return counted

    @cached_property
    def word_weights(self) -> WordWeights:
        if self.facts.code.words is None:
            raise ValueError(f"{self.folder} has no words; encode the corpus with --words FILE")
        return WordWeights.load(self.folder / WORDS_FILE)

    def place(self, row: int) -> tuple[Segment, int]:
        """Segment of a row of the index, and the row there."""
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.segments[number], int(row - self.starts[number])

    def document(self, row: int) -> dict[str, Any]:
        """Id and columns of a row."""
        segment, own = self.place(row)
        return segment.documents.slice(own, 1).to_pylist()[0]

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """(n, D) float32 of rows of the index."""
        out = np.empty((len(rows), shards.width(self.facts.code)), np.float32)
        for place, segment in enumerate(self.segments):
            mine = (rows >= self.starts[place]) & (rows < self.starts[place + 1])
            if mine.any():
                out[mine] = segment.vectors(rows[mine] - self.starts[place])
        return out

    def best(self, scores: Callable[[slice], np.ndarray], queries: int, k: int) -> Found:
        """The k documents of largest score for each query.

        Args:
            scores: of a slice of rows inside one segment, (n, queries).
            queries: how many.
            k: at most.
        """
        best = _Best(queries, k)
        for start, segment in zip(self.starts, self.segments, strict=False):
            for block in segment.blocks():
                rows = slice(int(start) + block.start, int(start) + block.stop)
                found = np.array(scores(rows), np.float32)
                found[self.is_deleted[rows]] = -np.inf
                best.add(rows.start, found)
        return best.found()

    def products(self, queries: np.ndarray) -> Callable[[slice | np.ndarray], np.ndarray]:
        """Scores of `best`: products of the vectors with (q, D) queries, exactly.

        They are cosines. A blank text has no vector and gets `BLANK`: it ranks below all others.
        """
        asked = torch.from_numpy(np.ascontiguousarray(queries.T))  # (D, q)

        def scores(rows: slice | np.ndarray) -> np.ndarray:
            if isinstance(rows, slice):
                segment, first = self.place(rows.start)
                own = segment.vectors(slice(first, first + rows.stop - rows.start))
            else:
                own = self.vectors(rows)
            found = (torch.from_numpy(own) @ asked).numpy()
            zero = np.flatnonzero((found == 0).all(1))
            found[zero[~own[zero].any(1)]] = BLANK
            return found

        return scores

    def neighbours(self, queries: np.ndarray, k: int) -> np.ndarray:
        """(q, k) rows that the graphs of the segments find, best first, -1 where there are fewer."""
        best = _Best(len(queries), k)
        for start, segment, gone in zip(self.starts, self.segments, self.deleted, strict=False):
            if not len(segment.graph):
                continue
            matches = segment.graph.search(queries, min(len(segment.graph), k + min(k, len(gone))))
            keys, distances = (np.atleast_2d(each) for each in (matches.keys, matches.distances))
            counts = np.asarray(getattr(matches, "counts", keys.shape[1]))
            missing = np.arange(keys.shape[1]) >= counts.reshape(-1, 1)
            rows = np.where(missing, 0, keys).astype(int) + int(start)
            scores = np.where(missing | self.is_deleted[rows], -np.inf, 1 - distances)
            best.keep(rows, scores)
        return best.found().rows

    def word_scores(self, queries: sp.csr_matrix) -> sp.csc_matrix:
        """(q, documents) products of words."""
        found = [queries @ segment.words for segment in self.segments]
        return sp.hstack(found).tocsc() if found else sp.csc_matrix((queries.shape[0], 0))


class _Best:
    """The k largest scores of each query among those that were added."""

    def __init__(self, queries: int, k: int):
        self.k = k
        self.rows = np.full((queries, 0), -1)
        self.scores = np.full((queries, 0), -np.inf, np.float32)

    def add(self, first: int, scores: np.ndarray) -> None:
        """(n, q) scores of rows from `first` on."""
        values, places = torch.from_numpy(scores).topk(min(self.k, len(scores)), dim=0)
        self.keep(places.numpy().T + first, values.numpy().T)

    def keep(self, rows: np.ndarray, scores: np.ndarray) -> None:
        """(q, m) more rows and their scores."""
        rows, scores = np.hstack([self.rows, rows]), np.hstack([self.scores, scores])
        order = np.argsort(-scores, axis=1, kind="stable")[:, : self.k]
        self.rows, self.scores = (np.take_along_axis(each, order, 1) for each in (rows, scores))

    def found(self) -> Found:
        return Found(np.where(np.isfinite(self.scores), self.rows, -1), self.scores)


# ------------------------------------------------------------------------------------------------------------ segments


def _write_segment(folder: Path, rows: pa.Table, code: CodeFacts, approximate: bool) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    codes, scales = shards.stored_vectors(rows, code)
    np.save(folder / "codes.npy", codes)
    if scales is not None:
        np.save(folder / "scales.npy", scales)
    if code.words is not None:
        inverted = shards.words(rows, code.words.columns).T.tocsr()
        for name in ("data", "indices", "indptr"):
            np.save(folder / f"words-{name}.npy", getattr(inverted, name))
    kept = rows.drop_columns([name for name in shards.RESERVED[1:] if name in rows.column_names])
    with pa.OSFile(str(folder / "documents.arrow"), "wb") as file, pa.ipc.new_file(file, kept.schema) as writer:
        writer.write_table(kept, max_chunksize=1024)
    if approximate:
        graph = _usearch()(ndim=shards.width(code), metric="ip", dtype="f32" if code.precision == "float32" else "f16")
        segment = Segment(folder, code)
        for start in range(0, len(segment), 1024):
            block = slice(start, min(len(segment), start + 1024))
            vectors = segment.vectors(block)
            kept = np.flatnonzero(vectors.any(1))  # those of blank texts are near nothing
            graph.add(block.start + kept, vectors[kept])
        graph.save(str(folder / "graph.usearch"))


def _grouped(tables: Iterable[pa.Table], most: int) -> Iterator[pa.Table]:
    """The same rows in tables of `most` rows, the last one shorter."""
    waiting: list[pa.Table] = []
    for table in progress(tables, desc="Indexing", unit="block", leave=False):
        waiting.append(table)
        while sum(map(len, waiting)) >= most:
            whole = pa.concat_tables(waiting)
            yield whole.slice(0, most).combine_chunks()
            waiting = [whole.slice(most)]
    if sum(map(len, waiting)):
        yield pa.concat_tables(waiting).combine_chunks()


def _others(size: int, rows: np.ndarray) -> np.ndarray:
    """Rows below `size` without these."""
    return np.setdiff1d(np.arange(size), rows)


def _check_unique(ids: pa.ChunkedArray, known: Sequence[pa.ChunkedArray]) -> None:
    """ValueError for an id that is twice among the new ones, or among those that are known."""
    counted = pc.value_counts(ids)
    twice = counted.filter(pc.greater(counted.field("counts"), 1)).field("values")
    for each in known if not len(twice) else ():
        twice = ids.filter(pc.is_in(ids, each.combine_chunks()))
        if len(twice):
            break
    if len(twice):
        raise ValueError(
            f"id {twice[0].as_py()!r} comes twice; ids are unique: delete it from the index first, or encode with "
            "another id_column"
        )


def _generation(folder: Path) -> int:
    path = folder / INDEX_FILE
    return IndexFacts.load(path).generation if path.is_file() else 0


@contextmanager
def _changing(folder: Path) -> Iterator[None]:
    """A change by one process at a time; what fails leaves nothing of itself."""
    with alone_in(folder):
        try:
            yield
        except BaseException as error:
            _drop_unnamed(folder)
            if not isinstance(error, OSError) or isinstance(error, FileNotFoundError):
                raise
            said = " ".join(str(error).split())
            raise OSError(
                f"{folder} could not be changed: {said}. It is as it was: make room, and try again"
            ) from error


def _drop_unnamed(folder: Path) -> None:
    """What an index that is whole does not name: old segments, and those of builds that did not end."""
    path = folder / INDEX_FILE
    named: set[str] = set()
    generation = None
    if path.is_file():
        facts = IndexFacts.load(path)
        named, generation = {each.name for each in facts.segments}, facts.generation
    for segment in (folder / SEGMENTS).glob("*"):
        if segment.name not in named:
            shutil.rmtree(segment)
    for each in [*folder.glob("deleted-*.npz"), *folder.glob("bm25-*")]:
        if each.stem != f"{each.stem.partition('-')[0]}-{generation}":
            shutil.rmtree(each) if each.is_dir() else each.unlink()


def _words_file(encoded: Path) -> Path:
    path = encoded / WORDS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{encoded} has shards with words and no {WORDS_FILE}, which weighs those of queries")
    return path


# ------------------------------------------------------------------------------------------------------ other packages


def word_tokens(texts: Sequence[str]) -> Any:
    """Words as BM25 counts them: lower case, without the commonest of English."""
    return _bm25s().tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False)


def _bm25s() -> Any:
    try:
        import bm25s
    except ImportError as error:
        raise ValueError("BM25 needs bm25s: pip install 'concept-encoder[corpus]'") from error
    return bm25s


def _usearch() -> Any:
    try:
        from usearch.index import Index as Graph
    except ImportError as error:
        raise ValueError("an approximate index needs usearch: pip install 'concept-encoder[ann]'") from error
    return Graph
