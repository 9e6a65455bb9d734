"""Microworld: a generator of a miniature English with known meaning, the corpus and tasks that need no download.

    meaning.py   what is said (Entity, Proposition) and what follows from it
    lexicon.py   a closed vocabulary and what its words mean
    grammar.py   meaning to sentences, in several wordings
    stories.py   a simulated world, told: the pretraining corpus
    tasks.py     pairs of sentences labelled by their meanings

All is drawn from one stream per (task, split, seed), so that equal arguments give equal data in any process, and a
smaller size is a prefix of a larger one. Splits are disjoint by content: the CRC-32 of a text assigns it to one split,
and what belongs to another split is drawn again. For stories the text that decides is the opening sentence, for pairs
it is each of the two: no sentence of one split occurs in another, in either column, with any seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from random import Random
from zlib import crc32

from datasets import ClassLabel, Dataset, Features, Value
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .lexicon import vocabulary
from .stories import stories
from .tasks import PAIRS, rewordings

MICROWORLD_TASKS = ("similarity", "paraphrase", "entailment")
MICROWORLD_SPLITS = ("train", "validation", "test")

_SPLIT_OF_FIFTH = ("train", "train", "train", "validation", "test")
_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LABELS = {
    "similarity": Value("float32"),
    "paraphrase": Value("int64"),
    "entailment": ClassLabel(names=["entailment", "neutral", "contradiction"]),
}


def microworld_corpus(split: str, size: int, seed: int = 0) -> Dataset:
    """Stories of four to ten sentences about persons, animals and things that last through the story.

    Args:
        split: "train", "validation" or "test". No opening sentence of one occurs in another.
        size: number of stories, at least 1.
        seed: integer; another seed gives other stories of the same split.

    Returns:
        Dataset with one column, `text` (str). Equal for equal arguments.

    Raises:
        ValueError: unknown split; size or seed that is not an integer, or size below 1.
    """
    _check(split, size, seed)
    texts = islice(stories(Random(f"stories {split} {seed}"), _admission(split)), size)
    return Dataset.from_dict({"text": list(texts)}, features=Features({"text": Value("string")}))


def microworld_pairs(split: str, size: int, seed: int = 0) -> Dataset:
    """Texts of a sentence or two, each in two wordings.

    Args:
        split, seed: as of `microworld_corpus`. No sentence of one split occurs in another.
        size: number of pairs, at least 1.

    Returns:
        Dataset with columns `text` and `partner` (str). Equal for equal arguments.

    Raises:
        ValueError: as `microworld_corpus`.
    """
    _check(split, size, seed)
    pairs = islice(rewordings(Random(f"pairs {split} {seed}"), _admission(split)), size)
    texts, partners = zip(*pairs, strict=True)
    return Dataset.from_dict({"text": texts, "partner": partners})


def microworld_task(task: str, split: str, size: int, seed: int = 0) -> Dataset:
    """Labelled pairs of short texts; the labels are computed from the meanings that the texts word.

    Args:
        task: "similarity" (label float, 0 = nothing in common to 5 = same meaning; see `meaning.similarity`),
            "paraphrase" (label 1 = same meaning, 0 = the same words with two exchanged), or
            "entailment" (sentence1 the premise; label ClassLabel, see `meaning.entailment`).
        split: "train", "validation" or "test". No sentence of one occurs in another.
        size: number of pairs, at least 1. Classes are balanced to within one pair.
        seed: integer; another seed gives other pairs of the same split.

    Returns:
        Dataset with columns `sentence1`, `sentence2` (str) and `label`. Equal for equal arguments.

    Raises:
        ValueError: unknown task or split; size or seed that is not an integer, or size below 1.
    """
    if task not in MICROWORLD_TASKS:
        raise ValueError(f"Unknown microworld task {task!r}. Available: {', '.join(MICROWORLD_TASKS)}")
    _check(split, size, seed)
    pairs = islice(PAIRS[task](Random(f"{task} {split} {seed}"), _admission(split)), size)
    first, second, labels = zip(*pairs, strict=True)
    features = Features({"sentence1": Value("string"), "sentence2": Value("string"), "label": _LABELS[task]})
    return Dataset.from_dict({"sentence1": first, "sentence2": second, "label": labels}, features=features)


def microworld_tokenizer(max_length: int = 512) -> PreTrainedTokenizerFast:
    """Word-level, lower-casing tokenizer that knows every word the microworld can say.

    Args:
        max_length: `model_max_length`, in tokens with [CLS] and [SEP]; at least 3.

    Returns:
        Tokenizer with [PAD] = 0, [UNK], [CLS], [SEP], [MASK] first and the BERT template for texts and pairs.

    Raises:
        ValueError: max_length that is not an integer of at least 3.
    """
    if not isinstance(max_length, int) or max_length < 3:
        raise ValueError(f"max_length must be an integer of at least 3 ([CLS], a word, [SEP]), got {max_length!r}")
    ids = {token: i for i, token in enumerate((*_SPECIAL_TOKENS, *vocabulary()))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def _admission(split: str) -> Callable[[str], bool]:
    """Whether a text belongs to the split, by its content alone."""
    return lambda text: _SPLIT_OF_FIFTH[crc32(text.encode()) % len(_SPLIT_OF_FIFTH)] == split


def _check(split: str, size: int, seed: int) -> None:
    if split not in MICROWORLD_SPLITS:
        raise ValueError(f"Unknown microworld split {split!r}. Available: {', '.join(MICROWORLD_SPLITS)}")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"size must be a positive integer (number of examples), got {size!r}")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ValueError(f"seed must be an integer, got {seed!r}")
