"""What other libraries take for granted of a head: labels, logits, masks, positions, adapters, quantised layers."""

import copy
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import BOS, EOS, MASK, PAD, randomised, tiny_config, token_batch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.utils.generic import find_labels

from concept_encoder import (
    ConceptEncoderForDiffusionMLM,
    ConceptEncoderForMaskedLMPerceiver,
    ConceptEncoderForSentencePairClassification,
    ConceptEncoderForSequenceClassificationPerceiver,
    ConceptEncoderForSequenceClassificationViaDecoder,
    ConceptEncoderModel,
)

MASKED_LMS = (ConceptEncoderForDiffusionMLM, ConceptEncoderForMaskedLMPerceiver)
CLASSIFIERS = (ConceptEncoderForSequenceClassificationPerceiver, ConceptEncoderForSequenceClassificationViaDecoder)
HEADS = (*MASKED_LMS, *CLASSIFIERS, ConceptEncoderForSentencePairClassification)
EQUAL = {"rtol": 1e-10, "atol": 1e-10}


@pytest.mark.parametrize("head", HEADS)
def test_labels_are_the_only_label(head):
    assert find_labels(head) == ["labels"]


# ------------------------------------------------------------------------------------------------------ masked LMs


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("head", MASKED_LMS)
def test_logits_have_a_row_for_each_position(head, training):
    model = randomised(head(tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))).train(training)
    ids, mask = token_batch()
    labels = torch.where(ids % 3 == 0, ids, -100)
    output = model(ids, mask, labels=labels)
    assert output.logits.shape == (*ids.shape, 120)
    torch.testing.assert_close(output.logits, model(ids, mask).logits)
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits.mT, labels))


@pytest.mark.slow
@pytest.mark.parametrize("head", MASKED_LMS)
def test_a_stock_trainer_evaluates_and_predicts(head, tmp_path):
    model = randomised(head(tiny_config()))
    ids, mask = token_batch(7)
    labels = torch.where((ids % 3 == 0) & mask.bool(), ids, -100)
    rows = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": mask.tolist(), "labels": labels.tolist()})

    def accuracy(predictions):
        logits, gold = predictions
        known = gold != -100
        return {"accuracy": (logits.argmax(-1)[known] == gold[known]).mean()}

    arguments = TrainingArguments(str(tmp_path), per_device_eval_batch_size=3, use_cpu=True, report_to="none")
    trainer = Trainer(model, arguments, eval_dataset=rows, compute_metrics=accuracy)
    figures = trainer.evaluate()
    with torch.no_grad():
        logits = model.eval()(ids, mask).logits
    rows_of = [nn.functional.cross_entropy(logits[i : i + 3].mT, labels[i : i + 3]) for i in (0, 3, 6)]
    assert figures["eval_loss"] == pytest.approx((3 * rows_of[0] + 3 * rows_of[1] + rows_of[2]).item() / 7, rel=1e-5)
    assert figures["eval_accuracy"] == (logits.argmax(-1) == labels)[labels != -100].double().mean().item()
    predictions = trainer.predict(rows).predictions
    assert isinstance(predictions, np.ndarray)
    np.testing.assert_allclose(predictions, logits.numpy(), rtol=1e-4, atol=1e-4)


# --------------------------------------------------------------------------------------------- masks and positions


def heads_and_inputs(head, ids, mask, **kwargs):
    model = randomised(head(tiny_config(num_labels=2, **kwargs)).double())
    pair = head is ConceptEncoderForSentencePairClassification
    names = ("input_ids_a", "attention_mask_a") if pair else ("input_ids", "attention_mask")
    other = {"input_ids_b": ids, "attention_mask_b": mask} if pair else {}
    return model, names, other


@pytest.mark.parametrize("context", ["none", "latent"])
@pytest.mark.parametrize("head", HEADS)
def test_a_text_is_the_same_alone_and_in_a_left_padded_batch(head, context):
    ids = torch.randint(4, 120, (1, 7), generator=torch.Generator().manual_seed(0))
    whole = torch.ones_like(ids)
    padded = nn.functional.pad(ids, (5, 0), value=PAD), nn.functional.pad(whole, (5, 0))
    model, names, other = heads_and_inputs(head, ids, whole, decoder_context=context)
    with torch.no_grad():
        alone = model(**dict(zip(names, (ids, whole), strict=True)), **other).logits
        within = model(**dict(zip(names, padded, strict=True)), **other).logits
    torch.testing.assert_close(within[:, 5:] if alone.ndim == 3 else within, alone, **EQUAL)


def test_columns_count_padding_as_the_reference_run_did():
    model = randomised(ConceptEncoderModel(tiny_config(position_counting="columns")).double())
    ids, mask = torch.randint(4, 120, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    with torch.no_grad():
        columns = model(ids, mask, torch.arange(9)[None].expand(2, -1)).last_hidden_state
        torch.testing.assert_close(model(ids, mask).last_hidden_state, columns, **EQUAL)
        model.config.position_counting = "tokens"
        assert (model(ids, mask).last_hidden_state - columns)[0].abs().max() > 1e-3


@pytest.mark.parametrize("head", MASKED_LMS)
def test_position_ids_reach_encoder_and_decoder(head):
    model = randomised(head(tiny_config()).double())
    ids, _ = token_batch()
    places = torch.arange(ids.shape[1])[None].expand_as(ids)
    with torch.no_grad():
        expected = model(ids)
        torch.testing.assert_close(model(ids, position_ids=places).logits, expected.logits, **EQUAL)
        moved = model(ids, position_ids=places + 9)
    assert (moved.concepts - expected.concepts).abs().max() > 1e-3
    states = moved.concepts, expected.concepts
    assert (moved.logits - expected.logits).abs().max() > 1e-3 and states[0].shape == states[1].shape


@pytest.mark.parametrize(
    ("mask", "named"),
    [
        (torch.tensor([[0.0, 0.0, torch.finfo(torch.float32).min]]), "torch.float32"),
        (torch.tensor([[0.0, 0.0, -torch.inf]]), "torch.float32"),
        (torch.tensor([[1.0, 0.5, 0.0]]), "torch.float32"),
        (torch.tensor([[1, 2, 0]]), "torch.int64"),
        (torch.tensor([[1, 1, -1]]), "torch.int64"),
        (torch.tensor([[1.0, torch.nan, 1.0]]), "torch.float32"),
        (torch.ones(1, 3, dtype=torch.complex64), "torch.complex64"),
    ],
)
def test_a_mask_that_is_none_is_refused(mask, named):
    with pytest.raises(ValueError, match=f"attention_mask must hold 1 for a real token .* got {named} with other"):
        ConceptEncoderModel(tiny_config())(torch.tensor([[5, 6, 7]]), mask)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.float32, torch.bfloat16])
def test_a_mask_of_any_kind_means_the_same(dtype):
    model = randomised(ConceptEncoderModel(tiny_config()))
    ids, mask = token_batch()
    expected = model(ids, mask).last_hidden_state
    torch.testing.assert_close(model(ids, mask.to(dtype)).last_hidden_state, expected)


# ------------------------------------------------------------------------------------------- a pair in one sequence


@pytest.mark.parametrize("opening", [BOS, None])
@pytest.mark.parametrize("comparison", ["features", "cosine"])
def test_a_packed_pair_is_the_pair_of_its_texts(comparison, opening):
    config = tiny_config(num_labels=1, pair_comparison=comparison, bos_token_id=opening)
    model = randomised(ConceptEncoderForSentencePairClassification(config).double())
    a, b = [[11, 12, 13], [14]], [[21, 22], [23, 24, 25, 26]]
    packed = [[BOS, *x, EOS, *y, EOS] for x, y in zip(a, b, strict=True)]
    types = [[0] * (len(x) + 2) + [1] * (len(y) + 1) for x, y in zip(a, b, strict=True)]
    width = max(map(len, packed))
    rows = [torch.tensor([row + [0] * (width - len(row)) for row in each]) for each in (packed, types)]
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in packed])
    got = model(input_ids=rows[0], token_type_ids=rows[1], attention_mask=mask).logits
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        second = [*y, EOS] if opening is None else [BOS, *y, EOS]
        alone = model(torch.tensor([[BOS, *x, EOS]]), None, torch.tensor([second])).logits
        torch.testing.assert_close(got[i : i + 1], alone, **EQUAL)


@pytest.mark.parametrize("types", [None, torch.zeros(1, 4, dtype=torch.long)])
def test_a_pair_without_segments_is_refused(types):
    model = ConceptEncoderForSentencePairClassification(tiny_config())
    with pytest.raises(ValueError, match="a pair in one sequence needs token_type_ids with 1 at each token of the"):
        model(input_ids=torch.tensor([[BOS, 11, EOS, 12]]), token_type_ids=types)
    with pytest.raises(ValueError, match="a pair needs input_ids_a and input_ids_b, or input_ids with token_type_ids"):
        model(torch.tensor([[BOS, 11, EOS]]))


# ---------------------------------------------------------------------------------- layers that are no longer plain


def test_a_new_pooling_is_the_plain_mean():
    model = ConceptEncoderForSequenceClassificationPerceiver(tiny_config()).eval()
    ids, mask = token_batch()
    mean = model.encoder(ids, mask).pooler_output
    torch.testing.assert_close(model(ids, mask).logits, model.classifier(model.pooling.norm(mean)))


@pytest.mark.parametrize("head", HEADS)
def test_quantised_linear_layers_are_read_through(head):
    ids, mask = token_batch()
    model, names, other = heads_and_inputs(head, ids, mask, decoder_context="latent")
    model = model.float()
    inputs = dict(zip(names, (ids, mask), strict=True)) | other
    with torch.no_grad():
        exact = model(**inputs).logits
        quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, torch.qint8)
        near = quantised(**inputs).logits
    assert type(quantised.encoder.layers[0].cross_attn.k_proj) is not nn.Linear
    assert 0 < (near - exact).norm() < 0.2 * exact.norm()


needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")


@needs_peft
@pytest.mark.parametrize("head", HEADS)
def test_an_adapter_saves_all_that_a_classifier_learned(head, tmp_path):
    import peft

    ids, mask = token_batch()
    base, names, other = heads_and_inputs(head, ids, mask)
    inputs = dict(zip(names, (ids, mask), strict=True)) | other
    base = base.float()
    source = dict(zip(CLASSIFIERS, MASKED_LMS, strict=True)).get(head)
    source = base if source is None else source(tiny_config())
    source.save_pretrained(tmp_path / "base")
    kind = None if head in MASKED_LMS else "SEQ_CLS"
    settings = {"target_modules": ["q_proj", "k_proj", "v_proj", "tokens", "lm_head"], "task_type": kind}
    load = {"config": tiny_config(num_labels=2)}
    model = peft.get_peft_model(head.from_pretrained(tmp_path / "base", **load), peft.LoraConfig(**settings))
    labels = ids if head in MASKED_LMS else torch.tensor([0, 1, 0])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
    if head in MASKED_LMS:
        assert all(p.grad is not None for n, p in model.named_parameters() if "lm_head" in n and "lora" in n)
    logits = model.eval()(**inputs).logits
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(
        head.from_pretrained(tmp_path / "base", **load), tmp_path / "adapter"
    ).eval()
    torch.testing.assert_close(again(**inputs).logits, logits)


@needs_peft
@pytest.mark.parametrize("config", [{}, {"concept_aggregation": "sum"}, {"embedding_layer_norm": True}])
def test_norms_are_trained_alone_whatever_has_none(config):
    import peft

    model = ConceptEncoderForDiffusionMLM(tiny_config(**config))
    adapted = peft.get_peft_model(model, peft.LNTuningConfig(target_modules=["norm", "mlp_norm"]))
    ids, mask = token_batch()
    adapted(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained and all("norm" in name for name in trained)


@needs_peft
def test_single_tokens_are_trained_alone():
    import peft

    model = randomised(ConceptEncoderForDiffusionMLM(tiny_config(tie_word_embeddings=False)))
    ids, mask = token_batch()
    settings = peft.LoraConfig(
        target_modules=["q_proj"], trainable_token_indices={"encoder.embeddings.tokens": [5, 6]}
    )
    adapted = peft.get_peft_model(model, settings)
    ids[:, 0] = 5
    adapted(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
    (delta,) = [p for n, p in adapted.named_parameters() if "trainable_tokens_delta" in n]
    assert delta.shape == (2, 32) and delta.grad[0].abs().sum() > 0
    assert MASK < 5
