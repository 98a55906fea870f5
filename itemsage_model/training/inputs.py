"""What a training run reads: tables pinned to the versions of the run records, and the batches made of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from itemsage_model.data.mixing import CPU, CatalogBatches, MixedBatches, pairs_per_task
from itemsage_model.data.pinned_files import TableFiles, pin_files, require_image_length
from itemsage_model.data.reader import CatalogItems, RowStream, catalog_format, pair_format, read_catalog
from itemsage_model.encoders.item_tower import ITEM_ID, ItemTowerSpec
from itemsage_model.training import distributed
from itemsage_model.training.frequency import CountMinSketch, ExactFrequency
from itemsage_model.training.objective import Objective
from schemas.contracts import VOCABULARY, agreed, other_code, require_cut_from, space_of
from schemas.errors import InputError
from schemas.metrics import ItemMetrics
from schemas.records import RunRecord, TableVersion, read_record
from schemas.settings import Settings
from schemas.stages import BUILD_ITEM_FEATURES, BUILD_TRAINING_TABLES, EMBED_QUERIES, TRAIN
from schemas.storage import data_files
from schemas.tables import ITEM_COUNTS, ITEM_FEATURES

ITEM_TEXT_SPACE = "space of item text"
"""Where a record keeps the embedding space of the frozen item texts; absent, or none, where they have none."""


@dataclass(frozen=True)
class Inputs:
    """The pinned tables of a run.

    Attributes:
        tasks: Files of each task's training table.
        catalog: Files of item_features.
        item_keys: int64 [item], sorted keys of the items with a training pair; empty where nothing asks for them.
        item_shares: float64 [item], expected share of a batch's rows that have the item; empty like the keys.
        spec: The model to train.
        made_with: What the tables were made with, which is stamped on the model; see schemas/contracts.py.
        versions: Version and rows of every table read.
    """

    tasks: list[TableFiles]
    catalog: TableFiles
    item_keys: npt.NDArray[np.int64]
    item_shares: npt.NDArray[np.float64]
    spec: ItemTowerSpec
    made_with: dict[str, str]
    versions: tuple[TableVersion, ...]

    @property
    def trained_keys(self) -> npt.NDArray[np.int64]:
        """The items that training has pairs of; empty like the keys."""
        return self.item_keys[self.item_shares > 0]

    @property
    def vocabulary_hash(self) -> str:
        """Of the vocabulary that the token ids mean something in."""
        return self.made_with[VOCABULARY]


def pin_inputs(settings: Settings) -> Inputs:
    """Resolve every table to the version that the run records name.

    Raises:
        InputError: a stage has not run, ran with other tasks or features, or the training tables were cut from other
            features, or from queries of another embedding space.
    """
    tables = read_record(settings.layout, BUILD_TRAINING_TABLES)
    features = read_record(settings.layout, BUILD_ITEM_FEATURES)
    queries = read_record(settings.layout, EMBED_QUERIES)
    kinds = {task.query_kind for task in settings.task_list}
    tables_cut = require_cut_from(tables, features, queries)
    made_with = agreed(settings.layout, TRAIN, [queries, features, tables_cut], kinds)
    require_image_length(features.metrics, settings.model.image_length)
    tasks = [tables.output(task.training_table) for task in settings.task_list]
    catalog, counts = features.output(ITEM_FEATURES.name), tables.output(ITEM_COUNTS.name)
    spaces = {kind: made_with[space_of(kind)] for kind in sorted(kinds) if space_of(kind) in made_with}
    if settings.model.residual:
        _require_one_space(spaces, kinds, features)
    keys, shares = np.empty(0, np.int64), np.empty(0)
    if _needs_item_shares(settings):
        keys, shares = _item_shares(counts, settings)
    spec = ItemTowerSpec(
        settings.model,
        settings.loss,
        settings.features,
        features.metrics.vocabulary_size,
        spaces,
        tuple(task.query_kind for task in settings.task_list),
        int((shares > 0).sum()),
    )
    if distributed.rank() == 0 and (line := other_code([tables, features, queries])):
        print(line, flush=True)
    return Inputs(
        [pin_files(version.table, version.uri, version.version) for version in tasks],
        pin_files(catalog.table, catalog.uri, catalog.version),
        keys,
        shares,
        spec,
        made_with,
        (*tasks, catalog, counts),
    )


def _require_one_space(spaces: dict[str, str], kinds: set[str], features: RunRecord[ItemMetrics]) -> None:
    """Refuse a residual path from item texts in another space than that of a task's queries.

    Raises:
        InputError: it names the kind of query and both spaces.
    """
    found = features.made_with.get(ITEM_TEXT_SPACE, "none")
    for kind in sorted(kinds):
        if spaces.get(kind) == found != "none":
            continue
        raise InputError(
            TRAIN.name,
            "model.residual",
            expected=f"frozen item texts in the space of the {kind} queries, {spaces.get(kind, 'which no record names')}",
            found=found,
            cure="Embed both with one encoder: run embed_queries, embed_items and all stages after them; or set "
            "model.residual = false.",
        )


def _item_shares(counts: TableVersion, settings: Settings) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Expected share of a batch's rows per item: the sum over tasks of T_k / B * (pairs of the item / of the task)."""
    names = pa.array([task.name for task in settings.task_list])
    key_parts, task_parts, pair_parts = [np.empty(0, np.int64)], [np.empty(0, np.int8)], [np.empty(0)]
    for file in data_files(counts.uri, counts.version):
        # Columns of numbers, file by file: there is a row for every item of every task.
        table = pq.read_table(file, columns=["item_key", "task", "pair_count"], read_dictionary=["task"])
        key_parts.append(table["item_key"].to_numpy())
        number = pc.index_in(table["task"].cast(pa.string()), names).fill_null(-1)
        task_parts.append(number.to_numpy().astype(np.int8))
        pair_parts.append(table["pair_count"].to_numpy().astype(np.float64))
    task, share = np.concatenate(task_parts), np.concatenate(pair_parts)
    sizes = pairs_per_task(settings.train.batch_size, [entry.share for entry in settings.tasks])
    for number, size in enumerate(sizes):
        rows = task == number
        share[rows] = size / settings.train.batch_size * share[rows] / share[rows].sum()
    share[task < 0] = 0
    keys, inverse = np.unique(np.concatenate(key_parts), return_inverse=True)
    return keys, np.bincount(inverse, share).astype(np.float64)


def _needs_item_shares(settings: Settings) -> bool:
    """Whether anything asks which items have pairs, and how many: a row for each of them on every rank."""
    asks = settings.loss.frequency == "exact", settings.train.negatives_from == "engaged"
    return any(asks) or ITEM_ID in settings.model.sequence


def make_batches(
    inputs: Inputs, settings: Settings, start_step: int, device: torch.device = CPU
) -> MixedBatches | CatalogBatches:
    """This rank's endless batches, in the CPU's memory, but for the catalog of a full softmax."""
    rank, ranks, train = distributed.rank(), distributed.world_size(), settings.train
    is_full = settings.loss.form == "full"
    elements = inputs.spec.elements
    pairs = pair_format(None if is_full else elements)
    sizes = pairs_per_task(train.batch_size // ranks, [entry.share for entry in settings.tasks])
    pool = max(1, train.shuffle_rows // (len(sizes) + 1))
    streams = [
        RowStream(files, pairs, pool, train.seed, number, rank, ranks) for number, files in enumerate(inputs.tasks, 1)
    ]
    if is_full:
        whole = _candidates(
            read_catalog(inputs.catalog, catalog_format(elements), settings.deadlines.read_seconds), inputs, settings
        )
        return CatalogBatches(streams, sizes, whole, rank, ranks, elements, start_step, device)
    # item_features is sorted by item within a file: negatives of a small pool would be neighbours.
    catalog = RowStream(inputs.catalog, catalog_format(elements), train.shuffle_rows, train.seed, 0, rank, ranks)
    engaged = inputs.item_keys if train.negatives_from == "engaged" else None
    count = train.negative_count // ranks
    return MixedBatches(streams, sizes, catalog, count, engaged, elements, start_step)


def _candidates(whole: CatalogItems, inputs: Inputs, settings: Settings) -> CatalogItems:
    """The items of a full softmax: the catalog, or those with a training pair."""
    if settings.train.negatives_from == "catalog":
        return whole
    rows = np.flatnonzero(np.isin(whole.item_key, inputs.item_keys))
    return CatalogItems(whole.item_key[rows], whole.items.take(rows))


def make_objective(inputs: Inputs, settings: Settings, device: torch.device) -> Objective:
    """The loss with its frequencies."""
    loss = settings.loss
    frequency: CountMinSketch | ExactFrequency
    if loss.frequency == "sketch":
        frequency = CountMinSketch(loss.sketch_depth, loss.sketch_width)
    else:
        frequency = ExactFrequency(torch.from_numpy(inputs.item_keys), torch.from_numpy(inputs.item_shares))
    sampled = min(1.0, settings.train.negative_count / inputs.catalog.row_count)
    return Objective(loss, frequency, settings.train.batch_size, sampled).to(device)
