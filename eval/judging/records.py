"""Scores that others wrote, judged by what is at hand: results of mteb, predictions of this package, or one's own.

A score of one's own is a JSON object: `task`, `metric`, `score`, and of these what there is: `labels` and
`predictions`, lists of one length; `controls`, lists of predictions by name; `history`, the scores on the same split
from which this one was chosen. The `trainer_state.json` of transformers is read as such a history.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from ...utils.results import Figure, JudgedRecord, PredictionsResult, TaskScore
from ...utils.untrusted import read_object
from ..benchmarks.registry import CHANCE_RULES
from ..metrics.benchmark_score.benchmark_score import CORRELATIONS, METRICS
from ..metrics.chance import BARELY, BARELY_ABOVE, judge
from ..metrics.intervals import bootstrap_intervals, paired_bootstrap

MTEB_TASKS = json.loads(Path(__file__).with_name("mteb_tasks.json").read_text(encoding="utf-8"))
SIMILARITIES = ("cosine", "manhattan", "euclidean", "dot", "similarity")  # in mteb's names of metrics
CLOSE = 5e-4  # of a score and its recomputation: scores are printed with three digits
FEW_VALUES = 10  # whole numbers, more of which are no classes
RESAMPLES = 2_000
SCORED_AS = {"pearson": "stsb", "spearman": "stsb", "f1": "mrpc", "accuracy": "rte", "matthews_correlation": "cola"}


@dataclass
class Record:
    """One score, as it was handed in."""

    name: str
    metric: str
    score: float | None
    labels: np.ndarray | None = None
    predictions: np.ndarray | None = None
    controls: dict[str, np.ndarray] = field(default_factory=dict)
    history: list[float] = field(default_factory=list)
    examples: int | None = None
    chance: float | None = None
    proper: str | None = None
    """metric that the task is scored by"""
    others: dict[str, float] = field(default_factory=dict)
    """metric -> value, next to it in the file"""

    @cached_property
    def judged(self) -> TaskScore:
        """The score against chance, with its interval: of the predictions where they are at hand."""
        metric, chance, interval, value = self.plain, self.chance, None, self.score
        if self.labels is not None and self.predictions is not None and self.can_be_scored:
            chance = chance_of(metric, self.labels)
            found = float(METRICS[metric](self.predictions, self.labels))
            value = found if math.isfinite(found) else None
            if value is not None:
                options = {"resamples": RESAMPLES}
                interval = bootstrap_intervals(SCORED_AS[metric], self.predictions, self.labels, **options)[metric]
        elif chance is None and metric in CORRELATIONS:
            chance = 0.0
        return judge(metric, value, chance, examples=self.examples, interval=interval)

    @property
    def can_be_scored(self) -> bool:
        """Whether the metric takes such predictions: class ids are whole numbers."""
        rows = [each for each in (self.labels, self.predictions) if each is not None]
        whole = all((each == np.round(each)).all() for each in rows)
        return bool(rows) and self.plain in METRICS and (self.plain in CORRELATIONS or whole)

    @property
    def plain(self) -> str:
        """The metric without the similarity that mteb puts in front."""
        return plain(self.metric)

    @property
    def graded(self) -> bool:
        """Whether labels are values and not classes."""
        if self.labels is None:
            return self.proper is not None and plain(self.proper) in CORRELATIONS
        return bool((self.labels != np.round(self.labels)).any()) or len(np.unique(self.labels)) > FEW_VALUES


def plain(metric: str) -> str:
    first, _, rest = metric.partition("_")
    return rest if first in SIMILARITIES and rest else metric


def read_records(path: str | os.PathLike) -> list[Record]:
    """The scores of a file.

    Args:
        path: of a result of mteb, with `TASK_predictions.json` (mteb's own) and `TASK_labels.json` (a list) next to it
            where they are; predictions of `finetune`; a trainer_state.json; or a score of one's own.

    Raises:
        ValueError: not JSON, or of none of these forms; lists of different lengths; values that are not finite.
        OSError: it cannot be opened.
    """
    path = Path(path)
    content = read_object(path)
    if content.get("kind") == PredictionsResult.kind:
        return _of_package(path)
    if "task_name" in content and isinstance(content.get("scores"), dict):
        return _of_mteb(path, content)
    if "log_history" in content:
        return _of_trainer(path, content)
    return [_own(path, content)]


def _own(path: Path, content: dict[str, Any]) -> Record:
    lacking = [name for name in ("task", "metric", "score") if name not in content]
    legal = ("task", "metric", "score", "labels", "predictions", "controls", "history")
    unknown = sorted(set(content) - set(legal))
    if lacking or unknown:
        what = f"lacks {', '.join(lacking)}" if lacking else f"has the unknown field {unknown[0]!r}"
        raise ValueError(
            f"{path} {what}; a score is a result of mteb, predictions of finetune, a trainer_state.json, or an object "
            f"with {', '.join(legal)}"
        )
    controls = content.get("controls", {})
    if not isinstance(controls, dict):
        raise ValueError(f"{path}: controls must be lists of predictions by name, got {controls!r}")
    record = Record(
        str(content["task"]),
        str(content["metric"]),
        _number(path, "score", content["score"]),
        labels=_numbers(path, "labels", content.get("labels")),
        predictions=_numbers(path, "predictions", content.get("predictions")),
        controls={name: _numbers(path, name, rows) for name, rows in controls.items()},  # type: ignore[misc]
        history=[_number(path, "history", value) for value in content.get("history", [])],
    )
    if (record.labels is None) != (record.predictions is None):
        raise ValueError(f"{path}: labels and predictions go together; give both, or none of them")
    for name, rows in {"predictions": record.predictions, **record.controls}.items():
        if rows is not None and (record.labels is None or len(rows) != len(record.labels)):
            raise ValueError(f"{path}: {name} must be as many as the labels, got {len(rows)}")
    return record


def _of_package(path: Path) -> list[Record]:
    found = PredictionsResult.load(path)
    labels, task = np.array(found.references), path.name.partition(".")[0]
    graded = Record(task, "", None, labels=labels).graded
    metric = "pearson" if graded else "accuracy"
    records = []
    for seed, rows in found.run.items():
        score = float(METRICS[metric](np.array(rows), labels))
        controls = {"bag_of_tokens": found.bag_of_tokens, "random_init": found.random_init.get(seed, [])}
        kept = {name: np.array(values) for name, values in controls.items() if len(values) == len(labels)}
        records.append(Record(f"{task}, seed {seed}", metric, score, labels, np.array(rows), kept))
    return records


def _of_mteb(path: Path, content: dict[str, Any]) -> list[Record]:
    task, records = str(content["task_name"]), []
    known = MTEB_TASKS.get(task, {})
    predicted = _beside(path, f"{task}_predictions.json")
    labels = _beside(path, f"{task}_labels.json")
    for split, rows in content["scores"].items():
        for row in rows if isinstance(rows, list) else []:
            main = row.get("main_score") if isinstance(row, dict) else None
            if not isinstance(main, int | float) or not math.isfinite(main):
                raise ValueError(f"{path}: {split} must hold objects with a finite main_score, got {row!r}")
            others = {
                name: float(value)
                for name, value in row.items()
                if name != "main_score" and isinstance(value, int | float) and math.isfinite(value)
            }
            proper = known.get("metric", "cosine_spearman" if "cosine_spearman" in others else None)
            same = [name for name, value in others.items() if value == main]
            metric = proper if proper in same else next(iter(same), "main_score")
            subset = str(row.get("hf_subset", "default"))
            record = Record(f"{task}, {split}" + ("" if subset == "default" else f", {subset}"), metric, float(main))
            record.proper, record.others = proper, others
            record.examples = known.get("examples") if split == "test" and subset == "default" else None
            record.chance = 0.0 if plain(metric) in CORRELATIONS else known.get("chance") if metric == proper else None
            if isinstance(labels, list) and isinstance(predicted, dict):
                _add_predictions(path, record, predicted.get(subset, {}).get(split), labels)
            records.append(record)
    if not records:
        raise ValueError(f"{path}: the result of mteb on {task} holds no scores")
    return records


def _add_predictions(path: Path, record: Record, found: Any, labels: list) -> None:
    rows = found.get("cosine_scores") if isinstance(found, dict) else found
    if not isinstance(rows, list) or len(rows) != len(labels):
        raise ValueError(f"{path}: the predictions next to it must be as many as the labels, {len(labels)}")
    record.labels, record.predictions = (_numbers(path, "predictions", each) for each in (labels, rows))


def _beside(path: Path, name: str) -> Any:
    file = path.with_name(name)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _of_trainer(path: Path, content: dict[str, Any]) -> list[Record]:
    best, rows = content.get("best_metric"), content["log_history"]
    if not isinstance(best, int | float) or not isinstance(rows, list):
        raise ValueError(f"{path} names no best_metric: nothing was selected on the evaluation split")
    history: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items() if isinstance(row, dict) else ():
            if name.startswith("eval_") and isinstance(value, int | float):
                history.setdefault(name, []).append(float(value))
    metric = next((name for name, values in history.items() if best in values), None)
    if metric is None:
        raise ValueError(f"{path}: no evaluation of log_history has the best_metric {best!r}")
    return [Record(path.parent.name or path.stem, metric.removeprefix("eval_"), float(best), history=history[metric])]


def _number(path: Path, name: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{path}: {name} must be a finite number, got {value!r}")
    return float(value)


def _numbers(path: Path, name: str, values: Any) -> np.ndarray | None:
    if values is None:
        return None
    if not isinstance(values, list) or len(values) < 2:
        raise ValueError(f"{path}: {name} must be a list of at least 2 numbers, got {str(values)[:60]}")
    return np.array([_number(path, name, value) for value in values])


# ------------------------------------------------------------------------------------------------------------ verdict


def judge_record(record: Record) -> JudgedRecord:
    """A score with its chance level, interval and controls, as far as they can be had, and what is wrong with it."""
    judged, against = record.judged, {}
    if record.can_be_scored and record.predictions is not None and record.labels is not None:
        for name, rows in record.controls.items():
            options = {"resamples": RESAMPLES}
            found = paired_bootstrap(SCORED_AS[record.plain], record.predictions, rows, record.labels, **options)
            paired = found[record.plain]
            against[name] = Figure(value=paired.difference, interval=paired.interval)
    notes = {name: check.measure(record) for name, check in RECORD_CHECKS.items()}
    return JudgedRecord(
        id=record.name,
        metric=record.metric,
        score=record.score,
        recomputed=judged.value if record.can_be_scored else None,
        interval=judged.interval,
        interval_rule=judged.interval_rule,
        chance=judged.chance,
        chance_rule=CHANCE_RULES.get(record.plain),
        verdict=judged.verdict,
        against=against,
        notes={name: text for name, text in notes.items() if text},
    )


def chance_of(metric: str, labels: np.ndarray) -> float:
    """The score of not looking at the texts, by `CHANCE_RULES`."""
    if metric == "accuracy":
        return float(np.unique(labels, return_counts=True)[1].max() / len(labels))
    share = float((labels == 1).mean())
    return 2 * share / (1 + share) if metric == "f1" else 0.0


# ------------------------------------------------------------------------------------------------------------- checks


def constant(record: Record) -> str:
    if record.predictions is None or np.ptp(record.predictions) > 0:
        return ""
    return f"{record.name}: every prediction is {record.predictions[0]:g}."


def below_chance(record: Record) -> str:
    """Reliably worse than a coin of the predictions' own shares, or than 0 by correlation."""
    if record.labels is None or record.predictions is None or np.ptp(record.predictions) == 0:
        return ""
    graded = record.graded or (record.predictions != np.round(record.predictions)).any()
    task, metric = ("stsb", "spearman") if graded else ("cola", "matthews_correlation")
    interval = bootstrap_intervals(task, record.predictions, record.labels, resamples=RESAMPLES)[metric]
    if interval is None or interval[1] >= 0:
        return _permuted(record, graded)
    return f"{record.name}: {metric} is {interval[0]:.3f} to {interval[1]:.3f}: labels, or a sign, are swapped."


def _permuted(record: Record, graded: bool) -> str:
    """Of three classes and more: whether other names for the predicted ones fit far better."""
    labels, predictions = record.labels, record.predictions
    assert labels is not None and predictions is not None
    if graded:
        return ""
    classes = np.union1d(labels, predictions)
    counts = np.array([[((predictions == p) & (labels == y)).sum() for y in classes] for p in classes])
    own, best = np.trace(counts), counts[linear_sum_assignment(-counts)].sum()
    error = math.sqrt(max(best, 1))
    if best - own < 4 * error:
        return ""
    return f"{record.name}: {own / len(labels):.1%} fit as they are named, {best / len(labels):.1%} by other names."


def metric_fits(record: Record) -> str:
    if not record.graded or record.plain in CORRELATIONS or record.plain not in METRICS:
        return ""
    return f"{record.name}: labels are graded, and {record.metric} is of classes; use spearman."


def as_said(record: Record) -> str:
    """A score that is another metric's, or not of these predictions."""
    score, proper = record.score, record.proper
    if score is None:
        return ""
    if proper is not None and record.metric != proper:
        return f"{record.name}: main_score is {record.metric}, {score:.4f}; the task's metric is {proper}" + (
            f", {record.others[proper]:.4f}." if proper in record.others else "."
        )
    if record.labels is None or record.predictions is None or not record.can_be_scored:
        return ""
    found = {name: METRICS[name](record.predictions, record.labels) for name in METRICS if _fits(name, record)}
    if abs(found[record.plain] - score) <= CLOSE or not math.isfinite(found[record.plain]):
        return ""
    same = [name for name, value in found.items() if abs(value - score) <= CLOSE]
    what = f"that is {same[0]}" if same else "and no other metric has that score"
    return f"{record.name}: {record.metric} of the predictions is {found[record.plain]:.4f}, not {score:.4f}; {what}."


def _fits(metric: str, record: Record) -> bool:
    assert record.labels is not None and record.predictions is not None
    if metric in CORRELATIONS:
        return True
    rows = (record.labels, record.predictions)
    binary = set(np.unique(record.labels)) | set(np.unique(record.predictions)) <= {0.0, 1.0}
    return all((each == np.round(each)).all() for each in rows) and (metric != "f1" or binary)


def selected(record: Record) -> str:
    looks = record.history
    if len(looks) < 2 or record.score not in (max(looks), min(looks)):
        return ""
    return (
        f"{record.name}: the score is the best of {len(looks)} looks at the split that it is reported on "
        f"({min(looks):.4f} to {max(looks):.4f})."
    )


def at_chance(record: Record) -> str:
    if record.labels is not None and record.predictions is not None and np.ptp(record.predictions) == 0:
        return ""  # said already
    verdict, value = record.judged.verdict, record.judged.value
    if verdict == BARELY_ABOVE and value is not None:
        return (
            f"{record.name}: {record.metric} {value:.3f} explains {value**2:.1%} of the variance; any weak cue does."
        )
    if verdict not in BARELY:
        return ""
    return f"{record.name}: {record.metric} cannot be told from chance."


class RecordCheck(NamedTuple):
    """A sentence on what is wrong with a score, or none; in words what is counted, and what is said of a fault."""

    measure: Callable[[Record], str]
    what: str
    fault: str


RECORD_CHECKS: dict[str, RecordCheck] = {
    "constant": RecordCheck(constant, "scores whose predictions are all equal", "Predictions are all equal."),
    "below_chance": RecordCheck(
        below_chance,
        "scores reliably worse than chance, or far better when the labels are named otherwise",
        "Labels, or a sign, are swapped.",
    ),
    "metric_fits": RecordCheck(
        metric_fits, "scores by a metric of classes on graded labels", "Graded labels are scored as classes."
    ),
    "as_said": RecordCheck(
        as_said, "scores that are not of the metric they are called by", "A score is another metric's."
    ),
    "selected": RecordCheck(
        selected, "scores that are the best of several on the same split", "A score was selected on its own split."
    ),
    "at_chance": RecordCheck(
        at_chance,
        "scores that cannot be told from chance, or explain next to nothing",
        "A score cannot be told from chance.",
    ),
}
