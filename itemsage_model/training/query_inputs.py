"""The course of the text encoder: what `train_query_encoder` reads, and the tower that it begins with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from itemsage_model.data.mixing import CatalogBatches, MixedBatches
from itemsage_model.data.near_negatives import near_negatives
from itemsage_model.data.parquet_files import file_batches
from itemsage_model.data.pinned_files import pin_version, require_image_length
from itemsage_model.data.reader import Weight, catalog_format, read_catalog
from itemsage_model.encoders.query_tower import QueryTower, QueryTowerSpec
from itemsage_model.training import distributed
from itemsage_model.training.inputs import Course, Inputs, item_shares, make_batches, needs_item_shares
from itemsage_model.training.text_start import TextStart, text_start
from schemas.contracts import ITEM_TEXT, VOCABULARY, agreed, other_code, run_again
from schemas.errors import InputError, SettingsError
from schemas.presets import Candidate
from schemas.query_pair_tables import ITEM_TEXT_PAIRS, QUERY_PAIRS, VALIDATION_QUERY_PAIRS
from schemas.records import TableVersion, read_record
from schemas.settings import LossSettings, ModelSettings, Settings, TaskSettings, TrainSettings
from schemas.stages import BUILD_ITEM_FEATURES, BUILD_QUERY_PAIRS, EMBED_QUERIES, TRAIN_QUERY_ENCODER
from schemas.tables import ITEM_FEATURES

_ROWS_AT_ONCE = 65_536
_starts: dict[tuple[str, str, str, tuple[str, ...]], TextStart] = {}
"""The last one alone."""
_OF_THE_MACHINE = {"processes", "threads", "precision", "shuffle_rows", "prefetch_batches", "log_every",
                   "checkpoint_every", "final_pass", "seed"}  # fmt: skip
"""Keys of [train] that hold for this training too."""
_OWN = {"batch_size", "negative_count", "steps", "warmup_steps", "learning_rate", "validate_every", "patience"}
"""Keys of [search_text] that stand in the place of those of [train]."""


def settings_of(settings: Settings) -> Settings:
    """The settings with which the trainer trains the text encoder: two streams of pairs in the place of [[tasks]]."""
    own, share = settings.search_text, settings.search_text.item_text_share
    train = {"clip_norm": 1.0, "table_learning_rate": own.learning_rate} | own.model_dump(include=_OWN)
    tasks = [TaskSettings(query_kind="search", engagement="texts", share=1 - share)]
    if share:
        tasks.append(TaskSettings(query_kind="item", engagement="texts", share=share))
    return settings.model_copy(
        update={
            "preset": "paper",
            "tasks": tuple(tasks),
            "negatives": (),
            "model": ModelSettings(image_length=settings.model.image_length, max_images=settings.model.max_images),
            "loss": LossSettings(form=own.form, frequency="exact", distillation=own.distillation),
            "train": TrainSettings.model_validate(settings.train.model_dump(include=_OF_THE_MACHINE) | train),
        }
    )


def pin_inputs(settings: Settings) -> Inputs:
    """Resolve every table to the version that the run records name, for a pass over the whole training period.

    Raises:
        InputError: a stage has not run, or the pairs were cut from other item_features, or queries of another encoder.
        SettingsError: as of `text_start`.
    """
    pairs = read_record(settings.layout, BUILD_QUERY_PAIRS)
    features = read_record(settings.layout, BUILD_ITEM_FEATURES)
    queries = read_record(settings.layout, EMBED_QUERIES)
    catalog = features.output(ITEM_FEATURES.name)
    cut_from = pairs.input(ITEM_FEATURES.name)
    if cut_from is None or cut_from.version != catalog.version:
        raise InputError(
            QUERY_PAIRS.name,
            ITEM_FEATURES.name,
            expected=f"pairs cut from version {catalog.version}, which build_item_features completed last",
            found=f"version {cut_from.version if cut_from else None}",
            cure=run_again([BUILD_QUERY_PAIRS.name]),
        )
    made_with = agreed(
        settings.layout, TRAIN_QUERY_ENCODER, [queries, features, pairs], settings.search_text.query_kinds
    )
    require_image_length(features.metrics, settings.model.image_length)
    streams = [QUERY_PAIRS.name, ITEM_TEXT_PAIRS.name][: len(settings.tasks)]
    tasks, measured = [pairs.output(name) for name in streams], pairs.output(VALIDATION_QUERY_PAIRS.name)
    if not tasks[-1].rows and len(tasks) > 1:
        raise SettingsError(
            f"search_text.item_text_share = {settings.search_text.item_text_share}: no item has a text that the frozen "
            f"encoder knows, so {ITEM_TEXT_PAIRS.name} is empty; set it to 0, or fill the titles of items"
        )
    if distributed.rank() == 0 and (line := other_code([pairs, features, queries])):
        print(line, flush=True)
    _require_one_space(settings, pairs.metrics.encoder, made_with)
    start = _start(settings, pairs.metrics.encoder, _texts_of(tasks)[1])
    pinned = Inputs(
        [pin_version(version) for version in tasks],
        pin_version(catalog),
        np.empty(0, np.int64),
        np.empty(0),
        np.empty(0, np.int64),
        _spec(settings, start, made_with.get(ITEM_TEXT, "none")),
        {VOCABULARY: "", **made_with},
        {record.stage: record.sha256 for record in (pairs, features, queries)},
        (*tasks, measured, catalog),
        (measured, None)[: len(tasks)],
        settings.inputs.has_images and features.metrics.images > 0,
    )
    return for_pass(pinned, settings, "pair_weight")


def _require_one_space(settings: Settings, space: str, made_with: dict[str, str]) -> None:
    """Hard negatives are the items nearest to a text by their frozen vectors, which must be of one encoder.

    Raises:
        SettingsError: they are of two.
    """
    if settings.search_text.hard_negatives and not space:
        found = ", ".join(f"{name}: {one}" for name, one in made_with.items() if name != VOCABULARY)
        raise SettingsError(
            f"search_text.hard_negatives = {settings.search_text.hard_negatives}: texts and items have no frozen "
            f"vectors of one space ({found}), so that none is near another; set it to 0, or embed both with one encoder"
        )


def _spec(settings: Settings, start: TextStart, item_space: str) -> QueryTowerSpec:
    own, loss = settings.search_text, settings.loss
    return QueryTowerSpec(
        start.spec, start.name, item_space, start.is_one_space, settings.model.image_length, settings.model.max_images,
        own.item_width, own.trainable_layers, loss.temperature, loss.max_temperature, own.hard_negatives,
    )  # fmt: skip


def for_pass(pinned: Inputs, settings: Settings, weight: Weight) -> Inputs:
    """The same tables over another window; see `Course`."""
    keys, shares = np.empty(0, np.int64), np.empty(0)
    if needs_item_shares(settings):
        keys, shares = item_shares(pinned, settings, weight)
    return replace(pinned, item_keys=keys, item_shares=shares, weight=weight)


def begin(inputs: Inputs, settings: Settings) -> QueryTower:
    """A query tower with the weights that training begins with, and the texts of all pairs as token ids."""
    spec = cast(QueryTowerSpec, inputs.spec)
    tower = spec.build(seed=settings.train.seed)
    streams = inputs.versions[: len(inputs.tasks)]
    pairs = read_record(settings.layout, BUILD_QUERY_PAIRS)
    _start(settings, pairs.metrics.encoder, _texts_of(streams)[1]).put_into(tower.text)
    keys, texts = _texts_of([*streams, *(version for version in inputs.validation if version)])
    tower.read_texts(keys, spec.text.token_ids(texts))
    return tower


def _start(settings: Settings, space: str, texts: list[str]) -> TextStart:
    """What training begins with; kept, as both passes begin with it."""
    queries = read_record(settings.layout, EMBED_QUERIES)
    # Of another run of embed_queries, another start.
    key = (settings.model_dump_json(), queries.sha256, space, tuple(texts))
    if key not in _starts:
        _starts.clear()
        _starts[key] = text_start(settings, queries, space, key[-1])
    return _starts[key]


def _texts_of(versions: Iterable[TableVersion]) -> tuple[npt.NDArray[np.int64], list[str]]:
    """The distinct texts of some tables of pairs, sorted, and their keys."""
    key_of: dict[str, int] = {}
    for version in versions:
        for uri in pin_version(version).uris if version.rows else ():
            for batch in file_batches(uri, ["text", "query_key"], _ROWS_AT_ONCE, QUERY_PAIRS):
                key_of |= dict(zip(batch["text"].to_pylist(), batch["query_key"].to_pylist(), strict=True))
    texts = sorted(key_of)
    return np.array([key_of[text] for text in texts], np.int64), texts


def _candidates(_: Inputs, settings: Settings) -> list[Candidate]:
    return [Candidate("query_encoder", settings, "there is one way to train a text encoder")]


def make_query_batches(
    inputs: Inputs, settings: Settings, start_step: int, device: torch.device
) -> MixedBatches | CatalogBatches:
    """This rank's endless batches, with hard negatives where the settings want them."""
    batches, nearest = make_batches(inputs, settings, start_step, device), settings.search_text.hard_negatives
    if not nearest:
        return batches
    assert isinstance(batches, MixedBatches), "SearchTextSettings refuses hard negatives in a full softmax"
    row_format = catalog_format(inputs.spec.elements)
    whole = read_catalog(inputs.catalog, row_format, settings.deadlines.read_seconds)
    seed = (settings.train.seed, distributed.rank())
    near = near_negatives(whole, inputs.tasks[0], inputs.weight, nearest=nearest, seed=seed)
    return replace(batches, near=near)


QUERY_ENCODER = Course(TRAIN_QUERY_ENCODER, settings_of, pin_inputs, for_pass, begin, _candidates, make_query_batches)
