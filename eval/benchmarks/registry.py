"""Registry of the benchmarks: one row per task, their loading in one normal form, and their chance levels."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Value, concatenate_datasets

from ...trainers.data.corpora import MICROWORLD, in_memory_name
from ...trainers.data.microworld import microworld_task
from ...trainers.data.tables import Table, check_varied, open_tables, resolve_dataset_id
from ...utils.untrusted import read_yaml
from ..metrics.benchmark_score import TASK_METRICS

MICROWORLD_SIZES = {"train": 4000, "validation": 1000}
NAME = r"[a-z][a-z0-9_]*"  # of a task, and so of its files

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
    train_split: str | None = "train"
    """None: it has no rows to train on, and what is not trained is scored on it alone"""
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
    unit_column: str | None = None
    """of what is drawn at random, where several examples are of one thing, such as a novel; None: the example"""
    fold_column: str | None = None
    """of the folds 0 to 9, over all splits: each is scored by a model of the other nine; None: one split is scored"""
    bag: Literal["logistic", "svm"] = "logistic"
    """the linear model of classes in `bag_of_tokens`"""
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
        used = [*self.sentence_columns, self.label_column]
        twice = sorted(column for column in set(used) if used.count(column) > 1)
        if twice:
            raise ValueError(
                f"Task {self.name} uses column {twice[0]!r} twice; sentence_columns and label_column must differ"
            )
        for split in filter(None, (self.train_split, self.validation_split)):
            if not re.fullmatch(r"\w+(\.\w+)*", split):
                raise ValueError(
                    f"Task {self.name}: a split must be a whole one, such as train or validation, got {split!r}"
                )
        same_split = self.train_split == self.validation_split and self.validation_config in (None, self.config)
        if same_split and self.fold_column is None:
            raise ValueError(
                f"Task {self.name}: train_split and validation_split are both {self.train_split!r}: the score would "
                "be of rows that were trained on; name another split"
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


_REGRESSION: dict[str, Any] = {"problem_type": "regression", "num_labels": 1}


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


def _sts(year: int) -> Task:
    return Task(
        name=f"sts{year}",
        dataset_id=f"mteb/sts{year}-sts",
        train_split=None,
        validation_split="test",
        label_column="score",
        licence="mixed, research",
        notes="similarity 0-5; all of it is judged on. Rows of it went into stsb, so nothing that trained on stsb",
        **_REGRESSION,
    )


def _long(name: str, licence: str, dataset: str | None = None, **fields) -> Task:
    """Texts of hundreds to thousands of words; the linear support vector machine is what is hard to beat there."""
    dataset_id = f"local/{dataset or name.replace('_', '-')}"
    own = {"sentence_columns": ("text",), "validation_split": "test", "bag": "svm"}
    return Task(name=name, dataset_id=dataset_id, licence=licence, **{**own, **fields})


def _microworld(task: str, **fields) -> Task:
    notes = f"embedded, generated: {MICROWORLD_SIZES['train']} train, {MICROWORLD_SIZES['validation']} validation"
    licence = "Apache-2.0"
    return Task(name=f"microworld_{task}", dataset_id=MICROWORLD, config=task, licence=licence, notes=notes, **fields)


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
    *(_sts(year) for year in (12, 13, 14, 15)),
    _microworld("similarity", **_REGRESSION),
    _microworld("paraphrase"),
    _microworld("entailment", num_labels=3),
    _long(
        "novel_authors",
        "out of copyright (US)",
        num_labels=33,
        unit_column="novel",
        notes="who wrote these 2,600 words; test novels are others than those of train, intervals over novels",
    ),
    _long("article_bias", "none stated, research", num_labels=3, notes="left, center, right; 1,090 words"),
    _long("movie_reviews_long", "CC BY 4.0", notes="746 words, fold 9 of Pang and Lee's ten"),
    _long(
        "hyperpartisan",
        "CC BY 4.0",
        dataset="hyperpartisan-byarticle",
        fold_column="fold",
        notes="565 words, ten clean folds; the much-used split leaks: 51 of its 65 test articles are in its train",
    ),
)
LONG_TASKS = ("novel_authors", "article_bias", "movie_reviews_long", "hyperpartisan")
FOLDS = 10  # of a task with a `fold_column`
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
    least = min(like.num_labels, 2)
    if type(num_labels) is not int or num_labels < least:
        raise ValueError(f"{path}: num_labels must be a whole number of classes, at least {least}, got {num_labels!r}")
    fields = {"config": None, **given, "sentence_columns": tuple(columns), "num_labels": num_labels}
    try:
        return Task(name=path.stem, problem_type=like.problem_type, licence="the user's own data", **fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def load_benchmark(
    benchmark: str | Task, splits: Sequence[str] = ("train", "validation"), fold: int = 0
) -> DatasetDict:
    """Data of a task in one normal form, every row of it labelled.

    Args:
        benchmark: name in `BENCHMARKS`, or a row (to read another source: `dataclasses.replace(row, dataset_id=...)`).
        splits: any of "train" and "validation". Test splits are offered under the latter name where a task is scored
            on one: most hide their labels.
        fold: of a task with a `fold_column`, the one that is the validation split.

    Returns:
        The splits under these names, with columns `sentence1`, `sentence2` (pairs only), `label`: class ids from 0,
        or float32 for regression, and `unit` where the task has a `unit_column`.

    Raises:
        ValueError: unknown task, split, dataset, configuration or column; an empty split; rows without a sentence or a
            label; labels outside the classes.
        ConnectionError, FileNotFoundError: as `datasets` raises them when the Hub or the dataset cannot be reached.
    """
    row = find_benchmark(benchmark) if isinstance(benchmark, str) else benchmark
    configs = {"train": row.config, "validation": row.validation_config or row.config}
    names = {"train": row.train_split, "validation": row.validation_split}
    unknown = [split for split in splits if split not in names]
    if unknown:
        raise ValueError(f"Unknown split {unknown[0]!r} of task {row.name}. Available: {', '.join(names)}")
    if "train" in splits and row.train_split is None:
        raise ValueError(
            f"Task {row.name} has no rows to train on; similarity scores an encoder on it as it is, and "
            "finetune takes another task"
        )
    opened = {config: read_tables(row, config) for config in dict.fromkeys(configs[split] for split in splits)}
    if row.fold_column is not None:
        whole = concatenate_datasets([_normalised(table, row) for table in opened[row.config].values()])
        held_out = np.asarray(whole["unit"]) == str(fold)
        parts = {"train": ~held_out, "validation": held_out}
        return DatasetDict({split: whole.select(np.flatnonzero(parts[split])) for split in splits})
    loaded = {}
    for split in splits:
        tables, name = opened[configs[split]], names[split]
        where = f"Task {row.name}, split {name}"
        if name not in tables:
            found = ", ".join(sorted(tables))
            source = f"{row.dataset_id} (config {configs[split]})"
            raise ValueError(f"{where}: there is no such split in {source}. Splits: {found}")
        try:
            with tables[name].origin.naming():
                loaded[split] = _normalised(tables[name], row)
            if split == "train":
                check_varied(loaded[split]["label"])
                if row.num_labels > len(loaded[split]):
                    raise ValueError(f"num_labels is {row.num_labels}, and there are only {len(loaded[split])} rows")
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    if row.like is not None and len(loaded) == 2:
        rows = {split: set(zip(*table.to_dict().values(), strict=True)) for split, table in loaded.items()}
        if rows["validation"] <= rows["train"]:
            raise ValueError(
                f"Task {row.name}: every row of {row.validation_split} is in {row.train_split} too, so that it would "
                "score memorised rows; give other rows"
            )
    return DatasetDict(loaded)


def read_tables(row: Task, config: str | None) -> dict[str, Table]:
    """Every split of a task's data; ValueError and OSError as `open_tables`."""
    if row.data is not None:
        return open_tables(row.data)
    if row.dataset_id == MICROWORLD:
        tables = {split: microworld_task(str(config), split, size) for split, size in MICROWORLD_SIZES.items()}
        return open_tables(tables)
    try:
        return open_tables(resolve_dataset_id(row.dataset_id), config, field="dataset_id")
    except ValueError as error:
        raise ValueError(f"Task {row.name}: cannot load {row.dataset_id} (config {config}): {error}") from error


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


def _normalised(table: Table, row: Task) -> Dataset:
    """Columns `sentence1`, `sentence2` of pairs, and `label`; ValueError as `load_benchmark`."""
    columns = {column: f"sentence{i}" for i, column in enumerate(row.sentence_columns, start=1)}
    for column in columns:
        table.check_texts(column, "sentence column", null=False)
    regression = row.problem_type == "regression"
    labels = table.labels(row.label_column, None if regression else row.num_labels)
    if regression:
        check_varied(labels)
    assert isinstance(table.rows, Dataset)
    kind = table.rows.features[row.label_column]
    kind = kind if isinstance(kind, ClassLabel) else Value(str(labels.dtype))
    normal = table.rows.select_columns(list(columns)).rename_columns(columns).add_column("label", labels, feature=kind)
    unit = row.unit_column or row.fold_column
    if unit is None:
        return normal
    table.check_column(unit, "unit_column" if row.unit_column else "fold_column")
    return normal.add_column("unit", [str(value) for value in table.rows[unit][:]])
