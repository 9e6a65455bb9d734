"""Divergence caught before it reaches the weights, and the gradient's norm by module."""

import json
import math
import statistics
from collections import deque
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ...utils.files import write_json

GUARD_FILE = "gradient_norms.json"
WINDOW = 100  # latest steps that say what is usual
FEWEST = 20  # of them, before a norm can be called unusual
MAX_ROLLBACKS = 3


class DivergenceError(FloatingPointError):
    """Training has diverged; the weights are those of the step before."""


class DivergenceGuard:
    """Tells a diverging step from its loss and gradient norm, before the optimizer uses the gradient.

    A step diverges when its loss or norm is not finite, or when its norm exceeds `ratio` times the median of the last
    100 steps, from the 20th on. The median, since single spikes and the fall of the first steps leave it alone. Where
    gradients are clipped it takes three such steps in a row: a loss weighed by 1/t has single ones that do no harm.

    Args:
        ratio: at least 1; 0 judges finiteness alone.
        clipped: whether the norm is cut before the gradient is used.
    """

    def __init__(self, ratio: float, clipped: bool):
        self.ratio = ratio
        self.in_a_row = 3 if clipped else 1
        self.norms: deque[float] = deque(maxlen=WINDOW)

    def check(self, step: int, loss: float, norm: float) -> None:
        """Remember the norm of a step, or raise DivergenceError with step, norm, the usual norm and the way out."""
        usual = statistics.median(self.norms) if self.norms else None
        beside = "" if usual is None else f" (median of the last {len(self.norms)} steps: {usual:.3g})"
        if not math.isfinite(loss):
            trouble = f"the loss is {loss} at step {step}, the gradient norm {norm:.3g}{beside}"
        elif not math.isfinite(norm):
            trouble = f"the gradient norm is {norm} at step {step}{beside}"
        elif (
            self.ratio and usual is not None and len(self.norms) >= FEWEST and self._lowest(norm) > self.ratio * usual
        ):
            trouble = (
                f"the gradient norm is {norm:.3g} at step {step}, {norm / usual:.0f} times the usual one{beside}, "
                f"{self.in_a_row} such in a row"
            )
        else:
            self.norms.append(norm)
            return
        raise DivergenceError(
            f"{trouble}; the weights are still those of the step before. Lower learning_rate or max_grad_norm, or "
            "warm up longer; on_divergence=rollback does the first by itself."
        )

    def _lowest(self, norm: float) -> float:
        """The smallest of the norms that have to be unusual."""
        return min([*self.norms, norm][-self.in_a_row :])

    def save(self, folder: str) -> None:
        """Write the norms into a checkpoint."""
        write_json(Path(folder) / GUARD_FILE, {"norms": list(self.norms)})

    def load(self, folder: str) -> None:
        """Continue with the norms of a checkpoint; ValueError if it was saved without the state of training."""
        file = Path(folder) / GUARD_FILE
        if not file.is_file():
            raise ValueError(
                f"{folder} has no {GUARD_FILE}: it was saved with save_only_model, or by another program, so training "
                "cannot continue from it exactly; choose another checkpoint"
            )
        self.norms = deque(json.loads(file.read_text())["norms"], maxlen=WINDOW)


def gradient_norms(model: nn.Module) -> dict[str, Tensor]:
    """Module -> L2 norm of its gradient; layers one by one, and the square root of the summed squares is the whole.

    Modules are the first two names of a path, with the number of a layer: `encoder.layers.0`, `decoder.norm`,
    `lm_head`. Parameters without a gradient are left out; tied ones count once, where they come first.
    """
    with_gradient = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    if not with_gradient:
        return {}
    norms = torch._foreach_norm([gradient for _, gradient in with_gradient])
    groups: dict[str, list[Tensor]] = {}
    for (name, _), norm in zip(with_gradient, norms, strict=True):
        path = name.split(".")[:-1] or [name]
        groups.setdefault(".".join(path[: 3 if path[2:] and path[2].isdigit() else 2]), []).append(norm)
    whole = {name: torch.stack(group).norm() for name, group in groups.items()}
    # Of gradients that FSDP2 shards, every process knows its part only.
    return {name: norm.full_tensor() if isinstance(norm, DTensor) else norm for name, norm in whole.items()}


def set_base_rates(optimizer: torch.optim.Optimizer, scheduler, base_rates: list[float]) -> None:
    """Give a schedule in progress other base learning rates, one per parameter group."""
    factors = [new / old if old else 1.0 for new, old in zip(base_rates, scheduler.base_lrs, strict=True)]
    scheduler.base_lrs = list(base_rates)
    scheduler._last_lr = [rate * factor for rate, factor in zip(scheduler._last_lr, factors, strict=True)]
    for group, base, factor in zip(optimizer.param_groups, base_rates, factors, strict=True):
        group["initial_lr"] = base
        group["lr"] *= factor
