"""Run records: written whole or not at all, and a missing one says what to run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from schemas.errors import TableError
from schemas.records import read_record, recorded_output, write_record
from schemas.storage import absolute_uri, read_bytes, write_bytes

RECORD = {
    "stage": "build_vocabulary",
    "outputs": [{"table": "vocabulary", "uri": "/w/vocabulary", "version": 3, "rows": 9}],
}


@pytest.mark.parametrize("folder", ["plain", "ein Laden 🪑"])
def test_a_record_comes_back_as_it_was_written(tmp_path: Path, folder: str) -> None:
    warehouse = f"{tmp_path}/{folder}/"
    write_record(warehouse, "build_vocabulary", {"rows": 1})
    write_record(warehouse, "build_vocabulary", RECORD)
    assert read_record(warehouse, "build_vocabulary") == RECORD
    assert [path.name for path in (Path(warehouse) / "_runs").iterdir()] == ["build_vocabulary.json"]


def test_a_warehouse_may_be_a_uri_or_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_record("shop", "build_vocabulary", RECORD)
    assert read_record(f"file://{tmp_path}/shop", "build_vocabulary") == RECORD
    assert absolute_uri("s3://bucket/shop") == "s3://bucket/shop"
    assert absolute_uri("shop") == f"{tmp_path}/shop"


def test_a_write_that_dies_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{tmp_path}/file"
    write_bytes(uri, b"old")

    def no_power(*_: object) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, "fsync", no_power)
    with pytest.raises(OSError, match="power cut"):
        write_bytes(uri, b"new")
    assert read_bytes(uri) == b"old"


def test_a_stage_that_has_not_run_is_named_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(TableError) as caught:
        read_record(str(tmp_path), "build_vocabulary")
    message = str(caught.value)
    assert "a complete run of build_vocabulary" in message
    assert f"{tmp_path}/_runs/build_vocabulary.json" in message
    assert "FROM=build_vocabulary" in message


def test_an_output_is_found_by_name_or_refused_by_name() -> None:
    assert recorded_output(RECORD, "vocabulary")["version"] == 3
    with pytest.raises(TableError, match=r"table training_search_save.*found vocabulary\. .*run it again"):
        recorded_output(RECORD, "training_search_save")
