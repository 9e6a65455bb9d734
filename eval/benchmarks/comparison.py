"""Recipes side by side: trained on equal data for equal steps with paired seeds, measured alike, one table."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from ...trainers.planning import plan_pretraining
from ...trainers.pretraining import RESULT_FILE, pretrain
from ...trainers.recipes import Recipe
from ...trainers.training.saving import find_checkpoints
from ...utils.files import write_atomically
from ...utils.results import (
    ComparisonResult,
    ComparisonRow,
    ControlScore,
    Figure,
    FinetuneResult,
    GeometryResult,
    LedgerResult,
    PretrainResult,
    Result,
    SimilarityResult,
    TaskScore,
)
from ..concepts.analysis import FILES, analyze
from ..concepts.monitor import monitor_concepts
from .finetuning import finetune, result_path
from .protocols import Protocol
from .registry import find_benchmark
from .similarity import find_similarity_task, similarity_tasks
from .similarity import result_path as similarity_path

logger = logging.getLogger(__name__)
COMPARISON_FILE, TABLE_FILE = "comparison.json", "comparison.md"
# Of the training section, what has to be equal for tokens and steps to be; of the data section everything does.
EQUAL = ("max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps")
ANALYSIS = (20, 16, 128)  # batches, documents of each, documents of the ledger: the defaults of scripts/analyze.py
# Title -> method of the similarity result, of the run and of its random twin.
FROZEN = {"cosine": "cosine, mean", "whitened": "cosine, mean whitened", "probe": "linear probe"}
FROZEN_TWIN = {"whitened, twin": "cosine, mean whitened", "probe, twin": "linear probe"}
DASH = "–"


@dataclasses.dataclass(frozen=True)
class Measure:
    """A column of the table: the figure in a result of a run; None where this run has no such thing."""

    title: str
    file: str
    kind: type[Result]
    figure: Callable[[Any], Any]
    digits: int = 2


def _rankme(run: GeometryResult) -> Figure | None:
    return None if run.spectrum is None else run.spectrum.views["within_raw"].get("rankme")


MEASURES = (
    Measure("NELBO, bits", RESULT_FILE, PretrainResult, lambda run: run.evaluation.nelbo_bits_per_token, 3),
    Measure(
        "own task, bits",
        RESULT_FILE,
        PretrainResult,
        lambda run: run.evaluation.rebuilding and run.evaluation.rebuilding.bits_per_token,
        3,
    ),
    Measure("ledger, bits", FILES["ledger"], LedgerResult, lambda run: run.bits_per_token.null, 3),
    Measure("RankMe", FILES["geometry"], GeometryResult, _rankme),
    Measure("reference rank", FILES["geometry"], GeometryResult, lambda run: run.metrics["global_effective_rank"]),
    Measure("training, s", RESULT_FILE, PretrainResult, lambda run: run.train_seconds, 0),
    Measure("tokens read", RESULT_FILE, PretrainResult, lambda run: run.tokens_seen, 0),
)


def check_comparable(recipes: Sequence[Recipe]) -> None:
    """ValueError that names the first field by which two recipes would not train on equal data for equal steps."""
    names = [recipe.name for recipe in recipes]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"a comparison needs at least two different recipes, got {', '.join(names) or 'none'}")
    first = _equal_fields(recipes[0])
    for recipe in recipes[1:]:
        for name, value in _equal_fields(recipe).items():
            if value != first[name]:
                raise ValueError(
                    f"{name} is {first[name]!r} in {names[0]} and {value!r} in {recipe.name}; set it for all of them "
                    f"with --{name} on the command line"
                )


def _equal_fields(recipe: Recipe) -> dict[str, Any]:
    return {**dataclasses.asdict(recipe.data), **{name: getattr(recipe.training, name) for name in EQUAL}}


def compare(
    recipe_of: Callable[[str, int, Path], Recipe],
    names: Sequence[str],
    seeds: Sequence[int],
    output_dir: Path,
    frozen: Sequence[str],
    tasks: Sequence[str],
    protocol: Protocol,
) -> ComparisonResult:
    """Train, analyse, score and fine-tune each recipe with each seed, and lay the figures side by side.

    A killed call, made again, goes on where it was: with the last checkpoint of a run, and with what is not measured
    yet. Runs lie in `output_dir/<recipe>/seed-<seed>` and are ordinary run folders.

    Args:
        recipe_of: (name, seed, run folder) -> resolved recipe.
        names: of the recipes.
        seeds: of training, the same for all recipes.
        output_dir: gets comparison.json and comparison.md.
        frozen: similarity tasks, or task files, to score the frozen concepts on; may be empty.
        tasks: benchmarks, or task files, to fine-tune on, by `protocol`; may be empty.
        protocol: of the fine-tuning.

    Returns:
        What comparison.json holds: a row per recipe and seed with every figure, and means over seeds.

    Raises:
        ValueError: recipes that are not comparable or unknown tasks, before anything is trained; whatever the steps
            raise.
    """
    check_comparable([recipe_of(name, seeds[0], output_dir / name) for name in names])
    benchmarks = [find_benchmark(task) for task in tasks]
    similar = {find_similarity_task(task).name: task for task in frozen}
    tuned = [benchmark.name for benchmark in benchmarks]
    rows = []
    for seed in seeds:  # all recipes with the first seed first: a table after the first round
        for name in names:
            folder = output_dir / name / f"seed-{seed}"
            logger.warning(f"comparing: {name}, seed {seed}, in {folder}")
            _train(recipe_of, name, seed, folder)
            if not (folder / FILES["geometry"]).exists():
                analyze(folder, recipe_of(name, seed, folder).data, *ANALYSIS)
            missing = [given for task, given in similar.items() if not similarity_path(folder, task).exists()]
            similarity_tasks(str(folder), missing, folder)
            for benchmark in benchmarks:
                if not result_path(folder, benchmark.name, protocol).exists():
                    finetune(str(folder), benchmark, protocol, folder)
            figures = _figures(folder, similar, tuned, protocol)
            rows.append(ComparisonRow(recipe=name, seed=seed, figures=figures))
            result = ComparisonResult(protocol=protocol.name, rows=rows, means=_means(rows))
            result.save(output_dir / COMPARISON_FILE)
            write_atomically(output_dir / TABLE_FILE, format_comparison(result))
    result.folder = output_dir
    return result


def plan_comparison(
    recipe_of: Callable[[str, int, Path], Recipe], names: Sequence[str], seeds: Sequence[int], output_dir: Path
) -> dict[str, dict[str, Any]]:
    """What the training of a comparison will cost, from a few steps of each recipe; nothing of them is kept.

    Args as of `compare`.

    Returns:
        Recipe -> what `plan_pretraining` returns, and `runs` and `hours_left` of the seeds that have not finished,
        those that were interrupted counted whole; no `hours_left` where only the size of the corpus decides the steps.

    Raises:
        ValueError: recipes that are not comparable; whatever `plan_pretraining` raises.
    """
    check_comparable([recipe_of(name, seeds[0], output_dir / name) for name in names])
    plans = {}
    for name in names:
        plan = plan_pretraining(recipe_of(name, seeds[0], output_dir / name / "plan"))
        runs = sum(not (output_dir / name / f"seed-{seed}" / RESULT_FILE).exists() for seed in seeds)
        plans[name] = {**plan, "runs": runs, "hours_left": None if plan["hours"] is None else runs * plan["hours"]}
    return plans


def format_plans(plans: Mapping[str, Mapping[str, Any]]) -> str:
    """A row per recipe, and the sum."""
    lines = [
        f"{'recipe':<24}{'parameters':>12}{'steps':>10}{'tokens each':>14}{'s a step':>10}{'runs':>6}{'hours':>8}"
    ]
    for name, plan in plans.items():
        cells = [f"{plan['parameters']['total'] / 1e6:.1f} M".rjust(12)]
        cells += [DASH.rjust(10) if plan["steps"] is None else f"{plan['steps']:>10,}"]
        cells += [DASH.rjust(14) if plan["tokens"] is None else f"{plan['tokens'] / 1e6:.1f} M".rjust(14)]
        cells += [f"{plan['seconds_per_step']:>10.3f}{plan['runs']:>6}"]
        cells += [DASH.rjust(8) if plan["hours_left"] is None else f"{plan['hours_left']:>8.2f}"]
        lines.append(f"{name:<24}{''.join(cells)}")
    hours = [plan["hours_left"] for plan in plans.values()]
    total = "as many as the epochs of the corpus take" if None in hours else f"{sum(hours):.2f}"
    return "\n".join([*lines, f"hours of training to come: {total}; evaluation, saving and all scoring come on top"])


def _train(recipe_of: Callable[[str, int, Path], Recipe], name: str, seed: int, folder: Path) -> None:
    if (folder / RESULT_FILE).exists():
        return
    recipe = recipe_of(name, seed, folder)
    if find_checkpoints(folder):
        recipe.training.resume_from_checkpoint = "last"
    pretrain(recipe, monitor=monitor_concepts)


def _figures(folder: Path, frozen: Iterable[str], tasks: Iterable[str], protocol: Protocol) -> dict[str, Figure]:
    """Title -> value and interval."""
    figures = {measure.title: _figure(folder, measure) for measure in MEASURES}
    for task in frozen:
        similar = SimilarityResult.load(similarity_path(folder, task))
        for title, method in FROZEN.items():
            figures[f"{task} {title}"] = _beside(similar.primary(method))
        for title, method in FROZEN_TWIN.items():
            figures[f"{task} {title}"] = _beside(similar.primary(method).random_init)
    for task in tasks:
        tuned = FinetuneResult.load(result_path(folder, task, protocol))
        controls = tuned.primary.controls
        beside = {
            "": tuned.primary,
            ", twin": controls.get("random_init"),
            ", bag of tokens": controls.get("bag_of_tokens"),
        }
        for title, row in beside.items():
            figures[f"{task}, {tuned.primary_metric}{title}"] = _beside(row)
    return figures


def _figure(folder: Path, measure: Measure) -> Figure:
    path = folder / measure.file
    found = measure.figure(measure.kind.load(path)) if path.is_file() else None
    return _beside(found) if isinstance(found, Figure) else Figure(value=found, interval=None)


def _beside(row: Figure | TaskScore | ControlScore | None) -> Figure:
    if row is None:
        return Figure(value=None, interval=None)
    return Figure(value=row.value, interval=row.interval)


def _means(rows: Sequence[ComparisonRow]) -> dict[str, dict[str, float | None]]:
    """Recipe -> title -> mean over seeds."""
    means = {}
    for name in dict.fromkeys(row.recipe for row in rows):
        own = [row.figures for row in rows if row.recipe == name]
        values = {title: [figures[title].value for figures in own] for title in own[0]}
        means[name] = {
            title: mean(value for value in each if value is not None) if None not in each else None
            for title, each in values.items()
        }
    return means


def format_comparison(result: ComparisonResult) -> str:
    """The table in Markdown: a row per recipe and seed, each figure with its interval where it has one."""
    titles = list(result.rows[0].figures)
    lines = [f"| recipe | seed | {' | '.join(titles)} |", f"| --- | ---: |{' ---: |' * len(titles)}"]
    for row in sorted(result.rows, key=lambda row: (row.recipe, row.seed)):
        cells = [_cell(title, row.figures[title]) for title in titles]
        lines.append(f"| {row.recipe} | {row.seed} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(title: str, figure: Figure) -> str:
    if figure.value is None:
        return DASH
    digits = next((measure.digits for measure in MEASURES if measure.title == title), 3)
    text = f"{figure.value:,.{digits}f}"
    if figure.interval is None:
        return text
    low, high = figure.interval
    return f"{text}, {low:,.{digits}f} to {high:,.{digits}f}"
