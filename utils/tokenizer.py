"""What a tokenizer and a model have to agree on: how long a text may be, and how many ids there are."""

from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def longest_text(config: PreTrainedConfig, max_length: int) -> int:
    """`max_length` tokens, or as many as the encoder has learned positions for."""
    return (
        min(max_length, config.max_position_embeddings) if config.position_embedding_type == "learned" else max_length
    )


def limit_length(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """The tokenizer, which now cuts texts (`truncation=True`) at the longest one that the model can read."""
    tokenizer.model_max_length = longest_text(config, tokenizer.model_max_length)
    return tokenizer


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """The largest id and one: rows of a table of all ids. A vocabulary with holes has fewer tokens than that."""
    return max(tokenizer.get_vocab().values()) + 1
