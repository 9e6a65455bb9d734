"""The pages of a report, rendered from its sections."""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from ...utils.results import JudgeResult, Report, Tile
from . import plots
from .blocks import Block, Section, number, score
from .sections import SIGNS, TONES, gate_verdicts, sections

TEMPLATES = Path(__file__).parent / "templates"
LONG_LIST = 12  # lists with more entries are left out of the printed raw JSON


def render_markdown(report: Report) -> str:
    """The report as Markdown; figures by their names relative to the run folder."""
    return markdown_page(**_context(report))


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
    return html_page(images=images, **_context(report))


def markdown_page(**context: Any) -> str:
    """A page from its sections; `context` as `page_context` gives it."""
    return _without_gaps(page_environment().get_template("report.md.j2").render(**context))


def html_page(images: Mapping[str, str], **context: Any) -> str:
    """The same as one HTML file; `images` are the drawings as data: addresses, by name."""
    return page_environment().get_template("report.html.j2").render(images=images, **context)


def page_context(
    report: Report | JudgeResult,
    shown: Mapping[str, Any],
    *,
    title: str,
    eyebrow: str,
    beside: str | None,
    summary: Sequence[Tile],
    parts: Sequence[Section],
    file: str,
) -> dict[str, Any]:
    """What the two templates need.

    Args:
        report: with verdict and gates.
        shown: of the raw JSON.
        title, eyebrow, beside: of the head; the line above it; what is laid next to it.
        summary: figures at the top.
        parts: sections under the verdict.
        file: that holds the JSON.
    """
    return {
        "report": report,
        "title": title,
        "eyebrow": eyebrow,
        "beside": beside,
        "summary": summary,
        "sections": parts,
        "file": file,
        "gates": gate_verdicts(report.gates),
        "tones": TONES,
        "signs": SIGNS,
        "raw": json.dumps(_shortened(shown), indent=1, ensure_ascii=False),
    }


def blocks_as_markdown(blocks: Sequence[Block]) -> str:
    """Blocks of a section, as they stand in the Markdown of a report."""
    template: Any = page_environment().get_template("blocks.md.j2")
    return _without_gaps(template.module.render(blocks)).strip()


def _without_gaps(page: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", page)


def _context(report: Report) -> dict[str, Any]:
    return page_context(
        report,
        {name: value for name, value in report.as_dict().items() if name != "other"},
        title=report.run.name,
        eyebrow="Concept encoder run",
        beside=report.other.run.name if report.other else None,
        summary=report.summary,
        parts=sections(report),
        file="report.json",
    )


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
    environment.filters.update(number=number, score=score, md=escape_markdown, advice=with_commands)
    return environment


def with_commands(value: str) -> str:
    """Words of our own as Markdown, in which what stands in backticks is a command to copy."""
    parts = re.split(r"(\s*`[^`\n]+`\s*)", value)
    return "".join(part if place % 2 else escape_markdown(part) for place, part in enumerate(parts))


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
