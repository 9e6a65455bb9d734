"""The table of mteb's tasks: which of its statistics are taken, and what is made of them."""

import json

import pytest

from concept_encoder.eval.judging.records import MTEB_TASKS, read_records
from concept_encoder.scripts.dev import mteb_tasks


def statistics(folder, kind, name, **test):
    (folder / kind).mkdir(exist_ok=True)
    (folder / kind / f"{name}.json").write_text(json.dumps({"test": {"num_samples": 8, **test}}))


def counts(**labels):
    return {"labels": {name: {"count": count} for name, count in labels.items()}}


@pytest.fixture
def folder(tmp_path):
    statistics(tmp_path, "STS", "Grades", label_statistics={"min_score": 0})
    statistics(tmp_path, "Classification", "Moods", label_statistics=counts(a=2, b=5, c=1))
    statistics(tmp_path, "Classification", "One", label_statistics=counts(a=8))
    statistics(
        tmp_path, "Classification", "Tongues", label_statistics=counts(a=8, b=8), hf_subset_descriptive_stats={}
    )
    statistics(tmp_path, "PairClassification", "Twice", labels_statistics=counts(**{"0": 6, "1": 2}))
    statistics(tmp_path, "Retrieval", "Search")
    return tmp_path


def test_sizes_and_chance_levels(folder, monkeypatch, capsys):
    monkeypatch.setattr(mteb_tasks, "FILE", folder / "table.json")
    mteb_tasks.main([str(folder)])
    found = json.loads((folder / "table.json").read_text())
    assert {name: (row["metric"], row["examples"], row["chance"]) for name, row in found.items()} == {
        "Grades": ("cosine_spearman", 8, 0.0),
        "Moods": ("accuracy", 8, 0.625),
        "Twice": ("max_ap", 8, 0.25),
    }
    with pytest.raises(SystemExit):
        mteb_tasks.main([str(folder / "Retrieval")])
    assert "holds no statistics of a task of STS, Classification, PairClassification" in capsys.readouterr().err


def test_a_chance_level_is_of_the_metric_that_the_task_is_scored_by(tmp_path):
    assert MTEB_TASKS["ImdbClassification"]["chance"] == 0.5 and len(MTEB_TASKS) > 400
    for scores, chance in (({"accuracy": 0.6, "f1": 0.4}, 0.5), ({"accuracy": 0.7, "f1": 0.6}, None)):
        row = {"main_score": 0.6, "hf_subset": "default", **scores}
        path = tmp_path / "ImdbClassification.json"
        path.write_text(json.dumps({"task_name": "ImdbClassification", "scores": {"test": [row]}}))
        (record,) = read_records(path)
        assert record.chance == chance
