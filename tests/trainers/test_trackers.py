"""Trackers get every curve of a run, without a network: what is in pretrain.json is in theirs."""

import importlib.util
import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "--max_steps 4 --logging_steps 2 --max_train_documents 64 --max_validation_documents 8 --num_eval_timesteps 2 "
    "--regularizers '{variance: 0.1}' --disable_tqdm true --use_cpu true"
)


def in_trackio(folder: Path) -> set[str]:
    (database,) = (folder / "trackio").glob("*.db")
    rows = sqlite3.connect(database).execute("select metrics from metrics").fetchall()
    return {name for (metrics,) in rows for name in json.loads(metrics)}


def in_tensorboard(folder: Path) -> set[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    names: set[str] = set()
    for path in (folder / "run" / "runs").rglob("events.*"):
        events = EventAccumulator(str(path))
        events.Reload()
        names.update(events.Tags()["scalars"])
    return names


def in_wandb(folder: Path) -> set[str]:
    """By their names in its file, which only `wandb sync` reads."""
    (path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    return {name.decode() for name in re.findall(rb"(?:train|eval)/[\w.]+", path.read_bytes())}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tracker", "curves"), [("trackio", in_trackio), ("tensorboard", in_tensorboard), ("wandb", in_wandb)]
)
def test_every_curve_arrives(tracker, curves: Callable[[Path], set[str]], tmp_path):
    if importlib.util.find_spec(tracker) is None:
        pytest.skip(f"{tracker} is not installed: pip install 'concept-encoder[{tracker}]'")
    local = {"TRACKIO_DIR": str(tmp_path / "trackio"), "WANDB_DIR": str(tmp_path), "WANDB_MODE": "offline"}
    command = [
        sys.executable,
        "-m",
        "concept_encoder",
        "pretrain",
        "tiny",
        "--output_dir",
        str(tmp_path / "run"),
        *shlex.split(TINY),
    ]
    done = subprocess.run(
        [*command, "--report_to", tracker],
        cwd=ROOT,
        env={**os.environ, **local},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    history = json.loads((tmp_path / "run" / "pretrain.json").read_text())["log_history"]
    logged = {name for row in history for name in row} - {"step", "epoch"}
    assert logged >= {"loss", "loss_t_0.2", "loss_t_1.0", "variance", "concepts_rankme", "eval_nelbo_bits_per_token"}
    # transformers moves "eval_" to a group of its own.
    wanted = {name.replace("eval_", "eval/") if name.startswith("eval_") else f"train/{name}" for name in logged}
    once = {name for name in wanted if name.startswith("train/train_")}  # totals, which trackers name in their own way
    assert wanted - once <= curves(tmp_path)
