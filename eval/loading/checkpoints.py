"""Checkpoints as everything after training reads them: opened once, checked once, told from what is none."""

import copy
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import ModelOutput
from transformers.tokenization_utils_base import LARGE_INTEGER, VERY_LARGE_INTEGER
from transformers.utils import logging

from ... import modeling_concept
from ...configuration_concept import ConceptEncoderConfig
from ...trainers.recipes import RECIPE_FILE
from ...trainers.weights.tensors import check_weights, listed, weight_files
from ...trainers.weights.warm_start import architecture
from ...utils.files import at_home, whole_folder
from ...utils.progress import progress
from ...utils.tokenizer import limit_length, longest_text, vocabulary_size
from ...utils.untrusted import is_hub_id, read_object, read_tokenizer
from ..benchmarks import bert_twin
from ..benchmarks.bert_twin import TWINS, BertTwinConfig, BertTwinModel
from ..hub.code_check import FOREIGN_FIELDS, warn_of_other_code

HEAD_PREFIXES = ("pooling.", "classifier.")  # weights of a classifier, by which a fine-tuned checkpoint is known
CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", RECIPE_FILE)
Families = Sequence[type[ConceptEncoderConfig]]
FAMILIES: Families = (ConceptEncoderConfig, BertTwinConfig)  # of what the evaluations can score
BOX = "box"  # the model that the package brings, by name
BOX_FOLDER = Path(__file__).parents[2] / "model_cards" / BOX
TWIN_FOLDER = "random_init"
WHOLE, PART = 2048, 512  # tokens: of texts that are read at once, and of longer ones at a time
TWIN_SEED = 20_250  # no recipe's seed, so that the twin does not start where the run did


class Checkpoint:
    """One checkpoint: configuration, weights and tokenizer, each read and checked at its first use and then kept.

    Code in it is never run, and pickles are never read. Errors are ValueErrors of one line.

    Attributes:
        folder: where it is; for a Hub id, its download.
        hub_id: None for a folder.
    """

    def __init__(self, folder: Path, hub_id: str | None = None):
        self.folder = folder
        self.hub_id = hub_id

    @classmethod
    def open(
        cls,
        source: "str | os.PathLike | Checkpoint",
        revision: str | None = None,
        families: Families = (ConceptEncoderConfig,),
    ) -> "Checkpoint":
        """The checkpoint of a folder, of a Hub id, or of what a verb returned; an opened one is given back as it is.

        Args:
            source: folder, Hub id, anything with `__fspath__`, or "box", the model that the package brings.
            revision: commit hash, branch or tag on the Hub; None is its main branch.
            families: configuration classes that it may be of.

        Raises:
            FileNotFoundError: neither a folder nor the form of a Hub id.
            ValueError: a revision of a folder; a configuration that cannot be read, or of another family.
        """
        opened = source
        if not isinstance(opened, Checkpoint) or revision is not None:
            folder = checkpoint_folder(source, revision)
            opened = cls(folder, None if folder in (BOX_FOLDER, Path(source)) else str(source))
        if type(opened.config) not in families:  # a twin is a subclass
            raise ValueError(_other_family(opened.folder, opened.config.model_type, families))
        return opened

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"Checkpoint({self.name!r})"

    @property
    def name(self) -> str:
        """How it is recorded: its Hub id, or the last part of its path and so nobody's home."""
        return self.hub_id or self.folder.resolve().name

    @cached_property
    def config(self) -> ConceptEncoderConfig:
        return read_config(self.folder, FAMILIES)

    @cached_property
    def digest(self) -> str:
        """Short SHA-256 of the weights: what a kept result was made from."""
        digest = hashlib.sha256()
        for name in sorted(weight_files(self.folder)):
            if name.endswith(".safetensors"):
                with (self.folder / name).open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Limited to the texts that the model can read."""
        return load_tokenizer(self.folder, self.config)

    @cached_property
    def head(self) -> type[PreTrainedModel]:
        """The class that saved it."""
        name = next(iter(self.config.architectures or []), "ConceptEncoderModel")
        known = heads_of(type(self.config))
        if name not in known:
            raise ValueError(
                f"{self.folder / 'config.json'}: architectures must name one of {', '.join(known)}, got {name!r}"
            )
        return known[name]

    @cached_property
    def tensors(self) -> dict[str, list[int]]:
        """Shapes of the weights by name; ValueError as `check_weights`."""
        held = check_weights(self.folder, self.config, self.head)
        warn_of_other_code(self.folder)
        return held

    def load(
        self, head: type[PreTrainedModel] | None = None, **fields: Any
    ) -> tuple[PreTrainedModel, dict[str, list[str]]]:
        """A new model with these weights, in float32, and which of them were not used.

        Args:
            head: class of this package; None is the class that saved the checkpoint.
            fields: of the configuration, in place of the checkpoint's.

        Returns:
            The model, and `newly_initialized` (its weights that the checkpoint does not hold) and `dropped` (of the
            checkpoint, what the model has no place for).

        Raises:
            ValueError: as `tensors`; a head that has another encoder; a model that does not fit into memory.
        """
        head = head or self.head
        held = self.tensors
        load = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
        try:
            with _quiet():  # what is new and what is dropped is returned
                model, info = head.from_pretrained(self.folder, **load, **fields)
        except RuntimeError as error:  # no memory for what the configuration asks, or fields of other shapes
            raise ValueError(f"{self.folder}: {' '.join(str(error).split())}") from error
        prefix = f"{model.base_model_prefix}."
        known = set(model.state_dict())
        # The encoder's weights bear the prefix in the file of a head, and none in the file of a bare encoder.
        own = known | {prefix + key for key in known} | {key.removeprefix(prefix) for key in known}
        return model, {"newly_initialized": sorted(info["missing_keys"]), "dropped": sorted(held.keys() - own)}

    def load_classifier(self, head: str, **fields: Any) -> tuple[PreTrainedModel, dict[str, list[str]]]:
        """As `load`, of the classifier with that class name, for a pretrained checkpoint or a twin."""
        self.check_pretrained()
        return self.load(
            TWINS[head] if isinstance(self.config, BertTwinConfig) else getattr(modeling_concept, head), **fields
        )

    def check_pretrained(self) -> None:
        """ValueError for a checkpoint that holds a classifier: results on it would be of two trainings."""
        trained = [name for name in self.tensors if name.startswith(HEAD_PREFIXES)]
        if trained:
            raise ValueError(
                f"{self.folder} is already fine-tuned: it holds {listed(trained)}. Give the checkpoint it was made "
                "from"
            )

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model that was saved, in float32 and evaluation mode; the same one every time."""
        return self.load()[0].eval()

    @property
    def encoder(self) -> PreTrainedModel:
        """The encoder inside `model`."""
        return getattr(self.model, self.model.base_model_prefix, self.model)

    @property
    def diffusion(self) -> modeling_concept.ConceptEncoderForDiffusionMLM | None:
        """`model` where texts can be sampled from it, else None."""
        kind = modeling_concept.ConceptEncoderForDiffusionMLM
        return self.model if issubclass(self.head, kind) else None

    def encode(
        self, texts: Sequence[str], batch_size: int = 64, normalize: bool = True, max_length: int | None = None
    ) -> np.ndarray:
        """(len(texts), P) float32 embeddings: the pooled output of each text, as the configuration says; by default
        the mean concept, P = D.

        Args:
            texts: read whole, at a cost that grows with their length; cut at the model's limit only where it has
                learned positions. A long one is read part by part.
            batch_size: texts that are read at a time.
            normalize: to unit length, so that a product of two is their cosine. A text of nothing may be all zeros.
            max_length: tokens after which a text is cut; None: none but the model's limit.

        Raises:
            ValueError: texts that are not a list of strings.
        """
        read = self._read(texts, batch_size, self.text_limit(max_length))
        return pooled_vectors(self.config, read, len(texts), normalize)

    def text_limit(self, max_length: int | None = None) -> int:
        """`max_length` tokens, or as many as there are learned positions for; without either next to infinite."""
        return longest_text(self.config, VERY_LARGE_INTEGER if max_length is None else max_length)

    def concepts(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """(len(texts), C, D) float32 concepts of texts, as the encoder gives them; arguments as in `encode`."""
        concepts = np.empty((len(texts), self.config.num_concepts, self.config.hidden_size), np.float32)
        for rows, output in self._read(texts, batch_size):
            concepts[rows] = output.last_hidden_state.cpu()
        return concepts

    def _read(
        self, texts: Sequence[str], batch_size: int, max_length: int | None = None
    ) -> Iterator[tuple[np.ndarray, ModelOutput]]:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        return read_texts(self.encoder.to(device), self.tokenizer, texts, batch_size, max_length)


def load(source: str | os.PathLike = BOX, revision: str | None = None) -> Checkpoint:
    """A checkpoint to embed texts with: `load().encode(["a text"])`; as `Checkpoint.open`.

    Args:
        source: folder, Hub id, or what a verb returned; left out, the model that the package brings, "box".
        revision: commit, branch or tag of a Hub id.
    """
    return Checkpoint.open(source, revision)


@torch.inference_mode()
def read_texts(
    encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_size: int = 64,
    max_length: int | None = None,
) -> Iterator[tuple[np.ndarray, ModelOutput]]:
    """Row numbers (b,) and the encoder's output, batch by batch, texts of like length together.

    Args:
        encoder: in evaluation mode.
        tokenizer: its tokenizer.
        texts: any number.
        batch_size: texts at a time.
        max_length: tokens after which a text is cut; None: the tokenizer's limit. Texts of more than `WHOLE` tokens
            are read `PART` tokens at a time where the encoder can do that.

    Raises:
        ValueError: texts that are not a list of strings of Unicode; a batch_size below 1.
    """
    given = next((f"{type(text).__name__} at {i}" for i, text in enumerate(texts) if not isinstance(text, str)), None)
    if isinstance(texts, str) or given is not None:
        raise ValueError(f"texts must be a list of strings, got {given or repr(texts)}; one text is a list of one")
    for i, text in enumerate(texts):
        if text != text.encode(errors="replace").decode():
            raise ValueError(f"text {i} is no Unicode: it holds half of a surrogate pair")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not len(texts):
        return
    cut = max_length is None or max_length < LARGE_INTEGER  # no limit would be said to be one, and ignored
    options = {"truncation": True, "max_length": max_length} if cut else {"verbose": False}
    ids = tokenizer(list(texts), return_token_type_ids=False, **options)["input_ids"]
    order = np.argsort([len(row) for row in ids], kind="stable")
    collate = DataCollatorWithPadding(tokenizer)
    for start in progress(range(0, len(order), batch_size), desc="Encoding", unit="batch"):
        rows = order[start : start + batch_size]
        in_parts = {"chunk_length": PART} if len(ids[rows[-1]]) > WHOLE and reads_in_parts(encoder.config) else {}
        yield rows, encoder(**collate([{"input_ids": ids[row]} for row in rows]).to(encoder.device), **in_parts)


def pooled_vectors(
    config: ConceptEncoderConfig,
    read: Iterable[tuple[np.ndarray, ModelOutput]],
    count: int,
    normalize: bool = True,
) -> np.ndarray:
    """(count, P) float32 pooled outputs of what `read_texts` gives, of unit length unless `normalize` is False."""
    vectors = np.empty((count, config.projection_dim), np.float32)
    for rows, output in read:
        pooled = output.pooler_output
        vectors[rows] = (torch.nn.functional.normalize(pooled, dim=-1) if normalize else pooled).float().cpu()
    return vectors


def reads_in_parts(config: ConceptEncoderConfig) -> bool:
    """Whether an encoder can take a text part by part, in memory that does not grow with it."""
    return type(config) is ConceptEncoderConfig and config.token_update != "bixt"


def heads_of(family: type[ConceptEncoderConfig]) -> dict[str, type[PreTrainedModel]]:
    """Classes of models that can be saved with a configuration of this family, by name."""
    encoder, module = _encoder_class(family), bert_twin if family is BertTwinConfig else modeling_concept
    named = {
        name: kind for name, kind in vars(module).items() if name.startswith(("ConceptEncoderFor", "BertTwinFor"))
    }
    heads = {name: kind for name, kind in named.items() if kind.config_class is family}
    return {encoder.__name__: encoder, **heads}


def _encoder_class(family: type[ConceptEncoderConfig]) -> type[PreTrainedModel]:
    return BertTwinModel if family is BertTwinConfig else modeling_concept.ConceptEncoderModel


def _other_family(folder: Path, model_type: Any, families: Families) -> str:
    legal = " or ".join(repr(each.model_type) for each in families)
    return f"{folder} holds a model of type {model_type!r}; only type {legal} can be read here"


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
        raise ValueError(_other_family(folder, model_type, families))
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


def checkpoint_folder(checkpoint: str | os.PathLike, revision: str | None = None) -> Path:
    """`checkpoint` if it is a folder, else the folder of a download from the Hub; nothing of its code is run.

    Args:
        checkpoint: folder or Hub id, or "box" for the model that the package brings; `./box` is a folder.
        revision: commit hash, branch or tag on the Hub; None is its main branch.

    Raises:
        FileNotFoundError: neither a folder nor the form of a Hub id.
        ValueError: a revision of a folder.
    """
    checkpoint = at_home(checkpoint)
    if checkpoint == BOX:
        checkpoint = str(BOX_FOLDER)
    if Path(checkpoint).is_dir():
        if revision is not None:
            raise ValueError(f"{checkpoint} is a folder, which has no revision {revision!r}; leave the revision out")
        return Path(checkpoint)
    if not isinstance(checkpoint, str) or not is_hub_id(checkpoint):
        raise FileNotFoundError(f"No checkpoint folder {os.fspath(checkpoint)}")
    return Path(snapshot_download(checkpoint, revision=revision, allow_patterns=list(CHECKPOINT_FILES)))


def results_folder(checkpoint: str | os.PathLike, output_dir: str | os.PathLike | None) -> Path:
    """Where the results on a checkpoint are written: `output_dir`, else the checkpoint itself.

    Raises:
        FileNotFoundError: no `output_dir`, and no such folder.
        ValueError: no `output_dir`, and the checkpoint is no folder, or a download.
    """
    if isinstance(checkpoint, Checkpoint):
        checkpoint = checkpoint.hub_id or (BOX if checkpoint.folder == BOX_FOLDER else checkpoint)
    if not output_dir and checkpoint == BOX:
        raise ValueError("the model of the package has no place for results; give --output_dir as well")
    if not output_dir and not Path(checkpoint).is_dir():
        if not is_hub_id(str(checkpoint)) or Path(checkpoint).parent.is_dir():
            raise FileNotFoundError(f"No checkpoint folder {str(checkpoint)!r}; give the folder of a run, or a Hub id")
        raise ValueError(f"{checkpoint} is not a folder to write results to; give --output_dir as well")
    return Path(output_dir or checkpoint)


def load_tokenizer(folder: Path, config: ConceptEncoderConfig) -> PreTrainedTokenizerBase:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise ValueError(f"{folder} has no tokenizer; save the one it was pretrained with there (save_pretrained)")
    tokenizer = read_tokenizer(folder)
    if tokenizer.pad_token is None:
        raise ValueError(f"The tokenizer of {folder} has no padding token; set pad_token and save it again")
    size = vocabulary_size(tokenizer)
    if size > config.vocab_size:
        raise ValueError(
            f"The tokenizer of {folder} has {size} tokens, the model only {config.vocab_size}; "
            "give the tokenizer that it was pretrained with"
        )
    return limit_length(tokenizer, config)


def random_encoder(config: ConceptEncoderConfig) -> PreTrainedModel:
    """Encoder of this architecture with random weights, always the same ones: what every random twin is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(TWIN_SEED)
        return _encoder_class(type(config))(copy.deepcopy(config))


def random_twin(checkpoint: Checkpoint, output_dir: str | os.PathLike) -> Checkpoint:
    """The encoder of a checkpoint with its architecture and none of its weights: the control that was never trained.

    Args:
        checkpoint: of the run.
        output_dir: run folder; the twin is kept in `random_init` there and taken from there the next time.

    Returns:
        The twin: an encoder without head or tokenizer, initialised from a fixed seed.

    Raises:
        ValueError: the twin kept there has another architecture.
    """
    checkpoint.check_pretrained()
    config = checkpoint.config
    twin = Path(output_dir) / TWIN_FOLDER
    if twin.is_dir():
        kept, own = (architecture(each) for each in (read_config(twin, FAMILIES), config))
        if kept != own:
            names = ", ".join(sorted(name for name in own if kept.get(name) != own[name]))
            raise ValueError(f"{twin} is the twin of another architecture ({names}); remove it to make a new one")
    else:
        with whole_folder(twin) as staged:
            random_encoder(config).save_pretrained(staged)
    return Checkpoint.open(twin, families=FAMILIES)


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
