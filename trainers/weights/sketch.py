"""Warm start `sketch`: an encoder that knows a language's words before any training, as sums weighted by rarity.

Each word piece belongs to one slot and has random values; a slot is the sum of its word pieces, each weighted by its
inverse document frequency in a corpus times log(1 + count in the text). Two texts are compared slot by slot. It is a
checkpoint like any other, and training continues from it.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ...configuration_concept import ConceptEncoderConfig
from ...modeling_concept import ConceptEncoderModel

# Of the softmax over slots: all but exp(-20) of a token goes to its own, and training can still move it.
SHARPNESS = 20.0


def inverse_document_frequency(texts: Iterable[list[int] | np.ndarray], vocab_size: int) -> np.ndarray:
    """(V,) log(1 + (n - df + 1/2) / (df + 1/2)) of token ids in n texts; df texts hold the id.

    Source: Robertson & Zaragoza 2009, The Probabilistic Relevance Framework, eq. 3.3, kept positive as in Lucene.
    """
    found, count = np.zeros(vocab_size), 0
    for ids in texts:
        found[np.unique(np.asarray(ids, dtype=np.int64))] += 1
        count += 1
    return np.log1p((count - found + 0.5) / (found + 0.5))


def sketch(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    num_concepts: int = 64,
    size: int = 64,
    longest: int = 2048,
    seed: int = 0,
    **config,
) -> ConceptEncoderModel:
    """The encoder, in eval mode; the same again for the same tokenizer, texts and seed.

    Its token embeddings hold random values (d numbers), the token's slot (one of C) and its weight (one number), so
    that D is at least d + C + 1; latent queries read the slot, the map to the pooled output the values.

    Args:
        tokenizer: of the encoder; its special tokens weigh nothing.
        texts: corpus that the weights come from: what the language is like, never what is searched.
        num_concepts: slots C.
        size: random numbers d of a word piece. The pooled output has C * d.
        longest: tokens of a text that count for the weights.
        seed: of slots and values.
        config: more fields of the configuration, such as `decoder_context`.

    Raises:
        ValueError: no texts; C or d below 1; `hidden_size` too small for them.
    """
    if num_concepts < 1 or size < 1:
        raise ValueError(f"a sketch needs num_concepts and size of at least 1, got {num_concepts} and {size}")
    least = size + num_concepts + 1
    width = config.setdefault("hidden_size", -(-least // 16) * 16)
    if width < least:
        raise ValueError(f"a sketch of {num_concepts} x {size} needs hidden_size of at least {least}, got {width}")
    weights = word_weights(tokenizer, texts, longest)
    exact = {"aggregation_power": 0.0, "concepts_per_token": 1, "count_saturation": True}
    model = slot_sums(tokenizer, len(weights), num_concepts, size, **{**exact, **config})
    random = np.random.RandomState(seed)
    slots = random.randint(0, num_concepts, len(weights))
    values = random.randn(len(weights), size) / math.sqrt(size)
    assert model.slots is not None
    with torch.no_grad():
        tokens = model.embeddings.tokens.weight.zero_()  # (V, D): values, slot, weight
        tokens[:, :size] = torch.from_numpy(values)
        tokens[torch.arange(len(weights)), size + torch.from_numpy(slots)] = 1
        tokens[:, -1] = torch.from_numpy(weights)
        model.latents.weight.zero_()[:, size : size + num_concepts].fill_diagonal_(SHARPNESS)
        model.slots.scorer.weight.zero_()[0, -1] = 1
        model.slots.scorer.bias.fill_(-1)
        model.pool.projection.weight.zero_()[:, :size].fill_diagonal_(1)
    return model.eval()


def word_weights(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], longest: int) -> np.ndarray:
    """(V,) inverse document frequencies of word pieces, 0 of special tokens; ValueError where no text has any."""
    vocab_size = max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1)
    weights = inverse_document_frequency(_tokenized(tokenizer, texts, longest), vocab_size)
    if np.ptp(weights) == 0:
        raise ValueError("word pieces get their weights from texts, and there was no text with any")
    weights[tokenizer.all_special_ids] = 0
    return weights


def slot_sums(
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    num_concepts: int,
    size: int | None,
    hidden_size: int,
    **config,
) -> ConceptEncoderModel:
    """A new encoder without a layer, whose C slots keep sums; of each d numbers in the pooled output, or all D."""
    fields = {
        "num_attention_heads": math.gcd(hidden_size, 8),
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": 0,
        "position_embedding_type": "none",
        "concept_aggregation": "sum",
        "pooled_output": "concat",
        "projection_size": size,
        "pad_token_id": tokenizer.pad_token_id,
        "mask_token_id": tokenizer.mask_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        **config,
    }
    sizes = {"vocab_size": vocab_size, "num_concepts": num_concepts, "hidden_size": hidden_size}
    return ConceptEncoderModel(ConceptEncoderConfig(**sizes, **fields))


def _tokenized(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], longest: int) -> Iterator[list[int]]:
    texts = iter(texts)
    while some := list(islice(texts, 256)):
        yield from tokenizer(some, add_special_tokens=False, truncation=True, max_length=longest)["input_ids"]
