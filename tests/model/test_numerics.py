"""Numbers: gradients against finite differences in float64, bfloat16 next to float32, extreme inputs, determinism."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import randomised, tiny_config, token_batch
from torch.autograd import gradcheck
from training_steps import steps

from concept_encoder import ConceptEncoderForDiffusionMLM, ConceptEncoderModel
from concept_encoder.modeling_concept import (
    ConceptEncoderForMaskedLMPerceiver,
    ConceptEncoderForSentencePairClassification,
    ConceptEncoderForSequenceClassificationPerceiver,
    ConceptEncoderForSequenceClassificationViaDecoder,
)
from concept_encoder.trainers.objectives.codes import contrast
from concept_encoder.trainers.objectives.regularizers import REGULARIZERS
from concept_encoder.trainers.objectives.schedules import SCHEDULES
from concept_encoder.trainers.training.kernels import LinearCrossEntropy, linear_cross_entropy

SMALL = {"vocab_size": 7, "hidden_size": 4, "num_attention_heads": 2, "intermediate_size": 4, "num_concepts": 3}
SMALL |= {"num_hidden_layers": 2, "decoder_num_hidden_layers": 1, "max_position_embeddings": 6}
VARIANTS = {
    "eager": {},
    "sdpa": {},
    "slot": {"concept_attention": "slot"},
    "bixt": {"token_update": "bixt"},
    "latent": {"decoder_context": "latent"},
    "slot, latent": {"concept_attention": "slot", "decoder_context": "latent"},
    "anchored": {"concept_position_type": "anchored", "embedding_layer_norm": True},
    "sinusoidal": {"position_embedding_type": "sinusoidal", "concept_position_type": "sinusoidal"},
    "narrow": {"token_embedding_size": 2, "tie_word_embeddings": False},
}
IDS = torch.tensor([[2, 5, 1, 3], [6, 1, 4, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


def model_of(head, name: str, dtype=torch.float64, std=0.4, seed=0, **config):
    config = tiny_config(**{**SMALL, **VARIANTS[name], **config})
    config._attn_implementation = "eager" if name == "eager" else "sdpa"
    torch.manual_seed(seed)
    return randomised(head(config), seed, std).to(dtype)


def agrees_with_finite_differences(model, loss_of) -> None:
    """Every parameter's gradient along one random direction, to seven digits."""
    model.zero_grad()
    loss_of().backward()
    generator = torch.Generator().manual_seed(0)
    tried = 0
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        step, values = 1e-6, []
        with torch.no_grad():
            for sign in (1, -1):
                parameter.add_(sign * step * direction)
                values.append(loss_of().item())
                parameter.add_(-sign * step * direction)
        expected = (values[0] - values[1]) / (2 * step)
        assert (parameter.grad * direction).sum().item() == pytest.approx(expected, rel=1e-6, abs=1e-8), name
        tried += 1
    assert tried > 10


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_of_the_heads_that_rebuild(name, fused):
    labels = IDS.masked_fill(MASK == 0, -100)
    weights = torch.tensor([[0.5, 2.0, 1.0, 0.3], [1.0, 4.0, 0.1, 1.0]], dtype=torch.float64)
    for head in (ConceptEncoderForDiffusionMLM, ConceptEncoderForMaskedLMPerceiver):
        model = model_of(head, name)
        inputs = {"input_ids": IDS, "attention_mask": MASK, "labels": labels, "loss_weights": weights}
        inputs["row_loss"] = partial(linear_cross_entropy, label_smoothing=0.1) if fused else None
        if head is ConceptEncoderForDiffusionMLM:
            inputs["timesteps"] = torch.tensor([0.3, 1.0], dtype=torch.float64)
        agrees_with_finite_differences(model, lambda: model(**inputs).loss)  # noqa: B023


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "config", "labels"),
    [
        (ConceptEncoderForSequenceClassificationPerceiver, {"num_labels": 3}, torch.tensor([2, 0])),
        (ConceptEncoderForSequenceClassificationViaDecoder, {"num_labels": 1}, torch.tensor([0.3, -1.0]).double()),
        (ConceptEncoderForSentencePairClassification, {"num_labels": 2}, torch.tensor([1, 0])),
        (
            ConceptEncoderForSentencePairClassification,
            {"num_labels": 1, "pair_comparison": "cosine"},
            torch.tensor([0.9, -0.2]).double(),
        ),
    ],
    ids=["classes", "regression", "pair", "cosine"],
)
def test_gradients_of_the_heads_that_classify(head, config, labels):
    model = model_of(head, "sdpa", **config)
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    if head is ConceptEncoderForSentencePairClassification:
        inputs = {"input_ids_a": IDS, "attention_mask_a": MASK, "input_ids_b": IDS.flip(1)}
        inputs["attention_mask_b"] = MASK.flip(1)  # [PAD] is never trained, so its row has no gradient to compare
    agrees_with_finite_differences(model, lambda: model(**inputs, labels=labels).loss)


@pytest.mark.parametrize("name", REGULARIZERS)
def test_gradients_of_the_regularizers(name):
    concepts = torch.randn(4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert gradcheck(REGULARIZERS[name], concepts.requires_grad_())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradients_of_the_chunked_cross_entropy(smoothing, monkeypatch):
    monkeypatch.setattr("concept_encoder.trainers.training.kernels.VOCABULARY_ROWS", 2)
    generator = torch.Generator().manual_seed(0)
    states, weight = (torch.randn(n, 4, dtype=torch.float64, generator=generator) for n in (5, 6))
    labels, rows = torch.tensor([0, 5, 2, 2, 1]), torch.tensor([1.0, 0.5, 0.0, 2.0, 9.0], dtype=torch.float64)

    def total(states, weight):
        return LinearCrossEntropy.apply(states, weight, labels, rows, smoothing)[0]

    assert gradcheck(total, (states.requires_grad_(), weight.requires_grad_()))


@pytest.mark.slow
def test_gradients_of_the_contrastive_loss():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 5, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    assert gradcheck(lambda a, b: contrast([a, b], 1, "pooled", 2.0), (a, b))


# ----------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", VARIANTS)
def test_bfloat16_stays_near_float32(name, seed):
    """At std 0.2: at 0.4 a softmax is so sharp that one rounding turns it, and the drift is that of the draw."""
    ids, mask = token_batch()
    config = {"vocab_size": 120, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 40}
    config |= {"token_embedding_size": 16} if name == "narrow" else {}
    config |= {"std": 0.2, "seed": seed}
    wide = model_of(ConceptEncoderForDiffusionMLM, name, torch.float32, **config)
    narrow = model_of(ConceptEncoderForDiffusionMLM, name, torch.bfloat16, **config)
    with torch.no_grad():
        one, other = (m(input_ids=ids, attention_mask=mask, labels=ids) for m in (wide, narrow))
    assert other.loss.dtype == torch.float32 and other.token_losses.dtype == torch.float32
    drift = (one.concepts - other.concepts.float()).norm() / one.concepts.norm()
    assert drift < 0.02  # a bfloat16 has 8 bits: 0.004 per rounding
    assert abs(one.loss - other.loss) / one.loss < 0.03


def test_autocast_stays_near_float32_in_loss_and_gradient():
    ids, mask = token_batch()
    model = randomised(ConceptEncoderForDiffusionMLM(tiny_config()), std=0.1).train()
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = model(input_ids=ids, attention_mask=mask, labels=ids).loss
        loss.backward()
        gradients.append(
            (loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        )
    (one, exact), (other, near) = gradients
    assert other == pytest.approx(one, rel=0.01)
    assert torch.nn.functional.cosine_similarity(exact, near, dim=0) > 0.995
    assert near.norm() == pytest.approx(exact.norm().item(), rel=0.05)


# ------------------------------------------------------------------------------------------------------------ extremes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-30, 1e4, 1e30])
def test_extreme_logits_have_finite_losses_and_gradients(dtype, scale):
    generator = torch.Generator().manual_seed(0)
    states, weight = (torch.randn(n, 4, generator=generator).to(dtype) for n in (5, 6))
    states, weight = (states * scale**0.5).requires_grad_(), (weight * scale**0.5).requires_grad_()
    total, losses = LinearCrossEntropy.apply(states, weight, torch.arange(5), torch.ones(5), 0.1)
    total.backward()
    assert losses.isfinite().all() and (losses >= 0).all()
    assert states.grad.isfinite().all() and weight.grad.isfinite().all()
    exact = torch.nn.functional.cross_entropy(
        states.detach().double() @ weight.detach().double().T, torch.arange(5), reduction="none", label_smoothing=0.1
    )
    torch.testing.assert_close(losses.double(), exact, rtol=0.05 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_timesteps_near_their_ends(name):
    schedule = SCHEDULES[name]()
    for t in (1e-38, 1e-12, 1e-6, 1 - 1e-7, 1.0):
        t = torch.tensor([t])
        alpha, weight = schedule.alpha(t.double()), schedule.elbo_weight(t)
        assert 0 <= alpha <= 1 and weight.isfinite() and weight >= 0
        # What is masked times its weight: the bound has no pole at 0.
        assert (1 - alpha) * weight.double() <= 3
    model = model_of(ConceptEncoderForDiffusionMLM, "sdpa", torch.float32)
    for t in (0.0, 1e-38, 1.0):
        loss = model(input_ids=IDS, labels=IDS, timesteps=torch.full((2,), t)).loss
        assert loss.isfinite()


@pytest.mark.parametrize("attention", ["softmax", "slot"])
@pytest.mark.parametrize("context", ["none", "latent"])
def test_one_token_one_concept_two_words(attention, context):
    config = {"vocab_size": 2, "num_concepts": 1, "max_position_embeddings": 1, "pad_token_id": None}
    config |= {"mask_token_id": 1, "bos_token_id": None, "eos_token_id": None}
    config |= {"concept_attention": attention, "decoder_context": context}
    model = model_of(ConceptEncoderForDiffusionMLM, "sdpa", torch.float32, **config).train()
    ids = torch.tensor([[0], [1]])
    output = model(input_ids=ids, labels=ids)
    output.loss.backward()
    assert output.loss.isfinite() and output.concepts.shape == (2, 1, 4)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    sampled = model.eval().generate(input_ids=ids, num_steps=3, generator=torch.Generator().manual_seed(0))
    assert sampled.tolist() == [[0], [0]]  # [MASK] is no answer, and there is no other


@pytest.mark.parametrize("scale", [1e3, 1e15])
def test_extreme_embeddings_give_finite_concepts(scale):
    for name in ("eager", "sdpa", "slot"):
        model = model_of(ConceptEncoderModel, name, torch.float32)
        with torch.no_grad():
            model.embeddings.tokens.weight.mul_(scale)
            assert model(IDS, MASK).last_hidden_state.isfinite().all(), name


# --------------------------------------------------------------------------------------------------------- determinism

STEPS = Path(__file__).parents[1] / "support" / "training_steps.py"


def child(threads: int) -> list[str]:
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONHASHSEED": str(threads)}
    done = subprocess.run([sys.executable, str(STEPS), str(threads)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits():
    assert steps() == steps()


@pytest.mark.slow
def test_processes_agree_bit_for_bit_and_thread_counts_to_rounding():
    one, again, two = child(1), child(1), child(2)
    assert one == again
    for left, right in zip(one[:-1], two[:-1], strict=True):
        assert float.fromhex(left) == pytest.approx(float.fromhex(right), rel=1e-5)
