"""The cross-entropy of training, which never holds all logits, and kernels of other libraries for CUDA."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...modeling_concept import cross_entropy_of_rows
from ...reading_concept import at_least_float32, is_plain, readable

VOCABULARY_ROWS = 256  # labelled positions whose logits are held at once while training


class LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy of the logits `states @ weight.T`, `VOCABULARY_ROWS` rows at a time.

    Takes states (M, D), weight (V, D), labels (M,), row_weights (M,) and a label smoothing; gives the weighted sum of
    the cross-entropies in nats, and these themselves (M,), detached, both at least float32. The gradients are taken
    on the way, while the logits of a chunk are at hand, so that neither these nor their gradients are ever kept.

    Source: the scheme of Liger Kernel (Hsu et al. 2024, arXiv:2410.10989, section 3.2). Differs: weighted rows.
    """

    @staticmethod
    def forward(ctx, states, weight, labels, row_weights, label_smoothing):
        wide = at_least_float32(states.dtype)
        row_weights = row_weights.to(wide)
        losses = states.new_empty(len(states), dtype=wide)
        wanted = any(ctx.needs_input_grad[:2])
        if wanted:
            state_grads = torch.empty_like(states)
            fused = weight.dtype == wide and len(states) > 0  # the first product then overwrites what it is added to
            weight_grad = (torch.empty_like if fused else torch.zeros_like)(weight, dtype=wide)
        held = states.new_empty(min(len(states), VOCABULARY_ROWS), len(weight))  # one chunk's logits after another's
        for start in range(0, len(states), VOCABULARY_ROWS):
            rows = slice(start, start + VOCABULARY_ROWS)
            own, scale = labels[rows, None], row_weights[rows, None]  # (m, 1)
            logits = torch.mm(states[rows], weight.mT, out=held[: len(own)]).to(wide)  # (m, V)
            largest = logits.amax(-1, keepdim=True)
            target = (1 - label_smoothing) * logits.gather(-1, own)
            if label_smoothing:
                target = target + label_smoothing * logits.mean(-1, keepdim=True)
            total = logits.sub_(largest).exp_().sum(-1, keepdim=True)
            losses[rows] = (total.log() + largest - target).squeeze(-1)
            if wanted:
                grads = logits.mul_(scale / total)
                if label_smoothing:
                    grads.sub_(scale * (label_smoothing / weight.shape[0]))
                grads = grads.scatter_add_(-1, own, (label_smoothing - 1) * scale).to(states.dtype)
                state_grads[rows] = grads @ weight
                if fused:
                    weight_grad.addmm_(grads.mT, states[rows], beta=min(start, 1))
                else:
                    weight_grad += grads.mT @ states[rows]
        if wanted:
            ctx.save_for_backward(state_grads, weight_grad)
        ctx.mark_non_differentiable(losses)
        return (losses * row_weights).sum(), losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, _):
        grads = ctx.saved_tensors
        if not readable(grad) or grad != 1:  # a loss that is the weighted sum itself needs no second (V, D)
            grads = [each * grad for each in grads]
        return (*(each.to(grads[0].dtype) for each in grads), None, None, None)


def linear_cross_entropy(
    lm_head: nn.Module,
    states: Tensor,
    labels: Tensor,
    row_weights: Tensor,
    label_smoothing: float = 0.0,
    kernel: Callable = LinearCrossEntropy.apply,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What `cross_entropy_of_rows` gives, by a kernel that takes it from states and weight; then without logits.

    Only a plain linear layer without a bias is its weight alone: what an adapter or a quantised layer does is in its
    forward, so there the logits are held. The products are in the precision of autocast where that is on.
    """
    if not is_plain(lm_head) or lm_head.bias is not None:
        return cross_entropy_of_rows(lm_head, states, labels, row_weights, label_smoothing)
    device, weight = states.device.type, lm_head.weight
    if torch.is_autocast_enabled(device):
        states, weight = (each.to(torch.get_autocast_dtype(device)) for each in (states, weight))
    with torch.autocast(device, enabled=False):
        return *kernel(states, weight, labels, row_weights, label_smoothing), None


def liger_linear_cross_entropy(
    states: Tensor, weight: Tensor, labels: Tensor, row_weights: Tensor, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """What `LinearCrossEntropy` gives, by the fused kernels of Liger.

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
