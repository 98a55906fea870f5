"""The archive of Spark's classes: written once by a stage that ends well, read by the next ones, never half-written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import class_archive
from pipeline.class_archive import shared_classes
from pipeline.preflight import find_java


def java(options: str) -> tuple[str, str]:
    """Run a small Java program under such options: what it wrote to standard output and to standard error."""
    program = find_java()
    assert program is not None
    command = [program, *(option.strip('"') for option in options.split()), "-version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


def test_the_first_stage_writes_the_archive_and_the_second_reads_it(tmp_path: Path) -> None:
    archive = tmp_path / "classes.jsa"
    for _ in range(2):
        with shared_classes({"SPARK_SUBMIT_OPTS": "-Dkept=1"}, archive) as environment:
            options = environment["SPARK_SUBMIT_OPTS"]
            out, _ = java(options)
            assert (options.split()[-1], out) == ("-Dkept=1", "")
            is_first = "ArchiveClassesAtExit" in options
            assert is_first != archive.exists()
    assert not is_first
    assert [path.name for path in tmp_path.iterdir()] == ["classes.jsa"]


def test_what_a_failed_stage_wrote_is_not_kept(tmp_path: Path) -> None:
    def failing_stage() -> None:
        with shared_classes({}, tmp_path / "classes.jsa") as environment:
            java(environment["SPARK_SUBMIT_OPTS"])
            assert list(tmp_path.iterdir()) != []
            sys.exit(1)

    with pytest.raises(SystemExit):
        failing_stage()
    assert list(tmp_path.iterdir()) == []


def test_without_room_no_archive_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_archive, "_FREE_BYTES", 1 << 62)
    with shared_classes({}, tmp_path / "classes.jsa") as environment:
        assert "Archive" not in environment["SPARK_SUBMIT_OPTS"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_where_nothing_can_be_written_no_archive_is_asked_for(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with shared_classes({}, tmp_path / "classes.jsa") as environment:
        assert "Archive" not in environment["SPARK_SUBMIT_OPTS"]


def test_an_archive_that_does_not_fit_is_no_hindrance(tmp_path: Path) -> None:
    archive = tmp_path / "classes.jsa"
    archive.write_bytes(b"of another Java")
    with shared_classes({}, archive) as environment:
        out, error = java(environment["SPARK_SUBMIT_OPTS"])
    assert out == ""
    assert "version" in error
