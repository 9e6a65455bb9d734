"""Tables of texts and labels from the Hub, folders, files or memory: one door for training and judging, which names
file, row and column of what is wrong with them.

Rows are counted from 1, without the header of a CSV file. A CSV file holds texts: nothing in it is taken for a number,
a date or a missing value unless a number is asked for.
"""

import bz2
import csv
import glob
import gzip
import hashlib
import json
import logging
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import (
    ClassLabel,
    Dataset,
    DatasetBuilder,
    Features,
    IterableDataset,
    Value,
    load_dataset_builder,
)
from datasets.config import HF_DATASETS_CACHE
from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns
from datasets.exceptions import DatasetsError
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

from ...utils.files import at_home
from ...utils.untrusted import inside, parse_yaml

logger = logging.getLogger(__name__)
FILE_MODULES = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".txt": "text"}
MODULES = ("arrow", "csv", "json", "parquet", "text")  # of datasets: those that read tables, and run nothing
PARQUET_REVISION = "refs/convert/parquet"  # branch on which the Hub exports every dataset
UNLABELLED = -1  # what the Hub's test splits hold where the labels are hidden
Rows: TypeAlias = Dataset | IterableDataset
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_OPENERS: Mapping[str, Callable] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_BROKEN = (
    *(ValueError, TypeError, KeyError, StopIteration, EOFError, RecursionError, OverflowError),
    *(DatasetsError, pa.ArrowException, zlib.error, lzma.LZMAError, gzip.BadGzipFile),
)


@dataclass(frozen=True)
class Origin:
    """Where the rows of a split came from."""

    name: str
    """of the split, as messages have it"""
    files: tuple[Path, ...] = ()
    """on this machine, in the order of the rows; none of a Hub id or of data in memory"""

    def place(self, row: int) -> str:
        """File and row, or split and row, of a row counted from 0."""
        if len(self.files) == 1:
            return f"row {row + 1} of {self.files[0]}"
        before = 0
        for file in self.files:
            count = _count_rows(file)
            if row < before + count:
                return f"row {row - before + 1} of {file}"
            before += count
        return f"row {row + 1} of {self.name}"

    @contextmanager
    def naming(self) -> Iterator[None]:
        """What breaks while rows are read inside of this is named by file and row, if it is a file's fault."""
        try:
            yield
        except _BROKEN as error:
            fault = _first_fault(self.files)
            if fault is None:
                raise
            raise ValueError(fault) from error

    def check_text(self, row: int, column: str, role: str, value: Any, null: bool = True) -> None:
        """ValueError unless the value in that row of the column is a text, or null where that is allowed."""
        if isinstance(value, str) or (null and value is None):
            return
        got = "nothing" if value is None else _short(repr(value))
        raise ValueError(f"{self.place(row)}: {role} {column!r} must hold a text, got {got}")


@dataclass(frozen=True)
class Table:
    """The rows of one split."""

    rows: Rows
    origin: Origin

    @property
    def columns(self) -> list[str]:
        # A stream without a schema tells its columns by its first row.
        return self.rows.column_names or list(next(iter(self.rows), {}))

    def check_column(self, column: str, role: str) -> None:
        """ValueError where the column is not there; `role` is what it is for."""
        if not self.columns or is_empty(self.rows):
            raise ValueError(f"{self.origin.name} is empty")
        if column not in self.columns:
            raise ValueError(f"{role} {column!r} is not in {self.origin.name}. Columns: {', '.join(self.columns)}")

    def check_texts(self, column: str, role: str, null: bool = True) -> None:
        """`check_column`, and of every row `Origin.check_text`; the rows of a stream are left to who reads them."""
        self.check_column(column, role)
        kind = getattr((self.rows.features or {}).get(column), "dtype", None)
        if isinstance(self.rows, IterableDataset) or (null and kind in ("string", "large_string", "null")):
            return
        for row, value in enumerate(self.rows[column]):
            self.origin.check_text(row, column, role, value, null)

    def check_vectors(self, column: str, role: str) -> None:
        """`check_column`, and that every row holds as many finite numbers, none of them null; those of a stream are
        left to who reads them, but for their type."""
        self.check_column(column, role)
        kind = (self.rows.features or {}).get(column)
        number = getattr(getattr(kind, "feature", None), "dtype", None)
        if number not in ("float16", "float32", "float64"):
            raise ValueError(f"{role}: column {column!r} of {self.origin.name} must hold lists of numbers, got {kind}")
        if isinstance(self.rows, IterableDataset):
            return
        start, size = 0, None
        for part in self.rows.select_columns([column]).with_format("arrow").iter(10_000):
            vectors = part[column].combine_chunks()
            sizes = set(pc.list_value_length(vectors).to_pylist())
            size = next(iter(sizes)) if size is None else size
            numbers = np.asarray(vectors.flatten(), dtype=np.float32)
            if sizes != {size} or not size or not np.isfinite(numbers).all():
                raise ValueError(
                    f"{role}: column {column!r} of {self.origin.name} must hold as many finite numbers in every row; "
                    f"rows {start} to {start + len(part) - 1} do not"
                )
            start += len(part)

    def rule(self, text: str) -> dict[str, Any]:
        """A rule such as label=0 or label>=4 as arguments of `meets_rule`.

        Numbers are compared as numbers, true and false are written so, a class by its number or its name.

        Raises:
            ValueError: no such rule, or column.
        """
        column, relation, wanted = read_rule(text)
        self.check_column(column, f"keep_rows={text!r}: the column")
        kind = (self.rows.features or {}).get(column)
        if isinstance(kind, ClassLabel) and wanted in kind.names:
            wanted = str(kind.str2int(wanted))
        return {"column": column, "relation": relation, "wanted": wanted, "origin": self.origin}

    def labels(self, column: str, num_labels: int | None) -> np.ndarray:
        """Labels of every row.

        Args:
            column: holds numbers, or texts that are plainly numbers.
            num_labels: classes; None for values.

        Returns:
            (n,) int64 class ids below `num_labels`, or float32 values.

        Raises:
            ValueError: rows without a label, or with one that is no class id or no finite number.
        """
        self.check_column(column, "label_column")
        wanted = "a finite number" if num_labels is None else f"a class id 0 to {num_labels - 1}"
        numbers = []
        for row, value in enumerate(self.rows[column][:]):
            number = _as_number(value)
            if number not in (None, UNLABELLED) and not _is_label(number, num_labels):
                is_comma = "," in str(value) and _NUMBER.fullmatch(str(value).replace(",", ".", 1))
                hint = "; write it with a point" if is_comma else ""
                got = _short(repr(value))
                raise ValueError(
                    f"{self.origin.place(row)}: label_column {column!r} must hold {wanted}, got {got}{hint}"
                )
            numbers.append(number)
        hidden: tuple = (None, UNLABELLED)
        if num_labels is None and any(number < 0 for number in numbers if number not in hidden):
            hidden = (None,)  # -1 is a value like the other negative ones
        without = [row for row, number in enumerate(numbers) if number in hidden]
        if without:
            raise ValueError(
                f"{len(without)} of {len(numbers)} rows have no label (null or {UNLABELLED}), the first is "
                f"{self.origin.place(without[0])}; test splits hide theirs, use a labelled split"
                + (f", or add 1 to every label where {UNLABELLED} is a value" if num_labels is None else "")
            )
        return np.asarray(numbers, dtype=np.float32 if num_labels is None else np.int64)


def check_varied(labels: Sequence[float] | np.ndarray) -> None:
    """ValueError where all labels are the same, so that there is nothing to learn, and no correlation."""
    if np.ptp(labels) == 0:
        raise ValueError(f"every label is {labels[0]:g}; give rows of at least two different labels")


def is_empty(rows: Rows) -> bool:
    return len(rows) == 0 if isinstance(rows, Dataset) else next(iter(rows), None) is None


def read_rule(rule: str) -> tuple[str, str, str]:
    """Column, relation and value of a rule such as label>=4; ValueError for any other text."""
    parts = re.fullmatch(r"(\w+)(>?=)(.+)", rule)
    if parts is None or (parts[2] == ">=" and not _NUMBER.fullmatch(parts[3])):
        raise ValueError(
            f"keep_rows must be column=value or column>=number, such as label=0 or label>=4, got {rule!r}"
        )
    return parts[1], parts[2], parts[3]


def meets_rule(
    batch: dict[str, list], indices: list[int], column: str, relation: str, wanted: str, origin: Origin
) -> list[bool]:
    """Which rows of a batch a rule keeps; ValueError for a row that it does not fit."""
    kept = []
    for row, value in zip(indices, batch[column], strict=True):
        try:
            kept.append(_meets(value, relation, wanted))
        except ValueError as error:
            raise ValueError(f"{origin.place(row)}: keep_rows={column}{relation}{wanted}: {error}") from None
    return kept


def _meets(value: Any, relation: str, wanted: str) -> bool:
    """Whether a value of a row meets a rule; ValueError for a kind of value that has no such relation."""
    if value is None:
        return False
    if isinstance(value, bool):
        if relation == "=" and wanted.lower() in ("true", "false"):
            return value == (wanted.lower() == "true")
        raise ValueError(f"the column holds true and false, such as {value!r}; write =true or =false")
    if isinstance(value, str) and relation == "=":
        return value == wanted
    number = _as_number(value)
    if isinstance(value, int | float) or isinstance(number, float):
        if not _NUMBER.fullmatch(wanted):
            raise ValueError(f"the column holds numbers, such as {value!r}; compare it with a number")
        return number is not None and (number == float(wanted) if relation == "=" else number >= float(wanted))
    kinds = "numbers" if relation == ">=" else "numbers, texts, true and false"
    raise ValueError(f"only {kinds} can be compared so, got {_short(repr(value))}")


def _as_number(value: Any) -> Any:
    """A number as it is, or of a text that is plainly one; None for null, NaN and a blank text; else the value."""
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return float(value)
    return value


def _is_label(number: Any, num_labels: int | None) -> bool:
    if isinstance(number, bool) or not isinstance(number, int | float):
        return False
    if num_labels is None:
        return bool(abs(number) <= np.finfo(np.float32).max)
    return 0 <= number < num_labels and number == int(number)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


# ------------------------------------------------------------------------------------------------------------- opening


def open_tables(
    source: str | os.PathLike | Rows | Mapping[str, Rows],
    config: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    field: str = "dataset_name",
) -> dict[str, Table]:
    """Every split of a source, by name.

    Args:
        source: Hub id, folder, file or glob, `hf://` too, or data in memory: one split, which is "train", or several
            by name.
        config: of a Hub id or folder; None is its default one.
        revision: of a Hub id.
        streaming: read while iterating.
        field: what the user calls the source, for messages.

    Raises:
        ValueError: name of no kind of source; files that are broken, ragged, differ in their columns, or are outside
            the folder; a format that is no table.
        FileNotFoundError, PermissionError, ConnectionError: as `datasets` raises them.
    """
    if isinstance(source, Dataset | IterableDataset):
        source = {"train": source}
    if isinstance(source, Mapping):
        return {
            split: Table(rows, Origin(f"the split {split!r} of the data in memory")) for split, rows in source.items()
        }
    name = at_home(source)
    path, files = Path(name), []
    if name.startswith("hf://") and path.suffix in FILE_MODULES:
        files = [path]
    elif not path.is_dir() and path.suffix in FILE_MODULES:
        files = [path] if path.is_file() else sorted(Path(each) for each in glob.glob(name, recursive=True))
        if not files:
            raise FileNotFoundError(f"{field} {name!r}: there is no such file")
    elif not path.is_dir() and not _HUB_ID.fullmatch(name):
        raise ValueError(
            f"{field} must be 'microworld', a Hub id 'namespace/name', an existing folder, or a file or glob "
            f"ending in {', '.join(FILE_MODULES)}, got {name!r}; what a run records of a "
            "folder elsewhere is its name alone"
        )
    if revision is not None and (files or path.is_dir()):
        raise ValueError(f"dataset_revision={revision!r} needs a Hub id, but {field}={name!r} is local")
    if config is not None and files:
        raise ValueError(f"dataset_config_name={config!r} needs a dataset, but {field}={name!r} is a file")
    origins: dict[str, tuple[Path, ...]] = {}
    with _naming(name, origins):
        if name.startswith("hf://"):
            builder = load_dataset_builder(FILE_MODULES[path.suffix], data_files=name)
        elif files:
            module, options = FILE_MODULES[path.suffix], {"data_files": _escaped(files)}
            builder = _with_texts(load_dataset_builder(module, **options), module, **options)
        elif path.is_dir():
            builder = _folder_builder(path, config)
        else:
            builder = _hub_builder(name, config, revision)
        if path.is_dir() or (files and not name.startswith("hf://")):
            origins |= {split: tuple(map(Path, found)) for split, found in (builder.config.data_files or {}).items()}
        if streaming:
            splits = builder.as_streaming_dataset()
        else:
            builder.download_and_prepare()
            splits = builder.as_dataset()
    return {
        split: Table(rows, Origin(f"the split {split!r} of {name!r}", origins.get(split, ())))
        for split, rows in splits.items()
    }


@contextmanager
def _naming(name: str, origins: Mapping[str, Sequence[Path]]) -> Iterator[None]:
    """Errors of a source that is read inside of this become a ValueError that names the source, and file and row."""
    try:
        yield
    except EmptyDatasetError as error:
        raise ValueError(f"{name!r} holds no data files; put <config>/<split>*.parquet files there") from error
    except FileNotFoundError:
        raise
    except _BROKEN as error:  # a StopIteration is an empty .json
        reason = _first_fault([file for files in origins.values() for file in files])
        reason = reason or (isinstance(error, DatasetsError) and error.__cause__) or str(error) or "no rows"
        raise ValueError(f"dataset {name!r} cannot be read or is empty: {' '.join(str(reason).split())}") from error


def resolve_dataset_id(dataset_id: str) -> str:
    """Canonical `owner/name` of an old one-word Hub id, which `datasets` refuses; others and folders unchanged."""
    if "/" in dataset_id or Path(dataset_id).is_dir() or Path(dataset_id).suffix in FILE_MODULES:
        return dataset_id
    try:
        return HfApi().dataset_info(dataset_id).id
    except RepositoryNotFoundError as error:
        raise ValueError(f"Unknown dataset {dataset_id!r}: give a Hub id as owner/name, or a local folder") from error


def _folder_builder(folder: Path, config: str | None) -> DatasetBuilder:
    """Of a local folder, whose card may name nothing outside it."""
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        raise ValueError("save_to_disk wrote it; write each split with to_parquet instead")
    cards = [card for name in ("README.md", ".huggingface.yaml") if (card := _read_card(folder, name))]
    options: dict[str, Any] = {}
    if glob.has_magic(str(folder.resolve())):  # datasets would take the folder's own name for a pattern
        if any("configs" in card for card in cards):
            raise ValueError("a folder with a card that names files can have none of * ? [ in its path; rename it")
        base = glob.escape(str(folder.resolve()))
        found = DataFilesDict.from_patterns(get_data_patterns(base), base_path=base)
        options["data_files"] = {split: _escaped(files) for split, files in found.items()}
    if any("configs" in card for card in cards):
        # Of files that a card names, datasets knows a copy by the folder's last name: it would answer with those of
        # another folder, or of this one before they were changed.
        options["cache_dir"] = str(Path(HF_DATASETS_CACHE, "folders", _state_of(folder)))
    try:
        builder = load_dataset_builder(str(folder), config, **options)
    except RuntimeError as error:
        raise ValueError(f"{_script_found(error)}; put <config>/<split>*.parquet files there") from error
    files = [Path(file) for found in (builder.config.data_files or {}).values() for file in found]
    for file in files:
        inside(folder, str(file))
    _check_module(builder)
    if not any("configs" in card for card in cards):
        read = {file.resolve() for file in files}
        others = [path for path in folder.rglob("*") if path.suffix in FILE_MODULES and path.resolve() not in read]
        if others:
            logger.warning(
                "%s: read as %s, without %d of its files, such as %s; name those by a glob, or give them a folder",
                folder, builder.name, len(others), min(others).name,
            )  # fmt: skip
    return _with_texts(builder, str(folder), config, **options)


def _with_texts(builder: DatasetBuilder, *source: str | None, **options: Any) -> DatasetBuilder:
    """Of such a source; a CSV is checked, and its cells are texts, "NA" and "1" too."""
    if builder.name != "csv":
        return builder
    files = [Path(file) for found in builder.config.data_files.values() for file in found]
    features = Features(dict.fromkeys(_check_csv(files, builder.config.sep), Value("string")))
    return load_dataset_builder(*source, **options, features=features, keep_default_na=False)


def _state_of(folder: Path) -> str:
    """Digest of where a folder is and which files it has, by their sizes and times."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    facts = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((str(folder.resolve()), facts)).encode()).hexdigest()[:16]


def _hub_builder(name: str, config: str | None, revision: str | None) -> DatasetBuilder:
    """Of a Hub id, or of its export where it holds no tables itself."""
    try:
        builder = load_dataset_builder(name, config, revision=revision)
        for file in (each for found in (builder.config.data_files or {}).values() for each in found):
            if not file.startswith("hf://datasets/"):
                raise ValueError(f"its card names {file!r}, which is not a file on the Hub")
        return _check_module(builder)
    except EmptyDatasetError:
        reason = "it holds no data files"
    except RuntimeError as error:
        reason = _script_found(error)
    folder = config or "default"
    try:
        tree = HfApi().list_repo_tree(name, folder, recursive=True, revision=PARQUET_REVISION, repo_type="dataset")
        found = [entry.path for entry in tree if entry.path.endswith(".parquet")]
    except (RevisionNotFoundError, EntryNotFoundError) as error:
        raise ValueError(f"{reason}, and {PARQUET_REVISION} has no {folder} to use instead") from error
    # Not the id with revision=...: that caches under the id, and datasets would answer the next call for the id itself
    # from there.
    root = f"hf://datasets/{name}@{quote(PARQUET_REVISION, safe='')}"
    splits = {
        split: [f"{root}/{file}" for file in found if file.split("/")[-2] == split]
        for split in dict.fromkeys(file.split("/")[-2] for file in found)
    }
    return load_dataset_builder("parquet", data_files=splits)


def _script_found(error: RuntimeError) -> str:
    """What it says of a loading script; any other RuntimeError passes."""
    if "Dataset scripts are no longer supported" not in str(error):  # datasets has no class of its own for this
        raise error
    return "it holds a loading script, which datasets no longer runs"


def _check_module(builder: DatasetBuilder) -> DatasetBuilder:
    if builder.name not in MODULES:
        raise ValueError(f"its files are of the kind {builder.name!r}; tables are of {', '.join(MODULES)}")
    return builder


def _escaped(files: Sequence[str | Path]) -> list[str]:
    """As patterns that mean these files."""
    return [glob.escape(os.path.abspath(file)) for file in files]


def _read_card(folder: Path, name: str) -> dict[str, Any]:
    """The settings in a card, read before `datasets` reads them; ValueError where they name something elsewhere."""
    path = folder / name
    if not path.is_file():
        return {}
    text = inside(folder, name).read_text(encoding="utf-8")
    if name.endswith(".md"):
        begin = text.lstrip()
        text = re.split(r"^---[ \t]*$", begin, maxsplit=2, flags=re.MULTILINE)[1] if begin.startswith("---") else ""
    try:
        settings = parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(settings, dict):
        return {}
    waiting = [settings.get("configs")]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            waiting += [each.get(key) for key in ("data_files", "path", "data_dir")]
        elif isinstance(each, list | tuple):
            waiting += each
        elif isinstance(each, str):
            if "://" in each or "::" in each:
                raise ValueError(f"{path}: {each!r} leads out of {folder}; put the file itself into the folder")
            inside(folder, each)
    return settings


# --------------------------------------------------------------------------------------------------------------- files


def _kind(path: Path) -> str:
    """Suffix of a table without that of its compression."""
    return Path(path.stem).suffix if path.suffix in _OPENERS else path.suffix


def _lines(path: Path) -> Iterator[str]:
    """Lines of a file, plain or compressed; ValueError for one that is not UTF-8."""
    with _OPENERS.get(path.suffix, open)(path, "rb") as file:
        try:
            for number, line in enumerate(file, start=1):
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise ValueError(
                        f"line {number} of {path} is not UTF-8 ({error.reason}); save it as UTF-8"
                    ) from error
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is broken: {error}; fetch or write it again") from error


def _csv_rows(path: Path, separator: str) -> Iterator[list[str]]:
    """Header and rows; ValueError for rows of another number of fields than the header's."""
    csv.field_size_limit(2**31 - 1)
    reader, header, row = csv.reader(_lines(path), delimiter=separator, strict=True), None, 0
    try:
        for row, fields in enumerate(filter(None, reader)):
            header = header or fields
            if len(fields) != len(header):
                raise ValueError(f"row {row} of {path} has {len(fields)} fields, its header has {len(header)}")
            yield fields
    except csv.Error as error:
        raise ValueError(f"row {row + 1} of {path} is not CSV: {error}") from error


def _check_csv(files: Sequence[Path], separator: str) -> list[str]:
    """Columns of CSV files, which are the same in all of them."""
    first: list[str] = []
    for file in files:
        rows = _csv_rows(file, separator)
        header = [name or f"Unnamed: {place}" for place, name in enumerate(next(rows, []))]
        if not header:
            raise ValueError(f"{file} is empty")
        twice = sorted(name for name in set(header) if header.count(name) > 1)
        if twice:
            raise ValueError(f"{file} has the column {twice[0]!r} twice; rename one")
        first = first or header
        _check_columns(header, file, first, files[0])
        for _ in rows:
            pass
    return first


def _check_columns(columns: Sequence[str], file: Path, first: Sequence[str], first_file: Path) -> None:
    if set(columns) != set(first):
        other = f"{first_file} has {', '.join(first)}"
        raise ValueError(f"{file} has the columns {', '.join(columns)}, {other}; give all files the same")


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a file of lines, or of one list; ValueError for what is none."""
    if _kind(path) == ".json" and (text := "".join(_lines(path))).lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        numbered: Iterable[tuple[int, Any]] = enumerate(rows, start=1)
    else:
        numbered = ((number, line) for number, line in enumerate(filter(str.strip, _lines(path)), start=1))
    for number, row in numbered:
        try:
            value = json.loads(row) if isinstance(row, str) else row
        except (ValueError, RecursionError) as error:
            raise ValueError(f"row {number} of {path} is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise ValueError(f"row {number} of {path} must be an object of columns, got {_short(repr(value))}")
        yield value


def _count_rows(path: Path) -> int:
    kind = _kind(path)
    if kind == ".parquet":
        return pq.read_metadata(path).num_rows
    if kind in (".csv", ".tsv"):
        return sum(1 for _ in _csv_rows(path, "\t" if kind == ".tsv" else ",")) - 1
    return sum(1 for _ in (_json_rows if "json" in kind else _lines)(path))


def _first_fault(files: Sequence[Path]) -> str | None:
    """What is wrong with the first of these files that cannot be read, or differs from the first; None: nothing."""
    first: dict[str, Any] = {}
    for file in files:
        try:
            schema: dict[str, Any] = {}
            if _kind(file) == ".parquet":
                schema = {field.name: field.type for field in pq.read_schema(file)}
            elif "json" in _kind(file):
                for number, row in enumerate(_json_rows(file), start=1):
                    for column, value in row.items():
                        kind = "a number" if isinstance(value, int | float) else f"a {type(value).__name__}"
                        was = schema.setdefault(column, kind if value is not None else None)
                        if None not in (was, value) and was != kind:
                            return f"row {number} of {file}: column {column!r} holds {kind}, before it {was}"
            else:
                for _ in _lines(file):
                    pass
            first = first or schema
            _check_columns(list(schema), file, list(first), files[0])
            for column, kind in schema.items():
                if None not in (kind, first[column]) and kind != first[column]:
                    return f"{file}: column {column!r} holds {kind}, in {files[0]} {first[column]}"
        except OSError as error:
            return f"{file} is broken: {error}"
        except _BROKEN as error:
            return str(error) if str(file) in str(error) else f"{file} is broken: {error}"
    return None
