"""What the figures of a run say: a score against chance, this run beside others, what to do next.

Everything here is a rule over numbers, so the same numbers always get the same words.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from scipy.stats import binomtest, norm

from .gates import GateResult

ABOVE_CHANCE = "above chance"
FORMALLY_ABOVE = "above chance, formally"
WITHIN_NOISE = "not told from chance"
AT_CHANCE = "at or below chance"
NO_CHANCE = "no chance level"
BARELY = (AT_CHANCE, WITHIN_NOISE, FORMALLY_ABOVE)

NEGLIGIBLE = 0.05  # share of the variance below which a correlation above 0 is formally so and no more
CONFIDENCE = 0.95
CORRELATIONS = {"pearson": 1.0, "spearman": 1.06}  # metric -> variance of its Fisher z, in units of 1 / (n - 3)


# ------------------------------------------------------------------------------------------------- scores and chance


def score_row(
    metric: str,
    value: float | None,
    chance: float | None,
    examples: int | None,
    interval: list[float] | None = None,
    at_chance: bool | None = None,
) -> dict[str, Any]:
    """One score beside its chance level, with the verdict in words.

    A score is above chance only when its interval is too; without an interval the point decides and the row says so.
    A correlation that explains next to nothing is above chance formally.

    Args:
        metric: name; higher is better.
        value: the score, None when it is undefined (a correlation of a constant prediction).
        chance: the score of not looking at the input, on the same split.
        examples: number of scored examples, for the interval.
        interval: [low, high] when it was measured; otherwise it is computed where the metric has a formula.
        at_chance: whether a test on the predictions themselves could not tell the score from chance, when there was
            one; it wins over the interval.

    Returns:
        {"id", "value", "chance", "margin", "interval", "interval_rule", "verdict", "note"}; None where unknown.
    """
    rule = "as measured" if interval is not None else None
    if interval is None and value is not None and examples:
        interval, rule = sampling_interval(metric, value, examples)
    row = {
        "id": metric,
        "value": value,
        "chance": chance,
        "margin": None if value is None or chance is None else value - chance,
        "interval": interval,
        "interval_rule": rule,
        "verdict": _chance_verdict(metric, value, chance, interval, at_chance),
        "note": None,
    }
    if metric in CORRELATIONS and value is not None:
        row["note"] = f"explains {value**2:.1%} of the variance; any weak cue beats a constant prediction"
    elif row["verdict"] == ABOVE_CHANCE and interval is None and at_chance is None:
        row["note"] = "by the point value, no interval"
    elif row["verdict"] == NO_CHANCE:
        row["note"] = "without a chance level the score says nothing"
    return row


def sampling_interval(metric: str, value: float, examples: int) -> tuple[list[float] | None, str | None]:
    """95 % interval of a score from the number of examples alone: the noise of the split, not of the training.

    Accuracy: Wilson 1927. Pearson: Fisher's z. Spearman: Fisher's z with the variance 1.06 / (n - 3) of Fieller et
    al. 1957. Other metrics have no formula and get None.

    Returns:
        [low, high] and the name of the rule, or (None, None).
    """
    if metric == "accuracy":
        bounds = binomtest(round(value * examples), examples).proportion_ci(CONFIDENCE, method="wilson")
        return [float(bounds.low), float(bounds.high)], f"95 %, Wilson, {examples} examples"
    if metric in CORRELATIONS and examples > 3 and abs(value) < 1:
        half = norm.ppf((1 + CONFIDENCE) / 2) * math.sqrt(CORRELATIONS[metric] / (examples - 3))
        low, high = (math.tanh(math.atanh(value) + sign * half) for sign in (-1, 1))
        return [low, high], f"95 %, Fisher z, {examples} examples"
    return None, None


def _chance_verdict(
    metric: str, value: float | None, chance: float | None, interval: list[float] | None, at_chance: bool | None
) -> str:
    if chance is None:
        return NO_CHANCE
    if value is None or value <= chance:
        return AT_CHANCE
    if at_chance is None:
        at_chance = interval is not None and interval[0] <= chance
    if at_chance:
        return WITHIN_NOISE
    return FORMALLY_ABOVE if metric in CORRELATIONS and value**2 < NEGLIGIBLE else ABOVE_CHANCE


# --------------------------------------------------------------------------------------------------------- comparison


class Setting(NamedTuple):
    """A setting shown beside the reference runs; `effect` says what a difference does to the comparison."""

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


def compare(
    report: Mapping[str, Any], reference: Mapping[str, Any], other: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """This run beside another run and the reference runs.

    Args:
        report: with `settings`, `geometry`, `downstream` filled in.
        reference: content of reference_run.json.
        other: the report of another run.

    Returns:
        {"settings", "geometry", "downstream": {"runs": labels of the columns, this run first, "rows": {"id", "values":
        one per column, ...}}, "not_like_for_like": differences from the other run, or from the first reference run
        when there is none, in words, "notes"}. Figures that no reference run has stand in the other sections.
    """
    runs = reference["runs"]
    own = [report] if other is None else [report, other]
    labels = ["this run", *(run["run"]["name"] for run in own[1:])]
    settings = [
        {
            "id": setting.name,
            "values": [
                *(run["settings"].get(setting.key) for run in own),
                *_column(runs, setting.section, setting.key),
            ],
        }
        for setting in SETTINGS
    ]
    tables = {
        "settings": settings,
        "geometry": _geometry_rows(own, reference),
        "downstream": _downstream_rows(own, runs),
    }
    columns = [*labels, *(run["label"] for run in runs)]
    return {
        **{name: _without_empty_columns(columns, rows) for name, rows in tables.items()},
        "not_like_for_like": _differences(settings, columns[1]),
        "notes": reference["notes"],
    }


def _column(runs: Sequence[Mapping[str, Any]], section: str, key: str) -> list[Any]:
    return [run[section].get(key) for run in runs]


def _geometry_rows(own: Sequence[Mapping[str, Any]], reference: Mapping[str, Any]) -> list[dict[str, Any]]:
    runs, targets = reference["runs"], reference["geometry_targets"]
    metrics = [
        {row["id"]: row["value"] for row in run["geometry"]["metrics"]} if run["geometry"] else {} for run in own
    ]
    return [
        {
            "id": name,
            "target": targets.get(name),
            "values": [*(values.get(name) for values in metrics), *_column(runs, "geometry", name)],
        }
        for name in dict.fromkeys(name for values in metrics for name in values)
        if name in targets or any(name in run["geometry"] for run in runs[1:])
    ]


def _downstream_rows(own: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    scores = [
        {(row["id"], s["id"]): (row["task"], s) for row in run["downstream"] for s in row["scores"]} for run in own
    ]
    rows = []
    for key in dict.fromkeys(key for table in scores for key in table):
        task = next(table[key][0] for table in scores if key in table)
        values = [table[key][1]["value"] if key in table else None for table in scores]
        chance = next(table[key][1]["chance"] for table in scores if key in table)
        values += [run["downstream"].get(task, {}).get(key[1]) for run in runs]
        if any(value is not None for value in values[1:]):
            rows.append({"id": " ".join(key), "chance": chance, "values": values})
    return rows


def _without_empty_columns(labels: list[str], rows: list[dict[str, Any]]) -> dict[str, Any]:
    kept = [i for i in range(len(labels)) if i == 0 or any(row["values"][i] is not None for row in rows)]
    shown = [{**row, "values": [row["values"][i] for i in kept]} for row in rows]
    return {"runs": [labels[i] for i in kept], "rows": shown}


def _differences(settings: Sequence[Mapping[str, Any]], label: str) -> list[str]:
    found = []
    for setting, row in zip(SETTINGS, settings, strict=True):
        this, other = row["values"][:2]
        if this is not None and other is not None and this != other:
            found.append(f"{setting.name}: {this} here, {other} in {label}; {setting.effect}.")
    return found


# --------------------------------------------------------------------------------------------------------- next steps

STILL_FALLING = 0.01  # relative drop of the NELBO between the last two evaluations
ROSE_AGAIN = 0.02  # relative rise of the last evaluation loss over the best one
FLAT = 0.03  # relative spread of the cross-entropy over timesteps
DUPLICATE = 0.95  # cosine above which two concepts say the same


def next_steps(report: Mapping[str, Any], results: Sequence[GateResult]) -> list[dict[str, str]]:
    """What to do next, from the results, by the rules of `RULES` in their order.

    Returns:
        {"rule": its name, "because": the observation with its numbers, "do": the step}.
    """
    found = []
    for name, rule in RULES.items():
        found += [{"rule": name, "because": because, "do": do} for because, do in rule(report, results)]
    return found


Step = tuple[str, str]
Rule = Callable[[Mapping[str, Any], Sequence[GateResult]], list[Step]]


def _missing_part(report: Mapping[str, Any], _: Sequence[GateResult]) -> list[Step]:
    """Parts of the run were not done; one step per command."""
    texts: dict[str, list[str]] = {}
    for part in report["missing"].values():
        if part["command"] is not None:
            texts.setdefault(part["command"], []).append(part["text"])
    return [(" ".join(lines), f"Run `{command}`, then this report again.") for command, lines in texts.items()]


def _rose_again(report: Mapping[str, Any], _: Sequence[GateResult]) -> list[Step]:
    """The evaluation loss ends above its best value."""
    losses = [value for _, value in _curve(report, "eval_loss") if value is not None]
    if not losses or losses[-1] <= min(losses) * (1 + ROSE_AGAIN):
        return []
    because = f"The evaluation loss ended at {losses[-1]:.4g}, above its best, {min(losses):.4g}."
    return [(because, "Take the best checkpoint (`load_best_model_at_end`), or lower the learning rate.")]


def _still_falling(report: Mapping[str, Any], _: Sequence[GateResult]) -> list[Step]:
    """The bound was still falling when training stopped."""
    bits = [value for _, value in _curve(report, "eval_nelbo_bits_per_token") if value is not None]
    if len(bits) < 2 or bits[-1] >= bits[-2] * (1 - STILL_FALLING):
        return []
    because = f"The bound still fell by {1 - bits[-1] / bits[-2]:.1%} between the last two evaluations."
    return [(because, "Train longer before judging the concepts.")]


def _flat_in_time(report: Mapping[str, Any], _: Sequence[GateResult]) -> list[Step]:
    """The loss does not depend on how many tokens are masked."""
    rows = report["training"]["by_timestep"] if report["training"] else []
    bits = [row["nll_bits"] for row in rows if row["nll_bits"] is not None]
    if len(bits) < 2 or max(bits) - min(bits) > FLAT * max(bits):
        return []
    because = f"Masked tokens cost {min(bits):.3g} to {max(bits):.3g} bits whatever the masking rate."
    if report["settings"].get("decoder_context") == "none":
        do = (
            'The decoder has no path to the visible tokens. Set decoder_context="latent" if diffusion is to mean more.'
        )
    else:
        do = "The decoder does not use the visible tokens. Check that its context layer trains."
    return [(because, do)]


def _duplicates(report: Mapping[str, Any], _: Sequence[GateResult]) -> list[Step]:
    """Two concepts of a text are all but the same."""
    similarity = _metric(report, "max_concept_similarity")
    if similarity is None or similarity < DUPLICATE:
        return []
    because = f"The most similar pair of concepts has cosine {similarity:.3f}."
    return [(because, 'Make concepts compete for tokens (concept_attention="slot"), or use fewer of them.')]


def _low_rank(_: Mapping[str, Any], results: Sequence[GateResult]) -> list[Step]:
    """The rank gate fails."""
    failed = [r for r in results if r.verdict == "FAIL" and "rank" in r.metric]
    do = (
        "Change what the concepts are asked for rather than train longer: an objective that copying cannot satisfy "
        "(deletion with position-only queries, a contrastive term), or a regularizer that spreads them."
    )
    return [(f"{result.gate.name}: {result.explanation}.", do) for result in failed]


def _at_chance(report: Mapping[str, Any], _: Sequence[GateResult]) -> list[Step]:
    """Scores that cannot be told from chance, from a protocol that swept nothing."""
    rows = [row for row in report["downstream"] if row["verdict"] in BARELY and not row["sweep"]]
    if not rows:
        return []
    rates = sorted({row["learning_rate"] for row in rows if row["learning_rate"] is not None})
    tried = f" Learning rate tried: {', '.join(f'{rate:g}' for rate in rates)}." if rates else ""
    because = f"Not clearly above chance: {', '.join(row['id'] for row in rows)}.{tried}"
    do = (
        "Do not read this as a verdict on the encoder yet: sweep the learning rate from 3e-5 to 1e-3 on a split of "
        "train (protocol tuned), and fine-tune a random-initialised twin the same way."
    )
    return [(because, do)]


def _at_chance_tuned(report: Mapping[str, Any], _: Sequence[GateResult]) -> list[Step]:
    """Scores that cannot be told from chance although the protocol was tuned."""
    rows = [row["id"] for row in report["downstream"] if row["verdict"] in BARELY and row["sweep"]]
    if not rows:
        return []
    do = "Fine-tuning was tried over a sweep: look for the cause in pretraining, its objective, corpus and length."
    return [(f"Not clearly above chance after a sweep: {', '.join(rows)}.", do)]


def _no_twin(report: Mapping[str, Any], _: Sequence[GateResult]) -> list[Step]:
    """Scores above chance, which fine-tuning alone may have earned, without the control that would show it."""
    rows = [row for row in report["downstream"] if row["verdict"] == ABOVE_CHANCE]
    names = [row["id"] for row in rows if "random_init" not in row["controls"]]
    if not names:
        return []
    do = (
        "Fine-tune a random-initialised twin and other seeds the same way: chance is the lowest bar, the twin shows "
        "what pretraining adds."
    )
    return [(f"Above chance, without a twin beside: {', '.join(names)}.", do)]


def _concepts_ignored(_: Mapping[str, Any], results: Sequence[GateResult]) -> list[Step]:
    """A gate of the ledger fails."""
    failed = [r for r in results if r.verdict == "FAIL" and r.metric.startswith("ledger/")]
    do = (
        "The decoder does its work without the concepts. Hide more of the text from it (higher t, "
        'decoder_context="none", another view for the encoder), so that only the concepts can tell.'
    )
    return [(f"{result.gate.name}: {result.explanation}.", do) for result in failed[:1]]


def _undecided(report: Mapping[str, Any], results: Sequence[GateResult]) -> list[Step]:
    """A gate is undecided although its part of the run was done."""
    steps = []
    for result in results:
        if result.verdict != "INCONCLUSIVE" or result.metric.split("/")[0] in report["missing"]:
            continue
        if result.interval is not None:
            do = "Score more examples or average more seeds; the interval is too wide to decide."
        else:
            do = "Measure what the gate asks for, if the run is to be judged by it."
        steps.append((f"{result.gate.name}: {result.explanation}.", do))
    return steps


def _all_pass(_: Mapping[str, Any], results: Sequence[GateResult]) -> list[Step]:
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


def _curve(report: Mapping[str, Any], name: str) -> list[list[Any]]:
    return report["training"]["curves"].get(name, []) if report["training"] else []


def _metric(report: Mapping[str, Any], name: str) -> float | None:
    rows = report["geometry"]["metrics"] if report["geometry"] else []
    return next((row["value"] for row in rows if row["id"] == name), None)
