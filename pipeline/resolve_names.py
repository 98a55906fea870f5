"""Ask Spark's catalog where the tables lie that the settings have by name, and write it down: `itemsage names`.

Every job does the same for what it reads. This is for whoever wants to know before the first one, such as `doctor`.

    spark-submit --properties-file spark-defaults.conf pipeline/resolve_names.py --settings shop.toml
"""

from __future__ import annotations

from pyspark.sql import SparkSession

from jobs.runtime import catalog
from jobs.runtime.session import open_session
from schemas.command_line import exit_code_of_errors, settings_of, settings_parser
from schemas.settings import Settings


def resolve(spark: SparkSession, settings: Settings) -> None:
    """Find every input table that has a name, and print its place.

    Raises:
        InputError: as of `catalog.bind_inputs`.
    """
    names = [table for table in settings.input_tables if settings.input_name(table.name)]
    catalog.bind_inputs(spark, settings, names)
    for table in names:
        print(f"  {table.name}: {settings.input_name(table.name)} at {settings.table_uri(table.name)}", flush=True)
    if not names:
        print("  [inputs] has no name: every table is known by its place", flush=True)


def main() -> None:
    """Entry point of spark-submit."""
    arguments = settings_parser("names", __doc__).parse_args()
    with exit_code_of_errors():
        settings = settings_of(arguments)
        spark = open_session("names", settings.warehouse)
        try:
            resolve(spark, settings)
        finally:
            spark.stop()


if __name__ == "__main__":
    main()
