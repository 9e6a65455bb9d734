"""How concepts read tokens: attention, embeddings with their neighbours, and the sums that a text leaves in concepts.

Letters in shapes: B batch, N tokens, n tokens of a part, C concepts, D hidden size, E token embedding size, H heads.

A text is read at once or part by part, by `ConceptTokens`; what a part gives are sums, which add up. `ConceptReading`
is the attention of layers, `ConceptSlots` the sums that concepts may start from. Travels with every checkpoint, as
`modeling_concept.py` does, which imports it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import masking_utils
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_concept import ConceptEncoderConfig

if int(transformers.__version__.split(".")[0]) >= 5:
    from transformers.masking_utils import create_bidirectional_mask
else:

    def create_bidirectional_mask(config, queries, attention_mask, keys=None):  # it has causal ones alone
        if attention_mask is None or attention_mask.ndim == 4:
            return attention_mask
        return masking_utils.ALL_MASK_ATTENTION_FUNCTIONS[config._attn_implementation](
            batch_size=queries.shape[0],
            cache_position=torch.arange(queries.shape[1], device=queries.device),
            kv_length=attention_mask.shape[1],
            mask_function=lambda text, head, query, key: key >= 0,
            attention_mask=attention_mask.bool(),
            allow_is_causal_skip=False,
            dtype=queries.dtype,
            config=config,
        )


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype for sums and exponentials: float32 for half precision, otherwise `dtype` itself."""
    return torch.promote_types(dtype, torch.float32)


# Of all tokens that a concept still divides by, as in slot attention: the gradient at a text without tokens is finite.
SMALLEST_SHARE = 1e-8


def readable(*tensors: Tensor | None) -> bool:
    """Whether looking at values costs no synchronisation; elsewhere a bad index is the device's own assertion."""
    return not torch.compiler.is_compiling() and all(x is None or x.device.type == "cpu" for x in tensors)


# ------------------------------------------------------------------------------------------------------------- dropout


def drop(x: Tensor, p: float, training: bool) -> Tensor:
    """As `nn.functional.dropout`, with masks that a CPU draws three times as fast: 16 random bits decide an element.

    p is rounded to a multiple of 2**-16 there, and the scale goes with it.
    """
    dropped = round(p * 2**16)
    if not training or x.device.type != "cpu" or torch.compiler.is_compiling() or not 0 < dropped < 2**16:
        return nn.functional.dropout(x, p, training)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # four draws in each
    keep = words.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 2**15
    return x * keep.to(x.dtype).mul_(2**16 / (2**16 - dropped))


class ConceptDropout(nn.Dropout):
    """`nn.Dropout` by `drop`."""

    def forward(self, x: Tensor) -> Tensor:
        return drop(x, self.p, self.training)


# ----------------------------------------------------------------------------------------------------------- attention


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Softmax attention that returns its weights; a query that may see nothing gets zeros, as with sdpa."""
    scores = torch.matmul(query * scaling, key.transpose(2, 3))  # (B, H, Q, K)
    lowest, wide = torch.finfo(scores.dtype).min, at_least_float32(scores.dtype)
    if attention_mask is None:
        weights = scores.softmax(-1, dtype=wide)
    elif attention_mask.dtype == torch.bool:
        weights = scores.masked_fill(~attention_mask, lowest).softmax(-1, dtype=wide) * attention_mask
    else:
        weights = (scores + attention_mask).softmax(-1, dtype=wide) * (attention_mask > lowest / 2)
    weights = drop(weights.to(query.dtype), dropout, module.training)
    return torch.matmul(weights, value).transpose(1, 2), weights


class ConceptAttention(nn.Module):
    """Multi-head attention of `hidden_states` (B, Q, D) to `key_value_states` (B, K, D).

    Returns the output (B, Q, D), and the weights where the attention implementation keeps them.
    """

    def __init__(self, config: ConceptEncoderConfig):
        super().__init__()
        self.config = config
        self.is_causal = False
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states, key_value_states, attention_mask=None, **kwargs) -> tuple[Tensor, Tensor | None]:
        name = self.config._attn_implementation
        # With dropout, sdpa on a CPU takes the weights one by one and draws slowly.
        eager = name == "eager" or (name == "sdpa" and self._dropout and hidden_states.device.type == "cpu")
        attend = eager_attention_forward if eager else ALL_ATTENTION_FUNCTIONS[name]
        output, weights = attend(
            self,
            self._split(self.q_proj(hidden_states)),
            self._split(self.k_proj(key_value_states)),
            self._split(self.v_proj(key_value_states)),
            attention_mask,
            scaling=self.scaling,
            dropout=self._dropout,
            is_causal=False,
            **kwargs,
        )
        return self.o_proj(output.flatten(2)), weights

    @property
    def _dropout(self) -> float:
        return self.config.attention_probs_dropout_prob if self.training else 0.0

    def _split(self, x: Tensor) -> Tensor:  # (B, L, D) -> (B, H, L, D / H)
        return x.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)


def is_plain(linear: nn.Module) -> bool:
    """Whether the weight says all that a linear layer does: no adapter, no quantisation, nothing hooked onto it."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooked = "forward" in linear.__dict__ or any(getattr(linear, each) for each in hooks)
    if type(linear) not in (nn.Linear, ConceptZeroLinear) or hooked:
        return False
    return type(linear.weight) in (nn.Parameter, Tensor)


# -------------------------------------------------------------------------------------------------------------- tokens


def check_length(table: nn.Embedding | None, length: int, config: ConceptEncoderConfig) -> None:
    """ValueError for a text of more tokens than a table of learned positions has rows."""
    if table is not None and length > config.max_position_embeddings:
        raise ValueError(
            f"sequence of {length} tokens is longer than max_position_embeddings ({config.max_position_embeddings}); "
            "truncate it, or use position_embedding_type='sinusoidal'"
        )


def at_least_padding(input_ids: Tensor | None, attention_mask: Tensor | None, position_ids: Tensor | None):
    """Ids, mask and positions as they are, or of a token of padding where no text has a token: without [CLS] blank
    texts have none."""
    if input_ids is None or input_ids.ndim != 2 or input_ids.shape[1] > 0:
        return input_ids, attention_mask, position_ids
    padding = torch.zeros(len(input_ids), 1, dtype=torch.long, device=input_ids.device)
    return padding, torch.zeros_like(padding), None


def check_text(input_ids: Tensor | None, inputs_embeds: Tensor | None, attention_mask: Tensor | None, device) -> None:
    """ValueError for ids or embeddings and mask that are no batch of texts, or not where the model is."""
    name, given, axes = ("inputs_embeds", inputs_embeds, 3) if input_ids is None else ("input_ids", input_ids, 2)
    assert given is not None
    if given.ndim != axes or given.shape[1] == 0:
        wanted = "(batch, tokens)" if axes == 2 else "(batch, tokens, token_embedding_size)"
        raise ValueError(f"{name} must be {wanted} with at least one token, got shape {tuple(given.shape)}")
    if input_ids is not None and input_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"input_ids must hold integers (int64 or int32), got {input_ids.dtype}")
    for label, tensor in ((name, given), ("attention_mask", attention_mask)):
        # Weights that accelerate offloads are on "meta" until they are needed.
        if tensor is not None and tensor.device != device and device.type != "meta":
            raise ValueError(f"{label} is on {tensor.device}, the model is on {device}; move one with .to(device)")
    if attention_mask is None or attention_mask.ndim == 4:  # which transformers has made already
        return
    if attention_mask.shape != given.shape[:2]:
        raise ValueError(f"attention_mask must be {tuple(given.shape[:2])}, got {tuple(attention_mask.shape)}")
    kind, known = attention_mask.dtype, True
    if kind.is_complex or (readable(attention_mask) and attention_mask.numel()):
        known = not kind.is_complex and bool(((attention_mask == 0) | (attention_mask == 1)).all())
    if not known:
        raise ValueError(
            f"attention_mask must hold 1 for a real token and 0 for padding, got {kind} with other values; a mask "
            "that is added to scores needs four axes"
        )


def check_labels(labels: Tensor | None, loss_weights: Tensor | None, shape: torch.Size, vocab_size: int) -> None:
    """ValueError for texts without a token to decode, for labels and weights that are not one per decoded position, or
    labels outside the vocabulary."""
    if shape[1] == 0:
        raise ValueError(f"there must be at least one token to rebuild, got shape {tuple(shape)}")
    for name, tensor in (("labels", labels), ("loss_weights", loss_weights)):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} must be {tuple(shape)}, one per decoded position, got {tuple(tensor.shape)}")
    if labels is not None and labels.numel() and readable(labels):
        low, high = labels.where(labels != -100, 0).aminmax()
        if low < 0 or high >= vocab_size:
            raise ValueError(f"labels must be -100 or in [0, {vocab_size}), got {low.item()} to {high.item()}")


def check_chunks(
    chunk_length: int | None, attention_mask: Tensor | None, config: ConceptEncoderConfig, kwargs
) -> None:
    """ValueError for what cannot be read `chunk_length` tokens at a time."""
    if chunk_length is None:
        return
    if chunk_length < 1:
        raise ValueError(f"chunk_length must be at least 1 token, got {chunk_length}")
    if config.token_update == "bixt":
        raise ValueError(
            "token_update='bixt' changes every token in every layer, so they cannot be read in chunks; leave "
            "chunk_length out"
        )
    if attention_mask is not None and attention_mask.ndim != 2:
        raise ValueError(f"chunk_length needs an attention_mask (B, N), got shape {tuple(attention_mask.shape)}")
    if kwargs.get("output_attentions", getattr(config, "output_attentions", False)):
        raise ValueError("chunk_length keeps no attention weights; leave it out to get output_attentions")


def token_positions(config, given: Tensor | None, mask: Tensor | None, tokens: Tensor) -> Tensor:
    """(B, N) or (1, N): places of tokens (B, N, ...) as given, or counted as `config.position_counting` says."""
    if given is not None:
        return given
    if config.position_counting == "columns" or mask is None or mask.ndim == 4:
        return torch.arange(tokens.shape[1], device=tokens.device)[None]
    return (mask.long().cumsum(-1) - 1).clamp_min(0)


def labelled_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where the labels (B, N) of each row are, in order: (B, K) for the longest row's K, and which of them are real.

    Positions never attend to one another in any decoder here, so no other one has to be decoded for the loss.
    """
    labelled = labels != -100
    longest = max(int(labelled.sum(-1).max()), 1) if labels.numel() else 0
    positions = labelled.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, :longest]
    return positions, labelled.gather(-1, positions)


def at_positions(states: Tensor, positions: Tensor | None) -> Tensor:
    """(B, K, D): the states (B, N, D) of `positions` (B, K), or of all where there are none."""
    return states if positions is None else torch.take_along_dim(states, positions.unsqueeze(-1), 1)


def sinusoidal_embedding(positions: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """(..., dim) sinusoids of `positions` (...): sine, cosine, sine ... (Vaswani et al. 2017, arXiv:1706.03762)."""
    wide = at_least_float32(dtype)
    exponents = torch.arange(dim // 2, device=positions.device, dtype=wide) / (dim // 2)
    angles = positions.to(wide).unsqueeze(-1) * torch.exp(-math.log(10000.0) * exponents)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2).to(dtype)


def position_embedding(table, position_ids: Tensor, dim: int, dtype: torch.dtype, config) -> Tensor:
    """(..., N, dim) embeddings of position_ids (..., N): rows of a learned table, or sinusoids where there is none."""
    if table is None:
        return sinusoidal_embedding(position_ids, dim, dtype)
    check_length(table, position_ids.shape[-1], config)
    return table(position_ids)


class ConceptTokenEmbeddings(nn.Module):
    """Token plus position embeddings of width `size`, projected to the hidden size where `size` is smaller.

    With `config.embedding_layer_norm` a LayerNorm follows, last, so that keys and values are taken from what it gives.
    Differs from BERT (arXiv:1810.04805), whose norm comes before the dropout.
    """

    def __init__(self, config: ConceptEncoderConfig, size: int, placed: bool = True):
        super().__init__()
        self.config = config
        self.size = size
        self.tokens = nn.Embedding(config.vocab_size, size, padding_idx=config.pad_token_id)
        learned = config.position_embedding_type == "learned"
        self.positions = nn.Embedding(config.max_position_embeddings, size) if learned else None
        self.placed = placed
        self.dropout = ConceptDropout(config.hidden_dropout_prob)
        self.projection = nn.Identity() if size == config.hidden_size else nn.Linear(size, config.hidden_size)
        normed = config.embedding_layer_norm
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if normed else None

    def forward(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, position_ids: Tensor) -> Tensor:
        if inputs_embeds is None:
            self.check_ids(input_ids)
            inputs_embeds = self.tokens(input_ids)  # (B, N, E)
        if self.placed:
            dim, dtype = self.size, inputs_embeds.dtype
            inputs_embeds = inputs_embeds + position_embedding(self.positions, position_ids, dim, dtype, self.config)
        embedded = self.projection(self.dropout(inputs_embeds))  # (B, N, D)
        return embedded if self.norm is None else self.norm(embedded)

    def check_ids(self, input_ids: Tensor) -> None:
        if not readable(input_ids) or not input_ids.numel():
            return
        low, high = input_ids.aminmax()
        if low < 0 or high >= self.config.vocab_size:
            raise ValueError(
                f"token ids must be in [0, {self.config.vocab_size}), got {low.item()} to {high.item()}; "
                "the tokenizer does not belong to this model, or its added tokens need resize_token_embeddings"
            )


class ConceptNeighbours(nn.Module):
    """(B, N, D) -> (B, N, D): tokens that know what stands before them.

    Of each token's D numbers the first half is multiplied by 1 plus a weighted sum of the second halves of the w
    tokens before it, elementwise, with D / 2 weights for each place; the second half stays as it is. A sum of tokens
    alone would vanish in the sum of a text, and one half times the other tells `a b` from `b a`.
    """

    def __init__(self, config: ConceptEncoderConfig):
        super().__init__()
        self.reach = config.neighbours
        # So that a weight of 1 is felt as much as the token itself, whose numbers start with this deviation.
        self.scale = 1.0 if config.embedding_layer_norm else 1 / config.initializer_range
        self.weight = nn.Parameter(torch.empty(config.neighbours, config.hidden_size // 2))  # the nearest first

    def forward(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        """Tokens that `real` (B, N) hides are nobody's neighbours, and those on the two sides of them are none."""
        if real is not None and real.ndim != 2:
            shape = tuple(real.shape)
            raise ValueError(f"neighbours={self.reach} needs an attention_mask (B, N), got shape {shape}")
        first, second = tokens.chunk(2, dim=-1)  # (B, N, D / 2)
        seen = second if real is None else second * real.unsqueeze(-1).to(second.dtype)
        seen = nn.functional.pad(seen, (0, 0, self.reach, 0))
        mixed = first
        for offset, weight in enumerate((self.weight * self.scale).to(first.dtype), start=1):
            start = self.reach - offset
            mixed = torch.addcmul(mixed, first, weight * seen[:, start : start + first.shape[1]])
        return torch.cat([mixed, second], dim=-1)


@dataclass
class ConceptTokens:
    """Tokens of a batch that become states as they are read.

    Attributes:
        input_ids, inputs_embeds: (B, N) or (B, N, E), one of them.
        attention_mask: (B, N), 1 = real token, or `None`: all are.
        position_ids: (B, N) or (1, N); by default counted.
        chunk_length: tokens that are read at a time; by default all.

    Raises:
        ValueError: more tokens than learned positions.
    """

    embeddings: ConceptTokenEmbeddings
    neighbours: ConceptNeighbours | None
    input_ids: Tensor | None
    inputs_embeds: Tensor | None
    attention_mask: Tensor | None = None
    position_ids: Tensor | None = None
    chunk_length: int | None = None

    def __post_init__(self):
        config, length = self.embeddings.config, self.given.shape[1]
        check_length(self.embeddings.positions, length, config)
        self.position_ids = token_positions(config, self.position_ids, self.attention_mask, self.given)
        self.chunk_length = self.chunk_length or length

    @property
    def given(self) -> Tensor:
        """(B, N) or (B, N, E)."""
        given = self.input_ids if self.inputs_embeds is None else self.inputs_embeds
        assert given is not None
        return given

    def states(self, start: int, stop: int) -> Tensor:
        """(B, n, D) of the tokens from `start` to before `stop`; those before `start` are there as neighbours."""
        first = start if self.neighbours is None else max(start - self.neighbours.reach, 0)
        given = (self.input_ids, self.inputs_embeds, self.position_ids)
        states = self.embeddings(*(None if x is None else x[:, first:stop] for x in given))
        if self.neighbours is None:
            return states
        mask = None if self.attention_mask is None else self.attention_mask[:, first:stop]
        return self.neighbours(states, mask)[:, start - first :]


def parts_of(tokens: Tensor | ConceptTokens, mask: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """States (B, n, D) and mask (B, n): all there is, or chunk after chunk."""
    if isinstance(tokens, Tensor):
        yield tokens, mask
        return
    size = tokens.chunk_length
    assert size is not None  # filled on construction
    for start in range(0, tokens.given.shape[1], size):
        stop = start + size
        yield tokens.states(start, stop), None if mask is None else mask[:, start:stop]


# ------------------------------------------------------------------------------------------------------------- reading


class ConceptLatentQueries(nn.Module):
    """Learned latent queries (C, D) with their positions; where every text's concepts start from."""

    def __init__(self, config: ConceptEncoderConfig):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_concepts, config.hidden_size))
        if config.concept_position_type == "learned":
            self.positions = nn.Parameter(torch.empty(config.num_concepts, config.hidden_size))

    def forward(self, batch_size: int) -> Tensor:
        queries = self.weight
        if self.config.concept_position_type == "learned":
            queries = queries + self.positions
        elif self.config.concept_position_type == "sinusoidal":
            indices = torch.arange(len(queries), device=queries.device)
            queries = queries + sinusoidal_embedding(indices, self.config.hidden_size, queries.dtype)
        return queries.expand(batch_size, -1, -1)  # (B, C, D)


def visible_concept_mask(config, queries: Tensor, concepts: Tensor, num_visible: Tensor | int | None):
    """Attention mask from queries (B, Q, D) to the first `num_visible` of concepts (B, C, D); `None` shows them all.

    With a draw per text the concepts become an ordered code: the first k are enough, for any k.
    Source: nested dropout (Rippel et al. 2014, arXiv:1402.0915).
    """
    if num_visible is None:
        return None
    total = concepts.shape[1]
    counts = torch.as_tensor(num_visible)
    if counts.shape not in ((), concepts.shape[:1]):
        raise ValueError(f"num_visible_concepts must be an int or ({len(concepts)},), got {tuple(counts.shape)}")
    if readable(counts) and not ((counts > 0) & (counts <= total)).all():
        raise ValueError(f"num_visible_concepts must be in [1, {total}], got {counts.tolist()}")
    counts = counts.to(concepts.device).expand(len(concepts))
    visible = torch.arange(total, device=concepts.device) < counts[:, None]  # (B, C)
    return create_bidirectional_mask(config, queries, visible, concepts)


def absorbing_saves(tokens: int, concepts: int, heads: int, width: int) -> bool:
    """Whether N tokens are read with fewer multiplications when queries and sums are projected in place of tokens.

    Projected, keys and values cost 2 N D**2, and scores and sums of C concepts 2 N C D. Absorbed, each of H heads has
    scores and sums of width D, 2 N C H D, and queries and sums go through the projections, 2 C D**2.
    """
    return concepts * (tokens * heads + width) < tokens * (width + concepts)


class ConceptReading(ConceptAttention):
    """How concepts (B, C, D) read tokens: states (B, N, D), or `ConceptTokens`, whose states come part by part.

    The weights are a softmax over tokens, or with `config.concept_attention == "slot"` over concepts and then a mean
    over tokens. Tokens are projected to keys and values, or where that costs more (`absorbing_saves`) the projections
    are absorbed: scores `(q_h W_kh) x`, outputs `W_vh (weights x)`. A part gives sums, which add up over the parts.

    Sources: slot attention (Locatello et al. 2020, arXiv:2006.15055, eq. 1-2, one iteration, several heads); sums
    relative to what has been seen so far, online softmax (Milakov & Gimelshein 2018, arXiv:1805.02867).
    """

    def forward(self, concepts, tokens, attention_mask=None, **kwargs):  # type: ignore[override]
        """`attention_mask`: (B, N), 1 = real token, or one with four axes that transformers has made already."""
        whole = isinstance(tokens, Tensor)
        absorbed = self._absorbs(tokens, concepts.shape[1], attention_mask)
        if whole and not absorbed and self.config.concept_attention == "softmax":
            mask = create_bidirectional_mask(self.config, concepts, attention_mask, tokens)
            return super().forward(concepts, tokens, mask, **kwargs)
        query, offset = self._split(self.q_proj(concepts)) * self.scaling, 0.0  # (B, H, C, D / H)
        shape = query.shape[:3]
        if absorbed:
            (key_weight, key_bias), (value_weight, value_bias) = map(self._of_heads, (self.k_proj, self.v_proj))
            offset = (query * key_bias).sum(-1, keepdim=True)  # (B, H, C, 1)
            query = torch.einsum("bhcd,hde->bhce", query, key_weight).flatten(1, 2)  # (B, H * C, D)
        else:
            query = query.flatten(0, 1)  # (B * H, C, D / H)
        read: Any = None
        for states, mask in parts_of(tokens, attention_mask):
            keys = values = states  # (B, n, D)
            if not absorbed:
                keys, values = (self._split(each(states)).flatten(0, 1) for each in (self.k_proj, self.v_proj))
            scores = torch.bmm(query, keys.mT).view(*shape, -1) + offset  # (B, H, C, n)
            weights, level = self._weigh(scores, mask, whole)
            weights = drop(weights.to(values.dtype), self._dropout, self.training)
            sums = torch.bmm(weights.view(*query.shape[:2], -1), values).view(*shape, -1)
            part = sums, weights.sum(-1, keepdim=True), level
            read = part if read is None else self._added(read, part)
        sums, seen, level = read
        if not whole:
            sums, seen = (x * (level[0] / level[0].clamp_min(SMALLEST_SHARE)) for x in (sums, seen))
        sums, seen = sums.to(query.dtype), seen.to(query.dtype)
        if absorbed:
            sums = torch.einsum("bhce,hde->bhcd", sums, value_weight) + seen * value_bias
        return self.o_proj(sums.transpose(1, 2).flatten(2)), weights if whole else None

    def _absorbs(self, tokens: "Tensor | ConceptTokens", concepts: int, mask: Tensor | None) -> bool:
        length = 2**31  # while compiling: one graph for all lengths
        if not torch.compiler.is_compiling():
            length = (tokens if isinstance(tokens, Tensor) else tokens.given).shape[1]
        saves = absorbing_saves(length, concepts, self.config.num_attention_heads, self.config.hidden_size)
        return saves and (mask is None or mask.ndim == 2) and is_plain(self.k_proj) and is_plain(self.v_proj)

    def _of_heads(self, linear: nn.Linear) -> tuple[Tensor, Tensor]:  # (H, D / H, D), (H, 1, D / H)
        return linear.weight.unflatten(0, (-1, self.head_dim)), linear.bias.view(-1, 1, self.head_dim)

    def _weigh(self, scores: Tensor, mask: Tensor | None, whole: bool) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Weights (B, H, C, n) of a part, and total and highest score: what it weighs is total * exp(highest)."""
        scores = scores.to(at_least_float32(scores.dtype))
        if mask is not None and mask.ndim == 2:
            mask = mask[:, None, None].bool()
        elif mask is not None and mask.dtype != torch.bool:
            mask = mask >= 0
        if self.config.concept_attention == "slot":
            shares = scores.softmax(-2) if mask is None else scores.softmax(-2) * mask
            total = shares.sum(-1, keepdim=True)
            least = SMALLEST_SHARE if whole else 1e-30  # small shares of parts may make a large one
            return shares / total.clamp_min(least), (total, torch.zeros_like(total))
        scores = scores if mask is None else scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        shares = scores.softmax(-1)
        level = None if whole else (1 / shares.amax(-1, keepdim=True), scores.amax(-1, keepdim=True))
        return shares if mask is None else shares * mask, level

    @staticmethod
    def _added(read: tuple, part: tuple) -> tuple:
        (sums, seen, (total, highest)), (more, more_seen, (more_total, other)) = read, part
        top = torch.maximum(highest, other)
        old, new = total * (highest - top).exp(), more_total * (other - top).exp()
        total = (old + new).clamp_min(1e-30)
        return (sums * old + more * new) / total, (seen * old + more_seen * new) / total, (total, top)


class ConceptPowerNorm(nn.Module):
    """(B, C, D) -> (B, C, D): each concept divided by a power of its norm, then all of a text to a mean square of 1.

    The mean is over all concepts, or those that are `visible` (B, C); the others are zeros.

    Nothing stays nothing: a text of zeros has no gradient and comes back.
    """

    def __init__(self, power: float):
        super().__init__()
        self.power = power

    def forward(self, concepts: Tensor, visible: Tensor | None = None) -> Tensor:
        wide = concepts.to(at_least_float32(concepts.dtype))
        squares = wide.square().sum(-1, keepdim=True)  # (B, C, 1)
        wide = wide * (squares + 1e-8).pow(-self.power / 2)
        empty = (squares == 0).all(1, keepdim=True)
        count = concepts.shape[1] if visible is None else visible.sum(-1).clamp_min(1)[:, None, None]
        scale = (wide.square().mean(2, keepdim=True).sum(1, keepdim=True) / count).masked_fill(empty, 1.0).rsqrt()
        return (wide * scale).masked_fill(empty, 0.0).to(concepts.dtype)


class ConceptZeroLinear(nn.Linear):
    """A linear layer that starts at zero: gates of decoder layers, scores of a pooling.

    Zeroing one from the layer that holds it is not enough: initialisation visits the plain linear again afterwards,
    which is how the gates of the published run came to start at random.
    """


class ConceptSlots(nn.Module):
    """Slots that share out the tokens and keep their sums: latent queries (B, C, D) and tokens to concepts (B, C, D).

    A token goes to slots by a softmax over concepts of its products with the latent queries, or to the best
    `config.concepts_per_token` of them alone, times a learned weight of at least 0 that starts as 1. No key or value
    is projected: 2 C D multiplications a token, and where tokens go to k slots C D, and k D additions.

    Source: NetVLAD (Arandjelovic et al. 2016, arXiv:1511.07247), a learned form of MUVERA's encodings (Dhulipala et
    al. 2024, arXiv:2405.19504). Differs: sums of tokens, not of residuals; a power of the norm is left in each slot.
    """

    def __init__(self, config: ConceptEncoderConfig):
        super().__init__()
        self.config = config
        self.scorer = ConceptZeroLinear(config.hidden_size, 1)
        self.power_norm = ConceptPowerNorm(config.aggregation_power)

    def forward(self, latents: Tensor, tokens, counts: Tensor | None, visible: Tensor | None) -> Tensor:
        """`counts`: (B, N) that each token counts for, 0 for padding; `visible`: (B, C) slots; `None`: 1, and all."""
        sums: Tensor | float = 0.0
        for states, count in parts_of(tokens, counts):
            wide = at_least_float32(states.dtype)
            weight = (1 + self.scorer(states)).relu().to(wide)  # (B, n, 1)
            weight = weight if count is None else weight * count.unsqueeze(-1)
            scores = (states @ latents.mT).to(wide)  # (B, n, C)
            if visible is not None:
                scores = scores.masked_fill(~visible[:, None], torch.finfo(wide).min)
            sums = sums + self._sums(scores, weight, states.to(wide))
        return self.power_norm(sums, visible).to(latents.dtype)

    def counts(self, input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor | None:
        """(B, N): what a token counts for. Of n equal ones each is log(1 + n) / n with `config.count_saturation`."""
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError(
                f"concept_aggregation='sum' needs an attention_mask (B, N), got shape {tuple(attention_mask.shape)}"
            )
        real = None if attention_mask is None else attention_mask.float()
        if not self.config.count_saturation:
            return real
        if input_ids is None:
            raise ValueError("count_saturation=True counts token ids; give input_ids, not inputs_embeds")
        real = torch.ones_like(input_ids, dtype=torch.float) if real is None else real
        found = real.new_zeros(real.shape[0], self.config.vocab_size).scatter_add(1, input_ids.long(), real)
        found = found.gather(1, input_ids.long()).clamp_min(1)
        return real * found.log1p() / found

    def _sums(self, scores: Tensor, weight: Tensor, states: Tensor) -> Tensor:
        each = self.config.concepts_per_token
        if each is None:
            return (scores.softmax(-1) * weight).mT @ states  # (B, C, D)
        best, place = scores.topk(min(each, scores.shape[-1]))  # (B, n, k)
        best = best.softmax(-1)
        if scores.requires_grad:  # straight through: the value of the best alone, the gradient of all
            soft = scores.softmax(-1)
            shares = soft + (torch.zeros_like(soft).scatter(-1, place, best) - soft).detach()
            return (shares * weight).mT @ states
        texts, _, slots = scores.shape
        sums = states.new_zeros(texts * slots, states.shape[2])
        place = place + slots * torch.arange(texts, device=scores.device)[:, None, None]
        for share, where in zip((best * weight).unbind(-1), place.unbind(-1), strict=True):
            sums = sums.index_add(0, where.flatten(), (share.unsqueeze(-1) * states).flatten(0, 1))
        return sums.view(texts, slots, -1)
