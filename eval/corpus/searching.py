"""`search`: questions to the documents that answer them, by vectors, words and BM25, added or fused by rank."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from .embedders import Embedder, embed_texts, kept_embedder
from .index import INDEX_FILE, INDEX_FOLDER, OVERSAMPLED, Index, word_tokens

Source: TypeAlias = Literal["vectors", "words", "bm25"]
Fusion: TypeAlias = Literal["sum", "rank"]
SOURCES: tuple[str, ...] = get_args(Source)
FUSIONS: tuple[str, ...] = get_args(Fusion)
CANDIDATES = 100  # of each source, for ranks and for an approximate search
RANK_CONSTANT = 60  # of reciprocal ranks
WEIGHTS = np.linspace(0, 1, 11)  # that `choose_weights` tries
BESIDE = 0.2  # weight of vectors whose scores are added to others'; docs/LOG.md says what it was chosen by
QUERIES = 32  # that are asked together
SHOWN = 3  # concepts of a hit


@dataclass(frozen=True)
class Hit:
    """A document that was found.

    Attributes:
        id: of the document.
        score: by which it was ranked.
        parts: score of each source, before weights.
        concepts: for vectors of concepts, numbers of those that gave most of the product, and what each gave.
        document: its columns.
    """

    id: str
    score: float
    parts: dict[str, float]
    concepts: list[tuple[int, float]]
    document: dict[str, Any]

    @property
    def text(self) -> str:
        """The first of its columns that is one; empty without any."""
        return next((value for value in self.document.values() if isinstance(value, str)), "")


def search(
    index: str | os.PathLike | Index,
    queries: str | Sequence[str],
    *,
    k: int = 10,
    by: Sequence[Source] | None = None,
    fusion: Fusion = "sum",
    weights: Sequence[float] | None = None,
    approximate: bool = False,
    checkpoint: str | os.PathLike | None = None,
) -> list[list[Hit]]:
    """The k best documents for each query.

    Args:
        index: folder of an index, or of shards; of shards an index is built in their folder `index` the first time.
        queries: one text or several.
        k: documents for each.
        by: of vectors, words and bm25; None: vectors, and words where the shards have them.
        fusion: "sum" of the scores (bm25 divided by the best of the query), or "rank", reciprocal ranks.
        weights: of each of `by`; None: 1, and `BESIDE` of vectors whose scores are added to others'. `choose_weights`
            finds better ones.
        approximate: ask the graph and score what it finds, in place of all documents.
        checkpoint: that encodes the queries; None: the one that the corpus was encoded with.

    Returns:
        For each query its hits, best first: k, or as many as there are documents with a score.

    Raises:
        FileNotFoundError: no index or shards; a model that is not where it was.
        ValueError: a model with other weights than the index was built with; an option that is none.

    Source: Cormack et al. 2009, Reciprocal rank fusion, with its constant 60.
    """
    opened = index if isinstance(index, Index) else open_index(index)
    asked = [queries] if isinstance(queries, str) else list(queries)
    blank = next((place for place, query in enumerate(asked, 1) if not query.strip()), None)
    if blank is not None:
        raise ValueError(f"query {blank} of {len(asked)} is blank")
    sources = _sources(opened, by, fusion, weights, k)
    if approximate and opened.facts.approximate is None:
        raise ValueError(f"{opened.folder} has no graph of neighbours; --build it with --approximate, and --overwrite")
    if approximate and "vectors" not in sources:
        raise ValueError(f"approximate is for vectors, and the search is by {', '.join(sources)}")
    hits: list[list[Hit]] = []
    for start in range(0, len(asked), QUERIES):
        some = asked[start : start + QUERIES]
        hits += _Asked(opened, some, sources, checkpoint).hits(fusion, k, approximate)
    return hits


def open_index(folder: str | os.PathLike) -> Index:
    """The index of a folder, or of a folder of shards, where it is built if there is none."""
    path = Path(folder)
    for home in (path, path / INDEX_FOLDER):
        if (home / INDEX_FILE).is_file():
            return Index.open(home)
    return Index.build(path)


def choose_weights(
    index: Index,
    queries: Sequence[str],
    relevant: Sequence[Sequence[str]],
    by: Sequence[Source] = ("vectors", "words"),
    checkpoint: str | os.PathLike | None = None,
) -> tuple[float, float]:
    """Weights of two sources, which sum to 1, of the largest mean reciprocal rank at 10 on training queries.

    Args:
        index: of the documents.
        queries: not those that will be judged by.
        relevant: of each query, ids of its documents.
        by: two sources.
        checkpoint: as of `search`.

    Raises:
        ValueError: not two sources; no query.
    """
    if len(by) != 2 or not len(queries):
        raise ValueError(f"weights are chosen for two sources on at least one query, got {len(by)} and {len(queries)}")
    ranks = np.zeros(len(WEIGHTS))
    for place, weight in enumerate(WEIGHTS):
        found = search(index, queries, by=by, weights=(1 - weight, weight), checkpoint=checkpoint)
        for hits, ids in zip(found, relevant, strict=True):
            ranks[place] += next((1 / (rank + 1) for rank, hit in enumerate(hits) if hit.id in ids), 0.0)
    best = float(WEIGHTS[ranks.argmax()])
    return 1 - best, best


def query_embedder(index: Index, checkpoint: str | os.PathLike | None = None) -> Embedder:
    """The encoder of an index's queries, checked to be the one that its documents were encoded with."""
    source = os.fspath(checkpoint or index.facts.checkpoint or index.facts.code.model)
    try:
        return kept_embedder(source, index.facts.code)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}: it encodes the queries; say where it is now with --checkpoint") from error


def _sources(
    index: Index, by: Sequence[Source] | None, fusion: str, weights: Sequence[float] | None, k: int
) -> dict[str, float]:
    """Sources with their weights."""
    usual = ["vectors"] if index.facts.code.words is None else ["vectors", "words"]
    names: list[str] = usual if by is None else list(by)
    unknown = next((name for name in names if name not in SOURCES), None)
    if unknown is not None or not names:
        raise ValueError(f"by must be some of {', '.join(SOURCES)}, got {unknown!r}")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"by names {twice!r} more than once; weights say how much each counts")
    if fusion not in FUSIONS:
        raise ValueError(f"fusion must be one of {', '.join(FUSIONS)}, got {fusion!r}")
    if weights is not None and len(weights) != len(names):
        raise ValueError(f"weights must be one for each of {', '.join(names)}, got {len(weights)}")
    if weights is not None and not (np.isfinite(weights).all() and min(weights) >= 0 < max(weights)):
        raise ValueError(f"weights must be finite numbers from 0, not all 0, got {' '.join(map(str, weights))}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    added = fusion == "sum" and len(names) > 1
    return dict(zip(names, weights or [BESIDE if added and name == "vectors" else 1.0 for name in names], strict=True))


class _Asked:
    """Some queries, and what each source says of the documents."""

    def __init__(self, index: Index, texts: list[str], weights: dict[str, float], checkpoint: Any):
        self.index, self.count, self.weights = index, len(texts), weights
        self.scores: dict[str, Callable[[slice | np.ndarray], np.ndarray]] = {}  # of rows, (n, q)
        if "vectors" in weights:
            self.vectors = embed_texts(query_embedder(index, checkpoint), texts, "query")
            self.scores["vectors"] = index.products(self.vectors)
        if "words" in weights:
            words = index.word_scores(index.word_weights.encode(texts))
            self.scores["words"] = lambda rows: words[:, rows].T.toarray()
        if "bm25" in weights:
            counted = self._bm25(texts)
            self.scores["bm25"] = lambda rows: counted[rows]

    def _bm25(self, texts: list[str]) -> np.ndarray:
        """(documents, q), the best of each query 1."""
        scores = np.zeros((self.index.starts[-1], len(texts)), np.float32)
        for column, tokens in enumerate(word_tokens(texts)):
            known = [token for token in tokens if token in self.index.bm25.vocab_dict]
            if known:
                scores[:, column] = self.index.bm25.get_scores(known)
        best = scores.max(0, initial=0)
        return np.divide(scores, best, out=np.zeros_like(scores), where=best > 0)

    def summed(self, rows: slice | np.ndarray) -> np.ndarray:
        """(n, q) weighted sums."""
        return np.sum([weight * self.scores[name](rows) for name, weight in self.weights.items()], axis=0)

    def candidates(self, approximate: bool, most: int) -> dict[str, np.ndarray]:
        """(q, most) rows of each source alone, best first, -1 where there are fewer."""
        found = {}
        for name, scores in self.scores.items():
            if name == "vectors" and approximate:
                found[name] = self.index.neighbours(self.vectors, most)
                continue
            best = self.index.best(scores, self.count, most)
            found[name] = np.where((best.scores > 0) | (name == "vectors"), best.rows, -1)
        return found

    def ranked(self, fusion: str, k: int, approximate: bool) -> Iterator[list[tuple[int, float]]]:
        """Rows and scores of each query, best first."""
        if fusion == "sum" and not approximate:
            best = self.index.best(self.summed, self.count, k)
            yield from (
                list(zip(rows.tolist(), scores.tolist(), strict=True))
                for rows, scores in zip(best.rows, best.scores, strict=True)
            )
            return
        found = self.candidates(approximate, max(OVERSAMPLED * k, CANDIDATES))
        for query in range(self.count):
            sums: dict[int, float] = {}
            if fusion == "rank":
                for name, rows in found.items():
                    for rank, row in enumerate(rows[query].tolist()):
                        sums[row] = sums.get(row, 0.0) + self.weights[name] / (RANK_CONSTANT + rank + 1)
            else:
                rows = np.unique(np.concatenate([each[query] for each in found.values()]))
                rows = rows[rows >= 0]
                sums = dict(zip(rows.tolist(), self.summed(rows)[:, query].tolist(), strict=True))
            sums.pop(-1, None)
            yield sorted(sums.items(), key=lambda each: -each[1])[:k]

    def hits(self, fusion: str, k: int, approximate: bool) -> Iterator[list[Hit]]:
        if not self.index.starts[-1]:
            yield from ([] for _ in range(self.count))
            return
        for query, ranked in enumerate(self.ranked(fusion, k, approximate)):
            kept = [(row, score) for row, score in ranked if row >= 0 and (score > 0 or "vectors" in self.weights)]
            rows = np.array([row for row, _ in kept], int)
            parts = {name: scores(rows)[:, query] for name, scores in self.scores.items()} if kept else {}
            yield [
                self._hit(query, row, score, {name: float(each[place]) for name, each in parts.items()})
                for place, (row, score) in enumerate(kept)
            ]

    def _hit(self, query: int, row: int, score: float, parts: dict[str, float]) -> Hit:
        document = self.index.document(row)
        concepts: list[tuple[int, float]] = []
        code = self.index.facts.code
        if code.output == "concepts" and "vectors" in self.weights:
            shares = (self.index.vectors(np.array([row]))[0] * self.vectors[query]).reshape(code.shape).sum(1)
            concepts = [(int(place), float(shares[place])) for place in np.argsort(-shares)[:SHOWN]]
        return Hit(document.pop("id"), float(score), parts, concepts, document)
