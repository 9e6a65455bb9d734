"""What a tokenizer and a model have to agree on: how long a text may be, how many ids there are, and what
parts two texts in one sequence."""

import copy
import json
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from .files import write_atomically
from .untrusted import read_object

CONFIG_FILE = "tokenizer_config.json"
PAIR_HEAD = "ConceptEncoderForSentencePairClassification"  # of bi-encoders


def longest_text(config: PreTrainedConfig, max_length: int) -> int:
    """`max_length` tokens, or as many as the encoder has learned positions for."""
    return (
        min(max_length, config.max_position_embeddings) if config.position_embedding_type == "learned" else max_length
    )


def limit_length(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """A copy that cuts texts (`truncation=True`) at the longest one that the model can read."""
    limited = copy.deepcopy(tokenizer)
    limited.model_max_length = longest_text(config, tokenizer.model_max_length)
    return limited


def fit_saved_tokenizer(folder: Path, config: PreTrainedConfig) -> None:
    """As `limit_length`, for the files of a tokenizer as they are; of a pair head they also say that it gives the
    `token_type_ids` by which that head parts two texts in one sequence. A class that transformers 5 has renamed gets
    the name that versions before know too."""
    content = read_object(folder / CONFIG_FILE)
    given = content.get("model_max_length")
    limit = longest_text(config, int(given) if isinstance(given, int | float) else VERY_LARGE_INTEGER)
    fitted = content if limit in (given, VERY_LARGE_INTEGER) else {**content, "model_max_length": limit}
    if PAIR_HEAD in (config.architectures or ()):
        fitted = {**fitted, "model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    if fitted.get("tokenizer_class") == "TokenizersBackend":
        fitted = {**fitted, "tokenizer_class": "PreTrainedTokenizerFast"}
    if fitted != content:
        write_atomically(folder / CONFIG_FILE, json.dumps(fitted, indent=2, ensure_ascii=False) + "\n")


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """The largest id and one: rows of a table of all ids. A vocabulary with holes has fewer tokens than that."""
    return max(tokenizer.get_vocab().values()) + 1
