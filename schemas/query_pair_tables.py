"""The tables on which a shop's own text encoder is trained: texts, and the items that were engaged with after them."""

from __future__ import annotations

from dataclasses import replace

from schemas.columns import Column, Table
from schemas.tables import TRAINING_PAIRS, VALIDATION_PAIRS

_TEXT = Column("text", "string", "what was typed, or says what an item is; its first 16,384 characters")


def _of_texts(table: Table, name: str, one_row_is: str) -> Table:
    """A table of pairs in which the text itself stands in the place of the query's id."""
    columns = []
    for column in table.columns:
        if column.name == "query_id":
            columns.append(_TEXT)
        elif column.name == "query_key":
            columns.append(replace(column, doc="64-bit hash of the text: the identity used for masks"))
        else:
            columns.append(column)
    return replace(table, name=name, one_row_is=one_row_is, columns=tuple(columns), key=("text", "item_id"))


QUERY_PAIRS = _of_texts(
    TRAINING_PAIRS,
    "query_pairs",
    "one (distinct search text, engaged item) pair with its capped weight, the text's frozen embedding and the item's "
    "features",
)

ITEM_TEXT_PAIRS = _of_texts(
    TRAINING_PAIRS,
    "item_text_pairs",
    "one (text of an item, that item) pair with the text's frozen embedding and the item's features",
)

VALIDATION_QUERY_PAIRS = _of_texts(
    VALIDATION_PAIRS,
    "query_pairs_validation",
    "one (distinct search text, item) pair of the validation window, with its engagement count there",
)
"""Not validation_query_pairs, which would be the table of a task."""
