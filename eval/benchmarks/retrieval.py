"""Retrieval without fine-tuning: which documents the run finds, next to BM25, codes of words and other encoders."""

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ...trainers.data.corpora import MICROWORLD
from ...trainers.data.microworld import microworld_corpus
from ...trainers.data.tables import open_tables
from ...utils.progress import progress
from ...utils.results import ControlScore, Environment, RankerRow, RetrievalResult
from ..corpus.searching import BESIDE
from ..corpus.words import WordWeights
from ..loading.checkpoints import FAMILIES, Checkpoint, pooled_vectors, random_twin, read_texts, results_folder
from ..metrics.chance import judge
from ..metrics.ranking import PRIMARY, best, chance_scores, control_score, mean_figure, ranking_scores
from .rankers import (
    BM25,
    SIZES,
    Ranker,
    Remembered,
    Scored,
    bm25,
    cosines,
    fused_ranks,
    fused_scores,
    kept,
    sentence_encoders,
    token_means,
    untrained_codes,
)
from .retrieval_tasks import Collection, RetrievalTask, find_retrieval_task, load_collection

RESULT_FOLDER = "retrieval"
WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 4.0)  # of the run next to BM25
TRAIN_QUERIES = 500  # from which the weight is chosen, at most
WORD_TEXTS = 35_000  # of a corpus that give word weights
WORDS = f"words_pairs_{SIZES[-1]}"  # the words code that the run is fused with


def result_path(output_dir: str | os.PathLike, task: str) -> Path:
    return Path(output_dir) / RESULT_FOLDER / f"{task}.json"


def retrieval(
    checkpoint: str | os.PathLike,
    tasks: Sequence[str | RetrievalTask],
    output_dir: str | os.PathLike | None = None,
    *,
    words: str | os.PathLike | None = None,
    compare: Sequence[str] = (),
    revision: str | None = None,
    max_length: int | None = None,
    data_dir: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    overwrite: bool = False,
) -> list[RetrievalResult]:
    """Find documents by the pooled output of a checkpoint, write `retrieval/<task>.json` for each task.

    Nothing is trained; search is exact, by cosine. A task that has its result is not done again, so that the same
    call goes on where it was stopped. What knows nothing of the run is kept on the disk for the next one.

    Args:
        checkpoint: folder or Hub id of a pretrained concept encoder, with its tokenizer.
        tasks: names in `RETRIEVAL_TASKS`, task files, or tasks.
        output_dir: run folder, None for the checkpoint's own; the untrained twin is kept in `random_init/` there.
        words: what words weigh in the language: a file of `WordWeights`, or a corpus with a column `text` (Hub id,
            folder, file or microworld) to fit them on with the run's tokenizer, never one that is searched. None:
            microworld, where all tasks are generated from it.
        compare: models of sentence-transformers, folders or Hub ids, to lay next to the run.
        revision: commit, branch or tag of the checkpoint's Hub id.
        max_length: tokens after which the run's texts are cut; None: none but its limit of learned positions.
        data_dir: folder with copies of data sets, each in the folder of its id.
        cache_dir: of the scores that are kept; None: in the cache of `datasets`.
        overwrite: replace existing results.

    Returns:
        What is written, in the order of the tasks: a row per ranker with every metric, its interval over queries, and
        the paired difference of the run to it.

    Raises:
        FileExistsError: a result of other weights or settings exists, and `overwrite` is not set.
        ValueError: an unknown task; no words; not a pretrained concept encoder; max_length below 3; packages of the
            extra `retrieval` that are not installed; anything that `load_collection` raises.
    """
    if max_length is not None and max_length < 3:
        raise ValueError(f"max_length must be at least 3, got {max_length}")
    output_dir = results_folder(checkpoint, output_dir)
    rows = list({row.name: row for row in map(find_retrieval_task, tasks)}.values())
    opened = Checkpoint.open(checkpoint, revision, FAMILIES)
    opened.check_pretrained()
    weights = _word_weights(words, rows, opened.tokenizer)
    settings = {
        "weights": opened.digest,
        "words": weights.digest,
        "max_length": max_length,
        "compare": [Path(each).name for each in compare],
    }
    done = {row.name: _existing(result_path(output_dir, row.name), settings, overwrite) for row in rows}
    others = [*(bm25(name, weights) for name in BM25), *untrained_codes(weights)]
    others += [each for name in compare for each in sentence_encoders(name)]
    results: list[RetrievalResult] = []
    own: list[Ranker] = []
    for row in progress(rows, desc="Retrieval", unit="task"):
        result = done[row.name]
        if result is None:
            own = own or _own_rankers(opened, random_twin(opened, output_dir), max_length)
            result = _judged(row, own, others, settings, data_dir, cache_dir)
            result.save(result_path(output_dir, row.name))
        result.folder = Path(output_dir)
        results.append(result)
    return results


def _word_weights(
    words: str | os.PathLike | None, tasks: Sequence[RetrievalTask], tokenizer: PreTrainedTokenizerBase
) -> WordWeights:
    if words is None:
        if any(task.dataset_id != MICROWORLD for task in tasks):
            raise ValueError(
                "words must be a file of word weights, or a corpus of the language with a column text: what words "
                "weigh is never taken from the corpus that is searched"
            )
        words = MICROWORLD
    if words == MICROWORLD:
        return WordWeights.fit(microworld_corpus("train", 5000)["text"][:], tokenizer)
    if os.fspath(words).endswith(".safetensors"):
        return WordWeights.load(words)
    table = next(iter(open_tables(words, field="words").values()))
    table.check_texts("text", "column of words")
    return WordWeights.fit((text or "" for text in islice(table.rows["text"], WORD_TEXTS)), tokenizer)


def _existing(path: Path, settings: dict, overwrite: bool) -> RetrievalResult | None:
    if overwrite or not path.exists():
        return None
    found = RetrievalResult.load(path)
    if found.settings != settings:
        changed = ", ".join(name for name in settings if found.settings.get(name) != settings[name])
        raise FileExistsError(f"{path} exists, of another {changed}; give --overwrite to replace it")
    return found


def _own_rankers(run: Checkpoint, twin: Checkpoint, max_length: int | None) -> list[Ranker]:
    """The run, its random twin, and its static tokens; what they give is never kept."""

    def by(encode: Callable[[Sequence[str]], np.ndarray]) -> Callable[[Sequence[str], Sequence[str]], Scored]:
        read = Remembered(encode)

        def score(queries: Sequence[str], documents: Sequence[str]) -> Scored:
            (asked, _), (rows, seconds) = read(queries), read(documents)
            return Scored(cosines(asked, rows), seconds, rows.shape[1] * 4)

        return score

    def encode_by_twin(texts: Sequence[str]) -> np.ndarray:
        read = read_texts(twin.encoder, run.tokenizer, texts, max_length=run.text_limit(max_length))
        return pooled_vectors(run.config, read, len(texts))

    table = run.encoder.get_input_embeddings().weight.detach().float().cpu().numpy()
    return [
        Ranker("run", "pooled output of the run, float32, cosine", by(lambda t: run.encode(t, max_length=max_length))),
        Ranker("random_init", "the same architecture with random weights", by(encode_by_twin)),
        *token_means(table, run.tokenizer),
    ]


def _judged(
    task: RetrievalTask,
    own: Sequence[Ranker],
    others: Sequence[Ranker],
    settings: dict,
    data_dir: str | None,
    cache_dir: str | os.PathLike | None,
) -> RetrievalResult:
    data = load_collection(task, data_dir=data_dir)
    queries, documents, relevant = _as_lists(data)
    found: dict[str, Scored] = {}
    descriptions = {}
    for ranker in progress([*own, *others], desc=task.name, unit="ranker", leave=False):
        found[ranker.name] = kept(ranker, queries, documents, cache_dir)
        descriptions[ranker.name] = ranker.description
    run, lexical, words = (found[name].scores for name in ("run", BM25[0], WORDS))
    fusions = {
        "bm25_run_ranks": ("BM25 and the run, reciprocal ranks", fused_ranks(lexical, run)),
        "words_run": (
            f"{WORDS.replace('_', ' ')} bytes and the run, cosines added as `search` does, the run's times {BESIDE}",
            words + np.float32(BESIDE) * run,
        ),
    }
    weight = _chosen_weight(task, own[0], next(each for each in others if each.name == BM25[0]), data_dir, cache_dir)
    if weight is not None:
        text = "BM25 and the run, weighted sum of standardised scores, the weight chosen on training queries"
        fusions["bm25_run_weighted"] = (text, fused_scores(lexical, run, weight))
    for name, (text, scores) in fusions.items():
        found[name], descriptions[name] = Scored(scores, None, None), text
    scored = {name: ranking_scores(best(each.scores), relevant) for name, each in found.items()}
    order = ["run", "random_init", *fusions, *(name for name in found if name not in ("run", "random_init", *fusions))]
    rows = [
        RankerRow(
            ranker=name,
            description=descriptions[name],
            scores=dict(_against_run(scored["run"], scored[name], name == "run")),
            bytes_per_text=found[name].bytes_per_text,
            seconds=found[name].seconds,
        )
        for name in order
    ]
    lengths = [len(text.split()) for text in documents]
    chance, first = chance_scores(len(documents), relevant), rows[0].scores[PRIMARY]
    return RetrievalResult(
        task=task.name,
        split=task.split,
        primary_metric=PRIMARY,
        documents=len(documents),
        queries=len(queries),
        words_per_document=float(np.mean(lengths)),
        longest_document=max(lengths),
        settings=settings,
        chance=chance,
        verdict=judge(PRIMARY, first.value, chance[PRIMARY], interval=first.interval).verdict,
        weight=weight,
        rows=rows,
        environment=Environment.of(torch.accelerator.current_accelerator(check_available=True) or "cpu"),
    )


def _as_lists(data: Collection) -> tuple[list[str], list[str], list[dict[int, int]]]:
    """Queries, documents, and of each query the places of its answers with their grades."""
    place = {document: i for i, document in enumerate(data.documents)}
    relevant = [{place[d]: grade for d, grade in data.relevant[query].items()} for query in data.queries]
    return list(data.queries.values()), list(data.documents.values()), relevant


def _against_run(
    run: dict[str, np.ndarray], scores: dict[str, np.ndarray], is_run: bool
) -> Iterator[tuple[str, ControlScore]]:
    for metric, values in scores.items():
        if not is_run:
            yield metric, control_score(run[metric], values)
            continue
        own = mean_figure(values)
        nothing = {"difference": None, "difference_interval": None, "p_value": None}
        yield metric, ControlScore(value=own.value, interval=own.interval, **nothing)


def _chosen_weight(
    task: RetrievalTask, run: Ranker, lexical: Ranker, data_dir: str | None, cache_dir: str | os.PathLike | None
) -> float | None:
    """The weight of the run next to BM25 with the best nDCG@10 on training queries over the same corpus."""
    if task.train_split is None or task.data is not None:
        return None
    queries, documents, relevant = _as_lists(load_collection(task, task.train_split, data_dir))
    chosen = np.random.default_rng(0).permutation(len(queries))[:TRAIN_QUERIES]
    queries, relevant = [queries[i] for i in chosen], [relevant[i] for i in chosen]
    first, second = (kept(each, queries, documents, cache_dir).scores for each in (lexical, run))

    def quality(weight: float) -> float:
        return float(ranking_scores(best(fused_scores(first, second, weight)), relevant)[PRIMARY].mean())

    return max(WEIGHTS, key=quality)
