"""Warm start: from the weights of a concept encoder, or with the token embeddings of any encoder."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from ...configuration_concept import ConceptEncoderConfig
from ...modeling_concept import ConceptEncoderModel, ConceptEncoderPreTrainedModel
from ...utils.tokenizer import vocabulary_size
from ...utils.untrusted import read_tokenizer

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


def architecture(config: ConceptEncoderConfig) -> dict[str, Any]:
    """The fields that decide shapes and wiring, and the initialisation."""
    return {name: getattr(config, name) for name in ConceptEncoderConfig.__annotations__ if name != "auto_map"}


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, source: str, field: str) -> None:
    """ValueError with the first differences if `source` gives some token another id than `tokenizer` does."""
    own, others = tokenizer.get_vocab(), _read(read_tokenizer, source, field).get_vocab()
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
        ValueError: `source` cannot be read; another vocabulary; another width; fewer rows than tokens.
    """
    check_vocabulary(tokenizer, source, "warm_start_embeddings")
    table: Tensor = read_encoder(source, "warm_start_embeddings").get_input_embeddings().weight
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
        ValueError: `source` cannot be read; another vocabulary or architecture; encoder weights that are not there.
    """
    check_vocabulary(tokenizer, source, "start_from")
    theirs = _read(head.config_class.from_pretrained, source, "start_from")
    there, here = architecture(theirs), architecture(config)
    differing = [name for name in here if name not in FREE_FIELDS and there[name] != here[name]]
    if differing:
        shown = ", ".join(f"{name} is {there[name]!r} there, {here[name]!r} here" for name in differing[:3])
        raise ValueError(f"start_from {source!r} has another architecture ({shown}); set these fields alike")
    trained_class = head if head.__name__ in (theirs.architectures or []) else ConceptEncoderModel
    load = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    trained, info = trained_class.from_pretrained(source, config=config, **load)
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:5])
        raise ValueError(f"start_from {source!r} lacks weights: {missing}; they would be random")
    if trained_class is head:
        return trained
    model = head(config)
    model.encoder.load_state_dict(trained.state_dict())
    return model


def read_encoder(source: str, field: str) -> PreTrainedModel:
    """The encoder that `field` of a recipe names; ValueError if it cannot be read."""

    def load(source: str) -> PreTrainedModel:
        return AutoModel.from_pretrained(source, trust_remote_code=False, use_safetensors=True)

    return _read(load, source, field)


def _read(load, source: str, field: str):
    try:
        return load(source)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{field} {source!r} is neither a local folder with an encoder and its tokenizer nor a Hub "
            f"id that can be read: {error}"
        ) from error
