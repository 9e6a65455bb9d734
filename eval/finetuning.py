"""Fine-tuning of a checkpoint on a benchmark, under a named protocol, into one JSON file of scores."""

import dataclasses
import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import DatasetDict
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from .. import modeling_concept
from ..configuration_concept import ConceptEncoderConfig
from ..trainers.files import write_json
from .benchmark_score import benchmark_score
from .benchmarks import Benchmark, chance_level, find_benchmark, load_benchmark

RESULT_FOLDER = "finetune"
PRETRAINING_PREFIXES = ("decoder.", "lm_head.")  # weights of the pretraining head, dropped here
CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a checkpoint is fine-tuned: everything but the checkpoint and the task."""

    name: str
    """written in the result and its file name"""
    learning_rate: float
    """peak of the schedule, AdamW"""
    batch_size: int
    """examples per optimizer step"""
    epochs: int
    """passes over the training split, for tasks that `epochs_by_task` does not name"""
    epochs_by_task: Mapping[str, int] = field(default_factory=dict)
    """passes over the training split, by task"""
    max_length: int
    """tokens per example, special tokens included; longer ones are truncated"""
    weight_decay: float
    warmup_steps: float
    """steps of linear warm-up; below 1: share of all steps"""
    lr_scheduler_type: str
    max_grad_norm: float
    seed: int
    """of the new head, dropout and the order of examples"""
    bf16: bool
    """automatic mixed precision"""

    def __post_init__(self):
        for name in ("learning_rate", "batch_size", "epochs", "max_length", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("weight_decay", "warmup_steps", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        schedules = [schedule.value for schedule in transformers.SchedulerType]
        if self.lr_scheduler_type not in schedules:
            raise ValueError(
                f"lr_scheduler_type must be one of {', '.join(schedules)}, got {self.lr_scheduler_type!r}"
            )

    def epochs_for(self, task: str) -> int:
        return self.epochs_by_task.get(task, self.epochs)

    def override(self, **changes: Any) -> "Protocol":
        """This protocol with other values, which become part of its name: its results are not the protocol's own."""
        if not changes:
            return self
        unknown = [name for name in changes if name not in OVERRIDABLE]
        if unknown:
            raise ValueError(f"Unknown protocol field {unknown[0]!r}. Available: {', '.join(OVERRIDABLE)}")
        if "epochs" in changes:
            changes = {**changes, "epochs_by_task": {}}
        name = "+".join([self.name, *(f"{key}={changes[key]}" for key in OVERRIDABLE if key in changes)])
        return dataclasses.replace(self, name=name, **changes)


OVERRIDABLE = tuple(f.name for f in dataclasses.fields(Protocol) if f.name not in ("name", "epochs_by_task"))

# Learning rate, batch size and the epochs of five tasks as published with the reference run; the other fields are
# those of its public evaluation script, which also ran in bf16 and kept the best epoch on validation: not done here.
_REFERENCE_EPOCHS = {
    **dict.fromkeys(("mrpc", "stsb", "cola", "rte", "wnli"), 20),
    **dict.fromkeys(("sick_relatedness", "sick_entailment"), 10),
    **dict.fromkeys(("paws", "sst2"), 5),
    **dict.fromkeys(("qnli", "qqp", "mnli_matched", "mnli_mismatched"), 3),
}
PROTOCOLS: dict[str, Protocol] = {
    "reference": Protocol(
        name="reference",
        learning_rate=1e-5,
        batch_size=96,
        epochs=10,
        epochs_by_task=_REFERENCE_EPOCHS,
        max_length=128,
        weight_decay=0.01,
        warmup_steps=100,
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        seed=42,
        bf16=False,
    ),
    "quick": Protocol(
        name="quick",
        learning_rate=1e-3,
        batch_size=64,
        epochs=3,
        max_length=128,
        weight_decay=0.01,
        warmup_steps=0.1,
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        seed=42,
        bf16=False,
    ),
}


def find_protocol(name: str) -> Protocol:
    """Protocol by name; ValueError that lists them all for an unknown one."""
    if name not in PROTOCOLS:
        raise ValueError(f"Unknown protocol {name!r}. Available: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def result_path(output_dir: str | os.PathLike, task: str, protocol: Protocol) -> Path:
    return Path(output_dir) / RESULT_FOLDER / f"{task}.{protocol.name}.json"


def finetune_tasks(
    checkpoint: str,
    tasks: Sequence[str],
    protocol: Protocol,
    output_dir: str | os.PathLike,
    *,
    overwrite: bool = False,
    save_model: bool = False,
) -> list[dict[str, Any]]:
    """`finetune` on each task in turn, after checking everything that needs no training. Results in the same order."""
    benchmarks = [find_benchmark(task) for task in dict.fromkeys(tasks)]
    for benchmark in benchmarks:
        _refuse_existing(output_dir, benchmark.name, protocol, overwrite)
    _check_checkpoint(_checkpoint_folder(checkpoint))
    results = []
    for i, benchmark in enumerate(benchmarks, start=1):
        print(f"[{i}/{len(benchmarks)}] {benchmark.name}, protocol {protocol.name}", flush=True)
        options = {"overwrite": overwrite, "save_model": save_model}
        results.append(finetune(checkpoint, benchmark, protocol, output_dir, **options))
    return results


def finetune(
    checkpoint: str,
    benchmark: Benchmark,
    protocol: Protocol,
    output_dir: str | os.PathLike,
    *,
    overwrite: bool = False,
    save_model: bool = False,
) -> dict[str, Any]:
    """Train encoder and a new head on the training split, score them once on the validation split, write the result.

    Args:
        checkpoint: folder or Hub id of a pretrained concept encoder, with its tokenizer.
        benchmark: the task.
        protocol: the hyper-parameters. The longest example is also bounded by the encoder's learned positions.
        output_dir: run folder; the result goes to `finetune/<task>.<protocol>.json` in it.
        overwrite: replace an existing result (and model).
        save_model: keep the fine-tuned model, in a folder beside the result.

    Returns:
        What was written: `metrics` beside `chance` (fractions and correlations), settings, sizes, seconds, the keys
        newly initialised and dropped on loading, and the training log.

    Raises:
        FileExistsError: the result exists and `overwrite` is not set.
        ValueError: not a pretrained concept encoder, or weights or vocabulary that do not fit; several devices;
            predictions that are not finite; whatever `load_benchmark` raises.
    """
    _refuse_existing(output_dir, benchmark.name, protocol, overwrite)
    folder = _checkpoint_folder(checkpoint)
    config = _check_checkpoint(folder)
    tokenizer = _load_tokenizer(folder, config)
    max_length = protocol.max_length
    if config.position_embedding_type == "learned":
        max_length = min(max_length, config.max_position_embeddings)
    data = load_benchmark(benchmark)
    set_seed(protocol.seed)  # before the head is drawn
    model, keys = load_classifier(folder, benchmark)

    start = time.monotonic()
    trainer, predictions = _train_and_predict(model, tokenizer, data, benchmark, protocol, max_length)
    seconds = time.monotonic() - start

    labels = np.asarray(data["validation"]["label"])
    chance, chance_rule = chance_level(benchmark, labels)
    result = {
        "kind": "finetune",
        "task": benchmark.name,
        "protocol": protocol.name,
        "split": "validation",
        "metrics": benchmark_score(benchmark.name, predictions, labels),
        "primary_metric": benchmark.primary_metric,
        "greater_is_better": benchmark.greater_is_better,
        "chance": chance,
        "chance_rule": chance_rule,
        "train_examples": data["train"].num_rows,
        "validation_examples": data["validation"].num_rows,
        **{name: getattr(protocol, name) for name in OVERRIDABLE},
        "epochs": protocol.epochs_for(benchmark.name),
        "max_length": max_length,
        "steps": trainer.state.global_step,
        "seconds": round(seconds, 3),
        "dataset": {"id": benchmark.dataset_id, "config": benchmark.config, "licence": benchmark.licence},
        "head": type(model).__name__,
        **keys,
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": trainer.args.device.type,
        },
        "log_history": _without_nan(trainer.state.log_history),
    }
    _write(result, result_path(output_dir, benchmark.name, protocol), trainer if save_model else None)
    return result


def load_classifier(folder: Path, benchmark: Benchmark) -> tuple[PreTrainedModel, dict[str, list[str]]]:
    """The benchmark's head on the encoder of a pretraining checkpoint, in float32.

    Args:
        folder: checkpoint folder.
        benchmark: gives head, number of labels and problem type.

    Returns:
        The model, and `newly_initialized` (the head's own keys, all of them) and `dropped` (the pretraining head's).

    Raises:
        ValueError: an encoder weight is missing from the checkpoint, or the checkpoint holds weights that are neither
            the encoder's nor the pretraining head's; the keys are named.
    """
    _check_checkpoint(folder)
    head = getattr(modeling_concept, benchmark.head)
    model, info = head.from_pretrained(
        folder,
        num_labels=benchmark.num_labels,
        problem_type=benchmark.problem_type,
        dtype=torch.float32,
        output_loading_info=True,
    )
    prefix = f"{model.base_model_prefix}."
    known = set(model.state_dict())
    # A bare encoder is saved without the prefix of its attribute in a head.
    dropped = sorted(key for key in _weight_names(folder) if key not in known and prefix + key not in known)
    new = sorted(key for key in known if not key.startswith(prefix))
    missing = sorted(set(info["missing_keys"]) - set(new))
    unexpected = [key for key in dropped if not key.startswith(PRETRAINING_PREFIXES)]
    if missing:
        raise ValueError(f"{folder} lacks weights of the encoder: {', '.join(missing)}")
    if unexpected:
        raise ValueError(f"{folder} holds weights of neither encoder nor pretraining head: {', '.join(unexpected)}")
    return model, {"newly_initialized": new, "dropped": dropped}


def _refuse_existing(output_dir: str | os.PathLike, task: str, protocol: Protocol, overwrite: bool) -> None:
    path = result_path(output_dir, task, protocol)
    for existing in (path, _model_folder(path)):
        if existing.exists() and not overwrite:
            raise FileExistsError(f"{existing} exists; give --overwrite to replace it, or another protocol or seed")


def _model_folder(path: Path) -> Path:
    """Where the fine-tuned model of a result lies: beside it, under its name without `.json`."""
    return path.parent / path.stem


def _checkpoint_folder(checkpoint: str) -> Path:
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    if checkpoint.count("/") != 1 or checkpoint.startswith((".", "/", "~")):
        raise FileNotFoundError(f"No checkpoint folder {checkpoint}")
    return Path(snapshot_download(checkpoint, allow_patterns=list(CHECKPOINT_FILES)))


def _check_checkpoint(folder: Path) -> ConceptEncoderConfig:
    """Its configuration, if it is a concept encoder's with weights and without a classification head."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a checkpoint: it has no config.json")
    model_type = PreTrainedConfig.get_config_dict(folder)[0].get("model_type")
    if model_type != ConceptEncoderConfig.model_type:
        raise ValueError(
            f"{folder} holds a model of type {model_type!r}; only type {ConceptEncoderConfig.model_type!r} can be "
            "fine-tuned here"
        )
    names = _weight_names(folder)
    if not names:
        raise ValueError(f"{folder} is not a checkpoint: it has no .safetensors weights")
    trained = sorted(name for name in names if name.startswith(("pooling.", "classifier.")))
    if trained:
        raise ValueError(
            f"{folder} is already fine-tuned: it holds {', '.join(trained)}. Give the checkpoint it was made from"
        )
    return ConceptEncoderConfig.from_pretrained(folder)


def _weight_names(folder: Path) -> set[str]:
    names: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            names.update(weights.keys())
    return names


def _load_tokenizer(folder: Path, config: ConceptEncoderConfig) -> PreTrainedTokenizerBase:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise ValueError(f"{folder} has no tokenizer; save the one it was pretrained with there (save_pretrained)")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        raise ValueError(f"The tokenizer of {folder} has no padding token; set pad_token and save it again")
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"The tokenizer of {folder} has {len(tokenizer)} tokens, the model only {config.vocab_size}; "
            "give the tokenizer that it was pretrained with"
        )
    return tokenizer


def _train_and_predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: DatasetDict,
    benchmark: Benchmark,
    protocol: Protocol,
    max_length: int,
) -> tuple[Trainer, np.ndarray]:
    """The trained Trainer and its (n,) validation predictions: class ids, or values for regression."""

    def encode(batch: Mapping[str, list]) -> Mapping[str, list]:
        texts = [batch[name] for name in ("sentence1", "sentence2") if name in batch]
        return tokenizer(*texts, truncation=True, max_length=max_length, return_token_type_ids=False)

    sentences = [name for name in data["train"].column_names if name != "label"]
    encoded = data.map(encode, batched=True, remove_columns=sentences, desc=f"Tokenising {benchmark.name}")
    with tempfile.TemporaryDirectory(prefix="finetune-") as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=protocol.batch_size,
            per_device_eval_batch_size=protocol.batch_size,
            num_train_epochs=protocol.epochs_for(benchmark.name),
            learning_rate=protocol.learning_rate,
            weight_decay=protocol.weight_decay,
            warmup_steps=protocol.warmup_steps,
            lr_scheduler_type=protocol.lr_scheduler_type,
            max_grad_norm=protocol.max_grad_norm,
            seed=protocol.seed,
            bf16=protocol.bf16,
            logging_steps=0.05,  # share of all steps
            save_strategy="no",
            dataloader_pin_memory=torch.cuda.is_available(),
            report_to="none",
        )
        if arguments.train_batch_size * arguments.world_size != protocol.batch_size:
            raise ValueError(
                f"Fine-tuning uses one device, and sees {max(arguments.n_gpu, arguments.world_size)}: batches would "
                f"be larger than batch_size ({protocol.batch_size}); set CUDA_VISIBLE_DEVICES to one of them"
            )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=encoded["train"],
            data_collator=DataCollatorWithPadding(tokenizer),
            processing_class=tokenizer,
        )
        trainer.train()
        logits = trainer.predict(encoded["validation"]).predictions  # (n, num_labels)
    if not np.isfinite(logits).all():
        raise ValueError(f"Training on {benchmark.name} diverged: predictions are not finite; lower learning_rate")
    return trainer, logits[:, 0] if benchmark.problem_type == "regression" else logits.argmax(axis=-1)


def _without_nan(value: Any) -> Any:
    """`value` with every number that strict JSON cannot hold replaced by None."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(result: dict[str, Any], path: Path, trainer: Trainer | None) -> None:
    """Result, and before it the model if a trainer is given: complete under their names, or not there at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if trainer is not None:
        with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as scratch:
            trainer.save_model(f"{scratch}/model")
            shutil.rmtree(_model_folder(path), ignore_errors=True)
            os.replace(f"{scratch}/model", _model_folder(path))
    write_json(path, result)
