import json
import math
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from helpers import random_examples, tiny_config
from small_runs import launch_two, losses, make_trainer, noise_by_text, parameters
from torch import nn
from transformers import TrainingArguments

from concept_encoder import ConceptEncoderForDiffusionMLM
from concept_encoder.trainers.objectives.codes import contrast
from concept_encoder.trainers.objectives.objective import ObjectiveArguments
from concept_encoder.trainers.training import data_wait
from concept_encoder.trainers.training.arguments import ConceptTrainingArguments
from concept_encoder.trainers.training.stability import DivergenceError
from concept_encoder.trainers.training.trainer import ConceptTrainer


@pytest.mark.slow
def test_training_lowers_the_loss_and_logs_its_parts(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, rows=16, max_steps=40, logging_steps=10)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    bins = ("loss_t_0.2", "loss_t_0.4", "loss_t_0.6", "loss_t_0.8", "loss_t_1.0")
    assert all(rows[-1][name] < 0.9 * rows[0][name] for name in bins)
    assert rows[0]["loss_t_1.0"] == pytest.approx(math.log(len(tokenizer)), rel=0.02)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_losses(tokenizer, tmp_path):
    runs = []
    for name in ("a", "b"):
        runs.append(make_trainer(tokenizer, tmp_path / name, dropout=0.1))
        runs[-1].train()
    assert losses(runs[0]) == losses(runs[1])
    assert torch.equal(parameters(runs[0]), parameters(runs[1]))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["non_padding", "all"])
def test_tokens_are_counted_over_micro_batches(tokenizer, tmp_path, how):
    settings = {"gradient_accumulation_steps": 4, "max_steps": 3, "include_num_input_tokens_seen": how}
    trainer = make_trainer(tokenizer, tmp_path, per_device_train_batch_size=2, **settings)
    masks, step = [], trainer.training_step

    def training_step(model, inputs, *args):
        masks.append(inputs["attention_mask"])
        return step(model, inputs, *args)

    trainer.training_step = training_step
    trainer.train()
    assert len(masks) == 12 and not all(mask.all() for mask in masks)
    expected = sum(mask.numel() if how == "all" else int(mask.sum()) for mask in masks)
    assert trainer.state.num_input_tokens_seen == expected


@pytest.mark.slow
def test_time_spent_on_data_is_logged(tokenizer, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(data_wait, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    trainer = make_trainer(tokenizer, tmp_path, rows=24, max_steps=3, logging_steps=1)
    collate, step = trainer.data_collator, trainer.training_step

    def slow_collate(examples):
        now[0] += 3
        return collate(examples)

    def slow_step(*args):
        now[0] += 1
        return step(*args)

    trainer.data_collator, trainer.training_step = slow_collate, slow_step
    trainer.train()
    assert trainer.data_wait.data_seconds == 9 and trainer.data_wait.step_seconds == 3
    rows = [row["data_wait_share"] for row in trainer.state.log_history if "data_wait_share" in row]
    assert rows == pytest.approx([6 / 7, 3 / 4, 0])  # accelerate fetches one batch ahead
    assert trainer.largest_data_wait_share() == pytest.approx(0.75)


OBJECTIVES = {
    "mean": {"corruption": {"diffusion": {"weighting": "none"}}},
    "bound": {},
    "mlm": {"corruption": "mlm"},
    "tsdae": {"corruption": "tsdae"},
    "prefix": {"corruption": "prefix"},
    "two_view": {"corruption": {"two_view": {"position_share": 0.5}}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_accumulated_gradients_equal_those_of_one_large_batch(tokenizer, tmp_path, name):
    results = []
    for size, steps in ((8, 1), (2, 4)):
        trainer = make_trainer(
            tokenizer,
            tmp_path / str(steps),
            objective=ObjectiveArguments(**OBJECTIVES[name]),
            rows=16,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=2,
            logging_steps=1,
        )
        noise_by_text(trainer).train()
        norms = [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row]
        results.append((parameters(trainer), losses(trainer) + norms))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-5)
    assert len(results[0][1]) == 4 and results[0][1] == pytest.approx(results[1][1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [{}, {"corruption": {"tsdae": {"position_share": 0.5}}}, {"corruption": "prefix", "contrastive": 0.5}],
    ids=["diffusion", "tsdae", "prefix_contrastive"],
)
def test_resume_is_exact_with_dropout(tokenizer, tmp_path, objective):
    shared = {"objective": ObjectiveArguments(**objective), "dropout": 0.1, "gradient_accumulation_steps": 2}
    straight = make_trainer(tokenizer, tmp_path / "a", max_steps=12, **shared)
    straight.train()
    settings = {**shared, "save_strategy": "steps", "save_steps": 6}
    first = make_trainer(tokenizer, tmp_path / "b", max_steps=12, **settings)
    first.train()
    resumed = make_trainer(tokenizer, tmp_path / "b", max_steps=12, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-6"))
    assert torch.equal(parameters(straight), parameters(resumed))
    assert losses(straight) == losses(resumed)


@pytest.mark.slow
def test_a_non_finite_loss_stops_before_the_update(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path)
    with torch.no_grad():
        trainer.model.decoder.norm.weight[0] = math.inf
    before = parameters(trainer).clone()
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
        trainer.train()
    assert torch.equal(torch.nan_to_num(parameters(trainer)), torch.nan_to_num(before))


def test_a_head_of_another_corruption_is_refused(tokenizer, tmp_path):
    with pytest.raises(
        ValueError, match="'mlm' trains a ConceptEncoderForMaskedLMPerceiver, got a ConceptEncoderForD"
    ):
        ConceptTrainer(
            model=ConceptEncoderForDiffusionMLM(tiny_config()),
            args=ConceptTrainingArguments(output_dir=str(tmp_path), use_cpu=True),
            objective_args=ObjectiveArguments(corruption="mlm"),
            processing_class=tokenizer,
        )


@pytest.mark.slow
def test_pairs_train(tokenizer, tmp_path):
    texts = random_examples(tokenizer, rows=32, longest=20)
    pairs = Dataset.from_list([{**text, "partner_ids": text["input_ids"][::-1]} for text in texts])
    objective = ObjectiveArguments(contrastive=1.0)
    trainer = make_trainer(tokenizer, tmp_path, objective=objective, data=pairs, max_steps=30, logging_steps=10)
    trainer.train()
    logged = [row["contrastive"] for row in trainer.state.log_history if "contrastive" in row]
    assert logged[-1] < logged[0]
    assert trainer.evaluate()["eval_nelbo_bits_per_token"] > 0


def test_contrastive_needs_other_texts(tokenizer, tmp_path):
    settings = ObjectiveArguments(contrastive=0.1)
    with pytest.raises(ValueError, match="needs other texts as negatives: raise per_device_train_batch_size"):
        make_trainer(tokenizer, tmp_path, objective=settings, dropout=0.1, per_device_train_batch_size=1)


@pytest.mark.parametrize(
    ("setting", "tolerance"),
    [
        ("bf16", 0.02),
        ("gradient_checkpointing", 1e-5),
        pytest.param("torch_compile", 1e-4, marks=pytest.mark.slow),
    ],
)
def test_ways_to_save_time_or_memory_train_as_float32_does(tokenizer, tmp_path, monkeypatch, setting, tolerance):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    if setting == "torch_compile" and shutil.which("g++") is None:
        pytest.skip("torch.compile on the CPU needs a C++ compiler, and there is no g++ here")
    config = {"num_hidden_layers": 1} if setting == "torch_compile" else {}  # each layer is compiled again
    plain, other = (
        make_trainer(tokenizer, tmp_path / str(on), max_steps=4, config=config, **{setting: on})
        for on in (False, True)
    )
    for trainer in (plain, other):
        noise_by_text(trainer).train()
    assert losses(other) == pytest.approx(losses(plain), rel=tolerance)
    if setting == "bf16":
        assert losses(other) != losses(plain)
    if setting == "gradient_checkpointing":
        assert other.model.is_gradient_checkpointing and not plain.model.is_gradient_checkpointing


@pytest.mark.slow
def test_the_monitor_sees_concepts_at_logged_steps_and_may_stop(tokenizer, tmp_path, caplog):
    seen = []

    def monitor(concepts):
        seen.append(tuple(concepts.shape))
        return {"concepts_rankme": float(len(seen))}, "concepts collapsed: a test" if len(seen) >= 2 else None

    trainer = make_trainer(tokenizer, tmp_path, monitor=monitor, max_steps=20, logging_steps=2, stop_on_collapse=3)
    trainer.train()
    # Steps 1, 2, 4, 6 and 8 are logged; the second to fourth reading are collapsed.
    assert seen == [(8, 6, 32)] * 4
    assert trainer.state.global_step == 6
    assert [r["concepts_rankme"] for r in trainer.state.log_history if "concepts_rankme" in r] == [1, 2, 3, 4]
    assert caplog.text.count("step 2: concepts collapsed: a test") == 1
    assert "stopped: concepts collapsed at 3 logged steps in a row" in caplog.text


@pytest.mark.slow
def test_the_monitor_sees_concepts_without_dropout(tokenizer, tmp_path):
    seen = []

    def monitor(concepts):
        seen.append(concepts)
        return {"concepts_rankme": 1.0}, None

    trainer = make_trainer(tokenizer, tmp_path, monitor=monitor, dropout=0.5, learning_rate=0.0, max_steps=4)
    trainer.train()
    model = trainer.model
    assert model.training
    with torch.no_grad():
        expected = model.eval().encoder(**trainer._watched).last_hidden_state
    torch.testing.assert_close(seen[-1], expected)


@pytest.mark.slow
def test_nested_concepts_are_drawn_anew_at_each_step_and_for_training_alone(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, objective=ObjectiveArguments(nested_concepts=True))
    seen = []
    model = trainer.model
    plain = model.forward
    model.forward = lambda *args, **kwargs: seen.append(kwargs.get("num_visible_concepts")) or plain(*args, **kwargs)
    trainer.train()
    counts = torch.stack(seen)  # (6, 8)
    assert counts.min() >= 1 and counts.max() <= model.config.num_concepts
    assert len({tuple(row) for row in counts.tolist()}) == 6
    seen.clear()
    trainer.evaluate()
    assert seen and all(each is None for each in seen)


def test_a_tokenizer_is_required(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="ConceptTrainer needs processing_class"):
        ConceptTrainer(
            nn.Linear(1, 1),
            args=ConceptTrainingArguments(output_dir=str(tmp_path)),
            objective_args=ObjectiveArguments(),
        )


def test_its_own_arguments_are_required(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="needs args of ConceptTrainingArguments, got TrainingArguments"):
        ConceptTrainer(
            nn.Linear(1, 1),
            args=TrainingArguments(output_dir=str(tmp_path)),
            objective_args=ObjectiveArguments(),
            processing_class=tokenizer,
        )


CONTRAST_APART = """
import json
import torch
from torch import distributed
from concept_encoder.trainers.objectives.codes import contrast

distributed.init_process_group("gloo")
rank = distributed.get_rank()
assert distributed.get_world_size() == 2
generator = torch.Generator().manual_seed(0)
whole = [torch.randn(6, 5, generator=generator) for _ in range(3)]  # texts, partners, negatives
own = [each[3 * rank :][:3].clone().requires_grad_() for each in whole]
loss = contrast(own, 1, "pooled", 20.0)
loss.backward()
with open({out!r} + f"/{{rank}}.json", "w") as file:
    json.dump([loss.item(), *(each.grad.tolist() for each in own)], file)
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_contrast_in_two_processes_is_that_of_one_large_batch(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(CONTRAST_APART.format(out=str(tmp_path)))
    launch_two(script)
    losses_apart, *grads_apart = zip(
        *(json.loads((tmp_path / f"{r}.json").read_text()) for r in range(2)), strict=True
    )
    generator = torch.Generator().manual_seed(0)
    whole = [torch.randn(6, 5, generator=generator).requires_grad_() for _ in range(3)]
    loss = contrast(whole, 1, "pooled", 20.0)
    loss.backward()
    assert sum(losses_apart) / 2 == pytest.approx(loss.item(), rel=1e-5)
    for apart, each in zip(grads_apart, whole, strict=True):  # of the sum of both means, twice the mean of all
        torch.testing.assert_close(torch.tensor(apart).flatten(0, 1) / 2, each.grad)


TWO_PROCESSES = """
import json, sys
sys.path[:0] = {tests!r}
import torch
from small_runs import losses, make_trainer, noise_by_text, parameters
from concept_encoder.trainers.data.microworld import microworld_tokenizer

trainer = make_trainer(microworld_tokenizer(), {out!r}, per_device_train_batch_size=4, per_device_eval_batch_size=3)
rank, processes = trainer.args.process_index, trainer.accelerator.num_processes
assert processes == 2
noise = trainer.collator.draw({{"input_ids": torch.zeros(4, 2)}}, 0, 0, rank, processes)
before = trainer.evaluate()["eval_loss"]
noise_by_text(trainer).train()
result = {{"losses": losses(trainer), "eval_loss": before, "parameters": parameters(trainer).tolist()}}
result["tokens"], result["data_wait"] = trainer.state.num_input_tokens_seen, trainer.largest_data_wait_share()
with open({out!r} + f"/rank{{rank}}.json", "w") as file:
    json.dump({{**result, "timesteps": noise.rows[0].tolist(), "noise": noise.tokens.tolist()}}, file)
"""


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_same_global_batch(tokenizer, tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES.format(tests=sys.path, out=str(tmp_path)))
    launch_two(script)
    ranks = [json.loads((tmp_path / f"rank{r}.json").read_text()) for r in range(2)]
    assert ranks[0]["parameters"] == ranks[1]["parameters"]
    assert ranks[0]["noise"] != ranks[1]["noise"]
    gaps = torch.tensor(ranks[0]["timesteps"] + ranks[1]["timesteps"]).sort().values.diff()
    torch.testing.assert_close(gaps, torch.full((7,), 1 / 8))  # antithetic over both processes

    alone = make_trainer(tokenizer, tmp_path / "alone")
    assert ranks[0]["eval_loss"] == pytest.approx(alone.evaluate()["eval_loss"], rel=1e-5)
    noise_by_text(alone).train()
    assert ranks[0]["tokens"] == ranks[1]["tokens"] == alone.state.num_input_tokens_seen
    assert ranks[0]["data_wait"] == ranks[1]["data_wait"] > 0
    assert ranks[0]["losses"] == pytest.approx(losses(alone), rel=1e-4)
    torch.testing.assert_close(torch.tensor(ranks[0]["parameters"]), parameters(alone), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_dropping_the_last_batch_is_about_training_alone(tokenizer, tmp_path):
    plain = make_trainer(tokenizer, tmp_path / "plain", per_device_eval_batch_size=8)  # 20 texts
    dropping = make_trainer(tokenizer, tmp_path / "drop", per_device_eval_batch_size=8, dataloader_drop_last=True)
    kept, dropped = ({k: v for k, v in t.evaluate().items() if "tokens_t" in k} for t in (plain, dropping))
    assert kept == dropped and sum(kept.values()) > 0
    assert dropping.args.dataloader_drop_last and len(dropping.get_eval_dataloader()) == 3
    odd = make_trainer(tokenizer, tmp_path / "odd", rows=20, dataloader_drop_last=True)
    assert len(odd.get_train_dataloader()) == 2


@pytest.mark.slow
def test_the_loss_of_a_resumed_training_is_of_all_its_steps(tokenizer, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 4, "logging_steps": 3, "max_steps": 6}
    straight = make_trainer(tokenizer, tmp_path, **settings)
    loss = straight.train().training_loss
    resumed = make_trainer(tokenizer, tmp_path, **settings)
    output = resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert output.training_loss == output.metrics["train_loss"] == pytest.approx(loss, rel=1e-6)
    # Logged are the mean losses of step 1, of steps 2 and 3, and of 4 to 6.
    first, second, third = losses(resumed)
    assert loss == pytest.approx((first + 2 * second + 3 * third) / 6, rel=1e-6)


@pytest.mark.slow
def test_concepts_that_are_not_finite_are_not_measured_and_the_guard_speaks(tokenizer, tmp_path, caplog):
    def monitor(concepts):
        torch.linalg.eigvalsh(concepts[0] @ concepts[0].T)  # LinAlgError for what is not finite
        return {"concepts_rankme": 1.0}, None

    settings = {"optim": "sgd", "learning_rate": 1e30, "max_grad_norm": 0.0, "logging_steps": 1, "max_steps": 4}
    trainer = make_trainer(tokenizer, tmp_path, monitor=monitor, **settings)
    with pytest.raises(DivergenceError, match="the loss is nan at step 2"):
        trainer.train()
    assert "step 1: the concepts are not finite, and were not measured" in caplog.text


@pytest.mark.slow
def test_a_divergence_in_the_last_step_is_said_by_evaluation(tokenizer, tmp_path):
    settings = {"optim": "sgd", "learning_rate": 1e30, "max_grad_norm": 0.0, "max_steps": 1}
    trainer = make_trainer(tokenizer, tmp_path, **settings)
    trainer.train()
    with pytest.raises(DivergenceError, match="the evaluation loss is nan after step 1: training has diverged"):
        trainer.evaluate()
