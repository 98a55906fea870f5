"""What goes wrong, by whose fault it is, and the exit codes that say so to a scheduler.

Exit codes: 0 done, or done before; 1 unexpected failure, a retry may help; 2 settings or arguments; 3 bad input; 4 a
gate before publishing stayed shut. Of 2, 3 and 4 a retry will not help.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from schemas.plain_text import shown

EXIT_FAILED, EXIT_SETTINGS, EXIT_INPUT, EXIT_GATE = 1, 2, 3, 4

INTERRUPTED = "interrupted. What is committed stands; run it again."
"""What Ctrl-C is answered with."""

_MARK = "InputError as JSON: "


class SettingsError(ValueError):
    """A settings file or a `--set` that cannot be used. The message names the key and the fix."""

    exit_code = EXIT_SETTINGS

    def __init__(self, message: str) -> None:
        super().__init__(shown(message, lines=True))


class DeadlineError(RuntimeError):
    """Something did not come in time, and a retry may help. The message names it, the setting and the cure.

    Args:
        subject: What waited.
        expected: What it waited for, and how long.
        found: What is known of it.
        cure: What the user can do about it.
    """

    exit_code = EXIT_FAILED

    def __init__(self, subject: str, *, expected: str, found: str, cure: str) -> None:
        super().__init__(f"{subject}: expected {expected}; found {found}. {cure}")


class InputError(ValueError):
    """Bad input or a broken contract. The message names what is at fault, the expectation, the finding and the cure.

    Args:
        subject: What is at fault, such as a run record, a model, the warehouse.
        part: Which part of it.
        expected: What it should have been.
        found: What it is.
        cure: What the user can do about it.
    """

    exit_code = EXIT_INPUT

    def __init__(self, subject: str, part: str, *, expected: str, found: str, cure: str) -> None:
        # A finding may be the shop's own text, or a URI as somebody wrote it.
        self.subject, self.part = shown(subject), shown(part)
        self.expected, self.found, self.cure = shown(expected), shown(found), shown(cure)
        super().__init__(f"{self._where()}: expected {self.expected}; found {self.found}. {self.cure}")

    def _where(self) -> str:
        return f"{self.subject}, {self.part}" if self.part else self.subject


class GateError(InputError):
    """What is about to be published is not what the gates let through; what was published before stands."""

    exit_code = EXIT_GATE


class TableError(InputError):
    """An `InputError` whose subject is a table and whose part is a column; `(all)` = no single one."""

    @property
    def table(self) -> str:
        """The table's name."""
        return self.subject

    @property
    def column(self) -> str:
        """The column's name."""
        return self.part

    def _where(self) -> str:
        return f"table {self.subject}, column {self.part}"


class WorkerError(RuntimeError):
    """An `InputError` on its way out of another process; its last line holds the error as JSON, see `from_worker`."""


@contextmanager
def leaving_a_worker() -> Iterator[None]:
    """Makes an `InputError` of the block one that `from_worker` finds in the traceback that reaches the driver."""
    try:
        yield
    except InputError as error:
        fields = {name: getattr(error, name) for name in ("subject", "part", "expected", "found", "cure")}
        raise WorkerError(_MARK + json.dumps(fields | {"kind": type(error).__name__})) from None


def from_worker(text: str) -> InputError | None:
    """The first `InputError` in a text, such as the traceback of another process; None where there is none."""
    for line in text.splitlines():
        _, mark, rest = line.partition(_MARK)
        if mark:
            # What stands behind the object, if anything, is not ours.
            fields, _ = json.JSONDecoder().raw_decode(rest)
            kind = TableError if fields.pop("kind") == TableError.__name__ else InputError
            return kind(**fields)
    return None
