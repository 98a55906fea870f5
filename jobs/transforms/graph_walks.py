"""Random walks with restart over the graph, as joins: which items are near an item, and which of its group it may find.

A walker is a row. A step is one join with the alias rows of the side that it stands on (graph_edges.py), by a slot that
a hash of (seed, start, walk, step) draws: nothing is random but by these, no task sees more than its rows, and no
node's neighbours lie in one row, so a hot one is no bottleneck.

Source: Pixie (Eksombatchai et al. 2018, arXiv 1711.07601) for walks over items and what joins them; PinSage (Ying et
al. 2018, arXiv 1806.01973), section 3.1, for neighbours by visits. Differs from the papers: as many walks from every
item, of equal length.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from jobs.transforms.graph_edges import COIN_BITS


def walkers_from(edges: DataFrame, walks: int) -> DataFrame:
    """`walks` walkers at each item of the graph.

    Args:
        edges: Rows of `capped`.
        walks: Walks from every item.
    """
    starts = edges.groupBy("item_key").agg(F.first("item_degree").alias("degree"))
    return starts.select(
        F.col("item_key").alias("start"),
        F.col("degree").alias("start_degree"),
        F.explode(F.sequence(F.lit(0).cast("long"), F.lit(walks - 1).cast("long"))).alias("walk"),
        F.col("item_key").alias("node"),
        "degree",
        F.lit(0).alias("distance"),
    )


def stepped(walkers: DataFrame, alias: DataFrame, *, seed: int, step: int) -> DataFrame:
    """Each walker one edge further.

    The join is by node and slot, of which `alias` has one row each: every walker finds one.

    Args:
        walkers: start, walk, node, degree, and columns that stay.
        alias: `alias_rows` of the side that the walkers stand on.
        seed: graph.seed.
        step: Number of the step, so that no two draws of a walk are alike.
    """
    draw = F.xxhash64(F.lit(seed), F.lit(step), "start", "walk")
    slot = F.pmod(draw, F.col("degree").cast("long")).cast("int")
    aimed = walkers.withColumns({"slot": slot, "coin": _coin(F.xxhash64(draw, F.lit(seed)))})
    kept = [name for name in walkers.columns if name not in ("node", "degree")]
    is_near = F.col("coin") < F.col("coin_below")
    # Never broadcast, whatever Spark takes its size for: the whole graph would lie in the driver.
    return aimed.join(alias.hint("merge"), on=["node", "slot"], how="inner").select(
        *kept,
        F.coalesce(F.when(is_near, F.col("near")), F.col("far")).alias("node"),
        F.coalesce(F.when(is_near, F.col("near_degree")), F.col("far_degree")).alias("degree"),
    )


def _coin(drawn: Column) -> Column:
    return F.shiftrightunsigned(drawn, 64 - COIN_BITS).cast("int")


def _restarted(walkers: DataFrame, *, seed: int, step: int, probability: float) -> DataFrame:
    """Some of the walkers back at their start."""
    coin = _coin(F.xxhash64(F.lit(-seed), F.lit(step), "start", "walk"))
    is_back = coin < F.lit(int(probability * (1 << COIN_BITS)))
    return walkers.withColumns(
        {
            "node": F.coalesce(F.when(is_back, F.col("start")), F.col("node")),
            "degree": F.coalesce(F.when(is_back, F.col("start_degree")), F.col("degree")),
            "distance": F.coalesce(F.when(is_back, F.lit(0)), F.col("distance")),
        }
    )


def visits(
    walkers: DataFrame, of_items: DataFrame, of_groups: DataFrame, *, hops: int, restart: float, seed: int
) -> DataFrame:
    """How often the walkers of each item have met each other item: `start`, `visited`, `visit_count`, `distance`.

    The distance is the least number of groups between both that a walker has found: at 1 they are in a group together.

    Args:
        walkers: Rows of `walkers_from`.
        of_items: `alias_rows` from items to groups.
        of_groups: `alias_rows` from groups to items.
        hops: Items that a walk meets.
        restart: Probability with which it goes on from its start, after each of them.
        seed: graph.seed.
    """
    met = []
    for hop in range(hops):
        if hop and restart:
            walkers = _restarted(walkers, seed=seed, step=hop, probability=restart)
        walkers = stepped(walkers, of_items, seed=seed, step=2 * hop)
        walkers = stepped(walkers, of_groups, seed=seed, step=2 * hop + 1)
        met.append(f"met_{hop}")
        walkers = walkers.withColumn("distance", F.col("distance") + 1)
        walkers = walkers.withColumn(met[-1], F.struct(F.col("node").alias("visited"), "distance"))
    all_met = walkers.select("start", F.inline(F.array(*met)))
    others = all_met.where(F.col("visited") != F.col("start"))
    counted = F.count("*").alias("visit_count"), F.min("distance").alias("distance")
    return others.groupBy("start", "visited").agg(*counted)


def ranked(visits: DataFrame, most: int) -> DataFrame:
    """The items that each item's walkers have met most often, with their `rank` from 1; ties by key.

    Args:
        visits: Rows of `visits`.
        most: Items that are kept of each.
    """
    ranks = Window.partitionBy("start").orderBy(F.desc("visit_count"), "visited")
    return visits.withColumn("rank", F.row_number().over(ranks)).where(F.col("rank") <= most)


def drawn_pairs(edges: DataFrame, of_groups: DataFrame, *, seed: int) -> DataFrame:
    """For each item and group, another member drawn by weight; where the item itself is drawn there is no pair.

    Args:
        edges: Rows of `capped`.
        of_groups: `alias_rows` from groups to items.
        seed: graph.seed.

    Returns:
        query_item_key, item_key, weight.
    """
    walkers = edges.select(
        F.col("item_key").alias("start"),
        F.col("group_key").alias("walk"),
        F.col("group_key").alias("node"),
        F.col("group_degree").alias("degree"),
        "weight",
    )
    drawn = stepped(walkers, of_groups, seed=seed, step=-1).where(F.col("node") != F.col("start"))
    return drawn.select(F.col("start").alias("query_item_key"), F.col("node").alias("item_key"), "weight")
