"""Gates: thresholds as data, verdicts by interval or by point."""

import pytest

from concept_encoder.eval.gates import (
    Gate,
    check_gates,
    exit_code,
    load_gates,
    overall_verdict,
)

ROW = {"name": "n", "metric": "a/b", "comparison": ">", "threshold": 0.5, "reason": "r", "source": "s"}


def verdict(metric, comparison=">", threshold=0.5):
    (result,) = check_gates({"a": {"b": metric}}, [Gate(**{**ROW, "comparison": comparison, "threshold": threshold})])
    return result.verdict


def test_packaged_gates_are_gate_1_of_the_reference():
    rank, stsb = load_gates()
    assert (rank.metric, rank.comparison) == ("geometry/metrics/global_effective_rank_normalized", ">")
    assert rank.threshold == 30 / 128
    assert (stsb.metric, stsb.comparison, stsb.threshold) == ("downstream/stsb.reference/scores/pearson", ">", 0.70)
    assert all(gate.reason and gate.source for gate in (rank, stsb))


@pytest.mark.parametrize(
    ("comparison", "value", "expected"),
    [
        (">", 0.6, "PASS"),
        (">", 0.5, "FAIL"),
        (">=", 0.5, "PASS"),
        ("<", 0.4, "PASS"),
        ("<", 0.5, "FAIL"),
        ("<=", 0.5, "PASS"),
        (">", 1, "PASS"),
        (">", None, "INCONCLUSIVE"),
    ],
)
def test_point_value_decides_without_interval(comparison, value, expected):
    assert verdict(value, comparison) == expected
    assert verdict({"value": value}, comparison) == expected
    assert verdict({"value": value, "interval": None}, comparison) == expected


@pytest.mark.parametrize(
    ("comparison", "interval", "expected"),
    [
        (">", [0.51, 0.9], "PASS"),
        (">", [0.5, 0.9], "INCONCLUSIVE"),
        (">=", [0.5, 0.9], "PASS"),
        (">", [0.1, 0.5], "FAIL"),
        (">=", [0.1, 0.5], "INCONCLUSIVE"),
        ("<", [0.1, 0.49], "PASS"),
        ("<", [0.1, 0.5], "INCONCLUSIVE"),
        ("<", [0.5, 0.9], "FAIL"),
        ("<=", [0.1, 0.5], "PASS"),
    ],
)
def test_interval_decides_where_there_is_one(comparison, interval, expected):
    assert verdict({"value": sum(interval) / 2, "interval": interval}, comparison) == expected


@pytest.mark.parametrize(
    ("report", "words"),
    [
        ({}, "the report has no 'a'"),
        ({"a": {}}, "a has no 'b'"),
        ({"a": None}, "a is empty in this report"),
        ({"a": [{"id": "c", "value": 1}]}, "a has no 'b'"),
        ({"a": {"b": None}}, "a/b is null: it was not measured"),
    ],
)
def test_missing_metric_is_inconclusive_with_its_reason(report, words):
    (result,) = check_gates(report, [Gate(**ROW)])
    assert (result.verdict, result.explanation, result.value) == ("INCONCLUSIVE", words, None)


def test_a_list_is_searched_by_id():
    report = {"a": [{"id": "x", "value": 0}, {"id": "b", "value": 0.9, "interval": [0.8, 1.0]}, 3]}
    (result,) = check_gates(report, [Gate(**ROW)])
    assert (result.verdict, result.value, result.interval) == ("PASS", 0.9, (0.8, 1.0))
    row = result.as_row()
    assert row["interval"] == [0.8, 1.0]
    assert (row["name"], row["threshold"], row["verdict"]) == ("n", 0.5, "PASS")
    assert row["explanation"] == "all of the interval [0.8, 1] is > 0.5"


@pytest.mark.parametrize("metric", ["text", {"other": 1}, True, [1], float("nan")])
def test_a_path_to_something_else_is_an_error(metric):
    with pytest.raises(ValueError, match=r"gate 'n': metric 'a/b' leads to \w+, not to a finite number"):
        verdict(metric)


@pytest.mark.parametrize("interval", [[0.9, 0.1], [0.1], "ab", [0.1, None]])
def test_a_bad_interval_is_an_error(interval):
    with pytest.raises(ValueError, match=r"interval of 'a/b' must be \[low, high\], got"):
        verdict({"value": 0.5, "interval": interval})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"comparison": "=="}, r"gate 'n': comparison must be one of >, >=, <, <=, got '=='"),
        ({"threshold": "0.5"}, r"gate 'n': threshold must be a finite number, got '0.5'"),
        ({"threshold": float("nan")}, r"threshold must be a finite number, got nan"),
    ],
)
def test_bad_gate(change, message):
    with pytest.raises(ValueError, match=message):
        Gate(**{**ROW, **change})


GOOD = "{name: n, metric: a/b, comparison: '>', threshold: 1, reason: r, source: s}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gates: [", "gates.yaml is not YAML"),
        ("", "must hold a list of gates under the key 'gates'"),
        ("gates: []", "must hold a list of gates"),
        ("gates: [1]", "must hold a list of gates"),
        ("gates: [{name: n}]", "gate 1 lacks comparison; lacks metric; lacks reason"),
        (f"gates: [{GOOD[:-1]}, limit: 3}}]", "gate 1 has the unknown field 'limit'. The fields are: name, metric,"),
        (f"gates: [{GOOD}, {GOOD}]", "uses a gate name twice: n"),
    ],
)
def test_bad_gate_file(text, message, tmp_path):
    path = tmp_path / "gates.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_gates(path)


@pytest.mark.parametrize(
    ("values", "overall", "code"),
    [([0.9, 0.9], "PASS", 0), ([0.9, 0.1], "FAIL", 1), ([None, 0.1], "FAIL", 1), ([None, 0.9], "INCONCLUSIVE", 2)],
)
def test_exit_code(values, overall, code):
    gates = [Gate(**{**ROW, "name": str(i), "metric": str(i)}) for i in range(len(values))]
    results = check_gates({str(i): value for i, value in enumerate(values)}, gates)
    assert overall_verdict(results) == overall
    assert exit_code(results) == code


def test_no_gates_pass_nothing():
    with pytest.raises(ValueError, match="no gate results to judge"):
        exit_code([])
