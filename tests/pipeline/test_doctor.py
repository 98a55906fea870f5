"""itemsage doctor: a sound shop is ok; each fault is named with its table, its column and what to mend."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from pipeline import doctor
from schemas.errors import EXIT_INPUT
from schemas.input_tables import find_input
from schemas.settings import load_settings
from schemas.tables import ITEMS
from tests.itemsage_model.encoders.pictures.drawn import jpeg
from tests.itemsage_model.encoders.pictures.test_stored import PREPROCESSOR, TinyVision, export
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


def of_ids(*ids: str | None) -> pa.Table:
    return pa.table({"item_id": ids, "title": [f"lamp {n}" for n in range(len(ids))]})


def many(count: int, **columns: list[str]) -> pa.Table:
    """A log of so many sound events, but for some columns."""
    ids = {"event_id": [f"e{n}" for n in range(count)], "query_id": ["q1"] * count, "item_id": ["p1"] * count}
    when = pa.array([END - timedelta(days=3)] * count, pa.timestamp("us", "UTC"))
    return log_of(END, event_ts=when, engagement=["click"] * count, **(ids | columns))


@pytest.mark.fault("rejects", "loud", "rows by which a run stops: doctor says so before it")
@pytest.mark.parametrize(
    ("table", "spoiled", "said"),
    [
        ("items", of_ids("p1", "", " "), "2 of 3 rows looked at would be rejected: null_id 2 (item_id, such as '', "
         "' '); at most 10.0% may be (max_reject_share.items): a run stops; correct them"),
        ("items", of_ids("p1", "p1", "p1", "p2"), "2 of 4 rows looked at would be rejected: conflicting_item 2 "
         "(item_id, such as 'p1'); at most 10.0% may be"),
        ("items", of_ids("p1", "p2", "x" * 600), "1 of 3 rows looked at would be rejected: long_id 1 (item_id"),
        ("item_images", images_of(256).append_column("z", [[1]]).set_column(0, "item_id", [["p9"]]),
         "1 of 1 rows looked at would be rejected: unknown_item 1 (item_id, such as 'p9')"),
        ("queries", sound_tables()["queries"].drop(["embedding_space"]),
         "1 of 1 rows looked at would be rejected: unnamed_space 1 (embedding_space); at most 20.0% may be"),
        ("engagement_logs", many(4, item_id=["p1", "p1", "P1", "p1 "]),
         "2 of 4 rows looked at would be rejected: unknown_item 2 (item_id, such as 'P1', 'p1 '); at most 20.0%"),
        ("engagement_logs", many(4, event_id=["o1", "o1", "o2", "o2"], item_id=["p1", "p2", "p1", "p2"]),
         "2 of 4 rows looked at would be rejected: reused_event_id 2 (event_id, such as 'o1', 'o2'); at most 20.0%"),
        ("engagement_logs", log_of(END - timedelta(days=3), event_ts=pa.array([datetime(2019, 1, 1)], pa.timestamp(
         "us", "UTC"))), "late 1 (event_ts, such as '2019-01-01 00:00:00+00:00'); at most 95.0% may be left out, for "
         "whatever reason (max_reject_share.all_reasons): a run stops"),
    ],
)  # fmt: skip
def test_a_run_that_stops_on_rejects_is_foreseen(
    table: str, spoiled: pa.Table, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = verdict_of(write_shop(tmp_path, **{table: spoiled}), capsys)
    assert code == 3, text
    assert f"fault table {table}, rejects: " in " ".join(text.split())
    assert said in text


def test_rows_within_the_share_are_ok_and_a_sample_does_not_speak_for_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    items = of_ids(None, "p1", "p1", *(f"q{n}" for n in range(18)))
    path = write_shop(tmp_path, items=items)
    code, text = verdict_of(path, capsys)
    assert code == 0, text
    assert "table items, rejects: 2 of 21 rows looked at would be rejected: null_id 1 (item_id), conf" in text
    assert verdict_of(path, capsys, "max_reject_share.items=0.05")[0] == 3
    monkeypatch.setattr(doctor, "SAMPLE_ROWS", 4)
    code, text = verdict_of(path, capsys)
    assert code == 0, text
    assert "look  table items, rejects: 2 of 4 rows looked at would" in text
    assert "a run stops if the others are like these" in text
    # The ids of all items are known, though not all items are looked at.
    code, text = verdict_of(write_shop(tmp_path, items=items, engagement_logs=many(1, item_id=["q17"])), capsys)
    assert code == 0, text


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
    images = pa.concat_tables([images_of(256)] * 5 + [images_of(3)])
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
    assert "look table item_images, column image_embedding: 3 numbers in 1 rows, 256 numbers in 5 rows" in said


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
    monkeypatch.setattr(doctor, "stored_rows", too_new)
    code, text = verdict_of(path, capsys)
    assert code == 0, text
    assert "look table queries: only Spark can read its rows: Expected all lists" in " ".join(text.split())


@pytest.mark.fault("t04", "loud", "a foreign file beside Parquet files: doctor names it")
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


def test_pictures_are_decoded_and_their_model_is_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    model.mkdir()
    export(TinyVision(False).eval(), model)
    (model / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    pictures = [jpeg(), jpeg()[:3000], None, None]
    rows = {
        "item_id": ["p1", "p1", "p2", "p2"],
        "position": pa.array([0, 1, 0, 1], pa.int32()),
        "picture": pa.array(pictures, pa.binary()),
        "picture_uri": pa.array([None, None, "/etc/passwd", None], pa.string()),
    }
    path = write_shop(tmp_path, item_pictures=pa.table(rows))
    overrides = [f"pictures.folder={model}", "inputs.item_images=", f"inputs.item_pictures={tmp_path}/in/item_pictures"]
    code, text = verdict_of(path, capsys, *overrides)
    assert code == EXIT_INPUT
    assert "fault picture encoder: picture-onnx-" in text
    assert "12 numbers; set model.image_length = 12" in text
    assert "2 of 4 rows looked at would be rejected: no_picture 1 (picture), truncated 1 (picture" in text
    shares = [*overrides, "model.image_length=12", "max_reject_share.item_pictures=0.5"]
    code, text = verdict_of(path, capsys, *shares)
    assert code == 0, text
    assert "ok    picture encoder: picture-onnx-" in text
    assert "picture head" not in text
    code, text = verdict_of(path, capsys, *shares, "pictures.head=true")
    assert code == EXIT_INPUT
    assert "fault picture head" in text
    assert "train_pictures" in text
    code, text = verdict_of(path, capsys, *shares, f"pictures.folder={tmp_path}/in")
    assert "fault picture encoder: picture encoder" in text
