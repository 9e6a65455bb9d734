"""Concept reading: which tokens each concept attends to, and which positions read it.

Attention is recomputed with the eager implementation and averaged over layers and heads. Letters: B documents of a
batch, N tokens, C concepts, V vocabulary, L layers, H heads.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...modeling_concept import ConceptDiffusionDecoder, ConceptEncoderModel
from ...utils.progress import progress
from ...utils.results import AttentionResult, ConceptReading, DataFacts, Example, Reading

TOP_TOKENS = 10
EXAMPLE_TOKENS = 32  # length to which the example text is cut

Batch = dict[str, Tensor]


@torch.no_grad()
def concept_reading(
    encoder: ConceptEncoderModel,
    decoder: ConceptDiffusionDecoder | None,
    tokenizer: PreTrainedTokenizerBase,
    batches: Iterable[Batch],
    checkpoint: str | None = None,
    corpus: DataFacts | None = None,
) -> AttentionResult:
    """What concepts read and who reads them, over documents.

    The decoder rebuilds each document with every token but the special ones masked (t = 1): so every position of the
    text has to be read from the concepts, and no noise is drawn. Special tokens are read by concepts like any other
    (attention may park there), so they stay in all shares of the encoder, and `special_tokens` names them; the decoder
    does not rebuild them, so they do not count among its positions.

    Args:
        encoder, decoder: of one model, in evaluation mode, on one device; decoder `None`: encoder's side only.
        tokenizer: of the model.
        batches: `input_ids` and `attention_mask`, both (B, N), the first document is also the example.
        checkpoint, corpus: what was read, for the record.

    Returns:
        Weights of the example with four decimals. Without a decoder, or a token to rebuild, the decoder's figures are
        None.

    Raises:
        ValueError: no batches.
    """
    sums = ReadingSums(encoder.config.num_concepts, encoder.config.vocab_size, tokenizer, decoder is not None)
    example = None
    with EagerAttention(encoder), EagerAttention(decoder):
        for batch in progress(batches, desc="Reading", unit="batch"):
            if example is None:
                example = _example(encoder, decoder, tokenizer, batch)
            read, read_by = attention_weights(encoder, decoder, tokenizer, batch)
            for row in range(len(read)):
                real = batch["attention_mask"][row].bool()
                ids = batch["input_ids"][row][real]
                sums.add(ids, read[row][:, real], None if read_by is None else read_by[row][real])
    if example is None:
        raise ValueError("there are no batches to read; give at least one")
    *concepts, uniform = sums.rows()
    return AttentionResult(
        checkpoint=checkpoint,
        corpus=corpus,
        num_documents=sums.documents,
        special_tokens=tokenizer.convert_ids_to_tokens(tokenizer.all_special_ids),
        concepts=[ConceptReading(index=index, **vars(row)) for index, row in enumerate(concepts)],
        uniform=uniform,
        example=example,
    )


def attention_weights(
    encoder: ConceptEncoderModel,
    decoder: ConceptDiffusionDecoder | None,
    tokenizer: PreTrainedTokenizerBase,
    batch: Batch,
) -> tuple[Tensor, Tensor | None]:
    """Attention of concepts to tokens (B, C, N) and of positions to concepts (B, N, C), on the CPU in float64.

    Means over layers and heads; the attention implementation must be "eager". Each row sums to 1. The decoder sees all
    tokens but the special ones masked.
    """
    inputs = {name: batch[name].to(encoder.device) for name in ("input_ids", "attention_mask")}
    encoded = encoder(**inputs, output_attentions=True)
    read = torch.stack(encoded.cross_attentions).mean(dim=(0, 2)).double().cpu()  # (L, B, H, C, N) -> (B, C, N)
    if decoder is None:
        return read, None
    special = torch.isin(inputs["input_ids"], torch.tensor(tokenizer.all_special_ids, device=encoder.device))
    decoded = decoder(
        torch.where(special, inputs["input_ids"], tokenizer.mask_token_id),
        encoded.last_hidden_state,
        torch.ones(len(special), device=encoder.device),
        inputs["attention_mask"],
        output_attentions=True,
    )
    return read, torch.stack(decoded.cross_attentions).mean(dim=(0, 2)).double().cpu()


class EagerAttention:
    """Eager attention inside the block: the others do not return their weights."""

    def __init__(self, model: ConceptEncoderModel | ConceptDiffusionDecoder | None):
        self._model = model

    def __enter__(self) -> None:
        if self._model is not None:
            self._before = self._model.config._attn_implementation
            self._model.set_attn_implementation("eager")

    def __exit__(self, *exc_info: object) -> None:
        if self._model is not None:
            self._model.set_attn_implementation(self._before)


class ReadingSums:
    """Running sums over documents, for C concepts and, in the last row, attention that spreads evenly."""

    def __init__(self, num_concepts: int, vocab_size: int, tokenizer: PreTrainedTokenizerBase, has_decoder: bool):
        self._tokenizer = tokenizer
        self._special = torch.tensor(tokenizer.all_special_ids)
        self._has_decoder = has_decoder
        rows = num_concepts + 1
        self._mass = torch.zeros(vocab_size, rows, dtype=torch.float64)
        self._entropy = torch.zeros(rows, dtype=torch.float64)
        self._position = torch.zeros(rows, dtype=torch.float64)
        self._read = torch.zeros(rows, dtype=torch.float64)
        self._read_entropy = torch.zeros(rows, dtype=torch.float64)
        self.documents = self._positions = self._rebuilt = 0

    def add(self, ids: Tensor, read: Tensor, read_by: Tensor | None) -> None:
        """One document: real ids (n,), attention of concepts (C, n) and of positions (n, C)."""
        if not len(ids):
            return
        weights = torch.cat([read, torch.full_like(read[:1], 1 / len(ids))])  # (C + 1, n)
        self._mass.index_add_(0, ids, weights.T.contiguous())
        self._entropy += _entropy_bits(weights)
        self._position += weights @ torch.linspace(0, 1, len(ids), dtype=torch.float64)
        self.documents += 1
        text = ~torch.isin(ids, self._special)
        if read_by is None or not text.any():
            return
        readers = read_by[text].T  # (C, m)
        readers = torch.cat([readers, torch.full_like(readers[:1], 1 / len(readers))])
        self._read += readers.sum(-1)
        self._read_entropy += _entropy_bits(readers / readers.sum(-1, keepdim=True).clamp_min(1e-300))
        self._positions += int(text.sum())
        self._rebuilt += 1

    def rows(self) -> list[Reading]:
        return [self._row(index) for index in range(self._mass.shape[1])]

    def _row(self, index: int) -> Reading:
        documents = max(self.documents, 1)
        mass = self._mass[:, index] / documents
        top = mass.topk(min(TOP_TOKENS, len(mass)))
        tokens = self._tokenizer.convert_ids_to_tokens(top.indices.tolist())
        seen = self._has_decoder and self._rebuilt > 0
        return Reading(
            entropy_bits=float(self._entropy[index]) / documents,
            top_tokens=[(token, share) for token, share in zip(tokens, top.values.tolist(), strict=True) if share],
            special_share=float(mass[self._special].sum()),
            mean_position=float(self._position[index]) / documents,
            share_read=float(self._read[index]) / self._positions if seen else None,
            read_by_entropy_bits=float(self._read_entropy[index]) / self._rebuilt if seen else None,
        )


def _entropy_bits(weights: Tensor) -> Tensor:
    return torch.special.entr(weights).sum(-1) / np.log(2)


def _example(
    encoder: ConceptEncoderModel,
    decoder: ConceptDiffusionDecoder | None,
    tokenizer: PreTrainedTokenizerBase,
    batch: Batch,
) -> Example:
    real = batch["attention_mask"][0].bool()
    ids = batch["input_ids"][:1, real][:, :EXAMPLE_TOKENS]
    read, read_by = attention_weights(
        encoder, decoder, tokenizer, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    )
    return Example(
        tokens=tokenizer.convert_ids_to_tokens(ids[0].tolist()),
        encoder_weights=read[0].numpy().round(4).tolist(),
        decoder_weights=None if read_by is None else read_by[0].numpy().round(4).tolist(),
    )
