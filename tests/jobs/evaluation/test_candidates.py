"""What an evaluation collects: memory by what the strings hold, not by the longest of them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from jobs.evaluation.candidates import names_of


def test_names_are_the_columns_strings() -> None:
    column = pa.chunked_array([["b", "a"], [], ["b", "ä 中"]])
    names = names_of(column)
    assert names.tolist() == ["b", "a", "b", "ä 中"]
    distinct, first, index = np.unique(names, return_index=True, return_inverse=True)
    assert (distinct.tolist(), first.tolist(), index.tolist()) == (["a", "b", "ä 中"], [1, 0, 3], [1, 0, 1, 2])
    assert np.searchsorted(distinct, names).tolist() == [1, 0, 1, 2]
    assert names_of(pa.chunked_array([], pa.string())).tolist() == []


@pytest.mark.fault("t22", "recovered", "one query_id of 45,000 characters among 5,000 pairs")
def test_memory_follows_the_sum_of_the_lengths() -> None:
    column = pa.chunked_array([[f"q{number}" for number in range(5_000)] + ["x" * 45_000]])
    tracemalloc.start()
    np.unique(names_of(column), return_index=True, return_inverse=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3_000_000
