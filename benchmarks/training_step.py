"""Row 3: a whole training step at the paper's model sizes, from the tables on disk to the updated weights.

Ours is the project's trainer as its settings' defaults run it. The other is the same trainer, on the same batches,
with what re-implementations have: the unfolded float32 encoder, `embedding_bag` over every token, and dense Adam over
the 100,000 x 256 table. Eight tasks, 512 pairs and 512 random negatives a step: the plain encoder's activations of
a larger step do not fit beside everything else. Reading is part of the step; each one's batches are read, shuffled and
made in a thread of its own, only while it has its turn. Ours takes turns as long as its pools of rows, in files small
enough that most of them are read within the turn.

    python -m benchmarks.training_step [--rounds N] [--small]
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.contest import Contender, Figures, Row, Turn, compete, judge, require
from benchmarks.plain_encoder import plain_tower
from benchmarks.report import Options, main, print_outcome
from benchmarks.synthetic import Catalog, item_keys, write_item_features, write_training_table
from itemsage_model.data.batch import PairBatch
from itemsage_model.data.pinned_files import pin_files
from itemsage_model.data.prefetch import Prefetch
from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.precision import choose_precision
from itemsage_model.training.inputs import Inputs, make_batches, make_objective
from itemsage_model.training.trainer import Trainer
from schemas.presets import paper
from schemas.settings import Settings
from schemas.tasks import Task

OURS, PLAIN = "the project's trainer", "unfolded encoder, dense Adam"


def rows(options: Options) -> Iterator[Row]:
    """Write the tables, then let both train on them."""
    pairs = options.choose(512, 64)
    catalog = make_catalog(pairs)
    settings = make_settings(options.scratch, pairs)
    for number, entry in enumerate(settings.tasks, 1):
        uri = options.scratch / entry.task.training_table
        write_training_table(uri, catalog, 2 * pairs, seed=number, rows_per_file=pairs // 4)
    write_item_features(options.scratch / "item_features", catalog)
    steps = {OURS: 16, PLAIN: 1}
    contenders = [
        Contender(name, training_turn, (name, options.scratch, pairs, count)) for name, count in steps.items()
    ]
    outcome = compete(contenders, options.rounds or 6)
    print_outcome(f"training steps of {pairs} pairs and {pairs} negatives", "pairs", outcome)
    first = {name: outcome.performances[name].figures[0]["first_loss"] for name in steps}
    # Equal weights and equal batches: the first step's loss is the same, as far as ours' precision goes.
    most = 3e-2 if choose_precision("auto", torch.device("cpu")) == "bfloat16" else 1e-4
    require(abs(first[OURS] - first[PLAIN]) <= most * abs(first[PLAIN]), f"losses of the first step differ: {first}")
    print(f"  losses of the first step: {first[OURS]:.5f} and {first[PLAIN]:.5f}")
    yield judge("3", "training step, pairs/s", PLAIN, outcome.ratios(OURS, PLAIN), at_least=8)
    counted = outcome.performances[OURS].figures[1:] or outcome.performances[OURS].figures
    waiting = [figures["waited"] / figures["seconds"] for figures in counted]
    yield judge("3", "share of the step spent waiting for data", "the whole step", waiting, at_most=0.1)


def make_catalog(pairs: int) -> Catalog:
    """Items enough for some steps of distinct ones."""
    return Catalog(8 * pairs, paper()[1])


def make_settings(warehouse: Path, pairs: int) -> Settings:
    """The defaults, which are the paper's sizes, with a smaller batch and two threads."""
    return Settings.model_validate(
        {
            "warehouse": {"uri": str(warehouse)},
            "dates": {"as_of": "2026-03-01", "train_days": 20, "test_days": 7},
            "train": {"batch_size": pairs, "negative_count": pairs, "threads": 2, "shuffle_rows": 16 * pairs},
        }
    )


def training_turn(kind: str, warehouse: Path, pairs: int, steps: int) -> Turn:
    """Train for some steps at a time, always on."""
    settings = make_settings(warehouse, pairs)
    torch.set_num_threads(settings.train.threads)
    inputs = make_inputs(settings, make_catalog(pairs))
    trainer = make_trainer(kind, inputs, settings)
    gate = _Gate(make_batches(inputs, settings, 0))
    batches = iter(Prefetch(gate, settings.train.prefetch_batches))
    first_loss: list[float] = []

    def turn() -> Figures:
        waited, started = 0.0, time.perf_counter()
        gate.open()
        for _ in range(steps):
            waiting = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - waiting
            losses, _ = trainer.train_step(batch)
            first_loss.append(float(losses.mean()))
        gate.close()
        return {
            "units": steps * pairs,
            "seconds": time.perf_counter() - started,
            "waited": waited,
            "first_loss": first_loss[0],
        }

    return turn


def make_inputs(settings: Settings, catalog: Catalog) -> Inputs:
    """The tables, as the trainer pins them."""
    spec = ItemTowerSpec(settings.model, settings.loss, settings.features, catalog.vocabulary_size, {})
    keys = item_keys(np.arange(catalog.items)).to_numpy()
    return Inputs(
        [pin_files(task.training_table, settings.table_uri(task.training_table), 0) for task in _tasks(settings)],
        pin_files("item_features", settings.table_uri("item_features"), 0),
        keys,
        np.full(len(keys), 1 / len(keys)),
        np.empty(0, np.int64),
        spec,
        {"vocabulary": "synthetic"},
        {},
        (),
        (),
        has_images=True,
    )


def make_trainer(kind: str, inputs: Inputs, settings: Settings) -> Trainer:
    """The project's trainer, or the same around the plain tower with dense Adam; equal weights."""
    device = torch.device("cpu")
    tower = inputs.spec.build(seed=settings.train.seed)
    train = settings.train
    if kind == PLAIN:
        tower = plain_tower(tower)
        train = train.model_copy(update={"precision": "float32"})
    trainer = Trainer(tower, make_objective(inputs, settings, device), train, len(settings.tasks))
    if kind == PLAIN:
        adam = torch.optim.Adam(tower.parameters(), lr=train.learning_rate)
        for group in adam.param_groups:
            group["start_rate"] = group["lr"]
        trainer.optimizer = adam
    return trainer


def _tasks(settings: Settings) -> list[Task]:
    return [entry.task for entry in settings.tasks]


class _Gate:
    """Batches that are made only while the gate is open.

    Args:
        batches: The batches.
    """

    def __init__(self, batches: Iterable[PairBatch]) -> None:
        self._batches = batches
        self._is_open = threading.Event()

    def __iter__(self) -> Iterator[PairBatch]:
        for batch in self._batches:
            yield batch
            self._is_open.wait()

    def open(self) -> None:
        self._is_open.set()

    def close(self) -> None:
        self._is_open.clear()


if __name__ == "__main__":
    main("benchmarks.training_step")
