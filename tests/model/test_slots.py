"""Slots that share out the tokens and keep their sums, pooled outputs, and encoders without a layer."""

import pytest
import torch
from helpers import MASK, PAD, randomised, tiny_config, token_batch
from huggingface_hub.errors import StrictDataclassClassValidationError

from concept_encoder import (
    ConceptEncoderForDiffusionMLM,
    ConceptEncoderForMaskedLMPerceiver,
    ConceptEncoderForSentencePairClassification,
    ConceptEncoderForSequenceClassificationPerceiver,
    ConceptEncoderModel,
)

SUM = {"concept_aggregation": "sum", "num_hidden_layers": 0, "position_embedding_type": "none"}
VARIANTS: dict[str, dict] = {
    "dense": SUM,
    "sparse": {**SUM, "concepts_per_token": 2},
    "one": {**SUM, "concepts_per_token": 1, "count_saturation": True, "aggregation_power": 0},
    "saturated": {**SUM, "count_saturation": True, "aggregation_power": 1.0},
    "layers": {"concept_aggregation": "sum"},
    "slot layers": {"concept_aggregation": "sum", "concept_attention": "slot", "count_saturation": True},
}
EQUAL = {"rtol": 1e-10, "atol": 1e-10}


def encoder(dtype=torch.float64, std=0.3, **config) -> ConceptEncoderModel:
    torch.manual_seed(0)
    return randomised(ConceptEncoderModel(tiny_config(**config)).to(dtype), std=std)


def batch(columns=23):
    """Words that stand several times, padding in all places, and a text without a token."""
    ids, mask = token_batch(4, columns)
    ids[:, 3:9] = ids[:, 2:3]
    mask[3] = 0
    return ids, mask


def by_hand(model, ids, mask):
    """(C, D) of one text, token by token."""
    config = model.config
    real = [i for i, m in zip(ids.tolist(), mask.tolist(), strict=True) if m]
    sums = torch.zeros(config.num_concepts, config.hidden_size, dtype=torch.float64)
    for token in real:
        x = model.embeddings.tokens.weight[token]
        weight = (1 + x @ model.slots.scorer.weight[0] + model.slots.scorer.bias[0]).clamp_min(0)
        if config.count_saturation:
            n = torch.tensor(float(real.count(token)), dtype=torch.float64)
            weight = weight * torch.log(1 + n) / n
        scores = model.latents.weight @ x
        if config.concepts_per_token:
            scores[scores < scores.topk(config.concepts_per_token).values[-1]] = -torch.inf
        sums += weight * scores.softmax(0)[:, None] * x
    sums = sums / sums.norm(dim=1, keepdim=True).clamp_min(1e-30) ** config.aggregation_power
    return sums / sums.square().mean().sqrt() if real else sums


@pytest.mark.parametrize("variant", ["dense", "sparse", "one", "saturated"])
def test_sums_are_those_written_down_token_by_token(variant):
    model = encoder(**VARIANTS[variant])
    ids, mask = batch()
    with torch.no_grad():
        got = model(ids, mask).last_hidden_state
        for row, text, real in zip(got, ids, mask, strict=True):
            torch.testing.assert_close(row, by_hand(model, text, real), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_chunks_and_padding_change_nothing(variant):
    model = encoder(**VARIANTS[variant])
    ids, mask = batch()
    with torch.no_grad():
        whole = model(ids, mask).last_hidden_state
        for length in (1, 5, 22, 1000):
            torch.testing.assert_close(model(ids, mask, chunk_length=length).last_hidden_state, whole, **EQUAL)
        changed = torch.where(mask.bool(), ids, 77)
        wider = torch.nn.functional.pad(changed, (3, 4)), torch.nn.functional.pad(mask, (3, 4))
        torch.testing.assert_close(model(*wider).last_hidden_state, whole, **EQUAL)
        assert whole[3].abs().max() == 0  # the text without a token


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_finite_and_reach_every_weight(variant):
    for chunk in ({}, {"chunk_length": 5}):
        model = encoder(**VARIANTS[variant], pooled_output="concat", projection_size=4)
        ids, mask = batch()
        target = torch.randn(4, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        (model(ids, mask, **chunk).pooler_output * target).sum().backward()
        grads = {name: weight.grad for name, weight in model.named_parameters()}
        assert all(grad is not None and grad.isfinite().all() for grad in grads.values())
        wanted = ("latents.weight", "slots.scorer.weight", "embeddings.tokens.weight", "pool.projection.weight")
        assert all(grads[name].abs().sum() > 0 for name in wanted)


def test_a_batch_of_nothing_has_no_gradient_and_no_nan():
    model = encoder(torch.float32, **SUM)
    ids, mask = batch()
    output = model(ids, torch.zeros_like(mask))
    output.last_hidden_state.sum().backward()
    assert output.last_hidden_state.abs().max() == 0 and output.pooler_output.abs().max() == 0
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)


def test_the_best_slots_alone_have_one_value_with_and_without_gradients():
    for each in (1, 2, 4):
        model = encoder(**{**SUM, "concepts_per_token": each})
        ids, mask = batch()
        trained = model(ids, mask).last_hidden_state
        with torch.no_grad():
            torch.testing.assert_close(model(ids, mask).last_hidden_state, trained, **EQUAL)


@pytest.mark.parametrize("variant", ["dense", "saturated", "layers", "slot layers"])
def test_half_precision_is_close(variant):
    model = encoder(torch.float32, std=0.1, **VARIANTS[variant])
    ids, mask = batch()
    with torch.no_grad():
        exact = model(ids, mask).last_hidden_state
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(ids, mask).last_hidden_state
        rounded = model.to(torch.bfloat16)(ids, mask).last_hidden_state
    assert rounded.dtype == torch.bfloat16
    for other in (mixed, rounded):
        assert (other.float() - exact).norm() / exact.norm() < 0.05


# ---------------------------------------------------------------------------------------------------- pooled outputs


@pytest.mark.slow
def test_pooled_outputs():
    ids, mask = batch()
    for kind in ("mean", "weighted", "concat"):
        for size in (None, 4):
            for more in ({}, SUM):
                model = encoder(pooled_output=kind, projection_size=size, **more)
                with torch.no_grad():
                    output = model(ids, mask)
                concepts = output.last_hidden_state
                if size:
                    concepts = concepts @ model.pool.projection.weight.T
                if kind == "weighted":
                    shares = (concepts @ model.pool.scorer.weight.T + model.pool.scorer.bias).softmax(1)
                    expected = (shares * concepts).sum(1)
                else:
                    expected = concepts.flatten(1) if kind == "concat" else concepts.mean(1)
                torch.testing.assert_close(output.pooler_output, expected, **EQUAL)


@pytest.mark.parametrize("size", [None, 4])
def test_maps_of_the_pooled_output_are_those_of_each_concept(size):
    ids, mask = batch()
    model = encoder(pooler_whitening=True, projection_size=size)
    model.whitening.weight.normal_()
    with torch.no_grad():
        pooled = model(ids, mask).pooler_output
        torch.testing.assert_close(model.whitened(ids, mask).last_hidden_state.mean(1), pooled, **EQUAL)


# ----------------------------------------------------------------------------------------------------- everything else


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["dense", "one", "layers"])
def test_a_text_is_rebuilt_through_sums(variant):
    torch.manual_seed(0)
    model = randomised(ConceptEncoderForDiffusionMLM(tiny_config(**VARIANTS[variant])), std=0.05).train()
    ids, mask = token_batch()
    noised = torch.where(ids % 2 == 0, MASK, ids)
    labels = torch.where((noised == MASK) & mask.bool(), ids, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(ids, mask, noised, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    out = model.eval().generate(ids, mask, temperature=0.0, num_steps=2)
    assert not torch.isin(out[mask.bool()], torch.tensor([MASK, PAD])).any()


@pytest.mark.parametrize(
    "head",
    [
        ConceptEncoderForMaskedLMPerceiver,
        ConceptEncoderForSequenceClassificationPerceiver,
        ConceptEncoderForSentencePairClassification,
    ],
)
def test_heads_go_on_from_a_checkpoint_of_sums(head, tmp_path):
    source = encoder(torch.float32, **VARIANTS["one"])
    source.save_pretrained(tmp_path)
    model = head.from_pretrained(tmp_path)
    for name, weight in source.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], weight)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["dense", "one", "layers"])
def test_sums_are_exported(variant):
    model = encoder(torch.float32, **VARIANTS[variant], pooled_output="concat", projection_size=4)
    ids, mask = batch()
    shapes = {0: torch.export.Dim("texts", min=1, max=64), 1: torch.export.Dim("tokens", min=2, max=40)}
    with torch.no_grad():
        program = torch.export.export(model, (ids, mask), dynamic_shapes=(shapes, shapes), strict=False)
        for rows in (1, 4):
            got = program.module()(ids[:rows, :17], mask[:rows, :17]).pooler_output
            torch.testing.assert_close(got, model(ids[:rows, :17], mask[:rows, :17]).pooler_output)


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1, got 0"),
        ({"num_hidden_layers": -1, "concept_aggregation": "sum"}, "num_hidden_layers must be at least 0, got -1"),
        ({"concepts_per_token": 1}, "say how sums of tokens are made, and concept_aggregation='mean' makes none"),
        ({"count_saturation": True}, "say how sums of tokens are made, and concept_aggregation='mean' makes none"),
        ({**SUM, "concepts_per_token": 5}, r"concepts_per_token must be in \[1, 4\] .* got 5"),
        ({**SUM, "concepts_per_token": 0}, r"concepts_per_token must be in \[1, 4\] .* got 0"),
        ({**SUM, "aggregation_power": 1.5}, r"aggregation_power must be in \[0, 1\], got 1.5"),
        ({**SUM, "concept_position_type": "learned"}, "concept_position_type='learned' moves latent queries"),
        ({"projection_size": 33}, r"projection_size must be in \[1, hidden_size = 32\], got 33"),
        ({"pooled_output": "concat", "pooler_whitening": True}, "pooler_whitening=True maps the mean concept"),
        (
            {"position_embedding_type": "none", "concept_position_type": "anchored"},
            "concept_position_type='anchored' takes places of tokens",
        ),
    ],
)
def test_what_contradicts_is_refused(config, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        tiny_config(**config)


def test_what_sums_cannot_read_is_named():
    ids, mask = batch()
    model = encoder(**VARIANTS["one"])
    with pytest.raises(ValueError, match="count_saturation=True counts token ids; give input_ids, not inputs_embeds"):
        model(inputs_embeds=model.embeddings.tokens(ids))
    with pytest.raises(ValueError, match=r"concept_aggregation='sum' needs an attention_mask \(B, N\), got shape"):
        model(ids, mask[:, None, None].bool())
