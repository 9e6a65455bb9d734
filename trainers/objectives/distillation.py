"""Distillation: the concepts of a text made to tell what a frozen teacher's embedding of it tells."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..weights.warm_start import check_vocabulary, read_encoder


class Distillation(nn.Module):
    """One minus the cosine of the mean concept, linearly mapped, and the teacher's embedding of the same tokens.

    The mapping is a parameter of the objective. The teacher is neither trained nor saved: it is no submodule.

    Args:
        teacher: a transformers encoder; its embedding is the mean over real tokens of the last hidden state.
        hidden_size: of the concepts.

    Source: of regressing a teacher's features through a learned map, FitNets (Romero et al. 2015, arXiv:1412.6550).
    Differs: one vector per text, and its direction only.
    """

    def __init__(self, teacher: PreTrainedModel, hidden_size: int):
        super().__init__()
        self._teacher = [teacher.eval().requires_grad_(False)]  # in a list, so that it is no submodule
        # Every process has to begin with the same mapping, which no wrapper makes equal.
        generator = torch.Generator().manual_seed(0)
        self.mapping = nn.Linear(hidden_size, teacher.config.hidden_size, bias=False)
        self.mapping.weight.data.normal_(std=hidden_size**-0.5, generator=generator)

    @torch.no_grad()
    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, E) the teacher's embedding of ids (B, N)."""
        teacher = self._teacher[0].to(input_ids.device)
        states = teacher(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (B, N, E)
        mask = attention_mask[..., None].to(states.dtype)
        return (states * mask).sum(1) / mask.sum(1).clamp_min(1)

    def forward(self, concepts: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scalar in [0, 2], a mean over texts, of concepts (B, C, D) and the ids (B, N) that the encoder read."""
        mapped = self.mapping(concepts.mean(1))  # (B, E)
        target = self.embed(input_ids, attention_mask)
        return 1 - nn.functional.cosine_similarity(mapped.float(), target.float(), dim=-1).mean()


def load_distillation(source: str, hidden_size: int, tokenizer: PreTrainedTokenizerBase) -> Distillation:
    """Distillation from the encoder `source`, Hub id or folder.

    Raises:
        ValueError: `source` cannot be read, has another vocabulary than `tokenizer`, or is a concept encoder.
    """
    check_vocabulary(tokenizer, source, "distil_from")
    teacher = read_encoder(source, "distil_from")
    if teacher.config.model_type == "concept_encoder":
        raise ValueError(f"distil_from {source!r} is a concept encoder; name one with a state per token")
    return Distillation(teacher, hidden_size)
