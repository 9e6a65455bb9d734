import os
import shutil
import subprocess
from pathlib import Path

import pytest

from concept_encoder.trainers.training.saving import (
    STAGING_FOLDER,
    damage,
    find_checkpoints,
    last_complete,
    publish,
    remove_old,
)

FILES = {"model.safetensors": b"\x07" * 5000, "optimizer.pt": b"\x01" * 300, "trainer_state.json": b'{"a": 1}\n'}


def written(run_dir, step, files=FILES) -> Path:
    staged = run_dir / STAGING_FOLDER / f"checkpoint-{step}"
    (staged / "shards").mkdir(parents=True)
    for name, content in {**files, "shards/0": b"x"}.items():
        (staged / name).write_bytes(content)
    final = run_dir / f"checkpoint-{step}"
    publish(staged, final)
    return final


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def half_written(path):
    """Blocks that never reached the disk read as zeros, at the right size."""
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2] + bytes(size - size // 2))


@pytest.mark.parametrize("how", [Path.unlink, truncate, empty, half_written])
@pytest.mark.parametrize("name", [*FILES, "shards/0", "SHA256SUMS"])
def test_a_torn_checkpoint_is_named_and_the_one_before_it_taken(tmp_path, caplog, name, how):
    before, torn = written(tmp_path, 10), written(tmp_path, 20)
    assert last_complete(tmp_path) == str(torn) and not caplog.text
    how(torn / name)
    assert last_complete(tmp_path) == str(before)
    assert f"passed over {torn}, which is torn: it" in caplog.text
    assert name in caplog.text


def test_sums_cut_at_the_end_of_a_line_are_noticed(tmp_path):
    sums = written(tmp_path, 10) / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    for kept in range(len(lines)):
        sums.write_text("".join(lines[:kept]))
        assert damage(sums.parent) == "its SHA256SUMS is cut off"


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum")
def test_sums_are_those_of_sha256sum(tmp_path):
    folder = written(tmp_path, 10)
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert subprocess.run(command, cwd=folder, capture_output=True).returncode == 0
    half_written(folder / "optimizer.pt")
    assert subprocess.run(command, cwd=folder, capture_output=True).returncode == 1


def test_a_checkpoint_without_its_model_is_torn(tmp_path, caplog):
    before = written(tmp_path, 10)
    rest = {name: content for name, content in FILES.items() if name != "model.safetensors"}
    torn = written(tmp_path, 20, rest)
    assert damage(torn) == "it has no model.safetensors: two runs wrote into one folder, perhaps"
    assert last_complete(tmp_path) == str(before)
    assert f"passed over {torn}, which is torn: it has no model.safetensors" in caplog.text
    sharded = written(tmp_path, 30, {**rest, "model.safetensors.index.json": b"{}"})
    assert damage(sharded) is None


def test_what_others_put_into_a_checkpoint_does_no_harm(tmp_path):
    folder = written(tmp_path, 10)
    (folder / "geometry.json").write_text("{}")
    assert damage(folder) is None


def test_only_whole_checkpoints_of_few_enough_steps(tmp_path):
    assert last_complete(tmp_path) is None
    for step in (2, 10, 4):
        written(tmp_path, step)
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-99").write_text("a file")
    assert [step for step, _ in find_checkpoints(tmp_path)] == [2, 4, 10]
    assert last_complete(tmp_path, at_most=9) == str(tmp_path / "checkpoint-4")
    assert last_complete(tmp_path, at_most=1) is None
    assert find_checkpoints(tmp_path / "absent") == []


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    torn = written(tmp_path, 10)
    truncate(torn / "model.safetensors")
    final = written(tmp_path, 10, {**FILES, "more": b"new"})
    assert damage(final) is None and (final / "more").exists()


@pytest.mark.parametrize("clock", ["forward", "backward"])
def test_the_newest_is_kept_by_step_not_by_the_clock(tmp_path, clock):
    for step in (10, 20, 30):
        seconds = 1_000_000 + (step if clock == "forward" else -step) * 1000
        os.utime(written(tmp_path, step), (seconds, seconds))
    assert last_complete(tmp_path) == str(tmp_path / "checkpoint-30")
    remove_old(tmp_path, 1, newest=30, best=None)
    assert [step for step, _ in find_checkpoints(tmp_path)] == [30]


@pytest.mark.parametrize(
    ("limit", "newest", "best", "left"),
    [
        (None, 30, None, [10, 20, 30, 40]),
        (2, 40, None, [30, 40]),
        (1, 40, 10, [10, 40]),
        (2, 40, 10, [10, 40]),
        (3, 40, 10, [10, 30, 40]),
        (1, 30, None, [30]),  # 40 is of an attempt that was given up, and must not drive out what was just written
        (2, 30, None, [20, 30]),
    ],
)
def test_what_a_limit_keeps(tmp_path, limit, newest, best, left):
    for step in (10, 20, 30, 40):
        written(tmp_path, step)
    best = None if best is None else str(tmp_path / f"checkpoint-{best}")
    remove_old(tmp_path, limit, newest, best)
    assert [step for step, _ in find_checkpoints(tmp_path)] == left
