"""What a training run reads: tables pinned to the versions of the run records, and the batches made of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from itemsage_model.data.mixing import CPU, CatalogBatches, MixedBatches, pairs_per_task
from itemsage_model.data.parquet_files import file_batches
from itemsage_model.data.pinned_files import TableFiles, pin_version, require_image_length, some_files
from itemsage_model.data.query_keys import trained_queries
from itemsage_model.data.reader import CatalogItems, RowStream, Weight, catalog_format, pair_format, read_catalog
from itemsage_model.data.validation import read_validation
from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.training import distributed
from itemsage_model.training.frequency import CountMinSketch, ExactFrequency
from itemsage_model.training.objective import Objective
from itemsage_model.training.validation import Validation
from schemas.contracts import (
    ITEM_TEXT,
    VOCABULARY,
    agreed,
    kinds_apart,
    other_code,
    require_cut_from,
    run_again,
    space_of,
)
from schemas.errors import InputError
from schemas.presets import Shop
from schemas.records import RunRecord, TableVersion, read_record
from schemas.settings import Settings
from schemas.stages import BUILD_ITEM_FEATURES, BUILD_TRAINING_TABLES, EMBED_QUERIES, TRAIN
from schemas.storage import data_files
from schemas.tables import ITEM_COUNTS, ITEM_FEATURES, TRAINING_PAIRS

_MAX_CANDIDATES = 100_000
"""Items of a larger catalog are sampled for validation, by whole files."""
_MAX_VALIDATION_PAIRS = 400_000
_ROWS_AT_ONCE = 65_536


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
        validation: Version and rows of each task's validation table, by task; none of tables of before.
        has_images: Whether any item has an image.
        weight: The column that is a pair's weight; "fit_weight" leaves the validation window out.
    """

    tasks: list[TableFiles]
    catalog: TableFiles
    item_keys: npt.NDArray[np.int64]
    item_shares: npt.NDArray[np.float64]
    query_keys: npt.NDArray[np.int64]
    spec: ItemTowerSpec
    made_with: dict[str, str]
    made_after: dict[str, str]
    versions: tuple[TableVersion, ...]
    validation: tuple[TableVersion, ...]
    has_images: bool
    weight: Weight = "pair_weight"

    @property
    def counts(self) -> TableVersion:
        """The pinned item_counts."""
        return self.versions[-1]

    @property
    def vocabulary_hash(self) -> str:
        """Of the vocabulary that the token ids mean something in."""
        return self.made_with[VOCABULARY]


def pin_inputs(settings: Settings) -> Inputs:
    """Resolve every table to the version that the run records name, for a pass over the whole training period.

    Raises:
        InputError: a stage has not run, ran with other tasks, negatives or features, or the training tables were cut
            from other features, or from queries of another embedding space.
    """
    tables = read_record(settings.layout, BUILD_TRAINING_TABLES)
    features = read_record(settings.layout, BUILD_ITEM_FEATURES)
    queries = read_record(settings.layout, EMBED_QUERIES)
    kinds = {task.query_kind for task in settings.task_list}
    tables_cut = require_cut_from(tables, features, queries)
    _require_same_negatives(tables, settings)
    made_with = agreed(settings.layout, TRAIN, [queries, features, tables_cut], kinds)
    require_image_length(features.metrics, settings.model.image_length)
    tasks = [tables.output(task.training_table) for task in settings.task_list]
    catalog, counts = features.output(ITEM_FEATURES.name), tables.output(ITEM_COUNTS.name)
    if distributed.rank() == 0 and (line := other_code([tables, features, queries])):
        print(line, flush=True)
    spaces = {kind: made_with[space_of(kind)] for kind in sorted(kinds) if space_of(kind) in made_with}
    pinned = Inputs(
        [pin_version(version) for version in tasks],
        pin_version(catalog),
        np.empty(0, np.int64),
        np.empty(0),
        np.empty(0, np.int64),
        ItemTowerSpec(settings.model, settings.loss, settings.features, features.metrics.vocabulary_size, spaces),
        made_with,
        {record.stage: record.sha256 for record in (tables, features, queries)},
        (*tasks, catalog, counts),
        _validation_tables(tables, settings),
        settings.inputs.has_images and features.metrics.images > 0,
    )
    return inputs_for(pinned, settings, "pair_weight")


def _require_same_negatives(tables: RunRecord[Any], settings: Settings) -> None:
    """Refuse training tables that were cut with other explicit negatives: their weights stand in the rows.

    Raises:
        InputError: [[negatives]] are others than the record says; one of before has none.
    """
    wanted = settings.model_dump(mode="json")["negatives"]
    found = tables.settings.get("negatives", [])
    if wanted != found:
        raise InputError(
            "training tables",
            "negatives",
            expected=f"tables cut with the [[negatives]] of the settings, {json.dumps(wanted)}",
            found=json.dumps(found),
            cure=run_again([BUILD_TRAINING_TABLES.name]),
        )


def inputs_for(pinned: Inputs, settings: Settings, weight: Weight) -> Inputs:
    """The same tables for a pass with other settings of the model, or over another window.

    Args:
        pinned: What `pin_inputs` returned.
        settings: Model, loss and training of the pass.
        weight: The column that is a pair's weight.

    Raises:
        InputError: the model has a residual path, and item texts lie in another space than some task's queries.
    """
    kinds = tuple(task.query_kind for task in settings.task_list)
    if settings.model.residual:
        _require_one_space(pinned.made_with, kinds)
    keys, shares = np.empty(0, np.int64), np.empty(0)
    if _needs_item_shares(settings):
        keys, shares = _item_shares(pinned.counts, settings, weight)
    asks = settings.model.query_adapter and settings.model.query_id_rows
    queries = trained_queries(pinned.tasks, weight) if asks else np.empty(0, np.int64)
    spec = replace(
        pinned.spec, model=settings.model, loss=settings.loss, task_kinds=kinds, trained_items=len(keys),
        trained_queries=len(queries),
    )  # fmt: skip
    return replace(pinned, item_keys=keys, item_shares=shares, query_keys=queries, spec=spec, weight=weight)


def _validation_tables(tables: RunRecord[Any], settings: Settings) -> tuple[TableVersion, ...]:
    written = {version.table for version in tables.outputs}
    names = [task.validation_table for task in settings.task_list if task.validation_table in written]
    return tuple(tables.output(name) for name in names)


def shop_of(inputs: Inputs, settings: Settings) -> Shop:
    """What the choice of a configuration goes by."""
    return Shop(
        training_pairs=sum(files.row_count for files in inputs.tasks),
        items=inputs.catalog.row_count,
        engaged_items=len(_item_shares(inputs.counts, settings, "pair_weight")[0]),
        engaged_queries=len(trained_queries(inputs.tasks, "pair_weight")),
        has_images=inputs.has_images,
        is_one_space=not kinds_apart(inputs.made_with, [task.query_kind for task in settings.task_list]),
    )


def validation_of(inputs: Inputs, settings: Settings) -> Validation | None:
    """What measures recall on the validation window; None where no task has a pair in it."""
    if len(inputs.validation) < len(settings.tasks):
        return None  # of tables cut before there was one
    most = _MAX_VALIDATION_PAIRS // len(settings.tasks)
    pairs = [read_validation(version, most) for version in inputs.validation]
    if not any(map(len, pairs)):
        return None
    elements = inputs.spec.elements
    sample = some_files(inputs.catalog, _MAX_CANDIDATES, settings.train.seed)
    catalog = read_catalog(sample, catalog_format(elements), settings.deadlines.read_seconds)
    fit_keys, _ = _item_shares(inputs.counts, settings, "fit_weight")
    validation = Validation(pairs, [entry.share for entry in settings.tasks], catalog, fit_keys, elements)
    return validation if validation.pair_count else None


def _require_one_space(made_with: dict[str, str], kinds: Iterable[str]) -> None:
    """Refuse a residual path from item texts in another space than that of a task's queries.

    Raises:
        InputError: it names the kind of query and both spaces.
    """
    for kind in kinds_apart(made_with, kinds):
        expected = made_with.get(space_of(kind), "unnamed")
        raise InputError(
            TRAIN.name,
            "model.residual",
            expected=f"frozen item texts in the space of the {kind} queries, {expected}",
            found=made_with.get(ITEM_TEXT, "none"),
            cure="Embed both with one encoder: run embed_queries, embed_items and all stages after them; or set "
            "model.residual = false.",
        )


def _item_shares(
    counts: TableVersion, settings: Settings, weight: Weight
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Expected share of a batch's rows per item: the sum over tasks of T_k / B * (pairs of the item / of the task)."""
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
    task, share = np.concatenate(task_parts), np.concatenate(pair_parts)
    sizes = pairs_per_task(settings.train.batch_size, [entry.share for entry in settings.tasks])
    for number, size in enumerate(sizes):
        rows = task == number
        share[rows] = size / settings.train.batch_size * share[rows] / max(share[rows].sum(), 1)
    share[task < 0] = 0
    keys, inverse = np.unique(np.concatenate(key_parts), return_inverse=True)
    shares = np.bincount(inverse, share, minlength=len(keys)).astype(np.float64)
    return keys[shares > 0], shares[shares > 0]


def _needs_item_shares(settings: Settings) -> bool:
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
