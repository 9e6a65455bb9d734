"""Arguments of a pretraining run: those of the transformers Trainer, and what this package adds."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from .checks import refuse_unused


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
        metadata={"help": "Hub id or folder of a pretrained concept encoder of this architecture, to go on from."},
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
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")
        if self.divergence_ratio and not 1 <= self.divergence_ratio < math.inf:
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
        super().__post_init__()
        if self.fp16 and self.device.type == "cpu":
            raise ValueError("fp16=True would not be followed: a CPU trains in float32; leave it out, or set bf16")
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
