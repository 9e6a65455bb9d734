"""What the judge measures of an encoder: one row per check, with what it measures and what it says of a fault.

A check takes a `Case` and gives a figure, or None where it does not apply. Thresholds are in `gates.yaml`; a check
without a gate is told and judges nothing.
"""

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import roc_auc_score

from ...utils.progress import progress
from ...utils.results import Figure
from ..benchmarks.similarity import cosine, max_sim
from ..metrics.intervals import bootstrap_intervals, mean_scores, paired_bootstrap
from .subjects import OfSentences, Subject, in_dtype, padded_left, randomise, unread_and_missing

CHUNK = 256  # texts encoded between two steps of the progress bar
FEW = 8  # texts of the checks of behaviour, and as many long ones
SPREAD = 256  # texts of the geometry
TRIED = 200  # pairs that another pooling or a prefix is tried on
RESAMPLES = 2_000
LONG = 60  # words of a long text
LONGEST = 512  # words up to which it is tried how much is read
PREFIXES = ("query: ", "passage: ", "Represent this sentence: ")
WORDS = re.compile(r"\w+")


class Pairs(NamedTuple):
    """Labelled pairs of a task, and the pairs of its training split."""

    name: str
    scored_as: str
    metric: str
    first: list[str]
    second: list[str]
    labels: np.ndarray
    trained: frozenset[tuple[str, str]]


class Case:
    """A subject, what it is asked, and what it has answered.

    Args:
        subject: what is judged.
        tasks: pairs to score.
        texts: distinct sentences, for geometry and behaviour.
    """

    def __init__(self, subject: Subject, tasks: Sequence[Pairs], texts: Sequence[str]):
        self.subject, self.tasks, self.texts = subject, list(tasks), list(texts)

    # ------------------------------------------------------------------------------------------------------- vectors

    @cached_property
    def vectors(self) -> np.ndarray:
        """(n, D) of the texts of the geometry."""
        return self.subject.encode(self.texts[:SPREAD])

    @cached_property
    def unit(self) -> np.ndarray:
        return unit(np.nan_to_num(self.vectors.astype(np.float64)))

    @cached_property
    def inside(self) -> list[np.ndarray] | None:
        return self.subject.inside(self.texts[: SPREAD // 2])

    @cached_property
    def mixed(self) -> list[str]:
        """A few texts of very different lengths."""
        longer = [self.text_of(words, start) for start, words in enumerate(np.linspace(20, LONG, FEW).astype(int))]
        return [*self.texts[:FEW], *longer]

    @cached_property
    def mixed_vectors(self) -> np.ndarray:
        return self.subject.encode(self.mixed)

    @cached_property
    def words(self) -> list[str]:
        return " ".join(self.texts).split()

    @cached_property
    def words_read(self) -> int:
        """Words of a text after which another word changes nothing, by trial; `LONGEST` where none is."""
        low, high = 1, 4
        while high <= LONGEST and self._reads(high):
            low, high = high, 2 * high
        while low < LONGEST and high - low > max(1, low // 8):
            middle = (low + high) // 2
            low, high = (middle, high) if self._reads(middle) else (low, middle)
        return low

    def _reads(self, words: int) -> bool:
        """Whether the last of so many words matters."""
        text = self.text_of(words)
        one, other = (self.subject.encode([each])[0] for each in (text, f"{text.rsplit(' ', 1)[0]} zebra"))
        return bool(np.abs(one - other).max() > 1e-6 * np.abs(one).max())

    def text_of(self, words: int, start: int = 0) -> str:
        """So many words of the texts, one after the other."""
        return " ".join(np.take(self.words, np.arange(words) + 37 * start, mode="wrap"))

    # ------------------------------------------------------------------------------------------------------- scores

    @cached_property
    def predictions(self) -> dict[str, dict[str, np.ndarray]]:
        """(n,) similarities of each task: of the subject, "own", and of each control that can be had."""
        return {pairs.name: self._predicted(pairs) for pairs in self.tasks}

    def _predicted(self, pairs: Pairs) -> dict[str, np.ndarray]:
        subject, texts = self.subject, (pairs.first, pairs.second)
        found = {"own": similarities(subject, *texts, f"{pairs.name}: {subject.name}")}
        if subject.module is not None:
            twin = subject.changed(randomise)
            found["random_init"] = similarities(twin, *texts, f"{pairs.name}: random twin")
        found["bag_of_tokens"] = bag_of_tokens(subject, *texts)
        table = static_table(subject, *texts)
        if table is not None:
            found["static_table"] = table
        first, second = (list(map(shuffle_words, side)) for side in texts)
        found["shuffled_words"] = similarities(subject, first, second, f"{pairs.name}: shuffled words")
        return found

    def difference(self, control: str) -> Figure | None:
        """The smallest over tasks of what the subject scores more than a control."""
        found = []
        for pairs in self.tasks:
            predicted = self.predictions[pairs.name]
            if control in predicted:
                own, beside = (np.nan_to_num(predicted[name]) for name in ("own", control))
                paired = paired_bootstrap(pairs.scored_as, own, beside, pairs.labels, resamples=RESAMPLES)
                found.append(_figure(paired[pairs.metric]))
        return _least(found)

    @cached_property
    def tried(self) -> tuple[Pairs, list[int]] | None:
        """The first task, and some rows of it to try variations on."""
        if not self.tasks:
            return None
        return self.tasks[0], list(range(min(TRIED, len(self.tasks[0].labels))))

    def gain(self, variants: dict[str, np.ndarray]) -> Figure | None:
        """The most that any of other similarities of the tried rows scores more than the subject's own."""
        if self.tried is None or not variants:
            return None
        pairs, rows = self.tried
        own = np.nan_to_num(self.predictions[pairs.name]["own"][rows])
        figures = []
        for other in variants.values():
            options = {"resamples": RESAMPLES}
            paired = paired_bootstrap(pairs.scored_as, np.nan_to_num(other), own, pairs.labels[rows], **options)
            figures.append(_figure(paired[pairs.metric]))
        return max((each for each in figures if each), key=lambda figure: figure.value or 0.0, default=None)


# ------------------------------------------------------------------------------------------------------------- pieces


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of unit length; zeros stay."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """The largest 1 - cosine of rows of (n, D); 1 where something is not finite."""
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return 1.0
    return float(max(0.0, (1 - cosine(one.astype(np.float64), other.astype(np.float64))).max()))


def similarities(subject: Subject, first: Sequence[str], second: Sequence[str], words: str = "") -> np.ndarray:
    """(n,) cosines, or MaxSim of vectors of texts, each distinct text encoded once."""
    distinct = list(dict.fromkeys([*first, *second]))
    rows = {text: row for row, text in enumerate(distinct)}
    steps = progress(range(0, len(distinct), CHUNK), desc=words, leave=False, disable=not words)
    found = [subject.output(distinct[start : start + CHUNK]) for start in steps]
    if isinstance(found[0], list):
        held = [torch.from_numpy(np.asarray(each, np.float32))[None] for part in found for each in part]
        return np.array([max_sim(held[rows[a]], held[rows[b]])[0] for a, b in zip(first, second, strict=True)])
    vectors = np.concatenate(found).astype(np.float64)
    return cosine(*(vectors[[rows[text] for text in side]] for side in (first, second)))


def token_ids(subject: Subject, texts: Sequence[str]) -> list[list[int]] | None:
    """Without special tokens, cut where the model cuts."""
    if subject.tokenizer is None:
        return None
    options = {"add_special_tokens": False, "truncation": True, "max_length": subject.max_length or 100_000}
    return subject.tokenizer(list(texts), **options)["input_ids"]


def bag_of_tokens(subject: Subject, first: Sequence[str], second: Sequence[str]) -> np.ndarray:
    """(n,) cosines of TF-IDF vectors over the subject's own tokens, or over words where they are not known."""
    texts = [*first, *second]
    ids = token_ids(subject, texts)
    bags = [WORDS.findall(text.lower()) for text in texts] if ids is None else ids
    counted = TfidfVectorizer(analyzer=list, sublinear_tf=True).fit_transform(bags)
    half = len(first)
    return np.asarray(counted[:half].multiply(counted[half:]).sum(axis=1)).ravel()


def word_table(subject: Subject) -> torch.Tensor | None:
    """(V, d) vectors of the tokens, before the first layer."""
    if subject.module is None or subject.tokenizer is None:
        return None
    found = subject.module.get_input_embeddings()
    return None if found is None else found.weight.detach().float()


def static_table(subject: Subject, first: Sequence[str], second: Sequence[str]) -> np.ndarray | None:
    """(n,) cosines of the mean of the tokens' vectors, as they are before the first layer."""
    table, ids = word_table(subject), token_ids(subject, [*first, *second])
    if table is None or ids is None:
        return None
    means = np.stack([table[row].mean(0).numpy() if row else np.zeros(table.shape[1]) for row in ids])
    return cosine(*np.split(means.astype(np.float64), 2))


def shuffle_words(text: str) -> str:
    words = text.split()
    return " ".join(np.random.default_rng(len(text)).permutation(words)) if words else text


def _figure(paired) -> Figure | None:
    return None if paired.difference is None else Figure(value=paired.difference, interval=paired.interval)


def _least(figures: Sequence[Figure | None]) -> Figure | None:
    """The one whose interval begins lowest."""
    found = [figure for figure in figures if figure is not None]
    return min(found, key=lambda figure: figure.interval[0] if figure.interval else 0.0, default=None)


def _plain(value: Any) -> Figure:
    return Figure(value=float(value), interval=None)


# --------------------------------------------------------------------------------------------------------- behaviour


def finite(case: Case) -> Figure:
    vectors = np.concatenate([case.vectors, case.mixed_vectors])
    broken = ~np.isfinite(vectors).all(1) | (np.abs(np.nan_to_num(vectors)).max(1) == 0)
    return _plain(broken.mean())


def repeated(case: Case) -> Figure:
    return _plain(apart(case.mixed_vectors, case.subject.encode(case.mixed)))


def order(case: Case) -> Figure:
    return _plain(apart(case.mixed_vectors, case.subject.encode(case.mixed[::-1])[::-1]))


def batch(case: Case) -> Figure:
    alone = np.concatenate([case.subject.encode([text]) for text in case.mixed])
    return _plain(apart(case.mixed_vectors, alone))


def float16(case: Case) -> Figure | None:
    """Share of texts whose vector is lost in half precision."""
    found = _in(case, torch.float16)
    if found is None:
        return None
    return _plain((~(cosine(case.mixed_vectors.astype(np.float64), found) > 0.99)).mean())


def bfloat16(case: Case) -> Figure | None:
    found = _in(case, torch.bfloat16)
    return None if found is None else _plain(apart(case.mixed_vectors, found))


def _in(case: Case, dtype: torch.dtype) -> np.ndarray | None:
    if case.subject.module is None:
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        return case.subject.changed(in_dtype(dtype)).encode(case.mixed).astype(np.float64)


def padding_side(case: Case) -> Figure | None:
    if case.subject.tokenizer is None:
        return None
    return _plain(apart(case.mixed_vectors, case.subject.changed(padded_left).encode(case.mixed)))


def cut(case: Case) -> Figure:
    """Share of the texts that are longer than what is read."""
    lengths = np.array([len(text.split()) for text in case.texts])
    return _plain((lengths > case.words_read).mean())


def claimed(case: Case) -> Figure | None:
    """Tokens read, as a share of what it says; of a long claim only what is tried."""
    if case.subject.max_length is None or case.subject.tokenizer is None:
        return None
    if case.words_read == LONGEST:
        return _plain(1.0)
    assert case.subject.tokenizer is not None
    read = case.subject.tokenizer(case.text_of(case.words_read), truncation=False, verbose=False)["input_ids"]
    return _plain(min(1.0, len(read) / case.subject.max_length))


def duplicates(case: Case) -> Figure:
    """Share of pairs of different texts that have one vector."""
    return _plain((_pairs_of(case.unit) > 1 - 1e-6).mean())


def length_bias(case: Case) -> Figure:
    """Share of the variance in the cosines of unrelated texts that their lengths explain."""
    rng = np.random.default_rng(0)
    lengths = np.array([4, 8, 16, 32, 64]).repeat(2 * FEW)
    vectors = unit(case.subject.encode([case.text_of(int(n), start) for start, n in enumerate(lengths)]))
    one, other = rng.permuted(np.tile(np.arange(len(lengths)), (2, 8)), axis=1)
    kept = one != other
    cosines = (vectors[one] * vectors[other]).sum(1)[kept]
    gaps = np.abs(np.log(lengths[one] / lengths[other]))[kept]
    return _plain(max(0.0, -float(np.nan_to_num(spearmanr(cosines, gaps).statistic))))


# ---------------------------------------------------------------------------------------------------------- geometry


def _pairs_of(rows: np.ndarray) -> np.ndarray:
    return (rows @ rows.T)[np.triu_indices(len(rows), 1)]


def crowding(case: Case) -> Figure:
    """Mean cosine of different texts."""
    return _resampled(case.unit, mean_cosine)


def mean_cosine(unit_rows: np.ndarray) -> float:
    return float(_pairs_of(unit_rows).mean())


def dead_dimensions(case: Case) -> Figure:
    spread = np.nan_to_num(case.vectors).std(0)
    return _plain((spread < 1e-3 * np.median(spread)).mean() if np.median(spread) > 0 else 1.0)


def strongest_dimension(case: Case) -> Figure:
    variance = case.unit.var(0)
    return _plain(variance.max() / variance.sum() if variance.sum() > 0 else 1.0)


def rank(case: Case) -> Figure:
    """Participation ratio of the texts' vectors as a share of that of Gaussian noise of the same shape."""
    noise = np.random.default_rng(0).standard_normal(case.unit.shape)
    null = participation_ratio(noise)
    return _resampled(case.unit, lambda rows: participation_ratio(rows) / null)


def participation_ratio(rows: np.ndarray) -> float:
    """(sum l)^2 / sum l^2 of the eigenvalues l of the covariance of rows."""
    centred = rows - rows.mean(0)
    gram = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
    squares = np.square(gram).sum()
    return float(np.trace(gram) ** 2 / squares) if squares > 0 else 0.0


def same_inside(case: Case) -> Figure | None:
    """Share of pairs of vectors of one text that are one direction, mean over texts."""
    if case.inside is None:
        return None
    shares = []
    for vectors in case.inside:
        if len(vectors) > 1:
            shares.append((_pairs_of(unit(vectors.astype(np.float64))) > 0.999).mean())
    return _plain(np.mean(shares)) if shares else None


def _resampled(rows: np.ndarray, measure: Callable[[np.ndarray], float], resamples: int = 50) -> Figure:
    """A figure with an interval over halves of the texts, moved so that their mean is the figure."""
    rng, value = np.random.default_rng(0), measure(rows)
    halves = np.array([measure(rows[rng.permutation(len(rows))[: len(rows) // 2]]) for _ in range(resamples)])
    low, high = np.quantile(halves, [0.025, 0.975]) - halves.mean()  # halves vary as the whole does
    return Figure(value=value, interval=(value + float(low), value + float(high)))


# ----------------------------------------------------------------------------------------------------------- weights


def random_layers(case: Case) -> Figure | None:
    """Share of the layers whose every matrix looks as it was drawn."""
    if case.subject.module is None:
        return None
    layers: dict[str, list[bool]] = {}
    for name, weight in case.subject.module.named_parameters():
        found = re.match(r"(.*\b(?:layers?|h|blocks?)\.\d+)\.", name)
        if found and weight.ndim == 2 and min(weight.shape) >= 32:
            layers.setdefault(found[1], []).append(looks_drawn(weight.detach()))
    return _plain(np.mean([all(drawn) for drawn in layers.values()])) if layers else None


def looks_drawn(weight: torch.Tensor) -> bool:
    """Whether the largest singular value is that of independent entries, or the matrix says nothing.

    Source: edge of the law of Marchenko and Pastur, s (sqrt(m) + sqrt(n)) for entries of standard deviation s.
    """
    weight = weight.float()
    edge = float(weight.std()) * sum(size**0.5 for size in weight.shape)
    if not edge > 0:
        return True
    gram = weight @ weight.mT if weight.shape[0] < weight.shape[1] else weight.mT @ weight
    return float(torch.linalg.eigvalsh(gram)[-1].clamp(min=0).sqrt()) < 1.05 * edge


def known_words(case: Case) -> Figure | None:
    """How surely the table has a word nearer to its plural than to another's: 0.5 is chance, 1 always."""
    table = word_table(case.subject)
    if table is None:
        return None
    assert case.subject.tokenizer is not None
    vocabulary = case.subject.tokenizer.get_vocab()
    words = {name.lstrip("Ġ▁"): row for name, row in vocabulary.items() if row < len(table)}
    pairs = [(row, words[f"{word}s"]) for word, row in words.items() if len(word) > 3 and f"{word}s" in words]
    if len(pairs) < 50:
        return None
    chosen = np.array(sorted(pairs)[:200])  # the first of a vocabulary are its most frequent
    rows = unit(table.numpy()[chosen.ravel()].astype(np.float64)).reshape(len(chosen), 2, -1)
    true, false = ((rows[:, 0] * side).sum(1) for side in (rows[:, 1], np.roll(rows[:, 1], 1, axis=0)))
    labels = np.repeat([1, 0], len(chosen))
    value = roc_auc_score(labels, np.concatenate([true, false]))
    error = 1.96 * np.sqrt(max(value * (1 - value), 1e-4) / len(chosen))
    return Figure(value=float(value), interval=(float(value - error), float(min(1.0, value + error))))


def unknown_tokens(case: Case) -> Figure | None:
    """Share of the tokens of the texts that are the unknown one."""
    tokenizer = case.subject.tokenizer
    if tokenizer is None or tokenizer.unk_token_id is None:
        return None
    ids = np.concatenate([np.array(row) for row in token_ids(case.subject, case.texts) or []])
    return _plain((ids == tokenizer.unk_token_id).mean())


def stray_weights(case: Case) -> Figure | None:
    """Tensors of layers that the files hold and the model does not have, and the other way round."""
    found = unread_and_missing(case.subject) if isinstance(case.subject, OfSentences) else None
    return None if found is None else _plain(sum(map(len, found)))


# ------------------------------------------------------------------------------------------------------------- scores


def above_chance(case: Case) -> Figure | None:
    """The smallest over tasks of the subject's score, a correlation, whose chance level is 0."""
    return _least([_score(pairs, case.predictions[pairs.name]["own"]) for pairs in case.tasks])


def readable_labels(case: Case) -> Figure | None:
    """The smallest over tasks of what a bag of words scores, the same one for every subject."""
    found = [_score(pairs, bag_of_tokens(Subject(None), pairs.first, pairs.second)) for pairs in case.tasks]
    return _least(found)


def _score(pairs: Pairs, predictions: np.ndarray) -> Figure:
    """Its difference to a prediction that says nothing."""
    predictions = np.nan_to_num(predictions)
    value = mean_scores(pairs.scored_as, predictions, pairs.labels)[pairs.metric]
    if value is None:
        return Figure(value=0.0, interval=(0.0, 0.0))
    found = bootstrap_intervals(pairs.scored_as, predictions, pairs.labels, resamples=RESAMPLES)
    return Figure(value=value, interval=found[pairs.metric])


def beats_twin(case: Case) -> Figure | None:
    return case.difference("random_init")


def beats_bag(case: Case) -> Figure | None:
    return case.difference("bag_of_tokens")


def beats_table(case: Case) -> Figure | None:
    return case.difference("static_table")


def beats_shuffled(case: Case) -> Figure | None:
    return case.difference("shuffled_words")


def leaked(case: Case) -> Figure | None:
    """The largest over tasks of the share of scored pairs that are in the training split too."""
    if not any(pairs.trained for pairs in case.tasks):
        return None
    return _plain(max(np.mean([pair in pairs.trained for pair in _rows(pairs)]) for pairs in case.tasks))


def _rows(pairs: Pairs) -> list[tuple[str, str]]:
    return [pair_key(a, b) for a, b in zip(pairs.first, pairs.second, strict=True)]


def pair_key(first: str, second: str) -> tuple[str, str]:
    """A pair without case, spaces and order."""
    one, other = sorted(" ".join(text.lower().split()) for text in (first, second))
    return one, other


def other_pooling(case: Case) -> Figure | None:
    """What the best of the poolings mean, first, last and largest scores more than the model's own."""
    if case.tried is None or case.subject.late:
        return None
    pairs, rows = case.tried
    texts = [side[row] for side in (pairs.first, pairs.second) for row in rows]
    inside = case.subject.inside(texts)
    if inside is None:
        return None
    pooled = {"mean": np.stack([each.mean(0) for each in inside])}
    pooled["largest"] = np.stack([each.max(0) for each in inside])
    pooled |= {name: np.stack([each[at] for each in inside]) for name, at in (("first", 0), ("last", -1))}
    return case.gain({name: cosine(*np.split(rows_.astype(np.float64), 2)) for name, rows_ in pooled.items()})


def prefix(case: Case) -> Figure | None:
    """What the best of some prefixes of both texts scores more than none."""
    if case.tried is None:
        return None
    pairs, rows = case.tried
    variants = {}
    for each in dict.fromkeys([*PREFIXES, *case.subject.prompts]):
        first, second = ([each + side[row] for row in rows] for side in (pairs.first, pairs.second))
        variants[each] = similarities(case.subject, first, second)
    return case.gain(variants)


class Check(NamedTuple):
    """How it is measured, what that is in words, and what is said where the gate fails."""

    measure: Callable[[Case], Figure | None]
    what: str
    fault: str


CHECKS: dict[str, Check] = {
    "finite": Check(finite, "share of texts whose vector is not finite, or zero", "Vectors are not finite, or zero."),
    "repeated": Check(
        repeated,
        "largest 1 - cosine of a text's vector and its vector when it is encoded again",
        "The same text has another vector each time: dropout is left on, or something else is random.",
    ),
    "order": Check(
        order,
        "largest 1 - cosine of a text's vector when the texts are given in reverse",
        "A text's vector depends on the order in which texts are given.",
    ),
    "batch": Check(
        batch,
        "largest 1 - cosine of a text's vector among longer and shorter texts, and alone",
        "A text's vector depends on the texts in its batch: padding is read or pooled.",
    ),
    "float16": Check(
        float16,
        "share of texts whose vector in float16 is not finite or has a cosine below 0.99 with the one in float32",
        "Vectors are lost in float16: values overflow.",
    ),
    "bfloat16": Check(bfloat16, "largest 1 - cosine of vectors in bfloat16 and in float32", ""),
    "padding_side": Check(padding_side, "largest 1 - cosine of vectors with padding on the left, and as it is", ""),
    "cut": Check(
        cut,
        "share of the texts that are longer than what is read, which is found by changing the last word",
        "The ends of texts are not read.",
    ),
    "claimed": Check(
        claimed,
        "tokens that are read, as a share of those that the model says it reads",
        "It reads less of a text than it says.",
    ),
    "duplicates": Check(
        duplicates, "share of pairs of different texts with one vector", "Different texts have the same vector."
    ),
    "length_bias": Check(
        length_bias,
        "rank correlation of the cosine of two unrelated texts with the likeness of their lengths",
        "How alike two texts are is mostly how alike their lengths are.",
    ),
    "crowding": Check(
        crowding, "mean cosine of different texts", "All vectors point the same way: the encoder has collapsed."
    ),
    "dead_dimensions": Check(
        dead_dimensions,
        "share of dimensions that say nothing: a spread below a thousandth of the median one",
        "Some dimensions are the same for every text.",
    ),
    "strongest_dimension": Check(
        strongest_dimension, "share of the variance in one dimension", "One dimension outweighs the others."
    ),
    "rank": Check(
        rank,
        "participation ratio of the vectors, as a share of that of Gaussian noise",
        "The vectors lie in a few directions.",
    ),
    "same_inside": Check(
        same_inside,
        "share of pairs of vectors of one text with a cosine above 0.999",
        "The vectors of a text repeat each other.",
    ),
    "random_layers": Check(
        random_layers,
        "share of layers whose every matrix has the largest singular value of independent entries",
        "A layer looks as it was drawn: it was never trained, or not loaded.",
    ),
    "known_words": Check(
        known_words,
        "how surely the token table has a word nearer to its plural than to another's; 0.5 is chance",
        "The token table does not know the tokenizer's words: one is another model's, or it was never trained.",
    ),
    "unknown_tokens": Check(
        unknown_tokens,
        "share of tokens of plain texts that are the unknown token",
        "The tokenizer does not know the words of plain text: it is another's, or has lost its lower-casing.",
    ),
    "stray_weights": Check(
        stray_weights,
        "tensors of the model that the files lack, and of layers in the files that the model has not",
        "Files and model do not hold the same layers.",
    ),
    "readable_labels": Check(
        readable_labels,
        "smallest score over the tasks of a bag of words",
        "Not even common words say anything of the labels: they are shuffled, or of other rows.",
    ),
    "leaked": Check(
        leaked, "largest share over the tasks of scored pairs that the training split holds", "Test rows are in train."
    ),
    "above_chance": Check(
        above_chance, "smallest score over the tasks; chance is 0", "The scores cannot be told from chance."
    ),
    "beats_twin": Check(
        beats_twin,
        "smallest difference over the tasks to the same architecture with random weights",
        "It is no better than with random weights.",
    ),
    "beats_bag": Check(
        beats_bag,
        "smallest difference over the tasks to a bag of its own tokens",
        "It is worse than a bag of its own tokens.",
    ),
    "beats_table": Check(beats_table, "smallest difference over the tasks to the mean of its token table", ""),
    "beats_shuffled": Check(
        beats_shuffled, "smallest difference over the tasks to texts with their words shuffled", ""
    ),
    "other_pooling": Check(
        other_pooling,
        "what the best of mean, first, last and largest of the vectors of a text scores more than the model's own",
        "Another pooling scores higher than the model's own.",
    ),
    "prefix": Check(
        prefix,
        "what the best of some prefixes scores more than none",
        "Texts score higher with a prefix: it is missing.",
    ),
}
