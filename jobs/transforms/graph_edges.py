"""The edges of the graph: which items belong to which groups, how heavily, capped on both sides; and a draw from them.

A group is whatever joins items: a query, a user, a user's day, or an order. Weights are whole numbers, so that a sum
does not depend on the order in which Spark adds it up, and a draw from them is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta, timezone

import pyarrow as pa
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from jobs.transforms.keys import NO_ITEM

UNIT = 1 << 20
"""Weight of one event at the reference time."""

_LONGEST_DAYS = 36_500.0

COIN_BITS = 31
_COIN = 1 << COIN_BITS

Weights = list[int]

_ALIAS = "node long, slot int, coin_below int, near long, near_degree int, far long, far_degree int"


def reference_time(end: datetime, half_life_days: float) -> datetime:
    """The time at which an event weighs UNIT: the first multiple of the half-life, from 1970 on, that is not before.

    From one day to the next the weight of an event then stays as it is; where the reference moves on, all weights
    halve, which changes no draw but by rounding.

    Args:
        end: First instant after the graph's window.
        half_life_days: Age at which an event weighs half; 0 = they weigh alike.
    """
    if not half_life_days:
        return end
    # A span that dates can count in, whatever the half-life: weights are relative.
    step = max(timedelta(days=min(half_life_days, _LONGEST_DAYS)), timedelta.resolution)
    epoch = datetime(1970, 1, 1, tzinfo=timezone.utc)
    return epoch + -((epoch - end) // step) * step


def graph_edges(
    events: DataFrame, items: DataFrame, *, join_by: str, reference: datetime, half_life_days: float
) -> DataFrame:
    """One row per item and group: `item_key`, `group_key` and `weight`, UNIT an event at the reference time.

    A query that shows an item has that item as a member too, once an engagement. Events without a group, such as those
    of unknown users, are left out.

    Args:
        events: Checked events: event_id, event_ts, user_id, query_id, item_key, query_item_key.
        items: item_key of the usable items, unique.
        join_by: graph.join_by.
        reference: See `reference_time`.
        half_life_days: Age at which an event weighs half; 0 = they weigh alike.
    """
    weight = F.lit(UNIT).cast("long")
    if half_life_days:
        age_days = (F.unix_micros(F.lit(reference)) - F.unix_micros("event_ts")) / F.lit(86_400e6)
        weight = F.greatest(F.lit(1), F.round(UNIT * F.pow(F.lit(2.0), -age_days / half_life_days))).cast("long")
    grouped = events.withColumns({"group_key": _group(join_by), "weight": weight}).where("group_key is not null")
    members = grouped.select("item_key", "group_key", "weight")
    if join_by == "query":
        shown = grouped.where(F.col("query_item_key") != NO_ITEM)
        shown = shown.select(F.col("query_item_key").alias("item_key"), "group_key", "weight")
        # `items` is unique by item_key: the join keeps events whose shown item can be used, each once.
        members = members.unionByName(shown.join(items.select("item_key"), on="item_key", how="left_semi"))
    return members.groupBy("item_key", "group_key").agg(F.sum("weight").alias("weight"))


def _group(join_by: str) -> Column:
    user_day = F.xxhash64("user_id", F.unix_date(F.to_date("event_ts")))
    of_user = {"user": F.xxhash64("user_id"), "user_day": user_day}
    if join_by in of_user:
        return F.when(F.col("user_id").isNotNull(), of_user[join_by])
    return F.xxhash64("query_id" if join_by == "query" else "event_id")


def capped(edges: DataFrame, *, max_groups: int, max_items: int) -> DataFrame:
    """The heaviest edges of each item, of these the heaviest of each group, ties by hash; groups of one item left out.

    Returns:
        The edges with `item_degree` and `group_degree`, how many each end has.
    """
    by_hash = F.xxhash64("item_key", "group_key")
    for end, other, most in (("item_key", "group_key", max_groups), ("group_key", "item_key", max_items)):
        ranks = Window.partitionBy(end).orderBy(F.desc("weight"), by_hash, other)
        edges = edges.withColumn("rank", F.row_number().over(ranks)).where(F.col("rank") <= most).drop("rank")
    members = Window.partitionBy("group_key")
    joined = edges.withColumn("group_degree", F.count("*").over(members).cast("int")).where("group_degree > 1")
    return joined.withColumn("item_degree", F.count("*").over(Window.partitionBy("item_key")).cast("int"))


def alias_rows(edges: DataFrame, *, node: str, other: str) -> DataFrame:
    """One row per slot of each node: two of its neighbours, and the coin below which the first is drawn.

    As many slots as the node has edges. Whoever draws a slot evenly and a coin from 0 to 2^31 has drawn an edge with
    the probability of its weight, by one equal join, whatever the degree of the node.

    Source: Walker 1977, Vose 1991 (IEEE TSE 17(9)).

    Args:
        edges: Rows of `capped`.
        node: The end that is left: item or group.
        other: The end that is reached.
    """
    reached = F.struct(F.col(f"{other}_key").alias("key"), F.col(f"{other}_degree").alias("degree"), "weight")
    by_node = edges.groupBy(F.col(f"{node}_key").alias("node")).agg(F.sort_array(F.collect_list(reached)).alias("ends"))
    return by_node.mapInArrow(_alias_batches, _ALIAS)


def _alias_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    names = [column.split()[0] for column in _ALIAS.split(", ")]
    for batch in batches:
        rows: list[list[int]] = [[] for _ in names]
        for node, ends in zip(batch.column("node").to_pylist(), batch.column("ends").to_pylist(), strict=True):
            coins, far = alias_table([end["weight"] for end in ends])
            for slot, (coin, other) in enumerate(zip(coins, far, strict=True)):
                near, away = ends[slot], ends[other]
                row = (node, slot, coin, near["key"], near["degree"], away["key"], away["degree"])
                for column, value in zip(rows, row, strict=True):
                    column.append(value)
        kinds = [pa.int64() if column.endswith("long") else pa.int32() for column in _ALIAS.split(", ")]
        columns = [pa.array(column, kind) for column, kind in zip(rows, kinds, strict=True)]
        yield pa.RecordBatch.from_arrays(columns, names)


def alias_table(weights: Weights) -> tuple[list[int], list[int]]:
    """For each slot the coin below which its own entry is drawn, and the entry that is drawn else.

    In whole numbers: the only rounding is that of a coin to 31 bits.

    Args:
        weights: At least one, all above 0.
    """
    count, total = len(weights), sum(weights)
    left = [weight * count for weight in weights]
    coins, far = [_COIN - 1] * count, list(range(count))
    small = [slot for slot in range(count) if left[slot] < total]
    large = [slot for slot in range(count) if left[slot] >= total]
    while small:
        slot, giver = small.pop(), large.pop()
        coins[slot], far[slot] = left[slot] * _COIN // total, giver
        left[giver] -= total - left[slot]
        (small if left[giver] < total else large).append(giver)
    return coins, far
