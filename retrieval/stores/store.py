"""What a vector store is to a push: rows go in by id, come back for verification, and one act makes them count.

A store keeps a record of its own beside the rows, `Held`, of what it holds. It claims a version only after `commit`,
which a push calls when what the store returns has been compared with what was published. Each target is one module
with a context manager `opened(settings)`, which turns the errors of its client into ours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import pyarrow as pa

from schemas.errors import EXIT_FAILED, GateError, InputError
from schemas.plain_text import shown
from schemas.tables import EMBEDDING_DIM

ITEM_ID, EMBEDDING = "item_id", "embedding"

Kind: TypeAlias = Literal["string", "boolean", "integer", "double"]
ARROW_KINDS: Mapping[Kind, pa.DataType] = {
    "string": pa.string(), "boolean": pa.bool_(), "integer": pa.int64(), "double": pa.float64(),
}  # fmt: skip
"""What a filter column may hold."""

RECORDS = "itemsage_pushes"
"""Name of the table or collection in which a store keeps its records."""


class StoreError(RuntimeError):
    """A store does not answer, or somebody else pushes into it; a retry may help.

    Args:
        store: Its name.
        expected: What it should have done.
        found: What it did.
        cure: What the user can do about it.
    """

    exit_code = EXIT_FAILED

    def __init__(self, store: str, *, expected: str, found: str, cure: str) -> None:
        super().__init__(shown(f"{store}: expected {expected}; found {found}. {cure}"))


class VerificationError(GateError):
    """What a store returns is not what was pushed: its record does not claim the version, and no retry mends it."""


@dataclass(frozen=True)
class Held:
    """A store's record of what it holds.

    Attributes:
        warehouse: Where it was published.
        version: Of item_embeddings.
        run_id: The run that scored it; with the version it names what was published, also in a table made anew.
        model_id: The model of its rows.
        spaces: Query kind -> the embedding space of the queries that its rows answer.
        columns: Filter column -> what it holds.
        rows: How many rows.
        ids_checksum: Order-free checksum over their ids, see `retrieval.stores.verification`; empty before a push.
        moving_to: The version of changes that were begun in place and not finished; None = there are none.
        is_distrusted: Whether it once returned other rows than it was given: the next push writes all anew.
    """

    warehouse: str
    version: int
    run_id: str
    model_id: str
    spaces: dict[str, str]
    columns: dict[str, Kind] = field(default_factory=dict)
    rows: int = 0
    ids_checksum: str = ""
    moving_to: int | None = None
    is_distrusted: bool = False

    def to_json(self) -> str:
        """As text, which `from_json` reads."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes, store: str) -> Held:
        """The inverse of `to_json`.

        Raises:
            InputError: it is no record of ours.
        """
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise InputError(
                store,
                "its record",
                expected="a record of what it holds, as `itemsage push` writes it",
                found=f"{error}",
                cure="Push into another table (push.table), or remove this one and its record.",
            ) from error

    @property
    def is_sure(self) -> bool:
        """Whether the rows are those of the version, as far as the record tells."""
        return self.moving_to is None and not self.is_distrusted


@dataclass(frozen=True)
class Plan:
    """What a push is going to write.

    Attributes:
        target: What the store shall hold; `rows` is what was published.
        since: What it holds, of which only the difference is written; None = all rows.
    """

    target: Held
    since: Held | None

    @property
    def key(self) -> str:
        """Two tries of one push have it in common, and nothing else has."""
        of = self.target
        named = [of.warehouse, of.version, of.run_id, of.columns, self.since.version if self.since else None]
        return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16]


class Store(Protocol):
    """A table, collection or folder of a vector store, opened by one push.

    Attributes:
        name: What it is called in messages; without a password.
        tolerance: By how much a number of a vector may come back otherwise.
        rows_at_once: Rows that `upsert` is best given.
        is_log: Whether it holds the actions of this push instead of all rows that they lead to.
    """

    name: str
    tolerance: float
    rows_at_once: int
    is_log: bool

    def held(self) -> Held | None:
        """What its record says; None where it has none."""

    def is_taken(self) -> bool:
        """Whether rows lie there that no record of ours explains."""

    def begin(self, plan: Plan) -> int:
        """Make ready; returns how many of the plan's rows, in their order, an earlier try has left behind."""

    def upsert(self, rows: pa.RecordBatch) -> None:
        """Write rows of `row_schema`, by id: written twice they are there once."""

    def delete(self, item_ids: Sequence[str]) -> None:
        """Remove rows; ids that are not there are no error."""

    def seal(self) -> None:
        """All is written: apply it and build what reading and searching need."""

    def ids(self) -> Iterator[pa.Array]:
        """The id of every row that it holds now, or of every upsert where it is a log."""

    def removed(self) -> Iterator[pa.Array]:
        """The id of every delete, where it is a log; else nothing."""

    def rows(self, item_ids: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The rows of some ids, of `row_schema`, in any order; ids that are not there are left out."""

    def commit(self, held: Held) -> None:
        """Let what was written count, and the record say so, at once or not at all."""

    def discard(self) -> None:
        """Verification failed: what was there before stands, or else the record says that it is not to be trusted."""


def row_schema(columns: Mapping[str, Kind]) -> pa.Schema:
    """The rows that stores are given: item_id, embedding (list of 256 float32), and the filter columns."""
    filters = [pa.field(name, ARROW_KINDS[kind]) for name, kind in columns.items()]
    return pa.schema([(ITEM_ID, pa.string()), (EMBEDDING, pa.list_(pa.float32())), *filters])


def to_rows(
    columns: Mapping[str, Kind], item_ids: list[str], vectors: list[Any], filters: Mapping[str, list[Any]]
) -> pa.RecordBatch:
    """Rows that a client returned as Python values, as `row_schema` has them.

    Args:
        columns: The filter columns.
        item_ids: Of each row.
        vectors: Of each row, a sequence of numbers.
        filters: Filter column -> the value of each row.
    """
    arrays = [pa.array(item_ids, pa.string()), pa.array(vectors, pa.list_(pa.float32()))]
    arrays += [pa.array(filters[name], ARROW_KINDS[kind]) for name, kind in columns.items()]
    return pa.RecordBatch.from_arrays(arrays, schema=row_schema(columns))


def chunks(values: Sequence[str], size: int) -> Iterator[list[str]]:
    """A sequence in pieces."""
    for start in range(0, len(values), size):
        yield list(values[start : start + size])


def fixed_vectors(lists: pa.Array) -> pa.Array:
    """A column of lists of 256 numbers as one of fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(lists.flatten(), EMBEDDING_DIM)
