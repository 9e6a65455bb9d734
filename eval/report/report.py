"""The report of a run: measurements in, report.json out, figures, Markdown and HTML made from that JSON alone."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...utils.files import replaced_together, write_atomically, write_json
from ...utils.untrusted import read_object
from .figures import draw_figures, figure_rows
from .findings import compare, next_steps
from .gates import check_gates, load_gates
from .pages import number, render_html, render_markdown, score
from .sections import (
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
RUN_PARTS = ("training", "geometry")  # those that say what the run is
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
    content = read_object(path)
    kind = content.get("kind")
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
    sections = _sections(Path(run_dir), results)
    report: dict[str, Any] = {
        "kind": "report",
        "run": {
            "name": Path(run_dir).resolve().name,
            "files": [path for files in results.values() for path, _ in files],
        },
        **{name: next(iter(sections[name]), None) for name in ("training", "geometry", "ledger", "reading")},
        **{name: sections[name] for name in ("downstream", "similarity")},
        "missing": _missing(results),
        "other": other,
    }
    with _named(f"a result file of {run_dir}"):
        training, geometry = (next((content for _, content in results[name]), None) for name in RUN_PARTS)
        report["settings"] = settings(training, geometry)
        report["comparison"] = compare(report, read_reference(), other)
        _judge(report)
        report["figures"] = figure_rows(report)
        report["summary"] = summary_rows(report)
    return {name: report[name] for name in SECTIONS}


def _sections(folder: Path, results: Mapping[str, Sequence[tuple[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Part -> sections, one for each of its files."""
    reference = read_reference()
    make: dict[str, Callable[[Any], dict[str, Any]]] = {
        "training": training_section,
        "geometry": lambda content: geometry_section(content, reference),
        "ledger": ledger_section,
        "reading": reading_section,
        "downstream": task_section,
        "similarity": similarity_section,
    }
    sections: dict[str, list[dict[str, Any]]] = {name: [] for name in PARTS}
    for name, files in results.items():
        for path, content in files:
            with _named(str(folder / path), f": {PARTS[name].command}"):
                sections[name].append(make[name](content))
    return sections


@contextmanager
def _named(what: str, command: str = "") -> Iterator[None]:
    """Whatever a result of another form than its command writes leads to, as a ValueError that names it."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"{what} is not as its command writes it ({type(error).__name__}: {said}); write it anew{command}"
        ) from error


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


def report(run_dir: str | Path, other_dir: str | Path | None = None) -> dict[str, Any]:
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
    with _named(f"a result file of {run_dir}"), replaced_together(folder, last="report.json") as staged:
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
