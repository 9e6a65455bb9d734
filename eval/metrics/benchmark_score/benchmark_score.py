"""Metrics of the benchmark tasks, computed by scikit-learn and SciPy: an `evaluate` module that needs no network."""

import math
from collections.abc import Callable, Sequence

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

# Here and not in the registry: `evaluate` loads this file alone, so it can import nothing of the package.
TASK_METRICS: dict[str, tuple[str, ...]] = {
    "mrpc": ("f1", "accuracy"),
    "stsb": ("pearson", "spearman"),
    "qqp": ("f1", "accuracy"),
    "rte": ("accuracy",),
    "sst2": ("accuracy",),
    "cola": ("matthews_correlation",),
    "mnli_matched": ("accuracy",),
    "mnli_mismatched": ("accuracy",),
    "qnli": ("accuracy",),
    "wnli": ("accuracy",),
    "paws": ("accuracy", "f1"),
    "sick_relatedness": ("pearson", "spearman"),
    "sick_entailment": ("accuracy",),
    **{f"sts{year}": ("spearman", "pearson") for year in (12, 13, 14, 15)},
    "microworld_similarity": ("pearson", "spearman"),
    "microworld_paraphrase": ("accuracy", "f1"),
    "microworld_entailment": ("accuracy",),
    "novel_authors": ("accuracy",),
    "article_bias": ("accuracy",),
    "movie_reviews_long": ("accuracy",),
    "hyperpartisan": ("accuracy",),
}


def _correlation(function: Callable, predictions: np.ndarray, references: np.ndarray) -> float:
    # SciPy says the same, by a warning and NaN.
    if np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return math.nan
    return function(predictions, references).statistic


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda predictions, references: accuracy_score(references, predictions),
    "f1": lambda predictions, references: f1_score(references, predictions, zero_division=np.nan),
    "pearson": lambda predictions, references: _correlation(pearsonr, predictions, references),
    "spearman": lambda predictions, references: _correlation(spearmanr, predictions, references),
    "matthews_correlation": lambda predictions, references: matthews_corrcoef(references, predictions),
}
CORRELATIONS = ("pearson", "spearman")


def benchmark_score(
    task: str, predictions: Sequence[float] | np.ndarray, references: Sequence[float] | np.ndarray
) -> dict[str, float | None]:
    """Every metric of a task, the primary one first.

    Args:
        task: a key of `TASK_METRICS`.
        predictions: (n,) class ids, or real values for the tasks scored by correlation.
        references: (n,) gold labels of the same kind.

    Returns:
        Metric name to value, a fraction or a correlation. `None` where the metric is undefined, which strict JSON can
        hold and a zero would hide: a correlation with constant predictions or references, an F1 with no positive in
        either. A Matthews correlation with constant predictions is 0, as scikit-learn has it.

    Raises:
        ValueError: unknown task; lengths that differ; fewer than two examples; values that are not finite; class ids
            that are not whole numbers.

    Source: Wang et al. 2019, GLUE, arXiv:1804.07461, for the choice of metrics; F1 is that of class 1.
    """
    if task not in TASK_METRICS:
        raise ValueError(f"Unknown task {task!r}. Available: {', '.join(TASK_METRICS)}")
    names = TASK_METRICS[task]
    arrays = {"predictions": np.asarray(predictions), "references": np.asarray(references)}
    sizes = {name: array.shape for name, array in arrays.items()}
    if arrays["predictions"].ndim != 1 or sizes["predictions"] != sizes["references"]:
        raise ValueError(
            f"predictions and references must be flat and of one length, got shapes {sizes['predictions']} "
            f"and {sizes['references']}"
        )
    if len(arrays["references"]) < 2:
        raise ValueError(f"{task} needs at least 2 examples to be scored, got {len(arrays['references'])}")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} of {task} hold {(~np.isfinite(array)).sum()} values that are not finite")
        if not set(names) & set(CORRELATIONS):
            if (array != np.round(array)).any():
                raise ValueError(f"{name} of {task} must be class ids, got {array[array != np.round(array)][0]}")
            arrays[name] = array.astype(np.int64)
    scores = {name: float(METRICS[name](arrays["predictions"], arrays["references"])) for name in names}
    return {name: value if math.isfinite(value) else None for name, value in scores.items()}


class BenchmarkScore(evaluate.Metric):
    """`evaluate` front of `benchmark_score`: `compute(predictions=..., references=..., task="mrpc")`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Scores of the tasks that concept encoders are judged on (GLUE, PAWS, SICK, microworld).",
            citation="",
            inputs_description=(
                "predictions, references: class ids, or real values for similarity tasks; "
                f"task: one of {', '.join(TASK_METRICS)}."
            ),
            # One type for class ids and scores: a float64 holds every class id exactly.
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def compute(self, **inputs):
        """As `evaluate.EvaluationModule.compute`; ValueError that names what is missing."""
        missing = [name for name in ("predictions", "references") if inputs.get(name) is None]
        if missing and (self.writer is None or len(missing) == 1):  # else they were added before
            raise ValueError(f"compute needs {' and '.join(f'{name}=' for name in missing)}, (n,) each")
        return super().compute(**inputs)

    def _compute(
        self, predictions: list[float], references: list[float], task: str | None = None
    ) -> dict[str, float | None]:
        if task is None:
            raise ValueError(f"compute needs task=, one of {', '.join(TASK_METRICS)}")
        return benchmark_score(task, predictions, references)
