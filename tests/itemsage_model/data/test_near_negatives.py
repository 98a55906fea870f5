"""Hard negatives: near by the frozen vectors, never engaged, never shown, drawn anew; and what they change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from itemsage_model.data.mixing import MixedBatches, collate
from itemsage_model.data.near_negatives import NearNegatives, near_negatives
from itemsage_model.data.ragged import ItemRows
from itemsage_model.data.reader import CatalogItems, Pairs, catalog_format, read_catalog
from itemsage_model.encoders.model_files import load_model
from itemsage_model.encoders.query_tower import QueryTower, QueryTowerSpec
from itemsage_model.training import run as training
from itemsage_model.training.query_inputs import QUERY_ENCODER, make_query_batches, pin_inputs, settings_of
from schemas.errors import SettingsError
from schemas.records import read_record, write_record
from schemas.settings import Settings
from schemas.settings.search_text import SearchTextSettings
from schemas.stages import BUILD_QUERY_PAIRS, TRAIN_QUERY_ENCODER
from tests.itemsage_model.factories import packed_items
from tests.itemsage_model.texts import make_text_warehouse

CPU = torch.device("cpu")
ITEMS, PAIRS = 40, 300
RANDOM = np.random.default_rng(5)
VECTORS = RANDOM.standard_normal((ITEMS, 256)).astype(np.float32)
HAS_TEXT = np.arange(ITEMS) % 7 != 0
KEYS = np.arange(ITEMS, dtype=np.int64) * 3 + 100
TEXT = RANDOM.integers(0, 200, PAIRS)
FROZEN = RANDOM.standard_normal((200, 256)).astype(np.float16)
SHOWN = np.where(np.arange(200) % 2, 0, KEYS[(np.arange(200) + 5) % ITEMS])
ENGAGED = {text: {int(text) % ITEMS, (int(text) * 7) % ITEMS} for text in range(200)}


def pairs_of(texts: np.ndarray) -> Pairs:
    nothing = np.zeros(len(texts), np.float32)
    return Pairs(texts, KEYS[texts % ITEMS], SHOWN[texts], nothing + 1, FROZEN[texts], None)


def near_of(nearest: int) -> NearNegatives:
    rows = [(text, row) for text in sorted(ENGAGED) for row in sorted(ENGAGED[text])]
    query_key, engaged = np.array(rows, np.int64).T
    catalog = CatalogItems(KEYS, ItemRows([packed_items(ITEMS)], np.arange(ITEMS)))
    return NearNegatives(catalog, VECTORS, HAS_TEXT, query_key, engaged, nearest, (3, 0))


def slow(text: int, nearest: int) -> list[int]:
    scores = {row: float(FROZEN[text].astype(np.float32) @ VECTORS[row]) for row in range(ITEMS) if HAS_TEXT[row]}
    left = [row for row in scores if row not in ENGAGED[text] and KEYS[row] != SHOWN[text]]
    return sorted(left, key=lambda row: -scores[row])[:nearest]


@pytest.mark.parametrize("nearest", [1, 5, 1_000])
def test_what_is_drawn_is_among_the_nearest_that_were_not_engaged(nearest: int) -> None:
    near, found = near_of(nearest), [set() for _ in range(200)]
    for step in range(12):
        items, weights = near.drawn(pairs_of(TEXT), step)
        assert weights.tolist() == [1] * PAIRS
        for text, key in zip(TEXT.tolist(), items.item_key.tolist(), strict=True):
            found[text].add(int(np.searchsorted(KEYS, key)))
    for text in set(TEXT.tolist()):
        assert found[text] <= set(slow(text, nearest)), text
    often = int(np.bincount(TEXT).argmax())
    assert (len(found[often]) > 1) == (nearest > 1)


def test_a_step_draws_the_same_again_and_the_next_one_others() -> None:
    near = near_of(20)
    first, again, later = (near.drawn(pairs_of(TEXT), step)[0].item_key.tolist() for step in (4, 4, 5))
    assert first == again != later


def test_a_text_that_has_everything_has_no_hard_negative() -> None:
    near = near_of(5)
    everything = replace(near, query_key=np.full(ITEMS, 2), engaged=np.arange(ITEMS))
    _, weights = everything.drawn(pairs_of(np.array([2, 1, 2])), 0)
    assert weights.tolist() == [0, 1, 0]


def settings_with(place: Path, nearest: int, **own: object) -> Settings:
    """Two pairs a step and one random item: a text is held against its hard negative, or next to nothing."""
    return make_text_warehouse(
        place, hard_negatives=nearest, batch_size=2, negative_count=1, steps=150, learning_rate=3e-3, **own
    )


def share_ahead(settings: Settings) -> float:
    """Share of the pairs whose item the trained encoder puts before the nearest one that was not engaged."""
    course = settings_of(settings)
    inputs = pin_inputs(course)
    elements = inputs.spec.elements
    whole = read_catalog(inputs.catalog, catalog_format(elements))
    near = near_negatives(whole, inputs.tasks[0], "pair_weight", nearest=1, seed=(1, 0))
    batches = make_query_batches(inputs, course, 0, CPU)
    assert isinstance(batches, MixedBatches)
    pairs = next(batches.tasks[0].batches(57))
    model = load_model(read_record(settings.layout, TRAIN_QUERY_ENCODER).metrics.model_uri, QueryTowerSpec)
    assert model.spec.hard_negatives == settings.search_text.hard_negatives
    tower = QUERY_ENCODER.begin(inputs, course)
    assert isinstance(tower, QueryTower)
    tower.load_state_dict(model.build().state_dict())
    batch = collate([pairs], None, elements, near.drawn(pairs, 0))
    assert batch.explicit is not None
    with torch.inference_mode():
        queries, items = tower.eval().query_vectors(batch), tower.item_vectors(batch.items)
    own, hard = ((queries * items[rows]).sum(dim=1) for rows in (batch.positive, batch.explicit.item))
    return float((own > hard).float().mean())


def test_a_batch_has_them_in_the_rows_of_searches_alone(tmp_path: Path) -> None:
    settings = settings_of(make_text_warehouse(tmp_path, hard_negatives=1, batch_size=20, item_text_share=0.4))
    batch = next(iter(make_query_batches(pin_inputs(settings), settings, 0, CPU)))
    assert batch.explicit is not None
    assert batch.explicit.weight.tolist() == (batch.task == 0).float().tolist()
    chosen = batch.item_key[batch.explicit.item][batch.task == 0]
    assert (chosen != batch.item_key[batch.positive][batch.task == 0]).all()
    assert not set(chosen.tolist()) <= set(batch.item_key[batch.positive].tolist())


def test_a_text_leaves_its_hard_negative_behind_only_where_it_is_shown_to_it(tmp_path: Path) -> None:
    ahead = {}
    for nearest in (0, 1):
        settings = settings_with(tmp_path / str(nearest), nearest)
        training.train(settings, CPU, QUERY_ENCODER)
        ahead[nearest] = share_ahead(settings)
    assert ahead[1] > ahead[0] + 0.1, ahead


def test_they_need_one_space_and_a_sampled_softmax(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='hard_negatives: form = "full" has every item'):
        SearchTextSettings(hard_negatives=5, form="full")
    settings = make_text_warehouse(tmp_path, hard_negatives=5)
    record = read_record(settings.layout, BUILD_QUERY_PAIRS)
    write_record(settings.layout, replace(record, metrics=replace(record.metrics, encoder="")))
    with pytest.raises(SettingsError, match=r"hard_negatives = 5: texts and items have no frozen vectors of one space"):
        pin_inputs(settings_of(settings))
