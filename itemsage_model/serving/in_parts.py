"""Towers in a Spark worker: built once a process, and run on some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from itemsage_model.encoders.model_files import build_tower
from itemsage_model.encoders.tower import TowerSpec

Floats = npt.NDArray[np.float32]

LEAST_ROWS = 16
"""Of a few rows, products of matrices are summed up in another order; so fewer are repeated. From here on what a tower
makes of a row in float32 is the same to the last bit whichever rows share its batch."""

_ROWS_AT_ONCE = 256

Built = TypeVar("Built")

_BUILT: dict[Hashable, Any] = {}


def built_once(identity: Hashable, build: Callable[[], Built]) -> Built:
    """What a worker needs for every batch, built once per process and in the place of the last one.

    One thread, as a Spark task slot is one core.
    """
    if identity not in _BUILT:
        torch.set_num_threads(1)
        _BUILT.clear()
        _BUILT[identity] = build()
    found: Built = _BUILT[identity]
    return found


def load_tower_once(weights: bytes, spec: TowerSpec) -> Any:
    """The tower of these weights, built once per process."""
    return built_once(weights, lambda: build_tower(weights, spec))


def in_parts(compute: Callable[..., Tensor], *inputs: Floats) -> Floats:
    """What a part of a tower makes of rows, some at a time, few repeated.

    Args:
        compute: Takes as many tensors as there are inputs, with equally many rows; gives one with as many.
        inputs: Each [row, ...], of at least one row.
    """
    parts = []
    with torch.inference_mode():
        for first in range(0, len(inputs[0]), _ROWS_AT_ONCE):
            rows = [part[first : first + _ROWS_AT_ONCE] for part in inputs]
            count = len(rows[0])
            if count < LEAST_ROWS:
                rows = [part[np.arange(LEAST_ROWS) % count] for part in rows]
            parts.append(compute(*map(torch.from_numpy, rows)).numpy()[:count])
    return np.concatenate(parts)
