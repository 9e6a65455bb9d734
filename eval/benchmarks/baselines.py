"""What every score is compared with: a bag of tokens fitted to the same examples, and scores published elsewhere."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
from sklearn.svm import LinearSVC

from ...utils.results import Published
from ..metrics.benchmark_score import benchmark_score
from .registry import Task, find_benchmark

PUBLISHED_SCORES = Path(__file__).with_name("published.json")
FOLDS = 5
SEARCH_EXAMPLES = 10_000  # of larger training splits, a sample of this size chooses the regularisation
INVERSE_REGULARIZATION = tuple(float(strength) for strength in np.logspace(-2, 2, 9))


def bag_of_tokens(benchmark: Task, train: Dataset, validation: Dataset) -> np.ndarray:
    """Predictions of a linear model on TF-IDF vectors, which knows no word order and no text but the training split.

    TF-IDF with 1 + log counts over the words of all training sentences, unit length. A single sentence is its vector.
    A pair (a, b) is [|a - b|; a * b; their cosine; the share of common words in a, in b and in their union]; a and b
    themselves are left out, which was better in cross-validation on the training splits of STS-B, RTE and both SICK
    tasks, worse on MRPC. Logistic regression for classes, ridge regression for values; its regularisation is the one
    whose primary metric is best in 5-fold cross-validation on the training split; at most 10,000 of its examples
    take part. Nothing is random but the folds and that sample, and those have a fixed seed. A task with `svm` for its
    bag has a linear support vector machine, C = 1, in their place.

    Args:
        benchmark: the task, for its problem type and primary metric.
        train, validation: splits as `load_benchmark` returns them; the labels of `validation` are not read.

    Returns:
        (n,) predictions on `validation`, as `benchmark_score` takes them: class ids or values.

    Raises:
        ValueError: splits with different sentence columns; training examples of one class, or fewer than 5 of any.

    Source: pair features after Conneau et al. 2017, InferSent, arXiv:1705.02364.
    """
    names = [name for name in ("sentence1", "sentence2") if name in train.column_names]
    if not names or any(name not in validation.column_names for name in names):
        raise ValueError(
            f"{benchmark.name}: train and validation need the same columns sentence1 and, for pairs, sentence2; got "
            f"{', '.join(train.column_names)} and {', '.join(validation.column_names)}"
        )
    labels = np.asarray(train["label"])
    check_examples(benchmark, labels)
    texts = [train[name][:] for name in names]
    vectorizer = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", sublinear_tf=True)
    vectorizer.fit([text for column in texts for text in column])
    features = _features([vectorizer.transform(column) for column in texts])
    model = LinearSVC(random_state=0) if benchmark.bag == "svm" else regularised(benchmark, features, labels)
    model.fit(features, labels)
    return model.predict(_features([vectorizer.transform(validation[name][:]) for name in names]))


def published_scores(task: str) -> list[Published]:
    """Scores on a task that others have published, from `published.json`, where each has its source.

    Args:
        task: name in `BENCHMARKS`.

    Returns:
        One row per model and metric. Rows on other splits than validation, the one that is scored here, say how large
        the difference may be taken, not who is better.

    Raises:
        ValueError: unknown task.
    """
    find_benchmark(task)
    return [
        Published(
            metric=metric,
            score=score,
            comparable=entry["split"] == "validation",
            **{key: entry[key] for key in ("model", "split", "parameters", "source", "note")},
        )
        for entry in json.loads(PUBLISHED_SCORES.read_text(encoding="utf-8"))
        for metric, score in entry["scores"].get(task, {}).items()
    ]


def check_examples(benchmark: Task, labels: np.ndarray) -> None:
    """ValueError for training labels that `bag_of_tokens` would refuse."""
    if benchmark.problem_type == "regression":
        counts = {"examples": len(labels)}
    else:
        classes = np.unique_counts(labels)
        counts = dict(zip([f"of class {label}" for label in classes.values], classes.counts.tolist(), strict=True))
    if len(counts) < min(benchmark.num_labels, 2) or min(counts.values()) < FOLDS:
        found = ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
        raise ValueError(
            f"{benchmark.name}: the bag of tokens needs {FOLDS} training examples to be cross-validated, and {FOLDS} "
            f"of each of at least two classes; got {found}"
        )


def _features(vectors: list[sparse.csr_matrix]) -> sparse.csr_matrix:
    if len(vectors) == 1:
        return vectors[0]
    first, second = vectors
    product = first.multiply(second)
    common = product.astype(bool).sum(axis=1)
    sizes = [vector.astype(bool).sum(axis=1) for vector in (first, second)]
    # A sentence without a known word has no common one either: 0 of 1.
    shares = [common / np.maximum(size, 1) for size in (*sizes, sizes[0] + sizes[1] - common)]
    dense = np.stack([np.asarray(column).ravel() for column in (product.sum(axis=1), *shares)], axis=1)
    return sparse.hstack([abs(first - second), product, sparse.csr_matrix(dense)], format="csr")


def regularised(
    benchmark: Task,
    features: sparse.csr_matrix | np.ndarray,
    labels: np.ndarray,
    strengths: Sequence[float] = INVERSE_REGULARIZATION,
    examples: int = SEARCH_EXAMPLES,
) -> LogisticRegression | Ridge:
    """The linear model of (n, P) features with the regularisation that cross-validates best, not fitted yet."""
    if benchmark.problem_type == "regression":
        solver = "sparse_cg" if sparse.issparse(features) else "auto"
        model, folds = Ridge(solver=solver), KFold(FOLDS, shuffle=True, random_state=0)
        grid = {"alpha": [1 / strength for strength in strengths]}
    else:
        model, folds = LogisticRegression(max_iter=1000), StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        grid = {"C": list(strengths)}

    def primary_metric(candidate, held_out: sparse.csr_matrix, gold: np.ndarray) -> float:
        score = benchmark_score(benchmark.scored_as, candidate.predict(held_out), gold)[benchmark.primary_metric]
        return 0.0 if score is None else score  # undefined: constant predictions

    sample = np.random.default_rng(0).permutation(len(labels))[:examples]
    search = GridSearchCV(model, grid, cv=folds, scoring=primary_metric, refit=False)
    search.fit(features[sample], labels[sample])
    return model.set_params(**search.best_params_)
