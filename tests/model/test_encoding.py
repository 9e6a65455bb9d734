"""Ways to read tokens: all at once, in chunks, from a table. One result, and clear refusals where there is none."""

import copy
from unittest.mock import Mock

import pytest
import torch
from helpers import randomised, run_without_package, tiny_config, token_batch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from concept_encoder import (
    ConceptEncoderForDiffusionMLM,
    ConceptEncoderForMaskedLMPerceiver,
    ConceptEncoderForSentencePairClassification,
    ConceptEncoderForSequenceClassificationPerceiver,
    ConceptEncoderForSequenceClassificationViaDecoder,
    ConceptEncoderModel,
    modeling_concept,
)

NARROW = {"token_embedding_size": 16, "tie_word_embeddings": False}
ADDITIVE: dict[str, dict] = {
    "plain": {},
    "slot": {"concept_attention": "slot"},
    "sinusoidal": {"position_embedding_type": "sinusoidal", "concept_position_type": "sinusoidal"},
    "narrow": {"concept_position_type": "learned", **NARROW},
    "anchored": {"concept_position_type": "anchored", **NARROW},
    "slot-sinusoidal": {"concept_attention": "slot", "position_embedding_type": "sinusoidal", **NARROW},
}
READ_IN_CHUNKS = {**ADDITIVE, "normed": {"embedding_layer_norm": True}}
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


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", READ_IN_CHUNKS)
def test_chunks_give_what_reading_at_once_gives(variant, attention):
    model = encoder(**READ_IN_CHUNKS[variant])
    model.set_attn_implementation(attention)
    ids, mask = long_batch()
    batches: list[dict] = [{"attention_mask": mask}, {}, {"attention_mask": mask.bool()}]
    for given in batches:
        whole = model(ids, **given)
        for length in (1, 5, 6, 36, 37, 1000):
            chunked = model(ids, **given, chunk_length=length)
            torch.testing.assert_close(chunked.last_hidden_state, whole.last_hidden_state, **EQUAL)
            torch.testing.assert_close(chunked.pooler_output, whole.pooler_output, **EQUAL)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", ADDITIVE)
def test_a_table_gives_what_the_projections_give(variant, attention):
    model = encoder(**ADDITIVE[variant])
    model.set_attn_implementation(attention)
    ids, mask = long_batch()
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    batches: list[dict] = [{}, {"attention_mask": mask}, {"attention_mask": mask, "position_ids": positions}]
    plain = [model(ids, **batch).last_hidden_state for batch in batches]
    for num_positions in (None, 20):
        model.tabulate(num_positions)
        for expected, batch in zip(plain, batches, strict=True):
            for chunk in ({}, {"chunk_length": 7}, {"chunk_length": 37}):
                torch.testing.assert_close(model(ids, **batch, **chunk).last_hidden_state, expected, **EQUAL)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_long_text_is_read_from_a_table_in_parts(attention, monkeypatch):
    monkeypatch.setattr(modeling_concept, "TABLE_TOKENS", 8)
    read = Mock(wraps=modeling_concept.chunked_attention_forward)
    monkeypatch.setattr(modeling_concept, "chunked_attention_forward", read)
    model = encoder()
    model.set_attn_implementation(attention)
    ids, mask = (x[:3] for x in long_batch())  # without the text that has no token
    lowest = torch.finfo(torch.float64).min
    wide = (lowest * (1.0 - mask.double()))[:, None, None].expand(-1, -1, model.config.num_concepts, -1)
    weights = {"output_attentions": True} if attention == "eager" else {}
    ways = ((mask, {}, 2), (mask[:, :8], {}, 0), (wide, {}, 0), (mask, weights, 0 if weights else 2))
    plain = [model(ids[:, : given.shape[-1]], given, **kept) for given, kept, _ in ways]
    assert not read.called
    model.tabulate()
    for (given, kept, parted), expected in zip(ways, plain, strict=True):
        read.reset_mock()
        got = model(ids[:, : given.shape[-1]], given, **kept)
        torch.testing.assert_close(got.last_hidden_state, expected.last_hidden_state, **EQUAL)
        torch.testing.assert_close(got.cross_attentions, expected.cross_attentions, **EQUAL)
        assert read.call_count == parted  # once a layer


def test_sinusoidal_positions_go_on_beyond_the_table():
    model = encoder(position_embedding_type="sinusoidal")
    ids, mask = token_batch(3, 90)
    far = torch.arange(90)[None].expand(3, -1) * 11
    plain = [model(ids, mask).last_hidden_state, model(ids, mask, far).last_hidden_state]
    model.tabulate()
    assert model.layers[0].cross_attn.table.positions.shape == (2, 40, 32)
    for chunk in ({}, {"chunk_length": 33}):
        torch.testing.assert_close(model(ids, mask, **chunk).last_hidden_state, plain[0], **EQUAL)
        torch.testing.assert_close(model(ids, mask, far, **chunk).last_hidden_state, plain[1], **EQUAL)


@pytest.mark.parametrize("slot", [False, True])
def test_float32_is_within_1e_5(slot):
    kind = {"concept_attention": "slot" if slot else "softmax", "position_embedding_type": "sinusoidal"}
    model = encoder(torch.float32, std=0.05, **kind)
    ids, mask = token_batch(3, 700)
    whole = model(ids, mask).last_hidden_state
    torch.testing.assert_close(model(ids, mask, chunk_length=64).last_hidden_state, whole, rtol=0, atol=1e-5)
    model.tabulate(700)
    torch.testing.assert_close(model(ids, mask).last_hidden_state, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(model(ids, mask, chunk_length=701).last_hidden_state, whole, rtol=0, atol=1e-5)


def test_online_softmax_stands_scores_far_apart():
    query = torch.tensor([[[[1.0]]]])
    key = torch.tensor([-3e4, 2e4, 1e4, 2e4]).view(1, 1, 4, 1)
    value = torch.tensor([1.0, 2.0, 4.0, 8.0]).view(1, 1, 4, 1)
    mask = torch.tensor([[[[True, True, True, True]]]])
    chunks = [(key[:, :, i : i + 1], value[:, :, i : i + 1], mask[..., i : i + 1]) for i in range(4)]
    read = modeling_concept.chunked_attention_forward
    assert read(query, chunks, 1.0, slot=False).item() == 5.0
    hidden = [(k, v, ~m) for k, v, m in chunks]
    assert read(query, hidden, 1.0, slot=False).item() == 0.0
    assert read(query, [*hidden, chunks[2], *hidden], 1.0, slot=False).item() == 4.0


@pytest.mark.parametrize("tabulated", [False, True])
def test_embeddings_in_place_of_ids_are_projected(tabulated):
    model = encoder(**NARROW)
    ids, mask = long_batch()
    expected = model(ids, mask).last_hidden_state
    embeds = model.embeddings.tokens(ids)
    if tabulated:
        model.tabulate()
        for layer in model.layers:
            layer.cross_attn.table.tokens.fill_(torch.nan)
    for chunk in ({}, {"chunk_length": 8}):
        read = model(attention_mask=mask, inputs_embeds=embeds, **chunk)
        torch.testing.assert_close(read.last_hidden_state, expected, **EQUAL)
    with torch.enable_grad():  # nothing is looked up, so gradients are right
        embeds = embeds.requires_grad_()
        model(attention_mask=mask, inputs_embeds=embeds).last_hidden_state.square().sum().backward()
        assert embeds.grad.abs().sum() > 0


@pytest.mark.parametrize("way", [{"chunk_length": 8}, {}])
def test_half_precision_is_close(way):
    model = encoder(torch.float32, std=0.05)
    ids, mask = long_batch()
    exact = model(ids, mask).last_hidden_state
    if not way:
        model.tabulate()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(ids, mask, **way).last_hidden_state
    rounded = model.to(torch.bfloat16)(ids, mask, **way).last_hidden_state
    assert rounded.dtype == torch.bfloat16
    for other in (mixed, rounded):
        assert (other.float() - exact).norm() / exact.norm() < 0.03


def test_recorded_states_and_weights():
    model = encoder()
    model.set_attn_implementation("eager")
    ids, mask = long_batch()
    plain = model(ids, mask, output_hidden_states=True, output_attentions=True)
    chunked = model(ids, mask, output_hidden_states=True, chunk_length=7)
    model.tabulate()
    looked_up = model(ids, mask, output_hidden_states=True, output_attentions=True)
    for one, other in zip(plain.hidden_states, chunked.hidden_states, strict=True):
        torch.testing.assert_close(one, other, **EQUAL)
    for name in ("hidden_states", "attentions", "cross_attentions"):
        for one, other in zip(plain[name], looked_up[name], strict=True):
            torch.testing.assert_close(one, other, **EQUAL)


def test_slot_weights_are_recorded_from_a_table():
    model = encoder(concept_attention="slot")
    ids, mask = long_batch()
    plain = model(ids, mask, output_attentions=True).cross_attentions
    model.tabulate()
    for one, other in zip(plain, model(ids, mask, output_attentions=True).cross_attentions, strict=True):
        torch.testing.assert_close(one, other, **EQUAL)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["plain", "slot"])
def test_compiled_ways_agree(variant):
    model = encoder(torch.float32, std=0.05, **ADDITIVE[variant])
    ids, mask = long_batch()
    expected = model(ids, mask).last_hidden_state
    compiled = torch.compile(model)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(compiled(ids, mask).last_hidden_state, expected, **close)
    torch.testing.assert_close(compiled(ids, mask, chunk_length=20).last_hidden_state, expected, **close)
    model.tabulate()
    torch.testing.assert_close(compiled(ids, mask).last_hidden_state, expected, **close)


# ----------------------------------------------------------------------------------------------------- what it costs


def counted_flops(model, ids, **kwargs) -> int:
    with FlopCounterMode(display=False) as counter:
        model(ids, **kwargs)
    return counter.get_total_flops()


def test_counted_work_of_each_way():
    config = tiny_config(num_concepts=4, max_position_embeddings=256)
    model = ConceptEncoderModel(config).eval().requires_grad_(False)
    model.set_attn_implementation("eager")  # products that the counter sees, on any device
    ids = torch.randint(4, 120, (1, 256))
    layers, n, c, d, f = 2, 256, 4, 32, 48
    reading = 2 * n * c * d * 2
    concepts = 2 * c * d * d * 6 + 2 * c * c * d * 2 + 2 * c * d * f * 3
    projections = 2 * n * d * d * 2
    plain = layers * (projections + reading + concepts)
    assert counted_flops(model, ids) == plain
    assert counted_flops(model, ids, chunk_length=100) == plain
    model.tabulate()
    for kwargs in ({}, {"chunk_length": 100}):
        assert counted_flops(model, ids, **kwargs) == layers * (reading + concepts)


def test_bytes_are_known_before_the_table_is_built():
    for config in ({}, NARROW, {"position_embedding_type": "sinusoidal"}):
        model = encoder(torch.float32, **config)
        for num_positions in (None, 13):
            expected = model.table_bytes(num_positions)
            model.tabulate(num_positions)
            tables = [layer.cross_attn.table for layer in model.layers]
            assert sum(x.numel() * x.element_size() for table in tables for x in table.buffers()) == expected
    assert model.double().table_bytes() == 2 * 2 * (120 + 40) * 32 * 8


class Largest(TorchDispatchMode):
    """Numbers in the largest floating-point tensor that an operation makes."""

    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, torch.Tensor) and x.is_floating_point():
                self.seen = max(self.seen, x.numel())
        return result


def test_memory_of_chunks_does_not_grow_with_the_text():
    model = encoder(torch.float32, position_embedding_type="sinusoidal")
    for tabulated in (False, True):
        if tabulated:
            model.tabulate()
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


# --------------------------------------------------------------------------------------------- what the table follows


def tables(model) -> list:
    return [layer.cross_attn.table for layer in model.base_model.layers]


def test_the_table_is_in_no_checkpoint(tmp_path):
    model = encoder()
    keys = set(model.state_dict())
    ids, mask = long_batch()
    expected = model(ids, mask).last_hidden_state
    model.tabulate()
    assert set(model.state_dict()) == keys
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == keys
    loaded = ConceptEncoderModel.from_pretrained(tmp_path)
    assert tables(loaded) == [None, None]
    assert torch.equal(loaded(ids, mask).last_hidden_state, expected)


def test_training_mode_drops_the_table():
    model = randomised(ConceptEncoderForSequenceClassificationPerceiver(tiny_config()))
    model.encoder.tabulate()
    model.eval()
    assert None not in tables(model)
    model.train()
    assert tables(model) == [None, None]
    with torch.enable_grad():
        model(token_batch()[0], labels=torch.tensor([0, 1, 0])).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


def set_weight(model):
    model.embeddings.tokens.weight[50:] *= 2


def step(model):
    weight = model.layers[1].cross_attn.v_proj.weight
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight]).step()


def load(model):
    model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()})


def resize(model):
    model.resize_token_embeddings(130, mean_resizing=False)


def replace(model):
    model.layers[0].cross_attn.k_proj = torch.nn.Linear(32, 32, dtype=torch.float64)


@pytest.mark.parametrize("change", [set_weight, step, load, resize, replace])
def test_a_table_older_than_its_weights_is_refused(change):
    model = encoder()
    ids, mask = long_batch()
    model.tabulate()
    before = model(ids, mask).last_hidden_state
    change(model)
    with pytest.raises(ValueError, match=r"weights have changed since tabulate\(\): call it again"):
        model(ids, mask)
    model.tabulate()
    after = model(ids, mask).last_hidden_state
    torch.testing.assert_close(model.train().eval()(ids, mask).last_hidden_state, after, **EQUAL)
    assert change is resize or (after - before).abs().max() > 1e-6


def test_weights_that_do_not_matter_may_change():
    model = encoder()
    ids, mask = long_batch()
    model.tabulate()
    model.latents.weight.mul_(1.5)
    after = model(ids, mask).last_hidden_state
    torch.testing.assert_close(model.train().eval()(ids, mask).last_hidden_state, after, **EQUAL)


def test_the_table_follows_the_model():
    model = encoder(torch.float32, std=0.05)
    ids, mask = long_batch()
    model.tabulate()
    expected = model(ids, mask).last_hidden_state
    model.to(torch.float64)
    assert all(x.dtype == torch.float64 for table in tables(model) for x in table.buffers())
    torch.testing.assert_close(model(ids, mask).last_hidden_state.float(), expected, rtol=0, atol=1e-5)
    model.to("meta")
    assert all(x.device.type == "meta" for table in tables(model) for x in table.buffers())


def test_a_copy_needs_a_table_of_its_own():
    model = encoder()
    ids, _ = long_batch()
    expected = model(ids).last_hidden_state
    model.tabulate()
    twin = copy.deepcopy(model)
    twin.tabulate()
    model.embeddings.tokens.weight += 1
    torch.testing.assert_close(twin(ids).last_hidden_state, expected, **EQUAL)


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"token_update": "bixt"}, "token_update='bixt' lets tokens change .* tabulate needs token_update='none'"),
        ({"embedding_layer_norm": True}, "embedding_layer_norm=True normalises .* needs embedding_layer_norm=False"),
    ],
)
def test_what_is_no_sum_has_no_table(config, message):
    model = encoder(**config)
    for refused in (model.tabulate, model.table_bytes):
        with pytest.raises(ValueError, match=message):
            refused()
    assert tables(model) == [None, None]


@pytest.mark.parametrize("num_positions", [0, 41])
def test_positions_that_there_are_not(num_positions):
    model = encoder()
    for refused in (model.tabulate, model.table_bytes):
        with pytest.raises(ValueError, match=rf"num_positions must lie in \[1, 40\], .* got {num_positions}"):
            refused(num_positions)


def test_training_mode_is_refused():
    model = encoder().train()
    with pytest.raises(ValueError, match=r"a table is for inference, .* call eval\(\) first"):
        model.tabulate()
    with pytest.raises(ValueError, match=r"draws no dropout on attention weights; call eval\(\) first"):
        model(long_batch()[0], chunk_length=5)


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


def test_gradients_are_refused():
    ids, mask = long_batch()
    model = encoder()
    with torch.enable_grad():
        with pytest.raises(ValueError, match=r"chunk_length keeps nothing for gradients; .* torch.no_grad\(\)"):
            model(ids, mask, chunk_length=5)
        model.tabulate()
        with pytest.raises(ValueError, match=r"the table of tabulate\(\) keeps nothing for gradients"):
            model(ids, mask)
        frozen = model.requires_grad_(False)
        assert torch.equal(frozen(ids, mask).last_hidden_state, frozen(ids, mask).last_hidden_state)
        with pytest.raises(ValueError, match="chunk_length keeps nothing for gradients"):
            frozen(inputs_embeds=model.embeddings.tokens(ids).requires_grad_(), chunk_length=5)


@pytest.mark.parametrize("way", ["chunks", "table"])
def test_inputs_are_checked_as_ever(way):
    model = encoder()
    chunk = {"chunk_length": 5} if way == "chunks" else {}
    if way == "table":
        model.tabulate()
    ids, _ = long_batch()
    with pytest.raises(ValueError, match=r"token ids must lie in \[0, 120\), got .* to 120"):
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
    model.encoder.tabulate()
    torch.testing.assert_close(model(**batch).logits, expected, **EQUAL)
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
size = model.table_bytes()
with torch.no_grad():
    outputs = {"chunked": model(**inputs, chunk_length=4).last_hidden_state}
    model.tabulate()
    outputs["tabulated"] = model(**inputs).last_hidden_state
    outputs["both"] = model(**inputs, chunk_length=4).last_hidden_state
outputs["bytes"] = torch.tensor(size)
save_file(outputs, "outputs.safetensors")
"""


def test_remote_code_reads_in_every_way(tmp_path):
    model = randomised(ConceptEncoderForDiffusionMLM(tiny_config()), std=0.05)
    model.save_pretrained(tmp_path / "checkpoint")
    ids, mask = long_batch()
    save_file({"input_ids": ids, "attention_mask": mask}, tmp_path / "inputs.safetensors")
    run_without_package(CHILD, tmp_path)
    outputs = load_file(tmp_path / "outputs.safetensors")
    assert outputs.pop("bytes").item() == model.encoder.table_bytes()
    expected = model.encoder(ids, mask).last_hidden_state
    for read in outputs.values():
        torch.testing.assert_close(read, expected, rtol=0, atol=1e-5)
