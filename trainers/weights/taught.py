"""Warm start `taught`: an encoder that begins with what a teacher says of single words, shared out over slots.

Each word piece has the teacher's vector of it, as a text of its own, and a weight by how rare it is; slots begin as
clusters of these vectors, so that a text is compared with another cluster by cluster. It is a checkpoint like any
other, and what it is for is distillation from the same teacher, which starts far from noise.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from transformers import PreTrainedTokenizerBase

from ...modeling_concept import ConceptEncoderModel
from .sketch import slot_sums, word_weights

SHARPNESS = 10.0  # of the softmax over slots, on vectors of length 1
RARE = 1 / 6  # of the word pieces, which make no cluster: many are parts of words, whose vectors say little


def taught(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    teacher: Callable[[list[str]], np.ndarray],
    num_concepts: int = 16,
    size: int | None = 64,
    hidden_size: int = 256,
    longest: int = 512,
    seed: int = 0,
    **config,
) -> ConceptEncoderModel:
    """The encoder, in eval mode; the same again for the same tokenizer, texts, teacher and seed.

    Args:
        tokenizer: of the encoder; its special tokens are zeros.
        texts: corpus that the weights come from, and how frequent word pieces are.
        teacher: gives vectors (n, T) of n texts.
        num_concepts: slots C.
        size: numbers d of a slot in the pooled output; None: all D.
        hidden_size: principal components D that are kept of the teacher's vectors of word pieces.
        longest: tokens of a text that count for the weights.
        seed: of clusters and of the map to the pooled output.
        config: more fields of the configuration.

    Raises:
        ValueError: no texts; vectors that are no finite table with a row for each word piece, or fewer word pieces or
            numbers than `hidden_size`.

    Source: token vectors of a transformer, reduced by PCA and weighted, as in Model2Vec (van Dongen & Tulkens 2024,
        https://github.com/MinishLab/model2vec). Differs: slots of clusters in place of one mean, and idf weights.
    """
    weights = word_weights(tokenizer, texts, longest)
    pieces = [piece.removeprefix("##") for piece in tokenizer.convert_ids_to_tokens(range(len(weights)))]
    vectors = np.asarray(teacher(pieces), dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) != len(pieces) or not np.isfinite(vectors).all():
        raise ValueError(f"a teacher must give a finite row for each of {len(pieces)} texts, got {vectors.shape}")
    if min(vectors.shape) < hidden_size:
        raise ValueError(f"hidden_size={hidden_size} is more than {vectors.shape}, the teacher's vectors, can give")
    table = PCA(hidden_size, random_state=seed).fit_transform(vectors)
    table[tokenizer.all_special_ids] = 0
    table /= np.sqrt(np.square(table).sum(1).mean())
    directions = table / np.linalg.norm(table, axis=1, keepdims=True).clip(1e-9)
    words = np.argsort(weights, kind="stable")
    words = words[directions[words].any(axis=1)]
    frequent = words[: max(num_concepts, round(len(words) * (1 - RARE)))]
    centres = KMeans(num_concepts, n_init=2, random_state=seed).fit(directions[frequent]).cluster_centers_
    model = slot_sums(tokenizer, len(weights), num_concepts, size, hidden_size, **config)
    scored = np.linalg.lstsq(np.c_[table, np.ones(len(table))], weights / weights.mean() - 1, rcond=None)[0]
    generator = torch.Generator().manual_seed(seed)
    assert model.slots is not None
    with torch.no_grad():
        model.embeddings.tokens.weight.copy_(torch.from_numpy(table))
        model.latents.weight.copy_(
            torch.from_numpy(SHARPNESS * centres / np.linalg.norm(centres, axis=1, keepdims=True))
        )
        model.slots.scorer.weight.copy_(torch.from_numpy(scored[None, :-1]))
        model.slots.scorer.bias.fill_(scored[-1])
        if size is not None:
            torch.nn.init.orthogonal_(model.pool.projection.weight, generator=generator)
    return model.eval()
