"""Conflict-safe regularizers: at the concepts, their gradient may not undo the task's."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ...modeling_concept import ConceptEncoderModel, ConceptEncoderOutput, at_least_float32


def without_conflict(gradient: Tensor, task: Tensor) -> Tensor:
    """`gradient` (B, C, D) less its component along `task` (B, C, D) in each text where the two point apart.

    Per text, so that the result does not depend on how a batch is cut into micro-batches and processes.

    Source: PCGrad, Yu et al. 2020, arXiv:2001.06782, algorithm 1. Differs: at the concepts instead of the parameters,
    and the task is never projected.
    """
    wide = at_least_float32(gradient.dtype)
    task = task.to(wide)
    # Scaled first: the squares of a small gradient would underflow.
    largest = task.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(wide).tiny)
    direction = normalize((task / largest).flatten(1), dim=-1).view_as(task)
    along = (gradient.to(wide) * direction).sum((-2, -1), keepdim=True)  # (B, 1, 1)
    return (gradient - along.clamp_max(0) * direction).to(gradient.dtype)


class _Fork(torch.autograd.Function):
    """Concepts twice, for the task and for the regularizers; the way back joins the gradients without conflict."""

    @staticmethod
    def forward(ctx: Any, concepts: Tensor) -> tuple[Tensor, Tensor]:
        return concepts.view_as(concepts), concepts.view_as(concepts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        task, regularizers = gradients
        return task + without_conflict(regularizers, task)


@contextmanager
def forked_concepts(model: nn.Module) -> Iterator[list[Tensor]]:
    """Within, every call of the model's encoder appends to the list the concepts that regularizers have to read.

    Whatever else reads the concepts, as the decoder does, counts as the task. Wrappers of the model may copy its
    outputs, so the fork sits at the encoder inside.

    Raises:
        ValueError: `model` holds no `ConceptEncoderModel`.
    """
    encoder = next((module for module in model.modules() if isinstance(module, ConceptEncoderModel)), None)
    if encoder is None:
        raise ValueError(f"conflict_safe needs a model with a ConceptEncoderModel, got {type(model).__name__}")
    forked: list[Tensor] = []

    def fork(module: nn.Module, args: tuple, output: ConceptEncoderOutput) -> ConceptEncoderOutput:
        output.last_hidden_state, regularised = _Fork.apply(output.last_hidden_state)
        forked.append(regularised)
        return output

    handle = encoder.register_forward_hook(fork)
    try:
        yield forked
    finally:
        handle.remove()
