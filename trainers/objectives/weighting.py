"""Weights of loss terms: how the task's loss and the terms beside it become one number to minimise."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

TERM_WEIGHTINGS = ("fixed", "learnable", "kendall_gal")


class FixedWeighting(nn.Module):
    """The plain sum of the task and the terms, each as the recipe weighs it."""

    def forward(self, task: Tensor, terms: Mapping[str, Tensor], share: Tensor | float = 1.0) -> Tensor:
        """Total of a micro-batch.

        Args:
            task: scalar, the micro-batch's part of the task's loss; over a global batch these add up to it.
            terms: name -> scalar, the mean of a term over this micro-batch times its weight in the recipe.
            share: of the micro-batch in the global batch, so that totals over micro-batches add up to the mean.
        """
        return task + share * sum(terms.values())

    def figures(self) -> dict[str, Tensor]:
        """What to log: nothing, these weights never change."""
        return {}


class LearnedWeighting(FixedWeighting):
    """Weights that are parameters of the objective, one per term, the task first. The model never holds them.

    They multiply what the recipe's own weights have scaled, are outside weight decay and gradient clipping, and
    checkpoints keep them in a file of their own.

    Args:
        names: of the terms beside the task.

    Raises:
        ValueError: no name, so that there is nothing to weigh the task against.
    """

    def __init__(self, names: Sequence[str]):
        super().__init__()
        if not names:
            raise ValueError("a learned term_weighting weighs the task against other terms; name a regularizer")
        self.names = ("task", *names)
        self.logits = nn.Parameter(torch.zeros(len(self.names)))

    def term_weights(self) -> Tensor:
        """(1 + number of terms,) what each is multiplied by."""
        raise NotImplementedError

    def penalty(self) -> Tensor:
        """Scalar added to the weighted sum of a global batch."""
        return self.logits.new_zeros(())

    def forward(self, task: Tensor, terms: Mapping[str, Tensor], share: Tensor | float = 1.0) -> Tensor:
        weights = self.term_weights()
        beside = torch.stack([terms[name] for name in self.names[1:]])
        return weights[0] * task + share * (weights[1:] @ beside + self.penalty())

    @torch.no_grad()
    def figures(self) -> dict[str, Tensor]:
        return {f"weight_{name}": value for name, value in zip(self.names, self.term_weights(), strict=True)}


class SoftmaxWeighting(LearnedWeighting):
    """Softmax of the parameters, so that the weights add up to 1: at the start a plain mean of all terms.

    Source: the reference, where it is called learnable. Its gradient moves weight to the smallest term, whatever that
    is, so that the task can be priced out: an experiment to repeat, not a recommendation.
    """

    def term_weights(self) -> Tensor:
        return self.logits.softmax(0)


class KendallGalWeighting(LearnedWeighting):
    """Half the sum of exp(-s_i) * term_i + s_i, with s_i the logarithm of the variance of term i.

    Source: Kendall, Gal & Cipolla 2018, arXiv:1705.07115, with s = log sigma^2, as in the reference. Differs: the
    paper's terms are negative log-likelihoods; one that reaches 0 or below has no best s, and its weight only grows.
    """

    def term_weights(self) -> Tensor:
        return 0.5 * torch.exp(-self.logits)

    def penalty(self) -> Tensor:
        return 0.5 * self.logits.sum()


def build_weighting(name: str, terms: Sequence[str]) -> FixedWeighting:
    """Weighting `name`, one of `TERM_WEIGHTINGS`, of the named terms beside the task; ValueError for another name."""
    if name == "fixed":
        return FixedWeighting()
    if name == "learnable":
        return SoftmaxWeighting(terms)
    if name == "kendall_gal":
        return KendallGalWeighting(terms)
    raise ValueError(f"term_weighting must be one of {', '.join(TERM_WEIGHTINGS)}, got {name!r}")
