"""Concept encoder: N tokens compressed into C concept vectors by cross-attention, in O(C * N).

Letters in shapes: B batch, N tokens, C concepts, D hidden size, E token embedding size, H heads, V vocabulary,
M labelled positions of a batch.

Reading order: outputs, feed-forward, encoder layer, decoder layers, pooling, pretrained base with the only weight
initialisation, encoder, decoders, heads that rebuild text, heads that classify. Reading: `reading_concept.py`.

References: Perceiver IO (Jaegle et al. 2021, arXiv:2107.14795), BiXT (Hiller et al. 2024, arXiv:2402.12138),
adaLN-Zero (Peebles & Xie 2022, arXiv:2212.09748), masked diffusion (Sahoo et al. 2024, arXiv:2406.07524).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import init  # which transformers guards, as its own, where a tensor is loaded already
from transformers.activations import ACT2FN
from transformers.generation import TopKLogitsWarper, TopPLogitsWarper
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions, SequenceClassifierOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_concept import ConceptEncoderConfig
from .reading_concept import (
    ConceptAttention,
    ConceptDropout,
    ConceptLatentQueries,
    ConceptNeighbours,
    ConceptPowerNorm,
    ConceptReading,
    ConceptSlots,
    ConceptTokenEmbeddings,
    ConceptTokens,
    ConceptZeroLinear,
    at_least_float32,
    at_least_padding,
    at_positions,
    check_chunks,
    check_labels,
    check_length,
    check_text,
    is_plain,
    labelled_positions,
    position_embedding,
    readable,
    sinusoidal_embedding,
    token_positions,
    visible_concept_mask,
)

# ------------------------------------------------------------------------------------------- what older versions lack

version = tuple(map(int, transformers.__version__.split(".")[:2]))
if version >= (5, 2):
    from transformers.utils.output_capturing import OutputRecorder, capture_outputs
else:
    from transformers.utils.generic import OutputRecorder
    from transformers.utils.generic import check_model_inputs as capture_outputs
if version < (5, 0):

    class PreTrainedModel(PreTrainedModel):  # type: ignore[no-redef]
        def tie_weights(self):  # it ties no weight but that of `lm_head`
            super().tie_weights()
            if self.config.tie_word_embeddings:
                for tied, source in (self._tied_weights_keys or {}).items():
                    self.get_submodule(tied.rpartition(".")[0]).weight = self.get_parameter(source)

        def get_input_embeddings(self):  # it knows no `embeddings.tokens`
            return self.embeddings.tokens if hasattr(self, "embeddings") else super().get_input_embeddings()

        def set_input_embeddings(self, value):
            if hasattr(self, "embeddings"):
                self.embeddings.tokens = value
            else:
                super().set_input_embeddings(value)


if version == (5, 3):

    class PreTrainedModel(PreTrainedModel):  # type: ignore[no-redef]
        def mark_tied_weights_as_initialized(self, loading_info):  # it takes them for loaded, and does not tie them
            missing = loading_info.missing_keys & self.all_tied_weights_keys.keys()
            super().mark_tied_weights_as_initialized(loading_info)
            loading_info.missing_keys |= missing


# ------------------------------------------------------------------------------------------------------------- outputs


@dataclass
class ConceptEncoderOutput(BaseModelOutputWithPoolingAndCrossAttentions):
    """Concepts of a batch of texts.

    Attributes:
        last_hidden_state: (B, C, D), the concepts.
        pooler_output: (B, P), of the concepts as `config.pooled_output` says; by default their mean, P = D. With
            `config.projection_size` d each concept gives d numbers, and `"concat"` has P = C * d of them.
        hidden_states: with `output_hidden_states=True`, latent queries and concepts after each layer, each (B, C, D).
        attentions: with `output_attentions=True` and eager attention, concepts to concepts per layer, (B, H, C, C).
        cross_attentions: the same, concepts to tokens per layer, (B, H, C, N).
    """


@dataclass
class ConceptDecoderOutput(ModelOutput):
    """Decoder states of the K positions that were asked for, by default all N.

    Attributes:
        last_hidden_state: (B, K, D), input of `lm_head`.
        hidden_states: queries and states after each layer, each (B, K, D), when asked for.
        cross_attentions: positions to concepts per layer, (B, H, K, C), when asked for with eager attention.
    """

    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass
class ConceptMaskedLMOutput(ModelOutput):
    """Reconstruction of a text through its concepts.

    Attributes:
        loss: scalar, weighted cross-entropy in nats; only with `labels`.
        logits: (B, N, V); with `row_loss`, what it gives.
        token_losses: (B, N) at least float32, unweighted cross-entropy in nats, 0 where there is no label; only with
            `labels`.
        concepts: (B, C, D), the last hidden state of the encoder.
        pooler_output: (B, P), of the encoder.
        hidden_states, attentions, cross_attentions: of the encoder, as in `ConceptEncoderOutput`.
        decoder_hidden_states, decoder_cross_attentions: of the decoder, as in `ConceptDecoderOutput`; with `row_loss`
            K is the largest number of labels of a row, whose positions come first and in order.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    token_losses: Tensor | None = None
    concepts: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_cross_attentions: tuple[Tensor, ...] | None = None


@dataclass
class ConceptClassifierOutput(SequenceClassifierOutput):
    """`SequenceClassifierOutput` with the encoder's cross-attentions, each (B, H, C, N)."""

    cross_attentions: tuple[Tensor, ...] | None = None


# -------------------------------------------------------------------------------------------------------- feed-forward


class ConceptFeedForward(nn.Module):
    """Gated feed-forward: `down(act(gate) * up)` (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: ConceptEncoderConfig):
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(hidden_states).chunk(2, dim=-1)
        return self.down_proj(self.act(gate) * up)


class ConceptQueryFeedForward(nn.Module):
    """Ungated feed-forward, as in Perceiver IO: `down(act(up))`."""

    def __init__(self, config: ConceptEncoderConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.down_proj(self.act(self.up_proj(hidden_states)))


# -------------------------------------------------------------------------------------------------------------- layers


class ConceptEncoderLayer(GradientCheckpointingLayer):
    """Concepts read the tokens, then one another, then a feed-forward; pre-norm residuals on the concepts.

    With `token_update`, the tokens also read the concepts after these have read them (BiXT), still in O(C * N).
    """

    def __init__(self, config: ConceptEncoderConfig, token_update: bool = False):
        super().__init__()
        self.cross_attn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.cross_attn = ConceptReading(config)
        self.token_update = token_update
        if token_update:
            self.token_attn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            self.token_attn = ConceptAttention(config)
        self.self_attn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = ConceptAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ConceptFeedForward(config)
        self.dropout = ConceptDropout(config.hidden_dropout_prob)

    def forward(
        self, concepts: Tensor, tokens: Tensor, attention_mask=None, concept_mask=None, **kwargs
    ) -> tuple[Tensor, Tensor]:
        read, _ = self.cross_attn(self.cross_attn_norm(concepts), tokens, attention_mask, **kwargs)
        concepts = concepts + self.dropout(read)  # (B, C, D)
        if self.token_update:
            written, _ = self.token_attn(self.token_attn_norm(tokens), concepts, **kwargs)
            tokens = tokens + self.dropout(written)  # (B, N, D)
        normed = self.self_attn_norm(concepts)
        mixed, _ = self.self_attn(normed, normed, concept_mask, **kwargs)
        concepts = concepts + self.dropout(mixed)
        concepts = concepts + self.dropout(self.mlp(self.mlp_norm(concepts)))
        return concepts, tokens


class ConceptDecoderLayer(GradientCheckpointingLayer):
    """Positions read the concepts, then a feed-forward; adaLN-Zero on both, no attention between positions.

    The timestep gives scale, shift and gate of each sublayer. At initialisation all six are exactly zero, so that the
    layer is the identity. Differs from Peebles & Xie: the norms keep their own weight and bias, and the timestep
    embedding enters without a further SiLU, as in the reference run.
    """

    def __init__(self, config: ConceptEncoderConfig):
        super().__init__()
        # From the timestep embedding: scale, shift and gate of two sublayers.
        self.modulation = ConceptZeroLinear(config.hidden_size, 6 * config.hidden_size)
        self.cross_attn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.cross_attn = ConceptAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ConceptFeedForward(config)
        self.dropout = ConceptDropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor, concepts: Tensor, timestep_embedding: Tensor, **kwargs) -> Tensor:
        scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = self.modulation(timestep_embedding)[:, None].chunk(6, -1)
        normed = self.cross_attn_norm(hidden_states) * (1 + scale_1) + shift_1
        read, _ = self.cross_attn(normed, concepts, **kwargs)
        hidden_states = hidden_states + gate_1 * self.dropout(read)  # (B, N, D)
        normed = self.mlp_norm(hidden_states) * (1 + scale_2) + shift_2
        return hidden_states + gate_2 * self.dropout(self.mlp(normed))


class ConceptQueryLayer(GradientCheckpointingLayer):
    """Queries of every position read the concepts, then a feed-forward; pre-norm residuals (Perceiver IO)."""

    def __init__(self, config: ConceptEncoderConfig):
        super().__init__()
        self.cross_attn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.cross_attn = ConceptAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ConceptQueryFeedForward(config)
        self.dropout = ConceptDropout(config.hidden_dropout_prob)

    def forward(self, queries: Tensor, concepts: Tensor, **kwargs) -> Tensor:
        read, _ = self.cross_attn(self.cross_attn_norm(queries), concepts, **kwargs)
        queries = queries + self.dropout(read)  # (B, N, D)
        return queries + self.dropout(self.mlp(self.mlp_norm(queries)))


class ConceptTimestepEmbedding(nn.Module):
    """(B,) timesteps in [0, 1] -> (B, D): sinusoids of the scaled timestep, then two linear layers."""

    def __init__(self, config: ConceptEncoderConfig):
        super().__init__()
        self.config = config
        self.fc1 = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.fc2 = nn.Linear(2 * config.hidden_size, config.hidden_size)

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        sinusoids = sinusoidal_embedding(timesteps * self.config.timestep_scale, self.config.hidden_size, dtype)
        sinusoids = torch.cat([sinusoids[:, 0::2], sinusoids[:, 1::2]], dim=-1)  # sines first, as in the reference run
        return self.fc2(nn.functional.silu(self.fc1(sinusoids)))


class ConceptPooling(nn.Module):
    """(B, C, D) -> (B, D): mean of the concepts weighted by a softmax over learned scores, then LayerNorm.

    The scores start at zero, as the plain mean: what a new head draws at random is its classifier alone.
    """

    def __init__(self, config: ConceptEncoderConfig):
        super().__init__()
        self.scorer = ConceptZeroLinear(config.hidden_size, 1)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, concepts: Tensor) -> Tensor:
        weights = self.scorer(concepts).softmax(dim=1)  # (B, C, 1)
        return self.norm((weights * concepts).sum(dim=1))


class ConceptPooledOutput(nn.Module):
    """(B, C, D) -> (B, P): the pooled output of the encoder, projected to d numbers a concept where there is a map.

    A mean is projected once, and of a map only the rows of the numbers that are asked for are computed.
    """

    def __init__(self, config: ConceptEncoderConfig):
        super().__init__()
        self.kind = config.pooled_output
        self.size = config.concept_dim
        projected = config.projection_size is not None
        # Without a bias, so that a code of zeros stays one.
        self.projection = nn.Linear(config.hidden_size, self.size, bias=False) if projected else nn.Identity()
        if self.kind == "weighted":
            self.scorer = ConceptZeroLinear(self.size, 1)

    def forward(self, concepts: Tensor, visible: Tensor | None = None, dim: int | None = None) -> Tensor:
        """Of all concepts, or those that are `visible` (B, C), and the first `dim` numbers of each."""
        if dim is not None and not 1 <= dim <= self.size:
            raise ValueError(f"dim must be in [1, {self.size}], the numbers of a concept, got {dim}")
        if self.kind == "concat":
            return self._project(concepts, dim).flatten(1)
        if self.kind == "weighted":
            # One product in place of d: the scorer reads what is projected.
            if is_plain(self.projection) and is_plain(self.scorer):
                weight = self.scorer.weight @ self.projection.weight
                scores = nn.functional.linear(concepts, weight, self.scorer.bias)  # (B, C, 1)
            else:
                scores = self.scorer(self.projection(concepts))
            if visible is not None:
                scores = scores.masked_fill(~visible.unsqueeze(-1), torch.finfo(scores.dtype).min)
            pooled = (scores.softmax(dim=1) * concepts).sum(dim=1)
        else:
            pooled = (
                concepts.mean(dim=1) if visible is None else concepts.sum(dim=1) / visible.sum(dim=1, keepdim=True)
            )
        return self._project(pooled, dim)

    def _project(self, x: Tensor, dim: int | None) -> Tensor:
        if dim is None or not is_plain(self.projection):
            return self.projection(x)[..., :dim]
        return nn.functional.linear(x, self.projection.weight[:dim])


class ConceptTokenPooling(nn.Module):
    """(B, N, D) -> (B, D): LayerNorm, then mean over the real tokens; a row without any gives zeros."""

    def __init__(self, config: ConceptEncoderConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
        hidden_states = self.norm(hidden_states)
        if attention_mask is None:
            return hidden_states.mean(dim=1)
        mask = attention_mask.unsqueeze(-1).to(hidden_states.dtype)  # (B, N, 1)
        return (hidden_states * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)


class ConceptWhitening(nn.Module):
    """(B, D) -> (B, D): an affine map fitted to mean concepts after training; the identity until then.

    Buffers, since it is never trained: parameters that no loss reaches are what DDP takes for a mistake.

    Source: Su et al. 2021, arXiv:2103.15316, eq. 5. Differs: directions that do not vary come out as zeros.
    """

    def __init__(self, config: ConceptEncoderConfig):
        super().__init__()
        size = config.concept_dim
        self.register_buffer("weight", torch.empty(size, size))
        self.register_buffer("bias", torch.empty(size))

    def forward(self, pooled: Tensor) -> Tensor:
        return nn.functional.linear(pooled, self.weight, self.bias)


# ----------------------------------------------------------------------------------------------------- pretrained base


class ConceptEncoderPreTrainedModel(PreTrainedModel):
    """What every class here shares: configuration, loading and saving, weight initialisation."""

    config: ConceptEncoderConfig
    config_class = ConceptEncoderConfig
    base_model_prefix = "encoder"
    _input_embed_layer = "tokens"  # of `embeddings`
    _keys_to_ignore_on_load_unexpected: list[str] | set[str] | None = None
    supports_gradient_checkpointing = True
    _no_split_modules = ["ConceptEncoderLayer", "ConceptDecoderLayer", "ConceptQueryLayer", "ConceptTokenEmbeddings"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def post_init(self) -> None:
        super().post_init()
        # The library adds what the encoder inside ignores, and so would hide a decoder that does not fit.
        kind = type(self._keys_to_ignore_on_load_unexpected or [])  # a set, but before 5.9 a list
        self._keys_to_ignore_on_load_unexpected = kind(type(self)._keys_to_ignore_on_load_unexpected or ())

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # the library looks for a phrase in this file, another one in each version

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initial distributions; std is `config.initializer_range`.

        | tensor                                    | distribution                                 |
        | ----------------------------------------- | -------------------------------------------- |
        | linear weights, token and position tables | normal(0, std)                               |
        | row of [PAD] in a token table             | 0                                            |
        | linear biases                             | 0                                            |
        | LayerNorm weight, bias                    | 1, 0                                         |
        | latent queries                            | normal(0, 2 std)                             |
        | ... with latent_init "orthogonal"         | random orthonormal rows, times 2 std sqrt(D) |
        | ... with concept positions "anchored"     | 0: each starts as its place alone            |
        | learned positions of the latent queries   | normal(0, std)                               |
        | decoder modulation weight and bias        | 0: each decoder layer starts as the identity |
        | scorers of poolings and of token weights  | 0: start as the plain mean, as weight 1      |
        | weights of neighbours                     | 0: each token starts as itself alone         |
        | whitening weight, bias                    | identity, 0                                  |
        """
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, ConceptLatentQueries):
            if self.config.concept_position_type == "anchored":
                init.zeros_(module.weight)
            elif self.config.latent_init == "orthogonal":
                init.orthogonal_(module.weight, gain=2 * std * math.sqrt(self.config.hidden_size))
            else:
                init.normal_(module.weight, std=2 * std)
            if self.config.concept_position_type == "learned":
                init.normal_(module.positions, std=std)
        elif isinstance(module, ConceptNeighbours):
            init.zeros_(module.weight)
        elif isinstance(module, ConceptZeroLinear):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, ConceptWhitening):
            init.eye_(module.weight)
            init.zeros_(module.bias)


class ConceptEncoderModel(ConceptEncoderPreTrainedModel):
    """Text to concepts: C learned queries that read N tokens in every layer, at O(C * N)."""

    _can_record_outputs = {
        "hidden_states": ConceptEncoderLayer,
        "attentions": OutputRecorder(ConceptAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(ConceptAttention, index=1, layer_name="cross_attn"),
    }
    # A pretraining checkpoint or a classifier loads here without what comes after the encoder.
    _keys_to_ignore_on_load_unexpected = [r"^(decoder|lm_head|pooling|token_pooling|classifier)\."]

    def __init__(self, config: ConceptEncoderConfig):
        super().__init__(config)
        assert config.token_embedding_size is not None  # the configuration fills it
        placed = config.position_embedding_type != "none"
        self.embeddings = ConceptTokenEmbeddings(config, config.token_embedding_size, placed)
        self.neighbours = ConceptNeighbours(config) if config.neighbours else None
        self.latents = ConceptLatentQueries(config)
        summed = config.concept_aggregation == "sum"
        self.slots = ConceptSlots(config) if summed else None
        # The last layer's tokens are read by nobody, so it never updates them.
        last = config.num_hidden_layers - 1
        self.layers = nn.ModuleList(
            ConceptEncoderLayer(config, token_update=config.token_update == "bixt" and i < last)
            for i in range(config.num_hidden_layers)
        )
        final_norm = nn.LayerNorm(config.hidden_size, eps=config.final_layer_norm_eps)
        self.norm = None if summed else final_norm  # it would undo how much a slot holds
        self.power_norm = ConceptPowerNorm(0.0)  # of sums; not called `norm`, where adapters look for weights
        self.pool = ConceptPooledOutput(config)
        self.whitening = ConceptWhitening(config) if config.pooler_whitening else nn.Identity()
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        chunk_length: int | None = None,
        num_concepts: int | str | None = None,
        dim: int | None = None,
        **kwargs,
    ) -> ConceptEncoderOutput:
        """Encode a batch of texts.

        Args:
            input_ids: (B, N) token ids in [0, V); or give `inputs_embeds`. (B, 0) are texts of padding.
            attention_mask: (B, N), 1 = real token, 0 = padding, anywhere in a row. `None`: every token is real.
            position_ids: (B, N) in [0, max_position_embeddings). `None`: 0 ... N - 1, without padding.
            inputs_embeds: (B, N, E) token embeddings in place of ids.
            chunk_length: tokens that are read at a time, for texts of any length N; the result is the same up to
                rounding. Without gradients memory does not grow with N beyond ids and mask. `None`: all N at once.
            num_concepts: k in [1, C], to read the text into the first k concepts alone, as if there were no others;
                `"auto"`: ceil(N / config.tokens_per_concept) of them for a text of N tokens, the rest zeros.
            dim: numbers of each concept in the pooled output, the first of what there are.

        Raises:
            ValueError: ids outside the vocabulary (checked on CPU); no batch of texts, a mask of another shape, or
                either on another device than the model; more tokens than learned positions; with `chunk_length`:
                BiXT, `output_attentions`, a mask that is not (B, N); k or `dim` out of range, `"auto"` without r.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        input_ids, attention_mask, position_ids = at_least_padding(input_ids, attention_mask, position_ids)
        check_text(input_ids, inputs_embeds, attention_mask, self.latents.weight.device)
        check_chunks(chunk_length, attention_mask, self.config, kwargs)
        text = input_ids, inputs_embeds, attention_mask, position_ids
        tokens: Any = ConceptTokens(self.embeddings, self.neighbours, *text, chunk_length)
        batch_size, length = tokens.given.shape[:2]
        concepts = self.latents(batch_size)  # (B, C, D)
        if self.config.concept_position_type == "anchored":
            concepts = concepts + self._anchors()
        counts = self._counts(num_concepts, attention_mask, tokens.given)
        visible = concept_mask = None
        if counts is not None:
            concepts = concepts[:, : int(counts.max())]
        if counts is not None and num_concepts == "auto":
            visible = torch.arange(concepts.shape[1], device=counts.device) < counts[:, None]  # (B, k)
            concept_mask = visible_concept_mask(self.config, concepts, concepts, counts)
        if tokens.chunk_length >= length:
            tokens = tokens.states(0, length)  # (B, N, D), once for all layers
        if self.slots is not None:
            concepts = self.slots(concepts, tokens, self.slots.counts(input_ids, attention_mask), visible)
            empty = (concepts == 0).all(dim=2, keepdim=True).all(dim=1, keepdim=True)  # (B, 1, 1)
        for layer in self.layers:
            concepts, tokens = layer(concepts, tokens, attention_mask, concept_mask, **kwargs)
        concepts = concepts if visible is None else concepts * visible.unsqueeze(-1)
        if self.norm is not None:
            concepts = self.norm(concepts)
        elif self.layers:
            assert self.power_norm is not None
            concepts = self.power_norm(concepts, visible).masked_fill(empty, 0.0)
        if visible is not None:
            concepts = concepts * visible.unsqueeze(-1)  # a LayerNorm gives them its bias
        if dim is not None and self.config.pooler_whitening:
            raise ValueError("pooler_whitening=True mixes all numbers of the mean concept; leave dim out")
        pooled = self.whitening(self.pool(concepts, visible, dim))  # (B, P)
        return ConceptEncoderOutput(last_hidden_state=concepts, pooler_output=pooled)

    def whitened(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None) -> ConceptEncoderOutput:
        """`forward` with the map of the pooled output on every concept, so that `pooler_output` is their mean."""
        output = self(input_ids, attention_mask)
        output.last_hidden_state = self.whitening(self.pool.projection(output.last_hidden_state))
        return output

    def projected(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None) -> ConceptEncoderOutput:
        """`forward` with the projection of the pooled output on every concept: `last_hidden_state` is (B, C, d)."""
        output = self(input_ids, attention_mask)
        output.last_hidden_state = self.pool.projection(output.last_hidden_state)
        return output

    def _counts(self, num_concepts: int | str | None, attention_mask: Tensor | None, given: Tensor) -> Tensor | None:
        """(B,) concepts of each text, or (1,) where all have as many."""
        most, each = self.config.num_concepts, self.config.tokens_per_concept
        if num_concepts is None:
            return None
        if num_concepts != "auto":
            if isinstance(num_concepts, str) or not 1 <= num_concepts <= most:
                raise ValueError(f"num_concepts must be in [1, {most}] or be 'auto', got {num_concepts!r}")
            return torch.tensor([num_concepts])
        if each is None:
            raise ValueError("num_concepts='auto' needs tokens_per_concept in the configuration: ceil(N / r)")
        if self.layers and (self.config.concept_attention == "slot" or self.config.token_update == "bixt"):
            raise ValueError(
                "num_concepts='auto' needs layers in which one concept does not affect another: "
                "concept_attention='softmax' and token_update='none'"
            )
        length = torch.full((len(given),), given.shape[1], device=given.device)
        if attention_mask is not None and attention_mask.ndim == 2:
            length = attention_mask.long().sum(-1)
        return (length + each - 1).div(each, rounding_mode="floor").clamp(1, most)

    def _anchors(self) -> Tensor:
        """(C, D): what the token embeddings give for the centres of C equal parts of the longest text."""
        count, length, weight = self.config.num_concepts, self.config.max_position_embeddings, self.latents.weight
        centres = (torch.arange(count, device=weight.device) + 0.5) * length / count
        no_token = weight.new_zeros(count, self.embeddings.size)
        return self.embeddings(None, no_token, centres.long())


class ConceptDiffusionDecoder(ConceptEncoderPreTrainedModel):
    """Rebuilds every position of a noised text from the concepts; positions never attend to one another.

    With `decoder_context="latent"` a copy of the concepts first reads the visible tokens, in O(C * N), and the layers
    read that copy, so that the tokens that survived the noise inform the masked ones.
    """

    _can_record_outputs = {
        "hidden_states": ConceptDecoderLayer,
        "cross_attentions": OutputRecorder(ConceptAttention, index=1, layer_name="layers"),
    }

    def __init__(self, config: ConceptEncoderConfig):
        super().__init__(config)
        self.embeddings = ConceptTokenEmbeddings(config, config.hidden_size)
        self.timestep_embedding = ConceptTimestepEmbedding(config)
        if config.decoder_context == "latent":
            self.context_layer = ConceptEncoderLayer(config)
            self.context_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(ConceptDecoderLayer(config) for _ in range(config.decoder_num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor,
        concepts: Tensor,
        timesteps: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        num_visible_concepts: Tensor | int | None = None,
        positions: Tensor | None = None,
        **kwargs,
    ) -> ConceptDecoderOutput:
        """Decode noised ids (B, N), or `positions` (B, K) of them, at timesteps (B,) in [0, 1].

        The decoder reads concepts (B, C, D), or the first `num_visible_concepts` of them.
        """
        timestep_embedding = self.timestep_embedding(timesteps, concepts.dtype)  # (B, D)
        position_ids = token_positions(self.config, position_ids, attention_mask, input_ids)
        if self.config.decoder_context == "none" and positions is not None:  # nothing looks at the others
            check_length(self.embeddings.positions, input_ids.shape[1], self.config)
            position_ids = position_ids.expand_as(input_ids).gather(1, positions)
            input_ids, positions = input_ids.gather(1, positions), None
        hidden_states = self.embeddings(input_ids, None, position_ids)  # (B, N, D), or (B, K, D)
        if self.config.decoder_context == "latent":
            visible = input_ids != self.config.mask_token_id
            if attention_mask is not None:
                visible = visible & attention_mask.bool()
            if num_visible_concepts is not None and self.config.concept_attention == "slot":
                raise ValueError(
                    "num_visible_concepts with decoder_context='latent' needs concept_attention='softmax': with "
                    "'slot' the hidden concepts still take their share of the visible tokens"
                )
            among = visible_concept_mask(self.config, concepts, concepts, num_visible_concepts)
            concepts, _ = self.context_layer(concepts, hidden_states, visible, among, **kwargs)
            concepts = self.context_norm(concepts)  # (B, C, D)
        hidden_states = at_positions(hidden_states, positions)  # (B, K, D)
        concept_mask = visible_concept_mask(self.config, hidden_states, concepts, num_visible_concepts)
        for layer in self.layers:
            hidden_states = layer(hidden_states, concepts, timestep_embedding, attention_mask=concept_mask, **kwargs)
        return ConceptDecoderOutput(last_hidden_state=self.norm(hidden_states))


class ConceptPerceiverDecoder(ConceptEncoderPreTrainedModel):
    """Rebuilds every position from the concepts in one layer; positions never attend to one another.

    The query of a position is its own embedding, plus that of the token it holds unless
    `config.decoder_query == "position"`. The token embeddings are the encoder's, projected where these are smaller.
    """

    _can_record_outputs = {
        "hidden_states": ConceptQueryLayer,
        "cross_attentions": OutputRecorder(ConceptAttention, index=1, layer_name="layer"),
    }

    def __init__(self, config: ConceptEncoderConfig):
        super().__init__(config)
        width, size = config.hidden_size, config.token_embedding_size
        learned = config.position_embedding_type == "learned"
        self.positions = nn.Embedding(config.max_position_embeddings, width) if learned else None
        if config.decoder_query == "token+position":
            self.projection = nn.Identity() if size == width else nn.Linear(size, width)
        self.dropout = ConceptDropout(config.hidden_dropout_prob)
        self.layer = ConceptQueryLayer(config)
        self.post_init()

    @capture_outputs
    def forward(
        self,
        token_embeddings: Tensor,
        concepts: Tensor,
        position_ids: Tensor | None = None,
        num_visible_concepts: Tensor | int | None = None,
        positions: Tensor | None = None,
        **kwargs,
    ) -> ConceptDecoderOutput:
        """Decode token_embeddings (B, N, E), or `positions` (B, K) of them, given concepts (B, C, D).

        The decoder reads all concepts, or the first `num_visible_concepts`.
        """
        position_ids = token_positions(self.config, position_ids, None, token_embeddings)
        queries = position_embedding(
            self.positions, position_ids, self.config.hidden_size, concepts.dtype, self.config
        )
        if self.config.decoder_query == "token+position":
            queries = queries + self.projection(token_embeddings)
        queries = at_positions(queries.expand(concepts.shape[0], -1, -1), positions)  # (B, K, D)
        queries = self.dropout(queries)
        mask = visible_concept_mask(self.config, queries, concepts, num_visible_concepts)
        return ConceptDecoderOutput(last_hidden_state=self.layer(queries, concepts, attention_mask=mask, **kwargs))


# --------------------------------------------------------------------------------------------- heads that rebuild text


def cross_entropy_of_rows(
    lm_head: nn.Module, states: Tensor, labels: Tensor, row_weights: Tensor, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cross-entropy, in nats, of the rows that carry a label; what the heads take as `row_loss` works like it.

    Args:
        lm_head: (M, D) -> (M, V).
        states: (M, D).
        labels: (M,) in [0, V).
        row_weights: (M,), factors of the rows.
        label_smoothing: in [0, 1).

    Returns:
        The weighted sum, the cross-entropies (M,), and the logits (M, V), or None where they are never all held.
    """
    logits = lm_head(states)
    losses = nn.functional.cross_entropy(
        logits.to(row_weights.dtype), labels, reduction="none", label_smoothing=label_smoothing
    )
    return (losses * row_weights).sum(), losses, logits


class ConceptMaskedLMModel(ConceptEncoderPreTrainedModel):
    """What the heads that rebuild text share: `lm_head`, and the cross-entropy of the rows that carry a label."""

    _keys_to_ignore_on_load_unexpected = [r"^(pooling|token_pooling|classifier)\."]

    def _score(self, encoded, decode, labels, loss_weights, num_items_in_batch, row_loss):
        """`ConceptMaskedLMOutput`, given `decode`: positions -> decoded states; the rest as in the heads' forward."""
        loss = logits = token_losses = positions = None
        sparse = labels is not None and row_loss is not None
        if sparse:
            positions, real = labelled_positions(labels)  # (B, K)
        decoded = decode(positions)
        states = decoded.last_hidden_state
        if not sparse:
            logits = self.lm_head(states)  # (B, N, V)
        if labels is not None:
            labelled = labels != -100
            wide = at_least_float32(states.dtype)
            # No label at all gives loss 0, not 0 / 0.
            count = labelled.sum().clamp_min(1) if num_items_in_batch is None else num_items_in_batch
            weights = torch.ones_like(labels, dtype=wide) if loss_weights is None else loss_weights
            rows = labels[labelled], weights[labelled].to(wide) / count
            if logits is None:
                loss, losses, logits = row_loss(self.lm_head, states[real], *rows)
            else:
                loss, losses, _ = cross_entropy_of_rows(nn.Identity(), logits[labelled], *rows)
            token_losses = losses.new_zeros(labels.shape).masked_scatter(labelled, losses)  # (B, N)
        return ConceptMaskedLMOutput(
            loss=loss,
            logits=logits,
            token_losses=token_losses,
            concepts=encoded.last_hidden_state,
            pooler_output=encoded.pooler_output,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            cross_attentions=encoded.cross_attentions,
            decoder_hidden_states=decoded.hidden_states,
            decoder_cross_attentions=decoded.cross_attentions,
        )


def check_sampling(num_steps, order, block_length, temperature, top_k, top_p) -> None:
    """ValueError for what `ConceptEncoderForDiffusionMLM.generate` cannot do."""
    if order not in ("confidence", "ancestral", "blocks"):
        raise ValueError(f"order must be 'confidence', 'ancestral' or 'blocks', got {order!r}")
    if (order == "blocks") != (block_length is not None) or (block_length is not None and block_length < 1):
        raise ValueError(
            f"order='blocks' needs block_length >= 1, and no other order takes one; got order={order!r}, "
            f"block_length={block_length}"
        )
    whole = all(isinstance(x, int) and not isinstance(x, bool) for x in (num_steps, top_k))
    if not whole or num_steps < 1 or top_k < 0 or not (0 <= temperature < math.inf) or not 0 < top_p <= 1:
        raise ValueError(
            "generate needs whole numbers num_steps >= 1 and top_k >= 0, finite temperature >= 0 and 0 < top_p <= 1, "
            f"got num_steps={num_steps}, top_k={top_k}, temperature={temperature}, top_p={top_p}"
        )


def draw_tokens(logits: Tensor, temperature: float, top_k: int, top_p: float, generator) -> tuple[Tensor, Tensor]:
    """One token per row of logits (M, V), and its probability before truncation."""
    logits = logits.to(at_least_float32(logits.dtype)) / (temperature or 1.0)
    probabilities = logits.softmax(-1)
    if temperature == 0:
        draws = probabilities.argmax(-1)
    else:
        if top_k:
            logits = TopKLogitsWarper(top_k)(None, logits)
        if top_p < 1:
            logits = TopPLogitsWarper(top_p)(None, logits)
        draws = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
    return draws, probabilities.gather(-1, draws[:, None]).squeeze(-1)


def first_to_commit(masked: Tensor, confidence: Tensor, count: Tensor, block_length: int | None) -> Tensor:
    """(B, N) bool: the `count` (B, 1) masked positions of highest confidence (M,) in [0, 1], block by block."""
    rank = torch.full(masked.shape, -torch.inf, device=masked.device).masked_scatter(masked, confidence.float())
    if block_length is not None:
        rank = rank - 2 * (torch.arange(masked.shape[1], device=masked.device) // block_length)
    return masked & (rank.argsort(-1, descending=True).argsort(-1) < count)


class ConceptEncoderForDiffusionMLM(ConceptMaskedLMModel):
    """Pretraining head: masked diffusion of a text through its concepts. Pure: all randomness is the caller's.

    Without `decoder_input_ids` the decoder sees `input_ids`, without `timesteps` t is the share of [MASK] among the
    real tokens, so that `DataCollatorForLanguageModeling` and `pipeline("fill-mask")` work as with any masked LM.
    """

    _tied_weights_keys = {
        "lm_head.weight": "encoder.embeddings.tokens.weight",
        "decoder.embeddings.tokens.weight": "encoder.embeddings.tokens.weight",
    }

    def __init__(self, config: ConceptEncoderConfig):
        super().__init__(config)
        if config.mask_token_id is None:
            raise ValueError("mask_token_id is None: masked diffusion needs the id of [MASK] in the configuration")
        self.loss_type = "ForMaskedLM"  # the class name matches no loss, and the fallback shifts labels
        self.encoder = ConceptEncoderModel(config)
        self.decoder = ConceptDiffusionDecoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def resize_token_embeddings(self, new_num_tokens=None, pad_to_multiple_of=None, mean_resizing=True):
        embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        if self.config.tie_word_embeddings:
            self.decoder.set_input_embeddings(embeddings)
        else:
            self.decoder.resize_token_embeddings(embeddings.num_embeddings, mean_resizing=mean_resizing)
        return embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        timesteps: Tensor | None = None,
        labels: Tensor | None = None,
        loss_weights: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        concepts: Tensor | None = None,
        num_visible_concepts: Tensor | int | None = None,
        decoder_attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        row_loss: Callable | None = None,
        **kwargs,
    ) -> ConceptMaskedLMOutput:
        """Score every position of a noised text given the concepts of `input_ids`.

        Args:
            input_ids: (B, N) ids that the encoder reads; not needed when `concepts` are given.
            attention_mask: (B, N), 1 = real token.
            decoder_input_ids: (B, N) noised ids that the decoder sees; default `input_ids`.
            timesteps: (B,) in [0, 1], 1 = all masked; default the share of [MASK] among real decoder tokens.
            labels: (B, N) ids to predict, -100 = no label.
            loss_weights: (B, N) factor on the cross-entropy of each labelled position; default 1.
            num_items_in_batch: denominator of the loss; default the number of labels of this batch.
            concepts: (B, C, D) in place of encoding `input_ids`.
            num_visible_concepts: k or (B,) of them, 1 <= k <= C: the decoder sees the first k concepts of a text, as
                if the others had been cut off. Default all.
            decoder_attention_mask: (B, N'), 1 = real, of `decoder_input_ids` where these are not as long as
                `input_ids`, labels and weights then too; default `attention_mask`.
            position_ids: (B, N), of `input_ids` and of decoder ids as long as these; default from the masks.
            row_loss: takes what `cross_entropy_of_rows` takes, and asks for the sparse form: only the positions that
                carry a label are decoded, and logits are what it gives of them. Default logits (B, N, V).
        """
        encoded = ConceptEncoderOutput(last_hidden_state=concepts)
        if concepts is None:
            encoded = self.encoder(input_ids, attention_mask, position_ids, **kwargs)  # (B, C, D)
        noised = input_ids if decoder_input_ids is None else decoder_input_ids
        if noised is None:
            raise ValueError("give input_ids or, with concepts, decoder_input_ids: the decoder has nothing to rebuild")
        if position_ids is not None and position_ids.shape[-1] != noised.shape[-1]:
            position_ids = None  # of a text of another length
        mask = attention_mask if decoder_attention_mask is None else decoder_attention_mask
        check_labels(labels, loss_weights, noised.shape, self.config.vocab_size)
        if timesteps is None:
            timesteps = self._masked_share(noised, mask)  # (B,)
        elif timesteps.shape != noised.shape[:1]:
            raise ValueError(f"timesteps must be ({len(noised)},), one per text, got {tuple(timesteps.shape)}")
        elif readable(timesteps) and not ((timesteps >= 0) & (timesteps <= 1)).all():
            raise ValueError(f"timesteps must be in [0, 1], got {timesteps.tolist()}")

        def decode(positions: Tensor | None) -> ConceptDecoderOutput:
            states = encoded.last_hidden_state
            shown = num_visible_concepts
            return self.decoder(noised, states, timesteps, mask, position_ids, shown, positions, **kwargs)

        return self._score(encoded, decode, labels, loss_weights, num_items_in_batch, row_loss)

    def _masked_share(self, ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        real = torch.ones_like(ids) if attention_mask is None else attention_mask
        masked = ((ids == self.config.mask_token_id) & real.bool()).sum(-1)
        return masked / real.sum(-1).clamp_min(1)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        concepts: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        length: int | None = None,
        num_steps: int = 16,
        order: str = "confidence",
        block_length: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Sample a text by unmasking a canvas in `num_steps` steps.

        The canvas is `decoder_input_ids` where given. Else it is `input_ids` if they hold any [MASK] (infilling), and
        otherwise `input_ids` with all but special tokens and padding masked (reconstruction). With `concepts` alone it
        is `length` positions of [MASK] between the first and last special token. Tokens already on the canvas stay.

        Args:
            input_ids: (B, N) text that the encoder reads, unless `concepts` are given.
            attention_mask: (B, N), 1 = real token; padding is never filled.
            concepts: (B, C, D) in place of encoding `input_ids`.
            decoder_input_ids: (B, N) canvas.
            length: tokens of the canvas made for `concepts` alone, special tokens included.
            num_steps: decoder calls; each commits an equal share of what was masked, the last one everything left.
            order: "confidence" commits the most probable draws first (Chang et al. 2022, arXiv:2202.04200);
                "ancestral" commits a uniformly random subset (Sahoo et al. 2024, arXiv:2406.07524); "blocks" goes
                from left to right over blocks of `block_length` positions and by confidence inside a block
                (semi-autoregressive remasking of Nie et al. 2025, arXiv:2502.09992). Differs: a step that has more to
                commit than a block holds continues in the next one.
            block_length: positions of a block of the canvas, for order "blocks" alone.
            temperature: factor 1 / temperature on the logits; 0 takes the most probable token.
            top_k: keep the k most probable tokens; 0 keeps all.
            top_p: keep the smallest set of tokens whose probability exceeds top_p; 1.0 keeps all.
            generator: source of randomness on the model's device; default the global one.
            token_type_ids: ignored; many tokenizers give them.

        Returns:
            (B, N) long, without [MASK] or [PAD] at real positions.
        """
        check_sampling(num_steps, order, block_length, temperature, top_k, top_p)
        ids = self._canvas(input_ids, attention_mask, concepts, decoder_input_ids, length)
        if concepts is None:
            concepts = self.encoder(input_ids, attention_mask).last_hidden_state
        masked = ids == self.config.mask_token_id  # (B, N)
        if attention_mask is not None:
            masked &= attention_mask.bool()
        start = masked.sum(-1, keepdim=True)  # (B, 1)
        for step in range(1, num_steps + 1):
            if not masked.any():
                break
            logits = self(attention_mask=attention_mask, decoder_input_ids=ids, concepts=concepts).logits[masked]
            no_answers = [i for i in (self.config.mask_token_id, self.config.pad_token_id) if i is not None]
            logits[:, no_answers] = torch.finfo(logits.dtype).min
            draws, confidence = draw_tokens(logits, temperature, top_k, top_p, generator)  # (M,), (M,)
            if order == "ancestral":
                confidence = torch.rand(confidence.shape, generator=generator, device=confidence.device)
            keep_masked = start * (num_steps - step) // num_steps  # (B, 1)
            commit = first_to_commit(masked, confidence, masked.sum(-1, keepdim=True) - keep_masked, block_length)
            ids = torch.where(commit, ids.masked_scatter(masked, draws), ids)
            masked &= ~commit
        return ids

    def _canvas(self, input_ids, attention_mask, concepts, decoder_input_ids, length) -> Tensor:
        config = self.config
        if decoder_input_ids is not None:
            return decoder_input_ids.clone()
        if input_ids is not None:
            if (input_ids == config.mask_token_id).any():
                return input_ids.clone()
            kept = [i for i in (config.bos_token_id, config.eos_token_id, config.pad_token_id) if i is not None]
            keep = torch.isin(input_ids, torch.tensor(kept, device=input_ids.device))
            return torch.where(keep, input_ids, config.mask_token_id)
        if concepts is None or length is None:
            raise ValueError("generate needs input_ids, or decoder_input_ids, or concepts together with length")
        ids = torch.full((concepts.shape[0], length), config.mask_token_id, device=concepts.device)
        if config.bos_token_id is not None:
            ids[:, 0] = config.bos_token_id
        if config.eos_token_id is not None:
            ids[:, -1] = config.eos_token_id
        return ids


class ConceptEncoderForMaskedLMPerceiver(ConceptMaskedLMModel):
    """Baseline pretraining head: every position rebuilt from the concepts by one cross-attention layer.

    For masked language modelling the encoder reads the masked text and the queries carry its tokens; for denoising
    from positions alone (TSDAE) set `config.decoder_query = "position"`, and no token reaches the decoder.
    """

    _tied_weights_keys = {"lm_head.weight": "encoder.embeddings.tokens.weight"}

    def __init__(self, config: ConceptEncoderConfig):
        super().__init__(config)
        self.encoder = ConceptEncoderModel(config)
        self.decoder = ConceptPerceiverDecoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        loss_weights: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        inputs_embeds: Tensor | None = None,
        num_visible_concepts: Tensor | int | None = None,
        position_ids: Tensor | None = None,
        row_loss: Callable | None = None,
        **kwargs,
    ) -> ConceptMaskedLMOutput:
        """Score every position given the concepts of `input_ids`.

        Args:
            input_ids: (B, N) ids that the encoder reads; or give `inputs_embeds` (B, N, E).
            attention_mask: (B, N), 1 = real token.
            decoder_input_ids: (B, N') ids that the queries carry; default what the encoder reads. With position
                queries only their number matters: give them where the labels are longer than the encoder's text.
            labels: (B, N') ids to predict, -100 = no label.
            loss_weights: (B, N') factor on the cross-entropy of each labelled position; default 1.
            num_items_in_batch: denominator of the loss; default the number of labels of this batch.
            num_visible_concepts, row_loss: as in `ConceptEncoderForDiffusionMLM.forward`.
            position_ids: (B, N), of the text and of decoder ids as long as it; default from the mask, and of decoder
                ids 0 and on.
        """
        encoded = self.encoder(input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)  # (B, C, D)
        if decoder_input_ids is not None:
            tokens = self.encoder.embeddings.tokens(decoder_input_ids)  # (B, N', E)
        else:
            tokens = self.encoder.embeddings.tokens(input_ids) if inputs_embeds is None else inputs_embeds
        check_labels(labels, loss_weights, tokens.shape[:2], self.config.vocab_size)
        if position_ids is not None and position_ids.shape[-1] != tokens.shape[1]:
            position_ids = None  # of a text of another length
        own_mask = attention_mask if decoder_input_ids is None else None  # the mask is of the encoder's text
        position_ids = token_positions(self.config, position_ids, own_mask, tokens)

        def decode(positions: Tensor | None) -> ConceptDecoderOutput:
            states = encoded.last_hidden_state
            return self.decoder(tokens, states, position_ids, num_visible_concepts, positions, **kwargs)

        return self._score(encoded, decode, labels, loss_weights, num_items_in_batch, row_loss)


# ------------------------------------------------------------------------------------------------- heads that classify


class ConceptClassificationModel(ConceptEncoderPreTrainedModel):
    """What the classification heads share: dropout, linear classifier, and the loss of `config.problem_type`."""

    # The library's classification losses ignore num_items_in_batch, so the Trainer must do the averaging.
    accepts_loss_kwargs = False

    def _add_classifier(self, config: ConceptEncoderConfig, num_features: int) -> None:
        self.num_labels = config.num_labels
        self.loss_type = "ForSequenceClassification"  # not every class name here matches it
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = ConceptDropout(dropout)
        self.classifier = nn.Linear(num_features, config.num_labels)

    def _classify(self, features: Tensor, labels: Tensor | None, encoded: ConceptEncoderOutput):
        logits = self.classifier(self.dropout(features))  # (B, num_labels)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return ConceptClassifierOutput(
            loss, logits, encoded.hidden_states, encoded.attentions, encoded.cross_attentions
        )


class ConceptSequenceClassificationModel(ConceptClassificationModel):
    """Classification or regression of a text, or of a pair in one sequence, from features that a subclass takes."""

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs,
    ) -> ConceptClassifierOutput:
        """Inputs as `ConceptEncoderModel.forward`; `labels` (B,) class ids or targets, or (B, num_labels) multi-label.

        The loss follows `config.problem_type`, as in every sequence classifier of transformers.
        """
        input_ids, attention_mask, position_ids = at_least_padding(input_ids, attention_mask, position_ids)
        encoded = self.encoder(input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)  # (B, C, D)
        features = self._features(encoded, input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)  # (B, D)
        return self._classify(features, labels, encoded)


class ConceptEncoderForSequenceClassificationPerceiver(ConceptSequenceClassificationModel):
    """Classification or regression of a text (or pair in one sequence) from its weighted-mean concept."""

    _keys_to_ignore_on_load_unexpected = [r"^(decoder|lm_head|token_pooling)\."]

    def __init__(self, config: ConceptEncoderConfig):
        super().__init__(config)
        self.encoder = ConceptEncoderModel(config)
        self.pooling = ConceptPooling(config)
        self._add_classifier(config, config.hidden_size)
        self.post_init()

    def _features(self, encoded: ConceptEncoderOutput, *text, **kwargs) -> Tensor:
        return self.pooling(encoded.last_hidden_state)


class ConceptEncoderForSequenceClassificationViaDecoder(ConceptSequenceClassificationModel):
    """Classification or regression from the text as the decoder of `ConceptEncoderForMaskedLMPerceiver` rebuilds it.

    `from_pretrained` on a checkpoint of that class brings its encoder and its decoder; only the classifier is new.
    """

    _keys_to_ignore_on_load_unexpected = [r"^(lm_head|pooling)\."]

    def __init__(self, config: ConceptEncoderConfig):
        super().__init__(config)
        self.encoder = ConceptEncoderModel(config)
        self.decoder = ConceptPerceiverDecoder(config)
        self.token_pooling = ConceptTokenPooling(config)
        self._add_classifier(config, config.hidden_size)
        self.post_init()

    def _features(self, encoded, input_ids, attention_mask, position_ids, inputs_embeds, **kwargs) -> Tensor:
        tokens = self.encoder.embeddings.tokens(input_ids) if inputs_embeds is None else inputs_embeds  # (B, N, E)
        position_ids = token_positions(self.config, position_ids, attention_mask, tokens)
        decoded = self.decoder(tokens, encoded.last_hidden_state, position_ids, **kwargs)  # (B, N, D)
        return self.token_pooling(decoded.last_hidden_state, attention_mask)


class ConceptEncoderForSentencePairClassification(ConceptClassificationModel):
    """Classification or regression of two texts, encoded apart and pooled to a and b (B, D).

    With `config.pair_comparison == "features"` a linear classifier reads `[a; b; |a - b|; a * b]`; with `"cosine"`
    there is no classifier: the one logit is the cosine of a and b, and the loss its squared error.
    """

    main_input_name = "input_ids_a"
    _keys_to_ignore_on_load_unexpected = [r"^(decoder|lm_head|token_pooling|classifier)\."]

    def __init__(self, config: ConceptEncoderConfig):
        super().__init__(config)
        self.encoder = ConceptEncoderModel(config)
        self.pooling = ConceptPooling(config)
        if config.pair_comparison == "features":
            self._add_classifier(config, 4 * config.hidden_size)
        elif config.num_labels != 1:
            raise ValueError(
                f"pair_comparison='cosine' gives one number per pair: num_labels must be 1, got {config.num_labels}"
            )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids_a: Tensor | None = None,
        attention_mask_a: Tensor | None = None,
        input_ids_b: Tensor | None = None,
        attention_mask_b: Tensor | None = None,
        labels: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs,
    ) -> ConceptClassifierOutput:
        """Compare two batches of texts, row by row.

        Args:
            input_ids_a, input_ids_b: (B, Na) and (B, Nb) token ids.
            attention_mask_a, attention_mask_b: the same shapes, 1 = real token.
            labels: (B,) class ids or targets, or (B, num_labels) multi-label; for the cosine targets in [-1, 1].
            input_ids, attention_mask, token_type_ids: (B, N) in place of the four above, both texts in one sequence as
                a tokenizer packs a pair; tokens of type 1 are text b.

        Returns:
            Logits (B, num_labels), or for the cosine (B, 1); hidden states and attentions are those of text a.

        Raises:
            ValueError: one of the two texts is missing.
        """
        if input_ids is not None:
            input_ids_a, attention_mask_a, input_ids_b, attention_mask_b = self._unpacked(
                input_ids, attention_mask, token_type_ids
            )
        if input_ids_a is None or input_ids_b is None:
            raise ValueError("a pair needs input_ids_a and input_ids_b, or input_ids with token_type_ids")
        encoded = self.encoder(input_ids_a, attention_mask_a, **kwargs)  # (B, C, D)
        a = self.pooling(encoded.last_hidden_state)  # (B, D)
        b = self.pooling(self.encoder(input_ids_b, attention_mask_b, **kwargs).last_hidden_state)  # (B, D)
        if self.config.pair_comparison == "features":
            return self._classify(torch.cat([a, b, (a - b).abs(), a * b], dim=-1), labels, encoded)
        cosine = nn.functional.cosine_similarity(a, b, dim=-1)  # (B,)
        loss = None if labels is None else nn.functional.mse_loss(cosine, labels.to(cosine.dtype).view(-1))
        logits = cosine.unsqueeze(-1)  # (B, 1)
        return ConceptClassifierOutput(
            loss, logits, encoded.hidden_states, encoded.attentions, encoded.cross_attentions
        )

    def _unpacked(self, ids: Tensor, mask: Tensor | None, token_type_ids: Tensor | None) -> tuple[Tensor, ...]:
        """Ids and mask of text a and of text b, each as if it stood alone."""
        if token_type_ids is None or (readable(token_type_ids) and not (token_type_ids == 1).any(-1).all()):
            raise ValueError(
                "a pair in one sequence needs token_type_ids with 1 at each token of the second text; a tokenizer "
                "that gives none needs the texts apart, as input_ids_a and input_ids_b"
            )
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        second = real & (token_type_ids == 1)
        first, opening = real & ~second, self.config.bos_token_id
        if opening is None:
            return ids, first, ids, second
        # The last token of text a makes room for the one that opens text b alone.
        before = second.roll(-1, dims=-1) & ~second
        return ids, first, ids.masked_fill(before, opening), second | before


# ------------------------------------------------------------------------------------------ for sentence-transformers


class ConceptMask(nn.Module):
    """Module of sentence-transformers behind the encoder: its `token_embeddings` are concepts, and all are real.

    Args:
        size: P = C * d of a pooled output that is all concepts one after the other; None: another module pools.
        width: d of the concepts that the encoder gives; None: it gives one vector of a text.
    """

    def __init__(self, size: int | None = None, width: int | None = None):
        super().__init__()
        self.size = size
        self.width = width

    def forward(self, features: dict[str, Tensor], **kwargs) -> dict[str, Tensor]:
        """`features` with an `attention_mask` (B, C) of ones; the given one stays that of the tokens."""
        if self.width is None:
            return features
        concepts = features["token_embeddings"]  # (B, C, D)
        pooled = {} if self.size is None else {"sentence_embedding": concepts.flatten(1)}
        return {**features, "attention_mask": concepts.new_ones(concepts.shape[:2], dtype=torch.long), **pooled}

    def on_model_ready(self, model: nn.Module) -> None:
        """ValueError where a `MultiVectorEncoder` made of this checkpoint cannot read what the encoder gives."""
        modules = {type(module).__name__: module for module in model.children()}
        if "MultiVectorMask" in modules and self.width is None:
            raise ValueError("MultiVectorEncoder compares concepts, and pooled_output='weighted' gives one vector")
        if "MultiVectorMask" in modules and "Dense" in modules and modules["Dense"].in_features != self.width:
            raise ValueError(
                f"MultiVectorEncoder adds a map of {modules['Dense'].in_features} numbers, and projection_size gives "
                f"{self.width} of each concept; make it of the modules of a SentenceTransformer without the last"
            )

    def get_config_dict(self) -> dict[str, int | None]:
        return {"size": self.size, "width": self.width}

    def get_embedding_dimension(self) -> int | None:
        return self.size

    def save(self, output_path: str, **kwargs) -> None:
        """Nothing to save; modules.json names the class, and the configuration of the model says the rest."""

    @classmethod
    def load(cls, model_name_or_path: str, cache_folder: str | None = None, **kwargs) -> "ConceptMask":
        try:
            from sentence_transformers.base.modules import Module

            Module.register(cls)  # whose instances are told when the model is ready
        except ImportError:
            pass
        kwargs = {name: kwargs[name] for name in ("token", "revision", "local_files_only") if name in kwargs}
        config = ConceptEncoderConfig.from_pretrained(model_name_or_path, cache_dir=cache_folder, **kwargs)
        kind, width = config.pooled_output, config.concept_dim
        return cls(config.projection_dim if kind == "concat" else None, None if kind == "weighted" else width)


ConceptEncoderModel.register_for_auto_class("AutoModel")
for _head in (ConceptEncoderForDiffusionMLM, ConceptEncoderForMaskedLMPerceiver):
    _head.register_for_auto_class("AutoModelForMaskedLM")
for _head in (
    ConceptEncoderForSequenceClassificationPerceiver,
    ConceptEncoderForSequenceClassificationViaDecoder,
    ConceptEncoderForSentencePairClassification,
):
    _head.register_for_auto_class("AutoModelForSequenceClassification")

__all__ = [
    "ConceptEncoderForDiffusionMLM",
    "ConceptEncoderForMaskedLMPerceiver",
    "ConceptEncoderForSentencePairClassification",
    "ConceptEncoderForSequenceClassificationPerceiver",
    "ConceptEncoderForSequenceClassificationViaDecoder",
    "ConceptEncoderModel",
    "ConceptEncoderPreTrainedModel",
    "ConceptMask",
]
