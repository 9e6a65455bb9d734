"""Registry of the benchmarks: one row per task, their loading in one normal form, and their chance levels."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
from datasets import Dataset, DatasetDict, Value, load_dataset
from datasets.data_files import EmptyDatasetError
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

from ...trainers.data.corpora import MICROWORLD, in_memory_name
from ...trainers.data.microworld import microworld_task
from ...utils.untrusted import read_yaml
from ..metrics.benchmark_score import TASK_METRICS

MICROWORLD_SIZES = {"train": 4000, "validation": 1000}
PARQUET_REVISION = "refs/convert/parquet"  # branch on which the Hub exports every dataset
NAME = r"[a-z][a-z0-9_]*"  # of a task, and so of its files
UNLABELLED = -1  # what GLUE writes where the labels are hidden

CHANCE_RULES = {
    "accuracy": "majority class",
    "f1": "all positive",
    "pearson": "constant prediction",
    "spearman": "constant prediction",
    "matthews_correlation": "constant prediction",
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task: where its data is, what its columns mean, how it is scored.

        Task(name="mine", data=splits, sentence_columns=("text",), num_labels=4, like="mnli_matched")

    Raises:
        ValueError: a name that cannot be a file's, no data or two sources of them, no metrics, a kind of label that
            the metrics cannot score.
    """

    name: str
    """key in `BENCHMARKS`, and in `TASK_METRICS` unless it is `like` another"""
    dataset_id: str = ""
    """Hub id (an old one-word id is resolved), local folder, or "microworld" for the embedded tasks"""
    data: DatasetDict | None = field(default=None, repr=False, compare=False)
    """the splits themselves, in memory, in place of `dataset_id`, which then says their digest"""
    config: str | None = None
    """dataset configuration; None where the dataset has one only"""
    train_split: str = "train"
    validation_split: str = "validation"
    validation_config: str | None = None
    """configuration of the validation split; None: that of the training split"""
    sentence_columns: tuple[str, ...] = ("sentence1", "sentence2")
    """one column, or two for sentence pairs"""
    label_column: str = "label"
    problem_type: Literal["single_label_classification", "regression"] = "single_label_classification"
    num_labels: int = 2
    """classes; 1 for regression"""
    greater_is_better: bool = True
    """direction of the primary metric"""
    head: str = "ConceptEncoderForSequenceClassificationPerceiver"
    """model class that is fine-tuned"""
    licence: str = "not stated"
    notes: str = ""
    like: str | None = None
    """the task whose metrics a user's own one has"""

    def __post_init__(self):
        if not re.fullmatch(NAME, self.name):
            raise ValueError(f"a task's name must be small letters, digits and _, got {self.name!r}")
        if self.data is not None and self.dataset_id in ("", in_memory_name(self.data)):
            object.__setattr__(self, "dataset_id", in_memory_name(self.data))
        elif self.data is not None or not self.dataset_id:
            raise ValueError(f"Task {self.name} needs either data or a dataset_id, got {self.dataset_id or 'neither'}")
        if self.scored_as not in TASK_METRICS:
            raise ValueError(
                f"Task {self.scored_as!r} has no metrics. Tasks with metrics: {', '.join(TASK_METRICS)}; name one of "
                "them as `like`"
            )
        is_graded = "pearson" in self.metrics
        if is_graded != (self.problem_type == "regression") or (is_graded and self.num_labels != 1):
            needed = "regression and num_labels 1" if is_graded else "single_label_classification"
            raise ValueError(
                f"Task {self.name} is scored by {', '.join(self.metrics)}, which needs problem_type {needed}, got "
                f"{self.problem_type} and {self.num_labels}"
            )

    @property
    def scored_as(self) -> str:
        """Key in `TASK_METRICS`."""
        return self.like or self.name

    @property
    def metrics(self) -> tuple[str, ...]:
        return TASK_METRICS[self.scored_as]

    @property
    def primary_metric(self) -> str:
        return self.metrics[0]

    @property
    def chance_rule(self) -> str:
        """What the chance level of each metric predicts, in words."""
        rules = {metric: CHANCE_RULES[metric] for metric in self.metrics}
        if len(set(rules.values())) == 1:
            return rules[self.primary_metric]
        return "; ".join(f"{metric}: {rule}" for metric, rule in rules.items())


def _glue(name: str, licence: str, config: str | None = None, **fields) -> Task:
    return Task(name=name, dataset_id="nyu-mll/glue", config=config or name, licence=licence, **fields)


def _mnli(name: str) -> Task:
    return _glue(
        name,
        "OANC and others",
        config="mnli",
        validation_config=name,
        sentence_columns=("premise", "hypothesis"),
        num_labels=3,
        notes="training split of config mnli; the validation splits are also configurations of their own",
    )


def _sick(name: str, **fields) -> Task:
    columns = ("sentence_A", "sentence_B")
    licence = "CC BY-NC-SA 3.0"
    return Task(name=name, dataset_id="RobZamp/sick", config=None, sentence_columns=columns, licence=licence, **fields)


def _microworld(task: str, **fields) -> Task:
    notes = f"embedded, generated: {MICROWORLD_SIZES['train']} train, {MICROWORLD_SIZES['validation']} validation"
    licence = "Apache-2.0"
    return Task(name=f"microworld_{task}", dataset_id=MICROWORLD, config=task, licence=licence, notes=notes, **fields)


_REGRESSION: dict[str, Any] = {"problem_type": "regression", "num_labels": 1}
_ROWS = (
    _glue("mrpc", "Microsoft Research", notes="about two thirds positive"),
    _glue("stsb", "mixed, research", **_REGRESSION, notes="similarity 0-5"),
    _glue("qqp", "Quora terms", sentence_columns=("question1", "question2")),
    _glue("rte", "research"),
    _glue("sst2", "research", sentence_columns=("sentence",)),
    _glue("cola", "research", sentence_columns=("sentence",), notes="acceptability of one sentence"),
    _mnli("mnli_matched"),
    _mnli("mnli_mismatched"),
    _glue("qnli", "CC BY-SA 4.0", sentence_columns=("question", "sentence")),
    _glue("wnli", "research", notes="validation is adversarial to train: below-chance scores are common"),
    Task(
        name="paws",
        dataset_id="google-research-datasets/paws",
        config="labeled_final",
        licence="free for any purpose, with acknowledgement of Google LLC",
        notes="word-swap adversaries",
    ),
    _sick("sick_relatedness", label_column="relatedness_score", **_REGRESSION, notes="relatedness 1-5"),
    _sick("sick_entailment", num_labels=3, notes="entailment, neutral, contradiction"),
    _microworld("similarity", **_REGRESSION),
    _microworld("paraphrase"),
    _microworld("entailment", num_labels=3),
)
BENCHMARKS: dict[str, Task] = {row.name: row for row in _ROWS}


def find_benchmark(name: str | Task, among: Collection[str] = BENCHMARKS, what: str = "task") -> Task:
    """Row of the registry, or of a task file, or a task of the caller's own.

    Args:
        name: of one of `among`, or path of a .yaml file with a task that is like one of them, or a task scored like
            one of them.
        among: names in `BENCHMARKS`.
        what: they are, for the message.

    Raises:
        ValueError: an unknown name, the message lists them; a task file that `own_benchmark` refuses.
        OSError: the file cannot be read.
    """
    if isinstance(name, Task):
        if name.scored_as not in among:
            raise ValueError(f"Task {name.name} is scored like {name.scored_as}, no {what}: {', '.join(among)}")
        return name
    if name.endswith(".yaml"):
        return own_benchmark(Path(name), among)
    if name not in among:
        raise ValueError(f"Unknown {what} {name!r}. Available: {', '.join(among)}, or a .yaml file of your own")
    return BENCHMARKS[name]


def own_benchmark(path: Path, among: Collection[str] = BENCHMARKS) -> Task:
    """The task that a YAML file describes, named as the file is.

    Fields: `like`, a task of `among` whose metrics and kind of label it has; `dataset_id`, a Hub id or a folder with
    train and validation files; `sentence_columns`, one or two names; where they differ from "label", "train",
    "validation" and the default one `label_column`, `train_split`, `validation_split` and `config`; where `like` is
    scored by accuracy alone `num_labels`, the number of classes.

    Raises:
        ValueError: no such file of fields, an unknown or missing field, a value of another kind, a name that is taken.
        OSError: the file cannot be read.
    """
    given = read_yaml(path)
    texts = ("like", "dataset_id", "label_column", "train_split", "validation_split", "config")
    legal = (*texts, "sentence_columns", "num_labels")
    required = ("like", "dataset_id", "sentence_columns")
    if not isinstance(given, dict) or not set(required) <= set(given) <= set(legal):
        raise ValueError(f"{path} must hold {', '.join(required)}, and may hold {', '.join(legal)}; got {given!r}")
    for name in texts:
        if not isinstance(given.get(name, ""), str):
            raise ValueError(f"{path}: {name} must be a text, got {given[name]!r}")
    columns = given["sentence_columns"]
    if not isinstance(columns, list) or len(columns) not in (1, 2) or not all(isinstance(c, str) for c in columns):
        raise ValueError(f"{path}: sentence_columns must list one column or two, got {columns!r}")
    if not re.fullmatch(NAME, path.stem) or path.stem in BENCHMARKS:
        raise ValueError(
            f"{path}: its name without .yaml is the task's; take small letters, digits and _, and none of "
            f"{', '.join(BENCHMARKS)}"
        )
    if given["like"] not in among:
        raise ValueError(f"{path}: like must be one of {', '.join(among)}, got {given['like']!r}")
    like = BENCHMARKS[given["like"]]
    num_labels = given.get("num_labels", like.num_labels)
    if num_labels != like.num_labels and like.metrics != ("accuracy",):
        raise ValueError(
            f"{path}: num_labels can be set where accuracy is the only metric, such as like: mnli_matched; "
            f"{like.name} has {', '.join(like.metrics)}"
        )
    if type(num_labels) is not int or num_labels < 1:
        raise ValueError(f"{path}: num_labels must be a whole number of classes, got {num_labels!r}")
    fields = {"config": None, **given, "sentence_columns": tuple(columns), "num_labels": num_labels}
    return Task(name=path.stem, problem_type=like.problem_type, licence="the user's own data", **fields)


def load_benchmark(benchmark: str | Task, splits: Sequence[str] = ("train", "validation")) -> DatasetDict:
    """Data of a task in one normal form, every row of it labelled.

    Args:
        benchmark: name in `BENCHMARKS`, or a row (to read another source: `dataclasses.replace(row, dataset_id=...)`).
        splits: any of "train" and "validation". Test splits are not offered: most hide their labels.

    Returns:
        The splits under these names, with columns `sentence1`, `sentence2` (pairs only) and `label`: class ids from 0,
        or float32 for regression.

    Raises:
        ValueError: unknown task, split, dataset, configuration or column; an empty split; rows without a sentence or a
            label; labels outside the classes.
        ConnectionError, FileNotFoundError: as `datasets` raises them when the Hub or the dataset cannot be reached.
    """
    row = find_benchmark(benchmark) if isinstance(benchmark, str) else benchmark
    sources = {
        "train": (row.config, row.train_split),
        "validation": (row.validation_config or row.config, row.validation_split),
    }
    unknown = [split for split in splits if split not in sources]
    if unknown:
        raise ValueError(f"Unknown split {unknown[0]!r} of task {row.name}. Available: {', '.join(sources)}")
    loaded = {}
    for split in splits:
        if row.data is not None:
            dataset = _split_in_memory(row, row.data, sources[split][1])
        elif row.dataset_id == MICROWORLD:
            dataset = microworld_task(str(row.config), split, MICROWORLD_SIZES[split])
        else:
            dataset = _load_split(row, *sources[split])
        loaded[split] = _normalised(dataset, row, split)
    return DatasetDict(loaded)


def chance_level(benchmark: Task, labels: Sequence[float] | np.ndarray) -> tuple[dict[str, float], str]:
    """Score of a model that has learned nothing but the label distribution of the split it is scored on.

    Args:
        benchmark: the task.
        labels: (n,) gold labels of that split.

    Returns:
        Level per metric of the task, and the rule in words. Accuracy: share of the most frequent class. F1: of calling
        every example positive, 2p / (1 + p) with p the share of positives. Matthews correlation: 0, that of any
        constant prediction. Pearson, Spearman: undefined for a constant prediction, 0 in expectation for any
        prediction that is independent of the labels; so 0.

    Raises:
        ValueError: no labels.
    """
    labels = np.asarray(labels)
    if labels.size == 0:
        raise ValueError(f"The chance level of {benchmark.name} needs labels, got none")
    levels = dict.fromkeys(benchmark.metrics, 0.0)
    if "accuracy" in levels:
        levels["accuracy"] = float(np.unique(labels, return_counts=True)[1].max() / labels.size)
    if "f1" in levels:
        positives = float((labels == 1).mean())
        levels["f1"] = 2 * positives / (1 + positives)
    return levels, benchmark.chance_rule


def resolve_dataset_id(dataset_id: str) -> str:
    """Canonical `owner/name` of an old one-word Hub id, which `datasets` refuses; others and folders unchanged."""
    if "/" in dataset_id or Path(dataset_id).is_dir():
        return dataset_id
    try:
        return HfApi().dataset_info(dataset_id).id
    except RepositoryNotFoundError as error:
        raise ValueError(f"Unknown dataset {dataset_id!r}: give a Hub id as owner/name, or a local folder") from error


def _split_in_memory(row: Task, data: DatasetDict, split: str) -> Dataset:
    if split not in data:
        raise ValueError(f"Task {row.name}: its data have no split {split!r}. Splits: {', '.join(map(str, data))}")
    return data[split]


def _load_split(row: Task, config: str | None, split: str) -> Dataset:
    dataset_id = resolve_dataset_id(row.dataset_id)
    try:
        return load_dataset(dataset_id, config, split=split)
    except EmptyDatasetError:
        reason = "no data files"
    except RuntimeError as error:
        # datasets has no class of its own for this.
        if "Dataset scripts are no longer supported" not in str(error):
            raise
        reason = "a loading script, which datasets no longer runs"
    except ValueError as error:
        raise ValueError(
            f"Task {row.name}: cannot load {dataset_id} (config {config}, split {split}): {error}"
        ) from error
    if Path(dataset_id).is_dir():
        raise ValueError(f"Task {row.name}: {dataset_id} holds {reason}; put <config>/<split>*.parquet files there")
    folder = f"{config or 'default'}/{split}"
    try:
        tree = HfApi().list_repo_tree(dataset_id, folder, revision=PARQUET_REVISION, repo_type="dataset")
        files = [entry.path for entry in tree if entry.path.endswith(".parquet")]
    except (RevisionNotFoundError, EntryNotFoundError) as error:
        raise ValueError(
            f"Task {row.name}: {dataset_id} holds {reason}, and {PARQUET_REVISION} has no {folder} to use instead"
        ) from error
    # Not load_dataset(dataset_id, revision=...): that caches under the id, and datasets would answer the next call
    # for the id itself from there.
    root = f"hf://datasets/{dataset_id}@{quote(PARQUET_REVISION, safe='')}"
    return load_dataset("parquet", data_files={split: [f"{root}/{file}" for file in files]}, split=split)


def _normalised(dataset: Dataset, row: Task, split: str) -> Dataset:
    where = f"Task {row.name}, split {split}"
    names = [f"sentence{i}" for i in range(1, len(row.sentence_columns) + 1)]
    columns = dict(zip((*row.sentence_columns, row.label_column), (*names, "label"), strict=True))
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise ValueError(f"{where}: no column {missing[0]!r}. Columns: {', '.join(dataset.column_names)}")
    if len(dataset) == 0:
        raise ValueError(f"{where}: no rows")
    dataset = dataset.select_columns(list(columns))
    dataset = dataset.rename_columns({old: new for old, new in columns.items() if old != new})
    rows = dataset[:]
    for name in names:
        without = sum(sentence is None for sentence in rows[name])
        if without:
            raise ValueError(f"{where}: {without} of {len(dataset)} rows have no {name}")
    _check_labels(rows["label"], row, where)
    if row.problem_type == "regression":
        dataset = dataset.cast_column("label", Value("float32"))
    return dataset


def _check_labels(labels: list, row: Task, where: str) -> None:
    unlabelled = sum(label is None or label == UNLABELLED or label != label for label in labels)  # NaN is not itself
    if unlabelled:
        raise ValueError(
            f"{where}: {unlabelled} of {len(labels)} rows have no label (null or {UNLABELLED}); "
            "test splits hide theirs, use a labelled split"
        )
    if row.problem_type == "regression":
        return
    legal = set(range(row.num_labels))
    illegal = sorted({str(label) for label in labels if label not in legal})
    if illegal:
        raise ValueError(f"{where}: labels must be class ids 0 to {row.num_labels - 1}, got {', '.join(illegal[:5])}")
