"""Walks: along edges, by weight, the same whatever the partitions; and what is made of their visits."""

from __future__ import annotations

import pytest
from chispa import assert_df_equality
from pyspark.sql import DataFrame, SparkSession

from jobs.transforms.graph_edges import alias_rows, capped
from jobs.transforms.graph_walks import drawn_pairs, ranked, stepped, visits, walkers_from

EDGE = "item_key long, group_key long, weight long"
TWO_ISLANDS = [(1, 10, 1), (2, 10, 1), (2, 11, 1), (3, 11, 1), (7, 20, 1), (8, 20, 3)]


class Sides:
    """A small graph, capped, and both of its sides."""

    def __init__(self, spark: SparkSession, rows: list[tuple[int, int, int]]) -> None:
        self.edges = capped(spark.createDataFrame(rows, EDGE), max_groups=100, max_items=100)
        self.of_items = alias_rows(self.edges, node="item", other="group")
        self.of_groups = alias_rows(self.edges, node="group", other="item")

    def visits(self, *, walks: int, hops: int, restart: float = 0.3, parts: int = 1) -> DataFrame:
        walkers = walkers_from(self.edges, walks).repartition(parts)
        return visits(walkers, self.of_items, self.of_groups, hops=hops, restart=restart, seed=5)


def counts(found: DataFrame) -> dict[tuple[int, int], int]:
    return {(row["start"], row["visited"]): row["visit_count"] for row in found.collect()}


def test_walkers_stay_on_their_island_and_do_not_count_their_start(spark: SparkSession) -> None:
    found = counts(Sides(spark, TWO_ISLANDS).visits(walks=40, hops=3))
    assert found.keys() <= {(a, b) for a in (1, 2, 3) for b in (1, 2, 3) if a != b} | {(7, 8), (8, 7)}
    assert {(1, 2), (1, 3), (3, 1), (7, 8)} <= found.keys(), "three hops lead from one end to the other"
    one_hop = counts(Sides(spark, TWO_ISLANDS).visits(walks=40, hops=1))
    assert (1, 3) not in one_hop, "they are in no group together"


def test_a_distance_is_the_number_of_groups_between(spark: SparkSession) -> None:
    found = Sides(spark, TWO_ISLANDS).visits(walks=60, hops=3).collect()
    distances = {(row["start"], row["visited"]): row["distance"] for row in found}
    assert {pair: distances[pair] for pair in ((1, 2), (2, 3), (1, 3), (3, 1), (7, 8))} == {
        (1, 2): 1, (2, 3): 1, (1, 3): 2, (3, 1): 2, (7, 8): 1,
    }  # fmt: skip


def test_equal_walks_whatever_the_partitions(spark: SparkSession) -> None:
    one = counts(Sides(spark, TWO_ISLANDS).visits(walks=30, hops=2))
    several = counts(Sides(spark, TWO_ISLANDS[::-1]).visits(walks=30, hops=2, parts=5))
    assert one == several


def test_an_edge_is_taken_as_often_as_it_weighs(spark: SparkSession) -> None:
    sides = Sides(spark, [(1, 10, 1), (2, 10, 6), (3, 10, 3)])
    found = counts(sides.visits(walks=4000, hops=1))
    assert found[1, 2] / 4000 == pytest.approx(0.6, abs=0.03)
    assert found[1, 3] / 4000 == pytest.approx(0.3, abs=0.03)


def test_a_restart_keeps_walkers_near(spark: SparkSession) -> None:
    chain = [(item, group, 1) for group in range(6) for item in (group, group + 1)]
    far, near = (counts(Sides(spark, chain).visits(walks=200, hops=4, restart=restart)) for restart in (0.0, 0.9))
    beyond = [sum(n for (start, met), n in found.items() if start == 0 and met > 2) for found in (far, near)]
    assert beyond[0] > 10 * max(1, beyond[1])


def test_every_walker_finds_an_edge(spark: SparkSession) -> None:
    sides = Sides(spark, TWO_ISLANDS)
    walkers = walkers_from(sides.edges, 3)
    first = stepped(walkers, sides.of_items, seed=1, step=0)
    assert stepped(first, sides.of_groups, seed=1, step=1).count() == walkers.count() == 15


def test_no_side_of_the_graph_is_broadcast(spark: SparkSession) -> None:
    sides = Sides(spark, TWO_ISLANDS)
    for found in (sides.visits(walks=2, hops=2), drawn_pairs(sides.edges, sides.of_groups, seed=3)):
        plan = found._jdf.queryExecution().optimizedPlan().toString()
        assert plan.count("Join Inner") == plan.count("rightHint=(strategy=merge)") > 0


def test_the_most_visited_come_first_ties_by_key(spark: SparkSession) -> None:
    rows = [(1, 5, 2), (1, 4, 2), (1, 3, 9), (1, 2, 1)]
    found = ranked(spark.createDataFrame(rows, "start long, visited long, visit_count long"), 3)
    expected = [(1, 3, 9, 1), (1, 4, 2, 2), (1, 5, 2, 3)]
    schema = "start long, visited long, visit_count long, rank int"
    assert_df_equality(found, spark.createDataFrame(expected, schema), ignore_row_order=True, ignore_nullable=True)


def test_a_pair_is_two_items_of_one_group(spark: SparkSession) -> None:
    sides = Sides(spark, TWO_ISLANDS)
    pairs = {
        (row["query_item_key"], row["item_key"]) for row in drawn_pairs(sides.edges, sides.of_groups, seed=3).collect()
    }
    assert pairs
    assert pairs <= {(1, 2), (2, 1), (2, 3), (3, 2), (7, 8), (8, 7)}
