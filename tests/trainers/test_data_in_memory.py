"""Rows that are handed over in memory: what is trained on, what is recorded of them, what is refused."""

import json

import pytest
import yaml
from datasets import Dataset, DatasetDict

from concept_encoder.eval.concepts.analysis import analyze
from concept_encoder.trainers.data.corpora import DataArguments, in_memory_name, load_corpus, load_pretraining_data
from concept_encoder.trainers.data.microworld import microworld_corpus
from concept_encoder.trainers.pretraining import pretrain
from concept_encoder.trainers.recipes import Recipe

SMALL = {
    "max_steps": 2,
    "warmup_steps": 0,
    "logging_steps": 1,
    "eval_on_start": False,
    "num_eval_timesteps": 2,
    "per_device_train_batch_size": 4,
    "disable_tqdm": True,
    "use_cpu": True,
    "max_train_documents": None,
    "max_validation_documents": None,
}


@pytest.fixture(scope="module")
def rows() -> DatasetDict:
    return DatasetDict({split: microworld_corpus(split, size=40, seed=3) for split in ("train", "validation")})


@pytest.fixture(scope="module")
def vocabulary(tokenizer, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("vocabulary") / "words"
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def run(rows, vocabulary, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mine"
    result = pretrain("tiny", data=rows, output_dir=str(folder), tokenizer_name=vocabulary, **SMALL)
    return folder, result


@pytest.mark.slow
def test_examples_are_those_of_the_same_rows_in_files(rows, tokenizer, tmp_path):
    for split, part in rows.items():
        part.to_parquet(tmp_path / f"{split}.parquet")
    arguments = DataArguments(dataset_name=str(tmp_path), tokenizer_name="x", packing="packed", max_length=32)
    from_files = load_pretraining_data(arguments, tokenizer)
    in_memory = load_pretraining_data(DataArguments(max_length=32), tokenizer, rows)
    for one, other in zip(from_files, in_memory, strict=True):
        assert len(one) and [row["input_ids"].tolist() for row in one] == [row["input_ids"].tolist() for row in other]


@pytest.mark.slow
def test_a_run_records_the_digest_of_its_rows(run, rows):
    folder, result = run
    name = in_memory_name(rows)
    assert name.startswith("in-memory ") and len(name.split()[1]) == 16
    assert result.data.dataset_name == name
    assert json.loads((folder / "pretrain.json").read_text())["data"]["dataset_name"] == name
    recorded = yaml.safe_load((folder / "recipe.yaml").read_text())["data"]
    assert recorded["dataset_name"] == name and recorded["tokenizer_name"] == "words"
    assert "/" not in name and str(folder.parent) not in (folder / "pretrain.json").read_text()


def test_the_digest_is_of_what_the_rows_hold(rows):
    train = rows["train"]
    again = Dataset.from_dict({"text": train["text"][:]})
    assert in_memory_name(again) == in_memory_name(train) == in_memory_name(train.map(lambda row: row))
    assert in_memory_name(train.select(range(39))) != in_memory_name(train)
    assert in_memory_name(rows) != in_memory_name(train)


@pytest.mark.slow
def test_what_was_in_memory_has_to_be_given_again(run, rows, vocabulary, tmp_path):
    again = {"output_dir": str(tmp_path / "again"), "tokenizer_name": vocabulary, "use_cpu": True, "max_steps": 1}
    with pytest.raises(ValueError, match=r"'in-memory .*' names rows that were in memory; give them again, as data"):
        pretrain(run[0] / "recipe.yaml", **again)
    assert pretrain(run[0] / "recipe.yaml", data=rows, **again).steps == 1


@pytest.mark.slow
def test_another_name_of_the_same_recipe_may_be_given(rows, vocabulary, tmp_path):
    for split, part in rows.items():
        part.to_parquet(tmp_path / f"{split}.parquet")
    recipe = Recipe.load("tiny", output_dir=str(tmp_path / "run"), tokenizer_name=vocabulary, **SMALL)
    result = pretrain(recipe, data=tmp_path)
    assert result.data.dataset_name == tmp_path.name and recipe.data.dataset_name == "microworld"
    with pytest.raises(ValueError, match=r"seed: give fields to Recipe.load, or the recipe by its name"):
        pretrain(recipe, seed=3)


def test_a_single_split_is_the_training_split(rows):
    train = rows["train"]
    with pytest.raises(ValueError, match=r"dataset 'in-memory .*' has no split 'validation'. Splits: train; .*valida"):
        load_corpus(DataArguments(), "validation", train)
    arguments = DataArguments(dataset_name=in_memory_name(train), validation_size=0.3)
    parts = [load_corpus(arguments, split, train) for split in ("train", "validation")]
    assert sum(map(len, parts)) == 40 and all(len(part) for part in parts)


def test_rows_are_no_source_to_stream(rows):
    with pytest.raises(ValueError, match="streaming=True reads from a source, and data are rows in memory"):
        load_corpus(DataArguments(dataset_name="in-memory", streaming=True, tokenizer_name="x"), "train", rows)
    with pytest.raises(ValueError, match=r"data must be a datasets.Dataset or DatasetDict, a Hub id or a path, got l"):
        pretrain("tiny", data=[{"text": "a"}])


def test_another_data_set_takes_its_own_configuration():
    data = Recipe.load("gate_1", dataset_name="owner/name", use_cpu=True).data
    assert (data.dataset_config_name, data.dataset_revision) == (None, None)
    data = Recipe.load("gate_1", dataset_name="owner/name", dataset_config_name="own", use_cpu=True).data
    assert data.dataset_config_name == "own"
    assert Recipe.load("gate_1", use_cpu=True).data.dataset_config_name == "pair"


@pytest.mark.slow
def test_analysis_reads_rows_in_memory(run, rows, tmp_path):
    counts = {"num_batches": 3, "batch_size": 8, "ledger_documents": 4}
    found = analyze(run[0], data=rows, output_dir=tmp_path / "all", **counts)
    assert found.geometry.corpus.dataset_name == in_memory_name(rows)
    assert found.geometry.num_samples == 24
    plain = analyze(run[0], data=rows["validation"], output_dir=tmp_path / "one", **counts)
    assert plain.geometry.metrics == found.geometry.metrics  # none of them held out
    assert str(tmp_path) not in (tmp_path / "one" / "geometry.json").read_text()
    with pytest.raises(ValueError, match="names rows that were in memory; give them again, as data"):
        analyze(run[0], **counts)
