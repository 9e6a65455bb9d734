"""Fine-tuning of a checkpoint on benchmarks under a named protocol: one JSON file of scores next to their controls."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import concatenate_datasets

from ...utils.command_line import say
from ...utils.files import recorded_source
from ...utils.progress import progress
from ...utils.results import BagCell, ControlFacts, Environment, FinetuneResult, PredictionsResult, TaskScore
from ..loading.checkpoints import FAMILIES, Checkpoint, random_twin, results_folder
from ..metrics.benchmark_score import benchmark_score
from ..metrics.chance import judge
from ..metrics.intervals import bootstrap_intervals, control_scores, mean_scores, paired_bootstrap
from .baselines import bag_of_tokens, check_examples, published_scores
from .protocols import COUNTED_WHEN_FROZEN, OVERRIDABLE, Protocol
from .registry import FOLDS, Task, chance_level, find_benchmark, load_benchmark
from .tuning import Cells, PreparedTask, Tuned, count_cells, joined, prepare_task, run_protocol

RESULT_FOLDER = "finetune"
SPLIT = "validation"
RESAMPLES = 10_000  # of every bootstrap
CONTROLS = {
    "bag_of_tokens": "linear model on TF-IDF counts of the words, fitted to the same training examples",
    "random_init": "same architecture, randomly initialised, under the same protocol with a sweep of its own",
}


def result_path(output_dir: str | os.PathLike, task: str, protocol: Protocol) -> Path:
    return Path(output_dir) / RESULT_FOLDER / f"{task}.{protocol.name}.json"


def predictions_path(output_dir: str | os.PathLike, task: str, protocol: Protocol) -> Path:
    path = result_path(output_dir, task, protocol)
    return path.parent / "predictions" / path.name


def cells_folder(output_dir: str | os.PathLike, task: str, protocol: Protocol) -> Path:
    """Where the finished pieces of a result and its model are: next to it, under its name without `.json`."""
    path = result_path(output_dir, task, protocol)
    return path.parent / path.stem


def finetune(
    checkpoint: str | os.PathLike,
    tasks: Sequence[str | Task],
    protocol: Protocol | str,
    output_dir: str | os.PathLike | None = None,
    *,
    revision: str | None = None,
    overwrite: bool = False,
    save_model: bool = False,
) -> list[FinetuneResult]:
    """`finetune_task` on each task in turn, after checking everything that needs no training.

    Returns:
        The results in the order of the tasks.
    """
    output_dir = results_folder(checkpoint, output_dir)
    protocol = Protocol.load(protocol) if isinstance(protocol, str) else protocol
    benchmarks = list({row.name: row for row in map(find_benchmark, tasks)}.values())
    for benchmark in benchmarks:
        _refuse_existing(output_dir, benchmark.name, protocol, overwrite)
    opened = Checkpoint.open(checkpoint, revision, FAMILIES)
    opened.check_pretrained()
    for benchmark in benchmarks:
        check_task(benchmark)
    results = []
    for i, benchmark in enumerate(benchmarks, start=1):
        say(f"[{i}/{len(benchmarks)}] {benchmark.name}, protocol {protocol.name}")
        results.append(
            finetune_task(opened, benchmark, protocol, output_dir, overwrite=overwrite, save_model=save_model)
        )
    return results


def check_task(benchmark: Task) -> None:
    """ValueError, as `load_benchmark` raises it or for too few training examples, before hours of training."""
    check_examples(benchmark, np.asarray(load_benchmark(benchmark)["train"]["label"]))


def finetune_task(
    checkpoint: str | os.PathLike,
    benchmark: Task,
    protocol: Protocol,
    output_dir: str | os.PathLike,
    *,
    revision: str | None = None,
    overwrite: bool = False,
    save_model: bool = False,
) -> FinetuneResult:
    """Fine-tune a checkpoint and its controls, score each seed once on the validation split, write the result.

    Learning rate, batch size and epoch are selected on a share of the training split, if the protocol selects any;
    then each seed trains on all of it. The random twin goes through the same. A killed call, made again, continues
    after the last finished piece.

    Args:
        checkpoint: folder or Hub id of a pretrained concept encoder, with its tokenizer.
        benchmark: the task.
        protocol: the hyper-parameters. The longest example is also bounded by the encoder's learned positions.
        output_dir: run folder. The result goes to `finetune/<task>.<protocol>.json` in it, the predictions to
            `finetune/predictions/<task>.<protocol>.json`, finished pieces to `finetune/<task>.<protocol>/`, the
            untrained twin to `random_init/`.
        revision: commit, branch or tag of a Hub id.
        overwrite: discard an existing result and its pieces first.
        save_model: keep the fine-tuned model of the first seed, as `finetune/<task>.<protocol>/model`.

    Returns:
        What was written: each score, a mean over seeds, with its interval, chance, controls and verdict; settings and
        sizes; the keys newly initialised and dropped on loading.

    Raises:
        FileExistsError: the result exists and `overwrite` is not set.
        ValueError: not a pretrained concept encoder, or weights or vocabulary that do not fit; several devices;
            predictions that are not finite; pieces or a twin of other settings; anything that `load_benchmark` raises.
    """
    _refuse_existing(output_dir, benchmark.name, protocol, overwrite)
    opened = Checkpoint.open(checkpoint, revision, FAMILIES)
    opened.check_pretrained()
    numbers = range(FOLDS) if benchmark.fold_column is not None else range(1)
    folds = [prepare_task(benchmark, protocol, opened.tokenizer, opened.config, fold) for fold in numbers]
    for fold in folds:
        check_examples(benchmark, np.asarray(fold.texts["train"]["label"]))
    scored = concatenate_datasets([fold.texts[SPLIT] for fold in folds])
    task = replace(folds[0], texts={"train": folds[0].texts["train"], SPLIT: scored})
    names = [f".fold={number}" for number in numbers] if len(folds) > 1 else [""]
    cells = cells_folder(output_dir, benchmark.name, protocol)
    result_file = result_path(output_dir, benchmark.name, protocol)
    if overwrite:
        result_file.unlink(missing_ok=True)
        shutil.rmtree(cells, ignore_errors=True)
    with progress(total=len(folds) * (2 * count_cells(protocol) + 1), unit="cell") as bar:
        store = Cells(cells, bar)

        def tuned(subject: str, source: Checkpoint, keep: bool = False) -> Tuned:
            found = [
                run_protocol(f"{subject}{name}", source, fold, store, keep and fold is folds[0])
                for name, fold in zip(names, folds, strict=True)
            ]
            return joined(benchmark, found, np.asarray(scored["label"]))

        own = tuned("run", opened, save_model)
        bags = [_bag_of_tokens_cell(fold, store, name) for name, fold in zip(names, folds, strict=True)]
        twin = tuned("random_init", random_twin(opened, output_dir))
    result, predictions = _result(task, own, [value for bag in bags for value in bag.predictions], twin)
    predictions.save(predictions_path(output_dir, benchmark.name, protocol))
    result.save(result_file)
    result.folder = Path(output_dir)
    return result


def at_chance(
    benchmark: Task,
    predictions: Sequence[Sequence[float]],
    labels: np.ndarray,
    units: Sequence[str] | None = None,
) -> dict[str, bool]:
    """Which scores cannot be told from those of a constant prediction, scored on the same examples.

    Args:
        benchmark: the task.
        predictions: (K, n) of K seeds.
        labels: (n,) gold labels.
        units: as in `bootstrap_intervals`.

    Returns:
        For accuracy and F1, whether the interval of the paired difference to the constant prediction that defines
        their chance level reaches 0. Correlations are judged by their own interval.
    """
    values, counts = np.unique(labels, return_counts=True)
    constant = {"accuracy": values[counts.argmax()], "f1": 1}
    found = {}
    for metric in (name for name in benchmark.metrics if name in constant):
        baseline = np.full(labels.shape, constant[metric])
        options: dict[str, Any] = {"units": units, "resamples": RESAMPLES}
        paired = paired_bootstrap(benchmark.scored_as, predictions, baseline, labels, **options)[metric]
        found[metric] = paired.interval is None or paired.interval[0] <= 0
    return found


def _result(task: PreparedTask, own: Tuned, bag: list[float], twin: Tuned) -> tuple[FinetuneResult, PredictionsResult]:
    """The result file and the predictions file."""
    benchmark, protocol, first = task.benchmark, task.protocol, own.runs[0]
    labels = np.asarray(task.texts[SPLIT]["label"])
    by_control = {
        "bag_of_tokens": [bag],
        "random_init": [run.predictions for run in twin.runs],
    }
    units = task.texts[SPLIT]["unit"][:] if benchmark.unit_column is not None else None
    settings = {name: getattr(protocol, name) for name in (COUNTED_WHEN_FROZEN if protocol.frozen else OVERRIDABLE)}
    result = FinetuneResult(
        task=benchmark.name,
        protocol=protocol.name,
        split=benchmark.validation_split if benchmark.fold_column is None else f"{FOLDS} folds",
        primary_metric=benchmark.primary_metric,
        greater_is_better=benchmark.greater_is_better,
        scores=_scores(benchmark, own, by_control, labels, units),
        chance_rule=benchmark.chance_rule,
        train_examples=task.texts["train"].num_rows,
        validation_examples=task.texts[SPLIT].num_rows,
        settings={name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()},
        selected=own.selected,
        scheduled_epochs=None if protocol.frozen else task.epochs,
        seeds=[run.seed for run in own.runs],
        max_length=task.max_length,
        steps=first.steps,
        padding_share=first.padding_share,
        seconds=round(sum(run.seconds for run in own.runs), 3),
        dataset={
            "id": recorded_source(benchmark.dataset_id),
            "config": benchmark.config,
            "licence": benchmark.licence,
        },
        head=first.head,
        newly_initialized=first.newly_initialized,
        dropped=first.dropped,
        environment=Environment.of(first.device),
        controls={
            "bag_of_tokens": ControlFacts(description=CONTROLS["bag_of_tokens"], selected=None, sweep=[]),
            "random_init": ControlFacts(description=CONTROLS["random_init"], selected=twin.selected, sweep=twin.sweep),
        },
        sweep=own.sweep,
        published=published_scores(benchmark.name) if benchmark.like is None else [],
        log_history=first.log_history,
    )
    predictions = PredictionsResult(
        references=labels.tolist(),
        run={str(run.seed): run.predictions for run in own.runs},
        bag_of_tokens=bag,
        random_init={str(run.seed): run.predictions for run in twin.runs},
    )
    return result, predictions


def _scores(
    benchmark: Task,
    own: Tuned,
    by_control: dict[str, list[list[float]]],
    labels: np.ndarray,
    units: Sequence[str] | None,
) -> dict[str, TaskScore]:
    """Every metric of the run, against chance and controls."""
    name, predictions = benchmark.scored_as, [run.predictions for run in own.runs]
    means = mean_scores(name, predictions, labels)
    options: dict[str, Any] = {"units": units, "resamples": RESAMPLES}
    intervals = bootstrap_intervals(name, predictions, labels, **options)
    chance, _ = chance_level(benchmark, labels)
    flags = at_chance(benchmark, predictions, labels, units)
    beside = {
        control: control_scores(name, predictions, others, labels, **options) for control, others in by_control.items()
    }
    return {
        metric: judge(
            metric,
            means[metric],
            chance[metric],
            interval=intervals[metric],
            at_chance=flags.get(metric),
            controls={control: scores[metric] for control, scores in beside.items()},
            per_seed=[run.metrics[metric] for run in own.runs],
        )
        for metric in benchmark.metrics
    }


def _bag_of_tokens_cell(task: PreparedTask, store: Cells, name: str) -> BagCell:
    def compute(settings: dict[str, Any]) -> BagCell:
        predictions = bag_of_tokens(task.benchmark, task.texts["train"], task.texts[SPLIT])
        scores = benchmark_score(task.benchmark.scored_as, predictions, task.texts[SPLIT]["label"][:])
        return BagCell(settings=settings, metrics=scores, predictions=predictions.tolist())

    return store.get(f"bag_of_tokens{name}", BagCell, {"task": task.benchmark.name, "data": task.digest}, compute)


def _refuse_existing(output_dir: str | os.PathLike, task: str, protocol: Protocol, overwrite: bool) -> None:
    path = result_path(output_dir, task, protocol)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; give --overwrite to replace it, or another protocol or seeds")
