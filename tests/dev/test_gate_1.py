"""The page on gate 1: which reports it takes, what it puts into its tables, and that the one in the tree is fresh."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from run_files import synthetic_finetune, synthetic_pretrain, synthetic_similarity

from concept_encoder.eval.report.report import PARTS, compose
from concept_encoder.scripts.dev import gate_1
from concept_encoder.utils.results import ControlScore, Figure, FrozenScore, Report

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
COMPARISON = RESULTS / "objectives_20m.comparison.json"


def report(stsb=0.7, twin=0.4) -> Report:
    """Of a run that was fine-tuned and scored on STS-B, 0.1 lower without training."""
    control = {"value": twin, "interval": None, "difference": None, "difference_interval": None, "p_value": None}
    made = synthetic_finetune("stsb", {"pearson": stsb}, {"pearson": 0.0}, 1500, protocol="bi_encoder+epochs=3")
    made.primary.controls["random_init"] = ControlScore(**control)
    frozen = FrozenScore(
        method="cosine, mean",
        metric="spearman",
        value=stsb - 0.1,
        interval=None,
        random_init=ControlScore(**{**control, "value": twin - 0.1}),
    )
    results = {name: {} for name in PARTS} | {
        "training": {"pretrain.json": replace(synthetic_pretrain(), train_seconds=60)},
        "downstream": {"a.json": made},
        "similarity": {"b.json": replace(synthetic_similarity("stsb"), rows=[frozen])},
    }
    return compose("run", results)


@pytest.fixture
def folder(tmp_path):
    shutil.copy(RESULTS / "gate_1.report.json", tmp_path)
    shutil.copytree(RESULTS / "gate_1", tmp_path / "gate_1")
    return tmp_path / "gate_1"


def test_the_page_is_fresh():
    assert (ROOT / "docs" / "GATE_1.md").read_text(encoding="utf-8") == gate_1.render_page(
        RESULTS / "gate_1", COMPARISON
    )


def test_scores_of_runs_means_and_controls():
    rows = gate_1._score_rows({"seed-42": report(0.7), "seed-43": report(0.8), "bert-42": report(0.5)})
    missing = [None] * 4
    assert [(row.name, row.time) for row in rows] == [
        ("concept encoder, seed 42", "1 min 00 s"),
        ("concept encoder, seed 43", "1 min 00 s"),
        ("concept encoder, mean", None),
        ("BERT twin, seed 42", "1 min 00 s"),
        ("concept encoder, random weights", None),
        ("bag of tokens", None),
    ]
    expected = [(0.6, 0.7), (0.7, 0.8), (0.65, 0.75), (0.4, 0.5), (0.3, 0.4), (None, None)]
    for row, pair in zip(rows, expected, strict=True):
        assert list(row.scores) == [*(x if x is None else pytest.approx(x) for x in pair), *missing]


@pytest.mark.slow
def test_runs_come_in_the_order_of_the_page(folder):
    for name in ("bert-10", "bert-9", "seed-7"):
        shutil.copy(RESULTS / "gate_1.report.json", folder / f"{name}.report.json")
    names = list(gate_1.read_runs(folder))
    kinds = [name.rpartition("-")[0] for name in names]
    assert kinds == sorted(kinds, key=list(gate_1.GROUPS).index)
    assert {"bert-10", "bert-9", "seed-7"} < set(names)


def test_a_run_of_another_name_is_refused(folder):
    shutil.copy(folder / "contamination.json", folder / "other-42.report.json")
    with pytest.raises(ValueError, match=r"other-42\.report\.json: a run is named seed, bert, bert_long, then -"):
        gate_1.read_runs(folder)


@pytest.mark.slow
def test_the_page_judges_the_reports(folder):
    path = folder.with_suffix(".report.json")
    report = Report.load(path)
    report.ledger.bits_per_token.null = Figure(value=0.125, interval=(0.0625, 0.25))
    report.save(path)
    failed = "**FAIL** 0.125, 0.062 to 0.250"
    assert failed in gate_1.render_page(folder, COMPARISON)
    assert failed not in (ROOT / "docs" / "GATE_1.md").read_text(encoding="utf-8")


def test_the_page_names_what_is_missed():
    runs = gate_1._seeds(gate_1.read_runs(RESULTS / "gate_1"))
    rows = gate_1._gate_rows(runs)
    missed = {row[0].gate.name: [cell.value for cell in row] for row in gate_1._missed(rows)}
    failing = {row[0].gate.name for row in rows if "FAIL" in {cell.verdict for cell in row if cell.value is not None}}
    assert failing <= set(missed) and "STS-B Pearson" not in missed
    page = (ROOT / "docs" / "GATE_1.md").read_text(encoding="utf-8")
    for name, values in missed.items():
        assert f"- **{name}**: asks" in page and f"{values[0]:.3f}" in page


@pytest.mark.slow
def test_command_writes_page_and_figures(tmp_path):
    gate_1.main(["--page", str(tmp_path / "GATE_1.md")])
    assert (tmp_path / "GATE_1.md").read_text(encoding="utf-8").startswith("# Gate 1\n")
    for name in ("gate_1", "gate_1_dark"):
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 10_000
