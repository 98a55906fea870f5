"""The gate from a table's feature cells to arrays: every cell is what the schema says, or an error names it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from itemsage_model.data.ragged import PackedItems
from schemas.cells import Column, unpack_cells
from schemas.errors import TableError
from schemas.tables import EMBEDDING_DIM

FEATURE_CELLS = ("text_token_ids", "text_token_counts", "image_embeddings")
"""The packed columns that hold an item's features."""


_FINITE_AT_ONCE = 1 << 18


def unpack_items(table: str, cells: dict[str, Column], text_count: int, vocabulary_size: int) -> PackedItems:
    """Turn the packed feature columns of some rows into arrays, checking that they are what the schema says.

    The numbers are not copied: the arrays lie in Arrow's buffers.

    Args:
        table: The table's name, for the error.
        cells: `text_token_ids`, `text_token_counts` and `image_embeddings`, binary columns.
        text_count: Number of text features of every row.
        vocabulary_size: Token ids must lie below it.

    Raises:
        TableError: a cell is null or of the wrong size, an id lies outside the vocabulary, a number is not finite.
    """
    ids, ids_per_row = _unpack(table, "text_token_ids", cells, "<i4")
    flat_counts, counts_per_row = _unpack(table, "text_token_counts", cells, "<i4")
    if (counts_per_row != text_count).any():
        raise _misshapen(table, "text_token_counts", f"{text_count} counts a row", f"{counts_per_row.max()}")
    counts = flat_counts.reshape(-1, text_count)
    if (counts < 0).any() or (counts.sum(axis=1) != ids_per_row).any():
        raise _misshapen(table, "text_token_ids", "as many ids a row as text_token_counts says", "another number")
    # Seen as unsigned, a negative id is a very large one.
    if len(ids) and ids.view(np.uint32).max() >= vocabulary_size:
        raise _misshapen(table, "text_token_ids", f"ids from 0 to {vocabulary_size - 1}", f"{ids.min()} to {ids.max()}")
    numbers, numbers_per_row = _unpack(table, "image_embeddings", cells, "<f2")
    if (numbers_per_row % EMBEDDING_DIM).any():
        raise _misshapen(table, "image_embeddings", f"a multiple of {2 * EMBEDDING_DIM} bytes a row", "another size")
    if not all_finite(numbers):
        raise _misshapen(table, "image_embeddings", "finite numbers", "NaN or infinity")
    return PackedItems(ids, counts, numbers.reshape(-1, EMBEDDING_DIM), numbers_per_row // EMBEDDING_DIM)


def all_finite(halves: npt.NDArray[np.float16]) -> bool:
    """Whether no float16 is NaN or infinite: its five exponent bits are then not all ones.

    numpy tests float16 by converting one number at a time, ten times slower. As whole numbers, the largest without sign
    are those that are not finite, with one as without; a piece at a time stays in the cache.
    """
    bits = halves.reshape(-1).view(np.uint16)
    pieces = (bits[first : first + _FINITE_AT_ONCE] for first in range(0, len(bits), _FINITE_AT_ONCE))
    return not any(piece.view(np.int16).max() >= 0x7C00 or piece.max() >= 0xFC00 for piece in pieces)


def _unpack(
    table: str, name: str, cells: dict[str, Column], dtype: str
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    try:
        return unpack_cells(cells[name], dtype)
    except ValueError as error:
        raise _misshapen(table, name, "packed bytes in every row", str(error)) from error


def _misshapen(table: str, column: str, expected: str, found: str) -> TableError:
    cure = "Write the table again with the job that makes it, with these settings."
    return TableError(table, column, expected=expected, found=found, cure=cure)
