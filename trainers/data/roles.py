"""Roles of the texts of an example, and what examples and batches call what belongs to them.

An example has a text, perhaps partners that mean the same ("partner", "partner_2") and negatives that do not
("negative", "negative_2"), each as token ids in an array, and perhaps a teacher's vector of some of them. A batch has
the inputs of the encoder for each: `input_ids`, `partner_input_ids`, `attention_mask`, `partner_attention_mask`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

TEXT, PARTNER, NEGATIVE = "text", "partner", "negative"
ENCODER_INPUTS = ("input_ids", "attention_mask")
VECTOR = "_vector"  # ends the name of a teacher's vectors


def numbered(role: str, columns: Sequence[str]) -> dict[str, str]:
    """Role -> column of several of one kind: partner, partner_2, partner_3."""
    return {role if number == 1 else f"{role}_{number}": column for number, column in enumerate(columns, 1)}


def id_column(role: str) -> str:
    """Of an example's token ids."""
    return input_name(role, "input_ids") if role == TEXT else f"{role}_ids"


def input_name(role: str, name: str) -> str:
    """Where a batch has the input `name` of the encoder."""
    return name if role == TEXT else f"{role}_{name}"


def vector_name(role: str) -> str:
    """Of a teacher's vector, in an example and in a batch."""
    return f"{role}{VECTOR}"


def roles_of_example(columns: Iterable[str]) -> list[str]:
    """Of the texts of an example, in their order, from its columns."""
    return [TEXT, *(name.removesuffix("_ids") for name in columns if name.endswith("_ids") and name != "input_ids")]


def roles_of_batch(batch: Mapping[str, Any]) -> list[str]:
    """Of the texts of a batch, in their order."""
    ending = "_input_ids"
    return [
        TEXT,
        *(name.removesuffix(ending) for name in batch if name.endswith(ending) and name != f"decoder{ending}"),
    ]
