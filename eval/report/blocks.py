"""What pages are made of: paragraphs, lists, tables and drawings as plain text, and how figures are written in them.

The sections of a report are built of these once; Markdown, HTML and the model card render the same ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ...utils.results import FigureFacts

Tone = Literal["", "good", "bad", "middling", "plain"]  # of a tag; "" is no tag


@dataclass(frozen=True)
class Cell:
    """A place in a table: text, a quieter note after it, and smaller parts, each with a note of its own."""

    text: str = ""
    note: str = ""
    tone: Tone = ""
    strong: bool = False
    code: bool = False
    parts: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Column:
    """Of text, of figures (whose title is repeated with them on a narrow screen), or of notes."""

    title: str
    kind: Literal["text", "figure", "own", "run", "note", "tokens"] = "text"

    @property
    def is_figure(self) -> bool:
        return self.kind in ("figure", "own", "run")


@dataclass(frozen=True)
class Table:
    """Rows of as many cells as columns; the first is the row's name. `grouped`: equal names are said once."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: Cell = Cell()
    layout: str = "stack"
    grouped: bool = False
    name = "table"


@dataclass(frozen=True)
class Paragraph:
    text: str
    tone: Literal["muted", "caution", "missing", ""] = "muted"
    command: str | None = None
    """to type"""
    name = "paragraph"


@dataclass(frozen=True)
class Heading:
    text: str
    name = "heading"


@dataclass(frozen=True)
class Bullets:
    lines: Sequence[str]
    caution: str = ""
    """words above, where the lines are a warning"""
    name = "bullets"


@dataclass(frozen=True)
class Steps:
    """Numbered: why, and what to do."""

    lines: Sequence[tuple[str, str]]
    name = "steps"


@dataclass(frozen=True)
class Drawings:
    figures: Sequence[FigureFacts]
    name = "drawings"


@dataclass(frozen=True)
class Marked:
    """A text as one concept sees it: each token with its weight, 1 the strongest mark."""

    index: int
    tokens: Sequence[tuple[str, float, str]]
    name = "marked"


@dataclass(frozen=True)
class Columns:
    """Next to one another where there is room."""

    blocks: "Sequence[Block]"
    name = "columns"


@dataclass(frozen=True)
class Folded:
    """Behind its title until it is opened."""

    title: str
    blocks: "Sequence[Block]"
    name = "folded"


Block = Table | Paragraph | Heading | Bullets | Steps | Drawings | Marked | Columns | Folded


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    blocks: Sequence[Block]
    label: str = field(default="")
    """in the navigation; the title where it is empty"""


def pairs(title: str, rows: Sequence[tuple[str, Any]]) -> Table:
    """A table of names and values."""
    columns = (Column(""), Column("", "figure"))
    return Table(columns, [(Cell(name), Cell(number(value))) for name, value in rows], Cell(title), "pairs")


# ------------------------------------------------------------------------------------------------------------ figures


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


def score(value: float | None) -> str:
    """A score as text: three decimals, "–" for None."""
    return "–" if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def span(interval: tuple[float, float] | None) -> str:
    """An interval of scores."""
    # Adding 0.0 makes -0.0 plain.
    return "–" if interval is None else " to ".join(f"{round(end, 3) + 0.0:.3f}" for end in interval)


def between(interval: tuple[float, float] | None) -> str:
    """An interval of any figure; empty where there is none."""
    return "" if interval is None else f"{number(interval[0], 3)} to {number(interval[1], 3)}"


def measured(row: Any) -> Cell:
    """The value of a figure with its interval; "–" for None."""
    return Cell("–") if row is None else Cell(number(row.value), between(getattr(row, "interval", None)))


def scored(row: Any) -> Cell:
    """The same for a score."""
    return Cell("–") if row is None else Cell(score(row.value), "" if row.interval is None else span(row.interval))
