"""What stands above everything else in a report: the verdict in words, the findings, the handful of figures."""

from collections.abc import Sequence

from ...utils.results import (
    GateFacts,
    GeometryMetric,
    GeometryResult,
    Grade,
    LedgerResult,
    Report,
    Spectrum,
    Tile,
    VerdictFacts,
    names_of,
)
from ..metrics.chance import ABOVE_CHANCE, BEATS, CONTROLS, against, chance_lines, control_lines
from .blocks import number
from .gates import GateResult, GateSet, overall_verdict

NULLS = {
    "gaussian": "Gaussian noise",
    "random_encoder": "a random-initialised encoder",
    "static_slots": "static slots",
}


def gate_section(gate_set: GateSet, results: Sequence[GateResult]) -> GateFacts:
    """A set of gates as the report holds it."""
    verdict = overall_verdict(results)
    total = len(results)
    counted = sum(result.verdict == verdict for result in results)
    headline = {
        "PASS": "Every gate passes." if total > 1 else "The gate passes.",
        "FAIL": f"{counted} of {total} gates failed.",
        "INCONCLUSIVE": f"{counted} of {total} gates could not be decided.",
    }[verdict]
    return GateFacts(
        id=gate_set.name,
        title=gate_set.title,
        verdict=verdict,
        headline=headline,
        rows=[result.as_row() for result in results],
    )


def verdict_section(report: Report, results: Sequence[GateResult]) -> VerdictFacts:
    """The verdict over the gates of all sets, and what the figures say in sentences.

    Args:
        report: with its results, `gates` and `missing` filled in.
        results: of all sets.
    """
    headline = " ".join(f"{row.title}: {row.headline[0].lower()}{row.headline[1:]}" for row in report.gates)
    return VerdictFacts(overall=overall_verdict(results), headline=headline, findings=finding_lines(report))


def finding_lines(report: Report) -> list[str]:
    """The findings, one sentence or two each, most telling first."""
    lines = chance_lines(report.downstream)
    lines += [line for control in CONTROLS for line in control_lines(report.downstream, control)]
    lines += _ledger_lines(report.ledger)
    if report.geometry:
        lines += _spectrum_lines(report.geometry.spectrum)
        lines += _grade_lines(report.geometry)
    return [*lines, *(part.text for part in report.missing.values())]


def _ledger_lines(ledger: LedgerResult | None) -> list[str]:
    if ledger is None or ledger.bits_per_token.null.value is None:
        return []
    figure = ledger.bits_per_token.null
    said = f"{figure.value:.3f} bits per token{_between(figure.interval)}"
    if not ledger.is_read:
        return [f"The decoder cannot be shown to read the concepts: {said}."]
    line = f"The decoder takes {said} from what concepts say beyond their template"
    count = ledger.concepts_for_90_percent
    if count is not None:
        line += f"; {count} of {len(ledger.leave_one_out)} concepts carry 90 % of them"
    return [f"{line}."]


def _spectrum_lines(spectrum: Spectrum | None) -> list[str]:
    if spectrum is None:
        return []
    lines = []
    rank = spectrum.views.get("within_centred", {}).get("rankme")
    if rank is not None and rank.value is not None:
        nulls = {name: getattr(rank.nulls, key) for key, name in NULLS.items()}
        beside = [f"{value:.1f} for {name}" for name, value in nulls.items() if value is not None]
        line = f"RankMe within a text, centred, is {rank.value:.1f}"
        lines.append(f"{line}; {', '.join(beside)}." if beside else f"{line}.")
    if spectrum.content_share is not None and spectrum.content_share.value is not None:
        words = "of the variance of the concept vectors depends on the text, the rest is a template all texts share"
        lines.append(f"{spectrum.content_share.value:.1%} {words}.")
    return lines


def _grade_lines(geometry: GeometryResult) -> list[str]:
    graded = [name for name in geometry.metrics if name in geometry.grades]
    fixed = [name for name in names_of(GeometryMetric) if name in graded and name in geometry.by_construction]
    found = [geometry.grades[name] for name in graded if name not in fixed]
    counts = ", ".join(f"{found.count(name)} {name}" for name in names_of(Grade))
    line = f"Geometry, by the reference's grades: {counts}."
    if fixed:
        line += f" Not counted, because fixed by construction: {', '.join(fixed)}."
    return [line]


# ------------------------------------------------------------------------------------------------------------ figures


def summary_rows(report: Report) -> list[Tile]:
    """The handful of figures at the top."""
    rows = []
    if report.training:
        run = report.training
        first, last = run.train_loss
        rows.append(Tile(id="training loss", value=last, detail=f"from {number(first)} at the first step logged"))
        nelbo = run.evaluation.nelbo_bits_per_token
        if nelbo is not None:
            detail = "bits per token, the encoder having seen the text"
            rows.append(Tile(id="conditional NELBO", value=nelbo, detail=detail))
    if report.ledger:
        figure = report.ledger.bits_per_token.null
        detail = f"bits per token, beyond the template{_between(figure.interval)}"
        # Adding 0.0 makes -0.0 plain.
        value = None if figure.value is None else round(figure.value, 4) + 0.0
        rows.append(Tile(id="through the concepts", value=value, detail=detail))
    if report.geometry:
        rows.append(_rank_tile(report.geometry))
    if report.downstream:
        tasks = report.downstream
        above = sum(task.verdict == ABOVE_CHANCE for task in tasks)
        detail = f"of {len(tasks)} scored, by primary metric"
        rows.append(Tile(id="tasks above chance", value=above, detail=detail))
        paired = [against(task.primary.controls.get("random_init")) for task in tasks]
        paired = [words for words in paired if words is not None]
        if paired:
            detail = f"of {len(paired)} with a twin, by the paired interval"
            rows.append(Tile(id="beats its random twin", value=paired.count(BEATS), detail=detail))
    return rows


def _rank_tile(geometry: GeometryResult) -> Tile:
    rank = geometry.spectrum.views.get("within_centred", {}).get("rankme") if geometry.spectrum else None
    if rank:
        null = rank.nulls.gaussian
        detail = "within a text, centred" + ("" if null is None else f"; Gaussian noise {null:.4g}")
        return Tile(id="RankMe", value=rank.value, detail=detail)
    bound = min(geometry.num_concepts, geometry.hidden_size)
    value = geometry.metrics.get("global_effective_rank")
    return Tile(id="global effective rank", value=value, detail=f"of at most {bound}")


def _between(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"
