"""What is judged: an encoder as its user calls it, and as much of its inside as can be seen."""

import copy
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedTokenizerBase
from transformers.tokenization_utils_base import LARGE_INTEGER

from ...configuration_concept import ConceptEncoderConfig
from ...trainers.weights.tensors import read_headers
from ...utils.untrusted import read_object
from ..corpus.embedders import SentenceEmbedder, load_embedder, name_and_commit
from ..loading.checkpoints import TWIN_SEED, Checkpoint, checkpoint_folder, pooled_vectors, read_texts

BATCH_SIZE = 32  # texts
Change = Callable[["Subject"], None]


class Subject:
    """An encoder with `.encode`, of which nothing else is known.

    Attributes:
        name: Hub id, last part of a folder's path, or class of the object.
        revision: commit on the Hub; None for a folder or an object.
        digest: short SHA-256 of the weights; None for an object.
        folder: of the files; None for an object.
        late: whether a text is several vectors, compared by MaxSim, and not one.
        prompts: texts that the model itself may put in front.
    """

    def __init__(self, encoder: Any, name: str | None = None):
        self.encoder = encoder
        self.name = name or f"{type(encoder).__module__.partition('.')[0]}.{type(encoder).__name__}"
        self.revision: str | None = None
        self.digest: str | None = None
        self.folder: Path | None = None
        self.late = False
        self.prompts: tuple[str, ...] = ()

    @property
    def module(self) -> Any:
        """The model of transformers inside, or None."""
        return None

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer, or None."""
        return None

    @property
    def max_length(self) -> int | None:
        """Tokens that it says it reads; None: it does not say."""
        return None

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(n, D) float32, as its user would have them; of several vectors of a text their mean.

        Raises:
            ValueError: something else comes out, or it fails.
        """
        found = self.output(list(texts))
        if isinstance(found, list):
            self.late = True
            return np.stack([np.asarray(each, np.float32).mean(0) for each in found])
        return found

    def output(self, texts: list[str]) -> np.ndarray | list[np.ndarray]:
        """(n, D), or of each text (t, D)."""
        found = self.run(texts)
        if isinstance(found, torch.Tensor):
            found = found.detach().float().cpu().numpy()
        if isinstance(found, list | tuple) or (isinstance(found, np.ndarray) and found.ndim == 3):
            found = [each.float().cpu().numpy() if isinstance(each, torch.Tensor) else each for each in found]
            try:
                rows = [np.asarray(each, np.float32) for each in found]
            except (TypeError, ValueError):
                rows = []
            if len(rows) == len(texts) and all(row.ndim == 2 and len(row) for row in rows):
                return rows
            if len(rows) == len(texts) and all(row.ndim == 1 for row in rows):
                found = np.stack(rows)
        if isinstance(found, np.ndarray) and found.ndim == 2 and len(found) == len(texts):
            return found.astype(np.float32)
        shape = f" of shape {found.shape}" if isinstance(found, np.ndarray) else ""
        raise ValueError(
            f"encode of {self.name} must give a vector, or a matrix of vectors, for each of {len(texts)} texts; got "
            f"{type(found).__name__}{shape}"
        )

    def run(self, texts: list[str]) -> Any:
        return self.encoder.encode(texts)

    def inside(self, texts: Sequence[str]) -> list[np.ndarray] | None:
        """(t, d) vectors of each text, its tokens' or concepts'; None where they cannot be had."""
        found = self.output(list(texts))
        return found if isinstance(found, list) else None

    def changed(self, change: Change) -> "Subject":
        """A copy with a change made to it; the subject stays as it is."""
        other = copy.copy(self)
        other.encoder = copy.deepcopy(self.encoder)
        change(other)
        return other


class OfSentences(Subject):
    """A model of sentence-transformers."""

    def __init__(self, encoder: Any, name: str | None = None):
        super().__init__(encoder, name)
        self.prompts = tuple(prompt for prompt in encoder.prompts.values() if prompt)

    @property
    def module(self) -> Any:
        return self.encoder.transformers_model

    @property
    def tokenizer(self) -> Any:
        found = getattr(self.encoder, "tokenizer", None)
        return found if isinstance(found, PreTrainedTokenizerBase) else None

    @property
    def max_length(self) -> int | None:
        limit = self.encoder.max_seq_length
        return int(limit) if limit and limit < LARGE_INTEGER else None

    def run(self, texts: list[str]) -> Any:
        return self.encoder.encode(texts, batch_size=BATCH_SIZE, show_progress_bar=False)

    def inside(self, texts: Sequence[str]) -> list[np.ndarray] | None:
        options: dict[str, Any] = {"batch_size": BATCH_SIZE, "show_progress_bar": False}
        try:
            found = self.encoder.encode(list(texts), output_value="token_embeddings", **options)
        except KeyError:  # a model without tokens, such as one of static vectors
            return None
        return [each.float().cpu().numpy() for each in found]


class OfConcepts(Subject):
    """A checkpoint of this package."""

    def __init__(self, encoder: Checkpoint):
        super().__init__(encoder.encoder, encoder.name)
        self.read_by, self.folder, self.digest = encoder.tokenizer, encoder.folder, encoder.digest
        self.revision = encoder.folder.name if encoder.hub_id else None

    @property
    def module(self) -> Any:
        return self.encoder

    @property
    def tokenizer(self) -> Any:
        return self.read_by

    @property
    def max_length(self) -> int | None:
        limit = self.read_by.model_max_length
        return int(limit) if limit < LARGE_INTEGER else None

    def run(self, texts: list[str]) -> Any:
        read = read_texts(self.encoder, self.read_by, texts, BATCH_SIZE, self.read_by.model_max_length)
        return pooled_vectors(self.encoder.config, read, len(texts), normalize=False)

    def inside(self, texts: Sequence[str]) -> list[np.ndarray] | None:
        found: list[np.ndarray] = [np.empty(0)] * len(texts)
        for rows, output in read_texts(self.encoder, self.read_by, texts, BATCH_SIZE, self.read_by.model_max_length):
            for row, each in zip(rows, output.last_hidden_state.float().cpu().numpy(), strict=True):
                found[row] = each
        return found

    def changed(self, change: Change) -> Subject:
        def both(other: Subject) -> None:
            assert isinstance(other, OfConcepts)
            other.read_by = copy.deepcopy(self.read_by)
            change(other)

        return super().changed(both)


def open_subject(model: Any, revision: str | None = None) -> Subject:
    """A folder, a Hub id or an object as what is judged; code in it is never run, and pickles are never read.

    Args:
        model: folder or Hub id of a checkpoint of this package, or of a model of sentence-transformers or
            transformers (whose token vectors are then averaged, as sentence-transformers does); a `Checkpoint`; an
            object with `.encode(texts)`, which gives (n, D), or a matrix of vectors for each text.
        revision: commit, branch or tag of a Hub id.

    Raises:
        ValueError: none of these; it cannot be read; a revision of an object or a folder.
        FileNotFoundError: neither a folder nor the form of a Hub id.
    """
    named = isinstance(model, str) or (isinstance(model, os.PathLike) and not hasattr(model, "encode"))
    if not named:
        if revision is not None:
            raise ValueError(f"an object in memory has no revision {revision!r}; leave the revision out")
        return _of_object(model)
    try:
        folder = checkpoint_folder(model, revision)
    except HFValidationError as error:
        raise ValueError(f"{model} is neither a folder nor a Hub id: {error}") from error
    config = folder / "config.json"
    if not config.is_file() and not (folder / "modules.json").is_file():
        raise ValueError(f"{folder} holds no model: neither config.json nor modules.json; save_pretrained writes them")
    if config.is_file() and read_object(config).get("model_type") == ConceptEncoderConfig.model_type:
        return OfConcepts(Checkpoint.open(model, revision))
    embedder: Any
    if (folder / "modules.json").is_file():
        embedder = load_embedder(model, revision)
    else:
        try:  # sentence-transformers takes the mean over the tokens of a bare model
            embedder = SentenceEmbedder(folder, *name_and_commit(model, folder), "pooled", None)
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{folder} cannot be read as an encoder: {' '.join(str(error).split())}") from error
    subject = OfSentences(embedder.model, embedder.name)
    subject.revision, subject.digest = embedder.revision, embedder.digest
    subject.folder = folder
    return subject


def _of_object(model: Any) -> Subject:
    if isinstance(model, Subject):
        return model
    if isinstance(model, Checkpoint):
        return OfConcepts(model)
    if not callable(getattr(model, "encode", None)):
        raise ValueError(
            f"{type(model).__name__} has no encode(texts); give a folder, a Hub id or an object that has one"
        )
    is_theirs = any(f"{kind.__module__}.".startswith("sentence_transformers.") for kind in type(model).__mro__)
    return OfSentences(model) if is_theirs and hasattr(model, "prompts") else Subject(model)


# ------------------------------------------------------------------------------------------------------------ changes


def randomise(subject: Subject) -> None:
    """Weights of the same architecture that were never trained, always the same ones."""
    module = subject.module
    assert module is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(TWIN_SEED)
        fresh = type(module)(copy.deepcopy(module.config))
    module.load_state_dict(fresh.state_dict())


def in_dtype(dtype: torch.dtype) -> Change:
    def change(subject: Subject) -> None:
        found = subject.encoder if isinstance(subject.encoder, torch.nn.Module) else subject.module
        assert found is not None
        found.to(dtype)

    return change


def padded_left(subject: Subject) -> None:
    assert subject.tokenizer is not None
    subject.tokenizer.padding_side = "left"


def unread_and_missing(subject: Subject) -> tuple[list[str], list[str]] | None:
    """Weights of layers in the files that the model does not have, and of its own that the files lack."""
    if subject.folder is None or subject.module is None:
        return None
    held: set[str] = set()
    for folder in (subject.folder, *(each for each in subject.folder.iterdir() if each.is_dir())):
        if any(folder.glob("*.safetensors")):
            held |= set(read_headers(folder)[0])
    if not held:
        return None
    own = set(subject.module.state_dict())
    prefix = f"{subject.module.base_model_prefix}."
    known = {name.removeprefix(prefix) for name in own} | own
    there = {name.removeprefix(prefix) for name in held} | held
    ours = {name for name in known if not name.startswith(("pooler.", "embeddings.position_ids"))}
    unread = [name for name in held if ".layer" in name and not {name, name.removeprefix(prefix)} & known]
    missing = [name for name in ours if not {name, f"{prefix}{name}"} & there]
    return sorted(unread), sorted(missing)
