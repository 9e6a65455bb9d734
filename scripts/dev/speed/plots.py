"""Figures of the benchmark: time and memory against the length of a text, and shares of the roofline."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter, NullLocator

from concept_encoder.eval.report.plots import figure_file

LINES: tuple[dict[str, str], ...] = (  # marker, line and colour; our own forms are solid, peers dashed
    {"marker": "o", "ls": "-", "color": "main"},
    {"marker": "s", "ls": "-", "color": "good"},
    {"marker": "P", "ls": "-", "color": "text"},
    {"marker": "D", "ls": "--", "color": "second"},
    {"marker": "v", "ls": "--", "color": "muted"},
    {"marker": "^", "ls": "--", "color": "chance"},
)


def plot_growth(curves: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, theme: str = "light") -> None:
    """Time and memory of one text against its length, both on log axes, one line per form.

    Args:
        curves: form, at most six, -> [{"length": N, "seconds", "memory": bytes or None}]; an empty one keeps its
            place in the colours, and is not drawn.
        path, theme: as in `plots`.

    Raises:
        ValueError: no curve.
    """
    if not any(curves.values()):
        raise ValueError("nothing to draw: need a curve")
    with figure_file(path, theme, height=6.2) as (figure, colours):
        panels = figure.subplots(2, 1, sharex=True)
        for line, (name, points) in zip(LINES, curves.items(), strict=False):
            style: dict[str, Any] = {**line, "color": colours[line["color"]], "ms": 5}
            if not points:
                continue
            for panel, key, scale in ((panels[0], "seconds", 1), (panels[1], "memory", 1e-6)):
                shown = [point for point in points if point[key]]
                panel.plot([p["length"] for p in shown], [scale * p[key] for p in shown], **style, label=name)
        lengths = sorted({point["length"] for points in curves.values() for point in points})
        for panel, title, unit in (
            (panels[0], "Time of one text", "seconds"),
            (panels[1], "Memory of one text", "MB"),
        ):
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_title(title, loc="left")
            panel.set_ylabel(unit)
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panels[1].set_xticks(lengths, [_short(length) for length in lengths])
        panels[1].xaxis.set_minor_locator(NullLocator())
        panels[1].set_xlabel("tokens N")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)


def plot_roofline_shares(rows: Sequence[Mapping[str, Any]], path: Path, theme: str = "light") -> None:
    """Share of the machine's fastest matrix product that each case reaches, with what its own products alone would.

    Args:
        rows: {"label", "reached": {"median", "min", "max"}, "products_alone": share or None}.
        path, theme: as in `plots`.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("nothing to draw: need a case")
    with figure_file(path, theme, height=1.2 + 0.27 * len(rows)) as (figure, colours):
        axes = figure.subplots()
        places = range(len(rows))
        reached = [100 * row["reached"]["median"] for row in rows]
        axes.barh(places, reached, 0.62, color=colours["main"], label="reached")
        for place, row in zip(places, rows, strict=True):
            ends = [100 * row["reached"]["min"], 100 * row["reached"]["max"]]
            axes.plot(ends, [place, place], color=colours["text"], lw=1.2)
        alone = [(place, 100 * row["products_alone"]) for place, row in enumerate(rows) if row["products_alone"]]
        mark: dict[str, Any] = {"color": colours["second"], "marker": "|", "ls": "none", "ms": 11, "mew": 2}
        axes.plot([share for _, share in alone], [place for place, _ in alone], **mark, label="its products alone")
        axes.set_yticks(places, [row["label"] for row in rows], fontsize=8.5)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 100)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("% of the fastest square product")
        figure.legend(loc="outside lower center", ncols=2)


def _short(length: int) -> str:
    if length >= 2**20:
        return f"{length // 2**20}M"
    return f"{length // 1024}k" if length >= 1024 else str(length)
