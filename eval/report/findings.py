"""What the figures of a run say: this run next to others, what to do next.

Everything here is a rule over numbers, so the same numbers always get the same words.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...utils.results import (
    Compared,
    ComparedRow,
    ComparedTable,
    GeometryMetric,
    PretrainResult,
    Report,
    Step,
    names_of,
)
from ..metrics.chance import ABOVE_CHANCE, BARELY
from .gates import GateResult

GEOMETRY_ORDER = names_of(GeometryMetric)
REFERENCE_FILE = Path(__file__).parent / "reference_run.json"


def read_reference() -> dict[str, Any]:
    """Content of reference_run.json: the figures of the reference run and its baselines as reported."""
    return json.loads(REFERENCE_FILE.read_text(encoding="utf-8"))


# --------------------------------------------------------------------------------------------------------- comparison


class Setting(NamedTuple):
    """A setting shown next to the reference runs; `effect` says what a difference does to the comparison."""

    name: str
    section: str
    key: str
    effect: str


SETTINGS = (
    Setting("pretraining corpus", "training", "dataset_name", "losses and scores are not like for like"),
    Setting("tokenizer", "training", "tokenizer_name", "losses per token have another unit"),
    Setting("tokens per text", "training", "max_length", "each concept has another share of text to hold"),
    Setting("concepts C", "model", "num_concepts", "compare normalised ranks only"),
    Setting("hidden size D", "model", "hidden_size", "norms, participation ratio and ranks scale with it"),
    Setting("encoder layers", "model", "num_hidden_layers", "another depth"),
    Setting("decoder context", "model", "decoder_context", "another pretraining task, so losses differ in meaning"),
)


def settings(report: Report) -> dict[str, Any]:
    """What decides whether a run is like another; None where the folder does not say."""
    run, sizes = report.training, report.geometry or (report.training.model if report.training else None)
    known: dict[str, Any] = dict.fromkeys(each.key for each in SETTINGS)
    if run is not None:
        tokenizer = run.data.tokenizer_name
        known |= {
            "dataset_name": run.data.dataset_name,
            "tokenizer_name": "microworld"
            if (tokenizer, run.data.dataset_name) == (None, "microworld")
            else tokenizer,
            "max_length": run.data.max_length,
            "num_hidden_layers": run.model.num_hidden_layers,
            "decoder_context": run.model.decoder_context,
        }
    if sizes is not None:
        known |= {"num_concepts": sizes.num_concepts, "hidden_size": sizes.hidden_size}
    return known


def compare(report: Report, reference: Mapping[str, Any], other: Report | None = None) -> Compared:
    """This run next to another run and the reference runs.

    Args:
        report: with the results of its parts.
        reference: content of reference_run.json.
        other: the report of another run.

    Returns:
        Tables of one column per run, this run first, without empty columns; differences from the other run, or from
        the first reference run when there is none, in words. Figures that no reference run has stand in the other
        sections.
    """
    runs = reference["runs"]
    own = [report] if other is None else [report, other]
    columns = ["this run", *(run.run.name for run in own[1:]), *(run["label"] for run in runs)]
    facts = [settings(run) for run in own]
    rows = [
        ComparedRow(
            id=each.name,
            beside=None,
            values=[*(run[each.key] for run in facts), *_column(runs, each.section, each.key)],
        )
        for each in SETTINGS
    ]
    return Compared(
        settings=_without_empty_columns(columns, rows),
        geometry=_without_empty_columns(columns, _geometry_rows(own, reference)),
        downstream=_without_empty_columns(columns, _downstream_rows(own, runs)),
        not_like_for_like=_differences(rows, columns[1]),
        notes=reference["notes"],
    )


def _column(runs: Sequence[Mapping[str, Any]], section: str, key: str) -> list[Any]:
    return [run[section].get(key) for run in runs]


def _geometry_rows(own: Sequence[Report], reference: Mapping[str, Any]) -> list[ComparedRow]:
    runs, targets = reference["runs"], reference["geometry_targets"]
    metrics: list[Mapping[str, float | None]] = [run.geometry.metrics if run.geometry else {} for run in own]
    return [
        ComparedRow(
            id=name,
            beside=targets.get(name),
            values=[*(values.get(name) for values in metrics), *_column(runs, "geometry", name)],
        )
        for name in sorted({name for values in metrics for name in values}, key=GEOMETRY_ORDER.index)
        if name in targets or any(name in run["geometry"] for run in runs[1:])
    ]


def _downstream_rows(own: Sequence[Report], runs: Sequence[Mapping[str, Any]]) -> list[ComparedRow]:
    scores = [
        {(task.id, name): (task.task, score) for task in run.downstream for name, score in task.scores.items()}
        for run in own
    ]
    rows = []
    for key in dict.fromkeys(key for table in scores for key in table):
        task, first = next(table[key] for table in scores if key in table)
        values = [table[key][1].value if key in table else None for table in scores]
        values += [run["downstream"].get(task, {}).get(key[1]) for run in runs]
        if any(value is not None for value in values[1:]):
            rows.append(ComparedRow(id=" ".join(key), beside=first.chance, values=values))
    return rows


def _without_empty_columns(labels: list[str], rows: list[ComparedRow]) -> ComparedTable:
    kept = [i for i in range(len(labels)) if i == 0 or any(row.values[i] is not None for row in rows)]
    shown = [ComparedRow(id=row.id, beside=row.beside, values=[row.values[i] for i in kept]) for row in rows]
    return ComparedTable(runs=[labels[i] for i in kept], rows=shown)


def _differences(rows: Sequence[ComparedRow], label: str) -> list[str]:
    found = []
    for setting, row in zip(SETTINGS, rows, strict=True):
        this, other = row.values[:2]
        if this is not None and other is not None and this != other:
            found.append(f"{setting.name}: {this} here, {other} in {label}; {setting.effect}.")
    return found


# --------------------------------------------------------------------------------------------------------- next steps

STILL_FALLING = 0.01  # relative drop of the NELBO between the last two evaluations
ROSE_AGAIN = 0.02  # relative rise of the last evaluation loss over the best one
FLAT = 0.03  # relative spread of the cross-entropy over timesteps
DUPLICATE = 0.95  # cosine above which two concepts say the same


def next_steps(report: Report, results: Sequence[GateResult]) -> list[Step]:
    """What to do next, from the results, by the rules of `RULES` in their order."""
    found = []
    for name, rule in RULES.items():
        found += [Step(rule=name, because=because, do=do) for because, do in rule(report, results)]
    return found


Advice = tuple[str, str]  # the observation with its numbers, and what to do
Rule = Callable[[Report, Sequence[GateResult]], list[Advice]]


def _missing_part(report: Report, _: Sequence[GateResult]) -> list[Advice]:
    """Parts of the run were not done; one step per command."""
    texts: dict[str, list[str]] = {}
    for part in report.missing.values():
        if part.command is not None:
            texts.setdefault(part.command, []).append(part.text)
    return [(" ".join(lines), f"Run `{command}`, then this report again.") for command, lines in texts.items()]


def _rose_again(report: Report, _: Sequence[GateResult]) -> list[Advice]:
    """The evaluation loss ends above its best value."""
    losses = [value for _, value in _curve(report, "eval_loss") if value is not None]
    if not losses or losses[-1] <= min(losses) * (1 + ROSE_AGAIN):
        return []
    because = f"The evaluation loss ended at {losses[-1]:.4g}, above its best, {min(losses):.4g}."
    return [(because, "Take the best checkpoint (`load_best_model_at_end`), or lower the learning rate.")]


def _still_falling(report: Report, _: Sequence[GateResult]) -> list[Advice]:
    """The bound was still falling when training stopped."""
    bits = [value for _, value in _curve(report, "eval_nelbo_bits_per_token") if value is not None]
    if len(bits) < 2 or bits[-1] >= bits[-2] * (1 - STILL_FALLING):
        return []
    because = f"The bound still fell by {1 - bits[-1] / bits[-2]:.1%} between the last two evaluations."
    return [(because, "Train longer before judging the concepts.")]


def _flat_in_time(report: Report, _: Sequence[GateResult]) -> list[Advice]:
    """The loss does not depend on how many tokens are masked."""
    rows = report.training.evaluation.by_timestep if report.training else []
    bits = [row.nll_bits for row in rows if row.nll_bits is not None]
    if len(bits) < 2 or max(bits) - min(bits) > FLAT * max(bits):
        return []
    because = f"Masked tokens cost {min(bits):.3g} to {max(bits):.3g} bits at every masking rate."
    if report.training and report.training.model.decoder_context == "none":
        do = (
            'The decoder has no path to the visible tokens. Set decoder_context="latent" if diffusion is to mean more.'
        )
    else:
        do = "The decoder does not use the visible tokens. Check that its context layer trains."
    return [(because, do)]


def _duplicates(report: Report, _: Sequence[GateResult]) -> list[Advice]:
    """Two concepts of a text are all but the same."""
    similarity = report.geometry.metrics.get("max_concept_similarity") if report.geometry else None
    if similarity is None or similarity < DUPLICATE:
        return []
    because = f"The most similar pair of concepts has cosine {similarity:.3f}."
    return [(because, 'Make concepts compete for tokens (concept_attention="slot"), or use fewer of them.')]


def _low_rank(_: Report, results: Sequence[GateResult]) -> list[Advice]:
    """The rank gate fails."""
    failed = [r for r in results if r.verdict == "FAIL" and "rank" in r.metric]
    do = (
        "Change what the concepts are asked for rather than train longer: an objective that copying cannot satisfy "
        "(deletion with position-only queries, a contrastive term), or a regularizer that spreads them."
    )
    return [(f"{result.gate.name}: {result.explanation}.", do) for result in failed]


def _at_chance(report: Report, _: Sequence[GateResult]) -> list[Advice]:
    """Scores that cannot be told from chance, from a protocol that swept nothing."""
    rows = [task for task in report.downstream if task.verdict in BARELY and not task.sweep]
    if not rows:
        return []
    rates = sorted({row.selected.learning_rate for row in rows if row.selected.learning_rate is not None})
    tried = f" Learning rate tried: {', '.join(f'{rate:g}' for rate in rates)}." if rates else ""
    because = f"Not clearly above chance: {', '.join(row.id for row in rows)}.{tried}"
    do = (
        "Do not read this as a verdict on the encoder yet: sweep the learning rate from 3e-5 to 1e-3 on a split of "
        "train (protocol tuned), and fine-tune a random-initialised twin the same way."
    )
    return [(because, do)]


def _at_chance_tuned(report: Report, _: Sequence[GateResult]) -> list[Advice]:
    """Scores that cannot be told from chance although the protocol was tuned."""
    rows = [task.id for task in report.downstream if task.verdict in BARELY and task.sweep]
    if not rows:
        return []
    do = "Fine-tuning was tried over a sweep: look for the cause in pretraining, its objective, corpus and length."
    return [(f"Not clearly above chance after a sweep: {', '.join(rows)}.", do)]


def _no_twin(report: Report, _: Sequence[GateResult]) -> list[Advice]:
    """Scores above chance, which fine-tuning alone may have earned, without the control that would show it."""
    rows = [task for task in report.downstream if task.verdict == ABOVE_CHANCE]
    names = [row.id for row in rows if "random_init" not in row.controls]
    if not names:
        return []
    do = (
        "Fine-tune a random-initialised twin and other seeds the same way: chance is the lowest bar, the twin shows "
        "what pretraining adds."
    )
    return [(f"Above chance, without a twin next to them: {', '.join(names)}.", do)]


def _concepts_ignored(_: Report, results: Sequence[GateResult]) -> list[Advice]:
    """A gate of the ledger fails."""
    failed = [r for r in results if r.verdict == "FAIL" and r.metric.startswith("ledger/")]
    do = (
        "The decoder does its work without the concepts. Hide more of the text from it (higher t, "
        'decoder_context="none", another view for the encoder), so that only the concepts can tell.'
    )
    return [(f"{result.gate.name}: {result.explanation}.", do) for result in failed[:1]]


def _undecided(report: Report, results: Sequence[GateResult]) -> list[Advice]:
    """A gate is undecided although its part of the run was done."""
    steps = []
    for result in results:
        if result.verdict != "INCONCLUSIVE" or result.metric.split("/")[0] in report.missing:
            continue
        if result.interval is not None:
            do = "Score more examples or average more seeds; the interval is too wide to decide."
        else:
            do = "Measure what the gate asks for, if the run is to be judged by it."
        steps.append((f"{result.gate.name}: {result.explanation}.", do))
    return steps


def _all_pass(_: Report, results: Sequence[GateResult]) -> list[Advice]:
    """Every gate passes."""
    if any(result.verdict != "PASS" for result in results):
        return []
    return [("Every gate passes.", "Repeat the run with another seed before building on it.")]


RULES: dict[str, Rule] = {
    "missing part": _missing_part,
    "loss rose again": _rose_again,
    "still falling": _still_falling,
    "flat in time": _flat_in_time,
    "low rank": _low_rank,
    "concepts ignored": _concepts_ignored,
    "duplicates": _duplicates,
    "at chance": _at_chance,
    "at chance after a sweep": _at_chance_tuned,
    "no twin": _no_twin,
    "undecided gate": _undecided,
    "all pass": _all_pass,
}


def _curve(report: Report, name: str) -> list[tuple[float, float | None]]:
    return curve(report.training, name) if report.training else []


def curve(run: PretrainResult, name: str) -> list[tuple[float, float | None]]:
    """(step, value) of everything that was logged under a name."""
    rows = ((row.get("step"), row) for row in run.log_history if name in row)
    return [(step, row[name]) for step, row in rows if step is not None]
