"""Concept reading: attention by hand, closed forms, padding, a planted concept, and every message."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import random_examples, randomised, tiny_config
from torch import Tensor, nn

from concept_encoder import ConceptEncoderForDiffusionMLM
from concept_encoder.eval.concepts.attention import concept_reading
from concept_encoder.trainers.objectives.collators import DataCollatorForReconstruction


@pytest.fixture
def batches(tokenizer) -> list[dict[str, Tensor]]:
    examples = random_examples(tokenizer, rows=7, longest=18)
    pad = DataCollatorForReconstruction(tokenizer).pad
    return [pad(examples[:4]), pad(examples[4:])]


def make_model(tokenizer, **changes) -> ConceptEncoderForDiffusionMLM:
    torch.manual_seed(0)
    names = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    names |= {"mask_token_id": tokenizer.mask_token_id, "bos_token_id": None, "eos_token_id": None}
    return randomised(ConceptEncoderForDiffusionMLM(tiny_config(**names, **changes)))


def documents(batches: list[dict[str, Tensor]]) -> list[Tensor]:
    return [ids[mask.bool()] for batch in batches for ids, mask in zip(*batch.values(), strict=True)]


def attention_by_hand(attention: nn.Module, queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """(Q, K) softmax weights of one document, mean over heads."""
    q, k = (
        part.view(len(part), heads, -1).transpose(0, 1) for part in (attention.q_proj(queries), attention.k_proj(keys))
    )
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1).mean(0)


@torch.no_grad()
def read_by_hand(model: ConceptEncoderForDiffusionMLM, ids: Tensor, special: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (C, n) and (n, C) of a model with one layer on each side, for one document without padding."""
    config, layer, reader = model.config, model.encoder.layers[0], model.decoder.layers[0]
    tokens = model.encoder.embeddings(ids[None], None, torch.arange(len(ids))[None])[0]
    queries = layer.cross_attn_norm(model.encoder.latents.weight)
    read = attention_by_hand(layer.cross_attn, queries, tokens, config.num_attention_heads)
    concepts = model.encoder(ids[None]).last_hidden_state[0]
    masked = torch.where(special, ids, config.mask_token_id)
    scale, shift, *_ = reader.modulation(model.decoder.timestep_embedding(torch.ones(1), torch.float32)).chunk(6, -1)
    positions = (
        reader.cross_attn_norm(model.decoder.embeddings(masked[None], None, torch.arange(len(ids))[None])[0])
        * (1 + scale)
        + shift
    )
    return read, attention_by_hand(reader.cross_attn, positions, concepts, config.num_attention_heads)


def entropy(weights: np.ndarray) -> float:
    return float(-np.sum(weights * np.log2(weights)))


def test_equals_attention_computed_by_hand(tokenizer, batches) -> None:
    model = make_model(tokenizer, num_hidden_layers=1, decoder_num_hidden_layers=1)
    result = concept_reading(model.encoder, model.decoder, tokenizer, batches)
    special = torch.tensor(tokenizer.all_special_ids)
    texts = documents(batches)
    by_hand = [read_by_hand(model, ids, torch.isin(ids, special)) for ids in texts]
    text = [~torch.isin(ids, special) for ids in texts]
    count = len(texts)
    for c, row in enumerate(result.concepts):
        assert row.index == c
        read = [weights[c].double().numpy() for weights, _ in by_hand]
        assert row.entropy_bits == pytest.approx(np.mean([entropy(w) for w in read]), rel=1e-4)
        places = [w @ np.linspace(0, 1, len(w)) for w in read]
        assert row.mean_position == pytest.approx(np.mean(places), rel=1e-4)
        mass = np.zeros(len(tokenizer))
        for ids, w in zip(texts, read, strict=True):
            np.add.at(mass, ids.numpy(), w / count)
        top = np.argsort(-mass)[:10]
        assert [token for token, _ in row.top_tokens] == tokenizer.convert_ids_to_tokens(top.tolist())
        assert [share for _, share in row.top_tokens] == pytest.approx(mass[top], rel=1e-4)
        assert row.special_share == pytest.approx(mass[tokenizer.all_special_ids].sum(), rel=1e-4)
        readers = [w[rows, c].double().numpy() for (_, w), rows in zip(by_hand, text, strict=True)]
        assert row.share_read == pytest.approx(np.concatenate(readers).mean(), rel=1e-4)
        spread = np.mean([entropy(w / w.sum()) for w in readers])
        assert row.read_by_entropy_bits == pytest.approx(spread, rel=1e-4)
    assert sum(row.share_read for row in result.concepts) == pytest.approx(1)
    assert result.num_documents == count

    example = result.example
    assert example.tokens == tokenizer.convert_ids_to_tokens(texts[0].tolist())
    np.testing.assert_allclose(example.encoder_weights, by_hand[0][0], atol=1e-4)
    np.testing.assert_allclose(example.decoder_weights, by_hand[0][1], atol=1e-4)


def test_attention_that_spreads_evenly_is_the_null(tokenizer, batches) -> None:
    model = make_model(tokenizer, decoder_context="latent")
    for module in model.modules():
        if hasattr(module, "q_proj"):
            module.q_proj.weight.data.zero_()
            module.q_proj.bias.data.zero_()
    result = concept_reading(model.encoder, model.decoder, tokenizer, batches)
    uniform, lengths = result.uniform, [len(ids) for ids in documents(batches)]
    assert uniform.entropy_bits == pytest.approx(np.mean(np.log2(lengths)))
    assert uniform.mean_position == pytest.approx(0.5)
    assert uniform.share_read == pytest.approx(1 / 6)
    assert uniform.special_share == pytest.approx(np.mean([2 / n for n in lengths]))  # [CLS] and [SEP] of each
    assert uniform.read_by_entropy_bits == pytest.approx(np.mean(np.log2(np.array(lengths) - 2)))
    for row in result.concepts:
        for name in ("entropy_bits", "mean_position", "share_read", "special_share", "read_by_entropy_bits"):
            assert getattr(row, name) == pytest.approx(getattr(uniform, name), rel=1e-4)
        assert dict(row.top_tokens[:2]) == pytest.approx(dict(uniform.top_tokens[:2]), rel=1e-4)


def test_special_tokens_stay_and_are_named(tokenizer, batches) -> None:
    model = make_model(tokenizer)
    result = concept_reading(model.encoder, None, tokenizer, batches)
    assert result.special_tokens == tokenizer.convert_ids_to_tokens(tokenizer.all_special_ids)
    assert {token for token, _ in result.uniform.top_tokens} >= {"[CLS]", "[SEP]"}


def test_padding_and_batches_do_not_matter(tokenizer) -> None:
    model = make_model(tokenizer)
    examples = random_examples(tokenizer, rows=5, longest=20)
    collator = DataCollatorForReconstruction(tokenizer)
    alone = [collator.pad([example]) for example in examples]
    wider = {name: torch.nn.functional.pad(values, (0, 9)) for name, values in collator.pad(examples).items()}
    padded = concept_reading(model.encoder, model.decoder, tokenizer, [wider])
    single = concept_reading(model.encoder, model.decoder, tokenizer, alone)
    for left, right in zip(padded.concepts, single.concepts, strict=True):
        left, right = vars(left), vars(right)
        left_top, right_top = left.pop("top_tokens"), right.pop("top_tokens")
        assert left == pytest.approx(right, rel=1e-4)
        assert left_top[0][1] == pytest.approx(right_top[0][1], rel=1e-4)
    assert padded.example.tokens == single.example.tokens
    assert "[PAD]" not in padded.example.tokens


def test_without_a_decoder_its_figures_are_none(tokenizer, batches) -> None:
    model = make_model(tokenizer)
    both = concept_reading(model.encoder, model.decoder, tokenizer, batches)
    encoder_only = concept_reading(model.encoder, None, tokenizer, batches)
    assert encoder_only.example.decoder_weights is None
    for full, row in zip(both.concepts, encoder_only.concepts, strict=True):
        assert row.share_read is row.read_by_entropy_bits is None
        assert row == replace(full, share_read=None, read_by_entropy_bits=None)


def test_attention_implementation_is_put_back(tokenizer, batches) -> None:
    model = make_model(tokenizer)
    assert model.config._attn_implementation == "sdpa"
    concept_reading(model.encoder, model.decoder, tokenizer, batches)
    for part in (model, model.encoder, model.decoder):
        assert part.config._attn_implementation == "sdpa"


def test_slot_attention_is_read_too(tokenizer, batches) -> None:
    model = make_model(tokenizer, concept_attention="slot")
    example = concept_reading(model.encoder, model.decoder, tokenizer, batches).example
    np.testing.assert_allclose(np.sum(example.encoder_weights, axis=1), 1, atol=2e-3)


def test_the_example_is_cut(tokenizer) -> None:
    model = make_model(tokenizer)
    long = DataCollatorForReconstruction(tokenizer).pad([{"input_ids": [tokenizer.cls_token_id, *[9] * 38]}])
    example = concept_reading(model.encoder, model.decoder, tokenizer, [long]).example
    assert np.shape(example.encoder_weights) == (6, 32)
    assert np.shape(example.decoder_weights) == (32, 6)
    assert len(example.tokens) == 32


def test_text_without_anything_to_rebuild(tokenizer) -> None:
    model = make_model(tokenizer)
    empty = DataCollatorForReconstruction(tokenizer).pad([{"input_ids": [tokenizer.cls_token_id]}])
    row = concept_reading(model.encoder, model.decoder, tokenizer, [empty]).concepts[0]
    assert row.top_tokens == [("[CLS]", pytest.approx(1))]
    assert row.entropy_bits == pytest.approx(0, abs=1e-6)
    assert row.share_read is None


def test_no_batches(tokenizer) -> None:
    model = make_model(tokenizer)
    with pytest.raises(ValueError, match="no batches to read"):
        concept_reading(model.encoder, model.decoder, tokenizer, [])
