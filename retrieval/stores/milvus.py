"""Milvus, a server or a file of milvus-lite: a collection for each whole push, and one act that points to it.

All rows anew: a collection `<table>_<key>` is filled and verified; then the alias `<table>` moves to it, which a server
does at once. milvus-lite has no aliases: there a row of the collection `itemsage_pushes` is the pointer, see
`live_collection`. Changes are upserted and deleted in place, so that readers see them come, request by request; the
record says so from before the first to after the verification, and where it stays so, the next push does them again,
or writes all rows anew. Filter columns are dynamic fields, left out where they are null. A token comes from the
environment, `ITEMSAGE_MILVUS_TOKEN`. Let one push run at a time: Milvus has no lock to tell by.
"""

from __future__ import annotations

import json
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from pymilvus import DataType, MilvusClient, MilvusException

from retrieval.stores.store import EMBEDDING, ITEM_ID, RECORDS, Held, Kind, Plan, StoreError, chunks, to_rows
from schemas.errors import InputError
from schemas.plain_text import shown
from schemas.settings import PushSettings
from schemas.storage import absolute_uri
from schemas.tables import EMBEDDING_DIM

TOKEN = "ITEMSAGE_MILVUS_TOKEN"  # nosec B105
_UNSAFE = re.compile(r"""['"\\\x00-\x1f]""")
_MOST_BYTES = 65_535
"""Of a text, in Milvus."""
_SECONDS = 60.0
_IDS_AT_ONCE = 10_000
_LOOKED_UP_AT_ONCE = 1_000
_POINTER = "live: "
"""Before the table's name, the key of the record that points to a collection where there are no aliases."""


@contextmanager
def opened(settings: PushSettings) -> Iterator[Milvus]:
    """A collection of Milvus, for one push.

    Raises:
        StoreError: Milvus does not answer, or refuses a request.
    """
    name = shown(f"Milvus collection {settings.table}, {settings.uri}")
    token = os.environ.get(TOKEN, "")
    # It logs every error with its whole stack; ours says what there is to say.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    uri = absolute_uri(settings.uri) if settings.is_place else settings.uri
    client = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # milvus-lite imports pkg_resources
            client = MilvusClient(uri, token=token, timeout=_SECONDS)
        yield Milvus(client, settings, name)
    # grpc's errors are RuntimeErrors of its own; milvus-lite's own process may not start (ConnectionError, OSError).
    except (MilvusException, OSError, RuntimeError) as error:
        if hasattr(error, "exit_code"):
            raise
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        found = text.replace(token, "***") if token else text
        cure = f"Look at Milvus, and run the push again; a token comes from {TOKEN}."
        raise StoreError(name, expected="a Milvus that does what it is asked", found=found, cure=cure) from error
    finally:
        if client is not None:
            client.close()


def live_collection(client: MilvusClient, table: str) -> str:
    """The collection that a table's name stands for in milvus-lite; empty = none. A server takes the name itself."""
    name = _read(client, f"{_POINTER}{table}")
    return name if name and client.has_collection(name) else ""


def _read(client: MilvusClient, key: str) -> str:
    if not client.has_collection(RECORDS):
        return ""
    found = client.get(RECORDS, ids=[key], output_fields=["content"])
    return str(found[0]["content"]) if found else ""


class Milvus:
    """See the module.

    Args:
        client: Connected.
        settings: Collection and index.
        name: What it is called in messages.
    """

    tolerance = 0.0
    rows_at_once = 4_096
    is_log = False

    def __init__(self, client: Any, settings: PushSettings, name: str) -> None:
        self.name = name
        self._client, self._table = client, settings.table
        self._has_aliases = not settings.is_place
        self._has_hnsw = settings.hnsw and self._has_aliases
        self._written, self._done = "", 0
        self._plan: Plan | None = None

    # ------------------------------------------------------------ what the record says

    def held(self) -> Held | None:
        """See `Store`."""
        live = self._live()
        text = _read(self._client, live) if live else ""
        return Held.from_json(text, self.name) if text else None

    def is_taken(self) -> bool:
        """See `Store`."""
        return bool(self._live()) or bool(self._client.has_collection(self._table))

    def _live(self) -> str:
        """The collection that readers are led to; empty = none."""
        if not self._has_aliases:
            return live_collection(self._client, self._table)
        try:
            return str(self._client.describe_alias(self._table)["collection_name"])
        except MilvusException as error:
            if "not found" in str(error) or "not exist" in str(error):
                return ""
            raise

    def _record(self, key: str, content: str) -> None:
        if not self._client.has_collection(RECORDS):
            schema = self._client.create_schema(auto_id=False)
            schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=512)
            schema.add_field("content", DataType.VARCHAR, max_length=_MOST_BYTES)
            schema.add_field("unused", DataType.FLOAT_VECTOR, dim=2)  # every collection has a vector
            self._client.create_collection(RECORDS, schema=schema, index_params=self._index("unused", "FLAT"),
                                           consistency_level="Strong")  # fmt: skip
        self._client.upsert(RECORDS, [{"key": key, "content": content, "unused": [0.0, 0.0]}])

    # ------------------------------------------------------------ writing

    def begin(self, plan: Plan) -> int:
        """See `Store`."""
        self._plan = plan
        live = self._live()
        if plan.since is not None:
            self._written = live
            self._record(live, replace(plan.since, moving_to=plan.target.version).to_json())
            return 0
        self._written = f"{self._table}_{plan.key}"
        if self._written == live:  # the same version, which is not to be trusted as it lies there
            self._written += "_again"
        progress = json.loads(_read(self._client, self._progress) or "{}")
        if progress.get("collection") == self._written and self._client.has_collection(self._written):
            self._done = int(progress["rows"])
            return self._done
        for litter in {progress.get("collection", self._written), self._written} - {live}:
            if self._client.has_collection(litter):
                self._client.drop_collection(litter)
        self._create()
        self._note_rows(0)
        return 0

    def _create(self) -> None:
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=True)
        schema.add_field(ITEM_ID, DataType.VARCHAR, is_primary=True, max_length=_MOST_BYTES)
        schema.add_field(EMBEDDING, DataType.FLOAT_VECTOR, dim=EMBEDDING_DIM)
        self._client.create_collection(self._written, schema=schema, consistency_level="Strong")

    def _index(self, field: str, kind: str) -> Any:
        index = self._client.prepare_index_params()
        index.add_index(field, index_type=kind, metric_type="IP")
        return index

    @property
    def _progress(self) -> str:
        return f"staged: {self._table}"

    def _note_rows(self, rows: int) -> None:
        self._done = rows
        self._record(self._progress, json.dumps({"collection": self._written, "rows": rows}))

    def upsert(self, rows: pa.RecordBatch) -> None:
        """See `Store`."""
        self._require_ids(rows.column(ITEM_ID).to_pylist())
        vectors = np.asarray(rows.column(EMBEDDING).flatten()).reshape(-1, EMBEDDING_DIM)
        others = [name for name in rows.schema.names if name != EMBEDDING]
        values = zip(*(rows.column(name).to_pylist() for name in others), strict=True)
        entities = [
            {name: value for name, value in zip(others, row, strict=True) if value is not None} | {EMBEDDING: vector}
            for row, vector in zip(values, vectors, strict=True)
        ]
        self._client.upsert(self._written, entities)
        if self._is_whole:
            self._note_rows(self._done + len(rows))

    def _require_ids(self, item_ids: list[str]) -> None:
        for item in item_ids:
            if _UNSAFE.search(item) or len(item.encode()) > _MOST_BYTES:
                raise InputError(
                    "item_embeddings", ITEM_ID, found=repr(item[:60]),
                    expected=f"at most {_MOST_BYTES:,} bytes without quotes, backslashes and control characters, as "
                    "Milvus' client puts ids into expressions as they are",
                    cure="Give the item another id, or use another store.",
                )  # fmt: skip

    def delete(self, item_ids: Sequence[str]) -> None:
        """See `Store`."""
        for some in chunks(item_ids, _LOOKED_UP_AT_ONCE):
            self._client.delete(self._written, ids=some)

    def seal(self) -> None:
        """See `Store`."""
        self._client.flush(self._written)
        if self._is_whole:
            if not self._client.list_indexes(self._written):
                index = self._index(EMBEDDING, "HNSW" if self._has_hnsw else "FLAT")
                self._client.create_index(self._written, index)
            self._client.load_collection(self._written)

    # ------------------------------------------------------------ reading back

    def ids(self) -> Iterator[pa.Array]:
        """See `Store`."""
        pages = self._client.query_iterator(self._written, batch_size=_IDS_AT_ONCE, filter="", output_fields=[ITEM_ID])
        try:
            while page := pages.next():
                yield pa.array([one[ITEM_ID] for one in page], pa.string())
        finally:
            pages.close()

    def removed(self) -> Iterator[pa.Array]:
        """See `Store`."""
        return iter(())

    def rows(self, item_ids: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """See `Store`."""
        for some in chunks(item_ids, _LOOKED_UP_AT_ONCE):
            fields = [ITEM_ID, EMBEDDING, *self._columns]
            found = self._client.get(self._written, ids=some, output_fields=fields)
            filters = {name: [one.get(name) for one in found] for name in self._columns}
            yield to_rows(self._columns, [one[ITEM_ID] for one in found], [one[EMBEDDING] for one in found], filters)

    # ------------------------------------------------------------ the end

    def commit(self, held: Held) -> None:
        """See `Store`; what a reader is led to has a record from before on."""
        before = self._live()
        self._record(self._written, held.to_json())
        if before == self._written:
            return
        if not self._has_aliases:
            self._record(f"{_POINTER}{self._table}", self._written)
        elif before:
            self._client.alter_alias(self._written, self._table)
        else:
            self._client.create_alias(self._written, self._table)
        self._note_rows(0)
        self._client.delete(RECORDS, ids=[self._progress])
        if before:
            self._client.drop_collection(before)
            self._client.delete(RECORDS, ids=[before])

    def discard(self) -> None:
        """See `Store`."""
        assert self._plan
        if self._plan.since is not None:
            self._record(self._written, replace(self._plan.since, is_distrusted=True).to_json())
            return
        self._client.drop_collection(self._written)
        self._client.delete(RECORDS, ids=[self._progress])

    @property
    def _is_whole(self) -> bool:
        return self._plan is not None and self._plan.since is None

    @property
    def _columns(self) -> Mapping[str, Kind]:
        assert self._plan
        return self._plan.target.columns
