"""Sentences above a report: what many scores say is counted, what a few say is named."""

import pytest
from run_files import synthetic_finetune

from concept_encoder.eval.metrics.chance import chance_lines, control_lines
from concept_encoder.utils.results import ControlScore, FinetuneResult


def task(name: str, difference: float) -> FinetuneResult:
    """A task at chance, its paired difference to the twin half a tenth either way."""
    interval = (difference - 0.05, difference + 0.05)
    twin = ControlScore(value=0.5, interval=None, difference=difference, difference_interval=interval, p_value=None)
    made = synthetic_finetune(name, {"accuracy": 0.5}, {"accuracy": 0.5}, 100, protocol="p")
    made.primary.controls["random_init"] = twin
    return made


def test_a_few_scores_are_named_with_their_intervals():
    tasks = [task("a", 0.01), task("b", -0.1), task("c", 0.2)]
    assert control_lines(tasks, "random_init") == [
        "This run beats the random-initialised twin on c.p (+0.200 accuracy, +0.150 to +0.250).",
        "This run cannot be told from the random-initialised twin on a.p (+0.010 accuracy, -0.040 to +0.060).",
        "This run is worse than the random-initialised twin on b.p (-0.100 accuracy, -0.150 to -0.050).",
    ]
    assert chance_lines(tasks) == ["The downstream scores cannot be told from chance: a.p, b.p and c.p are at chance."]


@pytest.mark.parametrize(("count", "named"), [(4, True), (5, False)])
def test_many_scores_are_counted(count, named):
    tasks = [task(f"t{i}", 0.01 * (i - 2)) for i in range(count)]
    (line,) = control_lines(tasks, "random_init")
    (chance,) = chance_lines(tasks)
    assert ("t0.p (-0.020 accuracy" in line) == ("t0.p, t1.p" in chance) == named
    if not named:
        assert line == (
            "This run cannot be told from the random-initialised twin on 5 of 5 scores (differences from -0.020 to "
            "+0.020)."
        )
        assert chance == "The downstream scores cannot be told from chance: 5 of 5 scores are at chance."
