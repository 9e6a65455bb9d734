"""Render docs/GATE_1.md and its figure again from the reports in docs/results.

    python scripts/dev/gate_1.py

To be run after a report, the page or the figure has changed; a test compares the page with a fresh rendering.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from concept_encoder.eval.report.findings import read_reference
from concept_encoder.eval.report.gates import GateResult, check_gates, find_in_report, load_gates
from concept_encoder.eval.report.pages import page_environment
from concept_encoder.eval.report.plots import THEMES, figure_file
from concept_encoder.eval.report.sections import duration
from concept_encoder.utils.command_line import Command, run, say
from concept_encoder.utils.files import write_atomically
from concept_encoder.utils.results import ComparisonResult, ContaminationResult, PretrainResult, Report

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


@dataclass(frozen=True)
class Point:
    """A run in the figure: its reference rank, as a share of the most, and STS-B, Pearson."""

    rank: float
    stsb: float
    recipe: str = ""
    bag: float = math.nan
    """STS-B of the bag of tokens"""


@dataclass(frozen=True)
class ScoreRow:
    """A row of the table of scores; None where it has no such thing."""

    name: str
    scores: Sequence[float | None]
    parameters: int | None = None
    steps: int | None = None
    time: str | None = None


def read_runs(folder: Path) -> dict[str, Report]:
    """The report next to `folder`, that of the published card, and `NAME-SEED.report.json` in it.

    Returns:
        NAME-SEED -> report, in the order of `GROUPS` and of the seeds.

    Raises:
        ValueError: a name that is none of `GROUPS`.
    """
    card = Report.load(folder.with_suffix(".report.json"))
    runs = {f"seed-{_training(card).training.seed}": card}
    for path in sorted(folder.glob("*.report.json")):
        name = path.name.removesuffix(".report.json")
        if name.rpartition("-")[0] not in GROUPS:
            raise ValueError(f"{path}: a run is named {', '.join(GROUPS)}, then - and its seed")
        runs[name] = Report.load(path)
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
            run=_training(first),
            gates=gates,
            missed=_missed(gates),
            trials=json.loads((folder / "width.json").read_text(encoding="utf-8")),
            columns=list(SCORES),
            rows=_score_rows(runs),
            sources=ContaminationResult.load(folder / "contamination.json").sources,
            recipes=[point.recipe for point in _comparison_points(comparison)],
        )
    )


def draw_figure(folder: Path, comparison: Path, figures: Path) -> None:
    """Rank of the concepts against STS-B: the published run, eight objectives, and this recipe."""
    points = {
        "published run": [_published_point()],
        "eight objectives, 20 M tokens": _comparison_points(comparison),
        "this recipe, three seeds": _seed_points(read_runs(folder)),
    }
    bag = next(point.bag for point in points["eight objectives, 20 M tokens"])
    for theme in THEMES:
        _draw(points, bag, figures / f"gate_1{'' if theme == 'light' else '_dark'}.png", theme)


def _draw(points: Mapping[str, Sequence[Point]], bag: float, path: Path, theme: str) -> None:
    with figure_file(path, theme, height=4.4) as (figure, colours):
        axes = figure.subplots()
        styles = (("X", "second"), ("o", "muted"), ("D", "main"))
        for (name, group), (marker, colour) in zip(points.items(), styles, strict=True):
            x, y = [point.rank for point in group], [point.stsb for point in group]
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


def _published_point() -> Point:
    run = read_reference()["runs"][0]
    return Point(run["geometry"]["global_effective_rank_normalized"], run["downstream"]["stsb"]["pearson"])


def _comparison_points(path: Path) -> list[Point]:
    points = []
    for row in ComparisonResult.load(path).rows:
        value = {name: figure.value for name, figure in row.figures.items()}
        rank, stsb, bag = (
            _drawn(value[name]) for name in ("reference rank", "stsb, pearson", "stsb, pearson, bag of tokens")
        )
        points.append(Point(rank / COMPARED_CONCEPTS, stsb, row.recipe, bag))
    return points


def _seed_points(runs: Mapping[str, Report]) -> list[Point]:
    return [
        Point(_drawn(_value(report, RANK)), _drawn(_value(report, SCORES["STS-B"])))
        for report in _seeds(runs).values()
    ]


def _seeds(runs: Mapping[str, Report]) -> dict[str, Report]:
    return {name: report for name, report in runs.items() if name.startswith("seed-")}


def _gate_rows(seeds: Mapping[str, Report]) -> list[tuple[GateResult, ...]]:
    """One row per gate, its results over the seeds."""
    (gates,) = load_gates(GATES_FILE).values()
    return list(zip(*(check_gates(report, gates.gates) for report in seeds.values()), strict=True))


def _missed(gates: Sequence[tuple[GateResult, ...]]) -> list[tuple[GateResult, ...]]:
    """The rows with a seed that fails, or passes no more than by chance."""
    return [row for row in gates if any(cell.value is not None and cell.verdict != "PASS" for cell in row)]


def _score_rows(runs: Mapping[str, Report]) -> list[ScoreRow]:
    """One row per run, the mean of each kind that has several, and the controls of the first."""
    rows: list[ScoreRow] = []
    for group, title in GROUPS.items():
        own = {name: report for name, report in runs.items() if name.rpartition("-")[0] == group}
        for name, report in own.items():
            run = _training(report)
            scores = [_value(report, path) for path in SCORES.values()]
            title_of_run = f"{title}, seed {name.rpartition('-')[2]}"
            rows.append(ScoreRow(title_of_run, scores, run.parameters.encoder, run.steps, duration(run.train_seconds)))
        if len(own) > 1:
            columns = zip(*(row.scores for row in rows[-len(own) :]), strict=True)
            scores = [None if None in column else mean(column) for column in columns]
            rows.append(ScoreRow(f"{title}, mean", scores))
    first = next(iter(runs.values()))
    for control, title in CONTROLS.items():
        rows.append(ScoreRow(title, [_value(first, _beside(path, control)) for path in SCORES.values()]))
    return rows


def _beside(path: str, control: str) -> str:
    """Path of a control next to a score."""
    return f"{path}/controls/{control}" if path.startswith("downstream/") else f"{path}/{control}"


def _drawn(value: float | None) -> float:
    """NaN, which is not drawn, for what was not measured."""
    return math.nan if value is None else value


def _training(report: Report) -> PretrainResult:
    if report.training is None:
        raise ValueError(f"the report of {report.run.name} holds no record of pretraining, which the page needs")
    return report.training


def _value(report: Report, path: str) -> float | None:
    """The figure at a path, None where it was not measured."""
    _, node, _ = find_in_report(report, path)
    return node if node is None or isinstance(node, float) else node.value


def main(argv: list[str] | None = None) -> None:
    parser = Command(__file__, __doc__)
    parser.add_argument(
        "--page", type=Path, default=DOCS / "GATE_1.md", help="figures go next to it (default: docs/GATE_1.md)"
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
