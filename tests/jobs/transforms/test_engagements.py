"""Every event is counted once or rejected once, with the first reason that holds."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.transforms.engagements import EVERYDAY_REASONS, checked_engagements
from schemas.settings import Settings
from schemas.spark import struct_type
from schemas.tables import ENGAGEMENT_LOGS
from schemas.tasks import Task

TASKS = (Task("closeup", "click"), Task("search", "click"), Task("search", "save"))
NO_HOT_KEYS: dict[str, list[str]] = {"query_id": [], "item_id": []}

# make_settings: as_of 1 March; training [31 January, 20 February), gap until 22 February, held out until 1 March.
TRAINING_DAY, HELD_OUT_DAY = datetime(2026, 2, 1, tzinfo=timezone.utc), datetime(2026, 2, 25, tzinfo=timezone.utc)


def event(**fields: Any) -> tuple[Any, ...]:
    row = {
        "event_id": "e1",
        "event_ts": TRAINING_DAY,
        "user_id": "u1",
        "query_id": "lamp",
        "item_id": "i1",
        "engagement": "click",
    }
    return tuple((row | fields).values())


@pytest.fixture
def check(spark: SparkSession, make_settings: Callable[..., Settings]) -> Callable[..., DataFrame]:
    queries = spark.createDataFrame(
        [("lamp", "search", None), ("photo", "closeup", "i2")],
        "query_id string, query_kind string, query_item_id string",
    )
    items = spark.createDataFrame([("i1", 101), ("i2", 102)], "item_id string, item_key long")

    def run(*rows: tuple[Any, ...], **sections: Any) -> DataFrame:
        # As a file may hold it: NOT NULL is a promise that Parquet does not keep.
        schema = struct_type(ENGAGEMENT_LOGS).simpleString()
        events = spark.createDataFrame(list(rows), schema)
        tasks = [{"query_kind": task.query_kind, "engagement": task.engagement} for task in TASKS]
        settings = make_settings(**({"tasks": tasks} | sections))
        return checked_engagements(events, queries, items, settings=settings, hot=NO_HOT_KEYS)

    return run


def reasons(checked: DataFrame) -> list[tuple[str | None, str | None]]:
    return [tuple(row) for row in checked.select("event_id", "reject.reason").orderBy("event_id", "reason").collect()]


def test_an_event_gets_its_task_window_and_keys(check: Callable[..., DataFrame]) -> None:
    checked = check(
        event(event_id="e1"),
        event(event_id="e2", query_id="photo", event_ts=HELD_OUT_DAY),
    )
    rows = checked.select("event_id", "task", "window", "item_key", "query_item_key", "reject").orderBy("event_id")
    photo_key = checked.sparkSession.range(1).select(F.xxhash64(F.lit("i2"))).first()[0]  # type: ignore[index]
    assert [tuple(row) for row in rows.collect()] == [
        ("e1", "search_click", "training", 101, 0, None),
        ("e2", "closeup_click", "held_out", 101, photo_key, None),
    ]


@pytest.mark.parametrize("column", ["event_id", "event_ts", "query_id", "item_id", "engagement"])
def test_a_null_is_named(check: Callable[..., DataFrame], column: str) -> None:
    [(_, reason)] = reasons(check(event(**{column: None})))
    assert reason == f"null_{column}"
    assert reason not in EVERYDAY_REASONS


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"query_id": "nobody asked"}, "unknown_query"),
        ({"item_id": "ausverkauft 🪑"}, "unknown_item"),
        ({"engagement": "inquiry"}, "unknown_engagement"),
        ({"query_id": "photo", "engagement": "save"}, "no_task"),
        ({"query_id": "nobody asked", "item_id": "none", "engagement": "none"}, "unknown_query"),
    ],
)
@pytest.mark.fault("C14", "recovered", "events of no task, too late, of the future")
def test_an_event_that_no_task_takes_is_rejected(
    check: Callable[..., DataFrame], fields: dict[str, Any], reason: str
) -> None:
    [(_, found)] = reasons(check(event(**fields)))
    assert found == reason
    assert (reason in EVERYDAY_REASONS) == (reason == "no_task")


def test_windows_include_their_start_and_exclude_their_end(check: Callable[..., DataFrame]) -> None:
    def at(day: str) -> datetime:
        return datetime.fromisoformat(f"2026-{day}+00:00")

    moments = {
        "01-30T23:59:59.999999": "late",
        "01-31T00:00:00": None,
        "02-19T23:59:59.999999": None,
        "02-20T00:00:00": "gap",
        "02-21T23:59:59.999999": "gap",
        "02-22T00:00:00": None,
        "02-28T23:59:59.999999": None,
        "03-01T00:00:00": "future",
    }
    checked = check(*[event(event_id=moment, event_ts=at(moment)) for moment in moments])
    assert dict(reasons(checked)) == moments
    assert checked.where("window = 'held_out'").count() == 2


@pytest.mark.fault("C14", "recovered", "an event delivered several times")
def test_of_repeated_deliveries_the_first_is_counted(check: Callable[..., DataFrame]) -> None:
    later, last = datetime(2026, 2, 2, tzinfo=timezone.utc), datetime(2026, 2, 3, tzinfo=timezone.utc)
    checked = check(event(event_ts=last), event(event_ts=later), event(), event(), event(event_id="e2"))
    assert reasons(checked) == [
        ("e1", None),
        ("e1", "duplicate_event"),
        *[("e1", "reused_event_id")] * 2,
        ("e2", None),
    ]
    [counted] = checked.where("reject IS NULL AND event_id = 'e1'").collect()
    assert counted["event_ts"].astimezone(timezone.utc) == TRAINING_DAY


NEGATIVES = {"negatives": [{"query_kind": "search", "engagement": "return"}], "loss": {"form": "full"}}


def test_a_negative_is_checked_like_any_event_and_counted_in_no_window(check: Callable[..., DataFrame]) -> None:
    def returned(event_id: str, **fields: Any) -> tuple[Any, ...]:
        return event(**({"event_id": event_id, "engagement": "return"} | fields))

    late_training = datetime(2026, 2, 17, 23, 59, tzinfo=timezone.utc)
    rows = {
        returned("e1"): None,
        returned("e2", event_ts=late_training): None,
        returned("e3", event_ts=datetime(2026, 2, 18, tzinfo=timezone.utc)): "measured_negative",
        returned("e4", event_ts=HELD_OUT_DAY): "measured_negative",
        returned("e5", event_ts=datetime(2026, 2, 21, tzinfo=timezone.utc)): "gap",
        returned("e6", event_ts=datetime(2026, 1, 1, tzinfo=timezone.utc)): "late",
        returned("e7", item_id="gone"): "unknown_item",
        returned("e8", query_id="photo"): "no_task",
        returned("e9", item_id=None): "null_item_id",
    }
    checked = check(*rows, **NEGATIVES)
    assert [reason for _, reason in reasons(checked)] == list(rows.values())
    assert {tuple(row) for row in checked.where("reject IS NULL").select("task", "window").collect()} == {
        ("search_return", "negative")
    }
    assert "measured_negative" in EVERYDAY_REASONS
    assert {reason for _, reason in reasons(check(returned("e1"), returned("e4", event_ts=HELD_OUT_DAY)))} == {
        "unknown_engagement"
    }


def test_without_a_validation_window_negatives_count_up_to_the_end_of_training(check: Callable[..., DataFrame]) -> None:
    last = event(engagement="return", event_ts=datetime(2026, 2, 19, tzinfo=timezone.utc))
    assert reasons(check(last, dates={"validation_days": 0}, **NEGATIVES)) == [("e1", None)]


@pytest.mark.fault("t08", "loud", "event_id is the order's id: rows that differ share it")
@pytest.mark.parametrize("fields", [{"item_id": "i2"}, {"query_id": "photo"}, {"engagement": "save"},
                                    {"event_ts": HELD_OUT_DAY}])  # fmt: skip
def test_rows_that_differ_are_no_repeats(check: Callable[..., DataFrame], fields: dict[str, Any]) -> None:
    rows = [event(), event(**fields), event(user_id="u2")]
    [(_, reason)] = set(reasons(check(*rows))) - {("e1", None), ("e1", "duplicate_event")}
    assert reason == "reused_event_id"
    assert reason not in EVERYDAY_REASONS


@pytest.mark.fault("t08", "recovered", "event_id is the order's id, and the settings say so")
def test_rows_of_one_order_are_counted_each_that_differs(check: Callable[..., DataFrame]) -> None:
    rows = [event(), event(item_id="i2"), event(item_id="i2"), event(item_id="i2", event_ts=HELD_OUT_DAY)]
    assert reasons(check(*rows, inputs={"event_id_is": "order"})) == [*[("e1", None)] * 3, ("e1", "duplicate_event")]


@pytest.mark.fault("t08", "loud", "every event_id is blank")
@pytest.mark.parametrize("column", ["event_id", "query_id", "item_id", "engagement"])
def test_a_blank_is_no_value(check: Callable[..., DataFrame], column: str) -> None:
    assert reasons(check(event(**{column: ""}), event(**{column: " \t"}))) == [
        ("" if column == "event_id" else "e1", f"null_{column}"),
        (" \t" if column == "event_id" else "e1", f"null_{column}"),
    ]


@pytest.mark.fault("t22", "loud", "a query_id of 45,000 characters in the log")
@pytest.mark.parametrize("column", ["event_id", "query_id", "item_id", "engagement"])
def test_a_long_id_is_named(check: Callable[..., DataFrame], column: str) -> None:
    assert [reason for _, reason in reasons(check(event(**{column: "x" * 513})))] == ["long_id"]
    assert [reason for _, reason in reasons(check(event(event_id="e" * 512)))] == [None]


def test_a_delivery_with_a_null_does_not_displace_a_complete_one(check: Callable[..., DataFrame]) -> None:
    checked = check(event(item_id=None), event(), event(event_id=None), event(event_id=None))
    assert reasons(checked) == [
        (None, "null_event_id"),
        (None, "null_event_id"),
        ("e1", None),
        ("e1", "null_item_id"),
    ]
