"""Run records: written whole or not at all, read back as what was written, and a missing one says what to run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import InputError
from schemas.metrics import EventCounts, QueryMetrics, TaskCounts, TrainingTableMetrics, TrainMetrics
from schemas.records import RunRecord, TableVersion, find_record, read_record, write_record
from schemas.stages import BUILD_TRAINING_TABLES, EMBED_QUERIES, TRAIN
from schemas.storage import read_bytes, write_bytes
from schemas.warehouse import Warehouse

RECORD = RunRecord(
    "embed_queries",
    QueryMetrics("lsa-1", 3, {"search": "lsa-1"}),
    "embed_queries-1",
    1.5,
    outputs=(TableVersion("query_embeddings", "/w/query_embeddings", 3, 9),),
    rejected={"queries: null_id": 1},
    settings={"dates": {"as_of": "2026-03-01"}},
    made_with={"vocabulary": "abc"},
)


@pytest.mark.parametrize("folder", ["plain", "ein Laden 🪑"])
def test_a_record_comes_back_as_it_was_written(tmp_path: Path, folder: str) -> None:
    warehouse = Warehouse(f"{tmp_path}/{folder}/")
    write_record(warehouse, RunRecord("embed_queries", QueryMetrics(None, 0, {})))
    write_record(warehouse, RECORD)
    assert read_record(warehouse, EMBED_QUERIES) == RECORD
    assert [path.name for path in (tmp_path / folder / "_runs").iterdir()] == ["embed_queries.json"]


def test_nested_metrics_come_back_as_what_they_were(tmp_path: Path) -> None:
    metrics = TrainingTableMetrics({"search_click": TaskCounts(training_pairs=2)}, EventCounts(5, 4, 0, 0, 1))
    write_record(Warehouse(str(tmp_path)), RunRecord("build_training_tables", metrics))
    assert read_record(Warehouse(str(tmp_path)), BUILD_TRAINING_TABLES).metrics == metrics


def test_a_warehouse_may_be_a_uri_or_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_record(Warehouse("shop"), RECORD)
    assert read_record(Warehouse(f"file://{tmp_path}/shop"), EMBED_QUERIES) == RECORD


def old_record(warehouse: Path) -> dict[str, Any]:
    """As version 0.1 wrote it: absolute paths, no sha256."""
    return {
        "stage": "embed_queries", "run_id": "embed_queries-1", "seconds": 1.5, "inputs": [],
        "outputs": [{"table": "query_embeddings", "uri": f"{warehouse}/query_embeddings", "version": 3, "rows": 9}],
        "rejected": {"queries: null_id": 1}, "settings": {"dates": {"as_of": "2026-03-01"}},
        "figures": {"encoder": "lsa-1", "texts_encoded": 3, "embedding_spaces": {"search": "lsa-1"}},
    }  # fmt: skip


def test_a_record_of_version_0_1_is_read(tmp_path: Path) -> None:
    write_bytes(f"{tmp_path}/_runs/embed_queries.json", json.dumps(old_record(tmp_path)).encode())
    outputs = (TableVersion("query_embeddings", f"{tmp_path}/query_embeddings", 3, 9),)
    expected = replace(RECORD, outputs=outputs, made_with={}, code="")
    assert read_record(Warehouse(str(tmp_path)), EMBED_QUERIES) == expected


@pytest.mark.fault("copy", "loud", "a warehouse copied whose records, of version 0.1, name the original's files")
def test_a_record_of_version_0_1_in_a_copied_warehouse_is_refused(tmp_path: Path) -> None:
    write_bytes(f"{tmp_path}/copy/_runs/embed_queries.json", json.dumps(old_record(tmp_path / "original")).encode())
    with pytest.raises(
        InputError, match=r"found \S+/original/query_embeddings: .* copied or moved\. .*FROM=embed_queries"
    ):
        read_record(Warehouse(f"{tmp_path}/copy"), EMBED_QUERIES)
    model = {"stage": "train", "metrics": {"model_id": "m", "model_uri": "/original/models/m", "vocabulary_hash": "v"}}
    write_bytes(f"{tmp_path}/copy/_runs/train.json", json.dumps(model).encode())
    with pytest.raises(InputError, match=r"found /original/models/m: .*FROM=train"):
        read_record(Warehouse(f"{tmp_path}/copy"), TRAIN)


@pytest.mark.fault("copy", "recovered", "a warehouse copied, the original spoilt: records name the copy's own files")
def test_a_copied_warehouse_is_whole(tmp_path: Path) -> None:
    original, copy = Warehouse(f"{tmp_path}/original"), Warehouse(f"{tmp_path}/copy")
    inside, outside = TableVersion("items", original.table("items"), 1, 2), TableVersion("log", f"{tmp_path}/log", 1, 2)
    metrics = TrainMetrics("m", f"{original.models}/m", "abc", validated_model_uri=f"{original.models}/fitted")
    write_record(original, RunRecord("train", metrics, inputs=(outside,), outputs=(inside,)))
    shutil.copytree(original.place(), copy.place())
    shutil.rmtree(original.place())
    record = read_record(copy, TRAIN)
    assert record.metrics.model_uri == f"{tmp_path}/copy/models/m"
    assert record.metrics.validated_model_uri == f"{tmp_path}/copy/models/fitted"
    assert record.output("items").uri == f"{tmp_path}/copy/items"
    assert record.input("log") == outside


@pytest.mark.fault("D5b", "loud", "any byte of a run record changed: 400 of them")
def test_a_record_with_any_byte_changed_is_refused_or_says_the_same(tmp_path: Path) -> None:
    warehouse = Warehouse(str(tmp_path))
    write_record(warehouse, RECORD)
    whole, refused = read_bytes(warehouse.record("embed_queries")), 0
    for place in range(0, len(whole), max(1, len(whole) // 400)):
        write_bytes(warehouse.record("embed_queries"), whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            assert read_record(warehouse, EMBED_QUERIES) == RECORD, place
        except InputError as error:
            refused += "run record of embed_queries" in str(error)
    assert refused > 300


def test_a_stage_without_a_record_is_none_where_that_may_be(tmp_path: Path) -> None:
    assert find_record(Warehouse(str(tmp_path)), EMBED_QUERIES) is None


def test_a_stage_that_has_not_run_is_named_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_record(Warehouse(str(tmp_path)), EMBED_QUERIES)
    message = str(caught.value)
    assert "a complete run of embed_queries" in message
    assert f"{tmp_path}/_runs/embed_queries.json" in message
    assert "FROM=embed_queries" in message


@pytest.mark.parametrize(
    "spoil", [lambda text: text[:-20], lambda text: "[]", lambda text: text.replace(": 3", ': "x"')]
)
def test_a_damaged_record_is_refused_by_name(tmp_path: Path, spoil) -> None:
    warehouse = Warehouse(str(tmp_path))
    write_record(warehouse, RECORD)
    uri = warehouse.record("embed_queries")
    write_bytes(uri, spoil(read_bytes(uri).decode()).encode())
    with pytest.raises(InputError, match=r"run record of embed_queries: .*a damaged one"):
        read_record(warehouse, EMBED_QUERIES)


def test_an_output_is_found_by_name_or_refused_by_name() -> None:
    assert RECORD.output("query_embeddings").version == 3
    with pytest.raises(InputError, match=r"table training_search_save.*found query_embeddings\. .*run it again"):
        RECORD.output("training_search_save")
