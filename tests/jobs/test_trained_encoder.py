"""query_encoder.kind = "trained": queries and items by what train_query_encoder left, one space a model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from pyspark.sql import SparkSession

from itemsage_model.encoders.model_files import save_model
from jobs import embed_items, embed_queries
from jobs.runtime import table_io
from schemas.cells import unpack_cells
from schemas.errors import InputError, SettingsError
from schemas.metrics import TrainMetrics
from schemas.records import RunRecord, read_record, write_record
from schemas.settings import Settings
from schemas.spark import struct_type
from schemas.stages import EMBED_QUERIES, TRAIN_QUERY_ENCODER
from schemas.tables import EMBEDDING_DIM, ITEM_TEXT_EMBEDDINGS, ITEMS, QUERIES, QUERY_EMBEDDINGS
from tests.itemsage_model.texts import TEXTS, TOWER_SPEC


@pytest.fixture
def shop(spark: SparkSession, make_settings: Callable[..., Settings]) -> Settings:
    """A shop whose searches are misspelt, codes, of other scripts, and blank; and with two equal ones."""
    settings = make_settings(query_encoder={"kind": "trained"}, tasks=[{"query_kind": "search", "engagement": "click"}])
    texts = [*TEXTS, TEXTS[0], "  "]
    rows = {
        QUERIES: [(f"q{n}", "search", text, None, None, None) for n, text in enumerate(texts)],
        ITEMS: [(f"i{n}", text, *[None] * (len(ITEMS.columns) - 2)) for n, text in enumerate([TEXTS[0], "mug", None])],
    }
    for table, of_table in rows.items():
        written = spark.createDataFrame(of_table, struct_type(table)).write.format("delta")
        written.save(settings.table_uri(table.name))
    return settings


def train(settings: Settings, seed: int) -> None:
    """What train_query_encoder leaves, without its training."""
    uri, identity = save_model(settings.layout.models, TOWER_SPEC.build(seed=seed), TOWER_SPEC, {})
    write_record(settings.layout, RunRecord("train_query_encoder", TrainMetrics(identity, uri, ""), made_after={}))


def test_queries_and_items_lie_in_the_space_of_the_trained_encoder(spark: SparkSession, shop: Settings) -> None:
    train(shop, seed=1)
    embed_queries.run(spark, shop)
    embed_items.run(spark, shop)
    metrics = read_record(shop.layout, EMBED_QUERIES).metrics
    assert metrics.encoder is not None
    assert metrics.encoder.startswith("trained-")
    rows = table_io.read(spark, shop.table_uri(QUERY_EMBEDDINGS.name), QUERY_EMBEDDINGS).collect()
    found = {row["query_id"]: np.float32(row["query_embedding"]) for row in rows}
    assert set(found) == {f"q{n}" for n in range(len(TEXTS) + 1)}  # the blank one is rejected
    np.testing.assert_array_equal(found["q0"], found[f"q{len(TEXTS)}"])
    np.testing.assert_allclose([np.linalg.norm(vector) for vector in found.values()], 1, atol=1e-5)
    items = table_io.read(spark, shop.table_uri(ITEM_TEXT_EMBEDDINGS.name), ITEM_TEXT_EMBEDDINGS).orderBy("item_id")
    numbers, counts = unpack_cells(items.toArrow()["text_embedding"], "<f2")
    assert counts.tolist() == [EMBEDDING_DIM, EMBEDDING_DIM, 0]
    np.testing.assert_allclose(numbers[:EMBEDDING_DIM], found["q0"], atol=1e-3)
    assert {row["embedding_space"] for row in items.collect()} == {metrics.encoder}


def test_another_training_is_another_space_and_no_other_stage_goes_on_with_both(
    spark: SparkSession, shop: Settings
) -> None:
    train(shop, seed=1)
    embed_queries.run(spark, shop)
    embed_items.run(spark, shop)
    first = read_record(shop.layout, EMBED_QUERIES).metrics.encoder
    train(shop, seed=2)
    kept = shop.model_copy(update={"query_encoder": shop.query_encoder.model_copy(update={"refit": False})})
    embed_queries.run(spark, kept)  # the space stays until somebody asks for the new one
    assert read_record(shop.layout, EMBED_QUERIES).metrics.encoder == first
    embed_queries.run(spark, shop)
    second = read_record(shop.layout, EMBED_QUERIES).metrics.encoder
    assert second != first
    record = read_record(shop.layout, EMBED_QUERIES)
    assert record.made_after is not None
    assert TRAIN_QUERY_ENCODER.name in record.made_after


def test_without_a_training_it_says_so(spark: SparkSession, shop: Settings) -> None:
    with pytest.raises(InputError, match="train_query_encoder"):
        embed_queries.run(spark, shop)


def test_without_the_extra_nothing_is_begun(
    spark: SparkSession, shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(shop, seed=1)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(SettingsError, match="run `make sentence-transformers`"):
        embed_queries.run(spark, shop)


def test_a_model_of_another_kind_is_refused(spark: SparkSession, shop: Settings) -> None:
    train(shop, seed=1)
    record = read_record(shop.layout, TRAIN_QUERY_ENCODER)
    gone = replace(record.metrics, model_uri=f"{shop.layout.models}/none")
    write_record(shop.layout, replace(record, metrics=gone))
    with pytest.raises(RuntimeError, match="holds no complete checkpoint"):
        embed_queries.run(spark, shop)
