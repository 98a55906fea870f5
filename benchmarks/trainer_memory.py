"""Memory of the trainer by steps: it grows while batches bring shapes that oneDNN has not seen, up to 1,024 primitives.

No row of the table. A small model trains on batches of 64 sizes, four of each, made beforehand; the lines say what the
process holds, and how much that grew since the line before. oneDNN's own variable sets another bound.

    [ONEDNN_PRIMITIVE_CACHE_CAPACITY=128] python -m benchmarks.trainer_memory /tmp/scratch bfloat16 1500
"""

from __future__ import annotations

import sys
import time
from itertools import islice
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

from benchmarks.synthetic import Catalog, write_item_features, write_training_table
from benchmarks.training_step import OURS, make_inputs, make_trainer
from itemsage_model.data.batch import PairBatch
from itemsage_model.training.inputs import make_batches
from schemas.presets import paper
from schemas.settings import Settings

_SIZES = range(24, 88)
"""Pairs of a batch, and as many negatives."""
_BATCHES = 4
_LINES = 10


def settings_of(warehouse: Path, pairs: int, precision: str) -> Settings:
    """A small model, one task."""
    return Settings.model_validate(
        {
            "preset": "paper",
            "warehouse": {"uri": str(warehouse)},
            "dates": {"as_of": "2026-03-01", "train_days": 20, "test_days": 7},
            "tasks": [{"query_kind": "closeup", "engagement": "click"}],
            "model": {"width": 64, "heads": 2, "feed_forward_width": 128, "head_width": 64, "hash_rows": 1000},
            "train": {
                "batch_size": pairs, "negative_count": pairs, "threads": 1, "shuffle_rows": 512, "precision": precision,
            },
        }
    )  # fmt: skip


def megabytes() -> float:
    """What this process holds."""
    return float(psutil.Process().memory_info().rss / 1e6)


def main() -> None:
    """Train, and print."""
    folder, precision, steps = Path(sys.argv[1]).resolve(), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    catalog = Catalog(2_000, paper()[1])
    write_training_table(folder / "training_closeup_click", catalog, 2_000, seed=1, rows_per_file=500)
    write_item_features(folder / "item_features", catalog)
    batches: list[PairBatch] = []
    for pairs in _SIZES:
        settings = settings_of(folder, pairs, precision)
        inputs = make_inputs(settings, catalog)
        batches += islice(make_batches(inputs, settings, 0), _BATCHES)
    trainer = make_trainer(OURS, inputs, settings)
    before, started = megabytes(), time.perf_counter()
    print(f"before the first step: {before:,.0f} MB", flush=True)
    for step in range(steps):
        trainer.train_step(batches[step * 37 % len(batches)])
        if (step + 1) % max(1, steps // _LINES) == 0:
            now, seconds = megabytes(), time.perf_counter() - started
            print(f"step {step + 1:>6,}: {now:,.0f} MB, {now - before:+,.0f} MB, {seconds:,.0f} s", flush=True)
            before = now


if __name__ == "__main__":
    main()
