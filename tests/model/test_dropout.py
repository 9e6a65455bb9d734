"""Dropout with masks of 16 random bits, attention that uses it, and decoding of some positions alone."""

import pytest
import torch
from helpers import randomised, tiny_config, token_batch
from torch import nn

from concept_encoder import ConceptEncoderForDiffusionMLM, ConceptEncoderModel
from concept_encoder.reading_concept import ConceptDropout, drop

ELEMENTS = 400_001  # not a multiple of the four draws in a word


def dropped(p, elements=ELEMENTS, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return drop(torch.ones(elements, dtype=dtype), p, training=True)


@pytest.mark.parametrize("p", [2**-16, 0.01, 0.1, 0.5, 0.9])
def test_share_and_scale_are_those_of_the_rounded_rate(p):
    values = dropped(p)
    rate = round(p * 2**16) / 2**16
    lost = (values == 0).sum().item()
    assert abs(lost - rate * ELEMENTS) < 5 * (rate * (1 - rate) * ELEMENTS) ** 0.5 + 1
    torch.testing.assert_close(values[values != 0].unique(), torch.tensor([1 / (1 - rate)]))


def test_draws_are_independent_of_their_neighbours():
    lost = (dropped(0.3) == 0).double()
    for distance in (1, 2, 3, 4, 5, 8):
        both = (lost[:-distance] * lost[distance:]).mean().item()
        assert abs(both - 0.09) < 0.003  # five standard deviations


def test_the_seed_decides_and_every_call_draws_anew():
    torch.testing.assert_close(dropped(0.1), dropped(0.1), rtol=0, atol=0)
    assert not torch.equal(dropped(0.1), dropped(0.1, seed=1))
    assert not torch.equal(drop(torch.ones(1000), 0.1, True), drop(torch.ones(1000), 0.1, True))


@pytest.mark.parametrize("p", [0.0, 1e-6, 1.0])
def test_rates_that_16_bits_cannot_draw_are_left_to_torch(p):
    torch.manual_seed(3)
    expected = nn.functional.dropout(torch.ones(1000), p, True)
    torch.manual_seed(3)
    torch.testing.assert_close(drop(torch.ones(1000), p, True), expected, rtol=0, atol=0)


def test_evaluation_drops_nothing():
    x = torch.randn(7, 3)
    assert torch.equal(ConceptDropout(0.5).eval()(x), x)


def test_the_gradient_passes_where_the_value_does():
    x = torch.randn(5, 7, 3, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    y = drop(x, 0.4, True)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient * x, y)
    assert set((gradient != 0).flatten().tolist()) == {True, False}


def test_half_precision_and_nothing_to_drop():
    values = dropped(0.1, dtype=torch.bfloat16)
    assert values.dtype == torch.bfloat16 and 0.09 < (values == 0).float().mean() < 0.11
    assert drop(torch.empty(2, 0, 3), 0.1, True).shape == (2, 0, 3)


@pytest.mark.parametrize("padded", [False, True])
def test_attention_with_dropout_is_that_of_sdpa_where_none_is_drawn(padded):
    """A rate of 1e-9 takes the training path, and drops nothing."""
    config = tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=1e-9)
    model = randomised(ConceptEncoderModel(config)).double()
    assert model.config._attn_implementation == "sdpa"
    ids, mask = token_batch()
    mask = mask if padded else torch.ones_like(mask)
    mask[0] = 0 if padded else 1  # a text without a visible token
    expected = model.eval()(ids, mask).last_hidden_state
    torch.manual_seed(0)
    torch.testing.assert_close(model.train()(ids, mask).last_hidden_state, expected, rtol=1e-7, atol=1e-7)


def test_attention_weights_are_dropped_while_training():
    model = randomised(ConceptEncoderModel(tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5)))
    ids, mask = token_batch()
    model.train()
    assert not torch.equal(model(ids, mask).last_hidden_state, model(ids, mask).last_hidden_state)


@pytest.mark.parametrize("positions", [None, [[4, 3, 2, 1, 0, 5, 7, 6]]])
def test_positions_decoded_alone_are_those_of_the_whole_text(positions):
    model = randomised(ConceptEncoderForDiffusionMLM(tiny_config())).eval()
    ids, mask = (each[:, :8] for each in token_batch())
    concepts = model.encoder(ids, mask).last_hidden_state
    position_ids = None if positions is None else torch.tensor(positions)
    timesteps = torch.linspace(0.2, 0.8, len(ids))
    whole = model.decoder(ids, concepts, timesteps, mask, position_ids).last_hidden_state
    some = torch.tensor([[6, 1, 3]]).expand(len(ids), -1)
    alone = model.decoder(ids, concepts, timesteps, mask, position_ids, positions=some).last_hidden_state
    torch.testing.assert_close(alone, whole.gather(1, some[..., None].expand(-1, -1, whole.shape[-1])))
