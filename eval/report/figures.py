"""The figures of a report: which it has, what each shows, how each is drawn. Their data are in report.json."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...utils.results import ControlScore, FigureFacts, Report, TaskScore
from ..metrics.chance import ABOVE_CHANCE
from . import plots
from .findings import curve, read_reference
from .sections import CONTROL_LABELS

FIGURES_FOLDER = "figures"


class FigureSpec(NamedTuple):
    """A figure: its caption, the arguments of its drawing from the report (None: cannot be drawn), the drawing.

    `beside` names the argument whose value from another run's report is drawn as `other`.
    """

    section: str
    title: str
    caption: str
    data: Callable[[Report], dict[str, Any] | None]
    draw: Callable[..., None]
    beside: str | None = None


def figure_rows(report: Report) -> list[FigureFacts]:
    """The figures that the report has data for."""
    return [
        FigureFacts(
            id=name,
            section=spec.section,
            title=spec.title,
            caption=spec.caption,
            light=f"{FIGURES_FOLDER}/{name}.png",
            dark=f"{FIGURES_FOLDER}/{name}_dark.png",
        )
        for name, spec in FIGURES.items()
        if spec.data(report) is not None
    ]


def draw_figures(report: Report, run_dir: str | Path) -> None:
    """Draw every figure that the report names, for light and dark pages, another run with it where there is one."""
    for figure in report.figures:
        spec = FIGURES[figure.id]
        data = spec.data(report)
        assert data is not None  # else the report would not name it
        if spec.beside and report.other:
            beside = spec.data(report.other)
            if beside:
                data = {**data, "other": beside[spec.beside], "other_label": report.other.run.name}
        for theme in plots.THEMES:
            spec.draw(**data, path=Path(run_dir) / getattr(figure, theme), theme=theme)


# --------------------------------------------------------------------------------------------------------------- data


def _learning_curves(report: Report) -> dict[str, Any] | None:
    if report.training is None:
        return None
    names = ("loss", "eval_loss", "eval_nelbo_bits_per_token", "learning_rate", "grad_norm")
    curves = {name: curve(report.training, name) for name in names}
    curves = {name: points for name, points in curves.items() if points}
    panels = {}
    losses = {name: curves[key] for name, key in (("training", "loss"), ("evaluation", "eval_loss")) if key in curves}
    if losses:
        panels["Loss"] = {"unit": "nats", "series": losses}
    for title, key, unit in (
        ("Conditional NELBO", "eval_nelbo_bits_per_token", "bits per token"),
        ("Learning rate", "learning_rate", "step size"),
        ("Gradient norm", "grad_norm", "before clipping"),
    ):
        if key in curves:
            panels[title] = {"unit": unit, "series": {title.lower(): curves[key]}}
    return {"curves": panels} if panels else None


def _by_timestep(report: Report) -> dict[str, Any] | None:
    rows = report.training.evaluation.by_timestep if report.training else []
    return {"rows": [asdict(row) for row in rows]} if rows else None


def _singular_values(report: Report) -> dict[str, Any] | None:
    geometry = report.geometry
    if not geometry or not geometry.singular_values or not geometry.singular_values[0]:
        return None
    noise = np.random.default_rng(0).standard_normal((geometry.num_concepts, geometry.hidden_size))
    return {
        "values": geometry.singular_values,
        "null": np.linalg.svd(noise, compute_uv=False).round(3).tolist(),
        "reference": read_reference()["runs"][0]["singular_values"],
    }


def _spectrum_views(report: Report) -> dict[str, Any] | None:
    spectrum = report.geometry and report.geometry.spectrum
    return {"views": asdict(spectrum)["views"]} if spectrum else None


def _similarity(report: Report) -> dict[str, Any] | None:
    geometry = report.geometry
    return {"matrix": geometry.similarity_matrix} if geometry and geometry.similarity_matrix else None


def _dimension_std(report: Report) -> dict[str, Any] | None:
    geometry = report.geometry
    if not geometry or not geometry.dimension_std:
        return None
    return {"values": geometry.dimension_std, "reference": read_reference()["runs"][0]["geometry"]}


def _encoder_attention(report: Report) -> dict[str, Any] | None:
    example = report.reading and report.reading.example
    return {"tokens": example.tokens, "weights": example.encoder_weights} if example else None


def _decoder_attention(report: Report) -> dict[str, Any] | None:
    example = report.reading and report.reading.example
    if not example or not example.decoder_weights:
        return None
    weights = [list(column) for column in zip(*example.decoder_weights, strict=True)]  # (C, N)
    return {"tokens": example.tokens, "weights": weights, "title": "Where concepts are read"}


def _ledger_by_timestep(report: Report) -> dict[str, Any] | None:
    rows = report.ledger.by_timestep if report.ledger else []
    shown = [{**asdict(row), "bits_null": row.bits_null, "bits_shuffled": row.bits_shuffled} for row in rows]
    return {"rows": shown} if rows else None


def _ledger_by_position(report: Report) -> dict[str, Any] | None:
    rows = report.ledger.by_position if report.ledger else []
    shown = [{"from": row.first, "to": row.last, "bits_null": row.bits_null, "tokens": row.tokens} for row in rows]
    return {"rows": shown} if rows else None


def _leave_one_out(report: Report) -> dict[str, Any] | None:
    ledger = report.ledger
    if not ledger or not ledger.leave_one_out:
        return None
    return {"values": ledger.leave_one_out, "carrying": ledger.concepts_for_90_percent}


def _scores(report: Report) -> dict[str, Any] | None:
    beside = {task.id: task for task in report.other.downstream} if report.other else {}
    groups = []
    for task in report.downstream:
        score = task.primary
        rows = [_mark("this run", "above" if score.verdict == ABOVE_CHANCE else "barely", score)]
        if report.other and task.id in beside:
            rows.append(_mark(report.other.run.name, "other", beside[task.id].primary))
        rows += [_mark(CONTROL_LABELS[name], "control", row) for name, row in score.controls.items()]
        rows += [
            {"label": row.model, "kind": "published", "value": row.score, "interval": None}
            for row in task.published
            if row.metric == task.primary_metric and row.comparable
        ]
        name, *replaced = task.id.split("+")
        label, detail = f"{name}, {task.primary_metric}", " ".join(replaced)
        groups.append({"label": label, "detail": detail, "chance": score.chance, "rows": rows})
    return {"groups": groups} if groups else None


def _mark(label: str, kind: str, row: TaskScore | ControlScore) -> dict[str, Any]:
    return {"label": label, "kind": kind, "value": row.value, "interval": row.interval}


FIGURES = {
    "learning_curves": FigureSpec(
        "training",
        "Learning curves",
        "The training loss is what the optimiser saw, with its label smoothing and weights; the evaluation loss is "
        "the bound on fixed noise. The two are not the same quantity.",
        _learning_curves,
        plots.plot_learning_curves,
        "curves",
    ),
    "loss_by_timestep": FigureSpec(
        "training",
        "Loss by timestep",
        "A decoder that reads the surviving tokens finds few masks easier than many. A flat line means that it does "
        "not read them.",
        _by_timestep,
        plots.plot_loss_by_timestep,
        "rows",
    ),
    "similarity_matrix": FigureSpec(
        "diversity",
        "Similarity of concepts",
        "Averaged over documents. Blocks off the diagonal are concepts that say the same.",
        _similarity,
        plots.plot_similarity_matrix,
    ),
    "spectrum_views": FigureSpec(
        "spectrum",
        "Ranks and spread against their nulls",
        "Template: the mean over documents. Within: the concepts of one text, as they are or less their mean. Across: "
        "one concept over texts. A value at the random encoder's mark owes nothing to training.",
        _spectrum_views,
        plots.plot_spectrum_views,
        "views",
    ),
    "singular_values": FigureSpec(
        "spectrum",
        "Singular values",
        "Of the mean over documents, divided by the largest, so that runs of other width compare. The sum of the "
        "curve is the effective rank.",
        _singular_values,
        plots.plot_singular_values,
        "values",
    ),
    "dimension_std": FigureSpec(
        "dimensions",
        "Spread of hidden dimensions",
        "Far left are dimensions in which all concept vectors agree; if all are there, the concepts are copies.",
        _dimension_std,
        plots.plot_dimension_std,
    ),
    "ledger_by_timestep": FigureSpec(
        "ledger",
        "Bits through the concepts, by timestep",
        "Cross-entropy with concepts that are not this text's, less that with its own. 0: the decoder does not care.",
        _ledger_by_timestep,
        plots.plot_ledger_by_timestep,
        "rows",
    ),
    "ledger_by_position": FigureSpec(
        "ledger",
        "Bits through the concepts, by position",
        "Against null concepts. A slope says that concepts keep some parts of a text better than others.",
        _ledger_by_position,
        plots.plot_ledger_by_position,
        "rows",
    ),
    "leave_one_out": FigureSpec(
        "ledger",
        "Bits lost without each concept",
        "A few tall bars: few concepts do the work. All low: each can stand in for the others.",
        _leave_one_out,
        plots.plot_leave_one_out,
        "values",
    ),
    "encoder_attention": FigureSpec(
        "reading",
        "Where concepts read",
        "One example text; mean over layers and heads. Rows that look alike are concepts that read alike.",
        _encoder_attention,
        plots.plot_concept_attention,
    ),
    "decoder_attention": FigureSpec(
        "reading",
        "Where concepts are read",
        "The same text, from the decoder's side: the share of each position's attention that a concept gets.",
        _decoder_attention,
        plots.plot_concept_attention,
    ),
    "scores": FigureSpec(
        "downstream",
        "Scores next to chance, controls and others",
        "The primary metric of each task. A run that its random-init twin equals owes its score to fine-tuning.",
        _scores,
        plots.plot_scores,
    ),
}
