"""`ConceptEncoderForDiffusionMLM.generate`: what is filled, in which order, and what each step reads."""

import pytest
import torch
from helpers import BOS, EOS, MASK, PAD, randomised, tiny_config, token_batch

from concept_encoder import ConceptEncoderForDiffusionMLM


def order_options(order):
    return {"order": order, "block_length": 4 if order == "blocks" else None}


@pytest.mark.slow
@pytest.mark.parametrize("order", ["confidence", "ancestral", "blocks"])
@pytest.mark.parametrize("context", ["none", "latent"])
def test_generate_fills_what_is_masked_and_keeps_the_rest(order, context):
    model = randomised(ConceptEncoderForDiffusionMLM(tiny_config(decoder_context=context)))
    ids, mask = token_batch()
    ids[:, [2, 3, 5]] = MASK
    mask[:] = 1
    mask[2, 8:] = 0
    some = {"temperature": 2.0, "num_steps": 1}
    for options in ({"temperature": 0.0}, {"top_k": 5}, {"top_p": 0.7}, some):
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


@pytest.mark.slow
def test_without_context_steps_change_nothing_but_the_timestep():
    ids, mask = token_batch()
    for context, differ in (("none", False), ("latent", True)):
        model = randomised(ConceptEncoderForDiffusionMLM(tiny_config(decoder_context=context)))
        with torch.no_grad():
            for layer in model.decoder.layers:
                layer.modulation.weight.zero_()  # gates stay open through their bias, and t says nothing
        texts = [
            model.generate(ids, mask, num_steps=steps, temperature=0.0, **order_options(order))
            for steps in (1, 2, 5, 11)
            for order in ("confidence", "blocks")
        ]
        assert any(not torch.equal(text, texts[0]) for text in texts) == differ


def test_a_text_without_anything_to_fill_comes_back():
    ids = torch.tensor([[BOS, EOS]])
    assert torch.equal(ConceptEncoderForDiffusionMLM(tiny_config()).generate(ids), ids)


@pytest.mark.slow
def test_tokenizers_that_give_segments_are_welcome():
    model = randomised(ConceptEncoderForDiffusionMLM(tiny_config()))
    ids, mask = token_batch()
    batch = {"input_ids": ids, "attention_mask": mask}
    out = model.generate(**batch, token_type_ids=torch.zeros_like(ids), temperature=0.0)
    assert torch.equal(out, model.generate(**batch, temperature=0.0))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_p": float("nan")},
        {"top_k": -1},
        {"top_k": 2.5},
        {"num_steps": 0},
        {"num_steps": 1.5},
        {"num_steps": True},
    ],
    ids=str,
)
def test_knobs_of_sampling_are_checked(options):
    model = ConceptEncoderForDiffusionMLM(tiny_config())
    with pytest.raises(ValueError, match=r"generate needs whole numbers num_steps >= 1 .* finite temperature >= 0"):
        model.generate(token_batch()[0], **options)


def test_mask_is_an_answer_to_nothing_but_generation():
    """The head scores [MASK] like any word, so that its logits are finite in any divergence."""
    model = randomised(ConceptEncoderForDiffusionMLM(tiny_config()))
    ids, mask = token_batch()
    assert model(ids, mask).logits.abs().max() < 1e4
