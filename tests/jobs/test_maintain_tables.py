"""Maintenance: what no record and no young version needs goes, and nothing else; runs becomes few files."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pytest
from delta.tables import DeltaTable as SparkDeltaTable
from deltalake import DeltaTable, write_deltalake
from pyspark.sql import SparkSession

from jobs import maintain_tables
from schemas.errors import InputError, SettingsError
from schemas.lease import LeaseError, hold
from schemas.metrics import MaintenanceMetrics, Removed, VocabularyMetrics
from schemas.records import RunRecord, TableVersion, read_record, write_record
from schemas.results import noted
from schemas.settings import Settings, load_settings
from schemas.stages import BUILD_VOCABULARY, MAINTAIN_TABLES
from schemas.storage import read_batches, read_columns
from schemas.tables import RUNS, VOCABULARY
from tests.pipeline.shop import write_shop

MakeSettings = Callable[..., Settings]
OLD = time.time() - 3_600 * 24 * 30


class Warehouse:
    """Four versions of a table, all a month old, of which the record names the second; other litter, old and young."""

    def __init__(self, make_settings: MakeSettings) -> None:
        self.make_settings = make_settings
        settings = self.settings()
        self.root = Path(settings.layout.uri)
        self.table = settings.table_uri(VOCABULARY.name)
        for number in range(4):
            write_deltalake(self.table, pa.table({"token": [f"t{number}"]}), mode="overwrite")
        self.record = RunRecord(
            BUILD_VOCABULARY.name, VocabularyMetrics(), outputs=(TableVersion(VOCABULARY.name, self.table, 1, 1),)
        )
        write_record(settings.layout, self.record)
        for name in ("checkpoints/gone/step_1/w", "checkpoints/young/step_1/w"):
            (self.root / name).parent.mkdir(parents=True)
            (self.root / name).write_bytes(b"12345")
        self.age()
        os.utime(self.root / "checkpoints/young/step_1/w")

    def settings(self, **sections: object) -> Settings:
        return self.make_settings(**sections)

    def age(self) -> None:
        """Everything was written a month ago, by the files' times and by the log's."""
        for log in sorted(Path(self.table).glob("_delta_log/*.json")):
            log.write_text(_with_old_times(log.read_text()))
        for path in self.root.rglob("*"):
            if path.is_file():
                os.utime(path, (OLD, OLD))

    def tokens(self, version: int) -> list[str]:
        return read_columns(self.table, version, ["token"])["token"].to_pylist()  # type: ignore[no-any-return]

    def run(self, spark: SparkSession, dry_run: bool) -> MaintenanceMetrics:
        maintain_tables.run(spark, self.settings(maintenance={"dry_run": dry_run}))
        return read_record(self.settings().layout, MAINTAIN_TABLES).metrics


def _with_old_times(lines: str) -> str:
    actions = [json.loads(line) for line in lines.splitlines()]
    for action in actions:
        for kind, key in (("commitInfo", "timestamp"), ("remove", "deletionTimestamp"), ("add", "modificationTime")):
            if kind in action:
                action[kind][key] = int(OLD * 1_000)
    return "".join(json.dumps(action) + "\n" for action in actions)


def test_a_dry_run_lists_and_removes_nothing(
    spark: SparkSession, make_settings: MakeSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = Warehouse(make_settings)
    found = shop.run(spark, dry_run=True)
    assert found.tables["vocabulary"].files == 2
    assert found.others == {"checkpoints of unfinished trainings": Removed(1, 5)}
    said = capsys.readouterr().out
    assert "would remove 2 files" in said
    assert "would remove 1 files, 0.0 MB: checkpoints of unfinished trainings" in said
    assert [shop.tokens(version) for version in range(4)] == [["t0"], ["t1"], ["t2"], ["t3"]]
    assert (shop.root / "checkpoints/gone/step_1/w").exists()


@pytest.mark.fault("B8", "recovered", "a VACUUM while a record names an older version, which stays readable")
@pytest.mark.fault("F6", "recovered", "files of versions that no record names, and of a training that will not go on")
def test_what_nothing_reads_goes_and_what_a_record_names_stays(
    spark: SparkSession, make_settings: MakeSettings
) -> None:
    shop = Warehouse(make_settings)
    assert shop.run(spark, dry_run=False).tables["vocabulary"].files == 2
    assert (shop.tokens(1), shop.tokens(3)) == (["t1"], ["t3"])
    for version in (0, 2):
        with pytest.raises(FileNotFoundError):
            shop.tokens(version)
    assert not (shop.root / "checkpoints/gone").exists()
    assert (shop.root / "checkpoints/young/step_1/w").exists()
    again = shop.run(spark, dry_run=False)
    assert (again.tables, again.others) == ({}, {})


@pytest.mark.fault("B8", "loud", "VACUUM with less than seven days, a damaged record, a run that writes meanwhile")
def test_what_may_be_in_use_is_not_removed(spark: SparkSession, make_settings: MakeSettings, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"maintenance\.retention_hours"):
        load_settings(write_shop(tmp_path / "shop"), ["maintenance.retention_hours=24"])
    shop = Warehouse(make_settings)
    layout = shop.settings().layout
    with hold(layout, BUILD_VOCABULARY.name, "2026-03-01"), pytest.raises(LeaseError, match="found build_vocabulary"):
        shop.run(spark, dry_run=False)
    Path(layout.record(BUILD_VOCABULARY.name)).write_text("{")
    with pytest.raises(InputError, match="a damaged one"):
        shop.run(spark, dry_run=False)
    assert [shop.tokens(version) for version in range(4)] == [["t0"], ["t1"], ["t2"], ["t3"]]


@pytest.mark.fault("B8", "recovered", "maintenance of a table with deletion vectors, and of one that is the shop's own")
def test_deletion_vectors_in_use_and_the_shops_own_tables_are_left_alone(
    spark: SparkSession, make_settings: MakeSettings
) -> None:
    shop = Warehouse(make_settings)
    own = shop.settings().table_uri("items")
    for number in range(2):
        write_deltalake(own, pa.table({"item_id": [f"i{number}"]}), mode="overwrite")
    uri = shop.settings().table_uri("item_embeddings")
    rows = spark.range(0, 100, 1, 1).selectExpr("cast(id as string) item_id")
    rows.write.format("delta").option("delta.enableDeletionVectors", "true").save(uri)
    SparkDeltaTable.forPath(spark, uri).delete("item_id = '7'")
    orphans = [Path(uri, name) for name in ("orphan.parquet", f"deletion_vector_{uuid4()}.bin")]
    for orphan in orphans:  # as a run leaves them that was killed before its commit
        orphan.write_bytes(b"12345")
    for folder in (own, uri):
        for path in Path(folder).rglob("*"):
            if path.is_file():
                os.utime(path, (OLD, OLD))
    in_use = set(Path(uri).glob("deletion_vector*.bin")) - {*orphans}
    assert in_use
    assert shop.run(spark, dry_run=False).tables["item_embeddings"] == Removed(2, 10)
    assert set(Path(uri).glob("deletion_vector*.bin")) == in_use
    assert not any(orphan.exists() for orphan in orphans)
    assert sum(len(batch) for batch in read_batches(uri, None, ["item_id"])) == 99
    assert read_columns(own, 0, ["item_id"])["item_id"].to_pylist() == ["i0"]


def test_the_table_of_runs_becomes_few_files(spark: SparkSession, make_settings: MakeSettings) -> None:
    shop = Warehouse(make_settings)
    settings = shop.settings()
    for number in range(5):
        write_record(settings.layout, replace(shop.record, run_id=f"r{number}"))
        with noted(settings, BUILD_VOCABULARY):
            pass
    uri = settings.table_uri(RUNS.name)
    assert len(DeltaTable(uri).file_uris()) == 5
    before = read_columns(uri, None, list(RUNS.column_names)).sort_by("run_id")
    assert shop.run(spark, dry_run=False).compacted == 4
    assert len(DeltaTable(uri).file_uris()) == 1
    assert read_columns(uri, None, list(RUNS.column_names)).sort_by("run_id").equals(before)
