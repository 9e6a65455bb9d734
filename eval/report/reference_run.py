"""The reference run as a run folder, so that its own figures can be put before the gates and into a report."""

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

from ...utils.results import (
    DataFacts,
    Environment,
    Evaluation,
    FinetuneResult,
    GeometryResult,
    ModelFacts,
    Parameters,
    PretrainResult,
    Result,
    Setting,
    TrainingFacts,
    facts,
)
from ..concepts.geometry import BY_CONSTRUCTION, grade
from ..metrics.chance import judge
from .findings import read_reference
from .report import PARTS


def write_reference_run(output_dir: str | Path) -> None:
    """Write the figures reported for the reference run as pretrain.json, geometry.json and finetune/*.json.

    Only what was reported is written: no logs, no spectrum, no ledger.

    Args:
        output_dir: folder to fill; made if it does not exist.

    Raises:
        ValueError: the folder holds results of another run.
    """
    folder = Path(output_dir)
    reference = read_reference()
    run = reference["runs"][0]
    files: dict[str, Result] = {"pretrain.json": _pretrain(run), "geometry.json": _geometry(run)}
    for task, metrics in run["downstream"].items():
        files[f"finetune/{task}.reference.json"] = _finetune(task, metrics, reference["fine_tuning"][task])
    for path in (path for part in PARTS.values() for path in folder.glob(part.pattern)):
        name = path.relative_to(folder).as_posix()
        if name not in files or type(files[name]).load(path) != files[name]:
            raise ValueError(
                f"{str(output_dir)!r} holds another run's {name}; give a new folder for the reference run"
            )
    for name, result in files.items():
        result.save(folder / name)


def _pretrain(run: dict[str, Any]) -> PretrainResult:
    training = run["training"]
    named = {each.name: training.get(each.name) for each in fields(TrainingFacts)}
    batch = ("per_device_train_batch_size", "gradient_accumulation_steps", "world_size")
    named["texts_per_step"] = math.prod(training[name] for name in batch)
    return PretrainResult(
        recipe=run["id"],
        model=facts(ModelFacts, run["model"]),
        data=facts(DataFacts, {name: training[name] for name in ("dataset_name", "tokenizer_name", "max_length")}),
        objective={name: training[name] for name in ("t_min", "t_max", "label_smoothing")},
        training=TrainingFacts(**named),
        parameters=Parameters(total=None, encoder=None, trainable=None),
        steps=39_000,
        epochs=training["num_train_epochs"],
        train_seconds=None,
        tokens_seen=None,
        data_wait_share=None,
        train_loss=tuple(training["train_loss"]),
        eval_loss=tuple(training["eval_loss"]),
        **{name: training[name] for name in ("steps_per_second", "grad_norm_peak", "grad_norm_final")},
        log_history=[],
        evaluation=Evaluation(nelbo_bits_per_token=None, rebuilding=None, by_timestep=[]),
        environment=Environment(**dict.fromkeys(each.name for each in fields(Environment))),
    )


def _geometry(run: dict[str, Any]) -> GeometryResult:
    num_concepts, hidden_size = run["model"]["num_concepts"], run["model"]["hidden_size"]
    return GeometryResult(
        checkpoint=None,
        corpus=facts(DataFacts, {"dataset_name": run["training"]["dataset_name"]}),
        num_samples=run["geometry_samples"],
        batch_size=None,
        num_batches=None,
        num_concepts=num_concepts,
        hidden_size=hidden_size,
        metrics=run["geometry"],
        grades=grade(run["geometry"], num_concepts, hidden_size),
        by_construction=list(BY_CONSTRUCTION),
        singular_values=run["singular_values"],
        dimension_std=[],
        similarity_matrix=[],
        spectrum=None,
    )


def _finetune(task: str, metrics: dict[str, float], told: dict[str, Any]) -> FinetuneResult:
    examples, chance = told["validation_examples"], told["chance"]
    unknown = ("train_examples", "scheduled_epochs", "max_length", "steps", "padding_share", "seconds", "head")
    return FinetuneResult(
        task=task,
        protocol="reference",
        split="validation",
        primary_metric=next(iter(metrics)),
        greater_is_better=True,
        scores={name: judge(name, value, chance.get(name), examples=examples) for name, value in metrics.items()},
        chance_rule=told["chance_rule"],
        validation_examples=examples,
        settings={},
        selected=Setting(**{name: told[name] for name in ("epochs", "learning_rate", "batch_size")}),
        seeds=[],
        dataset={},
        newly_initialized=[],
        dropped=[],
        environment=None,
        controls={},
        sweep=[],
        published=[],
        log_history=[],
        **dict.fromkeys(unknown),
    )
