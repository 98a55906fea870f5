"""build_picture_pairs: nothing of a later window in the pairs, the base's vectors as features, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession

from jobs import build_picture_pairs as job
from jobs.runtime import table_io
from schemas.columns import Table
from schemas.errors import InputError, TableError
from schemas.metrics import PictureMetrics, QueryMetrics
from schemas.picture_tables import (
    ITEM_PICTURE_HASHES,
    PICTURE_EMBEDDINGS,
    PICTURE_FEATURES,
    PICTURE_PAIRS,
    VALIDATION_PICTURE_PAIRS,
)
from schemas.records import RunRecord, TableVersion, read_record, write_record
from schemas.settings import Settings
from schemas.spark import struct_type
from schemas.tables import ENGAGEMENT_LOGS, ITEMS, QUERY_EMBEDDINGS

# make_settings: training [31 January, 20 February), of which validation from 18 February on; held out from 22 February.
FIT, VALIDATION, HELD_OUT = (datetime(2026, 2, day, tzinfo=timezone.utc) for day in (1, 19, 24))
COUNT = 8
"""Products; the last two have no pictures."""
Run = Callable[..., tuple[Settings, dict[str, list[Any]]]]


def events(*, seed: int, start: datetime, count: int, items: int, name: str) -> list[Any]:
    random = np.random.default_rng(seed)
    return [
        (f"{name}{n}", start + timedelta(hours=int(random.integers(20))), None, f"q{random.integers(4)}",
         f"i{random.integers(items)}", "click")
        for n in range(count)
    ]  # fmt: skip


def vector(number: int) -> list[float]:
    return [float(one) for one in np.eye(12)[number]]


@pytest.fixture
def run(spark: SparkSession, make_settings: Callable[..., Settings]) -> Run:
    """Run the job on a log; its settings, and the rows of its tables by the name of the table."""

    def write(settings: Settings, table: Table, rows: list[Any]) -> TableVersion:
        uri = settings.table_uri(table.name)
        written = table_io.write(spark.createDataFrame(rows, struct_type(table)), uri, table, note={})
        return TableVersion(table.name, uri, written.version, written.rows)

    def call(log: list[Any], base: str = "picture-base", **sections: Any) -> tuple[Settings, dict[str, list[Any]]]:
        tasks = [{"query_kind": "search", "engagement": "click"}]
        model = {"image_length": 12, "max_images": 2}
        settings = make_settings(rerun=True, tasks=tasks, model=model, pictures={"folder": "/models/one"}, **sections)
        items = [(f"i{n}", *[None] * (len(ITEMS.columns) - 1)) for n in range(COUNT)]
        spark.createDataFrame(items, struct_type(ITEMS)).write.mode("overwrite").parquet(settings.table_uri("items"))
        uri = settings.table_uri("engagement_logs")
        spark.createDataFrame(log, struct_type(ENGAGEMENT_LOGS)).write.mode("overwrite").parquet(uri)
        queries = [(f"q{n}", "search", [1.0] + [0.0] * 255, "space", "i5" if n == 3 else None, None) for n in range(4)]
        version = write(settings, QUERY_EMBEDDINGS, queries)
        metrics = QueryMetrics("space", 0, {"search": "space"})
        write_record(settings.layout, RunRecord("embed_queries", metrics, outputs=(version,)))
        # Item n has pictures n, n + 1 and n + 2, of which two count; `gone` is no product any more.
        places = [(f"i{n}", place, f"hash{n + place}") for n in range(COUNT - 2) for place in range(3)]
        hashes = write(settings, ITEM_PICTURE_HASHES, [*places, ("gone", 0, "hash0")])
        stored = [(f"hash{n}", vector(n), None, None, "m") for n in range(12)]
        vectors = write(settings, PICTURE_EMBEDDINGS, stored)
        images = PictureMetrics("picture-base+head", 12, base=base)
        write_record(settings.layout, RunRecord("embed_images", images, outputs=(hashes, vectors)))
        job.run(spark, settings)
        tables = {}
        for table in (PICTURE_FEATURES, PICTURE_PAIRS, VALIDATION_PICTURE_PAIRS):
            rows = table_io.read(spark, settings.table_uri(table.name), table).collect()
            tables[table.name] = sorted(tuple(row) for row in rows)
        return settings, tables

    return call


def test_features_are_the_bases_vectors_by_position_of_products_that_have_pictures(run: Run) -> None:
    settings, tables = run(events(seed=1, start=FIT, count=60, items=COUNT, name="e"))
    found = {row[0]: np.frombuffer(row[2], "<f2").reshape(-1, 12) for row in tables["picture_features"]}
    assert found.keys() == {f"i{n}" for n in range(COUNT - 2)}
    np.testing.assert_array_equal(found["i4"], [vector(4), vector(5)])
    metrics = read_record(settings.layout, job.STAGE).metrics
    assert (metrics.base, metrics.image_length, metrics.items) == ("picture-base", 12, COUNT - 2)
    assert (metrics.pairs, metrics.validation_pairs) == (len(tables["picture_pairs"]), 0)


def test_pairs_join_products_with_pictures_that_one_query_was_engaged_with(run: Run) -> None:
    log = [
        ("a", FIT, None, "q0", "i0", "click"), ("b", FIT, None, "q0", "i1", "click"),
        ("c", FIT, None, "q0", "i7", "click"),  # has no pictures
        ("d", FIT, None, "q1", "i2", "click"),  # alone
        ("e", FIT, None, "q3", "i4", "click"),  # whose query shows i5
    ]  # fmt: skip
    _, tables = run(log)
    key = {row[0]: row[1] for row in tables["picture_features"]}
    name = {number: item for item, number in key.items()}
    found = {(name[row[0]], name[row[1]]) for row in tables["picture_pairs"]}
    # Of a query each member draws one, which may be itself.
    assert found <= {("i0", "i1"), ("i1", "i0"), ("i4", "i5"), ("i5", "i4")}
    assert found


def test_nothing_of_a_later_window_is_learned_and_no_order_matters(run: Run) -> None:
    log = events(seed=1, start=FIT, count=40, items=6, name="e")
    validation = events(seed=2, start=VALIDATION, count=30, items=6, name="v")
    held_out = events(seed=3, start=HELD_OUT, count=30, items=6, name="h")
    (_, without), (_, whole) = run(log), run((log + validation + held_out)[::-1])
    assert whole["picture_pairs"] == without["picture_pairs"]
    assert whole["picture_features"] == without["picture_features"]
    assert not without["picture_pairs_validation"]
    assert whole["picture_pairs_validation"]
    more = events(seed=4, start=FIT, count=30, items=6, name="f")
    _, other = run(log + more + validation)
    assert other["picture_pairs_validation"] == whole["picture_pairs_validation"], "of its own window alone"
    assert other["picture_pairs"] != whole["picture_pairs"], "the test can see a change"


def test_a_log_without_a_pair_and_an_older_embed_images_are_refused(run: Run) -> None:
    with pytest.raises(TableError, match=r"two products with pictures engaged from one query.*pictures\.head false"):
        run([("a", FIT, None, "q0", "i0", "click"), ("b", FIT, None, "q1", "i1", "click")])
    with pytest.raises(InputError, match=r"run record of embed_images.*found one of before there was a head"):
        run(events(seed=1, start=FIT, count=40, items=6, name="e"), base="")
