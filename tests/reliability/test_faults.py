"""Faults caused for real while training, analysing and reporting: what the user reads, and what is kept."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import psutil
import pytest
import torch
from exact_runs import ENVIRONMENT, assert_equal_runs, command_line, settings
from huggingface_hub import HfApi, hf_file_system
from huggingface_hub.utils import http_backoff
from run_files import synthetic_pretrain, write_run, write_synthetic_run
from small_runs import tiny_recipe

from concept_encoder.eval import pretraining as door
from concept_encoder.eval.concepts.monitor import monitor_concepts
from concept_encoder.eval.report.report import report
from concept_encoder.scripts import analyze, finetune, push
from concept_encoder.scripts import pretrain as script
from concept_encoder.scripts import report as report_script
from concept_encoder.trainers import pretraining
from concept_encoder.trainers.data import corpora as data
from concept_encoder.trainers.data.microworld import microworld_tokenizer
from concept_encoder.trainers.pretraining import pretrain
from concept_encoder.trainers.training.saving import damage, find_checkpoints
from concept_encoder.utils.files import check_writable, replaced_together, write_json

ROOT = Path(__file__).parents[2]
NOBODY = 65534


def said_by(capsys, main, *arguments, code=2) -> str:
    """The one line that a command ends with when it is refused or cannot continue."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == code
    *_, line = capsys.readouterr().err.strip().split("\n")
    assert "error: " in line
    return line


def train_here(capsys, folder, *more, code=2) -> str:
    own = ["--output_dir", str(folder), "--use_cpu", "true", "--disable_tqdm", "true"]
    return said_by(capsys, script.main, "tiny", *settings(12), *own, *more, code=code)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults") / "straight"
    pretrain(tiny_recipe(folder, *settings(12)), monitor=monitor_concepts)  # as the command line does
    return folder


@contextmanager
def files_of_at_most(size):
    """The system refuses to write further into any file; unlike a full disk this needs no rights to arrange."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# ---------------------------------------------------------------------------------------------------------------- disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB, and what mounts it again with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    yield folder, lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_keeps_the_checkpoints_that_are_there(straight, small_disk, capsys):
    disk, mount = small_disk
    weight = sum(path.stat().st_size for path in (straight / "checkpoint-12").iterdir())
    (disk / "ballast").write_bytes(bytes(2**20 - int(1.5 * weight)))
    run = disk / "run"
    line = train_here(capsys, run)
    assert f"{run / 'checkpoint-10'} could not be written; what was there before is whole." in line
    assert "No space left on device" in line or "unexpected pos" in line or "file write failed" in line
    assert [path.name for path in run.iterdir()] == ["checkpoint-5"] and damage(run / "checkpoint-5") is None
    mount("size=64m")
    pretrain(tiny_recipe(run, *settings(12)), monitor=monitor_concepts)
    assert_equal_runs(straight, run)


@pytest.mark.slow
def test_a_disk_that_becomes_read_only_keeps_the_checkpoints_that_are_there(straight, small_disk, capsys, monkeypatch):
    disk, mount = small_disk
    calls = []

    def monitor(concepts):
        calls.append(1)
        if len(calls) == 2:  # at step 7; systems do so when a disk fails
            for options in (["--bind", str(disk)], ["-o", "remount,bind,ro"]):  # over it: the lock is open for writing
                subprocess.run(["mount", *options, str(disk)], check=True)
        return monitor_concepts(concepts)

    monkeypatch.setattr(door, "monitor_concepts", monitor)
    run = disk / "run"
    line = train_here(capsys, run)
    assert "Read-only file system" in line and damage(run / "checkpoint-5") is None
    line = train_here(capsys, run)
    assert f"{run} cannot be written to: no permission in {run}; name another folder" in line
    subprocess.run(["umount", "-l", str(disk)], check=True)
    mount("size=64m")
    pretrain(tiny_recipe(run, *settings(12)), monitor=monitor_concepts)
    assert_equal_runs(straight, run)


@pytest.mark.slow
def test_a_file_that_cannot_grow_ends_the_run_with_one_line(straight, tmp_path, capsys):
    largest = max(path.stat().st_size for path in (straight / "checkpoint-12").iterdir())
    with files_of_at_most(largest - 1000):
        line = train_here(capsys, tmp_path / "run")
    assert f"{tmp_path / 'run' / 'checkpoint-5'} could not be written" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_last_files_of_a_run_are_all_there_or_none(straight, tmp_path, capsys):
    weights = (straight / "model.safetensors").stat().st_size
    with files_of_at_most(weights - 1000):
        line = train_here(capsys, tmp_path / "run", "--save_strategy", "no")
    assert f"{tmp_path / 'run' / 'model.safetensors'} could not be written" in line
    assert not (tmp_path / "run").exists()


def test_a_vocabulary_that_does_not_fit_leaves_nothing(tmp_path):
    args = data.DataArguments(max_train_documents=40)
    with files_of_at_most(1000), pytest.raises(OSError, match=r"vocabulary could not be written; .*File too large"):
        data.train_tokenizer(args, 120, tmp_path / "vocabulary")
    assert not list(tmp_path.iterdir())
    data.train_tokenizer(args, 120, tmp_path / "vocabulary")


def test_results_that_do_not_fit_leave_the_old_ones(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with files_of_at_most(4096), pytest.raises(OSError, match="File too large"):
        write_json(tmp_path / "x.json", {"a": "b" * 10_000})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.slow
def test_a_report_that_does_not_fit_leaves_the_old_one(tmp_path):
    run = write_run(tmp_path / "run", pretrain=synthetic_pretrain())
    report(run)
    write_run(run, pretrain=synthetic_pretrain(steps=500))
    old = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with files_of_at_most(20_000), pytest.raises(OSError, match="File too large"):
        report(run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == old


def test_replacing_together_is_all_or_nothing(tmp_path):
    for name in ("a", "last", "other"):
        (tmp_path / name).write_text("old")
    with pytest.raises(KeyError), replaced_together(tmp_path, "last") as staged:
        {}[(staged / "a").write_text("new")]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(("a", "last", "other"), "old")
    with replaced_together(tmp_path, "last") as staged:
        for name in ("a", "last", "figures/b"):
            (staged / name).parent.mkdir(exist_ok=True)
            (staged / name).write_text("new")
    found = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"a": "new", "last": "new", "other": "old", "figures/b": "new"}


def killed_at_change(number, folder) -> bool:
    """Replace "old" files by "new" ones in a fork that is killed at its n-th change of names; False when it got by."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1] == signal.SIGKILL
    count = [0]

    def fatal(change):
        def call(*arguments, **options):
            count[0] += 1
            if count[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*arguments, **options)

        return call

    os.replace, Path.unlink = fatal(os.replace), fatal(Path.unlink)
    with replaced_together(folder, "last") as staged:
        for name in ("a", "b", "last"):
            (staged / name).write_text("new")
    os._exit(0)


@pytest.mark.slow
def test_killed_at_any_change_of_names_files_are_old_or_new_or_without_the_last(tmp_path):
    seen = []
    for number in range(1, 10):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in ("a", "b", "last"):
            (folder / name).write_text("old")
        killed = killed_at_change(number, folder)
        found = {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}
        if "last" in found:
            assert set(found.values()) == {found["last"]}
        seen.append(found.get("last"))
        if not killed:
            break
    assert seen == ["old", None, None, None, "new"]


# --------------------------------------------------------------------------------------------------------- permissions


def test_where_nothing_can_be_written_nothing_is_begun(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    line = train_here(capsys, tmp_path / "file" / "run")
    assert f"cannot be written to: {tmp_path / 'file'} is a file; name another folder" in line
    check_writable(tmp_path / "not" / "yet")
    assert not (tmp_path / "not").exists()


def as_nobody(call, log: Path) -> str:
    """What `call` says on stderr in a fork that is not root; the interpreter itself may be root's alone."""
    with log.open("w") as file:
        pid = os.fork()
        if pid == 0:
            try:
                os.dup2(file.fileno(), 2)
                sys.stderr = file
                if os.geteuid() == 0:
                    os.setgroups([])
                    os.setgid(NOBODY)
                    os.setuid(NOBODY)
                status = 77 if not os.access(ROOT / "scripts" / "recipes" / "tiny.yaml", os.R_OK) else 0
                if status == 0:
                    call()
            except SystemExit as stop:
                status = stop.code
            finally:
                file.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == 77:
        pytest.skip("another user cannot read the checkout")
    assert status == 2, log.read_text()
    return log.read_text()


@pytest.fixture
def anybodys():
    """A folder that every user can get to; `tmp_path` is below one that only its owner can enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.slow
def test_without_permission_one_line_says_so_before_anything_is_done(anybodys, monkeypatch):
    locked, texts, free = anybodys / "locked", anybodys / "texts.jsonl", anybodys / "free"
    texts.write_text('{"text": "a cat"}\n')
    microworld_tokenizer().save_pretrained(anybodys / "tokenizer")
    for folder, mode in ((locked, 0o555), (free, 0o777), (anybodys / "cache", 0o777)):
        folder.mkdir()
        folder.chmod(mode)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", anybodys / "cache")
    texts.chmod(0o000)
    own = ["tiny", *settings(2), "--use_cpu", "true", "--disable_tqdm", "true", "--output_dir"]
    said = as_nobody(lambda: script.main([*own, str(locked / "run")]), anybodys / "log")
    assert said.endswith(f"cannot be written to: no permission in {locked}; name another folder\n")
    private = anybodys / "private"
    private.mkdir(mode=0o700)
    said = as_nobody(lambda: script.main([*own, str(private / "new" / "run")]), anybodys / "log")
    assert said.endswith(f"cannot be written to: no permission in {private}; name another folder\n")
    corpus = ["--dataset_name", str(texts), "--tokenizer_name", str(anybodys / "tokenizer"), "--streaming", "true"]
    corpus += ["--validation_size", "0.5"]
    said = as_nobody(lambda: script.main([*own, str(free / "run"), *corpus]), anybodys / "log")
    assert "error: " in said and "Permission denied" in said and str(texts) in said
    assert not (free / "run").exists()


# -------------------------------------------------------------------------------------------------- memory and workers


@pytest.mark.slow
def test_a_killed_data_worker_ends_the_run_with_its_checkpoints_kept(tmp_path):
    # What the system does to a process that needs too much memory. In a process of its own: torch keeps raising for
    # a lost worker at every later SIGCHLD, wherever that comes.
    run = tmp_path / "run"
    workers = ["--dataloader_num_workers", "1", "--max_train_documents", "400"]
    child = subprocess.Popen(
        command_line(run, *settings(1_000_000), *workers),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **ENVIRONMENT},
    )
    while not find_checkpoints(run):
        assert child.poll() is None, child.communicate()[1]
        time.sleep(0.1)
    for _ in range(10):  # one that has come to the end of its epoch anyway is not missed
        while not (workers := psutil.Process(child.pid).children()):  # between two epochs there is none
            time.sleep(0.01)
        workers[0].kill()
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=20)
            break
    said = child.communicate(timeout=120)[1]
    assert child.returncode == 2, said
    (line,) = (line for line in said.split("\n") if "error: " in line)  # torch may say more about the worker
    assert "a data worker was lost, perhaps killed for lack of memory: " in line
    step, last = find_checkpoints(run)[-1]
    assert f"checkpoint-{step} is kept, the same command continues from it" in line and damage(last) is None


def test_ctrl_c_names_the_last_checkpoint(tmp_path):
    for last, kept in ((None, ""), ("checkpoint-3", "; checkpoint-3 is kept, the same command continues from it")):
        if last is not None:
            (tmp_path / last).mkdir()
        with pytest.raises(KeyboardInterrupt) as stop, pretraining._way_on_named(tiny_recipe(tmp_path)):
            raise KeyboardInterrupt
        assert str(stop.value) == f"interrupted{kept}"


def test_a_killed_data_worker_is_named_whatever_it_interrupts(tmp_path):
    lost = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    def interrupted():
        try:
            raise lost
        except RuntimeError:
            raise SystemError("a callback returned a result with an exception set")  # noqa: B904

    def throw(error, cause=None):
        raise error from cause

    def broken_off():
        ours, theirs = multiprocessing.Pipe()
        theirs.close()
        ours.recv()

    (tmp_path / "checkpoint-3").mkdir()
    named = {
        interrupted: "DataLoader worker (pid 7) is killed by signal: Killed",
        partial(throw, lost): "DataLoader worker (pid 7) is killed by signal: Killed",
        partial(throw, OSError("could not be written"), lost): "DataLoader worker (pid 7) is killed by signal: Killed",
        broken_off: "EOFError while it was handing over a batch",
    }
    for fails, said in named.items():
        with pytest.raises(ChildProcessError) as error, pretraining._way_on_named(tiny_recipe(tmp_path)):
            fails()
        way_on = "Lower dataloader_num_workers; checkpoint-3 is kept, the same command continues from it"
        assert str(error.value) == f"a data worker was lost, perhaps killed for lack of memory: {said}. {way_on}"
    for other in (SystemError("of another kind"), EOFError("of a file")):
        with pytest.raises(type(other), match=str(other)), pretraining._way_on_named(tiny_recipe(tmp_path)):
            throw(other)


class Hungry:
    """A dataset whose rows need more memory than a data worker may have."""

    column_names = ["input_ids"]

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        if torch.utils.data.get_worker_info() is None:
            return self.data[index]
        held = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (held + 2**28, resource.getrlimit(resource.RLIMIT_AS)[1]))
        return {"input_ids": np.ones(2**31, np.int64)}


def test_a_data_worker_without_memory_says_so(tmp_path, capsys, monkeypatch):
    load = pretraining.load_pretraining_data

    def hungry(*arguments):
        train, validation = load(*arguments)
        return Hungry(train), validation

    monkeypatch.setattr(pretraining, "load_pretraining_data", hungry)
    line = train_here(capsys, tmp_path / "run", "--dataloader_num_workers", "1")
    assert "error: out of memory: Caught MemoryError in DataLoader worker process 0. numpy" in line
    assert "Unable to allocate 16.0 GiB" in line and "Traceback" not in line
    assert "Lower per_device_train_batch_size and raise gradient_accumulation_steps by the same factor" in line


# --------------------------------------------------------------------------------------------------------------- clock


@pytest.mark.slow
def test_a_clock_that_goes_backwards_changes_nothing(straight, tmp_path, monkeypatch):
    now = [1.7e9]

    def backwards():
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    pretrain(tiny_recipe(tmp_path / "run", *settings(12)), monitor=monitor_concepts)
    monkeypatch.undo()
    assert now[0] < 1.7e9 - 3600
    assert_equal_runs(straight, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "pretrain.json").read_text())["train_seconds"] > 0


# ------------------------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("command", ["analyze", "finetune", "push"])
@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("model.safetensors", lambda content: content[: len(content) // 2]),
        ("model.safetensors", lambda content: b""),
        ("config.json", lambda content: content[:40]),
    ],
    ids=["half the weights", "empty weights", "half the configuration"],
)
def test_a_damaged_model_is_named(pretrained, tmp_path, capsys, command, name, harm):
    folder = shutil.copytree(pretrained, tmp_path / "model")
    (folder / name).write_bytes(harm((folder / name).read_bytes()))
    calls = {
        "analyze": (analyze.main, [str(folder), "--dataset_name", "microworld", "--max_length", "32"]),
        "finetune": (finetune.main, [str(folder), "--tasks", "microworld_similarity", "--protocol", "quick"]),
        "push": (push.main, [str(folder), "--repo_id", "me/x", "--dry_run"]),
    }
    main, arguments = calls[command]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code in (1, 2)
    *_, line = capsys.readouterr().err.strip().split("\n")
    assert "error: " in line and (name in line or "does not load" in line), line
    assert {path.name for path in folder.iterdir()} == {path.name for path in pretrained.iterdir()}


EDITED = {
    "cut": (lambda content: content[: len(content) // 2], "cannot be read as JSON"),
    "a list": (lambda content: "[]", "must hold a JSON object, got"),
    "of another schema": (lambda content: content.replace('"schema": ', '"schema": 9'), "schema must be"),
    "a field more": (lambda content: content.replace("{", '{"mine": 1,', 1), "mine"),
    "a key twice": (lambda content: content.replace("{", '{"schema": 1,', 1), "the key 'schema' is written twice"),
}
READERS = {
    "report": lambda folder, other: (report_script.main, [folder]),
    "report next to": lambda folder, other: (report_script.main, [other, folder]),
    "push": lambda folder, other: (push.main, [folder, "--repo_id", "me/x", "--dry_run"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", EDITED)
@pytest.mark.parametrize("command", READERS)
def test_an_edited_result_is_named_by_each_command_that_reads_it(pretrained, tmp_path, capsys, command, how):
    folder, other = shutil.copytree(pretrained, tmp_path / "run"), write_synthetic_run(tmp_path / "other")
    write_synthetic_run(folder)
    harm, message = EDITED[how]
    for name in ("pretrain.json", "ledger.json", "finetune/microworld_paraphrase.tuned.json"):
        whole = (folder / name).read_text()
        (folder / name).write_text(harm(whole))
        main, arguments = READERS[command](str(folder), str(other))
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        *_, line = capsys.readouterr().err.strip().split("\n")
        assert stop.value.code == 2 and f"error: {folder / name}" in line and message in line, line
        (folder / name).write_text(whole)
    assert not (folder / "report.json").exists() and not (other / "report.json").exists()


# ---------------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize("streaming", ["false", "true"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_parquet_file_is_named(tmp_path, capsys, streaming, share):
    file = tmp_path / "texts.parquet"
    datasets.Dataset.from_dict({"text": [f"story {n} of a cat" for n in range(500)]}).to_parquet(file)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    microworld_tokenizer().save_pretrained(tmp_path / "tokenizer")
    corpus = ["--dataset_name", str(file), "--tokenizer_name", str(tmp_path / "tokenizer"), "--validation_size", "0.1"]
    line = train_here(capsys, tmp_path / "run", *corpus, "--streaming", streaming)
    assert f"dataset {str(file)!r} cannot be read or is empty: " in line
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------------------- network


@pytest.fixture
def stories(seeded_hub, tmp_path, monkeypatch):
    """Arguments that stream a corpus of 30 files from the Hub, ten at a time, and a monitor that asks for a fault."""
    for n in range(30):
        rows = [f"story {n} of the cat that saw {k * k} dogs and birds" for k in range(40)]
        datasets.Dataset.from_dict({"text": rows}).to_parquet(tmp_path / f"stories/train-{n:05d}-of-00030.parquet")
    api = HfApi()
    api.create_repo("me/stories", repo_type="dataset", exist_ok=True)
    api.upload_folder(repo_id="me/stories", repo_type="dataset", folder_path=tmp_path / "stories")
    microworld_tokenizer().save_pretrained(tmp_path / "tokenizer")
    # Both libraries try again, for minutes in all.
    for name, value in (("STREAMING_READ_MAX_RETRIES", 2), ("STREAMING_READ_RETRY_INTERVAL", 0.01)):
        monkeypatch.setattr(datasets.config, name, value)
    monkeypatch.setattr(hf_file_system, "http_backoff", partial(http_backoff, max_retries=1, base_wait_time=0.01))
    monkeypatch.setattr(data, "STREAM_SHUFFLE_BUFFER", 10)
    own = ["--dataset_name", "me/stories", "--streaming", "true", "--validation_size", "0.1", "--packing", "truncated"]
    own += ["--tokenizer_name", str(tmp_path / "tokenizer"), "--max_train_documents", "10000"]

    def when_training(**fault):
        calls = []

        def monitor(concepts):
            calls.append(1)
            if len(calls) == 2:  # at step 7
                seeded_hub.fault(path_regex="stories", **fault)
            return {}, None

        return monitor

    return own, when_training


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"close": True}, "Server Disconnected"),
        ({"truncate_after_bytes": 100}, "Server Disconnected"),
        ({"status": 503}, "503 Service Unavailable"),
    ],
)
def test_a_network_that_goes_in_mid_stream_ends_the_run_with_its_checkpoints_kept(
    stories, tmp_path, capsys, monkeypatch, fault, said
):
    own, when_training = stories
    monkeypatch.setattr(door, "monitor_concepts", when_training(times=None, **fault))
    line = train_here(capsys, tmp_path / "run", *own, "--max_steps", "300")
    step, last = find_checkpoints(tmp_path / "run")[-1]
    assert "error: the corpus cannot be read any further: " in line and said in line
    assert line.endswith(f"; checkpoint-{step} is kept, the same command continues from it")
    assert step >= 5 and damage(last) is None


@pytest.mark.slow
def test_a_network_that_comes_back_changes_nothing(stories, seeded_hub, tmp_path):
    own, when_training = stories
    for name, fault in (("straight", {"delay_s": 0}), ("broken", {"close": True})):
        pretrain(tiny_recipe(tmp_path / name, *settings(100, *own)), monitor=when_training(**fault))
    assert [row for row in seeded_hub.requests() if row["status"] is None]
    assert_equal_runs(tmp_path / "straight", tmp_path / "broken")
