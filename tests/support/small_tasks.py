"""A tiny checkpoint and tables of word pairs, for the tests of everything that is evaluated on benchmarks."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from concept_encoder.configuration_concept import ConceptEncoderConfig
from concept_encoder.eval.benchmarks.registry import BENCHMARKS, Task
from concept_encoder.modeling_concept import ConceptEncoderForDiffusionMLM
from concept_encoder.trainers.data.microworld import microworld_tokenizer

WORDS = ("cat", "dog", "horse", "boy", "girl", "doctor", "baker", "garden", "barn", "coat")


def save_pretrained(folder: Path) -> Path:
    """A pretraining checkpoint, never trained: H=32, C=4, with the microworld tokenizer."""
    tokenizer = microworld_tokenizer(64)
    torch.manual_seed(0)
    config = ConceptEncoderConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_concepts=4,
        max_position_embeddings=64,
        decoder_num_hidden_layers=1,
        pad_token_id=tokenizer.pad_token_id,
        mask_token_id=tokenizer.mask_token_id,
    )
    ConceptEncoderForDiffusionMLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pair_table(rows: int, seed: int, similarity: bool) -> Dataset:
    """Pairs of words: label 1 (or 5.0) when both are the same word."""
    rng = np.random.default_rng(seed)
    first = rng.choice(WORDS, rows)
    same = rng.random(rows) < 0.7
    second = np.where(same, first, rng.choice(WORDS, rows))
    labels = (first == second) * (5.0 if similarity else 1)
    return Dataset.from_dict({"sentence1": list(first), "sentence2": list(second), "label": labels.tolist()})


def small_task(name: str, tmp_path: Path, train: int = 96) -> Task:
    """The row of a GLUE pair task, on a table of our own with 40 validation pairs."""
    folder = tmp_path / f"table-{name}"
    folder.mkdir()
    for split, rows in (("train", train), ("validation", 40)):
        pair_table(rows, seed=rows, similarity=name == "stsb").to_parquet(folder / f"{split}.parquet")
    return dataclasses.replace(BENCHMARKS[name], dataset_id=str(folder), config=None)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
