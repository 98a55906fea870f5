"""Scored vectors that are not live: readers keep what is, until one command commits them, however often it is ended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from schemas import candidate as candidates
from schemas.candidate import Candidate, keep_candidate, publish_candidate, read_candidate
from schemas.columns import Table
from schemas.commits import OvertakenError, Staged, open_or_create
from schemas.errors import InputError
from schemas.metrics import Health, ScoreMetrics
from schemas.published import live
from schemas.records import RunRecord, read_record, write_record
from schemas.settings import Settings
from schemas.stages import SCORE_CATALOG
from schemas.storage import is_file
from schemas.tables import ITEM_EMBEDDINGS, QUERY_VECTORS

MakeSettings = Callable[..., Settings]


def staged(settings: Settings, table: Table, model: str) -> Staged:
    """One row in a file that no commit names."""
    uri = settings.table_uri(table.name)
    base = int(open_or_create(uri, table).version())
    path = f"part-{uuid4().hex}.parquet"
    vector = pa.array([[0.0] * 256], pa.list_(pa.float32()))
    columns = {
        "item_id": ["i"], "embedding": vector, "model_id": [model], "features_hash": ["h"], "query_id": ["q"],
        "query_kind": ["search"], "query_vector": vector, "scored_ts": pa.array([0], pa.timestamp("us", "UTC")),
    }  # fmt: skip
    pq.write_table(pa.table({name: columns[name] for name in table.column_names}), f"{uri}/{path}")
    file = {"path": path, "bytes": Path(uri, path).stat().st_size, "modified_ms": 0, "rows": 1}
    return Staged(table, uri, [file], base)


def scored(settings: Settings, model: str) -> Candidate:
    """What score_catalog leaves of a model: a candidate, its name in the warehouse, and the record."""
    health = Health(1, 0.5, 1.0, 0.0, 0.5, None, {"item i": True})
    metrics = ScoreMetrics(model, "float32", published_id=model, health=health)
    items, answers = (staged(settings, table, model) for table in (ITEM_EMBEDDINGS, QUERY_VECTORS))
    made = Candidate(items, answers, {"run_id": f"run of {model}", "as_of": "2026-03-01"}, metrics)
    keep_candidate(settings.layout, made)
    write_record(settings.layout, RunRecord(SCORE_CATALOG.name, metrics, outputs=made.outputs, made_after={}))
    return made


def read(settings: Settings) -> tuple[str, str] | None:
    """model_id of items and queries, as a reader finds them."""
    found = live(settings.layout)
    if found is None:
        return None
    [items], [queries] = found.items(["model_id"]), found.queries(["model_id"])
    return items["model_id"][0].as_py(), queries["model_id"][0].as_py()


def test_a_candidate_is_live_when_it_is_published(make_settings: MakeSettings) -> None:
    settings = make_settings()
    made = scored(settings, "a")
    assert read(settings) is None
    assert read_candidate(settings.layout) == made
    found = publish_candidate(settings)
    assert (found.model_id, read(settings)) == ("a", ("a", "a"))
    record = read_record(settings.layout, SCORE_CATALOG)
    assert record.output(ITEM_EMBEDDINGS.name).version == found.version
    assert record.made_after == {}, "the run that scored it is still the one that was done"
    assert not is_file(settings.layout.candidate)
    with pytest.raises(InputError, match=r"expected scored vectors that are not live yet; found none.*score\.publish"):
        publish_candidate(settings)
    scored(settings, "b")
    assert read(settings) == ("a", "a")


class Ended(BaseException):
    """Where a kill would be."""


@pytest.mark.parametrize("at", ["before", "queries", "items", "record"])
@pytest.mark.fault("B11", "recovered", "publishing ended before, between and after its commits, and run again")
def test_publishing_that_is_ended_anywhere_goes_on(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    settings = make_settings()
    scored(settings, "a")
    publish_candidate(settings)
    scored(settings, "b")
    commit, most = Staged.commit, {"before": 0, "queries": 1, "items": 2, "record": 9}[at]
    count = 0

    def ending(self: Staged, note: dict[str, object], before: Callable[[int], None] | None = None) -> int:
        nonlocal count
        if count == most:
            raise Ended
        count += 1
        return commit(self, note, before)

    def end(*_: object) -> None:
        raise Ended

    monkeypatch.setattr(Staged, "commit", ending)
    monkeypatch.setattr(candidates, "write_record", end if at == "items" else write_record)
    monkeypatch.setattr(candidates, "remove_candidate", end)
    with pytest.raises(Ended):
        publish_candidate(settings)
    monkeypatch.undo()
    assert read(settings) == (("a", "a") if at in ("before", "queries") else ("b", "b"))
    assert publish_candidate(settings).model_id == "b"
    assert read(settings) == ("b", "b")
    # The empty table, then a commit for each model: none was made twice.
    assert DeltaTable(settings.table_uri(ITEM_EMBEDDINGS.name)).version() == 2
    assert DeltaTable(settings.table_uri(QUERY_VECTORS.name)).version() == 2


@pytest.mark.fault("B3", "loud", "a candidate that is published after another run has committed")
def test_a_candidate_of_before_another_commit_is_refused(make_settings: MakeSettings) -> None:
    settings = make_settings()
    old, new = scored(settings, "a"), scored(settings, "b")
    new.make_live(settings.layout)
    with pytest.raises(OvertakenError, match="Nothing was committed"):
        old.make_live(settings.layout)
    assert read(settings) == ("b", "b")


def test_a_vacuum_in_between_overtakes_nobody(make_settings: MakeSettings) -> None:
    settings = make_settings()
    made = scored(settings, "a")
    DeltaTable(made.items.uri).vacuum(168, dry_run=False)
    made.make_live(settings.layout)
    assert read(settings) == ("a", "a")


def test_a_damaged_candidate_is_named(make_settings: MakeSettings) -> None:
    settings = make_settings()
    scored(settings, "a")
    Path(settings.layout.candidate).write_text('{"tables": 3}')
    with pytest.raises(InputError, match=r"candidate, .*found a damaged file"):
        read_candidate(settings.layout)
    assert scored(settings, "b") == read_candidate(settings.layout)
