"""Named fine-tuning protocols: everything of a fine-tuning run but the checkpoint and the task, as data."""

import dataclasses
from argparse import SUPPRESS, Action, ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from transformers import SchedulerType
from transformers.hf_argparser import string_to_bool

from ...utils.command_line import Parser, did_you_mean

Comparison = Literal["joint", "apart"]


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
    comparison: Comparison = "joint"
    """how the sentences of a pair meet. joint: as one text, `A [SEP] B`; apart: each is encoded alone, a regression is
    fitted by the cosine of the two and classes by a linear layer on `[a; b; |a - b|; a * b]`"""

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
            raise ValueError(f"selection_size must lie in [0, 1), got {self.selection_size}")
        if self.selection_size == 0 and len(self.grid) > 1:
            raise ValueError(
                f"{len(self.grid)} settings (learning_rates {_listed(self.learning_rates)}; batch_sizes "
                f"{_listed(self.batch_sizes)}) need a share of the training split to select on, and selection_size "
                "is 0; give one setting, or a selection_size such as 0.1"
            )

    @classmethod
    def load(cls, name: str, **fields: Any) -> "Protocol":
        """A protocol by its name, with `fields` in place of its own."""
        return find_protocol(name).override(**fields)

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
        own, *before = self.name.split("+")
        said = {part.partition("=")[0]: part for part in before}
        said |= {key: f"{key}={_listed(value)}" for key, value in changes.items()}
        name = "+".join([own, *(said[key] for key in OVERRIDABLE if key in said)])
        if "epochs" in changes:
            changes = {**changes, "epochs_by_task": {}}
        return dataclasses.replace(self, name=name, **changes)


def _listed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


OVERRIDABLE = tuple(f.name for f in dataclasses.fields(Protocol) if f.name not in ("name", "epochs_by_task"))

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
    "apart": Protocol(name="apart", comparison="apart", **_TUNED),
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


def find_protocol(name: str) -> Protocol:
    """Protocol by name, also by one that `override` has made; ValueError that lists them for an unknown one."""
    own, *changes = name.split("+")
    if own not in PROTOCOLS:
        raise ValueError(f"Unknown protocol {own!r}. Available: {', '.join(PROTOCOLS)}")
    words = []
    for change in changes:
        field, _, values = change.partition("=")
        if field not in OVERRIDABLE:
            raise ValueError(f"Unknown protocol field {field!r} in {name!r}. Available: {', '.join(OVERRIDABLE)}")
        words += [f"--{field}", *values.split(",")]
    parser = protocol_parser("")
    parser.exit_on_error = False
    try:
        return PROTOCOLS[own].override(**vars(parser.parse_args(words)))
    except ArgumentError as error:
        raise ValueError(f"protocol {name!r}: {error}") from error


def protocol_parser(prog: str) -> Parser:
    """Parser of the fields that can be overridden, as `--field value`; what is not given is not in the namespace."""
    parser = Parser(prog=prog, argument_default=SUPPRESS)
    for each in dataclasses.fields(Protocol):
        if each.name not in OVERRIDABLE:
            continue
        values = ", ".join(f"{name} {_listed(getattr(own, each.name))}" for name, own in PROTOCOLS.items())
        options: dict[str, Any] = {"help": values}
        if each.type is bool:
            options["type"] = string_to_bool
        elif get_origin(each.type) is Literal:
            options["choices"] = get_args(each.type)
        else:  # of `tuple[float, ...]` and `int | None` the first
            options["type"] = (get_args(each.type) or (each.type,))[0]
        if get_origin(each.type) is tuple:
            options |= {"nargs": "+", "action": _Values}
        parser.add_argument(f"--{each.name}", **options)
    return parser


def fields_from_words(words: Sequence[str]) -> dict[str, Any]:
    """Typed fields of command-line words, as `Protocol.load` takes them."""
    parser = protocol_parser("")
    found, unknown = parser.parse_known_args(words)
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}{did_you_mean(unknown[0], parser._option_string_actions)}")
    return vars(found)


def fields_help() -> str:
    """A line per field that can be replaced: its value in each protocol."""
    return protocol_parser("FIELDS").format_help()


class _Values(Action):
    """Several values, as the tuple that a protocol holds."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, tuple(values))
