"""The validation pairs of a task, as arrays: what training is measured on while it goes on."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from itemsage_model.data.parquet_files import file_batches
from itemsage_model.data.pinned_files import pin_version, unreadable
from itemsage_model.data.reader import Pairs, pair_format
from schemas.records import TableVersion
from schemas.tables import EMBEDDING_DIM, ROW_CHECKSUM, VALIDATION_PAIRS

_ROWS_AT_ONCE = 8_192


@dataclass(frozen=True)
class ValidationPairs:
    """Pairs of the validation window.

    Attributes:
        query_embedding: Frozen query vectors, float32 [pair, dim].
        query_key, item_key, query_item_key: int64 [pair]; query_item_key 0 = the query shows no item.
        weight: Engagements in the window, float32 [pair].
    """

    query_embedding: npt.NDArray[np.float32]
    query_key: npt.NDArray[np.int64]
    item_key: npt.NDArray[np.int64]
    query_item_key: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.item_key)


def read_validation(version: TableVersion, most: int | None = None) -> ValidationPairs:
    """The rows of one version of a task's validation table; none where it is empty.

    Args:
        version: As the run record of build_training_tables names it.
        most: Read at most so many, the first; their order is random-looking and always the same. None = all.

    Raises:
        TableError: a file is damaged, gone or lacks a column, or there are other rows than the record says.
    """
    wanted = version.rows if most is None else min(most, version.rows)
    parts = [_of_pairs(part) for part in _first_pairs(version, wanted)]
    columns = zip(*([getattr(part, one.name) for one in fields(part)] for part in (NO_PAIRS, *parts)), strict=True)
    read = ValidationPairs(*map(np.concatenate, columns))
    if len(read) != wanted:
        found, cure = f"{len(read)} rows at", "Files were lost; run build_training_tables again."
        raise unreadable(version.table, version.uri, f"{version.rows} rows", found, cure)
    return read


def _first_pairs(version: TableVersion, wanted: int) -> list[Pairs]:
    if not wanted:
        return []
    files = pin_version(version)
    row_format = pair_format(None)
    columns = [*VALIDATION_PAIRS.checksummed, ROW_CHECKSUM]
    parts: list[Pairs] = []
    # The names of the files begin with their numbers.
    for uri in sorted(files.uris):
        for batch in file_batches(uri, columns, _ROWS_AT_ONCE, VALIDATION_PAIRS):
            part = batch.slice(0, wanted)
            parts.append(row_format.unpack(version.table, pa.Table.from_batches([part])))
            wanted -= len(part)
            if not wanted:
                return parts
    return parts


def _of_pairs(pairs: Pairs) -> ValidationPairs:
    vectors = pairs.query_embedding.astype(np.float32)
    return ValidationPairs(vectors, pairs.query_key, pairs.item_key, pairs.query_item_key, pairs.pair_weight)


_NO_KEYS = np.empty(0, np.int64)
NO_PAIRS = ValidationPairs(
    np.empty((0, EMBEDDING_DIM), np.float32), _NO_KEYS, _NO_KEYS, _NO_KEYS, np.empty(0, np.float32)
)
"""Of a task that nothing is measured by."""
