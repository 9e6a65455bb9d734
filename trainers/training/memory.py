"""Sizes that no machine at hand can hold, found before anything is allocated."""

import psutil
import torch

from ...configuration_concept import ConceptEncoderConfig

FLOAT = 4  # bytes


def least_bytes(config: ConceptEncoderConfig, texts: int, tokens: int) -> dict[str, int]:
    """Bytes that training cannot do without, by what has to be smaller for fewer: a bound from below, in float32.

    Args:
        config: of the model; weights count twice, with their gradients, and of layers only the square matrices.
        texts: of a batch.
        tokens: of a text; a batch counts its token embeddings and concepts once.
    """
    width, embedding = config.hidden_size, config.token_embedding_size or config.hidden_size
    layers = config.num_hidden_layers + config.decoder_num_hidden_layers
    positions = config.max_position_embeddings if config.position_embedding_type == "learned" else 0
    square = width * (4 * width + config.intermediate_size)
    counts = {
        "vocab_size": 2 * config.vocab_size * embedding,
        "max_position_embeddings": 2 * positions * embedding,
        "num_concepts": (2 + texts) * config.num_concepts * width,
        "num_hidden_layers, hidden_size or intermediate_size": 2 * layers * square,
        "per_device_train_batch_size": texts * tokens * embedding,
    }
    return {name: FLOAT * count for name, count in counts.items()}


def check_memory(config: ConceptEncoderConfig, texts: int, tokens: int, device: torch.device) -> None:
    """ValueError with the number of bytes where a model and a batch need more than `device` has in all."""
    on_gpu = device.type == "cuda"
    total = torch.cuda.get_device_properties(device).total_memory if on_gpu else psutil.virtual_memory().total
    needed = least_bytes(config, texts, tokens)
    if sum(needed.values()) > total:
        most = max(needed, key=lambda name: needed[name])
        raise ValueError(
            f"training needs at least {sum(needed.values()):,} bytes, and {'the GPU' if on_gpu else 'this machine'} "
            f"has {total:,}; most of it, {needed[most]:,}, is for {most}: lower that"
        )
