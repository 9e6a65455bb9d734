"""What stands above everything else in a report: the verdict in words, the findings, the handful of figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from .findings import ABOVE_CHANCE, BARELY, FORMALLY_ABOVE, NO_CHANCE
from .gates import GateResult, GateSet, overall_verdict
from .pages import number

CONTROLS = {"random_init": "the random-initialised twin", "bag_of_tokens": "the bag of tokens"}
NAMED = 4  # scores that a sentence names; of more it gives the number


def gate_section(gate_set: GateSet, results: Sequence[GateResult]) -> dict[str, Any]:
    """A set of gates as the report holds it."""
    verdict = overall_verdict(results)
    total = len(results)
    counted = sum(result.verdict == verdict for result in results)
    headline = {
        "PASS": "Every gate passes." if total > 1 else "The gate passes.",
        "FAIL": f"{counted} of {total} gates failed.",
        "INCONCLUSIVE": f"{counted} of {total} gates could not be decided.",
    }[verdict]
    return {
        "id": gate_set.name,
        "title": gate_set.title,
        "verdict": verdict,
        "headline": headline,
        "rows": [result.as_row() for result in results],
    }


def verdict_section(report: Mapping[str, Any], results: Sequence[GateResult]) -> dict[str, Any]:
    """The verdict over the gates of all sets, and what the figures say in sentences.

    Args:
        report: with `gates`, `geometry`, `ledger`, `downstream` and `missing` filled in.
        results: of all sets.
    """
    headline = " ".join(
        f"{row['title']}: {row['headline'][0].lower()}{row['headline'][1:]}" for row in report["gates"]
    )
    return {"overall": overall_verdict(results), "headline": headline, "findings": finding_lines(report)}


def finding_lines(report: Mapping[str, Any]) -> list[str]:
    """The findings, one sentence or two each, most telling first."""
    lines = chance_lines(report["downstream"])
    lines += [line for control in CONTROLS for line in control_lines(report["downstream"], control)]
    lines += _ledger_lines(report["ledger"])
    if report["geometry"]:
        lines += _spectrum_lines(report["geometry"]["spectrum"])
        lines += _grade_lines(report["geometry"]["metrics"])
    return [*lines, *(part["text"] for part in report["missing"].values())]


# --------------------------------------------------------------------------------------------------------- downstream


def chance_lines(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the downstream scores say against chance, by the primary metric of each task."""
    scored = [row for row in tasks if row["verdict"] != NO_CHANCE]
    if not scored:
        return []
    at_chance = [row["id"] for row in scored if row["verdict"] in BARELY and row["verdict"] != FORMALLY_ABOVE]
    formally = [_explained(row) for row in scored if row["verdict"] == FORMALLY_ABOVE]
    above = [row["id"] for row in scored if row["verdict"] == ABOVE_CHANCE]
    if above:
        lines = [f"Above chance: {', '.join(above)}."]
        if formally:
            lines.append(f"Above chance formally, no more: {', '.join(formally)}.")
        if at_chance:
            lines.append(f"Cannot be told from chance: {_named(at_chance, len(scored))}.")
        return lines
    line = "The downstream scores cannot be told from chance"
    if at_chance:
        line += f": {_named(at_chance, len(scored))} {'is' if len(at_chance) == 1 else 'are'} at chance"
    line += "."
    if formally:
        line += f" Formally above it, with next to nothing explained: {', '.join(formally)}."
    return [line]


def control_lines(tasks: Sequence[Mapping[str, Any]], control: str) -> list[str]:
    """Whether the run beats a control, by the interval of the paired difference in each task's primary metric."""
    groups: dict[str, list[tuple[str, float]]] = {"beats": [], "cannot be told from": [], "is worse than": []}
    for row in tasks:
        facts = row["scores"][0]["controls"].get(control, {})
        if facts.get("difference_interval") is None:
            continue
        low, high = facts["difference_interval"]
        words = "beats" if low > 0 else "is worse than" if high < 0 else "cannot be told from"
        difference = f"{facts['difference']:+.3f} {row['primary_metric']}, {low:+.3f} to {high:+.3f}"
        groups[words].append((f"{row['id']} ({difference})", facts["difference"]))
    total, lines = sum(map(len, groups.values())), []
    for words, found in groups.items():
        where = _named([text for text, _ in found], total)
        if len(found) > NAMED:
            differences = [difference for _, difference in found]
            where += f" (differences from {min(differences):+.3f} to {max(differences):+.3f})"
        if found:
            lines.append(f"This run {words} {CONTROLS[control]} on {where}.")
    return lines


def _explained(row: Mapping[str, Any]) -> str:
    score = row["scores"][0]
    return f"{row['id']} ({score['id']} {score['value']:.3f} explains {score['value'] ** 2:.1%} of the variance)"


# ------------------------------------------------------------------------------------------------ ledger and geometry


def _ledger_lines(ledger: Mapping[str, Any] | None) -> list[str]:
    figure = ledger["bits_per_token"].get("null") if ledger else None
    if ledger is None or not figure or figure["value"] is None:
        return []
    low, high = figure.get("interval") or (None, None)
    span = "" if low is None else f" ({low:.3f} to {high:.3f})"
    if low is not None and low <= 0:
        return [f"The decoder cannot be shown to read the concepts: {figure['value']:.3f} bits per token{span}."]
    line = f"The decoder takes {figure['value']:.3f} bits per token{span} from what concepts say beyond their template"
    count = ledger["concepts_for_90_percent"]
    if count is not None:
        line += f"; {count} of {len(ledger['leave_one_out'])} concepts carry 90 % of them"
    return [f"{line}."]


def _spectrum_lines(spectrum: Mapping[str, Any] | None) -> list[str]:
    if not spectrum:
        return []
    lines = []
    rank = spectrum["views"].get("within_centred", {}).get("rankme")
    if rank and rank["value"] is not None:
        nulls = rank["nulls"]
        beside = [f"{nulls[key]:.1f} for {name}" for key, name in NULLS.items() if nulls.get(key) is not None]
        line = f"RankMe within a text, centred, is {rank['value']:.1f}"
        lines.append(f"{line}; {', '.join(beside)}." if beside else f"{line}.")
    share = spectrum.get("content_share")
    if share and share["value"] is not None:
        words = "of the variance of the concept vectors depends on the text, the rest is a template all texts share"
        lines.append(f"{share['value']:.1%} {words}.")
    return lines


NULLS = {
    "gaussian": "Gaussian noise",
    "random_encoder": "a random-initialised encoder",
    "static_slots": "static slots",
}


def _grade_lines(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    graded = [row for row in metrics if row["grade"] and not row["by_construction"]]
    fixed = [row["id"] for row in metrics if row["grade"] and row["by_construction"]]
    counts = [(name, sum(row["grade"] == name for row in graded)) for name in ("GOOD", "OK", "POOR")]
    line = f"Geometry, by the reference's grades: {', '.join(f'{count} {name}' for name, count in counts)}."
    if fixed:
        line += f" Not counted, because fixed by construction: {', '.join(fixed)}."
    return [line]


# ------------------------------------------------------------------------------------------------------------ figures


def summary_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The handful of figures at the top: {"id", "value", "detail"}."""
    rows = []
    training, downstream, ledger = report["training"], report["downstream"], report["ledger"]
    if training:
        outcome = training["outcome"]
        first, last = outcome["training loss, first"], outcome["training loss, last"]
        rows.append(_tile("training loss", last, f"from {number(first)} at the first step logged"))
        if training["nelbo_bits_per_token"] is not None:
            detail = "bits per token, the encoder having seen the text"
            rows.append(_tile("conditional NELBO", training["nelbo_bits_per_token"], detail))
    if ledger:
        figure = ledger["bits_per_token"].get("null") or {"value": None}
        detail = f"bits per token, beyond the template{_between(figure.get('interval'))}"
        # Adding 0.0 makes -0.0 plain.
        value = None if figure["value"] is None else round(figure["value"], 4) + 0.0
        rows.append(_tile("through the concepts", value, detail))
    if report["geometry"]:
        rows += _rank_tiles(report["geometry"])
    if downstream:
        above = sum(row["verdict"] == ABOVE_CHANCE for row in downstream)
        rows.append(_tile("tasks above chance", above, f"of {len(downstream)} scored, by primary metric"))
        paired = [row["scores"][0]["controls"].get("random_init", {}).get("difference_interval") for row in downstream]
        paired = [interval for interval in paired if interval is not None]
        if paired:
            beaten = sum(interval[0] > 0 for interval in paired)
            rows.append(
                _tile("beats its random twin", beaten, f"of {len(paired)} with a twin, by the paired interval")
            )
    return rows


def _rank_tiles(geometry: Mapping[str, Any]) -> list[dict[str, Any]]:
    spectrum = geometry["spectrum"]
    rank = spectrum["views"].get("within_centred", {}).get("rankme") if spectrum else None
    if rank:
        null = rank["nulls"].get("gaussian")
        detail = "within a text, centred" + ("" if null is None else f"; Gaussian noise {null:.4g}")
        return [_tile("RankMe", rank["value"], detail)]
    metrics = {row["id"]: row["value"] for row in geometry["metrics"]}
    bound = min(geometry["num_concepts"], geometry["hidden_size"])
    return [_tile("global effective rank", metrics.get("global_effective_rank"), f"of at most {bound}")]


def _tile(name: str, value: float | None, detail: str) -> dict[str, Any]:
    return {"id": name, "value": value, "detail": detail}


def _between(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"


def _named(names: Sequence[str], total: int) -> str:
    """The names, or how many of `total` scores they are when a reader would lose count."""
    return f"{len(names)} of {total} scores" if len(names) > NAMED else _listed(names) if names else ""


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
