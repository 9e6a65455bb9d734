"""Corruption of batches: which tokens the decoder has to rebuild, and what each of them weighs."""

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .schedules import get_schedule


def noise_generator(*key: int) -> torch.Generator:
    """CPU generator seeded by a tuple of non-negative integers; different tuples give independent streams."""
    state = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))


@dataclass
class DataCollatorForMaskedDiffusion:
    """Pads token ids and masks them at a random timestep, the corruption of absorbing-state diffusion.

    Called on examples, it draws each row's noise from `seed` and the row's own ids: the same text always meets the
    same noise, whatever its batch, process or padding. That is what an evaluation wants. Training draws anew at every
    step: `ConceptTrainer` calls `pad`, `draw` with (step, micro-step, rank), then `corrupt`.

    Args:
        tokenizer: must have [PAD] and [MASK].
        schedule: name in `SCHEDULES`, the keep probability alpha(t).
        t_min, t_max: timesteps are uniform over (t_min, t_max], within [0, 1].
        t_sampling: "independent" per row, or "antithetic": one uniform draw, then even spacing over the global batch.
        weighting: weight of a masked token in the loss. "none": 1, a mean over masked tokens. "elbo": the schedule's
            exact weight (1 / t for linear), a sum over all tokens that could be masked, divided by their number.
        position_share: share of the masked tokens, in (0, 1], drawn to carry the loss, each weighing 1 / share: the
            expected gradient is that of all of them, at that share of the product with the vocabulary.
        seed: of all noise.
        pad_to_multiple_of: round the padded length up.

    Raises:
        ValueError: tokenizer without [MASK] or [PAD]; t_min >= t_max or outside [0, 1]; unknown choice; no examples.
    """

    tokenizer: PreTrainedTokenizerBase
    schedule: str = "linear"
    t_min: float = 0.0
    t_max: float = 1.0
    t_sampling: Literal["independent", "antithetic"] = "independent"
    weighting: Literal["none", "elbo"] = "none"
    position_share: float = 1.0
    seed: int = 0
    pad_to_multiple_of: int | None = None

    def __post_init__(self) -> None:
        for token in ("mask_token", "pad_token"):
            if getattr(self.tokenizer, f"{token}_id") is None:
                raise ValueError(
                    f"the tokenizer has no {token}; add one with tokenizer.add_special_tokens({{'{token}': ...}})"
                )
        if not 0 <= self.t_min < self.t_max <= 1:
            raise ValueError(f"timesteps need 0 <= t_min < t_max <= 1, got t_min={self.t_min}, t_max={self.t_max}")
        if self.t_sampling not in ("independent", "antithetic"):
            raise ValueError(f"t_sampling must be 'independent' or 'antithetic', got {self.t_sampling!r}")
        if self.weighting not in ("none", "elbo"):
            raise ValueError(f"weighting must be 'none' or 'elbo', got {self.weighting!r}")
        if not 0 < self.position_share <= 1:
            raise ValueError(f"position_share must lie in (0, 1], got {self.position_share}")
        self._schedule = get_schedule(self.schedule)
        self._special_ids = torch.tensor(self.tokenizer.all_special_ids)

    def __call__(self, examples: list[dict]) -> dict[str, Tensor]:
        """Padded and corrupted batch of `examples`, each `{"input_ids": list[int]}`; see `corrupt` for its keys."""
        batch = self.pad(examples)
        uniform = self.fixed_noise(batch)  # (B, N + 1)
        return self.corrupt(batch, self._timesteps(uniform[:, 0]), uniform[:, 1:])

    def pad(self, examples: list[dict]) -> dict[str, Tensor]:
        """Clean batch: `input_ids` and `attention_mask`, both (B, N) long."""
        if not examples:
            raise ValueError("cannot collate an empty list of examples")
        ids = [{"input_ids": example["input_ids"]} for example in examples]
        batch = self.tokenizer.pad(ids, pad_to_multiple_of=self.pad_to_multiple_of, return_tensors="pt")
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}

    def draw(
        self, batch: dict[str, Tensor], step: int, micro_step: int = 0, rank: int = 0, world_size: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Timesteps (B,) and uniform noise (B, N) of one micro-batch; a function of the seed and the arguments."""
        rows, columns = batch["input_ids"].shape
        own = noise_generator(self.seed, step, micro_step, 1 + rank)
        if self.t_sampling == "independent":
            uniform = torch.rand(rows, generator=own)
        else:
            # Every process draws the same start and takes every world_size-th point of the grid.
            start = torch.rand(1, generator=noise_generator(self.seed, step, micro_step, 0))
            place = torch.arange(rows) * world_size + rank
            uniform = (start + place / (rows * world_size)) % 1
        return self._timesteps(uniform), torch.rand(rows, columns, generator=own)

    def fixed_noise(self, batch: dict[str, Tensor], draw: int = 0) -> Tensor:
        """(B, N + 1) uniform noise, each row a function of the seed, its real tokens and the number of the draw."""
        rows, columns = batch["input_ids"].shape
        noise = torch.zeros(rows, columns + 1)
        for row, (ids, mask) in enumerate(zip(batch["input_ids"].cpu(), batch["attention_mask"].cpu(), strict=True)):
            real = mask.bool()
            key = zlib.crc32(ids[real].numpy().astype(np.int64).tobytes())
            drawn = torch.rand(1 + int(real.sum()), generator=noise_generator(self.seed, key, draw))
            noise[row, 0] = drawn[0]
            noise[row, 1:][real] = drawn[1:]
        return noise

    def corrupt(self, batch: dict[str, Tensor], timesteps: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Mask the tokens of a clean batch whose noise lies below the masking rate 1 - alpha(t).

        Special tokens and padding are never masked. A row without any masked token gets the one with the least noise
        masked; with weighting "elbo" this token weighs 0, so that the bound stays unbiased.

        Args:
            batch: `input_ids`, `attention_mask`, (B, N).
            timesteps: (B,) in (0, 1].
            noise: (B, N) uniform in [0, 1).

        Returns:
            The batch plus `decoder_input_ids` (B, N); `timesteps` (B,), the masking rate 1 - alpha(t), which is t for
            the linear schedule; `labels` (B, N), -100 where not masked or not drawn for the loss; `loss_weights`
            (B, N); and `num_items` (B,), what each row adds to the denominator of the loss.
        """
        ids = batch["input_ids"]
        rate = 1 - self._schedule.alpha(timesteps.double()).float()  # (B,)
        eligible = batch["attention_mask"].bool() & ~torch.isin(ids, self._special_ids.to(ids.device))
        drawn = eligible & (noise < rate[:, None])
        least = torch.where(eligible, noise, torch.inf).argmin(-1, keepdim=True)
        lacking = eligible.any(-1, keepdim=True) & ~drawn.any(-1, keepdim=True)
        masked = drawn | (lacking & (torch.arange(ids.shape[1], device=ids.device) == least))
        # Given that a token is masked, its noise over the rate is uniform again: no further draw is needed.
        scored = (drawn & (noise < self.position_share * rate[:, None])) | (masked & ~drawn)
        weights = torch.where(drawn, 1 / self.position_share, 1.0) * scored
        if self.weighting == "elbo":
            weights = self._schedule.elbo_weight(timesteps)[:, None] * drawn * weights
            num_items = eligible.sum(-1)
        else:
            num_items = masked.sum(-1)
        return {
            **batch,
            "decoder_input_ids": ids.masked_fill(masked, self.tokenizer.mask_token_id),
            "timesteps": rate,
            "labels": ids.masked_fill(~scored, -100),
            "loss_weights": weights,
            "num_items": num_items,
        }

    def _timesteps(self, uniform: Tensor) -> Tensor:
        return self.t_max - (self.t_max - self.t_min) * uniform  # u in [0, 1) -> (t_min, t_max]
