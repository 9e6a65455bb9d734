import math

import pytest
import torch
from helpers import random_examples, randomised, tiny_config
from torch import nn

from concept_encoder import ConceptEncoderForDiffusionMLM
from concept_encoder.trainers.collators import DataCollatorForMaskedDiffusion
from concept_encoder.trainers.objectives import DiffusionObjective, ObjectiveArguments
from concept_encoder.trainers.regularizers import REGULARIZERS


@pytest.fixture
def model(tokenizer):
    return randomised(ConceptEncoderForDiffusionMLM(tiny_config(vocab_size=len(tokenizer), mask_token_id=4)))


def corrupted(tokenizer, **kwargs):
    batch = DataCollatorForMaskedDiffusion(tokenizer, **kwargs)(random_examples(tokenizer, rows=16, longest=30))
    return batch, batch["num_items"].sum()


@pytest.mark.parametrize("weighting", ["none", "elbo"])
def test_loss_equals_a_short_reference(model, tokenizer, weighting):
    batch, items = corrupted(tokenizer, weighting=weighting)
    result = DiffusionObjective(label_smoothing=0.1)(model, batch, items)
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "decoder_input_ids", "timesteps")}
    logits = model(**inputs, labels=batch["input_ids"]).logits.view(*batch["labels"].shape, -1)  # of every position
    nll = nn.functional.cross_entropy(logits.mT, batch["labels"], reduction="none", label_smoothing=0.1)
    expected = (nll * batch["loss_weights"]).sum() / items
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert result.token_count == (batch["labels"] != -100).sum()


def test_regularizers_add_their_weighted_mean_over_micro_batches(model, tokenizer):
    batch, items = corrupted(tokenizer)
    plain = DiffusionObjective()(model, batch, items)
    both = DiffusionObjective(regularizers={"orthogonality": 0.5, "variance": 2.0})(model, batch, 4 * items)
    expected = {name: REGULARIZERS[name](plain.concepts) for name in ("orthogonality", "variance")}
    added = (0.5 * expected["orthogonality"] + 2.0 * expected["variance"]) / 4  # one of four such micro-batches
    assert both.loss.item() == pytest.approx((plain.loss / 4 + added).item(), rel=1e-5)
    for name, value in expected.items():
        total, count = both.parts[name]
        assert (total / count).item() == pytest.approx(value.item(), rel=1e-5)
    both.loss.backward()
    assert model.encoder.latents.weight.grad.abs().sum() > 0


def test_binned_parts_add_up_to_all_masked_tokens(model, tokenizer):
    batch, items = corrupted(tokenizer)
    result = DiffusionObjective()(model, batch, items)
    assert list(result.parts) == ["loss_t_0.2", "loss_t_0.4", "loss_t_0.6", "loss_t_0.8", "loss_t_1.0"]
    totals, counts = zip(*result.parts.values(), strict=True)
    assert sum(counts) == result.token_count
    assert (sum(totals) / sum(counts)).item() == pytest.approx(result.loss.item(), rel=1e-5)
    inside = (batch["timesteps"] > 0.4) & (batch["timesteps"] <= 0.6)
    assert result.parts["loss_t_0.6"][1] == (batch["labels"][inside] != -100).sum()


def test_monte_carlo_nelbo_of_a_known_model_equals_its_closed_form(tokenizer):
    class Unigram(nn.Module):
        """Scores every position by fixed token probabilities, so its NELBO is the cross-entropy with them."""

        def __init__(self, log_probs):
            super().__init__()
            self.log_probs = log_probs

        def forward(self, labels, loss_weights, num_items_in_batch, **kwargs):
            nll = -self.log_probs[labels.clamp_min(0)] * (labels != -100)
            loss = (nll * loss_weights).sum() / num_items_in_batch
            return type("Output", (), {"loss": loss, "token_losses": nll, "concepts": torch.zeros(len(nll), 1, 1)})

    log_probs = torch.randn(len(tokenizer), generator=torch.Generator().manual_seed(0)).log_softmax(0)
    collator = DataCollatorForMaskedDiffusion(tokenizer, weighting="elbo", t_sampling="antithetic")
    batch = collator.pad(random_examples(tokenizer, rows=256))
    content = batch["input_ids"][~torch.isin(batch["input_ids"], torch.tensor(tokenizer.all_special_ids))]
    exact = -log_probs[content].mean().item()
    losses = []
    for step in range(100):
        noised = collator.corrupt(batch, *collator.draw(batch, step=step))
        losses.append(DiffusionObjective()(Unigram(log_probs), noised, noised["num_items"].sum()).loss.item())
    estimate = sum(losses) / len(losses)
    error = torch.tensor(losses).std().item() / math.sqrt(len(losses))
    assert abs(estimate - exact) < 4 * error and error < 0.02 * exact


def test_regularizers_read_from_a_recipe():
    settings = ObjectiveArguments(regularizers=["orthogonality=0.1", "variance=2"])
    assert settings.regularizer_weights() == {"orthogonality": 0.1, "variance": 2.0}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\), got 1.0"),
        ({"num_eval_timesteps": 0}, "num_eval_timesteps must be at least 1, got 0"),
        ({"regularizers": ["spread=0.1"]}, "Unknown regularizer 'spread'. Available: orthogonality, "),
        ({"regularizers": ["vicreg=0"]}, "the weight of regularizer vicreg must be positive and finite, got 0"),
        ({"regularizers": ["vicreg=nan"]}, "the weight of regularizer vicreg must be positive and finite, got nan"),
        ({"regularizers": ["vicreg"]}, "regularizer vicreg needs a weight, such as vicreg=0.1, got 'vicreg'"),
        ({"regularizers": ["vicreg=1", "vicreg=2"]}, "regularizer vicreg is named twice"),
    ],
)
def test_bad_settings_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveArguments(**kwargs)
