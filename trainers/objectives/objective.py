"""Objectives: what a training step minimises, as named parts. An objective is called, it never keeps the model."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_gather
from transformers import PreTrainedTokenizerBase

from ...configuration_concept import ConceptEncoderConfig
from ...modeling_concept import at_least_float32
from ..training.kernels import LinearCrossEntropy, linear_cross_entropy
from .collators import PARTNER
from .conflicts import forked_concepts
from .corruptions import CORRUPTIONS, Corruption, corruption_settings
from .distillation import Distillation, load_distillation
from .regularizers import REGULARIZERS
from .weighting import build_weighting

TIMESTEP_BINS = 5


@dataclass
class ObjectiveOutput:
    """Result of one micro-batch.

    Attributes:
        loss: scalar in nats, normalised over the whole accumulated global batch.
        parts: name -> (sum, count) of what is logged; the logged value is the ratio over steps and processes.
        token_count: number of labelled tokens in the micro-batch.
    """

    loss: Tensor
    parts: dict[str, tuple[Tensor, Tensor]]
    token_count: Tensor


@strict
@dataclass
class ObjectiveArguments:
    """The `objective:` section of a recipe: a corruption and its settings, and the terms of the loss.

    The fields from `schedule` to `weighting` are settings of the corruptions that have a timestep; settings of their
    own go into `corruption_settings`.
    """

    corruption: str = field(
        default="diffusion",
        metadata={"help": f"What the encoder sees and the decoder rebuilds: {', '.join(CORRUPTIONS)}."},
    )
    corruption_settings: list[str] = field(
        default_factory=list, metadata={"help": "Settings name=number of the corruption, such as deletion_rate=0.6."}
    )
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
        metadata={"help": "Share of the rebuilt tokens drawn for the training loss, in (0, 1]; unbiased, and faster."},
    )
    label_smoothing: float = field(default=0.0, metadata={"help": "Of the training cross-entropy, in [0, 1)."})
    num_eval_timesteps: int = field(
        default=10, metadata={"help": "Points of the fixed t-grid on which evaluation integrates the NELBO."}
    )
    regularizers: list[str] = field(
        default_factory=list,
        metadata={"help": f"Terms name=weight added to the loss, such as variance=0.1; {', '.join(REGULARIZERS)}."},
    )
    term_weighting: Literal["fixed", "learnable", "kendall_gal"] = field(
        default="fixed",
        metadata={"help": "Of the task and the weighed terms: as they are, or by learned weights on top."},
    )
    conflict_safe: bool = field(
        default=False,
        metadata={"help": "Take from the regularizers' gradient at the concepts what opposes the task's."},
    )
    contrastive: float = field(
        default=0.0,
        metadata={"help": "Weight of InfoNCE between a text and its partner, or two dropout views of it; 0 = off."},
    )
    contrastive_temperature: float = field(
        default=0.05, metadata={"help": "Divides the cosines of pooled concepts in InfoNCE; positive."}
    )
    nested_concepts: bool = field(
        default=False,
        metadata={"help": "Show the decoder the first k concepts only, k drawn per text: any k can be kept later."},
    )
    # Not `str | None`: HfArgumentParser rewrites the field's type to str, which then refuses None.
    distil_from: str = field(
        default="", metadata={"help": "Hub id or folder of a frozen teacher with the same vocabulary; empty = off."}
    )
    distil_weight: float = field(
        default=1.0, metadata={"help": "Weight of one minus the cosine to the teacher's embedding of the text."}
    )

    def __post_init__(self) -> None:
        if not 0 < self.distil_weight < float("inf"):
            raise ValueError(f"distil_weight must be positive and finite, got {self.distil_weight}")
        if not self.distil_from and self.distil_weight != 1:
            raise ValueError(f"distil_weight={self.distil_weight} says nothing without distil_from; name a teacher")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")
        if self.num_eval_timesteps < 1:
            raise ValueError(f"num_eval_timesteps must be at least 1, got {self.num_eval_timesteps}")
        if not 0 <= self.contrastive < float("inf"):
            raise ValueError(f"contrastive must be a finite weight of at least 0, got {self.contrastive}")
        if not self.contrastive_temperature > 0:
            raise ValueError(f"contrastive_temperature must be positive, got {self.contrastive_temperature}")
        weights = self.regularizer_weights()
        if self.conflict_safe and not weights:
            raise ValueError("conflict_safe=True protects the task from regularizers; name at least one")
        build_weighting(self.term_weighting, self.term_names())
        self.build_corruption()

    def regularizer_weights(self) -> dict[str, float]:
        """Name -> weight of the regularizers; ValueError for an unknown name, one named twice, a bad weight."""
        weights = _named_numbers("regularizer", self.regularizers, REGULARIZERS)
        for name, weight in weights.items():
            if not 0 < weight < float("inf"):
                raise ValueError(f"the weight of regularizer {name} must be positive and finite, got {weight:g}")
        return weights

    def term_names(self) -> list[str]:
        """Names of the terms beside the task."""
        beside = {"contrastive": self.contrastive, "distillation": self.distil_from}
        return [*self.regularizer_weights(), *(name for name, value in beside.items() if value)]

    def build_corruption(self) -> Corruption:
        """The corruption with its settings; ValueError for one that is unknown, or a setting that is not its own."""
        known = corruption_settings(self.corruption)
        settings: dict[str, Any] = {}
        for name, default in corruption_settings("diffusion").items():
            if name in known:
                settings[name] = getattr(self, name)
            elif getattr(self, name) != default:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} says nothing to corruption {self.corruption!r}, which has no "
                    "timestep to draw; leave it out"
                )
        own = [name for name in known if name not in settings]
        settings |= _named_numbers(f"setting of corruption {self.corruption}", self.corruption_settings, own)
        return CORRUPTIONS[self.corruption](**settings)

    def build_objective(self, hidden_size: int, tokenizer: PreTrainedTokenizerBase) -> "ReconstructionObjective":
        """The objective, for concepts of width `hidden_size`; ValueError as from `load_distillation`."""
        distillation = None
        if self.distil_from:
            distillation = load_distillation(self.distil_from, hidden_size, tokenizer)
        return ReconstructionObjective(
            self.label_smoothing,
            self.regularizer_weights(),
            self.contrastive,
            self.contrastive_temperature,
            self.term_weighting,
            self.conflict_safe,
            distillation,
            self.distil_weight,
        )

    def check(self, config: ConceptEncoderConfig, paired: bool = False) -> None:
        """ValueError if a model of this configuration cannot be trained so, on single texts or on pairs."""
        self.build_corruption().check(config)
        if self.nested_concepts and config.concept_attention == "slot" and config.decoder_context == "latent":
            raise ValueError(
                "nested_concepts with decoder_context='latent' needs concept_attention='softmax', got 'slot': hidden "
                "concepts would still take their share of the tokens"
            )
        if paired and not self.contrastive:
            raise ValueError("a corpus of pairs trains nothing but contrastive, which is 0; leave partner_column out")
        if self.contrastive and not paired and not (config.hidden_dropout_prob or config.attention_probs_dropout_prob):
            raise ValueError(
                "contrastive without a partner_column needs dropout, which makes the two views of a text differ; "
                "hidden_dropout_prob and attention_probs_dropout_prob are both 0"
            )


def _named_numbers(what: str, terms: Sequence[str], known: Sequence[str] | Mapping[str, Any]) -> dict[str, float]:
    """Name -> number of terms "name=number"."""
    numbers: dict[str, float] = {}
    for term in terms:
        name, _, number = term.partition("=")
        if name not in known:
            raise ValueError(f"Unknown {what} {name!r}. Available: {', '.join(known) or 'none'}")
        if name in numbers:
            raise ValueError(f"{what} {name} is named twice")
        try:
            numbers[name] = float(number)
        except ValueError:
            raise ValueError(f"{what} {name} needs a number, such as {name}=0.1, got {term!r}") from None
    return numbers


def info_nce(anchors: Tensor, positives: Tensor, temperature: float = 0.05) -> Tensor:
    """Mean over anchors (B, D) of the cross-entropy, in nats, of picking one's own among all positives by cosine.

    The positives are those of all processes, each with the same B; gradients flow into them too, so that processes
    together have the loss and the gradients of one large batch.

    Source: SimCSE (Gao et al. 2021, arXiv:2104.08821), eq. 1 and 4. Differs: none.
    """
    anchors, positives = (nn.functional.normalize(each, dim=-1) for each in (anchors, positives))
    first = 0
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        first = distributed.get_rank() * len(positives)
        positives = torch.cat(all_gather(positives.contiguous()))
    targets = torch.arange(len(anchors), device=anchors.device) + first
    return nn.functional.cross_entropy(anchors @ positives.mT / temperature, targets)


class ReconstructionObjective:
    """Cross-entropy of what the decoder has to rebuild, and terms on the concepts on top.

    With the corruption "diffusion", weighting "elbo", timesteps over (0, 1] and no smoothing the first is an unbiased
    estimate of the conditional NELBO in nats per token (conditional: the encoder saw the text). Otherwise it is a
    weighted cross-entropy. Regularizers come on top, each under its own name and unweighted among the parts, and so
    does `contrastive`: InfoNCE between the mean concepts of two views of each text, with those of the micro-batch, on
    all processes, as negatives. The second view is the text's partner where the batch has one, and otherwise the text
    again, under other dropout. Both go through the model in one call, the second without any label, which is all that
    distributed and mixed-precision wrappers need to see.

    `term_weighting` makes one number of them, see `build_weighting`; with `conflict_safe` the gradient of the
    regularizers cannot undo that of all else at the concepts, see `without_conflict`; `distillation` pulls the mean
    concept towards a teacher's embedding. Whatever of this has parameters is in `learned`.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        regularizers: Mapping[str, float] | None = None,
        contrastive: float = 0.0,
        temperature: float = 0.05,
        term_weighting: str = "fixed",
        conflict_safe: bool = False,
        distillation: Distillation | None = None,
        distil_weight: float = 1.0,
    ):
        self.label_smoothing = label_smoothing
        self.kernel: Callable = LinearCrossEntropy.apply  # a Trainer may put another of the same arguments here
        self.contrastive = contrastive > 0
        self.weights = {**(regularizers or {}), **({"contrastive": contrastive} if contrastive else {})}
        if distillation is not None:
            self.weights["distillation"] = distil_weight
        self.temperature = temperature
        self.distillation = distillation
        self.weighting = build_weighting(term_weighting, list(self.weights))
        # What the objective learns; the model never holds it.
        self.learned = nn.ModuleDict({"weighting": self.weighting})
        if distillation is not None:
            self.learned["distillation"] = distillation
        self.conflict_safe = conflict_safe

    def __call__(self, model: nn.Module, batch: dict[str, Tensor], num_items: Tensor | float) -> ObjectiveOutput:
        """Loss of a corrupted micro-batch; `num_items` is the denominator over the accumulated global batch."""
        share = batch["num_items"].sum() / num_items  # of this micro-batch in the global batch
        inputs = {name: tensor for name, tensor in batch.items() if name not in ("num_items", *PARTNER.values())}
        rows = len(batch["labels"])
        if self.contrastive:
            partner = {name: batch[key] for name, key in PARTNER.items() if key in batch}
            inputs = _with_second_view(inputs, partner)
        with forked_concepts(model) if self.conflict_safe else nullcontext() as forked:
            row_loss = partial(linear_cross_entropy, label_smoothing=self.label_smoothing, kernel=self.kernel)
            output = model(**inputs, num_items_in_batch=num_items, row_loss=row_loss)
        labelled = batch["labels"] != -100  # (B, N')
        parts = _by_timestep(batch, output.token_losses[:rows].detach(), labelled)
        wide = output.concepts.to(at_least_float32(output.concepts.dtype))
        regularised = (forked[0].to(wide.dtype) if forked else wide)[:rows]
        terms = {name: REGULARIZERS[name](regularised) for name in self.weights if name in REGULARIZERS}
        if self.contrastive:
            terms["contrastive"] = info_nce(wide[:rows].mean(1), wide[rows:].mean(1), self.temperature)
        if self.distillation is not None:
            terms["distillation"] = self.distillation(wide[:rows], batch["input_ids"], batch["attention_mask"])
        # A mean over the micro-batches of the global batch, each by what it adds to the denominator.
        loss = self.weighting(output.loss, {name: self.weights[name] * terms[name] for name in terms}, share)
        parts |= {name: (value.detach(), torch.ones_like(value.detach())) for name, value in terms.items()}
        return ObjectiveOutput(loss, parts, labelled.sum())


def _with_second_view(inputs: dict[str, Tensor], partner: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every row twice, (2B, ...), the second time without labels, and with what the encoder reads of its partner."""
    second = {**inputs, **partner, "labels": torch.full_like(inputs["labels"], -100)}
    views = {}
    for name, tensor in inputs.items():
        pair = [tensor, second[name]]
        if name in partner:  # a corruption may have shortened the text
            width = max(each.shape[1] for each in pair)
            pair = [nn.functional.pad(each, (0, width - each.shape[1])) for each in pair]
        views[name] = torch.cat(pair)
    return views


def _by_timestep(batch: dict[str, Tensor], token_losses: Tensor, labelled: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Sum and count of the cross-entropy in each bin of timesteps, or under one name where there are none."""
    sums, counts = token_losses.sum(-1), labelled.sum(-1)  # (B,)
    if "timesteps" not in batch:
        return {"loss_rebuilt": (sums.sum(), counts.sum().to(sums.dtype))}
    # Bin k holds timesteps in (k / bins, (k + 1) / bins].
    bins = (batch["timesteps"] * TIMESTEP_BINS).ceil().long().clamp(1, TIMESTEP_BINS) - 1
    zeros = torch.zeros(TIMESTEP_BINS, device=sums.device)
    binned = zeros.index_add(0, bins, sums), zeros.index_add(0, bins, counts.to(zeros.dtype))
    return {f"loss_t_{(k + 1) / TIMESTEP_BINS:.1f}": (binned[0][k], binned[1][k]) for k in range(TIMESTEP_BINS)}
