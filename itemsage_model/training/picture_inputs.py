"""The course of the picture tower: what `train_pictures` reads, what it is measured on, and how it begins."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import cast

import numpy as np
import pyarrow as pa
import torch

from itemsage_model.data.graph_batches import PAIRS
from itemsage_model.data.parquet_files import file_batches
from itemsage_model.data.picture_batches import PictureBatches, picture_format
from itemsage_model.data.pinned_files import TableFiles, pin_version
from itemsage_model.data.reader import CatalogItems, RowStream, Weight, read_catalog
from itemsage_model.data.validation import ValidationPairs
from itemsage_model.encoders.picture_tower import PictureTower, PictureTowerSpec
from itemsage_model.training import distributed
from itemsage_model.training.inputs import Course, Inputs
from itemsage_model.training.validation import Validation
from schemas.errors import InputError
from schemas.picture_tables import PICTURE_FEATURES, PICTURE_PAIRS, VALIDATION_PICTURE_PAIRS
from schemas.presets import Candidate
from schemas.records import TableVersion, read_record
from schemas.settings import ModelSettings, Settings, TaskSettings
from schemas.stages import BUILD_PICTURE_PAIRS, TRAIN_PICTURES
from schemas.tables import ROW_CHECKSUM

_TASK = TaskSettings(query_kind="item", engagement="together")
"""The one task there is: to find a product engaged from the same query."""

_MAX_CANDIDATES, _MAX_VALIDATION_PAIRS = 100_000, 400_000
_ROWS_AT_ONCE = 65_536


def settings_of(shops: Settings) -> Settings:
    """The shop's settings with [train] and [loss] by [picture_head], and one task."""
    model = ModelSettings(image_length=shops.model.image_length, max_images=shops.model.max_images)
    own = shops.picture_head
    changed = {"loss": own.loss_settings, "train": own.train_settings(shops.train), "model": model}
    return shops.model_copy(update=changed | {"preset": "paper", "tasks": (_TASK,), "negatives": ()})


def pin_inputs(settings: Settings) -> Inputs:
    """The tables of the last complete run of build_picture_pairs.

    Raises:
        InputError: there is none, or its vectors have another length than model.image_length.
    """
    record = read_record(settings.layout, BUILD_PICTURE_PAIRS)
    metrics, own = record.metrics, settings.picture_head
    if metrics.image_length != settings.model.image_length:
        raise InputError(
            PICTURE_FEATURES.name,
            "image_embeddings",
            expected=f"vectors of {settings.model.image_length} numbers, as model.image_length says",
            found=f"vectors of {metrics.image_length}",
            cure="Correct model.image_length, or run embed_images, then build_picture_pairs again.",
        )
    tables = (PICTURE_PAIRS, PICTURE_FEATURES, VALIDATION_PICTURE_PAIRS)
    pairs, features, measured = (record.output(table.name) for table in tables)
    most, nothing = settings.model.max_images, np.empty(0, np.int64)
    spec = PictureTowerSpec(
        metrics.base, metrics.image_length, own.width, most, own.temperature, settings.loss.max_temperature
    )
    return Inputs(
        [pin_version(pairs)], pin_version(features), nothing, np.empty(0), nothing, spec, record.made_with,
        {record.stage: record.sha256}, (pairs, features, measured), (measured,), has_images=True,
    )  # fmt: skip


def validation_of(inputs: Inputs, settings: Settings) -> Validation | None:
    """What measures recall on the pairs of the validation window; None where there is none.

    At step 0 it measures the base. An item is unseen where picture_pairs does not have it.
    """
    (measured,) = inputs.validation
    if measured is None or not measured.rows:
        return None
    spec = _spec(inputs)
    catalog = _catalog(inputs.catalog, spec, settings.deadlines.read_seconds)
    kept = np.random.default_rng(settings.train.seed).permutation(len(catalog))[:_MAX_CANDIDATES]
    kept.sort()
    sample = CatalogItems(catalog.item_key[kept], catalog.items.take(kept))
    fit_keys = np.unique(_pairs(inputs.versions[0]).item_key)
    validation = Validation([_pairs(measured, _MAX_VALIDATION_PAIRS)], [1.0], sample, fit_keys, spec.elements)
    return validation if validation.pair_count else None


def _pairs(version: TableVersion, most: int | None = None) -> ValidationPairs:
    """The rows of a table of pairs, at most so many, the first: their order is random-looking, and always the same."""
    names = [*PICTURE_PAIRS.checksummed, ROW_CHECKSUM]
    batches = [
        batch
        for uri in sorted(pin_version(version).uris)
        for batch in file_batches(uri, names, _ROWS_AT_ONCE, replace(PICTURE_PAIRS, name=version.table))
    ]
    rows = pa.Table.from_batches(batches).slice(0, most)
    queries, items, weights = (rows[name].to_numpy() for name in PICTURE_PAIRS.checksummed)
    return ValidationPairs(np.empty((len(rows), 0), np.float32), queries, items, queries, weights)


def _spec(inputs: Inputs) -> PictureTowerSpec:
    return cast(PictureTowerSpec, inputs.spec)


@lru_cache(maxsize=1)
def _catalog(files: TableFiles, spec: PictureTowerSpec, read_seconds: float) -> CatalogItems:
    """The products with pictures; kept, as tower, batches and validation all begin with them."""
    return read_catalog(files, picture_format(spec.elements[0]), read_seconds)


def _for_pass(pinned: Inputs, settings: Settings, weight: Weight) -> Inputs:
    """The same: all pairs are from before the validation window."""
    del settings, weight
    return pinned


def _begin(inputs: Inputs, settings: Settings) -> PictureTower:
    """The base itself: a head that changes nothing yet, and knows all pictures."""
    spec = _spec(inputs)
    catalog = _catalog(inputs.catalog, spec, settings.deadlines.read_seconds)
    pictures = catalog.items.gather()[spec.elements[0].key]
    tower = spec.build(seed=settings.train.seed)
    tower.read_pictures(catalog.item_key, pictures.first(spec.max_images))
    tower.head.measure(torch.from_numpy(pictures.values))
    return tower


def _candidates(_: Inputs, settings: Settings) -> list[Candidate]:
    return [Candidate("picture_head", settings, "there is one way to train a head")]


def make_batches(inputs: Inputs, settings: Settings, start_step: int, device: torch.device) -> PictureBatches:
    """This rank's endless batches, in the CPU's memory."""
    del device
    rank, ranks, train = distributed.rank(), distributed.world_size(), settings.train
    keys = _catalog(inputs.catalog, _spec(inputs), settings.deadlines.read_seconds).item_key
    stream = RowStream(inputs.tasks[0], PAIRS, train.shuffle_rows, train.seed, 1, rank, ranks)
    return PictureBatches(
        stream, keys, train.batch_size // ranks, train.negative_count // ranks, train.seed, start_step
    )


PICTURE_TOWER = Course(
    TRAIN_PICTURES, settings_of, pin_inputs, _for_pass, _begin, _candidates, make_batches, validation_of
)
