"""The pages of a report, rendered from its JSON alone, and how they write figures."""

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from . import plots
from .figures import CONTROL_LABELS

TEMPLATES = Path(__file__).parent / "templates"
LONG_LIST = 12  # lists with more entries are left out of the printed raw JSON
FEW_CONCEPTS = 16  # rows of the reading table before the fold


def render_markdown(report: dict[str, Any]) -> str:
    """The report as Markdown; figures by their names relative to the run folder."""
    return page_environment().get_template("report.md.j2").render(**_context(report))


def render_html(report: dict[str, Any], run_dir: str | Path) -> str:
    """The report as one HTML file that needs no other: style inline, figures (read from `run_dir`) embedded.

    Raises:
        FileNotFoundError: a figure the report names was not drawn.
    """
    images = {
        figure[theme]: "data:image/png;base64,"
        + base64.b64encode((Path(run_dir) / figure[theme]).read_bytes()).decode("ascii")
        for figure in report["figures"]
        for theme in plots.THEMES
    }
    return page_environment().get_template("report.html.j2").render(images=images, **_context(report))


def number(value: Any, digits: int = 4) -> str:
    """A figure as text: `digits` significant digits, thousands separated, "–" for None; text stays as it is."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def _context(report: dict[str, Any]) -> dict[str, Any]:
    shown = {name: value for name, value in report.items() if name != "other"}
    return {
        "report": report,
        "beside": _beside(report["other"]),
        "few": FEW_CONCEPTS,
        "strongest": _strongest(report["reading"]),
        "metric_names": plots.METRIC_NAMES,
        "null_names": {name: label for name, (label, *_) in plots.NULL_MARKS.items()},
        "control_names": CONTROL_LABELS,
        "raw": json.dumps(_shortened(shown), indent=1, ensure_ascii=False),
    }


def _strongest(reading: Mapping[str, Any] | None) -> float:
    """The attention share that gets the full mark; four times even reading at least, or that would look like much."""
    shares = [share for concept in reading["chosen"] for _, share in concept["tokens"]] if reading else []
    if not shares:
        return 1.0
    assert reading is not None
    return max(*shares, 4 * len(reading["chosen"]) / len(shares))


def _beside(other: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the pages put into the column of another run, each figure under the id it has there."""
    if other is None:
        return None
    geometry, ledger = other["geometry"] or {}, other["ledger"] or {}
    spectrum = geometry.get("spectrum") or {"views": {}, "content_share": {"value": None}}
    return {
        "name": other["run"]["name"],
        "metrics": {row["id"]: row for row in geometry.get("metrics", [])},
        "views": spectrum["views"],
        "content_share": spectrum["content_share"]["value"],
        "bits": ledger.get("bits_per_token", {}),
        "concepts_for_90_percent": ledger.get("concepts_for_90_percent"),
        "scores": {f"{task['id']} {row['id']}": row for task in other["downstream"] for row in task["scores"]},
        "frozen": {
            f"{task['id']} {row['method']} {row['metric']}": row
            for task in other["similarity"]
            for row in task["rows"]
        },
    }


def _shortened(node: Any) -> Any:
    """The report without its long lists of numbers, which a reader would scroll past; report.json has them."""
    if isinstance(node, Mapping):
        return {name: _shortened(value) for name, value in node.items()}
    if isinstance(node, list):
        if len(node) > LONG_LIST and not isinstance(node[0], Mapping):
            return f"({len(node)} entries, in report.json)"
        return [_shortened(item) for item in node]
    return node


def page_environment(templates: Path = TEMPLATES) -> jinja2.Environment:
    """What renders the templates of a folder, with the filters of all pages."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number, score=score, signed=_signed, span=_span, between=_between, md=escape_markdown
    )
    return environment


def escape_markdown(value: Any) -> str:
    """Text that Markdown shows as it is, inside a table cell too."""
    text = " ".join(str(value).split())
    for character in "\\`*_[]|#~$":
        text = text.replace(character, f"\\{character}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code_span(value: Any) -> str:
    """Text as Markdown's code, which no backtick or line break in it ends."""
    text = " ".join(str(value).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text or not text else f"`{text}`"


def score(value: float | None) -> str:
    """A score as text: three decimals, "–" for None."""
    return "–" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def _span(interval: list[float] | None) -> str:
    return "none" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _between(interval: list[float]) -> str:
    return f"{number(interval[0], 3)} to {number(interval[1], 3)}"
