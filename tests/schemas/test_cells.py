"""Binary cells: what is packed comes back, however the column is cut; what is no packed column is refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.cells import pack_cells, unpack_cells


@given(st.lists(st.integers(0, 4), max_size=8), st.integers(0, 8), st.integers(0, 8), st.sampled_from(["<i4", "<f2"]))
def test_a_packed_column_comes_back_whole_and_in_slices(counts: list[int], first: int, length: int, dtype: str):
    numbers, per_row = np.arange(sum(counts)).astype(dtype), np.array(counts, np.int64)
    column = pack_cells(numbers, per_row)
    assert [np.frombuffer(cell.as_py(), dtype).tolist() for cell in column] == [
        part.tolist() for part in np.split(numbers, np.cumsum(per_row)[:-1]) if len(counts)
    ]
    ends = np.cumsum([0, *counts])
    stop = min(first + length, len(counts))
    start = min(first, stop)
    for whole in (column, column.cast(pa.large_binary())):
        found, found_counts = unpack_cells(whole.slice(start, stop - start), dtype)
        assert found.tolist() == numbers[ends[start] : ends[stop]].tolist()
        assert found_counts.tolist() == counts[start:stop]


def test_the_chunks_of_a_column_are_laid_end_to_end():
    chunks = [
        pack_cells(np.arange(4, dtype="<i4"), np.array([1, 3])),
        pack_cells(np.arange(2, dtype="<i4"), np.array([0, 2])),
    ]
    numbers, counts = unpack_cells(pa.chunked_array(chunks), "<i4")
    assert numbers.tolist() == [0, 1, 2, 3, 0, 1]
    assert counts.tolist() == [1, 3, 0, 2]
    assert len(unpack_cells(pa.chunked_array([], pa.binary()), "<i4")[0]) == 0


def test_unpacking_copies_nothing():
    numbers = np.arange(6, dtype="<i4")
    found, _ = unpack_cells(pack_cells(numbers, np.array([2, 4])), "<i4")
    assert np.shares_memory(found, numbers)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([b"1234", None]), "a null"),
        (pa.array([b"1234", b"123"]), "no multiple of 4 bytes"),
        (pa.array(["1234"]), "string cells"),
    ],
)
def test_what_is_no_packed_column_is_refused(column: pa.Array, message: str):
    with pytest.raises(ValueError, match=message):
        unpack_cells(column, "<i4")
