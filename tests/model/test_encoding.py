"""Ways to read tokens: at once or in chunks, projected or not. One result, and clear refusals where there is none."""

import pytest
import torch
from helpers import Largest, randomised, run_without_package, tiny_config, token_batch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from concept_encoder import (
    ConceptEncoderForDiffusionMLM,
    ConceptEncoderForMaskedLMPerceiver,
    ConceptEncoderForSentencePairClassification,
    ConceptEncoderForSequenceClassificationPerceiver,
    ConceptEncoderForSequenceClassificationViaDecoder,
    ConceptEncoderModel,
)
from concept_encoder.reading_concept import ConceptTokens, absorbing_saves, is_plain

NARROW = {"token_embedding_size": 16, "tie_word_embeddings": False}
VARIANTS: dict[str, dict] = {
    "plain": {},
    "slot": {"concept_attention": "slot"},
    "sinusoidal": {"position_embedding_type": "sinusoidal", "concept_position_type": "sinusoidal"},
    "narrow": {"concept_position_type": "learned", **NARROW},
    "anchored": {"concept_position_type": "anchored", **NARROW},
    "slot-sinusoidal": {"concept_attention": "slot", "position_embedding_type": "sinusoidal", **NARROW},
    "normed": {"embedding_layer_norm": True},
}
PROJECTED = {"num_concepts": 16}  # of 4 heads and 32 numbers: there, projecting costs less
EQUAL = {"rtol": 1e-10, "atol": 1e-10}


def encoder(dtype=torch.float64, std=0.3, **config) -> ConceptEncoderModel:
    return randomised(ConceptEncoderModel(tiny_config(**config)).to(dtype), std=std)


def long_batch(columns=37):
    """Rows with padding on the right, on both sides with a whole chunk of it between, none, and nothing else."""
    ids, _ = token_batch(4, columns)
    mask = torch.ones_like(ids)
    mask[0, 20:] = 0
    mask[1, [0, 1, *range(8, 20), 36]] = 0
    mask[3] = 0
    return ids, mask


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


# ------------------------------------------------------------------------------------------------------- one result


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("order", [{}, PROJECTED])
@pytest.mark.parametrize("variant", VARIANTS)
def test_chunks_give_what_reading_at_once_gives(variant, order, attention):
    model = encoder(**VARIANTS[variant], **order)
    model.set_attn_implementation(attention)
    ids, mask = long_batch()
    batches: list[dict] = [{"attention_mask": mask}, {}, {"attention_mask": mask.bool()}]
    for given in batches:
        whole = model(ids, **given)
        for length in (1, 5, 6, 36, 37, 1000):
            chunked = model(ids, **given, chunk_length=length)
            torch.testing.assert_close(chunked.last_hidden_state, whole.last_hidden_state, **EQUAL)
            torch.testing.assert_close(chunked.pooler_output, whole.pooler_output, **EQUAL)


@pytest.mark.parametrize(
    ("sizes", "saves"),
    [
        ((512, 16, 8, 512), True),
        ((512, 128, 8, 512), False),  # the defaults
        ((20, 16, 8, 512), False),  # a short text: queries and sums outweigh its tokens
        ((21, 16, 8, 512), True),
        ((1, 1, 1, 2), False),
        ((10**6, 64, 8, 512), True),
        ((10**6, 74, 8, 512), False),
    ],
)
def test_the_order_of_products_is_the_cheaper_one(sizes, saves):
    assert absorbing_saves(*sizes) == saves


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("attention", ["softmax", "slot"])
def test_both_orders_agree_with_their_gradients(attention, dropout, monkeypatch):
    model = encoder(concept_attention=attention, attention_probs_dropout_prob=dropout, hidden_dropout_prob=0.0)
    model.set_attn_implementation("eager")
    model.train(dropout > 0)
    ids, mask = long_batch()
    found = []
    for absorbed in (True, False):
        monkeypatch.setattr("concept_encoder.reading_concept.absorbing_saves", lambda *_, answer=absorbed: answer)
        torch.manual_seed(0)
        with torch.enable_grad():
            output = model(ids, mask, output_attentions=True)
            model.zero_grad()
            output.last_hidden_state.square().sum().backward()
        grads = {name: weight.grad.clone() for name, weight in model.named_parameters()}
        found.append((output.last_hidden_state, output.cross_attentions, grads))
    torch.testing.assert_close(*found, **EQUAL)


@pytest.mark.slow
def test_dropout_falls_on_weights_and_not_on_the_mean_in_parts():
    """Reading in parts while training is an unbiased estimate of reading without dropout."""
    model = encoder(num_hidden_layers=1, attention_probs_dropout_prob=0.4, hidden_dropout_prob=0.0)
    read = model.layers[0].cross_attn
    ids = token_batch(3, 24)[0][:1]
    tokens, concepts = model.embeddings(ids, None, torch.arange(24)[None]), model.latents(1)
    torch.manual_seed(0)
    exact = read(concepts, tokens)[0]
    read.train()
    parts = ConceptTokens(model.embeddings.eval(), None, ids, None, chunk_length=5)
    mean = torch.stack([read(concepts, parts)[0] for _ in range(200)]).mean(0)
    assert (mean - exact).norm() < 0.15 * exact.norm()


def test_only_a_plain_layer_is_absorbed():
    plain = torch.nn.Linear(4, 4)
    kinds = ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook")
    hooked = [torch.nn.Linear(4, 4) for _ in kinds]
    for linear, kind in zip(hooked, kinds, strict=True):
        getattr(linear, f"register_{kind}")(lambda *_: None)
    patched, wrapped = torch.nn.Linear(4, 4), torch.nn.Sequential(torch.nn.Linear(4, 4))
    patched.forward = lambda x: x
    spread = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 4))
    assert is_plain(plain) and not any(is_plain(x) for x in (*hooked, patched, wrapped, spread, torch.nn.Identity()))


def test_a_layer_around_the_keys_is_called(monkeypatch):
    """As an adapter does it: what it adds to keys and values must not be lost to the weight inside."""

    class Adapter(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.extra = base, torch.nn.Linear(32, 32, dtype=torch.float64)

        def forward(self, x):
            return self.base(x) + self.extra(x)

    model = encoder()
    ids, mask = long_batch()
    for layer in model.layers:
        layer.cross_attn.k_proj, layer.cross_attn.v_proj = map(
            Adapter, (layer.cross_attn.k_proj, layer.cross_attn.v_proj)
        )
    adapted = model(ids, mask).last_hidden_state
    for layer in model.layers:
        for name in ("k_proj", "v_proj"):
            adapter = getattr(layer.cross_attn, name)
            merged = torch.nn.Linear(32, 32, dtype=torch.float64)
            merged.weight.copy_(adapter.base.weight + adapter.extra.weight)
            merged.bias.copy_(adapter.base.bias + adapter.extra.bias)
            setattr(layer.cross_attn, name, merged)
    torch.testing.assert_close(model(ids, mask).last_hidden_state, adapted, **EQUAL)


@pytest.mark.parametrize("slot", [False, True])
def test_float32_is_within_1e_5(slot):
    kind = {"concept_attention": "slot" if slot else "softmax", "position_embedding_type": "sinusoidal"}
    model = encoder(torch.float32, std=0.05, **kind)
    ids, mask = token_batch(3, 700)
    whole = model(ids, mask).last_hidden_state
    torch.testing.assert_close(model(ids, mask, chunk_length=64).last_hidden_state, whole, rtol=0, atol=1e-5)


def test_online_softmax_stands_scores_far_apart():
    read = encoder().layers[0].cross_attn
    scores = torch.tensor([-3e4, 2e4, 1e4, 2e4]).view(1, 1, 1, 4)
    values = torch.tensor([1.0, 2.0, 4.0, 8.0]).view(1, 1, 4, 1)

    def mean(*order):
        """Of the values, token by token; None is one that the mask hides."""
        found = None
        for place in order:
            i, real = (0, 0) if place is None else (place, 1)
            weights, level = read._weigh(scores[..., i : i + 1], torch.tensor([[real]]), whole=False)
            part = weights @ values[:, :, i : i + 1], weights, level
            found = part if found is None else read._added(found, part)
        return found[0].item()

    assert mean(0, 1, 2, 3) == 5.0
    assert mean(None, None) == 0.0
    assert mean(None, None, 2, None) == 4.0


def test_embeddings_in_place_of_ids():
    model = encoder(**NARROW)
    ids, mask = long_batch()
    expected = model(ids, mask).last_hidden_state
    embeds = model.embeddings.tokens(ids)
    for chunk in ({}, {"chunk_length": 8}):
        read = model(attention_mask=mask, inputs_embeds=embeds, **chunk)
        torch.testing.assert_close(read.last_hidden_state, expected, **EQUAL)


@pytest.mark.parametrize("variant", ["plain", "slot"])
@pytest.mark.parametrize("order", [{}, PROJECTED])
def test_chunks_have_the_gradients_of_reading_at_once(variant, order):
    model = encoder(**VARIANTS[variant], **order)
    ids, mask = long_batch()
    grads = []
    for chunk in ({}, {"chunk_length": 7}):
        with torch.enable_grad():
            model.zero_grad()
            model(ids, mask, **chunk).last_hidden_state.square().sum().backward()
        grads.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    torch.testing.assert_close(*grads, **EQUAL)


@pytest.mark.parametrize("way", [{"chunk_length": 8}, {}])
def test_half_precision_is_close(way):
    model = encoder(torch.float32, std=0.05)
    ids, mask = long_batch()
    exact = model(ids, mask).last_hidden_state
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(ids, mask, **way).last_hidden_state
    rounded = model.to(torch.bfloat16)(ids, mask, **way).last_hidden_state
    assert rounded.dtype == torch.bfloat16
    for other in (mixed, rounded):
        assert (other.float() - exact).norm() / exact.norm() < 0.03


@pytest.mark.parametrize("variant", ["plain", "slot"])
@pytest.mark.parametrize("order", [{}, PROJECTED])
def test_recorded_states_and_weights(variant, order):
    model = encoder(**VARIANTS[variant], **order)
    model.set_attn_implementation("eager")
    ids, mask = long_batch()
    plain = model(ids, mask, output_hidden_states=True, output_attentions=True)
    chunked = model(ids, mask, output_hidden_states=True, chunk_length=7)
    for one, other in zip(plain.hidden_states, chunked.hidden_states, strict=True):
        torch.testing.assert_close(one, other, **EQUAL)
    for weights in plain.cross_attentions:
        real = (mask.sum(-1) > 0).double()[:, None, None].expand(weights.shape[:3])
        torch.testing.assert_close(weights.sum(-1), real, **EQUAL)
        assert (weights * (1 - mask[:, None, None])).abs().max() == 0


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["plain", "slot"])
def test_compiled_ways_agree(variant):
    model = encoder(torch.float32, std=0.05, num_hidden_layers=1, **VARIANTS[variant])
    ids, mask = long_batch()
    expected = model(ids, mask).last_hidden_state
    compiled = torch.compile(model)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(compiled(ids, mask).last_hidden_state, expected, **close)
    torch.testing.assert_close(compiled(ids, mask, chunk_length=20).last_hidden_state, expected, **close)


# ----------------------------------------------------------------------------------------------------- what it costs


def counted_flops(model, ids, **kwargs) -> int:
    with FlopCounterMode(display=False) as counter:
        model(ids, **kwargs)
    return counter.get_total_flops()


@pytest.mark.parametrize("count", [4, 16])
def test_counted_work_of_each_order(count):
    config = tiny_config(num_concepts=count, max_position_embeddings=256)
    model = ConceptEncoderModel(config).eval().requires_grad_(False)
    model.set_attn_implementation("eager")  # products that the counter sees, on any device
    ids = torch.randint(4, 120, (1, 256))
    layers, n, c, d, h, f = 2, 256, count, 32, 4, 48
    projected = 2 * n * d * d * 2 + 2 * n * c * d * 2
    absorbed = 2 * n * c * h * d * 2 + 2 * c * d * d * 2
    concepts = 2 * c * d * d * 6 + 2 * c * c * d * 2 + 2 * c * d * f * 3
    assert (absorbed < projected) == (count == 4)
    for chunk in ({}, {"chunk_length": 100}):
        assert counted_flops(model, ids, **chunk) == layers * (min(projected, absorbed) + concepts)


@pytest.mark.slow
def test_memory_of_chunks_does_not_grow_with_the_text():
    model = encoder(torch.float32, position_embedding_type="sinusoidal")
    sizes = []
    for length in (400, 4000):
        ids, mask = torch.full((1, length), 7), torch.ones(1, length, dtype=torch.long)
        with Largest() as largest:
            model(ids, mask, chunk_length=50)
        sizes.append(largest.seen)
    assert sizes[0] == sizes[1] <= 120 * 32  # views of the token embeddings count too
    with Largest() as largest:
        model(torch.randint(4, 120, (1, 4000)), chunk_length=4000)
    assert largest.seen >= 4000 * 32


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("length", [0, -3])
def test_chunks_hold_a_token(length):
    with pytest.raises(ValueError, match=f"chunk_length must be at least 1 token, got {length}"):
        encoder()(long_batch()[0], chunk_length=length)


def test_chunks_are_refused_where_they_cannot_be_read():
    ids, mask = long_batch()
    with pytest.raises(ValueError, match="token_update='bixt' changes every token in every layer"):
        encoder(token_update="bixt")(ids, chunk_length=50)
    with pytest.raises(ValueError, match="chunk_length keeps no attention weights; leave it out"):
        encoder()(ids, chunk_length=5, output_attentions=True)
    with pytest.raises(ValueError, match=r"needs an attention_mask \(B, N\), got shape \(4, 1, 6, 37\)"):
        encoder()(ids, mask[:, None, None].bool().expand(-1, -1, 6, -1), chunk_length=5)


@pytest.mark.parametrize("chunk", [{}, {"chunk_length": 5}])
def test_inputs_are_checked_as_ever(chunk):
    model = encoder()
    ids, _ = long_batch()
    with pytest.raises(ValueError, match=r"token ids must be in \[0, 120\), got .* to 120"):
        model(torch.cat([ids, torch.full((4, 1), 120)], 1), **chunk)
    with pytest.raises(ValueError, match="sequence of 41 tokens is longer than max_position_embeddings"):
        model(token_batch(3, 41)[0], **chunk)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(ids, inputs_embeds=model.embeddings.tokens(ids), **chunk)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(**chunk)


# -------------------------------------------------------------------------------------------------- heads, remote code

HEADS = (
    ConceptEncoderForDiffusionMLM,
    ConceptEncoderForMaskedLMPerceiver,
    ConceptEncoderForSequenceClassificationPerceiver,
    ConceptEncoderForSequenceClassificationViaDecoder,
    ConceptEncoderForSentencePairClassification,
)


@pytest.mark.parametrize("head", HEADS)
def test_heads_read_in_every_way(head):
    model = randomised(head(tiny_config(decoder_context="latent")).double())
    ids, mask = long_batch()
    batch = {"input_ids": ids, "attention_mask": mask}
    if head is ConceptEncoderForSentencePairClassification:
        batch = {f"{key}_{side}": tensor for key, tensor in batch.items() for side in "ab"}
    expected = model(**batch).logits
    torch.testing.assert_close(model(**batch, chunk_length=7).logits, expected, **EQUAL)


CHILD = """
import sys
sys.modules["concept_encoder"] = None
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

inputs = load_file("inputs.safetensors")
model = AutoModel.from_pretrained("checkpoint", trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules.")
with torch.no_grad():
    outputs = {"whole": model(**inputs).last_hidden_state}
    outputs["chunked"] = model(**inputs, chunk_length=4).last_hidden_state
save_file(outputs, "outputs.safetensors")
"""


@pytest.mark.slow
def test_remote_code_reads_in_every_way(tmp_path):
    model = randomised(ConceptEncoderForDiffusionMLM(tiny_config()), std=0.05)
    model.save_pretrained(tmp_path / "checkpoint")
    ids, mask = long_batch()
    save_file({"input_ids": ids, "attention_mask": mask}, tmp_path / "inputs.safetensors")
    run_without_package(CHILD, tmp_path)
    outputs = load_file(tmp_path / "outputs.safetensors")
    expected = model.encoder(ids, mask).last_hidden_state
    for read in outputs.values():
        torch.testing.assert_close(read, expected, rtol=0, atol=1e-5)
