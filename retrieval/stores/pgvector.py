"""Postgres with pgvector: rows by binary COPY into a table beside the live one, and one transaction that shows them.

All rows anew: a table `<table>_<token>` is filled, a transaction a batch, so that a push that was ended goes on where
it was; keys and index are built there, it is verified there, and takes the live table's name, with its grants, in one
transaction. Changes are copied into temporary tables; then one transaction deletes, upserts, is verified from within,
and commits. A reader finds one version or the other. The record is a row of `itemsage_pushes`, in the same transaction.
One push at a time: an advisory lock says so.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, repeat
from typing import Any
from uuid import uuid4

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql
from psycopg.errors import (
    DependentObjectsStillExist,
    FeatureNotSupported,
    InsufficientPrivilege,
    LockNotAvailable,
    UndefinedFile,
    UniqueViolation,
)

from retrieval.stores.store import EMBEDDING, ITEM_ID, RECORDS, Held, Kind, Plan, StoreError, chunks, to_rows
from schemas.errors import InputError, SettingsError
from schemas.plain_text import shown
from schemas.settings import PushSettings
from schemas.tables import EMBEDDING_DIM

_SQL_KINDS: Mapping[Kind, str] = {
    "string": "text", "boolean": "boolean", "integer": "bigint", "double": "double precision",
}  # fmt: skip
_CONNECT_SECONDS = 10
_LOCK_TIMEOUT = "30s"
"""How long the swap waits for readers; who waits for it has later readers wait behind it."""
_PUSH_TIMEOUT = "5s"
_IDS_AT_ONCE = 50_000
_LOOKED_UP_AT_ONCE = 1_000
_NULL = struct.pack(">i", -1)


@contextmanager
def opened(settings: PushSettings) -> Iterator[PgVector]:
    """A table of a Postgres database, for one push.

    Raises:
        StoreError: the database does not answer, or another push is at work.
        SettingsError: a right is missing.
        InputError: pgvector is not installed there, or the table cannot be replaced.
    """
    name = shown(f"pgvector table {settings.table}, {settings.uri}")
    try:
        with psycopg.connect(
            settings.uri, autocommit=True, connect_timeout=_CONNECT_SECONDS, application_name="itemsage push"
        ) as connection:
            yield PgVector(connection, settings, name)
    except psycopg.Error as error:
        raise _named(error, name) from error


def _named(error: psycopg.Error, name: str) -> Exception:
    """What a driver's error means to a user."""
    found = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, InsufficientPrivilege):
        return SettingsError(f"push.uri: {name}: {found}. Give this user the right, or connect as another.")
    if isinstance(error, UndefinedFile | FeatureNotSupported):
        cure = "Install pgvector on that server (0.5 or newer)."
        return InputError(name, "", expected="the extension vector", found=found, cure=cure)
    if isinstance(error, UniqueViolation):
        cure = "Score the catalog anew; nothing of this push is live."
        return InputError("item_embeddings", ITEM_ID, expected="each id once", found=found, cure=cure)
    if isinstance(error, DependentObjectsStillExist):
        cure = "Drop those views and make them after the push; nothing of it is live."
        return InputError(name, "", expected="a table that can be replaced", found=found, cure=cure)
    if isinstance(error, LockNotAvailable):
        expected = f"the table to be free for an instant within {_LOCK_TIMEOUT}"
        cure = "Run the push again when that long query has ended; it goes on where it was."
        return StoreError(name, expected=expected, found=found, cure=cure)
    cure = "Look at the database, and run the push again; a password comes from PGPASSWORD or ~/.pgpass."
    return StoreError(name, expected="a database that answers", found=found, cure=cure)


class PgVector:
    """See the module.

    Args:
        connection: In autocommit mode.
        settings: Table and index.
        name: What it is called in messages.
    """

    tolerance = 0.0
    rows_at_once = 16_384
    is_log = False

    def __init__(self, connection: psycopg.Connection[Any], settings: PushSettings, name: str) -> None:
        self.name = name
        self._connection, self._has_hnsw = connection, settings.hnsw
        *self._schema, self._table = settings.table.split(".")
        self._written = self._table
        """The table that rows go to and come back from."""
        self._plan: Plan | None = None
        self._lock(f"{RECORDS} {settings.table}")

    def _lock(self, key: str) -> None:
        """Keep other pushes out until the connection ends; one that has just ended may take an instant to let go."""
        self._connection.execute(sql.SQL("SET lock_timeout = {}").format(_PUSH_TIMEOUT))
        try:
            self._connection.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [key])
        except LockNotAvailable as error:
            cure = "Wait until it has ended, or end it."
            raise StoreError(
                self.name, expected="no other push into it", found="one that is at work", cure=cure
            ) from error
        self._connection.execute("SET lock_timeout = 0")

    # ------------------------------------------------------------ what the record says

    def held(self) -> Held | None:
        """See `Store`."""
        text = self._recorded("held") if self._exists(self._table) else ""  # else somebody has dropped it
        return Held.from_json(text, self.name) if text else None

    def is_taken(self) -> bool:
        """See `Store`."""
        if not self._exists(self._table):
            return False
        return bool(self._value(self._sql("SELECT EXISTS (SELECT 1 FROM {table})", table=self._table)))

    def _recorded(self, column: str) -> str:
        if not self._exists(RECORDS):
            return ""
        query = self._sql(
            "SELECT {column} FROM {records} WHERE table_name = %s", column=sql.Identifier(column), records=RECORDS
        )
        return self._value(query, self._table) or ""

    def _record(self, column: str, text: str | None) -> None:
        query = self._sql(
            "INSERT INTO {records} (table_name, {column}) VALUES (%s, %s) "
            "ON CONFLICT (table_name) DO UPDATE SET {column} = EXCLUDED.{column}",
            column=sql.Identifier(column), records=RECORDS,
        )  # fmt: skip
        self._connection.execute(query, [self._table, text])

    # ------------------------------------------------------------ writing

    def begin(self, plan: Plan) -> int:
        """See `Store`."""
        self._plan = plan
        if not self._value("SELECT count(*) FROM pg_extension WHERE extname = 'vector'"):
            self._connection.execute("CREATE EXTENSION vector")
        self._run("CREATE TABLE IF NOT EXISTS {records} (table_name text PRIMARY KEY, held text, staged text)",
                  records=RECORDS)  # fmt: skip
        staged = json.loads(self._recorded("staged") or "{}")
        if plan.since is None and staged.get("key") == plan.key and self._exists(staged["table"]):
            self._written = staged["table"]
            return int(staged["rows"])
        with self._connection.transaction():
            if staged:
                self._run("DROP TABLE IF EXISTS {table}", table=staged["table"])
                self._record("staged", None)
            if plan.since is None:
                self._written = f"{self._table}_{uuid4().hex[:8]}"
                self._create("CREATE TABLE {table} ({columns})", self._written)
                self._note_rows(0)
        if plan.since is not None:
            self._create("CREATE TEMPORARY TABLE itemsage_upserts ({columns})")
            self._connection.execute("CREATE TEMPORARY TABLE itemsage_deletes (item_id text)")
        return 0

    def _create(self, statement: str, table: str = "") -> None:
        declared = [sql.SQL("item_id text NOT NULL"), sql.SQL("embedding vector({}) NOT NULL").format(EMBEDDING_DIM)]
        for name, kind in self._columns.items():
            declared.append(sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(_SQL_KINDS[kind])))
        self._run(statement, columns=sql.SQL(", ").join(declared), **({"table": table} if table else {}))

    def _note_rows(self, rows: int) -> None:
        assert self._plan
        self._record("staged", json.dumps({"key": self._plan.key, "table": self._written, "rows": rows}))

    def upsert(self, rows: pa.RecordBatch) -> None:
        """See `Store`."""
        names = [sql.Identifier(name) for name in rows.schema.names]
        if self._is_whole:
            with self._connection.transaction():
                # Of a crash, the last rows and the note of them are lost together.
                self._connection.execute("SET LOCAL synchronous_commit = off")
                self._copy(self._name_of(self._written), names, encoded(rows, self._columns))
                self._note_rows(int(json.loads(self._recorded("staged"))["rows"]) + len(rows))
        else:
            self._copy(sql.Identifier("itemsage_upserts"), names, encoded(rows, self._columns))

    def delete(self, item_ids: Sequence[str]) -> None:
        """See `Store`."""
        fields = _texts(item_ids)
        content = b"".join(chain.from_iterable(zip(repeat(struct.pack(">h", 1)), fields, strict=False)))
        self._copy(sql.Identifier("itemsage_deletes"), [sql.Identifier(ITEM_ID)], content)

    def _copy(self, table: sql.Composable, names: list[sql.Identifier], content: bytes) -> None:
        query = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(table, sql.SQL(", ").join(names))
        with self._connection.cursor() as cursor, cursor.copy(query) as copy:
            copy.write(HEADER + content + TRAILER)

    def seal(self) -> None:
        """See `Store`."""
        if not self._is_whole:
            self._connection.execute("BEGIN")  # `commit` and `discard` end it
            self._run("DELETE FROM {table} USING itemsage_deletes AS gone WHERE {table}.item_id = gone.item_id",
                      table=self._table)  # fmt: skip
            names = [sql.Identifier(name) for name in (ITEM_ID, EMBEDDING, *self._columns)]
            sets = [sql.SQL("{0} = EXCLUDED.{0}").format(name) for name in names[1:]]
            self._run(
                "INSERT INTO {table} ({names}) SELECT {names} FROM itemsage_upserts "
                "ON CONFLICT (item_id) DO UPDATE SET {sets}",
                table=self._table, names=sql.SQL(", ").join(names), sets=sql.SQL(", ").join(sets),
            )  # fmt: skip
            return
        if not self._has_index("indisprimary"):
            self._run("ALTER TABLE {table} ADD PRIMARY KEY (item_id)", table=self._written)
        if self._has_hnsw and not self._has_index("NOT indisprimary"):
            self._run("CREATE INDEX ON {table} USING hnsw (embedding vector_ip_ops)", table=self._written)
        self._run("ANALYZE {table}", table=self._written)

    def _has_index(self, condition: str) -> bool:
        query = sql.SQL("SELECT count(*) FROM pg_index WHERE indrelid = to_regclass(%s) AND {}")
        return bool(self._value(query.format(sql.SQL(condition)), self._text_of(self._written)))

    # ------------------------------------------------------------ reading back

    def ids(self) -> Iterator[pa.Array]:
        """See `Store`."""
        query = self._sql("COPY (SELECT item_id FROM {table}) TO STDOUT (FORMAT BINARY)", table=self._written)
        with self._connection.cursor() as cursor, cursor.copy(query) as copy:
            copy.set_types(["text"])
            some: list[str] = []
            for (item_id,) in copy.rows():
                some.append(item_id)
                if len(some) == _IDS_AT_ONCE:
                    yield pa.array(some, pa.string())
                    some = []
            yield pa.array(some, pa.string())

    def removed(self) -> Iterator[pa.Array]:
        """See `Store`."""
        return iter(())

    def rows(self, item_ids: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """See `Store`."""
        names = [sql.Identifier(name) for name in self._columns]
        query = self._sql(
            "SELECT {values} FROM {table} WHERE item_id = ANY(%s)", table=self._written,
            values=sql.SQL(", ").join([sql.SQL("item_id, embedding::real[]"), *names]),
        )  # fmt: skip
        for some in chunks(item_ids, _LOOKED_UP_AT_ONCE):
            found = self._connection.cursor(binary=True).execute(query, [some]).fetchall()
            ids, vectors, *filters = zip(*found, strict=True) if found else ((),) * (2 + len(names))
            by_name = {name: list(values) for name, values in zip(self._columns, filters, strict=True)}
            yield to_rows(self._columns, list(ids), list(vectors), by_name)

    # ------------------------------------------------------------ the end

    def commit(self, held: Held) -> None:
        """See `Store`."""
        if not self._is_whole:
            self._record("held", held.to_json())
            self._connection.execute("COMMIT")
            return
        with self._connection.transaction():
            self._connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(_LOCK_TIMEOUT))
            if self._exists(self._table):
                self._pass_grants_on()
                self._run("DROP TABLE {table}", table=self._table)
            self._run("ALTER TABLE {written} RENAME TO {name}",
                      written=self._written, name=sql.Identifier(self._table))  # fmt: skip
            self._record("held", held.to_json())
            self._record("staged", None)

    def _pass_grants_on(self) -> None:
        """Let whoever may read the live table read the one that takes its place."""
        granted = self._connection.execute(
            "SELECT privilege_type, is_grantable, CASE WHEN grantee <> 0 THEN pg_get_userbyid(grantee) END "
            "FROM pg_class, aclexplode(relacl) WHERE pg_class.oid = to_regclass(%s)",
            [self._text_of(self._table)],
        ).fetchall()
        for privilege, is_grantable, grantee in granted:
            self._run(
                "GRANT {privilege} ON {written} TO {grantee}{option}",
                privilege=sql.SQL(privilege), written=self._written,
                grantee=sql.Identifier(grantee) if grantee else sql.SQL("PUBLIC"),
                option=sql.SQL(" WITH GRANT OPTION" if is_grantable else ""),
            )  # fmt: skip

    def discard(self) -> None:
        """See `Store`."""
        if not self._is_whole:
            self._connection.execute("ROLLBACK")
            return
        with suppress(psycopg.Error), self._connection.transaction():
            self._run("DROP TABLE IF EXISTS {table}", table=self._written)
            self._record("staged", None)

    # ------------------------------------------------------------ statements

    @property
    def _is_whole(self) -> bool:
        return self._plan is not None and self._plan.since is None

    @property
    def _columns(self) -> Mapping[str, Kind]:
        assert self._plan
        return self._plan.target.columns

    def _name_of(self, table: str) -> sql.Identifier:
        return sql.Identifier(*self._schema, table)

    def _text_of(self, table: str) -> str:
        return str(self._name_of(table).as_string(self._connection))

    def _sql(self, text: str, **parts: sql.Composable | str) -> sql.Composed:
        """A statement; a part that is a string is a table of the store's schema."""
        named = {key: self._name_of(part) if isinstance(part, str) else part for key, part in parts.items()}
        return sql.SQL(text).format(**named)

    def _run(self, text: str, **parts: sql.Composable | str) -> None:
        self._connection.execute(self._sql(text, **parts))

    def _value(self, query: str | sql.Composed, *arguments: Any) -> Any:
        row = self._connection.execute(query, list(arguments)).fetchone()
        return row[0] if row else None

    def _exists(self, table: str) -> bool:
        return self._value("SELECT to_regclass(%s)", self._text_of(table)) is not None


# ---------------------------------------------------------------- Postgres' binary COPY format

HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
TRAILER = struct.pack(">h", -1)


def encoded(rows: pa.RecordBatch, columns: Mapping[str, Kind]) -> bytes:
    """Rows as tuples of Postgres' binary COPY: item_id, embedding, and the filter columns.

    Raises:
        InputError: a text holds a zero character, which Postgres cannot store.
    """
    fields = [_texts(_texts_of(rows, ITEM_ID)), _vectors(rows.column(EMBEDDING))]
    for name, kind in columns.items():
        values = rows.column(name).to_pylist()
        fields.append(_texts(_texts_of(rows, name)) if kind == "string" else _numbers(values, kind))
    count = struct.pack(">h", len(fields))
    return b"".join(chain.from_iterable(zip(repeat(count, len(rows)), *fields, strict=True)))


def _texts_of(rows: pa.RecordBatch, name: str) -> list[str]:
    if pc.any(pc.match_substring(rows.column(name), "\0")).as_py():
        cure = "Take that character out of the shop's table."
        raise InputError("item_embeddings", name, expected="text without the zero character, which Postgres cannot "
                         "store", found="a row with one", cure=cure)  # fmt: skip
    values: list[str] = rows.column(name).to_pylist()
    return values


def _texts(values: Sequence[str | None]) -> list[bytes]:
    contents = (None if value is None else value.encode() for value in values)
    return [_NULL if content is None else struct.pack(">i", len(content)) + content for content in contents]


def _numbers(values: list[Any], kind: Kind) -> list[bytes]:
    size, code = {"boolean": (1, "?"), "integer": (8, "q"), "double": (8, "d")}[kind]
    form = f">i{code}"
    return [_NULL if value is None else struct.pack(form, size, value) for value in values]


def _vectors(lists: pa.Array) -> list[bytes]:
    """Pgvector's binary form: dimensions and an unused field as int16, the numbers as big-endian float32."""
    size = 4 + 4 * EMBEDDING_DIM
    whole = np.empty((len(lists), 4 + size), np.uint8)
    whole[:, :8] = np.frombuffer(struct.pack(">ihh", size, EMBEDDING_DIM, 0), np.uint8)
    numbers = lists.flatten().to_numpy(zero_copy_only=False).astype(">f4").reshape(len(lists), EMBEDDING_DIM)
    whole[:, 8:] = numbers.view(np.uint8)
    content = whole.tobytes()
    return [content[start : start + 4 + size] for start in range(0, len(content), 4 + size)]
