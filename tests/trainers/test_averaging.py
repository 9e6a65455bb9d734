import pytest
import torch
from safetensors.torch import load_file
from small_runs import losses, make_trainer, parameters
from transformers import TrainerCallback

from concept_encoder import ConceptEncoderForDiffusionMLM
from concept_encoder.trainers.training.arguments import ConceptTrainingArguments
from concept_encoder.trainers.training.averaging import TRAINING_WEIGHTS_FILE

SETTINGS = {"ema_decay": 0.6, "dropout": 0.1, "save_strategy": "steps", "save_steps": 2}


class Weights(TrainerCallback):
    """The weights after each step of training."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.seen.append(torch.cat([p.detach().flatten() for p in model.parameters()]))


def flat(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture(scope="module")
def run(tokenizer, tmp_path_factory):
    """A finished run with the average, the weights of its steps, and its evaluations."""
    folder = tmp_path_factory.mktemp("averaged")
    trainer = make_trainer(tokenizer, folder, eval_strategy="steps", eval_steps=2, **SETTINGS)
    weights = Weights()
    trainer.add_callback(weights)
    trainer.train()
    return folder, trainer, weights.seen


def expected(weights) -> torch.Tensor:
    average = weights[0]
    for each in weights[1:]:
        average = 0.6 * average + 0.4 * each
    return average


@pytest.mark.slow
def test_the_average_is_the_runs_model_and_training_goes_on_without_it(run, tokenizer, tmp_path):
    _, trainer, weights = run
    settings = {**SETTINGS, "ema_decay": 0.0, "eval_strategy": "steps", "eval_steps": 2}
    plain = make_trainer(tokenizer, tmp_path, **settings)
    plain.train()
    assert losses(plain) == losses(trainer)
    assert torch.equal(parameters(plain), weights[-1])
    torch.testing.assert_close(parameters(trainer), expected(weights))
    assert not torch.allclose(parameters(trainer), weights[-1], atol=1e-4)
    trainer.save_model(str(tmp_path / "saved"))
    assert torch.equal(flat(ConceptEncoderForDiffusionMLM.from_pretrained(tmp_path / "saved")), parameters(trainer))
    assert not (tmp_path / "saved" / TRAINING_WEIGHTS_FILE).exists()


def test_checkpoints_hold_what_was_evaluated(run, tokenizer, tmp_path):
    folder, trainer, weights = run
    checkpoint = folder / "checkpoint-4"
    model = ConceptEncoderForDiffusionMLM.from_pretrained(checkpoint)
    torch.testing.assert_close(flat(model), expected(weights[:4]))
    again = make_trainer(tokenizer, tmp_path)
    again.model.load_state_dict(model.state_dict())
    logged = next(r for r in trainer.state.log_history if r["step"] == 4 and "eval_loss" in r)
    assert again.evaluate()["eval_loss"] == pytest.approx(logged["eval_loss"], rel=1e-6)
    # Tied weights are stored once, in both files.
    names = [load_file(checkpoint / name).keys() for name in ("model.safetensors", TRAINING_WEIGHTS_FILE)]
    assert len(names[0]) == len(names[1]) < len(model.state_dict())


@pytest.mark.slow
def test_resume_is_exact(run, tokenizer, tmp_path):
    folder, trainer, weights = run
    resumed = make_trainer(tokenizer, tmp_path, eval_strategy="steps", eval_steps=2, **SETTINGS)
    seen = Weights()
    resumed.add_callback(seen)
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    assert all(torch.equal(a, b) for a, b in zip(seen.seen, weights[4:], strict=True))
    assert torch.equal(parameters(resumed), parameters(trainer))


@pytest.mark.slow
def test_the_best_model_is_the_average_that_was_best(tokenizer, tmp_path):
    best = make_trainer(
        tokenizer,
        tmp_path,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_tokens_t_0.05",  # the same at each evaluation, so the first is best
        **SETTINGS,
    )
    best.train()
    assert best.state.best_global_step == 2
    kept = flat(ConceptEncoderForDiffusionMLM.from_pretrained(tmp_path / "checkpoint-2"))
    assert torch.equal(parameters(best), kept)
    first = next(r for r in best.state.log_history if "eval_loss" in r)
    assert best.evaluate()["eval_loss"] == pytest.approx(first["eval_loss"], rel=1e-6)


@pytest.mark.slow
def test_resuming_with_and_without_an_average_do_not_mix(run, tokenizer, tmp_path):
    folder, _, _ = run
    without = make_trainer(tokenizer, tmp_path, **{**SETTINGS, "ema_decay": 0.0})
    with pytest.raises(
        ValueError, match=r"^ema_decay was 0\.6 when checkpoint-2 was written, got 0: continue with what"
    ):
        without.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    without = make_trainer(
        tokenizer, tmp_path, **{**SETTINGS, "ema_decay": 0.0, "save_strategy": "steps", "save_steps": 2}
    )
    without.train()
    averaged = make_trainer(tokenizer, tmp_path, **SETTINGS)
    with pytest.raises(ValueError, match=r"^ema_decay was 0 when checkpoint-2 was written, got 0\.6: "):
        averaged.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_bad_settings_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"ema_decay must be in \[0, 1\), got 1.0"):
        ConceptTrainingArguments(output_dir=str(tmp_path), ema_decay=1.0)
