"""Evaluation while training: what a text costs, on noise that is a function of the text alone."""

import dataclasses
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ...modeling_concept import ConceptMaskedLMOutput, cross_entropy_of_rows
from ..objectives.codes import WHOLE, encode
from ..objectives.collators import DataCollatorForReconstruction, check_rebuilds
from ..objectives.corruptions import Diffusion
from ..objectives.objective import Objective, ObjectiveArguments, with_partner

Model = Callable[..., ConceptMaskedLMOutput]
Batch = dict[str, Tensor]


class ReconstructionEvaluator:
    """What a text costs, on noise that is a function of the text alone, without regularizers or smoothing.

    With the head of masked diffusion: the conditional NELBO on a fixed t-grid, the encoder seeing the clean text, and
    cross-entropy and accuracy of masked tokens at each t. The grid holds the midpoints of `num_eval_timesteps` equal
    parts of (0, 1]; the noise is independent between points: nested masks would leave the bound more variance.
    Metrics: `nelbo_bits_per_token`, and for each grid point `nll_bits_t_*`, `accuracy_t_*`, `tokens_t_*`.

    With a corruption other than diffusion, its own task: `rebuilt_bits_per_token`, `rebuilt_accuracy` and
    `rebuilt_tokens`, over all positions that the decoder rebuilds, each weighing 1.

    `loss` is the latter in nats where there is one, else the NELBO in nats per token.

    Args:
        tokenizer: of the model.
        settings: of the objective that the model is trained with.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: ObjectiveArguments):
        corruption = dataclasses.replace(settings.built_corruption, position_share=1.0)
        points = settings.num_eval_timesteps if corruption.head is Diffusion.head else 0
        self.grid: list[float] = ((torch.arange(points) + 0.5) / settings.num_eval_timesteps).tolist()
        # The bound is always over all of (0, 1] and all positions, no matter what training does.
        schedule = corruption.schedule if isinstance(corruption, Diffusion) else Diffusion.schedule
        bound = DataCollatorForReconstruction(tokenizer, Diffusion(schedule))
        # Collator, number of the draw, and timestep where it is not drawn.
        self._passes: list[tuple[DataCollatorForReconstruction, int, float | None]] = [
            (bound, draw, t) for draw, t in enumerate(self.grid)
        ]
        if type(corruption) is not Diffusion:
            self._passes.append((DataCollatorForReconstruction(tokenizer, corruption), 0, None))

    def check(self, texts: Iterable[dict]) -> None:
        """ValueError unless something of the evaluation `texts` is measured by each of its passes."""
        for collator, _, t in [*self._passes[:1], *self._passes[len(self.grid) :]]:  # the grid's share a collator
            check_rebuilds(texts, collator, "evaluation", t and 1.0)

    def measures(self) -> list[str]:
        """Names of the metrics."""
        return list(self.metrics(torch.ones(len(self._passes), 5)))

    def score(self, model: Model, batch: Batch) -> Tensor:
        """(B, P, 5) of a clean batch, P the grid points and then the corruption's own task where there is one:
        weighted NLL, items that it is divided by, NLL, hits and number of rebuilt tokens."""
        return torch.stack([_score(model, batch, *each) for each in self._passes], dim=1)

    def metrics(self, totals: Tensor) -> dict[str, float]:
        """Of the sums (P, 5) over texts of what `score` gives."""
        bound, own_task = totals[: len(self.grid)], totals[len(self.grid) :]
        metrics = _bound_metrics(self.grid, bound) if self.grid else {}
        for sums in own_task:
            metrics |= _rebuilding_metrics(sums)
        return metrics


class CodeEvaluator:
    """The terms of an objective without reconstruction, each a mean over batches, weighted by their texts.

    They compare the texts of a batch, so that they depend on `per_device_eval_batch_size`. Metrics: each term, and
    `loss`, their sum with the weights of training.
    """

    def __init__(self, objective: Objective):
        self.objective = objective

    def check(self, texts: Iterable[dict]) -> None:
        """ValueError without a text to evaluate on."""
        if next(iter(texts), None) is None:
            raise ValueError("the evaluation dataset is empty")

    def measures(self) -> list[str]:
        """Names of the metrics."""
        return ["loss", *self.objective.settings.weights]

    def score(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, T + 1): the T terms of the batch, the same for each text, and 1."""
        settings = self.objective.settings
        batch = with_partner(batch) if settings.contrastive else batch
        encoded = encode(model, batch, mini_batch_num_tokens=settings.mini_batch_num_tokens)
        terms = list(self.objective.terms(model, encoded, batch, WHOLE).values())
        return torch.stack([*terms, torch.ones_like(terms[0])]).expand(len(batch["input_ids"]), -1)

    def metrics(self, totals: Tensor) -> dict[str, float]:
        """Of the sums (T + 1,) over texts of what `score` gives."""
        weights, (*sums, count) = self.objective.settings.weights, totals.tolist()
        means = {name: value / count for name, value in zip(weights, sums, strict=True)}
        return {"loss": sum(weights[name] * value for name, value in means.items()), **means}


def _score(model: Model, batch: Batch, collator: DataCollatorForReconstruction, draw: int, t: float | None) -> Tensor:
    """(B, 5), see `ReconstructionEvaluator.score`."""
    device, rows = batch["input_ids"].device, len(batch["input_ids"])
    timesteps = None if t is None else torch.full((rows,), t, device=device)
    corrupted = collator.corrupt(batch, collator.fixed_noise(batch, draw).to(device), timesteps)
    num_items = corrupted.pop("num_items")
    output = model(**corrupted, row_loss=cross_entropy_of_rows)
    assert output.logits is not None
    labelled, drawn = corrupted["labels"] != -100, corrupted["loss_weights"] > 0
    right = output.logits.argmax(-1) == corrupted["labels"][labelled]
    hits = torch.zeros_like(labelled).masked_scatter(labelled, right) & drawn
    bound = (output.token_losses * corrupted["loss_weights"]).sum(-1)
    nll = (output.token_losses * drawn).sum(-1)
    return torch.stack([bound, num_items.float(), nll, hits.sum(-1).float(), drawn.sum(-1).float()], dim=-1)


def _bound_metrics(grid: list[float], totals: Tensor) -> dict[str, float]:
    """Of the t-grid, from sums (T, 5)."""
    bound, eligible, nll, hits, masked = totals.T.tolist()
    nelbo = sum(b / max(e, 1) for b, e in zip(bound, eligible, strict=True)) / len(grid)
    metrics = {"loss": nelbo, "nelbo_bits_per_token": nelbo / math.log(2)}
    for k, t in enumerate(grid):
        if masked[k]:
            metrics[f"nll_bits_t_{t:g}"] = nll[k] / masked[k] / math.log(2)
            metrics[f"accuracy_t_{t:g}"] = hits[k] / masked[k]
        metrics[f"tokens_t_{t:g}"] = int(masked[k])
    return metrics


def _rebuilding_metrics(sums: Tensor) -> dict[str, float]:
    """Of the corruption's own task, from sums (5,); nothing without a token."""
    _, _, nll, hits, rebuilt = sums.tolist()
    if not rebuilt:
        return {}
    return {
        "loss": nll / rebuilt,
        "rebuilt_bits_per_token": nll / rebuilt / math.log(2),
        "rebuilt_accuracy": hits / rebuilt,
        "rebuilt_tokens": int(rebuilt),
    }
