"""Recipes, or variants of one, side by side: equal data, equal steps, paired seeds, measured alike, one table."""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from ...trainers.planning import plan_pretraining
from ...trainers.pretraining import RESULT_FILE, pretrain
from ...trainers.recipes import RECIPES, Recipe, find_recipe
from ...utils.command_line import did_you_mean
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
from ...utils.untrusted import inside, read_yaml
from ..concepts.analysis import FILES, analyze
from ..concepts.monitor import monitor_concepts
from .finetuning import check_task, finetune_task, result_path
from .protocols import Protocol
from .registry import Task, find_benchmark, load_benchmark
from .similarity import find_similarity_task, similarity
from .similarity import result_path as similarity_path

logger = logging.getLogger(__name__)
COMPARISONS = RECIPES.parent / "comparisons"
COMPARISON_FILE, TABLE_FILE = "comparison.json", "comparison.md"
# Of the training section, what has to be equal for tokens and steps to be; of the data section everything does.
EQUAL = ("max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps")
# Title -> method of the similarity result, of the run and of its random twin.
FROZEN = {"cosine": "cosine, mean", "whitened": "cosine, mean whitened", "probe": "linear probe"}
FROZEN_TWIN = {"whitened, twin": "cosine, mean whitened", "probe, twin": "linear probe"}
DASH = "–"
Comparison = str | os.PathLike | Sequence[str | os.PathLike]


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


@dataclasses.dataclass(frozen=True)
class Variant:
    """One of the recipes that are compared: a recipe, and what is changed in it."""

    name: str
    recipe: str | os.PathLike
    fields: Mapping[str, Any]

    def load(self, seed: int, folder: Path, fields: Mapping[str, Any]) -> Recipe:
        """The recipe of a run with a seed, in a folder, with `fields` on top."""
        own = {**self.fields, **fields, "seed": seed, "output_dir": str(folder)}
        return dataclasses.replace(Recipe.load(self.recipe, **own), name=self.name)


def find_variants(comparison: Comparison, only: Sequence[str] = ()) -> list[Variant]:
    """What a comparison compares.

    Args:
        comparison: several names or paths of recipes; or the name of a comparison of the package, or the path of a
            YAML file with `base`, the name of a recipe or of a file next to it, `variants`, name -> fields that it
            changes, and `fields` that all have.
        only: names of the variants to take; none: all.

    Raises:
        ValueError: an unknown comparison, recipe or variant; not such a file.
        OSError: the file cannot be read.
    """
    if not isinstance(comparison, str | os.PathLike) and len(comparison) == 1:
        (comparison,) = comparison
    if not isinstance(comparison, str | os.PathLike):
        return _among([Variant(find_recipe(each).stem, each, {}) for each in comparison], only)
    name = os.fspath(comparison)
    path = Path(name) if name.endswith((".yaml", ".yml")) else COMPARISONS / f"{name}.yaml"
    if not path.is_file() or (path.parent != COMPARISONS and not name.endswith((".yaml", ".yml"))):
        known = ", ".join(sorted(each.stem for each in COMPARISONS.glob("*.yaml")))
        raise ValueError(f"Unknown comparison {name!r}. Available: {known}; or a .yaml file, or two recipes or more")
    content = read_yaml(path)
    if not isinstance(content, dict) or not {"base", "variants"} <= set(content) <= {"base", "fields", "variants"}:
        raise ValueError(f"{path} must hold `base` and `variants`, and may hold `fields`; got {content!r}")
    common, variants = content.get("fields") or {}, content["variants"]
    parts = [common, *variants.values()] if isinstance(variants, dict) and variants else [variants or ""]
    if not all(isinstance(each, dict | None) for each in parts):
        raise ValueError(f"{path}: `variants` must map names to fields, and `fields` names to values")
    base = str(content["base"])
    recipe = inside(path.parent, base) if base.endswith((".yaml", ".yml")) else base
    return _among([Variant(str(each), recipe, {**common, **(own or {})}) for each, own in variants.items()], only)


def _check_fields(fields: Mapping[str, Any]) -> None:
    for name, instead in (("seed", "seeds"), ("output_dir", "the output_dir of the comparison")):
        if name in fields:
            raise ValueError(f"{name} differs from run to run of a comparison; give {instead}")


def _among(variants: list[Variant], only: Sequence[str]) -> list[Variant]:
    names = [variant.name for variant in variants]
    for name in only:
        if name not in names:
            raise ValueError(f"Unknown variant {name!r}. Available: {', '.join(names)}{did_you_mean(name, names)}")
    return [variant for variant in variants if not only or variant.name in only]


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
    recipes: Comparison,
    output_dir: str | os.PathLike,
    *,
    variants: Sequence[str] = (),
    seeds: Sequence[int] = (42,),
    frozen: Sequence[str | Task] = ("stsb",),
    tasks: Sequence[str | Task] = ("stsb",),
    protocol: Protocol | str = "bi_encoder",
    **fields: Any,
) -> ComparisonResult:
    """Train, analyse, score and fine-tune each variant with each seed, and lay the figures side by side.

    Make a killed call again and it continues where it was: with the last checkpoint of a run, and with what is not
    measured yet. Runs are in `output_dir/<recipe>/seed-<seed>` and are ordinary run folders.

    Args:
        recipes, variants: what to compare, as `find_variants` has it.
        output_dir: gets comparison.json and comparison.md.
        seeds: of training, the same for all.
        frozen: similarity tasks to score the frozen concepts on; may be empty.
        tasks: tasks to fine-tune on, by `protocol`; may be empty.
        protocol: of the fine-tuning.
        fields: of the recipes, for all of them.

    Returns:
        What comparison.json holds: a row per recipe and seed with every figure, and means over seeds.

    Raises:
        ValueError: recipes that are not comparable, tasks that are unknown or not fit to be scored, before anything is
            trained; anything that the steps raise.
    """
    output_dir = Path(output_dir)
    protocol = Protocol.load(protocol) if isinstance(protocol, str) else protocol
    chosen = find_variants(recipes, variants)
    _check_fields(fields)
    check_comparable([variant.load(seeds[0], output_dir / variant.name, fields) for variant in chosen])
    benchmarks = [find_benchmark(task) for task in tasks]
    similar = {task.name: task for task in map(find_similarity_task, frozen)}
    for task in similar.values():
        load_benchmark(task)
    for task in benchmarks:
        check_task(task)
    tuned = [benchmark.name for benchmark in benchmarks]
    rows = []
    for seed in seeds:  # all recipes with the first seed first: a table after the first round
        for variant in chosen:
            name = variant.name
            folder = output_dir / name / f"seed-{seed}"
            logger.warning(f"comparing: {name}, seed {seed}, in {folder}")
            recipe = variant.load(seed, folder, fields)
            _train(recipe, folder)
            if not (folder / FILES["geometry"]).exists():
                analyze(folder, recipe.data)
            missing = [task for name, task in similar.items() if not similarity_path(folder, name).exists()]
            similarity(str(folder), missing, folder)
            for benchmark in benchmarks:
                if not result_path(folder, benchmark.name, protocol).exists():
                    finetune_task(str(folder), benchmark, protocol, folder)
            figures = _figures(folder, similar, tuned, protocol)
            rows.append(ComparisonRow(recipe=name, seed=seed, figures=figures))
            result = ComparisonResult(protocol=protocol.name, rows=rows, means=_means(rows))
            result.save(output_dir / COMPARISON_FILE)
            write_atomically(output_dir / TABLE_FILE, format_comparison(result))
    result.folder = output_dir
    return result


def plan_comparison(
    recipes: Comparison,
    output_dir: str | os.PathLike,
    *,
    variants: Sequence[str] = (),
    seeds: Sequence[int] = (42,),
    **fields: Any,
) -> dict[str, dict[str, Any]]:
    """What the training of a comparison will cost, from a few steps of each variant; nothing of them is kept.

    Args as of `compare`.

    Returns:
        Variant -> what `plan_pretraining` returns, and `runs` and `hours_left` of the seeds that have not finished,
        those that were interrupted counted whole; no `hours_left` where only the size of the corpus decides the steps.

    Raises:
        ValueError: recipes that are not comparable; anything that `plan_pretraining` raises.
    """
    output_dir, chosen = Path(output_dir), find_variants(recipes, variants)
    _check_fields(fields)
    check_comparable([variant.load(seeds[0], output_dir / variant.name, fields) for variant in chosen])
    plans = {}
    for variant in chosen:
        plan = plan_pretraining(variant.load(seeds[0], output_dir / variant.name / "plan", fields))
        runs = sum(not (output_dir / variant.name / f"seed-{seed}" / RESULT_FILE).exists() for seed in seeds)
        plans[variant.name] = {
            **plan,
            "runs": runs,
            "hours_left": None if plan["hours"] is None else runs * plan["hours"],
        }
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


def _train(recipe: Recipe, folder: Path) -> None:
    if (folder / RESULT_FILE).exists():
        return
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
    found = measure.figure(measure.kind.load(path)) if path.exists() else None
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
