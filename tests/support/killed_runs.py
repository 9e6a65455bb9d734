"""Pretraining runs killed at random moments and resumed until done; `python killed_runs.py FOLDER STEPS KILLS SEED`.

Imports once: each attempt is a fork. Leaves `straight`, never killed, and `killed-N`; prints the number of kills, of
those while a checkpoint was written, and of runs.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from exact_runs import settings, train

from concept_encoder.trainers.training.saving import STAGING_FOLDER, find_checkpoints


def attempt(folder: Path, max_steps: int) -> int:
    """Process id of a fork that trains, from the last checkpoint where there is one."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        train(folder, *settings(max_steps))
        status = 0
    finally:
        os._exit(status)


def ended(pid: int) -> bool:
    done, status = os.waitpid(pid, os.WNOHANG)
    assert not done or status == 0, f"an attempt ended with status {status}"
    return bool(done)


def kill(pid: int, folder: Path, seconds: float, pause: float | None) -> bool:
    """SIGKILL after so many seconds; with a pause, that long after a checkpoint then begins. False: it had ended."""
    moment = time.monotonic() + seconds
    while time.monotonic() < moment or (pause is not None and not (folder / STAGING_FOLDER).exists()):
        if ended(pid):
            return False
        time.sleep(0.001)
    time.sleep(pause or 0)
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1] == signal.SIGKILL


def main(root: Path, max_steps: int, wanted: int, seed: int) -> tuple[int, int, int]:
    torch.set_num_threads(1)
    straight, began = root / "straight", time.monotonic()
    pid = attempt(straight, max_steps)
    while not find_checkpoints(straight) and not ended(pid):
        time.sleep(0.01)
    begins = time.monotonic() - began
    assert os.waitpid(pid, 0)[1] == 0
    trains = time.monotonic() - began - begins
    draw, kills, in_saving, runs = random.Random(seed), 0, 0, 0
    while kills < wanted:
        runs += 1
        folder = root / f"killed-{runs}"
        while True:
            pid = attempt(folder, max_steps)
            if kills == wanted:
                assert os.waitpid(pid, 0)[1] == 0
                break
            seconds = draw.uniform(0.5 * begins, begins + 0.3 * trains)
            if not kill(pid, folder, seconds, draw.uniform(0, 0.03) if kills % 2 else None):
                break
            kills += 1
            in_saving += (folder / STAGING_FOLDER).exists()
    return kills, in_saving, runs


if __name__ == "__main__":
    print(*main(Path(sys.argv[1]), *map(int, sys.argv[2:5])))
