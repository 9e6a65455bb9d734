"""What a text costs while training: fixed noise, known answers, and nothing of how training is done."""

import math
import re

import pytest
import torch
from datasets import Dataset
from small_runs import make_trainer

from concept_encoder.trainers.objectives.collators import DataCollatorForReconstruction
from concept_encoder.trainers.objectives.objective import ObjectiveArguments
from concept_encoder.trainers.training.trainer import ConceptTrainer


@pytest.mark.slow
def test_evaluation_is_a_fixed_nelbo_and_independent_of_batch_size(tokenizer, tmp_path):
    by_batch = []
    for size in (3, 20):
        trainer = make_trainer(tokenizer, tmp_path / str(size), per_device_eval_batch_size=size)
        by_batch.append(trainer.evaluate())
        assert trainer.evaluate()["eval_loss"] == by_batch[-1]["eval_loss"]
    for name, value in by_batch[0].items():
        if not name.endswith(("runtime", "per_second")):
            assert by_batch[1][name] == pytest.approx(value, rel=1e-5), name
    assert by_batch[0]["eval_nelbo_bits_per_token"] == pytest.approx(by_batch[0]["eval_loss"] / math.log(2))


@pytest.mark.slow
def test_nelbo_of_uniform_scores_is_ln_v(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, objective=ObjectiveArguments(num_eval_timesteps=50))
    trainer.eval_dataset = trainer.train_dataset
    with torch.no_grad():
        trainer.model.lm_head.weight.zero_()
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(math.log(len(tokenizer)), rel=0.04)
    assert metrics["eval_nll_bits_t_0.51"] == pytest.approx(math.log2(len(tokenizer)), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlm", "tsdae", "prefix", "two_view"])
def test_other_objectives_are_evaluated_on_their_own_task(tokenizer, tmp_path, name):
    """Scores that are all alike cost ln V, no matter what is rebuilt; the bound is added where the head has one."""
    trainer = make_trainer(
        tokenizer, tmp_path, rows=20, objective=ObjectiveArguments(corruption=name, num_eval_timesteps=2)
    )
    with torch.no_grad():
        trainer.model.lm_head.weight.zero_()
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(math.log(len(tokenizer)), rel=1e-4)
    assert metrics["eval_rebuilt_bits_per_token"] == pytest.approx(math.log2(len(tokenizer)), rel=1e-4)
    own = DataCollatorForReconstruction(tokenizer, trainer.collator.corruption)(list(trainer.eval_dataset))
    assert metrics["eval_rebuilt_tokens"] == (own["loss_weights"] > 0).sum().item()
    assert ("eval_nelbo_bits_per_token" in metrics) == (name in ("prefix", "two_view"))


@pytest.mark.slow
def test_evaluation_sees_neither_terms_nor_position_share_nor_batch_size(tokenizer, tmp_path):
    found = []
    for size, objective in (
        (3, {"corruption": "two_view"}),
        (
            20,
            {
                "corruption": {"two_view": {"position_share": 0.5}},
                "contrastive": 1.0,
                "regularizers": {"variance": 1.0},
            },
        ),
    ):
        settings = ObjectiveArguments(num_eval_timesteps=2, **objective)
        trainer = make_trainer(
            tokenizer, tmp_path / str(size), objective=settings, dropout=0.1, per_device_eval_batch_size=size
        )
        found.append(trainer.evaluate())
    for name, value in found[0].items():
        if not name.endswith(("runtime", "per_second")):
            assert found[1][name] == pytest.approx(value, rel=1e-5), name


def test_an_empty_evaluation_set_is_refused(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path)
    with pytest.raises(ValueError, match="evaluation dataset is empty"):
        trainer.evaluate(eval_dataset=trainer.train_dataset.select([]))


UNKNOWN = {"input_ids": [[2, 1, 1, 3], [2, 3]]}  # [CLS] [UNK] [UNK] [SEP]


@pytest.mark.parametrize(
    ("objective", "rows", "message"),
    [
        ({}, UNKNOWN, "the training data have nothing to rebuild with corruption 'diffusion': their 2 texts are too"),
        ({"corruption": "tsdae"}, {"input_ids": []}, "the training dataset is empty"),
    ],
)
def test_training_data_without_tokens_are_refused(objective, rows, message, tokenizer, tmp_path):
    assert tokenizer.convert_ids_to_tokens([2, 1, 3]) == ["[CLS]", "[UNK]", "[SEP]"]
    with pytest.raises(ValueError, match=re.escape(message)):
        make_trainer(
            tokenizer, tmp_path, objective=ObjectiveArguments(**objective), data=Dataset.from_dict(rows), rows=0
        )


@pytest.mark.slow
@pytest.mark.parametrize("corruption", ["diffusion", "mlm", "tsdae", "prefix", "two_view"])
@pytest.mark.parametrize("kind", ["rows", "stream", "one of two", "empty"])
def test_evaluation_data_without_tokens_are_refused_before_training(corruption, kind, tokenizer, tmp_path):
    settings = ObjectiveArguments(corruption=corruption)
    trainer = make_trainer(tokenizer, tmp_path, objective=settings)
    rows = Dataset.from_dict(UNKNOWN)
    evaluated = {
        "rows": rows,
        "stream": rows.to_iterable_dataset(),
        "one of two": {"good": trainer.eval_dataset, "bad": rows},
        "empty": rows.select([]),
    }
    message = "the evaluation dataset is empty" if kind == "empty" else "the evaluation data have nothing to rebuild"
    with pytest.raises(ValueError, match=message):
        ConceptTrainer(
            trainer.model,
            trainer.args,
            objective_args=settings,
            processing_class=tokenizer,
            train_dataset=trainer.train_dataset,
            eval_dataset=evaluated[kind],
        )
