"""Objectives: what a training step minimises, as named parts. An objective is called, it never keeps the model."""

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...configuration_concept import ConceptEncoderConfig
from ...modeling_concept import ConceptEncoderModel, ConceptEncoderPreTrainedModel
from ...reading_concept import at_least_float32
from ...utils.command_line import did_you_mean
from ...utils.fields import check_fields
from ..data.roles import ENCODER_INPUTS, PARTNER, TEXT, VECTOR, input_name, roles_of_batch, vector_name
from ..training.kernels import LinearCrossEntropy, linear_cross_entropy
from .codes import (
    LARGEST_SCALE,
    SIMILARITIES,
    Encoded,
    Size,
    TrainingHead,
    contrast,
    cosines,
    encode,
    similarity_divergence,
    stacked,
    training_head,
    unwrapped,
)
from .corruptions import CORRUPTIONS, Corruption, build_corruption
from .regularizers import REGULARIZERS

TIMESTEP_BINS = 5
TERMS = ("contrastive", "distillation", "similarity_distillation")  # of the codes of texts


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
    reconstruction: float = field(
        default=1.0,
        metadata={
            "help": "Weight of rebuilding what the corruption hides; 0: no decoder, the model is the encoder alone."
        },
    )
    contrastive: float = field(
        default=0.0,
        metadata={"help": "Weight of InfoNCE between a text and its partner, or two dropout views of it; 0 = off."},
    )
    interaction: Literal["pooled", "maxsim"] = field(
        default="pooled",
        metadata={
            "help": "pooled: cosine of the pooled outputs; maxsim: mean over concepts of the cosine with the nearest "
            "of the other text, for pooled_output concat."
        },
    )
    contrastive_temperature: float = field(
        default=0.05, metadata={"help": "Divides the similarities in InfoNCE; positive."}
    )
    learn_temperature: bool = field(
        default=False, metadata={"help": "Learn it with the model, from contrastive_temperature on; at least 0.01."}
    )
    distillation: float = field(
        default=0.0, metadata={"help": "Weight of 1 - cosine with the teacher's vectors of teacher_columns; 0 = off."}
    )
    distillation_map: bool = field(
        default=True,
        metadata={
            "help": "Through a learned linear map, which is dropped after training; false: the pooled output itself "
            "becomes the teacher's vector, of as many numbers."
        },
    )
    similarity_distillation: float = field(
        default=0.0,
        metadata={"help": "Weight of the KL between the teacher's and the own similarities of a batch; 0 = off."},
    )
    distillation_temperature: float = field(
        default=0.05, metadata={"help": "Divides the similarities of both before their softmax; positive."}
    )
    token_dropout: float = field(
        default=0.0, metadata={"help": "Share of the tokens that the encoder is not shown in training, in [0, 1)."}
    )
    matryoshka_concepts: list[int] = field(
        default_factory=list,
        metadata={"help": "Numbers of concepts, of which each step reads its texts into one, drawn; none: all."},
    )
    matryoshka_dims: list[int] = field(
        default_factory=list,
        metadata={"help": "Numbers of each concept that are compared, as prefixes of the pooled output; none: all."},
    )
    n_dims_per_step: int = field(
        default=-1, metadata={"help": "How many of matryoshka_dims a step compares, drawn; -1: all of them."}
    )
    mini_batch_num_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of a forward pass, for reconstruction 0: texts of like length are read together, and a "
            "batch may be as large as it likes. None: the whole batch at once."
        },
    )
    gradient_caching: bool = field(
        default=False,
        metadata={"help": "Read each pass twice in place of keeping its activations: memory of one pass."},
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
        for name in ("reconstruction", *TERMS):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be a weight of at least 0, got {getattr(self, name)}")
        for name in ("contrastive_temperature", "distillation_temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.learn_temperature and self.contrastive_temperature < 1 / LARGEST_SCALE:
            least = 1 / LARGEST_SCALE
            raise ValueError(f"learn_temperature starts from at least {least}, got {self.contrastive_temperature}")
        if not 0 <= self.token_dropout < 1:
            raise ValueError(f"token_dropout must be in [0, 1), got {self.token_dropout}")
        if self.n_dims_per_step != -1 and not 1 <= self.n_dims_per_step <= len(self.matryoshka_dims):
            raise ValueError(
                f"n_dims_per_step must be -1 or in [1, {len(self.matryoshka_dims)}], the number of matryoshka_dims, "
                f"got {self.n_dims_per_step}"
            )
        if self.mini_batch_num_tokens is not None and self.mini_batch_num_tokens < 1:
            raise ValueError(f"mini_batch_num_tokens must be at least 1, got {self.mini_batch_num_tokens}")
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

    @property
    def head(self) -> type[ConceptEncoderPreTrainedModel]:
        """Class of the model that is trained."""
        return self.built_corruption.head if self.reconstruction else ConceptEncoderModel

    @property
    def weights(self) -> dict[str, float]:
        """Of every term but the reconstruction."""
        return {**self.regularizers, **{name: getattr(self, name) for name in TERMS if getattr(self, name)}}

    def build_objective(self) -> "Objective":
        return Objective(self)

    def build_head(self, config: ConceptEncoderConfig, teacher_size: int | None) -> TrainingHead | None:
        """What the loss learns for itself; None where that is nothing."""
        scale = 1 / self.contrastive_temperature if self.contrastive and self.learn_temperature else None
        size = teacher_size if self.distillation and self.distillation_map else None
        return None if scale is None and size is None else TrainingHead(config, scale, size)

    def check(self, config: ConceptEncoderConfig, roles: Collection[str] = (TEXT,), taught: bool = False) -> None:
        """ValueError if a model of this configuration cannot be trained so.

        Args:
            roles: of the texts of an example.
            taught: whether a teacher's vectors come with them.
        """
        paired = PARTNER in roles
        if self.reconstruction:
            self.built_corruption.check(config)
        elif not self.contrastive and not self.distillation and not self.similarity_distillation:
            raise ValueError(
                f"reconstruction is 0 and nothing else is trained: set {', '.join(TERMS[:-1])} or {TERMS[-1]}"
            )
        self._check_rebuilding(config)
        if len(roles) > 1 and not self.contrastive and not taught:
            raise ValueError("a corpus of pairs trains nothing but contrastive, which is 0; leave partner_column out")
        for name in ("distillation", "similarity_distillation"):
            if getattr(self, name) and not taught:
                raise ValueError(f"{name} needs a teacher's vectors: name their columns in teacher_columns")
        if taught and not self.distillation and not self.similarity_distillation:
            raise ValueError(
                "teacher_columns train nothing: set distillation or similarity_distillation, or leave them out"
            )
        dropout = config.hidden_dropout_prob or config.attention_probs_dropout_prob or self.token_dropout
        if self.contrastive and not paired and not dropout:
            raise ValueError(
                "contrastive without a partner_column needs dropout, which makes the two views of a text differ; "
                "hidden_dropout_prob, attention_probs_dropout_prob and token_dropout are all 0"
            )
        if self.interaction == "maxsim" and config.pooled_output != "concat":
            raise ValueError(
                f"interaction='maxsim' compares all concepts: set pooled_output='concat', got {config.pooled_output!r}"
            )
        for name, most in (
            ("matryoshka_concepts", config.num_concepts),
            ("matryoshka_dims", config.concept_dim),
        ):
            wrong = [size for size in getattr(self, name) if not 1 <= size <= most]
            if wrong:
                raise ValueError(f"{name} must be in [1, {most}], got {', '.join(map(str, wrong))}")

    def check_teacher(self, config: ConceptEncoderConfig, teacher_size: int) -> None:
        """ValueError if codes of this configuration cannot become a teacher's vectors of `teacher_size` numbers."""
        if not self.distillation or self.distillation_map:
            return
        size = config.projection_dim
        if size != teacher_size:
            raise ValueError(
                f"distillation_map=False makes the pooled output, {size} numbers, a teacher's vector of "
                f"{teacher_size}; choose sizes that agree, or distillation_map=True"
            )
        if self.matryoshka_concepts or self.matryoshka_dims:
            raise ValueError("distillation_map=False compares whole codes: leave the matryoshka sizes out, or set it")

    def _check_rebuilding(self, config: ConceptEncoderConfig) -> None:
        if self.nested_concepts and not self.reconstruction:
            raise ValueError("nested_concepts hides concepts from a decoder, and reconstruction is 0; leave it out")
        if self.nested_concepts and self.matryoshka_concepts:
            raise ValueError("nested_concepts and matryoshka_concepts both choose k; leave one out")
        if self.nested_concepts and config.concept_attention == "slot" and config.decoder_context == "latent":
            raise ValueError(
                "nested_concepts with decoder_context='latent' needs concept_attention='softmax', got 'slot': hidden "
                "concepts would still take their share of the tokens"
            )
        if self.mini_batch_num_tokens is not None and self.reconstruction:
            raise ValueError("mini_batch_num_tokens needs reconstruction 0: a decoder reads the whole batch at once")
        if self.gradient_caching and self.mini_batch_num_tokens is None:
            raise ValueError("gradient_caching needs mini_batch_num_tokens, the size of a pass")
        if self.token_dropout and self.reconstruction and not self.built_corruption.own_decoder_ids:
            raise ValueError(
                f"token_dropout hides tokens from the encoder alone, and corruption {self.built_corruption.name!r} "
                "gives encoder and decoder one text; choose another corruption, or reconstruction 0"
            )


class Objective:
    """What a decoder has to rebuild, and terms on the concepts and on the codes of texts, which the encoder pools.

    Reconstruction: with the corruption "diffusion", weighting "elbo", timesteps over (0, 1] and no smoothing, an
    unbiased estimate of the conditional NELBO in nats per token (conditional: the encoder saw the text). Otherwise it
    is a weighted cross-entropy. With weight 0 the model is an encoder alone: no decoder, no product with a vocabulary.

    Terms, each under its own name and unweighted among the parts: regularizers of the concepts of the texts;
    `contrastive`, see `contrast`, with those of the micro-batch, on all processes, as negatives, where a text without
    a partner is its own, under other dropout; `distillation`, 1 - cosine with a teacher's vector, mean over the texts
    that have one; `similarity_distillation`, see `similarity_divergence`, among these texts. With `matryoshka_dims`
    the last three are means over prefixes of the codes.

    The loss is the plain sum of all, each times its weight.
    """

    def __init__(self, settings: ObjectiveArguments):
        self.settings = settings
        self.kernel: Callable = LinearCrossEntropy.apply  # a Trainer may put another of the same arguments here

    def __call__(self, model: nn.Module, batch: dict[str, Any], num_items: Tensor | float) -> ObjectiveOutput:
        """Loss of a micro-batch; `num_items` is the denominator over the accumulated global batch."""
        settings, weights = self.settings, self.settings.weights
        size = Size(batch.get("num_concepts"), tuple(batch.get("dims") or (None,)))
        if settings.contrastive:
            batch = with_partner(batch)
        share = batch["num_items"].sum() / num_items  # of this micro-batch in the global batch
        if settings.reconstruction:
            output, encoded = self._rebuild(model, batch, size, num_items)
            labelled = batch["labels"] != -100  # (B, N')
            parts = _by_timestep(batch, output.token_losses[: len(labelled)].detach(), labelled)
            loss, tokens = settings.reconstruction * output.loss, labelled.sum()
        else:
            limits = settings.mini_batch_num_tokens, settings.gradient_caching
            encoded = encode(model, batch, size, *limits)
            parts, loss, tokens = {}, 0.0, batch["num_items"].new_zeros(())
        terms = self.terms(model, encoded, batch, size)
        # A mean over the micro-batches of the global batch, each by what it adds to the denominator.
        loss = loss + share * sum(weights[name] * term for name, term in terms.items())
        head = training_head(model)
        learned = {} if head is None or head.log_scale is None else {"temperature": 1 / head.scale()}
        figures = {name: value.detach() for name, value in (terms | learned).items()}
        parts |= {name: (value, torch.ones_like(value)) for name, value in figures.items()}
        return ObjectiveOutput(loss, parts, tokens)

    def terms(self, model: nn.Module, encoded: Encoded, batch: dict[str, Any], size: Size) -> dict[str, Tensor]:
        """Every term but the reconstruction, unweighted, of the texts of all roles of a batch."""
        rows, weights = len(batch["input_ids"]), self.settings.weights
        wide = at_least_float32(encoded.concepts.dtype)
        encoded = Encoded(*(each.to(wide) for each in encoded))
        terms = {name: each(encoded.concepts[:rows]) for name, each in REGULARIZERS.items() if name in weights}
        if any(name in weights for name in TERMS):
            inner = unwrapped(model)
            each = [self._compared(inner, encoded.codes(inner.config, dim), batch, rows) for dim in size.dims]
            terms |= {name: torch.stack([some[name] for some in each]).mean() for name in each[0]}
        return {name: terms[name] for name in weights}

    def _rebuild(self, model: nn.Module, batch: dict[str, Any], size: Size, num_items: Tensor | float):
        """One call for the texts of all roles, those of others than the text without any label: it is all that
        distributed and mixed-precision wrappers need to see."""
        roles = roles_of_batch(batch)
        names = {input_name(role, name) for role in roles[1:] for name in ENCODER_INPUTS}
        inputs = {
            name: value
            for name, value in batch.items()
            if name not in ("num_items", "dims", *names) and not name.endswith(VECTOR)
        }
        if names:
            times = len(roles)
            ids, mask = stacked(batch)
            inputs = {
                name: _widened(name, value, batch["input_ids"].shape, ids.shape) for name, value in inputs.items()
            }
            labels = torch.cat([inputs["labels"], *[torch.full_like(inputs["labels"], -100)] * (times - 1)])
            inputs = {name: _repeated(value, times) for name, value in inputs.items()}
            inputs |= {"input_ids": ids, "attention_mask": mask, "labels": labels}
        row_loss = partial(linear_cross_entropy, label_smoothing=self.settings.label_smoothing, kernel=self.kernel)
        output = model(**inputs, num_items_in_batch=num_items, row_loss=row_loss)
        return output, Encoded(output.concepts, output.pooler_output)

    def _compared(self, model: Any, codes: Tensor, batch: dict[str, Any], rows: int) -> dict[str, Tensor]:
        """Terms of the codes of all roles, of one size."""
        settings, head = self.settings, training_head(model)
        roles = roles_of_batch(batch)
        by_role = dict(zip(roles, codes.split(rows), strict=True))
        taught = [role for role in roles if vector_name(role) in batch]
        terms = {}
        if settings.contrastive:
            scale = 1 / settings.contrastive_temperature
            if head is not None and head.log_scale is not None:
                scale = head.scale()
            partners = sum(role.startswith(PARTNER) for role in roles)
            terms["contrastive"] = contrast(list(by_role.values()), partners, settings.interaction, scale)
        if taught:
            teacher = torch.cat([batch[vector_name(role)] for role in taught]).to(codes.dtype)
            student = torch.cat([by_role[role] for role in taught])
        if settings.distillation:
            mapped = student.flatten(1)
            if head is not None and settings.distillation_map:
                mapped = head.mapped(student, model.config)
            terms["distillation"] = (1 - nn.functional.cosine_similarity(mapped, teacher, dim=-1)).mean()
        if settings.similarity_distillation:
            own = SIMILARITIES[settings.interaction](student, student)
            terms["similarity_distillation"] = similarity_divergence(
                own, cosines(teacher, teacher), settings.distillation_temperature
            )
        return terms


def with_partner(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch, in which a text that has no partner is its own."""
    if input_name(PARTNER, "input_ids") in batch:
        return batch
    return {**batch, **{input_name(PARTNER, name): batch[name] for name in ENCODER_INPUTS}}


def _widened(name: str, value: Any, shape: torch.Size, wide: torch.Size) -> Any:
    """What has a column for each token of the text, with columns for those of a longer partner: without a label."""
    if not isinstance(value, Tensor) or value.shape != shape:
        return value
    return nn.functional.pad(value, (0, wide[1] - shape[1]), value=-100 if name == "labels" else 0)


def _repeated(value: Any, times: int) -> Any:
    """(times * B, ...) of what each text has (B, ...)."""
    return value.repeat(times, *[1] * (value.ndim - 1)) if isinstance(value, Tensor) else value


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
