"""Outputs equal to the numbers recorded from the original implementation of the reference run."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from concept_encoder import (
    ConceptEncoderConfig,
    ConceptEncoderForDiffusionMLM,
    ConceptEncoderForSequenceClassificationPerceiver,
    ConceptEncoderModel,
)

# Pieces of the original's key names and what they are called here, tried in order.
RENAMED = {
    "token_embeddings.": "embeddings.tokens.",
    "token_position_embeddings.": "embeddings.positions.",
    "concept_embeddings.weight": "latents.weight",
    "concept_token_attn": "cross_attn",
    "concept_self_attn": "self_attn",
    "pre_cross_attn_norm": "cross_attn_norm",
    "pre_self_attn_norm": "self_attn_norm",
    "pre_ff_norm": "mlp_norm",
    "Wi.": "mlp.gate_up_proj.",
    "Wo.": "mlp.down_proj.",
    "output_layer_norm": "norm",
    "concept_scorer": "pooling.scorer",
    "pool_norm": "pooling.norm",
    "decoder.token_embed.": "decoder.embeddings.tokens.",
    "decoder.pos_embed.": "decoder.embeddings.positions.",
    "decoder.t_embed.proj.0": "decoder.timestep_embedding.fc1",
    "decoder.t_embed.proj.2": "decoder.timestep_embedding.fc2",
    "adaLN": "modulation",
    "norm_cross": "cross_attn_norm",
    "norm_ff": "mlp_norm",
    "ff_in": "mlp.gate_up_proj",
    "ff_out": "mlp.down_proj",
    "decoder.out_norm": "decoder.norm",
    "out_proj": "o_proj",
}


def load(shared, fixture, cls, **kwargs):
    folder = shared / "parity" / fixture
    original = json.loads((folder / "config.json").read_text())
    same = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = ConceptEncoderConfig(
        **{name: original[name] for name in (*same, "pad_token_id", "mask_token_id", "bos_token_id", "eos_token_id")},
        num_concepts=original["concept_num"],
        max_position_embeddings=original["max_sequence_length"],
        tie_word_embeddings=False,
        timestep_scale=1.0,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **kwargs,
    )
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        if "in_proj_" in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                tensors[name.replace("in_proj_", f"{letter}_proj.")] = part
        else:
            tensors[name] = tensor
    model = cls(config).eval()
    model.load_state_dict(tensors, strict=True)
    arrays = {
        name: torch.from_numpy(array)
        for name, array in np.load(folder / "arrays.npz").items()
        if array.dtype.kind in "fiub"
    }
    return model, arrays


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_encoder(shared, attention):
    model, arrays = load(shared, "encoder_base", ConceptEncoderModel)
    model.set_attn_implementation(attention)
    ids, mask = arrays["input_ids"], arrays["attention_mask"]
    output = model(ids, mask, output_hidden_states=True)
    for got, expected in zip(output.hidden_states, arrays["hidden_states"], strict=True):
        close(got, expected)
    close(model(ids).last_hidden_state, arrays["concepts_nomask"])
    maxlen = model(arrays["input_ids_maxlen"], arrays["attention_mask_maxlen"]).last_hidden_state
    close(maxlen, arrays["concepts_maxlen"])
    mask[1] = 0
    close(model(ids, mask).last_hidden_state, arrays["concepts_row1_all_padding"])


def test_masked_diffusion(shared):
    model, arrays = load(shared, "diffusion_base_tip", ConceptEncoderForDiffusionMLM, decoder_num_hidden_layers=2)
    ids, masked = arrays["input_ids"], arrays["noise_mask"].bool()
    inputs = (ids, arrays["attention_mask"], arrays["noisy_ids"], arrays["t"].float())
    output = model(*inputs, labels=ids.masked_fill(~masked, -100), output_hidden_states=True)
    close(output.concepts, arrays["concepts"])
    close(output.logits, arrays["masked_logits"])
    close(output.loss, arrays["loss_ls0.0_elbo0"])
    smoothed = model(*inputs, labels=ids.masked_fill(~masked, -100), label_smoothing=0.1)
    close(smoothed.loss, arrays["loss_ls0.1_elbo0"])


def test_sequence_classification(shared):
    cls = ConceptEncoderForSequenceClassificationPerceiver
    model, arrays = load(shared, "cls_perceiver", cls, num_labels=3)
    output = model(arrays["input_ids"], arrays["attention_mask"], labels=arrays["labels"])
    close(output.logits, arrays["logits"])
    close(output.loss, arrays["loss"])
    close(model(arrays["input_ids"]).logits, arrays["logits_nomask"])
