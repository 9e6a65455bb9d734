"""The registry against real tables (through a local Hub where there is one) and against small ones made here."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from huggingface_hub import HfApi
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from concept_encoder import modeling_concept
from concept_encoder.eval.benchmarks.registry import (
    BENCHMARKS,
    CHANCE_RULES,
    Task,
    chance_level,
    find_benchmark,
    load_benchmark,
    resolve_dataset_id,
)
from concept_encoder.eval.benchmarks.similarity import find_similarity_task
from concept_encoder.eval.metrics.benchmark_score import TASK_METRICS

# Sizes of the Hub's splits, and the chance levels that every published score should be read against.
REAL = {
    "mrpc": (3668, 408, {"accuracy": 0.684, "f1": 0.812}),
    "stsb": (5749, 1500, {"pearson": 0.0, "spearman": 0.0}),
    "rte": (2490, 277, {"accuracy": 0.527}),
    "sst2": (67349, 872, {"accuracy": 0.509}),
    "cola": (8551, 1043, {"matthews_correlation": 0.0}),
    "sick_relatedness": (4439, 495, {"pearson": 0.0, "spearman": 0.0}),
    "sick_entailment": (4439, 495, {"accuracy": 0.568}),
}
ENTAILMENT = ["entailment", "neutral", "contradiction"]
# Columns of the tables without a local copy, as their Hub pages show them.
UNREACHABLE = {
    "qqp": (["question1", "question2"], ["not_duplicate", "duplicate"], "idx"),
    "mnli_matched": (["premise", "hypothesis"], ENTAILMENT, "idx"),
    "mnli_mismatched": (["premise", "hypothesis"], ENTAILMENT, "idx"),
    "qnli": (["question", "sentence"], ["entailment", "not_entailment"], "idx"),
    "wnli": (["sentence1", "sentence2"], ["not_entailment", "entailment"], "idx"),
    "paws": (["sentence1", "sentence2"], ["0", "1"], "id"),
}


def make_table(columns: list[str], classes: list[str], id_column: str, rows: int = 12) -> Dataset:
    content = {id_column: list(range(rows))}
    content |= {column: [f"{column} of row {i}" for i in range(rows)] for column in columns}
    content["label"] = [i % len(classes) for i in range(rows)]
    features = {id_column: Value("int32"), **dict.fromkeys(columns, Value("string"))}
    return Dataset.from_dict(content, Features({**features, "label": ClassLabel(names=classes)}))


def write_splits(folder: Path, table: Dataset, config: str | None, splits=("train", "validation")) -> None:
    for split in splits:
        path = folder / (config or "") / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(path)


def write_card(folder: Path, configs: dict[str, tuple[str, ...]]) -> None:
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split in splits:
            lines += [f"  - split: {split}", f"    path: {config}/{split}-*.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def own_row(tmp_path: Path, table: Dataset, **fields) -> Task:
    write_splits(tmp_path, table, None)
    row = Task(name="mrpc", dataset_id=str(tmp_path), config=None, licence="none")
    return dataclasses.replace(row, **fields)


def test_registry_is_consistent():
    assert set(BENCHMARKS) == set(TASK_METRICS)
    for name, row in BENCHMARKS.items():
        assert row.name == name
        assert row.primary_metric == row.metrics[0]
        assert row.greater_is_better  # true of every metric in use
        assert row.licence
        assert hasattr(modeling_concept, row.head)
        assert len(row.sentence_columns) in (1, 2)
        assert (row.num_labels == 1) == (row.problem_type == "regression") == ("pearson" in row.metrics)
        assert set(row.metrics) <= set(CHANCE_RULES)
        assert "/" in row.dataset_id or row.dataset_id == "microworld"


def test_chance_rules_in_words():
    assert BENCHMARKS["rte"].chance_rule == "majority class"
    assert BENCHMARKS["stsb"].chance_rule == "constant prediction"
    assert BENCHMARKS["mrpc"].chance_rule == "f1: all positive; accuracy: majority class"


@pytest.mark.slow
@pytest.mark.parametrize("task", REAL)
def test_real_task(task, seeded_hub):
    train_rows, validation_rows, chance = REAL[task]
    row = BENCHMARKS[task]
    data = load_benchmark(task)
    names = ["sentence1", "sentence2"][: len(row.sentence_columns)]
    for split, rows in (("train", train_rows), ("validation", validation_rows)):
        assert data[split].num_rows == rows
        assert data[split].column_names == [*names, "label"]
    labels = np.asarray(data["validation"]["label"])
    levels, rule = chance_level(row, labels)
    assert levels == pytest.approx(chance, abs=5e-4)
    assert rule == row.chance_rule
    if row.problem_type == "regression":
        assert labels.min() >= 0
        assert labels.max() <= 5
        assert data["train"].features["label"] == Value("float32")
    else:
        assert set(labels) == set(range(row.num_labels))


@pytest.mark.slow
def test_mnli_validation_needs_no_training_split(seeded_hub):
    data = load_benchmark("mnli_matched", ["validation"])
    assert data["validation"].num_rows == 9815
    assert data["validation"].features["label"].names == ENTAILMENT
    with pytest.raises(ValueError, match=r"Task mnli_matched: cannot load nyu-mll/glue \(config mnli\): .*'mnli' not"):
        load_benchmark("mnli_matched", ["train"])


def test_old_one_word_ids_are_resolved(seeded_hub):
    assert resolve_dataset_id("sick") == "RobZamp/sick"
    row = dataclasses.replace(BENCHMARKS["sick_entailment"], dataset_id="sick")
    assert load_benchmark(row, ["validation"])["validation"].num_rows == 495
    with pytest.raises(ValueError, match="Unknown dataset 'sikc': give a Hub id as owner/name"):
        resolve_dataset_id("sikc")


@pytest.mark.slow
def test_a_dataset_script_is_replaced_by_the_parquet_export(seeded_hub, tmp_path):
    table = make_table(*UNREACHABLE["paws"])
    write_splits(tmp_path, table, "labeled_final")
    write_card(tmp_path, {"labeled_final": ("train", "validation")})
    (tmp_path / "scripted-paws.py").write_text("raise SystemExit('must not run')\n")
    HfApi().create_repo("me/scripted-paws", repo_type="dataset", exist_ok=True)
    HfApi().upload_folder(folder_path=tmp_path, repo_id="me/scripted-paws", repo_type="dataset")
    row = dataclasses.replace(BENCHMARKS["paws"], dataset_id="me/scripted-paws")
    data = load_benchmark(row)
    assert any("refs%2Fconvert%2Fparquet" in request["path"] for request in seeded_hub.requests())
    assert data["train"][1] == {"sentence1": "sentence1 of row 1", "sentence2": "sentence2 of row 1", "label": 1}
    absent = dataclasses.replace(row, config="unlabeled_final")
    with pytest.raises(ValueError, match=r"holds a loading script, .* has no unlabeled_final to use instead"):
        load_benchmark(absent)
    assert load_benchmark(row)["train"].num_rows == 12  # the export did not take the place of the id in the cache


def test_a_repository_without_data_is_refused(seeded_hub):
    HfApi().create_repo("me/empty", repo_type="dataset", exist_ok=True)
    with pytest.raises(
        ValueError,
        match=r"me/empty' .*: it holds no data files, and refs/convert/parquet has no labeled_final",
    ):
        load_benchmark(dataclasses.replace(BENCHMARKS["paws"], dataset_id="me/empty"))


def test_only_a_missing_table_is_replaced(seeded_hub):
    """What else goes wrong reaches the caller, and asks for no parquet export."""
    row = dataclasses.replace(BENCHMARKS["paws"], dataset_id="me/not-there")
    with pytest.raises(FileNotFoundError, match="me/not-there"):
        load_benchmark(row)
    assert not any("convert" in request["path"] for request in seeded_hub.requests())


@pytest.mark.parametrize("task", UNREACHABLE)
def test_row_fits_the_hub_format(task, tmp_path):
    columns, classes, id_column = UNREACHABLE[task]
    row = BENCHMARKS[task]
    table = make_table(columns, classes, id_column)
    write_splits(tmp_path, table, row.config, ("train",))
    write_splits(tmp_path, table, row.validation_config or row.config, ("validation",))
    if row.validation_config:
        write_card(tmp_path, {row.config: ("train",), row.validation_config: ("validation",)})
    else:
        write_card(tmp_path, {row.config: ("train", "validation")})
    data = load_benchmark(dataclasses.replace(row, dataset_id=str(tmp_path)))
    for split in ("train", "validation"):
        assert data[split].column_names == ["sentence1", "sentence2", "label"]
        assert data[split][5]["sentence1"] == f"{columns[0]} of row 5"
        assert data[split][5]["sentence2"] == f"{columns[1]} of row 5"
        assert data[split]["label"][:] == table["label"][:]
    assert row.num_labels == len(classes)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["microworld_similarity", "microworld_paraphrase", "microworld_entailment"])
def test_embedded_task(task, monkeypatch):
    monkeypatch.setattr("concept_encoder.eval.benchmarks.registry.MICROWORLD_SIZES", {"train": 300, "validation": 150})
    data = load_benchmark(task)
    assert {split: data[split].num_rows for split in data} == {"train": 300, "validation": 150}
    assert data["train"].column_names == ["sentence1", "sentence2", "label"]
    chance, _ = chance_level(BENCHMARKS[task], data["validation"]["label"])
    assert max(chance.values()) < 0.75


@pytest.mark.parametrize("share", [0.2, 0.5, 0.68])
def test_chance_level_is_the_score_of_the_rule(share):
    labels = (np.arange(1000) < 1000 * share).astype(int)
    ones, majority = np.ones(1000, int), np.full(1000, int(share > 0.5))
    assert chance_level(BENCHMARKS["qqp"], labels)[0] == pytest.approx(
        {"f1": f1_score(labels, ones), "accuracy": accuracy_score(labels, majority)}
    )
    assert chance_level(BENCHMARKS["cola"], labels)[0]["matthews_correlation"] == matthews_corrcoef(labels, majority)


def test_chance_level_of_three_classes():
    assert chance_level(BENCHMARKS["sick_entailment"], [2, 1, 1, 0, 1]) == ({"accuracy": 0.6}, "majority class")
    with pytest.raises(ValueError, match="The chance level of rte needs labels, got none"):
        chance_level(BENCHMARKS["rte"], [])


TASK_FILE = """\
like: sick_entailment
dataset_id: somewhere
sentence_columns: [left, right]
"""


def test_a_task_of_ones_own_is_like_another(tmp_path):
    (tmp_path / "kinds.yaml").write_text(f"{TASK_FILE}label_column: kind\nnum_labels: 5\ntrain_split: fit\n")
    row = find_benchmark(str(tmp_path / "kinds.yaml"))
    assert (row.name, row.dataset_id, row.config, row.num_labels) == ("kinds", "somewhere", None, 5)
    assert (row.sentence_columns, row.label_column) == (("left", "right"), "kind")
    assert (row.train_split, row.validation_split) == ("fit", "validation")
    assert (row.metrics, row.problem_type) == (("accuracy",), "single_label_classification")
    (tmp_path / "grades.yaml").write_text(TASK_FILE.replace("sick_entailment", "stsb"))
    row = find_benchmark(str(tmp_path / "grades.yaml"))
    assert (row.problem_type, row.num_labels, row.primary_metric) == ("regression", 1, "pearson")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("own", "[1]", r"own\.yaml must hold like, dataset_id, sentence_columns, and may hold .*; got \[1\]"),
        ("own", "like: mrpc\ndataset_id: x\n", r"must hold like, dataset_id, sentence_columns"),
        ("own", f"{TASK_FILE}labels: y\n", r"may hold like, .*; got \{.*'labels': 'y'\}"),
        ("own", f"{TASK_FILE}config: 3\n", "config must be a text, got 3"),
        (
            "own",
            TASK_FILE.replace("[left, right]", "left"),
            "sentence_columns must list one column or two, got 'left'",
        ),
        ("own", TASK_FILE.replace("right]", "1]"), r"sentence_columns must list .*, got \['left', 1\]"),
        ("own", TASK_FILE.replace("sick_e", "e"), "like must be one of mrpc, .*, got 'entailment'"),
        ("own", f"{TASK_FILE}num_labels: 0\n", "num_labels must be a whole number of classes, .* 2, got 0"),
        (
            "own",
            f"{TASK_FILE}num_labels: true\n",
            "num_labels must be a whole number of classes, .* 2, got True",
        ),
        ("own", f"{TASK_FILE.replace('sick_entailment', 'mrpc')}num_labels: 3\n", "mrpc has f1, accuracy"),
        (
            "mrpc",
            TASK_FILE,
            "its name without .yaml is the task's; take small letters, digits and _, and none of mrpc",
        ),
        ("my-own", TASK_FILE, "its name without .yaml is the task's"),
        ("myOwn", TASK_FILE, "its name without .yaml is the task's"),
    ],
)
def test_bad_task_files(tmp_path, name, text, message):
    (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        find_benchmark(str(tmp_path / f"{name}.yaml"))


def test_unknown_names():
    with pytest.raises(ValueError, match=r"Unknown task 'mrcp'\. Available: mrpc, stsb, qqp"):
        find_benchmark("mrcp")
    with pytest.raises(ValueError, match=r"Unknown split 'test' of task mrpc\. Available: train, validation"):
        load_benchmark("mrpc", ["test"])
    with pytest.raises(ValueError, match="Task 'boolq' has no metrics"):
        dataclasses.replace(BENCHMARKS["rte"], name="boolq")


@pytest.mark.parametrize(
    ("labels", "fields", "message"),
    [
        ([0, 1, None, 1], {}, r"split train: 1 of 4 rows have no label .* the first is row 3 of .*\.parquet"),
        ([0, -1, -1, 1], {}, "2 of 4 rows have no label .* test splits hide theirs"),
        ([0, 1, 2, 3], {}, r"row 3 of .*train.*parquet: label_column 'label' must hold a class id 0 to 1, got 2"),
        (["no", "yes", "no", "yes"], {}, "row 1 of .*: label_column 'label' must hold a class id 0 to 1, got 'no'"),
        ([1.0, math.nan, 2.0, 5.0], {"name": "stsb", "problem_type": "regression", "num_labels": 1}, "1 of 4 rows"),
        (
            [0, 1, 0, 1],
            {"label_column": "gold"},
            "label_column 'gold' is not in .* Columns: sentence1, sentence2, label",
        ),
        ([0, 1, 0, 1], {"sentence_columns": ("text",)}, "sentence column 'text' is not in the split 'train'"),
        ([0, 1, 0, 1], {"config": "final"}, r"cannot load .* \(config final\).*'final' not found"),
        (
            [0, 1, 0, 1],
            {"train_split": "dev"},
            r"split dev: there is no such split in .*\. Splits: train, validation",
        ),
    ],
)
def test_bad_tables(labels, fields, message, tmp_path):
    content = {"sentence1": ["a", "b", "c", "d"], "sentence2": ["e", "f", "g", "h"], "label": labels}
    with pytest.raises(ValueError, match=message):
        load_benchmark(own_row(tmp_path, Dataset.from_dict(content), **fields))


def test_a_missing_sentence_is_refused(tmp_path):
    table = Dataset.from_dict({"sentence1": ["a", "b"], "sentence2": ["c", None], "label": [0, 1]})
    with pytest.raises(ValueError, match=r"row 2 of .*: sentence column 'sentence2' must hold a text, got nothing"):
        load_benchmark(own_row(tmp_path, table))


def test_a_local_folder_without_tables_is_refused(tmp_path):
    (tmp_path / f"{tmp_path.name}.py").write_text("")
    row = Task(name="mrpc", dataset_id=str(tmp_path), config=None, licence="none")
    with pytest.raises(ValueError, match=r"holds (a loading script|no data files).*parquet files there"):
        load_benchmark(row)


# ------------------------------------------------------------------------------------------------------- own data


def splits_in_memory(**columns) -> DatasetDict:
    table = Dataset.from_dict(columns or {"text": ["a", "b", "c"], "topic": [0, 1, 2]})
    new = {
        name: [f"{value} too" if isinstance(value, str) else value for value in table[name]] for name in table.features
    }
    return DatasetDict({"train": table, "dev": Dataset.from_dict(new)})


OWN = {"sentence_columns": ("text",), "label_column": "topic", "num_labels": 3, "validation_split": "dev"}


def test_a_task_may_carry_its_data():
    task = Task(name="topics", data=splits_in_memory(), like="mnli_matched", **OWN)
    data = load_benchmark(task)
    assert data["validation"].column_names == ["sentence1", "label"] and data["train"]["label"][:] == [0, 1, 2]
    assert task.dataset_id.startswith("in-memory ") and task.primary_metric == "accuracy"
    assert dataclasses.replace(task, name="again").dataset_id == task.dataset_id
    assert find_benchmark(task) is task


def test_a_similarity_task_may_carry_its_data():
    data = splits_in_memory(sentence1=["a", "b"], sentence2=["a", "c"], label=[5.0, 1.0])
    data["validation"] = data.pop("dev")
    task = Task(name="alike", data=data, like="stsb", problem_type="regression", num_labels=1)
    assert find_similarity_task(task) is task
    assert load_benchmark(task)["train"].features["label"].dtype == "float32"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "My Task"}, "a task's name must be small letters, digits and _, got 'My Task'"),
        ({"data": None}, "Task topics needs either data or a dataset_id, got neither"),
        ({"dataset_id": "owner/name"}, "Task topics needs either data or a dataset_id, got owner/name"),
        ({"like": None}, "Task 'topics' has no metrics. Tasks with metrics: .*; name one of them as `like`"),
        (
            {"like": "stsb"},
            "is scored by pearson, spearman, which needs problem_type regression and num",
        ),
        (
            {"problem_type": "regression"},
            "is scored by accuracy, which needs problem_type single_label",
        ),
        ({"data": [1]}, "data must be a datasets.Dataset or DatasetDict, a Hub id or a path, got list"),
    ],
)
def test_a_task_of_ones_own_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        Task(**{"name": "topics", "data": splits_in_memory(), "like": "mnli_matched", **OWN, **fields})


def test_a_task_without_the_split_it_names():
    task = Task(name="topics", data=splits_in_memory(), like="mnli_matched", **{**OWN, "validation_split": "held_out"})
    with pytest.raises(ValueError, match=r"Task topics, split held_out: there is no such split .*Splits: dev, train"):
        load_benchmark(task)
    with pytest.raises(ValueError, match="Task topics is scored like mnli_matched, no similarity task: stsb, "):
        find_similarity_task(task)
