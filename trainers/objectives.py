"""Objectives: what a training step minimises, as named parts. An objective is called, it never keeps the model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from ..modeling_concept import at_least_float32
from .regularizers import REGULARIZERS

TIMESTEP_BINS = 5


@dataclass
class ObjectiveOutput:
    """Result of one micro-batch.

    Attributes:
        loss: scalar in nats, normalised over the whole accumulated global batch.
        parts: name -> (sum, count) of what is logged; the logged value is the ratio over steps and processes.
        token_count: number of labelled tokens in the micro-batch.
        concepts: (B, C, D), detached, for whoever watches their geometry.
    """

    loss: Tensor
    parts: dict[str, tuple[Tensor, Tensor]]
    token_count: Tensor
    concepts: Tensor


@strict
@dataclass
class ObjectiveArguments:
    """The `objective:` section of a recipe."""

    schedule: str = field(default="linear", metadata={"help": "Noise schedule: linear, cosine or log-linear."})
    t_min: float = field(default=0.0, metadata={"help": "Timesteps are uniform over (t_min, t_max]; 0 <= t_min."})
    t_max: float = field(default=1.0, metadata={"help": "Largest timestep, at most 1 (all masked)."})
    t_sampling: Literal["independent", "antithetic"] = field(
        default="antithetic", metadata={"help": "Timesteps independent per row, or evenly spread over a global batch."}
    )
    weighting: Literal["none", "elbo"] = field(
        default="elbo", metadata={"help": "Weight of a masked token: none = 1, elbo = exact (1/t for linear)."}
    )
    position_share: float = field(
        default=1.0,
        metadata={"help": "Share of the masked tokens drawn for the training loss, in (0, 1]; unbiased, and faster."},
    )
    label_smoothing: float = field(default=0.0, metadata={"help": "Of the training cross-entropy, in [0, 1)."})
    num_eval_timesteps: int = field(
        default=10, metadata={"help": "Points of the fixed t-grid on which evaluation integrates the NELBO."}
    )
    regularizers: list[str] = field(
        default_factory=list,
        metadata={"help": f"Terms name=weight added to the loss, such as variance=0.1; {', '.join(REGULARIZERS)}."},
    )

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")
        if self.num_eval_timesteps < 1:
            raise ValueError(f"num_eval_timesteps must be at least 1, got {self.num_eval_timesteps}")
        self.regularizer_weights()

    def regularizer_weights(self) -> dict[str, float]:
        """Name -> weight of the regularizers; ValueError for an unknown name, one named twice, a bad weight."""
        weights: dict[str, float] = {}
        for term in self.regularizers:
            name, _, weight = term.partition("=")
            if name not in REGULARIZERS:
                raise ValueError(f"Unknown regularizer {name!r}. Available: {', '.join(REGULARIZERS)}")
            if name in weights:
                raise ValueError(f"regularizer {name} is named twice")
            try:
                weights[name] = float(weight)
            except ValueError:
                raise ValueError(f"regularizer {name} needs a weight, such as {name}=0.1, got {term!r}") from None
            if not 0 < weights[name] < float("inf"):
                raise ValueError(f"the weight of regularizer {name} must be positive and finite, got {weight}")
        return weights


class DiffusionObjective:
    """Masked diffusion: the encoder sees the clean text, the decoder rebuilds the masked positions.

    With weighting "elbo", timesteps over (0, 1] and no smoothing the loss is an unbiased estimate of the conditional
    NELBO in nats per token (conditional: the encoder saw the text). Otherwise it is a weighted masked cross-entropy.
    Regularizers come on top, each under its own name and unweighted among the parts.
    """

    def __init__(self, label_smoothing: float = 0.0, regularizers: Mapping[str, float] | None = None):
        self.label_smoothing = label_smoothing
        self.regularizers = dict(regularizers or {})

    def __call__(self, model: nn.Module, batch: dict[str, Tensor], num_items: Tensor | float) -> ObjectiveOutput:
        """Loss of a corrupted micro-batch; `num_items` is the denominator over the accumulated global batch."""
        own_items = batch["num_items"].sum()
        inputs = {name: tensor for name, tensor in batch.items() if name != "num_items"}
        output = model(**inputs, label_smoothing=self.label_smoothing, num_items_in_batch=num_items)
        labelled = batch["labels"] != -100  # (B, N)
        sums, counts = output.token_losses.detach().sum(-1), labelled.sum(-1)  # (B,)
        # Bin k holds timesteps in (k / bins, (k + 1) / bins].
        bins = (batch["timesteps"] * TIMESTEP_BINS).ceil().long().clamp(1, TIMESTEP_BINS) - 1
        zeros = torch.zeros(TIMESTEP_BINS, device=sums.device)
        binned = zeros.index_add(0, bins, sums), zeros.index_add(0, bins, counts.to(zeros.dtype))
        parts = {f"loss_t_{(k + 1) / TIMESTEP_BINS:.1f}": (binned[0][k], binned[1][k]) for k in range(TIMESTEP_BINS)}
        loss = output.loss
        for name, weight in self.regularizers.items():
            value = REGULARIZERS[name](output.concepts.to(at_least_float32(output.concepts.dtype)))
            # A mean over the micro-batches of the global batch, each by what it adds to the denominator.
            loss = loss + weight * value * own_items / num_items
            parts[name] = (value.detach(), torch.ones_like(value.detach()))
        return ObjectiveOutput(loss, parts, labelled.sum(), output.concepts.detach())
