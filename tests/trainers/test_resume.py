"""Killed and resumed runs against the one that was never interrupted: equal bit for bit, at any moment."""

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
from exact_runs import ENVIRONMENT, assert_equal_files, assert_equal_runs, command_line, settings, train

from concept_encoder.trainers.pretraining import checkpoint_to_resume
from concept_encoder.trainers.training.saving import SUMS_FILE, damage, find_checkpoints

KILLED_RUNS = Path(__file__).parents[1] / "support" / "killed_runs.py"


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


@pytest.mark.slow
@pytest.mark.parametrize("step", [5, 10, 12])  # 12: after the last checkpoint, before the run's own files
def test_a_resumed_run_equals_the_straight_one(straight, tmp_path, step):
    folder = tmp_path / "resumed"
    killed_at(straight, folder, step)
    train(folder, *settings(12))
    assert_equal_runs(straight, folder)
    result = json.loads((folder / "pretrain.json").read_text())
    at_this_rate = None if step == 12 else pytest.approx(12 / result["steps_per_second"])
    assert result["train_seconds"] == at_this_rate


# The worst one passes for the best here, so that it is not the last.
BEST = "--load_best_model_at_end true --metric_for_best_model loss --greater_is_better true --eval_steps 5".split()


@pytest.fixture(scope="module")
def straight_to_the_best(tmp_path_factory):
    folder = tmp_path_factory.mktemp("best") / "straight"
    train(folder, *settings(12, "--save_total_limit", "3", *BEST))
    assert_equal_files(folder / "model.safetensors", folder / "checkpoint-5" / "model.safetensors")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("step", [5, 10, 12])
def test_a_resumed_run_ends_with_the_best_checkpoint_of_all(straight_to_the_best, tmp_path, step, caplog):
    folder = tmp_path / "moved"
    killed_at(straight_to_the_best, folder, step)
    train(folder, *settings(12, *BEST))
    assert_equal_runs(straight_to_the_best, folder)
    assert "does not exist" not in caplog.text and "missing keys" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["has no SHA256SUMS", r"model\.safetensors is not what was written"])
def test_a_best_checkpoint_that_is_gone_or_torn_is_named(straight_to_the_best, tmp_path, fault):
    folder = tmp_path / "resumed"
    killed_at(straight_to_the_best, folder, 10)
    if "no" in fault.split():
        shutil.rmtree(folder / "checkpoint-5")
    else:
        weights = folder / "checkpoint-5" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
    said = rf"load_best_model_at_end=True needs .*checkpoint-5, the best so far, and its? .*{fault}.*; put it back"
    with pytest.raises(ValueError, match=said):
        train(folder, *settings(12, *BEST))


@pytest.mark.slow
def test_when_it_is_evaluated_belongs_to_a_run_that_takes_the_best(straight_to_the_best, tmp_path):
    folder = tmp_path / "resumed"
    killed_at(straight_to_the_best, folder, 10)
    with pytest.raises(ValueError, match=r"eval_steps was 5 when checkpoint-10 was written, got 1"):
        train(folder, *settings(12, *BEST, "--eval_steps", "1"))


@pytest.mark.slow
def test_the_comparison_can_fail(straight, tmp_path):
    train(tmp_path, *settings(12, "--seed", "1"))
    with pytest.raises(AssertionError):
        assert_equal_runs(straight, tmp_path)


@pytest.mark.slow
def test_a_torn_checkpoint_is_passed_over_with_a_message(straight, tmp_path, caplog):
    folder = tmp_path / "resumed"
    killed_at(straight, folder, 10)
    (folder / ".saving" / "checkpoint-12").mkdir(parents=True)  # what a kill while saving leaves
    weights = folder / "checkpoint-10" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(
        ValueError, match=r"checkpoint-10 is not a whole checkpoint: its model\.safetensors is not what"
    ):
        checkpoint_to_resume(str(folder), str(folder / "checkpoint-10"))
    train(folder, *settings(12))
    assert f"passed over {folder / 'checkpoint-10'}, which is torn: its model.safetensors is not what" in caplog.text
    assert not (folder / ".saving").exists()
    assert_equal_runs(straight, folder)


def test_nothing_but_torn_checkpoints_is_said(straight, tmp_path):
    folder = tmp_path / "resumed"
    killed_at(straight, folder, 5)
    (folder / "checkpoint-5" / SUMS_FILE).unlink()
    with pytest.raises(ValueError, match=r"every checkpoint in .* is torn \(checkpoint-5\); remove the folder and"):
        checkpoint_to_resume(str(folder), None)
    with pytest.raises(
        ValueError, match=r"resume_from_checkpoint=last is not a whole checkpoint: there is no such fold"
    ):
        checkpoint_to_resume(str(folder), "last")


# ----------------------------------------------------------------------------------------------- killed for real, slow


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(tmp_path):
    command = [sys.executable, str(KILLED_RUNS), str(tmp_path), "100", "20", "0"]
    done = run(command, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    kills, in_saving, runs = map(int, done.stdout.split("\n")[-2].split())
    print(f"{kills} kills, {in_saving} of them while a checkpoint was written, in {runs} runs")
    assert kills == 20 and in_saving >= 5
    for number in range(1, runs + 1):
        assert_equal_runs(tmp_path / "straight", tmp_path / f"killed-{number}")


LAUNCH_TWO = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]


def run(command, timeout=600):
    environment = {**os.environ, **ENVIRONMENT}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)


@pytest.mark.slow
def test_data_workers_change_nothing_and_are_resumed(straight, tmp_path):
    folder = tmp_path / "resumed"
    killed_at(straight, folder, 5)
    done = run(command_line(folder, *settings(12, "--dataloader_num_workers", "2")))
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
        train(folder, *settings(12, *stream))
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
    line = (
        f"concept-encoder pretrain: stopped by SIGTERM after step {step}; {last} is whole, "
        "the same command continues\n"
    )
    assert said.endswith(line) and said.count("SIGTERM") == 1
    assert "Traceback" not in said and damage(last) is None and not (folder / "pretrain.json").exists()


@pytest.mark.slow
def test_a_second_command_is_refused_and_ctrl_c_ends_the_first_with_one_line(tmp_path):
    folder = tmp_path / "run"
    command = command_line(folder, *settings(1_000_000))
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **ENVIRONMENT})
    while not find_checkpoints(folder):
        assert child.poll() is None
        time.sleep(0.05)
    second = run(command)
    assert second.returncode == 2
    (line,) = (line for line in second.stderr.split("\n") if "error: " in line)
    assert f"another process is at work in {folder}; wait until it has ended" in line
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=300)
    step, last = find_checkpoints(folder)[-1]
    assert child.returncode == 130 and "Traceback" not in said
    assert said.endswith(
        f"concept-encoder pretrain: interrupted; checkpoint-{step} is kept, the same command continues from it\n"
    )
    assert damage(last) is None and not (folder / ".lock").exists()


RANK_KILLED = """
import os, signal, sys
sys.path[:0] = {tests!r}
from exact_runs import settings
from small_runs import tiny_recipe
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


@pytest.fixture(scope="module")
def straight_of_two(tmp_path_factory):
    """Folder of a run by two processes without a break, and what launches another one."""
    home = tmp_path_factory.mktemp("two")
    (home / "run.py").write_text(RANK_KILLED.format(tests=sys.path))
    launch = [sys.executable, *LAUNCH_TWO, str(home / "run.py")]
    done = run([*launch, str(home / "straight"), "none", "--save_total_limit", "3"])
    assert done.returncode == 0, done.stderr[-3000:]
    return home / "straight", launch


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_two_processes_one_of_which_is_killed(straight_of_two, tmp_path, how):
    straight, launch = straight_of_two
    folder = tmp_path / "killed"
    done = run([*launch, str(folder), how])
    assert done.returncode != 0
    # One that is killed takes the run along; one that is asked to stop stops all of them, after the step.
    assert [step for step, _ in find_checkpoints(folder)] == ([5] if how == "SIGKILL" else [5, 8])
    done = run([*launch, str(folder), "none"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert_equal_runs(straight, folder, processes=2)
    assert torch.load(folder / "checkpoint-12" / "log_sums_1.pth", weights_only=True)["parts"]
