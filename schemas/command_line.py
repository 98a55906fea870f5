"""The command line that jobs, trainer and pipeline share, and how an error becomes an exit code (schemas/errors.py)."""

from __future__ import annotations

import argparse
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from schemas.causes import cause_of
from schemas.errors import EXIT_FAILED, INTERRUPTED, from_worker
from schemas.plain_text import shown
from schemas.settings import Settings, load_settings


def settings_parser(prog: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser of `--settings FILE [--set section.key=value ...]`; `doc` is what --help shows."""
    parser = argparse.ArgumentParser(prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", required=True, help="the TOML settings file; pipeline.toml explains every key")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override one setting; repeatable")
    return parser


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings that the arguments of `settings_parser` name.

    Raises:
        SettingsError: they cannot be used.
    """
    return load_settings(arguments.settings, arguments.set)


def passed_on(arguments: argparse.Namespace) -> list[str]:
    """The arguments of `settings_parser` once more, for the command line of another process."""
    return ["--settings", arguments.settings, *(part for one in arguments.set for part in ("--set", one))]


@contextmanager
def exit_code_of_errors() -> Iterator[None]:
    """End the process with the exit code of the block's error, after one line on standard output that says what it is.

    An error that the project knows says its code itself (`exit_code`). Of any other the cause is looked for
    (`schemas.causes`), and its traceback goes to standard error. An `InputError` that another process raised is found
    in the message of what arrives here. Ctrl-C ends it with a line and a shell's code for it, 130.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        cause, code = cause_and_code(error)
        if _known(error) is None:
            sys.stderr.write(shown(traceback.format_exc(), lines=True))
        print(f"error: {cause}", flush=True)
        sys.exit(code)


def cause_and_code(error: BaseException) -> tuple[str, int]:
    """What an error comes down to, as it may be shown, and the exit code of whoever it ends."""
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else EXIT_FAILED if error.code else 0
        return f"ended with exit code {code}", code
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, 128 + signal.SIGINT
    if known := _known(error):
        return shown(str(known), lines=True), getattr(known, "exit_code", EXIT_FAILED)
    return cause_of(error)


def _known(error: BaseException) -> BaseException | None:
    """An error that says itself what is at fault, Ctrl-C among them; None where it must be looked for."""
    is_known = isinstance(error, KeyboardInterrupt) or hasattr(error, "exit_code")
    return error if is_known else from_worker(str(error))
