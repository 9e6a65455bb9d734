"""Noise schedules of absorbing-state diffusion: how many tokens are still there at timestep t."""

import math
from typing import Protocol

import torch
from torch import Tensor


class NoiseSchedule(Protocol):
    """Two methods, both elementwise on t in (0, 1]; t = 1 is all masked."""

    def alpha(self, t: Tensor) -> Tensor:
        """Keep probability of a token at t, falling from 1 at t = 0 to 0 at t = 1."""
        ...

    def elbo_weight(self, t: Tensor) -> Tensor:
        """-alpha'(t) / (1 - alpha(t)), the factor on the cross-entropy of a masked token in the NELBO.

        Source: Sahoo et al. 2024, MDLM, arXiv:2406.07524, eq. 10; Shi et al. 2024, arXiv:2406.04329, eq. 4.
        """
        ...


class LinearSchedule:
    """alpha = 1 - t; the weight is exactly 1 / t."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def elbo_weight(self, t: Tensor) -> Tensor:
        return 1 / t


class CosineSchedule:
    """alpha = cos(pi t / 2): few masked tokens for most of the time."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(math.pi / 2 * t)

    def elbo_weight(self, t: Tensor) -> Tensor:
        # sin(x) / (1 - cos(x)) = 1 / tan(x / 2), without the cancellation near 0.
        return math.pi / 2 / torch.tan(math.pi / 4 * t)


SCHEDULES: dict[str, type[NoiseSchedule]] = {"linear": LinearSchedule, "cosine": CosineSchedule}


def get_schedule(name: str) -> NoiseSchedule:
    """The schedule called `name`; ValueError with the known names otherwise."""
    if name not in SCHEDULES:
        raise ValueError(f"Unknown noise schedule {name!r}. Available: {', '.join(SCHEDULES)}")
    return SCHEDULES[name]()
