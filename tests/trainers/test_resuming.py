"""What a resumed run must share with the one that wrote its checkpoint, and what it need not."""

import dataclasses
import json
import shutil

import pytest
import torch
from datasets import Dataset
from helpers import random_examples
from small_runs import losses, make_trainer, parameters
from transformers import TrainingArguments

from concept_encoder.trainers.data.corpora import DataArguments
from concept_encoder.trainers.data.microworld import microworld_tokenizer
from concept_encoder.trainers.objectives.objective import ObjectiveArguments
from concept_encoder.trainers.training.arguments import ConceptTrainingArguments
from concept_encoder.trainers.training.resuming import FREE, LENGTH, RECORD_FILE, tokenizer_digest

SETTINGS = {"save_strategy": "steps", "save_steps": 3, "dropout": 0.1}


@pytest.fixture(scope="module")
def first(tokenizer, tmp_path_factory):
    """Folder of a run of 6 steps, with checkpoint-3 and checkpoint-6, and its parameters."""
    folder = tmp_path_factory.mktemp("first")
    trainer = make_trainer(tokenizer, folder, **SETTINGS)
    trainer.train()
    return folder, parameters(trainer), losses(trainer)


def resume(tokenizer, first, tmp_path, checkpoint="checkpoint-3", **changes):
    trainer = make_trainer(tokenizer, tmp_path, **{**SETTINGS, **changes})
    trainer.train(resume_from_checkpoint=str(first[0] / checkpoint))
    return trainer


def test_the_table_is_about_fields_that_there_are():
    known = {f.name for owner in (ConceptTrainingArguments, DataArguments) for f in dataclasses.fields(owner)}
    names = " ".join(FREE.values()).split()
    assert set(names) <= known and len(names) == len(set(names)) and not set(names) & set(LENGTH)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 1e-3}, "learning_rate was 0.003 when checkpoint-3 was written, got 0.001: continue with"),
        ({"weight_decay": 0.1}, "weight_decay was 0 when checkpoint-3 was written, got 0.1: "),
        (
            {"lr_scheduler_type": "cosine"},
            "lr_scheduler_type was 'linear' when checkpoint-3 was written, got 'cos",
        ),
        ({"warmup_steps": 2}, "warmup_steps was 0 when checkpoint-3 was written, got 2: "),
        ({"seed": 1}, "seed was 42 when checkpoint-3 was written, got 1: "),
        (
            {"per_device_train_batch_size": 4},
            "per_device_train_batch_size was 8 when checkpoint-3 was written, got 4",
        ),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps was 1 when checkpoint-3 was written, got 2"),
        ({"optim": "sgd"}, "optim was 'adamw_torch_fused' when checkpoint-3 was written, got 'sgd'"),
        ({"max_grad_norm": 0.5}, "max_grad_norm was 1 when checkpoint-3 was written, got 0.5"),
        ({"ema_decay": 0.9}, "ema_decay was 0 when checkpoint-3 was written, got 0.9"),
        ({"bf16": True}, "bf16 was False when checkpoint-3 was written, got True"),
        (
            {"dropout": 0.2},
            "hidden_dropout_prob was 0.1 when checkpoint-3 was written, got 0.2; attention_",
        ),
        ({"max_steps": 9}, "max_steps was 6 when checkpoint-3 was written, got 9: "),
        (
            {"objective": ObjectiveArguments(label_smoothing=0.1)},
            "label_smoothing was 0 when checkpoint-3 was written, got 0.1: ",
        ),
        ({"rows": 40}, "training texts was '64 examples .*' when checkpoint-3 was written, got '40 examples "),
        (
            {"learning_rate": 1e-3, "seed": 1, "weight_decay": 1.0, "adam_beta1": 0.8},
            r"\(and 1 fields more\): continue",
        ),
    ],
)
def test_what_would_be_overruled_is_refused_by_name(tokenizer, first, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        resume(tokenizer, first, tmp_path, **changes)
    assert str(error.value).endswith(f"start_from={first[0] / 'checkpoint-3'}") and "\n" not in str(error.value)


def test_other_texts_of_the_same_number_are_refused(tokenizer, first, tmp_path):
    data = Dataset.from_list(random_examples(tokenizer, rows=64, longest=20, seed=5))
    with pytest.raises(ValueError, match=r"training texts was '64 examples .*got '64 examples "):
        resume(tokenizer, first, tmp_path, data=data)


@pytest.mark.slow
def test_another_architecture_and_tokenizer_are_refused(tokenizer, first, tmp_path):
    other = microworld_tokenizer()
    other.add_tokens(["zz"])
    with pytest.raises(ValueError, match=r"vocab_size was \d+ when .*; tokenizer was '\w+' when checkpoint-3 was"):
        resume(other, first, tmp_path)
    trainer = make_trainer(tokenizer, tmp_path, **SETTINGS)
    trainer.model.config.num_concepts = 3
    with pytest.raises(ValueError, match="num_concepts was 6 when checkpoint-3 was written, got 3: "):
        trainer.train(resume_from_checkpoint=str(first[0] / "checkpoint-3"))


def test_another_number_of_processes_is_refused(tokenizer, first, tmp_path):
    checkpoint = shutil.copytree(first[0] / "checkpoint-3", tmp_path / "checkpoint-3")
    record = json.loads((checkpoint / RECORD_FILE).read_text())
    record["training"]["number of processes"] = 2
    (checkpoint / RECORD_FILE).write_text(json.dumps(record))
    trainer = make_trainer(tokenizer, tmp_path, **SETTINGS)
    with pytest.raises(ValueError, match=r"^number of processes was 2 when checkpoint-3 was written, got 1: "):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def test_a_tokenizer_is_known_by_what_it_makes_of_a_text():
    tokenizer, same, other = microworld_tokenizer(), microworld_tokenizer(max_length=7), microworld_tokenizer()
    same(["a cat"], truncation=True, padding=True, max_length=4)
    assert tokenizer_digest(tokenizer) == tokenizer_digest(same)
    other.backend_tokenizer.normalizer = None
    assert tokenizer_digest(other) != tokenizer_digest(tokenizer)


@pytest.mark.slow
def test_what_is_shown_kept_or_where_it_runs_may_change(tokenizer, first, tmp_path):
    changes = {
        "logging_steps": 1,
        "save_steps": 5,
        "save_total_limit": 1,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "per_device_eval_batch_size": 3,
        "dataloader_num_workers": 1,
        "gradient_checkpointing": True,
        "on_divergence": "rollback",
        "stop_on_collapse": 4,
    }
    trainer = resume(tokenizer, first, tmp_path, **changes)
    assert torch.equal(parameters(trainer), first[1])
    assert [row["step"] for row in trainer.state.log_history if "eval_loss" in row] == [4, 6]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["constant", "constant_with_warmup"])
def test_a_run_may_be_made_longer_where_its_rate_has_no_end(tokenizer, tmp_path, schedule):
    own = {**SETTINGS, "lr_scheduler_type": schedule}
    own |= {"warmup_steps": 2} if schedule == "constant_with_warmup" else {}
    make_trainer(tokenizer, tmp_path / "short", **own).train()
    long = make_trainer(tokenizer, tmp_path / "long", **own, max_steps=9)
    long.train()
    longer = make_trainer(tokenizer, tmp_path / "longer", **own, max_steps=9)
    longer.train(resume_from_checkpoint=str(tmp_path / "short" / "checkpoint-6"))
    assert torch.equal(parameters(longer), parameters(long)) and losses(longer) == losses(long)
    shorter = make_trainer(tokenizer, tmp_path / "longer", **own, max_steps=5)
    with pytest.raises(ValueError, match="max_steps was 6 when checkpoint-6 was written, got 5: "):
        shorter.train(resume_from_checkpoint=str(tmp_path / "short" / "checkpoint-6"))


@pytest.mark.slow
def test_a_warm_up_that_is_a_share_of_the_steps_keeps_their_number(tokenizer, tmp_path):
    own = {**SETTINGS, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.5}
    make_trainer(tokenizer, tmp_path, **own).train()
    with pytest.raises(ValueError, match="max_steps was 6 when checkpoint-6 was written, got 9: "):
        make_trainer(tokenizer, tmp_path, **own, max_steps=9).train(resume_from_checkpoint=True)


@pytest.mark.slow
def test_epochs_play_no_part_beside_steps(tokenizer, first, tmp_path):
    assert torch.equal(parameters(resume(tokenizer, first, tmp_path, num_train_epochs=7.0)), first[1])


@pytest.mark.slow
def test_the_record_names_no_folder_of_its_author(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, **{**SETTINGS, "max_steps": 3, "start_from": str(tmp_path / "secret")})
    trainer.data_args = DataArguments(dataset_name=str(tmp_path / "texts.jsonl"), tokenizer_name=str(tmp_path))
    trainer.train()
    text = (tmp_path / "checkpoint-3" / RECORD_FILE).read_text()
    record = json.loads(text)
    assert str(tmp_path.parent) not in text
    assert record["data"]["dataset_name"] == "texts.jsonl" and record["training"]["start_from"] == "secret"
    assert not set(" ".join(FREE.values()).split()) & (record["training"].keys() | record["data"].keys())


def test_a_checkpoint_without_a_record_is_refused(tokenizer, first, tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    trainer = make_trainer(tokenizer, tmp_path, **SETTINGS)
    with pytest.raises(ValueError, match=r"checkpoint-3 has no made_with\.json, which says what it was made with"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_every_field_of_the_trainer_is_free_or_recorded(tokenizer, first):
    record = json.loads((first[0] / "checkpoint-3" / RECORD_FILE).read_text())["training"]
    for field in dataclasses.fields(TrainingArguments):
        assert (field.name in " ".join(FREE.values()).split()) != (field.name in record) or not field.init, field.name
