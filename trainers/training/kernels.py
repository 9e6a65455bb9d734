"""Kernels of other libraries for CUDA, in place of the package's own."""

import torch
from torch import Tensor


def liger_linear_cross_entropy(
    states: Tensor, weight: Tensor, labels: Tensor, row_weights: Tensor, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """What `modeling_concept.LinearCrossEntropy` gives, by the fused kernels of Liger.

    Weighted rows make these take the logits once more on the way back: four products with the vocabulary, not three.

    Args:
        states: (M, D) on a CUDA device.
        weight: (V, D) of `lm_head`.
        labels: (M,) in [0, V).
        row_weights: (M,) factors of the rows.
        label_smoothing: in [0, 1).

    Returns:
        The weighted sum of the cross-entropies in nats, and these themselves (M,), detached.

    Raises:
        ImportError: the extra `cuda` is not installed.
    """
    try:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy
    except ImportError as error:
        raise ImportError("use_liger_kernel needs Liger: pip install 'concept-encoder[cuda]'") from error

    losses = liger_fused_linear_cross_entropy(
        states, weight, labels, label_smoothing=label_smoothing, reduction="none", accum_dtype=torch.float32
    )
    return (losses * row_weights.to(losses.dtype)).sum(), losses.detach()
