"""Checksums that travel in the rows themselves, made where a row is made and compared wherever it is used.

A flipped bit in a Parquet page is another value, no error: pyarrow 14 neither writes nor checks checksums of pages.
`features_hash` covers an item's feature cells, all the way from build_item_features to the tensor; `row_checksum` the
columns that the table declares as `checksummed`. Whoever writes the rows' file adds it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import mmh3
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.cells import bytes_of, pack_cells
from schemas.columns import Kind, Table
from schemas.elements import FEATURE_CELLS
from schemas.errors import TableError
from schemas.stages import remade
from schemas.tables import FEATURES_HASH, ROW_CHECKSUM


def cells_hashes(cells: Sequence[pa.Array]) -> list[str]:
    """128-bit hash of each row's binary cells, and of their lengths: no two rows run together to the same bytes."""
    lengths = np.stack([pc.binary_length(column).to_numpy() for column in cells], axis=1).astype("<i8")
    packed_lengths = pack_cells(lengths, np.full(len(lengths), len(cells)))
    parts = [bytes_of(column) for column in (packed_lengths, *cells)]
    hashes = []
    for row in range(len(lengths)):
        digest = mmh3.mmh3_x64_128()
        for data, ends in parts:
            digest.update(data[ends[row] : ends[row + 1]])
        hashes.append(digest.digest().hex())
    return hashes


def row_checksums(rows: pa.RecordBatch, table: Table) -> npt.NDArray[np.int64]:
    """CRC-32 of each row's `checksummed` columns, laid end to end in the order of the declaration.

    Numbers count as their bytes; strings and cells as their bytes behind their length.

    Args:
        rows: Has those columns.
        table: What the rows mean.
    """
    parts = [part for name in table.checksummed for part in _as_bytes(rows.column(name), table.column(name).kind)]
    joined = pc.binary_join_element_wise(*parts, b"")
    sums = [zlib.crc32(row) for row in joined.to_numpy(zero_copy_only=False)]
    return np.array(sums, np.int64)


def with_checksums(rows: pa.RecordBatch, table: Table) -> pa.RecordBatch:
    """The rows of a table that declares `checksummed` columns, with their `row_checksum`; others as they are."""
    if not table.checksummed:
        return rows
    sums = pa.array(row_checksums(rows, table))
    return pa.RecordBatch.from_arrays([*rows.columns, sums], [*rows.schema.names, ROW_CHECKSUM])


def require_undamaged(rows: pa.RecordBatch | pa.Table, table: Table, file: str) -> None:
    """Compare rows with the checksums in them.

    A checksum is not compared where it or a column that it covers was not read or has a null, which readers refuse.

    Args:
        rows: Has `features_hash` and the feature cells, or `row_checksum` and the checksummed columns, or both.
        table: What they mean.
        file: Where they were read, for the error.

    Raises:
        TableError: a row is not what was written.
    """
    made = {FEATURES_HASH: (FEATURE_CELLS, _hashes_of), ROW_CHECKSUM: (table.checksummed, row_checksums)}
    for batch in rows.to_batches() if isinstance(rows, pa.Table) else [rows]:
        for name, (covered, make) in made.items():
            columns = [*covered, name]
            if not set(columns) <= set(batch.schema.names) or any(batch.column(c).null_count for c in columns):
                continue
            differ = make(batch, table) != batch.column(name).to_numpy(zero_copy_only=False)
            if differ.any():
                raise TableError(
                    table.name,
                    name,
                    expected=f"rows of {file} with the {name} that they were written with",
                    found=f"{int(differ.sum())} of {len(batch)} rows with another: the file is damaged",
                    cure=remade(table.name),
                )


def _hashes_of(rows: pa.RecordBatch, _: Table) -> npt.NDArray[np.object_]:
    return np.array(cells_hashes([rows.column(name) for name in FEATURE_CELLS]), object)


def _as_bytes(column: pa.Array, kind: Kind) -> list[pa.Array]:
    """What of a column enters the checksum, as binary columns."""
    if kind in ("int64", "float32"):
        return [_bytes_of_numbers(column.to_numpy())]
    return [_bytes_of_numbers(pc.binary_length(column).to_numpy().astype(np.int64)), column.cast(pa.binary())]


def _bytes_of_numbers(numbers: npt.NDArray[Any]) -> pa.BinaryArray:
    return pack_cells(np.ascontiguousarray(numbers), np.ones(len(numbers), np.int64))
