"""Measure whether more sampling steps help.

    python scripts/dev/sampling_steps.py runs/mine --result runs/mine/steps.json

Fills half-masked validation texts of each run's own corpus in 1, 2, 4, 8 and 16 steps, prints the table and writes it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from concept_encoder.eval.concepts.sampling import load_sampler
from concept_encoder.modeling_concept import ConceptEncoderForDiffusionMLM, first_to_commit
from concept_encoder.trainers.data.corpora import load_corpus
from concept_encoder.trainers.objectives.collators import DataCollatorForReconstruction
from concept_encoder.trainers.recipes import RECIPE_FILE, read_data
from concept_encoder.utils.command_line import Command, run, say
from concept_encoder.utils.files import write_json

NUM_STEPS = (1, 2, 4, 8, 16)
NUM_RESAMPLES = 2_000
BATCH_SIZE = 32
ENCODER_READS = ("text", "canvas")

Batch = dict[str, Tensor]


def sampling_steps(checkpoint: str, num_texts: int, seed: int = 0) -> dict[str, Any]:
    """`steps_table` of a run folder on the first validation texts of its own corpus.

    Raises:
        ValueError: num_texts below 2, the checkpoint has no recipe.yaml, or as `load_sampler`.
    """
    if num_texts < 2:
        raise ValueError(f"num_texts must be at least 2, for an interval, got {num_texts}")
    model, tokenizer = load_sampler(checkpoint)
    if not (Path(checkpoint) / RECIPE_FILE).is_file():
        raise ValueError(f"{checkpoint} has no {RECIPE_FILE}, which names the corpus to take texts from")
    data = read_data(checkpoint, max_validation_documents=num_texts)
    texts = [row["text"] for row in load_corpus(data, "validation")]
    encoded = tokenizer(texts, truncation=True, max_length=data.max_length, split_special_tokens=True)["input_ids"]
    collator = DataCollatorForReconstruction(tokenizer, seed=seed)
    examples = [{"input_ids": ids} for ids in encoded]
    batches = [collator.pad(examples[i : i + BATCH_SIZE]) for i in range(0, len(examples), BATCH_SIZE)]
    table = steps_table(model, tokenizer, batches, seed=seed)
    return {"decoder_context": model.config.decoder_context, "num_texts": len(texts), "seed": seed, **table}


@torch.no_grad()
def steps_table(
    model: ConceptEncoderForDiffusionMLM,
    tokenizer: PreTrainedTokenizerBase,
    batches: Sequence[Batch],
    mask_share: float = 0.5,
    seed: int = 0,
) -> dict[str, Any]:
    """Fill texts with a share of their tokens masked, in 1, 2, 4, 8 and 16 steps.

    Two measures, per masked token: `recovered`, the share of true tokens among the most probable ones, committed by
    confidence; and `nll_bits` of the true tokens under ancestral sampling, sum over steps of -log2 p(tokens of the
    step | what was visible before it), for one random order per text. Its mean over orders bounds the bits of the true
    filling from above. Two settings: the encoder reads the clean `text`, as in pretraining, or the `canvas` with its
    [MASK]s, which is infilling.

    Args:
        model: in evaluation mode.
        batches: clean `input_ids` and `attention_mask`, (B, N). Masks and orders are a function of seed and text.
        mask_share: probability in (0, 1] that a token is masked; special tokens never are.

    Returns:
        Per setting and number of steps: both measures with `value`, 95 % percentile `interval` over texts and, beyond
        one step, `gain`: the interval of the paired difference from one step.
    """
    collator = DataCollatorForReconstruction(tokenizer, seed=seed)
    settings = {}
    for reads in ENCODER_READS:
        totals = []  # (B, 3, steps): recovered tokens, bits, masked tokens
        for batch in batches:
            rate = torch.full((len(batch["input_ids"]),), mask_share)
            corrupted = collator.corrupt(batch, collator.fixed_noise(batch), rate)
            read = batch["input_ids"] if reads == "text" else corrupted["decoder_input_ids"]
            totals.append(_counts(model, corrupted, read, collator.fixed_noise(batch, draw=1).tokens[0]))
        settings[reads] = _summary(np.concatenate(totals), seed)
    return {"mask_share": mask_share, "encoder_reads": settings}


def _counts(model, corrupted: Batch, read: Tensor, order: Tensor) -> np.ndarray:
    truth, canvas, mask = (
        corrupted[name].to(model.device) for name in ("input_ids", "decoder_input_ids", "attention_mask")
    )
    masked = (canvas == model.config.mask_token_id) & mask.bool()
    concepts = model.encoder(read.to(model.device), mask).last_hidden_state
    counts = []
    for num_steps in NUM_STEPS:
        filled = model.generate(None, mask, concepts, canvas, num_steps=num_steps, temperature=0.0)
        recovered = ((filled == truth) & masked).sum(-1)
        bits = _ancestral_bits(model, truth, canvas, mask, concepts, order.to(model.device), num_steps)
        counts.append(torch.stack([recovered.double(), bits, masked.sum(-1).double()], dim=-1))
    return torch.stack(counts, dim=-1).cpu().numpy()


def _ancestral_bits(model, truth, canvas, mask, concepts, order, num_steps: int) -> Tensor:
    """(B,) bits of the true tokens, revealed in `num_steps` equal shares by falling `order` (B, N) in [0, 1)."""
    masked = (canvas == model.config.mask_token_id) & mask.bool()
    start, bits = masked.sum(-1, keepdim=True), torch.zeros(len(truth), dtype=torch.double, device=truth.device)
    for step in range(1, num_steps + 1):
        count = masked.sum(-1, keepdim=True) - start * (num_steps - step) // num_steps
        commit = first_to_commit(masked, order[masked], count, None)
        labels = truth.masked_fill(~commit, -100)
        output = model(attention_mask=mask, decoder_input_ids=canvas, concepts=concepts, labels=labels)
        bits += output.token_losses.double().sum(-1) / np.log(2)
        canvas = torch.where(commit, truth, canvas)
        masked = masked & ~commit
    return bits


def _summary(totals: np.ndarray, seed: int) -> list[dict[str, Any]]:
    rows = []
    for column, num_steps in enumerate(NUM_STEPS):
        row: dict[str, Any] = {"num_steps": num_steps}
        for place, name in enumerate(("recovered", "nll_bits")):
            values, tokens = totals[:, place], totals[:, 2, 0]
            row[name] = {"value": float(values[:, column].sum() / tokens.sum())}
            row[name]["interval"] = _interval(values[:, column], tokens, seed)
            if column:
                row[name]["gain"] = _interval(values[:, column] - values[:, 0], tokens, seed)
        rows.append(row)
    return rows


def _interval(sums: np.ndarray, tokens: np.ndarray, seed: int) -> list[float]:
    """95 % percentile interval of the ratio of sums, over texts."""
    if not np.ptp(sums / np.maximum(tokens, 1)):  # the same in every text: no resample differs
        return [float(sums.sum() / tokens.sum())] * 2
    result = bootstrap(
        (sums, tokens),
        lambda s, n, axis: s.sum(axis) / n.sum(axis),
        paired=True,
        n_resamples=NUM_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return [float(result.confidence_interval.low), float(result.confidence_interval.high)]


def main(argv: list[str] | None = None) -> None:
    parser = Command(__file__, __doc__)
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="folders of pretraining runs")
    parser.add_argument("--result", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--num_texts", type=int, default=256, help="validation texts to fill")
    parser.add_argument("--seed", type=int, default=0, help="of masks, orders and resamples")
    args = parser.parse_args(argv)
    with parser.refusing():
        runs = {Path(folder).name: sampling_steps(folder, args.num_texts, seed=args.seed) for folder in args.run_dirs}
        write_json(args.result, {"kind": "sampling_steps", "runs": runs})
    print(f"{'run':<20}  {'context':<7}  {'encoder':<7}  {'steps':>5}  {'recovered':<22}  bits per masked token")
    for name, measured in runs.items():
        for reads, rows in measured["encoder_reads"].items():
            for row in rows:
                cells = [_cell(row[measure]) for measure in ("recovered", "nll_bits")]
                head = f"{name:<20}  {measured['decoder_context']:<7}  {reads:<7}  {row['num_steps']:>5}"
                print(f"{head}  {cells[0]:<22}  {cells[1]}")
    say(f"Written to {args.result}.")


def _cell(measure: dict) -> str:
    low, high = measure["interval"]
    return f"{measure['value']:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    run(main)
