"""Results: what is saved is loaded again, and what was edited, cut or is older is named with its file and field."""

import copy
import dataclasses
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_files import (
    synthetic_finetune,
    synthetic_geometry,
    synthetic_ledger,
    synthetic_pretrain,
    synthetic_reading,
    synthetic_retrieval,
    synthetic_similarity,
    synthetic_spectrum,
    with_controls,
)

from concept_encoder.eval.report.report import PARTS, compose
from concept_encoder.utils.results import (
    ApproximateFacts,
    BagCell,
    CodeFacts,
    ComparisonResult,
    ComparisonRow,
    ContaminationResult,
    DataFacts,
    EncodePlan,
    EncodeResult,
    Figure,
    IndexFacts,
    JudgedModel,
    JudgeResult,
    PredictionsResult,
    PretrainResult,
    Result,
    SeedCell,
    SegmentFacts,
    SourceFacts,
    SourceRow,
    SweepCell,
    SweepRow,
    VerdictFacts,
    Versus,
    WordFacts,
    facts,
)

WRONG = {"wrong": [True]}  # of no field's type, except for those that hold any JSON
HUGE = (1e300, 10**400)
STSB = with_controls(synthetic_finetune("stsb", {"pearson": 0.5}, {"pearson": 0.0}, 1500), 0.1, 0.2)
PRETRAIN = synthetic_pretrain(steps=20)
SPECTRUM = dataclasses.replace(
    synthetic_spectrum(), views={"within_raw": {"rankme": synthetic_spectrum().views["within_raw"]["rankme"]}}
)
GEOMETRY = dataclasses.replace(synthetic_geometry(4, 8), spectrum=SPECTRUM)
COUNTS = {"metrics": {"pearson": 0.5, "spearman": None}, "predictions": [1.0, 2.5]}
NOTHING = dict.fromkeys(each.name for each in dataclasses.fields(SourceFacts))
ROW = SweepRow(learning_rate=1e-3, batch_size=32, epochs=2, metrics={"accuracy": 0.5})
CODE = CodeFacts(
    model="m",
    revision="a1",
    digest="b2",
    output="pooled",
    shape=[8],
    precision="int8",
    calibration="AAAA",
    max_length=64,
    dtype="float32",
    words=WordFacts(digest="c3", entries=9, columns=99),
)
PLAN = EncodePlan(
    code=CODE,
    checkpoint="m",
    dataset="d",
    sample="e5",
    split="train",
    streaming=False,
    text_column="text",
    id_column="id",
    columns=["text"],
    documents=9,
    tasks=2,
    batch_tokens=512,
)
JUDGED = JudgeResult(
    verdict=VerdictFacts(overall="PASS", headline="Nothing is wrong.", findings=["a"]),
    model=JudgedModel(
        name="a",
        revision=None,
        digest=None,
        compared_by="cosine",
        dimensions=8,
        parameters=None,
        max_length=None,
        words_read=9,
    ),
    tasks=[],
    checks={},
    skipped=["float16"],
    records=[],
    gates=[],
    nulls={},
    against=[Versus(task="stsb", metric="pearson", difference=0.1, interval=(0.0, 0.2), p_value=0.5)],
    other=None,
    seconds=1.5,
)
OWN = [
    PRETRAIN,
    GEOMETRY,
    synthetic_ledger(4),
    synthetic_reading(4),
    dataclasses.replace(STSB, environment=PRETRAIN.environment, log_history=[{"loss": 1.0, "epoch": None}]),
    synthetic_similarity(),
    synthetic_retrieval(),
    SweepCell(settings={"task": "stsb"}, row=ROW, metrics_by_epoch=[{"accuracy": 0.5}], seconds=1.5),
    SeedCell(
        settings={"task": "stsb"},
        seed=42,
        steps=3,
        padding_share=0.1,
        seconds=1.5,
        device="cpu",
        head="Head",
        newly_initialized=["a"],
        dropped=["b"],
        log_history=[{"loss": 1.0}],
        **COUNTS,
    ),
    BagCell(settings={"task": "stsb"}, **COUNTS),
    PredictionsResult(references=[1.0], run={"42": [1.0]}, bag_of_tokens=[0.0], random_init={"42": [2.0]}),
    ComparisonResult(
        protocol="quick",
        rows=[ComparisonRow(recipe="a", seed=1, figures={"NELBO": Figure(value=1.0, interval=(0.5, 1.5))})],
        means={"a": {"NELBO": 1.0}},
    ),
    JUDGED,
    PLAN,
    EncodeResult(
        plan=PLAN,
        documents=9,
        empty=1,
        tokens=90,
        bytes=900,
        seconds=1.5,
        documents_per_second=6.0,
        tokens_per_second=60.0,
        workers=2,
    ),
    IndexFacts(
        generation=3,
        code=CODE,
        checkpoint="m",
        segments=[SegmentFacts(name="0", documents=9)],
        deleted=1,
        bm25="text",
        approximate=ApproximateFacts(recall_at_10=0.9, queries=5),
    ),
    ContaminationResult(
        rule="exact",
        benchmark_sentences={"mrpc": 3},
        sources=[
            SourceRow(
                source=SourceFacts(**{**NOTHING, "corpus_seed": 1}),
                rows=9,
                exact=1,
                near=2,
                kept=6,
            )
        ],
    ),
]
REPORT = compose(
    "run",
    {name: {} for name in PARTS}
    | {"training": {"pretrain.json": OWN[0]}, "geometry": {"geometry.json": GEOMETRY}, "downstream": {"x": STSB}},
    compose("other", {name: {} for name in PARTS} | {"ledger": {"ledger.json": OWN[2]}}),
)
RESULTS = [*OWN, REPORT]


def kind_of(result: Result) -> str:
    return type(result).__name__


def places(content, result, path: tuple = ()) -> Iterator[tuple[tuple, bool]]:
    """Path of every value of a content, first entries of lists only, and whether a field of a part is there."""
    if isinstance(content, dict):
        typed = dataclasses.is_dataclass(result)
        for name, value in content.items():
            if path == () and name in ("kind", "schema"):
                continue
            yield (*path, name), typed
            if name not in ("more", "settings", "objective", "keep_rows") or not typed:
                yield from places(value, getattr(result, name) if typed else result[name], (*path, name))
            elif name == "settings" and dataclasses.is_dataclass(result.settings):
                yield from places(value, result.settings, (*path, name))
    elif isinstance(content, list) and content:
        yield (*path, 0), False
        yield from places(content[0], result[0], (*path, 0))


def changed(content: dict, path: tuple, value: object = None, remove: bool = False) -> dict:
    content = copy.deepcopy(content)
    node = content
    for step in path[:-1]:
        node = node[step]
    if remove:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return content


def value_at(content: dict, path: tuple) -> object:
    for step in path:
        content = content[step]
    return content


def refused(result: Result, content: dict, file: Path, path: tuple) -> str:
    """What is said of a content; one line with the file, the field, and what to do."""
    file.write_text(json.dumps(content))
    pattern = rf"{file.name}: .*; remove it and run `concept-encoder [\w-]+` again$"
    with pytest.raises(ValueError, match=pattern) as error:
        type(result).load(file)
    said = str(error.value)
    assert "\n" not in said and len(said.removeprefix(str(file))) < 700
    assert str(path[0]) in said, (path, said)
    return said


@pytest.mark.parametrize("result", RESULTS, ids=kind_of)
def test_what_is_saved_is_loaded(result, tmp_path):
    result.save(tmp_path / "run" / "x.json")
    again = type(result).load(tmp_path / "run" / "x.json")
    assert again == result and again.folder == tmp_path / "run"
    content = json.loads((tmp_path / "run" / "x.json").read_text(), parse_constant=pytest.fail)
    assert content == result.as_dict()
    assert (content["kind"], content["schema"]) == (result.kind, result.schema) and "folder" not in content
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["x.json"]


@pytest.mark.slow
@pytest.mark.parametrize("result", RESULTS, ids=kind_of)
def test_every_field_that_was_edited_is_named(result, tmp_path):
    """Each place of the file in turn: of another type, missing, not finite, too large; and a field too many."""
    content, file = result.as_dict(), tmp_path / "x.json"
    tried = 0
    for path, is_field in places(content, result):
        value = value_at(content, path)
        if path[-1] not in ("more", "objective", "keep_rows") and not (path[-1] == "settings" and is_field):
            said = refused(result, changed(content, path, WRONG), file, path)
            tried += 1
            if not isinstance(value, dict | list):
                assert all(str(step) in said for step in path), (path, said)
        if is_field:
            said = refused(result, changed(content, path, remove=True), file, path)
            assert f"{path[-1]} is missing" in said, said
            tried += 1
        if isinstance(value, int | float) and not isinstance(value, bool):
            words = () if {"summary", "comparison"} & {*path} else ("1",)  # which hold words as well
            for number in (math.nan, math.inf, -math.inf, *HUGE, *words):
                refused(result, changed(content, path, number), file, path)
                tried += 1
        if isinstance(value, dict) and is_field and path[-1] not in ("more", "settings", "objective"):
            owner = result
            for step in path:
                owner = owner[step] if isinstance(owner, dict | list) else getattr(owner, step)
            if dataclasses.is_dataclass(owner):
                said = refused(result, changed(content, (*path, "surprise"), 1), file, path)
                assert "surprise is no field of it, got 1" in said
                tried += 1
    refused(result, {**content, "surprise": 1}, file, ("surprise",))
    assert tried > 5


@pytest.mark.parametrize("result", RESULTS, ids=kind_of)
@pytest.mark.parametrize("name", ["kind", "schema"])
def test_older_files_and_those_of_another_kind_are_named(result, name, tmp_path):
    content, file = result.as_dict(), tmp_path / "x.json"
    wanted = repr(content[name])
    said = refused(result, {key: value for key, value in content.items() if key != name}, file, (name,))
    assert f"{name} must be {wanted}, got none, as older versions wrote it" in said
    for value in (0, "x", None, True, [], {"a": 1}, 99):
        assert f"{name} must be {wanted}, got {value!r}" in refused(result, {**content, name: value}, file, (name,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.json cannot be read as JSON: Expecting value"),
        ('{"kind": "pretrain", ', "x.json cannot be read as JSON: Expecting property name"),
        ("[" * 100_000, "x.json cannot be read as JSON: maximum recursion depth exceeded"),
        ("[1]", r"x.json must hold a JSON object, got \[1\]"),
        ("null", "x.json must hold a JSON object, got None"),
    ],
)
def test_what_is_no_json_object_is_named(text, message, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=message + ".*; remove it and run `concept-encoder pretrain` again$"):
        PretrainResult.load(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("result", "path", "value", "message"),
    [
        (GEOMETRY, ("similarity_matrix",), [[1.0]], "similarity_matrix must have 4 entries"),
        (GEOMETRY, ("similarity_matrix", 0), [1.0], "similarity_matrix must have rows of equal length"),
        (GEOMETRY, ("metrics", "isotropi"), 1.0, "metrics.isotropi must be one of global_effective_rank, "),
        (GEOMETRY, ("spectrum", "views", "within_raw", "rankme", "interval"), [2.0, 1.0], r"must be \[low, high\]"),
        (STSB, ("scores",), {}, "scores must have the primary_metric pearson"),
        (
            STSB,
            ("scores", "pearson", "value"),
            1.5,
            "scores.pearson.value must be less than or equal to 1.000001, got 1",
        ),
        (OWN[3], ("concepts", 0, "index"), 99, "concepts must each have an index of their own"),
        (OWN[3], ("example", "tokens"), ["a"], "encoder_weights and decoder_weights must be of 1 tokens"),
        (REPORT, ("figures", 0, "light"), "../../.env", "figures.*light string should match pattern"),
        (
            REPORT,
            ("verdict", "overall"),
            "FINE",
            "verdict.overall must be 'PASS', 'FAIL' or 'INCONCLUSIVE', got 'FINE'",
        ),
    ],
)
def test_values_that_do_not_fit_one_another_are_named(result, path, value, message, tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(changed(result.as_dict(), path, value)))
    with pytest.raises(ValueError, match=f"x.json: .*{message}"):
        type(result).load(tmp_path / "x.json")


def test_a_number_that_is_not_finite_is_saved_as_unknown_or_named(tmp_path):
    result = dataclasses.replace(synthetic_pretrain(), grad_norm_peak=math.inf)
    result.save(tmp_path / "x.json")
    assert PretrainResult.load(tmp_path / "x.json").grad_norm_peak is None
    broken = dataclasses.replace(GEOMETRY, singular_values=[math.nan])
    with pytest.raises(ValueError, match=r"y.json: singular_values\[0\] must be a valid number, got None"):
        broken.save(tmp_path / "y.json")
    assert not (tmp_path / "y.json").exists()


def test_a_result_stands_for_its_folder(tmp_path):
    result = synthetic_pretrain()
    with pytest.raises(ValueError, match="this PretrainResult belongs to no folder; give the folder of the run"):
        os.fspath(result)
    result.save(tmp_path / "pretrain.json")
    assert os.fspath(PretrainResult.load(tmp_path / "pretrain.json")) == str(tmp_path)
    assert os.fspath(PretrainResult.load(tmp_path / "pretrain.json", "elsewhere")) == "elsewhere"


def test_facts_keep_what_has_no_name_of_its_own():
    found = facts(DataFacts, {"dataset_name": "x", "max_length": 4, "packing": "packed"})
    assert found == DataFacts(dataset_name="x", tokenizer_name=None, max_length=4, more={"packing": "packed"})


def test_each_kind_has_its_own_name():
    def kinds(cls: type) -> list[str]:
        return [
            *(name for name in [vars(cls).get("kind")] if name),
            *(k for sub in cls.__subclasses__() for k in kinds(sub)),
        ]

    assert len(kinds(Result)) == len(set(kinds(Result))) == len(RESULTS)
