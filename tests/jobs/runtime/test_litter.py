"""What nothing reads any more is listed with its size and with how to remove it; what is in use is not."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from jobs.runtime import litter
from pipeline import doctor
from schemas.candidate import Candidate, keep_candidate
from schemas.commits import Staged, commit_note
from schemas.metrics import Removed, ScoreMetrics, TrainMetrics
from schemas.published import PUBLISHED
from schemas.records import RunRecord, write_record
from schemas.settings import Settings, load_settings
from schemas.tables import ITEM_EMBEDDINGS, QUERY_VECTORS
from tests.pipeline.shop import write_shop


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A warehouse with one of everything that runs leave behind."""
    settings = load_settings(write_shop(tmp_path))
    root = Path(settings.layout.uri)
    for name in (
        "models/used/w",
        "models/fitted/w",
        "models/old/w",
        "checkpoints/gone/step_1/w",
        "_runs/train.json.1.staged",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"12345")
    metrics = TrainMetrics("used", f"{root}/models/used", "abc", validated_model_uri=f"{root}/models/fitted")
    write_record(settings.layout, RunRecord("train", metrics))
    for number in range(2):
        write_deltalake(f"{root}/item_embeddings", pa.table({"a": [number]}), mode="overwrite")
    orphan = root / "item_embeddings" / "orphan.parquet"
    orphan.write_bytes(b"1234567")
    before = time.time() - 3600 * (litter.RETENTION_HOURS + 1)
    os.utime(orphan, (before, before))
    return settings


@pytest.mark.fault("F6", "loud", "checkpoints, models and files of failed runs, which nothing would ever mention")
def test_what_nothing_reads_is_listed_with_its_size(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    found = {one.what.split()[0]: one for one in litter.find_litter(settings)}
    assert {name: (len(one.paths), one.size) for name, one in found.items()} == {
        "checkpoints": (1, 5), "models": (1, 5), "half-written": (1, 5),
    }  # fmt: skip
    assert litter.unread_in_tables(settings) == Removed(1, 7)
    assert [path.parent.name for path in found["models"].paths] == ["old"]
    assert doctor.examine(settings) == 0
    said = capsys.readouterr().out
    assert "look  models that no record names: 1 files, 0.0 MB, which nothing reads; to remove: rm -r" in said
    assert "look  files of replaced versions and of failed runs: 1 files, 0.0 MB, which nothing reads" in said


@pytest.mark.fault("F6", "recovered", "maintenance while a rolled back model is live, and a candidate waits for weeks")
def test_what_a_reader_or_a_publication_needs_is_no_litter(settings: Settings) -> None:
    root = Path(settings.layout.uri)
    metrics = ScoreMetrics("old", "float32", published_id="old")
    published = {"metrics": asdict(metrics), "rows": 1, "query_vectors": {"version": 0, "rows": 0}}
    note = {"run_id": "r", "as_of": "2026-03-01", PUBLISHED: published}
    commit_note(f"{root}/item_embeddings", note)
    assert "models" not in {one.what.split()[0] for one in litter.find_litter(settings)}
    # Of another kind of rows; what counts is the name.
    file = {"path": "orphan.parquet", "bytes": 7, "modified_ms": 0, "rows": 1}
    items, answers = (
        Staged(table, settings.table_uri(table.name), [file], 0) for table in (ITEM_EMBEDDINGS, QUERY_VECTORS)
    )
    keep_candidate(settings.layout, Candidate(items, answers, note, metrics))
    assert litter.unread_in_tables(settings) == Removed(0, 0)


def test_a_warehouse_that_is_not_there_has_no_litter(tmp_path: Path) -> None:
    assert litter.find_litter(load_settings(write_shop(tmp_path), [f"warehouse.uri={tmp_path}/none"])) == []


@pytest.mark.parametrize("stage", ["train_query_encoder", "train_graph", "train_pictures"])
def test_what_a_stage_beside_the_pipeline_trained_last_is_in_use(settings: Settings, stage: str) -> None:
    metrics = TrainMetrics("old", f"{settings.layout.models}/old", "")
    write_record(settings.layout, RunRecord(stage, metrics))
    assert "models" not in {one.what.split()[0] for one in litter.find_litter(settings)}
