"""Errors: what they say, the exit codes they stand for, and their way out of another process."""

from __future__ import annotations

import traceback

import pytest

from schemas.errors import (
    EXIT_INPUT,
    EXIT_SETTINGS,
    InputError,
    SettingsError,
    TableError,
    from_worker,
    leaving_a_worker,
)

ERRORS = [
    TableError(
        "items", "title", expected="text. Nothing else", found='a "null"; expected. found', cure="Fill it. Now."
    ),
    InputError("run record of train", "", expected="one", found="none at s3://a/b", cure="Run train."),
]


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_crosses_a_process_whole(error: InputError) -> None:
    with pytest.raises(RuntimeError) as caught, leaving_a_worker():
        raise error
    lines = [
        "org.apache.spark.SparkException: Job aborted",
        *traceback.format_exception(caught.value),
        "  at java.lang",
    ]
    found = from_worker("\n".join(lines))
    assert (type(found), str(found)) == (type(error), str(error))
    assert vars(found) == vars(error)


def test_other_errors_leave_as_they_are_and_other_texts_hold_none() -> None:
    with pytest.raises(KeyError), leaving_a_worker():
        raise KeyError("x")
    assert from_worker("TableError: table items, column title: expected a; found b. c") is None


def test_the_subject_need_not_be_a_table() -> None:
    assert str(ERRORS[0]).startswith("table items, column title: expected text")
    assert str(ERRORS[1]) == "run record of train: expected one; found none at s3://a/b. Run train."


def test_every_error_says_its_exit_code() -> None:
    assert (InputError.exit_code, TableError.exit_code, SettingsError.exit_code) == (
        EXIT_INPUT,
        EXIT_INPUT,
        EXIT_SETTINGS,
    )
