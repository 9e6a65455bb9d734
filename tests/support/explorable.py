"""Checkpoints for the tests of the concept explorer: one that can do everything, and ones that cannot."""

from dataclasses import replace
from pathlib import Path

from helpers import randomised
from run_files import synthetic_pretrain

from concept_encoder import ConceptEncoderConfig, ConceptEncoderForDiffusionMLM, ConceptEncoderForMaskedLMPerceiver
from concept_encoder.trainers.data.microworld import microworld_tokenizer

TEXT = "The cat saw a dog in the garden."
OTHER = "A girl went to the old barn."


def explorable(folder: Path, head: type = ConceptEncoderForDiffusionMLM, **config) -> Path:
    """H=32, C=5, random weights that matter, the microworld tokenizer and a pretrain.json."""
    tokenizer = microworld_tokenizer(64)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    names = {
        "pad_token_id": tokenizer.pad_token_id,
        "mask_token_id": tokenizer.mask_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
    }
    options = {"num_concepts": 5, "max_position_embeddings": 64, "decoder_context": "latent", **config}
    model = head(ConceptEncoderConfig(vocab_size=len(tokenizer), **sizes, **names, **options))
    randomised(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    objective = {"corruption": {"diffusion": {}}, "nested_concepts": False}
    replace(synthetic_pretrain(), steps=3, objective=objective).save(folder / "pretrain.json")
    return folder


def perceiver(folder: Path) -> Path:
    """A checkpoint without a diffusion decoder."""
    return explorable(folder, ConceptEncoderForMaskedLMPerceiver, decoder_context="none")
