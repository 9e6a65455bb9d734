import json
import math
import sys

import pytest
import torch
from small_runs import diverge_at, equal_lengths, launch_two, make_trainer, noise_by_text, parameters, weighted_terms
from torch import nn

from concept_encoder.trainers.objectives.objective import ObjectiveArguments
from concept_encoder.trainers.training.arguments import ConceptTrainingArguments
from concept_encoder.trainers.training.stability import DivergenceError, DivergenceGuard, gradient_norms


def test_an_exploding_norm_is_told_from_a_spike_and_from_the_first_steps():
    guard = DivergenceGuard(ratio=100, clipped=True)
    guard.check(1, loss=5.0, norm=1000.0)
    for step in range(2, 21):
        guard.check(step, loss=5.0, norm=2.0)
    for step, norm in enumerate((1e6, 1e5, 199.0, 400.0, 300.0), start=21):  # no three in a row above 200
        guard.check(step, loss=5.0, norm=norm)
    with pytest.raises(DivergenceError) as error:
        guard.check(26, loss=5.0, norm=201.0)
    message = str(error.value)
    assert "the gradient norm is 201 at step 26, 100 times the usual one (median of the last 25 steps: 2)" in message
    assert "(median of the last 25 steps: 2), 3 such in a row" in message
    guard = DivergenceGuard(ratio=100, clipped=False)
    for step in range(1, 21):
        guard.check(step, loss=5.0, norm=2.0)
    with pytest.raises(DivergenceError, match=r"201 at step 21, 100 times the usual one .*, 1 such in a row"):
        guard.check(21, loss=5.0, norm=201.0)
    assert "the weights are still those of the step before. Lower learning_rate or max_grad_norm" in message
    DivergenceGuard(ratio=0, clipped=True).check(1, loss=5.0, norm=1e30)


@pytest.mark.parametrize(
    ("loss", "norm", "message"),
    [
        (math.nan, 1.0, "the loss is nan at step 3, the gradient norm 1 "),
        (1.0, math.inf, r"the gradient norm is inf at step 3 \(median of the last 1 steps: 2\)"),
    ],
)
def test_what_is_not_finite_is_caught_at_once(loss, norm, message):
    guard = DivergenceGuard(ratio=0, clipped=True)
    guard.check(2, loss=5.0, norm=2.0)
    with pytest.raises(DivergenceError, match=message):
        guard.check(3, loss, norm)
    assert list(guard.norms) == [2.0]


def test_the_norms_go_into_a_checkpoint_and_back(tmp_path):
    guard, again = DivergenceGuard(ratio=100, clipped=True), DivergenceGuard(ratio=100, clipped=True)
    for step in range(1, 151):
        guard.check(step, loss=5.0, norm=1.0 + step)
    guard.save(str(tmp_path))
    again.load(str(tmp_path))
    assert again.norms == guard.norms and len(again.norms) == 100
    with pytest.raises(ValueError, match=r"has no gradient_norms\.json: it was saved with save_only_model"):
        again.load(str(tmp_path / "elsewhere"))


def test_norms_are_grouped_by_module_and_layer():
    model = nn.ModuleDict(
        {
            "encoder": nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])}),
            "lm_head": nn.Linear(2, 1, bias=False),
        }
    )
    assert gradient_norms(model) == {}
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, float(number))
    norms = {name: value.item() for name, value in gradient_norms(model).items()}
    # Linear layers of 4 weights and 2 biases with gradients 0 and 1, 2 and 3; a head of 2 weights with 4.
    assert norms == pytest.approx(
        {"encoder.layers.0": math.sqrt(2), "encoder.layers.1": math.sqrt(16 + 18), "lm_head": math.sqrt(32)}
    )


@pytest.mark.slow
def test_logged_norms_are_those_before_clipping_and_add_up(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, gradient_accumulation_steps=2, max_grad_norm=0.01)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "grad_norm" in row]
    for row in rows:
        modules = {name: value for name, value in row.items() if name.startswith("grad_norm_")}
        assert math.sqrt(sum(value**2 for value in modules.values())) == pytest.approx(row["grad_norm"], rel=1e-5)
    assert {"grad_norm_encoder.embeddings", "grad_norm_encoder.layers.1", "grad_norm_decoder.layers.0"} < rows[
        0
    ].keys()


def like_the_predecessor(trainer):
    """Gates that do not start at zero, as in the run that diverged before the reference."""
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "modulation" in name:
                parameter.normal_(std=0.1)
    return trainer


WILD = {
    "optim": "sgd",
    "learning_rate": 10.0,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 60,
    "max_grad_norm": 0.0,
    "logging_steps": 10,
    "save_strategy": "steps",
    "save_steps": 10,
}


@pytest.mark.slow
def test_a_run_like_the_predecessor_is_stopped_before_the_loss_is_nan(tokenizer, tmp_path):
    trainer = like_the_predecessor(make_trainer(tokenizer, tmp_path, max_steps=60, **WILD))
    with pytest.raises(DivergenceError, match=r"the gradient norm is .* at step .*, \d+ times the usual one"):
        trainer.train()
    assert trainer.state.global_step < 60
    assert parameters(trainer).isfinite().all()


@pytest.mark.slow
def test_a_run_like_the_predecessor_finishes_at_a_lower_rate(tokenizer, tmp_path, caplog):
    settings = {**WILD, "on_divergence": "rollback"}
    trainer = like_the_predecessor(make_trainer(tokenizer, tmp_path, max_steps=60, **settings))
    trainer.train()
    assert trainer.state.global_step == 60 and parameters(trainer).isfinite().all()
    rollbacks = [row for row in trainer.state.log_history if "rollback" in row]
    count = caplog.text.count("diverged: the ")
    assert 1 <= count <= 3
    assert rollbacks[-1]["rollback"] == count
    rate = 10.0 / 2**count
    assert f"rollback {count} of at most 3 to {tmp_path}" in caplog.text
    assert f"with the learning rate halved to {rate:g}" in caplog.text
    assert trainer.state.log_history[-2]["learning_rate"] == pytest.approx(rate * 59 / 60)
    # A resumed run continues at that rate.
    resumed = make_trainer(tokenizer, tmp_path, max_steps=62, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-60"))
    assert resumed.lr_scheduler.get_last_lr()[0] == rate


@pytest.mark.slow
def test_a_rollback_is_a_resume_at_half_the_rate(tokenizer, tmp_path):
    settings = {
        "max_steps": 4,
        "dropout": 0.1,
        "ema_decay": 0.9,
        "on_divergence": "rollback",
        "save_strategy": "steps",
        "save_steps": 2,
        "lr_scheduler_type": "constant",
        "objective": ObjectiveArguments(regularizers={"variance": 0.1}),
        "bf16": True,  # accelerate's wrapping of a prepared model has to survive it
    }
    trainer = diverge_at(make_trainer(tokenizer, tmp_path / "a", **settings), 4, 4)
    trainer.train()
    assert trainer.optimizer.param_groups[0]["lr"] == 3e-3 / 4 == trainer.optimizer.param_groups[-1]["lr"]
    plain = make_trainer(tokenizer, tmp_path / "b", **settings)
    plain.train()
    resumed = make_trainer(tokenizer, tmp_path / "b", **settings)
    resumed._base_rates = [3e-3 / 4] * 2
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    assert torch.equal(parameters(trainer), parameters(resumed))
    assert not torch.equal(parameters(trainer), parameters(plain))


@pytest.mark.slow
def test_rollbacks_end(tokenizer, tmp_path):
    settings = {"on_divergence": "rollback", "save_strategy": "steps", "save_steps": 2}
    with pytest.raises(DivergenceError, match="There is no checkpoint yet to roll back to: lower save_steps"):
        diverge_at(make_trainer(tokenizer, tmp_path / "a", **settings), 2).train()
    with pytest.raises(DivergenceError, match="Rolled back 3 times already"):
        diverge_at(make_trainer(tokenizer, tmp_path / "b", **settings), 3, 3, 4, 3).train()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"divergence_ratio": 0.5}, r"divergence_ratio must be 0 \(off\) or at least 1, got 0.5"),
        ({"on_divergence": "pray"}, "on_divergence must be 'stop' or 'rollback', got 'pray'"),
        ({"on_divergence": "rollback", "save_strategy": "no"}, "needs checkpoints with the optimizer's state, got"),
        ({"on_divergence": "rollback", "save_only_model": True}, "got save_strategy='steps', save_only_model=True"),
        ({"on_divergence": "rollback", "lr_scheduler_type": "reduce_lr_on_plateau"}, "cannot halve the rate of"),
    ],
)
def test_bad_settings_are_named(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        ConceptTrainingArguments(output_dir=str(tmp_path), **{"eval_strategy": "steps", **kwargs})


TWO_PROCESSES = """
import json, sys
sys.path[:0] = {tests!r}
from small_runs import diverge_at, equal_lengths, losses, make_trainer, noise_by_text, parameters, weighted_terms
from concept_encoder.trainers.data.microworld import microworld_tokenizer

tokenizer = microworld_tokenizer()
trainer = make_trainer(tokenizer, {out!r}, per_device_train_batch_size=4, **weighted_terms())
rank = trainer.args.process_index
assert trainer.accelerator.num_processes == 2
noise_by_text(equal_lengths(trainer, tokenizer)).train()
logged = [row for row in trainer.state.log_history if "grad_norm" in row]
result = {{"losses": losses(trainer), "logged": logged[-1], "parameters": parameters(trainer).tolist()}}

settings = {{"on_divergence": "rollback", "save_strategy": "steps", "save_steps": 2, "max_steps": 4}}
again = make_trainer(tokenizer, {out!r} + "/again", **settings)
(diverge_at(again, 3) if rank == 1 else again).train()
result["again"] = parameters(again).tolist()
result["rollbacks"] = again._rollbacks
with open({out!r} + f"/rank{{rank}}.json", "w") as file:
    json.dump(result, file)
"""


@pytest.mark.slow
def test_two_processes_train_average_and_roll_back_as_one(tokenizer, tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES.format(tests=sys.path, out=str(tmp_path)))
    launch_two(script)
    ranks = [json.loads((tmp_path / f"rank{r}.json").read_text()) for r in range(2)]
    for name in ("parameters", "again"):
        assert ranks[0][name] == ranks[1][name]
    assert ranks[0]["rollbacks"] == ranks[1]["rollbacks"] == 1  # the loss was not finite on one of them only

    alone = make_trainer(tokenizer, tmp_path / "alone", gradient_accumulation_steps=1, **weighted_terms())
    noise_by_text(equal_lengths(alone, tokenizer)).train()
    torch.testing.assert_close(torch.tensor(ranks[0]["parameters"]), parameters(alone), rtol=1e-3, atol=1e-5)
    logged = [row for row in alone.state.log_history if "grad_norm" in row][-1]
    for name, value in logged.items():
        if name.startswith(("grad_norm", "loss")):
            assert ranks[0]["logged"][name] == pytest.approx(value, rel=1e-3, abs=1e-6), name


@pytest.mark.slow
def test_accumulation_changes_nothing(tokenizer, tmp_path):
    results = []
    for size, steps in ((8, 1), (4, 2)):
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        trainer = make_trainer(tokenizer, tmp_path / str(size), **settings, **weighted_terms())
        noise_by_text(equal_lengths(trainer, tokenizer)).train()
        results.append(parameters(trainer))
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-5)
