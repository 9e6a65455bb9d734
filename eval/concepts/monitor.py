"""Concept geometry while training: a few figures of a training batch, cheap enough for every logged step."""

from functools import lru_cache

import torch
from torch import Tensor

DOCUMENTS = 8  # texts of the batch that are measured
COLLAPSED_SHARE = 0.1  # of the Gaussian null's RankMe; below it the concepts of a text are near copies
TEMPLATE_SHARE = 0.01  # of the variance; below it the concepts hardly depend on the text


def monitor_concepts(concepts: Tensor) -> tuple[dict[str, float], str | None]:
    """Geometry of a training batch, and a warning in words when the concepts of a text have collapsed.

    Args:
        concepts: (B, C, D), any float dtype and device; the first 8 texts are measured.

    Returns:
        Figures: `concepts_rankme`, exp of the entropy of the singular values of each text's concepts (Garrido et al.
        2023, arXiv:2210.02885), not centred, since centring hides a common vector however long it is, mean over texts;
        `concepts_rankme_share`, the same over that of
        Gaussian noise of the same size; `concepts_similarity`, mean absolute cosine of two concepts of a text;
        `concepts_content_share`, share of the variance that depends on the text. And the warning, or None.
    """
    concepts = concepts[:DOCUMENTS].detach().float()
    num_concepts, hidden_size = concepts.shape[1:]
    rank = _rankme(concepts).mean()
    null = _null_rankme(num_concepts, hidden_size)
    unit = torch.nn.functional.normalize(concepts, dim=-1)
    cosines = (unit @ unit.mT).abs()
    pairs = max(num_concepts * (num_concepts - 1), 1)
    similarity = (cosines.sum((1, 2)) - num_concepts).mean() / pairs
    content = (concepts - concepts.mean(0)).square().sum()
    total = (concepts - concepts.mean((0, 1))).square().sum()
    values = torch.stack([rank, rank / null, similarity, content / total.clamp_min(1e-12)]).tolist()
    names = ("concepts_rankme", "concepts_rankme_share", "concepts_similarity", "concepts_content_share")
    return dict(zip(names, values, strict=True)), _warning(num_concepts, null, *values)


def _warning(
    num_concepts: int, null: float, rank: float, share: float, similarity: float, content: float
) -> str | None:
    if share < COLLAPSED_SHARE:
        return (
            f"concepts collapsed: the {num_concepts} concepts of a text span {rank:.1f} directions (RankMe), "
            f"{share:.0%} of the {null:.1f} of noise; mean similarity {similarity:.3f}"
        )
    if content < TEMPLATE_SHARE:
        return f"concepts collapsed: only {content:.1%} of their variance depends on the text, the rest is a template"
    return None


def _rankme(concepts: Tensor) -> Tensor:
    eigenvalues = torch.linalg.eigvalsh(_small_gram(concepts.double())).clamp_min(0)
    share = eigenvalues.sqrt() / eigenvalues.sqrt().sum(-1, keepdim=True).clamp_min(1e-12)
    return torch.special.entr(share).sum(-1).exp().float()


def _small_gram(matrices: Tensor) -> Tensor:
    return matrices @ matrices.mT if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT @ matrices


@lru_cache
def _null_rankme(num_concepts: int, hidden_size: int) -> float:
    noise = torch.randn(4, num_concepts, hidden_size, generator=torch.Generator().manual_seed(0))
    return _rankme(noise).mean().item()
