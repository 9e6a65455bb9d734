"""Scores equal scikit-learn's and SciPy's on the same predictions, by import and through `evaluate.load`."""

import json
from pathlib import Path

import evaluate
import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from concept_encoder.eval.metrics import benchmark_score as module
from concept_encoder.eval.metrics.benchmark_score import TASK_METRICS, BenchmarkScore, benchmark_score

EXPECTED = {
    "accuracy": lambda p, r: accuracy_score(r, p),
    "f1": lambda p, r: f1_score(r, p),
    "pearson": lambda p, r: pearsonr(p, r)[0],
    "spearman": lambda p, r: spearmanr(p, r)[0],
    "matthews_correlation": lambda p, r: matthews_corrcoef(r, p),
}
CLASSES = {"sick_entailment": 3, "mnli_matched": 3, "mnli_mismatched": 3, "microworld_entailment": 3}


def random_case(task: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    if "pearson" in TASK_METRICS[task]:
        references = rng.integers(0, 26, 200) / 5  # ties, as in STS-B
        return references + rng.normal(size=200), references
    classes = CLASSES.get(task, 2)
    return rng.integers(0, classes, 200), rng.integers(0, classes, 200)


@pytest.fixture(scope="module")
def loaded():
    return evaluate.load(str(Path(module.__file__).resolve().parent), experiment_id="test-benchmark-score")


@pytest.mark.parametrize("task", TASK_METRICS)
def test_equals_scikit_learn_and_scipy(task):
    for seed in range(3):
        predictions, references = random_case(task, seed)
        scores = benchmark_score(task, predictions, references)
        assert scores == {name: EXPECTED[name](predictions, references) for name in TASK_METRICS[task]}
        assert next(iter(scores)) == TASK_METRICS[task][0]


@pytest.mark.parametrize("task", ["mrpc", "cola", "sick_entailment", "stsb"])
def test_loads_by_path_with_the_same_numbers(task, loaded):
    predictions, references = random_case(task, 7)
    by_path = loaded.compute(predictions=predictions, references=references, task=task)
    assert by_path == benchmark_score(task, predictions, references)
    assert by_path == BenchmarkScore().compute(
        predictions=predictions.tolist(), references=references.tolist(), task=task
    )


def test_undefined_scores_are_null_in_strict_json():
    correlations = benchmark_score("stsb", [2.5, 2.5, 2.5], [0.0, 1.0, 5.0])
    assert correlations == {"pearson": None, "spearman": None}
    assert json.loads(json.dumps(correlations, allow_nan=False)) == correlations
    assert benchmark_score("stsb", [1.0, 2.0, 3.0], [4.0, 4.0, 4.0])["spearman"] is None
    assert benchmark_score("mrpc", [0, 0], [0, 0]) == {"f1": None, "accuracy": 1.0}


def test_scores_of_constant_predictions_that_are_defined():
    assert benchmark_score("mrpc", [0, 0, 0], [0, 1, 1]) == {"f1": 0.0, "accuracy": 1 / 3}
    assert benchmark_score("cola", [1, 1, 1], [0, 1, 1]) == {"matthews_correlation": 0.0}


@pytest.mark.parametrize(
    ("task", "predictions", "references", "message"),
    [
        ("mrcp", [0, 1], [0, 1], "Unknown task 'mrcp'. Available: mrpc, stsb"),
        ("mrpc", [0, 1, 1], [0, 1], r"one length, got shapes \(3,\) and \(2,\)"),
        ("mrpc", [[0, 1]], [[0, 1]], "must be flat"),
        ("mrpc", [0], [0], "at least 2 examples to be scored, got 1"),
        ("mrpc", [0, 0.5], [0, 1], "predictions of mrpc must be class ids, got 0.5"),
        ("stsb", [0.0, float("nan")], [0.0, 1.0], "predictions of stsb hold 1 values that are not finite"),
    ],
)
def test_refuses(task, predictions, references, message):
    with pytest.raises(ValueError, match=message):
        benchmark_score(task, predictions, references)
