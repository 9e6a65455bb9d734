"""The same plan on a Ray cluster of two local worker processes: one of them killed, then the process that waits."""

import os
import subprocess
import sys

import pytest
from small_corpora import documents, encoded, shard_bytes

from concept_encoder.eval.corpus import encoding

pytest.importorskip("ray")
pytest.importorskip("datatrove")
SCRIPT = """
import os, signal, sys, threading, time
from pathlib import Path
import psutil, ray
from concept_encoder.eval.corpus import encoding

encoding.SHARD_ROWS = 50
checkpoint, rows, folder, victim = sys.argv[1:]

def kill():
    while not list(Path(folder).glob("data/0*.parquet")):
        time.sleep(0.01)
    if victim == "driver":
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        for each in psutil.Process().children(recursive=True):
            if "RankWorker" in " ".join(each.cmdline()):
                each.kill()
                print("killed", flush=True)
                return

if victim:
    threading.Thread(target=kill, daemon=True).start()
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
options = {"executor": "ray", "executor_options": {"mem_per_cpu_gb": 0.1}}
print(encoding.encode(checkpoint, rows, folder, workers=2, id_column="key", **options).documents)
"""


def ran(*words: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", SCRIPT, *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)


@pytest.mark.slow
def test_ray_with_a_worker_killed_and_with_the_driver_killed(pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "SHARD_ROWS", 50)
    rows = documents(200)
    rows.to_json(tmp_path / "rows.jsonl")
    wanted = shard_bytes(encoded(pretrained, tmp_path / "rows.jsonl", tmp_path / "local"))
    assert len(wanted) == 4
    disturbed = ran(pretrained, tmp_path / "rows.jsonl", tmp_path / "worker", "worker")
    said = disturbed.stdout.splitlines()  # with ray's own lines between
    assert said[0] == "killed" and said[-1] == "200", disturbed.stderr
    assert shard_bytes(tmp_path / "worker") == wanted
    assert ran(pretrained, tmp_path / "rows.jsonl", tmp_path / "driver", "driver").returncode == -9
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "driver" / "data").glob("0*.parquet")}
    assert 0 < len(done) < 4
    again = ran(pretrained, tmp_path / "rows.jsonl", tmp_path / "driver", "")
    assert again.stdout.splitlines()[-1:] == ["200"], again.stderr
    assert shard_bytes(tmp_path / "driver") == wanted
    assert {path: path.stat().st_mtime_ns for path in done} == done
