"""Words code: the heaviest word pieces of a text, and pairs of neighbouring ones, weighted by how rare they are in the
language. Nothing in it is trained, and it never looks at the corpus that is searched.

A word piece weighs idf * log(1 + count in the text). With pairs, word pieces and hashed pairs both weigh that to the
power 0.8, pairs times 0.6. Rows have unit length, so that a product of two is their cosine.

`SparseStaticEmbedding` of sentence-transformers cannot do this: it weighs presence and not counts, knows no pairs, and
makes a dense row of the vocabulary for every text.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from safetensors import safe_open
from safetensors.numpy import save
from sklearn.preprocessing import normalize
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from ...trainers.weights.sketch import inverse_document_frequency
from ...utils.files import write_atomically
from ...utils.progress import progress

PAIRS = 2**20  # columns that pairs are hashed to
POWER, PAIR_WEIGHT = 0.8, 0.6  # where pairs are among the entries
BYTES_PER_ENTRY = 2.5  # a column and a weight
BATCH_SIZE = 64  # texts that are tokenized at a time
FORMAT = "concept-encoder words 1"


class WordWeights:
    """How rare word pieces and pairs of them are in a language, and texts as sparse rows weighted by it.

    Columns are the ids of the tokenizer, then `PAIRS` hashed pairs.

    Attributes:
        tokenizer: cuts texts into word pieces, without special tokens.
        idf: (vocabulary + PAIRS,) float32 inverse document frequencies.
    """

    def __init__(self, tokenizer: Tokenizer | PreTrainedTokenizerBase, idf: np.ndarray):
        self.tokenizer = _plain(tokenizer)
        self.vocab_size = max(self.tokenizer.get_vocab().values()) + 1
        if idf.shape != (self.vocab_size + PAIRS,) or not (np.isfinite(idf).all() and (idf >= 0).all()):
            raise ValueError(
                f"idf must be {self.vocab_size + PAIRS} finite numbers from 0, one for each id of the tokenizer and "
                f"{PAIRS} for pairs, got shape {idf.shape}"
            )
        self.idf = idf.astype(np.float32)

    @classmethod
    def fit(
        cls, texts: Iterable[str], tokenizer: Tokenizer | PreTrainedTokenizerBase, longest: int = 2048
    ) -> "WordWeights":
        """The weights of a language.

        Args:
            texts: what the language is like, never what is searched.
            tokenizer: a fast one.
            longest: word pieces of a text that count.

        Raises:
            ValueError: no texts with a word; a tokenizer that is not a fast one; longest below 1.

        Source: Robertson & Zaragoza 2009, The Probabilistic Relevance Framework, eq. 3.3, kept positive as in Lucene.
        """
        if longest < 1:
            raise ValueError(f"longest must be at least 1, got {longest}")
        plain = _plain(tokenizer)
        vocab_size = max(plain.get_vocab().values()) + 1
        read = progress(_tokenized(plain, texts), desc="Weighing words", unit="text", leave=False)
        idf = inverse_document_frequency((_columns(ids[:longest], vocab_size) for ids in read), vocab_size + PAIRS)
        if np.ptp(idf) == 0:
            raise ValueError("words take their weights from texts, and there was no text with any; give some")
        return cls(plain, idf)

    def encode(self, texts: Iterable[str], entries: int | None = None, pairs: bool = True) -> sp.csr_matrix:
        """(texts, columns) float32 rows of unit length; a text without a word is a row of zeros.

        Args:
            texts: read whole.
            entries: of each row that are kept, the heaviest; of equally heavy ones those in the lower columns. None:
                all, as for queries.
            pairs: whether neighbouring word pieces count too; without, there are no columns for them.

        Raises:
            ValueError: entries below 1; texts that are a text.
        """
        if entries is not None and entries < 1:
            raise ValueError(f"entries must be at least 1, or None for all, got {entries}")
        if isinstance(texts, str):
            raise ValueError(f"texts must be a list of strings, got {texts!r}; one text is a list of one")
        columns, values = [], []
        for ids in self.tokenized(texts):
            found, counts = np.unique(_columns(ids, self.vocab_size) if pairs else ids, return_counts=True)
            weights = np.log1p(counts.astype(np.float32)) * self.idf[found]
            if pairs:
                weights = weights**POWER * np.where(found < self.vocab_size, np.float32(1), np.float32(PAIR_WEIGHT))
            kept = _heaviest(weights, entries)
            columns.append(found[kept])
            values.append(weights[kept])
        return _unit_rows(columns, values, self.vocab_size + PAIRS * pairs)

    def tokenized(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """(n,) int64 ids of the word pieces of each text, whole."""
        return _tokenized(self.tokenizer, texts)

    @cached_property
    def digest(self) -> str:
        """Short SHA-256 of weights and tokenizer: what a kept code was made with."""
        return hashlib.sha256(self.idf.tobytes() + self.tokenizer.to_str().encode()).hexdigest()[:16]

    def save(self, path: str | os.PathLike) -> None:
        """One safetensors file, tokenizer included: 4 MiB and 5 bytes for each of the vocabulary or so."""
        metadata = {"format": FORMAT, "tokenizer": self.tokenizer.to_str()}
        write_atomically(Path(path), save({"idf": self.idf}, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "WordWeights":
        """What `save` wrote; ValueError for anything else, OSError where it cannot be opened."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"No file of word weights {os.fspath(path)!r}")
        try:
            with safe_open(path, "numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT or "tokenizer" not in metadata:
                    raise ValueError(f"its format must be {FORMAT!r}, got {metadata.get('format')!r}")
                return cls(Tokenizer.from_str(metadata["tokenizer"]), file.get_tensor("idf"))
        except (OSError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # tokenizers raises no class of its own, and its panics are no Exception
            said = " ".join(str(error).split())
            raise ValueError(f"{os.fspath(path)} holds no word weights: {said}; fit and save them again") from error


def heaviest(rows: sp.csr_matrix, entries: int) -> sp.csr_matrix:
    """Rows of `encode` cut to their heaviest entries, as it would have given them; ValueError for entries below 1."""
    if entries < 1:
        raise ValueError(f"entries must be at least 1, got {entries}")
    columns, values = [], []
    for start, end in pairwise(rows.indptr):
        kept = start + _heaviest(rows.data[start:end], entries)
        columns.append(rows.indices[kept])
        values.append(rows.data[kept])
    return _unit_rows(columns, values, rows.shape[1])


def _heaviest(weights: np.ndarray, entries: int | None) -> np.ndarray:
    """Places of the heaviest, in their order; of equally heavy ones the first."""
    if entries is None or len(weights) <= entries:
        return np.arange(len(weights))
    return np.sort(np.argsort(-weights, kind="stable")[:entries])


def _unit_rows(columns: list[np.ndarray], values: list[np.ndarray], width: int) -> sp.csr_matrix:
    starts = np.cumsum([0, *map(len, columns)])
    content = (np.concatenate([np.empty(0, np.float32), *values]), np.concatenate([np.empty(0, int), *columns]))
    rows = sp.csr_matrix((*content, starts), (len(columns), width))
    return normalize(rows, copy=False) if columns else rows  # it refuses no rows


def entries_in(size: float) -> int:
    """Entries of a text that fit into `size` bytes; ValueError where not one does."""
    if size < BYTES_PER_ENTRY:
        raise ValueError(f"a words code needs at least {BYTES_PER_ENTRY} bytes, one entry, got {size}")
    return int(size / BYTES_PER_ENTRY)


def _plain(tokenizer: Tokenizer | PreTrainedTokenizerBase) -> Tokenizer:
    """A copy that neither cuts nor pads."""
    backend = tokenizer if isinstance(tokenizer, Tokenizer) else getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"words need a fast tokenizer, got {type(tokenizer).__name__}; one has a tokenizer.json")
    copy = Tokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def _tokenized(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[np.ndarray]:
    texts = iter(texts)
    while some := list(islice(texts, BATCH_SIZE)):
        for encoding in tokenizer.encode_batch(some, add_special_tokens=False):
            yield np.array(encoding.ids, dtype=np.int64)


def _columns(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """Columns of word pieces, then of the pairs of neighbours."""
    pairs = (ids[:-1] * 1_000_003 + ids[1:] * 7_919) % PAIRS
    return np.concatenate([ids, vocab_size + pairs])
