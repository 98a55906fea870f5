"""embed_graph: layer by layer comes to what the tower does at once, and only what has changed is made again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pyspark.sql import SparkSession

from itemsage_model.data.batch import ItemBatch, RaggedTensor
from itemsage_model.data.graph_nodes import GraphNodes
from itemsage_model.data.ragged import Ragged
from itemsage_model.encoders.graph_tower import GraphTowerSpec
from itemsage_model.encoders.model_files import save_model
from jobs import embed_graph as job
from jobs.runtime import table_io
from schemas.contracts import IMAGES, ITEM_TEXT
from schemas.errors import InputError
from schemas.graph_tables import GRAPH_NODES, ITEM_GRAPH_IMAGES
from schemas.metrics import GraphMetrics, TrainMetrics
from schemas.records import RunRecord, TableVersion, read_record, write_record
from schemas.settings import LossSettings, Settings
from schemas.settings.graph import GraphSettings
from schemas.spark import struct_type
from schemas.stages import TRAIN_GRAPH

MakeSettings = Callable[..., Settings]
LENGTH, WIDTH, DIM = 12, 16, 256
SPEC = GraphTowerSpec(GraphSettings(width=WIDTH), LossSettings(), LENGTH, DIM, "space")
AROUND = {1: [2, 3], 2: [3], 3: [1], 4: [5], 5: [4, 6], 6: [5], 7: [], 8: [9], 9: [8], 10: [1]}


def features(seed: int = 0) -> npt.NDArray[np.float16]:
    return np.random.default_rng(seed).standard_normal((len(AROUND), LENGTH)).astype("<f2")


class Shop:
    """A warehouse with a graph and a trained tower."""

    def __init__(self, spark: SparkSession, settings: Settings) -> None:
        self.spark, self.settings = spark, settings
        self.tower = SPEC.build(seed=3)
        uri, identity = save_model(settings.layout.models, self.tower, SPEC, {})
        write_record(settings.layout, RunRecord("train_graph", TrainMetrics(identity, uri, "")))

    def write(self, around: dict[int, list[int]], vectors: npt.NDArray[np.float16], **made_with: str) -> None:
        rows = [
            (f"i{key}", key, vectors[key - 1].tobytes(), np.array(near, "<i8").tobytes(), share(near).tobytes(), b"", 0)
            for key, near in around.items()
        ]
        uri = self.settings.table_uri(GRAPH_NODES.name)
        frame = self.spark.createDataFrame(rows, struct_type(GRAPH_NODES))
        written = table_io.write(frame, uri, GRAPH_NODES, note={})
        version = TableVersion(GRAPH_NODES.name, uri, written.version, written.rows)
        metrics = GraphMetrics("query", 0, 0, 0, 0, 0, 0, 0, 0, LENGTH)
        record = RunRecord("build_item_graph", metrics, outputs=(version,), made_with={ITEM_TEXT: "space"} | made_with)
        write_record(self.settings.layout, record)

    def embed(self, **sections: Any) -> dict[str, npt.NDArray[np.float32]]:
        job.run(self.spark, self.settings.model_copy(update=sections))
        rows = table_io.read(self.spark, self.settings.table_uri(ITEM_GRAPH_IMAGES.name), ITEM_GRAPH_IMAGES).collect()
        assert {row["position"] for row in rows} == {0}
        return {row["item_id"]: np.array(row["image_embedding"], np.float32) for row in rows}

    def kept(self) -> tuple[int, int]:
        metrics = read_record(self.settings.layout, job.STAGE).metrics
        return metrics.kept_layers, metrics.kept_rows


def share(near: list[int]) -> npt.NDArray[np.float32]:
    weights = np.arange(len(near), 0, -1, dtype="<f4")
    return weights / weights.sum() if near else weights


def at_once(tower: Any, around: dict[int, list[int]], vectors: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    counts = np.array([len(near) for near in around.values()])
    rows = np.array([key - 1 for near in around.values() for key in near], np.int64)
    weights = np.concatenate([share(near) for near in around.values()]).astype(np.float32)
    nothing = Ragged(np.empty(0, np.int64), np.zeros(len(around), np.int64))
    nodes = GraphNodes(np.array(list(around)), vectors[: len(around)], Ragged(rows, counts), weights, nothing)
    with torch.inference_mode():
        embedded: npt.NDArray[np.float32] = tower(nodes.around(np.arange(len(around)), 2)).numpy()
    return embedded


@pytest.fixture
def shop(spark: SparkSession, make_settings: MakeSettings) -> Shop:
    return Shop(spark, make_settings())


def test_layer_by_layer_is_the_tower_at_once(shop: Shop) -> None:
    shop.write(AROUND, features())
    found = shop.embed()
    expected = at_once(shop.tower, AROUND, features())
    assert found.keys() == {f"i{key}" for key in AROUND}
    for key in AROUND:
        # Messages travel in half precision.
        np.testing.assert_allclose(found[f"i{key}"], expected[key - 1], atol=2e-3)
        assert np.linalg.norm(found[f"i{key}"]) == pytest.approx(1, abs=1e-4)


def test_a_changed_edge_is_made_again_with_its_neighbourhood_and_nothing_else(shop: Shop) -> None:
    shop.write(AROUND, features())
    before = shop.embed()
    around = AROUND | {5: [6], 11: [1]}
    vectors = np.concatenate([features(), features(9)[:1]])
    shop.write(around, vectors)
    after = shop.embed()
    # 5 in the first layer, and 11, which is new; one layer later 4 and 6, which 5 tells, too.
    assert shop.kept() == (9, 7)
    assert {key for key in before if not np.array_equal(before[key], after[key])} == {"i4", "i5", "i6"}
    whole = shop.embed(rerun=True)
    assert shop.kept() == (0, 0)
    assert whole.keys() == after.keys()
    for key, vector in whole.items():
        np.testing.assert_array_equal(vector, after[key])


def test_an_item_that_is_gone_goes(shop: Shop) -> None:
    shop.write(AROUND, features())
    shop.embed()
    shop.write({key: near for key, near in AROUND.items() if key != 7}, features())
    assert "i7" not in shop.embed()
    assert shop.kept() == (9, 9)


def test_another_model_makes_all_rows_anew(shop: Shop) -> None:
    shop.write(AROUND, features())
    before = shop.embed()
    other = SPEC.build(seed=4)
    uri, identity = save_model(shop.settings.layout.models, other, SPEC, {})
    write_record(shop.settings.layout, RunRecord("train_graph", TrainMetrics(identity, uri, "")))
    after = shop.embed()
    assert shop.kept() == (0, 0)
    assert not any(np.array_equal(before[key], after[key]) for key in before)


def test_features_of_another_space_are_refused(shop: Shop) -> None:
    shop.write(AROUND, features(), **{ITEM_TEXT: "another"})
    with pytest.raises(InputError, match=r"texts of another.* Run train_graph again"):
        shop.embed()
    shop.write(AROUND, features(), **{IMAGES: "another"})
    with pytest.raises(InputError, match=r"images of another.* Run train_graph again"):
        shop.embed()


def test_a_tower_of_a_later_day_is_refused(shop: Shop, make_settings: MakeSettings) -> None:
    shop.write(AROUND, features())
    record = read_record(shop.settings.layout, TRAIN_GRAPH)
    later = make_settings(dates={"as_of": "2026-04-01"}).model_dump(mode="json")
    write_record(shop.settings.layout, replace(record, settings=later))
    with pytest.raises(InputError, match="train_graph with events before"):
        shop.embed()


def test_vectors_of_another_length_than_images_are_refused(shop: Shop) -> None:
    shop.write(AROUND, features())
    with pytest.raises(InputError, match=r"512 numbers \(model.image_length\).*256.* Run train_graph again"):
        shop.embed(model=shop.settings.model.model_copy(update={"image_length": 512}))


def test_an_item_without_neighbours_has_the_vector_of_its_features(shop: Shop) -> None:
    shop.write(AROUND, features())
    own = RaggedTensor(torch.from_numpy(features()[6:7]), torch.ones(1, dtype=torch.int64))
    with torch.inference_mode():
        expected = shop.tower.item_vectors(ItemBatch({"node_embedding": own})).numpy()[0]
    np.testing.assert_allclose(shop.embed()["i7"], expected, atol=2e-3)
