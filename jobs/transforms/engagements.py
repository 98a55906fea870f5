"""Engagement logs, checked: every event ends counted in one window of one task, or as a negative, or rejected."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from jobs.transforms.hot_keys import spread_join
from jobs.transforms.keys import query_item_key
from jobs.transforms.quarantine import Check, is_blank, text_checks, with_reject
from schemas.settings import DateSettings, Settings
from schemas.tables import ENGAGEMENT_LOGS
from schemas.tasks import Task

TRAINING, VALIDATION, HELD_OUT = "training", "validation", "held_out"
"""The windows, as the names of their tables begin. An event is of training or held out: validation is in training."""

NEGATIVE = "negative"
"""In the place of a window: the event counts against its item, and no table has it as a pair."""

NEEDED = tuple(column.name for column in ENGAGEMENT_LOGS.columns if not column.nullable)

EVERYDAY_REASONS = ("duplicate_event", "late", "gap", "measured_negative", "no_task")
"""Reasons that are everyday business: a repeat, an event outside the windows or of a task that nobody trains.
Every other points at a fault upstream."""


def checked_engagements(
    events: DataFrame,
    queries: DataFrame,
    items: DataFrame,
    *,
    settings: Settings,
    hot: dict[str, list[str]],
    kept: tuple[str, ...] = (),
) -> DataFrame:
    """Every event once, with its task, its window, its keys and the verdict `reject` (null = counted).

    The window of a negative event is `NEGATIVE`, its task named like the others.

    Args:
        events: engagement_logs.
        queries: query_embeddings, unique by query_id.
        items: item_features, unique by item_id.
        settings: Windows, tasks, negatives and what an event_id names. The windows are instants, so the session's time
            zone does not matter.
        hot: Frequent query_ids and item_ids of the events; see `hot_keys`.
        kept: Further columns of the events that stay.
    """
    dates, tasks = settings.dates, settings.task_list
    negatives = [Task(entry.query_kind, entry.engagement) for entry in settings.negatives]
    known_queries = queries.select("query_id", "query_kind", query_item_key("query_item_id").alias("query_item_key"))
    known_items = items.select("item_id", "item_key")
    numbered = _with_delivery(events, settings.inputs.event_id_is)
    matched = spread_join(numbered, known_queries, on="query_id", how="left", hot=hot["query_id"], spread_by="event_id")
    matched = spread_join(matched, known_items, on="item_id", how="left", hot=hot["item_id"], spread_by="event_id")
    placed = matched.withColumns({"task": _task([*tasks, *negatives]), "window": _window(dates)})
    checked = with_reject(placed, ENGAGEMENT_LOGS, _checks(dates, tasks, negatives))
    kind = F.coalesce(F.when(_is_negative(negatives), F.lit(NEGATIVE)), F.col("window"))
    return checked.select(*NEEDED, *kept, "task", kind.alias("window"), "item_key", "query_item_key", "reject")


def _with_delivery(events: DataFrame, event_id_is: str) -> DataFrame:
    """Number the deliveries of one event from 1, in an order that the rows alone decide; `is_repeat`: as the first is.

    Rows are one event where they have one event_id and, if that names an "order", the same instant, query, item and
    engagement. A row with a null takes no part: it is rejected for the null, and must not displace a complete delivery.
    """
    facts = ("event_ts", "query_id", "item_id", "engagement")
    is_incomplete = reduce(or_, [_is_missing(name) for name in NEEDED])
    # The hash keeps rows without an event_id from meeting in one partition.
    apart = F.when(is_incomplete, F.xxhash64(*facts, "user_id"))
    event = ("event_id", *facts) if event_id_is == "order" else ("event_id",)
    deliveries = Window.partitionBy(*event, "apart").orderBy(*facts, "user_id")
    told = events.withColumns({"apart": apart, "facts": F.xxhash64(*facts)})
    numbered = told.withColumns(
        {"delivery": F.row_number().over(deliveries), "first": F.first("facts").over(deliveries)}
    )
    return numbered.withColumn("is_repeat", F.col("facts") == F.col("first")).drop("apart", "facts", "first")


def _is_missing(name: str) -> Column:
    """A blank id is no id."""
    return is_blank(name) if ENGAGEMENT_LOGS.column(name).kind == "string" else F.col(name).isNull()


def _task(tasks: Sequence[Task]) -> Column:
    """The name of the task of an event, or null where no task of the settings takes it."""
    return F.coalesce(
        *[
            F.when(
                (F.col("query_kind") == task.query_kind) & (F.col("engagement") == task.engagement), F.lit(task.name)
            )
            for task in tasks
        ]
    )


def _is_negative(negatives: Sequence[Task]) -> Column:
    return F.col("task").isin([negative.name for negative in negatives])


def _window(dates: DateSettings) -> Column:
    """The window of an event, or null outside both."""
    when = F.col("event_ts")
    is_training = (when >= F.lit(dates.train_start)) & (when < F.lit(dates.train_end))
    is_held_out = (when >= F.lit(dates.test_start)) & (when < F.lit(dates.end))
    return F.coalesce(F.when(is_training, F.lit(TRAINING)), F.when(is_held_out, F.lit(HELD_OUT)))


def _checks(dates: DateSettings, tasks: Sequence[Task], negatives: Sequence[Task]) -> list[Check]:
    """The checks in order: an event is rejected for the first one that it fails."""
    when, engagements = F.col("event_ts"), sorted({task.engagement for task in (*tasks, *negatives)})
    # The fit pass and the last one then see the same negatives, and nothing that is measured shows through them.
    is_measured = _is_negative(negatives) & (when >= F.lit(dates.validation_start))
    start, end = dates.train_start.isoformat(), dates.end.isoformat()
    nulls = [
        Check(f"null_{name}", _is_missing(name), name, f"a value: {ENGAGEMENT_LOGS.column(name).doc}",
              "Fill it where the log is written.")
        for name in NEEDED
    ]  # fmt: skip
    return [
        *nulls,
        *text_checks(ENGAGEMENT_LOGS),
        Check("duplicate_event", (F.col("delivery") > 1) & F.col("is_repeat"), "event_id", "one row per event",
              "Nothing: the first delivery is counted."),
        Check("reused_event_id", F.col("delivery") > 1, "event_id", "an id that only one event has",
              'Give every event an id of its own, or set inputs.event_id_is = "order" to count each row that differs.'),
        Check("late", when < F.lit(dates.train_start), "event_ts", f"{start} or later",
              "Nothing, or raise dates.train_days."),
        Check("future", when >= F.lit(dates.end), "event_ts", f"before {end}",
              "Correct the clock that wrote it, or raise dates.as_of."),
        Check("gap", F.col("window").isNull(), "event_ts", "outside the gap between the windows",
              "Nothing, or lower dates.gap_days."),
        Check("unknown_query", F.col("query_kind").isNull(), "query_id", "a query_id of query_embeddings",
              "Add the query to queries, and see rejected_queries."),
        Check("unknown_item", F.col("item_key").isNull(), "item_id", "an item_id of item_features",
              "Add the item to items, and see rejected_items."),
        Check("unknown_engagement", ~F.col("engagement").isin(engagements), "engagement",
              f"one of {', '.join(engagements)}",
              "Correct the log, or add it to [[tasks]] or [[negatives]] of the settings."),
        Check("measured_negative", is_measured, "event_ts",
              f"before {dates.validation_start.isoformat()}, where a negative engagement may be trained on",
              "Nothing: what happens in the windows that are measured is not trained on."),
        Check("no_task", F.col("task").isNull(), "engagement", "a query kind and engagement that are a task",
              "Nothing, or add the task to the settings."),
    ]  # fmt: skip
