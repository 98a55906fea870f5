"""Graph vectors as images: the first of an item's, where the settings append them, and never cut off."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from pyspark.sql import SparkSession

from jobs import build_item_features
from schemas.contracts import GRAPH
from schemas.errors import InputError
from schemas.graph_tables import ITEM_GRAPH_IMAGES
from schemas.metrics import GraphVectorMetrics
from schemas.records import RunRecord, TableVersion, read_record, write_record
from schemas.spark import struct_type
from tests.jobs.test_build_item_features import FEATURES, MakeSettings, vector, write_inputs


def test_a_graph_vector_is_the_first_image_and_an_item_without_has_its_own(
    spark: SparkSession, make_settings: MakeSettings
) -> None:
    settings = make_settings(features=FEATURES, graph={"append_to_images": True}, model={"max_images": 2})
    items = [("1", "red", None), ("2", "red", None)]
    images = [("1", -1, vector(1)), ("1", 1, vector(2)), ("2", 0, vector(3))]
    write_inputs(spark, settings, [("red", "word_unigram", 0, 9)], items, images)
    uri = settings.table_uri(ITEM_GRAPH_IMAGES.name)
    rows = spark.createDataFrame([("1", 0, vector(0, 7), 5)], struct_type(ITEM_GRAPH_IMAGES))
    rows.write.format("delta").save(uri)
    version = TableVersion(ITEM_GRAPH_IMAGES.name, uri, 0, 1)
    write_record(settings.layout, RunRecord("embed_graph", GraphVectorMetrics("m"), outputs=(version,)))
    build_item_features.run(spark, settings)
    stored = spark.read.format("delta").load(settings.table_uri("item_features")).collect()
    found = {row["item_id"]: np.frombuffer(row["image_embeddings"], "<f2").reshape(-1, 256) for row in stored}
    assert found["1"][:, :2].tolist() == [[0, 7], [1, 0]]
    assert found["2"][:, :2].tolist() == [[3, 0]]


def test_a_shop_without_images_has_nothing_to_append_to(make_settings: MakeSettings) -> None:
    with pytest.raises(ValidationError, match=r"inputs\.item_images to the place of item_graph_images"):
        make_settings(graph={"append_to_images": True}, inputs={"has_images": False}, model={"sequence": ["text"]})


def test_what_reads_graph_vectors_as_images_is_made_with_their_tower(
    spark: SparkSession, make_settings: MakeSettings
) -> None:
    place = make_settings().layout.table(ITEM_GRAPH_IMAGES.name)
    settings = make_settings(features=FEATURES, inputs={"item_images": place})
    rows = spark.createDataFrame([("1", 0, vector(0, 7), 5)], struct_type(ITEM_GRAPH_IMAGES))
    write_inputs(spark, settings, [("red", "word_unigram", 0, 9)], [("1", "red", None)], [("1", 0, vector(1))])
    rows.write.format("delta").mode("overwrite").option("overwriteSchema", "true").save(place)
    version = TableVersion(ITEM_GRAPH_IMAGES.name, place, 0, 1)
    write_record(settings.layout, RunRecord("embed_graph", GraphVectorMetrics("tower"), outputs=(version,)))
    build_item_features.run(spark, settings)
    assert read_record(settings.layout, build_item_features.STAGE).made_with[GRAPH] == "tower"
    later = make_settings(dates={"as_of": "2026-04-01"}).model_dump(mode="json")
    write_record(settings.layout, RunRecord("embed_graph", GraphVectorMetrics("tower"), settings=later))
    with pytest.raises(InputError, match="a graph of events before"):
        build_item_features.run(spark, settings)
