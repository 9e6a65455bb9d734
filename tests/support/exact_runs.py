"""A small run in which everything is drawn or accumulated, and what makes two of them equal bit for bit."""

import json
import shlex
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from small_runs import tiny_recipe

from concept_encoder.eval.concepts.monitor import monitor_concepts
from concept_encoder.trainers.pretraining import pretrain
from concept_encoder.trainers.training.saving import SUMS_FILE, damage, find_checkpoints

SCRIPT = Path(__file__).parents[2] / "scripts" / "pretrain.py"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}  # of its command line
# Everything that is drawn or accumulated: dropout, noise of t and masks, average, sums over
# log intervals that no checkpoint ends, epochs that end between two checkpoints.
SETTINGS = shlex.split(
    "--hidden_size 16 --intermediate_size 16 --num_attention_heads 2 --num_concepts 4 --num_hidden_layers 1 "
    "--max_length 32 --max_position_embeddings 32 --max_train_documents 50 --max_validation_documents 4 "
    "--hidden_dropout_prob 0.1 --per_device_train_batch_size 4 --gradient_accumulation_steps 2 --ema_decay 0.9 "
    "--regularizers '{variance: 0.1}' --num_eval_timesteps 2 --learning_rate 0.001 "
    "--logging_steps 7 --eval_strategy steps --eval_steps 10 --save_strategy steps --save_steps 5 --save_total_limit 2"
)
CLOCK = ("_runtime", "_per_second", "data_wait_share", "train_seconds")
OWN = ("trainer_state.json", "training_args.bin", SUMS_FILE)  # hold the clock's figures, or the folder's name


def settings(max_steps, *more):
    return [*SETTINGS, "--max_steps", str(max_steps), *more]


def without_clock(rows):
    """Log rows without wall-clock figures and without the closing row, which is about one call of `train`."""
    return [
        {name: value for name, value in row.items() if not name.endswith(CLOCK)}
        for row in rows
        if "train_runtime" not in row or "loss" in row
    ]


def assert_equal_files(one: Path, other: Path):
    """Bit for bit; of safetensors the tensors, since the names of shared ones are listed in the order of a set."""
    if one.suffix != ".safetensors":
        assert one.read_bytes() == other.read_bytes(), one.name
        return
    tensors, others = load_file(one), load_file(other)
    assert tensors and tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == others[name].dtype and torch.equal(tensor, others[name]), f"{one.name}: {name}"


def assert_equal_runs(straight: Path, resumed: Path, processes: int = 1):
    step, last = find_checkpoints(straight)[-1]
    again = resumed / last.name
    assert damage(last) is None and damage(again) is None
    files = {path.relative_to(last) for path in last.rglob("*") if path.is_file()}
    assert files == {path.relative_to(again) for path in again.rglob("*") if path.is_file()}
    expected = {"model.safetensors", "training_weights.safetensors", "optimizer.pt"}
    expected |= {"scheduler.pt", "gradient_norms.json"}
    expected |= {f"log_sums_{rank}.pth" for rank in range(processes)}
    expected |= {"rng_state.pth"} if processes == 1 else {f"rng_state_{rank}.pth" for rank in range(processes)}
    assert expected < {str(file) for file in files}
    for file in sorted(files):
        if file.name not in OWN:
            assert_equal_files(last / file, again / file)
    assert_equal_files(straight / "model.safetensors", resumed / "model.safetensors")
    states = [json.loads((folder / "trainer_state.json").read_text()) for folder in (straight, resumed)]
    histories = [without_clock(state["log_history"]) for state in states]
    assert histories[0] == histories[1]
    closing = [next(row for row in reversed(state["log_history"]) if "train_loss" in row) for state in states]
    assert closing[0]["train_loss"] == closing[1]["train_loss"]  # of all steps, those before the break too
    assert [row["step"] for row in histories[0] if "loss" in row] == [1, *range(7, step + 1, 7)]
    results = [json.loads((folder / "pretrain.json").read_text()) for folder in (straight, resumed)]
    for name in ("steps", "epochs", "tokens_seen", "train_loss", "eval_loss", "evaluation", "grad_norm_peak"):
        assert results[0][name] == results[1][name], name


def train(folder, *arguments):
    pretrain(tiny_recipe(folder, *arguments), monitor=monitor_concepts)  # as the command line does


def command_line(folder, *arguments):
    own = ["--output_dir", str(folder), "--disable_tqdm", "true", "--use_cpu", "true"]
    return [sys.executable, str(SCRIPT), "tiny", *arguments, *own]
