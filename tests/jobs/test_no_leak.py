"""Nothing of a later window reaches what an earlier one is for: what is fitted, what is measured on, what is published.

A log of random events in which the events of the validation window and those of the held-out window have queries and
items that no earlier event has, beside ones that all windows share.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession

from jobs import build_training_tables as job
from jobs.runtime import table_io
from schemas.columns import Table
from schemas.metrics import ItemMetrics, QueryMetrics
from schemas.records import RunRecord, TableVersion, write_record
from schemas.settings import Settings
from schemas.spark import struct_type
from schemas.tables import (
    ENGAGEMENT_LOGS,
    ITEM_COUNTS,
    ITEM_FEATURES,
    QUERY_EMBEDDINGS,
    held_out_pairs,
    training_pairs,
    validation_pairs,
)
from schemas.tasks import Task

CLICK = Task("search", "click")
# make_settings: training [31 January, 20 February), of which validation from 18 February on; held out from 22 February.
WINDOWS = {"fit": (31, 18), "validation": (49, 2), "held out": (53, 7)}
"""First day of each window, counted from 1 January, and how many days it has."""
RECENT = {"recency_half_life_days": 3.0}


NEGATIVES = {"negatives": [{"query_kind": "search", "engagement": "return"}], "loss": {"form": "full"}}


def log(random: np.random.Generator, windows: tuple[str, ...]) -> list[tuple[Any, ...]]:
    """60 events a window: of queries and items that all windows share, and of the window's own."""
    events = []
    for window, (first, days) in WINDOWS.items():
        for number in range(60):
            query, item = (f"{random.choice(['any', window])} {random.integers(3)}" for _ in range(2))
            when = datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(days=first - 1 + days * random.random())
            engagement = "return" if number % 5 == 0 else "click"
            if window in windows:
                events.append((f"{window} {number}", when, None, query, item, engagement))
    return events


@pytest.fixture
def tables(spark: SparkSession, make_settings: Callable[..., Settings]) -> Callable[..., dict[str, list[Any]]]:
    """Run the job on the events of some windows; the rows of its tables by the name of the table."""

    def put(settings: Settings, table: Table, rows: list[tuple[Any, ...]]) -> None:
        schema = struct_type(table).simpleString()
        spark.createDataFrame(rows, schema).write.mode("overwrite").parquet(settings.table_uri(table.name))

    def run(*windows: str, **cut: Any) -> dict[str, list[Any]]:
        task = {"query_kind": CLICK.query_kind, "engagement": CLICK.engagement}
        settings = make_settings(tasks=[task], **NEGATIVES, training_tables=cut, max_reject_share={"all_reasons": 1.0})
        names = [f"{kind} {number}" for kind in ("any", *WINDOWS) for number in range(3)]
        put(settings, QUERY_EMBEDDINGS, [(name, "search", [0.5] * 256, "space", None, None) for name in names])
        items = [(name, key, b"t", b"c", b"v", b"f", 0, 0, 0, "hash", None, 0) for key, name in enumerate(names, 1)]
        put(settings, ITEM_FEATURES, items)
        put(settings, ENGAGEMENT_LOGS, log(np.random.default_rng(1), windows))
        for stage, metrics, table in (
            ("embed_queries", QueryMetrics(None, 0, {}), QUERY_EMBEDDINGS),
            ("build_item_features", ItemMetrics(1, "abc"), ITEM_FEATURES),
        ):
            version = TableVersion(table.name, settings.table_uri(table.name), None, 1)
            write_record(settings.layout, RunRecord(stage, metrics, outputs=(version,)))
        job.run(spark, settings)
        made = (training_pairs(CLICK), validation_pairs(CLICK), held_out_pairs(CLICK), ITEM_COUNTS)
        read = (table_io.read(spark, settings.table_uri(table.name), table) for table in made)
        return dict(zip(("training", "validation", "held out", "counts"), [one.collect() for one in read], strict=True))

    return run


def fitted(rows: list[Any], weight: str) -> set[tuple[Any, ...]]:
    return {(row["query_id"], row["item_id"], row[weight]) for row in rows if row[weight] > 0}


def negatives(tables: dict[str, list[Any]]) -> set[tuple[Any, ...]]:
    return {(row["query_id"], row["item_id"], row["negative_item_key"]) for row in tables["training"]}


def test_nothing_of_a_later_window_reaches_an_earlier_one(tables: Callable[..., dict[str, list[Any]]]) -> None:
    whole = tables("fit", "validation", "held out", **RECENT)
    before = tables("fit", **RECENT)

    def mentions(name: str, window: str, part: Callable[[Any], bool] = lambda _: True) -> bool:
        rows = [row.asDict() for row in whole[name] if part(row)]
        return any(str(row.get(key, "")).startswith(window) for row in rows for key in ("query_id", "item_id"))

    # All windows have left their marks where they may.
    assert mentions("training", "validation")
    assert mentions("validation", "validation")
    assert mentions("counts", "validation")
    assert mentions("held out", "held out")
    assert not any(mentions(name, "held out") for name in ("training", "validation", "counts"))
    assert not mentions("training", "validation", lambda row: row["fit_weight"] > 0)
    assert not mentions("counts", "validation", lambda row: row["fit_pair_count"] + row["fit_engagement_count"] > 0)

    # Nobody is pushed away from an item for what happened to it in a window that is measured.
    known = {row["item_key"]: row["item_id"] for row in whole["training"]}
    against = {row["negative_item_key"] for row in whole["training"]} - {0}
    assert len(against) > 1
    assert not any(known.get(key, "").startswith(("validation", "held out")) for key in against)
    assert {pair for pair in negatives(whole) if pair[:2] in {row[:2] for row in negatives(before)}} == negatives(
        before
    )

    # What the fit pass reads is what a log that ends before the validation window gives, to the last bit.
    assert fitted(whole["training"], "fit_weight") == fitted(before["training"], "pair_weight")
    assert fitted(whole["training"], "fit_engagement_count") == fitted(before["training"], "engagement_count")
    counted = ("item_id", "fit_pair_count", "fit_engagement_count")
    assert {tuple(row[name] for name in counted) for row in whole["counts"] if row["fit_pair_count"]} == {
        (row["item_id"], row["pair_count"], row["engagement_count"]) for row in before["counts"]
    }


def test_with_caps_a_later_window_changes_no_weight(tables: Callable[..., dict[str, list[Any]]]) -> None:
    caps = {"max_pairs_per_query": 3, "max_pairs_per_item": 4}
    capped, before = tables("fit", "validation", **caps), tables("fit")
    assert len(capped["training"]) < len(before["training"])
    assert fitted(capped["training"], "fit_weight")
    assert fitted(capped["training"], "fit_weight") <= fitted(before["training"], "pair_weight")
