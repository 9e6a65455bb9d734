"""The verb `judge`: any encoder, one or two, and scores that others wrote, with a verdict."""

import os
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.files import replaced_together, write_atomically
from ...utils.results import (
    JudgedCheck,
    JudgedModel,
    JudgedTask,
    JudgeResult,
    Nulls,
    VerdictFacts,
    Versus,
)
from ..benchmarks.registry import Task, load_benchmark
from ..benchmarks.similarity import SPLIT, find_similarity_task
from ..metrics.benchmark_score import benchmark_score
from ..metrics.chance import judge as judge_score
from ..metrics.intervals import bootstrap_intervals, control_scores, paired_bootstrap
from ..report.gates import GateResult, GateSet, check_gates, load_gates, overall_verdict
from ..report.verdict import gate_section
from .checks import CHECKS, RESAMPLES, SPREAD, Case, Pairs, mean_cosine, pair_key, participation_ratio
from .pages import render_judged_html, render_judged_markdown
from .records import RECORD_CHECKS, judge_record, read_records
from .subjects import open_subject, randomise

GATES_FILE = Path(__file__).with_name("gates.yaml")
TASKS = ("stsb", "sick_relatedness")
RESULT_FILE = "judge.json"


def judge(
    model: Any = None,
    other: Any = None,
    *,
    revision: str | None = None,
    tasks: Sequence[str | Task] = TASKS,
    max_examples: int = 1000,
    scores: Sequence[str | os.PathLike] = (),
    output_dir: str | os.PathLike | None = None,
    seed: int = 0,
) -> JudgeResult:
    """Judge an encoder: scores with controls, geometry, behaviour, weights; each by a gate with its reason.

    At most ten minutes on two cores for a model of 30 million parameters, with the defaults.

    Args:
        model: folder or Hub id of a checkpoint of this package or of a model of sentence-transformers or
            transformers; a `Checkpoint`; an object with `.encode(texts)`, which gives (n, D), or a matrix of vectors
            for each text. None: only `scores` are judged.
        other: another one, to lay next to it: each is judged, and the difference is tested on the same pairs.
        revision: commit, branch or tag of `model` where it is a Hub id.
        tasks: similarity tasks by name, task files, or tasks; their pairs and texts are what everything is measured
            on. Nothing is trained.
        max_examples: pairs scored of a task, drawn at random.
        scores: files of scores that others wrote, as `read_records` takes them.
        output_dir: folder of judge.json, judge.md and judge.html; None: nothing is written.
        seed: of the draw of pairs and texts.

    Returns:
        Figures, gates and verdict: FAIL where any gate fails, else INCONCLUSIVE where any cannot be decided.

    Raises:
        ValueError: neither model nor scores; no task; max_examples below 50; as `open_subject`, `load_benchmark` and
            `read_records`.
        FileNotFoundError: as `open_subject`.
    """
    started = time.monotonic()
    if model is None and (other is not None or not scores):
        raise ValueError("give a model to judge (folder, Hub id or object with encode), or scores (files)")
    if model is not None and not tasks:
        raise ValueError(f"tasks must name at least one similarity task, such as {TASKS[0]}")
    if max_examples < 50:
        raise ValueError(f"max_examples must be at least 50 to say anything, got {max_examples}")
    records = [record for path in scores for record in read_records(path)]
    result = _empty()
    result.records = [judge_record(record) for record in records]
    if model is not None:
        subjects = [open_subject(model, revision)] + ([] if other is None else [open_subject(other)])
        pairs = [load_pairs(task, max_examples, seed) for task in tasks]
        cases = [Case(subject, pairs, plain_texts(pairs, seed)) for subject in subjects]
        _measure(result, cases[0])
        if other is not None:
            result.other = _empty()
            _measure(result.other, cases[1])
            _conclude(result.other)
            result.against = _versus(*cases)
    if records:
        for name, check in RECORD_CHECKS.items():
            count = float(sum(name in record.notes for record in result.records))
            result.checks[name] = JudgedCheck(value=count, interval=None, what=check.what, fault=check.fault)
    _conclude(result)
    result.seconds = time.monotonic() - started
    if output_dir is not None:
        write_judged(result, Path(output_dir))
    return result


def _empty() -> JudgeResult:
    return JudgeResult(
        verdict=VerdictFacts(overall="INCONCLUSIVE", headline="", findings=[]),
        model=None,
        tasks=[],
        checks={},
        skipped=[],
        records=[],
        gates=[],
        nulls={},
        against=[],
        other=None,
        seconds=0.0,
    )


def load_pairs(task: str | Task, max_examples: int, seed: int) -> Pairs:
    """Pairs of a similarity task to score, and what its training split holds; errors as `load_benchmark`."""
    row = find_similarity_task(task)
    data = load_benchmark(row)
    scored = data[SPLIT].shuffle(seed=seed).select(range(min(max_examples, len(data[SPLIT]))))
    train = data["train"]
    return Pairs(
        row.name,
        row.scored_as,
        "spearman",
        scored["sentence1"][:],
        scored["sentence2"][:],
        np.asarray(scored["label"]),
        frozenset(map(pair_key, train["sentence1"][:], train["sentence2"][:])),
    )


def plain_texts(pairs: Sequence[Pairs], seed: int) -> list[str]:
    """Distinct sentences of all tasks, in an order that is drawn."""
    distinct = list(dict.fromkeys(text for each in pairs for side in (each.first, each.second) for text in side))
    return [distinct[row] for row in np.random.default_rng(seed).permutation(len(distinct))[: 2 * SPREAD]]


def _measure(result: JudgeResult, case: Case) -> None:
    started = time.monotonic()
    for name, check in CHECKS.items():
        figure = check.measure(case)
        if figure is None:
            result.skipped.append(name)
        else:
            value, interval = figure.value, figure.interval
            result.checks[name] = JudgedCheck(value=value, interval=interval, what=check.what, fault=check.fault)
    subject = case.subject
    result.model = JudgedModel(
        name=subject.name,
        revision=subject.revision,
        digest=subject.digest,
        compared_by="MaxSim" if subject.late else "cosine",
        dimensions=case.vectors.shape[1],
        parameters=None if subject.module is None else sum(each.numel() for each in subject.module.parameters()),
        max_length=subject.max_length,
        words_read=case.words_read,
    )
    result.tasks = [_scored(pairs, case.predictions[pairs.name]) for pairs in case.tasks]
    result.nulls = _nulls(case)
    result.seconds = time.monotonic() - started


def _scored(pairs: Pairs, predicted: dict[str, np.ndarray]) -> JudgedTask:
    options: dict[str, Any] = {"resamples": RESAMPLES}
    found = {name: np.nan_to_num(each) for name, each in predicted.items()}
    own = found.pop("own")
    values = benchmark_score(pairs.scored_as, own, pairs.labels)
    intervals = bootstrap_intervals(pairs.scored_as, own, pairs.labels, **options)
    beside = {
        name: control_scores(pairs.scored_as, own, each, pairs.labels, **options) for name, each in found.items()
    }
    scores = {
        metric: judge_score(
            metric,
            value,
            0.0,
            interval=intervals[metric],
            controls={name: each[metric] for name, each in beside.items()},
        )
        for metric, value in values.items()
    }
    return JudgedTask(id=pairs.name, examples=len(pairs.labels), primary_metric=pairs.metric, scores=scores)


def _nulls(case: Case) -> dict[str, Nulls]:
    """What noise of the same shape, and the same architecture with random weights, have in geometry."""
    noise = np.random.default_rng(0).standard_normal(case.unit.shape)
    null = participation_ratio(noise)
    twin = None
    if case.subject.module is not None:
        twin = Case(case.subject.changed(randomise), [], case.texts).unit
    measures = {"crowding": mean_cosine, "rank": lambda rows: participation_ratio(rows) / null}
    return {
        name: Nulls(
            gaussian=float(measure(noise / np.linalg.norm(noise, axis=1, keepdims=True))),
            random_encoder=None if twin is None else float(measure(twin)),
            static_slots=None,
        )
        for name, measure in measures.items()
    }


def _versus(one: Case, other: Case) -> list[Versus]:
    found = []
    for pairs in one.tasks:
        own, beside = (np.nan_to_num(case.predictions[pairs.name]["own"]) for case in (one, other))
        paired = paired_bootstrap(pairs.scored_as, own, beside, pairs.labels, resamples=RESAMPLES)
        found += [
            Versus(task=pairs.name, metric=metric, **each._asdict())  # difference, interval, p_value
            for metric, each in paired.items()
        ]
    return found


# ------------------------------------------------------------------------------------------------------------ verdict


def _conclude(result: JudgeResult) -> None:
    """Gates, verdict and findings of what was measured."""
    verdicts: list[GateResult] = []
    for gate_set in gate_sets().values():
        gates = [gate for gate in gate_set.gates if gate.metrics[0].removeprefix("checks/") in result.checks]
        if gates:
            found = check_gates(result, gates)
            verdicts += found
            result.gates.append(gate_section(gate_set, found))
    result.verdict = VerdictFacts(
        overall=overall_verdict(verdicts),
        headline=" ".join(f"{each.title}: {each.headline[0].lower()}{each.headline[1:]}" for each in result.gates),
        findings=findings(result),
    )


@cache
def gate_sets() -> dict[str, GateSet]:
    """What is asked of an encoder, and of scores."""
    return load_gates(GATES_FILE, JudgeResult)


def failed(result: JudgeResult) -> list[str]:
    """Names of the checks whose gates fail."""
    return [
        row.metric.removeprefix("checks/") for gates in result.gates for row in gates.rows if row.verdict == "FAIL"
    ]


def findings(result: JudgeResult) -> list[str]:
    """What is said above the figures, faults first."""
    rows = [row for gates in result.gates for row in gates.rows]
    named = {row.metric.removeprefix("checks/"): row for row in rows}
    lines = [
        f"{result.checks[name].fault} ({result.checks[name].what}: {row.explanation})"
        for name, row in named.items()
        if row.verdict == "FAIL" and name not in RECORD_CHECKS
    ]
    lines += [note for record in result.records for note in record.notes.values()]
    undecided = [row.name for row in rows if row.verdict == "INCONCLUSIVE"]
    if undecided:
        lines.append(f"Cannot be decided with so few examples: {', '.join(undecided)}.")
    side = result.checks.get("padding_side")
    if side is not None and side.value is not None and side.value > 1e-3:
        lines.append("Padding on the left moves its vectors; keep it on the right.")
    shuffled = result.checks.get("beats_shuffled")
    if shuffled is not None and shuffled.interval is not None and shuffled.interval[0] <= 0:
        lines.append("On one task at least, the order of words cannot be told to matter to its scores.")
    for each in result.against:
        if each.metric == "spearman" and each.interval is not None and each.difference is not None:
            assert result.other is not None
            low, high = each.interval
            words = "beats" if low > 0 else "is worse than" if high < 0 else "cannot be told from"
            lines.append(
                f"On {each.task} it {words} {result.other.name}: {each.difference:+.3f} {each.metric}, {low:+.3f} to "
                f"{high:+.3f}."
            )
    return lines


def write_judged(result: JudgeResult, folder: Path) -> None:
    """judge.json, judge.md and judge.html, together."""
    folder.mkdir(parents=True, exist_ok=True)
    with replaced_together(folder, last=RESULT_FILE) as staged:
        write_atomically(staged / "judge.md", render_judged_markdown(result))
        write_atomically(staged / "judge.html", render_judged_html(result))
        result.save(staged / RESULT_FILE)
    result.folder = folder


def judged_table(result: JudgeResult) -> str:
    """The verdict, scores and gates in aligned lines of plain text."""
    rows = []
    for task in result.tasks:
        for metric, score in task.scores.items():
            beside = ", ".join(
                f"{name.replace('_', ' ')} {each.value:.3f}"
                for name, each in score.controls.items()
                if each.value is not None
            )
            value = "undefined" if score.value is None else f"{score.value:.3f}"
            rows.append((f"{task.id} {metric}", value, beside))
    for gate_set in result.gates:
        rows += [(row.name, row.verdict, row.explanation) for row in gate_set.rows]
    first, second = (max((len(row[column]) for row in rows), default=0) for column in (0, 1))
    lines = [f"{name:<{first}}  {value:>{second}}  {words}" for name, value, words in rows]
    verdict = result.verdict
    return "\n".join([f"{verdict.overall}: {verdict.headline}", *verdict.findings, "", *lines])
