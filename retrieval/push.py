"""Push what is published into a vector store, and compare what the store returns before its record claims it.

    itemsage push --settings shop.toml [--version 17] [--allow-older]

The section [push] names the store. Where its record says that it holds an earlier version and the change feed tells
what came since, only those rows are written; else all are, beside the old ones. Run again after any end it goes on, or
says that it is done. Then the store is asked for the ids of all rows (count and checksum) and for a random sample of
values: what differs is named, the exit code is 4, and the record does not claim the version.

Exit codes: 0 done, or done before; 1 the store does not answer, a retry may help; 2 settings, or a right that is
missing in the store; 3 a table that is not ours, an older version, or rows of two models; 4 the store returns other
rows than it was given.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from retrieval.stores.store import (
    ARROW_KINDS,
    EMBEDDING,
    ITEM_ID,
    Held,
    Kind,
    Plan,
    Store,
    StoreError,
    VerificationError,
)
from retrieval.stores.verification import IdSet, Sample, id_differences, value_differences
from schemas.command_line import cause_and_code, exit_code_of_errors, settings_of, settings_parser
from schemas.errors import InputError, SettingsError
from schemas.plain_text import without_secrets
from schemas.published import DELETE, Published, changes_since, live, published_version, published_versions
from schemas.results import Result, ending_in_json, note
from schemas.settings import PushSettings, Settings
from schemas.tables import EMBEDDING_DIM, ITEM_EMBEDDINGS

WORK = "push"
_CLIENTS = {"pgvector": "psycopg", "milvus": "pymilvus", "lancedb": "lancedb"}
"""Store -> the module of its client."""
_MODEL_ID = "model_id"


@dataclass(frozen=True)
class Pushed:
    """How a push ended.

    Attributes:
        published: What the store holds now.
        held: What its record says.
        upserts: Rows that were written, those of an earlier try of the same push among them.
        deletes: Rows that were to be removed.
        is_repeat: Whether it was done before, so that nothing was written.
        since: The version whose changes were written; None = all rows were.
    """

    published: Published
    held: Held
    upserts: int = 0
    deletes: int = 0
    is_repeat: bool = False
    since: int | None = None


def push(settings: Settings, version: int | None = None, *, allow_older: bool = False) -> Pushed:
    """Push into the store that the settings name.

    Args:
        settings: The settings.
        version: Of item_embeddings; None = the one that is live.
        allow_older: Whether it may be older than what the store holds.

    Raises:
        SettingsError: no store is named, or its client is not installed.
        StoreError: the store does not answer, or another push is at work.
        InputError: nothing is published; the table is not ours, or holds a newer version; rows of two models.
        VerificationError: the store returns other rows than it was given.
    """
    if not settings.push.store:
        raise SettingsError("push.store: name the store that itemsage push writes into, and push.uri")
    published = live(settings.layout) if version is None else published_version(settings.layout, version)
    if published is None:
        cure = "Publish first (`itemsage run`)."
        raise InputError(ITEM_EMBEDDINGS.name, "", expected="a published version", found="none", cure=cure)
    with open_store(settings.push) as store:
        return push_into(store, published, settings.push.sample_rows, allow_older=allow_older)


def open_store(settings: PushSettings) -> AbstractContextManager[Store]:
    """The store that the settings name.

    Raises:
        SettingsError: its client is not installed.
    """
    client = _CLIENTS.get(settings.store)
    if client and importlib.util.find_spec(client) is None:
        raise SettingsError(
            f'push.store = "{settings.store}" needs the package {client}: pip install "itemsage-open[{settings.store}]"'
        )
    opened: AbstractContextManager[Store] = importlib.import_module(f"retrieval.stores.{settings.store}").opened(
        settings
    )
    return opened


def push_into(store: Store, published: Published, sample_rows: int, *, allow_older: bool = False) -> Pushed:
    """Push one published version into an open store; see `push`."""
    held = store.held()
    if held is None and store.is_taken():
        raise InputError(
            store.name, "its record", expected="a table that `itemsage push` has made, or none",
            found="rows without a record", cure="Push into another table (push.table), or drop this one.",
        )  # fmt: skip
    target = target_of(published)
    if held is not None:
        _require_successor(store, held, target, allow_older=allow_older)
        if held.is_sure and (held.version, held.run_id) == (target.version, target.run_id):
            return Pushed(published, held, is_repeat=True)
    changes = _changes(published, held, target)
    plan = Plan(target, held if changes is not None else None)
    kept = store.begin(plan)
    work = _Work(published, plan, changes or {}, sample_rows)
    if work.deletes:
        store.delete(work.deletes)
    for rows in _pieces(work.rows(), store.rows_at_once, kept):
        store.upsert(rows)
    if work.ids.count != target.rows:
        raise InputError(
            ITEM_EMBEDDINGS.name, f"version {target.version}", expected=f"{target.rows:,} rows, as its commit says",
            found=f"{work.ids.count:,}", cure="Push another version, or score the catalog anew.",
        )  # fmt: skip
    store.seal()
    _verify(store, target, work)
    held = replace(target, ids_checksum=work.ids.checksum)
    store.commit(held)
    return Pushed(published, held, work.upserts, len(work.deletes), since=plan.since.version if plan.since else None)


def _verify(store: Store, target: Held, work: _Work) -> None:
    """Compare what a store returns with what it was given, before its record claims it."""
    try:
        if differences := work.differences(store):
            raise VerificationError(
                store.name, f"version {target.version}", expected="the store to return what it was given",
                found="; ".join(differences),
                cure="The record does not claim this version. Look for what drops or changes rows in the store; the "
                "next push compares again.",
            )  # fmt: skip
    except VerificationError:
        with suppress(Exception):  # the finding counts, and the next push looks again
            store.discard()
        raise


def target_of(published: Published) -> Held:
    """What a store's record says when it holds a version; the checksum is not known yet."""
    return Held(
        without_secrets(published.warehouse.place()), published.version, published.run_id, published.model_id,
        dict(published.metrics.spaces), filter_columns(published), published.outputs[0].rows,
    )  # fmt: skip


def filter_columns(published: Published) -> dict[str, Kind]:
    """The columns of a version beside the declared ones, and what they hold.

    Raises:
        InputError: one holds something that no store filters by.
    """
    schema = pa.schema(DeltaTable(published.outputs[0].uri, version=published.version).schema().to_arrow())
    found: dict[str, Kind] = {}
    for one in schema:
        if one.name not in ITEM_EMBEDDINGS.column_names:
            found[one.name] = _kind_of(one)
    return found


def _kind_of(column: pa.Field) -> Kind:
    if pa.types.is_integer(column.type):
        return "integer"
    if pa.types.is_floating(column.type):
        return "double"
    for kind in ("string", "boolean"):
        if column.type in (ARROW_KINDS[kind], pa.large_string()):
            return kind
    raise InputError(
        ITEM_EMBEDDINGS.name, column.name, expected="a string, boolean, integer or double to filter by",
        found=str(column.type), cure="Take the column out of score.filters, or give it such a type.",
    )  # fmt: skip


def _require_successor(store: Store, held: Held, target: Held, *, allow_older: bool) -> None:
    if held.warehouse != target.warehouse:
        raise InputError(
            store.name, "its record", expected=f"what the warehouse {target.warehouse} has published",
            found=f"version {held.version} of {held.warehouse}",
            cure="Push into another table (push.table), or drop this one.",
        )  # fmt: skip
    if held.version > target.version and not allow_older:
        raise InputError(
            store.name, "its record", expected=f"version {target.version} or an earlier one",
            found=f"version {held.version}, of run {held.run_id}",
            cure="`itemsage rollback` makes a former version live under a new number, which can be pushed. "
            "--allow-older pushes this one as it is.",
        )  # fmt: skip


def _changes(published: Published, held: Held | None, target: Held) -> dict[str, str] | None:
    """What the change feed says; None = write all rows."""
    if held is None or held.is_distrusted or held.columns != target.columns or held.version >= target.version:
        return None
    if held.moving_to is not None and held.moving_to > target.version:
        return None
    known = {one.version: one for one in published_versions(published.warehouse)}
    since = known.get(held.version)
    if since is None or since.run_id != held.run_id or held.model_id != target.model_id:
        return None
    return changes_since(published.warehouse, held.version, target.version)


class _Work:
    """The rows of one push as they stream by, and what is known of them afterwards.

    Args:
        published: The version.
        plan: All of its rows, or what changed.
        changes: item_id -> upsert or delete, where only those are written.
        sample_rows: Rows to compare at the end.
    """

    def __init__(self, published: Published, plan: Plan, changes: Mapping[str, str], sample_rows: int) -> None:
        self._published, self._plan = published, plan
        self._changed = {item for item, change in changes.items() if change != DELETE}
        self.deletes = [item for item, change in changes.items() if change == DELETE]
        self.ids, self.upserts = IdSet(), 0
        generator = np.random.default_rng()
        # What was just written is looked at first; what should not have moved, too.
        self._written = Sample(sample_rows, generator)
        self._others = Sample(sample_rows if plan.since else 1, generator)

    def rows(self) -> Iterator[pa.RecordBatch]:
        """The rows to write, in the order of the version's files."""
        columns = self._plan.target.columns
        for batch in _read(self._published, [ITEM_ID, EMBEDDING, _MODEL_ID, *columns]):
            rows = _checked(batch, self._plan.target)
            self.ids.add(rows.column(ITEM_ID))
            if self._plan.since:
                is_changed = pa.array([item in self._changed for item in rows.column(ITEM_ID).to_pylist()], pa.bool_())
                self._others.add(rows.filter(pc.invert(is_changed)))
                rows = rows.filter(is_changed)
            self._written.add(rows)
            self.upserts += len(rows)
            if len(rows):
                yield rows

    def differences(self, store: Store) -> list[str]:
        """What the store returns otherwise than it was given, in words."""
        if store.is_log:
            upserts, deletes = IdSet(), IdSet()
            for found, ids in ((upserts, self._ids_written), (deletes, self._ids_deleted)):
                for some in ids():
                    found.add(some)
            said = id_differences(upserts, self._ids_written, store.ids, "upserts")
            said += id_differences(deletes, self._ids_deleted, store.removed, "deletes")
        else:
            said = id_differences(self.ids, self._ids_of_all, store.ids)
        samples = [self._written, *([self._others] if self._plan.since and not store.is_log else [])]
        for sample in samples:
            if (rows := sample.rows()) is not None:
                said += value_differences(rows, store)
        return said

    def _ids_of_all(self) -> Iterator[pa.Array]:
        return (batch.column(ITEM_ID) for batch in _read(self._published, [ITEM_ID]))

    def _ids_written(self) -> Iterator[pa.Array]:
        return iter([pa.array(sorted(self._changed), pa.string())]) if self._plan.since else self._ids_of_all()

    def _ids_deleted(self) -> Iterator[pa.Array]:
        return iter([pa.array(self.deletes, pa.string())])


def _read(published: Published, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Its rows; that they cannot be read is no fault of the store.

    Raises:
        StoreError: a file is gone, or its storage does not answer.
    """
    try:
        yield from published.items(columns)
    except OSError as error:
        raise StoreError(
            f"{ITEM_EMBEDDINGS.name}, version {published.version}", expected="its files", found=str(error),
            cure="Push again; where its files are gone (VACUUM), push a younger version.",
        ) from error  # fmt: skip


def _checked(batch: pa.RecordBatch, target: Held) -> pa.RecordBatch:
    """Published rows as stores are given them.

    Raises:
        InputError: a row of another model, or a vector of another length.
    """
    others = pc.unique(batch.column(_MODEL_ID)).to_pylist()
    if others not in ([target.model_id], []):
        found = next(one for one in others if one != target.model_id)
        raise InputError(
            ITEM_EMBEDDINGS.name, _MODEL_ID, expected=f"rows of one model, {target.model_id}, which the commit of "
            f"version {target.version} names", found=f"a row of {found}",
            cure="Two embedding spaces in one table answer no query. Score the catalog anew.",
        )  # fmt: skip
    lengths = pc.equal(pc.list_value_length(batch.column(EMBEDDING)), EMBEDDING_DIM)
    vectors = batch.column(EMBEDDING).cast(pa.list_(pa.float32()))
    if not pc.all(lengths.fill_null(False)).as_py() or not np.isfinite(vectors.flatten()).all():
        raise InputError(
            ITEM_EMBEDDINGS.name, EMBEDDING, expected=f"{EMBEDDING_DIM} finite numbers in each row",
            found="a row with others", cure="Score the catalog anew.",
        )  # fmt: skip
    arrays = {ITEM_ID: batch.column(ITEM_ID).cast(pa.string()), EMBEDDING: vectors}
    arrays |= {name: _value_of(batch.column(name), kind) for name, kind in target.columns.items()}
    return pa.RecordBatch.from_pydict(arrays)


def _value_of(column: pa.Array, kind: Kind) -> pa.Array:
    """A filter column as stores are given it: NaN and infinity, which JSON has no word for, are unknown values."""
    values = column.cast(ARROW_KINDS[kind])
    return pc.if_else(pc.is_finite(values), values, None) if kind == "double" else values


def _pieces(batches: Iterator[pa.RecordBatch], rows: int, skipped: int) -> Iterator[pa.RecordBatch]:
    """The rows in batches of so many, without the first `skipped`."""
    parts: list[pa.RecordBatch] = []
    waiting = 0
    for batch in batches:
        rest = batch.slice(min(skipped, len(batch)))
        skipped -= len(batch) - len(rest)
        while len(rest):
            parts.append(rest.slice(0, rows - waiting))
            rest = rest.slice(len(parts[-1]))
            waiting += len(parts[-1])
            if waiting == rows:
                yield _joined(parts)
                parts, waiting = [], 0
    if parts:
        yield _joined(parts)


def _joined(parts: list[pa.RecordBatch]) -> pa.RecordBatch:
    [batch] = pa.Table.from_batches(parts).combine_chunks().to_batches()
    return batch


# ---------------------------------------------------------------- the command


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `itemsage push`."""
    parser = settings_parser(f"itemsage {WORK}", __doc__)
    parser.add_argument("--version", type=int, help="of item_embeddings; by default the one that is live")
    parser.add_argument("--allow-older", action="store_true", help="also over a newer one")
    given = sys.argv[1:] if arguments is None else arguments
    parsed = parser.parse_args(given)
    with exit_code_of_errors():
        code = _run_elsewhere(settings_of(parsed), given)
    if code is not None:
        sys.exit(code)
    with ending_in_json(WORK):
        settings, started = settings_of(parsed), round(time.time(), 3)
        try:
            done = push(settings, parsed.version, allow_older=parsed.allow_older)
        except BaseException as error:
            cause, code = cause_and_code(error)
            note(settings, _result(settings, code, started, error=cause))
            raise
        print(_said(settings, done), flush=True)
        note(settings, _result(settings, 0, started, done))


def _run_elsewhere(settings: Settings, arguments: list[str]) -> int | None:
    """Run the push in LanceDB's own environment and return its exit code; None = it runs here."""
    if settings.push.store != "lancedb" or importlib.util.find_spec("lancedb") is not None:
        return None
    python = settings.push.lancedb_python
    if not Path(python).is_file():
        raise SettingsError(
            f"push.lancedb_python: expected the Python of LanceDB's environment; found no file {python}. Make it by "
            "`make .venv-lancedb/installed` in the project's folder, and give its absolute path."
        )
    code = str(Path(__file__).resolve().parents[1])
    command = [python, "-m", "retrieval.push", *arguments]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": code}, check=False).returncode


def _result(settings: Settings, code: int, started: float, done: Pushed | None = None, error: str = "") -> Result:
    name = f"{WORK}_{settings.push.store}" if settings.push.store else WORK
    seconds = round(time.time() - started, 2)
    if done is None:
        return Result(name, "failed", code, str(settings.dates.as_of), "", started, seconds, 0, 0, {}, error)
    return Result(
        name, "already_done" if done.is_repeat else "done", code, done.published.as_of, done.held.run_id, started,
        seconds, done.upserts, 0, {ITEM_EMBEDDINGS.name: done.held.version}, error,
    )  # fmt: skip


def _said(settings: Settings, done: Pushed) -> str:
    where = f"{settings.push.store} {settings.push.table}: version {done.held.version}, {done.held.rows:,} items"
    if done.is_repeat:
        return f"  {where}: already done"
    how = f"changes since version {done.since}" if done.since is not None else "all rows"
    return f"  {where}: {how}, {done.upserts:,} upserts and {done.deletes:,} deletes, verified"


if __name__ == "__main__":
    main()
