"""What a score says: against chance, and against a control. Judged and put into words here and nowhere else."""

import math
from collections.abc import Mapping, Sequence

from scipy.stats import binomtest, norm

from ...utils.results import Chance, Control, ControlScore, FinetuneResult, TaskScore

ABOVE_CHANCE: Chance = "above chance"
BARELY_ABOVE: Chance = "barely above chance"
WITHIN_NOISE: Chance = "not told from chance"
AT_CHANCE: Chance = "at or below chance"
NO_CHANCE: Chance = "no chance level"
BARELY = (AT_CHANCE, WITHIN_NOISE, BARELY_ABOVE)
BEATS, EQUALS, LOSES = "beats", "cannot be told from", "is worse than"  # a control

NEGLIGIBLE = 0.05  # share of the variance below which a correlation above 0 is barely so
CONFIDENCE = 0.95
CORRELATIONS = {"pearson": 1.0, "spearman": 1.06}  # metric -> variance of its Fisher z, in units of 1 / (n - 3)
NAMED = 4  # scores that a sentence names; of more it gives the number
CONTROLS: dict[Control, str] = {"random_init": "the random-initialised twin", "bag_of_tokens": "the bag of tokens"}


def judge(
    metric: str,
    value: float | None,
    chance: float | None,
    *,
    examples: int | None = None,
    interval: tuple[float, float] | None = None,
    at_chance: bool | None = None,
    controls: Mapping[Control, ControlScore] | None = None,
    per_seed: Sequence[float | None] = (),
) -> TaskScore:
    """A score with its verdict.

    It is above chance only when its interval is too; without an interval the point decides and the note says so. A
    correlation that explains next to nothing is barely above chance.

    Args:
        metric: name; higher is better.
        value: the score, None when it is undefined (a correlation of a constant prediction).
        chance: the score of not looking at the input, on the same split.
        examples: number of scored examples, for an interval where none was measured and the metric has a formula.
        interval: (low, high) when it was measured.
        at_chance: whether a test on the predictions themselves could not tell the score from chance, when there was
            one; it wins over the interval.
        controls: scored on the same examples.
        per_seed: the scores whose mean `value` is.
    """
    rule = "as measured" if interval is not None else None
    if interval is None and value is not None and examples:
        interval, rule = sampling_interval(metric, value, examples)
    verdict = _verdict(metric, value, chance, interval, at_chance)
    note = None
    if metric in CORRELATIONS and value is not None:
        note = f"explains {value**2:.1%} of the variance; any weak cue beats a constant prediction"
    elif verdict == ABOVE_CHANCE and interval is None and at_chance is None:
        note = "by the point value, no interval"
    elif verdict == NO_CHANCE:
        note = "without a chance level the score says nothing"
    return TaskScore(
        value=value,
        interval=interval,
        interval_rule=rule,
        chance=chance,
        verdict=verdict,
        note=note,
        controls=dict(controls or {}),
        per_seed=list(per_seed),
    )


def _verdict(
    metric: str,
    value: float | None,
    chance: float | None,
    interval: tuple[float, float] | None,
    at_chance: bool | None,
) -> Chance:
    if chance is None:
        return NO_CHANCE
    if value is None or value <= chance:
        return AT_CHANCE
    if at_chance is None:
        at_chance = interval is not None and interval[0] <= chance
    if at_chance:
        return WITHIN_NOISE
    return BARELY_ABOVE if metric in CORRELATIONS and value**2 < NEGLIGIBLE else ABOVE_CHANCE


def sampling_interval(metric: str, value: float, examples: int) -> tuple[tuple[float, float] | None, str | None]:
    """95 % interval of a score from the number of examples alone: the noise of the split, not of the training.

    Accuracy: Wilson 1927. Pearson: Fisher's z. Spearman: Fisher's z with the variance 1.06 / (n - 3) of Fieller et
    al. 1957. Other metrics have no formula and get None.

    Returns:
        (low, high) and the name of the rule, or (None, None).
    """
    if metric == "accuracy":
        bounds = binomtest(round(value * examples), examples).proportion_ci(CONFIDENCE, method="wilson")
        return (float(bounds.low), float(bounds.high)), f"95 %, Wilson, {examples} examples"
    if metric in CORRELATIONS and examples > 3 and abs(value) < 1:
        half = norm.ppf((1 + CONFIDENCE) / 2) * math.sqrt(CORRELATIONS[metric] / (examples - 3))
        low, high = (math.tanh(math.atanh(value) + sign * half) for sign in (-1, 1))
        return (low, high), f"95 %, Fisher z, {examples} examples"
    return None, None


def against(control: ControlScore | None) -> str | None:
    """`BEATS`, `EQUALS` or `LOSES`, by the interval of the paired difference; None where there is none."""
    if control is None or control.difference_interval is None:
        return None
    low, high = control.difference_interval
    return BEATS if low > 0 else LOSES if high < 0 else EQUALS


# -------------------------------------------------------------------------------------------------------------- words


def task_words(task: FinetuneResult) -> str:
    """Every score of a task against chance, in one line."""
    said = []
    for metric, score in task.scores.items():
        value = "undefined" if score.value is None else f"{score.value:.3f}"
        level = "" if score.chance is None else f" ({score.chance:.3f}, {task.chance_rule})"
        said.append(f"{metric} {value}: {score.verdict}{level}")
    return "; ".join(said)


def chance_lines(tasks: Sequence[FinetuneResult]) -> list[str]:
    """What the downstream scores say against chance, by the primary metric of each task."""
    scored = [task for task in tasks if task.verdict != NO_CHANCE]
    if not scored:
        return []
    at_chance = [task.id for task in scored if task.verdict in BARELY and task.verdict != BARELY_ABOVE]
    barely = [_explained(task) for task in scored if task.verdict == BARELY_ABOVE]
    above = [task.id for task in scored if task.verdict == ABOVE_CHANCE]
    if above:
        lines = [f"Above chance: {', '.join(above)}."]
        if barely:
            lines.append(f"Above chance, but explaining next to nothing: {', '.join(barely)}.")
        if at_chance:
            lines.append(f"Cannot be told from chance: {_named(at_chance, len(scored))}.")
        return lines
    line = "The downstream scores cannot be told from chance"
    if at_chance:
        line += f": {_named(at_chance, len(scored))} {'is' if len(at_chance) == 1 else 'are'} at chance"
    line += "."
    if barely:
        line += f" Above it, but explaining next to nothing: {', '.join(barely)}."
    return [line]


def control_lines(tasks: Sequence[FinetuneResult], control: Control) -> list[str]:
    """Whether the run beats a control, by the primary metric of each task."""
    groups: dict[str, list[tuple[str, float]]] = {BEATS: [], EQUALS: [], LOSES: []}
    for task in tasks:
        facts = task.primary.controls.get(control)
        words = against(facts)
        if facts is None or words is None or facts.difference is None or facts.difference_interval is None:
            continue
        low, high = facts.difference_interval
        said = f"{facts.difference:+.3f} {task.primary_metric}, {low:+.3f} to {high:+.3f}"
        groups[words].append((f"{task.id} ({said})", facts.difference))
    total, lines = sum(map(len, groups.values())), []
    for words, found in groups.items():
        where = _named([text for text, _ in found], total)
        if len(found) > NAMED:
            differences = [difference for _, difference in found]
            where += f" (differences from {min(differences):+.3f} to {max(differences):+.3f})"
        if found:
            lines.append(f"This run {words} {CONTROLS[control]} on {where}.")
    return lines


def _explained(task: FinetuneResult) -> str:
    value = task.primary.value or 0.0
    return f"{task.id} ({task.primary_metric} {value:.3f} explains {value**2:.1%} of the variance)"


def _named(names: Sequence[str], total: int) -> str:
    """The names, or how many of `total` scores they are when a reader would lose count."""
    if len(names) > NAMED:
        return f"{len(names)} of {total} scores"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
