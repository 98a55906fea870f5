"""How a stage ended, said to machines: the last line of a command, and a row of the table runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from schemas.errors import GateError, SettingsError, TableError
from schemas.lease import VARIABLE
from schemas.metrics import VocabularyMetrics
from schemas.records import RunRecord, TableVersion, write_record
from schemas.repeats import AlreadyDone
from schemas.results import Result, ending_in_json, noted, runs_since
from schemas.settings import Settings
from schemas.stages import BUILD_VOCABULARY
from schemas.tables import RUNS

MakeSettings = Callable[..., Settings]
BAD = TableError("items", "title", expected="a", found="b", cure="c")
SHUT = GateError("item_embeddings", "gates", expected="a", found="b", cure="c")
RECORD = RunRecord(
    BUILD_VOCABULARY.name, VocabularyMetrics(), "build_vocabulary-1",
    outputs=(TableVersion("vocabulary", "v", 3, 5), TableVersion("rejected_items", "r", 1, 2)),
    rejected={"items: null_id": 2}, settings={"dates": {"as_of": "2026-03-01"}},
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return said


def test_a_run_that_is_done_is_a_row_and_the_last_line(
    make_settings: MakeSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_settings()
    began = time.time()
    with ending_in_json("build_vocabulary"), noted(settings, BUILD_VOCABULARY):
        write_record(settings.layout, RECORD)
    said = last_line(capsys)
    assert (said["work"], said["status"], said["exit_code"], said["retry"]) == ("build_vocabulary", "done", 0, False)
    [stage] = said["stages"]
    assert stage["versions"] == {"vocabulary": 3, "rejected_items": 1}
    assert (stage["rows_written"], stage["rows_rejected"], stage["as_of"]) == (7, 2, "2026-03-01")
    [found] = runs_since(settings, began - 1)
    assert Result(**stage) == found
    assert runs_since(settings, time.time() + 1) == []


@pytest.mark.parametrize(
    ("error", "code", "retry", "cause"),
    [
        (BAD, 3, False, "table items, column title: expected a; found b. c"),
        (SHUT, 4, False, "item_embeddings, gates: expected a; found b. c"),
        (SettingsError("train.steps: no number"), 2, False, "train.steps: no number"),
        (OSError("reset by peer"), 1, True, "OSError: reset by peer"),
        (KeyboardInterrupt(), 130, True, "interrupted. What is committed stands; run it again."),
        (SystemExit(3), 3, False, "ended with exit code 3"),
    ],
)
def test_a_run_that_fails_says_why_and_whether_a_retry_helps(
    error: BaseException, code: int, retry: bool, cause: str, make_settings: MakeSettings,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    settings = make_settings()
    with pytest.raises(SystemExit) as ended, ending_in_json("build_vocabulary"), noted(settings, BUILD_VOCABULARY):
        raise error
    assert ended.value.code == code
    said = last_line(capsys)
    assert (said["status"], said["exit_code"], said["retry"]) == ("failed", code, retry)
    assert said["stages"][0]["error"] == cause
    [row] = DeltaTable(settings.table_uri(RUNS.name)).to_pyarrow_table().to_pylist()
    assert (row["status"], row["exit_code"], row["error"]) == ("failed", code, cause)


def test_what_was_done_before_is_no_failure(make_settings: MakeSettings, capsys: pytest.CaptureFixture[str]) -> None:
    settings = make_settings()
    with ending_in_json("build_vocabulary"), noted(settings, BUILD_VOCABULARY):
        raise AlreadyDone(RECORD)
    said = last_line(capsys)
    assert (said["status"], said["exit_code"]) == ("already_done", 0)
    assert said["stages"][0]["versions"] == {"vocabulary": 3, "rejected_items": 1}


def test_rows_are_appended_and_the_declared_columns(make_settings: MakeSettings) -> None:
    settings = make_settings()
    write_record(settings.layout, RECORD)
    for _ in range(3):
        with noted(settings, BUILD_VOCABULARY):
            pass
    stored = DeltaTable(settings.table_uri(RUNS.name))
    rows: pa.Table = stored.to_pyarrow_table()
    assert rows.num_rows == 3
    assert tuple(rows.column_names) == RUNS.column_names


def test_a_run_that_cannot_be_noted_ends_as_it_would(
    make_settings: MakeSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_settings()
    write_record(settings.layout, RECORD)
    Path(settings.table_uri(RUNS.name)).write_text("no folder")
    with ending_in_json("build_vocabulary"), noted(settings, BUILD_VOCABULARY):
        pass
    said = capsys.readouterr()
    assert "warning: the table runs does not know of this run: " in said.err
    assert json.loads(said.out.splitlines()[-1])["status"] == "done"


def test_a_stage_of_a_whole_run_leaves_the_last_line_to_that(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, "token warehouse")
    with ending_in_json("build_vocabulary"):
        pass
    assert capsys.readouterr().out == ""
