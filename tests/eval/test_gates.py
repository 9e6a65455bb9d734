"""Gates: thresholds as data, verdicts by interval or by point."""

import json
from types import SimpleNamespace

import pytest

from concept_encoder.eval.report.gates import (
    EXIT_CODES,
    Gate,
    Share,
    check_gates,
    load_gates,
    overall_verdict,
    sets_for,
)
from concept_encoder.utils.results import DataFacts, Figure

ROW = {"name": "n", "metrics": ["a/b"], "comparison": ">", "threshold": 0.5, "reason": "r", "source": "s"}


def verdict(metric, comparison=">", threshold=0.5):
    (result,) = check_gates({"a": {"b": metric}}, [Gate(**{**ROW, "comparison": comparison, "threshold": threshold})])
    return result.verdict


def test_packaged_gate_1_is_that_of_the_reference():
    gate_1 = load_gates()["gate_1"]
    rank, stsb = gate_1.gates
    assert rank.metrics == ["geometry/metrics/global_effective_rank_normalized"]
    assert (rank.comparison, rank.threshold) == (">", 30 / 128)
    protocols = [path.split("/")[1] for path in stsb.metrics]
    assert protocols == ["stsb.tuned", "stsb.bi_encoder", "stsb.reference", "stsb.quick"]
    assert (stsb.comparison, stsb.threshold) == (">", 0.70)


def test_packaged_strict_gate():
    above_zero, ledger, stsb, raw, centred = load_gates()["strict"].gates
    assert above_zero.metrics == ledger.metrics == ["ledger/bits_per_token/null"]
    assert (above_zero.threshold, ledger.threshold, stsb.threshold) == (0, 0.5, 0.70)
    for gate, view in ((raw, "within_raw"), (centred, "within_centred")):
        assert gate.comparison == ">="
        assert gate.metrics == [f"geometry/spectrum/views/{view}/rankme"]
        assert gate.threshold == Share(f"geometry/spectrum/views/{view}/rankme/nulls/gaussian", 0.5)


def test_runs_on_pairs_of_microworld_have_gates_of_their_own():
    def names(dataset_name=None, **more):
        facts = DataFacts(dataset_name=dataset_name, tokenizer_name=None, max_length=None, more=more)
        training = SimpleNamespace(data=facts) if dataset_name else None
        return list(sets_for(SimpleNamespace(training=training), load_gates()))

    assert names("microworld", dataset_config_name="pairs", packing="truncated") == ["microworld"]
    for name, config in (("microworld", None), ("pairs", "pairs"), (None, None)):
        assert names(name, dataset_config_name=config) == ["gate_1", "strict"]


@pytest.mark.parametrize("data", [["microworld"], {"dataset_name": 3}])
def test_data_of_a_set_are_names_and_texts(tmp_path, data):
    path = tmp_path / "gates.yaml"
    row = {**ROW, "metrics": ["ledger/bits_per_token/null"]}
    path.write_text(json.dumps({"sets": {"own": {"title": "Own", "data": data, "gates": [row]}}}))
    with pytest.raises(ValueError, match=r"set 'own': data must map names of fields to texts, got"):
        load_gates(path)


def test_packaged_gates_are_explained():
    gates = [gate for gate_set in load_gates().values() for gate in gate_set.gates]
    assert all(gate.reason and gate.source for gate in gates)


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
    assert verdict(SimpleNamespace(value=value), comparison) == expected
    assert verdict(Figure(value=value, interval=None), comparison) == expected


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
    assert verdict(Figure(value=sum(interval) / 2, interval=interval), comparison) == expected


@pytest.mark.parametrize(
    ("report", "words"),
    [
        ({}, "the report has no 'a'"),
        ({"a": {}}, "a has no 'b'"),
        ({"a": None}, "a was not measured"),
        ({"a": [SimpleNamespace(id="c", value=1)]}, "a has no 'b'"),
        ({"a": {"b": None}}, "a/b is null: it was not measured"),
    ],
)
def test_missing_metric_is_inconclusive_with_its_reason(report, words):
    (result,) = check_gates(report, [Gate(**ROW)])
    assert (result.verdict, result.explanation, result.value) == ("INCONCLUSIVE", words, None)


def test_a_list_is_searched_by_id():
    found = SimpleNamespace(id="b", value=0.9, interval=(0.8, 1.0))
    report = {"a": [SimpleNamespace(id="x", value=0), found, 3]}
    (result,) = check_gates(report, [Gate(**ROW)])
    assert (result.verdict, result.value, result.interval) == ("PASS", 0.9, (0.8, 1.0))
    row = result.as_row()
    assert row.interval == (0.8, 1.0)
    assert (row.name, row.threshold, row.verdict) == ("n", 0.5, "PASS")
    assert row.explanation == "all of the interval [0.8, 1] is > 0.5"


def test_the_only_result_with_values_replaced_stands_in_for_its_protocol():
    gate = Gate(**{**ROW, "metrics": ["a/b", "a/worst"]})
    replaced, other = (SimpleNamespace(id=name, value=0.9) for name in ("b+epochs=3", "b+epochs=4"))
    own, unlike = SimpleNamespace(id="b", value=0.1), SimpleNamespace(id="bc+epochs=3", value=0)
    (result,) = check_gates({"a": [replaced, unlike]}, [gate])
    assert (result.metric, result.verdict) == ("a/b+epochs=3", "PASS")
    assert result.explanation == "0.9 is > 0.5; no interval, by a/b+epochs=3"
    (result,) = check_gates({"a": [replaced, own]}, [gate])
    assert (result.metric, result.verdict) == ("a/b", "FAIL")
    (result,) = check_gates({"a": [replaced, other]}, [gate])
    assert (result.metric, result.verdict) == ("a/b", "INCONCLUSIVE")
    assert result.explanation == "a has no 'b', nor anything that could stand in for it"


def test_the_first_metric_there_is_decides():
    gate = Gate(**{**ROW, "metrics": ["a/best", "a/b", "a/worst"]})
    (result,) = check_gates({"a": {"b": 0.9, "worst": 0.1}}, [gate])
    assert (result.metric, result.verdict) == ("a/b", "PASS")
    assert result.explanation == "0.9 is > 0.5; no interval, by a/b"
    (result,) = check_gates({"a": {"best": None, "b": 0.9}}, [gate])
    assert (result.metric, result.verdict) == ("a/best", "INCONCLUSIVE")
    (result,) = check_gates({"a": {}}, [gate])
    assert (result.metric, result.verdict) == ("a/best", "INCONCLUSIVE")
    assert result.explanation == "a has no 'best', nor anything that could stand in for it"


@pytest.mark.parametrize(
    ("null", "verdict", "words"),
    [
        (1.0, "PASS", "all of the interval [0.6, 0.8] is > 0.5"),
        (1.4, "INCONCLUSIVE", "only a part of the interval [0.6, 0.8] is > 0.7"),
        (SimpleNamespace(value=2.0), "FAIL", "none of the interval [0.6, 0.8] is > 1"),
        (None, "INCONCLUSIVE", "no threshold: a/null is null: it was not measured"),
    ],
)
def test_a_threshold_may_be_a_share_of_another_figure(null, verdict, words):
    gate = Gate(**{**ROW, "threshold": Share("a/null", 0.5)})
    (result,) = check_gates({"a": {"b": Figure(value=0.7, interval=(0.6, 0.8)), "null": null}}, [gate])
    assert (result.verdict, result.explanation) == (verdict, words)
    assert result.as_row().asks == "> 0.5 × a/null"
    assert result.as_row().value == 0.7


def test_a_missing_threshold_is_inconclusive():
    (result,) = check_gates({"a": {"b": 0.7}}, [Gate(**{**ROW, "threshold": Share("a/null", 0.5)})])
    assert (result.verdict, result.threshold) == ("INCONCLUSIVE", None)
    assert result.explanation == "no threshold: a has no 'null'"


@pytest.mark.parametrize("metric", ["text", {"other": 1}, True, [1], float("nan")])
def test_a_path_to_something_else_is_an_error(metric):
    with pytest.raises(ValueError, match=r"gate 'n': metric 'a/b' leads to \w+, not to a finite number"):
        verdict(metric)


@pytest.mark.parametrize("interval", [[0.9, 0.1], [0.1], "ab", [0.1, None]])
def test_a_bad_interval_is_an_error(interval):
    with pytest.raises(ValueError, match=r"interval of 'a/b' must be \[low, high\], got"):
        verdict(SimpleNamespace(value=0.5, interval=interval))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"comparison": []}, r"gate 'n': comparison must be text, got \[\]"),
        ({"name": 3}, "gate 3: name must be text, got 3"),
        ({"threshold": Share(["a"], 1.0)}, r"gate 'n': threshold metric must be text, got \['a'\]"),
        ({"comparison": "=="}, r"gate 'n': comparison must be one of >, >=, <, <=, got '=='"),
        ({"threshold": "0.5"}, r"gate 'n': threshold must be a finite number or .*, got '0.5'"),
        ({"threshold": float("nan")}, r"threshold must be a finite number or .*, got nan"),
        ({"threshold": Share("a/c", float("inf"))}, r"\{metric: path, factor: finite number\}, got inf"),
        ({"metrics": "a/b"}, r"gate 'n': metrics must be a list of paths, got 'a/b'"),
        ({"metrics": []}, r"gate 'n': metrics must be a list of paths, got \[\]"),
        ({"metrics": [1]}, r"gate 'n': metrics must be a list of paths, got \[1\]"),
    ],
)
def test_bad_gate(change, message):
    with pytest.raises(ValueError, match=message):
        Gate(**{**ROW, **change})


RANK = "geometry/metrics/effective_rank"
GOOD = f"{{name: n, metrics: [{RANK}], comparison: '>', threshold: 1, reason: r, source: s}}"


def test_gate_file_with_several_sets(tmp_path):
    path = tmp_path / "gates.yaml"
    shared = GOOD.replace("threshold: 1", "threshold: {metric: geometry/num_concepts, factor: 2}")
    path.write_text(f"sets: {{one: {{title: O, gates: [{GOOD}]}}, two: {{title: T, gates: [{shared}]}}}}")
    one, two = load_gates(path).values()
    assert (one.name, one.title, one.gates[0].threshold) == ("one", "O", 1)
    assert two.gates[0].threshold == Share("geometry/num_concepts", 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sets: [", "gates.yaml cannot be read as YAML"),
        ("", "must hold named sets of gates under the key 'sets'"),
        ("sets: {}", "must hold named sets of gates"),
        (f"sets: [{GOOD}]", "must hold named sets of gates"),
        ("sets: {x: 1}", "set 'x' must be a mapping with gates, title, got 1"),
        ("sets: {x: {title: T}}", "set 'x' lacks gates. The fields are: data, gates, title"),
        ("sets: {x: {title: T, gates: []}}", r"set 'x': gates must be a list of at least one gate, got \[\]"),
        ("sets: {x: {title: T, gates: [1]}}", "set 'x', gate 1 must be a mapping with comparison, metrics"),
        ("sets: {x: {title: T, gates: [{name: n}]}}", "gate 1 lacks comparison; lacks metrics; lacks reason"),
        (
            f"sets: {{x: {{title: T, gates: [{GOOD[:-1]}, limit: 3}}]}}}}",
            "gate 1 has the unknown field 'limit'. The fields are: comparison, metrics, name",
        ),
        (
            f"sets: {{x: {{title: T, gates: [{GOOD.replace('threshold: 1', 'threshold: {metric: a}')}]}}}}",
            "gate 1, threshold lacks factor. The fields are: factor, metric",
        ),
        (f"sets: {{x: {{title: T, gates: [{GOOD}, {GOOD}]}}}}", "set 'x' uses a gate name twice: n"),
    ],
)
def test_bad_gate_file(text, message, tmp_path):
    path = tmp_path / "gates.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_gates(path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "geometri/metrics/isotropy",
            "gate 1: metric 'geometri/metrics/isotropy': a report has no 'geometri'; it has ",
        ),
        (
            "geometry/metrics/efective_rank",
            "geometry/metrics has no 'efective_rank'; it has global_effective_rank, global_effective_rank_norm",
        ),
        (
            "downstream/stsb.tuned/scores/pearsonr",
            "has no 'pearsonr'; it has accuracy, f1, pearson, spearman, matthews_correlation$",
        ),
        ("ledger/bits_per_token/nul", "ledger/bits_per_token has no 'nul'; it has shuffled, null$"),
        ("geometry/spectrum/views/raw/rankme", "has no 'raw'; it has template, within_raw, within_centred, across$"),
        ("geometry/metrics", "metric 'geometry/metrics' is not a figure; name one inside it"),
        ("downstream/stsb.tuned", "metric 'downstream/stsb.tuned' is not a figure"),
        ("geometry/num_concepts/x", "continues after geometry/num_concepts, which is a figure"),
        ("geometry/folder", "geometry has no 'folder'; it has checkpoint, corpus, num_samples"),
    ],
)
def test_a_metric_that_no_report_has_is_refused_with_those_it_has(path, message, tmp_path):
    file = tmp_path / "gates.yaml"
    for gate in (
        GOOD.replace(RANK, path),
        GOOD.replace("threshold: 1", f"threshold: {{metric: '{path}', factor: 1}}"),
    ):
        file.write_text(f"sets: {{one: {{title: O, gates: [{gate}]}}}}")
        with pytest.raises(ValueError, match=f"gates.yaml, set 'one', gate 1: metric .*{message}|{message}"):
            load_gates(file)


@pytest.mark.parametrize(
    ("values", "overall", "code"),
    [([0.9, 0.9], "PASS", 0), ([0.9, 0.1], "FAIL", 1), ([None, 0.1], "FAIL", 1), ([None, 0.9], "INCONCLUSIVE", 2)],
)
def test_exit_code(values, overall, code):
    gates = [Gate(**{**ROW, "name": str(i), "metrics": [str(i)]}) for i in range(len(values))]
    results = check_gates({str(i): value for i, value in enumerate(values)}, gates)
    assert overall_verdict(results) == overall
    assert EXIT_CODES[overall_verdict(results)] == code


def test_no_gates_pass_nothing():
    with pytest.raises(ValueError, match="no gate results to judge"):
        overall_verdict([])
