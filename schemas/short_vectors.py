"""The short forms of an embedding that `score.short_vectors` names, and their columns in item_short_vectors."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from schemas.columns import Column, Table
from schemas.tables import EMBEDDING_DIM, ITEM_SHORT_VECTORS

Kind = Literal["float32", "float16", "int8"]

LEAST_LENGTH = 8
_BYTES: dict[Kind, int] = {"float32": 4, "float16": 2, "int8": 1}
_SCALE_BYTES = 4
_SPELLED = re.compile(r"(float32|float16|int8)(?::([1-9][0-9]*))?")


@dataclass(frozen=True)
class ShortVector:
    """One short form.

    Attributes:
        kind: What its numbers are.
        length: How many there are; below 256 the embedding is rotated first, see retrieval/short_vectors.py.
    """

    kind: Kind
    length: int

    def __str__(self) -> str:
        return self.kind if self.length == EMBEDDING_DIM else f"{self.kind}:{self.length}"

    @property
    def is_prefix(self) -> bool:
        """Whether it has fewer numbers than the embedding."""
        return self.length < EMBEDDING_DIM

    @property
    def column(self) -> str:
        """The column of its numbers, such as int8_64."""
        return f"{self.kind}_{self.length}"

    @property
    def scale_column(self) -> str:
        """The column of what its numbers are multiplied by; empty where they are the vector's own."""
        return f"{self.column}_scale" if self.kind == "int8" else ""

    @property
    def columns(self) -> tuple[Column, ...]:
        """Its columns."""
        if self.kind == "float32":
            doc = f"the first {self.length} numbers of the rotated embedding"
            return (Column(self.column, "vector", doc, shape=(self.length,)),)
        doc = f"little-endian {self.kind}" + (f" of the first {self.length} rotated numbers" if self.is_prefix else "")
        cell_bytes = _BYTES[self.kind] * self.length
        codes = Column(self.column, "binary", doc, shape=(self.length,), cell_bytes=cell_bytes)
        scale = Column(self.scale_column, "float32", "what each of them is multiplied by", is_positive=True)
        return (codes, scale) if self.scale_column else (codes,)

    @property
    def bytes(self) -> int:
        """Bytes of an item's vector."""
        return _BYTES[self.kind] * self.length + (_SCALE_BYTES if self.scale_column else 0)


def short_vector(name: str) -> ShortVector:
    """A short form by its name in the settings, such as float16, int8:64 or float32:128.

    Raises:
        ValueError: it is none.
    """
    found = _SPELLED.fullmatch(name)
    length = int(found[2] or EMBEDDING_DIM) if found else 0
    if found is None or not LEAST_LENGTH <= length <= EMBEDDING_DIM:
        raise ValueError(
            f"{name!r} is no short form: name float32, float16 or int8, and after a colon a length from {LEAST_LENGTH} "
            f"to {EMBEDDING_DIM}, such as int8:64"
        )
    kind: Kind = found[1]  # type: ignore[assignment]
    if kind == "float32" and length == EMBEDDING_DIM:
        raise ValueError(f"{name!r} is what item_embeddings holds: name a shorter one")
    return ShortVector(kind, length)


def short_vectors_table(forms: Iterable[ShortVector]) -> Table:
    """The table item_short_vectors with the columns of these forms."""
    columns = (column for form in forms for column in form.columns)
    return replace(ITEM_SHORT_VECTORS, columns=(*ITEM_SHORT_VECTORS.columns, *columns))
