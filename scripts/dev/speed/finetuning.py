"""How much faster fine-tuning is on length-grouped batches than on batches padded to a fixed length."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler
from transformers import AutoTokenizer, DataCollatorWithPadding, PreTrainedTokenizerBase

from concept_encoder.configuration_concept import ConceptEncoderConfig
from concept_encoder.eval.benchmarks.registry import Task, find_benchmark, load_benchmark
from concept_encoder.eval.benchmarks.tuning import ShuffledLengthGroups
from concept_encoder.modeling_concept import ConceptEncoderForSequenceClassificationPerceiver
from concept_encoder.scripts.dev.speed.tools import count_products, interleave, ratio, spread

Batch = dict[str, Tensor]


def padding_case(
    benchmark: Task | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    max_length: int = 128,
    batch_size: int = 32,
    num_batches: int = 8,
    repeats: int = 5,
    seed: int = 0,
    **config: Any,
) -> dict[str, Any]:
    """Seconds and FLOPs of fine-tuning steps on batches sampled from an epoch, cut in three ways.

    `fixed` pads every example to `max_length`, `random` each batch of random examples to its longest, `grouped` each
    batch of `ShuffledLengthGroups`, as `eval.tuning` trains. Repeats of the three are interleaved.

    Args:
        benchmark: default MRPC, whose texts and tokenizer come from the Hub.
        tokenizer: default that of `google-bert/bert-base-uncased`.
        max_length: tokens per example at most.
        batch_size, num_batches: examples per step and steps per repeat.
        repeats: timings of each way.
        seed: of the order of examples and the weights.
        config: fields of `ConceptEncoderConfig` other than the vocabulary.

    Raises:
        ValueError: more batches than an epoch has.

    Returns:
        `batchings`, for each of the three `padding_share`, `flops` of forward and backward, and `seconds` of all
        steps; `speedup` of random and grouped over fixed, within a repeat; `flops_ratio`, the bound that the
        arithmetic sets to it where all else costs nothing. Seconds and speedups have median, min and max.
    """
    benchmark = benchmark or find_benchmark("mrpc")
    tokenizer = tokenizer or AutoTokenizer.from_pretrained("google-bert/bert-base-uncased")
    data = _encode(benchmark, tokenizer, max_length)
    if batch_size * num_batches > len(data):
        raise ValueError(
            f"batch_size * num_batches ({batch_size * num_batches}) is more than the {len(data)} training examples of "
            f"{benchmark.name}; lower one of them"
        )
    torch.manual_seed(seed)
    epochs = _batchings(data, tokenizer, max_length, batch_size)
    ways = {name: _sample(batches, num_batches) for name, batches in epochs.items()}
    fields = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": 512}
    model = ConceptEncoderForSequenceClassificationPerceiver(
        ConceptEncoderConfig(**{**fields, **config, "num_labels": benchmark.num_labels})
    )
    results: dict[str, dict[str, Any]] = {name: _describe(model, batches) for name, batches in ways.items()}
    seconds = _seconds(model, ways, repeats)
    for name, times in seconds.items():
        results[name]["seconds"] = spread(times)
    others = ("random", "grouped")
    speedup = {name: ratio(seconds["fixed"], seconds[name]) for name in others}
    return {
        "case": "finetuning_padding",
        "task": benchmark.name,
        "config": config,
        "batch_size": batch_size,
        "max_length": max_length,
        "batchings": results,
        "speedup": speedup,
        "flops_ratio": {name: results["fixed"]["flops"] / results[name]["flops"] for name in others},
    }


def _encode(benchmark: Task, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    train = load_benchmark(benchmark)["train"]
    texts = [train[name][:] for name in ("sentence1", "sentence2") if name in train.column_names]
    encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_token_type_ids=False)
    return Dataset.from_dict({**encoded, "label": train["label"][:]})


def _batchings(
    data: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, batch_size: int
) -> Mapping[str, list[Batch]]:
    """All whole batches of an epoch, in each way."""
    longest = DataCollatorWithPadding(tokenizer)
    fixed = DataCollatorWithPadding(tokenizer, padding="max_length", max_length=max_length)
    lengths = [len(ids) for ids in data["input_ids"]]
    ways = {
        "fixed": (RandomSampler(data), fixed),
        "random": (RandomSampler(data), longest),
        "grouped": (ShuffledLengthGroups(batch_size, lengths=lengths), longest),
    }
    return {
        name: list(DataLoader(data, batch_size, sampler=sampler, collate_fn=collate, drop_last=True))
        for name, (sampler, collate) in ways.items()
    }


def _sample(batches: list[Batch], count: int) -> list[Batch]:
    """A sample of an epoch's batches: at equal distances from the shortest to the longest."""
    ordered = sorted(batches, key=lambda batch: int(batch["attention_mask"].sum()))
    return [ordered[int((i + 0.5) * len(ordered) / count)] for i in range(count)]


def _seconds(
    model: ConceptEncoderForSequenceClassificationPerceiver, ways: Mapping[str, list[Batch]], repeats: int
) -> dict[str, list[float]]:
    """Of a training step on every batch of each way, per repeat."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def train(batches: list[Batch]) -> None:
        for batch in batches:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    for batches in ways.values():
        train(batches[:1])
    return interleave(
        {name: partial(train, each) for name, each in ways.items()}, repeats, "cpu", "padding", warm=True
    )


def _describe(model: ConceptEncoderForSequenceClassificationPerceiver, batches: list[Batch]) -> dict[str, Any]:
    masks = [batch["attention_mask"] for batch in batches]

    def learn() -> None:
        for batch in batches:
            model(**batch).loss.backward()

    flops = count_products(learn).flops
    model.zero_grad()
    positions = sum(mask.numel() for mask in masks)
    return {
        "padding_share": 1 - sum(int(mask.sum()) for mask in masks) / positions,
        "flops": flops,
    }
