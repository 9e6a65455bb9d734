import numpy as np
import pytest
import torch
from helpers import random_examples

from concept_encoder.trainers.padding import pad_batch


@pytest.mark.parametrize("side", ["right", "left"])
def test_batches_are_those_of_the_tokenizer(tokenizer, side, monkeypatch):
    monkeypatch.setattr(tokenizer, "padding_side", side)
    examples = random_examples(tokenizer, rows=5)
    assert len({len(example["input_ids"]) for example in examples}) > 1
    expected = tokenizer.pad(examples, return_tensors="pt")
    arrays = [{"input_ids": np.array(example["input_ids"], dtype=np.int32), "other": 1} for example in examples]
    for rows in (examples, arrays):
        batch = pad_batch(rows, tokenizer)
        assert batch.keys() == {"input_ids", "attention_mask"}
        for name, values in batch.items():
            assert values.dtype == torch.long and torch.equal(values, expected[name])


def test_no_examples(tokenizer):
    with pytest.raises(ValueError, match="cannot collate an empty list of examples"):
        pad_batch([], tokenizer)
