"""What all commands have in common: help of one screen, one name for one thing, errors of one line, quiet pipes."""

import argparse
import importlib
import inspect
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

import concept_encoder
from concept_encoder import scripts
from concept_encoder.eval.benchmarks.protocols import PROTOCOLS
from concept_encoder.eval.benchmarks.registry import BENCHMARKS
from concept_encoder.eval.benchmarks.retrieval_tasks import RETRIEVAL_TASKS
from concept_encoder.eval.benchmarks.similarity import SIMILARITY_TASKS
from concept_encoder.eval.corpus.precision import PRECISIONS
from concept_encoder.eval.corpus.searching import FUSIONS, SOURCES
from concept_encoder.eval.hub.export import EXPORTERS
from concept_encoder.eval.report.gates import load_gates
from concept_encoder.utils.command_line import (
    PROTOCOL_FIELDS,
    RECIPE_FIELDS,
    Command,
    command_name,
    command_to_type,
    run,
    say,
    suggest,
)

ROOT = Path(__file__).resolve().parents[2]
RUN = [sys.executable, "-m", "concept_encoder"]
WITH_FIELDS = ["analyze", "compare", "finetune", "pretrain", "pretrain_twin", "train_tokenizer", "whiten"]


def script(name):
    return importlib.import_module(f"concept_encoder.scripts.{name}")


def help_of(name, monkeypatch, capsys, *words) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        script(name).main(list(words) or ["--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def of_the_command(words, monkeypatch, capsys) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `concept-encoder` with these words."""
    monkeypatch.setattr(sys, "argv", ["concept-encoder", *words])
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        scripts._main()
    return stop.value.code, *capsys.readouterr()


# ---------------------------------------------------------------------------------------------------------------- help


def test_the_commands_are_the_modules_of_scripts():
    modules = {path.stem for path in (ROOT / "scripts").glob("*.py")} - {"__init__"}
    assert set(scripts.COMMANDS) == modules and len(scripts.COMMANDS) == len(modules)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_of_the_whole_names_every_command_and_how_to_complete(words, monkeypatch, capsys):
    code, text, _ = of_the_command(words, monkeypatch, capsys)
    lines = text.splitlines()
    assert code == 0 and len(lines) <= 45 and max(map(len, lines)) <= 80
    assert set(re.findall(r"^    ([a-z-]+)(?:  |$)", text, re.M)) == set(map(command_name, scripts.COMMANDS))
    assert 'eval "$(register-python-argcomplete concept-encoder)"' in text


def test_version_and_unknown_commands(monkeypatch, capsys):
    assert of_the_command(["--version"], monkeypatch, capsys) == (0, f"{concept_encoder.__version__}\n", "")
    said = "concept-encoder: error: unknown command 'analize'; did you mean analyze?\n"
    assert of_the_command(["analize"], monkeypatch, capsys) == (2, "", said)
    said = "concept-encoder: error: unknown command 'train_tokenizer'; did you mean train-tokenizer?\n"
    assert of_the_command(["train_tokenizer"], monkeypatch, capsys) == (2, "", said)


@pytest.mark.parametrize("name", scripts.COMMANDS)
def test_help_fits_a_screen_and_has_purpose_and_example(name, monkeypatch, capsys):
    text = help_of(name, monkeypatch, capsys)
    lines = text.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 80
    purpose = next(line for line in lines[1:] if line and not line.startswith(" "))
    assert re.fullmatch(r"[A-Z].{15,}\.", purpose)
    assert f"    concept-encoder {command_name(name)}" in text  # that it works is for tests/package/test_docs.py
    assert not re.search(r"--\w+-\w", text.partition("options:")[2])


@pytest.mark.parametrize("name", scripts.COMMANDS)
def test_a_default_in_the_help_is_that_of_the_verb(name):
    """Commands have no defaults of their own: what is not typed is not passed on."""
    verb = getattr(concept_encoder, "pretrain" if name == "pretrain_twin" else name)
    known = inspect.signature(verb).parameters
    if name == "generate":
        known = {**known, **inspect.signature(concept_encoder.ConceptEncoderForDiffusionMLM.generate).parameters}
    for action in script(name).command()._actions:
        assert action.default in (None, False, argparse.SUPPRESS), action.dest
        said = re.search(r"\(default: ([\w.-]+)\)", action.help)
        if said is None or said[1] in ("CHECKPOINT", "all"):
            continue
        default = known[action.dest].default
        values = [*default] if isinstance(default, tuple) else [default]
        assert [f"{value:g}" if isinstance(value, float) else str(value) for value in values] == [said[1]], action.dest


def test_names_that_the_help_lists_are_those_of_the_library():
    trained_on = {name for name, task in BENCHMARKS.items() if task.train_split}
    assert set(script("finetune").TASKS) == trained_on and script("similarity").TASKS == SIMILARITY_TASKS
    assert tuple(RETRIEVAL_TASKS) == script("retrieval").TASKS
    assert tuple(PROTOCOLS) == script("finetune").PROTOCOLS and tuple(load_gates()) == script("report").GATES
    assert tuple(EXPORTERS) == script("export").FORMATS and PRECISIONS == script("encode").PRECISIONS
    assert (SOURCES, FUSIONS) == (script("search").SOURCES, script("search").FUSIONS)


@pytest.mark.parametrize("name", scripts.COMMANDS)
def test_exit_codes_are_said_where_there_are_several(name, monkeypatch, capsys):
    source = (ROOT / "scripts" / f"{name}.py").read_text(encoding="utf-8")
    several = "SystemExit(" in source or "parser.exit(" in source
    assert ("Exit code" in help_of(name, monkeypatch, capsys)) == several


@pytest.mark.parametrize("name", scripts.COMMANDS)
def test_the_example_is_taken_by_the_parser(name, monkeypatch, capsys, tmp_path):
    """Bad input ends with 2, and so would an example of options that do not exist; work would be another error."""
    monkeypatch.chdir(tmp_path)
    module = script(name)
    start = rf"(?:concept-encoder {command_name(name)}|accelerate launch -m concept_encoder.scripts.{name})"
    examples = re.findall(rf"^    {start}((?:.*\\\n)*.*)", module.__doc__, re.M)
    assert (
        len(examples) == module.__doc__.count("\n    concept-encoder ") + module.__doc__.count("\n    accelerate ") > 0
    )

    class Taken(Exception):
        pass

    original = argparse.ArgumentParser.parse_known_args

    def parse(self, args=None, namespace=None):
        original(self, args, namespace)
        raise Taken

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
    for example in examples:
        with pytest.raises(Taken):
            module.main(shlex.split(example.replace("\\\n", " ")))


@pytest.mark.parametrize("name", WITH_FIELDS)
def test_fields_are_listed_and_not_in_the_help(name, monkeypatch, capsys):
    of_data = ("analyze", "whiten", "train_tokenizer")
    field = "--patience" if name == "finetune" else "--corpus_seed" if name in of_data else "--nested_concepts"
    assert field not in help_of(name, monkeypatch, capsys)
    listed = help_of(name, monkeypatch, capsys, "--fields")
    assert field in listed and not re.search(r"--\w+-\w", listed)


def test_one_name_for_one_thing(monkeypatch, capsys):
    """What is given and written has one name in all scripts."""
    texts = {name: help_of(name, monkeypatch, capsys) for name in scripts.COMMANDS}
    options = {name: set(re.findall(r"^  (--\w+)", text, re.M)) for name, text in texts.items()}
    banned = {"--output", "--out", "--out_dir", "--folder", "--force", "--dryrun", "--bs", "--model", "--rev"}
    assert not {name: found & banned for name, found in options.items() if found & banned}
    positionals = {name: set(re.findall(r"^  ([A-Z_]+)\b", text, re.M)) for name, text in texts.items()}
    named = set("CHECKPOINT OTHER_CHECKPOINT RUN_DIR OTHER_RUN_DIR RECIPE PLAN COMPARISON FOLDER QUERY".split())
    assert set().union(*positionals.values()) == named


# ------------------------------------------------------------------------------------------------------------- parsing


def command(*fields) -> Command:
    parser = Command("scripts/some_thing.py", "Do something.")
    parser.add_argument("checkpoint")
    parser.add_argument("--batch_size", type=int, help="how many")
    parser.add_argument("--seeds", type=int, nargs="+", help="which")
    parser.add_argument("--dry_run", action="store_true", help="and stop")
    if fields:
        parser.accept(*fields)
    return parser


def test_what_is_typed_is_passed_on_and_nothing_else():
    assert command().typed(["here"]) == {"checkpoint": "here"}
    typed = {"checkpoint": "here", "batch_size": 0, "seeds": [1, 2], "dry_run": True}
    assert command().typed(["here", "--batch_size", "0", "--dry_run", "--seeds", "1", "2"]) == typed


def test_fields_follow_in_any_order_and_keep_their_words():
    parser = command(RECIPE_FIELDS, ["data"])
    words = ["here", "--text_column", "x", "--batch_size", "4", "--corpus_seed=-1", "--streaming", "true"]
    assert parser.typed(words) == {"checkpoint": "here", "batch_size": 4}
    assert parser.words == ["--text_column", "x", "--corpus_seed=-1", "--streaming", "true"]
    assert parser.fields() == {"text_column": "x", "corpus_seed": -1, "streaming": True}
    parser = command(RECIPE_FIELDS)
    assert parser.typed(["here", "--learning_rate", "1e-4", "--seed", "-1"]) == {"checkpoint": "here"}
    assert parser.fields() == {"learning_rate": 1e-4, "seed": -1}
    parser.typed(["here"])
    assert parser.fields() == {}
    parser = command(PROTOCOL_FIELDS)
    parser.typed(["here", "--epochs", "2", "--learning_rates", "1e-4", "1e-3"])
    assert parser.fields() == {"epochs": 2, "learning_rates": (1e-4, 1e-3)}


def test_an_unknown_field_is_named_with_the_nearest():
    parser = command(RECIPE_FIELDS)
    parser.typed(["here", "--learnin_rate", "1"])
    with pytest.raises(ValueError, match="unknown field 'learnin_rate'; did you mean learning_rate"):
        parser.fields()
    parser = command(RECIPE_FIELDS, ["data"])
    parser.typed(["here", "--dry_rum"])
    with pytest.raises(ValueError, match=r"^unknown field 'dry_rum'; did you mean --dry_run\?$"):
        parser.fields()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: checkpoint"),
        (["here", "--batch_siz", "3"], "unknown argument '--batch_siz'; did you mean --batch_size"),
        (["here", "--batch-size", "3"], "unknown argument '--batch-size'; did you mean --batch_size"),
        (["here", "there"], "unknown argument 'there'"),
        (["here", "--batch_size", "many"], "argument --batch_size: invalid int value: 'many'"),
    ],
)
def test_wrong_words_end_in_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        command().typed(words)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"concept-encoder some-thing: error: {message}")


def test_a_script_of_the_repository_has_the_name_of_its_file():
    assert Command(str(ROOT / "scripts" / "dev" / "soak.py"), "Watch.").prog == "soak.py"


def test_what_a_user_can_cause_ends_in_one_line_and_a_closed_pipe_does_not(capsys):
    for error in (ValueError("two\nlines"), FileNotFoundError("two lines"), MemoryError("two lines")):
        with pytest.raises(SystemExit) as stop, command().refusing():
            raise error
        assert stop.value.code == 2
        assert capsys.readouterr().err == "concept-encoder some-thing: error: two lines\n"
    with pytest.raises(BrokenPipeError), command().refusing():
        raise BrokenPipeError
    with pytest.raises(TypeError), command().refusing():
        raise TypeError


def test_the_next_command_is_as_it_is_typed_on_any_machine(capsys):
    assert command_to_type("train-tokenizer", Path("runs/it's mine")) == (
        "concept-encoder train-tokenizer 'runs/it'\"'\"'s mine'"
    )
    suggest("analyze", "runs/mine", "--num_batches", "4")
    command().suggest_again(["runs/mine", "--dry_run", "--seed", "3"])
    printed, said = capsys.readouterr()
    assert printed == "" and said.splitlines() == [
        "Next: concept-encoder analyze runs/mine --num_batches 4",
        "Next: concept-encoder some-thing runs/mine --seed 3",
    ]


# ---------------------------------------------------------------------------------------------------------- completion


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("concept-encoder pus", {"push"}),
        ("concept-encoder pretrain ti", {"tiny"}),
        ("concept-encoder export x --form", {"--format"}),
        ("concept-encoder export x --format ", {"onnx", "pt2"}),
        ("concept-encoder finetune x --tasks mrp", {"mrpc"}),
    ],
)
def test_the_tab_key(line, offered, tmp_path):
    """As the shell asks: the line in variables, the answer on descriptor 8."""
    answer = tmp_path / "answer"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
    asked |= {"_ARGCOMPLETE_SUPPRESS_SPACE": "1", "COMP_TYPE": "9"}
    shell = f"{shlex.join(RUN)} 8>{shlex.quote(str(answer))} 9>/dev/null"
    subprocess.run(["bash", "-c", shell], env={**os.environ, **asked}, cwd=tmp_path, timeout=120, check=True)
    assert set(answer.read_text().split()) == offered


# ------------------------------------------------------------------------------------------------------ tiny numbers

TINY = """
import torch
from concept_encoder.utils.command_line import Command, run

def main():
    with Command("some.py", "").refusing():
        torch.set_num_threads(2)
        print((torch.full((1 << 20,), 1e-39) * 1).count_nonzero().item())

"""


@pytest.mark.slow
@pytest.mark.parametrize(("call", "left"), [("run(main)", 0), ("main()", 1 << 20)])
def test_a_script_takes_no_time_for_tiny_numbers_in_any_thread(call, left):
    done = subprocess.run([sys.executable, "-c", TINY + call], capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) == left


# --------------------------------------------------------------------------------------------------------------- pipes


def test_a_closed_pipe_is_no_error(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr("concept_encoder.utils.command_line._Shell.started_this", False)
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
    command = [*RUN, "pretrain", *TRAIN.split(), "--output_dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout, done.stderr


@pytest.mark.slow
def test_a_pipe_gets_results_only_and_a_log_has_no_bars(trained):
    folder, out, err = trained
    assert re.fullmatch(r"3 steps, 0\.1 M parameters, conditional NELBO [\d.]+ bits per token.*\n", out)
    assert re.search(r"^step \d+: loss [\d.]+", err, re.M)
    assert err.rstrip().endswith(f"Next: concept-encoder analyze {folder}")
    assert "\r" not in out + err and "\x1b" not in out + err


@pytest.mark.slow
@pytest.mark.parametrize("words", ["scripts/dev/audit.py --help", "-m concept_encoder pretrain --help"])
def test_a_reader_that_has_gone_is_no_error(words):
    piped = f"{shlex.quote(sys.executable)} {words} | true; exit ${{PIPESTATUS[0]}}"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # argparse hides it
    done = subprocess.run(["bash", "-c", piped], cwd=ROOT, env=buffered, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (141, "", "")


@pytest.mark.slow
def test_head_gets_the_first_line_and_the_next_command_works(trained, tmp_path):
    folder, _, err = trained
    following = err.rstrip().splitlines()[-1].replace("Next: concept-encoder", shlex.join(RUN))
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
    command = [*RUN, "pretrain", *TRAIN.split(), "--output_dir", str(tmp_path / "run")]
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


# ------------------------------------------------------------------------------------------------------------- signals


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_training_ends_it_with_its_status_and_no_traceback(tmp_path, sent, status):
    endless = TRAIN.replace("--max_steps 3", "--max_steps 100000").split()
    log = tmp_path / "log"
    with (
        log.open("w") as said,
        subprocess.Popen(
            [*RUN, "pretrain", *endless, "--output_dir", str(tmp_path / "run")], stdout=said, stderr=said
        ) as child,
    ):
        deadline = time.monotonic() + 240
        while not re.search(r"^step \d+: loss", log.read_text(), re.M):
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        child.send_signal(sent)
        assert child.wait(timeout=120) == status
    text = log.read_text()
    assert "Traceback" not in text
    last = text.rstrip().splitlines()[-1]
    assert last.startswith("concept-encoder pretrain: ")
    assert "the same command continues" in last or status == 130
