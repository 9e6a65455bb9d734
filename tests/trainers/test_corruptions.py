import pytest
import torch
from helpers import random_examples, randomised, tiny_config

from concept_encoder import ConceptEncoderForDiffusionMLM
from concept_encoder.trainers.objectives.collators import DataCollatorForReconstruction
from concept_encoder.trainers.objectives.corruptions import CORRUPTIONS, Diffusion, build_corruption, pack


def collator(tokenizer, name, **settings):
    return DataCollatorForReconstruction(tokenizer, CORRUPTIONS[name](**settings))


def long_texts(tokenizer, rows=200, columns=500):
    """100,000 distinguishable content tokens: column n of every row holds the same id."""
    first = max(tokenizer.all_special_ids) + 1
    ids = (first + torch.arange(columns) % (len(tokenizer) - first)).expand(rows, columns)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def drawn(tokenizer, name, batch, **settings):
    each = collator(tokenizer, name, **settings)
    return each.corrupt(batch, each.draw(batch, step=0))


def share(mask):
    return mask.float().mean().item()


def test_realised_rate_of_masked_language_modelling(tokenizer):
    batch = long_texts(tokenizer)
    out = drawn(tokenizer, "mlm", batch, masking_rate=0.15)
    masked = out["labels"] != -100
    assert share(masked) == pytest.approx(0.15, abs=0.01)
    assert torch.equal(out["input_ids"] == tokenizer.mask_token_id, masked)  # all of them [MASK], and nothing else is
    assert torch.equal(out["input_ids"][~masked], batch["input_ids"][~masked])
    assert set(out) == {"input_ids", "attention_mask", "labels", "loss_weights", "num_items"}


def test_realised_rate_of_deletion_and_the_order_of_what_is_left(tokenizer):
    batch = long_texts(tokenizer)
    out = drawn(tokenizer, "tsdae", batch, deletion_rate=0.6)
    assert out["attention_mask"].sum().item() / batch["attention_mask"].sum().item() == pytest.approx(0.4, abs=0.01)
    assert torch.equal(out["labels"], batch["input_ids"])
    for row in range(5):
        left = iter(batch["input_ids"][row].tolist())
        kept = out["input_ids"][row][out["attention_mask"][row].bool()].tolist()
        assert all(token in left for token in kept)  # a subsequence


def test_deletion_keeps_special_tokens_and_one_other(tokenizer):
    examples = random_examples(tokenizer, rows=30, longest=6)
    out = collator(tokenizer, "tsdae", deletion_rate=0.99)(examples)
    for ids, mask in zip(out["input_ids"], out["attention_mask"], strict=True):
        kept = ids[mask.bool()].tolist()
        assert kept[0] == tokenizer.cls_token_id and kept[-1] == tokenizer.sep_token_id and len(kept) >= 3
        assert (ids[~mask.bool()] == tokenizer.pad_token_id).all()
    real = out["labels"] != -100
    assert real.sum(-1).tolist() == [len(example["input_ids"]) for example in examples]
    assert (out["decoder_input_ids"] == tokenizer.mask_token_id).all()  # no id can leak
    assert torch.equal(out["num_items"], real.sum(-1))


def test_prefix_and_rest_are_the_text_and_share_nothing(tokenizer):
    examples = random_examples(tokenizer, rows=40)
    out = collator(tokenizer, "prefix")(examples)
    for row, example in enumerate(examples):
        prefix = out["input_ids"][row][out["attention_mask"][row].bool()].tolist()
        real = out["decoder_attention_mask"][row].bool()
        labels, seen = out["labels"][row][real], out["decoder_input_ids"][row][real]
        rest = torch.where(labels == -100, seen, labels).tolist()
        assert prefix + rest == example["input_ids"]
        assert 0.3 * len(example["input_ids"]) - 1 < len(prefix) < 0.5 * len(example["input_ids"])
        assert real[: len(rest)].all()  # positions count from the first token of the rest
        assert (out["labels"][row][~real] == -100).all()


def test_realised_shares_of_the_prefix(tokenizer):
    batch = long_texts(tokenizer)
    out = drawn(tokenizer, "prefix", batch)
    lengths = out["attention_mask"].sum(-1) / 500
    assert lengths.min() >= 0.29 and lengths.max() < 0.5
    assert lengths.mean().item() == pytest.approx(0.4, abs=0.01)
    masked = (out["labels"] != -100).sum(-1) / out["decoder_attention_mask"].sum(-1)
    torch.testing.assert_close(masked, out["timesteps"], atol=0.15, rtol=0)
    assert masked.mean().item() == pytest.approx(0.5, abs=0.01)  # timesteps are spread evenly over (0, 1]
    assert torch.equal(out["num_items"], out["decoder_attention_mask"].sum(-1))  # the bound's denominator


def test_the_two_views_are_masked_at_their_rates_and_apart(tokenizer):
    batch = long_texts(tokenizer)
    out = drawn(tokenizer, "two_view", batch)
    light = out["input_ids"] == tokenizer.mask_token_id
    heavy = out["decoder_input_ids"] == tokenizer.mask_token_id
    assert torch.equal(heavy, out["labels"] != -100)
    assert share(light) == pytest.approx(0.225, abs=0.01) and share(heavy) == pytest.approx(0.6, abs=0.01)
    assert light.float().mean(-1).min() > 0.1 and light.float().mean(-1).max() < 0.36
    assert heavy.float().mean(-1).min() > 0.43 and heavy.float().mean(-1).max() < 0.77
    # Drawn independently: both masks meet as often as chance says.
    assert share(light & heavy) == pytest.approx(share(light) * share(heavy), abs=0.01)
    torch.testing.assert_close(heavy.float().mean(-1), out["timesteps"], atol=0.1, rtol=0)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_noise_is_a_function_of_its_key_and_of_the_text(tokenizer, name):
    each = collator(tokenizer, name)
    examples = random_examples(tokenizer, rows=6)
    batch = each.pad(examples)
    first, again, other = (each.corrupt(batch, each.draw(batch, step, 1, 2, 4)) for step in (5, 5, 6))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(first[key].shape != other[key].shape or not torch.equal(first[key], other[key]) for key in first)
    together, alone = each(examples), each(examples[2:3])
    for key, value in alone.items():
        mine = together[key][2:3]
        assert torch.equal(mine[:, : value.shape[1]] if value.dim() > 1 else mine, value), key


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_special_tokens_are_rebuilt_only_where_everything_is(tokenizer, name):
    out = collator(tokenizer, name)(random_examples(tokenizer))
    special = torch.isin(out["labels"], torch.tensor(tokenizer.all_special_ids))
    assert special.any() == (name == "tsdae")


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_position_share_is_unbiased(tokenizer, name):
    batch = long_texts(tokenizer, rows=60)
    whole = collator(tokenizer, name)
    part = DataCollatorForReconstruction(tokenizer, CORRUPTIONS[name](position_share=0.25))
    noise = whole.draw(batch, step=0)
    every, some = whole.corrupt(batch, noise), part.corrupt(batch, noise)
    scored, rebuilt = some["labels"] != -100, every["labels"] != -100
    assert not (scored & ~rebuilt).any() and torch.equal(some["num_items"], every["num_items"])
    assert scored.sum().item() / rebuilt.sum().item() == pytest.approx(0.25, abs=0.03)
    assert some["loss_weights"].sum().item() == pytest.approx(every["loss_weights"].sum().item(), rel=0.1)
    assert (some["loss_weights"][scored] == 4 * every["loss_weights"][scored]).all()


def test_pack_moves_what_is_kept_to_the_left():
    keep = torch.tensor([[True, False, True, True], [False, False, True, False]])
    real, packed = pack(keep, (torch.arange(8).view(2, 4), 99))
    assert packed.tolist() == [[0, 2, 3], [6, 99, 99]] and real.tolist() == [[True] * 3, [True, False, False]]
    assert pack(torch.zeros(2, 3, dtype=torch.bool))[0].shape == (2, 1)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_head_rebuilds_what_its_corruption_asks_for(tokenizer, name):
    corruption = CORRUPTIONS[name]()
    config = tiny_config(vocab_size=len(tokenizer), mask_token_id=tokenizer.mask_token_id, **corruption.needs)
    batch = collator(tokenizer, name)(random_examples(tokenizer, longest=30))
    items = batch.pop("num_items")
    output = corruption.head(config).eval()(**batch, num_items_in_batch=items.sum())
    assert output.loss.isfinite() and output.logits.shape == (*batch["labels"].shape, len(tokenizer))


def test_deletion_reaches_the_decoder_through_the_concepts_alone(tokenizer):
    """Two texts whose survivors are the same give the same logits, however much was deleted."""
    corruption = CORRUPTIONS["tsdae"]()
    config = tiny_config(vocab_size=len(tokenizer), mask_token_id=tokenizer.mask_token_id, **corruption.needs)
    model = randomised(corruption.head(config))
    each = DataCollatorForReconstruction(tokenizer, corruption)
    batch = each.pad(random_examples(tokenizer, rows=1, longest=30))
    noise = each.draw(batch, step=0)
    out = each.corrupt(batch, noise)
    first = max(tokenizer.all_special_ids) + 1
    deleted = (batch["input_ids"] >= first) & (1 - noise.tokens[0] >= 0.4)
    others = first + (batch["input_ids"] + 1 - first) % 20
    other = {**batch, "input_ids": torch.where(deleted, others, batch["input_ids"])}
    again = each.corrupt(other, noise)
    assert torch.equal(again["input_ids"], out["input_ids"]) and not torch.equal(again["labels"], out["labels"])
    inputs = [{k: v for k, v in b.items() if k not in ("labels", "loss_weights", "num_items")} for b in (out, again)]
    with torch.no_grad():
        logits = [model(**each_input).logits for each_input in inputs]
        moved = model(**{**inputs[0], "input_ids": inputs[0]["input_ids"].flip(-1)}).logits
    assert torch.equal(*logits)
    assert not torch.allclose(logits[0], moved)


@pytest.mark.parametrize("context", ["none", "latent"])
def test_the_rest_never_reaches_the_encoder_nor_the_prefix_the_decoder(tokenizer, context):
    config = tiny_config(
        vocab_size=len(tokenizer), mask_token_id=tokenizer.mask_token_id, decoder_context=context, num_concepts=4
    )
    model = randomised(ConceptEncoderForDiffusionMLM(config))
    each = collator(tokenizer, "prefix")
    batch = each.pad(random_examples(tokenizer, rows=4, longest=30))
    noise = each.draw(batch, step=0)
    out = each.corrupt(batch, noise)
    lengths = out["attention_mask"].sum(-1, keepdim=True)
    rest = (torch.arange(batch["input_ids"].shape[1]) >= lengths) & (
        batch["input_ids"] > max(tokenizer.all_special_ids)
    )
    again = each.corrupt({**batch, "input_ids": torch.where(rest, len(tokenizer) - 1, batch["input_ids"])}, noise)
    assert torch.equal(again["input_ids"], out["input_ids"])
    with torch.no_grad():
        concepts = [model.encoder(b["input_ids"], b["attention_mask"]).last_hidden_state for b in (out, again)]
        assert torch.equal(*concepts)
        # Padding behind the rest changes nothing, so its mask is the one that the decoder uses.
        inputs = {k: out[k] for k in ("input_ids", "attention_mask", "timesteps")}
        ids, mask = out["decoder_input_ids"], out["decoder_attention_mask"]
        short = model(**inputs, decoder_input_ids=ids, decoder_attention_mask=mask).logits
        wide_ids = torch.nn.functional.pad(ids, (0, 3), value=tokenizer.pad_token_id)
        wide_mask = torch.nn.functional.pad(mask, (0, 3))
        wide = model(**inputs, decoder_input_ids=wide_ids, decoder_attention_mask=wide_mask).logits
    torch.testing.assert_close(wide[:, : ids.shape[1]], short)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("diffusion", {"t_min": 0.5, "t_max": 0.5}, "0 <= t_min < t_max <= 1, got t_min=0.5, t_max=0.5"),
        ("diffusion", {"t_min": -0.1}, "got t_min=-0.1"),
        ("diffusion", {"t_max": 1.5}, "t_max=1.5"),
        ("diffusion", {"schedule": "square"}, "Unknown noise schedule 'square'"),
        ("diffusion", {"t_sampling": "sobol"}, "t_sampling must be .* got 'sobol'"),
        ("diffusion", {"weighting": "snr"}, "weighting must be .* got 'snr'"),
        ("mlm", {"masking_rate": 0.0}, r"masking_rate must be in \(0, 1\), got 0.0"),
        ("tsdae", {"deletion_rate": 1.0}, r"deletion_rate must be in \(0, 1\), got 1.0"),
        ("prefix", {"min_prefix": 0.6}, "min_prefix and max_prefix need 0 < min <= max < 1, got 0.6 and 0.5"),
        ("two_view", {"max_decoder_rate": 1.0}, "max_decoder_rate need 0 < min <= max < 1, got 0.5 and 1.0"),
    ],
)
def test_bad_settings_are_named(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        CORRUPTIONS[name](**kwargs)


def test_a_model_that_cannot_undo_it_is_named():
    with pytest.raises(ValueError, match=r"'tsdae' needs decoder_query='position', got 'token\+position'; set it in"):
        CORRUPTIONS["tsdae"]().check(tiny_config())
    CORRUPTIONS["tsdae"]().check(tiny_config(decoder_query="position"))
    Diffusion().check(tiny_config())


def test_an_unknown_corruption_is_named():
    with pytest.raises(ValueError, match=r"Unknown corruption 'noise'\. Available: diffusion, mlm, tsdae, prefix, "):
        build_corruption("noise")
