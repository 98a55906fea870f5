"""Publishing that is killed, aborted or finds no room: a reader has the old version or the new one, whole."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from jobs.runtime.litter import find_litter, unread_in_tables
from schemas.published import live
from schemas.settings import Settings
from schemas.storage import data_files, read_columns
from schemas.tables import ITEM_EMBEDDINGS, QUERY_VECTORS
from tests.fault_report import Trials
from tests.faults.publishing import items_of, queries_of
from tests.killing import Killer, killer

MakeSettings = Callable[..., Settings]
pytestmark = pytest.mark.timeout(600)

_MOST_KILLS = 40
"""In one warehouse: every trial reads the logs of all before it."""


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings()


@pytest.fixture
def publishing(settings: Settings, tmp_path: Path) -> Iterator[Killer]:
    """Publishes models; two are published by then, m-2 and m-1."""
    with killer("tests.faults.publishing:publish", tmp_path / "log") as found:
        for model in ("m-2", "m-1"):
            found.run(settings.model_dump_json(), model)
        yield found


def read_whole(settings: Settings) -> str:
    """The model whose items and queries a reader without a JVM finds, every row of both as that model made it."""
    found = live(settings.layout)
    assert found is not None
    items = pa.Table.from_batches(found.items()).sort_by("item_id")
    queries = pa.Table.from_batches(found.queries()).sort_by("query_id")
    assert items.equals(items_of(found.model_id).cast(items.schema)), found.model_id
    assert queries.equals(queries_of(found.model_id).cast(queries.schema)), found.model_id
    return found.model_id


def content(settings: Settings) -> list[pa.Table]:
    """What is live, sorted."""
    tables = ((ITEM_EMBEDDINGS, "item_id"), (QUERY_VECTORS, "query_id"))
    uris = [(settings.table_uri(table.name), table.column_names, key) for table, key in tables]
    return [read_columns(uri, None, list(names)).sort_by(key) for uri, names, key in uris]


def require_one_model_in_every_version(settings: Settings) -> None:
    for table in (ITEM_EMBEDDINGS, QUERY_VECTORS):
        uri = settings.table_uri(table.name)
        rows = len(items_of("m") if table is ITEM_EMBEDDINGS else queries_of("m"))
        for version in range(1, DeltaTable(uri).version() + 1):
            models = read_columns(uri, version, ["model_id"])["model_id"]
            assert (len(models), len(models.unique())) == (rows, 1), (table.name, version)


@pytest.mark.fault("B6", "recovered", "publishing killed at random moments; after each, a read, and the same run again")
@pytest.mark.fault("B11", "recovered", "the same, and one model in every version of both tables' history")
def test_killed_at_any_moment(
    make_settings: MakeSettings, publishing: Killer, tmp_path: Path, kills: int, trials: Trials
) -> None:
    in_time = 0
    for first in range(0, kills, _MOST_KILLS):
        settings, untroubled = (
            make_settings(warehouse={"uri": str(tmp_path / f"{name}-{first}")}) for name in ("troubled", "untroubled")
        )
        before = "m-1"
        publishing.run(settings.model_dump_json(), before)
        for number in range(first, min(first + _MOST_KILLS, kills)):
            model = f"m{number}"
            in_time += publishing.kill(settings.model_dump_json(), model)
            assert read_whole(settings) in (before, model)
            publishing.run(settings.model_dump_json(), model)
            assert read_whole(settings) == model
            trials.add(recovered=1)
            before = model
        require_one_model_in_every_version(settings)
        publishing.run(untroubled.model_dump_json(), before)
        assert all(one.equals(other) for one, other in zip(content(settings), content(untroubled), strict=True))
    print(f"{in_time} of {kills} kills came before the end")
    assert in_time > kills / 10


@pytest.mark.fault("F6", "loud", "what 20 killed runs leave behind: every file is listed, and none that is in use")
def test_what_killed_runs_leave_is_listed(settings: Settings, publishing: Killer) -> None:
    for number in range(20):
        publishing.kill(settings.model_dump_json(), f"m{number}")
    publishing.run(settings.model_dump_json(), "last")
    month_ago, unread = time.time() - 3_600 * 24 * 30, 0
    for table in (ITEM_EMBEDDINGS, QUERY_VECTORS):
        uri = settings.table_uri(table.name)
        versions = range(DeltaTable(uri).version() + 1)
        named = {Path(file) for version in versions for file in data_files(uri, version)}
        left = set(Path(uri).glob("*.parquet")) - named
        for path in left:
            os.utime(path, (month_ago, month_ago))
        unread += len(left)
    assert unread > 0
    assert unread_in_tables(settings).files == unread
    staged = list(Path(settings.layout.place()).rglob("*.staged"))
    found = [one for one in find_litter(settings) if one.what == "half-written files"]
    assert sorted(path for one in found for path in one.paths) == sorted(staged)
    assert read_whole(settings) == "last"


@pytest.mark.fault("B13", "recovered", "os.abort() right after both commits; the rerun publishes the same rows")
@pytest.mark.fault("B1", "recovered", "a run that is lost after its commits, and repeated: no row is there twice")
def test_aborted_after_the_commit(settings: Settings, publishing: Killer, tmp_path: Path) -> None:
    with killer("tests.faults.publishing:publish_and_abort", tmp_path / "abort") as aborting:
        aborting.ends_with(-6, settings.model_dump_json(), "m0")
    assert read_whole(settings) == "m0"
    before = content(settings)
    publishing.run(settings.model_dump_json(), "m0")
    assert read_whole(settings) == "m0"
    assert all(one.equals(other) for one, other in zip(before, content(settings), strict=True))


@pytest.mark.fault("F4", "loud", "no room for the lease, a data file, a record or a commit: nothing is published")
def test_a_full_disk_leaves_what_was_published(
    settings: Settings, publishing: Killer, tmp_path: Path, trials: Trials
) -> None:
    sizes = [1, 300, *np.geomspace(500, 150_000, 10).astype(int).tolist()]
    for act, most in (("publish_on_a_full_disk", sizes), ("commit_on_a_full_disk", [1, 300, 600, 1_200])):
        with killer(f"tests.faults.publishing:{act}", tmp_path / act) as full:
            for most_bytes in most:
                trials.add(loud=1, seconds=full.ends_with(1, settings.model_dump_json(), "other", most_bytes))
                assert "File too large" in full.said
                assert "found a newer one" not in full.said, "nobody else has committed"
                assert read_whole(settings) == "m-1"
    publishing.run(settings.model_dump_json(), "after")
    assert read_whole(settings) == "after"
    require_one_model_in_every_version(settings)
