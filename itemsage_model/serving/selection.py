"""What a scoring is about: all items, or those that are not as they are published; and which columns they keep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from itemsage_model.serving.frozen_vectors import Replacement
from schemas.columns import Kind


@dataclass(frozen=True)
class Selection:
    """Which items are scored.

    Attributes:
        keys: Their item_key, sorted [item]; None = all.
        frozen: Which of them get the frozen vectors of their texts; None = none.
        filters: Columns that stay beside the embedding, and their kinds.
    """

    keys: npt.NDArray[np.int64] | None = None
    frozen: Replacement | None = None
    filters: Mapping[str, Kind] = field(default_factory=dict)


def rows_of_keys(
    batches: Iterable[pa.RecordBatch], keys: npt.NDArray[np.int64], at_least: int
) -> Iterator[pa.RecordBatch]:
    """The rows whose item_key is among sorted keys, in batches of at least so many but for the last."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        own = batch.column("item_key").to_numpy()
        place = np.minimum(np.searchsorted(keys, own), max(len(keys) - 1, 0))
        found = batch.filter(pa.array(keys[place] == own if len(keys) else np.zeros(len(own), bool)))
        held += [found] if len(found) else []
        if sum(map(len, held)) >= at_least:
            yield pa.Table.from_batches(held).combine_chunks().to_batches()[0]
            held = []
    if held:
        yield pa.Table.from_batches(held).combine_chunks().to_batches()[0]
