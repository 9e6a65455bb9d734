"""Figures of a run: plain data in, one PNG file out.

Every function takes the path to write and a theme, "light" or "dark". Colours are Okabe and Ito's (2008), which
colour-blind readers tell apart; widths are a phone's, so that text keeps its size there. Files are written whole or
not at all. Where a function takes `other`, it is the same data of another run, drawn paler or dashed under the name
`other_label`.
"""

import math
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from ...utils.results import SizeScore

WIDTH = 5.0  # inches; with 10 pt text a 360-pixel screen shows it unscaled
DPI = 200
MANY_POINTS = 20  # a curve with fewer points shows them
THEMES: dict[str, dict[str, str]] = {
    "light": {
        "background": "#ffffff",
        "text": "#1f2933",
        "muted": "#66727f",
        "grid": "#e3e7eb",
        "main": "#0072b2",
        "second": "#d55e00",
        "good": "#009e73",
        "chance": "#aab4be",
        "diverging": "RdBu_r",
        "sequential": "Blues",
    },
    "dark": {
        "background": "#171c22",
        "text": "#e2e7ec",
        "muted": "#9aa6b2",
        "grid": "#2d353e",
        "main": "#56b4e9",
        "second": "#e69f00",
        "good": "#2fc79a",
        "chance": "#5c6873",
        "diverging": "berlin",
        "sequential": "cividis",
    },
}


OTHER = "other run"
METRIC_NAMES = {"rankme": "RankMe", "isoscore": "IsoScore"}  # the others are named in words
NULL_MARKS = {  # name in geometry.json -> label, marker, colour
    "gaussian": ("Gaussian noise", "|", "text"),
    "random_encoder": ("random-init encoder", "x", "second"),
    "static_slots": ("static slots", "+", "muted"),
}
_OTHER_LINE: dict[str, Any] = {"ls": "--", "alpha": 0.75, "mfc": "none"}
_POINT: dict[str, Any] = {"marker": "o", "ls": "none", "ms": 6}


def plot_learning_curves(
    curves: Mapping[str, Mapping[str, Any]],
    path: Path,
    theme: str = "light",
    other: Mapping[str, Mapping[str, Any]] | None = None,
    other_label: str = OTHER,
) -> None:
    """Learning curves, one panel each, above one another with the step as common axis.

    Args:
        curves: panel title -> {"unit": axis label, "series": {legend name: [[step, value or None], ...]}}.
        path, theme, other, other_label: see the module.

    Raises:
        ValueError: no curve, or no point in one.
    """
    _require(bool(curves), "learning curves")
    with figure_file(path, theme, height=0.7 + 1.55 * len(curves)) as (figure, colours):
        panels = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
        for panel, (title, curve) in zip(panels, curves.items(), strict=True):
            beside = (other or {}).get(title, {"series": {}})["series"]
            for colour, (name, points) in zip(("main", "second"), curve["series"].items(), strict=False):
                _require(bool(points), f"curve {name}")
                panel.plot(*_columns(points), color=colours[colour], label=name, **_markers(len(points)))
                if beside.get(name):
                    panel.plot(*_columns(beside[name]), color=colours[colour], **_OTHER_LINE, label="_")
            if other and panel is panels[0]:
                panel.plot([], [], color=colours["muted"], **_OTHER_LINE, label=other_label)
            panel.set_title(title, loc="left")
            panel.set_ylabel(curve["unit"])
            if len(panel.get_legend_handles_labels()[1]) > 1:
                panel.legend(loc="upper right")
        panels[-1].set_xlabel("optimizer step")


def plot_loss_by_timestep(
    rows: Sequence[Mapping[str, float | None]],
    path: Path,
    theme: str = "light",
    other: Sequence[Mapping[str, float | None]] | None = None,
    other_label: str = OTHER,
) -> None:
    """Cross-entropy of masked tokens and accuracy at each timestep of the evaluation grid.

    Args:
        rows: {"timestep": in (0, 1], "nll_bits": bits per masked token, "accuracy": share}, None where unmeasured.
        path, theme, other, other_label: see the module.

    Raises:
        ValueError: no rows.
    """
    _require(bool(rows), "loss by timestep")
    with figure_file(path, theme, height=4.2) as (figure, colours):
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, key, colour in ((upper, "nll_bits", "main"), (lower, "accuracy", "good")):
            line = {"color": colours[colour], "marker": "o"}
            axes.plot([row["timestep"] for row in rows], _floats(row[key] for row in rows), **line, label="this run")
            if other:
                times, values = [row["timestep"] for row in other], _floats(row[key] for row in other)
                axes.plot(times, values, **line, **_OTHER_LINE, label=other_label)
                axes.legend(loc="best")
        highest = max((row["nll_bits"] for row in [*rows, *(other or [])] if row["nll_bits"]), default=1)
        upper.set_ylim(0, 1.15 * highest)
        upper.set_title("Cross-entropy of masked tokens", loc="left")
        upper.set_ylabel("bits per token")
        lower.set_title("Accuracy on masked tokens", loc="left")
        lower.set_ylabel("share right")
        lower.set_ylim(0, 1)
        lower.set_xlim(0, 1)
        lower.set_xlabel("timestep t (share of tokens masked)")


def plot_singular_values(
    values: Sequence[float],
    path: Path,
    theme: str = "light",
    null: Sequence[float] | None = None,
    reference: Sequence[float] | None = None,
    other: Sequence[float] | None = None,
    other_label: str = OTHER,
) -> None:
    """Singular values over the largest one, on a log axis, next to Gaussian noise and the reference's leading ones.

    Division makes runs of different width comparable, and the sum of the curve is the effective rank.

    Args:
        values: singular values, largest first.
        path, theme, other, other_label: see the module.
        null: singular values of noise of the same size, largest first.
        reference: leading singular values of the reference run, largest first.

    Raises:
        ValueError: no values, or a largest value that is not positive.
    """
    _require(bool(values) and values[0] > 0, "singular values, the largest of them positive")
    with figure_file(path, theme, height=3.5) as (figure, colours):
        axes = figure.subplots()
        shown = _shares(values)
        if null is not None:
            axes.plot(*_numbered(_shares(null)), color=colours["muted"], ls=":", label="Gaussian noise of this size")
        axes.plot(*_numbered(shown), color=colours["main"], label="this run", **_markers(len(shown)))
        if other is not None:
            axes.plot(*_numbered(_shares(other)), color=colours["main"], **_OTHER_LINE, label=other_label)
        if reference is not None:
            label = f"reference run, first {len(reference)}"
            points = _numbered(_shares(reference))
            axes.plot(*points, color=colours["second"], marker="s", linestyle="none", label=label)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=12))
        if np.nanmin(shown) > 0.1:  # less than a decade has one or two powers of ten only
            axes.yaxis.set_minor_formatter(FormatStrFormatter("%g"))
        else:
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))  # the default one needs mathtext
        axes.set_title("Spectrum of the mean concept matrix", loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("singular value, by size")
        axes.set_ylabel("share of the largest")
        figure.legend(loc="outside lower center", ncols=2)


def plot_spectrum_views(
    views: Mapping[str, Mapping[str, Mapping[str, Any]]],
    path: Path,
    theme: str = "light",
    other: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
    other_label: str = OTHER,
) -> None:
    """Each spectral metric in each view, with its interval, next to its nulls. Two columns of panels, a row per view.

    Args:
        views: view -> metric -> {"value", "interval": [low, high] or None, "nulls": {name: float or None},
            "by_construction"}; metrics that are by construction are left out.
        path, theme, other, other_label: see the module.

    Raises:
        ValueError: no metric that is not by construction.
    """
    metrics = list(
        dict.fromkeys(m for rows in views.values() for m, row in rows.items() if not row["by_construction"])
    )
    _require(bool(metrics), "a metric that is not fixed by construction")
    lines = math.ceil(len(metrics) / 2)
    with figure_file(path, theme, height=0.75 + (0.7 + 0.22 * len(views)) * lines) as (figure, colours):
        panels = figure.subplots(lines, 2, sharey=True, squeeze=False).ravel()
        for panel in panels[len(metrics) :]:
            panel.set_axis_off()
        for panel, metric in zip(panels, metrics, strict=False):
            for y, (view, rows) in enumerate(views.items()):
                if metric in rows and not rows[metric]["by_construction"]:
                    _draw_against_nulls(panel, y, rows[metric], colours)
                    beside = (other or {}).get(view, {}).get(metric)
                    if beside:
                        panel.plot(_floats([beside["value"]]), [y], color=colours["main"], mfc="none", **_POINT)
            panel.set_title(METRIC_NAMES.get(metric, metric.replace("_", " ")), loc="left", fontsize=10)
            panel.set_yticks(range(len(views)), [view.replace("_", ", ") for view in views])
            panel.set_ylim(len(views) - 0.5, -0.5)
            panel.margins(x=0.12)
            panel.xaxis.set_major_locator(MaxNLocator(4))
        handles = {"this run": Line2D([], [], color=colours["main"], **_POINT)}
        if other:
            handles[other_label] = Line2D([], [], color=colours["main"], mfc="none", **_POINT)
        for name, (label, marker, colour) in NULL_MARKS.items():
            if any(row["nulls"].get(name) is not None for rows in views.values() for row in rows.values()):
                handles[label] = Line2D([], [], color=colours[colour], marker=marker, ls="none", ms=7)
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)


def _draw_against_nulls(axes: Axes, y: float, row: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    for name, (_, marker, colour) in NULL_MARKS.items():
        axes.plot(_floats([row["nulls"].get(name)]), [y], color=colours[colour], marker=marker, ls="none", ms=7)
    if row["interval"]:
        axes.plot(row["interval"], [y, y], color=colours["main"], lw=1.4)
    axes.plot(_floats([row["value"]]), [y], color=colours["main"], **_POINT)


def plot_similarity_matrix(matrix: Sequence[Sequence[float]], path: Path, theme: str = "light") -> None:
    """Mean cosine between concepts, rows and columns in the order of average-linkage clustering.

    Args:
        matrix: (C, C) symmetric, values in [-1, 1].
        path, theme: see the module.

    Raises:
        ValueError: not a square matrix of at least two concepts.
    """
    similarity = np.array(matrix, dtype=float)
    square = similarity.ndim == 2 and similarity.shape[0] == similarity.shape[1] > 1
    _require(square, f"a square matrix of at least two concepts, got shape {similarity.shape}")
    order = cluster_order(similarity)
    with figure_file(path, theme, height=4.3) as (figure, colours):
        axes = figure.subplots()
        image = axes.imshow(similarity[np.ix_(order, order)], cmap=colours["diverging"], vmin=-1, vmax=1)
        every = math.ceil(len(order) / 16)
        for axis in (axes.xaxis, axes.yaxis):  # a concept keeps its number wherever clustering puts it
            axis.set_ticks(range(0, len(order), every), [str(index) for index in order[::every]])
        axes.set_title("Cosine between concepts, clustered", loc="left")
        axes.set_xlabel("concept, similar ones side by side")
        axes.set_ylabel("concept")
        _heat_map(axes)
        figure.colorbar(image, ax=axes, label="mean cosine", shrink=0.85).outline.set_visible(False)


def cluster_order(similarity: np.ndarray) -> list[int]:
    """Order of concepts that puts similar ones side by side: leaves of average linkage on 1 - cosine.

    Args:
        similarity: (C, C) symmetric cosines, C at least 2.

    Returns:
        A permutation of 0 .. C - 1.
    """
    distance = np.clip(1 - (similarity + similarity.T) / 2, 0, 2)
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), method="average", optimal_ordering=True)
    return leaves_list(tree).tolist()


def plot_dimension_std(
    values: Sequence[float], path: Path, theme: str = "light", reference: Mapping[str, float] | None = None
) -> None:
    """Histogram of the standard deviation of each hidden dimension.

    Args:
        values: one standard deviation per hidden dimension.
        path, theme: see the module.
        reference: another run's `min_dimension_std`, `mean_dimension_std`, `max_dimension_std`.

    Raises:
        ValueError: no values.
    """
    _require(bool(values), "standard deviations")
    with figure_file(path, theme, height=3.2) as (figure, colours):
        axes = figure.subplots()
        if reference is not None:
            low, high = reference["min_dimension_std"], reference["max_dimension_std"]
            axes.axvspan(low, high, color=colours["chance"], alpha=0.3, lw=0, label="reference run")
            axes.axvline(reference["mean_dimension_std"], color=colours["muted"], ls="--", label="its mean")
        bins = min(40, max(8, round(math.sqrt(len(values)) * 1.5)))
        axes.hist(values, bins=bins, color=colours["main"], label="this run")
        axes.set_xlim(left=0)
        axes.set_title("Spread of each hidden dimension", loc="left")
        axes.set_xlabel("standard deviation over all concept vectors")
        axes.set_ylabel("dimensions")
        figure.legend(loc="outside lower center", ncols=3)


def plot_concept_attention(
    tokens: Sequence[str],
    weights: Sequence[Sequence[float]],
    path: Path,
    theme: str = "light",
    title: str = "Where concepts read",
) -> None:
    """Shares of attention between concepts and the tokens of one text; concepts in the order of where they attend.

    Args:
        tokens: N strings.
        weights: C rows of N attention shares.
        path, theme: see the module.
        title: whose attention it is.

    Raises:
        ValueError: weights that are not C rows of N.
    """
    shares = np.array(weights, dtype=float)
    fits = shares.ndim == 2 and shares.shape[0] > 0 and shares.shape[1] == len(tokens) > 0
    _require(fits, f"a row of {len(tokens)} attention shares per concept, got shape {shares.shape}")
    top = max(shares.max(), 4 * shares.mean())  # so that even attention looks as pale as it is
    centre = shares @ np.arange(len(tokens)) / np.maximum(shares.sum(axis=1), 1e-12)
    order = np.argsort(centre, kind="stable")
    with figure_file(path, theme, height=4.6) as (figure, colours):
        axes = figure.subplots()
        image = axes.imshow(shares[order], cmap=colours["sequential"], aspect="auto", vmin=0, vmax=top)
        every = math.ceil(len(tokens) / 32)
        shown = range(0, len(tokens), every)
        axes.set_xticks(shown, [tokens[i] for i in shown], rotation=90, fontsize=8 if len(shown) > 20 else 9)
        every = math.ceil(len(order) / 24)
        axes.set_yticks(range(0, len(order), every), [str(i) for i in order[::every]])
        axes.set_title(title, loc="left")
        axes.set_ylabel("concept, by where it attends")
        _heat_map(axes)
        bar = figure.colorbar(image, ax=axes, label="attention share", location="right", shrink=0.85)
        bar.outline.set_visible(False)


def plot_ledger_by_timestep(
    rows: Sequence[Mapping[str, float | None]],
    path: Path,
    theme: str = "light",
    other: Sequence[Mapping[str, float | None]] | None = None,
    other_label: str = OTHER,
) -> None:
    """Bits per token that the true concepts save, against null ones and against those of another text, by timestep.

    Args:
        rows: {"timestep", "bits_shuffled", "bits_null"}.
        path, theme, other, other_label: see the module.

    Raises:
        ValueError: no rows.
    """
    _require(bool(rows), "the ledger by timestep")
    with figure_file(path, theme, height=3.4) as (figure, colours):
        axes = figure.subplots()
        places = np.arange(len(rows))
        for shift, key, colour, label in (
            (-0.2, "bits_null", "main", "against null concepts"),
            (0.2, "bits_shuffled", "chance", "against another text's concepts"),
        ):
            axes.bar(places + shift, _floats(row[key] for row in rows), 0.38, color=colours[colour], label=label)
        if other:
            at = {f"{row['timestep']:.2g}": row["bits_null"] for row in other}
            values = _floats(at.get(f"{row['timestep']:.2g}") for row in rows)
            axes.plot(places - 0.2, values, **_other_marks(colours), label=f"{other_label}, null")
        axes.set_xticks(places, [f"{row['timestep']:.2g}" for row in rows])
        _ledger_axes(axes, colours, "By timestep", "timestep t (share of tokens masked)")
        figure.legend(loc="outside lower center", ncols=1)


def plot_ledger_by_position(
    rows: Sequence[Mapping[str, float | None]],
    path: Path,
    theme: str = "light",
    other: Sequence[Mapping[str, float | None]] | None = None,
    other_label: str = OTHER,
) -> None:
    """Bits per token that the true concepts save, against null ones, by position in the text.

    Args:
        rows: {"from", "to": first and last position, "bits_null"}.
        path, theme, other, other_label: see the module.

    Raises:
        ValueError: no rows.
    """
    _require(bool(rows), "the ledger by position")
    with figure_file(path, theme, height=3.2) as (figure, colours):
        axes = figure.subplots()
        places = np.arange(len(rows))
        bits = _floats(row["bits_null"] for row in rows)
        axes.bar(places, bits, 0.8, color=colours["main"], label="this run")
        if other:
            at = {row["from"]: row["bits_null"] for row in other}
            axes.plot(places, _floats(at.get(row["from"]) for row in rows), **_other_marks(colours), label=other_label)
            figure.legend(loc="outside lower center", ncols=2)
        every = math.ceil(len(rows) / 12)
        axes.set_xticks(places[::every], [f"{row['from']}" for row in rows[::every]])
        _ledger_axes(axes, colours, "By position", "position in the text, from token")


def plot_leave_one_out(
    values: Sequence[float],
    path: Path,
    theme: str = "light",
    carrying: int | None = None,
    other: Sequence[float] | None = None,
    other_label: str = OTHER,
) -> None:
    """Bits per token lost without each concept, most needed first.

    Args:
        values: one per concept, in the order of the concepts.
        path, theme, other, other_label: see the module.
        carrying: how many concepts carry 90 % of the bits.

    Raises:
        ValueError: no values.
    """
    _require(bool(values), "bits lost without each concept")
    order = np.argsort(-np.array(values, dtype=float), kind="stable")
    with figure_file(path, theme, height=3.2) as (figure, colours):
        axes = figure.subplots()
        places = np.arange(len(order))
        axes.bar(places, np.array(values)[order], 0.85, color=colours["main"], label="this run")
        if other:
            axes.plot(np.arange(len(other)), sorted(other, reverse=True), **_other_marks(colours), label=other_label)
        if carrying is not None:
            axes.axvline(carrying - 0.5, color=colours["second"], ls="--", label=f"90 % of the bits: {carrying}")
        every = math.ceil(len(order) / 16)
        axes.set_xticks(places[::every], [str(index) for index in order[::every]])
        _ledger_axes(axes, colours, "Without one concept", "concept, most needed first")
        if carrying is not None or other:
            figure.legend(loc="outside lower center", ncols=2)


def plot_scores(groups: Sequence[Mapping[str, Any]], path: Path, theme: str = "light") -> None:
    """Each task's primary score with its interval, over its chance level, controls, other run and published scores.

    Args:
        groups: {"label", "detail": what else is to be known of the task, or "", "chance": float or None, "rows":
            [{"label", "kind": one of SCORE_MARKS, "value": float or None, "interval": [low, high] or None}]}.
        path, theme: see the module.

    Raises:
        ValueError: no groups.
    """
    _require(bool(groups), "downstream scores")
    details = [textwrap.wrap(group["detail"], 72) for group in groups]
    count = sum(len(group["rows"]) for group in groups) + sum(map(len, details))
    with figure_file(path, theme, height=1.0 + 0.23 * count + 0.42 * len(groups)) as (figure, colours):
        axes = figure.subplots()
        y, ticks = 0.0, []
        for group, detail in zip(groups, details, strict=True):
            # From the left end of the row labels, so that a long line has the whole width.
            for i, line in enumerate([group["label"], *detail]):
                place = axes.annotate(line, (0, y + i), (-85, 0), axes.get_yaxis_transform(), "offset points")
                place.set(va="center", in_layout=False, size=8 if i else 9, weight="normal" if i else "bold")
            y += len(detail)
            top = y + 0.5
            for row in group["rows"]:
                y += 1
                colour, marker = SCORE_MARKS[row["kind"]]
                ticks.append((y, row["label"]))
                if row["interval"]:
                    axes.plot(row["interval"], [y, y], color=colours[colour], lw=1.6)
                axes.plot(_floats([row["value"]]), [y], color=colours[colour], marker=marker, ls="none", ms=6)
            if group["chance"] is not None:
                axes.plot([group["chance"]] * 2, [top, y + 0.5], color=colours["text"], ls=":", lw=1.4)
            y += 1.8
        axes.set_yticks([place for place, _ in ticks], [label for _, label in ticks], fontsize=8.5)
        axes.set_ylim(y - 0.9, -0.8)
        axes.margins(x=0.06)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("score; line: 95 % interval; dotted: chance")


SCORE_MARKS = {  # kind of row -> colour, marker
    "above": ("good", "o"),
    "barely": ("second", "o"),
    "other": ("main", "o"),
    "control": ("muted", "s"),
    "published": ("text", "D"),
}


def plot_sizes(rows: Sequence[SizeScore], path: Path, theme: str = "light") -> None:
    """Quality of codes by their bytes, a curve for each number of concepts, with 95 % intervals.

    Raises:
        ValueError: no rows.
    """
    _require(bool(rows), "scores by size")
    with figure_file(path, theme, height=3.4) as (figure, colours):
        axes = figure.subplots()
        kinds = product("- -- :".split(), ("main", "second", "good"))
        for count, (line, colour) in zip(sorted({row.num_concepts for row in rows}), cycle(kinds), strict=False):
            own = sorted((row for row in rows if row.num_concepts == count), key=lambda row: row.bytes)
            values = _floats(row.value for row in own)
            ends = np.array([row.interval or (math.nan, math.nan) for row in own]).T
            style: dict[str, Any] = {"color": colours[colour], "ls": line, "label": f"{count} concepts"}
            axes.errorbar([row.bytes for row in own], values, np.abs(ends - values), capsize=2, marker="o", **style)
        axes.set_xscale("log")
        axes.set_xticks(sorted({row.bytes for row in rows}))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%d"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("bytes of a text, float32")
        axes.set_ylabel("score")
        axes.set_title("Quality by size", loc="left")
        axes.legend(loc="best")


@contextmanager
def figure_file(path: Path, theme: str, height: float) -> Iterator[tuple[Figure, dict[str, str]]]:
    """A figure of that height in inches to draw into, and its colours; written to `path` when the block ends."""
    if theme not in THEMES:
        raise ValueError(f"theme must be one of {', '.join(THEMES)}, got {theme!r}")
    with rc_context(_settings(THEMES[theme])):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, THEMES[theme]
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        figure.savefig(temporary, format="png")
        os.replace(temporary, path)


def _settings(colours: dict[str, str]) -> dict[str, Any]:
    background, text, muted, grid = (colours[name] for name in ("background", "text", "muted", "grid"))
    return {
        "figure.facecolor": background,
        "figure.dpi": DPI,
        "figure.constrained_layout.w_pad": 0.08,
        "figure.constrained_layout.h_pad": 0.08,
        "savefig.facecolor": background,
        "savefig.dpi": DPI,
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": text,
        "text.parse_math": False,  # a token may hold dollar signs
        "axes.facecolor": background,
        "axes.edgecolor": muted,
        "axes.labelcolor": muted,
        "axes.titlecolor": text,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.formatter.limits": (-4, 5),
        "grid.color": grid,
        "grid.linewidth": 0.8,
        "lines.linewidth": 1.8,
        "lines.markersize": 4,
        "xtick.color": muted,
        "ytick.color": muted,
        "xtick.labelcolor": text,
        "ytick.labelcolor": text,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.fontsize": 9,
        "legend.frameon": False,
    }


def _markers(count: int) -> dict[str, Any]:
    return {"marker": "o"} if count < MANY_POINTS else {}


def _columns(points: Sequence[Sequence[float | None]]) -> np.ndarray:
    return np.array(points, dtype=float).T


def _shares(values: Sequence[float]) -> np.ndarray:
    shares = np.array(values, dtype=float) / values[0]
    # Rounding leaves trailing values anywhere near 1e-17, which would stretch the axis.
    return np.where(shares > 1e-8, shares, np.nan)


def _numbered(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(1, len(values) + 1), values


def _other_marks(colours: Mapping[str, str]) -> dict[str, Any]:
    return {"color": colours["second"], "marker": "D", "ls": "none", "ms": 5}


def _ledger_axes(axes: Axes, colours: Mapping[str, str], title: str, unit: str) -> None:
    axes.axhline(0, color=colours["muted"], lw=0.8)
    axes.grid(axis="x", visible=False)
    axes.set_title(title, loc="left")
    axes.set_xlabel(unit)
    axes.set_ylabel("bits per token")


def _floats(values: Any) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]


def _heat_map(axes: Axes) -> None:
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _require(condition: bool, wanted: str) -> None:
    if not condition:
        raise ValueError(f"nothing to draw: need {wanted}")
