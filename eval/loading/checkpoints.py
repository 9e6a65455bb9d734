"""Pretrained checkpoints as the evaluations read them: folder, tokenizer, encoder with a new head, random twin."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ... import modeling_concept
from ...configuration_concept import ConceptEncoderConfig
from ...trainers.weights.warm_start import architecture
from ...utils.files import whole_folder
from ...utils.untrusted import inside, is_hub_id, read_object, read_tokenizer
from ..benchmarks.bert_twin import TWINS, BertTwinConfig, BertTwinModel
from ..benchmarks.registry import Task
from ..hub.code_check import FOREIGN_FIELDS, warn_of_other_code

PRETRAINING_PREFIXES = ("decoder.", "lm_head.")  # weights of the pretraining head, dropped here
CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
Families = Sequence[type[ConceptEncoderConfig]]
FAMILIES: Families = (ConceptEncoderConfig, BertTwinConfig)  # of what the evaluations can score
TWIN_FOLDER = "random_init"
TWIN_SEED = 20_250  # no recipe's seed, so that the twin does not start where the run did


class _Checkpoint(NamedTuple):
    """What a checkpoint holds: its configuration and the names of its weights."""

    folder: Path
    config: ConceptEncoderConfig
    names: set[str]


def _read(folder: Path, families: Families) -> _Checkpoint:
    return _Checkpoint(folder, read_config(folder, families), weight_names(folder))


def load_classifier(
    folder: Path, head: str, benchmark: Task, **config_fields
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
    checkpoint = _pretrained(folder)
    is_twin = isinstance(checkpoint.config, BertTwinConfig)
    return _with_encoder(TWINS[head] if is_twin else getattr(modeling_concept, head), checkpoint, **fields)


def load_encoder(folder: Path) -> PreTrainedModel:
    """The encoder of a checkpoint, in float32 and evaluation mode; a ValueError as from `load_classifier`."""
    checkpoint = _pretrained(folder)
    return _with_encoder(_encoder_class(checkpoint.config), checkpoint)[0].eval()


def _encoder_class(config: ConceptEncoderConfig) -> type[PreTrainedModel]:
    return BertTwinModel if isinstance(config, BertTwinConfig) else modeling_concept.ConceptEncoderModel


def _with_encoder(
    head: type[PreTrainedModel], checkpoint: _Checkpoint, **options
) -> tuple[PreTrainedModel, dict[str, list[str]]]:
    folder = checkpoint.folder
    model, info = _load(head, checkpoint, **options)
    prefix = f"{model.base_model_prefix}."
    known = set(model.state_dict())
    # The encoder's weights bear the prefix in the file of a head, and none in the file of a bare encoder.
    own = known | {prefix + key for key in known} | {key.removeprefix(prefix) for key in known}
    dropped = sorted(checkpoint.names - own)
    is_head = hasattr(model, model.base_model_prefix)
    new = sorted(key for key in known if not key.startswith(prefix)) if is_head else []
    missing = sorted(set(info["missing_keys"]) - set(new))
    unexpected = [key for key in dropped if not key.startswith(PRETRAINING_PREFIXES)]
    if missing:
        raise ValueError(f"{folder} lacks weights of the encoder: {', '.join(missing)}")
    if unexpected:
        raise ValueError(f"{folder} holds weights of neither encoder nor pretraining head: {', '.join(unexpected)}")
    return model, {"newly_initialized": new, "dropped": dropped}


def load_model(
    head: type[PreTrainedModel], folder: Path, **options: Any
) -> tuple[PreTrainedModel, dict[str, set[str]]]:
    """`head` with the weights of a checkpoint, in float32: the one door by which the evaluations read weights.

    Args:
        head: class of this package; code that lies in the checkpoint is never run.
        folder: checkpoint folder with safetensors; pickles are never read.
        options: fields of the configuration.

    Returns:
        The model, and the `missing_keys` and `unexpected_keys` of transformers, which the caller judges.

    Raises:
        ValueError: as `read_config`, also for a model of another family; weights that are broken, not finite, or of
            other shapes than the configuration's.
    """
    return _load(head, _read(folder, [head.config_class]), **options)


def _load(
    head: type[PreTrainedModel], checkpoint: _Checkpoint, **options: Any
) -> tuple[PreTrainedModel, dict[str, set[str]]]:
    folder, config, names = checkpoint
    layers = max(config.num_hidden_layers, config.decoder_num_hidden_layers)
    if layers > len(names):  # a model of so many would take long to make, only to lack them
        raise ValueError(
            f"{folder} lacks weights: its config.json says {layers} layers, it holds {len(names)} tensors"
        )
    warn_of_other_code(folder)
    load = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True, **options}
    try:
        with _quiet():  # the keys are the caller's to judge, and shapes are named below
            model, info = head.from_pretrained(folder, ignore_mismatched_sizes=True, **load)
    except RuntimeError as error:  # no memory for what the configuration asks
        raise ValueError(f"{folder}: its config.json asks for a model that cannot be made: {error}") from error
    if info["mismatched_keys"]:
        name, held, wanted = min(info["mismatched_keys"])
        raise ValueError(
            f"{folder} has other shapes than its config.json says: {name} is {list(held)}, not {list(wanted)}"
        )
    broken = sorted(name for name, weight in model.state_dict().items() if not weight.isfinite().all())
    if broken:
        raise ValueError(f"{folder} holds weights that are not finite: {', '.join(broken)}; take another checkpoint")
    return model, info


def read_config(folder: Path, families: Families = (ConceptEncoderConfig,)) -> ConceptEncoderConfig:
    """Configuration of a checkpoint.

    Args:
        folder: of the checkpoint.
        families: configuration classes that it may be of.

    Raises:
        ValueError: no config.json, not a concept encoder's, or a field of it refused: one with an illegal value, or
            one that has transformers fetch code (`FOREIGN_FIELDS`).
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not a checkpoint: it has no config.json; save_pretrained writes one")
    content = read_object(path)
    model_type = content.get("model_type")
    known = {each.model_type: each for each in families}
    if model_type not in known:
        legal = " or ".join(map(repr, known))
        raise ValueError(f"{folder} holds a model of type {model_type!r}; only type {legal} can be read here")
    foreign = [name for name in FOREIGN_FIELDS if content.get(name) is not None]
    if foreign:
        raise ValueError(f"{path} has {', '.join(foreign)}, which would fetch or run other code; take it out")
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"{folder} has an adapter_config.json, which would load the weights of another model; take it out, or "
            "merge the adapter"
        )
    dtype, architectures = content.get("dtype"), content.get("architectures") or []
    if dtype is not None and not (isinstance(dtype, str) and isinstance(getattr(torch, dtype, None), torch.dtype)):
        raise ValueError(f"{path}: dtype must name a dtype of torch, got {dtype!r}")
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise ValueError(f"{path}: architectures must be a list of class names, got {architectures!r}")
    try:
        return known[model_type].from_dict(content)
    except (StrictDataclassError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{path} is refused: {' '.join(str(error).split())}") from error


def checkpoint_folder(checkpoint: str, revision: str | None = None) -> Path:
    """`checkpoint` if it is a folder, else the folder of a download from the Hub; nothing of its code is run.

    Args:
        checkpoint: folder or Hub id.
        revision: commit hash, branch or tag on the Hub; None is its main branch.

    Raises:
        FileNotFoundError: neither a folder nor the form of a Hub id.
        ValueError: a revision of a folder.
    """
    if Path(checkpoint).is_dir():
        if revision is not None:
            raise ValueError(f"{checkpoint} is a folder, which has no revision {revision!r}; leave the revision out")
        return Path(checkpoint)
    if not is_hub_id(checkpoint):
        raise FileNotFoundError(f"No checkpoint folder {checkpoint}")
    return Path(snapshot_download(checkpoint, revision=revision, allow_patterns=list(CHECKPOINT_FILES)))


def results_folder(checkpoint: str | os.PathLike, output_dir: str | os.PathLike | None) -> Path:
    """Where the results on a checkpoint are written: `output_dir`, else the checkpoint itself.

    Raises:
        ValueError: no `output_dir`, and the checkpoint is no folder.
    """
    if not output_dir and not Path(checkpoint).is_dir():
        raise ValueError(f"{checkpoint} is no folder to write results to; give --output_dir as well")
    return Path(output_dir or checkpoint)


def check_checkpoint(folder: Path, families: Families = FAMILIES) -> ConceptEncoderConfig:
    """Its configuration, if it is of one of `families`, with weights and without a classifier."""
    return _pretrained(folder, families).config


def _pretrained(folder: Path, families: Families = FAMILIES) -> _Checkpoint:
    checkpoint = _read(folder, families)
    trained = sorted(name for name in checkpoint.names if name.startswith(("pooling.", "classifier.")))
    if trained:
        raise ValueError(
            f"{folder} is already fine-tuned: it holds {', '.join(trained)}. Give the checkpoint it was made from"
        )
    return checkpoint


def weight_files(folder: Path) -> list[str]:
    """Names of the files that hold a checkpoint's weights: one, or its index and the shards that this names.

    Raises:
        ValueError: there are none; the index is broken, or names something that is no safetensors file of this folder.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    if not index.is_file():
        raise ValueError(f"{folder} is not a checkpoint: it has no model.safetensors")
    shards = read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise ValueError(f"{index} has no weight_map from weights to files; save the model anew")
    names = sorted(set(shards.values()))
    for name in names:
        if not name.endswith(".safetensors"):
            raise ValueError(f"{index} names {name!r}, which is no .safetensors file")
        inside(folder, name)
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise ValueError(f"{index} names {', '.join(absent)}, which {folder} does not hold")
    return [index.name, *names]


def weight_names(folder: Path) -> set[str]:
    """Names of the tensors of a checkpoint; ValueError as `weight_files`, or for a file that is broken."""
    names: set[str] = set()
    for file in weight_files(folder):
        if file.endswith(".json"):
            continue
        try:
            with safe_open(folder / file, framework="pt") as weights:
                names.update(weights.keys())
        except SafetensorError as error:
            raise ValueError(f"{folder / file} is broken: {error}; fetch or save it again") from error
    return names


def load_tokenizer(folder: Path, config: ConceptEncoderConfig) -> PreTrainedTokenizerBase:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise ValueError(f"{folder} has no tokenizer; save the one it was pretrained with there (save_pretrained)")
    tokenizer = read_tokenizer(folder)
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
        kept, own = (architecture(each) for each in (read_config(twin, FAMILIES), config))
        if kept != own:
            names = ", ".join(sorted(name for name in own if kept.get(name) != own[name]))
            raise ValueError(f"{twin} is the twin of another architecture ({names}); remove it to make a new one")
        return twin
    with whole_folder(twin) as staged:
        random_encoder(config).save_pretrained(staged)
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
