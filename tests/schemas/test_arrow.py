"""Tables as Arrow: the same types as Spark's, and every way for a batch to break its table's declaration."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql.pandas.types import to_arrow_schema

from schemas import tables
from schemas.arrow import arrow_schema, conform_batch
from schemas.columns import Column, Table
from schemas.errors import TableError
from schemas.spark import struct_type

THINGS = Table(
    "things",
    "one thing",
    (
        Column("item_id", "string", "the thing"),
        Column("weight", "float32", "grams", nullable=True),
        Column("embedding", "vector", "where it lies", shape=(2,)),
    ),
)
VALID: dict[str, Any] = {
    "item_id": pa.array(["a"]),
    "weight": pa.array([None], pa.float32()),
    "embedding": pa.array([[1.0, 2.0]], pa.list_(pa.float32())),
}


def things(**other: Any) -> pa.RecordBatch:
    columns = {name: column for name, column in (VALID | other).items() if column is not None}
    return pa.RecordBatch.from_pydict(columns)


@pytest.mark.parametrize("table", [t for t in vars(tables).values() if isinstance(t, Table)], ids=lambda t: t.name)
def test_every_table_means_the_same_to_arrow_and_to_spark(table: Table) -> None:
    ours, sparks = arrow_schema(table), to_arrow_schema(struct_type(table))
    assert ours.names == sparks.names
    assert [field.nullable for field in ours] == [field.nullable for field in sparks]
    assert [str(field.type).replace("element:", "item:") for field in sparks] == [str(field.type) for field in ours]


def test_the_declared_columns_come_in_their_order_without_others() -> None:
    batch = things(unknown=pa.array([1])).select(["unknown", "embedding", "weight", "item_id"])
    conformed = conform_batch(batch, THINGS)
    assert conformed.schema == arrow_schema(THINGS)
    assert conformed.to_pydict() == {name: column.to_pylist() for name, column in VALID.items()}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"weight": None}, "column weight: expected a column of type float; found none of that name"),
        ({"weight": pa.array([1.0])}, "column weight: expected type float; found type double"),
        ({"item_id": pa.array([None], pa.string())}, "column item_id: expected a value in every row; found 1 null"),
        (
            {"embedding": pa.array([[1.0]], pa.list_(pa.float32()))},
            "column embedding: expected vectors of length 2; found a vector of length 1",
        ),
    ],
)
@pytest.mark.fault("B10", "loud", "a batch with a column missing or mistyped, a null, a vector of another length")
def test_what_breaks_the_declaration_is_named(other: dict[str, Any], message: str) -> None:
    with pytest.raises(TableError, match=f"table things, {message}.*Nothing was published"):
        conform_batch(things(**other), THINGS)
