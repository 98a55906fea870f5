"""What a training run reads: tables pinned to the versions of the run records, and the batches made of them.

A course says which stage trains, from which tables and which tower; all else is the same for every tower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from itemsage_model.data.batch import PairBatch
from itemsage_model.data.mixing import CPU, CatalogBatches, MixedBatches, pairs_per_task
from itemsage_model.data.parquet_files import file_batches
from itemsage_model.data.pinned_files import TableFiles, some_files
from itemsage_model.data.query_keys import weighing_rows
from itemsage_model.data.reader import CatalogItems, RowStream, Weight, catalog_format, pair_format, read_catalog
from itemsage_model.data.validation import NO_PAIRS, read_validation
from itemsage_model.encoders.tower import Tower, TowerSpec
from itemsage_model.training import distributed
from itemsage_model.training.frequency import CountMinSketch, ExactFrequency
from itemsage_model.training.objective import Objective
from itemsage_model.training.validation import Validation
from schemas.contracts import VOCABULARY
from schemas.metrics import TrainMetrics
from schemas.presets import Candidate
from schemas.records import TableVersion
from schemas.settings import Settings
from schemas.stages import Stage
from schemas.storage import data_files
from schemas.tables import TRAINING_PAIRS

_MAX_CANDIDATES = 100_000
"""Items of a larger catalog are sampled for validation, by whole files."""
_MAX_VALIDATION_PAIRS = 400_000
_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True)
class Course:
    """What one stage trains: with which of the settings, from which tables, and which tower.

    Attributes:
        stage: Its run record names the model.
        settings_of: The shop's settings -> those that trainer, objective and batches go by: [[tasks]], [train], [loss]
            and [model] are then those of this course.
        pin: Its tables, pinned.
        for_pass: The same tables for a pass with other settings, or over another window.
        begin: The tower that a pass begins with, the same for the same seed.
        candidates: The configurations to try.
        batches: This rank's endless batches from a step on, for a device; None = `make_batches`.
        validation: What measures recall on the validation window, if anything can; None = `validation_of`.
    """

    stage: Stage[TrainMetrics]
    settings_of: Callable[[Settings], Settings]
    pin: Callable[[Settings], Inputs]
    for_pass: Callable[[Inputs, Settings, Weight], Inputs]
    begin: Callable[[Inputs, Settings], Tower]
    candidates: Callable[[Inputs, Settings], list[Candidate]]
    batches: Callable[[Inputs, Settings, int, torch.device], Iterable[PairBatch]] | None = None
    validation: Callable[[Inputs, Settings], Validation | None] | None = None


@dataclass(frozen=True)
class Inputs:
    """The pinned tables of a run.

    Attributes:
        tasks: Files of each task's training table.
        catalog: Files of item_features.
        item_keys: int64 [item], sorted keys of the items with a training pair; empty where nothing asks for them.
        item_shares: float64 [item], expected share of a batch's rows that have the item; empty like the keys.
        query_keys: int64 [query], sorted keys of the queries with a training pair; empty where nothing asks for them.
        spec: The model to train.
        made_with: What the tables were made with, which is stamped on the model; see schemas/contracts.py.
        made_after: The stages whose records were read, and the sha256 of these.
        versions: Version and rows of every table read.
        validation: Version and rows of each task's validation table, by task; none of tables of before, and None of a
            task that nothing is measured by.
        has_images: Whether any item has an image.
        weight: The column that is a pair's weight; "fit_weight" leaves the validation window out.
        counts: The pinned item_counts; None = the pairs of an item are counted in the training tables themselves.
    """

    tasks: list[TableFiles]
    catalog: TableFiles
    item_keys: npt.NDArray[np.int64]
    item_shares: npt.NDArray[np.float64]
    query_keys: npt.NDArray[np.int64]
    spec: TowerSpec
    made_with: dict[str, str]
    made_after: dict[str, str]
    versions: tuple[TableVersion, ...]
    validation: tuple[TableVersion | None, ...]
    has_images: bool
    weight: Weight = "pair_weight"
    counts: TableVersion | None = None

    @property
    def vocabulary_hash(self) -> str:
        """Of the vocabulary that the token ids mean something in; empty where none was recorded."""
        return self.made_with.get(VOCABULARY, "")


def validation_of(inputs: Inputs, settings: Settings) -> Validation | None:
    """What measures recall on the validation window; None where no task has a pair in it."""
    if len(inputs.validation) < len(settings.tasks):
        return None  # of tables cut before there was one
    most = _MAX_VALIDATION_PAIRS // len(settings.tasks)
    pairs = [NO_PAIRS if version is None else read_validation(version, most) for version in inputs.validation]
    if not any(map(len, pairs)):
        return None
    elements = inputs.spec.elements
    sample = some_files(inputs.catalog, _MAX_CANDIDATES, settings.train.seed)
    catalog = read_catalog(sample, catalog_format(elements), settings.deadlines.read_seconds)
    fit_keys, _ = item_shares(inputs, settings, "fit_weight")
    validation = Validation(pairs, [entry.share for entry in settings.tasks], catalog, fit_keys, elements)
    return validation if validation.pair_count else None


def item_shares(
    inputs: Inputs, settings: Settings, weight: Weight
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Expected share of a batch's rows per item: the sum over tasks of T_k / B * (pairs of the item / of the task).

    Returns:
        Sorted keys of the items with a pair, and their shares.
    """
    if inputs.counts is None:
        keys, task, share = _counted_in_pairs(inputs.tasks, weight)
    else:
        keys, task, share = _counted(inputs.counts, settings, weight)
    sizes = pairs_per_task(settings.train.batch_size, [entry.share for entry in settings.tasks])
    for number, size in enumerate(sizes):
        rows = task == number
        share[rows] = size / settings.train.batch_size * share[rows] / max(share[rows].sum(), 1)
    share[task < 0] = 0
    distinct, inverse = np.unique(keys, return_inverse=True)
    shares = np.bincount(inverse, share, minlength=len(distinct)).astype(np.float64)
    return distinct[shares > 0], shares[shares > 0]


_Counts = tuple[npt.NDArray[np.int64], npt.NDArray[np.int8], npt.NDArray[np.float64]]
"""Keys of items, numbers of tasks, and how many pairs of the task each item has."""


def _counted(counts: TableVersion, settings: Settings, weight: Weight) -> _Counts:
    """Pairs of each item and task by item_counts; of tasks that the settings do not have, the number is -1."""
    column = "pair_count" if weight == "pair_weight" else "fit_pair_count"
    names = pa.array([task.name for task in settings.task_list])
    key_parts, task_parts, pair_parts = [np.empty(0, np.int64)], [np.empty(0, np.int8)], [np.empty(0)]
    for file in data_files(counts.uri, counts.version):
        # Columns of numbers, file by file: there is a row for every item of every task.
        table = pq.read_table(file, columns=["item_key", "task", column], read_dictionary=["task"])
        key_parts.append(table["item_key"].to_numpy())
        number = pc.index_in(table["task"].cast(pa.string()), names).fill_null(-1)
        task_parts.append(number.to_numpy().astype(np.int8))
        pair_parts.append(table[column].to_numpy().astype(np.float64))
    return np.concatenate(key_parts), np.concatenate(task_parts), np.concatenate(pair_parts)


def _counted_in_pairs(tasks: Iterable[TableFiles], weight: Weight) -> _Counts:
    """The same by the rows of the training tables that weigh something."""
    key_parts, task_parts, pair_parts = [np.empty(0, np.int64)], [np.empty(0, np.int8)], [np.empty(0)]
    for number, files in enumerate(tasks):
        parts = [batch["item_key"].to_numpy() for batch in weighing_rows(files, ["item_key"], weight)]
        keys, counts = np.unique(np.concatenate([np.empty(0, np.int64), *parts]), return_counts=True)
        key_parts.append(keys)
        task_parts.append(np.full(len(keys), number, np.int8))
        pair_parts.append(counts.astype(np.float64))
    return np.concatenate(key_parts), np.concatenate(task_parts), np.concatenate(pair_parts)


def needs_item_shares(settings: Settings) -> bool:
    """Whether anything asks which items have pairs, and how many: a row for each of them on every rank."""
    asks = settings.loss.frequency == "exact", settings.train.negatives_from == "engaged"
    return any(asks) or settings.model.knows_items


def make_batches(
    inputs: Inputs, settings: Settings, start_step: int, device: torch.device = CPU
) -> MixedBatches | CatalogBatches:
    """This rank's endless batches, in the CPU's memory, but for the catalog of a full or bucketed softmax."""
    rank, ranks, train = distributed.rank(), distributed.world_size(), settings.train
    form = settings.loss.form
    is_catalog = form in ("full", "bucketed")
    elements = inputs.spec.elements
    pairs = pair_format(None if is_catalog else elements, inputs.weight, has_negatives=bool(settings.negatives))
    sizes = pairs_per_task(train.batch_size // ranks, [entry.share for entry in settings.tasks])
    pool = max(1, train.shuffle_rows // (len(sizes) + 1))
    streams = [
        RowStream(files, pairs, pool, train.seed, number, rank, ranks) for number, files in enumerate(inputs.tasks, 1)
    ]
    if is_catalog:
        whole = read_catalog(inputs.catalog, catalog_format(elements), settings.deadlines.read_seconds)
        chosen, is_column = _candidates(whole, inputs, settings)
        own = is_column if settings.negatives else None
        # Each rank chooses among all items, where it chooses.
        slice_of = (rank, ranks) if form == "full" else (0, 1)
        return CatalogBatches(streams, sizes, chosen, *slice_of, elements, start_step, device, own)
    # item_features is sorted by item within a file: negatives of a small pool would be neighbours.
    catalog = RowStream(inputs.catalog, catalog_format(elements), train.shuffle_rows, train.seed, 0, rank, ranks)
    engaged = inputs.item_keys if train.negatives_from == "engaged" else None
    count = train.negative_count // ranks
    return MixedBatches(streams, sizes, catalog, count, engaged, elements, start_step)


def _candidates(whole: CatalogItems, inputs: Inputs, settings: Settings) -> tuple[CatalogItems, npt.NDArray[np.bool_]]:
    """The items to encode for a full softmax, and which of them are its columns: the catalog, or the engaged ones.

    Items that are nothing but an explicit negative of some pair are no columns: nobody else's query is to leave them.
    """
    if settings.train.negatives_from == "catalog":
        return whole, np.ones(len(whole), bool)
    is_column = np.isin(whole.item_key, inputs.item_keys)
    is_encoded = is_column
    if settings.negatives:
        is_encoded = is_column | np.isin(whole.item_key, _explicit_keys(inputs.tasks))
    rows = np.flatnonzero(is_encoded)
    return CatalogItems(whole.item_key[rows], whole.items.take(rows)), is_column[rows]


def _explicit_keys(tasks: Iterable[TableFiles]) -> npt.NDArray[np.int64]:
    """Keys of the items that are an explicit negative of some pair; 0 may be among them, which no item has."""
    column = "negative_item_key"
    parts = [np.empty(0, np.int64)]
    for files in tasks:
        for uri in files.uris:
            for batch in file_batches(uri, [column], _ROWS_AT_ONCE, TRAINING_PAIRS):
                parts.append(np.unique(batch.column(column).to_numpy()))
    return np.unique(np.concatenate(parts))


def make_objective(inputs: Inputs, settings: Settings, device: torch.device) -> Objective:
    """The loss with its frequencies."""
    loss = settings.loss
    frequency: CountMinSketch | ExactFrequency
    if loss.frequency == "sketch":
        frequency = CountMinSketch(loss.sketch_depth, loss.sketch_width)
    else:
        frequency = ExactFrequency(torch.from_numpy(inputs.item_keys), torch.from_numpy(inputs.item_shares))
    sampled = min(1.0, settings.train.negative_count / inputs.catalog.row_count)
    return Objective(loss, frequency, sampled).to(device)
