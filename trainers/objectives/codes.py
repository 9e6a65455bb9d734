"""Codes of texts, and what they are trained to: contrast, and a teacher's vectors.

Letters: B texts of a role, R texts of all roles, N tokens, k concepts, d numbers of a concept, P of a
pooled output, T of a teacher's vector.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ...configuration_concept import ConceptEncoderConfig
from ..data.roles import ENCODER_INPUTS, input_name, roles_of_batch

HEAD = "training_head"  # attribute of the model while it is trained
LARGEST_SCALE = 100.0  # of cosines, with a learned temperature


class Size(NamedTuple):
    """What a code is cut to: the first `concepts` of them, and of each the first numbers in `dims`, one after another;
    `None`: all."""

    concepts: int | None = None
    dims: tuple[int | None, ...] = (None,)


WHOLE = Size()


class Encoded(NamedTuple):
    """Of R texts: `concepts` (R, k, D) and `pooled` (R, P)."""

    concepts: Tensor
    pooled: Tensor

    def codes(self, config: ConceptEncoderConfig, dim: int | None) -> Tensor:
        """(R, k, d) where the pooled output is all concepts, else (R, d)."""
        concat = config.pooled_output == "concat"
        return (self.pooled.unflatten(1, (self.concepts.shape[1], -1)) if concat else self.pooled)[..., :dim]


class TrainingHead(nn.Module):
    """What a loss learns for itself, next to the model and never saved with it: a temperature, a map to a teacher.

    Args:
        config: of the model.
        scale: the temperature's inverse that a learned one starts from; None: it is not learned.
        teacher_size: T of the map; None: there is none.
    """

    def __init__(self, config: ConceptEncoderConfig, scale: float | None, teacher_size: int | None):
        super().__init__()
        self.log_scale = None if scale is None else nn.Parameter(torch.tensor(math.log(scale)))
        self.map = None
        if teacher_size is not None:
            self.map = nn.Linear(config.projection_dim, teacher_size, bias=False)

    def scale(self) -> Tensor:
        """The learned factor on similarities, at most `LARGEST_SCALE`."""
        assert self.log_scale is not None
        return self.log_scale.exp().clamp(max=LARGEST_SCALE)

    def mapped(self, codes: Tensor, config: ConceptEncoderConfig) -> Tensor:
        """(R, T) of codes (R, k, d) or (R, d): by the columns of the map that are theirs."""
        assert self.map is not None
        weight = self.map.weight  # (T, C * d) or (T, d)
        if codes.ndim == 3:
            weight = weight.unflatten(1, (config.num_concepts, -1))[:, : codes.shape[1], : codes.shape[2]].flatten(1)
            return nn.functional.linear(codes.flatten(1), weight)
        return nn.functional.linear(codes, weight[:, : codes.shape[1]])


def attach(model: PreTrainedModel, head: TrainingHead | None) -> None:
    """Make a head part of the model for its optimizer, and of no file that the model is saved in."""
    if head is not None:
        model.add_module(HEAD, head.to(model.device))
        names = {f"{HEAD}.{name}" for name in head.state_dict()}
        model._keys_to_ignore_on_save = {*(model._keys_to_ignore_on_save or ()), *names}


def detach(model: nn.Module) -> None:
    """Undo `attach`."""
    inner = unwrapped(model)
    if training_head(inner) is not None:
        delattr(inner, HEAD)


def training_head(model: nn.Module) -> TrainingHead | None:
    """What `attach` has made part of a model."""
    return getattr(unwrapped(model), HEAD, None)


def unwrapped(model: nn.Module) -> Any:
    """The model that a wrapper for several processes holds."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def encode(
    model: nn.Module,
    batch: dict[str, Tensor],
    size: Size = WHOLE,
    mini_batch_num_tokens: int | None = None,
    gradient_caching: bool = False,
) -> Encoded:
    """All texts of a batch, role after role, read by a plain encoder.

    Args:
        mini_batch_num_tokens: tokens of a forward pass, padding included, at least one text; texts of like length
            are read together. `None`: all texts at once, padded to the longest.
        gradient_caching: keep no activations, and compute those of one pass after another again when the gradients
            come, with the same dropout: GradCache (Gao et al. 2021, arXiv:2101.06983) by torch's checkpoints.
    """
    ids, mask = stacked(batch)
    inner = unwrapped(model)
    read: list[Encoded] = []
    order, passes = [torch.arange(len(ids), device=ids.device)], [(ids, mask)]
    if mini_batch_num_tokens is not None:
        order = list(_by_length(mask, mini_batch_num_tokens))
        passes = [_trimmed(ids[rows], mask[rows]) for rows in order]
    for part in passes:
        # A wrapper synchronises the gradients of one call; the others go to the model itself.
        call = _call(model if not read else inner, size)
        cached = gradient_caching and torch.is_grad_enabled() and (read or inner is model)
        read.append(Encoded(*(checkpoint(call, *part, use_reentrant=False) if cached else call(*part))))
    back = torch.cat(order).argsort()
    return Encoded(*(torch.cat(each)[back] for each in zip(*read, strict=True)))


def encoder_inputs(batch: dict[str, Any], name: str) -> list[Tensor]:
    """The input `name` of the encoder, of the texts of all roles."""
    return [batch[input_name(role, name)] for role in roles_of_batch(batch)]


def stacked(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Ids and mask (R, N) of the texts of all roles, padded to the longest with what the mask hides."""
    width = max(each.shape[1] for each in encoder_inputs(batch, "input_ids"))
    ids, mask = (
        torch.cat([nn.functional.pad(each, (0, width - each.shape[1])) for each in encoder_inputs(batch, name)])
        for name in ENCODER_INPUTS
    )
    return ids, mask


def _call(model: nn.Module, size: Size) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    def call(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        output = model(input_ids=ids, attention_mask=mask, num_concepts=size.concepts)
        return output.last_hidden_state, output.pooler_output

    return call


def _by_length(mask: Tensor, budget: int) -> Iterator[Tensor]:
    """Rows of each pass, shortest texts first: as many as their number times the longest is within the budget."""
    lengths = mask.sum(-1)
    order = lengths.argsort(stable=True)
    longest = lengths[order].tolist()
    start = 0
    for end in range(1, len(longest) + 1):
        if end == len(longest) or (end + 1 - start) * longest[end] > budget:
            yield order[start:end]
            start = end


def _trimmed(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Without the columns that are padding in every row."""
    real = mask.bool().any(0)
    real[0] |= ~real.any()
    return ids[:, real], mask[:, real]


# -------------------------------------------------------------------------------------------------------------- losses


def contrast(codes: list[Tensor], num_partners: int, interaction: str, scale: Tensor | float) -> Tensor:
    """Mean cross-entropy, in nats, of picking a text's own partner among those of all texts and all negatives.

    Of several partners each is the one in turn, the others aside. Partners and negatives are those of all processes,
    each with as many texts; gradients flow into them too.

    Args:
        codes: of the texts, of the partners and of the negatives, each (B, k, d) or (B, d).
        interaction: "pooled", cosine of the whole codes; or "maxsim", for codes (B, k, d): over the concepts of a text
            the mean of the largest cosine with a concept of the other.
        scale: factor on the similarities, 1 / temperature.

    Source: `MultipleNegativesRankingLoss` and `mean_colbert_scores` of sentence-transformers.
    """
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    several = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    no_model: Any = None  # the codes are there
    loss = MultipleNegativesRankingLoss(no_model, 1.0, SIMILARITIES[interaction], gather_across_devices=several)
    loss.scale = scale
    text, partners, negatives = codes[0], codes[1 : 1 + num_partners], codes[1 + num_partners :]
    return torch.stack([loss.compute_loss_from_embeddings([text, each, *negatives], None) for each in partners]).mean()


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """(n, m) of codes (n, ...) and (m, ...), each as one vector."""
    a, b = (nn.functional.normalize(each.flatten(1), dim=-1) for each in (a, b))
    return a @ b.mT


def mean_max_sim(a: Tensor, b: Tensor) -> Tensor:
    """(n, m) of codes (n, k, d) and (m, k, d): mean over the concepts of a of the largest cosine with one of b."""
    from sentence_transformers.util.similarity import maxsim

    a, b = (nn.functional.normalize(each, dim=-1) for each in (a, b))
    return maxsim(a, b, length_normalize=True)


SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"pooled": cosines, "maxsim": mean_max_sim}


def similarity_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL, in nats, from the teacher's softmax over the other texts of the batch to the student's, mean over texts.

    Args:
        student, teacher: (R, R) similarities.

    Source: of relations in place of vectors, Tung & Mori 2019, arXiv:1907.09682. Differs: softmax of each row at a
    temperature, as in distillation (Hinton et al. 2015, arXiv:1503.02531), without its factor temperature ** 2.
    """
    itself = torch.eye(len(teacher), dtype=torch.bool, device=teacher.device)
    own, target = ((each / temperature).masked_fill(itself, -torch.inf).log_softmax(-1) for each in (student, teacher))
    own, target = (each.masked_fill(itself, 0.0) for each in (own, target))
    return (target.exp().masked_fill(itself, 0.0) * (target - own)).sum(-1).mean()
