import dataclasses
import inspect
import re

import pytest
from small_runs import make_trainer
from transformers import Trainer, TrainingArguments

from concept_encoder.trainers.training.arguments import ConceptTrainingArguments
from concept_encoder.trainers.training.checks import REPLACED, UNUSED

# A value of each field that nothing would follow.
ILLEGAL = {
    "label_smoothing_factor": 0.1,
    "neftune_noise_alpha": 5.0,
    "auto_find_batch_size": True,
    "average_tokens_across_devices": False,
    "logging_nan_inf_filter": True,
    "remove_unused_columns": True,
    "label_names": ["input_ids"],
    "train_sampling_strategy": "group_by_length",
    "length_column_name": "n",
    "dataloader_in_order": False,
    "use_cache": True,
    "liger_kernel_config": {"rope": False},
    "parallelism_config": object(),
    "bf16_full_eval": True,
    "fp16_full_eval": True,
    "do_predict": True,
    "prediction_loss_only": True,
    "include_for_metrics": ["inputs"],
    "batch_eval_metrics": True,
    "eval_do_concat_batches": False,
    "eval_use_gather_object": True,
    "eval_accumulation_steps": 2,
    "include_num_input_tokens_seen": "some",
    "enable_jit_checkpoint": True,
}


def test_the_table_is_about_fields_that_there_are():
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert set(UNUSED) <= fields and set(UNUSED) == set(ILLEGAL)
    assert set(REPLACED) <= set(inspect.signature(Trainer.__init__).parameters)


@pytest.mark.parametrize("name", UNUSED)
def test_a_field_that_nothing_would_follow_is_refused(tmp_path, name):
    legal, reason = UNUSED[name]
    with pytest.raises(ValueError, match=f"^{name} must be {re.escape(repr(legal[0]))}.*, got .*: ") as error:
        ConceptTrainingArguments(output_dir=str(tmp_path), **{name: ILLEGAL[name]})
    assert str(error.value).endswith(reason)
    for value in legal:
        ConceptTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fp16": True}, "fp16=True would be ignored: a CPU trains in float32; leave it out, or set bf16"),
        (
            {"lr_scheduler_type": "constant", "warmup_steps": 5},
            "lr_scheduler_type='constant' has no warm-up; const",
        ),
        (
            {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
            "gradient_checkpointing_kwargs={'use_reentrant': False} would be ignored: set gradient_",
        ),
    ],
)
def test_fields_that_others_make_void_are_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        ConceptTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optim": "adamw_bnb_8bit"}, "optim='adamw_bnb_8bit' cannot be made: .*pip install -U bitsandbytes"),
        ({"optim": "sgd", "adam_beta1": 0.8}, "adam_beta1 would be ignored: optim='sgd' has no use for it"),
        ({"optim_args": "momentum=0.9"}, "optim_args='momentum=0.9' would be ignored: optim='adamw_torch_fused'"),
        ({"optim": "sgd", "optim_args": "momentum=0.9,momentun=1"}, "optim_args='momentun=1' would be ignored"),
        ({"optim": "sgd", "optim_args": "nesterov=true"}, "optim='sgd' cannot be made: Nesterov momentum requires"),
        (
            {"optim": "sgd", "optim_args": "momentum=x"},
            "optim='sgd' cannot be made: could not convert string",
        ),
        (
            {"optim_target_modules": "all-linear"},
            "optim_target_modules would be ignored: optim='adamw_torch",
        ),
        (
            {"lr_scheduler_kwargs": {"cycles": 2}},
            r"lr_scheduler_type='linear' cannot go by .*'cycles': 2.*: TypeE",
        ),
        (
            {"lr_scheduler_type": "cosine_with_min_lr"},
            "'cosine_with_min_lr' cannot go by lr_scheduler_kwargs=None: V",
        ),
        (
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": "x"}},
            "lr_scheduler_type='cosine' cannot go by lr_scheduler_kwargs={'num_cycles': 'x'}: ",
        ),
        ({"report_to": "wandb"}, r"report_to='wandb' needs a package .*: pip install 'concept-encoder\[wandb\]'"),
        ({"report_to": "clearml"}, "report_to='clearml' needs a package that is not installed: pip install clearml"),
        ({"report_to": "paper"}, "paper is not supported, only"),
    ],
)
def test_what_could_not_be_made_is_named_before_anything_is(tokenizer, tmp_path, monkeypatch, fields, message):
    for tracker in ("wandb", "clearml"):
        monkeypatch.setattr(f"transformers.integrations.integration_utils.is_{tracker}_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        make_trainer(tokenizer, tmp_path / "run", **fields)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_optimizers_and_schedules_with_arguments_of_their_own_train(tokenizer, tmp_path):
    trainer = make_trainer(
        tokenizer,
        tmp_path,
        max_steps=2,
        optim="sgd",
        optim_args="momentum=0.9,nesterov=true",
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": 1e-3},
    )
    trainer.train()
    assert trainer.optimizer.param_groups[0]["momentum"] == 0.9
    assert trainer.lr_scheduler.get_last_lr() == pytest.approx([1e-3] * len(trainer.optimizer.param_groups))


@pytest.mark.parametrize("name", REPLACED)
def test_what_the_trainer_replaces_is_refused(tokenizer, tmp_path, name):
    from concept_encoder.trainers.training.checks import refuse_replaced

    with pytest.raises(ValueError, match=f"^ConceptTrainer does not take {name}: {REPLACED[name]}"):
        refuse_replaced({name: print})
    refuse_replaced({name: None, "callbacks": []})


@pytest.mark.parametrize(
    "given", ["f1", "eval_nll", "accuracy", "eval_runtime", "eval_tokens_t_0.5", "train_loss", ""]
)
def test_a_metric_that_evaluation_will_not_give_is_refused(given, tokenizer, tmp_path):
    wanted = rf"metric_for_best_model must be one of loss, nelbo_bits_per_token, nll_bits_t_0.05, .*, got '{given}'"
    with pytest.raises(ValueError, match=wanted):
        make_trainer(tokenizer, tmp_path, metric_for_best_model=given)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "higher"),
    [("loss", False), ("eval_nelbo_bits_per_token", False), ("nll_bits_t_0.55", False), ("accuracy_t_0.55", True)],
)
def test_the_best_model_is_best_by_its_metric(given, higher, tokenizer, tmp_path):
    trainer = make_trainer(
        tokenizer,
        tmp_path,
        metric_for_best_model=given,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="best",
    )
    trainer.train()
    found = [row[f"eval_{given.removeprefix('eval_')}"] for row in trainer.state.log_history if "eval_loss" in row]
    assert trainer.state.best_metric == (max if higher else min)(found) and len(found) == 4
