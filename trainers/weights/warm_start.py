"""Warm start: from the weights of a concept encoder, or with the token embeddings of any encoder."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from transformers import AutoModel, PreTrainedTokenizerBase

from ... import modeling_concept
from ...configuration_concept import ConceptEncoderConfig
from ...modeling_concept import ConceptEncoderModel, ConceptEncoderPreTrainedModel
from ...utils.tokenizer import vocabulary_size
from ...utils.untrusted import is_hub_id, read_tokenizer
from .tensors import check_finite, check_weights, listed, read_headers

# What the weights of an encoder can be used under another value of: all else decides what it computes.
FREE_FIELDS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "initializer_range",
    "latent_init",
    "decoder_num_hidden_layers",
    "decoder_context",
    "decoder_query",
    "timestep_scale",
    "pair_comparison",
)


# What is missing or of another shape is named here, not left to a report.
LOADING = {
    "dtype": torch.float32,
    "use_safetensors": True,
    "output_loading_info": True,
    "ignore_mismatched_sizes": True,
}


def architecture(config: ConceptEncoderConfig) -> dict[str, Any]:
    """The fields that decide shapes and wiring, and the initialisation."""
    return {name: getattr(config, name) for name in ConceptEncoderConfig.__annotations__ if name != "auto_map"}


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, source: str, field: str) -> None:
    """ValueError with the first differences if `source` gives some token another id than `tokenizer` does."""
    own, others = tokenizer.get_vocab(), _read(read_tokenizer, source, source, field).get_vocab()
    differing = sorted(
        (t for t in own.keys() | others.keys() if own.get(t) != others.get(t)), key=lambda t: (len(t), t)
    )
    if differing:
        shown = ", ".join(f"{token!r} is {own.get(token)} here, {others.get(token)} there" for token in differing[:3])
        raise ValueError(
            f"{field} {source!r} has another vocabulary: {len(differing)} tokens differ, such as "
            f"{shown}; train with its tokenizer (tokenizer_name), or choose another source"
        )


@torch.no_grad()
def warm_start_embeddings(
    model: ConceptEncoderPreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str
) -> None:
    """Copy the token embeddings of `source` into the encoder of `model`, and what is tied to it.

    Positions, and untied tables of the decoder, stay as they are.

    Args:
        model: any head; its `token_embedding_size` must be the width of the source's token embeddings.
        tokenizer: of the run; the source's own must give every token the same id.
        source: Hub id or folder of a transformers encoder with its tokenizer.

    Raises:
        ValueError: `source` cannot be read; another vocabulary; another width; fewer rows than tokens; no embeddings
            in its files, or such as are no finite real numbers.
    """
    check_vocabulary(tokenizer, source, "warm_start_embeddings")
    table = _token_embeddings(source)
    own = model.get_input_embeddings().weight
    if table.shape[1] != own.shape[1]:
        raise ValueError(
            f"warm_start_embeddings {source!r} has token embeddings of width {table.shape[1]}, the model of width "
            f"{own.shape[1]}; set token_embedding_size={table.shape[1]} and tie_word_embeddings=False, and they are "
            "projected to hidden_size"
        )
    rows = min(len(own), len(table))
    size = vocabulary_size(tokenizer)
    if rows < size:
        raise ValueError(f"warm_start_embeddings {source!r} has {rows} token embeddings for {size} tokens")
    own[:rows] = table[:rows].to(own.dtype)


def start_from_checkpoint(
    head: type[ConceptEncoderPreTrainedModel],
    config: ConceptEncoderConfig,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
) -> ConceptEncoderPreTrainedModel:
    """A model with the weights of a trained one: of its encoder, and of its decoder where `head` is its class too.

    Args:
        head: class of the model.
        config: of the model; may differ from the source's in `FREE_FIELDS` only.
        tokenizer: of the run; the source's own must give every token the same id.
        source: Hub id or folder of a pretrained concept encoder with its tokenizer.

    Raises:
        ValueError: `source` cannot be read; another vocabulary or architecture; weights that `check_weights` refuses.
    """
    field = "start_from"
    check_vocabulary(tokenizer, source, field)
    folder = _folder(source, field)
    theirs = _read(head.config_class.from_pretrained, folder, source, field)
    there, here = architecture(theirs), architecture(config)
    differing = [name for name in here if name not in FREE_FIELDS and there[name] != here[name]]
    if differing:
        shown = ", ".join(f"{name} is {there[name]!r} there, {here[name]!r} here" for name in differing[:3])
        raise ValueError(
            f"start_from {source!r} has another architecture ({shown}); set these fields to the same values"
        )
    name = next(iter(theirs.architectures or []), ConceptEncoderModel.__name__)
    saved_by = head if head.__name__ == name else getattr(modeling_concept, name, None)
    if saved_by is None:
        raise ValueError(f"start_from {source!r} was saved by {name!r}, which is not a model of this package")
    _checked(lambda: check_weights(folder, theirs, saved_by), source, field)
    trained_class = head if saved_by is head else ConceptEncoderModel
    trained, info = trained_class.from_pretrained(folder, config=config, **LOADING)
    other = info["missing_keys"] | {name for name, *_ in info["mismatched_keys"]}
    if other:  # of a decoder that is another here than there
        raise ValueError(f"start_from {source!r} lacks weights: {listed(other)}; they would be random")
    if trained_class is head:
        return trained
    model = head(config)
    model.encoder.load_state_dict(trained.state_dict())
    return model


def _token_embeddings(source: str) -> torch.Tensor:
    """(V, E) of the encoder `source`, from its files."""
    field = "warm_start_embeddings"
    folder = _folder(source, field)
    held, wrong = _checked(lambda: read_headers(folder), source, field)
    encoder, info = _read(
        lambda folder: AutoModel.from_pretrained(folder, trust_remote_code=False, **LOADING), folder, source, field
    )
    table = encoder.get_input_embeddings().weight
    name = next(name for name, weight in encoder.named_parameters() if weight is table)
    own = [each for each in held if each == name or each.endswith(f".{name}")]
    if name in info["missing_keys"] or not own:
        raise ValueError(f"{field} {source!r} holds no token embeddings: {name} is not there, and would be random")
    shapes = next((shapes for each, *shapes in info["mismatched_keys"] if each == name), None)
    if shapes is not None:
        raise ValueError(f"{field} {source!r}: {name} is {list(shapes[0])}, not {list(shapes[1])} as its config says")
    for each in wrong:
        if each.partition(" ")[0] in own:
            raise ValueError(f"{field} {source!r} has token embeddings that are not real numbers: {each}")
    _checked(lambda: check_finite(folder, own), source, field)
    return table


def _folder(source: str, field: str) -> Path:
    """Of the weights that a field names, fetched from the Hub where it is no folder here."""
    if Path(source).is_dir() or not is_hub_id(source):
        return Path(source)
    patterns = ["*.json", "*.safetensors"]
    return Path(_read(lambda source: snapshot_download(source, allow_patterns=patterns), source, source, field))


def _read(load, place: str | Path, source: str, field: str):
    try:
        return load(place)
    except (OSError, ValueError, HfHubHTTPError, StrictDataclassError) as error:
        raise ValueError(
            f"{field} {source!r} is neither a local folder with an encoder and its tokenizer nor a Hub "
            f"id that can be read: {' '.join(str(error).split())}"
        ) from error


def _checked(call, source: str, field: str):
    """What `call` gives, its errors with the field in front."""
    try:
        return call()
    except (ValueError, RuntimeError) as error:  # the second: shapes
        raise ValueError(f"{field} {source!r}: {' '.join(str(error).split())}") from error
