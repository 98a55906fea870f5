"""The gate from a table's feature cells to arrays: every cell is what its element declares, or an error names it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from itemsage_model.data.ragged import PackedItems, Ragged
from schemas.cells import Cells, unpack_cells
from schemas.elements import SizedElement
from schemas.errors import TableError

_NUMBERS_PER_CHECK = 1 << 18


def unpack_items(table: str, cells: Mapping[str, Cells], elements: Sequence[SizedElement]) -> PackedItems:
    """Turn the feature columns of some rows into arrays, checking that they are what the elements declare.

    The numbers are not copied: the arrays lie in Arrow's buffers.

    Args:
        table: The table's name, for the error.
        cells: The elements' columns, binary.
        elements: What the columns hold.

    Raises:
        TableError: a cell is null or of the wrong size, an id is out of range, or a number is not finite.
    """
    return PackedItems({element.key: _unpack_element(table, cells, element) for element in elements})


def _unpack_element(table: str, cells: Mapping[str, Cells], element: SizedElement) -> Ragged:
    name = element.key
    values, numbers_per_row = _unpack(table, name, cells, element.element.dtype)
    if element.id_count:
        # Seen as unsigned, a negative id is a very large one.
        if len(values) and values.view(np.uint32).max() >= element.id_count:
            ids = f"ids from 0 to {element.id_count - 1}"
            raise _misshapen(table, name, ids, f"{values.min()} to {values.max()}")
    else:
        if (numbers_per_row % element.length).any():
            size = values.itemsize * element.length
            raise _misshapen(table, name, f"a multiple of {size} bytes a row", "another size")
        if not all_finite(values):
            raise _misshapen(table, name, "finite numbers", "NaN or infinity")
        values, numbers_per_row = values.reshape(-1, element.length), numbers_per_row // element.length
    if element.element.counts is None:
        return Ragged(values, numbers_per_row)
    counts_name = element.element.counts.name
    flat, counts_per_row = _unpack(table, counts_name, cells, "<i4")
    if (counts_per_row != element.slots).any():
        raise _misshapen(table, counts_name, f"{element.slots} counts a row", f"{counts_per_row.max()}")
    ragged = Ragged(values, flat.reshape(-1, element.slots))
    if (flat < 0).any() or (ragged.totals != numbers_per_row).any():
        raise _misshapen(table, name, f"as many values a row as {counts_name} says", "another number")
    return ragged


def all_finite(halves: npt.NDArray[np.float16]) -> bool:
    """Whether no float16 is NaN or infinite: its five exponent bits are then not all ones.

    numpy tests float16 by converting one number at a time, ten times slower. As whole numbers, the largest without sign
    are those that are not finite, with one as without; a block at a time stays in the cache.
    """
    bits = halves.reshape(-1).view(np.uint16)
    blocks = (bits[first : first + _NUMBERS_PER_CHECK] for first in range(0, len(bits), _NUMBERS_PER_CHECK))
    return not any(block.view(np.int16).max() >= 0x7C00 or block.max() >= 0xFC00 for block in blocks)


def _unpack(
    table: str, name: str, cells: Mapping[str, Cells], dtype: str
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    try:
        return unpack_cells(cells[name], dtype)
    except ValueError as error:
        raise _misshapen(table, name, "packed bytes in every row", str(error)) from error


def _misshapen(table: str, column: str, expected: str, found: str) -> TableError:
    cure = "Write the table again with the job that makes it, with these settings."
    return TableError(table, column, expected=expected, found=found, cure=cure)
