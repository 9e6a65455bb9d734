"""Bootstrap intervals of benchmark scores, and paired tests between two sets of predictions on the same examples."""

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ...utils.results import ControlScore
from .benchmark_score import benchmark_score

LEVEL = 0.95  # of every interval
CHUNK = 2**19  # elements of one (resamples, distinct examples) matrix: 4 MiB of float64; about ten are held

# A score of each resample. weights (R, U): how often each distinct example was drawn; predictions and references (U,).
WeightedMetric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Paired(NamedTuple):
    """How much better one set of predictions scores than another; None where a score is undefined."""

    difference: float | None
    interval: tuple[float, float] | None
    p_value: float | None


def bootstrap_intervals(
    task: str,
    predictions: ArrayLike,
    references: ArrayLike,
    *,
    units: ArrayLike | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, tuple[float, float] | None]:
    """95 % percentile interval of every metric of a task, over resampled examples and seeds.

    Each resample draws n of the n examples with replacement and, of predictions by several seeds, one seed. The
    interval is thus that of the score of one run, on other examples and with another seed; with one seed it knows
    nothing of the variation between seeds. Ranks (Spearman) are computed again in each resample, ties at their mean
    rank. The order of the examples does not matter.

    Args:
        task: a key of `TASK_METRICS`, which gives the metrics.
        predictions: (n,), or (K, n) for K seeds: class ids, or real values for the tasks scored by correlation.
        references: (n,) gold labels.
        units: (n,) what each example is of, such as a novel: these are drawn, each with all its examples. None: each
            example is one.
        resamples: number of bootstrap resamples.
        seed: of the resampling.

    Returns:
        (low, high) per metric: the 2.5 % and 97.5 % quantile of the resampled scores. None where the score is
        undefined already on the examples themselves, for any seed. A resample on which it is undefined (all its
        predictions or references equal) is not left out, it counts as the lowest possible score for `low` and as the
        highest for `high`; a RuntimeWarning gives their number.

    Raises:
        ValueError: resamples below 1; shapes that do not fit; anything that `benchmark_score` raises.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, 13.3 (percentile interval).
    Differs: seeds are drawn together with the examples.
    """
    rows, labels = _checked("predictions", task, predictions, references, resamples)
    defined = mean_scores(task, predictions, references)
    intervals: dict[str, tuple[float, float] | None] = {}
    for metric, scores in bootstrap_scores(task, rows[None], labels, resamples, seed, units).items():
        low = LOWEST[metric]
        intervals[metric] = None if defined[metric] is None else percentile_interval(metric, scores[0], low, 1.0)
    return intervals


def paired_bootstrap(
    task: str,
    predictions: ArrayLike,
    control_predictions: ArrayLike,
    references: ArrayLike,
    *,
    units: ArrayLike | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Paired]:
    """How much better than a control the predictions score, both scored on the same resamples.

    Args:
        task: a key of `TASK_METRICS`, which gives the metrics.
        predictions: (n,), or (K, n) for K seeds.
        control_predictions: the control's on the same examples: (n,), or (K, n) by the same seeds in the same order.
            One row on either side stands against every row of the other.
        references: (n,) gold labels.
        units: as in `bootstrap_intervals`.
        resamples: number of bootstrap resamples. Each draws n examples and one seed, as in `bootstrap_intervals`.
        seed: of the resampling.

    Returns:
        Per metric `difference`, the mean over seeds of predictions' score minus control's; `interval`, its 95 %
        percentile interval (low, high); `p_value`, two-sided, for the hypothesis that the true difference is 0:
        p = min(1, 2 (1 + min(#{d* <= 0}, #{d* >= 0})) / (1 + resamples)) with d* the resampled differences. It says
        the same as the interval: p < 0.05 where the interval leaves 0 out. All three None where a score is undefined
        on the examples themselves. An undefined resample counts as the lowest possible difference for the lower
        bound, as the highest for the upper one, and on both sides in p; a RuntimeWarning gives their number.

    Raises:
        ValueError: as `bootstrap_intervals`; numbers of seeds that differ where neither is 1.

    Source: Koehn 2004, Statistical Significance Tests for Machine Translation Evaluation (paired resamples, share of
        them on the wrong side of 0); Efron & Tibshirani 1993, 13.3 and 15.4 (percentile interval, and the test that
        inverts it); Davison & Hinkley 1997, chapter 4 (the 1 added on either side, so that p is never 0).
    Differs: two-sided, by doubling the smaller share. Berg-Kirkpatrick et al. 2012 shift the differences by the
        observed one instead of inverting the interval.
    """
    rows, labels = _checked("predictions", task, predictions, references, resamples)
    control_rows, _ = _checked("control_predictions", task, control_predictions, references, resamples)
    seeds = {len(rows), len(control_rows)}
    if len(seeds - {1}) > 1:
        raise ValueError(
            f"predictions and control_predictions must be by the same seeds, or one of them by one seed; got "
            f"{len(rows)} and {len(control_rows)} seeds"
        )
    both = np.stack(np.broadcast_arrays(rows, control_rows))
    own = mean_scores(task, predictions, references)
    control = mean_scores(task, control_predictions, references)
    results: dict[str, Paired] = {}
    for metric, scores in bootstrap_scores(task, both, labels, resamples, seed, units).items():
        first, second = own[metric], control[metric]
        if first is None or second is None:
            results[metric] = Paired(None, None, None)
            continue
        differences = scores[0] - scores[1]
        widest = 1.0 - LOWEST[metric]
        results[metric] = Paired(
            first - second,
            percentile_interval(f"the {metric} difference", differences, -widest, widest),
            two_sided_p_value(differences),
        )
    return results


def control_scores(
    task: str,
    predictions: ArrayLike,
    control_predictions: ArrayLike,
    references: ArrayLike,
    *,
    units: ArrayLike | None = None,
    resamples: int = 10_000,
) -> dict[str, ControlScore]:
    """What a control scores, and how much more the predictions do; arguments and errors as `paired_bootstrap`."""
    values = mean_scores(task, control_predictions, references)
    options: dict[str, Any] = {"units": units, "resamples": resamples}
    intervals = bootstrap_intervals(task, control_predictions, references, **options)
    paired = paired_bootstrap(task, predictions, control_predictions, references, **options)
    return {
        metric: ControlScore(
            value=values[metric],
            interval=intervals[metric],
            difference=each.difference,
            difference_interval=each.interval,
            p_value=each.p_value,
        )
        for metric, each in paired.items()
    }


def mean_scores(task: str, predictions: ArrayLike, references: ArrayLike) -> dict[str, float | None]:
    """`benchmark_score` of (n,) or (K, n) predictions, mean over the K seeds; None where any seed's is undefined."""
    rows, labels = _checked("predictions", task, predictions, references, resamples=1)
    by_seed = [benchmark_score(task, row, labels) for row in rows]
    means: dict[str, float | None] = {}
    for metric in by_seed[0]:
        values = [scores[metric] for scores in by_seed]
        defined = [value for value in values if value is not None]
        means[metric] = math.fsum(defined) / len(values) if len(defined) == len(values) else None
    return means


def bootstrap_scores(
    task: str,
    predictions: np.ndarray,
    references: np.ndarray,
    resamples: int,
    seed: int,
    units: ArrayLike | None = None,
) -> dict[str, np.ndarray]:
    """Scores of several systems on the same resamples.

    Args:
        task: a key of `TASK_METRICS`.
        predictions: (S, K, n), S systems by K seeds each.
        references: (n,).
        resamples, seed, units: as in `bootstrap_intervals`.

    Returns:
        (S, resamples) float64 per metric, NaN where undefined. Each column is one resample: the same examples and the
        same seed for every system.
    """
    num_systems, num_seeds, num_examples = predictions.shape
    # Equal examples are interchangeable, so it is enough to draw how often each distinct one occurs: the same
    # distribution, only a few columns for class ids, and no dependence on the order of the examples.
    columns = np.concatenate([references[None], predictions.reshape(-1, num_examples)])
    if units is None:
        (distinct, counts), place = np.unique(columns, axis=1, return_counts=True), None
    else:
        given = np.asarray(units)
        if given.shape != references.shape:
            raise ValueError(f"units must be {references.shape}, one of each example, got shape {given.shape}")
        names, place = np.unique(given, return_inverse=True)
        distinct, counts = columns, np.ones(len(names), dtype=int)
    labels, systems = distinct[0], distinct[1:].reshape(num_systems, num_seeds, -1)
    metrics = list(benchmark_score(task, predictions[0, 0], references))
    scores = {metric: np.empty((num_systems, resamples)) for metric in metrics}
    rng = np.random.default_rng(seed)
    seed_of_resample = rng.integers(num_seeds, size=resamples)
    for rows, drawn_weights in _resampled_weights(counts, resamples, rng):
        weights = drawn_weights if place is None else drawn_weights[:, place]
        for drawn in np.unique(seed_of_resample[rows]):
            with_seed = np.flatnonzero(seed_of_resample[rows] == drawn)
            for metric in metrics:
                for system in range(num_systems):
                    values = WEIGHTED_METRICS[metric](weights[with_seed], systems[system, drawn], labels)
                    scores[metric][system, rows.start + with_seed] = values
    return scores


def _resampled_weights(
    counts: np.ndarray, resamples: int, rng: np.random.Generator
) -> Iterator[tuple[slice, np.ndarray]]:
    """Chunks of rows of the (resamples, U) matrix of how often each distinct example is drawn."""
    total = counts.sum()
    step = max(1, CHUNK // len(counts))
    for start in range(0, resamples, step):
        rows = slice(start, min(start + step, resamples))
        yield rows, rng.multinomial(total, counts / total, size=rows.stop - rows.start).astype(np.float64)


def _accuracy(weights: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    return weights @ (predictions == references) / weights.sum(axis=1)


def _f1(weights: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    predicted, actual = predictions == 1, references == 1
    positives = weights @ predicted + weights @ actual
    return _divided(2 * (weights @ (predicted & actual)), positives)


def _matthews(weights: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    classes = np.union1d(predictions, references)
    predicted = weights @ (predictions[:, None] == classes)  # (R, classes)
    actual = weights @ (references[:, None] == classes)
    total = weights.sum(axis=1)
    correct = weights @ (predictions == references)
    covariance = correct * total - (predicted * actual).sum(axis=1)
    variances = (total**2 - (predicted**2).sum(axis=1)) * (total**2 - (actual**2).sum(axis=1))
    # 0, not undefined, for constant predictions or references: as scikit-learn has it.
    return np.nan_to_num(_divided(covariance, np.sqrt(variances)), nan=0.0)


def _pearson(weights: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    total = weights.sum(axis=1)
    x, y = (_standardised(values) for values in (predictions, references))
    mean_x, mean_y = weights @ x / total, weights @ y / total
    covariance = weights @ (x * y) / total - mean_x * mean_y
    variances = [weights @ x**2 / total - mean_x**2, weights @ y**2 / total - mean_y**2]
    correlation = _divided(covariance, np.sqrt(np.clip(variances[0], 0, None) * np.clip(variances[1], 0, None)))
    # The variance of equal values is a rounding error here, so look at the values themselves where it is next to 0.
    for row in np.flatnonzero(np.minimum(*variances) < 1e-9):
        drawn = weights[row] > 0
        if np.ptp(x[drawn]) == 0 or np.ptp(y[drawn]) == 0:
            correlation[row] = math.nan
    return np.clip(correlation, -1, 1)


def _spearman(weights: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    x, y = _centred_ranks(weights, predictions), _centred_ranks(weights, references)
    # Multiples of 1/4, summed exactly: the variance of equal values is 0 and nothing else.
    variances = [np.einsum("ru,ru,ru->r", weights, ranks, ranks) for ranks in (x, y)]
    return _divided(np.einsum("ru,ru,ru->r", weights, x, y), np.sqrt(variances[0] * variances[1]))


def _centred_ranks(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(R, U) rank of each distinct example within each resample, ties at their mean rank, minus the mean rank."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    sizes = np.add.reduceat(weights[:, order], starts, axis=1)  # how often each distinct value was drawn
    ranks = np.cumsum(sizes, axis=1) - (sizes - 1) / 2
    return ranks[:, group] - (weights.sum(axis=1, keepdims=True) + 1) / 2


WEIGHTED_METRICS: dict[str, WeightedMetric] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "pearson": _pearson,
    "spearman": _spearman,
    "matthews_correlation": _matthews,
}
# The highest of each is 1.
LOWEST = {"accuracy": 0.0, "f1": 0.0, "pearson": -1.0, "spearman": -1.0, "matthews_correlation": -1.0}


def _divided(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient, NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(numerator.shape, math.nan), where=denominator != 0)


def _standardised(values: np.ndarray) -> np.ndarray:
    spread = np.std(values)
    return (values - np.mean(values)) / spread if spread > 0 else np.zeros(values.shape)


def two_sided_p_value(differences: np.ndarray) -> float:
    """Of (R,) resampled differences, as `paired_bootstrap` has it; NaN is on both sides."""
    wrong_side = min((~(differences > 0)).sum(), (~(differences < 0)).sum())
    return float(min(1.0, 2 * (1 + wrong_side) / (1 + len(differences))))


def percentile_interval(what: str, scores: np.ndarray, lowest: float, highest: float) -> tuple[float, float]:
    """Of (R,) resampled scores, undefined ones at either end, as `bootstrap_intervals` has it."""
    undefined = np.isnan(scores)
    if undefined.any():
        warnings.warn(
            f"{undefined.sum()} of {scores.size} resamples leave {what} undefined (all predictions or references "
            f"equal); they count as {lowest:g} for the lower bound and as {highest:g} for the upper one",
            RuntimeWarning,
            stacklevel=3,
        )
    tail = (1 - LEVEL) / 2
    low = np.quantile(np.where(undefined, lowest, scores), tail)
    high = np.quantile(np.where(undefined, highest, scores), 1 - tail)
    return float(low), float(high)


def _checked(
    name: str, task: str, predictions: ArrayLike, references: ArrayLike, resamples: int
) -> tuple[np.ndarray, np.ndarray]:
    """(K, n) predictions and (n,) references in float64, which holds class ids exactly."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    rows, labels = np.asarray(predictions), np.asarray(references)
    if rows.ndim not in (1, 2) or rows.size == 0:
        raise ValueError(f"{name} must be (n,), or (seeds, n) with at least one seed, got shape {rows.shape}")
    rows = np.atleast_2d(rows)
    for row in rows:
        try:
            benchmark_score(task, row, labels)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return rows.astype(np.float64), labels.astype(np.float64)
