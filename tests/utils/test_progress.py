"""Bars on a terminal, a line now and then elsewhere."""

import re
import sys
from types import SimpleNamespace

import datasets
import pytest
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from transformers import TrainerState
from transformers.utils import logging

from concept_encoder.utils import progress as module
from concept_encoder.utils.progress import TrainingProgress, progress, silence_libraries


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_elsewhere_a_line_every_thirty_seconds(clock, capsys):
    for step in progress(range(100), desc="reading", unit="text", mininterval=0):
        clock[0] = step  # seconds
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(re.fullmatch(r"reading: +\d+% \d+/100 \[.*<.*, .*text/s\]", line) for line in lines), lines


def test_what_is_short_says_nothing(clock, capsys):
    for _ in progress(range(5), desc="outer"):
        for _ in progress(range(5), desc="inner", leave=False):
            pass
    assert capsys.readouterr() == ("", "")


def test_a_changed_postfix_is_no_line_of_its_own(clock, capsys):
    with progress(total=10, unit="cell") as bar:
        for epoch in range(200):
            clock[0] = epoch
            bar.set_postfix_str(f"epoch {epoch}")
    assert len(capsys.readouterr().err.splitlines()) == 6


def test_training_says_its_main_figures_in_a_line(capsys):
    args, state = SimpleNamespace(disable_tqdm=True), TrainerState(max_steps=60, global_step=20)
    display = TrainingProgress()
    display.on_train_begin(args, state, None)
    display.on_log(args, state, None, {"loss": 3.14159, "grad_norm": 12.0, "learning_rate": 2e-5, "epoch": 1.5})
    display.on_log(args, state, None, {"eval_loss": 2.0, "eval_nll_bits_t_0.5": 3.0, "eval_runtime": 1.0})
    display.on_log(args, state, None, {"epoch": 1.5})
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "step 20: loss 3.142, grad_norm 12, learning_rate 2e-05",
        "step 20: eval_loss 2",
    ]


def test_a_terminal_gets_the_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for _ in progress(range(3), desc="reading", mininterval=0):
        pass
    drawn = capsys.readouterr().err
    assert drawn.count("\rreading") >= 3 and "100%" in drawn


def test_bars_of_libraries_are_silent_without_a_terminal_only(monkeypatch):
    def silent():
        return (
            not logging.is_progress_bar_enabled(),
            datasets.are_progress_bars_disabled(),
            are_progress_bars_disabled(),
        )

    def loud():
        logging.enable_progress_bar()
        datasets.enable_progress_bars()
        enable_progress_bars()

    loud()
    try:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        silence_libraries()
        assert silent() == (False, False, False)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
        silence_libraries()
        assert silent() == (True, True, True)
    finally:
        loud()
