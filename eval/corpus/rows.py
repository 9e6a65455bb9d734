"""Rows of a data set as a corpus is read: the part that a task has, and some by which the data set is known again."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from ...trainers.data.tables import Table, open_tables
from ...utils.results import EncodePlan


def split_of(source: Any, options: dict[str, Any], split: str) -> Table:
    tables = _opened(source, tuple(options.items())) if isinstance(source, str) else open_tables(source, **options)
    if split not in tables:
        raise ValueError(f"there is no split {split!r} in the data set. Splits: {', '.join(tables)}")
    return tables[split]


@lru_cache(maxsize=1)
def _opened(source: str, options: tuple[tuple[str, Any], ...]) -> dict[str, Table]:
    return open_tables(source, **dict(options))


def part_of(table: Table, plan: EncodePlan, rank: int) -> tuple[int, Iterator[dict[str, Any]]]:
    """Number of the first row of a task, and its rows: a stretch of a table, or every so many files of a stream."""
    rows = table.rows.select_columns(columns_of(plan))
    if isinstance(rows, IterableDataset):
        return 0, _rows(rows.shard(plan.tasks, rank))
    first, last = (len(rows) * place // plan.tasks for place in (rank, rank + 1))
    return first, _rows(rows.select(range(first, last)))


def columns_of(plan: EncodePlan) -> list[str]:
    """Columns that are read."""
    ids = [] if plan.id_column is None else [plan.id_column]
    return list(dict.fromkeys([plan.text_column, *ids, *plan.columns]))


def _rows(rows: Dataset | IterableDataset) -> Iterator[dict[str, Any]]:
    for batch in rows.iter(64):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def spread(table: Table, names: list[str], most: int) -> Iterator[dict[str, Any]]:
    """At most so many rows from all over a table, or the first of a stream."""
    rows = table.rows.select_columns(names)
    if isinstance(rows, IterableDataset):
        return _rows(rows.take(most))
    return _rows(rows.select(np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int))))
