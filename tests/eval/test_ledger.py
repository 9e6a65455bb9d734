"""Concept ledger: models whose answer is known in closed form, a naive recomputation, and every message."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import random_examples, randomised, tiny_config
from torch import nn

from concept_encoder import ConceptEncoderForDiffusionMLM
from concept_encoder.eval.concepts.ledger import (
    LEAVE_ONE_OUT_DOCUMENTS,
    concept_ledger,
    concepts_for_90_percent,
    derangement,
)
from concept_encoder.trainers.objectives.collators import DataCollatorForReconstruction
from concept_encoder.utils.results import BitsPerToken, Figure

NOTHING = Figure(value=0, interval=(0, 0))

BETA = 6.0


def make_batches(tokenizer, examples: list[dict], batch_size: int) -> list[dict[str, torch.Tensor]]:
    pad = DataCollatorForReconstruction(tokenizer).pad
    return [pad(examples[start : start + batch_size]) for start in range(0, len(examples), batch_size)]


def make_model(tokenizer, **changes) -> ConceptEncoderForDiffusionMLM:
    torch.manual_seed(0)
    names = {"pad_token_id": tokenizer.pad_token_id, "mask_token_id": tokenizer.mask_token_id}
    names |= {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    return ConceptEncoderForDiffusionMLM(tiny_config(vocab_size=len(tokenizer), **names, **changes)).eval()


@torch.no_grad()
def encode(model: ConceptEncoderForDiffusionMLM, batches: list[dict[str, torch.Tensor]]) -> np.ndarray:
    return torch.cat([model.encoder(**batch).last_hidden_state for batch in batches]).numpy()


class CopyModel(nn.Module):
    """Position n reads concept n mod C, a vector over the vocabulary, as its logits: all information passes there."""

    device = torch.device("cpu")

    def forward(self, attention_mask, decoder_input_ids, timesteps, labels, concepts, row_loss) -> SimpleNamespace:
        assert attention_mask.shape == decoder_input_ids.shape and timesteps.shape == labels.shape[:1]
        places = torch.arange(labels.shape[1]) % concepts.shape[1]
        losses = nn.functional.cross_entropy(concepts[:, places].mT, labels, reduction="none", ignore_index=-100)
        return SimpleNamespace(token_losses=losses)


class DeafModel(nn.Module):
    """A fixed loss per token id: concepts are ignored."""

    device = torch.device("cpu")

    def forward(self, labels, **inputs) -> SimpleNamespace:
        return SimpleNamespace(token_losses=torch.where(labels >= 0, labels / 7.0, 0.0))


def one_word_documents(tokenizer, count: int, length: int = 12) -> tuple[list[dict], np.ndarray]:
    """Documents that repeat one word each, all different, and concepts (S, 4, V) that name it with logit BETA."""
    words = [token for token in range(len(tokenizer)) if token not in tokenizer.all_special_ids][:count]
    examples = [{"input_ids": [tokenizer.cls_token_id, *[w] * length, tokenizer.sep_token_id]} for w in words]
    concepts = np.zeros((count, 4, len(tokenizer)), dtype=np.float32)
    concepts[np.arange(count), :, words] = BETA
    return examples, concepts


def test_copy_model_takes_everything_through_the_concepts(tokenizer) -> None:
    count, vocabulary = 10, len(tokenizer)
    examples, concepts = one_word_documents(tokenizer, count)
    ledger = concept_ledger(CopyModel(), tokenizer, make_batches(tokenizer, examples, 4), concepts)
    normaliser = math.log(math.exp(BETA) + vocabulary - 1)
    true = (normaliser - BETA) / math.log(2)
    # Of the template, each of the words has logit BETA / count.
    null = math.log(count * math.exp(BETA / count) + vocabulary - count) - BETA / count
    for name, nll in (("shuffled", normaliser / math.log(2)), ("null", null / math.log(2))):
        figure = getattr(ledger.bits_per_token, name)
        assert figure.value == pytest.approx(nll - true, rel=1e-5)
        assert figure.interval == pytest.approx((nll - true, nll - true), rel=1e-5)  # every document gives the same
    assert ledger.bits_per_token.shuffled.value == pytest.approx(BETA / math.log(2), rel=1e-5)
    for row in ledger.by_timestep:
        assert row.true_nll_bits is None or row.true_nll_bits == pytest.approx(true, rel=1e-4)
        assert (row.tokens == 0) == (row.null_nll_bits is None)
    assert [row.timestep for row in ledger.by_timestep] == [k / 20 for k in range(1, 20, 2)]
    for row in ledger.by_position:
        assert row.bits_null == pytest.approx(null / math.log(2) - true, rel=1e-4)
    # Each concept serves a quarter of the positions; without it they fall back on the template.
    assert sum(ledger.leave_one_out) == pytest.approx(null / math.log(2) - true, rel=1e-4)
    assert all(lost > 0 for lost in ledger.leave_one_out)
    assert ledger.concepts_for_90_percent == 4
    assert ledger.num_documents == 10
    assert ledger.tokens == 120 == sum(row.tokens for row in ledger.by_position)


def test_a_concept_that_nobody_reads_loses_nothing(tokenizer) -> None:
    examples, concepts = one_word_documents(tokenizer, 6)
    spare = np.concatenate([concepts, np.random.default_rng(0).standard_normal((6, 20, len(tokenizer)))], axis=1)
    ledger = concept_ledger(CopyModel(), tokenizer, make_batches(tokenizer, examples, 6), spare.astype(np.float32))
    assert ledger.leave_one_out[14:] == [0] * 10  # texts end at position 13
    assert ledger.concepts_for_90_percent < 14


def test_ignored_concepts_are_worth_exactly_nothing(tokenizer) -> None:
    batches = make_batches(tokenizer, random_examples(tokenizer, rows=9), 4)
    concepts = np.random.default_rng(0).standard_normal((9, 3, 8)).astype(np.float32)
    ledger = concept_ledger(DeafModel(), tokenizer, batches, concepts)
    assert ledger.bits_per_token == BitsPerToken(shuffled=NOTHING, null=NOTHING)
    assert ledger.leave_one_out == [0, 0, 0]
    assert ledger.concepts_for_90_percent is None
    assert all(row.true_nll_bits == row.null_nll_bits > 0 for row in ledger.by_timestep if row.tokens)


@pytest.mark.slow
@pytest.mark.parametrize("context", ["none", "latent"])
def test_a_decoder_at_initialisation_takes_exactly_nothing(tokenizer, context: str) -> None:
    model = make_model(tokenizer, decoder_context=context)  # its gates are zero
    batches = make_batches(tokenizer, random_examples(tokenizer, rows=6, longest=20), 3)
    ledger = concept_ledger(model, tokenizer, batches, encode(model, batches))
    assert ledger.bits_per_token.shuffled == NOTHING
    assert ledger.bits_per_token.null.value == 0
    assert ledger.leave_one_out == [0] * 6
    assert ledger.by_timestep[-1].true_nll_bits == pytest.approx(math.log2(len(tokenizer)), rel=0.02)


@torch.no_grad()
def nll_bits(model: ConceptEncoderForDiffusionMLM, ids, noised: dict, concepts: torch.Tensor) -> torch.Tensor:
    """(N,) bits of one unpadded document, from logits in float64."""
    states = model.decoder(noised["decoder_input_ids"], concepts[None], noised["timesteps"]).last_hidden_state
    scores = model.lm_head(states).double().log_softmax(-1)
    return -scores.gather(-1, ids[..., None])[0, :, 0] / math.log(2)


@pytest.mark.slow
@pytest.mark.parametrize("context", ["none", "latent"])
def test_equals_a_document_by_document_recomputation(tokenizer, context: str) -> None:
    """Every figure of a model where everything matters, one unpadded document at a time."""
    model = randomised(make_model(tokenizer, decoder_context=context))
    examples = random_examples(tokenizer, rows=5, longest=18)
    batches = make_batches(tokenizer, examples, 2)
    concepts = encode(model, batches)
    ledger = concept_ledger(model, tokenizer, batches, concepts, seed=3)

    true = torch.from_numpy(concepts)
    template = true.mean(0)
    variants = {"true": true, "shuffled": true[torch.from_numpy(derangement(5, 3))], "null": template.expand_as(true)}
    collator = DataCollatorForReconstruction(tokenizer)
    longest = max(len(example["input_ids"]) for example in examples)
    sums, tokens = {name: np.zeros((10, longest)) for name in variants}, np.zeros((10, longest))
    lost, weight = np.zeros(6), 0.0
    for d, example in enumerate(examples):
        batch = collator.pad([example])
        ids, noise = batch["input_ids"], collator.fixed_noise(batch)
        for k in range(10):
            t = k / 10 + 0.05
            noised = collator.corrupt(batch, noise, torch.tensor([t]))
            drawn = (noised["loss_weights"] > 0)[0]
            tokens[k, : len(drawn)] += drawn.numpy()
            for name, each in variants.items():
                sums[name][k, : len(drawn)] += (nll_bits(model, ids, noised, each[d]) * drawn).numpy()
            if k == d:  # leave-one-out takes document d at grid point d
                weight += int(drawn.sum()) / t
                for c in range(6):
                    without = true[d].clone()
                    without[c] = template[c]
                    difference = nll_bits(model, ids, noised, without) - nll_bits(model, ids, noised, true[d])
                    lost[c] += float((difference * drawn).sum()) / t
    assert ledger.leave_one_out == pytest.approx(lost / weight, rel=1e-3, abs=1e-5)

    met = tokens.sum(1) > 0
    for k, row in enumerate(ledger.by_timestep):
        assert row.tokens == tokens[k].sum()
        for name in variants:
            expected = sums[name][k].sum() / tokens[k].sum() if met[k] else None
            assert getattr(row, f"{name}_nll_bits") == pytest.approx(expected, rel=1e-4)
    for name in ("shuffled", "null"):
        bits = (sums[name] - sums["true"]).sum(1)[met] / tokens.sum(1)[met]
        assert getattr(ledger.bits_per_token, name).value == pytest.approx(bits.mean(), rel=1e-3, abs=1e-5)
        low, high = getattr(ledger.bits_per_token, name).interval
        assert low < getattr(ledger.bits_per_token, name).value < high
    inverse = 1 / (np.arange(10) / 10 + 0.05)
    by_position = inverse @ (sums["null"] - sums["true"]), inverse @ tokens
    for row in ledger.by_position:
        bits, count = (each[row.first : row.last + 1].sum() for each in by_position)
        assert row.bits_null == pytest.approx(bits / count, rel=1e-3, abs=1e-5)
    assert [row.first for row in ledger.by_position[1:]] == [row.last + 1 for row in ledger.by_position[:-1]]


@pytest.mark.slow
def test_does_not_depend_on_batches_and_repeats(tokenizer) -> None:
    model = randomised(make_model(tokenizer))
    examples = random_examples(tokenizer, rows=7, longest=15)
    whole = make_batches(tokenizer, examples, 7)
    concepts = encode(model, whole)
    first = concept_ledger(model, tokenizer, whole, concepts)
    assert concept_ledger(model, tokenizer, whole, concepts) == first
    parts = concept_ledger(model, tokenizer, make_batches(tokenizer, examples, 3), concepts)
    assert parts.bits_per_token.null.value == pytest.approx(first.bits_per_token.null.value, rel=1e-4)
    assert parts.leave_one_out == pytest.approx(first.leave_one_out, rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_leave_one_out_stops_at_its_documents(tokenizer) -> None:
    examples, concepts = one_word_documents(tokenizer, 40)
    ledger = concept_ledger(CopyModel(), tokenizer, make_batches(tokenizer, examples, 24), concepts)
    assert ledger.leave_one_out_documents == LEAVE_ONE_OUT_DOCUMENTS == 32
    assert ledger.num_documents == 40
    one_batch = concept_ledger(CopyModel(), tokenizer, make_batches(tokenizer, examples, 40), concepts)
    assert one_batch.leave_one_out == pytest.approx(ledger.leave_one_out, rel=1e-6)


def test_intervals_cover_the_mean_of_documents(tokenizer) -> None:
    """Half of the documents are copied, half are not: between nothing and everything, and wide."""
    examples, concepts = one_word_documents(tokenizer, 30)
    concepts[::2] = 0
    figure = concept_ledger(CopyModel(), tokenizer, make_batches(tokenizer, examples, 15), concepts).bits_per_token
    low, high = figure.shuffled.interval
    assert 0 < low < figure.shuffled.value < high < BETA / math.log(2)
    assert high - low > 1


@pytest.mark.parametrize("count", [2, 3, 50])
def test_derangement_moves_everything(count: int) -> None:
    partner = derangement(count, seed=1)
    assert sorted(partner) == list(range(count))
    assert (partner != np.arange(count)).all()
    assert (partner == derangement(count, seed=1)).all()


def test_concepts_that_carry_the_bits() -> None:
    assert concepts_for_90_percent([0.0, 9.0, 1.0]) == 1
    assert concepts_for_90_percent([1.0] * 10) == 9
    assert concepts_for_90_percent([5.0, 5.0, -100.0]) == 2
    assert concepts_for_90_percent([0.0, -1.0]) is None
    assert concepts_for_90_percent([1e-5] * 4) is None  # noise


def test_documents_and_concepts_must_match(tokenizer) -> None:
    batches = make_batches(tokenizer, random_examples(tokenizer, rows=4), 2)
    with pytest.raises(ValueError, match="concepts of 3 documents were given for batches of 4"):
        concept_ledger(DeafModel(), tokenizer, batches, np.zeros((3, 2, 8), dtype=np.float32))
    with pytest.raises(ValueError, match=r"at least 2 documents.* got 1"):
        concept_ledger(DeafModel(), tokenizer, batches[:1], np.zeros((1, 2, 8), dtype=np.float32))


def test_nothing_to_rebuild(tokenizer) -> None:
    empty = [{"input_ids": [tokenizer.cls_token_id, tokenizer.sep_token_id]}] * 3
    with pytest.raises(ValueError, match="nothing but special tokens"):
        concept_ledger(
            DeafModel(), tokenizer, make_batches(tokenizer, empty, 3), np.zeros((3, 2, 8), dtype=np.float32)
        )
