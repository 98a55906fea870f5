"""Tables by name through Spark's catalog, whatever plugin it is: where they lie, and their names for what jobs write.

Places are written down for processes without Spark (schemas/names.py). Our own tables are external ones: a name for
what lies in the warehouse. So dropping a name loses no row, and what Python has written is named by the next job.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from jobs.runtime.litter import table_folders
from schemas.columns import Table
from schemas.errors import InputError, TableError
from schemas.input_tables import InputTable
from schemas.names import Located, located, parts_of, quoted, write_note
from schemas.records import TableVersion
from schemas.settings import Settings
from schemas.stages import Stage
from schemas.tables import ITEM_IMAGES
from schemas.warehouse import Warehouse

_DETAILS = "# Detailed Table Information"
"""What DESCRIBE TABLE EXTENDED says after the columns, of which one may be called Location."""


def find(spark: SparkSession, name: str) -> Located | None:
    """Where a table lies; None where the catalog has none of this name.

    Raises:
        InputError: Spark knows no such catalog, or as of `located`.
    """
    try:
        if not spark.catalog.tableExists(quoted(*parts_of(name))):
            return None
        rows = spark.sql("DESCRIBE TABLE EXTENDED IDENTIFIER(:name)", {"name": quoted(*parts_of(name))}).collect()
    except PySparkException as error:
        raise _refused(name, "a table of a catalog that Spark can ask", error) from error
    names = [row["col_name"] for row in rows]
    details = {row["col_name"]: row["data_type"] for row in rows[names.index(_DETAILS) + 1 :]}
    kind = details.get("Provider", "")
    if kind.lower() == "hive":
        kind = "parquet" if "parquet" in details.get("Serde Library", "").lower() else details.get("Serde Library", "")
    return located(name, "" if details.get("Type") == "VIEW" else details.get("Location", ""), kind)


def bind(spark: SparkSession, settings: Settings, stage: Stage[Any]) -> None:
    """Before a stage begins: find the tables that it reads by name, and see that the names that it gives are free.

    Raises:
        InputError: as of `bind_inputs`, or a name that the stage gives is that of a table at another place.
    """
    bind_inputs(spark, settings, stage.reads)
    for table in stage.writes:
        name = settings.table_name(table.name)
        if not name or "<" in name:
            continue
        found = find(spark, name)
        if settings.input_name(table.name):  # of whoever makes the inputs, such as the demo
            if found and found.format != "delta":
                where, cure = (f"table {name}", ""), "Drop it, or give the table that is made another name."
                raise InputError(*where, expected="no table, or a Delta table", found=found.format, cure=cure)
            write_note(settings.layout, found or Located(name, settings.layout.table(table.name), "delta"))
        elif found:
            _require_place(found, settings.table_uri(table.name))


def bind_inputs(spark: SparkSession, settings: Settings, tables: Iterable[Table]) -> None:
    """Find those of some tables that the settings have by name, and write down where they lie.

    Raises:
        InputError: as of `find`, or the catalog has no such table.
    """
    for table in tables:
        name = settings.input_name(table.name)
        if not name or (table is ITEM_IMAGES and not settings.inputs.has_images):
            continue
        found = find(spark, name)
        if found is None:
            cure = f"Correct inputs.{table.name}. Is it a path, write ./ before it."
            raise InputError(f"table {name}", "", expected="a table in Spark's catalog", found="none", cure=cure)
        write_note(settings.layout, found)


def register(spark: SparkSession, settings: Settings, written: Iterable[TableVersion]) -> None:
    """After a stage: give their names to the tables that it wrote, and to those of the warehouse that have none yet.

    Raises:
        InputError: the catalog does not let us, or has another table under the name.
    """
    places = {settings.table_name(one.table): one.uri for one in written}
    if schema := settings.warehouse.name:
        known = _tables_of(spark, schema)
        ours = {uri.rpartition("/")[2]: uri for uri in table_folders(settings.layout)}
        places |= {settings.table_name(name): uri for name, uri in ours.items() if name.lower() not in known}
    for name, uri in places.items():
        if name:
            _register(spark, name, uri)


def require_same_rows(spark: SparkSession, name: str, found: InputTable, count: int) -> None:
    """Refuse a Parquet table of which the catalog shows other rows than lie at its place.

    Its partitions may lie elsewhere, or not be known to the catalog, or a rule may hide rows.

    Raises:
        TableError: the numbers differ.
    """
    spark.catalog.refreshTable(quoted(*parts_of(name)))
    shown = spark.table(quoted(*parts_of(name))).count()
    if shown != count:
        raise TableError(
            found.table.name,
            "(all)",
            expected=f"the {count:,} rows of the files at {found.uri}, the place of {name}",
            found=f"{shown:,} rows by that name",
            cure="Register its partitions (MSCK REPAIR TABLE), or save it as a Delta table.",
        )


def _tables_of(spark: SparkSession, schema: str) -> set[str]:
    """Names of the tables in a schema, in lower case; the schema is made if there is none."""
    name = quoted(*parts_of(schema))
    try:
        if not spark.catalog.databaseExists(name):
            spark.sql("CREATE SCHEMA IF NOT EXISTS IDENTIFIER(:name)", {"name": name})
        rows = spark.sql("SHOW TABLES IN IDENTIFIER(:name)", {"name": name}).collect()
    except PySparkException as error:
        raise _refused(schema, "a schema that may be listed, or made", error) from error
    return {row["tableName"].lower() for row in rows if not row["isTemporary"]}


def _register(spark: SparkSession, name: str, uri: str) -> None:
    try:
        if find(spark, name) is None:
            *schema, _ = parts_of(name)
            _tables_of(spark, quoted(*schema))
            spark.catalog.createTable(quoted(*parts_of(name)), path=uri, source="delta")
    except PySparkException as error:
        if find(spark, name) is None:  # else another stage was first
            raise _refused(name, f"leave to register {uri}", error) from error
    _require_place(find(spark, name), uri)


def _require_place(found: Located | None, uri: str) -> None:
    if found and not _is_same(found.uri, uri):
        raise InputError(
            f"table {found.name}",
            "",
            expected=f"the name of what lies at {uri}",
            found=f"that of a table at {found.uri}",
            cure="Drop it (DROP TABLE leaves the files of an external table), or set another warehouse.name.",
        )


def _is_same(first: str, second: str) -> bool:
    return Warehouse(first).place() == Warehouse(second.removeprefix("file://")).place()


def _refused(name: str, expected: str, error: PySparkException) -> InputError:
    """What Spark says of a name; what it has no word of its own for, such as a metastore that is down, as it is."""
    if not error.getCondition():
        raise error
    found = str(error).splitlines()[0]
    cure = "Correct the name, or give Spark the catalog (docs/cluster.md)."
    return InputError(f"table {name}", "", expected=expected, found=found, cure=cure)
