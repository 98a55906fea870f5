"""LanceDB: a table whose versions are commits, and a tag, `itemsage`, that moves to the verified one.

All rows anew overwrite the table, a commit a batch; changes are a merge and a delete. Readers who check out the tag
find what was verified last; those who take the newest commit see a push at work. Where verification fails, the tagged
version is restored. The record is a row of the table `itemsage_pushes` that names the tagged version. Let one push run
at a time: LanceDB has no lock to tell by. Needs pyarrow 16 or newer, so it runs in an environment of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from retrieval.stores.store import (
    EMBEDDING,
    ITEM_ID,
    RECORDS,
    Held,
    Kind,
    Plan,
    StoreError,
    chunks,
    fixed_vectors,
    row_schema,
)
from schemas.plain_text import shown
from schemas.settings import PushSettings
from schemas.storage import absolute_uri
from schemas.tables import EMBEDDING_DIM

TAG = "itemsage"
_IDS_AT_ONCE = 50_000
_LOOKED_UP_AT_ONCE = 500
_STAGED = -1
"""In the place of a version: the row that says which push is at work."""
_RECORD = pa.schema([("table", pa.string()), ("version", pa.int64()), ("content", pa.string())])


@contextmanager
def opened(settings: PushSettings) -> Iterator[Lance]:
    """A LanceDB table, for one push.

    Raises:
        StoreError: LanceDB cannot read or write there.
    """
    import lancedb  # noqa: PLC0415 (only its own environment has it)

    name = shown(f"LanceDB table {settings.table}, {settings.uri}")
    try:
        yield Lance(lancedb.connect(absolute_uri(settings.uri)), settings, name)
    except (OSError, RuntimeError) as error:
        if hasattr(error, "exit_code"):
            raise
        found = (str(error).strip().splitlines() or [type(error).__name__])[0]
        cure = "Look at the folder, and run the push again; it goes on where it was."
        raise StoreError(name, expected="a folder that LanceDB reads and writes", found=found, cure=cure) from error


class Lance:
    """See the module.

    Args:
        database: Connected.
        settings: The table.
        name: What it is called in messages.
    """

    tolerance = 0.0
    rows_at_once = 65_536
    is_log = False

    def __init__(self, database: Any, settings: PushSettings, name: str) -> None:
        self.name = name
        self._database, self._name = database, settings.table
        self._plan: Plan | None = None
        names = database.list_tables().tables
        self._table: Any = database.open_table(self._name) if self._name in names else None
        self._records: Any = database.open_table(RECORDS) if RECORDS in names else None

    # ------------------------------------------------------------ what the record says

    def held(self) -> Held | None:
        """See `Store`."""
        tagged = self._tagged()
        text = self._recorded(tagged) if tagged is not None else ""
        return Held.from_json(text, self.name) if text else None

    def is_taken(self) -> bool:
        """See `Store`."""
        return self._table is not None and not self._recorded(_STAGED) and bool(self._table.count_rows())

    def _tagged(self) -> int | None:
        if self._table is None or TAG not in self._table.tags.list():
            return None
        return int(self._table.tags.get_version(TAG))

    def _recorded(self, version: int) -> str:
        if self._records is None:
            return ""
        found = self._records.search().where(self._row(version)).limit(1).to_arrow()
        return str(found["content"][0].as_py()) if len(found) else ""

    def _row(self, version: int) -> str:
        return f"`table` = '{self._name}' AND version = {version}"

    def _record(self, version: int, content: str) -> None:
        if self._records is None:
            self._records = self._database.create_table(RECORDS, schema=_RECORD)
        row = pa.table({"table": [self._name], "version": [version], "content": [content]}, schema=_RECORD)
        merge = self._records.merge_insert(["table", "version"])
        merge.when_matched_update_all().when_not_matched_insert_all().execute(row)

    # ------------------------------------------------------------ writing

    def begin(self, plan: Plan) -> int:
        """See `Store`."""
        self._plan = plan
        if plan.since is not None:
            self._forget_staged()
            self._restore()
            return 0
        if self._table is not None and self._recorded(_STAGED) == plan.key:
            return int(self._table.count_rows())
        self._forget_staged()
        self._table = self._database.create_table(self._name, schema=self._schema, mode="overwrite")
        self._record(_STAGED, plan.key)
        return 0

    def _forget_staged(self) -> None:
        if self._records is not None:
            self._records.delete(self._row(_STAGED))

    def _restore(self) -> None:
        """Undo what an earlier try has left above the tagged version."""
        tagged = self._tagged()
        if tagged is not None and self._table.version != tagged:
            self._table.restore(tagged)

    @property
    def _schema(self) -> pa.Schema:
        vector = pa.field(EMBEDDING, pa.list_(pa.float32(), EMBEDDING_DIM))
        return pa.schema([vector if one.name == EMBEDDING else one for one in row_schema(self._columns)])

    def upsert(self, rows: pa.RecordBatch) -> None:
        """See `Store`."""
        arrays = [fixed_vectors(rows.column(n)) if n == EMBEDDING else rows.column(n) for n in rows.schema.names]
        table = pa.Table.from_arrays(arrays, schema=self._schema)
        assert self._plan
        if self._plan.since is None:
            self._table.add(table)
        else:
            merge = self._table.merge_insert(ITEM_ID).when_matched_update_all().when_not_matched_insert_all()
            merge.execute(table)

    def delete(self, item_ids: Sequence[str]) -> None:
        """See `Store`."""
        for some in chunks(item_ids, _LOOKED_UP_AT_ONCE):
            self._table.delete(_among(some))

    def seal(self) -> None:
        """See `Store`."""
        assert self._plan
        if self._plan.since is None and not self._table.list_indices():
            self._table.create_scalar_index(ITEM_ID)

    # ------------------------------------------------------------ reading back

    def ids(self) -> Iterator[pa.Array]:
        """See `Store`."""
        for batch in self._table.search().select([ITEM_ID]).to_batches(batch_size=_IDS_AT_ONCE):
            yield batch.column(ITEM_ID)

    def removed(self) -> Iterator[pa.Array]:
        """See `Store`."""
        return iter(())

    def rows(self, item_ids: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """See `Store`."""
        schema = row_schema(self._columns)
        for some in chunks(item_ids, _LOOKED_UP_AT_ONCE):
            found = self._table.search().where(_among(some)).limit(2 * len(some)).to_arrow()
            yield from found.select(schema.names).cast(schema).to_batches()

    # ------------------------------------------------------------ the end

    def commit(self, held: Held) -> None:
        """See `Store`."""
        version = self._table.version
        self._record(version, held.to_json())
        if self._tagged() is None:
            self._table.tags.create(TAG, version)
        else:
            self._table.tags.update(TAG, version)
        self._forget_staged()
        self._records.delete(f"`table` = '{self._name}' AND version <> {version}")

    def discard(self) -> None:
        """See `Store`."""
        self._forget_staged()
        if self._tagged() is None:
            self._database.drop_table(self._name)
        else:
            self._restore()

    @property
    def _columns(self) -> Mapping[str, Kind]:
        assert self._plan
        return self._plan.target.columns


def _among(item_ids: Sequence[str]) -> str:
    quoted = ", ".join("'" + item.replace("'", "''") + "'" for item in item_ids)
    return f"{ITEM_ID} IN ({quoted})"
