"""What all scripts have in common: help of one screen, one name for one thing, errors of one line, quiet pipes."""

import argparse
import importlib
import os
import pty
import re
import shlex
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from concept_encoder.trainers.recipes import field_words
from concept_encoder.utils.command_line import Command, run, say

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py"))


def help_of(name, monkeypatch, capsys, *words) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"concept_encoder.scripts.{name}").main(list(words) or ["--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_fits_a_screen_and_has_purpose_and_example(name, monkeypatch, capsys):
    text = help_of(name, monkeypatch, capsys)
    lines = text.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 80
    purpose = next(line for line in lines[1:] if line and not line.startswith(" "))
    assert re.fullmatch(r"[A-Z].{15,}\.", purpose)
    assert f"    python scripts/{name}.py" in text  # that it works is for tests/test_docs.py's readers of commands
    assert "default: None" not in text and not re.search(r"(\(default: [^)]*\)) \1", text)
    assert not re.search(r"--\w+-\w", text.partition("options:")[2])


@pytest.mark.parametrize("name", SCRIPTS)
def test_exit_codes_are_said_where_there_are_several(name, monkeypatch, capsys):
    source = (ROOT / "scripts" / f"{name}.py").read_text(encoding="utf-8")
    several = "SystemExit(" in source or "parser.exit(" in source
    assert ("Exit code" in help_of(name, monkeypatch, capsys)) == several


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_example_is_taken_by_the_parser(name, monkeypatch, capsys, tmp_path):
    """Bad input ends with 2, and so would an example of options that do not exist; work would be another error."""
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"concept_encoder.scripts.{name}")
    examples = re.findall(r"^    (?:python|accelerate launch) scripts/((?:.*\\\n)*.*)", module.__doc__, re.M)
    assert examples

    class Taken(Exception):
        pass

    original = argparse.ArgumentParser.parse_known_args

    def parse(self, args=None, namespace=None):
        _, unknown = original(self, args, namespace)
        if unknown:
            raise AssertionError(f"{self.prog} knows no {unknown}")
        raise Taken

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
    for example in examples:
        script, *words = shlex.split(example.replace("\\\n", " "))
        assert script == f"{name}.py"
        with pytest.raises(Taken):
            module.main(words)


@pytest.mark.parametrize("name", ["analyze", "compare", "finetune", "pretrain", "pretrain_twin", "soak", "whiten"])
def test_fields_are_listed_and_not_in_the_help(name, monkeypatch, capsys):
    field = {"finetune": "--patience", "analyze": "--corpus_seed", "whiten": "--corpus_seed"}.get(
        name, "--nested_concepts"
    )
    assert field not in help_of(name, monkeypatch, capsys)
    listed = help_of(name, monkeypatch, capsys, "--fields")
    assert field in listed and not re.search(r"--\w+-\w", listed)


def test_one_name_for_one_thing(monkeypatch, capsys):
    """What is given and written has one name in all scripts."""
    texts = {name: help_of(name, monkeypatch, capsys) for name in SCRIPTS}
    options = {name: set(re.findall(r"^  (--\w+)", text, re.M)) for name, text in texts.items()}
    banned = {"--output", "--out", "--out_dir", "--folder", "--force", "--dryrun", "--bs", "--model", "--rev"}
    assert not {name: found & banned for name, found in options.items() if found & banned}
    positionals = {name: set(re.findall(r"^  ([A-Z_]+)\b", text, re.M)) for name, text in texts.items()}
    assert set().union(*positionals.values()) == {
        "CHECKPOINT",
        "RUN_DIR",
        "OTHER_RUN_DIR",
        "RECIPE",
        "PLAN",
        "COMPARISON",
    }


# ------------------------------------------------------------------------------------------------------------- parsing


def command(*fields) -> Command:
    parser = Command("scripts/some.py", "Do something.")
    parser.add_argument("checkpoint")
    parser.add_argument("--batch_size", type=int, default=16, help="how many")
    for each in fields:
        parser.accept(each, lambda: "the fields", besides=("max_length",))
    return parser


def test_fields_may_stand_anywhere_and_keep_their_words():
    fields = field_words(["data"])
    words = ["--text_column", "-x", "--batch_size", "4", "--streaming", "--corpus_seed=-1", "here", "--no_such"]
    parser = command(fields)
    arguments = parser.parse_args(
        ["--text_column", "x", "here", "--batch_size", "4", "--corpus_seed", "-1", "--streaming"]
    )
    assert (arguments.checkpoint, arguments.batch_size) == ("here", 4)
    assert arguments.overrides == ["--text_column=x", "--corpus_seed=-1", "--streaming"]
    several = command(field_words()).parse_args(["here", "--report_to", "wandb", "trackio", "--no_bf16"])
    assert several.overrides == ["--report_to", "wandb", "trackio", "--no_bf16"]
    assert command(fields).parse_args(["here"]).overrides == []
    with pytest.raises(SystemExit):
        parser.parse_args(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: checkpoint"),
        (["here", "--text_colum", "x"], "unknown argument '--text_colum'; did you mean --text_column"),
        (["here", "--text-column", "x"], "unknown argument '--text-column'; did you mean --text_column"),
        (["here", "--max_length", "3"], "unknown argument '--max_length'"),  # besides
        (["here", "there"], "unknown argument 'there'"),
        (["here", "--batch_size", "many"], "argument --batch_size: invalid int value: 'many'"),
    ],
)
def test_wrong_words_end_in_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        command(field_words(["data"])).parse_args(words)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"some.py: error: {message}")


def test_what_a_user_can_cause_ends_in_one_line_and_a_closed_pipe_does_not(capsys):
    for error in (ValueError("two\nlines"), FileNotFoundError("two lines"), MemoryError("two lines")):
        with pytest.raises(SystemExit) as stop, command().refusing():
            raise error
        assert stop.value.code == 2 and capsys.readouterr().err == "some.py: error: two lines\n"
    with pytest.raises(BrokenPipeError), command().refusing():
        raise BrokenPipeError
    with pytest.raises(TypeError), command().refusing():
        raise TypeError


def test_the_next_command_is_the_one_that_works(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    parser = Command(str(ROOT / "scripts" / "pretrain.py"), "Do something.")
    monkeypatch.setattr("shutil.which", lambda name: sys.executable)
    parser.suggest("analyze.py", Path("runs/it's mine"))
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.chdir(tmp_path)
    parser.suggest("analyze.py", "runs/mine")
    printed, said = capsys.readouterr()
    near, far = said.splitlines()
    assert printed == "" and near == "Next: python scripts/analyze.py 'runs/it'\"'\"'s mine'"
    assert far == f"Next: {sys.executable} {ROOT / 'scripts' / 'analyze.py'} runs/mine"
    assert (ROOT / "scripts" / "analyze.py").is_file()


# ------------------------------------------------------------------------------------------------------ tiny numbers

TINY = """
import torch
from concept_encoder.utils.command_line import run

def main():
    torch.set_num_threads(2)
    print((torch.full((1 << 20,), 1e-39) * 1).count_nonzero().item())

"""


@pytest.mark.parametrize(("call", "left"), [("run(main)", 0), ("main()", 1 << 20)])
def test_a_script_takes_no_time_for_tiny_numbers_in_any_thread(call, left):
    done = subprocess.run([sys.executable, "-c", TINY + call], capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) == left


# --------------------------------------------------------------------------------------------------------------- pipes


def test_a_closed_pipe_is_no_error(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr("torch.set_flush_denormal", lambda on: True)  # this process goes on, and Hypothesis refuses it
    with os.fdopen(os.dup(writer), "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        with pytest.raises(SystemExit) as stop:
            run(lambda: print("a line"))
    assert stop.value.code == 141
    os.close(writer)


def test_talk_is_on_stderr(capsys):
    say("one", "two")
    assert capsys.readouterr() == ("", "one\ntwo\n")


TRAIN = "tiny --max_steps 3 --max_train_documents 48 --max_validation_documents 8 --use_cpu true --logging_steps 1"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, str, str]:
    """Folder of a run, and what its script wrote into two pipes."""
    folder = tmp_path_factory.mktemp("piped") / "run"
    command = [sys.executable, "scripts/pretrain.py", *TRAIN.split(), "--output_dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout, done.stderr


@pytest.mark.slow
def test_a_pipe_gets_results_only_and_a_log_has_no_bars(trained):
    folder, out, err = trained
    assert re.fullmatch(r"3 steps, 0\.1 M parameters, conditional NELBO [\d.]+ bits per token.*\n", out)
    assert "'loss'" in err and err.rstrip().endswith(f"scripts/analyze.py {folder}")
    assert "\r" not in out + err and "\x1b" not in out + err


@pytest.mark.slow
@pytest.mark.parametrize("script", ["audit.py --help", "pretrain.py --help"])
def test_a_reader_that_has_gone_is_no_error(script):
    piped = f"{shlex.quote(sys.executable)} scripts/{script} | true; exit ${{PIPESTATUS[0]}}"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # argparse hides it
    done = subprocess.run(["bash", "-c", piped], cwd=ROOT, env=buffered, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (141, "", "")


@pytest.mark.slow
def test_head_gets_the_first_line_and_the_next_command_works(trained, tmp_path):
    folder, _, err = trained
    following = err.rstrip().splitlines()[-1].removeprefix("Next: ")
    piped = f"{following} --num_batches 4 --batch_size 4 --ledger_documents 4 | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", piped], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (0, 141) and done.stdout.startswith("Geometry of 8 concepts")
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
    assert (folder / "geometry.json").is_file()


@pytest.mark.slow
def test_a_terminal_gets_bars_and_no_colours(trained, tmp_path):
    """There is no colour to take away, so NO_COLOR has nothing to do. Escape codes that colour end in m."""
    _, out, _ = trained
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    command = [sys.executable, "scripts/pretrain.py", *TRAIN.split(), "--output_dir", str(tmp_path / "run")]
    environment = {**os.environ, "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=theirs) as child:
        os.close(theirs)
        drawn = b""
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # how Linux says that the other end is closed
                break
            if not piece:
                break
            drawn += piece
        printed = child.stdout.read().decode()
    os.close(ours)
    assert child.returncode == 0
    assert b"training: 100%" in drawn and b"3/3" in drawn and drawn.count(b"\r") > 5
    assert not re.search(rb"\x1b\[[\d;]*m", drawn)
    assert printed.split(",")[0] == out.split(",")[0] and "\r" not in printed
