"""Turn the raw invoice lines of UCI "Online Retail" into the pipeline's input tables.

Reads: the archive of daily CSV files, in place.
Writes: items, queries, engagement_logs; raw_rows_accounting, rejected_raw_rows.
One row is: one stock code; one stock code seen as a query; one ordered pair of items in one basket,
    of which the second was checked out, or returned.
Safe to rerun because: every tie is broken by content, and each table is replaced in one commit.

    spark-submit --properties-file spark-defaults.conf examples/online_retail/prepare.py \
        --data by-day.tar.xz --settings examples/online_retail/settings.toml

A basket has no query in the sense of the paper: each of its items is taken as the closeup a shopper came from, and
every other one as what was then checked out; what was sent back is a return, see returns.py. With --cold only a small,
cold slice of the checkouts is written; see cold.py.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from functools import partial

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from examples.accounting import print_accounting
from examples.online_retail.cold import cold_slice
from examples.online_retail.raw_rows import (
    RAW_ROWS,
    RAW_ROWS_ACCOUNTING,
    REJECTED_RAW_ROWS,
    checked_lines,
    read_archive,
    split_rows,
)
from examples.online_retail.returns import returned_lines, without_returned
from jobs.runtime import command_line
from jobs.runtime.job_run import JobRun
from jobs.transforms.quarantine import accepted
from schemas.errors import SettingsError
from schemas.records import TableVersion
from schemas.settings import Settings
from schemas.stages import Stage
from schemas.tables import ENGAGEMENT_LOGS, ITEMS, QUERIES


@dataclass(frozen=True)
class RawRowMetrics:
    """What became of every raw row: reason, or `used` or `returned` -> rows."""

    raw_rows: dict[str, int]


STAGE = Stage(
    "prepare_online_retail",
    (RAW_ROWS,),
    (ITEMS, QUERIES, ENGAGEMENT_LOGS, REJECTED_RAW_ROWS, RAW_ROWS_ACCOUNTING),
    RawRowMetrics,
)

COLORS = (
    "aqua beige black blue brown copper cream gold green grey ivory lilac mint navy orange pink purple red silver "
    "turquoise violet white yellow"
)
MATERIALS = (
    "acrylic bamboo bead ceramic china cotton crystal diamante enamel fabric feather felt glass iron knitted lace "
    "leather metal paper pearl plastic porcelain rubber satin shell silk steel stone tin velvet wax wicker wire wood "
    "wooden wool zinc"
)
"""Words that, in a title, name a colour or a material."""


def build_items(purchases: DataFrame) -> DataFrame:
    """One row per stock code ever sold: its most frequent name (ties by name), colours and materials out of it."""
    counted = purchases.groupBy("item_id", "title").agg(F.count("*").alias("line_count"))
    most_frequent = F.min(F.struct((-F.col("line_count")).alias("minus_count"), "title"))
    items = counted.groupBy("item_id").agg(most_frequent.getField("title").alias("title"))
    return items.withColumns({"colors": _words_of_title(COLORS), "materials": _words_of_title(MATERIALS)})


def build_queries(items: DataFrame) -> DataFrame:
    """Every item as a closeup query; embed_queries makes its embedding from the title."""
    return items.select(
        _query_id("item_id").alias("query_id"),
        F.lit("closeup").alias("query_kind"),
        F.col("title").alias("text"),
        F.col("item_id").alias("query_item_id"),
    )


def build_returns(returned: DataFrame, used: DataFrame) -> DataFrame:
    """One return per cancelled invoice, returned item and other item of the basket that it was bought in.

    At most 19 rows of `used` meet a row of `returned`; lines that cancel the same again say nothing new.
    """
    queries = used.select(F.col("invoice_no").alias("basket"), F.col("item_id").alias("query_item_id"))
    pairs = returned.join(queries, on="basket", how="inner").where(F.col("query_item_id") != F.col("item_id"))
    once = pairs.groupBy("invoice_no", "basket", "query_item_id", "item_id", "user_id")
    return once.agg(F.min("event_ts").alias("event_ts")).select(
        F.concat_ws("|", "invoice_no", "basket", "query_item_id", "item_id").alias("event_id"),
        "event_ts",
        "user_id",
        _query_id("query_item_id").alias("query_id"),
        "item_id",
        F.lit("return").alias("engagement"),
    )


def build_engagement_logs(used: DataFrame) -> DataFrame:
    """One checkout per ordered pair of distinct items in a basket.

    The self-join is on invoice_no, where neither side is unique: at most 20 rows meet 20.
    """
    queries = used.select("invoice_no", "event_ts", "user_id", F.col("item_id").alias("query_item_id"))
    pairs = queries.join(used.select("invoice_no", "item_id"), on="invoice_no", how="inner")
    return pairs.where(F.col("query_item_id") != F.col("item_id")).select(
        F.concat_ws("|", "invoice_no", "query_item_id", "item_id").alias("event_id"),
        "event_ts",
        "user_id",
        _query_id("query_item_id").alias("query_id"),
        "item_id",
        F.lit("checkout").alias("engagement"),
    )


def build_accounting(used: DataFrame, returned: DataFrame, rejected: DataFrame) -> DataFrame:
    """Count what became of every raw row."""
    fates = used.select(F.lit("used").alias("reason")).unionByName(rejected.select("reason"))
    fates = fates.unionByName(returned.select(F.lit("returned").alias("reason")))
    return fates.groupBy("reason").agg(F.count("*").alias("row_count"))


def run(spark: SparkSession, settings: Settings, archive: str | None, *, is_cold: bool = False) -> None:
    """Read the archive, split its rows, write the input tables (or a cold slice of the log) and the accounting."""
    if archive is None:
        raise SettingsError("--data: name the archive of daily CSV files, by-day.tar.xz")
    settings.require_allowed("--data", archive)
    with JobRun(spark, settings, STAGE) as job:
        raw_rows = read_archive(archive)
        job.count_input(TableVersion(RAW_ROWS.name, archive, None, raw_rows.num_rows))
        # Spark cuts an Arrow table into a partition per 2,048 rows; one per core is enough for 50 MB.
        lines = checked_lines(spark.createDataFrame(raw_rows).coalesce(spark.sparkContext.defaultParallelism)).persist()
        used, refused = (rows.persist() for rows in split_rows(lines))
        returned = returned_lines(lines, used).persist()
        rejected = without_returned(refused, returned).persist()
        items = build_items(accepted(lines)).persist()
        job.write(items, ITEMS)
        job.write(build_queries(items), QUERIES)
        checkouts = build_engagement_logs(used)
        whole = checkouts.unionByName(build_returns(returned, used))
        job.write(cold_slice(checkouts, settings.dates) if is_cold else whole, ENGAGEMENT_LOGS)
        job.write_rejected(rejected, REJECTED_RAW_ROWS)
        accounting = build_accounting(used, returned, rejected).persist()
        job.write(accounting, RAW_ROWS_ACCOUNTING)
        counts = {row["reason"]: int(row["row_count"]) for row in accounting.collect()}
        for kept in (accounting, items, rejected, returned, refused, used, lines):
            kept.unpersist()
        job.metrics = RawRowMetrics(counts)
        print_accounting(RAW_ROWS, "raw row", counts, raw_rows.num_rows, kept=("used", "returned"))


def _query_id(item_id: str) -> Column:
    return F.concat(F.lit("item:"), item_id)


def _words_of_title(words: str) -> Column:
    of_title = F.split(F.lower("title"), "[^a-z]+")
    return F.array_intersect(of_title, F.array(*[F.lit(word) for word in words.split()]))


def main() -> None:
    """Run from the command line: --data and --cold are ours, the rest is as for every job."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data")
    parser.add_argument("--cold", action="store_true")
    arguments, sys.argv[1:] = parser.parse_known_args()
    command_line.main(STAGE, partial(run, archive=arguments.data, is_cold=arguments.cold), __doc__)


if __name__ == "__main__":
    main()
