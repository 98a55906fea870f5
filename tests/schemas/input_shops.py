"""Input tables as other engines, and accidents, leave them; for the tests of whoever reads them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.columns import Column, Table

VISITS = Table(
    "visits",
    "one visit",
    (
        Column("visit_id", "string", "the visit"),
        Column("visit_ts", "timestamp", "when it was, UTC", nullable=True, optional=True),
        Column("country", "string", "where from", nullable=True, optional=True),
        Column("pages", "strings", "what was seen", nullable=True, optional=True),
        Column("place", "vector", "where it led", nullable=True, optional=True),
    ),
    key=("visit_id",),
)

NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
EARLY = datetime(1960, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=1)
Rows = list[tuple[Any, ...]]


def put(folder: Path, name: str = "part-0.parquet", *, int96: bool = False, **columns: Any) -> None:
    """Write one file."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, use_deprecated_int96_timestamps=int96)


def columns_that_came_later(folder: Path) -> Rows:
    put(folder, "part-0-of-2024.parquet", visit_id=["a"])
    put(folder, "part-1-of-2026.parquet", visit_id=["b"], country=["de"], pages=[["p", "q"]])
    return [("a", None, None, None, None), ("b", None, "de", ["p", "q"], None)]


def letter_cases(folder: Path) -> Rows:
    put(folder, "part-0.parquet", Visit_ID=["a"], COUNTRY=["de"])
    put(folder, "part-1.parquet", visit_id=["b"], country=["fr"])
    return [("a", None, "de", None, None), ("b", None, "fr", None, None)]


def more_files_than_are_named_one_by_one(folder: Path) -> Rows:
    for number in range(40):
        put(folder, f"day={number % 7}/part-{number:02}.parquet", visit_id=[f"v{number:02}"], **{"Note": [1]})
    put(folder, "late.parquet", visit_id=["w"], country=["de"])
    (folder / "day=1" / "_SUCCESS").write_bytes(b"")
    return [*((f"v{number:02}", None, None, None, None) for number in range(40)), ("w", None, "de", None, None)]


def folders_in_folders(folder: Path) -> Rows:
    put(folder, "latest.parquet", visit_id=["a"])
    put(folder, "2026/01/part.parquet", visit_id=["b"])
    put(folder, "2026/02/part.parquet", visit_id=["c"])
    return [(name, None, None, None, None) for name in "abc"]


def folders_that_are_values(folder: Path) -> Rows:
    """As Hive and Spark name them: 007 is no number, an escape is a character, and a null has a name of its own."""
    put(folder, "dt=2026-01-01/Country=007/part.parquet", visit_id=["a"])
    put(folder, "dt=2026-01-02/country=x%2Fy +1/part.parquet", visit_id=["b"])
    put(folder, "country=__HIVE_DEFAULT_PARTITION__/part.parquet", visit_id=["c"])
    put(folder, "part.parquet", visit_id=["d"])
    countries = {"a": "007", "b": "x/y +1", "c": None, "d": None}
    return [(name, None, country, None, None) for name, country in countries.items()]


def instants_of_any_unit(folder: Path) -> Rows:
    for unit, zone in (("ns", "UTC"), ("ms", "UTC"), ("us", "Europe/London")):
        put(folder, f"{unit}.parquet", visit_id=[unit], visit_ts=pa.array([NOON], pa.timestamp(unit, zone)))
    early = pa.array([EARLY], pa.timestamp("us", "UTC")).cast(pa.timestamp("ns", "UTC"))
    put(folder, "early.parquet", visit_id=["early"], visit_ts=early)
    put(folder, "int96.parquet", int96=True, visit_id=["int96"], visit_ts=pa.array([NOON], pa.timestamp("us", "UTC")))
    instants = {"early": EARLY, "int96": NOON, "ms": NOON, "ns": NOON, "us": NOON}
    return [(name, instant, None, None, None) for name, instant in instants.items()]


def types_of_other_writers(folder: Path) -> Rows:
    numbers = [[1.0, 2.0], None]
    put(folder, "dictionary.parquet", visit_id=pa.array(["a", "b"]).dictionary_encode(), pages=["p", None],
        place=pa.array(numbers, pa.list_(pa.float64())))  # fmt: skip
    put(folder, "large.parquet", visit_id=pa.array(["c", "d"], pa.large_string()),
        pages=pa.array([["p"], []], pa.large_list(pa.large_string())),
        place=pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)))  # fmt: skip
    put(folder, "null.parquet", visit_id=["e"], country=pa.nulls(1), visit_ts=pa.nulls(1), pages=pa.nulls(1))
    return [
        ("a", None, None, ["p"], [1.0, 2.0]), ("b", None, None, None, None), ("c", None, None, ["p"], [1.0, 2.0]),
        ("d", None, None, [], [3.0, 4.0]), ("e", None, None, None, None),
    ]  # fmt: skip


def numbers_as_ids(folder: Path) -> Rows:
    put(folder, "part-0.parquet", visit_id=pa.array([7, 12_345_678_901_234_567_890], pa.uint64()))
    put(folder, "part-1.parquet", visit_id=pa.array([8, 9], pa.int32()))
    put(folder, "part-2.parquet", visit_id=pa.array([10], pa.int64()).cast(pa.decimal128(38, 0)))
    put(folder, "part-3.parquet", visit_id=pa.nulls(1))
    ids = ["10", "12345678901234567890", "7", "8", "9", None]
    return [(name, None, None, None, None) for name in ids]


def names_with_patterns(folder: Path) -> Rows:
    """Brackets are no pattern, and a percent sign is no escape."""
    put(folder / "a [1] {b,c} *? #1 50%20 ü", "part-0 [x].parquet", visit_id=["a"])
    put(folder / "a 1 b", "part-0 x.parquet", visit_id=["b"])
    return [("a", None, None, None, None), ("b", None, None, None, None)]


READ: dict[Callable[[Path], Rows], tuple[str, str]] = {
    columns_that_came_later: ("t01", "a Parquet folder whose older file lacks columns"),
    letter_cases: ("t07", "columns in other letter cases, in some files"),
    more_files_than_are_named_one_by_one: ("t01", "a folder of many files, one of which has a column more"),
    folders_in_folders: ("t05", "files in nested folders beside one at the top"),
    folders_that_are_values: ("t05", "a column that only the names of Hive folders hold"),
    instants_of_any_unit: ("t02", "instants in nanoseconds, milliseconds and INT96"),
    types_of_other_writers: ("t03", "columns of nulls, dictionaries, large and fixed-size lists, lists of doubles"),
    numbers_as_ids: ("door", "ids that are decimals or integers"),
    names_with_patterns: ("t12", "files and folders with blanks, brackets, #, %, * and ? in their names"),
}
"""Tables that are read whole, with the fault that each is: its id and what is injected."""
