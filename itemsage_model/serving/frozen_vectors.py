"""Frozen vectors of item texts in the place of a model's: what is published where a model is below the floor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from itemsage_model.data.feature_cells import unpack_items
from schemas.elements import FROZEN_TEXT
from schemas.tables import EMBEDDING_DIM, ITEM_FEATURES

Vectors = npt.NDArray[np.float32]
Keys = npt.NDArray[np.int64]

_ELEMENT = FROZEN_TEXT.sized(slots=1, length=EMBEDDING_DIM)


@dataclass(frozen=True)
class Replacement:
    """Which items get their frozen vectors; one without a frozen vector keeps the model's.

    Attributes:
        trained_keys: Keys of the items that keep the model's, those with a training pair; None = of none.
    """

    trained_keys: Keys | None


def frozen_vectors(batch: pa.RecordBatch) -> Vectors:
    """The frozen vector of each item's text, of unit length; zero where it has none [row, dim].

    Raises:
        TableError: a cell is no such vector.
    """
    cells = {_ELEMENT.key: batch.column(_ELEMENT.key)}
    found = unpack_items(ITEM_FEATURES.name, cells, (_ELEMENT,))[_ELEMENT.key]
    vectors = np.zeros((len(batch), EMBEDDING_DIM), np.float32)
    vectors[found.counts > 0] = found.values
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vectors = (vectors / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)
    return unit


def with_frozen(
    score: Callable[[pa.RecordBatch], Vectors], replacement: Replacement
) -> Callable[[pa.RecordBatch], Vectors]:
    """A function that scores a batch of item_features, and then replaces what is to be replaced.

    Args:
        score: The model's vectors of a batch.
        replacement: Which items it is about.
    """

    def run(batch: pa.RecordBatch) -> Vectors:
        frozen = frozen_vectors(batch)
        is_replaced = frozen.any(axis=1)
        if replacement.trained_keys is not None:
            is_replaced &= ~np.isin(batch.column("item_key").to_numpy(), replacement.trained_keys)
        return np.where(is_replaced[:, None], frozen, score(batch))

    return run
