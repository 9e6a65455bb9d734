"""Encoders and pairs that are small enough to be judged in a moment."""

import zlib
from functools import cache

import numpy as np
from datasets import Dataset, DatasetDict

from concept_encoder.eval.benchmarks.registry import Task

NOUNS = "cat dog horse boy girl doctor baker garden barn coat ship river stone bread music window".split()
VERBS = "sees finds paints carries follows watches holds opens".split()
PLACES = "house field market forest station harbour kitchen".split()


class WordVectors:
    """The sum of a vector of each word; `concepts`: the vectors of the words themselves."""

    def __init__(self, size: int = 64, late: bool = False):
        self.size, self.late = size, late

    @cache  # noqa: B019 - lives as long as the tests
    def word(self, word: str) -> np.ndarray:
        return np.random.default_rng(zlib.crc32(word.encode())).standard_normal(self.size).astype(np.float32)

    def encode(self, texts):
        found = [np.stack([self.word(word) for word in text.split()]) for text in texts]
        return found if self.late else np.stack([each.sum(0) for each in found])


def sentence(rng: np.random.Generator) -> list[str]:
    return ["the", rng.choice(NOUNS), rng.choice(VERBS), "a", rng.choice(NOUNS), "near", "the", rng.choice(PLACES)]


def pair_table(rows: int, seed: int) -> Dataset:
    """Sentences and copies with some words drawn again; the label is how many were kept."""
    rng = np.random.default_rng(seed)
    first, second, labels = [], [], []
    for _ in range(rows):
        one, other = sentence(rng), sentence(rng)
        kept = rng.random(4) < rng.random()
        places = (1, 2, 4, 7)
        both = list(one)
        for place, keep in zip(places, kept, strict=True):
            both[place] = one[place] if keep else other[place]
        first.append(" ".join(one))
        second.append(" ".join(both))
        labels.append(float(sum(one[place] == both[place] for place in places)))
    return Dataset.from_dict({"sentence1": first, "sentence2": second, "label": labels})


def word_task(rows: int = 120) -> Task:
    """Pairs whose labels a bag of words knows."""
    data = DatasetDict(train=pair_table(60, 1), validation=pair_table(rows, 2))
    return Task(name="words", data=data, like="stsb", problem_type="regression", num_labels=1)
