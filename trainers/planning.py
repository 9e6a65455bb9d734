"""What a pretraining run will cost, from a few of its own steps; nothing of them is kept."""

import copy
import resource
import sys
import tempfile
import time
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from transformers import TrainerCallback, set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..utils.progress import TrainingProgress
from .data.corpora import load_pretraining_data, load_tokenizer
from .pretraining import checkpoint_to_resume
from .recipes import Recipe
from .training.trainer import ConceptTrainer

PROBE_STEPS = 6
WARM_UP_STEPS = 2  # of them, not timed: the first ones fill caches
VALIDATION_DOCUMENTS = 64  # enough for a part that is not evaluated here


def plan_pretraining(recipe: Recipe) -> dict[str, Any]:
    """Take `PROBE_STEPS` steps of a recipe on a sample of its corpus, in a folder that is removed again.

    Args:
        recipe: from `Recipe.load`; it is not changed, and its output folder is looked at but not made.

    Returns:
        `parameters` (`total`, `encoder`); `texts_per_step` over all processes and accumulated batches; `steps`, None
        where only the size of the corpus decides; `tokens_per_step` that the encoder reads; `seconds_per_step`, the
        median of those after warm-up, data included, evaluation and saving not; `peak_bytes` of memory, `peak_of` the
        GPU or this process; `processes` and `device`; `tokens` and `hours` of the whole training, None with `steps`.

    Raises:
        ValueError: anything that `pretrain` would raise before its first step.
    """
    training = recipe.training
    checkpoint_to_resume(training.output_dir, training.resume_from_checkpoint)
    tokenizer = load_tokenizer(recipe.data)
    config = recipe.model_config(tokenizer)
    texts = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    train, _ = load_pretraining_data(_sample(recipe, texts * PROBE_STEPS), tokenizer)
    set_seed(training.seed)
    model = recipe.objective.head(config)
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = ConceptTrainer(
            model=model,
            args=_probe_arguments(training, folder),
            objective_args=recipe.objective,
            train_dataset=train,
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.remove_callback(TrainingProgress)
        trainer.train()
    on_gpu = training.device.type == "cuda"
    steps = training.max_steps if training.max_steps > 0 else None
    tokens_per_step = trainer.state.num_input_tokens_seen / trainer.state.global_step
    seconds = median(after - before for before, after in pairwise(clock.ends[WARM_UP_STEPS - 1 :]))
    return {
        "parameters": {"total": model.num_parameters(), "encoder": model.base_model.num_parameters()},
        "texts_per_step": texts,
        "steps": steps,
        "tokens_per_step": tokens_per_step,
        "seconds_per_step": seconds,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else _peak_of_process(),
        "peak_of": "GPU" if on_gpu else "process",
        "processes": training.world_size,
        "device": torch.cuda.get_device_name() if on_gpu else training.device.type,
        "tokens": None if steps is None else tokens_per_step * steps,
        "hours": None if steps is None else seconds * steps / 3600,
    }


class _Clock(TrainerCallback):
    """When each optimizer step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def _sample(recipe: Recipe, texts: int):
    """The recipe's data with as many documents as the probe needs."""
    data = copy.copy(recipe.data)
    data.max_train_documents = min(texts, data.max_train_documents or texts)
    data.max_validation_documents = min(VALIDATION_DOCUMENTS, data.max_validation_documents or VALIDATION_DOCUMENTS)
    return data


def _probe_arguments(training, folder: str):
    """The recipe's arguments, for a few steps that are neither logged, evaluated, saved nor pushed."""
    probe = copy.copy(training)
    probe.output_dir = folder
    probe.max_steps = PROBE_STEPS
    probe.eval_strategy, probe.save_strategy = IntervalStrategy.NO, SaveStrategy.NO
    probe.logging_strategy = IntervalStrategy.NO
    probe.eval_on_start = probe.logging_first_step = probe.push_to_hub = probe.load_best_model_at_end = False
    probe.on_divergence, probe.stop_on_collapse = "stop", 0
    probe.resume_from_checkpoint, probe.report_to, probe.disable_tqdm = None, [], True
    return probe


def _peak_of_process() -> int:
    """Largest resident size so far, in bytes; the system counts in kilobytes, but on macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
