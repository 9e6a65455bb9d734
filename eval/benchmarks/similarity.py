"""Sentence similarity without fine-tuning: cosines of frozen concepts, and a linear probe on them."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from sklearn.linear_model import Ridge
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...utils.progress import progress
from ...utils.results import FrozenScore, SimilarityResult, SizeScore
from ...utils.tokenizer import longest_text
from ..concepts.whitening import whitening
from ..loading.checkpoints import FAMILIES, Checkpoint, random_twin, results_folder
from ..metrics.benchmark_score import benchmark_score
from ..metrics.intervals import bootstrap_intervals, control_scores
from .registry import Task, find_benchmark, load_benchmark

RESULT_FOLDER = "similarity"
SIMILARITY_TASKS = ("stsb", "sick_relatedness", "sts12", "sts13", "sts14", "sts15", "microworld_similarity")
SPLIT = "validation"
RESAMPLES = 10_000  # of every bootstrap
BATCH_SIZE = 32  # pairs, at most
ALPHAS = tuple(float(alpha) for alpha in np.logspace(-1, 5, 13))  # of ridge regression on standardised features
SELECTION_SIZE = 0.1  # share of train on which alpha is chosen
SELECTION_SEED = 0
ZERO_SHOT = {
    "pooled": "cosine of the pooled outputs, which is what sentence-transformers gives",
    "mean": "cosine of the mean concepts",
    "weighted": "cosine of the weighted mean concepts; weight of concept c: its total variance over the training "
    "sentences, tr Cov(Z_c), as a share of the sum over concepts, so that a concept that is the same for every text "
    "counts nothing",
    "max_sim": "late interaction: mean over the concepts of one sentence of the largest cosine with a concept of the "
    "other, mean of both directions",
    "mean_whitened": "cosine of the mean concepts after centring and whitening fitted to the training sentences; "
    "directions with less than 1e-6 of the largest variance are dropped",
}
PROBE = (
    "frozen mean concepts a, b of the two sentences, features [|a - b|; a * b] standardised on train; ridge "
    "regression, alpha chosen by the primary metric on a 10 % split of train, then fitted to all of train"
)
METHODS = {**{f"cosine, {name.replace('_', ' ')}": text for name, text in ZERO_SHOT.items()}, "linear probe": PROBE}
FITTED = ("cosine, weighted", "cosine, mean whitened", "linear probe")  # which a task without training pairs has not


@dataclass(frozen=True)
class Frozen:
    """Predicted similarities (n,) of the validation pairs, by method."""

    predictions: Mapping[str, np.ndarray]
    alpha: float | None
    """of the probe; None without training pairs"""


def result_path(output_dir: str | os.PathLike, task: str) -> Path:
    return Path(output_dir) / RESULT_FOLDER / f"{task}.json"


def find_similarity_task(name: str | Task) -> Task:
    """Row of one of `SIMILARITY_TASKS`, or a task, or a task file, that is like one; errors as `find_benchmark`."""
    return find_benchmark(name, SIMILARITY_TASKS, "similarity task")


def similarity(
    checkpoint: str | os.PathLike,
    tasks: Sequence[str | Task],
    output_dir: str | os.PathLike | None = None,
    *,
    revision: str | None = None,
    max_length: int = 128,
    max_train_examples: int | None = None,
    num_concepts: Sequence[int] = (),
    dims: Sequence[int] = (),
    overwrite: bool = False,
) -> list[SimilarityResult]:
    """Score the frozen concepts of a checkpoint on similarity tasks, write `similarity/<task>.json` for each.

    Nothing of the encoder is trained. Anything fitted (weights, whitening, probe) sees training pairs only, and is
    left out for a task without any; the validation split is scored once per method.

    Args:
        checkpoint: folder or Hub id of a pretrained concept encoder, with its tokenizer.
        tasks: names in `SIMILARITY_TASKS`, task files, or tasks.
        output_dir: run folder, None for the checkpoint's own; the untrained twin is kept in `random_init/` there.
        revision: commit, branch or tag of a Hub id.
        max_length: tokens per sentence, special tokens included; bounded by the encoder's learned positions.
        max_train_examples: training pairs used, drawn at random; None: all.
        num_concepts, dims: sizes (k, d) to score the pooled output at, each k with each d: quality, bytes and time in
            `sizes` of the result, and drawn in `similarity/<task>_sizes.png`. Of one of them alone the other is whole.
        overwrite: replace existing results.

    Returns:
        What was written, in the order of the tasks: a row per method and correlation, with its bootstrap interval and
        the paired difference to the random twin.

    Raises:
        FileExistsError: a result exists and `overwrite` is not set.
        ValueError: a task without graded similarity; not a pretrained concept encoder; a size that it does not have;
            max_length or max_train_examples too small; anything that `load_benchmark` raises.
    """
    if max_length < 3:
        raise ValueError(f"max_length must be at least 3, got {max_length}")
    if max_train_examples is not None and max_train_examples < 20:
        raise ValueError(f"max_train_examples must be at least 20, got {max_train_examples}")
    output_dir = results_folder(checkpoint, output_dir)
    benchmarks = list({row.name: row for row in map(find_similarity_task, tasks)}.values())
    for benchmark in benchmarks:
        _refuse_existing(result_path(output_dir, benchmark.name), overwrite)
    opened = Checkpoint.open(checkpoint, revision, FAMILIES)
    opened.check_pretrained()
    tokenizer = opened.tokenizer
    max_length = longest_text(opened.config, max_length)
    most = {"num_concepts": opened.config.num_concepts, "dims": opened.config.concept_dim}
    for name, sizes in (("num_concepts", num_concepts), ("dims", dims)):
        wrong = [size for size in sizes if not 1 <= size <= most[name]]
        if wrong:
            raise ValueError(f"{name} must be in [1, {most[name]}], got {', '.join(map(str, wrong))}")
    results = []
    read = [(each, load_benchmark(each, ("train", SPLIT) if each.train_split else (SPLIT,))) for each in benchmarks]
    for benchmark, data in read:
        if max_train_examples is not None and "train" in data and max_train_examples < data["train"].num_rows:
            data["train"] = data["train"].shuffle(seed=SELECTION_SEED).select(range(max_train_examples))
        subjects = {"run": opened, "random_init": random_twin(opened, output_dir)}
        scored = {
            name: score_frozen(source.encoder, tokenizer, data, benchmark, max_length, name)
            for name, source in subjects.items()
        }
        result = _result(benchmark, data, scored, max_length, opened.digest)
        if num_concepts or dims:
            counts, lengths = num_concepts or [most["num_concepts"]], dims or [most["dims"]]
            pairs = data[SPLIT]
            result.sizes = score_sizes(opened.encoder, tokenizer, pairs, benchmark, max_length, counts, lengths)
            from ..report.plots import plot_sizes

            plot_sizes(result.sizes, result_path(output_dir, f"{benchmark.name}_sizes").with_suffix(".png"))
        result.save(result_path(output_dir, benchmark.name))
        result.folder = Path(output_dir)
        results.append(result)
    return results


def score_frozen(
    encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: DatasetDict,
    benchmark: Task,
    max_length: int,
    description: str,
) -> Frozen:
    """Score the validation pairs by every one of `METHODS`, of `FITTED` where there are training pairs.

    Args:
        encoder: base model that gives `last_hidden_state` (B, C, D) and `pooler_output` (B, P).
        tokenizer: its tokenizer.
        data: validation, and train where there is one, as `load_benchmark` gives them.
        benchmark: the task.
        max_length: tokens per sentence.
        description: of the progress bar.

    Source: max-sim, Khattab & Zaharia 2020, ColBERT, arXiv:2004.12832, section 3.3; whitening, Su et al. 2021,
        arXiv:2103.15316.
    Differs: max-sim over concepts instead of tokens, a mean instead of a sum, and symmetrised.
    """
    size, validation, train = encoder.config.hidden_size, data[SPLIT], data.get("train")
    weights, means = None, []
    if train is not None:
        means = [np.empty((len(train), size)) for _ in range(2)]
        variance = _RunningVariance()
        named = f"{benchmark.name}: {description}"
        for rows, outputs in _encoded_pairs(encoder, tokenizer, train, max_length, named):
            for side, (z, _) in enumerate(outputs):  # (b, C, D)
                means[side][rows] = z.mean(1)
                variance.add(z)
        weights = variance.shares()  # (C,)
    scores = {name: np.empty(len(validation)) for name in ("pooled", "weighted", "max_sim")}
    own: list[np.ndarray] = [np.empty((len(validation), size)) for _ in range(2)]
    for rows, outputs in _encoded_pairs(encoder, tokenizer, validation, max_length, f"{benchmark.name}: scoring"):
        concepts, pooled = zip(*outputs, strict=True)
        for side, z in enumerate(concepts):
            own[side][rows] = z.mean(1)
        scores["pooled"][rows] = cosine(*(vectors.double().numpy() for vectors in pooled))
        if weights is not None:
            scores["weighted"][rows] = cosine(
                *(torch.einsum("c,bcd->bd", weights, z.double()).numpy() for z in concepts)
            )
        scores["max_sim"][rows] = max_sim(*concepts)
    scores["mean"] = cosine(*own)
    alpha = None
    if train is not None:
        mean, matrix = whitening(np.concatenate(means))
        scores["mean_whitened"] = cosine(*((side - mean) @ matrix for side in own))
        probe = _probe(pair_features(*means), np.asarray(train["label"]), pair_features(*own), benchmark)
        scores["probe"], alpha = probe
    places = dict(zip(METHODS, (*ZERO_SHOT, "probe"), strict=True))
    return Frozen({name: scores[places[name]] for name in methods_of(benchmark)}, alpha)


def methods_of(benchmark: Task) -> dict[str, str]:
    """Of `METHODS`, those that a task can be scored by."""
    return {name: text for name, text in METHODS.items() if benchmark.train_split or name not in FITTED}


def score_sizes(
    encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    benchmark: Task,
    max_length: int,
    num_concepts: Sequence[int],
    dims: Sequence[int],
) -> list[SizeScore]:
    """Score cosines of the pooled output of pairs, read into k concepts of d numbers, for each k and d."""
    labels, scores = np.asarray(pairs["label"]), []
    for count in num_concepts:
        for dim in dims:
            predictions, numbers, start = np.empty(len(pairs)), 0, time.process_time()
            named, size = f"{benchmark.name}: {count} x {dim}", {"num_concepts": count, "dim": dim}
            for rows, ((_, a), (_, b)) in _encoded_pairs(encoder, tokenizer, pairs, max_length, named, **size):
                numbers = a.shape[1]
                predictions[rows] = cosine(a.double().numpy(), b.double().numpy())
            seconds = (time.process_time() - start) / (2 * len(pairs))
            metric = benchmark.primary_metric
            value = benchmark_score(benchmark.scored_as, predictions, labels)[metric]
            intervals = bootstrap_intervals(benchmark.scored_as, predictions, labels, resamples=RESAMPLES)
            score = SizeScore(
                value=value,
                interval=intervals[metric],
                num_concepts=count,
                dim=dim,
                bytes=4 * numbers,
                seconds=seconds,
            )
            scores.append(score)
    return scores


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) cosines of the rows of two (n, D) arrays; 0 where one of them is 0."""
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.divide((a * b).sum(-1), norms, out=np.zeros(len(a)), where=norms > 0)


def max_sim(a: Tensor, b: Tensor) -> np.ndarray:
    """(B,) symmetrised late-interaction similarity of concepts a, b (B, C, D): a mean of cosines, in [-1, 1]."""
    a, b = (torch.nn.functional.normalize(z.double(), dim=-1) for z in (a, b))
    cosines = a @ b.mT  # (B, C, C)
    return ((cosines.amax(2).mean(1) + cosines.amax(1).mean(1)) / 2).numpy()


def pair_features(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, 2 D) features `[|a - b|; a * b]` of pairs of (n, D) vectors, the same for (b, a)."""
    return np.concatenate([np.abs(a - b), a * b], axis=1)


class _RunningVariance:
    """Total variance of each concept over texts, tr Cov(Z_c), from batches of concepts."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | float = 0.0  # (C, D)
        self.squares: Tensor | float = 0.0  # (C,) sum of squared distances to the mean

    def add(self, z: Tensor) -> None:
        """z (B, C, D). Parallel update of Chan, Golub & LeVeque 1983, which loses no digits to a large mean."""
        z = z.double()
        mean, size = z.mean(0), len(z)
        difference = mean - self.mean
        total = self.count + size
        self.squares = self.squares + (z - mean).square().sum((0, 2))
        self.squares = self.squares + difference.square().sum(-1) * self.count * size / total
        self.mean = self.mean + difference * size / total
        self.count = total

    def shares(self) -> Tensor:
        """(C,) of the sum over concepts; equal ones where nothing varies."""
        assert isinstance(self.squares, Tensor)
        if not self.squares.sum() > 0:
            return torch.full_like(self.squares, 1 / len(self.squares))
        return self.squares / self.squares.sum()


@torch.inference_mode()
def _encoded_pairs(
    encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Dataset,
    max_length: int,
    description: str,
    **sizes: int,
) -> Iterator[tuple[np.ndarray, list[tuple[Tensor, Tensor]]]]:
    """Row numbers (b,) and of each sentence concepts (b, C, D) and pooled output (b, P), like lengths together."""
    options = {"truncation": True, "max_length": max_length, "return_token_type_ids": False}
    sides = [tokenizer(data[name][:], **options)["input_ids"] for name in ("sentence1", "sentence2")]
    order = np.argsort([len(a) + len(b) for a, b in zip(*sides, strict=True)], kind="stable")
    for start in progress(range(0, len(order), BATCH_SIZE), desc=description, leave=False):
        rows = order[start : start + BATCH_SIZE]
        batch = tokenizer.pad({"input_ids": [side[row] for side in sides for row in rows]}, return_tensors="pt")
        batch = {name: batch[name].to(encoder.device) for name in ("input_ids", "attention_mask")}
        found = encoder(**batch, **sizes)
        parts = [each.float().cpu().split(len(rows)) for each in (found.last_hidden_state, found.pooler_output)]
        yield rows, list(zip(*parts, strict=True))


def _probe(features: np.ndarray, labels: np.ndarray, unseen: np.ndarray, benchmark: Task) -> tuple[np.ndarray, float]:
    """(n,) predictions for unseen features, and the alpha chosen on a split of the training pairs."""
    options = {"test_size": SELECTION_SIZE, "random_state": SELECTION_SEED}
    fit_on, select_on = train_test_split(np.arange(len(labels)), **options)

    def score(alpha: float) -> float:
        model = _ridge(alpha).fit(features[fit_on], labels[fit_on])
        scores = benchmark_score(benchmark.scored_as, model.predict(features[select_on]), labels[select_on])
        value = scores[benchmark.primary_metric]
        return -np.inf if value is None else value

    alpha = max(ALPHAS, key=score)
    return _ridge(alpha).fit(features, labels).predict(unseen), alpha


def _ridge(alpha: float):
    return make_pipeline(StandardScaler(), Ridge(alpha=alpha))


def _result(
    benchmark: Task, data: DatasetDict, scored: Mapping[str, Frozen], max_length: int, weights: str
) -> SimilarityResult:
    labels, name = np.asarray(data[SPLIT]["label"]), benchmark.scored_as
    own, twin = scored["run"], scored["random_init"]
    rows = []
    for method, predictions in own.predictions.items():
        values = benchmark_score(name, predictions, labels)
        intervals = bootstrap_intervals(name, predictions, labels, resamples=RESAMPLES)
        beside = control_scores(name, predictions, twin.predictions[method], labels, resamples=RESAMPLES)
        rows += [
            FrozenScore(
                method=method,
                metric=metric,
                value=value,
                interval=intervals[metric],
                random_init=beside[metric],
            )
            for metric, value in values.items()
        ]
    return SimilarityResult(
        task=benchmark.name,
        split=SPLIT,
        primary_metric=benchmark.primary_metric,
        train_examples=data["train"].num_rows if "train" in data else None,
        validation_examples=data[SPLIT].num_rows,
        max_length=max_length,
        weights=weights,
        methods=methods_of(benchmark),
        alpha=own.alpha,
        alpha_of_twin=twin.alpha,
        rows=rows,
        sizes=[],
    )


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; give --overwrite to replace it")
