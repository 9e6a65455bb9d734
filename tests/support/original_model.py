"""The original research code's classes, written down a second time in plain torch, under its tensor names.

What the importer is held to where no numbers were recorded. Facts, not code: `nn.MultiheadAttention` everywhere,
pre-norm residuals, exact GELU, LayerNorm epsilon 1e-5 but 1e-12 for the encoder's last.
"""

import json
import math

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

CONFIG = {
    "model_type": "concept_encoder",
    "vocab_size": 160,
    "hidden_size": 32,
    "token_embedding_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "concept_num": 8,
    "max_sequence_length": 40,
    "concept_position_type": "none",
    "use_bixt": False,
    "decoder_posonly": False,
    "tie_word_embeddings": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.1,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "unk_token_id": 3,
    "mask_token_id": 4,
}


def attention(config):
    return nn.MultiheadAttention(config["hidden_size"], config["num_attention_heads"], batch_first=True)


def gated(projected):
    gate, up = projected.chunk(2, -1)
    return F.gelu(gate) * up


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        size, inner = config["hidden_size"], config["intermediate_size"]
        self.concept_token_attn, self.pre_cross_attn_norm = attention(config), nn.LayerNorm(size)
        self.bixt = config["use_bixt"]
        if self.bixt:
            self.token_concept_attn, self.pre_reverse_cross_norm = attention(config), nn.LayerNorm(size)
        self.concept_self_attn, self.pre_self_attn_norm = attention(config), nn.LayerNorm(size)
        self.pre_ff_norm = nn.LayerNorm(size)
        self.Wi, self.Wo = nn.Linear(size, 2 * inner), nn.Linear(inner, size)

    def forward(self, concepts, tokens, padding):
        normed = self.pre_cross_attn_norm(concepts)
        concepts = concepts + self.concept_token_attn(normed, tokens, tokens, key_padding_mask=padding)[0]
        if self.bixt:
            normed = self.pre_reverse_cross_norm(tokens)
            tokens = tokens + self.token_concept_attn(normed, concepts, concepts)[0]
        normed = self.pre_self_attn_norm(concepts)
        concepts = concepts + self.concept_self_attn(normed, normed, normed)[0]
        return concepts + self.Wo(gated(self.Wi(self.pre_ff_norm(concepts)))), tokens


class ConceptEncoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        size, width, count = config["hidden_size"], config["token_embedding_dim"], config["concept_num"]
        self.token_embeddings = nn.Embedding(config["vocab_size"], width, padding_idx=config["pad_token_id"])
        self.token_position_embeddings = nn.Embedding(config["max_sequence_length"], width)
        self.token_projection = None if width == size else nn.Linear(width, size)
        self.concept_embeddings = nn.Embedding(count, size)
        if config["concept_position_type"] == "sinusoidal":
            self.register_buffer("concept_position_emb", sinusoids(count, size))
        elif config["concept_position_type"] == "learned":
            self.concept_position_emb = nn.Embedding(count, size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.output_layer_norm = nn.LayerNorm(size, eps=1e-12)
        self.kind = config["concept_position_type"]

    def forward(self, ids, mask=None):
        tokens = self.token_embeddings(ids) + self.token_position_embeddings.weight[: ids.shape[1]]
        if self.token_projection is not None:
            tokens = self.token_projection(tokens)
        concepts = self.concept_embeddings.weight
        if self.kind == "sinusoidal":
            concepts = concepts + self.concept_position_emb
        elif self.kind == "learned":
            concepts = concepts + self.concept_position_emb.weight
        concepts = concepts.expand(len(ids), -1, -1)
        for layer in self.layers:
            concepts, tokens = layer(concepts, tokens, None if mask is None else mask == 0)
        return self.output_layer_norm(concepts)


def sinusoids(count, size):
    table = torch.zeros(count, size)
    for position in range(count):
        for pair in range(size // 2):
            angle = position / 10000 ** (2 * pair / size)
            table[position, 2 * pair], table[position, 2 * pair + 1] = math.sin(angle), math.cos(angle)
    return table


class PerceiverDecoding(nn.Module):
    """What the masked language models and the classifier via the decoder share."""

    def __init__(self, config, position_only):
        super().__init__()
        size, inner, width = config["hidden_size"], config["intermediate_size"], config["token_embedding_dim"]
        self.encoder = ConceptEncoder(config)
        self.decoder_query_embeddings = nn.Embedding(config["max_sequence_length"], size)
        self.position_only = position_only
        if width != size and not position_only:
            self.decoder_input_projection = nn.Linear(width, size)
        self.decoder_cross_attn = attention(config)
        self.decoder_norm, self.post_cross_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.decoder_ffn = nn.Sequential(nn.Linear(size, inner), nn.GELU(), nn.Linear(inner, size), nn.Dropout(0.1))

    def decode(self, ids, mask):
        concepts = self.encoder(ids, mask)
        queries = self.decoder_query_embeddings.weight[: ids.shape[1]].expand(len(ids), -1, -1)
        if not self.position_only:
            tokens = self.encoder.token_embeddings(ids)
            projection = getattr(self, "decoder_input_projection", nn.Identity())
            queries = queries + projection(tokens)
        states = queries + self.decoder_cross_attn(self.decoder_norm(queries), concepts, concepts)[0]
        return states + self.decoder_ffn(self.post_cross_norm(states))


class ConceptEncoderForMaskedLMPerceiver(PerceiverDecoding):
    def __init__(self, config, position_only=False):
        super().__init__(config, position_only)
        self.lm_head = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)
        if config["tie_word_embeddings"] and config["token_embedding_dim"] == config["hidden_size"]:
            self.lm_head.weight = self.encoder.token_embeddings.weight

    def forward(self, ids, mask=None):
        return self.lm_head(self.decode(ids, mask))


class ConceptEncoderForMaskedLMPerceiverPosOnly(ConceptEncoderForMaskedLMPerceiver):
    def __init__(self, config):
        super().__init__(config, position_only=True)


class ConceptEncoderForSequenceClassificationViaDecoder(PerceiverDecoding):
    def __init__(self, config):
        super().__init__(config, config["decoder_posonly"])
        self.pre_pool_norm = nn.LayerNorm(config["hidden_size"])
        self.classifier = nn.Linear(config["hidden_size"], len(config["id2label"]))

    def forward(self, ids, mask=None):
        states = self.pre_pool_norm(self.decode(ids, mask))
        mask = torch.ones_like(ids) if mask is None else mask
        return self.classifier((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


class ConceptEncoderForSequenceClassificationPerceiver(nn.Module):
    def __init__(self, config, features=1):
        super().__init__()
        size = config["hidden_size"]
        self.encoder = ConceptEncoder(config)
        self.concept_scorer, self.pool_norm = nn.Linear(size, 1), nn.LayerNorm(size)
        self.classifier = nn.Linear(features * size, len(config["id2label"]))

    def pool(self, ids, mask):
        concepts = self.encoder(ids, mask)
        return self.pool_norm((self.concept_scorer(concepts).softmax(1) * concepts).sum(1))

    def forward(self, ids, mask=None):
        return self.classifier(self.pool(ids, mask))


class ConceptEncoderForSentencePairClassification(ConceptEncoderForSequenceClassificationPerceiver):
    def __init__(self, config):
        super().__init__(config, features=4)

    def forward(self, ids, mask=None):
        a, b = self.pool(ids, mask), self.pool(ids.flip(0), None if mask is None else mask.flip(0))
        return self.classifier(torch.cat([a, b, (a - b).abs(), a * b], -1))


class TimeEmbedding(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.proj = nn.Sequential(nn.Linear(size, 2 * size), nn.SiLU(), nn.Linear(2 * size, size))

    def forward(self, t):
        half = self.proj[0].in_features // 2
        angles = t[:, None] * 10000.0 ** (-torch.arange(half).double() / half)
        return self.proj(torch.cat([angles.sin(), angles.cos()], -1).to(self.proj[0].weight.dtype))


class DiffusionLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        size, inner = config["hidden_size"], config["intermediate_size"]
        self.norm_cross, self.cross_attn, self.norm_ff = nn.LayerNorm(size), attention(config), nn.LayerNorm(size)
        self.ff_in, self.ff_out = nn.Linear(size, 2 * inner), nn.Linear(inner, size)
        self.adaLN = nn.Linear(size, 6 * size)

    def forward(self, x, concepts, t):
        scale1, shift1, gate1, scale2, shift2, gate2 = self.adaLN(t)[:, None].chunk(6, -1)
        x = x + gate1 * self.cross_attn(self.norm_cross(x) * (1 + scale1) + shift1, concepts, concepts)[0]
        return x + gate2 * self.ff_out(gated(self.ff_in(self.norm_ff(x) * (1 + scale2) + shift2)))


class DiffusionDecoder(nn.Module):
    def __init__(self, config, layers):
        super().__init__()
        size, width = config["hidden_size"], config["token_embedding_dim"]
        self.token_embed = nn.Embedding(config["vocab_size"], width)
        self.pos_embed = nn.Embedding(config["max_sequence_length"], size)
        self.token_proj = None if width == size else nn.Linear(width, size)
        self.t_embed = TimeEmbedding(size)
        self.layers = nn.ModuleList(DiffusionLayer(config) for _ in range(layers))
        self.out_norm = nn.LayerNorm(size)


class ConceptEncoderForMaskedDiffusion(nn.Module):
    def __init__(self, config, decoder_layers=3):
        super().__init__()
        self.encoder, self.decoder = ConceptEncoder(config), DiffusionDecoder(config, decoder_layers)
        self.lm_head = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)

    def forward(self, ids, mask=None):
        """The decoder sees every second token masked; t is fixed."""
        concepts, decoder = self.encoder(ids, mask), self.decoder
        x = decoder.token_embed(noised(ids))
        if decoder.token_proj is not None:
            x = decoder.token_proj(x)
        x = x + decoder.pos_embed.weight[: ids.shape[1]]
        t = decoder.t_embed(TIMESTEPS)
        for layer in decoder.layers:
            x = layer(x, concepts, t)
        return self.lm_head(decoder.out_norm(x))


TIMESTEPS = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)


def noised(ids):
    ids = ids.clone()
    ids[:, ::2] = CONFIG["mask_token_id"]
    return ids


def build(name, seed=0, scale=0.3, **changes):
    """A class of the original by name, with random weights, and its configuration."""
    config = {**CONFIG, **changes, "architectures": [name]}
    torch.manual_seed(seed)
    model = globals()[name](config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * scale)
        encoder = getattr(model, "encoder", model)
        encoder.token_embeddings.weight[config["pad_token_id"]] = 0
    return model, config


def stored(model):
    """Its tensors as the original's save_pretrained stores them: a tied head is left out."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if "lm_head.weight" in tensors and model.lm_head.weight is model.encoder.token_embeddings.weight:
        del tensors["lm_head.weight"]
    return tensors


def save(tensors, config, folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
