"""Render docs/GATE_1.md and its figure again from the reports in docs/results.

    python scripts/dev/gate_1.py

To be run after a report, the page or the figure has changed; a test compares the page with a fresh rendering.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from concept_encoder.eval.report.gates import GateResult, check_gates, find_in_report, load_gates
from concept_encoder.eval.report.pages import page_environment
from concept_encoder.eval.report.plots import THEMES, figure_file
from concept_encoder.eval.report.report import read_reference
from concept_encoder.utils.command_line import Command, run, say
from concept_encoder.utils.files import write_atomically

DOCS = Path(__file__).resolve().parents[2] / "docs"
TEMPLATES = Path(__file__).with_name("templates")
GATES_FILE = Path(__file__).with_name("gate_1.yaml")
RANK_GATES = (30 / 128, 64 / 128)
STSB_GATE = 0.70
COMPARED_CONCEPTS = 16  # of the recipes in the comparison, whose rank is at most that
GROUPS = {  # by file name
    "seed": "concept encoder",
    "bert": "BERT twin",
    "bert_long": "BERT twin, longer",
}
RANK = "geometry/metrics/global_effective_rank_normalized"
SCORES = {  # column -> where a report has it
    "STS-B, no training": "similarity/stsb/rows/cosine, mean, spearman",
    "STS-B": "downstream/stsb.bi_encoder/scores/pearson",
    "SICK-R": "downstream/sick_relatedness.bi_encoder/scores/pearson",
    "SICK-E": "downstream/sick_entailment.bi_encoder/scores/accuracy",
    "MRPC, F1": "downstream/mrpc.bi_encoder/scores/f1",
    "MRPC, accuracy": "downstream/mrpc.bi_encoder/scores/accuracy",
}
CONTROLS = {"random_init": "concept encoder, random weights", "bag_of_tokens": "bag of tokens"}


def read_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """The report beside `folder`, that of the published card, and `NAME-SEED.report.json` in it.

    Returns:
        NAME-SEED -> report, in the order of `GROUPS` and of the seeds.

    Raises:
        ValueError: a name that is none of `GROUPS`.
    """
    card = json.loads(folder.with_suffix(".report.json").read_text(encoding="utf-8"))
    runs = {f"seed-{card['training']['settings']['seed']}": card}
    for path in sorted(folder.glob("*.report.json")):
        name = path.name.removesuffix(".report.json")
        if name.rpartition("-")[0] not in GROUPS:
            raise ValueError(f"{path}: a run is named {', '.join(GROUPS)}, then - and its seed")
        runs[name] = json.loads(path.read_text(encoding="utf-8"))
    order = list(GROUPS)
    return dict(sorted(runs.items(), key=lambda run: (order.index(run[0].rpartition("-")[0]), run[0])))


def render_page(folder: Path, comparison: Path) -> str:
    """The page as Markdown.

    Args:
        folder: as for `read_runs`, with contamination.json and width.json.
        comparison: JSON of `scripts/compare.py`, for the figure.
    """
    runs = read_runs(folder)
    seeds = _seeds(runs)
    first = next(iter(seeds.values()))
    gates = _gate_rows(seeds)
    return (
        page_environment(TEMPLATES)
        .get_template("gate_1.md.j2")
        .render(
            seeds=seeds,
            settings=first["training"]["settings"],
            gates=gates,
            missed=_missed(gates),
            trials=json.loads((folder / "width.json").read_text(encoding="utf-8")),
            columns=list(SCORES),
            rows=_score_rows(runs),
            sources=json.loads((folder / "contamination.json").read_text(encoding="utf-8"))["sources"],
            recipes=[row["recipe"] for row in _comparison_points(comparison)],
        )
    )


def draw_figure(folder: Path, comparison: Path, figures: Path) -> None:
    """Rank of the concepts against STS-B: the published run, eight objectives, and this recipe."""
    points = {
        "published run": [_published_point()],
        "eight objectives, 20 M tokens": _comparison_points(comparison),
        "this recipe, three seeds": _seed_points(read_runs(folder)),
    }
    bag = next(point["bag"] for point in points["eight objectives, 20 M tokens"])
    for theme in THEMES:
        _draw(points, bag, figures / f"gate_1{'' if theme == 'light' else '_dark'}.png", theme)


def _draw(points: Mapping[str, Sequence[Mapping[str, Any]]], bag: float, path: Path, theme: str) -> None:
    with figure_file(path, theme, height=4.4) as (figure, colours):
        axes = figure.subplots()
        styles = (("X", "second"), ("o", "muted"), ("D", "main"))
        for (name, group), (marker, colour) in zip(points.items(), styles, strict=True):
            x, y = [p["rank"] for p in group], [p["stsb"] for p in group]
            axes.plot(x, y, marker=marker, ls="none", ms=8, color=colours[colour], label=name)
        for rank, gate in zip(RANK_GATES, ("gate 1", "half"), strict=True):
            axes.axvline(rank, color=colours["text"], lw=1, ls=":")
            axes.text(rank + 0.01, 0.02, gate, color=colours["text"])
        axes.axhline(STSB_GATE, color=colours["text"], lw=1, ls=":")
        axes.axhline(bag, color=colours["chance"], lw=1.2, ls="--", label="bag of tokens")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 0.9)
        axes.set_title("Rank of the concepts and what they say", loc="left")
        axes.set_xlabel("reference rank, share of the largest possible")
        axes.set_ylabel("STS-B Pearson, fine-tuned")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)


def _published_point() -> dict[str, float]:
    run = read_reference()["runs"][0]
    return {
        "rank": run["geometry"]["global_effective_rank_normalized"],
        "stsb": run["downstream"]["stsb"]["pearson"],
    }


def _comparison_points(path: Path) -> list[dict[str, Any]]:
    rows = []
    for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
        value = {name: figure["value"] for name, figure in row["figures"].items() if figure}
        rank, stsb = value["reference rank"] / COMPARED_CONCEPTS, value["stsb, pearson"]
        rows.append(
            {"recipe": row["recipe"], "rank": rank, "stsb": stsb, "bag": value["stsb, pearson, bag of tokens"]}
        )
    return rows


def _seed_points(runs: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    seeds = _seeds(runs).values()
    return [{"rank": _value(report, RANK), "stsb": _value(report, SCORES["STS-B"])} for report in seeds]


def _seeds(runs: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: report for name, report in runs.items() if name.startswith("seed-")}


def _gate_rows(seeds: Mapping[str, Mapping[str, Any]]) -> list[tuple[GateResult, ...]]:
    """One row per gate, its results over the seeds."""
    (gates,) = load_gates(GATES_FILE).values()
    return list(zip(*(check_gates(report, gates.gates) for report in seeds.values()), strict=True))


def _missed(gates: Sequence[tuple[GateResult, ...]]) -> list[tuple[GateResult, ...]]:
    """The rows with a seed that fails, or passes no more than by chance."""
    return [row for row in gates if any(cell.value is not None and cell.verdict != "PASS" for cell in row)]


def _score_rows(runs: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per run, the mean of each kind that has several, and the controls of the first."""
    rows = []
    for group, title in GROUPS.items():
        own = {name: report for name, report in runs.items() if name.rpartition("-")[0] == group}
        for name, report in own.items():
            settings, outcome = report["training"]["settings"], report["training"]["outcome"]
            rows.append(
                {
                    "name": f"{title}, seed {name.rpartition('-')[2]}",
                    "parameters": settings["parameters, encoder"],
                    "steps": settings["steps"],
                    "time": outcome["training time"],
                    "scores": [_value(report, path) for path in SCORES.values()],
                }
            )
        if len(own) > 1:
            columns = zip(*(row["scores"] for row in rows[-len(own) :]), strict=True)
            scores = [None if None in column else mean(column) for column in columns]
            rows.append({"name": f"{title}, mean", "parameters": None, "steps": None, "time": None, "scores": scores})
    first = next(iter(runs.values()))
    for control, title in CONTROLS.items():
        scores = [_value(first, _beside(path, control)) for path in SCORES.values()]
        rows.append({"name": title, "parameters": None, "steps": None, "time": None, "scores": scores})
    return rows


def _beside(path: str, control: str) -> str:
    """Path of a control beside a score."""
    return f"{path}/controls/{control}" if path.startswith("downstream/") else f"{path}/{control}"


def _value(report: Mapping[str, Any], path: str) -> float | None:
    """The figure at a path, None where it was not measured."""
    _, node, _ = find_in_report(report, path)
    return node and node["value"]


def main(argv: list[str] | None = None) -> None:
    parser = Command(__file__, __doc__)
    parser.add_argument(
        "--page", type=Path, default=DOCS / "GATE_1.md", help="figures go beside it (default: docs/GATE_1.md)"
    )
    arguments = parser.parse_args(argv)
    sources = DOCS / "results" / "gate_1", DOCS / "results" / "objectives_20m.comparison.json"
    with parser.refusing():
        page = render_page(*sources)
        draw_figure(*sources, arguments.page.parent / "figures")
    write_atomically(arguments.page, page)
    say(f"Written to {arguments.page}.")


if __name__ == "__main__":
    run(main)
