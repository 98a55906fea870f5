"""The elements of an item's sequence, each declared once: which columns hold it, in what numbers, how they are cut.

An element is a list of values an item, in slots: token ids in the slots of the text features, or vectors in slots of
their own. item_features and the training tables hold its columns, `data/` unpacks them, a batch holds the values under
the name of their column, and the item tower turns them into vectors. A new element is declared here, sized
in `settings/__init__.py`, written by a job, and given its branch in `encoders/item_tower.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from schemas.columns import Column


@dataclass(frozen=True)
class Element:
    """One element as all shops have it.

    Attributes:
        name: Its name in model.sequence.
        values: The column of its numbers, those of all slots end to end.
        dtype: What they are, as numpy names it.
        counts: The column that says how many values each slot has; None = a slot holds one value, and the length of
            the cell says how many slots are used.
    """

    name: str
    values: Column
    dtype: str
    counts: Column | None = None

    @property
    def columns(self) -> tuple[Column, ...]:
        """Its columns, in the order in which they are written."""
        return (self.values, self.counts) if self.counts else (self.values,)

    def sized(self, *, slots: int, length: int, id_count: int = 0) -> SizedElement:
        """The element with one shop's sizes; see `SizedElement`."""
        return SizedElement(self, slots, length, id_count)


@dataclass(frozen=True)
class SizedElement:
    """One element with one shop's sizes.

    Attributes:
        element: What all shops have alike.
        slots: Slots of an item; where a slot holds one value, the most that are used.
        length: Numbers of a vector that enters the sequence.
        id_count: Values are ids below this number; 0 = values are vectors of `length` numbers.
    """

    element: Element
    slots: int
    length: int
    id_count: int = 0

    @property
    def key(self) -> str:
        """The column of its values, which is also its key in a batch."""
        return self.element.values.name


TEXT = Element(
    "text",
    Column(
        "text_token_ids", "binary", "little-endian int32 token ids of all text features, in sequence order", shape=(-1,)
    ),
    "<i4",
    Column(
        "text_token_counts", "binary", "little-endian int32 number of token ids of each text feature", shape=(-1,)
    ),
)  # fmt: skip

IMAGES = Element(
    "images",
    Column(
        "image_embeddings",
        "binary",
        "little-endian float16 image embeddings of model.image_length numbers, by position; empty = no image",
        shape=(-1, -1),
    ),
    "<f2",
)

FROZEN_TEXT = Element(
    "frozen_text",
    Column(
        "text_embedding",
        "binary",
        "little-endian float16 frozen embedding of the item's text, of 256 numbers, unit length; empty = no text",
        shape=(-1, 256),
    ),
    "<f2",
)

ELEMENTS = (TEXT, IMAGES, FROZEN_TEXT)
"""All elements, in the order of their columns."""

ELEMENT_COLUMNS = tuple(column for element in ELEMENTS for column in element.columns)
FEATURE_CELLS = tuple(column.name for column in ELEMENT_COLUMNS)
"""Names of the columns that hold an item's features."""
