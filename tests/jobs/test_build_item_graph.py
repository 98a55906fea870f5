"""build_item_graph: the same rows whatever runs it, nothing of a later window, and every event accounted for."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession

from jobs import build_item_graph as job
from jobs.runtime import table_io
from schemas.columns import Table
from schemas.errors import TableError
from schemas.graph_tables import GRAPH_NODES, GRAPH_PAIRS, REJECTED_GRAPH_EVENTS
from schemas.metrics import ItemTextMetrics, QueryMetrics
from schemas.records import RunRecord, TableVersion, read_record, write_record
from schemas.settings import Settings
from schemas.spark import struct_type
from schemas.tables import ENGAGEMENT_LOGS, ITEM_TEXT_EMBEDDINGS, ITEMS, QUERY_EMBEDDINGS

MakeSettings = Callable[..., Settings]
# make_settings: training [31 January, 20 February), of which validation from 18 February on; held out from 22 February.
FIT, VALIDATION, HELD_OUT = (datetime(2026, 2, day, tzinfo=timezone.utc) for day in (1, 19, 24))
CLICKS: dict[str, Any] = {
    "tasks": [{"query_kind": "search", "engagement": "click"}],
    "inputs": {"has_images": False},
    "model": {"sequence": ["text"]},
}
NUMBERS = "graph_nodes", "graph_pairs"


def events(*, seed: int, start: datetime, count: int, items: int, name: str) -> list[Any]:
    random = np.random.default_rng(seed)
    return [
        (f"{name}{n}", start + timedelta(hours=int(random.integers(20))), None, f"q{random.integers(4)}",
         f"i{random.integers(items)}", "click")
        for n in range(count)
    ]  # fmt: skip


@pytest.fixture
def run(spark: SparkSession, make_settings: MakeSettings) -> Callable[..., tuple[Settings, dict[str, list[Any]]]]:
    """Run the job on a log; its settings, and the rows of its tables by the name of the table."""

    def write(settings: Settings, table: Table, rows: list[Any], stage: str, metrics: Any) -> TableVersion:
        uri = settings.table_uri(table.name)
        written = table_io.write(spark.createDataFrame(rows, struct_type(table)), uri, table, note={})
        version = TableVersion(table.name, uri, written.version, written.rows)
        if stage:
            write_record(settings.layout, RunRecord(stage, metrics, outputs=(version,)))
        return version

    def call(log: list[Any], **sections: Any) -> tuple[Settings, dict[str, list[Any]]]:
        settings = make_settings(rerun=True, **CLICKS, **sections)
        items = [(f"i{n}", *[None] * (len(ITEMS.columns) - 1)) for n in range(8)]
        spark.createDataFrame(items, struct_type(ITEMS)).write.mode("overwrite").parquet(settings.table_uri("items"))
        uri = settings.table_uri("engagement_logs")
        spark.createDataFrame(log, struct_type(ENGAGEMENT_LOGS)).write.mode("overwrite").parquet(uri)
        queries = [(f"q{n}", "search", [1.0] + [0.0] * 255, "space", None, None) for n in range(4)]
        write(settings, QUERY_EMBEDDINGS, queries, "embed_queries", QueryMetrics("space", 0, {"search": "space"}))
        texts = [(f"i{n}", np.eye(1, 256, n, dtype="<f2").tobytes(), "space", None) for n in range(8)]
        write(settings, ITEM_TEXT_EMBEDDINGS, texts, "embed_items", ItemTextMetrics("space"))
        job.run(spark, settings)
        tables = {}
        for table in (GRAPH_NODES, GRAPH_PAIRS, REJECTED_GRAPH_EVENTS):
            rows = table_io.read(spark, settings.table_uri(table.name), table).collect()
            tables[table.name] = sorted(tuple(row) for row in rows)
        return settings, tables

    return call


def test_equal_rows_when_run_again_on_rows_in_another_order(run: Callable[..., Any]) -> None:
    log = events(seed=1, start=FIT, count=40, items=6, name="e")
    (_, first), (_, second) = run(log), run(log[::-1])
    assert first == second
    assert first["graph_pairs"]
    nodes = {row[0]: row for row in first["graph_nodes"]}
    assert nodes.keys() == {f"i{n}" for n in range(8)}
    assert len(nodes["i0"][3]) > 0
    assert nodes["i7"][3:6] == (b"", b"", b""), "an item that nobody engaged with has its features alone"
    assert np.frombuffer(nodes["i7"][2], "<f2")[7] == 1


def test_nothing_of_a_later_window_reaches_the_graph(run: Callable[..., Any]) -> None:
    log = events(seed=1, start=FIT, count=40, items=6, name="e")
    later = [
        *events(seed=2, start=VALIDATION, count=30, items=8, name="v"),
        *events(seed=3, start=HELD_OUT, count=30, items=8, name="h"),
    ]
    (_, without), (settings, whole) = run(log), run(log + later)
    assert [whole[name] for name in NUMBERS] == [without[name] for name in NUMBERS]
    metrics = read_record(settings.layout, job.STAGE).metrics
    assert (metrics.read_events, metrics.used_events, metrics.later_events) == (100, 40, 60)
    _, changed = run(log + events(seed=2, start=FIT, count=30, items=8, name="f"))
    assert [changed[name] for name in NUMBERS] != [without[name] for name in NUMBERS], "the test can see a change"


def test_events_that_cannot_be_used_are_rejected_with_their_reason(run: Callable[..., Any]) -> None:
    log = events(seed=1, start=FIT, count=40, items=6, name="e")
    bad = [
        ("x", FIT, None, "q0", "nowhere", "click"),
        log[0],
        ("y", FIT - timedelta(days=90), None, "q0", "i0", "click"),
    ]
    settings, tables = run(log + bad)
    assert sorted(row[5] for row in tables["rejected_graph_events"]) == ["duplicate_event", "late", "unknown_item"]
    assert read_record(settings.layout, job.STAGE).metrics.used_events == 40


def test_a_log_that_joins_no_items_is_refused(run: Callable[..., Any]) -> None:
    log = [(f"e{n}", FIT, None, f"q{n}", "i0", "click") for n in range(4)]
    with pytest.raises(TableError, match=r"expected two items in one group \(graph.join_by = query\)"):
        run(log)


def test_a_hard_negative_is_met_later_and_in_no_group_with_the_item(run: Callable[..., Any]) -> None:
    chain = [(f"e{n}{m}", FIT, None, f"q{n}", f"i{n + m}", "click") for n in range(4) for m in (0, 1)]
    (_, few), (_, all_met) = run(chain, graph={"neighbours": 1, "hard_from": 2}), run(chain)
    key = {row[0]: row[1] for row in few["graph_nodes"]}
    hard = {row[0]: set(np.frombuffer(row[5], "<i8").tolist()) for row in few["graph_nodes"]}
    assert {len(row[3]) // 8 for row in few["graph_nodes"]} == {0, 1}
    assert max(len(row[3]) // 8 for row in all_met["graph_nodes"]) > 1
    assert key["i2"] in hard["i0"], "two groups away"
    for n in range(4):
        assert key[f"i{n + 1}"] not in hard[f"i{n}"], "in one group"
