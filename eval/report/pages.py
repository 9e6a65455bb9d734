"""The pages of a report, rendered from its sections."""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from ...utils.results import Report
from . import plots
from .blocks import Block, number, score
from .sections import SIGNS, TONES, gate_verdicts, sections

TEMPLATES = Path(__file__).parent / "templates"
LONG_LIST = 12  # lists with more entries are left out of the printed raw JSON


def render_markdown(report: Report) -> str:
    """The report as Markdown; figures by their names relative to the run folder."""
    return _without_gaps(page_environment().get_template("report.md.j2").render(**_context(report)))


def render_html(report: Report, run_dir: str | Path) -> str:
    """The report as one HTML file that needs no other: style inline, figures (read from `run_dir`) embedded.

    Raises:
        FileNotFoundError: a figure the report names was not drawn.
    """
    images = {
        name: "data:image/png;base64," + base64.b64encode((Path(run_dir) / name).read_bytes()).decode("ascii")
        for figure in report.figures
        for name in (getattr(figure, theme) for theme in plots.THEMES)
    }
    return page_environment().get_template("report.html.j2").render(images=images, **_context(report))


def blocks_as_markdown(blocks: Sequence[Block]) -> str:
    """Blocks of a section, as they stand in the Markdown of a report."""
    template: Any = page_environment().get_template("blocks.md.j2")
    return _without_gaps(template.module.render(blocks)).strip()


def _without_gaps(page: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", page)


def _context(report: Report) -> dict[str, Any]:
    shown = {name: value for name, value in report.as_dict().items() if name != "other"}
    return {
        "report": report,
        "sections": sections(report),
        "gates": gate_verdicts(report.gates),
        "tones": TONES,
        "signs": SIGNS,
        "raw": json.dumps(_shortened(shown), indent=1, ensure_ascii=False),
    }


def _shortened(node: Any) -> Any:
    """The report without its long lists, which a reader would scroll past; report.json has them."""
    if isinstance(node, Mapping):
        return {name: _shortened(value) for name, value in node.items()}
    if isinstance(node, list):
        if len(node) > LONG_LIST and (not isinstance(node[0], Mapping) or "step" in node[0]):
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
    environment.filters.update(number=number, score=score, md=escape_markdown)
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
