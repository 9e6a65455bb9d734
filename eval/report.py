"""The report of a run: measurements in, report.json out, Markdown and HTML rendered from that JSON alone."""

import base64
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from ..trainers.files import write_atomically, write_json
from . import plots
from .findings import ABOVE_CHANCE, CORRELATIONS, compare, next_steps, score_row
from .gates import check_gates, load_gates, overall_verdict

REFERENCE_FILE = Path(__file__).parent / "reference_run.json"
TEMPLATES = Path(__file__).parent / "templates"
FIGURES_FOLDER = "figures"
LONG_LIST = 12  # lists with more entries are left out of the printed raw JSON


class Part(NamedTuple):
    """A part of a run: where its files lie, the keys they must have, the command that writes them."""

    kind: str
    pattern: str
    required: tuple[str, ...]
    absent: str
    command: str


PARTS = {
    "training": Part(
        "pretrain",
        "pretrain.json",
        ("recipe", "model", "data", "objective", "training", "parameters", "steps", "train_loss", "evaluation"),
        "This folder holds no record of pretraining.",
        "python scripts/pretrain.py scripts/recipes/RECIPE.yaml --output_dir RUN_DIR",
    ),
    "geometry": Part(
        "geometry",
        "geometry.json",
        ("num_concepts", "hidden_size", "metrics", "grades"),
        "The concepts of this run have not been analysed.",
        "python scripts/analyze.py RUN_DIR",
    ),
    "downstream": Part(
        "finetune",
        "finetune/*.json",
        ("task", "protocol", "metrics", "primary_metric", "chance", "chance_rule"),
        "This run has not been fine-tuned on any task.",
        "python scripts/finetune.py RUN_DIR --tasks mrpc stsb paws sick_relatedness sick_entailment",
    ),
}

GROUPS = {
    "collapse": (
        "global_effective_rank",
        "global_effective_rank_normalized",
        "effective_rank",
        "effective_rank_normalized",
        "dimensions_for_95_variance",
        "top_1_variance_ratio",
        "top_5_variance_ratio",
        "top_1_dominance_ratio",
    ),
    "diversity": (
        "mean_concept_similarity",
        "std_concept_similarity",
        "max_concept_similarity",
        "uniformity_loss",
    ),
    "dimensions": (
        "participation_ratio",
        "participation_ratio_normalized",
        "mean_dimension_std",
        "min_dimension_std",
        "max_dimension_std",
        "isotropy",
        "collapsed_dimensions",
        "collapsed_dimensions_ratio",
        "mean_concept_norm",
        "std_concept_norm",
        "min_concept_norm",
        "max_concept_norm",
    ),
}
# What the output LayerNorm fixes; not graded, whatever the reference's scale says.
_NORM = "The output LayerNorm sets norms near √D."
_DEAD = "Behind the output LayerNorm a dimension collapses only when all concept vectors agree in it; 0 says little."
BY_CONSTRUCTION = {
    "isotropy": "The output LayerNorm takes one direction away, so the covariance is singular.",
    "collapsed_dimensions": _DEAD,
    "collapsed_dimensions_ratio": _DEAD,
    **dict.fromkeys(("mean_concept_norm", "std_concept_norm", "min_concept_norm", "max_concept_norm"), _NORM),
}
NOTES = {
    **BY_CONSTRUCTION,
    "global_effective_rank": "Σσ/σ₁ of the uncentred mean over documents: the template, not what texts differ by. "
    "Gaussian noise of 128 x 512 scores 83. Not RankMe.",
    "effective_rank": "The same, of each batch's mean.",
    "mean_concept_similarity": "Of absolute cosines.",
    "uniformity_loss": "Without the logarithm of the paper.",
    "max_concept_similarity": "Mean over batches of the most similar pair of any document.",
}


# ------------------------------------------------------------------------------------------------------------ reading


def read_results(run_dir: str | Path) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """The result files of a run folder.

    Returns:
        Part name ("training", "geometry", "downstream") -> (path relative to the folder, content), sorted by path.

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
        commands = "; ".join(part.command for part in PARTS.values())
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


# ---------------------------------------------------------------------------------------------------------- composing


def build_report(run_dir: str | Path) -> dict[str, Any]:
    """Everything the report says, as strict JSON: numbers, verdicts and the data of every figure.

    A part of the run that was not done is None (or an empty list) and is named, with its command, under `missing`.

    Args:
        run_dir: folder with at least one of pretrain.json, geometry.json, finetune/*.json.

    Returns:
        {"kind": "report", "run", "verdict", "summary", "training", "geometry", "comparison", "downstream", "gates",
        "next_steps", "figures", "missing", "settings"}.

    Raises:
        ValueError: as `read_results`.
    """
    results = read_results(run_dir)
    training = results["training"][0][1] if results["training"] else None
    geometry = results["geometry"][0][1] if results["geometry"] else None
    reference = json.loads(REFERENCE_FILE.read_text(encoding="utf-8"))
    report: dict[str, Any] = {
        "kind": "report",
        "run": {
            "name": Path(run_dir).resolve().name,
            "files": [path for files in results.values() for path, _ in files],
        },
        "training": _training(training) if training else None,
        "geometry": _geometry(geometry, reference) if geometry else None,
        "downstream": [_task(content) for _, content in results["downstream"]],
        "settings": _settings(training, geometry),
        "missing": {
            name: {"text": part.absent, "command": part.command} for name, part in PARTS.items() if not results[name]
        },
    }
    report["comparison"] = compare(report, reference)
    gates = check_gates(report, load_gates())
    report["gates"] = [result.as_row() for result in gates]
    report["next_steps"] = next_steps(report, gates)
    report["figures"] = _figures(report)
    report["summary"] = _summary(report)
    report["verdict"] = _verdict(report, overall_verdict(gates))
    order = "kind run verdict summary training geometry comparison downstream gates next_steps figures"
    return {name: report[name] for name in [*order.split(), "missing", "settings"]}


def _settings(training: dict[str, Any] | None, geometry: dict[str, Any] | None) -> dict[str, Any]:
    """What decides whether a run is like another; None where the folder does not say."""
    model = training["model"] if training else {}
    data = training["data"] if training else {}
    sizes = geometry or model
    tokenizer = data.get("tokenizer_name")
    if tokenizer is None and data.get("dataset_name") == "microworld":
        tokenizer = "microworld"
    return {
        "dataset_name": data.get("dataset_name"),
        "tokenizer_name": tokenizer,
        "max_length": data.get("max_length"),
        "num_concepts": sizes.get("num_concepts"),
        "hidden_size": sizes.get("hidden_size"),
        "num_hidden_layers": model.get("num_hidden_layers"),
        "decoder_context": model.get("decoder_context"),
    }


def _training(run: dict[str, Any]) -> dict[str, Any]:
    settings, evaluation, history = run["training"], run["evaluation"], run.get("log_history", [])
    series = {
        "loss": "loss",
        "eval_loss": "eval_loss",
        "eval_nelbo_bits_per_token": "eval_nelbo_bits_per_token",
        "learning_rate": "learning_rate",
        "grad_norm": "grad_norm",
    }
    curves = {
        name: [[row["step"], row[key]] for row in history if key in row and "step" in row]
        for name, key in series.items()
    }
    return {
        "recipe": run["recipe"],
        "settings": _training_settings(run, settings),
        "outcome": {
            "training loss, first": run["train_loss"][0],
            "training loss, last": run["train_loss"][1],
            "evaluation loss, first": run.get("eval_loss", [None, None])[0],
            "evaluation loss, last": run.get("eval_loss", [None, None])[1],
            "conditional NELBO, bits per token": evaluation.get("nelbo_bits_per_token"),
            "gradient norm, peak": run.get("grad_norm_peak"),
            "gradient norm, final": run.get("grad_norm_final"),
            "steps per second": run.get("steps_per_second"),
            "training time": _duration(run.get("train_seconds")),
            "tokens seen": run.get("tokens_seen"),
        },
        "nelbo_bits_per_token": evaluation.get("nelbo_bits_per_token"),
        "by_timestep": evaluation.get("by_timestep", []),
        "curves": {name: points for name, points in curves.items() if points},
        "objective": run["objective"],
        "environment": run.get("environment", {}),
    }


def _training_settings(run: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    model, data, parameters = run["model"], run["data"], run["parameters"]
    names = ("per_device_train_batch_size", "gradient_accumulation_steps", "world_size")
    batch = math.prod(settings[name] for name in names) if all(name in settings for name in names) else None
    return {
        "recipe": run["recipe"],
        "corpus": data.get("dataset_name"),
        "tokens per text": data.get("max_length"),
        "concepts C": model.get("num_concepts"),
        "hidden size D": model.get("hidden_size"),
        "encoder layers": model.get("num_hidden_layers"),
        "decoder layers": model.get("decoder_num_hidden_layers"),
        "decoder context": model.get("decoder_context"),
        "parameters, whole model": parameters.get("total"),
        "parameters, encoder": parameters.get("encoder"),
        "steps": run["steps"],
        "epochs": run.get("epochs"),
        "texts per step": batch,
        "learning rate": settings.get("learning_rate"),
        "schedule": settings.get("lr_scheduler_type"),
        "warm-up steps": settings.get("warmup_steps"),
        "seed": settings.get("seed"),
    }


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _geometry(run: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    group_of = {name: group for group, names in GROUPS.items() for name in names}
    order = {name: number for number, name in enumerate(group_of)}
    intervals = run.get("intervals", {})
    by_construction = set(BY_CONSTRUCTION) | set(run.get("by_construction", []))
    names = sorted(
        (name for name, value in run["metrics"].items() if value is None or isinstance(value, int | float)),
        key=lambda name: order.get(name, len(order)),
    )
    metrics = [
        {
            "id": name,
            "group": group_of.get(name, "other"),
            "value": run["metrics"][name],
            "interval": intervals.get(name),
            "grade": run["grades"].get(name),
            "by_construction": name in by_construction,
            "note": NOTES.get(name),
        }
        for name in names
    ]
    corpus = run.get("corpus", {})
    attention = run.get("concept_attention")
    return {
        "corpus": corpus.get("dataset_name") if isinstance(corpus, dict) else corpus,
        "num_samples": run.get("num_samples"),
        "num_batches": run.get("num_batches"),
        "num_concepts": run["num_concepts"],
        "hidden_size": run["hidden_size"],
        "metrics": metrics,
        "singular_values": run.get("singular_values") or [],
        "reference_singular_values": reference["runs"][0]["singular_values"],
        "dimension_std": run.get("dimension_std") or [],
        "reference_dimension_std": {
            name: reference["runs"][0]["geometry"][name]
            for name in ("min_dimension_std", "mean_dimension_std", "max_dimension_std")
        },
        "similarity_matrix": run.get("similarity_matrix") or [],
        "concept_attention": attention or None,
    }


def _task(run: dict[str, Any]) -> dict[str, Any]:
    intervals = run.get("intervals", {})
    examples = run.get("validation_examples")
    # The primary metric first: it is what the verdict of the row is about.
    names = sorted(run["metrics"], key=lambda name: name != run["primary_metric"])
    scores = [
        score_row(name, run["metrics"][name], run["chance"].get(name), examples, intervals.get(name)) for name in names
    ]
    settings = ("split", "train_examples", "validation_examples", "epochs", "learning_rate", "batch_size", "seed")
    return {
        "id": f"{run['task']}.{run['protocol']}",
        "task": run["task"],
        "protocol": run["protocol"],
        "primary_metric": run["primary_metric"],
        "verdict": scores[0]["verdict"],
        "chance_rule": run["chance_rule"],
        "scores": scores,
        **{name: run.get(name) for name in settings},
        "head": run.get("head"),
    }


def _summary(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The handful of figures that stand above everything else."""
    rows = []
    training, downstream = report["training"], report["downstream"]
    if training:
        outcome = training["outcome"]
        first, last = outcome["training loss, first"], outcome["training loss, last"]
        rows.append({"id": "training loss", "value": last, "detail": f"from {number(first)} at the first step logged"})
        if training["nelbo_bits_per_token"] is not None:
            detail = "bits per token, the encoder having seen the text"
            rows.append({"id": "conditional NELBO", "value": training["nelbo_bits_per_token"], "detail": detail})
    if report["geometry"]:
        metrics = {row["id"]: row["value"] for row in report["geometry"]["metrics"]}
        bound = min(report["geometry"]["num_concepts"], report["geometry"]["hidden_size"])
        rank = metrics.get("global_effective_rank")
        rows.append({"id": "global effective rank", "value": rank, "detail": f"of at most {bound}"})
    if downstream:
        above = sum(row["verdict"] == ABOVE_CHANCE for row in downstream)
        detail = f"of {len(downstream)} scored, by primary metric"
        rows.append({"id": "tasks above chance", "value": above, "detail": detail})
    return rows


def _verdict(report: dict[str, Any], overall: str) -> dict[str, Any]:
    counts = {
        name: sum(row["verdict"] == name for row in report["gates"]) for name in ("PASS", "FAIL", "INCONCLUSIVE")
    }
    total = len(report["gates"])
    if overall == "PASS":
        headline = "Every gate passes." if total > 1 else "The gate passes."
    elif overall == "FAIL":
        headline = f"{counts['FAIL']} of {total} gates failed."
    else:
        headline = f"{counts['INCONCLUSIVE']} of {total} gates could not be decided."
    return {"overall": overall, "headline": headline, "findings": _finding_lines(report)}


def _finding_lines(report: dict[str, Any]) -> list[str]:
    lines = []
    if report["geometry"]:
        graded = [row for row in report["geometry"]["metrics"] if row["grade"] and not row["by_construction"]]
        fixed = [row for row in report["geometry"]["metrics"] if row["grade"] and row["by_construction"]]
        counts = [(name, sum(row["grade"] == name for row in graded)) for name in ("GOOD", "OK", "POOR")]
        listed = ", ".join(f"{count} {name}" for name, count in counts)
        line = f"Geometry, by the reference's grades: {listed}."
        if fixed:
            line += f" Not counted, because fixed by construction: {', '.join(row['id'] for row in fixed)}."
        lines.append(line)
    for verdict in dict.fromkeys(row["verdict"] for row in report["downstream"]):
        tasks = [_with_variance(row) for row in report["downstream"] if row["verdict"] == verdict]
        lines.append(f"{verdict[0].upper()}{verdict[1:]}: {', '.join(tasks)}.")
    lines += [part["text"] for part in report["missing"].values()]
    return lines


def _with_variance(row: dict[str, Any]) -> str:
    """Task name; for a correlation above chance, whose chance level is no bar at all, how much it explains."""
    score = row["scores"][0]
    if row["verdict"] == ABOVE_CHANCE and score["id"] in CORRELATIONS:
        return f"{row['id']} (explains {score['value'] ** 2:.1%} of the variance)"
    return row["id"]


# ------------------------------------------------------------------------------------------------------------ figures


class FigureSpec(NamedTuple):
    """A figure: its caption, its data from the report (None: cannot be drawn), and the function that draws it."""

    section: str
    title: str
    caption: str
    data: Callable[[dict[str, Any]], dict[str, Any] | None]
    draw: Callable[..., None]


def _learning_curves(report: dict[str, Any]) -> dict[str, Any] | None:
    curves = report["training"]["curves"] if report["training"] else {}
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


def _by_timestep(report: dict[str, Any]) -> dict[str, Any] | None:
    rows = report["training"]["by_timestep"] if report["training"] else []
    return {"rows": rows} if rows else None


def _spectrum(report: dict[str, Any]) -> dict[str, Any] | None:
    geometry = report["geometry"]
    if not geometry or not geometry["singular_values"]:
        return None
    return {"values": geometry["singular_values"], "reference": geometry["reference_singular_values"]}


def _similarity(report: dict[str, Any]) -> dict[str, Any] | None:
    geometry = report["geometry"]
    return {"matrix": geometry["similarity_matrix"]} if geometry and geometry["similarity_matrix"] else None


def _dimension_std(report: dict[str, Any]) -> dict[str, Any] | None:
    geometry = report["geometry"]
    if not geometry or not geometry["dimension_std"]:
        return None
    return {"values": geometry["dimension_std"], "reference": geometry["reference_dimension_std"]}


def _attention(report: dict[str, Any]) -> dict[str, Any] | None:
    attention = report["geometry"]["concept_attention"] if report["geometry"] else None
    return {"tokens": attention["tokens"], "weights": attention["weights"]} if attention else None


def _downstream(report: dict[str, Any]) -> dict[str, Any] | None:
    rows = [
        {
            "label": f"{row['task']}\n{score['id']} ({row['protocol']})",
            "above": score["verdict"] == ABOVE_CHANCE,
            **{name: score[name] for name in ("value", "chance", "interval")},
        }
        for row in report["downstream"]
        for score in row["scores"]
    ]
    return {"rows": rows} if rows else None


FIGURES = {
    "learning_curves": FigureSpec(
        "training",
        "Learning curves",
        "The training loss is what the optimiser saw, with its label smoothing and weights; the evaluation loss is "
        "the bound on fixed noise. The two are not the same quantity.",
        _learning_curves,
        plots.plot_learning_curves,
    ),
    "loss_by_timestep": FigureSpec(
        "training",
        "Loss by timestep",
        "A decoder that reads the surviving tokens finds few masks easier than many. A flat line means that it does "
        "not read them.",
        _by_timestep,
        plots.plot_loss_by_timestep,
    ),
    "similarity_matrix": FigureSpec(
        "diversity",
        "Similarity of concepts",
        "Averaged over documents. Blocks off the diagonal are concepts that say the same.",
        _similarity,
        plots.plot_similarity_matrix,
    ),
    "singular_values": FigureSpec(
        "spectrum",
        "Singular values",
        "Divided by the largest, so that runs of other width compare. The sum of the curve is the effective rank.",
        _spectrum,
        plots.plot_singular_values,
    ),
    "dimension_std": FigureSpec(
        "dimensions",
        "Spread of hidden dimensions",
        "Far left lie dimensions in which all concept vectors agree; all there means that concepts are copies.",
        _dimension_std,
        plots.plot_dimension_std,
    ),
    "concept_attention": FigureSpec(
        "dimensions",
        "Where concepts read",
        "One example text; mean over layers and heads. Rows that look alike are concepts that read alike.",
        _attention,
        plots.plot_concept_attention,
    ),
    "downstream": FigureSpec(
        "downstream",
        "Scores beside chance",
        "Whiskers show the noise of the split alone, not that of seeds.",
        _downstream,
        plots.plot_downstream,
    ),
}


def _figures(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "id": name,
            "section": spec.section,
            "title": spec.title,
            "caption": spec.caption,
            "light": f"{FIGURES_FOLDER}/{name}.png",
            "dark": f"{FIGURES_FOLDER}/{name}_dark.png",
        }
        for name, spec in FIGURES.items()
        if spec.data(report) is not None
    ]


def draw_figures(report: dict[str, Any], run_dir: str | Path) -> None:
    """Draw every figure that the report names, for light and dark pages."""
    for figure in report["figures"]:
        spec = FIGURES[figure["id"]]
        data = spec.data(report)
        assert data is not None  # else the report would not name it
        for theme in plots.THEMES:
            spec.draw(**data, path=Path(run_dir) / figure[theme], theme=theme)


# ---------------------------------------------------------------------------------------------------------- rendering


def render_markdown(report: dict[str, Any]) -> str:
    """The report as Markdown; figures by their names relative to the run folder."""
    return _environment().get_template("report.md.j2").render(**_context(report))


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
    return _environment().get_template("report.html.j2").render(images=images, **_context(report))


def write_report(run_dir: str | Path) -> dict[str, Any]:
    """Build the report of a run folder and write report.json, figures/, report.md and report.html into it.

    Returns:
        The content of report.json.

    Raises:
        ValueError: as `read_results`; nothing is written then.
    """
    folder = Path(run_dir)
    report = build_report(folder)
    draw_figures(report, folder)
    pages = {"report.md": render_markdown(report), "report.html": render_html(report, folder)}
    write_json(folder / "report.json", report)
    for name, page in pages.items():
        write_atomically(folder / name, page)
    return report


def summary_table(report: dict[str, Any]) -> str:
    """The report in a few aligned lines of plain text: summary, scores with chance, gates."""
    rows = [(row["id"], number(row["value"]), row["detail"]) for row in report["summary"]]
    for task in report["downstream"]:
        for score in task["scores"]:
            beside = f"chance {_score(score['chance'])}  {score['verdict']}"
            rows.append((f"{task['id']} {score['id']}", _score(score["value"]), beside))
    rows += [(f"gate: {row['name']}", row["verdict"], row["explanation"]) for row in report["gates"]]
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [f"{name:<{first}}  {value:>{second}}  {words}" for name, value, words in rows]
    verdict = report["verdict"]
    return "\n".join([f"{verdict['overall']}: {verdict['headline']}", "", *lines])


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
    return {"report": report, "raw": json.dumps(_shortened(report), indent=1, ensure_ascii=False)}


def _shortened(node: Any) -> Any:
    """The report without its long lists of numbers, which a reader would scroll past; report.json has them."""
    if isinstance(node, Mapping):
        return {name: _shortened(value) for name, value in node.items()}
    if isinstance(node, list):
        if len(node) > LONG_LIST and not isinstance(node[0], Mapping):
            return f"({len(node)} entries, in report.json)"
        return [_shortened(item) for item in node]
    return node


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, score=_score, signed=_signed, span=_span, md=escape_markdown)
    return environment


def escape_markdown(value: Any) -> str:
    """Text that Markdown shows as it is, inside a table cell too."""
    text = " ".join(str(value).split())
    for character in "\\`*_[]|#~$":
        text = text.replace(character, f"\\{character}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def _span(interval: list[float] | None) -> str:
    return "none" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
