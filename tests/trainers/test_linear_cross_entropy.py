"""The cross-entropy that never holds all logits, and decoding labelled positions alone, against the plain way."""

from functools import partial

import pytest
import torch
from helpers import MASK, randomised, tiny_config, token_batch
from torch import nn

from concept_encoder import ConceptEncoderForDiffusionMLM, ConceptEncoderForMaskedLMPerceiver
from concept_encoder.modeling_concept import cross_entropy_of_rows
from concept_encoder.trainers.training.kernels import VOCABULARY_ROWS, LinearCrossEntropy, linear_cross_entropy


def problem(rows, vocabulary=11, width=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(rows)
    states = torch.randn(rows, width, generator=generator, dtype=dtype)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=dtype)
    labels = torch.randint(vocabulary, (rows,), generator=generator)
    row_weights = 5 * torch.rand(rows, generator=generator, dtype=dtype)
    return states.requires_grad_(), weight.requires_grad_(), labels, row_weights


def head(weight):
    """A plain `lm_head` of this very weight."""
    layer = nn.Linear(*weight.shape[::-1], bias=False, device="meta")
    layer._parameters["weight"] = weight
    return layer


def plain(states, weight, labels, row_weights, label_smoothing):
    losses = nn.functional.cross_entropy(states @ weight.mT, labels, reduction="none", label_smoothing=label_smoothing)
    return (losses * row_weights).sum(), losses


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("vocabulary", [2, 11])
@pytest.mark.parametrize("rows", [0, 1, VOCABULARY_ROWS, 2 * VOCABULARY_ROWS + 3])
def test_losses_and_gradients_are_the_plain_ones(rows, vocabulary, smoothing):
    states, weight, labels, row_weights = problem(rows, vocabulary)
    total, losses, _ = linear_cross_entropy(head(weight), states, labels, row_weights, smoothing)
    expected_total, expected = plain(states, weight, labels, row_weights, smoothing)
    torch.testing.assert_close((total, losses), (expected_total, expected.detach()), rtol=1e-12, atol=1e-12)
    got = torch.autograd.grad(total / 7, (states, weight))
    torch.testing.assert_close(got, torch.autograd.grad(expected_total / 7, (states, weight)), rtol=1e-10, atol=1e-12)
    assert not losses.requires_grad


def test_extreme_logits_stay_finite_and_right():
    states, weight, labels, row_weights = problem(5, dtype=torch.float32)
    far = (1e4 * states.detach()).requires_grad_()
    total, losses, _ = linear_cross_entropy(head(weight), far, labels, row_weights, 0.0)
    torch.testing.assert_close(losses, plain(far, weight, labels, row_weights, 0.0)[1].detach())
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(total, (far, weight)))


@pytest.mark.parametrize("frozen", ["states", "weight", "both"])
def test_what_is_frozen_gets_no_gradient(frozen):
    states, weight, labels, row_weights = problem(4)
    states.requires_grad_(frozen == "weight")
    weight.requires_grad_(frozen == "states")
    total, _, _ = linear_cross_entropy(head(weight), states, labels, row_weights, 0.0)
    assert total.requires_grad == (frozen != "both")
    if frozen != "both":
        total.backward()
        assert (states.grad is None) == (frozen != "weight") and (weight.grad is None) == (frozen != "states")


def test_no_second_derivative_is_promised():
    states, weight, labels, row_weights = problem(4)
    total, _, _ = linear_cross_entropy(head(weight), states, labels, row_weights, 0.0)
    (grad,) = torch.autograd.grad(total**2, states, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_half_precision_accumulates_the_weight_gradient_in_float32():
    states, weight, labels, row_weights = problem(4 * VOCABULARY_ROWS, dtype=torch.float32)
    exact = torch.autograd.grad(plain(states, weight, labels, row_weights, 0.0)[0], (states, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, losses, _ = linear_cross_entropy(head(weight), states, labels, row_weights, 0.0)
    assert total.dtype == losses.dtype == torch.float32
    got = torch.autograd.grad(total, (states, weight))
    assert got[0].dtype == got[1].dtype == torch.float32
    for mine, wanted in zip(got, exact, strict=True):
        assert (mine - wanted).norm() < 0.02 * wanted.norm()


def test_all_logits_are_never_held_at_once(monkeypatch):
    """Saved for backward are two gradients, and no product made on the way has more than VOCABULARY_ROWS rows."""
    states, weight, labels, row_weights = problem(3 * VOCABULARY_ROWS, vocabulary=50)
    seen = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dim() == 2 and out.shape[-1] == 50:
                seen.append(len(out))
            return out

    with Watch():
        total, _ = LinearCrossEntropy.apply(states, weight, labels, row_weights, 0.0)
    assert seen and max(seen) == VOCABULARY_ROWS
    assert [tuple(saved.shape) for saved in total.grad_fn.saved_tensors] == [tuple(states.shape), tuple(weight.shape)]


def test_the_gradient_of_the_weighted_sum_itself_is_handed_over_without_a_copy():
    states, weight, labels, row_weights = problem(4)
    total, _, _ = linear_cross_entropy(head(weight), states, labels, row_weights, 0.0)
    kept = [saved.data_ptr() for saved in total.grad_fn.saved_tensors]
    total.backward()
    assert [states.grad.data_ptr(), weight.grad.data_ptr()] == kept


def test_a_second_way_back_gives_the_same_again():
    states, weight, labels, row_weights = problem(4)
    total, _, _ = linear_cross_entropy(head(weight), states, labels, row_weights, 0.0)
    first = torch.autograd.grad(total, (states, weight), retain_graph=True)
    first = [each.clone() for each in first]
    torch.testing.assert_close(torch.autograd.grad(3 * total, (states, weight)), tuple(3 * each for each in first))


# --------------------------------------------------------------------------------------------- the heads that use it


@pytest.mark.parametrize(
    "make",
    [
        lambda: ConceptEncoderForDiffusionMLM(tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)),
        lambda: ConceptEncoderForDiffusionMLM(
            tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, decoder_context="latent")
        ),
        lambda: ConceptEncoderForMaskedLMPerceiver(
            tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        ),
    ],
    ids=["none", "latent", "perceiver"],
)
def test_the_fused_loss_has_the_value_and_gradients_of_the_plain_one(make):
    model = randomised(make().double()).train()
    ids, mask = token_batch()
    noised = torch.where(ids % 2 == 0, MASK, ids)
    labels = torch.where((noised == MASK) & mask.bool(), ids, -100)
    labels[1] = -100  # a row without any
    weights = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results = []
    for fused in (True, False):
        model.zero_grad()
        row_loss = partial(linear_cross_entropy if fused else cross_entropy_of_rows, label_smoothing=0.1)
        output = model(ids, mask, noised, labels=labels, loss_weights=weights, row_loss=row_loss)
        assert (output.logits is None) == fused
        output.loss.backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((output.loss, output.token_losses.detach(), grads))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("context", ["none", "latent"])
def test_only_labelled_positions_are_decoded_and_lose_nothing_by_it(context):
    model = randomised(ConceptEncoderForDiffusionMLM(tiny_config(decoder_context=context)).double())
    ids, mask = token_batch()
    labels = torch.full_like(ids, -100)
    labels[0, [2, 7]] = ids[0, [2, 7]]
    labels[2, 4] = ids[2, 4]
    kept = {"num_visible_concepts": 3, "output_hidden_states": True}
    output = model(ids, mask, labels=labels, row_loss=cross_entropy_of_rows, **kept)
    assert output.decoder_hidden_states[-1].shape[1] == 2
    whole = model(ids, mask, labels=labels, num_visible_concepts=3)
    assert whole.logits.shape == (*ids.shape, 120)
    torch.testing.assert_close(output.logits, whole.logits[labels != -100], rtol=1e-9, atol=1e-12)
    for name in ("loss", "token_losses"):
        torch.testing.assert_close(output[name], whole[name], rtol=1e-9, atol=1e-12)


def test_what_surrounds_the_weight_is_in_the_loss():
    """An adapter on `lm_head` gets its gradient, and a bias counts."""
    states, _, labels, row_weights = problem(9)
    adapted = nn.Sequential(nn.Linear(6, 11, dtype=torch.float64), nn.Linear(11, 11, dtype=torch.float64))
    biased = nn.Linear(6, 11, dtype=torch.float64)
    nn.init.ones_(biased.bias[:5].detach())
    for layer in (adapted, biased):
        total, losses, logits = linear_cross_entropy(layer, states, labels, row_weights)
        expected = nn.functional.cross_entropy(layer(states), labels, reduction="none")
        torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12)
        assert logits.shape == (9, 11)
        total.backward()
        assert all(p.grad.abs().sum() > 0 for p in layer.parameters())
