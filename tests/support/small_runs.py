"""Pretraining runs small enough for a test: a Trainer, a recipe, and a script in two processes."""

import math
import os
import subprocess
import sys
from pathlib import Path

import torch
from datasets import Dataset
from helpers import random_examples, tiny_config

from concept_encoder.trainers.objectives.objective import ObjectiveArguments
from concept_encoder.trainers.recipes import Recipe, fields_from_words
from concept_encoder.trainers.training.arguments import ConceptTrainingArguments
from concept_encoder.trainers.training.trainer import ConceptTrainer

SMALL_RECIPE = (
    "--max_steps 6 --max_train_documents 64 --max_validation_documents 8 --disable_tqdm true --use_cpu true"
).split()


def tiny_recipe(output_dir, *overrides, name="tiny") -> Recipe:
    words = [*SMALL_RECIPE, "--output_dir", str(output_dir), *overrides]
    return Recipe.load(name, **fields_from_words(words))


def make_trainer(
    tokenizer, output_dir, rows=64, objective=None, monitor=None, dropout=0.0, data=None, config=None, **training
) -> ConceptTrainer:
    torch.manual_seed(0)
    objective = objective or ObjectiveArguments()
    needs = objective.built_corruption.needs if objective.reconstruction else {}
    config = tiny_config(
        vocab_size=len(tokenizer),
        mask_token_id=tokenizer.mask_token_id,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        **needs,
        **(config or {}),
    )
    data = data or Dataset.from_list(random_examples(tokenizer, rows=rows, longest=20))
    settings = {
        "output_dir": str(output_dir),
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "learning_rate": 3e-3,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **training,
    }
    return ConceptTrainer(
        model=objective.head(config),
        args=ConceptTrainingArguments(**settings),
        objective_args=objective,
        monitor=monitor,
        train_dataset=data,
        eval_dataset=data.select(range(min(len(data), 20))),
        processing_class=tokenizer,
    )


def parameters(trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def losses(trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def noise_by_text(trainer) -> ConceptTrainer:
    """Training noise made a function of the text, so that runs that cut the same batches differently compare."""
    trainer.collator.draw = lambda batch, *_: trainer.collator.fixed_noise(batch)
    return trainer


def weighted_terms() -> dict:
    """Settings of a trainer with two terms besides the task, that averages and logs each step."""
    # Terms of each text alone: they do not depend on how a batch is cut.
    objective = ObjectiveArguments(regularizers={"orthogonality": 3.0, "gaussian_potential": 1.0})
    return {"objective": objective, "ema_decay": 0.5, "max_steps": 3, "logging_steps": 1}


def equal_lengths(trainer, tokenizer):
    """Texts of one length, so that every micro-batch has the same share of its global batch."""
    ids = torch.randint(10, len(tokenizer), (64, 12), generator=torch.Generator().manual_seed(0)).tolist()
    trainer.train_dataset = Dataset.from_list([{"input_ids": row} for row in ids])
    return trainer


def diverge_at(trainer, *steps):
    """A loss that is not finite on this process at the first visit of each of these steps."""
    left, judge = list(steps), trainer._judge_step

    def judge_step():
        if left and trainer.state.global_step + 1 == left[0]:
            left.pop(0)
            trainer._loss_of_step = torch.tensor(math.nan)
        judge()

    trainer._judge_step = judge_step
    return trainer


def monitored() -> dict:
    """Settings of a trainer that looks at its concepts and saves every second step."""

    def monitor(concepts):
        return {"concepts": concepts.square().mean().item()}, None

    return {"monitor": monitor, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}


def launch_two(script: Path, *options: str) -> None:
    """Run a script in two processes on the CPU; `options` are those of `accelerate launch`."""
    command = [sys.executable, "-m", "accelerate.commands.launch", *(options or ["--multi_gpu"])]
    command += ["--num_processes", "2", "--main_process_port", "0", str(script)]  # 0: any that is free
    env = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
