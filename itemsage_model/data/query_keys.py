"""Some columns of the training tables' rows that count, without the rest: which queries a training run knows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from itemsage_model.data.parquet_files import file_batches
from itemsage_model.data.pinned_files import TableFiles
from itemsage_model.data.reader import Weight
from schemas.tables import TRAINING_PAIRS

_ROWS_AT_ONCE = 1 << 16


def trained_queries(tasks: Iterable[TableFiles], weight: Weight) -> npt.NDArray[np.int64]:
    """Sorted distinct query_key of the rows with a weight above 0.

    Args:
        tasks: Files of the training tables.
        weight: The column that is a pair's weight.

    Raises:
        TableError: a file is damaged, gone or lacks a column.
    """
    known = np.empty(0, np.int64)
    for files in tasks:
        parts = [batch["query_key"].to_numpy() for batch in weighing_rows(files, ["query_key"], weight)]
        known = np.unique(np.concatenate([known, *map(np.unique, parts)]))
    return known


def weighing_rows(files: TableFiles, columns: Sequence[str], weight: str) -> Iterator[pa.RecordBatch]:
    """Some columns, and that of the weight, of a training table's rows with a weight above 0.

    Args:
        files: Of the table.
        columns: What is read of it beside the weight.
        weight: The column that says how much a pair counts.

    Raises:
        TableError: a file is damaged, gone or lacks a column.
    """
    declared = replace(TRAINING_PAIRS, name=files.table)
    for uri in files.uris:
        for batch in file_batches(uri, [*columns, weight], _ROWS_AT_ONCE, declared):
            yield batch.filter(pc.greater(batch[weight], 0))
