"""The page and the figures of the benchmark, from its JSON alone."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from concept_encoder.eval.report import plots
from concept_encoder.eval.report.pages import page_environment
from concept_encoder.scripts.dev.speed.plots import plot_growth, plot_roofline_shares
from concept_encoder.scripts.dev.speed.targets import targets

TEMPLATES = Path(__file__).parents[1] / "templates"
FORM_NAMES = {
    "plain": "plain: every position decoded, all logits at once",
    "full": "all positions",
    "share": "a quarter of the positions",
    "ours": "this model",
    "chunked": "this model, by chunks",
    "bert": "BertModel",
    "modernbert": "ModernBertModel",
    "perceiver": "PerceiverModel",
    "bfloat16": "bfloat16 autocast",
    "compile": "torch.compile",
    "checkpointing": "gradient checkpointing",
    "model": "by chunks, as the model takes it",
}
SECTIONS = (
    "training",
    "encoding",
    "million",
    "variants",
    "padding",
    "scaling",
)  # for the groups that were run
ENCODER_FORMS = ("ours", "chunked", "bert", "modernbert", "perceiver")  # in the order of the lines
HELPS = 1.05  # a ratio further from 1 than this is called a help or a loss


def render_page(result: Mapping[str, Any], result_name: str) -> str:
    """The page as Markdown.

    Args:
        result: as from `speed.measure`.
        result_name: of the JSON file, relative to the page.
    """
    environment = page_environment(TEMPLATES)
    environment.filters.update(seconds=_seconds, times=_times, percent=_percent, memory=_memory, rate=_rate)
    encoding = result.get("encoding", {"rows": []})
    return environment.get_template("speed.md.j2").render(
        result={**dict.fromkeys(SECTIONS), **result},
        targets=targets(result),
        names=FORM_NAMES,
        by_length=_by_length(encoding["rows"]),
        encoders=list(dict.fromkeys(row["form"] for row in encoding["rows"])),
        effect=_effect,
        helps=HELPS,
        result_name=result_name,
        drawn=[name for name, data in _figure_data(result).items() if data],
    )


def draw_figures(result: Mapping[str, Any], folder: Path) -> None:
    """Draw every figure that the result has data for, for light and dark pages."""
    draw: dict[str, Callable[[Any, Path, str], None]] = {
        "speed_growth": plot_growth,
        "speed_roofline": plot_roofline_shares,
    }
    for name, data in _figure_data(result).items():
        for theme in plots.THEMES if data else ():
            draw[name](data, folder / f"{name}{'' if theme == 'light' else '_dark'}.png", theme)


def _figure_data(result: Mapping[str, Any]) -> dict[str, Any]:
    """Figure -> its data, empty where the result has none."""
    rows = list(result.get("encoding", {"rows": []})["rows"])
    growth: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        point = {"length": row["length"], "seconds": row["seconds"]["median"] / row["texts"]}
        memory = row["peak_memory"]
        point["memory"] = None if memory is None else memory / row["texts"]
        growth.setdefault(row["form"], []).append(point)
    for row in result.get("million", {"rows": []})["rows"][-1:]:
        point = {"length": row["length"], "seconds": row["seconds"]["median"], "memory": row["peak_memory"]}
        growth.setdefault("chunked", []).append(point)
    curves = {FORM_NAMES[form]: growth.get(form, []) for form in ENCODER_FORMS} if growth else {}
    shares = []
    for form, row in result.get("training", {"cases": {}})["cases"].items():
        shares.append({"label": f"step, {FORM_NAMES[form].partition(':')[0]}", **_shares(row)})
    for row in rows:
        if row["length"] in result["plan"]["lengths"][:3] and row["form"] != "chunked":
            shares.append({"label": f"{FORM_NAMES[row['form']]}, N={row['length']:,}", **_shares(row)})
    return {"speed_growth": curves, "speed_roofline": shares}


def _shares(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"reached": row["roofline_share"], "products_alone": row.get("products_alone_share")}


def _by_length(rows: list[Mapping[str, Any]]) -> dict[int, dict[str, Mapping[str, Any]]]:
    found: dict[int, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["length"], {})[row["form"]] = row
    return found


def _effect(row: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> str:
    """Whether a variant helps, in words: time, then memory."""
    if row["form"] == "full":
        return "–"
    time = row["against"]["median"]
    words = ["faster" if time > HELPS else "slower" if time < 1 / HELPS else "same time"]
    base = next(each for each in rows if each["form"] == "full" and each["task"] == row["task"])
    if row["peak_memory"] and base["peak_memory"]:
        memory = row["peak_memory"] / base["peak_memory"]
        words.append("less memory" if memory < 1 / HELPS else "more memory" if memory > HELPS else "same memory")
    return ", ".join(words)


# ------------------------------------------------------------------------------------------------------------ figures


def _seconds(value: float | Mapping[str, float]) -> str:
    seconds = value["median"] if isinstance(value, Mapping) else value
    scale, unit = (1e3, "ms") if seconds < 1 else (1, "s")
    return f"{_digits(scale * seconds)} {unit}"


def _times(row: Mapping[str, float]) -> str:
    return f"{row['median']:.2f}× ({row['min']:.2f} to {row['max']:.2f})"


def _percent(value: float | Mapping[str, float] | None) -> str:
    if value is None:
        return "–"
    return f"{100 * (value['median'] if isinstance(value, Mapping) else value):.0f} %"


def _memory(value: int | None) -> str:
    if value is None:
        return "–"
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{_digits(value / 1e6)} MB"


def _rate(value: float) -> str:
    return f"{value / 1e9:,.0f}" if value >= 1e10 else f"{value / 1e9:.1f}"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
