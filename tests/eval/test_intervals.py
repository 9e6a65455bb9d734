"""Bootstrap against scikit-learn, SciPy, known truths and answers worked out by hand."""

import tracemalloc
import warnings

import numpy as np
import pytest
from scipy import stats

from concept_encoder.eval.metrics import intervals as statistics
from concept_encoder.eval.metrics.benchmark_score import TASK_METRICS, benchmark_score
from concept_encoder.eval.metrics.benchmark_score.benchmark_score import METRICS
from concept_encoder.eval.metrics.intervals import (
    WEIGHTED_METRICS,
    bootstrap_intervals,
    bootstrap_scores,
    mean_scores,
    paired_bootstrap,
)

CORRELATIONS = ("pearson", "spearman")


def random_case(metric: str, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Predictions that are right more often than not, with ties."""
    if metric in CORRELATIONS:
        references = rng.integers(0, 26, n) / 5
        return np.round(references + rng.normal(size=n), 1), references
    classes = 3 if metric in ("accuracy", "matthews_correlation") else 2
    references = rng.integers(0, classes, n).astype(float)
    return np.where(rng.random(n) < 0.3, rng.integers(0, classes, n), references), references


@pytest.mark.parametrize("metric", WEIGHTED_METRICS)
def test_weighted_metric_equals_the_metric_of_the_repeated_examples(metric):
    """The identity resample, and others: ranks and moments are those of the resample, not of the whole."""
    rng = np.random.default_rng(0)
    for n in (5, 40, 200):
        predictions, references = random_case(metric, n, rng)
        weights = np.concatenate([np.ones((1, n)), rng.multinomial(n, np.full(n, 1 / n), size=20)])
        found = WEIGHTED_METRICS[metric](weights, predictions, references)
        for row, value in zip(weights.astype(int), found, strict=True):
            expected = METRICS[metric](np.repeat(predictions, row), np.repeat(references, row))
            np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_every_metric_of_every_task_is_covered():
    assert set(WEIGHTED_METRICS) == set(METRICS) == set(statistics.LOWEST)
    for task, metrics in TASK_METRICS.items():
        predictions, references = random_case(metrics[-1], 30, np.random.default_rng(0))
        if metrics[0] not in CORRELATIONS:
            predictions, references = predictions % 2, references % 2
        assert tuple(bootstrap_intervals(task, predictions, references, resamples=50)) == metrics


@pytest.mark.slow
@pytest.mark.parametrize("metric", CORRELATIONS)
def test_resampled_examples_are_drawn_with_replacement(metric):
    """As SciPy's percentile bootstrap on the same data, up to the Monte-Carlo error of either."""
    predictions, references = random_case(metric, 150, np.random.default_rng(1))

    def statistic(x, y, axis=-1):
        x, y = (np.apply_along_axis(stats.rankdata, axis, v) if metric == "spearman" else v for v in (x, y))
        x, y = (v - v.mean(axis=axis, keepdims=True) for v in (x, y))
        return (x * y).sum(axis=axis) / np.sqrt((x**2).sum(axis=axis) * (y**2).sum(axis=axis))

    expected = stats.bootstrap(
        (predictions, references),
        statistic,
        n_resamples=4000,
        paired=True,
        vectorized=True,
        method="percentile",
        rng=0,
    )
    found = bootstrap_intervals("stsb", predictions, references, resamples=4000)[metric]
    # A 2.5 % quantile of 4000 draws has a standard error of about 0.04 standard deviations.
    np.testing.assert_allclose(found, expected.confidence_interval, atol=0.25 * expected.standard_error)


def test_what_is_drawn_are_the_units():
    """Two novels, one always right and one never: of two drawn at random none, one or both are right."""
    right, labels = np.repeat([1.0, 0.0], 50), np.ones(100)
    novels = np.repeat(["a", "b"], 50)
    apart = bootstrap_intervals("rte", right, labels)["accuracy"]
    together = bootstrap_intervals("rte", right, labels, units=novels)["accuracy"]
    assert apart == pytest.approx((0.4, 0.6), abs=0.02) and together == (0.0, 1.0)
    paired = paired_bootstrap("rte", right, np.zeros(100), labels, units=novels)["accuracy"]
    assert (paired.difference, paired.interval) == (0.5, (0.0, 1.0)) and paired.p_value == pytest.approx(0.5, abs=0.03)
    each = bootstrap_intervals("rte", right, labels, units=np.arange(100))["accuracy"]
    assert each == pytest.approx(apart, abs=0.011)
    with pytest.raises(ValueError, match=r"units must be \(100,\), one of each example, got shape \(2,\)"):
        bootstrap_intervals("rte", right, labels, units=["a", "b"])


def test_accuracy_interval_is_that_of_the_binomial_distribution():
    references = np.zeros(400)
    predictions = (np.arange(400) < 100).astype(float)
    interval = bootstrap_intervals("rte", predictions, references)["accuracy"]
    np.testing.assert_allclose(interval, stats.binom.ppf([0.025, 0.975], 400, 0.75) / 400, atol=1 / 400)


@pytest.mark.slow
def test_intervals_cover_the_truth():
    rng = np.random.default_rng(2)
    covered = {"accuracy": 0, "pearson": 0}
    for simulation in range(200):
        right = rng.random(120) < 0.7
        interval = bootstrap_intervals("rte", right, np.ones(120), resamples=600, seed=simulation)["accuracy"]
        covered["accuracy"] += interval[0] <= 0.7 <= interval[1]
        x, y = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=120).T
        interval = bootstrap_intervals("stsb", x, y, resamples=600, seed=simulation)["pearson"]
        covered["pearson"] += interval[0] <= 0.6 <= interval[1]
    assert all(0.90 <= count / 200 <= 0.99 for count in covered.values()), covered


@pytest.mark.slow
def test_paired_test_raises_few_false_alarms_and_finds_a_difference():
    rng = np.random.default_rng(3)
    alarms, found = 0, 0
    for simulation in range(200):
        right = rng.random((3, 150)) < np.array([[0.7], [0.7], [0.85]])
        first, second, better = right.astype(int)
        options = {"resamples": 600, "seed": simulation}
        alarms += paired_bootstrap("rte", first, second, np.ones(150), **options)["accuracy"].p_value < 0.05
        found += paired_bootstrap("rte", better, second, np.ones(150), **options)["accuracy"].p_value < 0.05
    assert alarms <= 20
    assert found >= 150


def test_same_seed_same_numbers_in_any_order_of_the_examples():
    rng = np.random.default_rng(4)
    references = rng.integers(0, 26, 200) / 5
    predictions = references + rng.normal(size=(3, 200))
    control = references + 2 * rng.normal(size=200)
    order = rng.permutation(200)
    first = bootstrap_intervals("stsb", predictions, references, resamples=700)
    assert first == bootstrap_intervals("stsb", predictions, references, resamples=700)
    assert first == bootstrap_intervals("stsb", predictions[:, order], references[order], resamples=700)
    assert first != bootstrap_intervals("stsb", predictions, references, resamples=700, seed=1)
    paired = paired_bootstrap("stsb", predictions, control, references, resamples=300)
    shuffled = paired_bootstrap("stsb", predictions[:, order], control[order], references[order], resamples=300)
    for metric in CORRELATIONS:
        assert paired[metric].interval == shuffled[metric].interval
        assert paired[metric].p_value == shuffled[metric].p_value


def test_chunks_do_not_show(monkeypatch):
    predictions, references = random_case("spearman", 60, np.random.default_rng(5))
    whole = bootstrap_intervals("stsb", predictions, references, resamples=200)
    monkeypatch.setattr(statistics, "CHUNK", 1000)
    for metric, interval in bootstrap_intervals("stsb", predictions, references, resamples=200).items():
        assert interval == pytest.approx(whole[metric])


@pytest.mark.slow
def test_memory_is_bounded():
    predictions, references = random_case("spearman", 5000, np.random.default_rng(6))
    tracemalloc.start()
    paired_bootstrap("stsb", predictions + 1e-6 * np.arange(5000), references, references, resamples=300)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20


def test_seeds_are_part_of_the_interval():
    references = np.ones(100)
    good, bad = (np.arange(100) < 90).astype(int), (np.arange(100) < 60).astype(int)
    both = np.stack([good, bad])
    low, high = bootstrap_intervals("rte", both, references)["accuracy"]
    assert low == pytest.approx(bootstrap_intervals("rte", bad, references)["accuracy"][0], abs=0.03)
    assert high == pytest.approx(bootstrap_intervals("rte", good, references)["accuracy"][1], abs=0.03)
    assert mean_scores("rte", both, references) == {"accuracy": pytest.approx(0.75)}
    assert mean_scores("rte", good, references) == benchmark_score("rte", good, references)
    assert bootstrap_intervals("rte", good, references) == bootstrap_intervals("rte", [good], references)


def test_identical_predictions_differ_by_nothing():
    rng = np.random.default_rng(7)
    references = rng.integers(0, 26, 80) / 5
    for predictions in (references + rng.normal(size=80), references + rng.normal(size=(3, 80))):
        for row in paired_bootstrap("stsb", predictions, predictions, references, resamples=500).values():
            assert row == (0.0, (0.0, 0.0), 1.0)


@pytest.mark.slow
def test_paired_difference_is_signed_and_its_p_value_says_what_the_interval_says():
    rng = np.random.default_rng(8)
    references = rng.integers(0, 2, 300)
    control = np.where(rng.random(300) < 0.35, 1 - references, references)
    for share_wrong in (0.20, 0.28, 0.31, 0.35, 0.45):
        predictions = np.where(rng.random(300) < share_wrong, 1 - references, references)
        forward = paired_bootstrap("mrpc", predictions, control, references, resamples=4000)
        backward = paired_bootstrap("mrpc", control, predictions, references, resamples=4000)
        scores = benchmark_score("mrpc", predictions, references), benchmark_score("mrpc", control, references)
        for metric, row in forward.items():
            assert row.difference == pytest.approx(scores[0][metric] - scores[1][metric])
            assert row.difference == -backward[metric].difference
            low, high = row.interval
            assert low <= row.difference <= high
            if abs(row.p_value - 0.05) > 0.01:
                assert (row.p_value < 0.05) == (low > 0 or high < 0)


def test_p_value_as_defined():
    """9 right of 10 against 6 of 10: the share of resamples on the wrong side of 0, doubled, one added."""
    references, predictions, control = np.ones(10), np.arange(10) < 9, np.arange(10) < 6
    row = paired_bootstrap("rte", predictions, control, references, resamples=999, seed=5)["accuracy"]
    scores = bootstrap_scores("rte", np.array([[predictions], [control]], float), references, 999, 5)["accuracy"]
    differences = scores[0] - scores[1]
    assert row.p_value == 2 * (1 + (differences <= 0).sum()) / 1000
    assert row.interval == pytest.approx(tuple(np.quantile(differences, [0.025, 0.975])))
    certain = paired_bootstrap("rte", references, 1 - references, references, resamples=999)["accuracy"]
    assert certain == (1.0, (1.0, 1.0), 2 / 1000)


def test_one_control_stands_against_every_seed():
    rng = np.random.default_rng(9)
    references = rng.integers(0, 2, 200)
    predictions = np.where(rng.random((3, 200)) < 0.2, 1 - references, references)
    control = np.where(rng.random(200) < 0.4, 1 - references, references)
    row = paired_bootstrap("rte", predictions, control, references, resamples=500)
    assert row == paired_bootstrap("rte", predictions, np.stack([control] * 3), references, resamples=500)
    expected = np.mean([benchmark_score("rte", seed, references)["accuracy"] for seed in predictions])
    assert row["accuracy"].difference == pytest.approx(expected - (control == references).mean())


@pytest.mark.filterwarnings("ignore:.* leave .*spearman.* undefined:RuntimeWarning")
def test_undefined_resamples_widen_the_interval_and_are_counted():
    """Of two examples every other resample holds one of them twice."""
    message = (
        r"^\d+ of 1000 resamples leave pearson undefined .* count as -1 for the lower bound and as 1 for the upper"
    )
    for values in ([0.1, 0.2], [1e6, 1e6 + 1e-3]):
        with pytest.warns(RuntimeWarning, match=message) as caught:
            intervals = bootstrap_intervals("stsb", values, [1.0, 2.0], resamples=1000)
        count = int(str(caught[0].message).split()[0])
        assert 430 < count < 570
        assert intervals["pearson"] == intervals["spearman"] == (-1.0, 1.0)
    with pytest.warns(RuntimeWarning, match="leave the pearson difference undefined"):
        paired = paired_bootstrap("stsb", [0.1, 0.2], [0.2, 0.1], [1.0, 2.0], resamples=1000)["pearson"]
    assert (paired.difference, paired.interval) == (2.0, (-2.0, 2.0))
    assert paired.p_value == 2 * (1 + count) / 1001  # the undefined ones count as on the wrong side


def test_f1_without_positives_is_undefined_and_counts_from_0_to_1():
    references = np.array([1] + [0] * 9)
    with pytest.warns(RuntimeWarning, match="leave f1 undefined .* count as 0 for the lower bound"):
        intervals = bootstrap_intervals("mrpc", references, references, resamples=500)
    assert intervals == {"f1": (0.0, 1.0), "accuracy": (1.0, 1.0)}


def test_scores_undefined_on_the_examples_have_no_interval():
    references = np.array([0.0, 1.0, 2.0, 5.0])
    constant = np.full((2, 4), 2.5)
    constant[1] = [1.0, 2.0, 3.0, 4.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bootstrap_intervals("stsb", constant, references, resamples=100) == dict.fromkeys(CORRELATIONS)
        paired = paired_bootstrap("stsb", references, constant, references, resamples=100)
    assert paired["spearman"] == (None, None, None)
    assert mean_scores("stsb", constant, references) == dict.fromkeys(CORRELATIONS)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("mrcp", [0, 1], [0, 1]), {}, "predictions: Unknown task 'mrcp'. Available: mrpc, stsb"),
        (("mrpc", [0, 1, 1], [0, 1]), {}, r"predictions: .* one length, got shapes \(3,\) and \(2,\)"),
        (("mrpc", [0, 0.5], [0, 1]), {}, "predictions: predictions of mrpc must be class ids, got 0.5"),
        (("stsb", [0.0, np.nan], [0.0, 1.0]), {}, "predictions: predictions of stsb hold 1 values"),
        (("mrpc", [[[0, 1]]], [0, 1]), {}, r"predictions must be \(n,\), or \(seeds, n\) .*, got shape \(1, 1, 2\)"),
        (("mrpc", [], []), {}, r"at least one seed, got shape \(0,\)"),
        (("mrpc", 1, [0, 1]), {}, r"got shape \(\)"),
        (("mrpc", [0, 1], [0, 1]), {"resamples": 0}, "resamples must be at least 1, got 0"),
    ],
)
def test_refuses(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_intervals(*arguments, **options)
    if not options:
        with pytest.raises(ValueError, match=message):
            mean_scores(*arguments)
    task, predictions, references = arguments
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(task, predictions, [0, 1], references, **options)


def test_paired_refuses():
    with pytest.raises(ValueError, match=r"control_predictions: predictions of mrpc must be class ids, got 0\.5"):
        paired_bootstrap("mrpc", [0, 1], [0, 0.5], [0, 1])
    with pytest.raises(ValueError, match="by the same seeds, or one of them by one seed; got 2 and 3 seeds"):
        paired_bootstrap("mrpc", [[0, 1]] * 2, [[0, 1]] * 3, [0, 1])
