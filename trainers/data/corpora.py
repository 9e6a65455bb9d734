"""Pretraining corpora: texts from microworld, the Hub or local files, tokenised and packed or truncated to a length.

Three calls, in the order a run makes them: `load_tokenizer`, `load_corpus` (texts), `load_pretraining_data` (ids).
"""

import copy
import dataclasses
import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pyarrow as pa
from accelerate import PartialState
from datasets import Dataset, DatasetDict, Features, IterableDataset, List, Value
from transformers import PreTrainedTokenizerBase

from ...utils.fields import check_fields
from ...utils.files import at_home, check_new, disk_trouble_named, whole_folder
from ...utils.untrusted import read_tokenizer
from .roles import NEGATIVE, PARTNER, TEXT, id_column, numbered, vector_name
from .tables import Origin, Rows, Table, is_empty, meets_rule, open_tables, read_rule

logger = logging.getLogger(__name__)

MICROWORLD, PAIRS = "microworld", "pairs"
IN_MEMORY = "in-memory"  # begins the name of data that were handed over, and are in no file
MICROWORLD_DOCUMENTS = {"train": 20_000, "validation": 1_000}
# Documents. datasets reads up to ten files at a time into the buffer, so a corpus sorted by source is mixed too.
STREAM_SHUFFLE_BUFFER = 10_000

Packing = Literal["packed", "truncated"]
Split = Literal["train", "validation"]

_IDS = Features({"input_ids": List(Value("int32"))})
# datasets fingerprints an imported function by its name only: raise this when the same texts give other examples.
_FORMAT_VERSION = 1


@dataclass
class DataArguments:
    """Which texts to pretrain on and how they become examples.

    Raises:
        ValueError: a field outside its legal values, or two fields that contradict each other.
    """

    dataset_name: str = field(
        default=MICROWORLD,
        metadata={
            "help": "'microworld' (generated), a Hub id 'namespace/name', a local dataset folder, or a file or glob "
            "ending in .parquet, .jsonl, .json, .csv or .txt (one document per line)."
        },
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of a Hub or folder dataset; None: its default one."}
    )
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a Hub dataset; None: main."}
    )
    train_split: str = field(default="train", metadata={"help": "Name of the split to train on."})
    validation_split: str = field(
        default="validation", metadata={"help": "Name of the split to evaluate on; not the training split."}
    )
    validation_size: float | None = field(
        default=None,
        metadata={"help": "Share of the training split, in (0, 1), held out where there is no validation split."},
    )
    text_column: str = field(default="text", metadata={"help": "Name of the column that holds the texts."})
    partner_column: str | None = field(
        default=None,
        metadata={"help": "Column of a text that means the same, for contrastive; None: single texts."},
    )
    more_partner_columns: list[str] = field(
        default_factory=list, metadata={"help": "Columns of more texts that mean the same as that of text_column."}
    )
    negative_columns: list[str] = field(
        default_factory=list,
        metadata={"help": "Columns of texts that only seem to mean the same, for contrastive with a partner_column."},
    )
    teacher_columns: dict[str, str] = field(
        default_factory=dict,
        metadata={"help": "Of columns of texts, {texts: vectors}: columns of a teacher's vectors, for distillation."},
    )
    keep_rows: str | None = field(
        default=None,
        metadata={"help": "Rows to use, as column=value or column>=number, such as label=0 or label>=4; None: all."},
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read and tokenise while training instead of building a cache first."}
    )
    max_length: int = field(default=512, metadata={"help": "Tokens per example, special tokens included; at least 3."})
    packing: Packing = field(
        default="packed",
        metadata={
            "help": "packed: documents joined and cut into blocks of exactly max_length tokens; "
            "truncated: one document per example, its end cut off."
        },
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Hub id or local folder; None: the microworld tokenizer, for microworld only."}
    )
    preprocessing_num_workers: int | None = field(
        default=None,
        metadata={"help": "Processes that filter and tokenise, at least 1; None: this one, tokenising in threads."},
    )
    max_train_documents: int | None = field(
        default=None,
        metadata={"help": "Documents to train on, at least 1; None: all (20000 for microworld)."},
    )
    max_validation_documents: int | None = field(
        default=None,
        metadata={"help": "Documents to evaluate on, at least 1; None: all (1000 for microworld)."},
    )
    corpus_seed: int = field(
        default=0,
        metadata={"help": "Not negative. Seeds generation, held-out share, sample of documents, stream shuffling."},
    )

    def __post_init__(self) -> None:
        check_fields(self)
        self.dataset_name = at_home(self.dataset_name)
        self.tokenizer_name = self.tokenizer_name and at_home(self.tokenizer_name)
        if self.max_length < 3:
            raise ValueError(f"max_length must be at least 3 (two special tokens and a text's), got {self.max_length}")
        if self.validation_size is not None and not 0 < self.validation_size < 1:
            raise ValueError(f"validation_size must be between 0 and 1, got {self.validation_size}")
        if self.corpus_seed < 0:
            raise ValueError(f"corpus_seed must not be negative, got {self.corpus_seed}")
        for name in ("preprocessing_num_workers", "max_train_documents", "max_validation_documents"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1 or left out, got {value}")
        if self.train_split == self.validation_split:
            raise ValueError(
                f"train_split ({self.train_split!r}) and validation_split ({self.validation_split!r}) must differ; "
                "to hold out a share of the training split set validation_size instead"
            )
        self._check_columns()
        if self.keep_rows is not None:
            read_rule(self.keep_rows)
        if self.streaming and self.preprocessing_num_workers is not None:
            raise ValueError(
                f"preprocessing_num_workers={self.preprocessing_num_workers} is of no use with streaming=True, which "
                "tokenises while it is read; set the Trainer's dataloader_num_workers, or streaming=False"
            )
        if self.dataset_name == MICROWORLD:
            self._check_microworld()

    @property
    def columns(self) -> dict[str, str]:
        """Role -> column of the texts of an example: the text, its partners, its negatives."""
        partners = [] if self.partner_column is None else [self.partner_column, *self.more_partner_columns]
        return {TEXT: self.text_column} | numbered(PARTNER, partners) | numbered(NEGATIVE, self.negative_columns)

    @property
    def vectors(self) -> dict[str, str]:
        """Name in an example -> column of the teacher's vectors."""
        roles = {column: role for role, column in self.columns.items()}
        return {vector_name(roles[texts]): vectors for texts, vectors in self.teacher_columns.items()}

    def texts_alone(self) -> "DataArguments":
        """Of the same corpus, without partners, negatives and a teacher's vectors."""
        return dataclasses.replace(
            self, partner_column=None, more_partner_columns=[], negative_columns=[], teacher_columns={}
        )

    def _check_columns(self) -> None:
        columns = list(self.columns.values())
        for name in ("more_partner_columns", "negative_columns"):
            if getattr(self, name) and self.partner_column is None:
                raise ValueError(f"{name}={getattr(self, name)} is of use with a partner_column only; name one")
        if self.partner_column is not None and self.packing != "truncated":
            raise ValueError(
                f"partner_column={self.partner_column!r} needs packing='truncated', one pair per example, got "
                f"{self.packing!r}"
            )
        for column in columns:
            if columns.count(column) > 1:
                both = "partner_column and text_column" if self.partner_column == self.text_column else "two columns"
                raise ValueError(f"{both} are both {column!r}: a pair needs two columns")
        if self.teacher_columns and self.packing != "truncated":
            raise ValueError(f"teacher_columns need packing='truncated', one text per example, got {self.packing!r}")
        for texts in self.teacher_columns:
            if texts not in columns:
                raise ValueError(
                    f"teacher_columns has vectors of {texts!r}, which is none of the columns of texts: "
                    f"{', '.join(columns)}"
                )

    def _check_microworld(self) -> None:
        """A generated corpus is of stories or of pairs, and has no revisions, columns or splits to choose."""
        if self.dataset_config_name not in (None, PAIRS):
            raise ValueError(
                f"dataset_config_name must be {PAIRS!r}, or None for stories, with dataset_name={MICROWORLD!r}, got "
                f"{self.dataset_config_name!r}"
            )
        if self.partner_column not in (None, PARTNER if self.dataset_config_name == PAIRS else None):
            raise ValueError(
                f"partner_column must be None, or {PARTNER!r} of dataset_config_name={PAIRS!r}, with dataset_name="
                f"{MICROWORLD!r}, got {self.partner_column!r}"
            )
        source = ("dataset_revision", "train_split", "validation_split")
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            columns = (
                "text_column",
                "more_partner_columns",
                "negative_columns",
                "teacher_columns",
                "keep_rows",
            )
            empty = f.default is dataclasses.MISSING and not value
            if f.name in (*source, "validation_size", *columns, "streaming") and not empty and value != f.default:
                raise ValueError(
                    f"{f.name}={value!r} has no meaning with dataset_name={MICROWORLD!r}, which is generated; "
                    f"leave {f.name} out or name another dataset"
                )


Data: TypeAlias = Dataset | DatasetDict | str | os.PathLike


def source_fields(data: Data | None) -> dict[str, Any]:
    """Fields of `DataArguments` that name `data`; none for None.

    Rows in memory are named by a digest of what they hold, so that the same rows have the same name.
    """
    if data is None:
        return {}
    name = os.fspath(data) if isinstance(data, str | os.PathLike) else in_memory_name(data)
    return {"dataset_name": name, "dataset_config_name": None, "dataset_revision": None}


def rows_in_memory(data: Data | None) -> Dataset | DatasetDict | None:
    """`data` where it is rows, None where it is a name or a path."""
    return data if isinstance(data, Dataset | DatasetDict) else None


def in_memory_name(data: Dataset | DatasetDict) -> str:
    """`IN_MEMORY` and a digest of the rows; ValueError for anything but rows in memory."""
    if not isinstance(data, Dataset | DatasetDict):
        raise ValueError(
            f"data must be a datasets.Dataset or DatasetDict, a Hub id or a path, got {type(data).__name__}"
        )
    digest = hashlib.blake2b(digest_size=8)
    for split, rows in data.items() if isinstance(data, DatasetDict) else [("", data)]:
        digest.update(repr((split, rows.column_names)).encode())
        for batch in rows.with_format(None).iter(1000):
            digest.update(repr(list(batch.values())).encode())
    return f"{IN_MEMORY} {digest.hexdigest()}"


def load_tokenizer(args: DataArguments) -> PreTrainedTokenizerBase:
    """Tokenizer that `args` name, with a mask and a padding token.

    Raises:
        ValueError: no `tokenizer_name` though the corpus is not microworld; it cannot be read; it has no mask token
            or no padding token.
    """
    if args.tokenizer_name is None:
        if args.dataset_name != MICROWORLD:
            raise ValueError(
                f"tokenizer_name is None, which is only possible with dataset_name={MICROWORLD!r}, got "
                f"dataset_name={args.dataset_name!r}; name a tokenizer, for example 'answerdotai/ModernBERT-base'"
            )
        from .microworld import microworld_tokenizer

        return microworld_tokenizer(max_length=args.max_length)
    try:
        tokenizer = read_tokenizer(args.tokenizer_name)
    except OSError as error:
        raise ValueError(
            f"tokenizer_name {args.tokenizer_name!r} is neither a local folder with a tokenizer nor a Hub id that "
            f"can be read: {error}"
        ) from error
    for kind, example in (("mask", "[MASK]"), ("pad", "[PAD]")):
        if getattr(tokenizer, f"{kind}_token_id") is None:
            raise ValueError(
                f"the tokenizer {args.tokenizer_name!r} has no {kind} token, which masked diffusion needs; add one "
                f"with tokenizer.add_special_tokens({{'{kind}_token': '{example}'}}), save it with "
                "tokenizer.save_pretrained(folder) and give that folder as tokenizer_name"
            )
    return tokenizer


def train_tokenizer(
    args: DataArguments, vocab_size: int, output_dir: str | os.PathLike, characters: int | None = None
) -> PreTrainedTokenizerBase:
    """Tokenizer of the kind that `args` name, its vocabulary learned from their training documents, saved in a folder.

    The product with the vocabulary is most of a pretraining step: a small one is what makes a CPU run possible.

    Args:
        args: corpus, `max_train_documents`, and the tokenizer that gives normalisation, splitting, model type and
            special tokens.
        vocab_size: entries of the new vocabulary, special tokens included.
        output_dir: folder to write; must not exist, or be empty.
        characters: that may be in words, the most frequent ones; None: 1,000. In a small vocabulary of a language with
            an alphabet a tenth of that leaves room for words.

    Raises:
        ValueError: characters below 1; the folder holds files; what `load_corpus` and `load_tokenizer` raise; a
            vocabulary too small for the special tokens and the characters.
    """
    if characters is not None and characters < 1:
        raise ValueError(f"characters must be at least 1, got {characters}")
    folder = Path(output_dir)
    check_new(folder)
    corpus = load_corpus(args, "train")
    seed = load_tokenizer(args)
    options = {} if characters is None else {"limit_alphabet": characters}
    try:
        tokenizer = seed.train_new_from_iterator((row["text"] for row in corpus), vocab_size, **options)
    except Exception as error:  # what a tokenizer's trainer raises has no class of its own
        raise ValueError(
            f"a tokenizer like {args.tokenizer_name!r} ({type(seed).__name__}) cannot be learned: "
            f"{' '.join(str(error).split())}; name another tokenizer_name, such as google-bert/bert-base-uncased"
        ) from error
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size} is too small: special tokens and single characters alone are {len(tokenizer)}; "
            "ask for more"
        )
    with disk_trouble_named(folder), whole_folder(folder) as staged:
        tokenizer.save_pretrained(staged)
    return tokenizer


def load_corpus(
    args: DataArguments, split: Split, data: Dataset | DatasetDict | None = None
) -> Dataset | IterableDataset:
    """Texts of the training or validation part of the corpus, in one column `text`; no row is null or blank.

    Held-out share: where the dataset has no `validation_split`, a document is held out when a keyed hash of its text
    falls below `validation_size`. So the two parts are the same whether streamed or not, a text that occurs twice
    is never in both, and the share is met on average, not exactly.

    Limits: `max_train_documents` and `max_validation_documents` draw a random sample without replacement; of a stream
    they take the first ones. Microworld generates that many, 20,000 and 1,000 when they are None.

    Dropped rows are counted in a warning, except for a stream, whose rows are not known ahead.

    Args:
        args: source, limits and seed. `tokenizer_name`, `packing` and `max_length` play no part.
        split: "train" or "validation".
        data: rows in memory, in place of the source that `args` name; a `Dataset` is the training split.

    Raises:
        ValueError: name of no kind of source, or of rows in memory that are not given; split or column not there; a
            column that is not text; no text left; rows in memory that are to be streamed.
        FileNotFoundError: no such file, folder, dataset or revision.
    """
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {', '.join(get_args(Split))}, got {split!r}")
    limit = args.max_train_documents if split == "train" else args.max_validation_documents
    if data is not None and not args.dataset_name.startswith(IN_MEMORY):
        args = dataclasses.replace(args, **source_fields(data))
    if args.dataset_name == MICROWORLD:
        from .microworld import microworld_corpus, microworld_pairs

        generated = microworld_corpus if args.dataset_config_name is None else microworld_pairs
        corpus = generated(split, size=limit or MICROWORLD_DOCUMENTS[split], seed=args.corpus_seed)
        return corpus.select_columns([*args.columns])

    splits = _splits(args, data)
    held_out = args.validation_split not in splits and args.validation_size is not None
    if args.validation_size is not None and not held_out:
        logger.warning(
            "validation_size=%s is not used: %s has a split %r", args.validation_size, args.dataset_name,
            args.validation_split,
        )  # fmt: skip
    name = args.train_split if split == "train" or held_out else args.validation_split
    if name not in splits:
        way_out = "name one with train_split"
        if name == args.validation_split:
            share = "validation_size (such as 0.01) to hold out a share of the training split"
            way_out = f"name one with validation_split, or set {share}"
        raise ValueError(
            f"dataset {args.dataset_name!r} has no split {name!r}. Splits: {', '.join(sorted(splits))}; {way_out}"
        )
    with splits[name].origin.naming():
        corpus = _texts(splits[name], args)
    if held_out:
        rule = {"share": args.validation_size, "seed": args.corpus_seed, "held_out": split == "validation"}
        corpus = _filter(corpus, _is_held_out, args, **rule)
        if is_empty(corpus):
            raise ValueError(
                f"validation_size={args.validation_size} leaves no {split} documents of the split {name!r} of "
                f"{args.dataset_name!r}; choose another share or a larger corpus"
            )
    if limit is None:
        return corpus
    if isinstance(corpus, IterableDataset):
        return corpus.take(limit)
    return corpus.shuffle(seed=args.corpus_seed).select(range(limit)) if limit < len(corpus) else corpus


def load_pretraining_data(
    args: DataArguments, tokenizer: PreTrainedTokenizerBase, data: Dataset | DatasetDict | None = None
) -> tuple[Dataset | IterableDataset, Dataset | IterableDataset]:
    """Tokenised training and validation examples `{"input_ids": (n,) int64}`, arrays of at most `max_length` ids.

    packed: all documents of a part are tokenised without special tokens and joined as `doc [SEP] doc [SEP] ...`; that
    stream is cut every `max_length - 1` tokens and each piece gets [CLS] in front. So every example is exactly
    `max_length` long and begins with [CLS], a document may begin and end anywhere, and nothing is lost but the
    last incomplete piece. BOS and EOS stand in for [CLS] and [SEP] where a tokenizer lacks these; without
    either of [CLS] and BOS a piece is `max_length` tokens of the stream. The result is the same for any number of
    workers.

    truncated: one example per document, `[CLS] text [SEP]` as the tokenizer's own template has it, the text cut so
    that the whole is at most `max_length` long.

    In both, a text's own "[MASK]" or "[SEP]" is read as plain characters, and documents without tokens are dropped.

    Not streaming: examples are memory-mapped from datasets' cache (microworld's: in memory), in corpus order; the
    Trainer shuffles them. Under `torch.distributed` the main process builds the cache and the others then read it, so
    build TrainingArguments, which sets the process group up, first, and give it a `ddp_timeout` longer than the work
    takes.
    Streaming: training documents are shuffled by `corpus_seed` in a buffer of 10,000 before they are packed, in
    another order each epoch through `set_epoch`. Resuming must read the stream from its start, as the Trainer does:
    the state of the packing is not in `state_dict`.

    Raises:
        ValueError: what `load_corpus` raises; `max_length` above the tokenizer's; no separator token to pack with; too
            few tokens for one packed block, or no document with any token.
    """
    if args.max_length > tokenizer.model_max_length:
        raise ValueError(
            f"max_length ({args.max_length}) is larger than the tokenizer's model_max_length "
            f"({tokenizer.model_max_length}); lower the first, or raise the second in the tokenizer's folder"
        )
    if args.packing == "packed" and _separator_token_id(tokenizer) is None:
        raise ValueError(
            f"packing='packed' needs a token between documents and the tokenizer {tokenizer.name_or_path!r} has "
            "neither a sep nor an eos token; add one with tokenizer.add_special_tokens({'sep_token': '[SEP]'}), "
            "or set packing='truncated'"
        )
    with PartialState().main_process_first():
        corpora = {split: load_corpus(args, split, data) for split in get_args(Split)}
        examples = {split: _encode(corpus, args, tokenizer) for split, corpus in corpora.items()}
        for split, encoded in examples.items():
            if is_empty(encoded):
                wanted = f"{args.max_length} tokens for one packed block" if args.packing == "packed" else "one token"
                raise ValueError(
                    f"the {split} part of {args.dataset_name!r} has fewer than {wanted}; give it more text"
                    + (", lower max_length or set packing='truncated'" if args.packing == "packed" else "")
                )
        if isinstance(corpora["train"], IterableDataset):
            shuffled = corpora["train"].shuffle(seed=args.corpus_seed, buffer_size=STREAM_SHUFFLE_BUFFER)
            examples["train"] = _encode(shuffled, args, tokenizer)
    # Arrays straight from the memory map: lists of numbers cost more than all else that is done to a batch.
    return examples["train"].with_format("numpy"), examples["validation"].with_format("numpy")


def _splits(args: DataArguments, data: Dataset | DatasetDict | None) -> dict[str, Table]:
    if data is None:
        if args.dataset_name.startswith(IN_MEMORY):
            raise ValueError(
                f"dataset_name {args.dataset_name!r} names rows that were in memory; give them again, as data=..."
            )
        return open_tables(args.dataset_name, args.dataset_config_name, args.dataset_revision, args.streaming)
    if args.streaming:
        raise ValueError("streaming=True reads from a source, and data are rows in memory; leave streaming out")
    return open_tables(data if isinstance(data, DatasetDict) else {args.train_split: data})


def _texts(table: Table, args: DataArguments) -> Rows:
    """The columns asked for, named by role, without rows in which a text is null or blank."""
    columns = {column: role for role, column in args.columns.items()}
    for column, role in columns.items():
        table.check_texts(column, _field(role))
    vectors = {column: name for name, column in args.vectors.items()}
    for column in vectors:
        table.check_vectors(column, "teacher_columns")
    rows = table.rows
    if args.keep_rows is not None:
        rows = _filter(rows, meets_rule, args, **table.rule(args.keep_rows))
        if is_empty(rows):
            raise ValueError(f"keep_rows={args.keep_rows!r} keeps no row of {table.origin.name}")
    rows = rows.select_columns([*columns, *vectors])
    kept = _filter(rows, _have_texts, args, columns=columns, origin=table.origin)
    named = " or ".join(map(repr, columns))
    if is_empty(kept):
        raise ValueError(f"no row of {table.origin.name} holds text in column {named}: all are null or blank")
    if isinstance(rows, Dataset) and len(kept) < len(rows):
        logger.warning(
            "dropped %d of %d rows of %s: null or blank in column %s",
            len(rows) - len(kept), len(rows), table.origin.name, named,
        )  # fmt: skip
    return kept.rename_columns({old: new for old, new in (columns | vectors).items() if old != new})


def _field(role: str) -> str:
    """Of the arguments, the one that names a role's column."""
    if role.startswith(NEGATIVE):
        return "negative_columns"
    return f"{role}_column" if role in (TEXT, PARTNER) else "more_partner_columns"


def _have_texts(batch: dict[str, list], indices: list[int], columns: dict[str, str], origin: Origin) -> list[bool]:
    """Which rows hold text in every column; ValueError for what is neither text nor null, as a stream may hold."""
    for column, role in columns.items():
        for row, text in zip(indices, batch[column], strict=True):
            origin.check_text(row, column, _field(role), text)
    texts = (batch[column] for column in columns)
    return [all(text is not None and text.strip() != "" for text in row) for row in zip(*texts, strict=True)]


def _filter(rows: Rows, function: Callable, args: DataArguments, **options: Any) -> Rows:
    """By a function of a batch and its row numbers."""
    workers = {} if isinstance(rows, IterableDataset) else {"num_proc": args.preprocessing_num_workers}
    return rows.filter(function, batched=True, with_indices=True, fn_kwargs=options, **workers)


def _is_held_out(
    batch: dict[str, list[str]], indices: list[int], share: float, seed: int, held_out: bool
) -> list[bool]:
    key = str(seed).encode()
    digests = (hashlib.blake2b(text.encode(), digest_size=8, key=key).digest() for text in batch["text"])
    return [(int.from_bytes(digest, "big") < share * 2**64) == held_out for digest in digests]


def _separator_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    return tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id


def _first_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    return tokenizer.bos_token_id if tokenizer.cls_token_id is None else tokenizer.cls_token_id


def _encode(corpus: Dataset | IterableDataset, args: DataArguments, tokenizer: PreTrainedTokenizerBase):
    """Texts to examples; two passes when packing, so that the joints do not depend on the number of workers."""
    workers = {} if isinstance(corpus, IterableDataset) else {"num_proc": args.preprocessing_num_workers}
    options = {
        # A copy: tokenising leaves truncation settings behind, which save_pretrained would write down.
        "tokenizer": copy.deepcopy(tokenizer),
        "max_length": args.max_length if args.packing == "truncated" else None,
        "format_version": _FORMAT_VERSION,
    }
    texts = list(args.columns)
    features = Features({id_column(role): List(Value("int32")) for role in texts})
    if args.vectors:
        assert corpus.features is not None
        # Vectors stay in Arrow: as Python lists they would cost more than tokenising.
        encoded = corpus.with_format("arrow").map(
            _tokenize_with_vectors,
            batched=True,
            fn_kwargs={"texts": texts, **options},
            remove_columns=texts,
            features=Features({**features, **{name: corpus.features[name] for name in args.vectors}}),
            **workers,
        )
        return encoded.with_format(None)
    encoded = corpus.map(
        _tokenize, batched=True, fn_kwargs=options, remove_columns=texts, features=features, **workers
    )
    if args.packing == "truncated":
        return encoded
    packer = _Packer(args.max_length, _first_token_id(tokenizer))
    # A table that comes out takes the place of the one that went in: there is no column to remove.
    blocks = encoded.with_format("arrow").map(packer, batched=True, with_indices=True, features=_IDS)
    return blocks.with_format(None)


def _tokenize(
    batch: dict[str, list[str]], tokenizer: PreTrainedTokenizerBase, max_length: int | None, format_version: int
) -> dict[str, list[list[int]]]:
    """`[CLS] text [SEP]` cut to `max_length`; with None: all of `text [SEP]`. A row without any token is dropped."""
    encoded, kept = _token_ids(batch, tokenizer, max_length)
    separator = _separator_token_id(tokenizer)
    ending = [] if max_length is not None or separator is None else [separator]
    return {column: [[*row, *ending] for row in compress(rows, kept)] for column, rows in encoded.items()}


def _tokenize_with_vectors(table: pa.Table, texts: list[str], tokenizer, max_length: int, format_version: int):
    """As `_tokenize`, of the texts, with the other columns of the rows that are kept."""
    encoded, kept = _token_ids({role: table[role].to_pylist() for role in texts}, tokenizer, max_length)
    others = table.drop_columns(texts).filter(pa.array(kept))
    ids = [pa.array(list(compress(rows, kept)), pa.list_(pa.int32())) for rows in encoded.values()]
    return pa.table([*ids, *others.columns], names=[*encoded, *others.column_names])


def _token_ids(
    batch: dict[str, list[str]], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> tuple[dict[str, list[list[int]]], list[bool]]:
    """Ids of the texts of each role, and whether a row has a token in all of them."""
    truncated = max_length is not None
    encoded = {
        id_column(role): tokenizer(
            texts,
            add_special_tokens=truncated,
            truncation=truncated,
            max_length=max_length,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # longer than the model on purpose: the blocks are cut afterwards
        )["input_ids"]
        for role, texts in batch.items()
    }
    specials = tokenizer.num_special_tokens_to_add() if truncated else 0
    return encoded, [all(len(row) > specials for row in rows) for rows in zip(*encoded.values(), strict=True)]


class _Packer:
    """Cuts the joined rows into blocks of `max_length`; what is left over begins the next batch's first block."""

    def __init__(self, max_length: int, first_token_id: int | None) -> None:
        self.format_version = _FORMAT_VERSION
        self.first_token_id = first_token_id
        self.piece = max_length - (first_token_id is not None)
        self.rest = np.empty(0, np.int32)
        self.next_index = 0

    def __call__(self, rows: pa.Table, indices: list[int]) -> pa.Table:
        if indices[0] != self.next_index:  # a stream that starts again, in the next epoch or another process
            self.rest = self.rest[:0]
        self.next_index = indices[-1] + 1
        ids = pa.concat_arrays(rows["input_ids"].chunks).flatten()
        stream = np.concatenate([self.rest, ids.to_numpy(zero_copy_only=False)])
        count = len(stream) // self.piece
        blocks = stream[: count * self.piece].reshape(count, self.piece)
        self.rest = stream[count * self.piece :]
        if self.first_token_id is not None:
            blocks = np.insert(blocks, 0, self.first_token_id, axis=1)
        offsets = np.arange(count + 1, dtype=np.int32) * blocks.shape[1]
        return pa.table({"input_ids": pa.ListArray.from_arrays(offsets, blocks.ravel().astype(np.int32))})
