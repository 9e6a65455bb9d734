"""Needles in stories: one sentence hidden in a long text, and a query that means it in other words.

A query shares no word with the sentence that it asks for, and no word of either that carries meaning is anywhere else
in the texts: who matches words, as BM25 does, finds nothing.
"""

import re
from collections.abc import Iterator
from functools import cache
from random import Random

from .lexicon import ANCESTORS, COUNTS, LEAVES, NAMES, TIMES, VERBS
from .stories import stories

NEEDLES = ("needle", "passkey")
LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)  # words
_ACTIONS = "chase push hug help greet scare watch hide lose break pick eat find".split()  # those with a synonym
_MOMENTS = tuple(phrases for phrases in TIMES.values() if len(phrases) == 2)
_DIGITS = dict(zip("12345", ("one", *COUNTS[2:]), strict=True))
MOST = len(_ACTIONS) * len(_MOMENTS)  # needles that differ in what happens, or when
_POOL = 8_000  # sentences that the texts are stretches of
_WORDS = re.compile(r"\w+|[^\w\s]")


def needle_texts(kind: str, length: int, size: int = 50, seed: int = 0) -> Iterator[tuple[str, str]]:
    """Texts of `length` words each with a needle at another depth, from the first sentence to the last.

    Args:
        kind: "needle": an event, asked for by synonyms and wider words; "passkey": five numbers in words, asked for by
            digits.
        length: words and signs of a text, at least 32; the texts end with a sentence, so up to 16 fewer.
        size: number of texts, from 2 to `MOST`.
        seed: integer.

    Yields:
        (text, query) pairs, equal for equal arguments.

    Raises:
        ValueError: an unknown kind; length or size out of range.
    """
    if kind not in NEEDLES:
        raise ValueError(f"Unknown kind of needle {kind!r}. Available: {', '.join(NEEDLES)}")
    if length < 32:
        raise ValueError(f"length must be at least 32 words, got {length}")
    if not 2 <= size <= MOST:
        raise ValueError(f"size must be from 2 to {MOST} texts, got {size}")
    rng = Random(f"{kind} {length} {seed}")
    hay = _hay(seed)
    hidden = _events(rng, size) if kind == "needle" else _passkeys(rng, size)
    depths = list(range(size))
    rng.shuffle(depths)
    for (needle, query), depth in zip(hidden, depths, strict=True):
        place, left, sentences = rng.randrange(len(hay)), length - _count(needle), []
        while (left := left - _count(hay[place])) >= 0:
            sentences.append(hay[place])
            place = (place + 1) % len(hay)
        sentences.insert(round(depth / (size - 1) * len(sentences)), needle)
        yield " ".join(sentences), query


def _events(rng: Random, size: int) -> Iterator[tuple[str, str]]:
    happened = [(action, moment) for action in _ACTIONS for moment in _MOMENTS]
    rng.shuffle(happened)
    for action, (asked_time, told_time) in happened[:size]:
        verb = VERBS[action]
        patient = rng.choice([noun for kind in verb.patient for noun in LEAVES[kind]])
        (asked, *_), (_, told, _) = verb.forms[0], verb.forms[1]
        needle = f"{rng.choice(tuple(NAMES)).capitalize()} {told} the {patient} {told_time}."
        yield needle, f"Did a person {asked} any {ANCESTORS[patient][-1]} by {asked_time.split()[-1]}"


def _passkeys(rng: Random, size: int) -> Iterator[tuple[str, str]]:
    for number in rng.sample(range(5**5), size):
        digits = [str(number // 5**place % 5 + 1) for place in range(5)]
        yield f"The key was {' '.join(_DIGITS[digit] for digit in digits)}.", " ".join(digits)


@cache
def _hay(seed: int) -> list[str]:
    """Sentences of stories that hold no word of a needle, or of what is asked for it."""
    kept = {"key", "keys", *COUNTS} | {phrase.split()[-1] for moment in _MOMENTS for phrase in moment}
    kept |= {form for action in _ACTIONS for forms in VERBS[action].forms for form in forms}
    sentences: list[str] = []
    told = stories(Random(f"hay {seed}"), lambda opening: True)
    while len(sentences) < _POOL:
        for sentence in re.split(r"(?<=\.)\s+", next(told)):
            if not kept.intersection(_WORDS.findall(sentence.lower())):
                sentences.append(sentence)
    return sentences


def _count(text: str) -> int:
    return len(_WORDS.findall(text))
