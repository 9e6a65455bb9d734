"""Tied embeddings and FSDP2, which shards a model by its modules."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def share_tied_embeddings(model: nn.Module) -> list[str]:
    """Make the tied token tables of encoder and decoder one module; nothing else changes.

    FSDP2 shards by module, and refuses a parameter that modules of two groups hold.

    Returns:
        The places that now hold the encoder's module.
    """
    tokens = model.get_input_embeddings()
    tied = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module is not tokens and module.weight is tokens.weight
    ]
    for name in tied:
        model.set_submodule(name, tokens)
    return tied


@contextmanager
def embeddings_apart(model: nn.Module, places: list[str]) -> Iterator[None]:
    """Undo `share_tied_embeddings` for a while: torch loads a checkpoint by module, and visits each once."""
    tokens = model.get_input_embeddings()
    for name in places:
        apart = nn.Embedding(1, 1, device="meta")
        apart.weight = tokens.weight
        model.set_submodule(name, apart)
    try:
        yield
    finally:
        for name in places:
            model.set_submodule(name, tokens)
