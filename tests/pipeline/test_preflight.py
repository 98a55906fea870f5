from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import preflight

SCRIPT = Path(preflight.__file__)


def run_preflight(*arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code and output of the script under an environment of its own."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        env={"HOME": os.environ["HOME"], "PATH": "/nowhere", **environment},
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def java_17(tmp_path: Path) -> str:
    """A JAVA_HOME whose java says that it is 17."""
    executable(tmp_path / "jdk" / "bin" / "java", "echo 'openjdk version \"17.0.1\" 2021-10-19' >&2")
    return str(tmp_path / "jdk")


def test_no_java_on_the_path():
    code, text = run_preflight()
    assert code == 2
    assert text.startswith("error: no Java found on the PATH. Install a Java 17 or 21 runtime")


def test_a_java_home_without_java(tmp_path: Path):
    code, text = run_preflight(JAVA_HOME=str(tmp_path))
    assert code == 2
    assert f"no Java found at JAVA_HOME={tmp_path}" in text


def test_another_java(tmp_path: Path):
    executable(tmp_path / "bin" / "java", "echo 'openjdk version \"11.0.2\" 2019-01-15' >&2")
    code, text = run_preflight(JAVA_HOME=str(tmp_path))
    assert code == 2
    assert "Java 11 found" in text
    assert "takes 17 or 21" in text


@pytest.mark.parametrize("version", [(3, 9), (3, 13)])
def test_another_python(version: tuple[int, int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(preflight.sys, "version_info", (*version, 0, "final", 0))
    with pytest.raises(SystemExit) as stopped:
        preflight.check_python()
    assert stopped.value.code == 2
    assert "3.10, 3.11 or 3.12 is needed" in capsys.readouterr().out


def test_a_folder_that_lacks_a_jar(tmp_path: Path, java_17: str):
    (tmp_path / preflight.DELTA_JARS[0]).touch()
    code, text = run_preflight(JAVA_HOME=java_17, ITEMSAGE_DELTA_JARS=str(tmp_path))
    assert code == 2
    assert f"lacks {preflight.DELTA_JARS[1]}" in text


def test_everything_is_there(tmp_path: Path, java_17: str):
    for jar in preflight.DELTA_JARS:
        (tmp_path / jar).touch()
    assert run_preflight("--jars", JAVA_HOME=java_17, ITEMSAGE_DELTA_JARS=str(tmp_path)) == (0, "")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("sleep 60", "did not answer within 1 s"), ("echo UNRESOLVED DEPENDENCIES; exit 1", "could not be resolved")],
)
def test_a_repository_that_does_not_answer(
    answer: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    executable(tmp_path / "bin" / "spark-submit", f"exec {answer}" if answer.startswith("sleep") else answer)
    monkeypatch.setattr(preflight.sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setattr(preflight, "FETCH_DEADLINE_SECONDS", 1)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ITEMSAGE_DELTA_JARS", raising=False)
    with pytest.raises(SystemExit) as stopped:
        preflight.fetch_jars()
    assert stopped.value.code == 2
    text = capsys.readouterr().out
    assert reason in text
    assert "set ITEMSAGE_DELTA_JARS to a folder" in text
