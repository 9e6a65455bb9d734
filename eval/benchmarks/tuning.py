"""Fine-tuning under a protocol, in cells that a killed run continues from: sweep on a share of train, then seeds."""

import hashlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from datasets import Dataset
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from ...configuration_concept import ConceptEncoderConfig
from ...trainers.data.tables import check_varied
from ...utils.files import whole_folder
from ...utils.results import BagCell, SeedCell, Setting, SweepCell, SweepRow
from ...utils.tokenizer import PAIR_HEAD, fit_saved_tokenizer, longest_text
from ..loading.checkpoints import Checkpoint, pooled_vectors, read_texts
from ..metrics.benchmark_score import benchmark_score
from .baselines import regularised
from .protocols import Protocol
from .registry import Task, load_benchmark
from .similarity import pair_features

SUBSET_SEED = 0  # of the share to select on and of `max_train_examples`: the same for every seed and control
MODEL_FOLDER = "model"
TOKENS_AT_ONCE = 65_536  # of a batch that is trained on, padding included; a larger batch is accumulated
FROZEN_BATCH = 32  # texts
FROZEN_STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # of a linear model of pooled outputs
FROZEN_EXAMPLES = 2_000  # that choose among them, at most
BATCHING = "length-grouped"  # part of what decides a cell: cells of other batching do not match


@dataclass(frozen=True, kw_only=True)
class PreparedTask:
    """A benchmark ready to train on: loaded, capped, tokenised."""

    benchmark: Task
    protocol: Protocol
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    """tokens per example, after the bound of learned positions"""
    texts: Mapping[str, Dataset]
    """train and validation as `load_benchmark` gives them, train capped"""
    encoded: Mapping[str, Dataset]
    """the same with `label` and, for each text that is encoded, `input_ids` and `attention_mask`; names of the two
    texts of a pair that is encoded apart end in `_a` and `_b`"""
    label_range: tuple[float, float]
    """of the training labels, which a cosine is fitted to as 0 and 1"""
    digest: str
    """of the encoded data"""

    @property
    def epochs(self) -> int:
        return self.protocol.epochs_for(self.benchmark.name)

    @property
    def bi_encoder(self) -> bool:
        return is_bi_encoder(self.benchmark, self.protocol)

    @property
    def pair_comparison(self) -> str:
        """of the head of texts encoded apart"""
        return "cosine" if self.benchmark.problem_type == "regression" else "features"

    @property
    def head(self) -> str:
        return PAIR_HEAD if self.bi_encoder else self.benchmark.head


Cell = TypeVar("Cell", SweepCell, SeedCell, BagCell)


@dataclass(frozen=True)
class Tuned:
    """Sweep and seeds of one checkpoint."""

    selected: Setting
    sweep: list[SweepRow]
    """empty when the protocol selects nothing"""
    runs: list[SeedCell]


def joined(benchmark: Task, folds: Sequence[Tuned], labels: np.ndarray) -> Tuned:
    """Folds of a task, one after the other, as one: each seed's predictions are scored together, on (n,) labels.

    What is selected is selected in each fold anew; the first fold's is what is shown.
    """
    first = folds[0]
    if len(folds) == 1:
        return first
    runs = []
    for cells in zip(*(fold.runs for fold in folds), strict=True):
        predictions = [value for cell in cells for value in cell.predictions]
        runs.append(
            replace(
                cells[0],
                predictions=predictions,
                metrics=benchmark_score(benchmark.scored_as, predictions, labels),
                steps=sum(cell.steps for cell in cells),
                padding_share=float(np.mean([cell.padding_share for cell in cells])),
                seconds=sum(cell.seconds for cell in cells),
            )
        )
    return Tuned(first.selected, first.sweep, runs)


def is_bi_encoder(benchmark: Task, protocol: Protocol) -> bool:
    """Whether the two texts of an example are encoded apart."""
    return protocol.comparison == "bi_encoder" and len(benchmark.sentence_columns) == 2


def prepare_task(
    benchmark: Task,
    protocol: Protocol,
    tokenizer: PreTrainedTokenizerBase,
    config: ConceptEncoderConfig,
    fold: int = 0,
) -> PreparedTask:
    """Load, cap and tokenise a benchmark; of one with folds, that fold is the validation split.

    Raises:
        ValueError: anything that `load_benchmark` raises; training examples of one label after the cap; a tokenizer
            without a template for texts that are encoded as one.
    """
    bi_encoder = is_bi_encoder(benchmark, protocol)
    max_length = longest_text(config, protocol.max_length)
    texts = load_benchmark(benchmark, fold=fold)
    cap = protocol.max_train_examples
    if cap is not None and cap < texts["train"].num_rows:
        texts["train"] = texts["train"].shuffle(seed=SUBSET_SEED).select(range(cap))
        check_varied(texts["train"]["label"])
    if not bi_encoder and len(benchmark.sentence_columns) == 2 and not tokenizer.num_special_tokens_to_add(pair=True):
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} has no template, so nothing would separate the two texts of "
            f"{benchmark.name}; compare them by --comparison bi_encoder, or give the tokenizer a post-processor"
        )

    def encode(batch: Mapping[str, list]) -> Mapping[str, list]:
        sentences = [batch[name] for name in ("sentence1", "sentence2") if name in batch]
        options = {"truncation": True, "max_length": max_length, "return_token_type_ids": False}
        if not bi_encoder:
            return tokenizer(*sentences, **options)
        sides = zip("ab", sentences, strict=True)
        return {f"{name}_{side}": rows for side, texts in sides for name, rows in tokenizer(texts, **options).items()}

    columns = [name for name in texts["train"].column_names if name != "label"]
    encoded = texts.map(encode, batched=True, remove_columns=columns, desc=f"Tokenising {benchmark.name}")
    digest = hashlib.sha256()
    for split in ("train", "validation"):
        digest.update(json.dumps([*_token_ids(encoded[split]), encoded[split]["label"][:]]).encode())
    labels = texts["train"]["label"][:]
    return PreparedTask(
        benchmark=benchmark,
        protocol=protocol,
        tokenizer=tokenizer,
        max_length=max_length,
        texts=texts,
        encoded=encoded,
        label_range=(min(labels), max(labels)),
        digest=digest.hexdigest()[:16],
    )


class Cells:
    """The finished pieces of a run, one JSON file each; a piece that is there is read, not computed again."""

    def __init__(self, folder: Path, bar: tqdm):
        self.folder = folder
        self.bar = bar

    def get(
        self,
        name: str,
        kind: type[Cell],
        settings: dict[str, Any],
        compute: Callable[[dict[str, Any]], Cell],
        complete: bool = True,
    ) -> Cell:
        """The cell of that name, computed and written unless it is there with the same settings, and `complete`.

        Raises:
            ValueError: it is there with other settings, or is no such cell.
        """
        self.bar.set_description(f"{self.folder.name}: {name}")
        self.bar.set_postfix_str("")
        path = self.folder / f"{name}.json"
        settings = json.loads(json.dumps(settings))
        if path.exists():
            kept: dict[str, Any] = kind.load(path).settings
            changed = sorted(key for key in {*kept, *settings} if kept.get(key) != settings.get(key))
            if changed:
                differences = ", ".join(f"{key} {kept.get(key)!r}, now {settings.get(key)!r}" for key in changed)
                raise ValueError(f"{path} has other settings ({differences}); give --overwrite to start again")
        if not path.is_file() or not complete:
            compute(settings).save(path)
        self.bar.update()
        return kind.load(path)


def count_cells(protocol: Protocol) -> int:
    """Cells that `run_protocol` fills."""
    return (len(protocol.grid) if protocol.selection_size else 0) + len(protocol.seeds)


def run_protocol(
    subject: str, checkpoint: Checkpoint, task: PreparedTask, cells: Cells, save_model: bool = False
) -> Tuned:
    """Sweep and seeds of one checkpoint.

    Args:
        subject: prefix of the cells' names.
        checkpoint: what to train.
        task: what to train on.
        cells: where finished pieces are kept.
        save_model: keep the model of the first seed, in `model` next to the cells.

    Raises:
        ValueError: a seed's predictions are not finite; cells of other settings; a share too small to select on.
    """
    protocol = task.protocol
    sweep: list[SweepRow] = []
    if protocol.frozen:
        selected = Setting(learning_rate=None, batch_size=None, epochs=None)
        settings = {"task": task.benchmark.name, "data": task.digest, "weights": checkpoint.digest, "frozen": True}
        compute = partial(_frozen_cell, checkpoint, task)
        return Tuned(selected, sweep, [cells.get(f"{subject}.frozen", SeedCell, settings, compute)])
    if protocol.selection_size:
        fit_on, select_on = _selection_split(task)
        for rate, size in protocol.grid:
            setting = Setting(learning_rate=rate, batch_size=size, epochs=task.epochs)
            settings = _settings(checkpoint, task, setting, protocol.seeds[0])
            settings |= {"selection_size": protocol.selection_size, "patience": protocol.patience}
            cell = cells.get(
                f"{subject}.sweep.lr={rate}.batch={size}",
                SweepCell,
                settings,
                partial(_sweep_cell, checkpoint, task, fit_on, select_on, setting, cells.bar),
            )
            sweep.append(cell.row)
        best = max(sweep, key=lambda row: _rank(task.benchmark, row.metrics))  # the first of equals
        selected = Setting(**{each.name: getattr(best, each.name) for each in fields(Setting)})
    else:
        rate, size = protocol.grid[0]
        selected = Setting(learning_rate=rate, batch_size=size, epochs=task.epochs)
    runs: list[SeedCell] = []
    for seed in protocol.seeds:
        model = cells.folder / MODEL_FOLDER if save_model and seed == protocol.seeds[0] else None
        run = cells.get(
            f"{subject}.seed={seed}",
            SeedCell,
            _settings(checkpoint, task, selected, seed),
            partial(_seed_cell, checkpoint, task, selected, seed, model, cells.bar),
            complete=model is None or model.is_dir(),
        )
        runs.append(run)
    return Tuned(selected, sweep, runs)


def _settings(checkpoint: Checkpoint, task: PreparedTask, setting: Setting, seed: int) -> dict[str, Any]:
    """Everything that decides what comes out of a cell."""
    protocol = task.protocol
    names = ("weight_decay", "warmup_steps", "lr_scheduler_type", "max_grad_norm", "bf16")
    return {
        "task": task.benchmark.name,
        "head": task.head,
        "batching": BATCHING,
        "data": task.digest,
        "weights": checkpoint.digest,
        "scheduled_epochs": task.epochs,
        "seed": seed,
        **asdict(setting),
        **{name: getattr(protocol, name) for name in names},
    }


def _selection_split(task: PreparedTask) -> tuple[Dataset, Dataset]:
    """The training split without and with the share to select on, by length; classes in equal proportion in both."""
    train, size, row = task.encoded["train"], task.protocol.selection_size, task.benchmark
    needed = max(2, row.num_labels)
    if min(math.ceil(size * len(train)), math.floor((1 - size) * len(train))) < needed:
        raise ValueError(
            f"selection_size ({size}) of the {len(train)} training examples of {row.name} leaves fewer than {needed} "
            "on one side; give more examples or another share"
        )
    stratify = None if row.problem_type == "regression" else train["label"][:]
    options = {"test_size": size, "random_state": SUBSET_SEED, "stratify": stratify}
    fit_on, select_on = train_test_split(np.arange(len(train)), **options)
    select_on = train.select(np.sort(select_on))
    return train.select(np.sort(fit_on)), select_on.select(_by_length(select_on))


def _by_length(data: Dataset) -> np.ndarray:
    """(n,) row numbers from the shortest example to the longest, for batches of little padding."""
    return np.argsort(_lengths(data), kind="stable")


def _token_ids(data: Dataset) -> list[list[list[int]]]:
    """Rows of ids of each text that is encoded: one column, or two."""
    return [data[name][:] for name in data.column_names if name.startswith("input_ids")]


def _lengths(data: Dataset) -> list[int]:
    """(n,) tokens of each example."""
    return [sum(map(len, texts)) for texts in zip(*_token_ids(data), strict=True)]


def _rank(benchmark: Task, metrics: Mapping[str, float | None]) -> float:
    """What selection maximises: the primary metric, undefined below everything."""
    score = metrics[benchmark.primary_metric]
    if score is None:
        return -math.inf
    return score if benchmark.greater_is_better else -score


def _sweep_cell(
    checkpoint: Checkpoint,
    task: PreparedTask,
    fit_on: Dataset,
    select_on: Dataset,
    setting: Setting,
    bar: tqdm,
    settings: dict[str, Any],
) -> SweepCell:
    start = time.monotonic()
    watch = _Watch(task, setting, bar)
    _train(checkpoint, task, setting, task.protocol.seeds[0], watch, fit_on, select_on)
    best = max(watch.by_epoch, key=lambda metrics: _rank(task.benchmark, metrics))
    return SweepCell(
        settings=settings,
        row=SweepRow(
            learning_rate=setting.learning_rate,
            batch_size=setting.batch_size,
            epochs=watch.by_epoch.index(best) + 1,
            metrics=best,
        ),
        metrics_by_epoch=watch.by_epoch,
        seconds=round(time.monotonic() - start, 3),
    )


def _seed_cell(
    checkpoint: Checkpoint,
    task: PreparedTask,
    setting: Setting,
    seed: int,
    model_folder: Path | None,
    bar: tqdm,
    settings: dict[str, Any],
) -> SeedCell:
    start = time.monotonic()
    watch = _Watch(task, setting, bar)
    trainer, keys = _train(checkpoint, task, setting, seed, watch, task.encoded["train"])
    validation = task.encoded["validation"]
    order = _by_length(validation)  # the predictions go back into the order of the split
    logits = np.empty((len(validation), task.benchmark.num_labels), dtype=np.float32)
    logits[order] = trainer.predict(validation.select(order)).predictions
    if not np.isfinite(logits).all():
        raise ValueError(
            f"Training on {task.benchmark.name} diverged: predictions are not finite; lower learning_rates "
            f"(here {setting.learning_rate})"
        )
    predictions = _predictions(task.benchmark, logits)
    if task.bi_encoder and task.pair_comparison == "cosine":
        low, high = task.label_range
        predictions = predictions * (high - low) + low
    if model_folder is not None:
        _save_model(trainer, model_folder)
    return SeedCell(
        settings=settings,
        seed=seed,
        metrics=benchmark_score(task.benchmark.scored_as, predictions, validation["label"][:]),
        predictions=predictions.tolist(),
        steps=trainer.state.global_step,
        padding_share=trainer.padding_share,
        seconds=round(time.monotonic() - start, 3),
        device=trainer.args.device.type,
        head=task.head,
        **keys,
        log_history=trainer.state.log_history,
    )


def _frozen_cell(checkpoint: Checkpoint, task: PreparedTask, settings: dict[str, Any]) -> SeedCell:
    """A linear model of standardised pooled outputs; of a pair (a, b) of [|a - b|; a * b]."""
    start = time.monotonic()
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    encoder = checkpoint.encoder.to(device)
    features: dict[str, np.ndarray] = {}
    for split, data in task.texts.items():
        sides = []
        for name in (name for name in ("sentence1", "sentence2") if name in data.column_names):
            read = read_texts(encoder, task.tokenizer, data[name][:], FROZEN_BATCH, task.max_length)
            sides.append(pooled_vectors(checkpoint.config, read, len(data)).astype(np.float64))
        features[split] = sides[0] if len(sides) == 1 else pair_features(*sides)
    scale = StandardScaler().fit(features["train"])
    train, unseen = scale.transform(features["train"]), scale.transform(features["validation"])
    labels = np.asarray(task.texts["train"]["label"])
    model = regularised(task.benchmark, train, labels, FROZEN_STRENGTHS, FROZEN_EXAMPLES).fit(train, labels)
    predictions = model.predict(unseen)
    return SeedCell(
        settings=settings,
        seed=task.protocol.seeds[0],
        metrics=benchmark_score(task.benchmark.scored_as, predictions, task.texts["validation"]["label"][:]),
        predictions=predictions.tolist(),
        steps=0,
        padding_share=0.0,
        seconds=round(time.monotonic() - start, 3),
        device=device.type,
        head=type(model).__name__,
        newly_initialized=[],
        dropped=[],
        log_history=[],
    )


def _predictions(benchmark: Task, logits: np.ndarray) -> np.ndarray:
    """(n,) class ids, or values for regression, of (n, num_labels) logits."""
    return logits[:, 0] if benchmark.problem_type == "regression" else logits.argmax(axis=-1)


class ShuffledLengthGroups(LengthGroupedSampler):
    """Batches of examples of similar length, in random order.

    Differs from transformers' sampler, whose batches go from the longest to the shortest, over and over.
    """

    def __iter__(self) -> Iterator[int]:
        order = list(super().__iter__())
        whole = len(order) - len(order) % self.batch_size
        batches = torch.tensor(order[:whole], dtype=torch.long).view(-1, self.batch_size)
        yield from batches[torch.randperm(len(batches))].flatten().tolist()
        yield from order[whole:]


class LengthGroupedTrainer(Trainer):
    """Trains on length-grouped batches and counts their padding; what it predicts on stays in order.

    `train_sampling_strategy="group_by_length"` would reorder that too, and put predictions next to wrong labels.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._real: Tensor | int = 0
        self._positions = 0

    @property
    def padding_share(self) -> float:
        """Of the positions trained on, in [0, 1)."""
        return 1 - int(self._real) / max(self._positions, 1)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> ShuffledLengthGroups:
        data = self.train_dataset if train_dataset is None else train_dataset
        whole = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return ShuffledLengthGroups(whole, lengths=_lengths(data))

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch=None) -> Tensor:
        for mask in (inputs[name] for name in inputs if name.startswith("attention_mask")):
            self._real = self._real + mask.sum()  # on the device, without waiting for it
            self._positions += mask.numel()
        return super().training_step(model, inputs, num_items_in_batch)


class PairCollator:
    """Pads the two texts of each pair apart, and moves labels that are no classes from `label_range` to [0, 1]."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, label_range: tuple[float, float]):
        self.tokenizer = tokenizer
        self.label_range = label_range

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = {}
        for side in "ab":
            texts = [{name: row[f"{name}_{side}"] for name in ("input_ids", "attention_mask")} for row in rows]
            padded = self.tokenizer.pad(texts, return_tensors="pt")
            batch |= {f"{name}_{side}": tensor for name, tensor in padded.items()}
        low, high = self.label_range
        labels = torch.tensor([row["label"] for row in rows])
        return {**batch, "labels": (labels - low) / (high - low) if labels.is_floating_point() else labels}


class _Watch(TrainerCallback):
    """Shows the epoch, stops after the setting's epochs, and earlier when the score no longer rises."""

    def __init__(self, task: PreparedTask, setting: Setting, bar: tqdm):
        self.task = task
        self.epochs = setting.epochs or task.epochs
        self.bar = bar
        self.by_epoch: list[dict[str, float | None]] = []

    def on_epoch_end(self, args, state, control, **kwargs):
        done = round(state.epoch)
        self.bar.set_postfix_str(f"epoch {done}/{self.epochs}")
        control.should_training_stop |= done >= self.epochs

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        row = self.task.benchmark
        self.by_epoch.append({name: metrics.get(f"eval_{name}") for name in row.metrics})
        ranks = [_rank(row, metrics) for metrics in self.by_epoch]
        control.should_training_stop |= len(ranks) - 1 - int(np.argmax(ranks)) >= self.task.protocol.patience


def _train(
    checkpoint: Checkpoint,
    task: PreparedTask,
    setting: Setting,
    seed: int,
    watch: _Watch,
    train: Dataset,
    select_on: Dataset | None = None,
) -> tuple[LengthGroupedTrainer, dict[str, list[str]]]:
    """The trained Trainer and the keys of its loading; with `select_on`, scored on it after each epoch."""
    row = task.benchmark
    set_seed(seed)  # before the head is drawn
    fields: dict[str, Any] = {"num_labels": row.num_labels, "problem_type": row.problem_type}
    collator: Callable = DataCollatorWithPadding(task.tokenizer)
    if task.bi_encoder:
        fields["pair_comparison"] = task.pair_comparison
        collator = PairCollator(task.tokenizer, task.label_range)
    model, keys = checkpoint.load_classifier(task.head, **fields)

    def score(prediction: EvalPrediction) -> dict[str, float]:
        if not np.isfinite(prediction.predictions).all():
            return {}
        scores = benchmark_score(row.scored_as, _predictions(row, prediction.predictions), prediction.label_ids)
        return {name: value for name, value in scores.items() if value is not None}

    with tempfile.TemporaryDirectory(prefix="finetune-") as scratch:
        trainer = LengthGroupedTrainer(
            model=model,
            args=_arguments(task, setting, seed, scratch, eval_strategy="no" if select_on is None else "epoch"),
            train_dataset=train,
            eval_dataset=select_on,
            data_collator=collator,
            processing_class=task.tokenizer,
            compute_metrics=None if select_on is None else score,
            callbacks=[watch],
        )
        for callback in (PrinterCallback, ProgressCallback):  # the bar over the cells is the display
            trainer.remove_callback(callback)
        trainer.train()
    return trainer, keys


def _arguments(task: PreparedTask, setting: Setting, seed: int, scratch: str, eval_strategy: str) -> TrainingArguments:
    """Of one training run; ValueError where more than one device would share a batch."""
    protocol = task.protocol
    assert setting.batch_size is not None and setting.learning_rate is not None
    texts = _texts_at_once(task, setting.batch_size)
    arguments = TrainingArguments(
        output_dir=scratch,
        per_device_train_batch_size=texts,
        gradient_accumulation_steps=setting.batch_size // texts,
        per_device_eval_batch_size=texts,
        num_train_epochs=task.epochs,
        learning_rate=setting.learning_rate,
        weight_decay=protocol.weight_decay,
        warmup_steps=protocol.warmup_steps,
        lr_scheduler_type=protocol.lr_scheduler_type,
        max_grad_norm=protocol.max_grad_norm,
        seed=seed,
        bf16=protocol.bf16,
        logging_steps=0.05,  # share of all steps
        eval_strategy=eval_strategy,
        save_strategy="no",
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to="none",
    )
    if arguments.train_batch_size * arguments.world_size != texts:
        raise ValueError(
            f"Fine-tuning uses one device, and sees {max(arguments.n_gpu, arguments.world_size)}: batches would "
            f"be larger than batch_size ({setting.batch_size}); set CUDA_VISIBLE_DEVICES to one of them"
        )
    return arguments


def _texts_at_once(task: PreparedTask, batch_size: int) -> int:
    """Of a batch, the largest equal part of at most `TOKENS_AT_ONCE`; the gradients of the parts are summed."""
    longest = max(_lengths(task.encoded["train"]))
    parts = [size for size in range(1, batch_size + 1) if batch_size % size == 0]
    return max([size for size in parts if size * longest <= TOKENS_AT_ONCE], default=1)


def _save_model(trainer: Trainer, folder: Path) -> None:
    """Complete under its name, or not there at all."""
    with whole_folder(folder) as staged:
        # Not the Trainer's own, which pickles its arguments next to the weights.
        trainer.model.save_pretrained(staged)
        trainer.processing_class.save_pretrained(staged)
        fit_saved_tokenizer(staged, trainer.model.config)
        shutil.rmtree(folder, ignore_errors=True)
