"""What a retrieval score is compared with: BM25, codes of words without training, static tokens, other encoders.

A ranker scores every document for every query, in one exact product. Those that know nothing of the run are kept on
the disk by the texts that they read, so that the next run does not pay for them again.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import scipy.sparse as sp
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from sklearn.preprocessing import normalize
from transformers import PreTrainedTokenizerBase

from ...utils.files import write_atomically
from ...utils.progress import progress
from ..corpus.embedders import Role, embed_texts, load_embedder
from ..corpus.words import WordWeights, entries_in, heaviest

SIZES = (128, 1024, 4096)  # bytes of a text that codes of words are cut to
BM25 = ("bm25", "bm25_unstemmed", "bm25_word_pieces")
RECIPROCAL_OFFSET = 60  # of ranks that are fused
LARGEST = 2**28  # scores of one ranker: 1 GiB


@dataclass(frozen=True)
class Scored:
    """What a ranker gives for a collection."""

    scores: np.ndarray
    """(Q, N) float32"""
    seconds: float | None
    """of reading the documents, wall clock"""
    bytes_per_text: float | None
    """that it keeps of a document; None where that grows with its length"""


@dataclass(frozen=True)
class Ranker:
    """A way of scoring documents for queries.

    Attributes:
        name: in results and tables.
        description: a sentence.
        settings: all that decides the scores besides the texts; None: of the run, so never kept.
    """

    name: str
    description: str
    score: Callable[[Sequence[str], Sequence[str]], Scored] = field(repr=False)
    settings: Any = None


def kept(
    ranker: Ranker, queries: Sequence[str], documents: Sequence[str], cache_dir: str | os.PathLike | None = None
) -> Scored:
    """The scores of a ranker, from the disk where they are kept there; ValueError for too many of them at once."""
    if len(queries) * len(documents) > LARGEST:
        raise ValueError(
            f"{len(queries)} queries times {len(documents)} documents are more than {LARGEST} scores; give fewer "
            "queries in a task of your own"
        )
    if ranker.settings is None:
        return ranker.score(queries, documents)
    content = json.dumps([ranker.name, ranker.settings, digest_of(queries), digest_of(documents)])
    digest = hashlib.sha256(content.encode()).hexdigest()[:20]
    path = Path(cache_dir or default_cache(), f"{ranker.name}-{digest}.safetensors")
    try:
        with safe_open(path, "numpy") as file:
            facts = json.loads(file.metadata()["facts"])
            return Scored(file.get_tensor("scores"), facts["seconds"], facts["bytes_per_text"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):  # not there, or not whole: it is made again
        found = ranker.score(queries, documents)
    facts = json.dumps({"seconds": found.seconds, "bytes_per_text": found.bytes_per_text})
    write_atomically(path, save({"scores": found.scores}, {"facts": facts}))
    return found


def digest_of(texts: Sequence[str]) -> str:
    digest = hashlib.sha256(str(len(texts)).encode())
    for text in texts:
        digest.update(hashlib.sha256(text.encode("utf-8", "replace")).digest())
    return digest.hexdigest()


class Remembered:
    """What `encode` gives for texts, and the seconds that it took, not made again for the next ranker or task that has
    the same texts; of the last few."""

    def __init__(self, encode: Callable[..., Any], most: int = 4) -> None:
        self.encode, self.most = encode, most
        self.found: dict[tuple, tuple[Any, float]] = {}

    def __call__(self, texts: Sequence[str], *options: Any) -> tuple[Any, float]:
        key = digest_of(texts), *options
        if key not in self.found:
            start = time.perf_counter()
            made = self.encode(texts, *options)
            self.found[key] = made, time.perf_counter() - start
            while len(self.found) > self.most:
                del self.found[next(iter(self.found))]
        return self.found[key]


def default_cache() -> Path:
    return Path(datasets.config.HF_CACHE_HOME, "concept-encoder", "retrieval")


def cosines(queries: Any, documents: Any) -> np.ndarray:
    """(Q, N) float32 products of rows of unit length, dense or sparse."""
    product = queries @ documents.T
    return np.asarray(product.toarray() if sp.issparse(product) else product, dtype=np.float32)


# ---------------------------------------------------------------------------------------------------------------- BM25


def bm25(name: str, weights: WordWeights) -> Ranker:
    """BM25 with the statistics of the corpus searched, k1 = 1.5, b = 0.75, idf as in Lucene.

    Args:
        name: one of `BM25`.
        weights: whose tokenizer cuts the texts of "bm25_word_pieces".

    Raises:
        ValueError: when called, where bm25s and PyStemmer are not installed.
    """
    words = "English stop words left out"
    analysers = {
        "bm25": f"words of two letters or more, {words}, Snowball stems",
        "bm25_unstemmed": f"words of two letters or more, {words}",
        "bm25_word_pieces": "word pieces of the words code, all of them",
    }

    def score(queries: Sequence[str], documents: Sequence[str]) -> Scored:
        try:
            import bm25s
            import Stemmer
        except ImportError as error:
            raise ValueError("BM25 is a baseline: pip install 'concept-encoder[retrieval]'") from error
        start = time.perf_counter()

        def tokens(texts: Sequence[str]) -> list[list[str]]:
            if name == "bm25_word_pieces":
                return [list(map(str, ids)) for ids in weights.tokenized(texts)]
            stemmer = Stemmer.Stemmer("english") if name == "bm25" else None
            return bm25s.tokenize(
                list(texts), stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False, allow_empty=False
            )

        index = bm25s.BM25()
        read = tokens(documents)
        if not any(read):
            return Scored(np.zeros((len(queries), len(documents)), np.float32), time.perf_counter() - start, None)
        index.index(read, show_progress=False)
        seconds = time.perf_counter() - start
        rows = [
            index.get_scores(known) if (known := [word for word in row if word and word in index.vocab_dict]) else None
            for row in tokens(queries)
        ]
        zero = np.zeros(len(documents), np.float32)
        scores = np.stack([zero if row is None else row for row in rows])
        return Scored(scores.astype(np.float32), seconds, None)

    settings: list[Any] = ["bm25s", _version("bm25s"), analysers[name]]
    if name == "bm25_word_pieces":
        settings.append(weights.digest)
    return Ranker(name, f"BM25 with the corpus's own statistics: {analysers[name]}", score, settings)


@cache
def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


# --------------------------------------------------------------------------------------------------- codes of words


def untrained_codes(words: WordWeights) -> list[Ranker]:
    """`words_codes` and `sketches`, of texts that are read once."""
    read = Remembered(lambda texts, pairs: words.encode(texts, pairs=pairs))
    return [*words_codes(words, read), *sketches(words, read)]


def words_codes(words: WordWeights, read: Remembered, sizes: Iterable[int] = SIZES) -> list[Ranker]:
    """The heaviest word pieces, and word pieces with pairs, cut to each of some sizes in bytes, and whole."""
    digest = words.digest
    rankers = []
    for pairs, name, what in ((False, "words", "word pieces"), (True, "words_pairs", "word pieces and pairs")):
        for size in (*sizes, None):

            def score(queries, documents, pairs=pairs, size=size) -> Scored:
                asked, _ = read(queries, pairs)
                rows, seconds = read(documents, pairs)
                rows = rows if size is None else heaviest(rows, entries_in(size))
                return Scored(cosines(asked, rows), seconds, size)

            cut = "all" if size is None else f"the {entries_in(size):,} heaviest"
            title = name if size is None else f"{name}_{size}"
            rankers.append(Ranker(title, f"{cut} {what}, idf of the language, cosine; untrained", score, [digest]))
    return rankers


def sketches(words: WordWeights, read: Remembered) -> list[Ranker]:
    """Word pieces in random slots with random values, quantised: MUVERA's construction on word pieces, at `SIZES`.

    Source: Dhulipala et al. 2024, MUVERA, arXiv:2405.19504.
    Differs: slots by word piece and not by the direction of its vector; sums weighted by rarity; 1 or 2 bits a number.
    """
    shapes = ((128, 16, 1), (1024, 64, 2), (4096, 256, 2))
    rankers = []
    for size, slots, bits in shapes:

        def score(queries, documents, slots=slots, bits=bits) -> Scored:
            project = random_slots(words.vocab_size, slots, 64)
            start = time.perf_counter()
            (asked, _), (rows, seconds) = read(queries, False), read(documents, False)
            codes = quantized((rows @ project).toarray(), bits)
            seconds += time.perf_counter() - start
            return Scored(cosines(normalize((asked @ project).toarray()), codes), seconds, slots * 64 * bits / 8)

        text = f"random slots {slots} x 64 of word pieces, {bits} bit{'s' * (bits > 1)} a number; untrained"
        rankers.append(Ranker(f"random_slots_{size}", text, score, [words.digest, slots, bits]))
    return rankers


def random_slots(vocab_size: int, slots: int, size: int, seed: int = 0) -> sp.csr_matrix:
    """(V, slots * size): the row of each word piece is non-zero in one slot, with random numbers."""
    random = np.random.RandomState(seed)
    slot = random.randint(0, slots, vocab_size)
    columns = slot[:, None] * size + np.arange(size)
    values = random.randn(vocab_size, size) / math.sqrt(size)
    starts = np.arange(0, vocab_size * size + 1, size)
    return sp.csr_matrix((values.astype(np.float32).ravel(), columns.ravel(), starts), (vocab_size, slots * size))


def quantized(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes of unit length by the sign of each number, with two bits also whether it is beyond one standard
    deviation of its row, and then counts three times."""
    signs = np.sign(codes)
    if bits == 2:
        signs *= 1 + 2 * (np.abs(codes) > codes.std(1, keepdims=True))
    return normalize(signs)


# ------------------------------------------------------------------------------------------------------ static tokens


def token_means(table: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> list[Ranker]:
    """Static tokens of the run: the mean of their embeddings, and mean, largest and smallest side by side.

    Args:
        table: (V, E) token embeddings.
        tokenizer: of the run.
    """

    def encode(texts: Sequence[str]) -> np.ndarray:
        rows = np.zeros((len(texts), 3, table.shape[1]), np.float32)
        for start in range(0, len(texts), 64):
            some = list(texts[start : start + 64])
            for i, ids in enumerate(tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"], start):
                if ids:
                    distinct, counts = np.unique(ids, return_counts=True)
                    vectors = table[distinct]
                    rows[i] = counts @ vectors / len(ids), vectors.max(0), vectors.min(0)
        return rows

    read = Remembered(encode)

    def score(queries: Sequence[str], documents: Sequence[str], parts: int) -> Scored:
        (asked, _), (rows, seconds) = read(queries), read(documents)
        both = (normalize(each[:, :parts].reshape(len(each), -1)) for each in (asked, rows))
        return Scored(cosines(*both), seconds, parts * table.shape[1] * 4)

    return [
        Ranker("token_mean", "mean of the run's token embeddings, cosine", partial(score, parts=1)),
        Ranker("token_mean_max_min", "their mean, largest and smallest side by side", partial(score, parts=3)),
    ]


# ------------------------------------------------------------------------------------------------------ other encoders


def sentence_encoders(source: str) -> list[Ranker]:
    """Another encoder: each text cut at what it reads, and the best of all its chunks (MaxP).

    Args:
        source: folder or Hub id of a model of sentence-transformers, or of a checkpoint; code of its own is not run.

    Raises:
        FileNotFoundError, ValueError: as `load_embedder`.

    Source: MaxP, Dai & Callan 2019, arXiv:1905.09217.
    """
    embedder = load_embedder(source)
    name = Path(source).name

    def encode(texts: Sequence[str], role: Role) -> np.ndarray:
        starts = progress(range(0, len(texts), 256), desc=f"Encoding by {name}", unit="batch", leave=False)
        return np.concatenate([embed_texts(embedder, texts[i : i + 256], role) for i in starts])

    read = Remembered(encode)

    def score(queries: Sequence[str], documents: Sequence[str], whole: bool) -> Scored:
        pieces = chunks(documents, embedder.tokenizer, embedder.max_length)
        (asked, _), (rows, seconds) = read(queries, "query"), read([each[0] for each in pieces], "document")
        scores = asked @ rows.T
        owner = [i for i, each in enumerate(pieces) for _ in each[1:]]
        if whole and owner:
            rest, more = read([piece for each in pieces for piece in each[1:]], "document")
            seconds += more
            for i in range(0, len(owner), 4096):
                np.maximum.at(scores.T, owner[i : i + 4096], rest[i : i + 4096] @ asked.T)
        return Scored(scores.astype(np.float32), seconds, None if whole else rows.shape[1] * 4)

    def ranker(title: str, text: str, whole: bool) -> Ranker:
        return Ranker(title, f"{name}: {text}", partial(score, whole=whole), [name, embedder.digest, whole])

    return [
        ranker(name, "each text cut at what it reads", False),
        ranker(f"{name}_maxp", "the best of a text's chunks", True),
    ]


def chunks(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, longest: int) -> list[list[str]]:
    """Each text as consecutive pieces of at most `longest` tokens with the special ones."""
    size = longest - tokenizer.num_special_tokens_to_add()
    found = []
    for text in texts:
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
            "offset_mapping"
        ]
        starts = [offsets[i][0] for i in range(0, len(offsets), size)] or [0]
        found.append([text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)])
    return found


# -------------------------------------------------------------------------------------------------------------- fusion


def fused_ranks(*scores: np.ndarray) -> np.ndarray:
    """(Q, N) sums of 1 / (60 + rank) over rankers.

    Source: Cormack, Clarke & Büttcher 2009, Reciprocal Rank Fusion.
    """
    total = np.zeros_like(scores[0], dtype=np.float32)
    order = np.random.default_rng(0).permutation(scores[0].shape[1])
    for each in scores:
        places = order[np.argsort(-each[:, order], axis=1, kind="stable")]
        ranks = np.empty_like(places)
        np.put_along_axis(ranks, places, np.arange(places.shape[1])[None], axis=1)
        total += 1 / (RECIPROCAL_OFFSET + 1 + ranks)
    return total


def fused_scores(first: np.ndarray, second: np.ndarray, weight: float) -> np.ndarray:
    """(Q, N) first + weight * second, each brought to mean 0 and deviation 1 over the documents of a query."""
    return _standardised(first) + np.float32(weight) * _standardised(second)


def _standardised(scores: np.ndarray) -> np.ndarray:
    spread = scores.std(1, keepdims=True)
    return np.divide(scores - scores.mean(1, keepdims=True), spread, out=np.zeros_like(scores), where=spread > 0)
