"""Sentences above a report: what many scores say is counted, what a few say is named."""

import pytest

from concept_encoder.eval.report.verdict import chance_lines, control_lines


def task(name: str, difference: float, verdict: str = "at or below chance") -> dict:
    """A scored task, its paired difference to the twin half a tenth either way."""
    control = {"difference": difference, "difference_interval": [difference - 0.05, difference + 0.05]}
    score = {"id": "accuracy", "value": 0.5, "controls": {"random_init": control}}
    return {"id": name, "primary_metric": "accuracy", "verdict": verdict, "scores": [score]}


def test_a_few_scores_are_named_with_their_intervals():
    tasks = [task("a", 0.01), task("b", -0.1), task("c", 0.2)]
    assert control_lines(tasks, "random_init") == [
        "This run beats the random-initialised twin on c (+0.200 accuracy, +0.150 to +0.250).",
        "This run cannot be told from the random-initialised twin on a (+0.010 accuracy, -0.040 to +0.060).",
        "This run is worse than the random-initialised twin on b (-0.100 accuracy, -0.150 to -0.050).",
    ]
    assert chance_lines(tasks) == ["The downstream scores cannot be told from chance: a, b and c are at chance."]


@pytest.mark.parametrize(("count", "named"), [(4, True), (5, False)])
def test_many_scores_are_counted(count, named):
    tasks = [task(f"t{i}", 0.01 * (i - 2)) for i in range(count)]
    (line,) = control_lines(tasks, "random_init")
    (chance,) = chance_lines(tasks)
    assert ("t0 (-0.020 accuracy" in line) == ("t0, t1" in chance) == named
    if not named:
        assert line == (
            "This run cannot be told from the random-initialised twin on 5 of 5 scores (differences from -0.020 to "
            "+0.020)."
        )
        assert chance == "The downstream scores cannot be told from chance: 5 of 5 scores are at chance."
