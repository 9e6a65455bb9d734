"""Killed and resumed runs against the one that was never interrupted: equal bit for bit, whatever the moment."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import tiny_recipe

from concept_encoder.eval.concepts.monitor import monitor_concepts
from concept_encoder.trainers.pretraining import checkpoint_to_resume, pretrain
from concept_encoder.trainers.training.saving import SUMS_FILE, damage, find_checkpoints

TESTS = Path(__file__).parents[1]
# Everything that is drawn or accumulated: dropout, noise of t and masks, average, sums over
# log intervals that no checkpoint ends, epochs that end between two checkpoints.
SETTINGS = (
    "--hidden_size 16 --intermediate_size 16 --num_attention_heads 2 --num_concepts 4 --num_hidden_layers 1 "
    "--max_length 32 --max_position_embeddings 32 --max_train_documents 50 --max_validation_documents 4 "
    "--hidden_dropout_prob 0.1 --per_device_train_batch_size 4 --gradient_accumulation_steps 2 --ema_decay 0.9 "
    "--num_eval_timesteps 2 --learning_rate 0.001 "
    "--logging_steps 7 --eval_strategy steps --eval_steps 10 --save_strategy steps --save_steps 5 --save_total_limit 2"
).split()
SETTINGS += ["--regularizers", "{variance: 0.1}"]
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
    files = {path.relative_to(last) for path in last.rglob("*")}
    assert files == {path.relative_to(again) for path in again.rglob("*")}
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
    assert [row["step"] for row in histories[0] if "loss" in row] == [1, *range(7, step + 1, 7)]
    results = [json.loads((folder / "pretrain.json").read_text()) for folder in (straight, resumed)]
    for name in ("steps", "epochs", "tokens_seen", "train_loss", "eval_loss", "evaluation", "grad_norm_peak"):
        assert results[0][name] == results[1][name], name


def train(folder, *arguments):
    pretrain(tiny_recipe(folder, *arguments), monitor=monitor_concepts)  # as the command line does


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """12 steps without a break."""
    folder = tmp_path_factory.mktemp("resume") / "straight"
    train(folder, *settings(12, "--save_total_limit", "3"))
    return folder


def killed_at(straight, folder, step):
    """What a kill between two checkpoints leaves: those until then, and nothing else that counts."""
    shutil.copytree(straight, folder)
    for number, checkpoint in find_checkpoints(folder):
        if number > step:
            shutil.rmtree(checkpoint)
    for name in ("pretrain.json", "trainer_state.json", "model.safetensors"):
        (folder / name).unlink()


@pytest.mark.parametrize("step", [5, 10, 12])  # 12: after the last checkpoint, before the run's own files
def test_a_resumed_run_equals_the_straight_one(straight, tmp_path, step):
    folder = tmp_path / "resumed"
    killed_at(straight, folder, step)
    train(folder, *settings(12, "--resume_from_checkpoint", "last"))
    assert_equal_runs(straight, folder)
    result = json.loads((folder / "pretrain.json").read_text())
    at_this_rate = None if step == 12 else pytest.approx(12 / result["steps_per_second"])
    assert result["train_seconds"] == at_this_rate


def test_the_comparison_can_fail(straight, tmp_path):
    train(tmp_path, *settings(12, "--seed", "1"))
    with pytest.raises(AssertionError):
        assert_equal_runs(straight, tmp_path)


def test_a_torn_checkpoint_is_passed_over_with_a_message(straight, tmp_path, caplog):
    folder = tmp_path / "resumed"
    killed_at(straight, folder, 10)
    (folder / ".saving" / "checkpoint-12").mkdir(parents=True)  # what a kill while saving leaves
    weights = folder / "checkpoint-10" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"checkpoint-10 is no whole checkpoint: its model\.safetensors is not what"):
        checkpoint_to_resume(str(folder), str(folder / "checkpoint-10"))
    train(folder, *settings(12, "--resume_from_checkpoint", "last"))
    assert f"passed over {folder / 'checkpoint-10'}, which is torn: its model.safetensors is not what" in caplog.text
    assert not (folder / ".saving").exists()
    assert_equal_runs(straight, folder)


def test_nothing_but_torn_checkpoints_is_said(straight, tmp_path):
    folder = tmp_path / "resumed"
    killed_at(straight, folder, 5)
    (folder / "checkpoint-5" / SUMS_FILE).unlink()
    with pytest.raises(ValueError, match=r"every checkpoint in .* is torn \(checkpoint-5\); remove the folder"):
        checkpoint_to_resume(str(folder), "last")
    with pytest.raises(ValueError, match=r"holds an unfinished run \(checkpoint-5\)"):
        checkpoint_to_resume(str(folder), None)


# ----------------------------------------------------------------------------------------------- killed for real, slow


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(tmp_path):
    command = [sys.executable, str(TESTS / "support" / "killed_runs.py"), str(tmp_path), "200", "20", "0"]
    done = run(command, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    kills, in_saving, runs = map(int, done.stdout.split("\n")[-2].split())
    print(f"{kills} kills, {in_saving} of them while a checkpoint was written, in {runs} runs")
    assert kills == 20 and in_saving >= 5
    for number in range(1, runs + 1):
        assert_equal_runs(tmp_path / "straight", tmp_path / f"killed-{number}")


LAUNCH_TWO = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]


def command_line(folder, *arguments):
    script = str(TESTS.parent / "scripts" / "pretrain.py")
    own = ["--output_dir", str(folder), "--disable_tqdm", "true", "--use_cpu", "true"]
    return [sys.executable, script, "tiny", *arguments, *own]


ENVIRONMENT = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}


def run(command, timeout=600):
    environment = {**os.environ, **ENVIRONMENT}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)


@pytest.mark.slow
def test_data_workers_change_nothing_and_are_resumed(straight, tmp_path):
    folder = tmp_path / "resumed"
    killed_at(straight, folder, 5)
    done = run(
        command_line(folder, *settings(12, "--resume_from_checkpoint", "last", "--dataloader_num_workers", "2"))
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert_equal_runs(straight, folder)


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["truncated", "packed"])
def test_a_stream_is_resumed(tmp_path, packing):
    rows = [json.dumps({"text": f"story number {n} of the cat that saw {n * n} dogs and birds"}) for n in range(60)]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows))
    stream = ["--dataset_name", str(tmp_path / "texts.jsonl"), "--streaming", "true", "--validation_size", "0.1"]
    from concept_encoder.trainers.data.microworld import microworld_tokenizer

    microworld_tokenizer().save_pretrained(tmp_path / "tokenizer")
    stream += ["--tokenizer_name", str(tmp_path / "tokenizer"), "--packing", packing]
    straight = tmp_path / "straight"
    train(straight, *settings(12, *stream, "--save_total_limit", "3"))
    for step in (5, 10):
        folder = tmp_path / str(step)
        killed_at(straight, folder, step)
        epochs = json.loads((find_checkpoints(folder)[-1][1] / "trainer_state.json").read_text())["epoch"]
        assert epochs > 1 or (packing, step) == ("truncated", 5)
        train(folder, *settings(12, *stream, "--resume_from_checkpoint", "last"))
        assert_equal_runs(straight, folder)


@pytest.mark.slow
def test_sigterm_at_the_command_line(straight, tmp_path):
    folder = tmp_path / "stopped"
    child = subprocess.Popen(
        command_line(folder, *settings(1_000_000)),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **ENVIRONMENT},
    )
    while not find_checkpoints(folder):
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=300)
    assert child.returncode == 143
    step, last = find_checkpoints(folder)[-1]
    assert f"stopped by SIGTERM after step {step}, whose checkpoint is whole; go on with" in said
    assert "Traceback" not in said and damage(last) is None and not (folder / "pretrain.json").exists()


RANK_KILLED = """
import os, signal, sys
sys.path[:0] = {tests!r}
from small_runs import tiny_recipe
from test_resume import settings
from concept_encoder.trainers.training import trainer
from concept_encoder.trainers.pretraining import pretrain

folder, how = sys.argv[1:3]
recipe = tiny_recipe(folder, *settings(12, *sys.argv[3:]))
judge = trainer.ConceptTrainer._judge_step

def judge_step(self):
    if self.args.process_index == 1 and self.state.global_step == 7 and how != "none":
        os.kill(os.getpid(), getattr(signal, how))
    judge(self)

trainer.ConceptTrainer._judge_step = judge_step
assert recipe.training.world_size == 2
pretrain(recipe)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_two_processes_one_of_which_is_killed(tmp_path, how):
    script = tmp_path / "run.py"
    script.write_text(RANK_KILLED.format(tests=sys.path))
    launch = [sys.executable, *LAUNCH_TWO, str(script)]
    done = run([*launch, str(tmp_path / "straight"), "none", "--save_total_limit", "3"])
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "killed"
    done = run([*launch, str(folder), how])
    assert done.returncode != 0
    # One that is killed takes the run along; one that is asked to stop stops all of them, after the step.
    assert [step for step, _ in find_checkpoints(folder)] == ([5] if how == "SIGKILL" else [5, 8])
    done = run([*launch, str(folder), "none", "--resume_from_checkpoint", "last"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert_equal_runs(tmp_path / "straight", folder, processes=2)
    assert torch.load(folder / "checkpoint-12" / "log_sums_1.pth", weights_only=True)["parts"]
