"""Edges: what joins items, how heavily, within which caps; and a draw from them that is exact."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from chispa import assert_df_equality
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.transforms.graph_edges import UNIT, alias_rows, alias_table, capped, graph_edges, reference_time

END = datetime(2026, 2, 18, tzinfo=timezone.utc)
EVENT = "event_id string, event_ts timestamp, user_id string, query_id string, item_key long, query_item_key long"
EDGE = "item_key long, group_key long, weight long"


def edges_from(spark: SparkSession, rows: list[Any], join_by: str, half_life_days: float = 0.0) -> DataFrame:
    items = spark.createDataFrame([(key,) for key in (1, 2, 3)], "item_key long")
    return graph_edges(
        spark.createDataFrame(rows, EVENT), items, join_by=join_by, reference=END, half_life_days=half_life_days
    )


def grouped(edges: DataFrame) -> list[list[int]]:
    rows = edges.groupBy("group_key").agg(F.sort_array(F.collect_list("item_key")).alias("items")).collect()
    return sorted(list(row["items"]) for row in rows)


def test_a_query_has_the_item_that_it_shows_as_a_member_if_that_is_an_item(spark: SparkSession) -> None:
    rows = [
        ("a", END, None, "q", 1, 3), ("b", END, None, "q", 1, 3),
        ("c", END, None, "q", 2, 3), ("d", END, None, "r", 2, 99), ("e", END, None, "s", 1, 0),
    ]  # fmt: skip
    edges = edges_from(spark, rows, "query")
    assert grouped(edges) == [[1], [1, 2, 3], [2]]
    weights = {(row["item_key"], row["weight"] // UNIT) for row in edges.collect()}
    assert weights == {(1, 2), (2, 1), (3, 3), (1, 1)}


@pytest.mark.parametrize(
    ("join_by", "groups"),
    [("user", [[1, 2, 3]]), ("user_day", [[1, 2], [3]]), ("event", [[1], [2], [2], [3]]), ("query", [[1, 2], [2, 3]])],
)
def test_what_joins_items_is_a_setting(spark: SparkSession, join_by: str, groups: Any) -> None:
    late = END - timedelta(days=2)
    rows = [
        ("a", END, "u", "q", 1, 0), ("b", END, "u", "r", 2, 0), ("c", late, "u", "r", 3, 0),
        ("d", END, None, "q", 2, 0),
    ]  # fmt: skip
    assert grouped(edges_from(spark, rows, join_by)) == groups


def test_an_event_weighs_half_after_a_half_life(spark: SparkSession) -> None:
    rows = [("a", END - timedelta(days=6), None, "q", 1, 0), ("b", END - timedelta(days=3), None, "q", 1, 0)]
    found = edges_from(spark, rows, "query", half_life_days=3.0).select("item_key", "weight")
    expected = spark.createDataFrame([(1, UNIT // 4 + UNIT // 2)], "item_key long, weight long")
    assert_df_equality(found, expected, ignore_nullable=True)


def test_the_reference_stays_from_day_to_day_and_never_lies_before_the_end() -> None:
    days = [END + timedelta(days=number) for number in range(40)]
    found = [reference_time(day, 10.0) for day in days]
    assert all(timedelta(0) <= reference - day < timedelta(days=10) for day, reference in zip(days, found, strict=True))
    assert len(set(found)) <= 5, "it moves on once in ten days"
    assert reference_time(END, 0.0) == END
    for days in (1e-12, 1e6, 1e300, float("inf")):
        assert reference_time(END, days) >= END


def test_the_heaviest_edges_are_kept_and_groups_of_one_item_left_out(spark: SparkSession) -> None:
    rows = [(1, 10, 5), (1, 11, 4), (1, 12, 3), (2, 10, 1), (3, 10, 2), (2, 11, 7), (2, 12, 9)]
    found = capped(spark.createDataFrame(rows, EDGE), max_groups=2, max_items=2).orderBy("item_key", "group_key")
    # Item 1 loses group 12 and item 2 group 10; group 10 keeps items 1 and 3; group 12 is left with one item.
    expected = [(1, 10, 5, 2, 2), (1, 11, 4, 2, 2), (2, 11, 7, 2, 1), (3, 10, 2, 2, 1)]
    assert_df_equality(
        found,
        spark.createDataFrame(expected, f"{EDGE}, group_degree int, item_degree int"),
        ignore_nullable=True,
        ignore_column_order=True,
    )


def test_a_draw_from_an_alias_table_is_by_weight() -> None:
    random = np.random.default_rng(0)
    for count in (1, 2, 7, 50):
        weights = [int(weight) for weight in random.integers(1, 1 << 20, size=count)]
        coins, far = alias_table(weights)
        chances = [Fraction(0)] * count
        for slot in range(count):
            near = Fraction(coins[slot], 1 << 31)
            chances[slot] += near / count
            chances[far[slot]] += (1 - near) / count
        exact = [Fraction(weight, sum(weights)) for weight in weights]
        assert max(abs(float(a - b)) for a, b in zip(chances, exact, strict=True)) < count / (1 << 31)


def test_a_nodes_slots_name_its_ends_with_their_degrees(spark: SparkSession) -> None:
    rows = [(1, 10, 3, 2, 1), (2, 10, 1, 2, 1)]
    edges = spark.createDataFrame(rows, f"{EDGE}, group_degree int, item_degree int")
    found = {(row["node"], row["slot"]): row for row in alias_rows(edges, node="group", other="item").collect()}
    assert found.keys() == {(10, 0), (10, 1)}
    assert (found[10, 1]["near"], found[10, 1]["far"], found[10, 1]["far_degree"]) == (2, 1, 1)
    assert found[10, 1]["coin_below"] == 1 << 30, "item 2 has a quarter of the weight, and half of its slot"
