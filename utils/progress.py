"""Progress on stderr: a bar on a terminal, a plain line now and then everywhere else."""

import sys
import time
from collections.abc import Iterable
from typing import Any

import datasets
import huggingface_hub.utils
from tqdm import tqdm
from transformers import ProgressCallback
from transformers.utils import logging

# Of all that is logged, what a line says while training; the rest is in trainer_state.json and pretrain.json.
SHOWN = (
    *("loss", "grad_norm", "learning_rate", "train_loss", "rollback"),
    *("eval_loss", "eval_nelbo_bits_per_token", "eval_rebuilt_bits_per_token", "eval_rebuilt_accuracy"),
)
SECONDS_BETWEEN_LINES = 30.0  # where there is no terminal; what takes less says nothing


class _Lines:
    """Stands between tqdm and stderr: of what tqdm would draw over and over, a line now and then."""

    def __init__(self) -> None:
        self.due = time.monotonic() + SECONDS_BETWEEN_LINES

    def write(self, drawn: str) -> None:
        text = drawn.replace("\x1b[A", "").strip()  # the cursor's way up, between nested bars
        if text and time.monotonic() >= self.due:
            self.due = time.monotonic() + SECONDS_BETWEEN_LINES
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def flush(self) -> None:
        """What is written is flushed already."""


def progress(iterable: Iterable | None = None, **options: Any) -> tqdm:
    """tqdm with `options`: what is done, rate and time left; a bar on a terminal, a line every 30 s elsewhere."""
    plain = {} if sys.stderr.isatty() else {"file": _Lines(), "ncols": 0}
    return tqdm(iterable, **plain, **options)


def silence_libraries() -> None:
    """Where stderr is no terminal, no bars of transformers, datasets and the Hub, which would fill a log."""
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
        datasets.disable_progress_bars()
        huggingface_hub.utils.disable_progress_bars()


class TrainingProgress(ProgressCallback):
    """The Trainer's display by the same rule, its main figures in a line on stderr: stdout is for results."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.current_step = 0
        if state.is_world_process_zero:
            options = {"unit": "step", "desc": "training", "disable": args.disable_tqdm}
            self.training_bar = progress(total=state.max_steps, **options)

    def on_log(self, args, state, control, logs=None, **kwargs):
        figures = [f"{name} {value:.4g}" for name, value in (logs or {}).items() if name in SHOWN]
        if state.is_world_process_zero and self.training_bar is not None and figures:
            self.training_bar.write(f"step {state.global_step}: {', '.join(figures)}", file=sys.stderr)
