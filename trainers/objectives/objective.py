"""Objectives: what a training step minimises, as named parts. An objective is called, it never keeps the model."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_gather

from ...configuration_concept import ConceptEncoderConfig
from ...modeling_concept import at_least_float32
from ...utils.command_line import did_you_mean
from ...utils.fields import check_fields
from ..training.kernels import LinearCrossEntropy, linear_cross_entropy
from .collators import PARTNER
from .corruptions import CORRUPTIONS, Corruption, build_corruption
from .regularizers import REGULARIZERS

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


@dataclass
class ObjectiveArguments:
    """The `objective:` section of a recipe: a corruption with its settings, and the terms of the loss.

    `corruption` may be given as a name; it is kept as a mapping from the name to all settings of the corruption.

    Raises:
        ValueError: an unknown corruption, setting or regularizer, with those that there are; a value that it cannot
            have.
    """

    corruption: str | dict[str, dict[str, Any] | None] = field(
        default="diffusion",
        metadata={
            "help": "What the encoder sees and the decoder rebuilds, a name or {name: {setting: value}}: "
            f"{', '.join(CORRUPTIONS)}."
        },
    )
    label_smoothing: float = field(default=0.0, metadata={"help": "Of the training cross-entropy, in [0, 1)."})
    num_eval_timesteps: int = field(
        default=10, metadata={"help": "Points of the fixed t-grid on which evaluation integrates the NELBO."}
    )
    regularizers: dict[str, float] = field(
        default_factory=dict,
        metadata={"help": f"Terms added to the loss, {{name: weight}}: {', '.join(REGULARIZERS)}."},
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

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        if self.num_eval_timesteps < 1:
            raise ValueError(f"num_eval_timesteps must be at least 1, got {self.num_eval_timesteps}")
        if self.contrastive < 0:
            raise ValueError(f"contrastive must be a weight of at least 0, got {self.contrastive}")
        if self.contrastive_temperature <= 0:
            raise ValueError(f"contrastive_temperature must be positive, got {self.contrastive_temperature}")
        for name, weight in self.regularizers.items():
            if name not in REGULARIZERS:
                hint = did_you_mean(name, REGULARIZERS)
                raise ValueError(f"Unknown regularizer {name!r}. Available: {', '.join(REGULARIZERS)}{hint}")
            if weight <= 0:
                raise ValueError(f"the weight of regularizer {name} must be positive, got {weight:g}")
        built = self.built_corruption
        self.corruption = {built.name: dataclasses.asdict(built)}

    @cached_property
    def built_corruption(self) -> Corruption:
        """The corruption, built once."""
        return build_corruption(self.corruption)

    def build_objective(self) -> "ReconstructionObjective":
        return ReconstructionObjective(
            self.label_smoothing, self.regularizers, self.contrastive, self.contrastive_temperature
        )

    def check(self, config: ConceptEncoderConfig, paired: bool = False) -> None:
        """ValueError if a model of this configuration cannot be trained so, on single texts or on pairs."""
        self.built_corruption.check(config)
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

    The loss is the plain sum of the task and the terms, each times its weight.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        regularizers: Mapping[str, float] | None = None,
        contrastive: float = 0.0,
        temperature: float = 0.05,
    ):
        self.label_smoothing = label_smoothing
        self.kernel: Callable = LinearCrossEntropy.apply  # a Trainer may put another of the same arguments here
        self.contrastive = contrastive > 0
        self.weights = {**(regularizers or {}), **({"contrastive": contrastive} if contrastive else {})}
        self.temperature = temperature

    def __call__(self, model: nn.Module, batch: dict[str, Tensor], num_items: Tensor | float) -> ObjectiveOutput:
        """Loss of a corrupted micro-batch; `num_items` is the denominator over the accumulated global batch."""
        share = batch["num_items"].sum() / num_items  # of this micro-batch in the global batch
        inputs = {name: tensor for name, tensor in batch.items() if name not in ("num_items", *PARTNER.values())}
        rows = len(batch["labels"])
        if self.contrastive:
            partner = {name: batch[key] for name, key in PARTNER.items() if key in batch}
            inputs = _with_second_view(inputs, partner)
        row_loss = partial(linear_cross_entropy, label_smoothing=self.label_smoothing, kernel=self.kernel)
        output = model(**inputs, num_items_in_batch=num_items, row_loss=row_loss)
        labelled = batch["labels"] != -100  # (B, N')
        parts = _by_timestep(batch, output.token_losses[:rows].detach(), labelled)
        wide = output.concepts.to(at_least_float32(output.concepts.dtype))
        terms = {name: REGULARIZERS[name](wide[:rows]) for name in self.weights if name in REGULARIZERS}
        if self.contrastive:
            terms["contrastive"] = info_nce(wide[:rows].mean(1), wide[rows:].mean(1), self.temperature)
        # A mean over the micro-batches of the global batch, each by what it adds to the denominator.
        loss = output.loss + share * sum(self.weights[name] * term for name, term in terms.items())
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
