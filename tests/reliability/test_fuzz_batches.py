"""Batches as no data set should give them, through collators, heads, objective: right numbers or a named error."""

import dataclasses
from functools import cache, partial

import pytest
import torch
from fuzzing import cases, names_one_of
from helpers import randomised, tiny_config
from hypothesis import given
from hypothesis import strategies as st

from concept_encoder import ConceptEncoderForDiffusionMLM, ConceptEncoderModel
from concept_encoder.modeling_concept import (
    ConceptEncoderForMaskedLMPerceiver,
    ConceptEncoderForSentencePairClassification,
    ConceptEncoderForSequenceClassificationPerceiver,
    ConceptEncoderForSequenceClassificationViaDecoder,
)
from concept_encoder.trainers.objectives.collators import DataCollatorForReconstruction
from concept_encoder.trainers.objectives.corruptions import CORRUPTIONS, Diffusion
from concept_encoder.trainers.objectives.objective import Objective, ObjectiveArguments
from concept_encoder.trainers.objectives.regularizers import REGULARIZERS
from concept_encoder.trainers.objectives.schedules import SCHEDULES
from concept_encoder.trainers.training.kernels import linear_cross_entropy

LONGEST = 12
HEADS = (
    ConceptEncoderModel,
    ConceptEncoderForDiffusionMLM,
    ConceptEncoderForMaskedLMPerceiver,
    ConceptEncoderForSequenceClassificationPerceiver,
    ConceptEncoderForSequenceClassificationViaDecoder,
    ConceptEncoderForSentencePairClassification,
)
VARIANTS = (
    {},
    {"concept_attention": "slot"},
    {"token_update": "bixt"},
    {"position_embedding_type": "sinusoidal", "decoder_context": "latent"},
    {"num_concepts": 1, "concept_attention": "slot", "decoder_context": "latent"},
)


@cache
def model_of(head, variant: int, attention: str):
    sizes = {"vocab_size": 16, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_concepts": 3}
    sizes |= {"num_hidden_layers": 2, "decoder_num_hidden_layers": 1, "max_position_embeddings": LONGEST}
    config = tiny_config(**{**sizes, **VARIANTS[variant]})
    config._attn_implementation = attention
    torch.manual_seed(0)
    return randomised(head(config), std=0.5)


@st.composite
def batches(draw, vocab_size: int = 16):
    """ids (B, N) and mask (B, N) or None, of any integer or boolean dtype, with holes and rows without a token."""
    rows, columns = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 5, LONGEST - 1, LONGEST]))
    tokens = st.lists(st.integers(0, vocab_size - 1), min_size=rows * columns, max_size=rows * columns)
    ids = torch.tensor(draw(tokens)).view(rows, columns).to(draw(st.sampled_from([torch.int64, torch.int32])))
    kind = draw(st.sampled_from(["none", "ones", "zeros", "holes", "holes", "empty row"]))
    if kind == "none":
        return ids, None
    mask = torch.ones_like(ids)
    if kind == "zeros":
        mask = torch.zeros_like(ids)
    elif kind == "holes":
        bits = draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns))
        mask = torch.tensor(bits).view(rows, columns)
    elif kind == "empty row":
        mask[draw(st.integers(0, rows - 1))] = 0
    return ids, mask.to(draw(st.sampled_from([torch.int64, torch.int32, torch.bool, torch.float32])))


def inputs_of(head, ids, mask) -> dict:
    if head is ConceptEncoderForSentencePairClassification:
        return {"input_ids_a": ids, "attention_mask_a": mask, "input_ids_b": ids.flip(-1), "attention_mask_b": mask}
    return {"input_ids": ids, "attention_mask": mask}


def finite(output) -> bool:
    return all(value.isfinite().all() for value in output.values() if isinstance(value, torch.Tensor))


@pytest.mark.slow
@cases(1200)
@given(
    st.sampled_from(HEADS),
    st.integers(0, len(VARIANTS) - 1),
    st.sampled_from(["eager", "sdpa"]),
    batches(),
    st.data(),
)
def test_heads_are_finite_and_deaf_to_what_is_masked(head, variant, attention, batch, data):
    ids, mask = batch
    model = model_of(head, variant, attention)
    with torch.no_grad():
        output = model(**inputs_of(head, ids, mask))
        assert finite(output)
        if mask is None:
            return
        other = torch.where(mask.bool(), ids, data.draw(st.integers(0, 15)).__int__()).to(ids.dtype)
        if head is ConceptEncoderForSentencePairClassification:
            inputs = inputs_of(head, ids, mask) | {"input_ids_a": other}
        else:
            inputs = inputs_of(head, other, mask)
        heard = model(**inputs)
    for name in ("last_hidden_state", "pooler_output", "concepts"):
        if output.get(name) is not None:
            torch.testing.assert_close(heard[name], output[name], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@cases(1000)
@given(
    st.sampled_from([ConceptEncoderForDiffusionMLM, ConceptEncoderForMaskedLMPerceiver]),
    st.integers(0, len(VARIANTS) - 1),
    batches(),
    st.sampled_from([0.0, 1e-45, 1e-30, 0.5, 1.0, None]),
    st.sampled_from([0.0, 0.3, 0.99]),
    st.sampled_from(["all", "none", "one", "some"]),
    st.booleans(),
)
def test_losses_and_gradients_are_finite(head, variant, batch, t, smoothing, labelled, training):
    ids, mask = batch
    model = model_of(head, variant, "sdpa").train(training)
    labels = ids.long().clone()
    if labelled == "none":
        labels[:] = -100
    elif labelled == "one":
        labels.view(-1)[1:] = -100
    elif labelled == "some":
        labels[:, ::2] = -100
    row_loss = partial(linear_cross_entropy, label_smoothing=smoothing)
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels, "row_loss": row_loss}
    if head is ConceptEncoderForDiffusionMLM and t is not None:
        inputs["timesteps"] = torch.full((len(ids),), t)
    model.zero_grad()
    output = model(**inputs)
    output.loss.backward()
    model.eval()
    assert output.loss.isfinite() and output.token_losses.isfinite().all()
    if labelled == "none":
        assert output.loss == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@st.composite
def examples(draw, tokenizer, longest: int = 12):
    rows = draw(st.integers(1, 4))
    ids = st.lists(st.integers(0, len(tokenizer) - 1), min_size=1, max_size=longest)
    specials = st.lists(st.sampled_from(tokenizer.all_special_ids), min_size=1, max_size=longest)
    return [{"input_ids": draw(st.one_of(ids, ids, specials))} for _ in range(rows)]


@pytest.mark.slow
@cases(1500)
@given(
    data=st.data(),
    name=st.sampled_from(sorted(CORRUPTIONS)),
    schedule=st.sampled_from(sorted(SCHEDULES)),
    weighting=st.sampled_from(["none", "elbo"]),
    share=st.sampled_from([1e-6, 0.25, 1.0]),
    step=st.integers(0, 2**31),
    t=st.sampled_from([None, 1e-38, 1e-6, 0.5, 1.0]),
    side=st.sampled_from(["left", "right"]),
)
def test_collators_give_what_they_promise(tokenizer, data, name, schedule, weighting, share, step, t, side):
    options = {"schedule": schedule, "weighting": weighting}
    fields = {field.name for field in dataclasses.fields(CORRUPTIONS[name])}
    settings = {key: value for key, value in options.items() if key in fields}
    corruption = CORRUPTIONS[name](**settings, position_share=share)
    collator = DataCollatorForReconstruction(tokenizer, corruption, seed=3)
    tokenizer.padding_side = side
    try:
        batch = collator.pad(data.draw(examples(tokenizer)))
    finally:
        tokenizer.padding_side = "right"
    rows = len(batch["input_ids"])
    noise = collator.draw(batch, step, rank=1, world_size=2)
    timesteps = None if t is None else torch.full((rows,), t)
    out = collator.corrupt(batch, noise, timesteps)
    labelled = out["labels"] != -100
    real, special = batch["attention_mask"].bool(), torch.isin(batch["input_ids"], collator._special_ids)
    assert out["input_ids"].shape == out["attention_mask"].shape and out["labels"].shape == out["loss_weights"].shape
    assert out["loss_weights"].isfinite().all() and (out["loss_weights"] >= 0).all()
    assert (out["loss_weights"][~labelled] == 0).all()
    assert (out["num_items"] >= labelled.sum(-1) * (share == 1)).all() or name in ("diffusion", "prefix")
    assert (out["attention_mask"].sum(-1) >= 1).all()
    assert ((out["input_ids"] >= 0) & (out["input_ids"] < len(tokenizer))).all()
    if name != "tsdae":  # which rebuilds special tokens too
        assert (labelled.sum(-1) <= (real & ~special).sum(-1)).all()
    if "timesteps" in out:
        assert ((out["timesteps"] >= 0) & (out["timesteps"] <= 1)).all()
    again = collator.corrupt(batch, collator.draw(batch, step, rank=1, world_size=2), timesteps)
    assert all(torch.equal(out[key], again[key]) for key in out)


@pytest.mark.slow
@cases(300)
@given(
    data=st.data(),
    name=st.sampled_from(sorted(CORRUPTIONS)),
    regularizers=st.lists(st.sampled_from(sorted(REGULARIZERS)), unique=True, max_size=3),
    contrastive=st.sampled_from([0.0, 0.1]),
    smoothing=st.sampled_from([0.0, 0.2]),
)
def test_objectives_are_finite_or_name_what_they_lack(tokenizer, data, name, regularizers, contrastive, smoothing):
    head = CORRUPTIONS[name].head
    model = objective_model(head, len(tokenizer), tokenizer.mask_token_id)
    collator = DataCollatorForReconstruction(tokenizer, CORRUPTIONS[name]())
    batch = collator.pad(data.draw(examples(tokenizer)))
    corrupted = collator.corrupt(batch, collator.draw(batch, 1))
    try:
        settings = ObjectiveArguments(
            corruption=name,
            label_smoothing=smoothing,
            regularizers=dict.fromkeys(regularizers, 0.1),
            contrastive=contrastive,
        )
        objective = Objective(settings)
        result = objective(model, corrupted, corrupted["num_items"].sum().clamp_min(1))
    except ValueError as error:
        names_one_of(error, ["enlarge the batch"])
        return
    model.zero_grad()
    result.loss.backward()
    assert result.loss.isfinite()
    assert all(total.isfinite() and count.isfinite() for total, count in result.parts.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@cache
def objective_model(head, vocab_size: int, mask_token_id: int):
    query = "position" if head is ConceptEncoderForMaskedLMPerceiver else "token+position"
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_concepts": 3}
    torch.manual_seed(0)
    config = tiny_config(vocab_size=vocab_size, mask_token_id=mask_token_id, decoder_query=query, **sizes)
    return head(config).train()


@pytest.mark.parametrize("attention", ["softmax", "slot"])
def test_a_text_without_tokens_has_finite_gradients(attention):
    model = model_of(ConceptEncoderForMaskedLMPerceiver, int(attention == "slot"), "sdpa")
    model.zero_grad()
    ids = torch.tensor([[4]])
    model(input_ids=ids, attention_mask=torch.zeros(1, 1), labels=ids).loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([[3, 16]]), r"token ids must be in \[0, 16\), got 3 to 16"),
        (torch.tensor([[-1, 3]]), r"token ids must be in \[0, 16\), got -1 to 3"),
        (torch.zeros(1, LONGEST + 1, dtype=torch.long), r"13 tokens is longer than max_position_embeddings \(12\)"),
    ],
)
def test_ids_that_no_table_has(head, ids, message):
    with pytest.raises(ValueError, match=message), torch.no_grad():
        model_of(head, 0, "sdpa")(**inputs_of(head, ids, None))


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 4), r"attention_mask must be \(2, 3\), got \(2, 4\)"),
        (torch.zeros(2, 3, dtype=torch.long), torch.ones(3), r"attention_mask must be \(2, 3\), got \(3,\)"),
        (
            torch.zeros(3, dtype=torch.long),
            None,
            r"input_ids must be \(batch, tokens\) with at least one token, got shape \(3,\)",
        ),
        (torch.zeros(2, 3), None, r"input_ids must hold integers \(int64 or int32\), got torch.float32"),
    ],
)
def test_shapes_that_fit_nothing(head, ids, mask, message):
    with pytest.raises(ValueError, match=message), torch.no_grad():
        model_of(head, 0, "sdpa")(**inputs_of(head, ids, mask))


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_texts_without_a_token_are_texts_of_padding(head):
    """Of a tokenizer without [CLS]; nothing can be rebuilt of them."""
    model = model_of(head, 0, "sdpa").eval()
    nothing, padding = torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 1, dtype=torch.long)
    with torch.no_grad():
        if "MLM" in head.__name__ or "MaskedLM" in head.__name__:
            with pytest.raises(ValueError, match=r"at least one token to rebuild, got shape \(2, 0\)"):
                model(**inputs_of(head, nothing, None))
            return
        found, wanted = (model(**inputs_of(head, ids, torch.zeros_like(ids))) for ids in (nothing, padding))
        torch.testing.assert_close(found[0], wanted[0])


DIFFUSION = {"input_ids": torch.tensor([[4, 5, 6]])}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"labels": torch.tensor([[4, 16, -100]])}, r"labels must be -100 or in \[0, 16\), got 0 to 16"),
        ({"labels": torch.tensor([[4, -1, -100]])}, r"labels must be -100 or in \[0, 16\), got -1 to 4"),
        ({"labels": torch.tensor([[4, 5]])}, r"labels must be \(1, 3\), one per decoded position, got \(1, 2\)"),
        (
            {"labels": torch.tensor([[4, 5, 6]]), "loss_weights": torch.ones(1, 4)},
            r"loss_weights must be \(1, 3\), one per decoded position, got \(1, 4\)",
        ),
        ({"timesteps": torch.tensor([0.5, 0.5])}, r"timesteps must be \(1,\), one per text, got \(2,\)"),
        ({"timesteps": torch.tensor([1.5])}, r"timesteps must be in \[0, 1\], got \[1.5\]"),
        ({"timesteps": torch.tensor([torch.nan])}, r"timesteps must be in \[0, 1\], got \[nan\]"),
    ],
)
def test_labels_weights_and_timesteps_that_fit_nothing(inputs, message):
    heads = [ConceptEncoderForDiffusionMLM]
    heads += [] if "timesteps" in inputs else [ConceptEncoderForMaskedLMPerceiver]
    for head in heads:
        with pytest.raises(ValueError, match=message):
            model_of(head, 0, "sdpa")(**DIFFUSION, **inputs)


def test_a_batch_on_another_device_says_so():
    model = model_of(ConceptEncoderModel, 0, "sdpa")
    with pytest.raises(ValueError, match="input_ids is on meta, the model is on cpu; move one with"):
        model(torch.zeros(2, 3, dtype=torch.long, device="meta"))


def test_timesteps_outside_of_their_range(tokenizer):
    collator = DataCollatorForReconstruction(tokenizer, Diffusion())
    batch = collator.pad([{"input_ids": [5, 6, 7]}])
    for t in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"timesteps must be in \(0, 1\]"):
            collator.corrupt(batch, collator.draw(batch, 0), torch.full((1,), t))
