"""The soak's arithmetic on curves of known slope, its page, and one real run that is too short to say anything."""

import json
import math
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from concept_encoder.scripts.dev import soak as module
from concept_encoder.scripts.dev.soak import (
    BOUNDS,
    in_blocks,
    main,
    refresh_page,
    render_section,
    soak,
    trends,
    verdict,
)
from concept_encoder.trainers.training.saving import damage, find_checkpoints

PRETRAIN = Path(__file__).parents[2] / "scripts" / "pretrain.py"


def samples(growth=0.0, hours=2.0, handles=20, seed=0):
    """Every ten seconds, 600 MB with noise, a peak at each tenth look, and a quick growth at first."""
    random = np.random.default_rng(seed)
    rows = []
    for number, seconds in enumerate(np.arange(0, hours * 3600, 10.0)):
        memory = (
            600 + growth * seconds / 3600 + random.normal() + 80 * (number % 10 == 0) - 200 * np.exp(-seconds / 60)
        )
        rows.append({"seconds": seconds, "resident_mb": memory, "handles": handles, "threads": 8 + (number % 7 == 0)})
    return rows


def result(growth=0.0, finite=True, **more):
    training = {"steps": 3000, "tokens_seen": 1_500_000, "checkpoints": 15, "evaluations": 16, "exit_status": 143}
    training |= {"loss": [6.0, 2.5], "eval_loss": [6.1, 2.6], "finite": finite}
    blocks = in_blocks(samples(growth, **more))
    shown = {"hours": 2.0, "warm_up_share": 0.1, "blocks": blocks, "trends": trends(blocks), "training": training}
    return {**shown, **verdict(shown)}


def test_a_block_is_two_minutes_and_peaks_do_not_count():
    blocks = in_blocks(samples(hours=0.5))
    assert len(blocks) == 15
    assert [round(block["hours"] * 60, 6) for block in blocks[:3]] == [1.0, 3.0, 5.0]
    assert all(block["handles"] == 20 and block["threads"] == 8 for block in blocks)
    assert all(598 < block["resident_mb"] < 602 for block in blocks[5:])


@pytest.mark.parametrize(("growth", "expected"), [(0.0, "PASS"), (3.0, "PASS"), (30.0, "FAIL"), (5.0, "INCONCLUSIVE")])
def test_the_slope_is_found_and_judged(growth, expected):
    judged = result(growth)
    trend = judged["trends"]["resident_mb"]
    low, high = trend["interval"]
    assert low <= growth + 0.5 and high >= growth - 0.5 and abs(trend["per_hour"] - growth) < 1
    assert judged["verdict"] == expected
    assert bool(judged["reasons"]) == (expected != "PASS")
    if judged["reasons"]:
        assert judged["reasons"][0].startswith("resident memory, MB: +")
    assert judged["trends"]["handles"]["interval"] == [0.0, 0.0]


def test_a_loss_that_is_not_finite_fails():
    judged = result(finite=False)
    assert (judged["verdict"], judged["reasons"]) == ("FAIL", ["a loss is not finite"])


def test_the_section_shows_the_figures_between_the_marks():
    page = "# Page\n\n<!-- soak -->\nold\n<!-- /soak -->\nrest\n"
    section = render_section(result(), "results/soak.json")
    fresh = refresh_page(page, section)
    assert fresh == f"# Page\n\n<!-- soak -->\n{section}<!-- /soak -->\nrest\n"
    assert refresh_page(fresh, section) == fresh
    assert section.startswith("**PASS**. 2.00 hours, 3,000 steps,\n1.5 M tokens, 15 checkpoints,")
    assert "loss 6.000 to 2.500, in evaluation 6.100 to 2.600, every one finite" in section
    assert all(f"| {module.NAMES[name]} |" in section for name in BOUNDS)
    assert "**FAIL**: resident memory, MB: +" in render_section(result(30.0), "x")
    with pytest.raises(ValueError, match=r"the page has no <!-- soak --> followed by <!-- /soak -->"):
        refresh_page("# Page\n", section)


def test_the_page_shows_the_result_that_is_kept():
    docs = PRETRAIN.parents[1] / "docs"
    page, kept = (docs / "RELIABILITY.md").read_text(encoding="utf-8"), docs / "results" / "soak.json"
    section = "Not run yet.\n"
    if kept.exists():
        section = render_section(json.loads(kept.read_text(encoding="utf-8")), "results/soak.json")
    assert refresh_page(page, section) == page


def test_the_command_renders_a_result_again(tmp_path, capsys):
    (tmp_path / "soak.json").write_text(json.dumps(result()))
    (tmp_path / "page.md").write_text("<!-- soak -->\n<!-- /soak -->\n")
    main(["--render", "--result", str(tmp_path / "soak.json"), "--page", str(tmp_path / "page.md")])
    assert "**PASS**" in (tmp_path / "page.md").read_text() and "**PASS**" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give RECIPE and --output_dir, or --render and neither"),
        (["tiny"], "give RECIPE and --output_dir, or --render and neither"),
        (["--render", "tiny", "--output_dir", "x"], "give RECIPE and --output_dir, or --render and neither"),
        (["tiny", "--output_dir", "x", "--hours", "0.1"], r"hours be at least 0.33, got every=10.0, hours=0.1"),
        (["tiny", "--output_dir", "x", "--every", "0"], "every must be in (0, 120] seconds"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def short(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_SECONDS", 0.5)


def test_a_run_that_ends_early_is_an_error_with_its_last_line(tmp_path, monkeypatch):
    short(monkeypatch)
    command = [sys.executable, "-c", "print('first'); raise SystemExit('no such recipe')"]
    with pytest.raises(ValueError, match=r"ended with status 1 before its time; its last line, in .*: no such recipe"):
        soak(command, tmp_path / "run", 600 / 3600, 0.1)


def test_sigterm_ends_the_run_too(tmp_path, monkeypatch):
    short(monkeypatch)
    looked_at = []

    def look(process):
        looked_at.append(process)
        signal.raise_signal(signal.SIGTERM)

    def missed(*_):
        raise AssertionError("this process alone would have ended")

    monkeypatch.setattr(module, "_look", look)
    before = signal.signal(signal.SIGTERM, missed)
    try:
        with pytest.raises(SystemExit) as stop:
            soak([sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "run", 600 / 3600, 0.1)
        assert signal.getsignal(signal.SIGTERM) is missed
    finally:
        signal.signal(signal.SIGTERM, before)
    (child,) = looked_at
    assert stop.value.code == 128 + signal.SIGTERM and not child.is_running()


@pytest.mark.slow
def test_a_real_run_is_watched_and_stopped(tmp_path, monkeypatch):
    short(monkeypatch)

    def clock():
        """Seconds, and for ever when ten blocks are full and the run has saved twice and evaluated once."""
        now, steps = time.monotonic(), [step for step, _ in find_checkpoints(tmp_path / "run")]
        return now if now < begin + 10 * module.BLOCK_SECONDS or max(steps, default=0) < 10 else math.inf

    begin = time.monotonic()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock, sleep=time.sleep))
    fields = "--max_steps 1000000 --save_strategy steps --save_steps 5 --save_total_limit 2 --eval_strategy steps "
    fields += "--eval_steps 10 --max_train_documents 64 --max_validation_documents 4 --disable_tqdm true"
    command = [sys.executable, str(PRETRAIN), "tiny", *fields.split(), "--output_dir", str(tmp_path / "run")]
    found = soak(command, tmp_path / "run", 600 / 3600, 0.1)
    (*_, (step, last)) = find_checkpoints(tmp_path / "run")
    assert damage(last) is None and found["training"]["steps"] == step
    assert found["training"]["exit_status"] == 128 + signal.SIGTERM and found["training"]["finite"]
    assert found["training"]["checkpoints"] >= 2 and found["training"]["evaluations"] >= 1
    assert all(block["resident_mb"] > 10 and block["threads"] >= 1 for block in found["blocks"])
    assert found["verdict"] in ("PASS", "FAIL", "INCONCLUSIVE")
    render_section(found, "x")
