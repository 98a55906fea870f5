"""itemsage doctor: a sound shop is ok; each fault is named with its table, its column and what to mend."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from pipeline import doctor
from schemas.input_tables import find_input
from schemas.settings import load_settings
from schemas.tables import ITEMS
from tests.pipeline.shop import END, images_of, log_of, sound_tables, write_shop


def verdict_of(path: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> tuple[int, str]:
    code = doctor.examine(load_settings(path, list(overrides)))
    return code, capsys.readouterr().out


def test_a_sound_shop_has_no_fault_and_delta_tables_are_read_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_shop(tmp_path)
    code, text = verdict_of(path, capsys)
    assert code == 0, text
    assert "faults: 0; to look at: 0;" in text
    assert "table engagement_logs: 5 columns; 1 rows looked at" in text
    write_deltalake(f"{tmp_path}/delta", sound_tables()["items"])
    code, text = verdict_of(path, capsys, f"inputs.items={tmp_path}/delta")
    assert code == 0, text
    assert f"table items: 2 columns; 2 rows looked at, {tmp_path}/delta" in text


def naive_log() -> pa.Table:
    return log_of(END, event_ts=pa.array([datetime(2026, 2, 1)], pa.timestamp("us")))


@pytest.mark.parametrize(
    ("table", "spoiled", "expected"),
    [
        ("items", lambda: pa.table({"item_id": ["p1"], "Titel": ["lamp"]}),
         ["fault texts of items: none of title, description", "found item_id", "columns that nothing reads: Titel"]),
        ("items", lambda: pa.table({"sku": ["p1"]}),
         ["fault table items, column item_id: expected a column of type string", "no such column among sku"]),
        ("item_images", lambda: images_of(512),
         ["fault table item_images, column image_embedding: expected 256 numbers (model.image_length); found 512"]),
        ("engagement_logs", naive_log,
         ["fault table engagement_logs, column event_ts: expected type timestamp[us, tz=UTC]", "type timestamp[us]."]),
        ("engagement_logs", lambda: log_of(datetime(2019, 1, 1, tzinfo=timezone.utc)),
         ["fault table engagement_logs, column event_ts: 0 of 1 events", "correct dates.as_of"]),
        ("engagement_logs", lambda: log_of(END, engagement=["buy"]),
         ["fault table engagement_logs, column engagement: none of click; found buy"]),
        ("engagement_logs", lambda: log_of(END).slice(0, 0), ["fault table engagement_logs: no row at"]),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_what_to_mend(
    table: str, spoiled: Callable[[], pa.Table], expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = verdict_of(write_shop(tmp_path, **{table: spoiled()}), capsys)
    assert code == 3, text
    said = " ".join(text.split())
    for part in expected:
        assert part in said


def test_image_vectors_of_the_length_that_the_settings_say_are_ok(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_shop(tmp_path, item_images=images_of(768))
    code, text = verdict_of(path, capsys, "model.image_length=768")
    assert code == 0, text
    assert "column image_embedding: 768 numbers in each of 1 rows" in text


def test_a_table_that_is_not_there_is_named_with_its_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = verdict_of(write_shop(tmp_path), capsys, f"inputs.queries={tmp_path}/nowhere")
    assert code == 3
    assert "fault table queries: cannot be read at" in " ".join(text.split())
    assert "correct the URI in the settings. (inputs.queries)" in text


def test_delta_has_one_version_in_every_place_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(set().union(*doctor.delta_versions().values())) == 1
    assert all(doctor.delta_versions().values())
    monkeypatch.setattr(doctor, "delta_versions", lambda: {"README.md": {"3.9.0"}})
    found = [finding for finding in doctor.version_findings() if finding.subject == "Delta's version"]
    assert [finding.verdict for finding in found] == ["fault"]
    assert "README.md 3.9.0" in found[0].text


def test_a_machine_without_java_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    finding = next(doctor.machine_findings())
    assert finding.verdict == "fault"
    assert "no Java found at JAVA_HOME" in finding.text


def test_what_spark_reads_is_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """INT96 instants, as Spark writes them; a Delta table that is partitioned by a column; one bad vector of many."""
    images = pa.concat_tables([images_of(256)] * 3 + [images_of(3)])
    path = write_shop(tmp_path, item_images=images)
    pq.write_table(
        log_of(END - timedelta(days=3)), tmp_path / "in" / "engagement_logs" / "part-0.parquet",
        use_deprecated_int96_timestamps=True,
    )  # fmt: skip
    write_deltalake(f"{tmp_path}/queries", sound_tables()["queries"], partition_by=["query_kind"])
    code, text = verdict_of(path, capsys, f"inputs.queries={tmp_path}/queries")
    assert code == 0, text
    said = " ".join(text.split())
    assert "queries of every kind: closeup" in said
    assert "look table item_images, column image_embedding: 3 numbers in 1 rows, 256 numbers in 3 rows" in said


def test_instants_in_nanoseconds_are_taken_as_the_jobs_take_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = log_of(END, event_ts=pa.array([END - timedelta(days=1)], pa.timestamp("ns", "UTC")))
    code, text = verdict_of(write_shop(tmp_path, engagement_logs=log), capsys)
    assert code == 0, text
    assert "1 of 1 events of the sample from 2026-01-02" in text


@pytest.mark.fault("t01", "recovered", "files of one folder, at two depths, with other columns: doctor says so")
def test_what_doctor_says_of_a_table_is_what_the_jobs_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_shop(tmp_path)
    more = tmp_path / "in" / "items" / "old"
    more.mkdir()
    pq.write_table(pa.table({"Item_Id": ["p3"], "BRAND": ["b"], "preis": [1]}), more / "part-0.parquet")
    (tmp_path / "in" / "items" / "_SUCCESS").write_bytes(b"")
    code, text = verdict_of(path, capsys)
    assert code == 0, text
    found = find_input(str(tmp_path / "in" / "items"), ITEMS)
    assert f"table items: 3 columns; 3 rows looked at, {tmp_path}/in/items: {found}" in text
    assert "Parquet, 2 files, 3 rows, 3 of 13 columns; not in every file: title, brand; not there:" in str(found)
    assert "passed over: _SUCCESS" in text


def test_rows_that_only_newer_engines_read_are_no_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_new(*_: object) -> None:
        raise pa.ArrowInvalid("Expected all lists to be of size=256 but index 1 had size=0")

    path = write_shop(tmp_path)
    monkeypatch.setattr(doctor, "input_rows", too_new)
    code, text = verdict_of(path, capsys)
    assert code == 0, text
    assert "look table queries: only Spark can read its rows: Expected all lists" in " ".join(text.split())


@pytest.mark.fault("t04", "refused", "a foreign file beside Parquet files: doctor names it")
def test_a_foreign_file_is_named_and_no_other_place_is_its_cure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_shop(tmp_path)
    (tmp_path / "in" / "items" / "manifest").write_text("{}")
    code, text = verdict_of(path, capsys)
    assert code == 3
    assert f"{tmp_path}/in/items/manifest, a file that begins with b'{{}}'" in text
    assert "as Parquet (CSV and JSON are not read).\n" in text
    assert "inputs.items" not in text


def test_a_damaged_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_shop(tmp_path)
    (tmp_path / "in" / "items" / "part-0.parquet").write_bytes(b"PAR1 but no more")
    code, text = verdict_of(path, capsys)
    assert code == 3
    assert "fault table items: cannot be read at" in " ".join(text.split())
