"""What goes wrong, by whose fault it is: bad input, bad settings; and the exit codes that say so."""

from __future__ import annotations

import re


class TableError(ValueError):
    """Bad input or a broken contract. The message names table, column, expectation, finding and cure."""

    def __init__(self, table: str, column: str, *, expected: str, found: str, cure: str) -> None:
        self.table, self.column = table, column
        super().__init__(f"table {table}, column {column}: expected {expected}; found {found}. {cure}")

    @classmethod
    def from_text(cls, text: str) -> TableError | None:
        """The first error of this kind in a text, such as the traceback of another process."""
        message = r"TableError: table (.+?), column (.+?): expected (.+?); found (.+?)\. (.+)"
        found = re.search(message, text)
        return cls(found[1], found[2], expected=found[3], found=found[4], cure=found[5]) if found else None


class SettingsError(ValueError):
    """A settings file or a `--set` that cannot be used. The message names the key and the fix."""
