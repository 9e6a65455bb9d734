"""The report of a run: measurements in, report.json out, figures, Markdown and HTML made from that JSON alone."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..trainers.files import replaced_together, write_atomically, write_json
from .findings import compare, next_steps
from .gates import check_gates, load_gates
from .report_figures import draw_figures, figure_rows
from .report_pages import number, render_html, render_markdown, score
from .report_sections import (
    PARTS,
    Part,
    geometry_section,
    ledger_section,
    reading_section,
    settings,
    similarity_section,
    task_section,
    training_section,
)
from .verdict import chance_lines, gate_section, summary_rows, verdict_section

NO_DECODER = "No ledger: the checkpoint holds no decoder of masked diffusion, whose bits it would count."
REFERENCE_FILE = Path(__file__).parent / "reference_run.json"
SECTIONS = (
    "kind run verdict summary training geometry ledger reading comparison downstream similarity gates next_steps "
    "figures missing settings other"
).split()


def read_results(run_dir: str | Path) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """The result files of a run folder.

    Returns:
        Part name, as in `PARTS` -> (path relative to the folder, content), sorted by path.

    Raises:
        ValueError: no such folder, no result in it, or a file that is not strict JSON, not of its kind or lacks a key.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise ValueError(f"run folder {str(run_dir)!r} does not exist; give the --output_dir of a pretraining run")
    results = {}
    for name, part in PARTS.items():
        paths = sorted(folder.glob(part.pattern))
        results[name] = [(path.relative_to(folder).as_posix(), _read(path, part)) for path in paths]
    if not any(results.values()):
        commands = "; ".join(dict.fromkeys(part.command for part in PARTS.values()))
        patterns = ", ".join(part.pattern for part in PARTS.values())
        raise ValueError(f"{str(run_dir)!r} holds no results ({patterns}). They are written by: {commands}")
    return results


def _read(path: Path, part: Part) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON; an unknown number is null")

    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind != part.kind:
        raise ValueError(f"{path} must be a JSON object with kind {part.kind!r}, got kind {kind!r}")
    missing = [key for key in part.required if key not in content]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; write it anew with: {part.command}")
    return content


def build_report(run_dir: str | Path, other_dir: str | Path | None = None) -> dict[str, Any]:
    """Everything the report says, as strict JSON: numbers, verdicts and the data of every figure.

    A part of the run that was not done is None (or an empty list) and is named, with its command, under `missing`.

    Args:
        run_dir: folder with at least one of the files of `PARTS`.
        other_dir: folder of a run to lay beside it.

    Returns:
        An object with the keys `SECTIONS`; `other` is the report of the other run in the same form, without figures
        of its own, or None.

    Raises:
        ValueError: as `read_results`, for either folder; the same folder twice.
    """
    if other_dir is not None and Path(run_dir).resolve() == Path(other_dir).resolve():
        raise ValueError(f"the two runs to compare are the same folder, {str(run_dir)!r}; give two")
    other = None if other_dir is None else {**build_report(other_dir), "figures": []}
    results = read_results(run_dir)
    contents = {name: [content for _, content in files] for name, files in results.items()}
    training, geometry, ledger, reading = (
        contents[name][0] if contents[name] else None for name in ("training", "geometry", "ledger", "reading")
    )
    reference = read_reference()
    report: dict[str, Any] = {
        "kind": "report",
        "run": {
            "name": Path(run_dir).resolve().name,
            "files": [path for files in results.values() for path, _ in files],
        },
        "training": training_section(training) if training else None,
        "geometry": geometry_section(geometry, reference) if geometry else None,
        "ledger": ledger_section(ledger) if ledger else None,
        "reading": reading_section(reading) if reading else None,
        "downstream": [task_section(content) for content in contents["downstream"]],
        "similarity": [similarity_section(content) for content in contents["similarity"]],
        "settings": settings(training, geometry),
        "missing": _missing(results),
        "other": other,
    }
    report["comparison"] = compare(report, reference, other)
    _judge(report)
    report["figures"] = figure_rows(report)
    report["summary"] = summary_rows(report)
    return {name: report[name] for name in SECTIONS}


def _missing(results: Mapping[str, Sequence]) -> dict[str, dict[str, str | None]]:
    """Part that was not done -> what the report says of it, and the command; None where nothing can be done."""
    missing: dict[str, dict[str, str | None]] = {
        name: {"text": part.absent, "command": part.command} for name, part in PARTS.items() if not results[name]
    }
    if results["geometry"] and not results["ledger"]:  # one command writes both, where both can be had
        missing["ledger"] = {"text": NO_DECODER, "command": None}
    return missing


def read_reference() -> dict[str, Any]:
    """Content of reference_run.json: the figures of the reference run and its baselines as reported."""
    return json.loads(REFERENCE_FILE.read_text(encoding="utf-8"))


def _judge(report: dict[str, Any]) -> None:
    """Gates, verdict and next steps, which read the other sections."""
    gate_sets = load_gates()
    judged = {name: check_gates(report, gate_set.gates) for name, gate_set in gate_sets.items()}
    results = [result for found in judged.values() for result in found]
    report["gates"] = [gate_section(gate_sets[name], found) for name, found in judged.items()]
    report["verdict"] = verdict_section(report, results)
    report["next_steps"] = next_steps(report, results)


def write_report(run_dir: str | Path, other_dir: str | Path | None = None) -> dict[str, Any]:
    """Build the report of a run folder and write figures/, report.md, report.html and report.json into it, together.

    Args:
        run_dir, other_dir: as for `build_report`; nothing is written into `other_dir`.

    Returns:
        The content of report.json.

    Raises:
        ValueError: as `build_report`; nothing is written then.
    """
    folder = Path(run_dir)
    report = build_report(folder, other_dir)
    with replaced_together(folder, last="report.json") as staged:
        draw_figures(report, staged)
        pages = {"report.md": render_markdown(report), "report.html": render_html(report, staged)}
        for name, page in pages.items():
            write_atomically(staged / name, page)
        write_json(staged / "report.json", report)
    return report


def summary_table(report: Mapping[str, Any]) -> str:
    """The report in a few aligned lines of plain text: verdict, summary, scores with chance, gates."""
    rows = [(row["id"], number(row["value"]), row["detail"]) for row in report["summary"]]
    for task in report["downstream"]:
        for row in task["scores"]:
            beside = f"chance {score(row['chance'])}  {row['verdict']}"
            rows.append((f"{task['id']} {row['id']}", score(row["value"]), beside))
    for gate_set in report["gates"]:
        rows += [(f"{gate_set['id']}: {row['name']}", row["verdict"], row["explanation"]) for row in gate_set["rows"]]
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [f"{name:<{first}}  {value:>{second}}  {words}" for name, value, words in rows]
    verdict = report["verdict"]
    return "\n".join([f"{verdict['overall']}: {verdict['headline']}", *chance_lines(report["downstream"]), "", *lines])
