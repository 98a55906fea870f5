"""The door of input tables through Spark: the rows that a reader without a JVM finds, and proof that all are read."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from pyspark.sql import SparkSession

from jobs.runtime.input_tables import count_rows, read_input, require_all_rows
from schemas.errors import TableError
from schemas.input_rows import input_rows
from schemas.input_tables import find_input
from schemas.tables import ITEM_IMAGES
from tests.schemas.input_shops import READ, VISITS, Rows, put


def rows_of(spark: SparkSession, place: Path | str) -> Rows:
    found = find_input(str(place), VISITS)
    rows = read_input(spark, found).selectExpr("*", "unix_micros(visit_ts) AS micros").collect()
    require_all_rows(spark, found, len(rows))
    assert all(row["visit_ts"] is None or row["micros"] is not None for row in rows)
    return sorted((_plain(row) for row in rows), key=lambda row: str(row[0]))


def _plain(row: Any) -> tuple[Any, ...]:
    """A row as Arrow shows it, its instant in UTC rather than in the time of this machine."""
    when = row["visit_ts"] and row["visit_ts"].astimezone(timezone.utc)
    return (row["visit_id"], when, row["country"], row["pages"], row["place"])


@pytest.mark.parametrize(
    "write",
    [pytest.param(write, marks=pytest.mark.fault(fault[0], "recovered", fault[1])) for write, fault in READ.items()],
)
def test_spark_reads_what_a_reader_without_a_jvm_reads(
    spark: SparkSession, write: Callable[[Path], Rows], tmp_path: Path
) -> None:
    expected = sorted(write(tmp_path), key=lambda row: str(row[0]))
    assert rows_of(spark, tmp_path) == expected


@pytest.mark.fault("t03", "recovered", "positions as integers of other lengths, some of which 32 bits do not hold")
def test_longer_integers_are_taken_where_they_fit(spark: SparkSession, tmp_path: Path) -> None:
    kinds = (pa.int64(), pa.uint64(), pa.uint32(), pa.int32(), pa.int8())
    for number, kind in enumerate(kinds):
        positions = [number, None, 3_000_000_000] if number < 3 else [number, None]
        put(tmp_path / "files", f"{kind}.parquet", item_id=[str(kind)] * len(positions),
            position=pa.array(positions, kind), image_embedding=[[1.0]] * len(positions))  # fmt: skip
    longer = pa.table({"item_id": ["d"] * 2, "position": [7, -(2**31) - 1], "image_embedding": [[1.0]] * 2})
    write_deltalake(f"{tmp_path}/delta", longer)
    for place, counts in (("files", [0, 1, 2, 3, 4, *[None] * 8]), ("delta", [7, None])):
        found = find_input(f"{tmp_path}/{place}", ITEM_IMAGES)
        by_arrow = [row for batch in input_rows(found, ["item_id", "position"]) for row in batch.to_pylist()]
        by_spark = [row.asDict() for row in read_input(spark, found).select("item_id", "position").collect()]
        assert sorted(map(str, by_spark)) == sorted(map(str, by_arrow))
        assert sorted((row["position"] for row in by_spark), key=lambda n: (n is None, n)) == counts


@pytest.mark.fault("t15", "recovered", "an input with column mapping, deletion vectors and folders of values")
def test_mapped_columns_and_deleted_rows_are_the_same_to_all_readers(spark: SparkSession, tmp_path: Path) -> None:
    place = f"{tmp_path}/delta"
    rows = spark.createDataFrame([(f"v{n}", "de" if n % 2 else None, ["p"]) for n in range(9)],
                                 "Visit_Id string, country string, pages array<string>")  # fmt: skip
    writer = rows.coalesce(1).write.format("delta").partitionBy("country")
    writer = writer.option("delta.columnMapping.mode", "name").option("delta.enableDeletionVectors", "true")
    writer.save(place)
    spark.sql(f"DELETE FROM delta.`{place}` WHERE Visit_Id IN ('v3', 'v8')")
    expected = [(f"v{n}", None, "de" if n % 2 else None, ["p"], None) for n in (0, 1, 2, 4, 5, 6, 7)]
    assert rows_of(spark, place) == expected
    found = find_input(place, VISITS)
    batches = input_rows(found, VISITS.column_names)
    assert sorted(tuple(row.values()) for batch in batches for row in batch.to_pylist()) == expected
    assert str(found).startswith("Delta version 1, 2 files, 7 rows, 3 of 5 columns")


@pytest.mark.fault("t01", "loud", "a file that changes between the look at its footer and its reading")
def test_rows_that_are_not_those_of_the_footers_are_refused_by_file(spark: SparkSession, tmp_path: Path) -> None:
    put(tmp_path, "part-0.parquet", visit_id=["a", "b"])
    put(tmp_path, "ein Laden/part-1.parquet", visit_id=["c", "d"])
    found = find_input(str(tmp_path), VISITS)
    put(tmp_path, "ein Laden/part-1.parquet", visit_id=["c"])
    count = read_input(spark, found).count()
    with pytest.raises(TableError) as caught:
        require_all_rows(spark, found, count)
    assert "table visits, column (all): expected the 4 rows that the 2 files at" in str(caught.value)
    assert f"found 3 rows read by Spark: {tmp_path}/ein Laden/part-1.parquet has 1 instead of 2." in str(caught.value)


@pytest.mark.fault("t01", "loud", "a Delta log that counts other rows than its files hold")
def test_rows_that_are_not_those_of_the_log_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    write_deltalake(str(tmp_path), pa.table({"visit_id": ["a", "b"]}))
    (file,) = tmp_path.glob("*.parquet")
    pq.write_table(pa.table({"visit_id": ["a"]}), file)
    found = find_input(str(tmp_path), VISITS)
    with pytest.raises(TableError, match=r"expected the 2 rows that version 0 .* holds by its log; found 1 rows"):
        require_all_rows(spark, found, count_rows(spark, read_input(spark, found)))
