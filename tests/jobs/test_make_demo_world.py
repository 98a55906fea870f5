"""make_demo_world: the planted structure is there, and the same settings give the same world."""

from __future__ import annotations

import io
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from PIL import Image
from pyspark.sql import SparkSession

from jobs import make_demo_world
from jobs.demo_world.engagements import Events, engagement_shares, engagement_taste, sample_items
from jobs.demo_world.pictures import SIDE, make_pictures
from jobs.demo_world.shop import BLOCKS, Shop, image_counts, make_images, make_shop
from jobs.demo_world.words import Attributes, item_texts, query_text
from schemas.columns import Table
from schemas.picture_tables import ITEM_PICTURES
from schemas.records import read_record
from schemas.settings import Settings
from schemas.tables import (
    ENGAGEMENT_LOGS,
    ITEM_IMAGES,
    ITEMS,
    QUERIES,
    TRUE_ITEM_VECTORS,
    TRUE_QUERY_VECTORS,
)

SMALL = {"items": 300, "events": 3_000, "seed": 3}
World = dict[Table, pa.Table]


@pytest.fixture(scope="module")
def settings() -> Settings:
    dates = {"as_of": "2026-03-01", "train_days": 20, "gap_days": 2, "test_days": 7}
    size = {"items": 600, "events": 30_000, "seed": 3}
    return Settings.model_validate({"warehouse": {"uri": "unused"}, "dates": dates, "demo_world": size})


@pytest.fixture(scope="module")
def world(settings: Settings) -> World:
    return make_demo_world.build(settings)


@pytest.fixture(scope="module")
def shop() -> Shop:
    return make_shop(3, 200, {"closeup": 100, "search": 100})


def matrix(table: pa.Table, column: str) -> Any:
    return np.stack(table[column].to_pandas().to_numpy())


def honest_events(world: World, settings: Settings) -> Any:
    """Distinct events of the window whose item and query are known."""
    log = pd.DataFrame(world[ENGAGEMENT_LOGS].to_pydict()).drop_duplicates("event_id")
    known = log.item_id.isin(world[ITEMS]["item_id"].to_pylist()) & log.query_id.isin(
        world[QUERIES]["query_id"].to_pylist()
    )
    return log[known & (log.event_ts >= settings.dates.train_start) & (log.event_ts < settings.dates.end)]


def recall_at_10(scores: Any, positives: Any) -> float:
    positive = np.take_along_axis(scores, positives[:, None], axis=1)
    return float(((scores >= positive).sum(axis=1) <= 10).mean())


def test_a_run_writes_every_table_and_the_same_rows_whatever_the_partitions(
    spark: SparkSession, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings(demo_world=SMALL)
    make_demo_world.run(spark, settings)
    record = read_record(settings.layout, make_demo_world.STAGE)
    rows = {version.table: version.rows for version in record.outputs}
    expected = make_demo_world.build(settings)
    assert rows == {table.name: len(built) for table, built in expected.items()}
    assert rows["items"] == 300
    assert rows["engagement_logs"] == 3_000
    for table, built in expected.items():
        stored = DeltaTable(settings.table_uri(table.name)).to_pyarrow_table().select(built.column_names)
        key = [(name, "ascending") for name in table.key]
        assert stored.sort_by(key).to_pydict() == built.sort_by(key).to_pydict()


def test_the_seed_decides_every_row(make_settings: Callable[..., Settings]) -> None:
    first, again, other = (
        make_demo_world.build(make_settings(demo_world=SMALL | {"seed": seed})) for seed in (3, 3, 4)
    )
    for table in first:
        assert first[table].equals(again[table])
        assert not first[table].equals(other[table])


def test_checkouts_are_thirty_times_rarer_than_clicks_and_every_task_has_events(
    world: World, settings: Settings
) -> None:
    counts = Counter(honest_events(world, settings)["engagement"])
    assert 20 < counts["click"] / counts["checkout"] < 45
    assert counts["click"] > counts["save"] > counts["add_to_cart"] > counts["checkout"]
    assert engagement_shares(1).tolist() == [1]


def test_other_kinds_and_engagements_are_made_as_the_tasks_name_them(make_settings: Callable[..., Settings]) -> None:
    tasks = [{"query_kind": "viewing", "engagement": name} for name in ("inquiry", "tour")]
    built = make_demo_world.build(make_settings(demo_world=SMALL, tasks=tasks))
    counts = Counter(built[ENGAGEMENT_LOGS]["engagement"].to_pylist())
    assert counts.keys() == {"inquiry", "tour"}
    assert counts["inquiry"] > 15 * counts["tour"] > 0
    assert set(built[QUERIES]["embedding_space"].to_pylist()) == {"demo-viewing-1"}


def test_one_percent_is_delivered_twice_and_one_percent_is_late_future_or_unknown(
    world: World, settings: Settings
) -> None:
    log = pd.DataFrame(world[ENGAGEMENT_LOGS].to_pydict())
    assert len(log) == 30_000
    assert log.duplicated("event_id").sum() == log.duplicated().sum() == 300
    once = log.drop_duplicates("event_id")
    assert (once.event_ts < settings.dates.train_start).sum() == 75
    assert (once.event_ts >= settings.dates.end).sum() == 75
    assert (~once.item_id.isin(world[ITEMS]["item_id"].to_pylist())).sum() == 75
    assert (~once.query_id.isin(world[QUERIES]["query_id"].to_pylist())).sum() == 75
    assert 0.1 < once.user_id.isna().mean() < 0.2


def test_the_truth_ranks_engaged_items_high_and_popularity_does_not(world: World, settings: Settings) -> None:
    events = honest_events(world, settings)
    events = events[(events.event_ts >= settings.dates.test_start) & (events.engagement == "click")][:2_000]
    row = {name: number for number, name in enumerate(world[ITEMS]["item_id"].to_pylist())}
    positives = events.item_id.map(row).to_numpy()
    truth = world[TRUE_QUERY_VECTORS].to_pandas()
    truth = truth[truth.engagement == "click"].set_index("query_id").true_vector
    scores = np.stack(truth.loc[events.query_id].to_numpy()) @ matrix(world[TRUE_ITEM_VECTORS], "true_vector").T
    counts = np.bincount(honest_events(world, settings).item_id.map(row), minlength=len(row))
    oracle, popularity = recall_at_10(scores, positives), recall_at_10(np.tile(counts, (len(events), 1)), positives)
    assert oracle > 0.4
    assert oracle > 5 * popularity


def test_no_query_engages_the_item_it_shows_and_new_items_wait_until_they_are_listed(
    world: World, settings: Settings
) -> None:
    events = honest_events(world, settings)
    shown = dict(zip(*(world[QUERIES][name].to_pylist() for name in ("query_id", "query_item_id")), strict=True))
    assert not (events.query_id.map(shown) == events.item_id).any()
    never = set(world[ITEMS]["item_id"].to_pylist()) - set(events.item_id)
    trained = set(events[events.event_ts < settings.dates.test_start].item_id)
    new = set(events.item_id) - trained
    assert len(never) >= 6  # the delisted ones
    assert len(new) >= 10


def test_events_follow_the_exact_distribution(shop: Shop) -> None:
    taste = np.stack([engagement_taste(3, name) * 3 for name in ("click", "save")])
    query = np.repeat([5, 70], 20_000)
    engagement = np.tile([0, 1], 20_000)
    events = Events(query, engagement, np.ones(len(query), dtype=bool))
    drawn = sample_items(np.random.default_rng(1), shop.queries["closeup"], shop.items, taste, events)
    for q in (5, 70):
        for e in (0, 1):
            affinity = shop.items.true_vectors @ (shop.queries["closeup"].true_vectors[q] + taste[e])
            expected = np.exp(affinity.astype(float))
            if shop.queries["closeup"].items[q] >= 0:
                expected[shop.queries["closeup"].items[q]] = 0
            found = np.bincount(drawn[(query == q) & (engagement == e)], minlength=200) / 10_000
            assert np.abs(found - expected / expected.sum()).max() < 0.02


def test_brand_and_material_show_only_in_text_and_the_look_only_in_images(shop: Shop) -> None:
    _, _, images = make_images(shop.items, 3)

    def texts_of(changed: Attributes) -> dict[str, Any]:
        return item_texts(changed, np.random.default_rng(8))

    item = shop.items.attributes[0]
    start = dict(zip(BLOCKS, np.cumsum([0, *(dims for dims, _, _ in BLOCKS.values())]), strict=False))
    for block, attribute, is_seen, is_told in (
        ("brand", "brand", False, True),
        ("material", "material", False, True),
        ("look", "mood", True, False),
        ("style", "style", True, True),
        ("color", "color", True, True),
    ):
        hidden = shop.items.hidden.copy()
        hidden[:, start[block] : start[block] + BLOCKS[block][0]] *= -1
        _, _, changed = make_images(replace(shop.items, hidden=hidden), 3)
        assert (not np.array_equal(changed, images)) is is_seen
        other = replace(item, **{attribute: getattr(item, attribute) + 1})
        assert (texts_of(other) != texts_of(item)) is is_told


def test_queries_of_two_kinds_live_in_two_rotations_and_images_in_the_first(shop: Shop) -> None:
    item, _, images = make_images(shop.items, 3)
    closeup, search = shop.queries["closeup"], shop.queries["search"]
    assert set(closeup.items[closeup.items < 0]) == {-1}
    with_item = np.flatnonzero(np.isin(closeup.items, item))
    own = [images[item == closeup.items[q]].mean(axis=0) for q in with_item]
    near = np.einsum("ij,ij->i", closeup.embeddings[with_item], own)
    far = closeup.embeddings[with_item] @ np.roll(own, 1, axis=0).T
    assert near.mean() > far.mean() + 0.2
    # Not comparable across kinds: as far apart as random directions.
    assert np.abs(closeup.embeddings @ search.embeddings.T).mean() < 0.1


def test_vectors_are_float32_of_unit_length_and_items_have_0_to_25_images(world: World) -> None:
    for table, column in ((ITEM_IMAGES, "image_embedding"), (QUERIES, "query_embedding")):
        vectors = matrix(world[table], column)
        assert vectors.dtype == np.float32
        assert vectors.shape[1] == 256
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert matrix(world[TRUE_ITEM_VECTORS], "true_vector").shape == (600, 64)
    images = world[ITEM_IMAGES].to_pandas().groupby("item_id").position
    assert (images.max() + 1 == images.count()).all()
    assert images.count().max() == 25
    assert 0.01 < 1 - images.ngroups / 600 < 0.12


def test_texts_read_like_a_shops_and_some_are_empty_foreign_or_cheerful(world: World) -> None:
    titles = world[ITEMS]["title"].to_pylist()
    assert not any(
        item_id in (title or "") for item_id, title in zip(world[ITEMS]["item_id"].to_pylist(), titles, strict=True)
    )
    text = "".join(titles)
    assert {"CJK", "CYRILLIC", "ARABIC"} & {unicodedata.name(c, "?").split()[0] for c in text}
    assert any(unicodedata.category(c) == "So" for c in text)
    assert 0 < titles.count("") < 30
    for name in ("description", "brand", "colors", "size_type", "product_links"):
        assert 0 < world[ITEMS][name].null_count < 600
    assert len(set(world[ITEMS]["item_id"].to_pylist())) == 600


def test_search_queries_have_texts_that_differ_and_closeups_have_none(world: World) -> None:
    queries = world[QUERIES].to_pandas()
    search, closeup = (queries[queries.query_kind == kind] for kind in ("search", "closeup"))
    assert search.text.is_unique
    assert search.query_item_id.isna().all()
    assert closeup.text.isna().all()
    assert 0.2 < closeup.query_item_id.isna().mean() < 0.7
    assert closeup.query_item_id.dropna().isin(world[ITEMS]["item_id"].to_pylist()).all()


def test_what_a_shopper_types() -> None:
    wish = Attributes(category=0, style=0, brand=0, color=0, material=0, mood=0)
    assert query_text(wish, (True, False, True, True, False), 2) == "black bamboo mid-century side table"
    assert query_text(wish, (False, True, False, False, True), 0) == "halden & co cozy side table"


def test_timestamps_are_instants_in_utc(world: World) -> None:
    first = world[ENGAGEMENT_LOGS]["event_ts"][0].as_py()
    assert isinstance(first, datetime)
    assert str(world[ENGAGEMENT_LOGS].schema.field("event_ts").type) == "timestamp[us, tz=UTC]"


def test_pictures_show_colour_and_shape_and_the_ground_is_each_ones_own() -> None:
    items = make_shop(3, 200, {}).items
    item, position, drawn = make_pictures(items, 3)
    counts = np.bincount(item, minlength=200)
    assert counts.tolist() == np.minimum(image_counts(items, 3), 2).tolist()
    assert np.bincount(make_images(items, 3)[0], minlength=200).tolist() == image_counts(items, 3).tolist()
    assert 0 < (counts == 0).sum() < 40
    assert position.tolist() == [number for count in counts for number in range(count)]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(content)), np.float64) for content in drawn])
    assert pixels.shape[1:] == (SIDE, SIDE, 3)
    middle = pixels[:, SIDE // 2 - 8 : SIDE // 2 + 8, SIDE // 2 - 8 : SIDE // 2 + 8].mean((1, 2))
    corner = pixels[:, 6:12, 6:12].mean((1, 2))
    twins = np.flatnonzero(item[1:] == item[:-1])
    same, other = (np.linalg.norm(part[twins] - part[twins + 1], axis=1).mean() for part in (middle, corner))
    assert same < 0.5 * other
    colors = np.array([items.attributes[row].color for row in item])
    alike = [
        np.linalg.norm(middle[colors == color] - middle[colors == color].mean(0), axis=1).mean()
        for color in set(colors)
    ]
    assert np.mean(alike) < 0.6 * np.linalg.norm(middle - middle.mean(0), axis=1).mean()
    assert make_pictures(items, 3)[2] == drawn


def test_a_world_of_pictures_has_no_vectors(settings: Settings) -> None:
    size = settings.demo_world.model_copy(update={"pictures": True})
    world = make_demo_world.build(settings.model_copy(update={"demo_world": size}))
    plain = make_demo_world.build(settings)
    assert set(world) == set(plain) - {ITEM_IMAGES} | {ITEM_PICTURES}
    assert world[ITEM_PICTURES].column_names == list(ITEM_PICTURES.column_names)
    assert world[ITEMS].equals(plain[ITEMS])
    queries, pictured = world[QUERIES], set(world[ITEM_PICTURES]["item_id"].to_pylist())
    assert queries["query_embedding"].null_count == queries["embedding_space"].null_count == len(queries)
    kinds = queries["query_kind"].to_pylist()
    shown = [item for item, kind in zip(queries["query_item_id"].to_pylist(), kinds, strict=True) if kind == "closeup"]
    assert shown
    assert set(shown) <= pictured < set(world[ITEMS]["item_id"].to_pylist())
    assert len(set(shown)) == len(shown)
