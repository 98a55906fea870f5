"""Storage: a file is replaced whole or not at all, and a table version is the files that its log names."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import CommitProperties, DeltaTable, write_deltalake

from itemsage_model.data.pinned_files import pin_files
from schemas.columns import Column, Table
from schemas.commits import Staged, open_or_create
from schemas.errors import InputError
from schemas.storage import (
    absolute_uri,
    commits_of,
    data_files,
    file_system,
    read_bytes,
    read_columns,
    read_first_rows,
    version_files,
    write_bytes,
)


def test_a_path_is_made_absolute_and_a_uri_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("s3://bucket/shop") == "s3://bucket/shop"
    assert absolute_uri("shop") == f"{tmp_path}/shop"


@pytest.mark.fault("D4", "loud", "a file that cannot be synced: the old one stays, and no part of the new one")
def test_a_write_that_dies_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{tmp_path}/file"
    write_bytes(uri, b"old")

    def no_power(*_: object) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, "fsync", no_power)
    with pytest.raises(OSError, match="power cut"):
        write_bytes(uri, b"new")
    assert read_bytes(uri) == b"old"


def test_a_kind_of_uri_that_nobody_opens_is_refused_with_the_cure() -> None:
    with pytest.raises(InputError, match=r"warehouse, uri: .*Write s3:// for s3a://"):
        file_system("s3a://bucket/shop")


@pytest.mark.parametrize("folder", ["plain", "ein Laden 🪑"])
def test_a_version_is_the_files_of_its_log_with_their_rows(tmp_path: Path, folder: str) -> None:
    uri = f"{tmp_path}/{folder}"
    write_deltalake(uri, pa.table({"item_id": ["a", "b"], "price": [1, 2]}))
    write_deltalake(uri, pa.table({"item_id": ["c"], "price": [3]}), mode="append")
    write_deltalake(uri, pa.table({"item_id": ["d"], "price": [4]}), mode="overwrite")
    found = version_files(uri, 1)
    assert found.version == 1
    assert len(found.files) == 2
    for file in found.files:
        assert file.rows == pq.read_metadata(file.path).num_rows
    assert read_columns(uri, 1, ["price"])["price"].to_pylist() in ([1, 2, 3], [3, 1, 2])
    assert read_columns(uri, None, ["item_id"]).to_pydict() == {"item_id": ["d"]}
    DeltaTable(uri).delete()
    assert data_files(uri) == []
    assert read_columns(uri, None, ["price"]).to_pydict() == {"price": []}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


LOG = "_delta_log/0000000000000000000"


@pytest.mark.fault("B7", "loud", "a log's JSON or checkpoint cut short or lost; a log that was cleaned up")
@pytest.mark.parametrize(
    ("damage", "version", "said"),
    [
        (lambda table: cut(table / f"{LOG}3.json"), 3, r"a damaged file of its log, .*0003\.json"),
        (
            lambda table: cut(table / f"{LOG}2.checkpoint.parquet"),
            3,
            r"a damaged file of its log, .*2\.checkpoint\.par",
        ),
        (lambda table: (table / f"{LOG}2.checkpoint.parquet").write_bytes(b""), 3, r"a damaged file .*2\.checkpoint"),
        (lambda table: (table / f"{LOG}3.json").unlink(), 3, r"no file 0+3\.json in its log, which goes from 0 to 2"),
        (lambda table: [(table / f"{LOG}{n}.json").unlink() for n in (0, 1)], 1, r"no file 0+\.json.*from 2 to 3"),
    ],
)
def test_what_is_wrong_with_a_log_is_named_with_the_cure(
    tmp_path: Path, damage: Callable[[Path], object], version: int, said: str
) -> None:
    for number in range(3):
        write_deltalake(tmp_path / "t", pa.table({"a": [number]}), mode="overwrite")
    DeltaTable(tmp_path / "t").create_checkpoint()
    write_deltalake(tmp_path / "t", pa.table({"a": [3]}), mode="overwrite")
    damage(tmp_path / "t")
    with pytest.raises(InputError, match=rf"expected version {version}.*found {said}.*FROM=<stage>"):
        version_files(f"{tmp_path}/t", version)
    with pytest.raises(InputError, match=rf"table item_features, .*{said}.*FROM=build_item_features"):
        pin_files("item_features", f"{tmp_path}/t", version)


@pytest.mark.fault("B7", "loud", "a publication on top of a log whose checkpoint is cut short: nothing is committed")
def test_nothing_is_published_on_top_of_a_damaged_log(tmp_path: Path) -> None:
    uri, table = f"{tmp_path}/t", Table("t", "one row", (Column("a", "int64", "a number"),))
    for number in range(3):
        stored = open_or_create(uri, table)
        pq.write_table(pa.table({"a": [number]}), f"{uri}/{number}.parquet")
        file = {"path": f"{number}.parquet", "bytes": 1, "modified_ms": 0, "rows": 1}
        Staged(table, uri, [file], stored.version()).commit({})
    DeltaTable(uri).create_checkpoint()
    base = DeltaTable(uri).version()
    cut(tmp_path / "t" / f"{LOG}{base}.checkpoint.parquet")
    for number in range(base):
        (tmp_path / "t" / f"{LOG}{number}.json").unlink()
    names = sorted(path.name for path in (tmp_path / "t" / "_delta_log").iterdir())
    with pytest.raises(Exception, match=r"(?i)parquet|checkpoint"):
        open_or_create(uri, table)
    with pytest.raises(Exception, match=r"(?i)parquet|checkpoint"):
        Staged(table, uri, [file], base).commit({})
    assert sorted(path.name for path in (tmp_path / "t" / "_delta_log").iterdir()) == names


def test_the_first_rows_are_read_without_the_files_behind_them(tmp_path: Path) -> None:
    for number in range(3):
        write_deltalake(tmp_path / "t", pa.table({"a": range(10 * number, 10 * number + 10)}), mode="append")
    whole = read_columns(f"{tmp_path}/t", None, ["a"])
    for rows in (1, 10, 15, 100):
        assert read_first_rows(f"{tmp_path}/t", None, ["a"], rows).equals(whole.slice(0, rows))
    for file in data_files(f"{tmp_path}/t")[2:]:
        Path(file).unlink()
    assert len(read_first_rows(f"{tmp_path}/t", None, ["a"], 20)) == 20


def test_commits_have_their_own_versions_though_another_comes_while_they_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader of what is live took the note of one version for another's, while a rollback was committed."""
    uri = str(tmp_path / "table")
    for number in range(3):
        write_deltalake(uri, pa.table({"a": [number]}), mode="append", commit_properties=said(str(number)))
    listed = DeltaTable.history

    def with_one_in_between(table: DeltaTable, limit: int | None = None) -> list[dict[str, Any]]:
        if DeltaTable(uri).version() < 4:
            write_deltalake(uri, pa.table({"a": [9]}), mode="append", commit_properties=said("in between"))
        return listed(table, limit)

    monkeypatch.setattr(DeltaTable, "history", with_one_in_between)
    found = [(commit["version"], commit["userMetadata"]) for commit in commits_of(uri)]
    assert found == [(4, "in between"), (3, "in between"), (2, "2"), (1, "1"), (0, "0")]


def said(text: str) -> CommitProperties:
    return CommitProperties({"userMetadata": text})
