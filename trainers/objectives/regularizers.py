"""Regularizers: pure functions of concepts (B, C, D) that say how collapsed they are, in one number to minimise.

Three sets of vectors can be regularised: the concepts of each text (pairs of the same text, averaged over texts), all
B * C concepts as one sample, and each concept slot over the batch. Each function says which it takes. None of them is
ever part of an evaluation score.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize, relu

VARIANCE_EPSILON = 1e-4  # under the square root, as in VICReg


def _off_diagonal(matrices: Tensor) -> Tensor:
    """(..., n * (n - 1)): the entries off the diagonal of matrices (..., n, n)."""
    n = matrices.shape[-1]
    return matrices.flatten(-2)[..., :-1].unflatten(-1, (n - 1, n + 1))[..., 1:].flatten(-2)


def _cosines(concepts: Tensor) -> Tensor:
    """(B, C * (C - 1)) cosines of the ordered pairs of different concepts of a text."""
    if concepts.shape[1] < 2:
        raise ValueError(f"pairs of concepts need at least 2 concepts per text, got {concepts.shape[1]}")
    unit = normalize(concepts, dim=-1)
    return _off_diagonal(unit @ unit.mT)


def orthogonality(concepts: Tensor) -> Tensor:
    """Mean squared cosine of two concepts of a text: 0 orthogonal, 1 collinear.

    Source: the reference; up to the mean over pairs, the squared Frobenius distance of the normalised Gram matrix to
    the identity (Bansal et al. 2018, arXiv:1810.09102).
    """
    return _cosines(concepts).square().mean()


def soft_orthogonality(concepts: Tensor, threshold: float = 0.1) -> Tensor:
    """Mean squared excess of the absolute cosine of two concepts of a text over `threshold`. Source: the reference."""
    return relu(_cosines(concepts).abs() - threshold).square().mean()


def gaussian_potential(concepts: Tensor, temperature: float = 2.0) -> Tensor:
    """Mean of exp(-temperature * squared distance) over pairs of unit concepts of a text: what the reference calls
    uniformity, which lacks the logarithm."""
    return torch.exp(-temperature * (2 - 2 * _cosines(concepts))).mean()


def variance(concepts: Tensor, target_std: float = 1.0) -> Tensor:
    """Mean shortfall of a dimension's standard deviation over all B * C concepts below `target_std`.

    Source: VICReg (Bardes et al. 2022, arXiv:2105.04906), eq. 1, which takes it over a batch of embeddings.
    """
    return _variance(concepts.flatten(0, 1), target_std)


def covariance(concepts: Tensor) -> Tensor:
    """Sum of squared covariances of different dimensions over all B * C concepts, divided by D.

    Source: VICReg (Bardes et al. 2022, arXiv:2105.04906), eq. 3, which takes it over a batch of embeddings.
    """
    return _covariance(concepts.flatten(0, 1))


def vicreg(concepts: Tensor, variance_weight: float = 1.0, covariance_weight: float = 1.0) -> Tensor:
    """Weighted sum of `variance` and `covariance`; the weights of the reference (the paper's are 25 and 1)."""
    return variance_weight * variance(concepts) + covariance_weight * covariance(concepts)


def slot_vicreg(concepts: Tensor, variance_weight: float = 25.0, covariance_weight: float = 1.0) -> Tensor:
    """VICReg of each concept slot over the texts of the batch, mean over slots: it moves what depends on the text.

    Source: VICReg (Bardes et al. 2022, arXiv:2105.04906) with the paper's weights; a slot is its embedding. The only
    one of these that a template cannot satisfy.
    """
    slots = concepts.transpose(0, 1)  # (C, B, D)
    return variance_weight * _variance(slots, 1.0) + covariance_weight * _covariance(slots)


def variance_and_potential(
    concepts: Tensor, variance_weight: float = 1.0, uniformity_weight: float = 1.0, temperature: float = 2.0
) -> Tensor:
    """Weighted sum of `variance` and `gaussian_potential`: what the reference calls combined."""
    return variance_weight * variance(concepts) + uniformity_weight * gaussian_potential(concepts, temperature)


def nearest_neighbor_spread(concepts: Tensor) -> Tensor:
    """Minus the mean distance of a unit concept to the nearest other of its text: what the reference calls T-REGS."""
    unit = normalize(concepts, dim=-1)
    distances = torch.cdist(unit, unit)
    itself = torch.eye(concepts.shape[1], dtype=torch.bool, device=concepts.device)
    return -distances.masked_fill(itself, torch.inf).amin(-1).mean()


def coding_rate(concepts: Tensor, epsilon: float = 0.5) -> Tensor:
    """Nats needed to code the unit concepts of a text up to distortion `epsilon`, mean over texts; large is spread.

    Source: MCR2 (Yu et al. 2020, arXiv:2006.08558), eq. 7: logdet(I + D / (C epsilon^2) Z^T Z) / 2.
    """
    unit = normalize(concepts, dim=-1).to(torch.promote_types(concepts.dtype, torch.float32))
    num_concepts, hidden_size = concepts.shape[1:]
    gram = unit @ unit.mT * hidden_size / (num_concepts * epsilon**2)
    return torch.logdet(torch.eye(num_concepts, device=gram.device, dtype=gram.dtype) + gram).mean() / 2


def coding_rate_hinge(concepts: Tensor, share: float = 0.8, epsilon: float = 0.5) -> Tensor:
    """Shortfall of the coding rate below `share` of that of orthonormal concepts, as a share of it; 0 when reached.

    With more concepts than dimensions the largest rate is that of a tight frame, C / D times the identity.
    """
    num_concepts, hidden_size = concepts.shape[1:]
    rank = min(num_concepts, hidden_size)
    largest = rank * math.log1p(hidden_size / (rank * epsilon**2)) / 2
    return relu(share - coding_rate(concepts, epsilon) / largest)


def _variance(vectors: Tensor, target_std: float) -> Tensor:
    """Of vectors (..., n, D), mean over dimensions and leading axes."""
    if vectors.shape[-2] < 2:
        raise ValueError(f"a variance needs at least 2 vectors, got {vectors.shape[-2]}; enlarge the batch")
    return relu(target_std - (vectors.var(-2) + VARIANCE_EPSILON).sqrt()).mean()


def _covariance(vectors: Tensor) -> Tensor:
    if vectors.shape[-2] < 2:
        raise ValueError(f"a covariance needs at least 2 vectors, got {vectors.shape[-2]}; enlarge the batch")
    centred = vectors - vectors.mean(-2, keepdim=True)
    matrices = centred.mT @ centred / (vectors.shape[-2] - 1)  # (..., D, D)
    return _off_diagonal(matrices).square().sum(-1).mean() / vectors.shape[-1]


# What the package trains with: recipes, the comparison of objectives, gate 1.
OWN = (orthogonality, slot_vicreg, coding_rate_hinge)
# The terms of the published run's code, kept equal to its records: tests/trainers/test_regularizers.py. No run of this
# package used one but orthogonality.
PUBLISHED = (
    orthogonality,
    soft_orthogonality,
    gaussian_potential,
    variance,
    covariance,
    vicreg,
    variance_and_potential,
    nearest_neighbor_spread,
)
REGULARIZERS: dict[str, Callable[[Tensor], Tensor]] = {function.__name__: function for function in (*OWN, *PUBLISHED)}
