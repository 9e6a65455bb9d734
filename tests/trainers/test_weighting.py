import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import losses, make_trainer, parameters

from concept_encoder.trainers.objectives.objective import ObjectiveArguments
from concept_encoder.trainers.objectives.regularizers import gaussian_potential, orthogonality
from concept_encoder.trainers.objectives.weighting import KendallGalWeighting, SoftmaxWeighting, build_weighting

TERMS = ("orthogonality", "gaussian_potential")


@pytest.mark.parametrize(
    ("name", "logits", "recorded"),
    [
        ("fixed", None, "fixed/init"),
        ("learnable", None, "learnable/init"),
        ("learnable", (0.2, -0.4, 0.7), "learnable/set_0.2_-0.4_0.7"),
        ("kendall_gal", None, "kendall_gal/init"),
        ("kendall_gal", (0.2, -0.4, 0.7), "kendall_gal/set_0.2_-0.4_0.7"),
    ],
)
def test_equals_the_original(shared, name, logits, recorded):
    arrays = np.load(shared / "parity" / "losses" / "arrays.npz")
    concepts = torch.from_numpy(arrays["x_random"])
    scales = (0.1, 0.3) if name == "fixed" else (1.0, 1.0)
    values = [scale * f(concepts) for scale, f in zip(scales, (orthogonality, gaussian_potential), strict=True)]
    weighting = build_weighting(name, TERMS)
    if logits:
        weighting.logits.data = torch.tensor(logits)
    total = weighting(torch.tensor(2.5), dict(zip(TERMS, values, strict=True)))
    assert total.item() == pytest.approx(arrays[f"weighting/{recorded}"].item(), rel=1e-6)


@pytest.mark.parametrize("name", ["fixed", "learnable", "kendall_gal"])
def test_micro_batches_add_up_to_their_mean(name):
    weighting = build_weighting(name, TERMS)
    for parameter in weighting.parameters():
        parameter.data = torch.tensor([0.3, -1.0, 0.5])
    whole = weighting(torch.tensor(3.0), {"orthogonality": torch.tensor(0.4), "gaussian_potential": torch.tensor(2.0)})
    parts = [
        weighting(torch.tensor(task), {"orthogonality": torch.tensor(a), "gaussian_potential": torch.tensor(b)}, share)
        for task, a, b, share in ((1.0, 0.1, 2.6, 0.25), (2.0, 0.5, 1.8, 0.75))
    ]
    assert sum(parts).item() == pytest.approx(whole.item())


def test_kendall_gal_settles_where_its_closed_form_says():
    weighting = KendallGalWeighting(["variance"])
    optimizer = torch.optim.SGD(weighting.parameters(), lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        weighting(torch.tensor(2.5), {"variance": torch.tensor(0.4)}).backward()
        optimizer.step()
    torch.testing.assert_close(weighting.logits.data, torch.tensor([2.5, 0.4]).log())  # s_i = log L_i
    assert weighting.figures()["weight_task"].item() == pytest.approx(0.5 / 2.5)


def test_softmax_weights_add_up_to_one_and_flow_to_the_smallest_term():
    weighting = SoftmaxWeighting(["variance"])
    weighting(torch.tensor(2.5), {"variance": torch.tensor(0.4)}).backward()
    assert weighting.logits.grad[0] > 0 > weighting.logits.grad[1]
    assert sum(weighting.figures().values()).item() == pytest.approx(1)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="term_weighting must be one of fixed, learnable, kendall_gal, got 'even'"):
        build_weighting("even", TERMS)
    with pytest.raises(ValueError, match="weighs the task against other terms; name a regularizer"):
        ObjectiveArguments(term_weighting="kendall_gal")


def test_learned_weights_train_without_decay_and_resume_exactly(tokenizer, tmp_path):
    objective = ObjectiveArguments(regularizers=["orthogonality=0.5"], term_weighting="kendall_gal")
    settings = {
        "objective": objective,
        "dropout": 0.1,
        "weight_decay": 0.1,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
        "save_strategy": "steps",
        "save_steps": 4,
    }
    straight = make_trainer(tokenizer, tmp_path / "a", **settings)
    straight.train()
    resumed = make_trainer(tokenizer, tmp_path / "a", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    learned = straight.objective.weighting.logits
    assert torch.equal(resumed.objective.weighting.logits, learned)
    assert torch.equal(parameters(resumed), parameters(straight)) and losses(resumed) == losses(straight)
    group = straight.optimizer.param_groups[-1]
    assert group["params"][0] is learned and group["weight_decay"] == 0
    # Adam moves a parameter by about the learning rate a step: here always towards log L, up for a loss above 1.
    assert 3e-3 < learned[0] < 6 * 3e-3 and learned[1] < 0
    logged = [row["weight_task"] for row in straight.state.log_history if "weight_task" in row]
    assert logged[-1] == pytest.approx(0.5 * math.exp(-learned[0].item()))
    assert not any("logits" in name for name in load_file(tmp_path / "a" / "checkpoint-4" / "model.safetensors"))
    assert list(load_file(tmp_path / "a" / "checkpoint-4" / "objective.safetensors")) == ["weighting.logits"]
