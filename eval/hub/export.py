"""Checkpoints as graphs for other runtimes: `torch.export` and ONNX, each compared with the model it came from."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.exporters import DynamoConfig, DynamoExporter, ExportedModel, OnnxConfig, OnnxExporter

from ...modeling_concept import ConceptEncoderForSentencePairClassification, ConceptEncoderModel
from ...utils.files import whole_folder, write_json
from ...utils.tokenizer import longest_text
from ..loading.checkpoints import Checkpoint

EXPORTERS = {"onnx": (OnnxExporter, OnnxConfig), "pt2": (DynamoExporter, DynamoConfig)}
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CLASSIFIERS = (
    "ConceptEncoderForSequenceClassificationPerceiver",
    "ConceptEncoderForSequenceClassificationViaDecoder",
)
TOLERANCE = 1e-5  # of the largest difference, relative to the largest output where that exceeds 1
CHECKED_SHAPES = ((1, 1), (1, 12), (2, 9), (5, 3), (2, 600))  # texts, tokens, cut to the longest text
CHECK_FILE = "export_check.json"


def export(
    checkpoint: str | os.PathLike, output_dir: str | os.PathLike, format: str, revision: str | None = None
) -> dict[str, Any]:
    """Write a checkpoint as one graph with dynamic batch size and length, if it computes what the model computes.

    A classifier is exported with its head, from any other checkpoint the encoder; always in float32. The graph's
    inputs are `input_ids` and `attention_mask` (B, N), its outputs those of the model: `last_hidden_state` (B, C, D)
    and `pooler_output` (B, D), or `logits` (B, num_labels). Sentence pairs are refused.

    Args:
        checkpoint: folder or Hub id.
        output_dir: new folder for `model.onnx` or `model.pt2`, configuration, tokenizer and `export_check.json`;
            `transformers.exporters.ExportedModel.from_pretrained` loads it.
        format: `"onnx"` or `"pt2"`.
        revision: commit, branch or tag of a Hub id.

    Returns:
        What `export_check.json` holds: exported class, format, compared shapes and the largest difference.

    Raises:
        FileExistsError: `output_dir` exists.
        ValueError: unknown format or missing packages for it; not a whole concept encoder checkpoint; a difference
            beyond `TOLERANCE`, and then nothing is written.
    """
    if format not in EXPORTERS:
        raise ValueError(f"Unknown format {format!r}. Available: {', '.join(EXPORTERS)}")
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None] if format == "onnx" else []
    if missing:
        raise ValueError(f"ONNX needs {', '.join(missing)}: pip install 'concept-encoder[onnx]'")
    if Path(output_dir).exists():
        raise FileExistsError(f"{output_dir} exists; name a new folder")
    opened = Checkpoint.open(checkpoint, revision)
    model, tokenizer = load_exportable(opened), opened.tokenizer
    exporter, config = EXPORTERS[format]
    sample = random_texts(model.config, 2, longest_text(model.config, 7))
    texts = Dim("texts")
    limited = model.config.position_embedding_type == "learned"
    tokens = Dim("tokens", max=model.config.max_position_embeddings if limited else None)
    axes = {name: {0: texts, 1: tokens} for name in sample}
    exported = exporter().export(model, sample, config=config(dynamic_shapes=axes))
    with whole_folder(Path(output_dir)) as staged:
        exported.save_pretrained(staged)
        check = {
            "exported": type(model).__name__,
            "format": format,
            **compare(model, ExportedModel.from_pretrained(staged)),
        }
        tokenizer.save_pretrained(staged)
        write_json(staged / CHECK_FILE, check)
    return check


def load_exportable(checkpoint: Checkpoint) -> PreTrainedModel:
    """The classifier of a checkpoint, or else its encoder, in float32 and evaluation mode; a new model.

    Raises:
        ValueError: a sentence-pair head; a checkpoint that is not whole.
    """
    name = checkpoint.head.__name__
    if checkpoint.head is ConceptEncoderForSentencePairClassification:
        raise ValueError(
            f"{checkpoint.folder} compares two texts ({name}); only the encoder and classifiers of one text export"
        )
    return checkpoint.load(None if name in CLASSIFIERS else ConceptEncoderModel)[0].eval()


def random_texts(config: PreTrainedConfig, rows: int, columns: int, seed: int = 0) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` (rows, columns); the second half of the last row and the first place of row 0
    are padding where that leaves tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(config.vocab_size, (rows, columns), generator=generator)
    mask = torch.ones_like(ids)
    if columns > 2:
        mask[-1, (columns + 1) // 2 :] = 0
        mask[0, 0] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.inference_mode()
def compare(
    model: PreTrainedModel, exported: ExportedModel, shapes: Sequence[tuple[int, int]] = CHECKED_SHAPES
) -> dict[str, Any]:
    """Largest difference between the outputs of a model and of its export over batches of several shapes.

    Returns:
        `shapes`, the compared ones, cut to the model's longest text; `largest_difference`, absolute, or relative to
        the largest output where that exceeds 1; `tolerance`.

    Raises:
        ValueError: the difference of some shape is beyond `TOLERANCE`, or not a number.
    """
    shapes = [(rows, longest_text(model.config, columns)) for rows, columns in shapes]
    largest = 0.0
    for seed, (rows, columns) in enumerate(shapes):
        batch = random_texts(model.config, rows, columns, seed)
        expected, given = model(**batch), exported(**batch)
        for name, value in expected.items():
            difference = (value - torch.as_tensor(given[name])).abs().max() / value.abs().max().clamp_min(1)
            if not difference <= TOLERANCE:
                raise ValueError(
                    f"The export differs from the model by {difference.item():.1e} in {name} at {rows} texts of "
                    f"{columns} tokens; at most {TOLERANCE:.0e} is allowed. Nothing was written"
                )
            largest = max(largest, difference.item())
    return {"shapes": shapes, "largest_difference": largest, "tolerance": TOLERANCE}
