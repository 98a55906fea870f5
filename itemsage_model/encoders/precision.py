"""In which precision the model is computed: float32, or bfloat16 where the device multiplies it faster.

The weights that are trained, and those that are saved, stay float32; so does the loss, whose matrix products a GPU
computes in TF32 beside a tower in bfloat16.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]

_MIN_GAIN = 1.5
"""Hardware bfloat16 gains a factor of 2 or more, emulation loses: any threshold between will do."""


def choose_precision(setting: Literal["auto", "float32", "bfloat16"], device: torch.device) -> Precision:
    """The precision that a setting means on a device; `auto` tries both."""
    if setting != "auto":
        return setting
    return "bfloat16" if bfloat16_gain(device) >= _MIN_GAIN else "float32"


def bfloat16_gain(device: torch.device) -> float:
    """How many times faster a matrix product is in bfloat16 than in float32; on a GPU, infinite where it has it."""
    if device.type == "cuda":
        return float("inf") if torch.cuda.is_bf16_supported() else 0.0
    seconds = {dtype: _fastest_product(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return seconds[torch.float32] / seconds[torch.bfloat16]


@contextmanager
def tensor_float32(is_used: bool) -> Iterator[None]:
    """Whether float32 matrices are multiplied in TF32 on a GPU: with 10 bits of mantissa, bfloat16 having 7."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = is_used
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _fastest_product(dtype: torch.dtype) -> float:
    matrix = torch.ones(768, 768, dtype=dtype)
    times = []
    for _ in range(6):
        started = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - started)
    return min(times)
