"""embed_items: each distinct text is encoded once, by the encoder of the record; what has no vector is counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from deltalake import DeltaTable
from pyspark.sql import DataFrame, Row, SparkSession

from itemsage_model.encoders.frozen_text.lsa import LsaEncoder, fit_lsa
from itemsage_model.encoders.frozen_text.stored import save
from jobs import embed_items
from jobs.runtime import table_io
from jobs.runtime.worker_rows import WorkerRows
from jobs.transforms.items import item_texts
from schemas.contracts import ITEM_TEXT, identities
from schemas.errors import InputError
from schemas.metrics import ItemTextMetrics, QueryMetrics
from schemas.records import RunRecord, read_record, write_record
from schemas.settings import Settings
from schemas.spark import conform
from schemas.tables import ITEM_TEXT_EMBEDDINGS, ITEMS

MakeSettings = Callable[..., Settings]
ITEM = "item_id string, title string, brand string, colors array<string>"
TITLES = ["red retrospot mug", "red retrospot teapot", "blue garden lantern"]


@pytest.fixture(scope="module")
def encoder() -> LsaEncoder:
    return fit_lsa(TITLES, vocabulary_size=1_000)


def write_inputs(spark: SparkSession, settings: Settings, items: list[Any], encoder: LsaEncoder | None) -> None:
    spark.createDataFrame(items, ITEM).write.mode("overwrite").parquet(settings.table_uri("items"))
    write_record(settings.layout, RunRecord("embed_queries", QueryMetrics(encoder and encoder.name, 0, {})))
    if encoder is not None:
        save(encoder, settings.layout.query_encoder)


def embedded(spark: SparkSession, settings: Settings) -> dict[str, Row]:
    uri = settings.table_uri(ITEM_TEXT_EMBEDDINGS.name)
    return {row["item_id"]: row for row in table_io.read(spark, uri, ITEM_TEXT_EMBEDDINGS).collect()}


def test_an_items_text_gets_the_encoders_vector_and_other_items_an_empty_cell(
    spark: SparkSession, make_settings: MakeSettings, encoder: LsaEncoder
) -> None:
    settings = make_settings()
    long = "red mug " * 3_000
    items = [
        ("mug", TITLES[0], "unread", None), ("same", TITLES[0], None, None), ("null", None, "red", None),
        ("blank", " ", None, None), ("unknown", "xyzzy", None, None), ("long", long, None, None),
        ("mug", TITLES[0], None, None), (None, "red", None, None),
    ]  # fmt: skip
    write_inputs(spark, settings, items, encoder)
    embed_items.run(spark, settings)
    rows = embedded(spark, settings)
    assert rows.keys() == {"mug", "same", "null", "blank", "unknown", "long"}
    expected = encoder.encode([TITLES[0], TITLES[0], long[:16_384]]).astype("<f2")
    for name, vector in zip(("mug", "same", "long"), expected, strict=True):
        np.testing.assert_array_equal(np.frombuffer(rows[name]["text_embedding"], "<f2"), vector)
        assert np.linalg.norm(vector.astype(np.float32)) == pytest.approx(1, abs=1e-3)
    assert [rows[name]["text_embedding"] for name in ("null", "blank", "unknown")] == [b""] * 3
    assert {row["embedding_space"] for row in rows.values()} == {encoder.name}
    record = read_record(settings.layout, embed_items.STAGE)
    made_by = record.metrics.made_by
    assert record.metrics == ItemTextMetrics(encoder.name, 3, 2, 1, 1, made_by=made_by)
    assert identities(record) == {ITEM_TEXT: encoder.name}


def test_the_settings_name_the_text_of_an_item(
    spark: SparkSession, make_settings: MakeSettings, encoder: LsaEncoder
) -> None:
    settings = make_settings(query_encoder={"item_text": ["title", "colors"]})
    write_inputs(spark, settings, [("a", "mug", "garden", ["red", "blue"]), ("b", None, "x", ["red"])], encoder)
    embed_items.run(spark, settings)
    rows = embedded(spark, settings)
    for name, vector in zip("ab", encoder.encode(["mug red blue", "red"]).astype("<f2"), strict=True):
        np.testing.assert_array_equal(np.frombuffer(rows[name]["text_embedding"], "<f2"), vector)


def test_each_distinct_text_is_encoded_once_whatever_the_partitions_and_batches(
    spark: SparkSession, make_settings: MakeSettings, encoder: LsaEncoder
) -> None:
    """2,600 items are three Arrow batches: one text covers the border of two."""
    settings = make_settings(rerun=True)
    items = [(f"i{number}", TITLES[number % 2] if number < 2_500 else f"red {number}", None, None)
             for number in range(2_600)]  # fmt: skip
    found = []
    for order, parts in ((items, 1), (items[::-1], 3)):
        write_inputs(spark, settings, [], encoder)
        spark.createDataFrame(order, ITEM).repartition(parts).write.mode("overwrite").parquet(
            settings.table_uri("items")
        )
        embed_items.run(spark, settings)
        found.append(embedded(spark, settings))
        assert read_record(settings.layout, embed_items.STAGE).metrics.texts_encoded == 102
    assert found[0] == found[1]


def test_texts_are_encoded_in_parts(spark: SparkSession, encoder: LsaEncoder) -> None:
    items = spark.createDataFrame([(f"i{n}", TITLES[n % 3], None, None) for n in range(60)], ITEM)
    rows = embed_items.build(item_texts(conform(items, ITEMS), ["title"]), encoder, 4)
    assert rows.source.rdd.getNumPartitions() == 4
    per_part = rows.source.rdd.glom().map(lambda part: {row["text"] for row in part}).collect()
    assert sum(map(len, per_part)) == 3


def test_without_an_encoder_every_cell_is_empty(spark: SparkSession, make_settings: MakeSettings) -> None:
    settings = make_settings()
    write_inputs(spark, settings, [("a", "!!", None, None), ("b", None, None, None)], None)
    embed_items.run(spark, settings)
    rows = embedded(spark, settings).values()
    assert [(row["text_embedding"], row["embedding_space"]) for row in rows] == [(b"", "")] * 2
    record = read_record(settings.layout, embed_items.STAGE)
    assert record.metrics == ItemTextMetrics(None, 0, 1, 1, 0, made_by=record.metrics.made_by)
    assert identities(record) == {ITEM_TEXT: "none"}


@pytest.mark.fault("B11", "loud", "item texts embedded by an encoder that no record of embed_queries names")
def test_an_encoder_that_no_record_names_is_refused(
    spark: SparkSession, make_settings: MakeSettings, encoder: LsaEncoder
) -> None:
    settings = make_settings()
    write_inputs(spark, settings, [("a", "red", None, None)], encoder)
    write_record(settings.layout, RunRecord("embed_queries", QueryMetrics("lsa-0", 0, {})))
    with pytest.raises(InputError, match=rf"query encoder, \S+: expected lsa-0, .*found {encoder.name}.*FROM=embed_qu"):
        embed_items.run(spark, settings)


def encoded_by(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """What each call of `build` is given to encode."""
    seen: list[set[str]] = []
    build = embed_items.build

    def watched(sources: DataFrame, *others: Any) -> WorkerRows:
        seen.append({row["item_id"] for row in sources.select("item_id").collect()})
        return build(sources, *others)

    monkeypatch.setattr(embed_items, "build", watched)
    return seen


def test_only_texts_that_have_changed_are_encoded_and_the_table_is_as_if_all_were(
    spark: SparkSession, make_settings: MakeSettings, encoder: LsaEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, seen = make_settings(), encoded_by(monkeypatch)
    items = [(f"i{number}", f"red {TITLES[number % 3]} {number}", "brand", None) for number in range(20)]
    write_inputs(spark, settings, [*items, ("blank", " ", None, None), ("unknown", "xyzzy", None, None)], encoder)
    embed_items.run(spark, settings)
    uri = settings.table_uri(ITEM_TEXT_EMBEDDINGS.name)
    files = set(DeltaTable(uri).file_uris())
    changed = [("i0", "blue lantern", "brand", None), ("i1", None, "brand", None), ("new", "red", "brand", None)]
    later = [*changed, ("i2", items[2][1], "another brand", None), *items[4:], ("blank", " ", None, None),
             ("unknown", "mug", None, None)]  # fmt: skip
    write_inputs(spark, settings, later, encoder)
    embed_items.run(spark, settings)
    assert seen[1] == {"i0", "i1", "new", "unknown"}
    assert files < set(DeltaTable(uri).file_uris()), "no file was written again"
    some, metrics = embedded(spark, settings), read_record(settings.layout, embed_items.STAGE).metrics
    embed_items.run(spark, make_settings(rerun=True))
    assert some == embedded(spark, settings)
    assert (metrics.kept_rows, metrics.texts_encoded) == (18, 3)
    whole = read_record(settings.layout, embed_items.STAGE).metrics
    counts = ("items_without_text", "items_of_unknown_text", "truncated_texts", "made_by")
    assert [getattr(metrics, name) for name in counts] == [getattr(whole, name) for name in counts]


def test_another_encoder_or_another_text_embeds_all_anew(
    spark: SparkSession, make_settings: MakeSettings, encoder: LsaEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, settings = encoded_by(monkeypatch), make_settings()
    items = [("a", TITLES[0], "red", None), ("b", TITLES[1], "blue", None)]
    write_inputs(spark, settings, items, encoder)
    embed_items.run(spark, settings)
    write_inputs(spark, settings, items, fit_lsa([*TITLES, "more"], vocabulary_size=1_000))
    embed_items.run(spark, settings)
    embed_items.run(spark, make_settings(query_encoder={"item_text": ["title", "brand"]}))
    assert seen == [{"a", "b"}] * 3


def test_items_that_only_come_again_commit_nothing(
    spark: SparkSession, make_settings: MakeSettings, encoder: LsaEncoder
) -> None:
    settings, items = make_settings(), [("a", TITLES[0], "red", None), ("b", TITLES[1], "blue", None)]
    for rows in (items, items[::-1]):
        write_inputs(spark, settings, rows, encoder)
        embed_items.run(spark, settings)
    version = DeltaTable(settings.table_uri(ITEM_TEXT_EMBEDDINGS.name)).version()
    assert read_record(settings.layout, embed_items.STAGE).output(ITEM_TEXT_EMBEDDINGS.name).version == version == 1
