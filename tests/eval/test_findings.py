"""What the figures of a run say: scores against chance, next steps."""

import numpy as np
import pytest
from run_files import synthetic_finetune, write_synthetic_run

from concept_encoder.eval.metrics.chance import judge, sampling_interval, task_words
from concept_encoder.eval.report.findings import next_steps
from concept_encoder.eval.report.gates import Gate, GateResult
from concept_encoder.eval.report.report import build_report
from concept_encoder.utils.results import Report


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a synthetic run with every part."""
    return write_synthetic_run(tmp_path_factory.mktemp("runs") / "sample")


# ------------------------------------------------------------------------------------------------------ against chance


@pytest.mark.parametrize(
    ("metric", "value", "chance", "examples", "verdict"),
    [
        ("accuracy", 0.70, 0.68, 100, "not told from chance"),
        ("accuracy", 0.70, 0.68, 100_000, "above chance"),
        ("accuracy", 0.68, 0.68, 100, "at or below chance"),
        ("accuracy", 0.70, 0.68, None, "above chance"),
        ("pearson", 0.06, 0.0, 495, "not told from chance"),
        ("pearson", None, 0.0, 495, "at or below chance"),
        ("pearson", 0.22, 0.0, 5000, "barely above chance"),
        ("pearson", 0.23, 0.0, 5000, "above chance"),
        ("f1", 0.82, 0.81, 408, "above chance"),
        ("f1", 0.82, None, 408, "no chance level"),
    ],
)
def test_score_against_chance(metric, value, chance, examples, verdict):
    assert judge(metric, value, chance, examples=examples).verdict == verdict


def test_a_measured_interval_wins():
    row = judge("accuracy", 0.7, 0.68, examples=100_000, interval=(0.6, 0.8))
    assert (row.verdict, row.interval, row.interval_rule) == ("not told from chance", (0.6, 0.8), "as measured")


@pytest.mark.parametrize(("at_chance", "verdict"), [(True, "not told from chance"), (False, "above chance")])
def test_a_test_on_the_predictions_wins_over_the_interval(at_chance, verdict):
    row = judge("f1", 0.83, 0.81, examples=408, interval=(0.8, 0.86), at_chance=at_chance)
    assert row.verdict == verdict
    assert judge("f1", 0.80, 0.81, examples=408, at_chance=False).verdict == "at or below chance"


def test_score_without_interval_says_so():
    assert judge("f1", 0.9, 0.8, examples=408).note == "by the point value, no interval"


def test_a_task_is_put_into_one_line():
    task = synthetic_finetune("stsb", {"pearson": 0.138, "spearman": None}, {"pearson": 0.0}, 5000)
    assert task_words(task) == (
        "pearson 0.138: barely above chance (0.000, majority class); spearman undefined: no chance level"
    )


def test_wilson_interval_by_hand():
    n, p, z = 408, 281 / 408, 1.959964
    centre, half = (p + z * z / 2 / n), z * np.sqrt(p * (1 - p) / n + z * z / 4 / n**2)
    interval, rule = sampling_interval("accuracy", p, n)
    assert interval == pytest.approx([(centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)], abs=1e-6)
    assert rule == "95 %, Wilson, 408 examples"


def test_correlation_interval_covers():
    """Of 400 samples with correlation 0.5, about 95 % have it in their interval."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        x, noise = random.normal(size=(2, 80))
        value = float(np.corrcoef(x, 0.5 * x + np.sqrt(0.75) * noise)[0, 1])
        (low, high), _ = sampling_interval("pearson", value, 80)
        covered += low <= 0.5 <= high
    assert 0.92 < covered / 400 < 0.98


@pytest.mark.parametrize(
    ("metric", "value", "examples"), [("f1", 0.5, 100), ("pearson", 1.0, 100), ("pearson", 0.5, 3)]
)
def test_no_interval_without_a_formula(metric, value, examples):
    assert sampling_interval(metric, value, examples) == (None, None)


# ---------------------------------------------------------------------------------------------------------- next steps


def rules_of(report: Report, *verdicts: str) -> list[str]:
    path = "geometry/metrics/global_effective_rank_normalized"
    gate = Gate("rank", [path], ">", 0.2, "because", "us")
    results = [GateResult(gate, path, 0.2, 0.1, None, verdict, "stated") for verdict in verdicts]
    return [step.rule for step in next_steps(report, results)]


def test_next_steps_follow_the_figures(run):
    report = build_report(run)

    def logged(name: str, *values: float) -> None:
        rows = [{"step": step, name: value} for step, value in enumerate(values)]
        report.training.log_history = [row for row in report.training.log_history if name not in row] + rows

    logged("eval_nelbo_bits_per_token", 8.0, 2.0, 1.999)
    sought = ["duplicates", "at chance", "at chance after a sweep", "no twin"]
    assert rules_of(report, "PASS") == [*sought, "all pass"]
    assert rules_of(report, "FAIL") == ["low rank", *sought]

    logged("eval_nelbo_bits_per_token", 8.0, 2.0, 1.5)
    assert rules_of(report, "PASS")[0] == "still falling"
    logged("eval_loss", 5.0, 1.0, 1.5)
    assert rules_of(report, "PASS")[0] == "loss rose again"
    report.geometry.metrics = dict.fromkeys(report.geometry.metrics, 0.1)
    for task in report.downstream:
        task.primary.verdict = "above chance"
    assert rules_of(report, "INCONCLUSIVE") == ["loss rose again", "still falling", "no twin", "undecided gate"]


@pytest.mark.parametrize(("context", "advice"), [("none", "decoder_context="), ("latent", "context layer")])
def test_flat_loss_by_timestep_is_noticed(run, context, advice):
    report = build_report(run)
    report.training.model.decoder_context = context
    for row in report.training.evaluation.by_timestep:
        row.nll_bits = 1.5 + row.timestep / 100
    steps = {step.rule: step for step in next_steps(report, [])}
    assert advice in steps["flat in time"].do
    assert "1.5 to 1.51 bits" in steps["flat in time"].because


def test_a_twin_beside_the_score_is_not_asked_for_again(run):
    report = build_report(run)
    report.downstream = [task for task in report.downstream if task.id == "microworld_similarity.tuned"]
    assert "no twin" not in rules_of(report, "PASS")


def test_ignored_concepts_are_named_once(run):
    gate = Gate("ledger", ["ledger/bits_per_token/null"], ">", 0.5, "because", "us")
    results = [GateResult(gate, gate.metrics[0], 0.5, 0.1, None, "FAIL", "stated")] * 2
    steps = [step for step in next_steps(build_report(run), results) if step.rule == "concepts ignored"]
    assert [step.because for step in steps] == ["ledger: stated."]
