"""Encoders as a corpus is read with them: a checkpoint of this package, or a model of sentence-transformers."""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...configuration_concept import ConceptEncoderConfig
from ...utils.files import at_home
from ...utils.results import CodeFacts
from ...utils.untrusted import read_object
from ..loading.checkpoints import Checkpoint, checkpoint_folder

Output: TypeAlias = Literal["pooled", "concepts"]
Role: TypeAlias = Literal["document", "query"]
OUTPUTS: tuple[str, ...] = get_args(Output)
LONGEST = 32_768  # tokens of a text, where the model has no limit of its own
CHUNK = 8_192  # tokens that a concept encoder reads at a time: memory does not grow with the text
BATCH_TOKENS = 16_384  # of a batch, padding included
WINDOW_TEXTS, WINDOW_CHARACTERS = 4_096, 2**24  # that are tokenised, and sorted by length, at a time
CHARACTERS_PER_TOKEN = 4  # about what texts have
MOST_CHARACTERS_PER_TOKEN = 64  # of a text much longer than the model reads, this much is looked at, then more
GAIN, TRIALS, SHORTEST_TRIAL = 0.8, 3, 0.05  # of the time of float32 below which bfloat16 is taken; seconds
PROMPTS = {"document": ("document", "passage", "corpus"), "query": ("query",)}  # of sentence-transformers
Batch: TypeAlias = tuple[np.ndarray, dict[str, Tensor], int]
"""rows (n,), what the model reads, and how many tokens that is without padding"""


class Embedder:
    """An encoder of one kind or the other; `batches` may run in another thread than `vectors`.

    Attributes:
        name: Hub id, or the last part of the folder's path.
        revision: commit on the Hub; None for a folder.
        digest: short SHA-256 of the weights.
        shape: of a vector, (D,) or (C, D).
        max_length: tokens after which a text is cut.
        dtype: "float32" or "bfloat16", of the products.
        kind: "pooled" or "concepts".
        tokenizer: that the model reads with.
    """

    name: str
    revision: str | None
    digest: str
    shape: tuple[int, ...]
    max_length: int
    kind: Output
    tokenizer: PreTrainedTokenizerBase
    dtype = "float32"

    def batches(self, texts: Sequence[str], batch_tokens: int, role: Role) -> Iterator[Batch]:
        """The texts, of like length together, in batches of at most `batch_tokens` tokens, or of one text."""
        raise NotImplementedError

    def output(self, features: dict[str, Tensor], role: Role) -> Tensor:
        """(n, *shape) of a batch."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        raise NotImplementedError

    @torch.inference_mode()
    def vectors(self, features: dict[str, Tensor], role: Role = "document") -> np.ndarray:
        """(n, D) float32 of unit length, or zeros; of concepts all their numbers, D = C * d."""
        moved = {name: each.to(self.device) if isinstance(each, Tensor) else each for name, each in features.items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
            output = self.output(moved, role).float().flatten(1)
        return torch.nn.functional.normalize(output, dim=-1).cpu().numpy()

    def choose_dtype(self, texts: Sequence[str], batch_tokens: int) -> None:
        """Take bfloat16 where this processor is clearly faster with it, by trial on a batch of these texts."""
        if not texts:
            return
        features = next(each for _, each, _ in self.batches(texts, batch_tokens, "document"))
        seconds = {}
        for self.dtype in ("bfloat16", "float32"):
            seconds[self.dtype] = min(self._seconds(features) for _ in range(TRIALS))
        if seconds["float32"] > SHORTEST_TRIAL and seconds["bfloat16"] < GAIN * seconds["float32"]:
            self.dtype = "bfloat16"

    def _seconds(self, features: dict[str, Tensor]) -> float:
        started = time.perf_counter()
        self.vectors(features)
        return time.perf_counter() - started


class ConceptEmbedder(Embedder):
    """A checkpoint of this package."""

    def __init__(self, checkpoint: Checkpoint, output: Output, max_length: int | None):
        config = checkpoint.config
        self.name, self.digest = checkpoint.name, checkpoint.digest
        self.revision = _commit(checkpoint.folder) if checkpoint.hub_id else None
        self.tokenizer = checkpoint.tokenizer
        self.max_length = min(max_length or LONGEST, self.tokenizer.model_max_length)
        accelerated = torch.accelerator.is_available()
        self.encoder = checkpoint.encoder.to(torch.accelerator.current_accelerator() if accelerated else "cpu")
        self.kind = output
        concepts = (config.num_concepts, config.hidden_size)
        self.shape = concepts if output == "concepts" else (config.projection_dim,)

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    def batches(self, texts: Sequence[str], batch_tokens: int, role: Role) -> Iterator[Batch]:
        ids = self._ids(texts)
        lengths = np.array([len(row) for row in ids])
        pad = self.tokenizer.pad_token_id
        for rows in _budgeted(lengths, batch_tokens):
            longest = int(lengths[rows].max())
            input_ids = torch.full((len(rows), longest), pad)
            attention_mask = torch.zeros(len(rows), longest, dtype=torch.long)
            for place, row in enumerate(rows):
                input_ids[place, : lengths[row]] = torch.tensor(ids[row])
                attention_mask[place, : lengths[row]] = 1
            yield rows, {"input_ids": input_ids, "attention_mask": attention_mask}, int(lengths[rows].sum())

    def output(self, features: dict[str, Tensor], role: Role) -> Tensor:
        chunked = features["input_ids"].shape[1] > CHUNK and self.encoder.config.token_update == "none"
        found = self.encoder(**features, chunk_length=CHUNK if chunked else None)
        return found.last_hidden_state if self.kind == "concepts" else found.pooler_output

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; of a text that is far longer than what is read, only its beginning is looked at."""
        looked_at = MOST_CHARACTERS_PER_TOKEN * self.max_length
        ids = self._tokenized([text[:looked_at] for text in texts])
        for row, text in enumerate(texts):
            size = looked_at
            while (
                size < len(text) and len(ids[row]) < self.max_length
            ):  # characters that are few tokens, as blanks are
                size *= 4
                ids[row] = self._tokenized([text[:size]])[0]
        return ids

    def _tokenized(self, texts: Sequence[str]) -> list[list[int]]:
        options = {"truncation": True, "max_length": self.max_length, "return_token_type_ids": False}
        return self.tokenizer(list(texts), return_attention_mask=False, **options)["input_ids"]


class SentenceEmbedder(Embedder):
    """A model of sentence-transformers, with its own prompts for documents and queries."""

    def __init__(self, folder: Path, name: str, revision: str | None, output: Output, max_length: int | None):
        if output != "pooled":
            raise ValueError(f"{name} is a model of sentence-transformers, which has no concepts; output is 'pooled'")
        if find_spec("sentence_transformers") is None:
            raise ValueError(f"{name} needs sentence-transformers: pip install 'concept-encoder[corpus]'")
        from sentence_transformers import SentenceTransformer

        self.name, self.revision, self.folder, self.kind = name, revision, folder, output
        options: dict[str, Any] = {"local_files_only": True, "model_kwargs": {"use_safetensors": True}}
        self.model = SentenceTransformer(str(folder), trust_remote_code=False, **options).float().eval()
        self.tokenizer = self.model.tokenizer
        limit = min(self.model.max_seq_length or LONGEST, max_length or LONGEST)
        self.max_length = int(limit)
        if max_length is not None and self.model.max_seq_length not in (None, float("inf")):
            self.model.max_seq_length = self.max_length
        size = self.model.get_embedding_dimension()
        assert size is not None
        self.shape = (size,)

    @cached_property
    def digest(self) -> str:  # type: ignore[override]
        digest = hashlib.sha256()
        for path in sorted(self.folder.rglob("*.safetensors")):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]

    @property
    def device(self) -> torch.device:
        return self.model.device

    def batches(self, texts: Sequence[str], batch_tokens: int, role: Role) -> Iterator[Batch]:
        names = (*PROMPTS[role], self.model.default_prompt_name)
        prompt = next((self.model.prompts[name] for name in names if name in self.model.prompts), None)
        texts = [text[: MOST_CHARACTERS_PER_TOKEN * self.max_length] for text in texts]
        guessed = np.array([min(len(text) // CHARACTERS_PER_TOKEN + 2, self.max_length) for text in texts])
        for rows in _budgeted(guessed, batch_tokens):
            features = self.model.preprocess([texts[row] for row in rows], prompt=prompt, task=role)
            read = features.get("attention_mask")
            yield rows, features, int(features["input_ids"].numel() if read is None else read.sum())

    def output(self, features: dict[str, Tensor], role: Role) -> Tensor:
        return self.model(features, task=role)["sentence_embedding"]


def name_and_commit(source: str | os.PathLike, folder: Path) -> tuple[str, str | None]:
    """Of a model in `folder`, which `checkpoint_folder` found for it: Hub id and commit, or the folder's name."""
    return (folder.resolve().name, None) if folder == Path(at_home(source)) else (str(source), folder.name)


def load_embedder(
    source: str | os.PathLike,
    revision: str | None = None,
    output: Output = "pooled",
    max_length: int | None = None,
) -> Embedder:
    """The encoder of a folder or Hub id, or of an opened checkpoint.

    Args:
        source: of a checkpoint of this package, or of a model of sentence-transformers.
        revision: commit, branch or tag of a Hub id.
        output: "pooled", one vector of a text, or "concepts", all C of them.
        max_length: tokens after which a text is cut; None: where the model's limit is, at most `LONGEST`.

    Raises:
        ValueError: as `Checkpoint.open`; concepts of a model that has none; an output or max_length that is none.
        FileNotFoundError: no such folder.
    """
    if output not in OUTPUTS:
        raise ValueError(f"output must be one of {', '.join(OUTPUTS)}, got {output!r}")
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length must be at least 1 token, got {max_length}")
    folder = checkpoint_folder(source, revision)
    config = folder / "config.json"
    ours = config.is_file() and read_object(config).get("model_type") == ConceptEncoderConfig.model_type
    embedder: Embedder
    if not ours and (folder / "modules.json").is_file():
        embedder = SentenceEmbedder(folder, *name_and_commit(source, folder), output, max_length)
    else:
        embedder = ConceptEmbedder(Checkpoint.open(source, revision), output, max_length)
    special = getattr(embedder.tokenizer, "num_special_tokens_to_add", lambda _: 0)(False)
    if max_length is not None and max_length <= special:
        raise ValueError(
            f"max_length must be at least {special + 1}, since {special} tokens are special, got {max_length}"
        )
    _Kept.source, _Kept.embedder = os.fspath(source), embedder
    return embedder


class _Kept:
    """The last one that was loaded."""

    source: str | None = None
    embedder: Embedder | None = None


def kept_embedder(source: str, code: CodeFacts) -> Embedder:
    """The encoder that made such vectors, loaded once in a process.

    Args:
        source: folder or Hub id.
        code: of the vectors.

    Raises:
        ValueError: as `load_embedder`; other weights than those.
    """
    held = _Kept.embedder
    if held is None or (_Kept.source, held.kind, held.max_length) != (source, code.output, code.max_length):
        revision = None if Path(at_home(source)).is_dir() else code.revision
        held = load_embedder(source, revision, code.output, code.max_length)
    if held.digest != code.digest:
        raise ValueError(
            f"the vectors are of {code.model} with weights {code.digest}, and {source} has {held.digest}; name the "
            "former with --checkpoint, or encode the corpus with the latter"
        )
    held.dtype = code.dtype
    return held


def embed_texts(
    embedder: Embedder, texts: Sequence[str], role: Role = "document", batch_tokens: int = BATCH_TOKENS
) -> np.ndarray:
    """(n, D) float32 vectors of unit length; of a text without words zeros."""
    vectors = np.zeros((len(texts), int(np.prod(embedder.shape))), np.float32)
    for start, found, _ in embedded_windows(embedder, [list(texts)], batch_tokens, role):
        vectors[start : start + len(found)] = found
    return vectors


def embedded_windows(
    embedder: Embedder, windows: Sequence[list[str]] | Iterator[list[str]], batch_tokens: int, role: Role = "document"
) -> Iterator[tuple[int, np.ndarray, int]]:
    """First row, (n, D) vectors and number of tokens of each window; the next one is tokenised meanwhile.

    Raises:
        ValueError: a vector that is not finite; says of which row.
    """

    def prepared(window: list[str]) -> tuple[list[str], list[Batch]]:
        kept = np.array([row for row, text in enumerate(window) if text.strip()], dtype=int)
        batches = embedder.batches([window[row] for row in kept], batch_tokens, role) if len(kept) else ()
        return window, [(kept[rows], features, tokens) for rows, features, tokens in batches]

    start = 0
    with ThreadPoolExecutor(1) as beside:
        remaining = iter(windows)
        first = next(remaining, None)
        coming = None if first is None else beside.submit(prepared, first)
        while coming is not None:
            window, batches = coming.result()
            after = next(remaining, None)
            coming = None if after is None else beside.submit(prepared, after)
            vectors, read = np.zeros((len(window), int(np.prod(embedder.shape))), np.float32), 0
            for rows, features, tokens in batches:
                vectors[rows] = embedder.vectors(features, role)
                read += tokens
            broken = np.flatnonzero(~np.isfinite(vectors).all(1))
            if len(broken):
                raise ValueError(f"{embedder.name} gives no finite vector for text {start + broken[0]}")
            yield start, vectors, read
            start += len(window)


def _budgeted(lengths: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Rows of like length, longest first, so that rows times the longest of them is at most `batch_tokens`."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // max(1, int(lengths[order[start]])))
        yield order[start : start + size]
        start += size


def _commit(folder: Path) -> str | None:
    """That a download in the Hub's cache is of."""
    return folder.name if folder.parent.name == "snapshots" else None
