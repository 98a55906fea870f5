"""What is published reaches a store whole or not at all, again means done, and a store that lies is found out."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pymilvus import MilvusClient, MilvusException

from retrieval import push as pushing
from retrieval.push import Pushed, push
from retrieval.stores.milvus import Milvus, live_collection
from retrieval.stores.opensearch import BulkFiles
from retrieval.stores.pgvector import PgVector
from retrieval.stores.store import Held, StoreError, VerificationError
from retrieval.stores.verification import IdSet, Sample, id_differences
from schemas.errors import InputError, SettingsError
from schemas.published import roll_back
from schemas.settings import PushSettings, Settings
from tests.retrieval.push_shop import PushShop

ROOT = Path(__file__).resolve().parents[2]
MakeSettings = Callable[..., Settings]
CLASSES: dict[str, Any] = {"pgvector": PgVector, "milvus": Milvus, "opensearch": BulkFiles}


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URI of a real Postgres with pgvector, on a unix socket, for all tests of this file."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a folder that is not set in containers
        import pgserver

        folder = tmp_path_factory.mktemp("postgres")
        server = pgserver.get_server(folder)
    yield f"postgresql://postgres@/postgres?host={folder}"
    server.cleanup()


class Target:
    """A store as its readers see it, and the shop that pushes into it."""

    def __init__(self, kind: str, settings: Settings) -> None:
        self.kind, self.settings, self.shop = kind, settings, PushShop(settings)
        self.cls = CLASSES[kind]

    def push(self, **options: Any) -> Pushed:
        return push(self.settings, **options)

    def held(self) -> Held | None:
        with pushing.open_store(self.settings.push) as store:
            return store.held()

    def rows(self) -> dict[str, tuple[Any, ...]]:
        """item_id -> brand, in_stock, price, sold and the bytes of its vector, read without our code."""
        found = getattr(self, f"_rows_of_{self.kind}")()
        return {
            row["item_id"]: (
                row.get("brand"), row.get("in_stock"), row.get("price"), row.get("sold"),
                np.array(row["embedding"], np.float32).tobytes(),
            )
            for row in found
        }  # fmt: skip

    def expected(self, rows: dict[str, Any] | None = None) -> dict[str, tuple[Any, ...]]:
        return {
            item: (row["brand"], row["in_stock"], row["price"], row["sold"], row["embedding"].tobytes())
            for item, row in (self.shop.rows if rows is None else rows).items()
        }

    def _rows_of_pgvector(self) -> list[dict[str, Any]]:
        with psycopg.connect(self.settings.push.uri, row_factory=psycopg.rows.dict_row) as connection:
            if connection.execute("SELECT to_regclass(%s) AS found", [self.settings.push.table]).fetchone()["found"]:
                rows = connection.execute(f"SELECT * FROM {self.settings.push.table}").fetchall()
                return [row | {"embedding": json.loads(row["embedding"])} for row in rows]
        return []

    def _rows_of_milvus(self) -> list[dict[str, Any]]:
        client = MilvusClient(self.settings.push.uri)
        try:
            name = live_collection(client, self.settings.push.table)
            return client.query(name, filter="", limit=10_000, output_fields=["*"]) if name else []
        finally:
            client.close()

    def _rows_of_opensearch(self) -> list[dict[str, Any]]:
        """What the files lead to, one after the other, as the manifests say that they follow."""
        root = Path(self.settings.push.uri)
        record = root / f"{self.settings.push.table}.json"
        if not record.exists():
            return []
        manifests = [json.loads(path.read_text()) | {"folder": path.parent} for path in root.glob("*/manifest.json")]
        by_version = {one["held"]["version"]: one for one in manifests}
        chain = [by_version[json.loads(record.read_text())["held"]["version"]]]
        while chain[0]["follows_version"] is not None:
            chain.insert(0, by_version[chain[0]["follows_version"]])
        rows: dict[str, Any] = {}
        for one in chain:
            for file in one["files"]:
                content = (one["folder"] / file["name"]).read_bytes()
                lines = iter((gzip.decompress(content) if file["name"].endswith("gz") else content).splitlines())
                for line in lines:
                    action = json.loads(line)
                    if "delete" in action:
                        rows.pop(action["delete"]["_id"], None)
                    else:
                        rows[action["index"]["_id"]] = json.loads(next(lines))
        return list(rows.values())


@pytest.fixture(params=list(CLASSES))
def target(request: pytest.FixtureRequest, make_settings: MakeSettings, tmp_path: Path) -> Target:
    """Each store in turn, empty."""
    return new_target(request.param, request, make_settings, tmp_path)


@pytest.fixture
def in_postgres(request: pytest.FixtureRequest, make_settings: MakeSettings, tmp_path: Path) -> Target:
    return new_target("pgvector", request, make_settings, tmp_path)


def new_target(kind: str, request: pytest.FixtureRequest, make_settings: MakeSettings, tmp_path: Path) -> Target:
    new_target.count += 1  # type: ignore[attr-defined]
    uri = {"milvus": str(tmp_path / "items.db"), "opensearch": str(tmp_path / "bulk")}.get(kind)
    uri = uri or request.getfixturevalue("postgres")
    table = f"items{new_target.count}"  # type: ignore[attr-defined]
    return Target(kind, make_settings(push={"store": kind, "uri": uri, "table": table, "hnsw": kind == "pgvector"}))


new_target.count = 0  # type: ignore[attr-defined]

ITEMS = [f"P{number}" for number in range(60)]


def two_versions(target: Target) -> dict[str, Any]:
    """Push one version and publish the next: P3 is changed, N1 new, P7 gone; returns the rows of the first."""
    shop = target.shop
    shop.put(*ITEMS)
    shop.publish()
    target.push()
    before = dict(shop.rows)
    shop.put("P3", "N1", seed=900)
    shop.publish(["P3", "N1"], ["P7"])
    return before


def test_the_store_follows_what_is_published(target: Target) -> None:
    shop = target.shop
    shop.put(*ITEMS, "Ünï 靴 %_")
    shop.publish()
    done = target.push()
    assert (done.since, done.upserts, done.is_repeat) == (None, 61, False)
    assert target.rows() == target.expected()
    assert target.push().is_repeat
    shop.put("P3", "N1", seed=900)
    shop.publish(["P3", "N1"], ["P7", "P8"])
    shop.put("P9", seed=901)
    version = shop.publish(["P9"])
    done = target.push()
    assert (done.since, done.upserts, done.deletes) == (0, 3, 2)
    assert target.rows() == target.expected()
    shop.model = "model-b"
    shop.put(*shop.rows, seed=5_000)
    shop.publish()
    done = target.push()
    assert (done.since, done.upserts, done.held.model_id) == (None, 60, "model-b")
    assert target.rows() == target.expected()
    held = target.held()
    assert held is not None
    assert (held.version, held.model_id, held.spaces, held.rows) == (version + 1, "model-b", {"search": "lsa-1"}, 60)


def dropping(victim: str) -> Callable[..., Any]:
    return lambda rows: rows.filter(pc.not_equal(rows.column("item_id"), victim))


def changing(victim: str, column: str) -> Callable[..., Any]:
    def change(rows: pa.RecordBatch) -> pa.RecordBatch:
        at = rows.column("item_id").to_pylist()
        if victim not in at:
            return rows
        values = rows.column(column).to_pylist()
        values[at.index(victim)] = "other" if column == "brand" else [values[at.index(victim)][0] + 1e-4,
                                                                      *values[at.index(victim)][1:]]  # fmt: skip
        arrays = {name: rows.column(name) for name in rows.schema.names}
        return pa.RecordBatch.from_pydict(arrays | {column: pa.array(values, rows.schema.field(column).type)})

    return change


LIES: dict[str, tuple[Callable[..., Any], str]] = {
    "drops a row": (dropping("P3"), "missing: P3"),
    "changes a vector slightly": (changing("P3", "embedding"), r"P3: embedding differs by 0\.0001"),
    "changes a filter column": (changing("P3", "brand"), "P3: brand is 'other' and not"),
}


# milvus-lite takes seconds for what the others take tenths; two of its six tell as much.
@pytest.mark.parametrize(
    ("target", "lie", "is_first"),
    [(kind, lie, is_first) for kind in ("pgvector", "opensearch") for lie in LIES for is_first in (True, False)]
    + [("milvus", "drops a row", True), ("milvus", "changes a vector slightly", False)],
    indirect=["target"],
)
@pytest.mark.fault("G1", "loud", "a store that drops a row, or changes a vector by 1e-4 or a filter column")
def test_a_store_that_drops_or_changes_a_row_fails_the_push_by_name(
    target: Target, lie: str, is_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before: dict[str, Any] = {}
    if is_first:
        target.shop.put(*ITEMS)
        target.shop.publish()
    else:
        before = two_versions(target)
    change, said = LIES[lie]
    honest = target.cls.upsert
    with monkeypatch.context() as lying:
        lying.setattr(target.cls, "upsert", lambda self, rows: honest(self, change(rows)))
        if lie == "drops a row" and not is_first:  # P3 is there already
            said = "missing: N1"
            lying.setattr(target.cls, "upsert", lambda self, rows: honest(self, dropping("N1")(rows)))
        with pytest.raises(VerificationError, match=said) as error:
            target.push()
    assert error.value.exit_code == 4
    held = target.held()
    assert held is None if is_first else (held is not None and held.version == 0)
    if target.kind != "milvus" or is_first:  # it changes in place, and says so
        assert target.rows() == target.expected(before)
    else:
        assert held is not None
        assert held.is_distrusted
    done = target.push()
    assert target.rows() == target.expected()
    assert (done.since is None) == (is_first or target.kind == "milvus")


@pytest.mark.parametrize("target", ["pgvector", "opensearch"], indirect=True)
@pytest.mark.fault("G1", "loud", "a store that keeps a row that was deleted")
def test_a_store_that_keeps_a_deleted_row_fails_the_push_by_name(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_versions(target)
    with monkeypatch.context() as lying:
        lying.setattr(target.cls, "delete", lambda self, item_ids: None)
        said = "missing: P7" if target.cls.is_log else "too many: P7"
        with pytest.raises(VerificationError, match=said):
            target.push()
    held = target.held()
    assert held is not None
    assert held.version == 0


@pytest.mark.parametrize("is_first", [True, False], ids=["all rows", "changes"])
@pytest.mark.fault("G2", "recovered", "a push ended before and after each of its steps")
def test_a_push_that_is_ended_anywhere_goes_on(target: Target, is_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target.cls, "rows_at_once", 16)
    before: dict[str, Any] = {}
    if is_first:
        target.shop.put(*ITEMS)
        target.shop.publish()
    else:
        before = two_versions(target)
    ends = [("upsert", 0, "before"), ("upsert", 0, "after"), ("upsert", 1, "after"), ("seal", 0, "before"),
            ("seal", 0, "after"), ("commit", 0, "before")]  # fmt: skip
    written: list[int] = []
    kept: list[int] = []
    begin = target.cls.begin
    monkeypatch.setattr(target.cls, "begin", lambda self, plan: kept.append(begin(self, plan)) or kept[-1])
    for method, number, when in ends:
        with monkeypatch.context() as ending:
            honest, calls = getattr(target.cls, method), []

            def end(self: Any, *args: Any, honest: Any = honest, calls: Any = calls, at: Any = (number, when)) -> None:
                calls.append(1)
                if (len(calls) - 1, "before") == at:
                    raise KeyboardInterrupt
                honest(self, *args)
                if (len(calls) - 1, "after") == at:
                    raise KeyboardInterrupt

            ending.setattr(target.cls, method, end)
            if is_first or number == 0:
                with pytest.raises(KeyboardInterrupt):
                    target.push()
        held = target.held()
        assert held is None if is_first else (held is not None and held.version == 0)
        if target.kind != "milvus" or is_first:
            assert target.rows() == target.expected(before)
    honest = target.cls.upsert
    monkeypatch.setattr(target.cls, "upsert", lambda self, rows: written.append(len(rows)) or honest(self, rows))
    target.push()
    assert target.rows() == target.expected()
    if is_first:
        assert sum(written) == 0, "what was written before is written again"
        assert kept == ([0, 0, 0, 0, 0, 60, 60] if target.cls.is_log else [0, 0, 16, 48, 60, 60, 60])
    assert target.push().is_repeat


KILLED = """
import os, signal, sys
from retrieval import push
from retrieval.stores.pgvector import PgVector
honest, calls = getattr(PgVector, sys.argv[1]), []
def kill(self, *args):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return honest(self, *args)
setattr(PgVector, sys.argv[1], kill)
PgVector.rows_at_once = 16
push.main(sys.argv[2:])
"""


@pytest.mark.fault("G2", "recovered", "SIGKILL in the third batch of a push into Postgres")
def test_a_killed_push_leaves_what_was_there_and_goes_on_where_it_was(
    in_postgres: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = in_postgres
    target.shop.put(*ITEMS)
    target.shop.publish()
    settings = tmp_path / "settings.toml"
    of = target.settings
    settings.write_text(
        f'[warehouse]\nuri = "{of.warehouse.uri}"\n[dates]\nas_of = 2026-03-01\ntrain_days = 20\ngap_days = 2\n'
        f'test_days = 7\n[push]\nstore = "pgvector"\nuri = "{of.push.uri}"\ntable = "{of.push.table}"\n'
    )
    command = [sys.executable, "-c", KILLED, "upsert", "--settings", str(settings)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (target.held(), target.rows()) == (None, {})
    written: list[int] = []
    honest = PgVector.upsert
    monkeypatch.setattr(PgVector, "upsert", lambda self, rows: written.append(len(rows)) or honest(self, rows))
    target.push()
    assert sum(written) == len(ITEMS) - 32
    assert target.rows() == target.expected()


def test_readers_of_postgres_find_one_version_or_the_other(in_postgres: Target) -> None:
    target = in_postgres
    two_versions(target)
    found: set[int] = set()
    is_over = threading.Event()

    def read() -> None:
        with psycopg.connect(target.settings.push.uri, autocommit=True) as connection:
            while not is_over.is_set():
                found.add(int(connection.execute(f"SELECT sum(sold) FROM {target.settings.push.table}").fetchone()[0]))

    sums = [sum(row["sold"] for row in target.shop.rows.values())]
    with psycopg.connect(target.settings.push.uri) as connection:
        sums.append(int(connection.execute(f"SELECT sum(sold) FROM {target.settings.push.table}").fetchone()[0]))
    reader = threading.Thread(target=read)
    reader.start()
    try:
        target.push()
        for seed in (2_000, 3_000):
            target.shop.put(*target.shop.rows, seed=seed)
            target.shop.publish()
            sums.append(sum(row["sold"] for row in target.shop.rows.values()))
            target.push()
    finally:
        is_over.set()
        reader.join(30)
    assert found <= set(sums)
    assert len(found) > 1


def test_who_may_read_the_table_may_read_the_one_that_takes_its_place(in_postgres: Target) -> None:
    target = in_postgres
    target.shop.put(*ITEMS)
    target.shop.publish()
    target.push()
    with psycopg.connect(target.settings.push.uri) as connection:
        connection.execute('CREATE ROLE "shop reader" LOGIN')
        connection.execute(f'GRANT SELECT ON {target.settings.push.table} TO "shop reader"')
    target.shop.publish()
    target.push()
    with psycopg.connect(target.settings.push.uri.replace("postgres@", "shop%20reader@")) as connection:
        assert connection.execute(f"SELECT count(*) FROM {target.settings.push.table}").fetchone() == (60,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(f"DELETE FROM {target.settings.push.table}")


class WithAliases:
    """milvus-lite with the aliases that a Milvus server has, which it lacks.

    Args:
        client: Of milvus-lite.
    """

    def __init__(self, client: Any) -> None:
        self._client, self.aliases = client, {}

    def create_alias(self, collection: str, alias: str) -> None:
        assert alias not in self.aliases
        self.aliases[alias] = collection

    def alter_alias(self, collection: str, alias: str) -> None:
        assert alias in self.aliases
        self.aliases[alias] = collection

    def describe_alias(self, alias: str) -> dict[str, str]:
        if alias not in self.aliases:
            raise MilvusException(message=f"alias not found[alias={alias}]")
        return {"collection_name": self.aliases[alias]}

    def drop_collection(self, name: str) -> None:
        assert name not in self.aliases.values(), "readers are led to it"
        self._client.drop_collection(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


@pytest.mark.filterwarnings("ignore:pkg_resources")
def test_of_a_milvus_server_one_alias_moves_from_version_to_version(
    request: pytest.FixtureRequest, make_settings: MakeSettings, tmp_path: Path
) -> None:
    target = new_target("milvus", request, make_settings, tmp_path)
    client = WithAliases(MilvusClient(target.settings.push.uri))
    server = PushSettings(store="milvus", uri="http://127.0.0.1:19530", table="items")
    try:
        found = []
        for model in ("model-a", "model-b"):
            target.shop.model = model
            target.shop.put(*ITEMS[:5])
            target.shop.publish()
            done = pushing.push_into(Milvus(client, server, "Milvus"), target.shop.live, 10)
            assert pushing.push_into(Milvus(client, server, "Milvus"), target.shop.live, 10).is_repeat
            found.append((done.held.model_id, client.aliases["items"]))
        assert [model for model, _ in found] == ["model-a", "model-b"]
        assert set(client.list_collections()) == {"itemsage_pushes", found[1][1]}
        client.upsert("itemsage_pushes", [{"key": found[1][1], "content": "", "unused": [0.0, 0.0]}])
        with pytest.raises(InputError, match="rows without a record"):
            pushing.push_into(Milvus(client, server, "Milvus"), target.shop.live, 10)
    finally:
        client.close()


# ---------------------------------------------------------------- what is refused


def test_files_of_the_version_that_are_gone_are_not_said_to_be_the_stores_fault(target: Target) -> None:
    target.shop.put(*ITEMS)
    target.shop.publish()
    for file in Path(target.shop.uri).glob("*.parquet"):
        file.unlink()
    with pytest.raises(StoreError, match=r"^item_embeddings, version 0: expected its files"):
        target.push()


@pytest.mark.fault("G3", "loud", "a table with rows that no push has written")
def test_a_table_of_somebody_else_is_refused(in_postgres: Target) -> None:
    target = in_postgres
    target.shop.put(*ITEMS)
    target.shop.publish()
    with psycopg.connect(target.settings.push.uri) as connection:
        connection.execute(f"CREATE TABLE {target.settings.push.table} AS SELECT 1 AS mine")
    with pytest.raises(InputError, match="rows without a record"):
        target.push()


def test_another_warehouses_rows_are_refused(in_postgres: Target, make_settings: MakeSettings, tmp_path: Path) -> None:
    two_versions(in_postgres)
    other = PushShop(
        make_settings(warehouse={"uri": str(tmp_path / "other")}, push=in_postgres.settings.push.model_dump())
    )
    other.put(*ITEMS)
    other.publish()
    with pytest.raises(InputError, match=r"expected what the warehouse .*other has published; found version 0 of"):
        push(other.settings)
    assert not in_postgres.push().is_repeat


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_an_unknown_value(target: Target, number: float) -> None:
    """NaN is not equal to itself when it is read back, and JSON has no word for it."""
    target.shop.put("P1", "P2")
    target.shop.rows["P2"]["price"] = number
    target.shop.publish()
    target.push()
    target.shop.rows["P2"]["price"] = None
    assert target.rows() == target.expected()


@pytest.mark.parametrize("kind", ["pgvector", "milvus"])
def test_a_table_that_was_dropped_is_written_anew(
    kind: str, request: pytest.FixtureRequest, make_settings: MakeSettings, tmp_path: Path
) -> None:
    """Its record, which lies elsewhere, says nothing of a table that is gone: neither done, nor another warehouse's."""
    target = new_target(kind, request, make_settings, tmp_path)
    before = two_versions(target)
    drop(target)
    assert target.held() is None
    assert target.push(version=0).since is None
    assert target.rows() == target.expected(before)
    drop(target)
    assert not target.push().is_repeat
    assert target.rows() == target.expected()


def drop(target: Target) -> None:
    """As somebody does who was told to push into another table or drop this one."""
    if target.kind == "pgvector":
        with psycopg.connect(target.settings.push.uri) as connection:
            connection.execute(f"DROP TABLE {target.settings.push.table}")
        return
    client = MilvusClient(target.settings.push.uri)
    client.drop_collection(live_collection(client, target.settings.push.table))
    client.close()


@pytest.mark.fault("B11", "loud", "a row of another model in the version to push")
def test_rows_of_two_models_are_refused_and_what_was_there_stands(in_postgres: Target) -> None:
    before = two_versions(in_postgres)
    in_postgres.shop.rows["P5"]["model_id"] = "model-x"
    in_postgres.shop.publish()
    with pytest.raises(InputError, match=r"rows of one model, model-a, .*; found a row of model-x"):
        in_postgres.push()
    assert in_postgres.rows() == in_postgres.expected(before)


def test_an_older_version_needs_a_word_and_a_rollback_needs_none(in_postgres: Target) -> None:
    before = two_versions(in_postgres)
    after = dict(in_postgres.shop.rows)
    in_postgres.push()
    with pytest.raises(InputError, match="expected version 0 or an earlier one; found version 1"):
        in_postgres.push(version=0)
    assert in_postgres.push(version=0, allow_older=True).since is None
    assert in_postgres.rows() == in_postgres.expected(before)
    in_postgres.push()
    assert in_postgres.rows() == in_postgres.expected(after)
    roll_back(in_postgres.settings)
    done = in_postgres.push()
    assert (done.held.version, done.since) == (2, None)
    assert in_postgres.rows() == in_postgres.expected(before)


def test_a_table_made_anew_with_the_same_version_numbers_is_written_whole(in_postgres: Target) -> None:
    two_versions(in_postgres)
    shutil.rmtree(in_postgres.settings.warehouse.uri)
    anew = in_postgres.shop = PushShop(in_postgres.settings)
    anew.run = "another run"
    anew.put(*ITEMS, seed=4_000)
    anew.publish()
    done = in_postgres.push()
    assert (done.is_repeat, done.since) == (False, None)
    assert in_postgres.rows() == in_postgres.expected()
    shutil.rmtree(in_postgres.settings.warehouse.uri)
    again = in_postgres.shop = PushShop(in_postgres.settings)
    again.put(*ITEMS, seed=6_000)
    again.publish()
    again.put("P1", seed=7_000)
    again.publish(["P1"])
    assert in_postgres.push().since is None
    assert in_postgres.rows() == in_postgres.expected()


def test_ids_that_milvus_client_would_put_into_an_expression_are_refused(
    request: pytest.FixtureRequest, make_settings: MakeSettings, tmp_path: Path
) -> None:
    in_postgres = new_target("milvus", request, make_settings, tmp_path)
    in_postgres.shop.put("P1", "x'] or item_id in ['P1")
    in_postgres.shop.publish()
    with pytest.raises(InputError, match="without quotes, backslashes and control characters"):
        in_postgres.push()


SECRET = "hunter2-of-the-shop"


def main_of(target: Target, tmp_path: Path, capfd: Any, **push_keys: str) -> tuple[int, str]:
    """Exit code and output of the command."""
    settings = tmp_path / "settings.toml"
    keys = {"store": target.settings.push.store, "uri": target.settings.push.uri, "table": target.settings.push.table}
    lines = [f'{key} = "{value}"' for key, value in (keys | push_keys).items()]
    settings.write_text(
        f'[warehouse]\nuri = "{target.settings.warehouse.uri}"\n[dates]\nas_of = 2026-03-01\ntrain_days = 20\n'
        "gap_days = 2\ntest_days = 7\n[push]\n" + "\n".join(lines) + "\n"
    )
    try:
        pushing.main(["--settings", str(settings)])
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capfd.readouterr()
    return code, out + err


@pytest.mark.parametrize(
    ("store", "uri"), [("pgvector", "postgresql://postgres@127.0.0.1:1/postgres"), ("milvus", "http://127.0.0.1:1")]
)
@pytest.mark.fault("G3", "loud", "a store that does not answer")
def test_a_store_that_is_down_asks_for_a_retry_and_says_no_password(
    in_postgres: Target, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch, store: str, uri: str
) -> None:
    monkeypatch.setenv("PGPASSWORD", SECRET)
    monkeypatch.setenv("ITEMSAGE_MILVUS_TOKEN", f"root:{SECRET}")
    monkeypatch.setattr("retrieval.stores.milvus._SECONDS", 2.0)
    in_postgres.shop.put(*ITEMS)
    in_postgres.shop.publish()
    code, said = main_of(in_postgres, tmp_path, capfd, store=store, uri=uri)
    last = json.loads(said.strip().splitlines()[-1])
    assert (code, last["retry"], last["stages"][0]["stage"]) == (1, True, f"push_{store}")
    assert f"{uri}: expected" in said
    assert "run the push again" in said
    assert SECRET not in said


def test_a_password_in_the_uri_is_refused_and_not_shown(in_postgres: Target, tmp_path: Path, capfd: Any) -> None:
    for uri in (f"postgresql://me:{SECRET}@db/shop", f"postgresql://me@db/shop?password={SECRET}"):
        code, said = main_of(in_postgres, tmp_path, capfd, uri=uri)
        assert code == 2
        assert "push.uri" in said
        assert SECRET not in said


def test_no_record_holds_the_password(in_postgres: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", SECRET)
    two_versions(in_postgres)
    in_postgres.push()
    with psycopg.connect(in_postgres.settings.push.uri) as connection:
        kept = connection.execute("SELECT * FROM itemsage_pushes").fetchall()
    assert kept
    assert SECRET not in str(kept)


def test_the_command_says_done_already_done_and_not_to_be_trusted(
    in_postgres: Target, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_postgres.shop.put(*ITEMS)
    in_postgres.shop.publish()
    honest = PgVector.upsert
    ended = []
    for lie in (True, False, False):
        with monkeypatch.context() as lying:
            if lie:
                lying.setattr(PgVector, "upsert", lambda self, rows: honest(self, dropping("P9")(rows)))
            code, said = main_of(in_postgres, tmp_path, capfd)
        last = json.loads(said.strip().splitlines()[-1])
        ended.append((code, last["status"], last["retry"]))
    assert ended == [(4, "failed", False), (0, "done", False), (0, "already_done", False)]


def test_a_second_push_at_the_same_time_is_refused(in_postgres: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrieval.stores.pgvector._PUSH_TIMEOUT", "100ms")
    in_postgres.shop.put(*ITEMS)
    in_postgres.shop.publish()
    with (
        pushing.open_store(in_postgres.settings.push),
        pytest.raises(StoreError, match="no other push into it; found one"),
    ):
        in_postgres.push()


def test_settings_without_a_store_or_of_no_postgres_are_refused(make_settings: MakeSettings) -> None:
    with pytest.raises(SettingsError, match=r"push\.store: name the store"):
        push(make_settings())
    for keys in ({"store": "pgvector"}, {"store": "pgvector", "uri": "./items"},
                 {"store": "milvus", "uri": "m.db", "table": "a.b"}):  # fmt: skip
        with pytest.raises(ValueError, match=r"push\.(store|uri|table)"):
            make_settings(push=keys)
    with pytest.raises(ValueError, match=r"push\.uri"):
        make_settings(push={"store": "opensearch", "uri": "/elsewhere"}, security={"allowed_roots": ["/data"]},
                      warehouse={"uri": "/data/w"})  # fmt: skip


# ---------------------------------------------------------------- files, checksums, samples


@pytest.mark.parametrize("is_packed", [True, False])
def test_bulk_files_are_bounded_and_a_flipped_byte_is_found(
    make_settings: MakeSettings, tmp_path: Path, is_packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "bulk")
    settings = make_settings(push={"store": "opensearch", "uri": uri, "file_mb": 1, "gzip": is_packed})
    target = Target("opensearch", settings)
    target.shop.put(*(f"P{number}" for number in range(700)))
    target.shop.publish()
    seal = BulkFiles.seal

    def damage(self: BulkFiles) -> None:
        seal(self)
        [part] = Path(uri).glob("*/part-00000*")
        content = part.read_bytes()
        part.write_bytes(gzip.compress(b"") if is_packed else content.replace(b'"_id":"P5"', b'"_id":"Q5"'))

    with monkeypatch.context() as damaging:
        damaging.setattr(BulkFiles, "seal", damage)
        with pytest.raises(VerificationError, match="700 with"):
            target.push()
    target.push()
    [manifest] = Path(uri).glob("*/manifest.json")
    files = json.loads(manifest.read_text())["files"]
    parts = sorted(manifest.parent.glob("part-*"))
    assert [one["name"] for one in files] == [part.name for part in parts]
    assert sum(one["actions"] for one in files) == 700
    assert len(files) > 1
    for one, part in zip(files, parts, strict=True):
        content = part.read_bytes()
        assert one["bytes"] == len(content)
        assert len(gzip.decompress(content) if is_packed else content) <= 1 << 20
    assert target.rows() == target.expected()


def test_a_checksum_minds_every_id_and_no_order() -> None:
    ids = [f"P{number}" for number in range(2_000)]

    def set_of(some: list[str]) -> IdSet:
        found = IdSet()
        for start in range(0, len(some), 300):
            found.add(pa.array(some[start : start + 300], pa.string()))
        return found

    whole = set_of(ids)
    assert (whole.count, whole.checksum) == (2_000, set_of(ids[::-1]).checksum)

    def said(some: list[str]) -> str:
        return "; ".join(id_differences(whole, lambda: [pa.array(ids)], lambda: [pa.array(some, pa.string())]))

    assert said(ids[::-1]) == ""
    assert "missing: P7" in said([item for item in ids if item != "P7"])
    assert "too many: P7" in said([*ids, "P7"])
    assert "missing: P7; too many: p7" in said(["p7" if item == "P7" else item for item in ids])
    assert "missing: " in said([])


def test_a_sample_is_of_its_size_and_every_row_may_be_in_it() -> None:
    counts = np.zeros(1_000)
    for seed in range(200):
        sample = Sample(50, np.random.default_rng(seed))
        for start in range(0, 1_000, 100):
            sample.add(pa.RecordBatch.from_pydict({"n": pa.array(range(start, start + 100))}))
        rows = sample.rows()
        assert rows is not None
        assert len(rows) == len(set(rows["n"].to_pylist())) == 50
        counts[rows["n"].to_numpy()] += 1
    # 10 a row in the mean; a tenth of the rows has 1,000 in all, whose deviation is about 30.
    assert np.abs(counts.reshape(10, 100).sum(axis=1) - 1_000).max() < 150
