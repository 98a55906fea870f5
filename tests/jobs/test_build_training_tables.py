"""build_training_tables: events in = counted + capped + rejected; the same rows whatever the partitions; even files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs import build_training_tables as job
from jobs.runtime import table_io
from jobs.transforms.training_pairs import even_file_rows
from schemas.arrow import arrow_schema
from schemas.checksums import row_checksums
from schemas.columns import Table
from schemas.errors import TableError
from schemas.metrics import ItemMetrics, QueryMetrics
from schemas.records import RunRecord, TableVersion, read_record, write_record
from schemas.settings import Settings
from schemas.spark import struct_type
from schemas.tables import (
    ENGAGEMENT_LOGS,
    ITEM_COUNTS,
    ITEM_FEATURES,
    QUERY_EMBEDDINGS,
    REJECTED_EVENTS,
    ROW_CHECKSUM,
    TRAINING_PAIRS,
    VALIDATION_PAIRS,
    held_out_pairs,
    training_pairs,
    validation_pairs,
)
from schemas.tasks import Task

CLICK, SAVE = Task("search", "click"), Task("closeup", "save")
TASKS = [{"query_kind": task.query_kind, "engagement": task.engagement} for task in (CLICK, SAVE)]

# make_settings: as_of 1 March; training [31 January, 20 February), of which validation from 18 February on, gap until
# 22 February, held out until 1 March.
VALIDATION_DAY = datetime(2026, 2, 18, tzinfo=timezone.utc)
TRAINING_DAY, HELD_OUT_DAY = datetime(2026, 2, 10, tzinfo=timezone.utc), datetime(2026, 2, 25, tzinfo=timezone.utc)

Shop = Callable[..., Settings]


def vector(number: int) -> list[float]:
    return [number / 8] * 256


def event(event_id: str, query_id: str, item_id: str, **fields: Any) -> dict[str, Any]:
    engagement = {"l": "click", "p": "save"}[query_id[0]]
    row = {"event_id": event_id, "event_ts": TRAINING_DAY, "user_id": None, "query_id": query_id, "item_id": item_id}
    return row | {"engagement": engagement} | fields


def put(spark: SparkSession, settings: Settings, table: Table, rows: list[tuple[Any, ...]]) -> None:
    """Write an input as plain Parquet, where nulls are possible."""
    schema = struct_type(table).simpleString()
    spark.createDataFrame(rows, schema).write.mode("overwrite").parquet(settings.table_uri(table.name))


@pytest.fixture
def shop(spark: SparkSession, make_settings: Callable[..., Settings]) -> Shop:
    """Write the inputs of a shop with two queries and twelve items and give its settings."""

    def make(events: list[dict[str, Any]], **sections: Any) -> Settings:
        settings = make_settings(**({"tasks": TASKS} | sections))
        queries = [
            ("lampe 🪔", "search", vector(1), "space", None, None),
            ("photo", "closeup", vector(2), "space", "i1", None),
        ]
        items = [
            (f"i{n}", 100 + n, b"t%d" % n, b"c%d" % n, b"v%d" % n, b"f%d" % n, 0, 0, 0, "hash", None, 0)
            for n in range(12)
        ]
        put(spark, settings, QUERY_EMBEDDINGS, queries)
        put(spark, settings, ITEM_FEATURES, items)
        for stage, metrics, table in (
            ("embed_queries", QueryMetrics(None, 0, {}), QUERY_EMBEDDINGS),
            ("build_item_features", ItemMetrics(1, "abc"), ITEM_FEATURES),
        ):
            version = TableVersion(table.name, settings.table_uri(table.name), None, 1)
            write_record(settings.layout, RunRecord(stage, metrics, outputs=(version,)))
        put(spark, settings, ENGAGEMENT_LOGS, [tuple(row.values()) for row in events])
        return settings

    return make


PLAIN = [
    event("e1", "lampe 🪔", "i1"),
    event("e2", "lampe 🪔", "i1", event_ts=datetime(2026, 2, 12, tzinfo=timezone.utc)),
    event("e2", "lampe 🪔", "i1", event_ts=datetime(2026, 2, 12, tzinfo=timezone.utc)),
    event("e3", "lampe 🪔", "i2"),
    event("e4", "lampe 🪔", "i1", event_ts=HELD_OUT_DAY),
    event("e5", "photo", "i2"),
    event("e6", "photo", "i2", event_ts=HELD_OUT_DAY),
    event("e7", "photo", "nowhere"),
]
LATE = [
    event("v1", "lampe 🪔", "i1", event_ts=VALIDATION_DAY),
    event("v2", "lampe 🪔", "i3", event_ts=VALIDATION_DAY),
    event("v3", "lampe 🪔", "i3", event_ts=VALIDATION_DAY),
]
"""Events of the validation window: of a pair that is known, and of one that is new."""


INPUT_RECORDS = {"embed_queries.json", "build_item_features.json"}


def records(settings: Settings) -> set[str]:
    return {path.name for path in (Path(settings.warehouse.uri) / "_runs").glob("*.json")}


def stored(spark: SparkSession, settings: Settings, table: Table) -> DataFrame:
    return table_io.read(spark, settings.table_uri(table.name), table)


def content(spark: SparkSession, settings: Settings) -> dict[str, list[tuple[Any, ...]]]:
    of_tasks = [make(task) for make in (training_pairs, validation_pairs, held_out_pairs) for task in (CLICK, SAVE)]
    tables = [ITEM_COUNTS, REJECTED_EVENTS, *of_tasks]
    return {table.name: sorted(map(tuple, stored(spark, settings, table).collect()), key=repr) for table in tables}


@contextmanager
def changed(spark: SparkSession, key: str, value: str) -> Iterator[None]:
    before = spark.conf.get(key)
    spark.conf.set(key, value)
    yield
    spark.conf.set(key, before)


def test_pairs_counts_rejects_and_metrics(spark: SparkSession, shop: Shop) -> None:
    settings = shop(PLAIN)
    job.run(spark, settings)

    key = {name: spark.range(1).select(F.xxhash64(F.lit(name))).first()[0] for name in ("lampe 🪔", "photo", "i1")}  # type: ignore[index]
    half = {n: np.full(256, n / 8, "<f2").tobytes() for n in (1, 2)}
    tables = content(spark, settings)
    found = [tuple(bytes(v) if isinstance(v, bytearray) else v for v in row) for row in tables[CLICK.training_table]]
    weights = [(2, 2.0, 2.0, 2, 0, 0.0), (1, 1.0, 1.0, 1, 0, 0.0)]
    assert [row[:-1] for row in found] == [
        ("lampe 🪔", "i1", key["lampe 🪔"], 101, 0, *weights[0], half[1], b"t1", b"c1", b"v1", b"f1", "hash"),
        ("lampe 🪔", "i2", key["lampe 🪔"], 102, 0, *weights[1], half[1], b"t2", b"c2", b"v2", b"f2", "hash"),
    ]
    rows = [dict(zip(TRAINING_PAIRS.column_names, row, strict=True)) for row in found]
    (batch,) = pa.Table.from_pylist(rows, arrow_schema(TRAINING_PAIRS)).to_batches()
    assert row_checksums(batch, TRAINING_PAIRS).tolist() == [row[ROW_CHECKSUM] for row in rows]
    assert tables[SAVE.held_out_table] == [("photo", "i2", key["photo"], 102, key["i1"], 1, 1.0)]
    assert tables[ITEM_COUNTS.name] == [
        ("i1", 101, "search_click", 1, 2, 1, 2),
        ("i2", 102, "closeup_save", 1, 1, 1, 1),
        ("i2", 102, "search_click", 1, 1, 1, 1),
    ]
    assert tables[CLICK.validation_table] == []
    assert [(row[0], row[5], row[7]) for row in tables[REJECTED_EVENTS.name]] == [
        ("e2", "duplicate_event", "event_id"),
        ("e7", "unknown_item", "item_id"),
    ]

    record = read_record(settings.layout, job.STAGE)
    assert record.rejected == {"engagement_logs: duplicate_event": 1, "engagement_logs: unknown_item": 1}
    assert asdict(record.metrics.events) == {
        "read_events": 8,
        "training_events": 4,
        "held_out_events": 2,
        "capped_events": 0,
        "rejected_events": 2,
        "negative_events": 0,
    }
    assert record.metrics.tasks["search_click"].training_pairs == 2


def test_the_validation_window_is_in_the_pairs_but_not_in_what_the_fit_pass_reads(
    spark: SparkSession, shop: Shop
) -> None:
    settings = shop(PLAIN + LATE)
    job.run(spark, settings)
    tables = content(spark, settings)
    assert [(row[1], row[5], row[6], row[7]) for row in tables[CLICK.training_table]] == [
        ("i1", 3, 3.0, 2.0),
        ("i2", 1, 1.0, 1.0),
        ("i3", 2, 2.0, 0.0),
    ]
    measured = stored(spark, settings, validation_pairs(CLICK)).orderBy("item_id").toArrow()
    assert measured.select(["item_id", "engagement_count", "pair_weight"]).to_pylist() == [
        {"item_id": "i1", "engagement_count": 1, "pair_weight": 1.0},
        {"item_id": "i3", "engagement_count": 2, "pair_weight": 2.0},
    ]
    assert set(measured["query_embedding"].to_pylist()) == {np.full(256, 1 / 8, "<f2").tobytes()}
    (batch,) = measured.combine_chunks().to_batches()
    assert row_checksums(batch, VALIDATION_PAIRS).tolist() == measured[ROW_CHECKSUM].to_pylist()
    assert [row for row in tables[ITEM_COUNTS.name] if row[2] == CLICK.name] == [
        ("i1", 101, "search_click", 1, 3, 1, 2),
        ("i2", 102, "search_click", 1, 1, 1, 1),
        ("i3", 103, "search_click", 1, 2, 0, 0),
    ]
    found = read_record(settings.layout, job.STAGE).metrics
    assert (found.events.training_events, found.events.rejected_events) == (7, 2)
    of_click = asdict(found.tasks[CLICK.name])
    assert [of_click[name] for name in ("fit_pairs", "fit_events", "validation_pairs", "validation_events")] == [
        2, 3, 2, 3,
    ]  # fmt: skip


NEGATIVES = {
    "negatives": [
        {"query_kind": "search", "engagement": "return", "weight": 0.5},
        {"query_kind": "search", "engagement": "hide", "weight": 2.0},
    ],
    "loss": {"form": "full"},
}  # fmt: skip


def returned(event_id: str, item_id: str, **fields: Any) -> dict[str, Any]:
    return event(event_id, "lampe 🪔", item_id) | {"engagement": "return"} | fields


def test_every_negative_is_counted_and_each_pair_has_one_that_is_another_item(spark: SparkSession, shop: Shop) -> None:
    against = [
        returned("r1", "i1"), returned("r2", "i1"), returned("r2", "i1"), returned("r3", "i5"),
        returned("r4", "i5") | {"engagement": "hide"},
        returned("r5", "i6", event_ts=VALIDATION_DAY), returned("r6", "i7", event_ts=HELD_OUT_DAY),
    ]  # fmt: skip
    settings = shop(PLAIN + against, **NEGATIVES)
    job.run(spark, settings)
    found = content(spark, settings)
    chosen = {row[1]: (row[9], row[10]) for row in found[CLICK.training_table]}
    assert chosen["i1"] == (105, 2.0), "never its own item; of several weights the largest"
    assert chosen["i2"] in {(101, 0.5), (105, 2.0)}
    assert [row[9:11] for row in found[SAVE.training_table]] == [(0, 0.0)]
    assert {row[1] for row in found[CLICK.training_table]} == {"i1", "i2"}, "a negative is no pair"
    record = read_record(settings.layout, job.STAGE)
    assert asdict(record.metrics.events) == {
        "read_events": 15, "training_events": 4, "held_out_events": 2, "capped_events": 0, "rejected_events": 5,
        "negative_events": 4,
    }  # fmt: skip
    assert record.rejected["engagement_logs: measured_negative"] == 2
    plain = shop(PLAIN)
    job.run(spark, plain)
    without = [row[:9] for row in content(spark, plain)[CLICK.training_table]]
    assert [row[:9] for row in found[CLICK.training_table]] == without


def test_negatives_that_nobody_logged_are_said(
    spark: SparkSession, shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = shop(PLAIN, **NEGATIVES)
    job.run(spark, settings)
    assert "warning: no usable event of [[negatives]] (search_return, search_hide)" in capsys.readouterr().out
    assert [row[9:11] for row in content(spark, settings)[CLICK.training_table]] == [(0, 0.0)] * 2


@pytest.mark.fault("C10", "recovered", "other partitions, and a second run")
@pytest.mark.fault("C13", "recovered", "a session in another time zone")
def test_partitions_zones_and_reruns_change_no_row(spark: SparkSession, shop: Shop) -> None:
    crowd = [event(f"x{n % 50}", "lampe 🪔", f"i{n % 12}") for n in range(60)]
    recent = {"recency_half_life_days": 3.0, "max_pairs_per_query": 7}
    against = [returned(f"r{n}", f"i{n % 12}") for n in range(15)]
    settings = shop(PLAIN + LATE + crowd + against, training_tables=recent, rerun=True, **NEGATIVES)
    found = []
    for partitions, zone in (("1", "UTC"), ("8", "America/Los_Angeles")):
        with (
            changed(spark, "spark.sql.shuffle.partitions", partitions),
            changed(spark, "spark.sql.session.timeZone", zone),
        ):
            job.run(spark, settings)
        found.append(content(spark, settings))
    assert found[0][CLICK.training_table]
    assert found[0][CLICK.validation_table]
    assert len({row[8] for row in found[0][CLICK.training_table]}) > 2
    assert found[0] == found[1]


def test_caps_cut_pairs_and_account_for_their_events(
    spark: SparkSession, shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    events = [event(f"e{n}", "lampe 🪔", f"i{n % 10}") for n in range(20)]
    settings = shop(events, tasks=TASKS[:1], training_tables={"max_pairs_per_query": 4, "max_pairs_per_item": 1})
    job.run(spark, settings)
    metrics = read_record(settings.layout, job.STAGE).metrics
    assert asdict(metrics.tasks["search_click"]) == {
        "training_pairs": 4,
        "training_events": 8,
        "held_out_pairs": 0,
        "held_out_events": 0,
        "capped_pairs": 6,
        "capped_events": 12,
        "fit_pairs": 4,
        "fit_events": 8,
        "validation_pairs": 0,
        "validation_events": 0,
    }
    assert metrics.events.capped_events == 12
    assert stored(spark, settings, ITEM_COUNTS).agg(F.sum("engagement_count")).first() == (8,)
    assert stored(spark, settings, held_out_pairs(CLICK)).count() == 0
    said = capsys.readouterr().out
    assert "warning: task search_click has no held-out pair" in said
    assert "warning: task search_click has no pair in the validation window, from 2026-02-18 00:00:00+00:00 on" in said


def test_a_cap_takes_a_pair_out_of_everything_but_what_is_measured(spark: SparkSession, shop: Shop) -> None:
    events = [event(f"e{n}", "lampe 🪔", f"i{n % 6}") for n in range(12)]
    late = [event(f"v{n}", "lampe 🪔", f"i{n}", event_ts=VALIDATION_DAY) for n in range(3, 9)]
    settings = shop(events + late, tasks=TASKS[:1], training_tables={"max_pairs_per_query": 5})
    job.run(spark, settings)
    rows = stored(spark, settings, training_pairs(CLICK)).collect()
    counts = {row["item_id"]: row for row in stored(spark, settings, ITEM_COUNTS).collect()}
    assert len(rows) == len(counts) == 5
    for row in rows:
        count = counts[row["item_id"]]
        assert row["fit_weight"] == (2.0 if row["item_id"] < "i6" else 0.0) == count["fit_engagement_count"]
        assert row["fit_engagement_count"] == row["fit_weight"]
        assert count["fit_pair_count"] == (row["fit_weight"] > 0)
    assert stored(spark, settings, validation_pairs(CLICK)).count() == 6
    of_click = read_record(settings.layout, job.STAGE).metrics.tasks["search_click"]
    assert of_click.training_events + of_click.capped_events == 18
    assert of_click.fit_events == sum(row["fit_weight"] for row in rows)
    assert (of_click.validation_pairs, of_click.validation_events) == (6, 6)


def test_files_are_even_and_hold_one_row_group(spark: SparkSession, shop: Shop) -> None:
    many = [event(f"e{n}", f"lamp {n // 12}", f"i{n % 12}") for n in range(480)]
    settings = shop(many, tasks=TASKS[:1], training_tables={"rows_per_file": 50})
    queries = [(f"lamp {n}", "search", vector(1), "space", None, None) for n in range(40)]
    put(spark, settings, QUERY_EMBEDDINGS, queries)
    with changed(spark, "spark.sql.shuffle.partitions", "3"):
        job.run(spark, settings)

    uri = settings.table_uri(CLICK.training_table)
    files = [pq.ParquetFile(file) for file in DeltaTable(uri).file_uris()]
    assert sorted(file.metadata.num_rows for file in files) == [48] * 10
    assert {file.metadata.num_row_groups for file in files} == {1}
    # A file must not be one item's: 48 draws from 12 items.
    assert min(len(set(file.read(["item_id"])["item_id"].to_pylist())) for file in files) >= 6


@given(rows=st.integers(1, 200_000), most=st.integers(1, 4_096))
@pytest.mark.fault("A7", "recovered", "any number of pairs: files that differ by a twentieth at most")
def test_file_sizes_differ_by_a_twentieth_at_most(rows: int, most: int) -> None:
    size = even_file_rows(rows, most)
    last = rows - size * (-(-rows // size) - 1)
    assert 1 <= size <= most
    assert last >= size - size // 20


@pytest.mark.parametrize(
    ("rows", "files"), [(1, 1), (2_048, 1), (120_000, 59), (4_096_000, 2_000), (100_000_000, 2_000), (10**9, 2_000)]
)
def test_files_are_sized_for_the_table(rows: int, files: int) -> None:
    size = even_file_rows(rows, 0)
    assert -(-rows // size) <= files * 1.05 + 1
    if rows <= 2_000 * 2_048:  # as ever
        assert size == even_file_rows(rows, 2_048)


@pytest.mark.parametrize(
    ("table", "row", "name"),
    [
        (ITEM_FEATURES, ("i1", 101, b"", b"", b"", b"", 0, 0, 0, "hash", None, 0), "item_id"),
        (QUERY_EMBEDDINGS, ("photo", "closeup", vector(2), "space", None, None), "query_id"),
    ],
)
@pytest.mark.fault("C9", "loud", "an item, and a query, that stands twice in the table joined with")
def test_a_repeated_key_stops_the_job(
    spark: SparkSession, shop: Shop, table: Table, row: tuple[Any, ...], name: str
) -> None:
    settings = shop(PLAIN)
    put(spark, settings, table, [row, row])
    with pytest.raises(
        TableError, match=rf"table {table.name}, column {name}: expected each value in one row; found 2"
    ):
        job.run(spark, settings)


@pytest.mark.fault("C11", "loud", "3 of 10 events null, in the year 2099, of no item")
def test_a_log_that_is_mostly_bad_stops_the_job(spark: SparkSession, shop: Shop) -> None:
    broken = [
        event("n1", "photo", "i1") | {"item_id": None},
        event("n2", "photo", "i1", event_ts=datetime(2099, 1, 1, tzinfo=timezone.utc)),
    ]
    settings = shop(PLAIN + broken)
    with pytest.raises(TableError) as caught:
        job.run(spark, settings)
    message = str(caught.value)
    assert "column event_ts: " in message
    assert "found 3 of 10: future 1 (such as '2099-01-01 00:00:00'), null_item_id 1 (such as 'n1'), " in message
    assert "unknown_item 1 (such as 'nowhere'). " in message
    assert "raise max_reject_share.engagement_logs" in message
    assert records(settings) == INPUT_RECORDS
    assert stored(spark, settings, REJECTED_EVENTS).count() == 4


@pytest.mark.long
@pytest.mark.fault("t08", "loud", "event_id is the order's id, one row per order line")
def test_a_log_whose_ids_are_of_orders_stops_the_job_or_is_counted(spark: SparkSession, shop: Shop) -> None:
    lines = [event(f"order{n // 3}", "lampe 🪔", f"i{n}") for n in range(12)]
    settings = shop(lines, tasks=TASKS[:1])
    with pytest.raises(TableError, match=r"column event_id: .*found 8 of 12: reused_event_id 8 \(such as 'order0', "
                                         r"'order1', 'order2'\)\. .*inputs\.event_id_is = \"order\""):  # fmt: skip
        job.run(spark, settings)
    job.run(spark, shop(lines, tasks=TASKS[:1], inputs={"event_id_is": "order"}))
    assert read_record(settings.layout, job.STAGE).metrics.tasks["search_click"].training_pairs == 12


@pytest.mark.fault("t09", "loud", "the log names items and queries in another letter case")
def test_ids_in_another_case_are_said(spark: SparkSession, shop: Shop) -> None:
    shouted = [event(f"e{n}", "lampe 🪔 ", f"I{n}") | {"engagement": "click"} for n in range(3)]
    with pytest.raises(TableError, match=r"found 3 of 3: unknown_query 3 .*1 query_ids match without case and blanks"):
        job.run(spark, shop(shouted))
    shouted = [event(f"e{n}", "lampe 🪔", f"I{n}") for n in range(3)]
    with pytest.raises(TableError, match=r"unknown_item 3 \(such as 'I0', 'I1', 'I2'\).*3 item_ids match without case"):
        job.run(spark, shop(shouted))


def test_a_task_without_training_pairs_stops_the_job(spark: SparkSession, shop: Shop) -> None:
    settings = shop([row for row in PLAIN if row["event_id"] != "e5"])
    with pytest.raises(TableError, match=r"table training_closeup_save.*take the task out"):
        job.run(spark, settings)


@pytest.mark.fault("F3", "loud", "a log of no row")
def test_an_empty_log_stops_the_job(spark: SparkSession, shop: Shop) -> None:
    with pytest.raises(TableError, match=r"table engagement_logs.*at least one row"):
        job.run(spark, shop([]))


@pytest.mark.fault("C9", "loud", "a join that loses one event")
def test_a_lost_event_stops_the_job(spark: SparkSession, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = shop(PLAIN)
    complete = job.build_pairs
    monkeypatch.setattr(job, "build_pairs", lambda *given: complete(*given).where("item_id != 'i2' OR task LIKE 'c%'"))
    with pytest.raises(TableError, match="expected 8 events; found 7"):
        job.run(spark, settings)
    assert records(settings) == INPUT_RECORDS


@pytest.mark.long
@pytest.mark.fault("t08", "loud", "a log of which hardly an event lies in the windows")
def test_a_log_of_which_hardly_anything_is_left_stops_the_job(
    spark: SparkSession, shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    old = [event(f"old{n}", "photo", "i1", event_ts=datetime(2020, 1, 1, tzinfo=timezone.utc)) for n in range(40)]
    with pytest.raises(TableError, match=r"at most 80\.0% .*max_reject_share\.all_reasons.*late 40"):
        job.run(spark, shop(PLAIN + old, max_reject_share={"all_reasons": 0.8}))
    job.run(spark, shop(PLAIN + old))
    assert "warning: 42 of 48 rows of engagement_logs are left out" in capsys.readouterr().out
