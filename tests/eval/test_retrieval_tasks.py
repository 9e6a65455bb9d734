"""Retrieval tasks: the Hub's form read in every way that the registry has, and what is wrong with it named."""

import dataclasses

import pytest
from datasets import Dataset

from concept_encoder.eval.benchmarks.retrieval_tasks import (
    RETRIEVAL_TASKS,
    Collection,
    RetrievalTask,
    find_retrieval_task,
    load_collection,
)

DOCUMENTS = {f"d{i}": f"text {i}" for i in range(12)}
CORPUS = [{"_id": i, "title": f"T{i}", "text": text} for i, text in DOCUMENTS.items()]
QUERIES = [
    {"_id": "q1", "text": "one", "question": "what one", "kind": "specific", "answer": "d3"},
    {"_id": "q2", "text": "two", "question": "what two", "kind": "general", "answer": "d4"},
]
QRELS = [
    {"query-id": "q1", "corpus-id": "d1", "score": 1},
    {"query-id": "q1", "corpus-id": "d2", "score": 0},
    {"query-id": "q2", "corpus-id": "d5", "score": 2},
]
README = """---
configs:
- {config_name: default, default: true, data_files: [{split: test, path: test.parquet}]}
- {config_name: corpus, data_files: [{split: corpus, path: corpus.parquet}]}
- {config_name: queries, data_files: [{split: queries, path: queries.parquet}]}
---
"""


def folder_of(path, corpus=CORPUS, queries=QUERIES, qrels=QRELS):
    path.mkdir()
    for name, rows in (("corpus", corpus), ("queries", queries), ("test", qrels)):
        Dataset.from_list(rows).to_parquet(path / f"{name}.parquet")
    (path / "README.md").write_text(README)
    return path


def task_of(folder, **fields):
    return RetrievalTask(name="mine", dataset_id=str(folder), **fields)


def test_a_folder_in_the_form_of_beir(tmp_path):
    found = load_collection(task_of(folder_of(tmp_path / "set")))
    assert found.documents == {i: f"T{i} {text}" for i, text in DOCUMENTS.items()}
    assert found.queries == {"q1": "one", "q2": "two"}
    assert found.relevant == {"q1": {"d1": 1}, "q2": {"d5": 2}}


@pytest.mark.slow
def test_other_columns_a_rule_and_answers_of_the_queries(tmp_path):
    folder = folder_of(tmp_path / "set")
    found = load_collection(task_of(folder, query_column="question", keep_queries="kind=specific"))
    assert (found.queries, found.relevant) == ({"q1": "what one"}, {"q1": {"d1": 1}})
    found = load_collection(task_of(folder, answer_column="answer"))
    assert found.relevant == {"q1": {"d3": 1}, "q2": {"d4": 2}}


def test_a_table_of_texts_whose_leads_are_the_queries(tmp_path):
    rows = [{"text": f"lead {i}. body {i}", "lead_chars": 8 if i < 10 else 9} for i in range(11)]
    Dataset.from_list(rows).to_parquet(tmp_path / "test.parquet")
    found = load_collection(task_of(tmp_path, lead_column="lead_chars"))
    assert (found.queries["10"], found.documents["10"], found.relevant["10"]) == ("lead 10.", "body 10", {"10": 1})


def test_a_copy_of_a_data_set_is_taken_from_the_folder_of_copies(tmp_path):
    (tmp_path / "owner").mkdir()
    folder_of(tmp_path / "owner" / "set")
    assert len(load_collection(task_of("owner/set"), data_dir=str(tmp_path)).queries) == 2


@pytest.mark.slow
def test_generated_tasks_need_no_data():
    found = load_collection(RETRIEVAL_TASKS["needle_256"])
    assert len(found.documents) == len(found.queries) == 50 and found.relevant["7"] == {"7": 1}


@pytest.mark.slow
def test_the_sets_next_to_the_checkout_have_the_counts_of_their_pages(shared):
    def counts(name, **fields):
        found = load_collection(dataclasses.replace(RETRIEVAL_TASKS[name], **fields), data_dir=str(shared / "data"))
        return len(found.documents), len(found.queries), sum(map(len, found.relevant.values()))

    assert counts("scifact") == (5183, 300, 339)
    assert counts("cranfield") == (1400, 225, 1837)
    assert counts("squality") == (127, 175, 175)
    assert counts("qmsum_question") == (197, 1331, 1331)
    assert counts("fairytaleqa_tale") == (278, 1007, 1007)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"qrels": [{**QRELS[0], "corpus-id": "d99"}]}, "query 'q1' is answered by document 'd99', which is not in"),
        ({"qrels": [{**QRELS[0], "query-id": "q99"}]}, "the judgements name query 'q99', which is not among"),
        ({"qrels": [QRELS[1]]}, "no query has a relevant document: the judgements are empty, or none has a score abo"),
        ({"qrels": [{**QRELS[0], "score": 0.5}]}, "query 'q1' has score 0.5 for document 'd1'; give whole numbers"),
        ({"qrels": [QRELS[0], {**QRELS[0], "score": 3}]}, "query 'q1' has scores 1 and 3 for document 'd1'; keep one"),
        ({"corpus": [*CORPUS, CORPUS[0]]}, "document id 'd0' is there twice in the split 'corpus' of .*; ids must"),
        ({"queries": [*QUERIES, QUERIES[1]]}, "query id 'q2' is there twice in the split 'queries' of"),
        ({"queries": [{**QUERIES[0], "text": " "}, QUERIES[1]]}, "query 'q1' has no text; take it out, or its judgem"),
        (
            {"corpus": CORPUS[:10]},
            "the corpus has 10 documents, and the best 10 of them are judged; give more",
        ),
        ({"corpus": [{"_id": f"d{i}"} for i in range(12)]}, "column 'text' is not in the split 'corpus' of"),
    ],
)
def test_what_is_wrong_with_a_collection_is_named_in_one_line(tmp_path, changed, message):
    with pytest.raises(ValueError, match=f"^Task mine: {message}") as caught:
        load_collection(task_of(folder_of(tmp_path / "set", **changed)))
    assert "\n" not in str(caught.value)


def test_a_split_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"Task mine: .*set \(config default\) has no split 'dev'\. Splits: test"):
        load_collection(task_of(folder_of(tmp_path / "set"), split="dev"))


def test_a_task_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"dataset_id: {folder_of(tmp_path / 'set')}\nquery_column: question\n")
    task = find_retrieval_task(str(path))
    assert (task.name, load_collection(task).queries["q2"]) == ("mine", "what two")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine", "split: test", "must hold dataset_id, and may hold dataset_id, split, train_split, .*got {'split'"),
        ("mine", "{dataset_id: a/b, colour: red}", "must hold dataset_id, and may hold"),
        ("mine", "{dataset_id: a/b, split: 3}", "split must be a text, got 3"),
        ("mine", "{dataset_id: a/b, train_split: test}", "split and train_split are both 'test'; name another one"),
        (
            "scifact",
            "dataset_id: a/b",
            "its name without .yaml is the task's; take small letters, digits and _",
        ),
        ("No", "dataset_id: a/b", "its name without .yaml is the task's"),
    ],
)
def test_a_task_file_that_is_wrong(tmp_path, name, content, message):
    path = tmp_path / f"{name}.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        find_retrieval_task(str(path))


def test_tasks_that_cannot_be():
    with pytest.raises(ValueError, match=r"Unknown retrieval task 'scifakt'.*scifact.* Available: scifact, cranfield"):
        find_retrieval_task("scifakt")
    with pytest.raises(ValueError, match="a task's name must be small letters, digits and _, got 'My task'"):
        RetrievalTask(name="My task", dataset_id="a/b")
    with pytest.raises(ValueError, match="Task mine needs either data or a dataset_id, got neither"):
        RetrievalTask(name="mine")
    data = Collection(DOCUMENTS, {"q": "one"}, {"q": {"d1": 1}})
    with pytest.raises(ValueError, match="Task mine needs either data or a dataset_id, got a/b"):
        RetrievalTask(name="mine", dataset_id="a/b", data=data)
    with pytest.raises(ValueError, match="Task mine: with lead_column there are no tables of queries and answers"):
        RetrievalTask(name="mine", dataset_id="a/b", lead_column="n", answer_column="answer")


@pytest.mark.slow
def test_a_folder_that_was_changed_is_read_again_and_another_of_its_name_is_another(tmp_path):
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
    first = folder_of(tmp_path / "here" / "set")
    second = folder_of(tmp_path / "there" / "set", qrels=QRELS[2:])
    assert [len(load_collection(task_of(folder)).queries) for folder in (first, second)] == [2, 1]
    Dataset.from_list(QRELS[:1]).to_parquet(first / "test.parquet")
    assert load_collection(task_of(first)).relevant == {"q1": {"d1": 1}}
