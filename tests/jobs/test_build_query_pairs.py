"""build_query_pairs: texts in the place of queries, dirt and all; caps, windows, and what an item is called."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from jobs import build_query_pairs as job
from jobs.runtime import table_io
from jobs.transforms.queries import with_verdicts
from schemas.checksums import row_checksums
from schemas.errors import SettingsError, TableError
from schemas.metrics import ItemMetrics, ItemTextMetrics, QueryMetrics
from schemas.query_pair_tables import ITEM_TEXT_PAIRS, QUERY_PAIRS, VALIDATION_QUERY_PAIRS
from schemas.records import RunRecord, TableVersion, read_record, write_record
from schemas.settings import Settings
from schemas.spark import struct_type
from schemas.stages import BUILD_QUERY_PAIRS
from schemas.tables import ENGAGEMENT_LOGS, ITEM_FEATURES, ITEMS, QUERIES, QUERY_EMBEDDINGS, SOURCE_HASH

TASKS = [{"query_kind": "search", "engagement": "click"}, {"query_kind": "closeup", "engagement": "save"}]
# make_settings: as_of 1 March; training [31 January, 20 February), of which validation from 18 February on; held out
# from 22 February on.
EARLY, LATE, HELD_OUT = (datetime(2026, 2, day, tzinfo=timezone.utc) for day in (10, 18, 25))
TEXTS = {
    "q1": "red shoes", "q2": "red shoes", "q3": "rde sheos", "q4": "DIN 912 M6x20", "q5": "新款跑鞋红色", "q6": "   ",
    "q7": None, "q8": "x" * 20_000, "p1": "shown",
}  # fmt: skip
Shop = Callable[..., Settings]


def embedding(number: int) -> list[float]:
    return [number / 8] * 256


def put(spark: SparkSession, settings: Settings, table: Any, rows: list[tuple[Any, ...]]) -> None:
    uri = settings.table_uri(table.name)
    spark.createDataFrame(rows, struct_type(table)).write.format("delta").mode("overwrite").save(uri)


@pytest.fixture
def shop(spark: SparkSession, make_settings: Callable[..., Settings]) -> Shop:
    """A shop whose log is given as (query, item, when), with five items."""

    def make(events: list[tuple[str, str, datetime]], **own: Any) -> Settings:
        settings = make_settings(tasks=TASKS, search_text=own)
        kind = {name: "closeup" if name[0] == "p" else "search" for name in TEXTS}
        put(spark, settings, QUERIES, [(name, kind[name], text, None, None, None) for name, text in TEXTS.items()])
        engagement = {"search": "click", "closeup": "save"}
        put(spark, settings, ENGAGEMENT_LOGS, [
            (f"e{number}", when, None, query, item, engagement[kind[query]])
            for number, (query, item, when) in enumerate(events)
        ])  # fmt: skip
        put(spark, settings, ITEMS, [
            (f"i{number}", None if number == 4 else f"item {number // 2}", *[None] * (len(ITEMS.columns) - 2))
            for number in range(5)
        ])  # fmt: skip
        known = [name for name in TEXTS if name not in ("q6", "q7")]
        read = with_verdicts(table_io.read(spark, settings.table_uri(QUERIES.name), QUERIES)).collect()
        hashes = {row["query_id"]: row[SOURCE_HASH] for row in read}
        put(spark, settings, QUERY_EMBEDDINGS, [
            (name, kind[name], embedding(number), "st-1", "i0" if name == "p1" else None, hashes[name])
            for number, name in enumerate(known)
        ])  # fmt: skip
        texts = [np.full(256, number, "<f2").tobytes() if number < 3 else b"" for number in range(5)]
        cells = {"text_embedding": texts, "image_embeddings": [b""] * 5, "text_token_ids": [b""] * 5,
                 "text_token_counts": [b"\0" * 48] * 5}  # fmt: skip
        rows = [
            tuple(
                {"item_id": f"i{number}", "item_key": 100 + number, "out_of_vocabulary_count": 0, "features_hash": "h",
                 "row_checksum": 0}.get(column.name, cells.get(column.name, [None] * 5)[number])
                for column in ITEM_FEATURES.columns
            )
            for number in range(5)
        ]  # fmt: skip
        put(spark, settings, ITEM_FEATURES, rows)
        version = {table.name: TableVersion(table.name, settings.table_uri(table.name), 0, count)
                   for table, count in ((QUERY_EMBEDDINGS, len(known)), (ITEM_FEATURES, 5))}  # fmt: skip
        space = {"space of search queries": "st-1", "space of item text": "st-1"}
        for record in (
            RunRecord("embed_queries", QueryMetrics("st-1", 1, {"search": "st-1", "closeup": "st-1"}),
                      outputs=(version["query_embeddings"],)),
            RunRecord("embed_items", ItemTextMetrics("st-1", 0, 0, 0, 0)),
            RunRecord("build_item_features", ItemMetrics(5, "abc"), outputs=(version["item_features"],),
                      made_with=space),
        ):  # fmt: skip
            write_record(settings.layout, record)
        return settings

    return make


def rows_of(settings: Settings, table: Any) -> list[dict[str, Any]]:
    return DeltaTable(settings.table_uri(table.name)).to_pyarrow_table().to_pylist()


EVENTS = [
    ("q1", "i0", EARLY), ("q2", "i0", EARLY), ("q2", "i0", LATE), ("q1", "i1", LATE), ("q3", "i0", EARLY),
    ("q4", "i2", EARLY), ("q5", "i1", EARLY), ("q8", "i3", EARLY), ("q6", "i0", EARLY), ("q7", "i0", EARLY),
    ("q1", "i3", HELD_OUT), ("p1", "i2", EARLY),
]  # fmt: skip


def test_one_row_is_a_distinct_text_and_an_item(spark: SparkSession, shop: Shop) -> None:
    settings = shop(EVENTS)
    job.run(spark, settings)
    rows = {(row["text"], row["item_id"]): row for row in rows_of(settings, QUERY_PAIRS)}
    assert set(rows) == {
        ("red shoes", "i0"), ("red shoes", "i1"), ("rde sheos", "i0"), ("DIN 912 M6x20", "i2"), ("新款跑鞋红色", "i1"),
        ("x" * 16_384, "i3"),
    }  # fmt: skip
    both = rows["red shoes", "i0"]
    assert (both["engagement_count"], both["pair_weight"], both["fit_weight"]) == (3, 3.0, 2.0)
    assert rows["red shoes", "i1"]["fit_weight"] == 0.0
    assert both["query_key"] == rows["red shoes", "i1"]["query_key"] != rows["rde sheos", "i0"]["query_key"]
    assert np.frombuffer(both["query_embedding"], "<f2").tolist() == embedding(0)
    assert both["item_key"] == 100
    metrics = read_record(settings.layout, BUILD_QUERY_PAIRS).metrics
    assert (metrics.texts, metrics.pairs, metrics.events, metrics.encoder) == (5, 6, 8, "st-1")


def test_validation_pairs_are_those_of_the_end_of_the_window_and_held_out_ones_are_nowhere(
    spark: SparkSession, shop: Shop
) -> None:
    settings = shop(EVENTS)
    job.run(spark, settings)
    rows = rows_of(settings, VALIDATION_QUERY_PAIRS)
    assert sorted((row["text"], row["item_id"], row["engagement_count"]) for row in rows) == [
        ("red shoes", "i0", 1), ("red shoes", "i1", 1),
    ]  # fmt: skip


def test_every_item_with_a_text_that_is_known_stands_beside_itself(spark: SparkSession, shop: Shop) -> None:
    settings = shop(EVENTS)
    job.run(spark, settings)
    rows = rows_of(settings, ITEM_TEXT_PAIRS)
    assert sorted((row["text"], row["item_id"]) for row in rows) == [
        ("item 0", "i0"),
        ("item 0", "i1"),
        ("item 1", "i2"),
    ]
    assert {row["query_item_key"] for row in rows} == {0}  # it may be found by its own text
    assert all(np.frombuffer(row["query_embedding"], "<f2")[0] == row["item_key"] - 100 for row in rows)
    assert read_record(settings.layout, BUILD_QUERY_PAIRS).metrics.blank_item_texts == 2


def test_caps_cut_pairs_and_weights(spark: SparkSession, shop: Shop) -> None:
    settings = shop(EVENTS, max_pairs_per_text=1, max_pair_weight=2.0)
    job.run(spark, settings)
    rows = rows_of(settings, QUERY_PAIRS)
    assert sorted(row["text"] for row in rows if len(row["text"]) < 99) == [
        "DIN 912 M6x20", "rde sheos", "red shoes", "新款跑鞋红色",
    ]  # fmt: skip
    assert max(row["pair_weight"] for row in rows) <= 2.0
    assert read_record(settings.layout, BUILD_QUERY_PAIRS).metrics.capped_pairs == 1


def test_closeup_texts_do_not_find_the_item_that_they_show(spark: SparkSession, shop: Shop) -> None:
    settings = shop(EVENTS, query_kinds=("closeup",))
    job.run(spark, settings)
    (row,) = rows_of(settings, QUERY_PAIRS)
    assert (row["text"], row["item_id"]) == ("shown", "i2")
    assert row["query_item_key"] != 0


def test_rows_carry_their_checksum_and_a_rerun_writes_the_same(spark: SparkSession, shop: Shop) -> None:
    settings = shop(EVENTS)
    job.run(spark, settings)
    first = DeltaTable(settings.table_uri("query_pairs")).to_pyarrow_table().combine_chunks()
    (batch,) = first.to_batches()
    assert first["row_checksum"].to_pylist() == row_checksums(batch, QUERY_PAIRS).tolist()
    job.run(spark, settings.model_copy(update={"rerun": True}))
    again = DeltaTable(settings.table_uri("query_pairs"))
    assert again.version() > 0
    assert again.to_pyarrow_table().equals(first)


def test_a_log_without_a_text_is_refused_by_name(spark: SparkSession, shop: Shop) -> None:
    settings = shop([("q7", "i0", EARLY)])
    with pytest.raises(TableError, match=r"queries.*text.*search queries with an engagement.*Fill queries.text"):
        job.run(spark, settings)


def test_a_kind_that_no_task_has_is_refused_by_name(spark: SparkSession, shop: Shop) -> None:
    settings = shop(EVENTS, query_kinds=("search", "serach"))
    with pytest.raises(
        SettingsError, match=r"names 'serach', which no \[\[tasks\]\] has: name some of 'closeup', 'search'"
    ):
        job.run(spark, settings)
    assert not DeltaTable.is_deltatable(settings.table_uri(QUERY_PAIRS.name))


def test_a_kind_that_is_embedded_by_pictures_has_no_texts_to_learn_from(spark: SparkSession, shop: Shop) -> None:
    settings = shop(EVENTS, query_kinds=("search", "closeup"))
    pictures = settings.pictures.model_copy(update={"folder": "/models/one", "query_kinds": ("closeup",)})
    with pytest.raises(SettingsError, match=r"search_text\.query_kinds names 'closeup', whose queries are embedded by"):
        job.run(spark, settings.model_copy(update={"pictures": pictures}))


def test_a_query_that_has_changed_since_it_was_embedded_is_left_out(
    spark: SparkSession, shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = shop(EVENTS)
    rows = table_io.read(spark, settings.table_uri(QUERIES.name), QUERIES).collect()
    changed = [tuple("blue hats" if row["query_id"] == "q4" and name == "text" else row[name] for name in row.asDict())
               for row in rows]  # fmt: skip
    put(spark, settings, QUERIES, changed)
    job.run(spark, settings)
    texts = {row["text"] for row in rows_of(settings, QUERY_PAIRS)}
    assert not texts & {"blue hats", "DIN 912 M6x20"}
    assert "red shoes" in texts
    assert read_record(settings.layout, BUILD_QUERY_PAIRS).metrics.changed_queries == 1
    assert "1 queries have changed since embed_queries" in capsys.readouterr().out
