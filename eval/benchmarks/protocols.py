"""Named fine-tuning protocols: everything of a fine-tuning run but the checkpoint and the task, as data."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from transformers import SchedulerType

from ...utils.fields import annotations, typed, words_to_fields

COUNTED_WHEN_FROZEN = ("max_train_examples", "max_length")
Comparison = Literal["cross_encoder", "bi_encoder"]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a checkpoint is fine-tuned: a grid of settings, how one is selected, and the seeds that are then scored."""

    name: str
    """written in the result and its file name"""
    learning_rates: tuple[float, ...]
    """peaks of the schedule, AdamW, to select from"""
    batch_sizes: tuple[int, ...]
    """examples per optimizer step, to select from"""
    epochs: int
    """passes over the training split at most, which the schedule spans; for tasks not in `epochs_by_task`"""
    epochs_by_task: Mapping[str, int] = field(default_factory=dict)
    """passes over the training split at most, by task"""
    selection_size: float
    """share of the training split to select learning rate, batch size and epoch on; 0: nothing is selected"""
    patience: int
    """epochs without a better score on that share after which a setting is given up"""
    seeds: tuple[int, ...]
    """of the new head, dropout and the order of examples; one training run each, the first is also the sweep's"""
    max_train_examples: int | None = None
    """training examples used, drawn at random; None: all"""
    max_length: int
    """tokens per example, special tokens included; longer ones are truncated"""
    weight_decay: float
    warmup_steps: float
    """steps of linear warm-up; below 1: share of all steps"""
    lr_scheduler_type: str
    max_grad_norm: float
    bf16: bool
    """automatic mixed precision"""
    frozen: bool = False
    """nothing of the encoder is trained: a linear model of its pooled outputs, whose regularisation is the one that
    cross-validates best on the training split; of all the fields only `COUNTED_WHEN_FROZEN` count"""
    comparison: Comparison = "cross_encoder"
    """how the sentences of a pair meet. cross_encoder: as one text, `A [SEP] B`; bi_encoder: each is encoded alone, a
    regression is fitted by the cosine of the two and classes by a linear layer on `[a; b; |a - b|; a * b]`"""

    def __post_init__(self):
        for name in ("learning_rates", "batch_sizes", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must hold at least one value and none twice, got {_listed(values)}")
        for name in ("epochs", "patience", "max_length", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("learning_rates", "batch_sizes"):
            if not min(getattr(self, name)) > 0:
                raise ValueError(f"{name} must be positive, got {_listed(getattr(self, name))}")
        for name in ("weight_decay", "warmup_steps"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if min(self.seeds) < 0:
            raise ValueError(f"seeds must not be negative, got {_listed(self.seeds)}")
        if self.max_train_examples is not None and self.max_train_examples < 2:
            raise ValueError(f"max_train_examples must be at least 2, got {self.max_train_examples}")
        if self.comparison not in get_args(Comparison):
            raise ValueError(f"comparison must be one of {', '.join(get_args(Comparison))}, got {self.comparison!r}")
        schedules = [schedule.value for schedule in SchedulerType]
        if self.lr_scheduler_type not in schedules:
            raise ValueError(
                f"lr_scheduler_type must be one of {', '.join(schedules)}, got {self.lr_scheduler_type!r}"
            )
        if not 0 <= self.selection_size < 1:
            raise ValueError(f"selection_size must be in [0, 1), got {self.selection_size}")
        if self.selection_size == 0 and len(self.grid) > 1:
            raise ValueError(
                f"{len(self.grid)} settings (learning_rates {_listed(self.learning_rates)}; batch_sizes "
                f"{_listed(self.batch_sizes)}) need a share of the training split to select on, and selection_size "
                "is 0; give one setting, or a selection_size such as 0.1"
            )

    @classmethod
    def load(cls, name: str, **fields: Any) -> "Protocol":
        """A protocol by its name in `PROTOCOLS`, or by the name that a result of an overridden one bears.

        `fields` take the place of its own; ValueError that lists them for an unknown one, and as `override`.
        """
        own, *changes = re.split(r"\+(?=\w+=)", name)
        if own not in PROTOCOLS:
            raise ValueError(f"Unknown protocol {own!r}. Available: {', '.join(PROTOCOLS)}")
        written = {field: _read(field, text) for field, _, text in (change.partition("=") for change in changes)}
        try:
            protocol = PROTOCOLS[own].override(**written)
        except ValueError as error:
            raise ValueError(f"protocol {name!r}: {error}") from None
        return protocol.override(**fields)

    @property
    def grid(self) -> list[tuple[float, int]]:
        """Every (learning rate, batch size) to select from."""
        return [(rate, size) for size in self.batch_sizes for rate in self.learning_rates]

    def epochs_for(self, task: str) -> int:
        return self.epochs_by_task.get(task, self.epochs)

    def override(self, **changes: Any) -> "Protocol":
        """This protocol with other values, which become part of its name: its results are not the protocol's own.

        The name says each field once, whether it was changed in one call or in several.
        """
        if not changes:
            return self
        unknown = [name for name in changes if name not in OVERRIDABLE]
        if unknown:
            raise ValueError(f"Unknown protocol field {unknown[0]!r}. Available: {', '.join(OVERRIDABLE)}")
        ignored = [name for name in changes if self.frozen and name not in COUNTED_WHEN_FROZEN]
        if ignored:
            raise ValueError(f"{ignored[0]} would be ignored: protocol {self.name} trains nothing but a linear model")
        changes = {name: typed(name, value, _ANNOTATIONS[name]) for name, value in changes.items()}
        own, *before = re.split(r"\+(?=\w+=)", self.name)
        said = {part.partition("=")[0]: part for part in before}
        said |= {key: f"{key}={_listed(value)}" for key, value in changes.items()}
        name = "+".join([own, *(said[key] for key in OVERRIDABLE if key in said)])
        if "epochs" in changes:
            changes = {**changes, "epochs_by_task": {}}
        return dataclasses.replace(self, name=name, **changes)


def _listed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _read(field: str, text: str) -> Any:
    """The inverse of `_listed`."""
    kind = _ANNOTATIONS.get(field)
    if kind is not None and get_origin(kind) is tuple:
        return tuple(text.split(","))
    return None if text == "None" else text


OVERRIDABLE = tuple(f.name for f in dataclasses.fields(Protocol) if f.name not in ("name", "epochs_by_task", "frozen"))
_ANNOTATIONS = {name: kind for name, kind in annotations(Protocol).items() if name in OVERRIDABLE}

# Learning rate, batch size and the epochs of five tasks as published with the reference run; the other fields are
# those of its public evaluation script, which also ran in bf16 and kept the best epoch on validation: not done here.
_REFERENCE_EPOCHS = {
    **dict.fromkeys(("mrpc", "stsb", "cola", "rte", "wnli"), 20),
    **dict.fromkeys(("sick_relatedness", "sick_entailment"), 10),
    **dict.fromkeys(("paws", "sst2"), 5),
    **dict.fromkeys(("qnli", "qqp", "mnli_matched", "mnli_mismatched"), 3),
}
_LARGE_TASK_EPOCHS = dict.fromkeys(("sst2", "qnli", "qqp", "mnli_matched", "mnli_mismatched", "paws"), 5)
_COMMON: dict[str, Any] = {
    "max_length": 128,
    "weight_decay": 0.01,
    "lr_scheduler_type": "linear",
    "max_grad_norm": 1.0,
    "bf16": False,
}
_TUNED: dict[str, Any] = {
    "learning_rates": (3e-5, 1e-4, 3e-4, 1e-3),
    "batch_sizes": (32,),
    "epochs": 15,
    "epochs_by_task": _LARGE_TASK_EPOCHS,
    "selection_size": 0.1,
    "patience": 3,
    "seeds": (42, 43, 44),
    "warmup_steps": 0.1,
    **_COMMON,
}
PROTOCOLS: dict[str, Protocol] = {
    "reference": Protocol(
        name="reference",
        learning_rates=(1e-5,),
        batch_sizes=(96,),
        epochs=10,
        epochs_by_task=_REFERENCE_EPOCHS,
        selection_size=0.0,
        patience=1,
        seeds=(42,),
        warmup_steps=100,
        **_COMMON,
    ),
    "tuned": Protocol(name="tuned", **_TUNED),
    "bi_encoder": Protocol(name="bi_encoder", comparison="bi_encoder", **_TUNED),
    "frozen": Protocol(
        name="frozen",
        frozen=True,
        learning_rates=(1e-3,),
        batch_sizes=(32,),
        epochs=1,
        selection_size=0.0,
        patience=1,
        seeds=(0,),
        warmup_steps=0.0,
        **{**_COMMON, "max_length": 8192},
    ),
    "quick": Protocol(
        name="quick",
        learning_rates=(1e-3,),
        batch_sizes=(64,),
        epochs=3,
        selection_size=0.0,
        patience=1,
        seeds=(42,),
        warmup_steps=0.1,
        **_COMMON,
    ),
}


def fields_from_words(words: Sequence[str]) -> dict[str, Any]:
    """Typed fields of command-line words, as `Protocol.load` takes them; see `words_to_fields`."""
    return words_to_fields(words, _ANNOTATIONS)


def fields_help() -> str:
    """A line per field that can be replaced: its value in each protocol."""
    rows = {name: ((own.name, getattr(own, name)) for own in PROTOCOLS.values()) for name in OVERRIDABLE}
    lines = [f"  --{name}  {', '.join(f'{own} {_listed(value)}' for own, value in row)}" for name, row in rows.items()]
    return "\n".join(lines)
