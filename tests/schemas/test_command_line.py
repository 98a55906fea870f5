"""The command line: what every job accepts, and the exit code and the last line of every kind of error."""

from __future__ import annotations

from pathlib import Path

import pytest

from itemsage_model.encoders.model_files import CheckpointError
from schemas.command_line import exit_code_of_errors, settings_of, settings_parser
from schemas.errors import InputError, SettingsError, TableError, leaving_a_worker

TOML = '[warehouse]\nuri = "w"\n[dates]\nas_of = 2026-03-01\ntrain_days = 20\ntest_days = 7\n'


def test_settings_come_from_the_file_and_the_overrides(tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(TOML)
    parser = settings_parser("job", "What it does.")
    settings = settings_of(
        parser.parse_args(["--settings", str(path), "--set", "train.steps=7", "--set", "score.precision=auto"])
    )
    assert (settings.train.steps, settings.score.precision, settings.dates.train_days) == (7, "auto", 20)


def of_a_worker() -> Exception:
    try:
        with leaving_a_worker():
            raise TableError("items", "title", expected="a", found="b", cure="c")
    except RuntimeError as error:
        return ValueError(f"Job aborted.\n{error}\nDriver stacktrace:")
    raise AssertionError


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (SettingsError("train.steps: no number"), 2, "error: train.steps: no number"),
        (
            InputError("model", "weights", expected="a", found="b", cure="c"),
            3,
            "error: model, weights: expected a; found b. c",
        ),
        (
            TableError("items", "title", expected="a", found="b", cure="c"),
            3,
            "error: table items, column title: expected a",
        ),
        (CheckpointError("w/step_1 is damaged"), 3, "error: w/step_1 is damaged"),
        (of_a_worker(), 3, "error: table items, column title: expected a; found b. c"),
        (KeyError("x"), 1, "error: KeyError: 'x'"),
        (ValueError("long " * 2_000), 1, "error: ValueError: long long"),
    ],
)
def test_an_error_becomes_a_line_and_an_exit_code(
    error: Exception, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped, exit_code_of_errors():
        raise error
    assert stopped.value.code == code
    said = capsys.readouterr()
    assert said.out.startswith(line)
    assert len(said.out) < 2_100
    assert ("Traceback" in said.err) == (code == 1)


def test_no_error_is_no_exit() -> None:
    with exit_code_of_errors():
        pass
