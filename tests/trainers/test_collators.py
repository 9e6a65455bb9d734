import math

import numpy as np
import pytest
import torch
from helpers import random_examples

from concept_encoder.trainers.objectives.collators import (
    DataCollatorForReconstruction,
    noise_generator,
    visible_concept_counts,
)
from concept_encoder.trainers.objectives.corruptions import Diffusion, Noise
from concept_encoder.trainers.objectives.schedules import SCHEDULES


@pytest.fixture
def collator(tokenizer):
    return DataCollatorForReconstruction(tokenizer, Diffusion(weighting="none", t_sampling="independent"))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_realised_masking_rate_on_100k_tokens(tokenizer, schedule, t):
    collator = DataCollatorForReconstruction(tokenizer, Diffusion(schedule))
    ids = torch.full((200, 500), len(tokenizer) - 1)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    out = collator.corrupt(batch, collator.draw(batch, step=0), torch.full((200,), t))
    expected = 1 - SCHEDULES[schedule]().alpha(torch.tensor(t)).item()
    assert (out["labels"] != -100).float().mean().item() == pytest.approx(expected, abs=0.01)
    assert out["timesteps"].tolist() == pytest.approx([expected] * 200, abs=1e-6)


def test_special_tokens_and_padding_are_never_masked(collator, tokenizer):
    out = collator(random_examples(tokenizer))
    masked = out["labels"] != -100
    special = torch.isin(out["input_ids"], torch.tensor(tokenizer.all_special_ids))
    assert not (masked & special).any() and not (masked & (out["attention_mask"] == 0)).any()
    assert (out["decoder_input_ids"][masked] == tokenizer.mask_token_id).all()
    assert torch.equal(out["decoder_input_ids"][~masked], out["input_ids"][~masked])
    assert torch.equal(out["labels"][masked], out["input_ids"][masked])


def test_every_row_with_a_maskable_token_has_one_masked(collator, tokenizer):
    batch = collator.pad([*random_examples(tokenizer, rows=50), {"input_ids": [tokenizer.cls_token_id]}])
    noise = Noise(torch.zeros(1, 51), torch.rand(2, *batch["input_ids"].shape, generator=noise_generator(1)))
    out = collator.corrupt(batch, noise, torch.full((51,), 1e-4))
    per_row = (out["labels"] != -100).sum(-1)
    assert (per_row[:50] >= 1).all() and per_row[50] == 0
    assert (out["loss_weights"][out["labels"] != -100] == 1).all()


def test_elbo_weights_are_unbiased_though_a_token_is_always_masked(tokenizer):
    # The expected weight of a maskable token is E[1/t * 1(masked)] = 1 for any t, also in short rows.
    collator = DataCollatorForReconstruction(tokenizer)
    ids = torch.full((2000, 3), len(tokenizer) - 1)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    means = [collator.corrupt(batch, collator.draw(batch, step=s))["loss_weights"].mean().item() for s in range(50)]
    assert sum(means) / len(means) == pytest.approx(1, abs=0.02)
    assert (collator.corrupt(batch, collator.draw(batch, step=0))["num_items"] == 3).all()


@pytest.mark.parametrize("t_sampling", ["independent", "antithetic"])
def test_timesteps_lie_in_the_half_open_interval(tokenizer, t_sampling):
    diffusion = Diffusion(t_min=0.1, t_max=0.6, t_sampling=t_sampling)
    collator = DataCollatorForReconstruction(tokenizer, diffusion)
    batch = {"input_ids": torch.zeros(4000, 1, dtype=torch.long)}
    t = diffusion.timesteps(collator.draw(batch, step=3))
    assert t.min() > 0.1 and t.max() <= 0.6
    assert t.mean().item() == pytest.approx(0.35, abs=0.01)
    assert diffusion.timesteps(Noise(torch.zeros(1, 1), torch.zeros(2, 1, 1))).item() == pytest.approx(0.6)


def test_antithetic_timesteps_are_stratified_over_all_processes(tokenizer):
    collator = DataCollatorForReconstruction(tokenizer)
    batch = {"input_ids": torch.zeros(4, 7, dtype=torch.long)}
    drawn = [collator.draw(batch, step=5, micro_step=1, rank=r, world_size=3) for r in range(3)]
    t = torch.cat([each.rows[0] for each in drawn]).sort().values
    torch.testing.assert_close(t.diff(), torch.full((11,), 1 / 12))
    assert not torch.equal(drawn[0].tokens, drawn[1].tokens)  # the mask noise differs between processes


def test_draws_depend_on_every_part_of_the_key_and_on_nothing_else(collator):
    batch = {"input_ids": torch.zeros(4, 7, dtype=torch.long)}
    torch.manual_seed(0)
    first = collator.draw(batch, step=5, micro_step=1, rank=2, world_size=4)
    torch.manual_seed(1)
    again = collator.draw(batch, step=5, micro_step=1, rank=2, world_size=4)
    assert torch.equal(first.rows, again.rows) and torch.equal(first.tokens, again.tokens)
    for change in ({"step": 6}, {"micro_step": 0}, {"rank": 3}):
        key = {"step": 5, "micro_step": 1, "rank": 2, "world_size": 4, **change}
        assert not torch.equal(collator.draw(batch, **key).tokens, first.tokens)


def test_the_same_text_meets_the_same_noise_in_any_batch(collator, tokenizer):
    examples = random_examples(tokenizer, rows=6)
    together, alone = collator(examples), collator(examples[2:3])
    length = alone["labels"].shape[1]
    assert torch.equal(together["labels"][2:3, :length], alone["labels"])
    assert torch.equal(together["timesteps"][2:3], alone["timesteps"])


def test_uniform_model_has_a_nelbo_of_ln_v(tokenizer):
    # A model that scores every token alike has NLL ln V everywhere, so the bound is ln V per token.
    collator = DataCollatorForReconstruction(tokenizer)
    batch = collator.pad(random_examples(tokenizer, rows=512))
    total = items = 0.0
    for step in range(40):
        out = collator.corrupt(batch, collator.draw(batch, step=step))
        total += (out["loss_weights"] * (out["labels"] != -100)).sum().item() * math.log(len(tokenizer))
        items += out["num_items"].sum().item()
    assert total / items == pytest.approx(math.log(len(tokenizer)), rel=0.02)


def test_position_share_draws_that_share_of_the_same_mask(tokenizer):
    ids = torch.full((200, 500), len(tokenizer) - 1)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    whole, part = (DataCollatorForReconstruction(tokenizer, Diffusion(position_share=share)) for share in (1.0, 0.25))
    drawn = whole.draw(batch, step=0)
    all_masked, some = whole.corrupt(batch, drawn), part.corrupt(batch, drawn)
    assert torch.equal(all_masked["decoder_input_ids"], some["decoder_input_ids"])
    assert torch.equal(all_masked["num_items"], some["num_items"])
    scored, masked = some["labels"] != -100, all_masked["labels"] != -100
    assert not (scored & ~masked).any()
    assert (scored.sum() / masked.sum()).item() == pytest.approx(0.25, abs=0.005)
    # Which of them are drawn depends neither on the place nor on t.
    for half in (slice(0, 250), slice(250, 500)):
        assert (scored[:, half].sum() / masked[:, half].sum()).item() == pytest.approx(0.25, abs=0.01)
    late = all_masked["timesteps"] > 0.5
    assert (scored[late].sum() / masked[late].sum()).item() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("weighting", ["none", "elbo"])
def test_position_share_leaves_the_expected_weight_of_every_token(tokenizer, weighting):
    """Equal expected weights of each token at each t give an equal expected gradient, with any model."""
    whole, part = (
        DataCollatorForReconstruction(tokenizer, Diffusion(weighting=weighting, position_share=share))
        for share in (1.0, 0.25)
    )
    ids = torch.full((4000, 6), len(tokenizer) - 1)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    t = torch.full((4000,), 0.3)
    sums = torch.zeros(2, 6)
    for step in range(30):
        noise = whole.draw(batch, step=step)
        sums += torch.stack([each.corrupt(batch, noise, t)["loss_weights"].mean(0) for each in (whole, part)])
    torch.testing.assert_close(sums[1], sums[0], rtol=0.03, atol=0)


@pytest.mark.parametrize("token", ["mask_token", "pad_token"])
def test_a_tokenizer_without_mask_or_pad_is_refused(tokenizer, token, monkeypatch):
    monkeypatch.setattr(tokenizer, f"_{token}", None, raising=False)
    monkeypatch.setitem(tokenizer._special_tokens_map, token, None)
    with pytest.raises(ValueError, match=f"no {token}; add one with"):
        DataCollatorForReconstruction(tokenizer)


def test_an_empty_batch_is_refused(collator):
    with pytest.raises(ValueError, match="empty list of examples"):
        collator([])


def test_counts_are_uniform_over_all_prefixes():
    counts = visible_concept_counts((torch.arange(1000) + 0.5) / 1000, 8)
    assert counts.dtype == torch.long
    assert torch.bincount(counts, minlength=9).tolist() == [0, *[125] * 8]
    # A float32 product may round up to num_concepts itself.
    assert visible_concept_counts(torch.tensor([0.0, 1 - 2**-24]), 3).tolist() == [1, 3]
    assert visible_concept_counts(torch.tensor([1 - 2**-24]), 10**6).tolist() == [10**6]


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_is_the_tokenizer_s(tokenizer, side, monkeypatch):
    monkeypatch.setattr(tokenizer, "padding_side", side)
    examples = random_examples(tokenizer, rows=5)
    assert len({len(example["input_ids"]) for example in examples}) > 1
    expected = tokenizer.pad(examples, return_tensors="pt")
    arrays = [{"input_ids": np.array(example["input_ids"], dtype=np.int32), "other": 1} for example in examples]
    for rows in (examples, arrays):
        batch = DataCollatorForReconstruction(tokenizer).pad(rows)
        assert batch.keys() == {"input_ids", "attention_mask"}
        for name, values in batch.items():
            assert values.dtype == torch.long and torch.equal(values, expected[name])


def test_each_text_of_a_pair_is_padded_to_the_longest_of_its_kind(tokenizer):
    pairs = [{"input_ids": [2, 9, 3], "partner_ids": [2, 8, 8, 8, 3]}, {"input_ids": [2, 3], "partner_ids": [2, 7, 3]}]
    batch = DataCollatorForReconstruction(tokenizer).pad(pairs)
    pad = tokenizer.pad_token_id
    assert batch["input_ids"].tolist() == [[2, 9, 3], [2, 3, pad]]
    assert batch["partner_input_ids"].tolist() == [[2, 8, 8, 8, 3], [2, 7, 3, pad, pad]]
    assert batch["partner_attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]


def test_no_examples(tokenizer):
    with pytest.raises(ValueError, match="cannot collate an empty list of examples"):
        DataCollatorForReconstruction(tokenizer).pad([])
