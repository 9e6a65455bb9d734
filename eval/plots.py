"""Figures of a run: plain data in, one PNG file out.

Every function takes the path to write and a theme, "light" or "dark". Colours are Okabe and Ito's (2008), which
colour-blind readers tell apart; widths are a phone's, so that text keeps its size there. Files are written whole or
not at all.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

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


def plot_learning_curves(curves: Mapping[str, Mapping[str, Any]], path: Path, theme: str = "light") -> None:
    """Learning curves, one panel each, above one another with the step as common axis.

    Args:
        curves: panel title -> {"unit": axis label, "series": {legend name: [[step, value or None], ...]}}.
        path, theme: see the module.

    Raises:
        ValueError: no curve, or no point in one.
    """
    _require(bool(curves), "learning curves")
    with _style(theme) as colours:
        figure = Figure(figsize=(WIDTH, 0.7 + 1.55 * len(curves)), layout="constrained")
        panels = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
        for panel, (title, curve) in zip(panels, curves.items(), strict=True):
            for colour, (name, points) in zip(("main", "second"), curve["series"].items(), strict=False):
                _require(bool(points), f"curve {name}")
                steps, values = np.array(points, dtype=float).T
                panel.plot(steps, values, color=colours[colour], label=name, **_markers(len(points)))
            panel.set_title(title, loc="left")
            panel.set_ylabel(curve["unit"])
            if len(curve["series"]) > 1:
                panel.legend(loc="upper right")
        panels[-1].set_xlabel("optimizer step")
        _save(figure, path)


def plot_loss_by_timestep(rows: Sequence[Mapping[str, float | None]], path: Path, theme: str = "light") -> None:
    """Cross-entropy of masked tokens and accuracy at each timestep of the evaluation grid.

    Args:
        rows: {"timestep": in (0, 1], "nll_bits": bits per masked token, "accuracy": share}, None where unmeasured.
        path, theme: see the module.

    Raises:
        ValueError: no rows.
    """
    _require(bool(rows), "loss by timestep")
    with _style(theme) as colours:
        figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        timesteps = [row["timestep"] for row in rows]
        for axes, key, colour in ((upper, "nll_bits", "main"), (lower, "accuracy", "good")):
            axes.plot(timesteps, _floats(row[key] for row in rows), color=colours[colour], marker="o")
        upper.set_ylim(0, 1.15 * max([row["nll_bits"] for row in rows if row["nll_bits"]], default=1))
        upper.set_title("Cross-entropy of masked tokens", loc="left")
        upper.set_ylabel("bits per token")
        lower.set_title("Accuracy on masked tokens", loc="left")
        lower.set_ylabel("share right")
        lower.set_ylim(0, 1)
        lower.set_xlim(0, 1)
        lower.set_xlabel("timestep t (share of tokens masked)")
        _save(figure, path)


def plot_singular_values(
    values: Sequence[float], path: Path, theme: str = "light", reference: Sequence[float] | None = None
) -> None:
    """Singular values over the largest one, on a log axis; the reference's leading ones beside them.

    Division makes runs of different width comparable, and the sum of the curve is the effective rank.

    Args:
        values: singular values, largest first.
        path, theme: see the module.
        reference: singular values of another run, largest first.

    Raises:
        ValueError: no values, or a largest value that is not positive.
    """
    _require(bool(values) and values[0] > 0, "singular values, of which the largest must be positive")
    with _style(theme) as colours:
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        axes = figure.subplots()
        shares = np.array(values, dtype=float) / values[0]
        # Rounding leaves trailing values anywhere near 1e-17, which would stretch the axis.
        shown = np.where(shares > 1e-8, shares, np.nan)
        index = np.arange(1, len(shown) + 1)
        axes.plot(index, shown, color=colours["main"], label="this run", **_markers(len(shown)))
        if reference is not None:
            shares = np.array(reference, dtype=float) / reference[0]
            index = np.arange(1, len(shares) + 1)
            label = f"reference run, first {len(shares)}"
            axes.plot(index, shares, color=colours["second"], marker="s", linestyle="none", label=label)
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
        axes.legend(loc="best")
        _save(figure, path)


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
    with _style(theme) as colours:
        figure = Figure(figsize=(WIDTH, 4.3), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(similarity[np.ix_(order, order)], cmap=colours["diverging"], vmin=-1, vmax=1)
        axes.set_title("Cosine between concepts, clustered", loc="left")
        axes.set_xlabel("concept, similar ones side by side")
        axes.set_ylabel("concept")
        _heat_map(axes)
        figure.colorbar(image, ax=axes, label="mean cosine", shrink=0.85).outline.set_visible(False)
        _save(figure, path)


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
    with _style(theme) as colours:
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
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
        _save(figure, path)


def plot_concept_attention(
    tokens: Sequence[str], weights: Sequence[Sequence[float]], path: Path, theme: str = "light"
) -> None:
    """What each concept attends to in one text; concepts in the order of where they read.

    Args:
        tokens: N strings.
        weights: C rows of N attention shares.
        path, theme: see the module.

    Raises:
        ValueError: weights that are not C rows of N.
    """
    shares = np.array(weights, dtype=float)
    fits = shares.ndim == 2 and shares.shape[0] > 0 and shares.shape[1] == len(tokens) > 0
    _require(fits, f"a row of {len(tokens)} attention shares per concept, got shape {shares.shape}")
    top = max(shares.max(), 4 / len(tokens))  # so that reading everything alike looks as pale as it is
    centre = shares @ np.arange(len(tokens)) / np.maximum(shares.sum(axis=1), 1e-12)
    with _style(theme) as colours:
        figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(
            shares[np.argsort(centre, kind="stable")], cmap=colours["sequential"], aspect="auto", vmin=0, vmax=top
        )
        every = math.ceil(len(tokens) / 32)
        shown = range(0, len(tokens), every)
        axes.set_xticks(shown, [tokens[i] for i in shown], rotation=90, fontsize=8 if len(shown) > 20 else 9)
        axes.set_title("Where concepts read", loc="left")
        axes.set_ylabel("concept, by where it reads")
        _heat_map(axes)
        bar = figure.colorbar(image, ax=axes, label="attention share", location="right", shrink=0.85)
        bar.outline.set_visible(False)
        _save(figure, path)


def plot_downstream(rows: Sequence[Mapping[str, Any]], path: Path, theme: str = "light") -> None:
    """Downstream scores as bars, each over a bar of its chance level, with its interval where there is one.

    Args:
        rows: {"label": str, "value": score or None, "chance": float or None, "interval": [low, high] or None,
            "above": whether the score is above chance}.
        path, theme: see the module.

    Raises:
        ValueError: no rows.
    """
    _require(bool(rows), "downstream scores")
    with _style(theme) as colours:
        figure = Figure(figsize=(WIDTH, 1.35 + 0.62 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for row, y in zip(rows, range(len(rows)), strict=True):
            axes.barh(y, _floats([row["value"]]), height=0.34, color=colours["good" if row["above"] else "second"])
            axes.barh(y + 0.3, _floats([row["chance"]]), height=0.2, color=colours["chance"])
            if row["interval"]:
                axes.plot(row["interval"], [y, y], color=colours["text"], lw=1.6, marker="|", ms=7, label="_")
        for colour, name in (("good", "above chance"), ("second", "not above chance"), ("chance", "chance level")):
            axes.barh(0, 0, color=colours[colour], label=name)
        axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
        axes.invert_yaxis()
        axes.axvline(0, color=colours["muted"], lw=0.8)
        axes.set_xlim(right=1)
        axes.grid(axis="y", visible=False)
        axes.set_title("Downstream scores", loc="left")
        axes.set_xlabel("score; whisker: 95 % interval")
        figure.legend(loc="outside lower center", ncols=3)
        _save(figure, path)


@contextmanager
def _style(theme: str) -> Iterator[dict[str, str]]:
    """Matplotlib settings of a theme; yields its colours."""
    if theme not in THEMES:
        raise ValueError(f"theme must be one of {', '.join(THEMES)}, got {theme!r}")
    with rc_context(_settings(THEMES[theme])):
        yield THEMES[theme]


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


def _floats(values: Any) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]


def _heat_map(axes: Axes) -> None:
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _require(condition: bool, wanted: str) -> None:
    if not condition:
        raise ValueError(f"nothing to draw: need {wanted}")


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png")
    os.replace(temporary, path)
