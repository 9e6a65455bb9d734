"""A whitening head: an affine map of the mean concept that is fitted after training and saved with the weights."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...trainers.data.corpora import DataArguments, load_corpus
from ...trainers.recipes import read_data
from ...utils.files import check_new, disk_trouble_named, whole_folder
from ...utils.tokenizer import longest_text
from ..loading.checkpoints import Checkpoint, read_texts

SMALLEST_VARIANCE = 1e-6  # relative: below it a direction is empty, as the one that the output LayerNorm takes away
NO_VARIANCE = 1e-12  # of the mean square: rounding


def whiten(
    checkpoint: str | os.PathLike,
    output_dir: str | os.PathLike,
    data: DataArguments | None = None,
    revision: str | None = None,
    **fields: Any,
) -> dict[str, int]:
    """Save `checkpoint` with a `pooler_output` that is uncorrelated and of variance 1 over training texts.

    Nothing else changes: the concepts, and all that heads read of them, stay as they are. The result is a checkpoint
    like any other, and `SentenceTransformer(output_dir)` embeds with it.

    Fit it to texts like those that will be embedded. Long blocks as in pretraining put every short sentence far from
    their mean, all in one direction, and the cosines then say nothing.

    Args:
        checkpoint: folder or Hub id of a pretrained concept encoder, with its tokenizer.
        output_dir: must not exist, or be empty.
        data: corpus, None for that of the checkpoint's recipe; `max_train_documents` of its training part are read,
            each up to `max_length` tokens.
        revision: commit, branch or tag of a Hub id.
        fields: of the recipe's corpus, in place of its own.

    Returns:
        `texts` read, and `rank`: directions that vary.

    Raises:
        ValueError: output_dir holds files; a checkpoint that is already whitened, fine-tuned, no concept encoder's or
            without some of its weights; fewer than two texts, or only equal ones; anything that `load_corpus` raises.
    """
    output_dir = Path(output_dir)
    check_new(output_dir)
    opened = Checkpoint.open(checkpoint, revision)
    data = read_data(opened.folder, **fields) if data is None else data
    if opened.config.pooler_whitening:
        raise ValueError(f"{opened.folder} is already whitened; give the checkpoint it was made from")
    opened.check_pretrained()
    tokenizer = opened.tokenizer
    model, _ = opened.load(pooler_whitening=True)
    encoder = getattr(model, model.base_model_prefix, model)
    longest = longest_text(opened.config, data.max_length)
    texts = [row["text"] for row in load_corpus(data.texts_alone(), "train")]
    means = mean_concepts(encoder.eval(), tokenizer, texts, longest)
    if len(means) < 2:
        raise ValueError(f"whitening needs at least 2 texts, got {len(means)}")
    mean, matrix = whitening(means)
    if matrix.shape[1] == 0:
        raise ValueError(f"the {len(means)} texts are all alike to the encoder: there is nothing to whiten by")
    with torch.no_grad():
        weight = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        weight[: matrix.shape[1]] = torch.from_numpy(matrix.T)
        encoder.whitening.weight.copy_(weight)
        encoder.whitening.bias.copy_(-weight @ torch.from_numpy(mean))
    with disk_trouble_named(output_dir), whole_folder(output_dir) as staged:
        model.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
    return {"texts": len(means), "rank": matrix.shape[1]}


def mean_concepts(
    encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int
) -> np.ndarray:
    """(n, D) float64 mean concepts of texts, in their order, before any whitening."""
    means = np.empty((len(texts), encoder.config.hidden_size))
    for rows, output in read_texts(encoder, tokenizer, texts, max_length=max_length):
        means[rows] = output.last_hidden_state.double().mean(1).cpu()
    return means


def whitening(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and matrix (D, k) so that `(x - mean) @ matrix` of the (n, D) vectors is uncorrelated, variance 1.

    Source: Su et al. 2021, arXiv:2103.15316, equations 5 to 7.
    Differs: directions with less than `SMALLEST_VARIANCE` of the largest variance are dropped, so k may be below D.
    """
    mean = vectors.mean(0)
    variances, directions = np.linalg.eigh(np.atleast_2d(np.cov(vectors, rowvar=False)))
    least = max(SMALLEST_VARIANCE * variances[-1], NO_VARIANCE * np.square(vectors).mean())
    kept = variances > least
    return mean, directions[:, kept] / np.sqrt(variances[kept])
