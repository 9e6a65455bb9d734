"""Outputs, losses and gradients equal to the numbers recorded from the original implementation."""

from functools import partial

import numpy as np
import pytest
import torch

from concept_encoder.trainers.training.kernels import linear_cross_entropy
from concept_encoder.trainers.weights.importing import convert, read_original_config, read_tensors


def load(shared, fixture, weights_from=None):
    folder = shared / "parity" / fixture
    weights = shared / "parity" / (weights_from or fixture)
    model, table = convert(read_original_config(folder), read_tensors(weights))
    arrays = {
        name: torch.from_numpy(a) for name, a in np.load(folder / "arrays.npz").items() if a.dtype.kind in "fiub"
    }
    return model, arrays, table


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def fingerprint(gradient):
    flat = gradient.double().flatten()
    wave = torch.cos(0.1 * torch.arange(1, len(flat) + 1, dtype=torch.float64))
    return torch.stack([flat.norm(), flat.sum(), flat @ wave]).float()


def assert_gradients(shared, fixture, model, table, loss, names_from=None):
    """Each recorded gradient, those of queries, keys and values put back together."""
    recorded = np.load(shared / "parity" / fixture / "arrays.npz")
    names = np.load(shared / "parity" / (names_from or fixture) / "arrays.npz")["grad_names"].tolist()
    targets = {row.source: row.targets for row in table}
    assert set(names) == set(targets)
    loss.backward()
    parameters = dict(model.named_parameters())
    for name, expected in zip(names, recorded["grad_fingerprints"], strict=True):
        got = fingerprint(torch.cat([parameters[target].grad for target in targets[name]]))
        torch.testing.assert_close(got, torch.from_numpy(expected).float(), rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_encoder(shared, attention):
    model, arrays, _ = load(shared, "encoder_base")
    model.set_attn_implementation(attention)
    ids, mask = arrays["input_ids"], arrays["attention_mask"]
    output = model(ids, mask, output_hidden_states=True)
    for got, expected in zip(output.hidden_states, arrays["hidden_states"], strict=True):
        close(got, expected)
    close(output.last_hidden_state, arrays["concepts"])
    close(model(torch.full((3, 1), 7)).last_hidden_state, arrays["concepts_len1"])
    close(model(ids).last_hidden_state, arrays["concepts_nomask"])
    maxlen = model(arrays["input_ids_maxlen"], arrays["attention_mask_maxlen"]).last_hidden_state
    close(maxlen, arrays["concepts_maxlen"])
    mask[1] = 0
    close(model(ids, mask).last_hidden_state, arrays["concepts_row1_all_padding"])


def diffusion_inputs(arrays):
    ids, masked = arrays["input_ids"], arrays["noise_mask"].bool()
    return {
        "input_ids": ids,
        "attention_mask": arrays["attention_mask"],
        "decoder_input_ids": arrays["noisy_ids"] if "noisy_ids" in arrays else ids.masked_fill(masked, 4),
        "timesteps": arrays["t"].float(),
        "labels": ids.masked_fill(~masked, -100),
    }


def smoothed(label_smoothing):
    return partial(linear_cross_entropy, label_smoothing=label_smoothing)


def elbo_weights(inputs):
    """(B, N) weight 1 / max(t, 0.1) of each masked token, and their sum: the original normalises by it."""
    weights = (1 / inputs["timesteps"].clamp_min(0.1))[:, None].expand_as(inputs["labels"])
    return {"loss_weights": weights, "num_items_in_batch": weights[inputs["labels"] != -100].sum()}


def test_masked_diffusion(shared):
    model, arrays, _ = load(shared, "diffusion_base_tip")
    assert model.config.decoder_num_hidden_layers == arrays["decoder_layers"].item()
    inputs = diffusion_inputs(arrays)
    output = model(**inputs)
    close(output.concepts, arrays["concepts"])
    close(output.logits[inputs["labels"] != -100], arrays["masked_logits"])
    decoded = model.decoder(inputs["decoder_input_ids"], output.concepts, inputs["timesteps"])
    close(decoded.last_hidden_state, arrays["decoder_hidden"])
    close(model.decoder.timestep_embedding(inputs["timesteps"], torch.float32), arrays["t_embedding"])
    weighted = elbo_weights(inputs)
    for smoothing in (0.0, 0.1):
        close(model(**inputs, row_loss=smoothed(smoothing)).loss, arrays[f"loss_ls{smoothing}_elbo0"])
        close(model(**inputs, **weighted, row_loss=smoothed(smoothing)).loss, arrays[f"loss_ls{smoothing}_elbo1"])
    inputs["attention_mask"] = None
    unmasked = model(**inputs, **weighted, row_loss=smoothed(0.1))
    close(unmasked.concepts, arrays["concepts_nomask"])
    close(unmasked.loss, arrays["loss_nomask"])


def test_masked_diffusion_gradients_in_both_trees(shared):
    tip, early = "diffusion_base_tip", "diffusion_base_8ae6"
    model, arrays, table = load(shared, tip)
    inputs = diffusion_inputs(arrays)
    output = model.train()(**inputs, **elbo_weights(inputs), row_loss=smoothed(0.1))
    close(output.loss, arrays["loss"])
    assert_gradients(shared, tip, model, table, output.loss)
    model, arrays, table = load(shared, early, weights_from=tip)
    output = model.train()(**diffusion_inputs(arrays), row_loss=smoothed(0.1))
    close(output.loss, arrays["loss"])
    assert_gradients(shared, early, model, table, output.loss, names_from=tip)


def test_masked_lm_perceiver(shared):
    model, arrays, table = load(shared, "mlm_perceiver")
    ids, mask, labels = arrays["input_ids"], arrays["attention_mask"], arrays["labels"]
    output = model.train()(ids, mask, labels=labels)
    close(output.concepts, arrays["concepts"])
    unlabelled = model(ids, mask, output_hidden_states=True)
    close(unlabelled.decoder_hidden_states[-1], arrays["decoder_hidden"])
    close(unlabelled.logits[labels != -100], arrays["logits_at_labels"])
    close(output.loss, arrays["loss"])
    close(model(ids, mask, labels=arrays["labels_dense"]).loss, arrays["loss_dense"])
    assert_gradients(shared, "mlm_perceiver", model, table, output.loss)


def test_sequence_classification(shared):
    model, arrays, table = load(shared, "cls_perceiver")
    output = model.train()(arrays["input_ids"], arrays["attention_mask"], labels=arrays["labels"])
    close(model.encoder(arrays["input_ids"], arrays["attention_mask"]).last_hidden_state, arrays["concepts"])
    close(output.logits, arrays["logits"])
    close(output.loss, arrays["loss"])
    close(model(arrays["input_ids"]).logits, arrays["logits_nomask"])
    assert_gradients(shared, "cls_perceiver", model, table, output.loss)
