"""The course of the item tower: what `train` reads, and the tower that it begins with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch

from itemsage_model.data.pinned_files import pin_version, require_image_length
from itemsage_model.data.query_keys import trained_queries
from itemsage_model.data.reader import Weight
from itemsage_model.encoders.item_tower import ItemTower, ItemTowerSpec
from itemsage_model.training import distributed
from itemsage_model.training.inputs import Course, Inputs, item_shares, needs_item_shares
from schemas.contracts import ITEM_TEXT, agreed, kinds_apart, other_code, require_cut_from, run_again, space_of
from schemas.errors import InputError
from schemas.presets import Candidate, Shop, candidates
from schemas.records import RunRecord, TableVersion, read_record
from schemas.settings import Settings
from schemas.stages import BUILD_ITEM_FEATURES, BUILD_TRAINING_TABLES, EMBED_QUERIES, TRAIN
from schemas.tables import ITEM_COUNTS, ITEM_FEATURES


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
        counts=counts,
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
    if needs_item_shares(settings):
        keys, shares = item_shares(pinned, settings, weight)
    asks = settings.model.query_adapter and settings.model.query_id_rows
    queries = trained_queries(pinned.tasks, weight) if asks else np.empty(0, np.int64)
    spec = replace(
        cast(ItemTowerSpec, pinned.spec), model=settings.model, loss=settings.loss, task_kinds=kinds,
        trained_items=len(keys), trained_queries=len(queries),
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
        engaged_items=len(item_shares(inputs, settings, "pair_weight")[0]),
        engaged_queries=len(trained_queries(inputs.tasks, "pair_weight")),
        has_images=inputs.has_images,
        is_one_space=not kinds_apart(inputs.made_with, [task.query_kind for task in settings.task_list]),
    )


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


def begin(inputs: Inputs, settings: Settings) -> ItemTower:
    """An item tower with fresh weights, which knows what items and queries it has an identity of."""
    tower = cast(ItemTower, inputs.spec.build(seed=settings.train.seed))
    tower.remember(torch.from_numpy(inputs.item_keys), torch.from_numpy(inputs.query_keys))
    return tower


def _candidates(inputs: Inputs, settings: Settings) -> list[Candidate]:
    return candidates(settings, None if settings.preset == "paper" else shop_of(inputs, settings))


ITEM_TOWER = Course(TRAIN, lambda settings: settings, pin_inputs, inputs_for, begin, _candidates)
