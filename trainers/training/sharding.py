"""Tied embeddings and FSDP2, which shards a model by its modules."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import TrainerCallback


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


class OwnClassName(TrainerCallback):
    """FSDP2 gives the model a class of its own, after which saving would name and copy other code: names it back."""

    def __init__(self, own_class: type[nn.Module]):
        self.own_class = own_class

    def on_train_begin(self, args, state, control, model, **kwargs) -> None:
        sharded_class = type(model)
        sharded_class.__name__, sharded_class.__module__ = self.own_class.__name__, self.own_class.__module__
