"""The door of input tables, without a JVM: what is read, whole; what is refused, by file and column, with its cure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from schemas.errors import InputError, TableError
from schemas.input_rows import input_rows
from schemas.input_tables import find_input, look_at_input
from tests.schemas.input_shops import NOON, READ, VISITS, Rows, put


def rows_of(place: Path) -> Rows:
    """What a reader without a JVM finds."""
    found = find_input(str(place), VISITS)
    rows = [tuple(row.values()) for batch in input_rows(found, VISITS.column_names) for row in batch.to_pylist()]
    assert found.rows == len(rows)
    return sorted(rows, key=lambda row: str(row[0]))


@pytest.mark.parametrize(
    "write",
    [pytest.param(write, marks=pytest.mark.fault(fault[0], "recovered", fault[1])) for write, fault in READ.items()],
)
def test_every_row_and_column_is_read(write: Callable[[Path], Rows], tmp_path: Path) -> None:
    expected = sorted(write(tmp_path), key=lambda row: str(row[0]))
    assert rows_of(tmp_path) == expected


def test_what_is_found_is_said(tmp_path: Path) -> None:
    put(tmp_path, "2026/part-0.parquet", visit_id=["a"], country=["de"], Kanal=["app"])
    put(tmp_path, "part-1.parquet", visit_id=["b"])
    for name in ("_SUCCESS", ".part-0.parquet.crc", "_temporary/0/part-9.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert str(find_input(str(tmp_path), VISITS)) == (
        "Parquet, 2 files, 2 rows, 2 of 5 columns; not in every file: country; not there: visit_ts, pages, place; "
        "not read: Kanal; passed over: _SUCCESS, _temporary/0/part-9.parquet"
    )


def test_one_file_is_a_table_too(tmp_path: Path) -> None:
    put(tmp_path, visit_id=["a"])
    assert rows_of(tmp_path / "part-0.parquet") == [("a", None, None, None, None)]


def write_bytes(name: str, content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        put(folder, visit_id=["a"])
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return write


def truncated(folder: Path) -> None:
    put(folder, visit_id=["a"])
    put(folder, "part-1.parquet", visit_id=["b"])
    (folder / "part-1.parquet").write_bytes((folder / "part-1.parquet").read_bytes()[:-20])


def in_delta(folder: Path) -> None:
    write_deltalake(str(folder / "inner"), pa.table({"visit_id": ["a"]}))


def brotli(folder: Path) -> None:
    pq.write_table(pa.table({"visit_id": ["a"]}), folder / "part-0.parquet", compression="brotli")


@pytest.mark.parametrize(
    ("write", "parts"),
    [
        pytest.param(write_bytes("items.csv", b"visit_id,country\na,de\n"), ["items.csv, a file that begins with",
                     "CSV and JSON are not read"], marks=pytest.mark.fault("t04", "loud", "a CSV file")),
        pytest.param(write_bytes("manifest", b'{"entries": []}'), ["/manifest, a file that begins with", "Move it"],
                     marks=pytest.mark.fault("t04", "loud", "a manifest beside Parquet files")),
        pytest.param(write_bytes("x/part-1.parquet", b""), ["/x/part-1.parquet, a file of 0 bytes"],
                     marks=pytest.mark.fault("t04", "loud", "a file of 0 bytes")),
        pytest.param(truncated, ["/part-1.parquet, a damaged one"],
                     marks=pytest.mark.fault("t04", "loud", "a file whose end is missing")),
        pytest.param(in_delta, ["found a Delta table at inner", "Name a Delta table itself"],
                     marks=pytest.mark.fault("door", "loud", "a Delta table inside the named folder")),
        pytest.param(write_bytes(".hoodie/hoodie.properties", b"x"), ["an Apache Hudi table", "export"],
                     marks=pytest.mark.fault("door", "loud", "a Hudi table as a folder of Parquet files")),
        pytest.param(brotli, ["BROTLI in", "zstd or snappy"],
                     marks=pytest.mark.fault("door", "loud", "a compression that Spark cannot read")),
        pytest.param(lambda folder: (folder / "_delta_log").mkdir(), ["_delta_log without a commit", "Restore"],
                     marks=pytest.mark.fault("t04", "loud", "a Delta log without a commit")),
        (lambda folder: None, ["no file of data in the folder", "correct the URI"]),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused_by_file(write: Callable[[Path], Any], parts: list[str], tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(TableError) as caught:
        look_at_input(str(tmp_path), VISITS)
    said = str(caught.value)
    assert said.startswith("table visits, column (all): expected")
    assert all(part in said for part in parts), said


@pytest.mark.fault("C5", "loud", "too little memory for a footer, which is not a damaged one")
def test_want_of_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise pa.ArrowMemoryError("malloc of size 4096 failed")

    put(tmp_path, visit_id=["a"])
    monkeypatch.setattr(pq, "ParquetFile", fail)
    with pytest.raises(MemoryError, match="malloc of size 4096"):
        look_at_input(str(tmp_path), VISITS)


@pytest.mark.fault("door", "loud", "a partition's folder of a Delta table, named as if it were the table")
def test_a_part_of_a_delta_table_is_refused(tmp_path: Path) -> None:
    rows = pa.table({"visit_id": ["a"], "country": ["de"]})
    write_deltalake(str(tmp_path), rows, partition_by=["country"])
    with pytest.raises(TableError, match=r"a part of the Delta table .* Name the whole table"):
        find_input(f"{tmp_path}/country=de", VISITS)


def test_a_place_that_is_not_there_and_a_uri_that_nobody_opens_are_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=f"a Delta or Parquet table at {tmp_path}/x; found nothing there"):
        find_input(f"{tmp_path}/x", VISITS)
    with pytest.raises(InputError, match=r"table visits, inputs.visits: expected a path or a URI"):
        find_input("s3a://bucket/visits", VISITS)


@pytest.mark.parametrize(
    ("columns", "column", "parts"),
    [
        pytest.param({"visit_id": ["a"], "Country": ["de"], "country": ["fr"]}, "country",
                     ["found Country and country", "Rename or drop"],
                     marks=pytest.mark.fault("t07", "loud", "two columns that differ by letter case only")),
        pytest.param({"visit": ["a"]}, "visit_id", ["no such column among visit.", "Add or rename"],
                     marks=pytest.mark.fault("t07", "loud", "an id column under another name")),
        pytest.param({"visit_id": [1.0]}, "visit_id", ["type double", "no ids: cast them to bigint and then to string"],
                     marks=pytest.mark.fault("door", "loud", "ids that pandas has made floats")),
        pytest.param({"visit_id": pa.nulls(2)}, "visit_id", ["found type null: not one value"],
                     marks=pytest.mark.fault("t03", "loud", "an id column of nulls only")),
        pytest.param({"visit_id": ["a"], "visit_ts": [datetime(2026, 1, 1)]}, "visit_ts", ["which zone"],
                     marks=pytest.mark.fault("t02", "loud", "times without a zone")),
        pytest.param({"visit_id": ["a"], "visit_ts": pa.array([NOON], pa.timestamp("ns"))}, "visit_ts",
                     ["type timestamp[ns]", "which zone"],
                     marks=pytest.mark.fault("t02", "loud", "nanoseconds without a zone")),
        pytest.param({"visit_id": ["a"], "visit_ts": [date(2026, 1, 1)]}, "visit_ts", ["no time of day"],
                     marks=pytest.mark.fault("door", "loud", "a date where an instant is meant")),
        pytest.param({"visit_id": ["a"], "visit_ts": [1_767_225_600]}, "visit_ts", ["timestamp_seconds"],
                     marks=pytest.mark.fault("door", "loud", "seconds where an instant is meant")),
    ],
)  # fmt: skip
def test_a_column_at_fault_is_named_with_its_cure(
    columns: dict[str, Any], column: str, parts: list[str], tmp_path: Path
) -> None:
    put(tmp_path, **columns)
    with pytest.raises(TableError) as caught:
        find_input(str(tmp_path), VISITS)
    assert (caught.value.table, caught.value.column) == ("visits", column)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.fault("t01b", "loud", "text ids in one file of a folder and integers in another")
def test_files_that_contradict_each_other_are_named(tmp_path: Path) -> None:
    put(tmp_path, "part-0.parquet", visit_id=["a"])
    put(tmp_path, "part-1.parquet", visit_id=[1])
    put(tmp_path, "part-2.parquet", country=["de"])
    with pytest.raises(TableError) as caught:
        find_input(str(tmp_path), VISITS)
    assert "column visit_id: expected type string in every file" in str(caught.value)
    assert "found type int64 in part-1.parquet, and string in part-0.parquet" in str(caught.value)
    (tmp_path / "part-1.parquet").unlink()
    with pytest.raises(TableError, match=r"column visit_id: .*no such column among country in part-2\.parquet"):
        find_input(str(tmp_path), VISITS)


def test_a_delta_table_is_read_at_one_version_with_its_folders_and_without_what_was_removed(tmp_path: Path) -> None:
    rows = pa.table({"Visit_Id": ["a", "b", "c"], "country": ["de", "007", None]})
    write_deltalake(str(tmp_path), rows.slice(0, 0), partition_by=["country"])
    assert rows_of(tmp_path) == []
    write_deltalake(str(tmp_path), rows, mode="append")
    DeltaTable(str(tmp_path)).delete("Visit_Id = 'a'")
    assert rows_of(tmp_path) == [("b", None, "007", None, None), ("c", None, None, None, None)]
    assert str(find_input(str(tmp_path), VISITS)).startswith("Delta version 2, 2 files, 2 rows, 2 of 5 columns")


@pytest.mark.fault("t06", "recovered", "bytes that are no UTF-8 in a text that the summary or doctor shows")
def test_a_text_that_is_no_utf8_does_not_stop_a_reader(tmp_path: Path) -> None:
    _, offsets, content = pa.array([b"a", b"caf\xe9"]).buffers()
    texts = pa.Array.from_buffers(pa.string(), 2, [None, offsets, content])
    put(tmp_path, visit_id=texts, pages=pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), texts))
    assert [(row[0], row[3]) for row in rows_of(tmp_path)] == [("a", ["a"]), ("caf�", ["caf�"])]


@pytest.mark.fault("door", "loud", "a link to nothing, and a link by which a folder holds itself")
def test_links_that_hide_or_repeat_rows_are_refused(tmp_path: Path) -> None:
    put(tmp_path, visit_id=["a"])
    (tmp_path / "part-9.parquet").symlink_to(tmp_path / "gone.parquet")
    with pytest.raises(TableError, match=r"found a link to nothing: .*part-9\.parquet"):
        find_input(str(tmp_path), VISITS)
    (tmp_path / "part-9.parquet").unlink()
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.raises(TableError, match=r"each file once .*once more"):
        find_input(str(tmp_path), VISITS)
    (tmp_path / "loop").unlink()
    assert rows_of(tmp_path) == [("a", None, None, None, None)]


@pytest.mark.fault("t03", "recovered", "lists that are all empty, of which Arrow knows no type")
def test_a_column_of_empty_lists_says_nothing(tmp_path: Path) -> None:
    put(tmp_path, visit_id=["a"], pages=pa.array([[]], pa.list_(pa.null())))
    assert rows_of(tmp_path) == [("a", None, None, None, None)]
