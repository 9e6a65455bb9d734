"""Fine-tuning of a checkpoint on benchmarks under a named protocol: one JSON file of scores beside their controls."""

import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from ...utils.command_line import say
from ...utils.files import recorded_source, write_json
from ...utils.progress import progress
from ..loading.checkpoints import FAMILIES, Checkpoint, random_twin, results_folder
from ..metrics.benchmark_score import benchmark_score
from ..metrics.intervals import bootstrap_intervals, mean_scores, paired_bootstrap
from .baselines import bag_of_tokens, check_examples, published_scores
from .protocols import OVERRIDABLE, Protocol
from .registry import CHANCE_RULES, Task, chance_level, find_benchmark
from .tuning import Cells, PreparedTask, count_cells, prepare_task, run_protocol

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
    """Where the finished pieces of a result lie, and its model: beside it, under its name without `.json`."""
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
) -> list[dict[str, Any]]:
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
    results = []
    for i, benchmark in enumerate(benchmarks, start=1):
        say(f"[{i}/{len(benchmarks)}] {benchmark.name}, protocol {protocol.name}")
        results.append(
            finetune_task(opened, benchmark, protocol, output_dir, overwrite=overwrite, save_model=save_model)
        )
    return results


def finetune_task(
    checkpoint: str | os.PathLike,
    benchmark: Task,
    protocol: Protocol,
    output_dir: str | os.PathLike,
    *,
    revision: str | None = None,
    overwrite: bool = False,
    save_model: bool = False,
) -> dict[str, Any]:
    """Fine-tune a checkpoint and its controls, score each seed once on the validation split, write the result.

    Learning rate, batch size and epoch are selected on a share of the training split, if the protocol selects any;
    then each seed trains on all of it. The random twin goes through the same. A killed call, made again, goes on after
    the last finished piece.

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
        What was written: `metrics` (mean over seeds; fractions and correlations) and their `intervals` beside
        `chance`, `controls` with paired tests, `published` scores and the verdict `at_chance`; settings, sizes,
        seconds, the padding share of training, the keys newly initialised and dropped on loading, and the training log
        of the first seed.

    Raises:
        FileExistsError: the result exists and `overwrite` is not set.
        ValueError: not a pretrained concept encoder, or weights or vocabulary that do not fit; several devices;
            predictions that are not finite; pieces or a twin of other settings; whatever `load_benchmark` raises.
    """
    _refuse_existing(output_dir, benchmark.name, protocol, overwrite)
    opened = Checkpoint.open(checkpoint, revision, FAMILIES)
    opened.check_pretrained()
    task = prepare_task(benchmark, protocol, opened.tokenizer, opened.config)
    check_examples(benchmark, np.asarray(task.texts["train"]["label"]))  # before hours of training
    cells = cells_folder(output_dir, benchmark.name, protocol)
    result_file = result_path(output_dir, benchmark.name, protocol)
    if overwrite:
        result_file.unlink(missing_ok=True)
        shutil.rmtree(cells, ignore_errors=True)
    with progress(total=2 * count_cells(protocol) + 1, unit="cell") as bar:
        store = Cells(cells, bar)
        own = run_protocol("run", opened, task, store, save_model)
        bag = _bag_of_tokens_cell(task, store)
        twin = run_protocol("random_init", random_twin(opened, output_dir), task, store)
    result, predictions = _result(task, own, bag, twin)
    write_json(predictions_path(output_dir, benchmark.name, protocol), predictions)
    write_json(result_file, result)
    return result


def at_chance(
    benchmark: Task,
    predictions: Sequence[Sequence[float]],
    labels: np.ndarray,
    intervals: dict[str, list[float] | None],
) -> tuple[dict[str, bool], str]:
    """Which scores cannot be told from chance, and the same in words.

    Args:
        benchmark: the task.
        predictions: (K, n) of K seeds.
        labels: (n,) gold labels.
        intervals: of the scores, as from `bootstrap_intervals`.

    Returns:
        Per metric, whether the score is not above chance. Accuracy and F1 are paired, example by example, with the
        constant prediction that defines their chance level: at chance where the interval of the difference reaches 0.
        Correlations: where their own interval reaches 0. An undefined score is at chance. The words name the chance
        level and, where the score is significantly below it, say so.
    """
    values, counts = np.unique(labels, return_counts=True)
    constant = {"accuracy": values[counts.argmax()], "f1": 1}
    chance, _ = chance_level(benchmark, labels)
    scores = mean_scores(benchmark.scored_as, predictions, labels)
    above: dict[str, bool] = {}
    words = []
    for metric in benchmark.metrics:
        interval = intervals[metric]
        if metric in constant:
            baseline = np.full(labels.shape, constant[metric])
            paired = paired_bootstrap(benchmark.scored_as, predictions, baseline, labels, resamples=RESAMPLES)[metric]
            difference = paired["interval"]
            low, high = difference if isinstance(difference, list) else (None, None)
        else:
            low, high = interval if interval is not None else (None, None)
        above[metric] = low is not None and low > 0
        level = f"chance ({chance[metric]:.3f}, {CHANCE_RULES[metric]})"
        if scores[metric] is None or low is None or high is None:
            words.append(f"{metric} is undefined: not above {level}")
        elif low > 0:
            words.append(f"{metric} {scores[metric]:.3f} is above {level}")
        elif high < 0:
            words.append(f"{metric} {scores[metric]:.3f} is below {level}")
        else:
            words.append(f"{metric} {scores[metric]:.3f} cannot be told from {level}")
    return {metric: not value for metric, value in above.items()}, "; ".join(words)


def _result(
    task: PreparedTask, own: dict[str, Any], bag: dict[str, Any], twin: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The result file and the predictions file."""
    labels = np.asarray(task.texts[SPLIT]["label"])
    predictions = {
        "run": [run["predictions"] for run in own["runs"]],
        "bag_of_tokens": [bag["predictions"]],
        "random_init": [run["predictions"] for run in twin["runs"]],
    }
    result = {**_description(task, own), **_judgement(task.benchmark, predictions, labels)}
    twin_selection = {"selected": twin["selected"]}
    if task.protocol.selection_size:
        result["sweep"] = own["sweep"]
        twin_selection["sweep"] = twin["sweep"]
    result["controls"]["random_init"] |= twin_selection
    result["log_history"] = own["runs"][0]["log_history"]
    by_seed = {str(run["seed"]): run["predictions"] for run in own["runs"]}
    twin_by_seed = {str(run["seed"]): run["predictions"] for run in twin["runs"]}
    controls = {"bag_of_tokens": bag["predictions"], "random_init": twin_by_seed}
    return result, {"references": labels.tolist(), "predictions": by_seed, "controls": controls}


def _description(task: PreparedTask, own: dict[str, Any]) -> dict[str, Any]:
    """What was trained, how, on what."""
    benchmark, protocol, first = task.benchmark, task.protocol, own["runs"][0]
    settings = {name: getattr(protocol, name) for name in OVERRIDABLE}
    return {
        "kind": "finetune",
        "task": benchmark.name,
        "protocol": protocol.name,
        "split": SPLIT,
        "primary_metric": benchmark.primary_metric,
        "greater_is_better": benchmark.greater_is_better,
        "train_examples": task.encoded["train"].num_rows,
        "validation_examples": task.encoded[SPLIT].num_rows,
        **{name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()},
        **own["selected"],
        "selected": own["selected"],
        "scheduled_epochs": task.epochs,
        "seed": protocol.seeds[0],
        "max_length": task.max_length,
        "steps": first["steps"],
        "padding_share": first["padding_share"],
        "seconds": round(sum(run["seconds"] for run in own["runs"]), 3),
        "dataset": {
            "id": recorded_source(benchmark.dataset_id),
            "config": benchmark.config,
            "licence": benchmark.licence,
        },
        **{name: first[name] for name in ("head", "newly_initialized", "dropped")},
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": first["device"],
        },
        "per_seed": [{name: run[name] for name in ("seed", "metrics")} for run in own["runs"]],
    }


def _judgement(benchmark: Task, predictions: dict[str, list[list[float]]], labels: np.ndarray) -> dict[str, Any]:
    """Scores of the run beside chance, controls and published lines."""
    name, own = benchmark.scored_as, predictions["run"]
    chance, chance_rule = chance_level(benchmark, labels)
    intervals = bootstrap_intervals(name, own, labels, resamples=RESAMPLES)
    flags, words = at_chance(benchmark, own, labels, intervals)
    controls: dict[str, dict[str, Any]] = {}
    for control, description in CONTROLS.items():
        others = predictions[control]
        controls[control] = {
            "description": description,
            "metrics": mean_scores(name, others, labels),
            "intervals": bootstrap_intervals(name, others, labels, resamples=RESAMPLES),
            "paired": paired_bootstrap(name, own, others, labels, resamples=RESAMPLES),
        }
    return {
        "metrics": mean_scores(name, own, labels),
        "intervals": intervals,
        "chance": chance,
        "chance_rule": chance_rule,
        "at_chance": flags,
        "at_chance_words": words,
        "controls": controls,
        "published": published_scores(benchmark.name) if benchmark.like is None else [],
    }


def _bag_of_tokens_cell(task: PreparedTask, store: Cells) -> dict[str, Any]:
    def compute() -> dict[str, Any]:
        predictions = bag_of_tokens(task.benchmark, task.texts["train"], task.texts[SPLIT])
        scores = benchmark_score(task.benchmark.scored_as, predictions, task.texts[SPLIT]["label"][:])
        return {"metrics": scores, "predictions": predictions.tolist()}

    return store.get("bag_of_tokens", {"task": task.benchmark.name, "data": task.digest}, compute)


def _refuse_existing(output_dir: str | os.PathLike, task: str, protocol: Protocol, overwrite: bool) -> None:
    path = result_path(output_dir, task, protocol)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; give --overwrite to replace it, or another protocol or seeds")
