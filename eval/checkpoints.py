"""Pretrained checkpoints as the evaluations read them: folder, tokenizer, encoder with a new head, random twin."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .. import modeling_concept
from ..configuration_concept import ConceptEncoderConfig
from .benchmarks import Benchmark
from .bert_twin import TWINS, BertTwinConfig, BertTwinModel

PRETRAINING_PREFIXES = ("decoder.", "lm_head.")  # weights of the pretraining head, dropped here
CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
TWIN_FOLDER = "random_init"
TWIN_SEED = 20_250  # no recipe's seed, so that the twin does not start where the run did


def load_classifier(
    folder: Path, head: str, benchmark: Benchmark, **config_fields
) -> tuple[PreTrainedModel, dict[str, list[str]]]:
    """A classification head on the encoder of a pretraining checkpoint, in float32.

    Args:
        folder: checkpoint folder.
        head: name of the model class.
        benchmark: gives number of labels and problem type.
        config_fields: of the head, in place of the checkpoint's.

    Returns:
        The model, and `newly_initialized` (the head's own keys, all of them) and `dropped` (the pretraining head's).

    Raises:
        ValueError: an encoder weight is missing from the checkpoint, or the checkpoint holds weights that are neither
            the encoder's nor the pretraining head's; the keys are named.
    """
    fields = {"num_labels": benchmark.num_labels, "problem_type": benchmark.problem_type, **config_fields}
    is_twin = isinstance(check_checkpoint(folder), BertTwinConfig)
    return _load(TWINS[head] if is_twin else getattr(modeling_concept, head), folder, **fields)


def load_encoder(folder: Path) -> PreTrainedModel:
    """The encoder of a checkpoint, in float32 and evaluation mode; a ValueError as from `load_classifier`."""
    return _load(_encoder_class(check_checkpoint(folder)), folder)[0].eval()


def _encoder_class(config: ConceptEncoderConfig) -> type[PreTrainedModel]:
    return BertTwinModel if isinstance(config, BertTwinConfig) else modeling_concept.ConceptEncoderModel


def _load(head: type[PreTrainedModel], folder: Path, **options) -> tuple[PreTrainedModel, dict[str, list[str]]]:
    with _quiet():  # the keys are checked here, and reported by the caller
        model, info = head.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **options)
    prefix = f"{model.base_model_prefix}."
    known = set(model.state_dict())
    # The encoder's weights bear the prefix in the file of a head, and none in the file of a bare encoder.
    own = known | {prefix + key for key in known} | {key.removeprefix(prefix) for key in known}
    dropped = sorted(_weight_names(folder) - own)
    is_head = hasattr(model, model.base_model_prefix)
    new = sorted(key for key in known if not key.startswith(prefix)) if is_head else []
    missing = sorted(set(info["missing_keys"]) - set(new))
    unexpected = [key for key in dropped if not key.startswith(PRETRAINING_PREFIXES)]
    if missing:
        raise ValueError(f"{folder} lacks weights of the encoder: {', '.join(missing)}")
    if unexpected:
        raise ValueError(f"{folder} holds weights of neither encoder nor pretraining head: {', '.join(unexpected)}")
    return model, {"newly_initialized": new, "dropped": dropped}


def checkpoint_folder(checkpoint: str) -> Path:
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    if checkpoint.count("/") != 1 or checkpoint.startswith((".", "/", "~")):
        raise FileNotFoundError(f"No checkpoint folder {checkpoint}")
    return Path(snapshot_download(checkpoint, allow_patterns=list(CHECKPOINT_FILES)))


def check_checkpoint(folder: Path) -> ConceptEncoderConfig:
    """Its configuration, if it is a concept encoder's, or its BERT twin's, with weights and without a classifier."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a checkpoint: it has no config.json")
    model_type = PreTrainedConfig.get_config_dict(folder)[0].get("model_type")
    known = {each.model_type: each for each in (ConceptEncoderConfig, BertTwinConfig)}
    if model_type not in known:
        raise ValueError(
            f"{folder} holds a model of type {model_type!r}; only type {' and '.join(map(repr, known))} can be "
            "fine-tuned here"
        )
    names = _weight_names(folder)
    if not names:
        raise ValueError(f"{folder} is not a checkpoint: it has no .safetensors weights")
    trained = sorted(name for name in names if name.startswith(("pooling.", "classifier.")))
    if trained:
        raise ValueError(
            f"{folder} is already fine-tuned: it holds {', '.join(trained)}. Give the checkpoint it was made from"
        )
    return known[model_type].from_pretrained(folder)


def _weight_names(folder: Path) -> set[str]:
    names: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            names.update(weights.keys())
    return names


def load_tokenizer(folder: Path, config: ConceptEncoderConfig) -> PreTrainedTokenizerBase:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise ValueError(f"{folder} has no tokenizer; save the one it was pretrained with there (save_pretrained)")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        raise ValueError(f"The tokenizer of {folder} has no padding token; set pad_token and save it again")
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"The tokenizer of {folder} has {len(tokenizer)} tokens, the model only {config.vocab_size}; "
            "give the tokenizer that it was pretrained with"
        )
    return tokenizer


def longest_text(config: ConceptEncoderConfig, max_length: int) -> int:
    """`max_length` tokens, or as many as the encoder has learned positions for."""
    return (
        min(max_length, config.max_position_embeddings) if config.position_embedding_type == "learned" else max_length
    )


def random_encoder(config: ConceptEncoderConfig) -> PreTrainedModel:
    """Encoder of this architecture with random weights, always the same ones: what every random twin is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(TWIN_SEED)
        return _encoder_class(config)(config)


def random_twin(folder: Path, output_dir: str | os.PathLike) -> Path:
    """The encoder of a checkpoint with its architecture and none of its weights: the control that was never trained.

    Args:
        folder: checkpoint folder of the run.
        output_dir: run folder; the twin is kept in `random_init` there and taken from there the next time.

    Returns:
        Folder of the twin: an encoder without head or tokenizer, initialised from a fixed seed.

    Raises:
        ValueError: the twin kept there has another architecture.
    """
    config = check_checkpoint(folder)
    twin = Path(output_dir) / TWIN_FOLDER
    if twin.is_dir():
        kept, own = (_architecture(each) for each in (type(config).from_pretrained(twin), config))
        if kept != own:
            names = ", ".join(sorted(name for name in own if kept.get(name) != own[name]))
            raise ValueError(f"{twin} is the twin of another architecture ({names}); remove it to make a new one")
        return twin
    twin.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=twin.parent) as scratch:
        random_encoder(config).save_pretrained(f"{scratch}/twin")
        os.replace(f"{scratch}/twin", twin)
    return twin


def weights_digest(folder: Path) -> str:
    """Short SHA-256 of the weights of a checkpoint: what a kept result was made from."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


@contextmanager
def _quiet() -> Iterator[None]:
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _architecture(config: ConceptEncoderConfig) -> dict:
    """The fields that decide shapes and wiring, and the initialisation."""
    named = ConceptEncoderConfig.__annotations__.keys() - {"auto_map"}
    return {name: getattr(config, name) for name in named}
