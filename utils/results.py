"""Results of the commands: what each file of a run holds, in which unit, and how it is written and read back.

A result is written whole or not at all, as strict JSON with its `kind` and `schema`. Read back, it is what a command
of this version writes, or a ValueError that names the file, the field, what was found and what should be there.
Numbers are finite; what was not measured, or is undefined, is None. Scores are fractions or correlations.
"""

import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from .files import no_key_twice, write_atomically

LARGEST = 1e100  # of a figure: no measurement is larger, and sums and squares of such stay finite
SHOWN = 60  # characters of a wrong value that an error quotes


def _ordered(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError("must be [low, high]")
    return interval


def _rectangular(rows: list[list[float]]) -> list[list[float]]:
    if len({len(row) for row in rows}) > 1:
        raise ValueError("must have rows of equal length")
    return rows


def _finite(value: Any) -> Any:
    """JSON of any form, in which numbers are finite."""
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _finite(each)
    if isinstance(value, int | float) and not -LARGEST <= value <= LARGEST:
        raise ValueError("must hold finite numbers")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, list | dict):
        raise ValueError("must be a number, text, true, false or null")
    return _finite(value)


Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Size = Annotated[int, Field(ge=1, lt=2**20)]  # of concepts or vectors
Score = Annotated[float, Field(ge=-1.000001, le=1.000001)]
Interval = Annotated[tuple[Number, Number], AfterValidator(_ordered)]  # 95 %, low and high
Matrix = Annotated[list[list[Number]], AfterValidator(_rectangular)]
FigureFile = Annotated[str, Field(pattern=r"^figures/[a-z0-9_]+\.png$")]
Value = Annotated[Any, AfterValidator(_plain)]  # a number, text, true, false or None
Json = Annotated[Any, AfterValidator(_finite)]


@dataclass(frozen=True)
class _Names:
    names: tuple[str, ...]

    def __call__(self, value: str) -> str:
        if value not in self.names:
            raise ValueError(f"must be one of {', '.join(self.names)}")
        return value


def _one_of(*names: str) -> AfterValidator:
    return AfterValidator(_Names(names))


def names_of(kind: Any) -> tuple[str, ...]:
    """The names that one of the kinds of text below may be; empty where it may be any."""
    found = (getattr(each, "func", None) for each in getattr(kind, "__metadata__", ()))
    return next((each.names for each in found if isinstance(each, _Names)), ())


Metric = Annotated[str, _one_of("accuracy", "f1", "pearson", "spearman", "matthews_correlation")]
RankMetric = Annotated[str, _one_of("ndcg_at_10", "recall_at_100", "mrr_at_10")]
Comparison = Literal[">", ">=", "<", "<="]
Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]
Chance = Annotated[
    str,
    _one_of("above chance", "barely above chance", "not told from chance", "at or below chance", "no chance level"),
]
Grade = Annotated[str, _one_of("GOOD", "OK", "POOR")]
Control = Annotated[str, _one_of("bag_of_tokens", "random_init", "static_table", "shuffled_words")]
View = Annotated[str, _one_of("template", "within_raw", "within_centred", "across")]
SpectrumMetric = Annotated[
    str, _one_of("rankme", "participation_ratio", "energy_rank", "isoscore", "uniformity", "duplicate_pairs")
]
GeometryMetric = Annotated[
    str,
    _one_of(
        "global_effective_rank",
        "global_effective_rank_normalized",
        "effective_rank",
        "effective_rank_normalized",
        "dimensions_for_95_variance",
        "top_1_variance_ratio",
        "top_5_variance_ratio",
        "top_1_dominance_ratio",
        "mean_concept_similarity",
        "std_concept_similarity",
        "max_concept_similarity",
        "uniformity_loss",
        "participation_ratio",
        "participation_ratio_normalized",
        "mean_dimension_std",
        "min_dimension_std",
        "max_dimension_std",
        "isotropy",
        "collapsed_dimensions",
        "collapsed_dimensions_ratio",
        "mean_concept_norm",
        "std_concept_norm",
        "min_concept_norm",
        "max_concept_norm",
    ),
]


@dataclass(kw_only=True)
class Part:
    """A piece of a result; every field of it is in the file, and nothing else."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(kw_only=True)
class Result(Part):
    """What a command found, and what its file holds. It can be given wherever a run folder is asked for."""

    kind: ClassVar[str]
    schema: ClassVar[int] = 1
    """raised whenever a field changes"""
    command: ClassVar[str]
    """that writes it"""
    folder: Annotated[Path | None, Field(exclude=True)] = field(default=None, init=False, repr=False, compare=False)
    """of the run; not in the file"""

    def __fspath__(self) -> str:
        if self.folder is None:
            raise ValueError(f"this {type(self).__name__} belongs to no folder; give the folder of the run")
        return os.fspath(self.folder)

    def as_dict(self) -> dict[str, Any]:
        """The content of the file; numbers that are not finite are None."""
        own = json.loads(_adapter(type(self)).dump_json(self, warnings=False))
        return {"kind": self.kind, "schema": self.schema, **own}

    def save(self, path: str | os.PathLike) -> None:
        """Write the file whole or not at all; ValueError that names the field where a value is not of its kind."""
        content = self.as_dict()
        type(self)._checked(content, path)
        write_atomically(Path(path), json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike, folder: str | os.PathLike | None = None) -> Self:
        """The result in a file.

        Args:
            path: of the file.
            folder: of the run; `None`: where the file is.

        Raises:
            ValueError: no JSON; another kind or schema; a field that is missing, unknown, of another type or not
                finite. Says the first of them, and the command that writes the file again.
            OSError: it cannot be opened.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=no_key_twice)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read as JSON: {error}; {cls._way_out()}") from error
        result = cls._checked(content, path)
        result.folder = Path(path).parent if folder is None else Path(folder)
        return result

    @classmethod
    def _checked(cls, content: Any, path: str | os.PathLike) -> Self:
        if not isinstance(content, dict):
            raise ValueError(f"{path} must hold a JSON object, got {_shown(content)}; {cls._way_out()}")
        for name, wanted in (("kind", cls.kind), ("schema", cls.schema)):
            if content.get(name) != wanted or type(content[name]) is not type(wanted):
                found = "none, as older versions wrote it" if name not in content else _shown(content[name])
                raise ValueError(f"{path}: {name} must be {wanted!r}, got {found}; {cls._way_out()}")
        own = {name: value for name, value in content.items() if name not in ("kind", "schema")}
        try:
            return _adapter(cls).validate_json(json.dumps(own))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ValueError(f"{path}: {_said(first)}; {cls._way_out()}") from None

    @classmethod
    def _way_out(cls) -> str:
        return f"remove it and run `concept-encoder {cls.command}` again"


_adapter: Callable[[Any], TypeAdapter] = cache(TypeAdapter)


def _said(error: Any) -> str:
    """What pydantic found, in the words of this package."""
    where = ""
    for step in (step for step in error["loc"] if step != "[key]"):
        where += f"[{step}]" if isinstance(step, int) else f".{step}" if where else str(step)
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if error["type"] in ("missing", "missing_keyword_only_argument"):
        return f"{where} is missing"
    if error["type"] == "unexpected_keyword_argument":
        return f"{where} is no field of it, got {_shown(error['input'])}"
    return f"{where} {message[0].lower()}{message[1:]}, got {_shown(error['input'])}"


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


# -------------------------------------------------------------------------------------------------------- pretraining


@dataclass(kw_only=True)
class ModelFacts(Part):
    """The architecture that was trained; `more` holds the fields that no page names."""

    num_concepts: Size | None
    hidden_size: Size | None
    num_hidden_layers: Count | None
    decoder_num_hidden_layers: Count | None
    decoder_context: str | None
    more: dict[str, Json]


@dataclass(kw_only=True)
class DataFacts(Part):
    """The corpus that was read; `more` holds the fields that no page names."""

    dataset_name: str | None
    tokenizer_name: str | None
    max_length: Count | None
    """tokens per text"""
    more: dict[str, Json]


F = TypeVar("F", ModelFacts, DataFacts)


def facts(cls: type[F], values: dict[str, Any]) -> F:
    """Values of a configuration or of arguments as facts: those with a name of their own, and the rest."""
    named = {each.name: values.get(each.name) for each in fields(cls) if each.name != "more"}
    return cls(**named, more={name: value for name, value in values.items() if name not in named})


@dataclass(kw_only=True)
class TrainingFacts(Part):
    """How it was trained, in the names of `TrainingArguments`."""

    learning_rate: Number | None
    lr_scheduler_type: str | None
    warmup_steps: Number | None
    per_device_train_batch_size: Count | None
    gradient_accumulation_steps: Count | None
    world_size: Count | None
    num_train_epochs: Number | None
    max_steps: Whole | None
    weight_decay: Number | None
    max_grad_norm: Number | None
    seed: Whole | None
    bf16: bool | None
    gradient_checkpointing: bool | None
    torch_compile: bool | None
    optim: str | None
    texts_per_step: Count | None
    """over all processes and accumulated batches"""


@dataclass(kw_only=True)
class Parameters(Part):
    total: Count | None
    encoder: Count | None
    trainable: Count | None


@dataclass(kw_only=True)
class TimestepLoss(Part):
    """The evaluation loss at one timestep."""

    timestep: Number
    """share of tokens masked"""
    nll_bits: Number | None
    """per masked token"""
    accuracy: Number | None
    tokens: Count
    """that were masked"""


@dataclass(kw_only=True)
class Rebuilding(Part):
    """The run's own task, where that is not masked diffusion."""

    bits_per_token: Number | None
    accuracy: Number | None
    tokens: Count | None


@dataclass(kw_only=True)
class Evaluation(Part):
    nelbo_bits_per_token: Number | None
    rebuilding: Rebuilding | None
    by_timestep: list[TimestepLoss]


@dataclass(kw_only=True)
class Environment(Part):
    torch: str | None
    transformers: str | None
    python: str | None
    device: str | None
    """cpu, or the name of the GPU"""
    processes: Count | None
    threads: Count | None
    """of each process"""

    @classmethod
    def of(cls, device: Any, processes: int = 1) -> Self:
        """This process's; `device` a torch.device or its name."""
        import torch
        import transformers

        device = torch.device(device)
        return cls(
            torch=torch.__version__,
            transformers=transformers.__version__,
            python=platform.python_version(),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            processes=processes,
            threads=torch.get_num_threads(),
        )


@dataclass(kw_only=True)
class PretrainResult(Result):
    """pretrain.json: what was trained, how, on what, and how it went."""

    kind: ClassVar = "pretrain"
    command: ClassVar = "pretrain"
    recipe: str
    model: ModelFacts
    data: DataFacts
    objective: dict[str, Json]
    training: TrainingFacts
    parameters: Parameters
    steps: Count
    epochs: Number | None
    train_seconds: Number | None
    steps_per_second: Number | None
    tokens_seen: Count | None
    data_wait_share: Number | None
    """of the time, waiting for data, at the worst"""
    train_loss: tuple[Number | None, Number | None]
    """first and last that was logged, nats"""
    eval_loss: tuple[Number | None, Number | None]
    """first and last, nats"""
    grad_norm_peak: Number | None
    grad_norm_final: Number | None
    log_history: list[dict[str, Number | None]]
    evaluation: Evaluation
    environment: Environment


# ----------------------------------------------------------------------------------------------------------- concepts


@dataclass(kw_only=True)
class Figure(Part):
    """A measured number with its 95 % interval."""

    value: Number | None
    interval: Interval | None


@dataclass(kw_only=True)
class Nulls(Part):
    """The same figure of what knows nothing."""

    gaussian: Number | None
    """independent normal vectors of the same size"""
    random_encoder: Number | None
    """random weights on the same documents"""
    static_slots: Number | None
    """the template for every document"""


@dataclass(kw_only=True)
class SpectrumFigure(Figure):
    nulls: Nulls
    by_construction: bool
    """whether the architecture fixes it"""


@dataclass(kw_only=True)
class Spectrum(Part):
    views: dict[View, dict[SpectrumMetric, SpectrumFigure]]
    content_share: SpectrumFigure | None
    """of the variance, what depends on the text"""
    num_documents: Count | None
    num_resamples: Count | None


@dataclass(kw_only=True)
class AnalysisResult(Result):
    command: ClassVar = "analyze"
    checkpoint: str | None
    corpus: DataFacts | None


@dataclass(kw_only=True)
class GeometryResult(AnalysisResult):
    """geometry.json: how the concepts of a sample of documents are spread. C concepts of width D."""

    kind: ClassVar = "geometry"
    num_samples: Count
    batch_size: Count | None
    num_batches: Count | None
    num_concepts: Size
    hidden_size: Size
    metrics: dict[GeometryMetric, Number | None]
    """by the definitions of the reference run"""
    grades: dict[GeometryMetric, Grade]
    """by its thresholds"""
    by_construction: list[GeometryMetric]
    """those that the output LayerNorm fixes"""
    singular_values: list[Number]
    """of the mean over documents, largest first"""
    dimension_std: list[Number]
    """(D,), or empty"""
    similarity_matrix: Matrix
    """(C, C) cosines, or empty"""
    spectrum: Spectrum | None

    def __post_init__(self) -> None:
        sizes = {"similarity_matrix": self.num_concepts, "dimension_std": self.hidden_size}
        for name, size in sizes.items():
            if getattr(self, name) and len(getattr(self, name)) != size:
                raise ValueError(f"{name} must have {size} entries")
        if self.num_concepts * self.hidden_size > 2**24:
            raise ValueError(f"num_concepts * hidden_size must be at most {2**24}")


@dataclass(kw_only=True)
class LedgerTimestep(Part):
    """NLL of the masked tokens, bits each, with the text's own concepts and with others."""

    timestep: Number
    true_nll_bits: Number | None
    shuffled_nll_bits: Number | None
    null_nll_bits: Number | None
    tokens: Count

    @property
    def bits_null(self) -> float | None:
        """That the concepts save, against their template."""
        return difference(self.null_nll_bits, self.true_nll_bits)

    @property
    def bits_shuffled(self) -> float | None:
        return difference(self.shuffled_nll_bits, self.true_nll_bits)


def difference(left: float | None, right: float | None) -> float | None:
    """None where a side is unknown."""
    return None if left is None or right is None else left - right


@dataclass(kw_only=True)
class LedgerPositions(Part):
    """Bits per token that the concepts save at positions `first` to `last`, both inclusive."""

    first: Count
    last: Count
    bits_null: Number | None
    tokens: Count


@dataclass(kw_only=True)
class BitsPerToken(Part):
    """That the decoder takes through the concepts."""

    shuffled: Figure
    """against the concepts of another text"""
    null: Figure
    """against the template of all texts"""


@dataclass(kw_only=True)
class LedgerResult(AnalysisResult):
    """ledger.json: bits per token that the decoder takes through the concepts."""

    kind: ClassVar = "ledger"
    num_documents: Count | None
    tokens: Count
    bits_per_token: BitsPerToken
    by_timestep: list[LedgerTimestep]
    by_position: list[LedgerPositions]
    leave_one_out: list[Number]
    """(C,) bits per token lost without each concept"""
    leave_one_out_documents: Count | None
    concepts_for_90_percent: Count | None
    """that hold 90 % of these losses"""

    @property
    def is_read(self) -> bool:
        """Whether the bits can be told from 0."""
        interval = self.bits_per_token.null.interval
        return interval is None or interval[0] > 0


@dataclass(kw_only=True)
class Reading(Part):
    """The attention of one concept, means over documents."""

    entropy_bits: Number
    """of its attention over the tokens"""
    top_tokens: list[tuple[str, Number]]
    """with their share of its attention"""
    special_share: Number | None
    """that special tokens get"""
    mean_position: Number
    """0 = first token, 1 = last"""
    share_read: Number | None
    """of the decoder's attention"""
    read_by_entropy_bits: Number | None
    """of how that spreads over the positions"""


@dataclass(kw_only=True)
class ConceptReading(Reading):
    index: Count


@dataclass(kw_only=True)
class Example(Part):
    """One text: N tokens, C concepts."""

    tokens: list[str]
    encoder_weights: Matrix
    """(C, N)"""
    decoder_weights: Matrix | None
    """(N, C)"""

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.encoder_weights} | {len(self.decoder_weights or self.tokens)}
        if widths != {len(self.tokens)}:
            raise ValueError(f"encoder_weights and decoder_weights must be of {len(self.tokens)} tokens")


@dataclass(kw_only=True)
class AttentionResult(AnalysisResult):
    """reading.json: which tokens each concept attends to, and how much the decoder reads it."""

    kind: ClassVar = "reading"
    num_documents: Count | None
    special_tokens: list[str]
    concepts: list[ConceptReading]
    uniform: Reading | None
    """the same figures of attention that spreads evenly"""
    example: Example | None

    def __post_init__(self) -> None:
        indices = [row.index for row in self.concepts]
        if len(set(indices)) < len(indices) or (self.example and max(indices) >= len(self.example.encoder_weights)):
            raise ValueError("concepts must each have an index of their own, and a row of encoder_weights")

    @property
    def most_read(self) -> list[ConceptReading]:
        """Concepts in the order of how much the decoder reads them, unknown shares last."""
        return sorted(self.concepts, key=lambda row: (row.share_read is None, -(row.share_read or 0)))


# --------------------------------------------------------------------------------------------------------- benchmarks


@dataclass(kw_only=True)
class ControlScore(Part):
    """A control's score, and what the run has more than it, on the same examples."""

    value: Score | None
    interval: Interval | None
    difference: Number | None
    """run less control"""
    difference_interval: Interval | None
    p_value: Number | None
    """two-sided, that the difference is 0"""


@dataclass(kw_only=True)
class TaskScore(Part):
    """A score of a run with everything that it is to be compared with."""

    value: Score | None
    """mean over seeds"""
    interval: Interval | None
    interval_rule: str | None
    """how the interval was had"""
    chance: Score | None
    """score of not looking at the input, on the same split"""
    verdict: Chance
    note: str | None
    controls: dict[Control, ControlScore]
    per_seed: list[Score | None]

    @property
    def margin(self) -> float | None:
        """Above chance."""
        return difference(self.value, self.chance)


@dataclass(kw_only=True)
class Setting(Part):
    """What a sweep selects."""

    learning_rate: Number | None
    batch_size: Count | None
    epochs: Count | None
    """passes after which training stops"""


@dataclass(kw_only=True)
class SweepRow(Setting):
    metrics: dict[Metric, Score | None]
    """on a share of the training split, after the best epoch"""


@dataclass(kw_only=True)
class ControlFacts(Part):
    description: str
    selected: Setting | None
    """None: nothing was selected"""
    sweep: list[SweepRow]


@dataclass(kw_only=True)
class Published(Part):
    """A score that others published."""

    model: str
    metric: Metric
    score: Score
    split: str
    parameters: Count | None
    source: str
    note: str
    comparable: bool
    """whether it is of the split that is scored here"""


@dataclass(kw_only=True)
class FinetuneResult(Result):
    """finetune/<task>.<protocol>.json: one task under one protocol."""

    kind: ClassVar = "finetune"
    command: ClassVar = "finetune"
    task: str
    protocol: str
    split: str
    primary_metric: Metric
    greater_is_better: bool
    scores: dict[Metric, TaskScore]
    """primary metric first"""
    chance_rule: str
    train_examples: Count | None
    validation_examples: Count | None
    settings: dict[str, Json]
    """of the protocol"""
    selected: Setting
    scheduled_epochs: Count | None
    """of the learning rate's schedule"""
    seeds: list[Whole]
    max_length: Count | None
    """tokens per example"""
    steps: Count | None
    padding_share: Number | None
    """of the positions trained on"""
    seconds: Number | None
    """of training and scoring, all seeds"""
    dataset: dict[str, str | None]
    head: str | None
    newly_initialized: list[str]
    dropped: list[str]
    environment: Environment | None
    controls: dict[Control, ControlFacts]
    sweep: list[SweepRow]
    published: list[Published]
    log_history: list[dict[str, Number | None]]
    """of the first seed"""

    def __post_init__(self) -> None:
        if self.primary_metric not in self.scores:
            raise ValueError(f"scores must have the primary_metric {self.primary_metric}")

    @property
    def id(self) -> str:
        return f"{self.task}.{self.protocol}"

    @property
    def primary(self) -> TaskScore:
        return self.scores[self.primary_metric]

    @property
    def verdict(self) -> str:
        """Of the primary metric."""
        return self.primary.verdict


@dataclass(kw_only=True)
class FrozenScore(Figure):
    """A score without fine-tuning."""

    method: str
    metric: Metric
    value: Score | None
    random_init: ControlScore | None
    """the same architecture with random weights"""

    @property
    def id(self) -> str:
        return f"{self.method}, {self.metric}"


@dataclass(kw_only=True)
class SizeScore(Figure):
    """The primary metric of the pooled output, cut to a size."""

    value: Score | None
    num_concepts: Count
    dim: Count
    """numbers of a concept"""
    bytes: Count
    """of a text, in float32"""
    seconds: Number
    """of the processor, to encode a text"""


@dataclass(kw_only=True)
class SimilarityResult(Result):
    """similarity/<task>.json: frozen concepts on graded similarity."""

    kind: ClassVar = "similarity"
    command: ClassVar = "similarity"
    task: str
    split: str
    primary_metric: Metric
    train_examples: Count | None
    validation_examples: Count | None
    max_length: Count | None
    """tokens per sentence"""
    weights: str | None
    """digest of the encoder's"""
    methods: dict[str, str]
    """what each does"""
    alpha: Number | None
    """of the probe"""
    alpha_of_twin: Number | None
    rows: list[FrozenScore]
    sizes: list[SizeScore]
    """cosine of pooled outputs that are read and cut so; none where none was asked for"""

    @property
    def id(self) -> str:
        return self.task

    def primary(self, method: str) -> FrozenScore:
        """A method's score by the primary metric; ValueError where there is none."""
        found = [row for row in self.rows if (row.method, row.metric) == (method, self.primary_metric)]
        if not found:
            raise ValueError(f"the similarity result of {self.task} has no row {method}, {self.primary_metric}")
        return found[0]


@dataclass(kw_only=True)
class RankerRow(Part):
    """A way of finding documents; of the run itself no difference is known."""

    ranker: str
    description: str
    scores: dict[RankMetric, ControlScore]
    bytes_per_text: Number | None
    """that are kept of a document; None where that grows with its length, or of a fusion"""
    seconds: Number | None
    """of reading all documents, wall clock"""

    @property
    def id(self) -> str:
        return self.ranker


@dataclass(kw_only=True)
class RetrievalResult(Result):
    """retrieval/<task>.json: documents found by the run and by everything that it is compared with."""

    kind: ClassVar = "retrieval"
    command: ClassVar = "retrieval"
    task: str
    split: str
    primary_metric: RankMetric
    documents: Count
    queries: Count
    words_per_document: Number
    """mean"""
    longest_document: Count
    """words"""
    settings: dict[str, Json]
    """all that decides the scores besides the texts"""
    chance: dict[RankMetric, Score]
    """of a random order"""
    verdict: Chance
    weight: Number | None
    """of the run next to BM25, chosen on training queries; None where there are none"""
    rows: list[RankerRow]
    """the run first"""
    environment: Environment | None

    def __post_init__(self) -> None:
        names = [row.ranker for row in self.rows]
        if not names or len(set(names)) < len(names) or self.primary_metric not in self.rows[0].scores:
            raise ValueError("rows must each have a ranker of its own, and the first the primary_metric")

    @property
    def id(self) -> str:
        return self.task

    @property
    def primary(self) -> ControlScore:
        """The run's score."""
        return self.rows[0].scores[self.primary_metric]


@dataclass(kw_only=True)
class SweepCell(Result):
    """A finished setting of a sweep."""

    kind: ClassVar = "sweep_cell"
    command: ClassVar = "finetune"
    settings: dict[str, Json]
    """everything that decides what comes out"""
    row: SweepRow
    metrics_by_epoch: list[dict[Metric, Score | None]]
    seconds: Number


@dataclass(kw_only=True)
class SeedCell(Result):
    """A finished seed."""

    kind: ClassVar = "seed_cell"
    command: ClassVar = "finetune"
    settings: dict[str, Json]
    seed: Whole
    metrics: dict[Metric, Score | None]
    predictions: list[Number]
    """(n,) class ids or values"""
    steps: Count
    padding_share: Number
    seconds: Number
    device: str
    head: str
    newly_initialized: list[str]
    dropped: list[str]
    log_history: list[dict[str, Number | None]]


@dataclass(kw_only=True)
class BagCell(Result):
    """The finished bag of tokens."""

    kind: ClassVar = "bag_cell"
    command: ClassVar = "finetune"
    settings: dict[str, Json]
    metrics: dict[Metric, Score | None]
    predictions: list[Number]


@dataclass(kw_only=True)
class PredictionsResult(Result):
    """finetune/predictions/<task>.<protocol>.json: what was predicted on the scored split, in its order."""

    kind: ClassVar = "predictions"
    command: ClassVar = "finetune"
    references: list[Number]
    run: dict[str, list[Number]]
    """by seed"""
    bag_of_tokens: list[Number]
    random_init: dict[str, list[Number]]


@dataclass(kw_only=True)
class ComparisonRow(Part):
    recipe: str
    seed: Whole
    figures: dict[str, Figure]
    """by their titles in the table"""


@dataclass(kw_only=True)
class ComparisonResult(Result):
    """comparison.json: recipes side by side."""

    kind: ClassVar = "comparison"
    command: ClassVar = "compare"
    protocol: str
    rows: list[ComparisonRow]
    means: dict[str, dict[str, Number | None]]
    """over seeds: recipe -> title -> mean"""


@dataclass(kw_only=True)
class SourceFacts(Part):
    """A source of a corpus, in the names of `DataArguments`."""

    dataset_name: str | None
    dataset_config_name: str | None
    dataset_revision: str | None
    train_split: str | None
    text_column: str | None
    partner_column: str | None
    keep_rows: Json
    max_train_documents: Count | None
    corpus_seed: Whole | None


@dataclass(kw_only=True)
class SourceRow(Part):
    source: SourceFacts
    rows: Count
    exact: Count
    """dropped for a sentence of a benchmark"""
    near: Count
    """dropped for one that is nearly a benchmark's"""
    kept: Count


@dataclass(kw_only=True)
class ContaminationResult(Result):
    """contamination.json: what was dropped from a corpus to keep it clean of benchmarks."""

    kind: ClassVar = "contamination"
    command: ClassVar = "build-corpus"
    rule: str
    benchmark_sentences: dict[str, Count]
    sources: list[SourceRow]


# ------------------------------------------------------------------------------------------------------------- report

PartName = Annotated[
    str, _one_of("training", "geometry", "ledger", "reading", "downstream", "similarity", "retrieval")
]


@dataclass(kw_only=True)
class RunFacts(Part):
    name: str
    files: list[str]
    """relative to the run folder"""


@dataclass(kw_only=True)
class VerdictFacts(Part):
    overall: Verdict
    headline: str
    findings: list[str]


@dataclass(kw_only=True)
class Tile(Part):
    """A figure at the top of a report."""

    id: str
    value: Value
    detail: str


@dataclass(kw_only=True)
class ComparedRow(Part):
    id: str
    beside: Value
    """the target or chance level"""
    values: list[Value]
    """one per run"""


@dataclass(kw_only=True)
class ComparedTable(Part):
    runs: list[str]
    """this run first"""
    rows: list[ComparedRow]


@dataclass(kw_only=True)
class Compared(Part):
    """The run, another one and the reference runs, side by side."""

    settings: ComparedTable
    geometry: ComparedTable
    downstream: ComparedTable
    not_like_for_like: list[str]
    notes: list[str]


@dataclass(kw_only=True)
class GateRow(Figure):
    name: str
    metric: str
    comparison: Comparison
    threshold: Number | None
    asks: str
    verdict: Verdict
    explanation: str
    reason: str
    source: str


@dataclass(kw_only=True)
class GateFacts(Part):
    id: str
    title: str
    verdict: Verdict
    headline: str
    rows: list[GateRow]


@dataclass(kw_only=True)
class Step(Part):
    """What to do next, and why."""

    rule: str
    because: str
    do: str


@dataclass(kw_only=True)
class FigureFacts(Part):
    """A drawing; `light` and `dark` are files in the run folder."""

    id: str
    section: str
    title: str
    caption: str
    light: FigureFile
    dark: FigureFile


@dataclass(kw_only=True)
class Missing(Part):
    """A part of a run that was not done."""

    text: str
    command: str | None
    """that would do it"""


@dataclass(kw_only=True)
class Report(Result):
    """report.json: everything that the commands found of a run, judged."""

    kind: ClassVar = "report"
    schema: ClassVar = 2
    command: ClassVar = "report"
    run: RunFacts
    verdict: VerdictFacts
    summary: list[Tile]
    training: PretrainResult | None
    geometry: GeometryResult | None
    ledger: LedgerResult | None
    reading: AttentionResult | None
    downstream: list[FinetuneResult]
    similarity: list[SimilarityResult]
    retrieval: list[RetrievalResult]
    comparison: Compared
    gates: list[GateFacts]
    next_steps: list[Step]
    figures: list[FigureFacts]
    missing: dict[PartName, Missing]
    other: "Report | None"
    """the other run, without figures of its own"""


# --------------------------------------------------------------------------------------------------------------- judge


@dataclass(kw_only=True)
class JudgedModel(Part):
    """An encoder that was judged."""

    name: str
    revision: str | None
    """commit on the Hub"""
    digest: str | None
    """short SHA-256 of the weights; None for an object in memory"""
    compared_by: Literal["cosine", "MaxSim"]
    dimensions: Size
    parameters: Count | None
    max_length: Count | None
    """tokens that it says it reads"""
    words_read: Count
    """of a text, by trial; at most 512 are tried"""


@dataclass(kw_only=True)
class JudgedTask(Part):
    """Cosines of pairs against labels."""

    id: str
    examples: Count
    primary_metric: Metric
    scores: dict[Metric, TaskScore]


@dataclass(kw_only=True)
class JudgedCheck(Figure):
    what: str
    """is measured"""
    fault: str
    """what is said where its gate fails; empty where it has none"""


@dataclass(kw_only=True)
class JudgedRecord(Part):
    """A score that was handed in."""

    id: str
    metric: str
    score: Number | None
    """as it was handed in"""
    recomputed: Number | None
    """of the predictions, where they are at hand"""
    interval: Interval | None
    interval_rule: str | None
    chance: Score | None
    chance_rule: str | None
    verdict: Chance
    against: dict[str, Figure]
    """control -> what the predictions score more"""
    notes: dict[str, str]
    """check -> what is wrong"""


@dataclass(kw_only=True)
class Versus(Part):
    """What a model scores more than the other on the same pairs."""

    task: str
    metric: Metric
    difference: Number | None
    interval: Interval | None
    p_value: Number | None


@dataclass(kw_only=True)
class JudgeResult(Result):
    """judge.json: an encoder, or scores that were handed in, judged."""

    kind: ClassVar = "judge"
    command: ClassVar = "judge"
    verdict: VerdictFacts
    model: JudgedModel | None
    tasks: list[JudgedTask]
    checks: dict[str, JudgedCheck]
    skipped: list[str]
    """checks that do not apply"""
    records: list[JudgedRecord]
    gates: list[GateFacts]
    nulls: dict[str, Nulls]
    """of the figures of geometry"""
    against: list[Versus]
    other: "JudgeResult | None"
    seconds: Number

    @property
    def name(self) -> str:
        return "handed-in scores" if self.model is None else self.model.name


# -------------------------------------------------------------------------------------------------------------- corpus


@dataclass(kw_only=True)
class WordFacts(Part):
    """The words column of a corpus."""

    digest: str
    """short SHA-256 of the table of weights"""
    entries: Count
    """of a document, at most"""
    columns: Count


@dataclass(kw_only=True)
class CodeFacts(Part):
    """What the vectors of a shard are; two shards with other facts are never searched together."""

    model: str
    revision: str | None
    """commit on the Hub"""
    digest: str
    """short SHA-256 of the weights"""
    output: Literal["pooled", "concepts"]
    shape: list[Size]
    """of a vector: D, or C and D"""
    precision: Literal["float32", "float16", "int8", "2bit", "ubinary"]
    calibration: str | None
    """of int8: 2 * D float32, the lowest and the highest value of each number, base64"""
    max_length: Count
    """tokens after which a text is cut"""
    dtype: Literal["float32", "bfloat16"]
    """of the products while encoding"""
    words: WordFacts | None


@dataclass(kw_only=True)
class EncodePlan(Result):
    """plan.json: what is encoded and how; made once for a folder, so that a second call goes on with it."""

    kind: ClassVar = "encode_plan"
    command: ClassVar = "encode"
    code: CodeFacts
    checkpoint: str
    """as `dataset`, for the queries of a search"""
    dataset: str
    """Hub id, ./path below the working folder, or last part of a path"""
    sample: str
    """SHA-256 of some rows, by which another data set of that name is told"""
    split: str
    streaming: bool
    text_column: str
    id_column: str | None
    columns: list[str]
    documents: Count | None
    """None where a stream does not say"""
    tasks: Count
    """each writes one shard"""
    batch_tokens: Count


@dataclass(kw_only=True)
class EncodeResult(Result):
    """encode.json: a corpus that is encoded, and what that took."""

    kind: ClassVar = "encode"
    command: ClassVar = "encode"
    plan: EncodePlan
    documents: Count
    empty: Count
    """documents without words, whose vector is zeros"""
    tokens: Count
    bytes: Count
    """of all shards"""
    seconds: Number
    """of the last call"""
    documents_per_second: Number | None
    """of the last call; None where all was there"""
    tokens_per_second: Number | None
    workers: Count


@dataclass(kw_only=True)
class SegmentFacts(Part):
    """Documents that were added to an index together."""

    name: str
    documents: Count


@dataclass(kw_only=True)
class ApproximateFacts(Part):
    """The graph of an index, and what it finds."""

    recall_at_10: Score | None
    """share of the 10 nearest that are the best of the 40 which it finds"""
    queries: Count
    """documents that were asked for"""


@dataclass(kw_only=True)
class IndexFacts(Result):
    """index.json: the parts of an index; whatever it does not name is left of a build that did not end."""

    kind: ClassVar = "index"
    command: ClassVar = "search"
    generation: Count
    """counts the changes"""
    code: CodeFacts
    checkpoint: str | None
    segments: list[SegmentFacts]
    deleted: Count
    """documents of the segments that are no longer found"""
    bm25: str | None
    """column whose texts it is of"""
    approximate: ApproximateFacts | None

    @property
    def documents(self) -> int:
        return sum(each.documents for each in self.segments) - self.deleted
