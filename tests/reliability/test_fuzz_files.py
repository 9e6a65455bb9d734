"""Files of runs and checkpoints with anything in any place: read rightly, or refused with the name of the file."""

import copy
import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from fuzzing import SCALARS, VALUES, cases, mutated, names_one_of
from hypothesis import given
from hypothesis import strategies as st
from run_files import write_synthetic_run

from concept_encoder.eval.benchmarks.registry import BENCHMARKS, _normalised, chance_level
from concept_encoder.eval.loading.checkpoints import load
from concept_encoder.eval.report.gates import check_gates, load_gates
from concept_encoder.eval.report.report import build_report
from concept_encoder.trainers.data.corpora import DataArguments
from concept_encoder.trainers.data.tables import open_tables
from concept_encoder.trainers.objectives.objective import ObjectiveArguments

# --------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.slow
@cases(250)
@given(st.data())
def test_a_checkpoint_loads_or_names_what_is_wrong(pretrained, tmp_path, data):
    folder = tmp_path / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(pretrained, folder)
    config = json.loads((folder / "config.json").read_text())
    kind = data.draw(st.sampled_from(["field", "field", "config", "bytes", "weights", "index"]))
    if kind == "field":
        (folder / "config.json").write_text(
            json.dumps({**config, data.draw(st.sampled_from(sorted(config))): data.draw(SCALARS)})
        )
    elif kind == "config":
        (folder / "config.json").write_text(json.dumps(data.draw(mutated(config))))
    elif kind == "bytes":
        (folder / "config.json").write_bytes(data.draw(st.binary(max_size=30)))
    elif kind == "weights":
        content = bytearray((folder / "model.safetensors").read_bytes())
        if data.draw(st.booleans()):
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        else:
            content[data.draw(st.integers(0, 400))] ^= data.draw(st.integers(1, 255))
        (folder / "model.safetensors").write_bytes(content)
    else:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": data.draw(VALUES)}))
    try:
        opened = load(folder)
        encoder, _ = opened.encoder, opened.tokenizer
    except (ValueError, OSError) as error:
        names_one_of(error, [str(folder), folder.name])
        return
    batch = {"input_ids": torch.tensor([[5, 6]])}
    assert encoder(**batch).last_hidden_state.isfinite().all()


# ------------------------------------------------------------------------------------------------------------- reports


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, dict]:
    folder = write_synthetic_run(tmp_path_factory.mktemp("run"))
    files = {path.relative_to(folder).as_posix(): json.loads(path.read_text()) for path in folder.rglob("*.json")}
    for content in files.values():  # long lists are no more to try, and slow
        if "log_history" in content:
            content["log_history"] = content["log_history"][:4]
    return files


@pytest.mark.slow
@cases(700)
@given(st.data())
def test_a_report_is_built_or_names_the_file(results, tmp_path, data):
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    name = data.draw(st.sampled_from(sorted(results)))
    path = folder / name
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(data.draw(mutated(copy.deepcopy(results[name])))))
    try:
        report = build_report(folder)
        report.save(folder / "report.json")
    except ValueError as error:
        names_one_of(error, [str(folder)])
        return
    assert report.verdict.overall in ("PASS", "FAIL", "INCONCLUSIVE")


@pytest.mark.slow
@cases(700)
@given(st.data())
def test_gates_are_loaded_or_name_the_file(tmp_path, data):
    path = tmp_path / "gates.yaml"
    path_of_a_figure = "geometry/metrics/isotropy"
    gate = {"name": "a", "metrics": [path_of_a_figure], "comparison": ">", "threshold": 1.0}
    gate |= {"reason": "r", "source": "s"}
    path.write_text(yaml.safe_dump(data.draw(mutated({"sets": {"one": {"title": "t", "gates": [gate]}}}))))
    try:
        sets = load_gates(path)
        metrics = st.one_of(VALUES, st.fixed_dictionaries({"isotropy": VALUES}))
        report = {"geometry": data.draw(st.one_of(VALUES, st.fixed_dictionaries({"metrics": metrics})))}
        for gates in sets.values():
            assert all(
                result.verdict in ("PASS", "FAIL", "INCONCLUSIVE") for result in check_gates(report, gates.gates)
            )
    except ValueError as error:
        names_one_of(error, ["gates.yaml", "gate "])


# ------------------------------------------------------------------------------------------------- registry, arguments


@pytest.mark.slow
@cases(300)
@given(
    st.sampled_from(sorted(BENCHMARKS)),
    st.lists(
        st.tuples(
            st.one_of(st.none(), st.text(max_size=5)),
            st.one_of(st.none(), st.text(max_size=5)),
            st.one_of(st.none(), st.integers(-2, 4), st.floats(width=32)),
        ),
        max_size=4,
    ),
    st.booleans(),
)
def test_a_table_becomes_labelled_rows_or_is_refused(name, rows, complete):
    row = BENCHMARKS[name]
    columns = [*row.sentence_columns, row.label_column]
    table = {
        column: [values[k] for values in rows] for k, column in zip((0, 1, 2)[-len(columns) :], columns, strict=True)
    }
    table[row.label_column] = [None if values[2] is None else float(values[2]) for values in rows]
    if not complete:
        table.pop(columns[0])
    try:
        normal = _normalised(open_tables(Dataset.from_dict(table))["train"], row)
    except ValueError as error:
        names_one_of(error, ["the split 'train' of the data in memory", "every label is "])
        return
    assert len(normal) == len(rows) > 0
    chance, _ = chance_level(row, normal["label"][:])
    assert all(0 <= value <= 1 for value in chance.values())


@pytest.mark.slow
@pytest.mark.parametrize("cls", [DataArguments, ObjectiveArguments])
@cases(700)
@given(st.data())
def test_arguments_are_legal_or_refused_by_name(cls, data):
    names = [field.name for field in dataclasses.fields(cls)]
    numbers = st.one_of(st.integers(-2, 600), st.floats(), st.none())
    fields = data.draw(st.dictionaries(st.sampled_from(names), st.one_of(SCALARS, numbers), max_size=3))
    try:
        arguments = cls(**fields)
    except Exception as error:
        # Types are the parser's to check; a value of the right type is refused by name.
        assert type(error).__name__ != "AssertionError"  # noqa: PT017
        if all(isinstance(value, int | float) for value in fields.values()) and isinstance(error, ValueError):
            names_one_of(error, names)
        return
    assert dataclasses.asdict(arguments).keys() == set(names)


def test_ten_thousand_cases_in_all():
    total = 0
    for path in Path(__file__).parents[1].rglob("test_*.py"):
        source = path.read_text(encoding="utf-8")
        total += sum(int(number) for number in re.findall(r"^@cases\((\d+)\)$", source, re.MULTILINE))
        if path.name == Path(__file__).name:
            total += 700  # the one above has two parameters
    assert total >= 10_000
