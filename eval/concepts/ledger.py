"""Concept ledger: bits per token that the decoder really takes through the concepts, and through which of them.

Letters: S documents, B documents of a batch, N tokens, C concepts, D hidden size, T grid points, P position bins.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...modeling_concept import ConceptEncoderForDiffusionMLM, cross_entropy_of_rows
from ...trainers.objectives.collators import DataCollatorForReconstruction
from ...utils.progress import progress
from ...utils.results import BitsPerToken, DataFacts, Figure, LedgerPositions, LedgerResult, LedgerTimestep

VARIANTS = ("true", "shuffled", "null")
NUM_TIMESTEPS = 10  # midpoints of so many equal parts of (0, 1], as in the trainer's evaluation
POSITION_BINS = 8
NUM_RESAMPLES = 10_000
LEAVE_ONE_OUT_DOCUMENTS = 32  # C decoder passes over each
CARRIED = 0.9
NEGLIGIBLE_BITS = 1e-3  # per token; losses that sum to less are noise, and which concept has them means nothing

Batch = dict[str, Tensor]


@torch.no_grad()
def concept_ledger(
    model: ConceptEncoderForDiffusionMLM,
    tokenizer: PreTrainedTokenizerBase,
    batches: Sequence[Batch],
    concepts: np.ndarray,
    seed: int = 0,
    checkpoint: str | None = None,
    corpus: DataFacts | None = None,
) -> LedgerResult:
    """NLL of masked tokens with other concepts less that with the true ones.

    The other concepts are

        shuffled   those of another document of the sample, by a seeded derangement: everything that concepts of real
                   text have, but about the wrong text
        null       the template, the mean matrix over the sample: all that concepts say for every input. Not zeros,
                   which the decoder has never met: it would be charged for its surprise, not for what it misses.

    The noise is that of the trainer's evaluation: a function of the text alone, the same for all three, on a grid of
    masking rates under the linear schedule. Bits per token are the mean over the grid of the difference in NLL per
    masked token: the difference of the conditional NELBOs over all of (0, 1], which no schedule changes. Intervals are
    percentiles over 10,000 resamples of documents. 0 means that the decoder does as well without the text's concepts.

    The concepts are encoded once, by the caller; what is run here is the decoder, 3 T times over every document and C
    times over the first 32, each of these at one point of the grid, in turn.

    Args:
        model: in evaluation mode, on its device; only `forward(concepts=...)` is called, with `attention_mask`,
            `decoder_input_ids`, `timesteps` and `labels`, and `token_losses` (B, N) in nats taken.
        tokenizer: of the model; its special tokens are never masked.
        batches: clean `input_ids` and `attention_mask`, both (B, N).
        concepts: (S, C, D) float32, of the same documents in the same order.
        seed: of derangement and resampling.
        checkpoint, corpus: what was read, for the record.

    Returns:
        In `by_position` the bits weigh each masking rate alike; `concepts_for_90_percent` is of the sum of the losses
        of `leave_one_out`, gains left out, and None where that is below 0.001. A figure without any token is None.

    Raises:
        ValueError: fewer than two documents, a number of concept matrices other than that of documents, no token
            that could be masked, or a tokenizer without [MASK] or [PAD].
    """
    _check(batches, concepts)
    collator = DataCollatorForReconstruction(tokenizer)
    grid = (np.arange(NUM_TIMESTEPS) + 0.5) / NUM_TIMESTEPS
    width = -(-max(batch["input_ids"].shape[1] for batch in batches) // POSITION_BINS)
    eligible = _eligible_tokens(batches, tokenizer, width)
    if not eligible.any():
        raise ValueError("the documents hold nothing but special tokens; the ledger needs tokens to rebuild")
    stand_ins = _stand_ins(concepts, seed)
    totals = _bits_and_tokens(model, collator, batches, stand_ins, grid, width)
    lost = _leave_one_out(model, collator, batches, stand_ins, grid)
    bits = {
        name: _bits_per_token(totals[:, v].sum(-1) - totals[:, 0].sum(-1), totals[:, 3].sum(-1), seed)
        for v, name in enumerate(VARIANTS)
        if name != "true"
    }
    return LedgerResult(
        checkpoint=checkpoint,
        corpus=corpus,
        num_documents=len(concepts),
        tokens=int(eligible.sum()),
        bits_per_token=BitsPerToken(**bits),
        by_timestep=_by_timestep(totals.sum(axis=(0, 3)), grid),
        by_position=_by_position(totals.sum(axis=0), grid, eligible, width),
        leave_one_out=lost,
        leave_one_out_documents=min(len(concepts), LEAVE_ONE_OUT_DOCUMENTS),
        concepts_for_90_percent=concepts_for_90_percent(lost),
    )


def derangement(count: int, seed: int) -> np.ndarray:
    """(count,) int: a random permutation that is one cycle, so that nothing stays in its place; count at least 2."""
    order = np.random.default_rng(seed).permutation(count)
    partner = np.empty(count, dtype=np.int64)
    partner[order] = np.roll(order, 1)
    return partner


def concepts_for_90_percent(lost: Sequence[float]) -> int | None:
    """Fewest concepts that hold `CARRIED` of the bits lost, a concept whose absence gains bits counting 0.

    Args:
        lost: (C,) bits per token lost without each concept.

    Returns:
        Between 1 and C, or None where the losses sum to less than 0.001 bits per token.
    """
    positive = np.sort(np.maximum(lost, 0))[::-1]
    if positive.sum() < NEGLIGIBLE_BITS:
        return None
    cumulated = np.cumsum(positive) / positive.sum()
    return int(np.count_nonzero(cumulated < CARRIED - 1e-12)) + 1


def _stand_ins(concepts: np.ndarray, seed: int) -> list[Tensor]:
    """Concepts (S, C, D) of the three variants."""
    true = torch.from_numpy(np.ascontiguousarray(concepts, dtype=np.float32))
    partner = torch.from_numpy(derangement(len(concepts), seed))
    return [true, true[partner], true.mean(0, dtype=torch.float64).float().expand_as(true)]


def _eligible_tokens(batches: Sequence[Batch], tokenizer: PreTrainedTokenizerBase, width: int) -> np.ndarray:
    """(P,) int: tokens that could be masked, by bin of positions."""
    special = torch.tensor(tokenizer.all_special_ids)
    could = (batch["attention_mask"].bool() & ~torch.isin(batch["input_ids"], special) for batch in batches)
    return np.sum([_binned(each, width).sum(axis=0) for each in could], axis=0).astype(np.int64)


def _bits_and_tokens(
    model: ConceptEncoderForDiffusionMLM,
    collator: DataCollatorForReconstruction,
    batches: Sequence[Batch],
    stand_ins: Sequence[Tensor],
    grid: np.ndarray,
    width: int,
) -> np.ndarray:
    """(S, 4, T, P): bits of the masked tokens under each of the three variants, and the number of these tokens."""
    parts, start = [], 0
    for batch in progress(batches, desc="Ledger", unit="batch"):
        rows = slice(start, start + len(batch["input_ids"]))
        start = rows.stop
        noise = collator.fixed_noise(batch)
        sums = []
        for t in grid:
            noised = collator.corrupt(batch, noise, torch.full((len(batch["input_ids"]),), float(t)))
            drawn = noised["loss_weights"] > 0
            scored = [_token_losses(model, noised, each[rows]) * drawn for each in stand_ins]
            sums.append(np.stack([_binned(each, width) for each in (*scored, drawn)], axis=1))
        parts.append(np.stack(sums, axis=2))
    totals = np.concatenate(parts)
    totals[:, :3] /= np.log(2)  # from nats
    return totals


def _token_losses(model: ConceptEncoderForDiffusionMLM, noised: Batch, concepts: Tensor) -> Tensor:
    """(B, N) nats, on the CPU."""
    names = ("attention_mask", "decoder_input_ids", "timesteps", "labels")
    inputs = {name: noised[name].to(model.device) for name in names}
    output = model(**inputs, concepts=concepts.to(model.device), row_loss=cross_entropy_of_rows)
    return output.token_losses.double().cpu()


def _binned(values: Tensor, width: int) -> np.ndarray:
    """Sums (B, P) of values (B, N) over bins of `width` positions."""
    padded = torch.nn.functional.pad(values.double(), (0, width * POSITION_BINS - values.shape[1]))
    return padded.view(len(values), POSITION_BINS, width).sum(-1).numpy()


def _bits_per_token(difference: np.ndarray, tokens: np.ndarray, seed: int) -> Figure:
    """Value and interval from sums per document and grid point, (S, T) each."""
    count = len(difference)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=NUM_RESAMPLES)  # (R, S)
    bits = _mean_ratio(drawn @ difference, drawn @ tokens)
    low, high = np.quantile(bits, [0.025, 0.975])
    value = _mean_ratio(difference.sum(0, keepdims=True), tokens.sum(0, keepdims=True))[0]
    return Figure(value=float(value), interval=(float(low), float(high)))


def _mean_ratio(sums: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """(R,) mean over the grid points that have tokens of sums / tokens, both (R, T)."""
    ratio = sums / np.maximum(tokens, 1)
    return ratio.sum(axis=-1) / np.maximum((tokens > 0).sum(axis=-1), 1)


def _by_timestep(totals: np.ndarray, grid: np.ndarray) -> list[LedgerTimestep]:
    rows = []
    for t, (*sums, tokens) in zip(grid, totals.T, strict=True):
        means = [float(each / tokens) if tokens else None for each in sums]
        named = {f"{name}_nll_bits": mean for name, mean in zip(VARIANTS, means, strict=True)}
        rows.append(LedgerTimestep(timestep=round(float(t), 6), **named, tokens=int(tokens)))
    return rows


def _by_position(totals: np.ndarray, grid: np.ndarray, eligible: np.ndarray, width: int) -> list[LedgerPositions]:
    # A position is masked in proportion to t, so 1 / t lets each masking rate count alike.
    true, _, null, tokens = np.einsum("vtp,t->vp", totals, 1 / grid)
    return [
        LedgerPositions(
            first=p * width,
            last=(p + 1) * width - 1,
            bits_null=float((null[p] - true[p]) / tokens[p]) if tokens[p] else None,
            tokens=int(eligible[p]),
        )
        for p in range(POSITION_BINS)
        if eligible[p]
    ]


def _leave_one_out(
    model: ConceptEncoderForDiffusionMLM,
    collator: DataCollatorForReconstruction,
    batches: Sequence[Batch],
    stand_ins: Sequence[Tensor],
    grid: np.ndarray,
) -> list[float]:
    """(C,) bits per token lost when one concept is replaced by its template."""
    true, _, template = stand_ins
    lost, tokens, start = np.zeros(true.shape[1]), 0.0, 0
    for whole in batches:
        batch = {name: whole[name][: LEAVE_ONE_OUT_DOCUMENTS - start] for name in ("input_ids", "attention_mask")}
        rows = slice(start, start + len(batch["input_ids"]))
        start = rows.stop
        timesteps = torch.tensor([float(grid[d % len(grid)]) for d in range(rows.start, rows.stop)])
        noised = collator.corrupt(batch, collator.fixed_noise(batch), timesteps)
        weights = (noised["loss_weights"] > 0) / timesteps[:, None]  # each masking rate counts alike
        tokens += float(weights.double().sum())
        base = (_token_losses(model, noised, true[rows]) * weights).sum()
        for c in progress(range(len(lost)), desc="Leaving one concept out", unit="concept", leave=False):
            without = true[rows].clone()
            without[:, c] = template[0, c]
            lost[c] += float((_token_losses(model, noised, without) * weights).sum() - base)
        if start >= LEAVE_ONE_OUT_DOCUMENTS:
            break
    return (lost / max(tokens, 1e-12) / np.log(2)).tolist()


def _check(batches: Sequence[Batch], concepts: np.ndarray) -> None:
    if len(concepts) < 2:
        raise ValueError(
            f"the ledger needs at least 2 documents, to give one the concepts of another; got {len(concepts)}"
        )
    documents = sum(len(batch["input_ids"]) for batch in batches)
    if documents != len(concepts):
        raise ValueError(
            f"concepts of {len(concepts)} documents were given for batches of {documents}; they must match"
        )
