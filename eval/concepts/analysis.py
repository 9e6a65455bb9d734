"""Analysis of a checkpoint on a corpus: geometry, ledger and reading of its concepts, as three JSON files."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from ...configuration_concept import ConceptEncoderConfig
from ...trainers.data.corpora import Data, DataArguments, load_corpus, rows_in_memory, source_fields
from ...trainers.recipes import read_data
from ...utils.files import recorded_source, replaced_together
from ...utils.results import AttentionResult, DataFacts, GeometryResult, LedgerResult, facts
from ..loading.checkpoints import Checkpoint, random_encoder, results_folder
from .attention import concept_reading
from .geometry import MIN_DOCUMENTS, collect_concepts, geometry
from .ledger import concept_ledger

FILES = {"geometry": "geometry.json", "ledger": "ledger.json", "reading": "reading.json"}
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


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What `analyze` found; can be given where the folder that it was written into is asked for."""

    folder: Path
    geometry: GeometryResult
    ledger: LedgerResult | None
    """None: the checkpoint holds no decoder of masked diffusion"""
    reading: AttentionResult

    def __fspath__(self) -> str:
        return os.fspath(self.folder)

    @property
    def files(self) -> list[str]:
        """Names of what was written."""
        return [file for name, file in FILES.items() if getattr(self, name) is not None]


def analyze(
    checkpoint: str | os.PathLike,
    data: DataArguments | Data | None = None,
    num_batches: int = 20,
    batch_size: int = 16,
    ledger_documents: int = 128,
    output_dir: str | os.PathLike | None = None,
    revision: str | None = None,
    **fields: Any,
) -> Analysis:
    """Measure a checkpoint's concepts on a sample of the validation documents and write what was found.

    Documents are truncated to `data.max_length` tokens, one per sample, never packed. Nothing is written before
    everything is measured. A checkpoint without the decoder of masked diffusion has no ledger, and its reading is the
    encoder's alone; an older ledger.json in the folder is removed then.

    Args:
        checkpoint: folder or Hub id of any head, with tokenizer files; or one that is opened.
        data: corpus to read, sampled by `corpus_seed`: a Hub id, a path, or rows in memory, of a `DatasetDict` the
            validation split. None: the corpus of the checkpoint's recipe. Packing, tokenizer and limits on documents
            play no part: the tokenizer is the checkpoint's.
        num_batches, batch_size: documents = num_batches * batch_size; the reference's per-batch figures average over
            the batches.
        ledger_documents: how many of them, the first ones, the ledger is kept on; at most all.
        output_dir: folder of geometry.json, ledger.json and reading.json, which take their places together,
            geometry.json last. `None`: the checkpoint, which must be a folder then.
        revision: commit, branch or tag of a Hub id.
        fields: of `DataArguments`, in place of those of the checkpoint's recipe.

    Raises:
        ValueError: not a concept-encoder checkpoint, weights missing, too few documents, max_length beyond the
            model's positions, a count below its least value, no output LayerNorm.
    """
    _check_counts(num_batches, batch_size, ledger_documents)
    folder = results_folder(checkpoint, output_dir)
    opened = Checkpoint.open(checkpoint, revision)
    rows = None if isinstance(data, DataArguments) else rows_in_memory(data)
    if not isinstance(data, DataArguments):
        data = read_data(opened.folder, **{**source_fields(data), **fields})
    _check_length(opened.config, data.max_length)
    encoder, head, tokenizer = opened.encoder, opened.diffusion, opened.tokenizer
    if not hasattr(encoder.norm, "weight"):
        raise ValueError(
            f"{checkpoint} sums its tokens up without an output LayerNorm, which the figures of the geometry assume; "
            "measure it with similarity or retrieval"
        )
    texts = _documents(data, rows, num_batches, batch_size)
    batches = _encode(tokenizer, texts, batch_size, data.max_length)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    concepts = collect_concepts(encoder, batches, device)
    random_concepts = collect_concepts(random_encoder(encoder.config), batches, device)
    normal = 1 / encoder.norm.weight.detach().double().cpu().numpy()
    corpus = {name: value for name, value in dataclasses.asdict(data).items() if name in CORPUS_FIELDS}
    corpus["dataset_name"] = recorded_source(data.dataset_name)
    name = opened.hub_id or recorded_source(str(opened.folder))
    common: dict[str, Any] = {"checkpoint": name, "corpus": facts(DataFacts, corpus)}
    lies = geometry(concepts, random_concepts, batch_size, normal, **common)
    ledger = None
    if head is not None:
        few = _encode(tokenizer, texts[:ledger_documents], batch_size, data.max_length)
        ledger = concept_ledger(head.to(device), tokenizer, few, concepts[:ledger_documents], **common)
    reading = concept_reading(encoder, None if head is None else head.decoder, tokenizer, batches, **common)
    found = Analysis(folder, lies, ledger, reading)
    with replaced_together(folder, last=FILES["geometry"]) as staged:
        for name, file in FILES.items():
            if file in found.files:
                getattr(found, name).save(staged / file)
    if ledger is None:
        (folder / FILES["ledger"]).unlink(missing_ok=True)  # of other weights, so no longer true
    return found


def _check_counts(num_batches: int, batch_size: int, ledger_documents: int) -> None:
    for name, value, least in (
        ("num_batches", num_batches, 1),
        ("batch_size", batch_size, 1),
        ("ledger_documents", ledger_documents, 2),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if num_batches * batch_size < MIN_DOCUMENTS:
        raise ValueError(
            f"num_batches * batch_size must be at least {MIN_DOCUMENTS}, got {num_batches} * {batch_size}: figures "
            f"across documents need so many; raise --num_batches or --batch_size"
        )


def _check_length(config: ConceptEncoderConfig, max_length: int) -> None:
    if config.position_embedding_type == "learned" and max_length > config.max_position_embeddings:
        raise ValueError(
            f"max_length ({max_length}) exceeds the checkpoint's max_position_embeddings "
            f"({config.max_position_embeddings}); give a smaller --max_length"
        )


def _documents(
    data: DataArguments, rows: Dataset | DatasetDict | None, num_batches: int, batch_size: int
) -> list[str]:
    count = num_batches * batch_size
    if isinstance(rows, Dataset):  # read as they are, none of them held out
        rows = DatasetDict({data.validation_split: rows})
    corpus = load_corpus(dataclasses.replace(data, max_validation_documents=count), "validation", rows)
    texts = [row["text"] for row in corpus]
    if len(texts) < count:
        full = len(texts) // batch_size
        smaller = f"--num_batches {full}" if full else f"--num_batches 1 --batch_size {len(texts)}"
        raise ValueError(
            f"{count} validation documents are needed (num_batches * batch_size), the corpus has {len(texts)}; "
            f"give {smaller}, or name a larger corpus"
        )
    return texts


def _encode(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], batch_size: int, max_length: int
) -> list[dict[str, torch.Tensor]]:
    batches = []
    for start in range(0, len(texts), batch_size):
        encoded = tokenizer(
            texts[start : start + batch_size],
            truncation=True,
            max_length=max_length,
            padding=True,
            split_special_tokens=True,  # as in training: a text's own "[MASK]" is plain characters
            return_tensors="pt",
        )
        batches.append({name: encoded[name] for name in ("input_ids", "attention_mask")})
    return batches
