"""Batches: texts padded, noise drawn for them, and a corruption applied."""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from ..data.roles import ENCODER_INPUTS, VECTOR, id_column, input_name, roles_of_batch, roles_of_example
from .corruptions import Corruption, Diffusion, Noise, Text, chosen_tokens, pack


def noise_generator(*key: int) -> torch.Generator:
    """CPU generator seeded by a tuple of non-negative integers; different tuples give independent streams."""
    state = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))


def visible_concept_counts(uniform: Tensor, num_concepts: int) -> Tensor:
    """(B,) long in [1, num_concepts], uniform, from `uniform` (B,) in [0, 1): the model's `num_visible_concepts`.

    A model trained so reads the first k concepts as the best k; any k can be kept afterwards.

    Source: Rippel et al. 2014, Learning ordered representations with nested dropout, arXiv:1402.0915. It is what
    Kusupati et al. 2022, Matryoshka representation learning, arXiv:2205.13147, do to the numbers of a vector.
    Differs: uniform in place of geometric, so that every k is trained as often as any other.
    """
    return (uniform * num_concepts).long().clamp(max=num_concepts - 1) + 1


def check_rebuilds(
    texts: Iterable[dict], collator: "DataCollatorForReconstruction", part: str, t: float | None = None
) -> None:
    """ValueError where nothing of the first 10,000 `texts` would be rebuilt, as of words that the tokenizer lacks.

    Args:
        texts: examples, as the collator takes them.
        collator: that would corrupt them.
        part: of the data, as the message names it.
        t: timestep of all, in place of those that are drawn.
    """
    rows = islice(texts, 10_000)
    found = 0
    while examples := list(islice(rows, 64)):
        found += len(examples)
        batch = collator.pad(examples)
        timesteps = None if t is None else torch.full((len(examples),), t)
        rebuilt = collator.corrupt(batch, collator.fixed_noise(batch), timesteps)["num_items"] > 0
        if (rebuilt & collator.eligible(batch).any(-1)).any():
            return
    if not found:
        raise ValueError(f"the {part} dataset is empty")
    raise ValueError(
        f"the {part} data have nothing to rebuild with corruption {collator.corruption.name!r}: their {found} texts "
        "are too short, or hold only special and unknown tokens; give texts that the tokenizer was made for"
    )


@dataclass
class DataCollatorForReconstruction:
    """Pads token ids and corrupts them.

    Called on examples, it draws each row's noise from `seed` and the row's own ids: the same text always meets the
    same noise, in any batch, process or padding. That is what an evaluation wants. Training draws again at every
    step: `ConceptTrainer` calls `pad`, `draw` with (step, micro-step, rank), then `corrupt`.

    Args:
        tokenizer: must have [PAD] and [MASK].
        corruption: what is done to a text; see `CORRUPTIONS`.
        seed: of all noise.

    Raises:
        ValueError: tokenizer without [MASK] or [PAD]; no examples.
    """

    tokenizer: PreTrainedTokenizerBase
    corruption: Corruption = field(default_factory=Diffusion)
    seed: int = 0

    def __post_init__(self) -> None:
        for token in ("mask_token", "pad_token"):
            if getattr(self.tokenizer, f"{token}_id") is None:
                raise ValueError(
                    f"the tokenizer has no {token}; add one with tokenizer.add_special_tokens({{'{token}': ...}})"
                )
        self._special_ids = torch.tensor(self.tokenizer.all_special_ids)

    def __call__(self, examples: list[dict]) -> dict[str, Tensor]:
        """Padded and corrupted batch of `examples`, each `{"input_ids": list[int]}`; see `corrupt` for its keys."""
        batch = self.pad(examples)
        return self.corrupt(batch, self.fixed_noise(batch))

    def pad(self, examples: list[dict]) -> dict[str, Tensor]:
        """Clean batch: `input_ids` and `attention_mask`, both (B, N) long; and of other texts and a teacher's vectors
        what the examples have, under the names of `data.roles`.

        What the tokenizer's own `pad` gives, without its way through Python lists: data come as arrays.
        """
        if not examples:
            raise ValueError("cannot collate an empty list of examples")
        side = {"batch_first": True, "padding_side": self.tokenizer.padding_side}
        padding, batch = self.tokenizer.pad_token_id, {}
        for role in roles_of_example(examples[0]):
            column = id_column(role)
            rows = [torch.from_numpy(np.asarray(example[column], dtype=np.int64)) for example in examples]
            batch[input_name(role, "input_ids")] = pad_sequence(rows, padding_value=padding, **side)
            batch[input_name(role, "attention_mask")] = pad_sequence([torch.ones_like(row) for row in rows], **side)
        for column in examples[0]:
            if column.endswith(VECTOR):
                vectors = np.stack([np.asarray(example[column], dtype=np.float32) for example in examples])
                batch[column] = torch.from_numpy(vectors)
        return batch

    def without_tokens(
        self, batch: dict[str, Tensor], share: float, step: int, micro_step: int = 0, rank: int = 0
    ) -> dict[str, Tensor]:
        """The batch, its texts of every role without a random share of their tokens; a special token stays, and at
        least one other."""
        shown = {**batch}
        for number, role in enumerate(roles_of_batch(batch)):
            names = [input_name(role, name) for name in ENCODER_INPUTS]
            ids, mask = (batch[name] for name in names)
            generator = noise_generator(self.seed, step, micro_step, 1 + rank, 2, number)
            noise = torch.rand(ids.shape, generator=generator).to(ids.device)
            real = mask.bool()
            eligible = real & ~torch.isin(ids, self._special_ids.to(ids.device))
            _, kept = chosen_tokens(eligible, noise, 1 - share)
            seen, packed = pack(kept | (real & ~eligible), (ids, self.tokenizer.pad_token_id))
            shown |= dict(zip(names, (packed, seen.long()), strict=True))
        return shown

    def draw(
        self, batch: dict[str, Tensor], step: int, micro_step: int = 0, rank: int = 0, world_size: int = 1
    ) -> Noise:
        """Noise of one micro-batch; a function of the seed and the arguments."""
        rows, columns = batch["input_ids"].shape
        own = noise_generator(self.seed, step, micro_step, 1 + rank)
        if self.corruption.stratified:
            # Every process draws the same start and takes every world_size-th point of the grid.
            start = torch.rand(1, generator=noise_generator(self.seed, step, micro_step, 0))
            place = torch.arange(rows) * world_size + rank
            first = (start + place / (rows * world_size)) % 1
        else:
            first = torch.rand(rows, generator=own)
        tokens = torch.rand(self._channels, rows, columns, generator=own)
        others = torch.rand(self.corruption.row_draws - 1, rows, generator=own)
        return Noise(torch.cat([first[None], others]), tokens)

    def draw_rows(self, batch: dict[str, Tensor], step: int, micro_step: int = 0, rank: int = 0) -> Tensor:
        """(B,) uniform in [0, 1), one more number per text, for what is no part of the corruption."""
        generator = noise_generator(self.seed, step, micro_step, 1 + rank, 1)
        return torch.rand(len(batch["input_ids"]), generator=generator)

    def draw_size(
        self, concepts: list[int], dims: list[int], n_dims: int, step: int, micro_step: int = 0
    ) -> dict[str, Any]:
        """`num_concepts`, one of `concepts`, and `n_dims` of `dims`, -1 for all, where there are any to choose from;
        the same on all processes."""
        generator = noise_generator(self.seed, step, micro_step, 0, 1)
        drawn: dict[str, Any] = {}
        if concepts:
            drawn["num_concepts"] = concepts[int(torch.randint(len(concepts), (), generator=generator))]
        if dims:
            chosen = torch.randperm(len(dims), generator=generator).tolist()[: len(dims) if n_dims == -1 else n_dims]
            drawn["dims"] = [dims[each] for each in sorted(chosen)]
        return drawn

    def fixed_noise(self, batch: dict[str, Tensor], draw: int = 0) -> Noise:
        """Noise, each text's a function of the seed, its real tokens and the number of the draw; 0 at padding."""
        rows, columns = batch["input_ids"].shape
        noise = Noise(torch.zeros(self.corruption.row_draws, rows), torch.zeros(self._channels, rows, columns))
        for row, (ids, mask) in enumerate(zip(batch["input_ids"].cpu(), batch["attention_mask"].cpu(), strict=True)):
            real = mask.bool()
            key = zlib.crc32(ids[real].numpy().astype(np.int64).tobytes())
            generator = noise_generator(self.seed, key, draw)
            noise.rows[0, row] = torch.rand(1, generator=generator)
            noise.tokens[:, row, real] = torch.rand(self._channels, int(real.sum()), generator=generator)
            noise.rows[1:, row] = torch.rand(self.corruption.row_draws - 1, generator=generator)
        return noise

    def eligible(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, N) bool: real tokens that are not special ones, as unknown words are too."""
        ids = batch["input_ids"]
        return batch["attention_mask"].bool() & ~torch.isin(ids, self._special_ids.to(ids.device))

    def corrupt(self, batch: dict[str, Tensor], noise: Noise, timesteps: Tensor | None = None) -> dict[str, Tensor]:
        """Corrupt a clean batch, and draw the positions that carry the loss.

        Args:
            batch: `input_ids`, `attention_mask`, (B, N).
            noise: as from `draw` or `fixed_noise`.
            timesteps: (B,) in (0, 1], in place of those in the noise.

        Returns:
            Inputs of the head of the corruption; `labels` (B, N'), -100 where not rebuilt or not drawn for the loss;
            `loss_weights` (B, N'); and `num_items` (B,), what each row adds to the denominator of the loss.

        Raises:
            ValueError: timesteps outside (0, 1], on a CPU.
        """
        if timesteps is not None and timesteps.device.type == "cpu" and not ((timesteps > 0) & (timesteps <= 1)).all():
            raise ValueError(f"timesteps must be in (0, 1], got {timesteps.tolist()}")
        ids, real = batch["input_ids"], batch["attention_mask"].bool()
        text = Text(ids, real, self.eligible(batch), self.tokenizer.mask_token_id, self.tokenizer.pad_token_id)
        corrupted = self.corruption(text, noise, timesteps)
        labels, weights = corrupted["labels"], corrupted["loss_weights"]
        share = self.corruption.position_share
        scored = noise.tokens[-1, :, : labels.shape[1]] < share  # (B, N')
        labels = labels.masked_fill(~scored, -100)
        return {**corrupted, "labels": labels, "loss_weights": weights * scored / share}

    @property
    def _channels(self) -> int:
        return self.corruption.token_draws + 1  # the last one draws the positions that carry the loss
