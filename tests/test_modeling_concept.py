import math

import pytest
import torch
from helpers import BOS, EOS, MASK, PAD, randomised, tiny_config, token_batch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import nn
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from concept_encoder import (
    ConceptEncoderConfig,
    ConceptEncoderForDiffusionMLM,
    ConceptEncoderForMaskedLMPerceiver,
    ConceptEncoderForSentencePairClassification,
    ConceptEncoderForSequenceClassificationPerceiver,
    ConceptEncoderForSequenceClassificationViaDecoder,
    ConceptEncoderModel,
)

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
        if module.slot:
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


def reference_embeddings(module, ids):
    x = module.tokens.weight[ids]
    return module.norm(module.projection(x + reference_token_positions(module, *x.shape[1:])))


def reference_token_positions(module, length, dim):
    return reference_positions(length, dim) if module.positions is None else module.positions.weight[:length]


def reference_layer(layer, concepts, tokens, mask):
    concepts = concepts + reference_attention(layer.cross_attn, layer.cross_attn_norm(concepts), tokens, mask)
    if layer.token_update:
        tokens = tokens + reference_attention(layer.token_attn, layer.token_attn_norm(tokens), concepts)
    normed = layer.self_attn_norm(concepts)
    concepts = concepts + reference_attention(layer.self_attn, normed, normed)
    return concepts + reference_feed_forward(layer.mlp, layer.mlp_norm(concepts)), tokens


def reference_encoder(encoder, ids, mask):
    tokens = reference_embeddings(encoder.embeddings, ids)
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
    x = reference_embeddings(decoder.embeddings, ids)
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
    torch.testing.assert_close(output.logits, logits[picked], rtol=1e-7, atol=1e-8)
    nll = -logits.log_softmax(-1).gather(-1, labels.clamp_min(0)[..., None])[..., 0] * picked
    torch.testing.assert_close(output.token_losses, nll, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(output.loss, (nll * weights).sum() / picked.sum())


def reference_perceiver_decoder(model, ids, concepts):
    decoder, layer = model.decoder, model.decoder.layer
    x = reference_token_positions(decoder, ids.shape[1], concepts.shape[-1]).expand(len(ids), -1, -1)
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
    logits = reference_perceiver_decoder(model, ids, concepts) @ model.lm_head.weight.T
    torch.testing.assert_close(output.concepts, concepts, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(output.logits, logits[labels != -100], rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(model(ids, mask).logits, logits, rtol=1e-7, atol=1e-8)
    expected = nn.functional.cross_entropy(logits[labels != -100], labels[labels != -100])
    torch.testing.assert_close(output.loss, expected)

    model = randomised(ConceptEncoderForSequenceClassificationViaDecoder(config).double())
    model.set_attn_implementation(attention)
    states = reference_perceiver_decoder(model, ids, reference_encoder(model.encoder, ids, mask))
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
        places = each.embeddings(torch.full((1, 40), PAD))[:, [5, 15, 25, 35]]
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
    # [MASK] itself is suppressed at inference only.
    logits_trained = model(ids, decoder_input_ids=noised, labels=labels).logits
    torch.testing.assert_close(logits_trained[:, :MASK], logits[:, :MASK])
    torch.testing.assert_close(logits_trained[:, MASK + 1 :], logits[:, MASK + 1 :])
    assert model(ids, decoder_input_ids=noised, labels=labels).loss >= expected
    assert logits[:, MASK].max() == torch.finfo(torch.float32).min


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


# ----------------------------------------------------------------------------------------------------------- loading


POOLING = {"pooling.scorer.weight", "pooling.scorer.bias", "pooling.norm.weight", "pooling.norm.bias"}
CLASSIFIER = {"classifier.weight", "classifier.bias"}
TOKEN_POOLING = {"token_pooling.norm.weight", "token_pooling.norm.bias"}


def decoder_keys(head):
    return {key for key in head(tiny_config(num_labels=3)).state_dict() if key.startswith("decoder.")}


DIFFUSION_DECODER = decoder_keys(ConceptEncoderForDiffusionMLM)
PERCEIVER_DECODER = decoder_keys(ConceptEncoderForMaskedLMPerceiver)
# What each head finds missing and unexpected in a checkpoint of each pretraining head.
LOADING = {
    (ConceptEncoderModel, "diffusion"): (set(), set()),
    (ConceptEncoderModel, "mlm"): (set(), set()),
    (ConceptEncoderForDiffusionMLM, "diffusion"): (set(), set()),
    (ConceptEncoderForDiffusionMLM, "mlm"): (
        DIFFUSION_DECODER - {"decoder.embeddings.tokens.weight"},  # tied to the encoder's
        PERCEIVER_DECODER,
    ),
    (ConceptEncoderForMaskedLMPerceiver, "diffusion"): (
        PERCEIVER_DECODER,
        DIFFUSION_DECODER - {"decoder.embeddings.tokens.weight"},
    ),
    (ConceptEncoderForMaskedLMPerceiver, "mlm"): (set(), set()),
    (ConceptEncoderForSequenceClassificationPerceiver, "diffusion"): (POOLING | CLASSIFIER, set()),
    (ConceptEncoderForSequenceClassificationPerceiver, "mlm"): (POOLING | CLASSIFIER, set()),
    (ConceptEncoderForSequenceClassificationViaDecoder, "diffusion"): (
        PERCEIVER_DECODER | TOKEN_POOLING | CLASSIFIER,
        DIFFUSION_DECODER - {"decoder.embeddings.tokens.weight"},
    ),
    (ConceptEncoderForSequenceClassificationViaDecoder, "mlm"): (TOKEN_POOLING | CLASSIFIER, set()),
    (ConceptEncoderForSentencePairClassification, "diffusion"): (POOLING | CLASSIFIER, set()),
    (ConceptEncoderForSentencePairClassification, "mlm"): (POOLING | CLASSIFIER, set()),
}
PRETRAINING = {"diffusion": ConceptEncoderForDiffusionMLM, "mlm": ConceptEncoderForMaskedLMPerceiver}


@pytest.mark.parametrize(("head", "checkpoint"), LOADING, ids=lambda value: getattr(value, "__name__", value))
def test_any_head_loads_any_pretraining_checkpoint_with_exactly_these_keys(head, checkpoint, tmp_path):
    pretrained = randomised(PRETRAINING[checkpoint](tiny_config()))
    pretrained.save_pretrained(tmp_path / "pretrained")
    loaded, info = head.from_pretrained(tmp_path / "pretrained", num_labels=3, output_loading_info=True)
    missing, unexpected = LOADING[head, checkpoint]
    assert set(info["missing_keys"]) == missing
    assert set(info["unexpected_keys"]) == unexpected and not info["mismatched_keys"]
    expected = pretrained.state_dict()
    for name, tensor in loaded.base_model.state_dict().items():
        assert torch.equal(tensor, expected[f"encoder.{name}"])
    for name in set(loaded.state_dict()) & set(expected):
        assert torch.equal(loaded.state_dict()[name], expected[name])
    # And what a head adds never stands in the way of the bare encoder.
    loaded.save_pretrained(tmp_path / "head")
    encoder, info = ConceptEncoderModel.from_pretrained(tmp_path / "head", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, expected[f"encoder.{name}"])


def test_a_decoder_deeper_than_the_configuration_is_not_swallowed(tmp_path):
    ConceptEncoderForDiffusionMLM(tiny_config(decoder_num_hidden_layers=2)).save_pretrained(tmp_path)
    _, info = ConceptEncoderForDiffusionMLM.from_pretrained(
        tmp_path, decoder_num_hidden_layers=1, output_loading_info=True
    )
    second = {key for key in DIFFUSION_DECODER if key.startswith("decoder.layers.1.")}
    assert set(info["unexpected_keys"]) == second and second


AUTO_CLASSES = {
    ConceptEncoderForDiffusionMLM: AutoModelForMaskedLM,
    ConceptEncoderForMaskedLMPerceiver: AutoModelForMaskedLM,
    ConceptEncoderForSequenceClassificationPerceiver: AutoModelForSequenceClassification,
    ConceptEncoderForSequenceClassificationViaDecoder: AutoModelForSequenceClassification,
    ConceptEncoderForSentencePairClassification: AutoModelForSequenceClassification,
}


@pytest.mark.parametrize("head", AUTO_CLASSES, ids=lambda head: head.__name__)
def test_with_the_package_an_auto_class_loads_the_head_that_wrote_the_checkpoint(head, tmp_path):
    head(tiny_config(num_labels=3)).save_pretrained(tmp_path)
    for trust in (True, False):
        loaded, info = AUTO_CLASSES[head].from_pretrained(tmp_path, trust_remote_code=trust, output_loading_info=True)
        assert type(loaded) is head and not info["missing_keys"]
    # A head that the checkpoint does not hold starts from its encoder, as the first of its Auto class.
    other = {AutoModelForMaskedLM, AutoModelForSequenceClassification} - {AUTO_CLASSES[head]}
    first = next(cls for cls, auto in AUTO_CLASSES.items() if auto in other)
    assert type(other.pop().from_pretrained(tmp_path)) is first


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
    assert empty.loss.item() == 0 and empty.logits.shape == (0, 120)


def test_label_smoothing_is_cross_entropy_s():
    model = randomised(ConceptEncoderForDiffusionMLM(tiny_config()))
    ids, mask = token_batch()
    output = model(ids, mask, labels=ids, label_smoothing=0.1)
    expected = nn.functional.cross_entropy(output.logits, ids.flatten(), label_smoothing=0.1)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, ids: m(ids + 117), r"token ids must lie in \[0, 120\), got"),
        (lambda m, ids: m(-ids), r"token ids must lie in \[0, 120\), got"),
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
        (0, r"must lie in \[1, 6\], got 0"),
        (torch.tensor([1, 7, 2]), r"must lie in \[1, 6\], got \[1, 7, 2\]"),
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


# ---------------------------------------------------------------------------------------------------------- sampling


def order_options(order):
    return {"order": order, "block_length": 4 if order == "blocks" else None}


@pytest.mark.parametrize("order", ["confidence", "ancestral", "blocks"])
@pytest.mark.parametrize("context", ["none", "latent"])
def test_generate_fills_what_is_masked_and_keeps_the_rest(order, context):
    model = randomised(ConceptEncoderForDiffusionMLM(tiny_config(decoder_context=context)))
    ids, mask = token_batch()
    ids[:, [2, 3, 5]] = MASK
    mask[:] = 1
    mask[2, 8:] = 0
    some = {"temperature": 2.0, "num_steps": 1}
    for options in ({"temperature": 0.0}, {"top_k": 5}, {"top_p": 0.7}, some, {"reencode": True, "num_steps": 3}):
        generator = torch.Generator().manual_seed(0)
        out = model.generate(ids, mask, **order_options(order), generator=generator, **options)
        assert torch.equal(out[ids != MASK], ids[ids != MASK])
        assert not torch.isin(out[mask.bool()], torch.tensor([MASK, PAD])).any()
    seeds = [torch.Generator().manual_seed(3) for _ in range(2)]
    again = [model.generate(ids, mask, **order_options(order), generator=seed) for seed in seeds]
    assert torch.equal(*again)


def test_generate_reconstructs_or_starts_from_concepts():
    model = randomised(ConceptEncoderForDiffusionMLM(tiny_config()))
    ids, _ = token_batch()
    ids[:, 0], ids[:, -1] = BOS, EOS
    out = model.generate(ids, num_steps=4, temperature=0.0)
    assert (out[:, 0] == BOS).all() and (out[:, -1] == EOS).all() and not (out == MASK).any()
    concepts = model.encoder(ids).last_hidden_state
    free = model.generate(concepts=concepts, length=11, num_steps=4, temperature=0.0)
    assert torch.equal(free, out)


def test_generate_commits_an_equal_share_at_each_step(monkeypatch):
    model = randomised(ConceptEncoderForDiffusionMLM(tiny_config()))
    ids = torch.full((2, 9), MASK)
    left = []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda **kw: left.append((kw["decoder_input_ids"] == MASK).sum(-1).tolist()) or forward(**kw)
    )
    model.generate(ids, num_steps=3, order="ancestral", generator=torch.Generator().manual_seed(0))
    assert left == [[9, 9], [6, 6], [3, 3]]


def canvases(model, monkeypatch, *args, **options):
    """What the decoder sees in each step of `generate`, and the result."""
    seen, forward = [], model.forward
    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", lambda **kw: seen.append(kw["decoder_input_ids"]) or forward(**kw))
        out = model.generate(*args, generator=torch.Generator().manual_seed(0), **options)
    return seen, out


def test_blocks_fill_from_left_to_right_and_by_confidence_inside(monkeypatch):
    model = randomised(ConceptEncoderForDiffusionMLM(tiny_config(decoder_context="latent")))
    ids = torch.full((2, 12), MASK)
    ids[0, 1] = 50  # so that row 0 is ahead of row 1
    seen, _ = canvases(model, monkeypatch, ids, num_steps=6, order="blocks", block_length=4, temperature=0.0)
    assert [(x == MASK).sum(-1).tolist() for x in seen] == [[11, 12], [9, 10], [7, 8], [5, 6], [3, 4], [1, 2]]
    for canvas in seen:
        for row in (canvas == MASK).view(2, 3, 4).sum(-1).tolist():
            assert row == sorted(row) and sum(0 < left < 4 for left in row) <= 1
    within = (seen[1][1, :4] != MASK).nonzero().flatten()
    probabilities = model(ids, decoder_input_ids=seen[0]).logits[1, :4].softmax(-1).amax(-1)
    assert set(within.tolist()) == set(probabilities.topk(2).indices.tolist())


def test_reencoding_reads_the_canvas_from_the_second_step_on(monkeypatch):
    model = randomised(ConceptEncoderForDiffusionMLM(tiny_config()))
    ids, mask = token_batch()
    read, encoder = [], model.encoder.forward
    monkeypatch.setattr(model.encoder, "forward", lambda x, *args: read.append(x) or encoder(x, *args))
    seen, _ = canvases(model, monkeypatch, ids, mask, num_steps=3, reencode=True)
    assert torch.equal(read[0], ids)  # the text to reconstruct
    assert len(read) == 3 and all(torch.equal(a, b) for a, b in zip(read[1:], seen[1:], strict=True))
    read.clear()
    canvases(model, monkeypatch, ids, mask, num_steps=3)
    assert len(read) == 1


def test_without_context_steps_change_nothing_but_the_timestep():
    ids, mask = token_batch()
    for context, differ in (("none", False), ("latent", True)):
        model = randomised(ConceptEncoderForDiffusionMLM(tiny_config(decoder_context=context)))
        with torch.no_grad():
            for layer in model.decoder.layers:
                layer.modulation.weight.zero_()  # gates stay open through their bias, and t says nothing
        texts = [
            model.generate(ids, mask, num_steps=steps, reencode=False, temperature=0.0, **order_options(order))
            for steps in (1, 2, 5, 11)
            for order in ("confidence", "blocks")
        ]
        assert any(not torch.equal(text, texts[0]) for text in texts) == differ


def test_a_text_without_anything_to_fill_comes_back():
    ids = torch.tensor([[BOS, EOS]])
    assert torch.equal(ConceptEncoderForDiffusionMLM(tiny_config()).generate(ids), ids)


# -------------------------------------------------------------------------------------------------------- classifier


@pytest.mark.parametrize(
    ("kwargs", "labels"),
    [
        ({"num_labels": 3}, torch.tensor([0, 2, 1])),
        ({"num_labels": 1}, torch.tensor([0.5, 2.0, 1.0])),
        ({"num_labels": 4, "problem_type": "multi_label_classification"}, torch.ones(3, 4)),
    ],
)
def test_classifier_losses_by_problem_type(kwargs, labels):
    model = ConceptEncoderForSequenceClassificationPerceiver(tiny_config(**kwargs))
    assert model.accepts_loss_kwargs is False
    ids, mask = token_batch()
    output = model(ids, mask, labels=labels)
    assert output.logits.shape == (3, kwargs["num_labels"])
    assert torch.isfinite(output.loss)


def test_classifier_pools_by_softmax_weights():
    model = randomised(ConceptEncoderForSequenceClassificationPerceiver(tiny_config()))
    ids, mask = token_batch()
    concepts = model.encoder(ids, mask).last_hidden_state
    weights = (concepts @ model.pooling.scorer.weight.T + model.pooling.scorer.bias).softmax(1)
    expected = model.classifier(model.pooling.norm((weights * concepts).sum(1)))
    torch.testing.assert_close(model(ids, mask).logits, expected)


def test_position_queries_leak_no_token():
    ids, mask = token_batch()
    other = torch.randint(4, 120, ids.shape)
    for queries, moves in (("position", False), ("token+position", True)):
        model = randomised(ConceptEncoderForMaskedLMPerceiver(tiny_config(decoder_query=queries)))
        changed = model(ids, mask, decoder_input_ids=other).logits
        assert torch.equal(changed, model(ids, mask).logits) is not moves


def test_labels_may_be_longer_than_the_text_the_encoder_reads():
    model = randomised(ConceptEncoderForMaskedLMPerceiver(tiny_config(decoder_query="position")))
    ids, _ = token_batch(columns=20)
    output = model(ids[:, ::2], decoder_input_ids=ids, labels=ids, num_items_in_batch=7)
    assert output.token_losses.shape == ids.shape
    assert output.loss.item() == pytest.approx(output.token_losses.sum().item() / 7, rel=1e-5)


def test_perceiver_head_records_its_decoder():
    model = randomised(ConceptEncoderForMaskedLMPerceiver(tiny_config()))
    model.set_attn_implementation("eager")
    ids, mask = token_batch()
    output = model(ids, mask, output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in output.decoder_hidden_states] == 2 * [(3, 11, 32)]
    assert [tuple(weights.shape) for weights in output.decoder_cross_attentions] == [(3, 4, 11, 6)]
    assert len(output.hidden_states) == 3 and len(output.attentions) == len(output.cross_attentions) == 2


def test_tied_head_of_the_perceiver_follows_a_resize(tmp_path):
    model = ConceptEncoderForMaskedLMPerceiver(tiny_config())
    model.resize_token_embeddings(130)
    assert model.lm_head.weight is model.encoder.embeddings.tokens.weight and len(model.lm_head.weight) == 130
    model.save_pretrained(tmp_path)
    loaded = ConceptEncoderForMaskedLMPerceiver.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.encoder.embeddings.tokens.weight


def call(head, ids, mask, **kwargs):
    pair = (ids.flip(0), mask.flip(0)) if head is ConceptEncoderForSentencePairClassification else ()
    return lambda model: model(ids, mask, *pair, **kwargs)


@pytest.mark.parametrize("head", list(AUTO_CLASSES)[1:], ids=lambda head: head.__name__)
def test_padding_never_moves_a_head_and_every_parameter_gets_a_gradient(head):
    model = randomised(head(tiny_config(num_labels=3)).double())
    ids, mask = token_batch()
    masked_lm = head is ConceptEncoderForMaskedLMPerceiver
    labels = ids.masked_fill(mask == 0, -100) if masked_lm else torch.tensor([0, 2, 1])
    output = call(head, ids, mask, labels=labels)(model)
    changed = torch.where(mask.bool(), ids, 77)
    wider = nn.functional.pad(changed, (0, 4)), nn.functional.pad(mask, (0, 4))
    wide_labels = nn.functional.pad(labels, (0, 4), value=-100) if masked_lm else labels
    torch.testing.assert_close(call(head, *wider, labels=wide_labels)(model).logits, output.logits)
    output.loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without


@pytest.mark.parametrize("head", list(AUTO_CLASSES)[2:], ids=lambda head: head.__name__)
def test_classification_heads_have_the_losses_of_the_library(head):
    ids, mask = token_batch()
    cases = (
        (3, None, torch.tensor([0, 2, 1]), nn.functional.cross_entropy),
        (1, None, torch.tensor([0.5, 2.0, 1.0]), lambda x, y: nn.functional.mse_loss(x[:, 0], y)),
        (4, "multi_label_classification", torch.eye(4)[:3], nn.functional.binary_cross_entropy_with_logits),
    )
    for num_labels, problem_type, labels, loss in cases:
        model = randomised(head(tiny_config(num_labels=num_labels, problem_type=problem_type)))
        output = call(head, ids, mask, labels=labels)(model)
        assert output.logits.shape == (3, num_labels) and model.accepts_loss_kwargs is False
        torch.testing.assert_close(output.loss, loss(output.logits, labels))


def test_a_text_of_padding_alone_is_classified_from_zeros():
    model = randomised(ConceptEncoderForSequenceClassificationViaDecoder(tiny_config(num_labels=3)))
    ids, mask = token_batch()
    mask[1] = 0
    torch.testing.assert_close(model(ids, mask).logits[1], model.classifier.bias)


def test_pair_head_compares_two_texts():
    model = randomised(ConceptEncoderForSentencePairClassification(tiny_config(num_labels=3)))
    ids, mask = token_batch()
    ids_b, mask_b = (tensor[:, :8] for tensor in token_batch(seed=1))
    a = model.pooling(model.encoder(ids, mask).last_hidden_state)
    b = model.pooling(model.encoder(ids_b, mask_b).last_hidden_state)
    expected = model.classifier(torch.cat([a, b, (a - b).abs(), a * b], -1))
    torch.testing.assert_close(model(ids, mask, ids_b, mask_b).logits, expected)


def test_pair_head_in_cosine_mode_has_no_classifier():
    model = randomised(
        ConceptEncoderForSentencePairClassification(tiny_config(num_labels=1, pair_comparison="cosine"))
    )
    assert not hasattr(model, "classifier")
    ids, mask = token_batch()
    targets = torch.tensor([1.0, 0.2, -0.5])
    same = model(ids, mask, ids, mask, labels=targets)
    torch.testing.assert_close(same.logits, torch.ones(3, 1))
    torch.testing.assert_close(same.loss, (1 - targets).square().mean())
    assert model(ids, mask, ids.roll(1, 0), mask.roll(1, 0)).logits.max() < 1
    with pytest.raises(
        ValueError, match="pair_comparison='cosine' gives one number per pair: num_labels must be 1, got 2"
    ):
        ConceptEncoderForSentencePairClassification(tiny_config(num_labels=2, pair_comparison="cosine"))
