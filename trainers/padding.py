"""Rows of token ids to one padded batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase


def pad_batch(examples: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """Clean batch `input_ids` and `attention_mask`, both (B, N) long, padded to the longest row.

    What `tokenizer.pad` gives, without its way through Python lists: `load_pretraining_data` gives arrays.

    Args:
        examples: each `{"input_ids": ids}`, an array or a list; other columns are ignored.
        tokenizer: gives [PAD] and the side to pad on.
    """
    if not examples:
        raise ValueError("cannot collate an empty list of examples")
    rows = [torch.from_numpy(np.asarray(example["input_ids"], dtype=np.int64)) for example in examples]
    side = {"batch_first": True, "padding_side": tokenizer.padding_side}
    ids = pad_sequence(rows, padding_value=tokenizer.pad_token_id, **side)
    return {"input_ids": ids, "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], **side)}
