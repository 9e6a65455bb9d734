import math
from functools import partial

import pytest
import torch
from helpers import MASK, PAD, randomised, tiny_config, token_batch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import nn
from transformers import AutoModel, AutoModelForMaskedLM

from concept_encoder import (
    ConceptEncoderConfig,
    ConceptEncoderForDiffusionMLM,
    ConceptEncoderForMaskedLMPerceiver,
    ConceptEncoderForSequenceClassificationPerceiver,
    ConceptEncoderForSequenceClassificationViaDecoder,
    ConceptEncoderModel,
)
from concept_encoder.modeling_concept import cross_entropy_of_rows
from concept_encoder.reading_concept import ConceptReading

VARIANTS = {
    "plain": {},
    "bixt": {"token_update": "bixt"},
    "slot": {"concept_attention": "slot"},
    "positions": {"concept_position_type": "sinusoidal", "position_embedding_type": "sinusoidal"},
    "learned": {"concept_position_type": "learned", "token_embedding_size": 16, "tie_word_embeddings": False},
    "latent": {"decoder_context": "latent"},
    "anchored": {"concept_position_type": "anchored", "token_embedding_size": 16, "tie_word_embeddings": False},
    "normed": {"embedding_layer_norm": True, "latent_init": "orthogonal", "decoder_context": "latent"},
}


# --------------------------------------------------------------------------------------------------- naive reference


def reference_attention(module, queries, keys, mask=None):
    """Loops over heads; float64; a query that may see nothing reads zeros."""
    q, k, v = module.q_proj(queries), module.k_proj(keys), module.v_proj(keys)
    outputs = []
    for head in range(q.shape[-1] // module.head_dim):
        part = slice(head * module.head_dim, (head + 1) * module.head_dim)
        scores = q[..., part] @ k[..., part].mT / math.sqrt(module.head_dim)
        weights = scores.exp()
        if isinstance(module, ConceptReading) and module.config.concept_attention == "slot":
            weights = weights / weights.sum(1, keepdim=True)
        if mask is not None:
            weights = weights * mask[:, None, :]
        total = weights.sum(-1, keepdim=True)
        weights = torch.where(total > 0, weights / total, 0.0)
        outputs.append(weights @ v[..., part])
    return module.o_proj(torch.cat(outputs, -1))


def reference_feed_forward(module, x):
    gate, up = module.gate_up_proj(x).chunk(2, -1)
    return module.down_proj(0.5 * gate * (1 + torch.erf(gate / math.sqrt(2))) * up)


def reference_positions(length, dim):
    angles = torch.tensor(
        [[p / 10000 ** (2 * i / dim) for i in range(dim // 2)] for p in range(length)], dtype=torch.float64
    )
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


def reference_embeddings(module, ids, mask):
    x = module.tokens.weight[ids]
    embedded = module.projection(x + reference_token_positions(module, mask, x.shape[2]))
    return embedded if module.norm is None else module.norm(embedded)


def reference_token_positions(module, mask, dim):
    """(B, N, dim): a real token's place is the number of real tokens before it."""
    length = mask.shape[1]
    table = reference_positions(length, dim) if module.positions is None else module.positions.weight[:length]
    places = [[max(sum(row[: i + 1]) - 1, 0) for i in range(length)] for row in mask.tolist()]
    return table[torch.tensor(places)]


def reference_layer(layer, concepts, tokens, mask):
    concepts = concepts + reference_attention(layer.cross_attn, layer.cross_attn_norm(concepts), tokens, mask)
    if layer.token_update:
        tokens = tokens + reference_attention(layer.token_attn, layer.token_attn_norm(tokens), concepts)
    normed = layer.self_attn_norm(concepts)
    concepts = concepts + reference_attention(layer.self_attn, normed, normed)
    return concepts + reference_feed_forward(layer.mlp, layer.mlp_norm(concepts)), tokens


def reference_encoder(encoder, ids, mask):
    tokens = reference_embeddings(encoder.embeddings, ids, mask)
    concepts = encoder.latents.weight
    if encoder.config.concept_position_type == "learned":
        concepts = concepts + encoder.latents.positions
    elif encoder.config.concept_position_type == "sinusoidal":
        concepts = concepts + reference_positions(*concepts.shape)
    elif encoder.config.concept_position_type == "anchored":  # 6 concepts over 40 positions
        concepts = concepts + encoder.embeddings.projection(
            encoder.embeddings.positions.weight[[3, 10, 16, 23, 30, 36]]
        )
    concepts = concepts.expand(len(ids), -1, -1)
    for layer in encoder.layers:
        concepts, tokens = reference_layer(layer, concepts, tokens, mask)
    return encoder.norm(concepts)


def reference_decoder(decoder, ids, concepts, timesteps, mask):
    x = reference_embeddings(decoder.embeddings, ids, mask)
    dim = x.shape[-1]
    frequencies = torch.tensor([10000 ** (-2 * i / dim) for i in range(dim // 2)], dtype=torch.float64)
    angles = timesteps[:, None] * decoder.config.timestep_scale * frequencies
    embedding = decoder.timestep_embedding
    hidden = embedding.fc1(torch.cat([angles.sin(), angles.cos()], -1))
    t = embedding.fc2(hidden * torch.sigmoid(hidden))
    if decoder.config.decoder_context == "latent":
        concepts, _ = reference_layer(decoder.context_layer, concepts, x, mask * (ids != MASK))
        concepts = decoder.context_norm(concepts)
    for layer in decoder.layers:
        scale1, shift1, gate1, scale2, shift2, gate2 = layer.modulation(t)[:, None].chunk(6, -1)
        normed = layer.cross_attn_norm(x) * (1 + scale1) + shift1
        x = x + gate1 * reference_attention(layer.cross_attn, normed, concepts)
        x = x + gate2 * reference_feed_forward(layer.mlp, layer.mlp_norm(x) * (1 + scale2) + shift2)
    return decoder.norm(x)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_and_loss_agree_with_a_naive_float64_reference(variant, attention):
    config = tiny_config(**VARIANTS[variant])
    model = randomised(ConceptEncoderForDiffusionMLM(config).double())
    model.set_attn_implementation(attention)
    ids, mask = token_batch()
    noised = ids.clone()
    noised[:, ::2] = MASK
    labels = torch.where((noised == MASK) & mask.bool(), ids, -100)
    weights = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    timesteps = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    output = model(ids, mask, noised, timesteps, labels=labels, loss_weights=weights)

    concepts = reference_encoder(model.encoder, ids, mask)
    torch.testing.assert_close(output.concepts, concepts, rtol=1e-9, atol=1e-9)
    logits = reference_decoder(model.decoder, noised, concepts, timesteps, mask) @ model.lm_head.weight.T
    picked = labels != -100
    torch.testing.assert_close(output.logits, logits, rtol=1e-7, atol=1e-8)
    nll = -logits.log_softmax(-1).gather(-1, labels.clamp_min(0)[..., None])[..., 0] * picked
    torch.testing.assert_close(output.token_losses, nll, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(output.loss, (nll * weights).sum() / picked.sum())


def reference_perceiver_decoder(model, ids, concepts, mask):
    decoder, layer = model.decoder, model.decoder.layer
    x = reference_token_positions(decoder, mask, concepts.shape[-1])
    if model.config.decoder_query == "token+position":
        x = x + decoder.projection(model.encoder.embeddings.tokens.weight[ids])
    x = x + reference_attention(layer.cross_attn, layer.cross_attn_norm(x), concepts)
    hidden = layer.mlp.up_proj(layer.mlp_norm(x))
    return x + layer.mlp.down_proj(0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2))))


QUERIES = {
    "token+position": {},
    "position": {"decoder_query": "position"},
    "narrow": {"token_embedding_size": 16, "tie_word_embeddings": False},
    "sinusoidal": {"position_embedding_type": "sinusoidal", "token_update": "bixt"},
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("queries", QUERIES)
def test_perceiver_heads_agree_with_a_naive_float64_reference(queries, attention):
    config = tiny_config(**QUERIES[queries], num_labels=3)
    ids, mask = token_batch()
    labels = torch.where(ids % 3 == 0, ids, -100)
    model = randomised(ConceptEncoderForMaskedLMPerceiver(config).double())
    model.set_attn_implementation(attention)
    output = model(ids, mask, labels=labels)
    concepts = reference_encoder(model.encoder, ids, mask)
    logits = reference_perceiver_decoder(model, ids, concepts, mask) @ model.lm_head.weight.T
    torch.testing.assert_close(output.concepts, concepts, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(output.logits, logits, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(model(ids, mask).logits, logits, rtol=1e-7, atol=1e-8)
    expected = nn.functional.cross_entropy(logits[labels != -100], labels[labels != -100])
    torch.testing.assert_close(output.loss, expected)

    model = randomised(ConceptEncoderForSequenceClassificationViaDecoder(config).double())
    model.set_attn_implementation(attention)
    states = reference_perceiver_decoder(model, ids, reference_encoder(model.encoder, ids, mask), mask)
    rows = [model.token_pooling.norm(row[real.bool()]).mean(0) for row, real in zip(states, mask, strict=True)]
    torch.testing.assert_close(model(ids, mask).logits, model.classifier(torch.stack(rows)), rtol=1e-7, atol=1e-8)


# ------------------------------------------------------------------------------------------------------ pinned facts


def test_parameter_counts_at_the_reference_size():
    config = ConceptEncoderConfig(mask_token_id=1, tie_word_embeddings=False)
    with torch.device("meta"):
        classifier = ConceptEncoderForSequenceClassificationPerceiver(config)
        pretraining = ConceptEncoderForDiffusionMLM(config)
    assert classifier.num_parameters() / 1e6 == pytest.approx(33.5, abs=0.05)
    assert pretraining.num_parameters() / 1e6 == pytest.approx(94.8, abs=0.05)


def modulations(model):
    return [p for n, p in model.named_parameters() if "modulation" in n]


def test_gates_are_exactly_zero_however_the_model_is_made(tmp_path):
    config = tiny_config()
    model = ConceptEncoderForDiffusionMLM(config)
    model.save_pretrained(tmp_path)
    models = [model, AutoModelForMaskedLM.from_config(config), ConceptEncoderForDiffusionMLM.from_pretrained(tmp_path)]
    for each in models:
        assert len(modulations(each)) == 4
        assert all((p == 0).all() for p in modulations(each))


def test_decoder_layer_is_the_identity_at_initialisation():
    layer = ConceptEncoderForDiffusionMLM(tiny_config()).decoder.layers[0].eval()
    x = torch.randn(2, 5, 32)
    assert torch.equal(layer(x, torch.randn(2, 6, 32), torch.randn(2, 32)), x)


def test_initial_distributions_follow_the_table():
    model = ConceptEncoderForDiffusionMLM(tiny_config(hidden_size=128, vocab_size=2000, num_concepts=64))
    assert model.encoder.latents.weight.std().item() == pytest.approx(0.04, rel=0.1)
    assert model.encoder.layers[0].mlp.gate_up_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.encoder.embeddings.tokens.weight[4:].std().item() == pytest.approx(0.02, rel=0.1)
    assert (model.encoder.embeddings.tokens.weight[PAD] == 0).all()
    assert (model.encoder.norm.weight == 1).all() and (model.encoder.norm.bias == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonal_latents_keep_the_norm_of_normal_ones(dtype, tmp_path):
    config = tiny_config(hidden_size=64, num_concepts=48, latent_init="orthogonal")
    model = AutoModel.from_config(config, dtype=dtype)
    gram = model.latents.weight.float() @ model.latents.weight.float().T
    assert torch.allclose(gram, 64 * 0.04**2 * torch.eye(48), atol=2e-3 if dtype == torch.bfloat16 else 1e-6)
    model.save_pretrained(tmp_path)
    assert torch.equal(ConceptEncoderModel.from_pretrained(tmp_path).latents.weight, model.latents.weight)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
@pytest.mark.parametrize("normed", [False, True])
def test_anchored_latents_start_as_what_their_place_gives(positions, normed, tmp_path):
    config = tiny_config(
        concept_position_type="anchored",
        num_concepts=4,
        position_embedding_type=positions,
        embedding_layer_norm=normed,
        pad_token_id=PAD,
    )
    model = ConceptEncoderModel(config).eval()
    model.save_pretrained(tmp_path)
    for each in (model, ConceptEncoderModel.from_pretrained(tmp_path)):
        states = each(torch.tensor([[5, 6]]), output_hidden_states=True).hidden_states
        # The embedding of [PAD] is zero, so that only its place is left.
        places = each.embeddings(torch.full((1, 40), PAD), None, torch.arange(40)[None])[:, [5, 15, 25, 35]]
        assert torch.allclose(states[0], places) and places.std() > 0.01


@pytest.mark.parametrize("tie", [True, False])
def test_loss_at_step_0_is_near_ln_v(tie):
    config = tiny_config(vocab_size=3000, hidden_size=64, tie_word_embeddings=tie)
    model = ConceptEncoderForDiffusionMLM(config)
    ids = torch.randint(4, 3000, (8, 20))
    loss = model(ids, decoder_input_ids=torch.full_like(ids, MASK), labels=ids).loss
    assert loss.item() == pytest.approx(math.log(3000), rel=0.02)


def test_loss_is_not_causal():
    model = randomised(ConceptEncoderForDiffusionMLM(tiny_config()))
    assert model.loss_type == "ForMaskedLM"
    ids, _ = token_batch()
    noised = ids.clone()
    noised[:, 3] = MASK
    labels = torch.where(noised == MASK, ids, -100)
    logits = model(ids, decoder_input_ids=noised).logits[:, 3]
    expected = nn.functional.cross_entropy(logits, ids[:, 3])
    output = model(ids, decoder_input_ids=noised, labels=labels)
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.logits[:, 3], logits)


@pytest.mark.parametrize("context", ["none", "latent"])
def test_whether_visible_tokens_move_masked_logits(context):
    model = randomised(ConceptEncoderForDiffusionMLM(tiny_config(decoder_context=context)))
    ids, mask = token_batch()
    noised = ids.clone()
    noised[:, 5:7] = MASK
    changed = noised.clone()
    changed[:, 1] = (changed[:, 1] - 3) % 116 + 4
    timesteps = torch.full((3,), 0.5)
    logits = [model(ids, mask, x, timesteps).logits[:, 5:7] for x in (noised, changed)]
    if context == "none":
        assert torch.equal(*logits)
    else:
        assert (logits[0] - logits[1]).abs().max() > 1e-3


# ----------------------------------------------------------------------------------------------------------- padding


def padded_pair(model, **kwargs):
    ids, mask = token_batch()
    other = torch.where(mask.bool(), ids, torch.randint(4, 120, ids.shape))
    wide = nn.functional.pad(other, (0, 5), value=7), nn.functional.pad(mask, (0, 5))
    first, second, third = (model(i, m, **kwargs) for i, m in ((ids, mask), (other, mask), wide))
    return first, second, third, mask.bool()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_never_moves_a_result(variant, attention):
    model = randomised(ConceptEncoderForDiffusionMLM(tiny_config(**VARIANTS[variant])))
    model.set_attn_implementation(attention)
    first, second, third, real = padded_pair(model, timesteps=torch.full((3,), 0.5))
    for other in (second, third):
        torch.testing.assert_close(other.concepts, first.concepts, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(other.logits[:, :11][real], first.logits[real], rtol=1e-3, atol=1e-3)


def test_padding_on_the_left_with_position_ids():
    encoder = randomised(ConceptEncoderModel(tiny_config()))
    ids, _ = token_batch(rows=3)
    left = nn.functional.pad(ids, (4, 0), value=9)
    mask = nn.functional.pad(torch.ones_like(ids), (4, 0))
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    moved = encoder(left, mask, position_ids=positions).last_hidden_state
    torch.testing.assert_close(moved, encoder(ids).last_hidden_state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_row_of_padding_alone_gives_finite_numbers_and_gradients(variant, attention):
    model = randomised(ConceptEncoderForDiffusionMLM(tiny_config(**VARIANTS[variant])))
    model.set_attn_implementation(attention)
    ids, mask = token_batch()
    mask[1] = 0
    noised = torch.full_like(ids, MASK)
    output = model(ids, mask, noised, labels=torch.where(mask.bool(), ids, -100))
    output.loss.backward()
    assert torch.isfinite(output.loss) and torch.isfinite(output.concepts).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_all_padding_is_the_same_for_eager_and_sdpa():
    model = randomised(ConceptEncoderModel(tiny_config()))
    ids, mask = token_batch()
    mask[1] = 0
    concepts = {}
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        concepts[attention] = model(ids, mask).last_hidden_state
    torch.testing.assert_close(concepts["sdpa"], concepts["eager"], rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------------------- recorded, memory, dtype


def test_recorded_states_and_attentions():
    config = tiny_config(decoder_context="latent")
    config._attn_implementation = "eager"
    model = randomised(ConceptEncoderForDiffusionMLM(config))
    ids, mask = token_batch()
    output = model(ids, mask, output_hidden_states=True, output_attentions=True)
    assert [tuple(h.shape) for h in output.hidden_states] == [(3, 6, 32)] * 3
    assert torch.equal(output.hidden_states[-1], output.concepts)
    assert [tuple(a.shape) for a in output.attentions] == [(3, 4, 6, 6)] * 2
    assert [tuple(a.shape) for a in output.cross_attentions] == [(3, 4, 6, 11)] * 2
    assert [tuple(h.shape) for h in output.decoder_hidden_states] == [(3, 11, 32)] * 3
    assert [tuple(a.shape) for a in output.decoder_cross_attentions] == [(3, 4, 11, 6)] * 2
    cross = output.cross_attentions[0]
    torch.testing.assert_close(cross.sum(-1), torch.ones(3, 4, 6))
    assert (cross.permute(0, 3, 1, 2)[mask == 0] == 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_checkpointing_gives_equal_gradients(variant):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = randomised(ConceptEncoderForDiffusionMLM(tiny_config(**VARIANTS[variant]))).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        ids, mask = token_batch()
        model(ids, mask, torch.full_like(ids, MASK), labels=ids).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_gets_a_gradient(variant):
    # A parameter without one breaks distributed data parallel.
    model = randomised(ConceptEncoderForDiffusionMLM(tiny_config(**VARIANTS[variant])))
    classifier = randomised(ConceptEncoderForSequenceClassificationPerceiver(tiny_config(**VARIANTS[variant])))
    ids, mask = token_batch()
    model(ids, mask, torch.where(ids % 2 == 0, MASK, ids), labels=ids).loss.backward()
    classifier(ids, mask, labels=torch.tensor([0, 1, 0])).loss.backward()
    assert [n for m in (model, classifier) for n, p in m.named_parameters() if p.grad is None] == []


def test_bfloat16_is_close_to_float32():
    ids, mask = token_batch()
    model = ConceptEncoderForDiffusionMLM(tiny_config(decoder_context="latent")).eval()
    labels = torch.where(mask.bool(), ids, -100)
    noised = torch.full_like(ids, MASK)
    exact = model(ids, mask, noised, labels=labels).loss
    rounded = model.to(torch.bfloat16)(ids, mask, noised, labels=labels)
    assert rounded.token_losses.dtype == torch.float32
    assert rounded.loss.item() == pytest.approx(exact.item(), rel=0.02)


def test_tied_embeddings_are_one_matrix_through_a_round_trip(tmp_path):
    model = ConceptEncoderForDiffusionMLM(tiny_config())
    model.save_pretrained(tmp_path)
    loaded = ConceptEncoderForDiffusionMLM.from_pretrained(tmp_path)
    for each in (model, loaded):
        table = each.encoder.embeddings.tokens.weight
        assert each.lm_head.weight is table and each.decoder.embeddings.tokens.weight is table
    untied = ConceptEncoderForDiffusionMLM(tiny_config(tie_word_embeddings=False))
    assert untied.lm_head.weight is not untied.encoder.embeddings.tokens.weight


@pytest.mark.parametrize("tie", [True, False])
def test_resizing_embeddings_reaches_all_three_tables(tie):
    model = ConceptEncoderForDiffusionMLM(tiny_config(tie_word_embeddings=tie))
    model.resize_token_embeddings(130)
    assert model.config.vocab_size == 130
    assert len(model.decoder.embeddings.tokens.weight) == len(model.lm_head.weight) == 130
    ids = torch.full((1, 4), 129)
    assert model(ids).logits.shape == (1, 4, 130)


@pytest.mark.parametrize("variant", VARIANTS)
def test_save_and_load_keep_every_output(variant, tmp_path):
    model = randomised(ConceptEncoderForDiffusionMLM(tiny_config(**VARIANTS[variant])))
    model.save_pretrained(tmp_path)
    loaded = ConceptEncoderForDiffusionMLM.from_pretrained(tmp_path)
    ids, mask = token_batch()
    assert torch.equal(loaded(ids, mask).logits, model(ids, mask).logits)


# --------------------------------------------------------------------------------------------------------- arguments


def test_timestep_defaults_to_the_masked_share_of_real_tokens():
    model = randomised(ConceptEncoderForDiffusionMLM(tiny_config()))
    ids, mask = token_batch()
    ids[0, :5] = MASK
    ids[1, 6:] = MASK  # one real, the rest padding
    share = torch.tensor([5 / 11, 1 / 7, 0.0])
    assert torch.equal(model(ids, mask).logits, model(ids, mask, timesteps=share).logits)


def test_num_items_in_batch_is_the_denominator_and_no_label_gives_zero():
    model = randomised(ConceptEncoderForDiffusionMLM(tiny_config()))
    ids, mask = token_batch()
    losses = model(ids, mask, labels=ids, num_items_in_batch=10)
    assert losses.loss.item() == pytest.approx(losses.token_losses.sum().item() / 10)
    empty = model(ids, mask, labels=torch.full_like(ids, -100))
    assert empty.loss.item() == 0 and empty.logits.shape == (*ids.shape, 120)


def test_label_smoothing_is_cross_entropy_s():
    model = randomised(ConceptEncoderForDiffusionMLM(tiny_config()))
    ids, mask = token_batch()
    output = model(ids, mask, labels=ids, row_loss=partial(cross_entropy_of_rows, label_smoothing=0.1))
    expected = nn.functional.cross_entropy(output.logits, ids.flatten(), label_smoothing=0.1)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, ids: m(ids + 117), r"token ids must be in \[0, 120\), got"),
        (lambda m, ids: m(-ids), r"token ids must be in \[0, 120\), got"),
        (lambda m, ids: m(ids.repeat(1, 4)), r"sequence of 44 tokens is longer than max_position_embeddings \(40\)"),
        (lambda m, ids: m.encoder(), "exactly one of input_ids and inputs_embeds"),
        (lambda m, ids: m(concepts=torch.zeros(1, 6, 32)), "decoder has nothing to rebuild"),
        (
            lambda m, ids: m.generate(ids, order="random"),
            "must be 'confidence', 'ancestral' or 'blocks', got 'random'",
        ),
        (lambda m, ids: m.generate(ids, order="blocks"), "order='blocks' needs block_length >= 1.*block_length=None"),
        (lambda m, ids: m.generate(ids, order="blocks", block_length=0), "block_length=0"),
        (lambda m, ids: m.generate(ids, block_length=4), "no other order takes one; got order='confidence'"),
        (lambda m, ids: m.generate(ids, num_steps=0), "num_steps=0"),
        (lambda m, ids: m.generate(concepts=torch.zeros(1, 6, 32)), "concepts together with length"),
    ],
)
def test_bad_input_is_named(call, message):
    ids, _ = token_batch()
    with pytest.raises(ValueError, match=message):
        call(ConceptEncoderForDiffusionMLM(tiny_config()), ids)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latent_init": "orthogonal", "num_concepts": 40}, r"num_concepts \(40\) of at most hidden_size \(32\)"),
        (
            {"concept_position_type": "anchored", "latent_init": "orthogonal"},
            "leaves nothing for latent_init='orthogonal' to set; choose one",
        ),
        (
            {"concept_position_type": "anchored", "num_concepts": 41},
            r"num_concepts \(41\) of at most max_position_embeddings \(40\)",
        ),
    ],
)
def test_contradictions_between_latent_fields_are_named(fields, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        tiny_config(**fields)


def test_diffusion_without_a_mask_token_is_refused():
    with pytest.raises(ValueError, match="mask_token_id is None"):
        ConceptEncoderForDiffusionMLM(tiny_config(mask_token_id=None))


# --------------------------------------------------------------------------------------------------- anytime concepts


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("context", ["none", "latent"])
def test_the_first_concepts_alone_are_as_if_the_others_were_cut_off(context, attention):
    model = randomised(ConceptEncoderForDiffusionMLM(tiny_config(decoder_context=context)).double())
    model.set_attn_implementation(attention)
    ids, mask = token_batch()
    noised = ids.masked_fill(torch.arange(11) % 2 == 0, MASK)
    concepts = model.encoder(ids, mask).last_hidden_state
    counts = torch.tensor([1, 4, 6])
    logits = model(ids, mask, noised, num_visible_concepts=counts).logits
    for row, count in enumerate(counts.tolist()):
        one = slice(row, row + 1)
        cut = model(attention_mask=mask[one], decoder_input_ids=noised[one], concepts=concepts[one, :count]).logits
        torch.testing.assert_close(logits[one], cut)
        same = model(ids, mask, noised, num_visible_concepts=count).logits
        torch.testing.assert_close(logits[one], same[one])
    assert (logits[:2] - model(ids, mask, noised).logits[:2]).abs().max() > 1e-3
    moved = concepts.clone()
    moved[1, 4:] += 1  # hidden from row 1
    again = model(attention_mask=mask, decoder_input_ids=noised, concepts=moved, num_visible_concepts=counts).logits
    torch.testing.assert_close(again[1], logits[1])


def test_the_perceiver_head_can_hide_concepts_too():
    model = randomised(ConceptEncoderForMaskedLMPerceiver(tiny_config()).double())
    ids, mask = token_batch()
    logits = model(ids, mask, num_visible_concepts=torch.tensor([2, 6, 3])).logits
    states, tokens = model.encoder(ids, mask).last_hidden_state, model.encoder.embeddings.tokens(ids)
    cut = model.lm_head(model.decoder(tokens[:1], states[:1, :2]).last_hidden_state)
    torch.testing.assert_close(logits[:1], cut)
    torch.testing.assert_close(logits[1], model(ids, mask).logits[1])


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (0, r"must be in \[1, 6\], got 0"),
        (torch.tensor([1, 7, 2]), r"must be in \[1, 6\], got \[1, 7, 2\]"),
        (torch.tensor([1, 2]), r"must be an int or \(3,\), got \(2,\)"),
    ],
)
def test_bad_numbers_of_visible_concepts_are_named(count, message):
    ids, mask = token_batch()
    with pytest.raises(ValueError, match="num_visible_concepts " + message):
        ConceptEncoderForDiffusionMLM(tiny_config())(ids, mask, num_visible_concepts=count)


def test_slot_attention_in_the_latent_context_cannot_hide_concepts():
    model = ConceptEncoderForDiffusionMLM(tiny_config(concept_attention="slot", decoder_context="latent"))
    ids, mask = token_batch()
    with pytest.raises(ValueError, match="needs concept_attention='softmax'"):
        model(ids, mask, num_visible_concepts=3)
