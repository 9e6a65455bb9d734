"""Geometry of a checkpoint's concepts on a corpus: encode, measure, grade, write geometry.json."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..configuration_concept import ConceptEncoderConfig
from ..modeling_concept import ConceptEncoderModel
from ..trainers.data import DataArguments, load_corpus
from ..trainers.files import write_json
from .concept_geometry import dimension_std, geometry_metrics, similarity_matrix, template_spectrum

OUTPUT_NAME = "geometry.json"
ATTENTION_TOKENS = 32  # length to which the example text of the concept attention is cut
CORPUS_FIELDS = (  # what decides which documents are read, and how much of each
    "dataset_name",
    "dataset_config_name",
    "dataset_revision",
    "train_split",
    "validation_split",
    "validation_size",
    "text_column",
    "max_length",
    "corpus_seed",
)


class GradeRule(NamedTuple):
    """How the reference grades one metric.

    direction "higher": GOOD above `good`, OK above `ok`; "lower": GOOD below `good`, OK below `ok`; else POOR.
    per_rank: the thresholds were set for rank bound 128 and scale with min(C, D) / 128.
    by_construction: the encoder's output LayerNorm fixes the metric, so its grade says nothing about training.
    """

    direction: str
    good: float
    ok: float
    per_rank: bool = False
    by_construction: bool = False


GRADES = {
    "global_effective_rank": GradeRule("higher", 90, 40, per_rank=True),
    "global_effective_rank_normalized": GradeRule("higher", 0.7, 0.3),
    "effective_rank_normalized": GradeRule("higher", 0.7, 0.3),
    "participation_ratio_normalized": GradeRule("higher", 0.3, 0.1),
    "dimensions_for_95_variance": GradeRule("higher", 50, 10, per_rank=True),
    # the reference grades the active share, 0.99 / 0.9
    "collapsed_dimensions_ratio": GradeRule("lower", 0.01, 0.1, by_construction=True),
    "isotropy": GradeRule("higher", 0.01, 0.001, by_construction=True),
    "mean_concept_similarity": GradeRule("lower", 0.3, 0.5),
    "max_concept_similarity": GradeRule("lower", 0.6, 0.8),
    "uniformity_loss": GradeRule("lower", 0.3, 0.6),
    "mean_dimension_std": GradeRule("higher", 0.8, 0.3),
    "min_dimension_std": GradeRule("higher", 0.1, 0.01),
    "top_1_dominance_ratio": GradeRule("lower", 0.3, 0.5),
}
REFERENCE_RANK = 128  # min(C, D) of the reference run


def grade(metrics: dict[str, float], num_concepts: int, hidden_size: int) -> dict[str, str]:
    """GOOD, OK or POOR for every metric the reference grades.

    The two thresholds in units of rank (global_effective_rank 90 / 40, dimensions_for_95_variance 50 / 10) are the
    reference's at min(C, D) = 128 and the same share of min(C, D) at other sizes. A value on a threshold gets the
    lower grade.

    Args:
        metrics: as from `geometry_metrics`.
        num_concepts, hidden_size: C and D of the concepts.

    Returns:
        Metric name -> grade, in the order of `GRADES`.

    Raises:
        ValueError: a graded metric is missing.
    """
    missing = [name for name in GRADES if name not in metrics]
    if missing:
        raise ValueError(f"metrics to grade lack {', '.join(missing)}; take them from geometry_metrics")
    scale = min(num_concepts, hidden_size) / REFERENCE_RANK
    return {name: _grade(metrics[name], rule, scale) for name, rule in GRADES.items()}


def _grade(value: float, rule: GradeRule, scale: float) -> str:
    scale = scale if rule.per_rank else 1
    sign = 1 if rule.direction == "higher" else -1
    if sign * value > sign * rule.good * scale:
        return "GOOD"
    return "OK" if sign * value > sign * rule.ok * scale else "POOR"


@torch.no_grad()
def collect_concepts(
    model: ConceptEncoderModel, batches: Iterable[dict[str, torch.Tensor]], device: torch.device | str
) -> np.ndarray:
    """Encode batches in evaluation mode, with a progress bar.

    The model is moved to `device`; its training mode is restored afterwards.

    Args:
        model: encoder whose output has `last_hidden_state` (B, C, D).
        batches: dicts with `input_ids` and `attention_mask`, both (B, N).
        device: where to run.

    Returns:
        (S, C, D) float32, samples in order.

    Raises:
        ValueError: no batches.
    """
    was_training = model.training
    model.to(device).eval()
    try:
        chunks = []
        for batch in tqdm(batches, desc="Encoding", unit="batch"):
            inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
            chunks.append(model(**inputs).last_hidden_state.float().cpu().numpy())
    finally:
        model.train(was_training)
    if not chunks:
        raise ValueError("there are no batches to encode; give at least one")
    return np.concatenate(chunks)


def analyze(
    checkpoint: str | Path,
    data: DataArguments,
    num_batches: int,
    batch_size: int,
    output: str | Path | None = None,
) -> dict:
    """Measure a checkpoint's concepts on a sample of the validation documents and write the result.

    Documents are truncated to `data.max_length` tokens, one per sample, never packed.

    Args:
        checkpoint: folder as written by `save_pretrained`, any head, with tokenizer files.
        data: corpus to read, sampled by `corpus_seed`. Packing, tokenizer and limits on documents play no part: the
            tokenizer is the checkpoint's.
        num_batches, batch_size: documents = num_batches * batch_size; per-batch figures average over the batches.
        output: JSON file, written whole or not at all. `None`: geometry.json in the checkpoint.

    Returns:
        What was written: metrics, grades, singular values, dimension std, similarity matrix, example attention.

    Raises:
        ValueError: not a concept-encoder checkpoint, weights missing, too few documents, max_length beyond the
            model's positions, num_batches or batch_size below 1.
    """
    for name, value in (("num_batches", num_batches), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    model = load_encoder(checkpoint)
    _check_length(model.config, data.max_length)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    texts = _documents(data, num_batches * batch_size)
    starts = range(0, len(texts), batch_size)
    batches = [_encode(tokenizer, texts[start : start + batch_size], data.max_length) for start in starts]
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    concepts = collect_concepts(model, batches, device)
    metrics = geometry_metrics(concepts, batch_size)
    num_concepts, hidden_size = concepts.shape[1:]
    result = {
        "kind": "geometry",
        "checkpoint": str(checkpoint),
        "corpus": {name: value for name, value in dataclasses.asdict(data).items() if name in CORPUS_FIELDS},
        "num_samples": len(concepts),
        "batch_size": batch_size,
        "num_batches": num_batches,
        "num_concepts": num_concepts,
        "hidden_size": hidden_size,
        "metrics": metrics,
        "grades": grade(metrics, num_concepts, hidden_size),
        "by_construction": [name for name, rule in GRADES.items() if rule.by_construction],
        "singular_values": template_spectrum(concepts).tolist(),
        "dimension_std": dimension_std(concepts).tolist(),
        "similarity_matrix": similarity_matrix(concepts).round(3).tolist(),
        "concept_attention": concept_attention(model, tokenizer, texts[0], min(data.max_length, ATTENTION_TOKENS)),
    }
    write_json(Path(output) if output is not None else Path(checkpoint) / OUTPUT_NAME, result)
    return result


def load_encoder(checkpoint: str | Path) -> ConceptEncoderModel:
    """The encoder of any concept-encoder checkpoint folder, in float32 and evaluation mode.

    Raises:
        ValueError: no such folder, no config.json in it, another architecture, or encoder weights missing.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        raise ValueError(
            f"checkpoint must be a folder, got {str(checkpoint)!r}; fetch one from the Hub with "
            f"`hf download REPO_ID --local-dir FOLDER`"
        )
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{str(checkpoint)!r} holds no config.json, so it is no checkpoint; save_pretrained writes one"
        )
    model_type = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if model_type != ConceptEncoderConfig.model_type:
        raise ValueError(
            f"{str(checkpoint)!r} is a checkpoint of model_type {model_type!r}; only "
            f"{ConceptEncoderConfig.model_type!r} can be analysed"
        )
    model, loading = ConceptEncoderModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if loading["missing_keys"]:
        missing = ", ".join(sorted(loading["missing_keys"]))
        raise ValueError(f"{str(checkpoint)!r} lacks encoder weights ({missing}); they would be random")
    return model


@torch.no_grad()
def concept_attention(
    model: ConceptEncoderModel, tokenizer: PreTrainedTokenizerBase, text: str, max_length: int
) -> dict[str, list]:
    """What each concept reads in one text, averaged over layers and heads.

    Needs the weights, so the model is left on the eager attention implementation.

    Args:
        model: encoder in evaluation mode.
        tokenizer: of the same checkpoint.
        text: truncated before it is encoded.
        max_length: tokens N kept, special tokens included.

    Returns:
        `tokens`: N strings, special tokens included; `weights`: C rows of N shares that sum to 1, four decimals.
    """
    model.set_attn_implementation("eager")
    inputs = _encode(tokenizer, [text], max_length)
    outputs = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()}, output_attentions=True)
    weights = torch.stack(outputs.cross_attentions).mean(dim=(0, 2))[0]  # (L, 1, H, C, N) -> (C, N)
    return {
        "tokens": tokenizer.convert_ids_to_tokens(inputs["input_ids"][0]),
        "weights": weights.double().cpu().numpy().round(4).tolist(),
    }


def _check_length(config: ConceptEncoderConfig, max_length: int) -> None:
    if config.position_embedding_type == "learned" and max_length > config.max_position_embeddings:
        raise ValueError(
            f"max_length ({max_length}) exceeds the checkpoint's max_position_embeddings "
            f"({config.max_position_embeddings}); give a smaller --max_length"
        )


def _documents(data: DataArguments, count: int) -> list[str]:
    corpus = load_corpus(dataclasses.replace(data, max_validation_documents=count), "validation")
    texts = [row["text"] for row in corpus]
    if len(texts) < count:
        raise ValueError(
            f"{count} validation documents are needed (num_batches * batch_size), the corpus has {len(texts)}; "
            f"lower --num_batches or --batch_size, or name a larger corpus"
        )
    return texts


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int) -> dict[str, torch.Tensor]:
    encoded = tokenizer(
        texts,
        truncation=True,
        max_length=max_length,
        padding=True,
        split_special_tokens=True,  # as in training: a text's own "[MASK]" is plain characters
        return_tensors="pt",
    )
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}
