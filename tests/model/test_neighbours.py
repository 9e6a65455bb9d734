"""Tokens that are mixed with their neighbours before they are read."""

import pytest
import torch
from helpers import Largest, randomised, tiny_config, token_batch
from huggingface_hub.errors import StrictDataclassClassValidationError

from concept_encoder import ConceptEncoderForDiffusionMLM, ConceptEncoderModel

SUM = {"concept_aggregation": "sum", "num_hidden_layers": 0, "position_embedding_type": "none"}
VARIANTS: dict[str, dict] = {
    "softmax": {"position_embedding_type": "sinusoidal"},
    "projected": {"position_embedding_type": "none", "num_concepts": 16},
    "slot": {"position_embedding_type": "sinusoidal", "concept_attention": "slot", "embedding_layer_norm": True},
    "narrow": {"position_embedding_type": "none", "token_embedding_size": 16, "tie_word_embeddings": False},
    "sum": SUM,
    "sparse": {**SUM, "concepts_per_token": 2, "count_saturation": True},
    "sum, layers": {"concept_aggregation": "sum"},
}
EQUAL = {"rtol": 1e-10, "atol": 1e-10}


def encoder(neighbours=2, dtype=torch.float64, **config) -> ConceptEncoderModel:
    torch.manual_seed(0)
    config = {"initializer_range": 0.5, **config}
    return randomised(ConceptEncoderModel(tiny_config(neighbours=neighbours, **config)).to(dtype))


def batch(columns=23):
    """Padding on the right, on both sides and in the middle, none, and nothing else."""
    ids, mask = token_batch(4, columns)
    mask[0] = 1
    mask[3] = 0
    return ids, mask


def by_hand(model, tokens, real):
    """(N, D), token by token."""
    half = tokens.shape[1] // 2
    mixed = tokens.clone()
    for i in range(len(tokens)):
        for offset, weight in enumerate(model.neighbours.weight / model.config.initializer_range, start=1):
            if i >= offset and real[i - offset]:
                mixed[i, :half] += tokens[i, :half] * weight * tokens[i - offset, half:]
    return mixed


@pytest.mark.parametrize("reach", [1, 2, 3, 50])
def test_tokens_are_those_written_down(reach):
    model = encoder(reach)
    ids, mask = batch()
    with torch.no_grad():
        states = model.embeddings(ids, None, torch.arange(23)[None])
        mixed = model.neighbours(states, mask)
        for row, tokens, real in zip(mixed, states, mask, strict=True):
            torch.testing.assert_close(row, by_hand(model, tokens, real), **EQUAL)


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_gaps_and_chunks_change_nothing(variant):
    model = encoder(**VARIANTS[variant])
    ids, mask = batch()
    with torch.no_grad():
        whole = model(ids, mask).last_hidden_state
        changed = torch.where(mask.bool(), ids, 77)
        torch.testing.assert_close(model(changed, mask).last_hidden_state, whole, **EQUAL)
        for sides in ((0, 6), (6, 0), (3, 4)):
            wider = (torch.nn.functional.pad(each, sides) for each in (changed, mask))
            torch.testing.assert_close(model(*wider).last_hidden_state, whole, **EQUAL)
        alone = model(ids[1:2, :7]).last_hidden_state
        torch.testing.assert_close(alone, whole[1:2], **EQUAL)
        for length in (1, 2, 5, 22, 1000):
            torch.testing.assert_close(model(ids, mask, chunk_length=length).last_hidden_state, whole, **EQUAL)
        unmasked = model(ids).last_hidden_state
        torch.testing.assert_close(model(ids, chunk_length=3).last_hidden_state, unmasked, **EQUAL)


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_of_zero_are_an_encoder_without(variant):
    ids, mask = batch()
    plain, mixed = encoder(0, **VARIANTS[variant]), encoder(**VARIANTS[variant])
    mixed.load_state_dict(plain.state_dict(), strict=False)
    torch.nn.init.zeros_(mixed.neighbours.weight)
    with torch.no_grad():
        assert torch.equal(mixed(ids, mask).last_hidden_state, plain(ids, mask).last_hidden_state)


def test_a_new_encoder_starts_as_one_without():
    torch.manual_seed(0)
    model = ConceptEncoderModel(tiny_config(neighbours=3))
    assert model.neighbours.weight.shape == (3, 16) and not model.neighbours.weight.any()
    assert not any("neighbours" in name for name in ConceptEncoderModel(tiny_config()).state_dict())


@pytest.mark.parametrize("config", [SUM, {**SUM, "num_concepts": 1}, {"position_embedding_type": "none"}])
def test_the_order_of_words_is_seen(config):
    ids = torch.tensor([[5, 6, 7, 8], [7, 6, 5, 8]])
    with torch.no_grad():
        bag = encoder(0, **config)(ids).pooler_output
        torch.testing.assert_close(bag[0], bag[1], **EQUAL)
        told = encoder(1, **config)(ids).pooler_output
    assert (told[0] - told[1]).norm() > 0.05 * told.norm()


def test_gradients_agree_with_finite_differences():
    model = encoder(**SUM)
    ids, mask = batch()
    mask[2, 4] = 0

    def loss(weight, tokens):
        weights = {"neighbours.weight": weight, "embeddings.tokens.weight": tokens}
        return torch.func.functional_call(model, weights, (ids[:, :7], mask[:, :7])).last_hidden_state

    weights = (model.neighbours.weight, model.embeddings.tokens.weight)
    assert torch.autograd.gradcheck(loss, weights, fast_mode=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_chunks_have_the_gradients_of_reading_at_once(variant):
    found = []
    for chunk in ({}, {"chunk_length": 4}):
        model = encoder(**VARIANTS[variant])
        model(*batch(), **chunk).last_hidden_state.square().sum().backward()
        found.append({name: weight.grad for name, weight in model.named_parameters()})
    assert found[0]["neighbours.weight"].abs().min() > 0
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-8)


def test_the_decoder_sees_no_neighbours():
    model = randomised(ConceptEncoderForDiffusionMLM(tiny_config(neighbours=1)).double())
    ids, mask = batch()
    concepts = torch.randn(4, 6, 32, dtype=torch.float64)
    changed = ids.clone()
    changed[0, 5] = 99
    with torch.no_grad():
        logits, others = (
            model(attention_mask=mask, decoder_input_ids=each, concepts=concepts).logits for each in (ids, changed)
        )
    assert torch.equal(logits[0, :5], others[0, :5]) and torch.equal(logits[0, 6:], others[0, 6:])


def test_half_precision_is_close():
    model = encoder(dtype=torch.float32, **SUM)
    ids, mask = batch()
    with torch.no_grad():
        exact = model(ids, mask).last_hidden_state
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(ids, mask).last_hidden_state
        rounded = model.to(torch.bfloat16)(ids, mask).last_hidden_state
    assert rounded.dtype == torch.bfloat16
    for other in (mixed, rounded):
        assert (other.float() - exact).norm() / exact.norm() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("neighbours", [0, 2])
def test_a_million_tokens_are_streamed(neighbours):
    """Through slots that keep sums, in memory that does not grow with them."""
    model = encoder(neighbours, dtype=torch.float32, **{**SUM, "count_saturation": True})
    ids = torch.randint(4, 120, (1, 1000), generator=torch.Generator().manual_seed(0)).repeat(1, 1000)
    chunk, codes, sizes = 2**14, [], []
    with torch.no_grad():
        for length in (2 * chunk, ids.shape[1]):
            with Largest() as largest:
                codes.append(model(ids[:, :length], chunk_length=chunk).last_hidden_state)
            sizes.append(largest.seen)
        exact = model.double()(ids, chunk_length=2**17).last_hidden_state
    # Besides the states of a chunk, what each token counts for.
    assert sizes[0] == (chunk + neighbours) * 32 and sizes[1] <= max(sizes[0], ids.numel())
    torch.testing.assert_close(codes[1].double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["softmax", "sum"])
def test_neighbours_are_compiled_and_exported(variant):
    model = encoder(**VARIANTS[variant])
    ids, mask = batch()
    shapes = {0: torch.export.Dim("texts", min=1, max=64), 1: torch.export.Dim("tokens", min=2, max=40)}
    with torch.no_grad():
        program = torch.export.export(model, (ids, mask), dynamic_shapes=(shapes, shapes), strict=False)
        for columns in (3, 17):
            given = ids[:3, :columns], mask[:3, :columns]
            torch.testing.assert_close(program.module()(*given).pooler_output, model(*given).pooler_output, **EQUAL)
        compiled = torch.compile(model)(ids, mask).last_hidden_state
        torch.testing.assert_close(compiled, model(ids, mask).last_hidden_state, **EQUAL)


def test_what_cannot_be_is_refused():
    with pytest.raises(StrictDataclassClassValidationError, match="neighbours must be at least 0, got -1"):
        tiny_config(neighbours=-1)
    ids, mask = batch()
    with pytest.raises(ValueError, match=r"neighbours=2 needs an attention_mask \(B, N\), got shape \(4, 1, 1, 23\)"):
        encoder()(ids, mask[:, None, None].bool())
