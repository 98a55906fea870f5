"""Column and Table: the two words in which every table of the pipeline is declared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "string",
    "int32",
    "int64",
    "float32",
    "float64",
    "boolean",
    "timestamp",
    "binary",  # packed little-endian numbers; `shape` and `doc` say which
    "vector",  # list of float32 of the length in `shape`
    "strings",  # list of strings
]


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: The column's name, which is also the tensor's key in a batch.
        kind: Storage type; see `Kind`.
        doc: What the value means, with its unit.
        nullable: Whether a row may leave the value out.
        optional: Whether an input table may lack the column altogether; it is then filled with nulls.
        shape: Fixed length of a `vector`, or the row-major shape of a packed `binary` (-1 = any).
        cell_bytes: Length of every cell of a packed `binary`; 0 = any.
        is_positive: Whether every number is above 0.
        max_bytes: Most bytes of a string in UTF-8, in an input; 0 = any number, of which the jobs read a part.
    """

    name: str
    kind: Kind
    doc: str
    nullable: bool = False
    optional: bool = False
    shape: tuple[int, ...] = ()
    cell_bytes: int = 0
    is_positive: bool = False
    max_bytes: int = 0


@dataclass(frozen=True)
class Table:
    """A table: its name, what one row is, its columns, those that identify a row, those that its checksum covers."""

    name: str
    one_row_is: str
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    checksummed: tuple[str, ...] = ()

    @property
    def column_names(self) -> tuple[str, ...]:
        """The declared column names, in the order in which they are written."""
        return tuple(column.name for column in self.columns)

    def column(self, name: str) -> Column:
        """Look one column up by name.

        Raises:
            KeyError: the table declares no such column.
        """
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(f"table {self.name} declares no column {name!r}; it has {', '.join(self.column_names)}")
