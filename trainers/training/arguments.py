"""Arguments of a pretraining run: those of the transformers Trainer, and what this package adds."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from ...utils.files import at_home
from .checks import refuse_unused

# Field -> what it must be; None says nothing.
_LEGAL: dict[str, tuple[str, Callable[[float], bool]]] = {
    **dict.fromkeys(
        "num_train_epochs gradient_accumulation_steps per_device_train_batch_size per_device_eval_batch_size "
        "logging_steps eval_steps save_steps adam_epsilon save_total_limit".split(),
        ("positive", lambda value: value > 0),
    ),
    **dict.fromkeys(
        "learning_rate weight_decay warmup_steps max_grad_norm eval_delay stop_on_collapse seed "
        "dataloader_num_workers".split(),
        ("at least 0", lambda value: value >= 0),
    ),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "ema_decay"), ("in [0, 1)", lambda value: 0 <= value < 1)),
    "max_steps": ("positive, or -1 for as many as num_train_epochs take", lambda value: value > 0 or value == -1),
}


@dataclass
class ConceptTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the defaults that pretraining needs."""

    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator draws its own columns."})
    logging_first_step: bool = field(default=True, metadata={"help": "Log the loss before any learning."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "A non-finite loss raises instead."})
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pinned memory serves a GPU only."}
    )
    stop_on_collapse: int = field(
        default=0, metadata={"help": "Stop after so many logged steps in a row with collapsed concepts; 0 = never."}
    )
    include_num_input_tokens_seen: str = field(
        default="non_padding", metadata={"help": "Count the real tokens that the encoder reads."}
    )
    ema_decay: float = field(
        default=0.0,
        metadata={"help": "Evaluate and save an average of the weights, decay of each step in [0, 1); 0 = off."},
    )
    warm_start_embeddings: str | None = field(
        default=None,
        metadata={"help": "Hub id or folder of an encoder of the same vocabulary, to take token embeddings from."},
    )
    start_from: str | None = field(
        default=None,
        metadata={"help": "Hub id or folder of a pretrained concept encoder of this architecture, to continue from."},
    )
    divergence_ratio: float = field(
        default=100.0,
        metadata={"help": "A gradient norm this many times the median of recent steps is divergence; 0 = never."},
    )
    on_divergence: Literal["stop", "rollback"] = field(
        default="stop",
        metadata={"help": "stop, or rollback to the last checkpoint with half the learning rate, at most 3 times."},
    )

    def __post_init__(self):
        for name in ("start_from", "warm_start_embeddings", "resume_from_checkpoint"):
            if getattr(self, name) is not None:
                setattr(self, name, at_home(getattr(self, name)))
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{each.name} must be finite, got {value}")
        for name, (words, is_legal) in _LEGAL.items():
            value = getattr(self, name)
            if value is not None and not is_legal(value):
                raise ValueError(f"{name} must be {words}, got {value}")
        if self.divergence_ratio and self.divergence_ratio < 1:
            raise ValueError(f"divergence_ratio must be 0 (off) or at least 1, got {self.divergence_ratio}")
        if self.start_from is not None and self.warm_start_embeddings is not None:
            raise ValueError(
                f"start_from={self.start_from!r} brings its own token embeddings; leave warm_start_embeddings "
                f"({self.warm_start_embeddings!r}) out"
            )
        if self.on_divergence not in ("stop", "rollback"):
            raise ValueError(f"on_divergence must be 'stop' or 'rollback', got {self.on_divergence!r}")
        if self.hub_token is not None:
            raise ValueError(
                "hub_token would be written into recipe.yaml; log in with `hf auth login`, or set HF_TOKEN"
            )
        refuse_unused(self)
        if self.greater_is_better is None and self.metric_for_best_model is not None:  # else all but loss would be
            self.greater_is_better: bool | None = "accuracy" in self.metric_for_best_model
        super().__post_init__()
        if self.fp16 and self.device.type == "cpu":
            raise ValueError("fp16=True would be ignored: a CPU trains in float32; leave it out, or set bf16")
        if self.on_divergence == "rollback":
            if self.save_strategy == SaveStrategy.NO or self.save_only_model:
                raise ValueError(
                    "on_divergence='rollback' needs checkpoints with the optimizer's state, got "
                    f"save_strategy={self.save_strategy.value!r}, save_only_model={self.save_only_model}"
                )
            if self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):
                raise ValueError(
                    f"on_divergence='rollback' cannot halve the rate of lr_scheduler_type={self.lr_scheduler_type!r}, "
                    "which sets its own; choose a schedule, or on_divergence='stop'"
                )
