"""A job script for tests of a Hive metastore: tables of a warehouse saved by name, or rows of named tables counted.

spark-submit ... tests/scripts/hive_shop.py --settings shop.toml --save FROM     managed tables of all named inputs
spark-submit ... tests/scripts/hive_shop.py --settings shop.toml --show          JSON: table -> its rows, by SQL
"""

from __future__ import annotations

import json

from pyspark.sql import SparkSession

from jobs.runtime.session import open_session
from schemas.command_line import exit_code_of_errors, settings_of, settings_parser
from schemas.names import parts_of, quoted
from schemas.settings import Settings
from schemas.tables import ENGAGEMENT_LOGS, INPUTS, ITEMS, QUERIES

PARQUET = {ENGAGEMENT_LOGS.name: "event_date", QUERIES.name: ""}
"""Inputs that are saved as Parquet, and the column that they are partitioned by; the others are Delta tables."""


def save(spark: SparkSession, settings: Settings, source: str) -> None:
    """Save the inputs of another warehouse as managed tables, under the names that the settings give them."""
    for table in INPUTS:
        name = settings.input_name(table.name)
        spark.sql("CREATE SCHEMA IF NOT EXISTS IDENTIFIER(:name)", {"name": quoted(*parts_of(name)[:-1])})
        rows = spark.read.format("delta").load(f"{source}/{table.name}")
        if table.name not in PARQUET:
            rows.write.format("delta").saveAsTable(name)
            continue
        writer = rows.write.format("parquet")
        if partition := PARQUET[table.name]:
            writer = rows.selectExpr("*", "date(event_ts) AS event_date").write.format("parquet").partitionBy(partition)
        writer.saveAsTable(name)


def show(spark: SparkSession, settings: Settings) -> dict[str, int]:
    """The rows of every table in the warehouse's schema, by SQL and its name alone."""
    schema = settings.warehouse.name
    names = [row["tableName"] for row in spark.sql("SHOW TABLES IN IDENTIFIER(:s)", {"s": schema}).collect()]
    names = [quoted(*parts_of(schema), name) for name in names] + [settings.input_name(ITEMS.name)]
    counts = [spark.sql("SELECT count(*) AS n FROM IDENTIFIER(:t)", {"t": name}).collect()[0]["n"] for name in names]
    return dict(zip((parts_of(name)[-1] for name in names), counts, strict=True))


def main() -> None:
    parser = settings_parser("hive_shop", __doc__)
    parser.add_argument("--save", default="")
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    with exit_code_of_errors():
        settings = settings_of(arguments)
        spark = open_session("hive_shop", settings.warehouse)
        try:
            if arguments.save:
                save(spark, settings, arguments.save)
            if arguments.show:
                print(json.dumps(show(spark, settings)))
        finally:
            spark.stop()


if __name__ == "__main__":
    main()
