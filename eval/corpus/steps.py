"""Encoding as steps of a datatrove pipeline, and the executors that run them; needs the extra `corpus`."""

import json
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from datasets import IterableDataset
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from ...utils.results import EncodePlan
from .embedders import WINDOW_CHARACTERS, WINDOW_TEXTS, embedded_windows, kept_embedder
from .rows import part_of, split_of
from .shards import DATA_FOLDER, PROGRESS_FOLDER, SHARD_NAME, Counts, document_table, kept_words, shard_writer

SECONDS_BETWEEN_REPORTS = 1.0


class ReadCorpus(PipelineStep):
    """The part of a data set that a task reads, as datatrove's documents; `metadata` holds the columns that are kept.

    Args:
        source: as of `open_tables`.
        options: of `open_tables`.
        plan: of the folder.
    """

    type, name = "Reader", "corpus"

    def __init__(self, source: Any, options: dict[str, Any], plan: EncodePlan):
        super().__init__()
        self.source, self.options, self.plan = source, options, plan

    def run(self, data: Iterable[Document] | None = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        plan = self.plan
        table = split_of(self.source, self.options, plan.split)
        first, rows = part_of(table, plan, rank)
        with table.origin.naming():
            for place, row in enumerate(rows):
                text = row[plan.text_column]
                table.origin.check_text(first + place, plan.text_column, "text_column", text)
                given = None if plan.id_column is None else row[plan.id_column]
                if plan.id_column is not None and given is None:
                    raise ValueError(f"{table.origin.place(first + place)}: id_column {plan.id_column!r} is empty")
                own = f"{rank}-{place}" if isinstance(table.rows, IterableDataset) else str(first + place)
                kept = {name: row[name] for name in plan.columns}
                yield Document(text or "", own if given is None else str(given), metadata=kept)


class EncodeCorpus(PipelineStep):
    """Documents into the shard of a task; it can follow any reader and filter of datatrove.

    Args:
        folder: that is written to.
        checkpoint: as of `load_embedder`.
        plan: of the folder.
        schema: of the columns that are kept, from documents' metadata.
        words: file of the words' weights.
        threads: of this process; None: as they are.
    """

    type, name = "Encoder", "corpus"

    def __init__(
        self,
        folder: str,
        checkpoint: str,
        plan: EncodePlan,
        schema: pa.Schema,
        words: str | None = None,
        threads: int | None = None,
    ):
        super().__init__()
        self.folder, self.checkpoint, self.plan, self.schema = folder, checkpoint, plan, schema
        self.words, self.threads = words, threads

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        plan, folder = self.plan, Path(self.folder)
        embedder = kept_embedder(self.checkpoint, plan.code)
        words = None if self.words is None else kept_words(self.words)
        reported = Report(folder, rank)
        windows: list[list[Document]] = []

        def texts() -> Iterator[list[str]]:
            for window in _windows(data):
                windows.append(window)  # taken off again below: at most two are waiting
                yield [document.text for document in window]

        path = folder / DATA_FOLDER / SHARD_NAME.format(rank)
        with shard_writer(path, plan.code) as writer:
            for _, vectors, tokens in embedded_windows(embedder, texts(), plan.batch_tokens):
                window = windows.pop(0)
                columns = {
                    field.name: pa.array([each.metadata[field.name] for each in window], field.type)
                    for field in self.schema
                }
                entries = None
                if words is not None and plan.code.words is not None:
                    entries = words.encode([each.text for each in window], plan.code.words.entries)
                counts = Counts(len(window), int((~vectors.any(1)).sum()), tokens)
                ids = [document.id for document in window]
                writer.write(document_table(plan.code, ids, columns, vectors, entries), counts)
                reported.add(counts)
                self.stat_update("documents", value=len(window))
                self.stat_update("tokens", value=tokens)
                yield from window
        reported.write()


class LocalExecutor(LocalPipelineExecutor):
    """datatrove's local executor, whose workers can be killed.

    Its own pool waits for ever for the task of a worker that was killed; that of `concurrent.futures` says so.
    """

    def run(self) -> None:
        ranks = self.get_incomplete_ranks()
        if self.workers == 1:
            for rank in ranks:
                self._quiet_task(rank)
            return
        context = get_context(self.start_method)
        context.set_forkserver_preload([__name__])  # imported once, and not by each worker
        with ProcessPoolExecutor(self.workers, context) as pool:
            waiting = [pool.submit(self._quiet_task, rank) for rank in ranks]
            try:
                for each in waiting:
                    each.result()
            except BrokenProcessPool as error:
                done = self.world_size - len(self.get_incomplete_ranks())
                raise ChildProcessError(
                    f"a worker was killed, perhaps for its memory; {done} of {self.world_size} shards are done and "
                    "stay: run the same again"
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)

    def _quiet_task(self, rank: int) -> None:
        logger.disable("datatrove")  # it says on stderr what the bar and the error say
        pipeline = self.pipeline  # type: ignore[has-type]
        self.pipeline = deepcopy(pipeline)  # so that each has figures of its own
        try:
            self._run_for_rank(rank)
        finally:
            self.pipeline = pipeline


def executor(name: str, options: dict[str, Any], pipeline: list[PipelineStep], **common: Any) -> PipelineExecutor:
    if name == "ray":
        from datatrove.executor import RayPipelineExecutor as Executor
    elif name == "slurm":
        from datatrove.executor import SlurmPipelineExecutor as Executor
    else:
        Executor = LocalExecutor
    try:
        return Executor(pipeline, **common, **options)
    except TypeError as error:
        raise ValueError(f"executor_options do not fit {Executor.__name__}: {error}") from error


def _windows(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents together, up to `WINDOW_TEXTS` and `WINDOW_CHARACTERS`, or one that is longer."""
    window: list[Document] = []
    characters = 0
    for document in documents:
        if window and (len(window) == WINDOW_TEXTS or characters + len(document.text) > WINDOW_CHARACTERS):
            yield window
            window, characters = [], 0
        window.append(document)
        characters += len(document.text)
    if window:
        yield window


class Report:
    """What a task has done, in a file that the process which waits looks at."""

    def __init__(self, folder: Path, rank: int):
        self.path = folder / PROGRESS_FOLDER / f"{rank:05d}.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.counts, self.due = Counts(), 0.0

    def add(self, counts: Counts) -> None:
        self.counts += counts
        if time.monotonic() >= self.due:
            self.write()
            self.due = time.monotonic() + SECONDS_BETWEEN_REPORTS

    def write(self) -> None:
        self.path.write_text(json.dumps({"documents": self.counts.documents, "tokens": self.counts.tokens}))
