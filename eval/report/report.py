"""The report of a run: results in, judged; report.json out, figures, Markdown and HTML made from that alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...utils.files import replaced_together, write_atomically
from ...utils.results import (
    AttentionResult,
    Compared,
    ComparedTable,
    FinetuneResult,
    GeometryResult,
    LedgerResult,
    Missing,
    PretrainResult,
    Report,
    Result,
    RetrievalResult,
    RunFacts,
    SimilarityResult,
    VerdictFacts,
)
from ..metrics.chance import chance_lines
from .blocks import number, score
from .figures import draw_figures, figure_rows
from .findings import compare, next_steps, read_reference
from .gates import check_gates, load_gates, sets_for
from .pages import render_html, render_markdown
from .verdict import gate_section, summary_rows, verdict_section

NO_DECODER = "No ledger: the checkpoint holds no decoder of masked diffusion, whose bits it would count."


class Part(NamedTuple):
    """A part of a run: what its files hold, where they are, and the command that writes them."""

    kind: type[Result]
    pattern: str
    absent: str
    command: str


PARTS = {
    "training": Part(
        PretrainResult,
        "pretrain.json",
        "This folder holds no record of pretraining.",
        "concept-encoder pretrain RECIPE --output_dir RUN_DIR",
    ),
    "geometry": Part(
        GeometryResult,
        "geometry.json",
        "The concepts of this run have not been analysed.",
        "concept-encoder analyze RUN_DIR",
    ),
    "ledger": Part(
        LedgerResult,
        "ledger.json",
        "How many bits the decoder takes through the concepts has not been measured; of the decoders, only that of "
        "masked diffusion has a ledger.",
        "concept-encoder analyze RUN_DIR",
    ),
    "reading": Part(
        AttentionResult,
        "reading.json",
        "What each concept reads, and who reads it, has not been recorded.",
        "concept-encoder analyze RUN_DIR",
    ),
    "downstream": Part(
        FinetuneResult,
        "finetune/*.json",
        "This run has not been fine-tuned on any task.",
        "concept-encoder finetune RUN_DIR --protocol tuned --tasks mrpc stsb paws sick_relatedness sick_entailment",
    ),
    "similarity": Part(
        SimilarityResult,
        "similarity/*.json",
        "The frozen concepts have not been scored, neither by cosine nor by a linear probe.",
        "concept-encoder similarity RUN_DIR --tasks stsb sick_relatedness",
    ),
    "retrieval": Part(
        RetrievalResult,
        "retrieval/*.json",
        "No documents have been searched with this run.",
        "concept-encoder retrieval RUN_DIR --tasks needle_1024 passkey_1024",
    ),
}
SINGLE = ("training", "geometry", "ledger", "reading")  # parts of one file


def read_results(run_dir: str | Path) -> dict[str, dict[str, Any]]:
    """The results of a run folder.

    Returns:
        Part name, as in `PARTS` -> path relative to the folder -> result, sorted by path.

    Raises:
        ValueError: no such folder, no result in it, or a file that is not what its command writes.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise ValueError(f"run folder {str(run_dir)!r} does not exist; give the --output_dir of a pretraining run")
    results = {
        name: {
            path.relative_to(folder).as_posix(): part.kind.load(path, folder)
            for path in sorted(folder.glob(part.pattern))
        }
        for name, part in PARTS.items()
    }
    if not any(results.values()):
        commands = "; ".join(dict.fromkeys(part.command for part in PARTS.values()))
        patterns = ", ".join(part.pattern for part in PARTS.values())
        raise ValueError(f"{str(run_dir)!r} holds no results ({patterns}). They are written by: {commands}")
    return results


def build_report(run_dir: str | Path, other_dir: str | Path | None = None) -> Report:
    """Everything that there is to say of a run: results, verdicts, comparisons and the names of its figures.

    A part of the run that was not done is None (or an empty list) and is named, with its command, under `missing`.

    Args:
        run_dir: folder with at least one of the files of `PARTS`.
        other_dir: folder of a run to lay next to it.

    Raises:
        ValueError: as `read_results`, for either folder; the same folder twice.
    """
    if other_dir is not None and Path(run_dir).resolve() == Path(other_dir).resolve():
        raise ValueError(f"the two runs to compare are the same folder, {str(run_dir)!r}; give two")
    other = None if other_dir is None else build_report(other_dir)
    report = compose(Path(run_dir).resolve().name, read_results(run_dir), other)
    report.folder = Path(run_dir)
    return report


def compose(name: str, results: Mapping[str, Mapping[str, Any]], other: Report | None = None) -> Report:
    """The report of results as from `read_results`."""
    if other is not None:
        other.figures = []
    nothing = ComparedTable(runs=[], rows=[])
    parts: dict[str, Any] = {part: next(iter(results[part].values()), None) for part in SINGLE}
    parts |= {part: list(results[part].values()) for part in PARTS if part not in SINGLE}
    report = Report(
        **parts,
        run=RunFacts(name=name, files=[path for files in results.values() for path in files]),
        missing=_missing(results),
        other=other,
        verdict=VerdictFacts(overall="INCONCLUSIVE", headline="", findings=[]),
        comparison=Compared(settings=nothing, geometry=nothing, downstream=nothing, not_like_for_like=[], notes=[]),
        summary=[],
        gates=[],
        next_steps=[],
        figures=[],
    )
    report.comparison = compare(report, read_reference(), other)
    gate_sets = sets_for(report, load_gates())
    judged = {name: check_gates(report, gate_set.gates) for name, gate_set in gate_sets.items()}
    verdicts = [result for found in judged.values() for result in found]
    report.gates = [gate_section(gate_sets[name], found) for name, found in judged.items()]
    report.verdict = verdict_section(report, verdicts)
    report.next_steps = next_steps(report, verdicts)
    report.figures = figure_rows(report)
    report.summary = summary_rows(report)
    return report


def _missing(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Missing]:
    """Part that was not done -> what the report says of it, and the command; None where nothing can be done."""
    missing = {
        name: Missing(text=part.absent, command=part.command) for name, part in PARTS.items() if not results[name]
    }
    if results["geometry"] and not results["ledger"]:  # one command writes both, where both can be had
        missing["ledger"] = Missing(text=NO_DECODER, command=None)
    return missing


def report(run_dir: str | Path, other_dir: str | Path | None = None) -> Report:
    """Build the report of a run folder and write figures/, report.md, report.html and report.json into it, together.

    Args:
        run_dir, other_dir: as for `build_report`; nothing is written into `other_dir`.

    Raises:
        ValueError: as `build_report`; nothing is written then.
    """
    folder = Path(run_dir)
    made = build_report(folder, other_dir)
    with replaced_together(folder, last="report.json") as staged:
        draw_figures(made, staged)
        pages = {"report.md": render_markdown(made), "report.html": render_html(made, staged)}
        for name, page in pages.items():
            write_atomically(staged / name, page)
        made.save(staged / "report.json")
    return made


def summary_table(report: Report) -> str:
    """The report in a few aligned lines of plain text: verdict, summary, scores with chance, gates."""
    rows = [(tile.id, number(tile.value), tile.detail) for tile in report.summary]
    for task in report.downstream:
        for name, row in task.scores.items():
            rows.append((f"{task.id} {name}", score(row.value), f"chance {score(row.chance)}  {row.verdict}"))
    for gate_set in report.gates:
        rows += [(f"{gate_set.id}: {row.name}", row.verdict, row.explanation) for row in gate_set.rows]
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [f"{name:<{first}}  {value:>{second}}  {words}" for name, value, words in rows]
    verdict = report.verdict
    return "\n".join([f"{verdict.overall}: {verdict.headline}", *chance_lines(report.downstream), "", *lines])
