"""The heads: which weights of a checkpoint each takes, what it computes from concepts, and its loss."""

import pytest
import torch
from helpers import randomised, tiny_config, token_batch
from torch import nn
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from concept_encoder import (
    ConceptEncoderForDiffusionMLM,
    ConceptEncoderForMaskedLMPerceiver,
    ConceptEncoderForSentencePairClassification,
    ConceptEncoderForSequenceClassificationPerceiver,
    ConceptEncoderForSequenceClassificationViaDecoder,
    ConceptEncoderModel,
)

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


@pytest.mark.slow
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
CLASSIFIERS = [head for head, auto in AUTO_CLASSES.items() if auto is AutoModelForSequenceClassification]


@pytest.mark.slow
@pytest.mark.parametrize("head", AUTO_CLASSES, ids=lambda head: head.__name__)
def test_with_the_package_an_auto_class_loads_the_head_that_wrote_the_checkpoint(head, tmp_path):
    head(tiny_config(num_labels=3)).save_pretrained(tmp_path)
    for trust in (True, False):
        loaded, info = AUTO_CLASSES[head].from_pretrained(tmp_path, trust_remote_code=trust, output_loading_info=True)
        assert type(loaded) is head and not info["missing_keys"]
    if AUTO_CLASSES[head] is AutoModelForMaskedLM:  # a classifier is a new layer on its encoder
        first = ConceptEncoderForSequenceClassificationPerceiver
        assert type(AutoModelForSequenceClassification.from_pretrained(tmp_path)) is first


@pytest.mark.parametrize("saved", [ConceptEncoderModel, *CLASSIFIERS], ids=lambda head: head.__name__)
def test_no_decoder_is_drawn_at_random(saved, tmp_path):
    saved(tiny_config()).save_pretrained(tmp_path)
    _, info = ConceptEncoderForDiffusionMLM.from_pretrained(tmp_path, output_loading_info=True)
    missing = len(info["missing_keys"])
    wanted = rf"was saved as {saved.__name__} and does not hold {missing} tensors of ConceptEncoderForDiffusionMLM"
    with pytest.raises(ValueError, match=wanted):
        AutoModelForMaskedLM.from_pretrained(tmp_path)


def test_an_auto_class_makes_a_new_masked_lm():
    assert type(AutoModelForMaskedLM.from_config(tiny_config())) is ConceptEncoderForDiffusionMLM


# ------------------------------------------------------------------------------------------------------- what they say


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
        assert torch.equal(changed, model(ids, mask, decoder_input_ids=ids).logits) is not moves


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
    moved, seen = call(head, *wider, labels=wide_labels)(model).logits, slice(None)
    if masked_lm:
        moved, seen = moved[:, : ids.shape[1]], mask.bool()
    torch.testing.assert_close(moved[seen], output.logits[seen])
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
