import math

import pytest
import torch
from helpers import randomised

from concept_encoder import ConceptEncoderForDiffusionMLM, ConceptEncoderModel
from concept_encoder.eval.concepts import sampling
from concept_encoder.scripts.generate import main

TEXTS = ["the cat saw a dog", "a girl went to the old garden"]


@pytest.fixture
def sampler(pretrained):
    """Random weights that matter, a decoder that reads visible tokens, and the tokenizer of the checkpoint."""
    _, tokenizer = sampling.load_sampler(str(pretrained))
    config = ConceptEncoderForDiffusionMLM.from_pretrained(pretrained).config
    config.decoder_context, config.bos_token_id, config.eos_token_id = "latent", *tokenizer("").input_ids
    return randomised(ConceptEncoderForDiffusionMLM(config)), tokenizer


@pytest.fixture
def generated(sampler, monkeypatch):
    """What `generate` got and gave, call by call."""
    calls, generate = [], sampler[0].generate

    def record(*args, **kwargs):
        calls.append({"args": args, **kwargs, "out": generate(*args, **kwargs)})
        return calls[-1]["out"]

    monkeypatch.setattr(sampler[0], "generate", record)
    return calls


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.slow
def test_reconstruction_has_the_text_s_own_length_and_no_special_token(sampler, generated):
    texts = sampling.reconstruct(*sampler, TEXTS, generator=seeded(), num_steps=4)
    assert texts == sampling.reconstruct(*sampler, TEXTS, generator=seeded(), num_steps=4)
    assert texts != sampling.reconstruct(*sampler, TEXTS, generator=seeded(1), num_steps=4)
    out, mask = generated[0]["out"], generated[0]["attention_mask"]
    assert mask.sum(-1).tolist() == [7, 9]
    specials = [sampler[1].mask_token_id, sampler[1].pad_token_id]
    assert not torch.isin(out[mask.bool()], torch.tensor(specials)).any()
    assert not any("[" in text for text in texts)


@pytest.mark.slow
def test_infilling_keeps_the_other_words(sampler):
    (text,) = sampling.infill(*sampler, ["the [MASK] saw a [MASK]"], generator=seeded(), order="ancestral")
    words = text.split()
    assert [words[0], *words[2:4]] == ["the", "saw", "a"] and len(words) == 5
    with pytest.raises(ValueError, match=r"infilling needs \[MASK\] in every text, got 'a dog'"):
        sampling.infill(*sampler, ["the [MASK]", "a dog"])


@pytest.mark.slow
def test_a_text_s_own_mask_is_plain_characters_elsewhere(sampler, generated):
    sampling.reconstruct(*sampler, ["a [MASK] dog"])
    assert not (generated[0]["input_ids"] == sampler[1].mask_token_id).any()


def test_continuation_keeps_the_prefix_and_adds_that_many_tokens(sampler, generated):
    texts = sampling.continue_texts(*sampler, TEXTS, 4, generator=seeded(), num_steps=2)
    assert all(text.startswith(prefix) for text, prefix in zip(texts, TEXTS, strict=True))
    _, mask, concepts, canvas = generated[0]["args"]
    bos, eos, blank = sampler[0].config.bos_token_id, sampler[0].config.eos_token_id, sampler[0].config.mask_token_id
    assert mask.sum(-1).tolist() == [7 + 4, 9 + 4]
    assert canvas[1].tolist()[-5:] == [blank] * 4 + [eos] and canvas[0, 0] == bos and (canvas[0] == eos).sum() == 1
    alone = sampler[1](TEXTS[0], return_tensors="pt").input_ids
    torch.testing.assert_close(concepts[:1], sampler[0].encoder(alone).last_hidden_state)
    with pytest.raises(ValueError, match="num_tokens must be at least 1, got 0"):
        sampling.continue_texts(*sampler, TEXTS, 0)


def test_continuation_behind_the_prefix_has_a_canvas_of_new_tokens_alone(sampler, generated):
    texts = sampling.continue_texts(*sampler, TEXTS, 4, rest_only=True, generator=seeded(), num_steps=2)
    blank, eos = sampler[0].config.mask_token_id, sampler[0].config.eos_token_id
    assert generated[0]["args"][3].tolist() == [[blank] * 4 + [eos]] * 2
    assert all(text.startswith(prefix) for text, prefix in zip(texts, TEXTS, strict=True))


@pytest.mark.slow
def test_the_ends_of_an_interpolation_are_the_reconstructions(sampler, generated):
    options = {"temperature": 0.0, "num_steps": 3}
    texts = sampling.interpolate(*sampler, *TEXTS, 5, **options)
    assert [texts[0], texts[-1]] == sampling.reconstruct(*sampler, TEXTS, **options)
    assert generated[0]["args"][1].sum(-1).tolist() == [7, 8, 8, 8, 9]
    with pytest.raises(ValueError, match="num_texts must be at least 2, the two ends, got 1"):
        sampling.interpolate(*sampler, *TEXTS, 1)


@pytest.mark.slow
def test_swapping_every_concept_swaps_the_texts_but_not_their_lengths(sampler, generated):
    options = {"temperature": 0.0, "num_steps": 3}
    sampling.swap(*sampler, *TEXTS, range(4), **options)
    sampling.swap(*sampler, *reversed(TEXTS), range(4), **options)
    first, second = (call["args"][2] for call in generated)
    torch.testing.assert_close(first, second.flip(0))
    assert generated[0]["args"][1].sum(-1).tolist() == [7, 9]


def test_slerp_follows_the_arc():
    a, b = torch.tensor([[2.0, 0.0], [3.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 2.0], [3.0, 0.0], [-1.0, 0.0]])
    half = sampling.slerp_concepts(a, b, 0.5)
    torch.testing.assert_close(half[0], torch.full((2,), math.sqrt(2)))  # a quarter turn, halved, at the same norm
    third = sampling.slerp_concepts(a, b, 1 / 3)[0]
    torch.testing.assert_close(third, 2 * torch.tensor([math.cos(math.pi / 6), math.sin(math.pi / 6)]))
    torch.testing.assert_close(half[1:], torch.tensor([[3.0, 0.0], [0.0, 0.0]]))  # no arc: the straight line
    for share, end in ((0, a), (1, b)):
        torch.testing.assert_close(sampling.slerp_concepts(a, b, share), end, atol=1e-6, rtol=0)


def test_swapping_takes_the_named_concepts_and_leaves_the_originals():
    a, b = torch.zeros(4, 2), torch.ones(4, 2)
    first, second = sampling.swap_concepts(a, b, [1, 3])
    assert first[:, 0].tolist() == [0, 1, 0, 1] and second[:, 0].tolist() == [1, 0, 1, 0]
    assert not a.any() and b.all()
    for indices, named in (([0, 4], r"\[4\]"), ([-1], r"\[-1\]"), ([], r"\[\]")):
        with pytest.raises(ValueError, match=r"indices in \[0, 4\), got " + named):
            sampling.swap_concepts(a, b, indices)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "count"),
    [
        (["reconstruct"], 2),
        (["infill"], 2),
        (["continue", "--num_tokens", "3"], 2),
        (["continue", "--num_tokens", "3", "--rest_only"], 2),
        (["interpolate", "--num_texts", "4", "--order", "blocks", "--block_length", "3"], 4),
        (["swap", "--swap_concepts", "0", "2", "--top_k", "5"], 2),
    ],
)
def test_script_prints_one_text_per_line(pretrained, mode, count, capsys):
    texts = ["a [MASK] dog", "the [MASK]"] if mode[0] == "infill" else TEXTS
    argv = [str(pretrained), "--mode", *mode, "--num_steps", "3", "--texts", *texts]
    printed = []
    for seed in ("5", "5", "6"):
        main([*argv, "--seed", seed])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != printed[2]
    assert len(printed[0].splitlines()) == count


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--mode", "reconstruct", "--num_tokens", "3"], "num_tokens belongs to mode continue, which needs it"),
        (["--mode", "infill", "--rest_only"], "rest_only belongs to mode continue"),
        (["--mode", "continue"], "num_tokens belongs to mode continue, which needs it"),
        (["--mode", "swap"], "swap_concepts belongs to mode swap"),
        (["--mode", "interpolate", "--num_texts", "3"], "mode interpolate needs two texts, got 1"),
        (["--mode", "infill"], "infilling needs [MASK] in every text, got 'a dog'"),
        (["--mode", "reconstruct", "--order", "random"], "order must be 'confidence', 'ancestral' or 'blocks'"),
        (["--mode", "reconstruct", "--top_p", "0"], "0 < top_p <= 1"),
        (["--mode", "continue", "--num_tokens", "90"], "longer than max_position_embeddings (64)"),
        (["--mode", "rebuild"], "invalid choice: 'rebuild'"),
    ],
)
def test_script_ends_bad_input_as_one_line(pretrained, argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(pretrained), *argv, "--texts", "a dog"])
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_only_a_pretraining_checkpoint_can_be_sampled_from(pretrained, tmp_path):
    with pytest.raises(FileNotFoundError, match="No checkpoint folder"):
        sampling.load_sampler(str(tmp_path / "none"))
    ConceptEncoderModel.from_pretrained(pretrained).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="was saved by ConceptEncoderModel; only ConceptEncoderForDiffusionMLM has a"):
        sampling.load_sampler(str(tmp_path))


@pytest.mark.slow
def test_a_tokenizer_with_another_mask_is_refused(pretrained, tmp_path):
    model, tokenizer = sampling.load_sampler(str(pretrained))
    model.config.mask_token_id += 1
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"mask_token_id \d+, the model \d+; save the tokenizer"):
        sampling.load_sampler(str(tmp_path))
