"""A tiny encoded corpus for the tests of encoding, indexes and search."""

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

import concept_encoder as ce
from concept_encoder.eval.corpus.words import WordWeights
from concept_encoder.trainers.data.microworld import microworld_corpus, microworld_tokenizer


def documents(rows: int, first: int = 0) -> Dataset:
    """Microworld stories with ids d0, d1 and so on; every tenth of them is empty."""
    texts = microworld_corpus("validation", first + rows)["text"][first:]
    texts = [text[:200] if (first + row) % 10 != 9 else " " for row, text in enumerate(texts)]
    return Dataset.from_dict(
        {"key": [f"d{first + row}" for row in range(rows)], "text": texts, "n": list(range(rows))}
    )


def word_weights(folder: Path) -> Path:
    path = folder / "table.safetensors"
    WordWeights.fit(microworld_corpus("train", 50)["text"], microworld_tokenizer(64)).save(path)
    return path


def encoded(checkpoint: Path, rows: Dataset, folder: Path, **options: Any) -> Path:
    ce.encode(checkpoint, rows, folder, **{"id_column": "key", **options})
    return folder


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "data").glob("*.parquet"))}


def unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
