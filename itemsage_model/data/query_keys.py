"""Which queries a training run knows: the keys in its training tables, read without the rest of the rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
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
    for table, uri in ((files.table, uri) for files in tasks for uri in files.uris):
        parts, declared = [known], replace(TRAINING_PAIRS, name=table)
        for batch in file_batches(uri, ["query_key", weight], _ROWS_AT_ONCE, declared):
            parts.append(batch.filter(pc.greater(batch[weight], 0))["query_key"].to_numpy())
        known = np.unique(np.concatenate(parts))
    return known
