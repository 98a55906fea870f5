"""What is live, by the newest commit of item_embeddings: one commit makes it so, and one brings the former back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, write_deltalake

from schemas import published
from schemas.errors import InputError
from schemas.metrics import ScoreMetrics, TrainMetrics, ValidateMetrics
from schemas.published import (
    PUBLISHED,
    Published,
    find_previous,
    keep_encoder,
    keep_makers,
    live,
    published_version,
    published_versions,
    roll_back,
)
from schemas.records import RunRecord, read_record, write_record
from schemas.settings import Settings
from schemas.stages import SCORE_CATALOG, TRAIN, VALIDATE
from schemas.storage import read_bytes, write_bytes
from schemas.tables import ITEM_EMBEDDINGS, QUERY_VECTORS
from schemas.warehouse import ENCODER_FILES

MakeSettings = Callable[..., Settings]


class Shop:
    """A warehouse in which models were published one after the other."""

    def __init__(self, make_settings: MakeSettings) -> None:
        self.settings = make_settings()
        self.items, self.queries = (self.settings.table_uri(table.name) for table in (ITEM_EMBEDDINGS, QUERY_VECTORS))

    def publish(
        self, model: str, *, run: str = "", items_too: bool = True, spaces: dict[str, str] | None = None
    ) -> None:
        rows = pa.table({"query_id": ["q"], "model_id": [model]})
        write_deltalake(self.queries, rows, mode="overwrite")
        if not items_too:  # ended between the two commits
            return
        metrics = ScoreMetrics(model, "float32", published_id=model, spaces=spaces or {"search": "lsa-1"})
        belongs = {"version": DeltaTable(self.queries).version(), "rows": 1}
        note = {"run_id": run or f"run of {model}", "as_of": "2026-03-01"}
        note |= {PUBLISHED: {"metrics": asdict(metrics), "rows": 1, QUERY_VECTORS.name: belongs}}  # type: ignore[dict-item]
        properties = CommitProperties({"userMetadata": json.dumps(note)})
        rows = pa.table({"item_id": ["i"], "model_id": [model]})
        write_deltalake(self.items, rows, mode="overwrite", commit_properties=properties)

    @property
    def live(self) -> Published:
        found = live(self.settings.layout)
        assert found is not None
        return found

    def read(self) -> tuple[str, str]:
        """model_id of items and queries, as a reader finds them."""
        found = self.live
        [items] = found.items(["model_id"])
        [queries] = found.queries(["model_id"])
        return items["model_id"][0].as_py(), queries["model_id"][0].as_py()


def test_a_reader_has_the_items_and_queries_of_one_model_at_every_instant(make_settings: MakeSettings) -> None:
    shop = Shop(make_settings)
    assert live(shop.settings.layout) is None
    shop.publish("a")
    assert shop.read() == ("a", "a")
    shop.publish("b", items_too=False)
    assert shop.read() == ("a", "a")
    shop.publish("b")
    assert shop.read() == ("b", "b")
    assert [one.model_id for one in published_versions(shop.settings.layout)] == ["b", "a"]


@pytest.mark.fault("B11", "recovered", "a new model that turns out wrong: the one before is live again by one commit")
def test_rolling_back_is_one_commit_that_says_so(make_settings: MakeSettings) -> None:
    shop = Shop(make_settings)
    shop.publish("a")
    shop.publish("b")
    before = DeltaTable(shop.items).version()
    found = roll_back(shop.settings)
    assert shop.read() == ("a", "a")
    assert DeltaTable(shop.items).version() == before + 1
    assert found.rolled_back_from == {"version": before, "model_id": "b", "run_id": "run of b"}
    assert DeltaTable(shop.items).to_pyarrow_table()["model_id"].to_pylist() == ["a"]
    record = read_record(shop.settings.layout, SCORE_CATALOG)
    assert (record.metrics.model_id, record.output(ITEM_EMBEDDINGS.name).version) == ("a", before + 1)
    previous = find_previous(shop.settings)
    assert previous is not None
    assert previous.metrics.model_id == "a"


def test_rolling_back_again_goes_on_to_the_one_before_and_forward_by_name(make_settings: MakeSettings) -> None:
    shop = Shop(make_settings)
    for model in ("a", "b", "c"):
        shop.publish(model)
    of_c = DeltaTable(shop.items).version()
    assert roll_back(shop.settings).model_id == "b"
    assert roll_back(shop.settings).model_id == "a"
    with pytest.raises(InputError, match="an earlier version to go back to"):
        roll_back(shop.settings)
    assert roll_back(shop.settings, of_c).model_id == "c"
    assert shop.read() == ("c", "c")


def test_going_back_to_what_is_live_commits_nothing(make_settings: MakeSettings) -> None:
    shop = Shop(make_settings)
    shop.publish("a")
    version = DeltaTable(shop.items).version()
    Path(shop.settings.layout.records).mkdir(exist_ok=True)
    roll_back(shop.settings, version)
    assert DeltaTable(shop.items).version() == version
    assert read_record(shop.settings.layout, SCORE_CATALOG).metrics.model_id == "a"


@pytest.mark.fault("B11", "recovered", "a rollback ended right after its commit: run again, it goes no further")
def test_a_rollback_that_was_ended_half_way_does_the_rest(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(make_settings)
    for model in ("a", "b", "c"):
        shop.publish(model)
        write_record(shop.settings.layout, shop.live.to_record())

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as ending:
        ending.setattr(published, "write_record", end)
        with pytest.raises(KeyboardInterrupt):
            roll_back(shop.settings)
    assert shop.read() == ("b", "b")
    assert read_record(shop.settings.layout, SCORE_CATALOG).metrics.model_id == "c"
    roll_back(shop.settings)
    assert shop.read() == ("b", "b")
    assert read_record(shop.settings.layout, SCORE_CATALOG).metrics.model_id == "b"
    roll_back(shop.settings)
    assert shop.read() == ("a", "a")


@pytest.mark.fault("B11", "recovered", "days after a rollback: they score with the model that was brought back")
def test_the_records_of_a_models_training_come_back_with_it(make_settings: MakeSettings) -> None:
    shop = Shop(make_settings)
    layout = shop.settings.layout
    kept = {}
    for model in ("a", "b"):
        write_record(layout, RunRecord(TRAIN.name, TrainMetrics(model, f"{layout.models}/{model}", "abc")))
        write_record(layout, RunRecord(VALIDATE.name, ValidateMetrics(model, "recall@10")))
        kept[model] = [read_record(layout, stage) for stage in (TRAIN, VALIDATE)]
        keep_makers(layout, model)
        keep_makers(layout, "of another training")
        shop.publish(model)
    roll_back(shop.settings)
    assert [read_record(layout, stage) for stage in (TRAIN, VALIDATE)] == kept["a"]
    assert {path.name for path in Path(layout.models).iterdir()} == {"a", "b"}


def test_the_text_encoder_of_a_model_stays_beside_it_when_the_next_one_takes_its_place(
    make_settings: MakeSettings,
) -> None:
    layout = make_settings().layout
    for name, model in (("lsa-1", "a"), ("trained-2", "b")):
        for file in ENCODER_FILES:
            write_bytes(f"{layout.query_encoder}/{file}", json.dumps({"name": name, "file": file}).encode())
        keep_encoder(layout, model, ["lsa-1" if model == "a" else "trained-2"])
        keep_encoder(layout, "of queries that come embedded", ["pinsage-1"])
    keep_encoder(layout, "a", ["lsa-1"])  # scored once more
    kept = {model: [json.loads(read_bytes(f"{layout.model_encoder(model)}/{file}")) for file in ENCODER_FILES]
            for model in ("a", "b")}  # fmt: skip
    assert kept == {
        model: [{"name": name, "file": file} for file in ENCODER_FILES]
        for name, model in (("lsa-1", "a"), ("trained-2", "b"))
    }
    assert {path.name for path in Path(layout.models).iterdir()} == {"a", "b"}


@pytest.mark.parametrize("table", ["items", "queries"])
@pytest.mark.fault("B11", "loud", "a rollback to a version of which VACUUM has removed files: nothing is committed")
def test_a_version_whose_files_are_gone_is_refused(make_settings: MakeSettings, table: str) -> None:
    shop = Shop(make_settings)
    shop.publish("a")
    shop.publish("b")
    DeltaTable(getattr(shop, table)).vacuum(0, dry_run=False, enforce_retention_duration=False)
    before = DeltaTable(shop.items).version()
    with pytest.raises(InputError, match=r"expected its file .*VACUUM has removed .*maintenance\.retention_hours"):
        roll_back(shop.settings)
    assert DeltaTable(shop.items).version() == before
    assert shop.read() == ("b", "b")


def test_a_version_that_was_not_published_is_named_with_those_that_were(make_settings: MakeSettings) -> None:
    shop = Shop(make_settings)
    with pytest.raises(InputError, match="a published version; found none"):
        roll_back(shop.settings)
    shop.publish("a")
    version = DeltaTable(shop.items).version()
    with pytest.raises(InputError, match=rf"version 99: expected a version that was published: {version}; found"):
        published_version(shop.settings.layout, 99)


@pytest.mark.fault("B11", "loud", "queries of another space, or the adapter of another model, than the live items")
def test_queries_of_another_space_and_another_models_adapter_are_refused(make_settings: MakeSettings) -> None:
    shop = Shop(make_settings)
    shop.publish("a", spaces={"search": "lsa-1"})
    found = live(shop.settings.layout)
    assert found is not None
    found.require_space("search", "lsa-1")
    found.require_model("a")
    with pytest.raises(InputError, match="expected queries of the space lsa-1; found queries of the space lsa-2"):
        found.require_space("search", "lsa-2")
    with pytest.raises(InputError, match="a kind that it answers: search; found"):
        found.require_space("closeup", "lsa-1")
    with pytest.raises(InputError, match="the query adapter of a; found that of b"):
        found.require_model("b")


def test_commits_that_say_nothing_of_a_model_are_passed_over(make_settings: MakeSettings) -> None:
    shop = Shop(make_settings)
    shop.publish("a")
    DeltaTable(shop.items).vacuum(168, dry_run=False)
    assert shop.read() == ("a", "a")
    write_deltalake(shop.items, pa.table({"item_id": ["i"], "model_id": ["x"]}), mode="overwrite",
                    commit_properties=CommitProperties({"userMetadata": "score_catalog-0123"}))  # fmt: skip
    assert [one.model_id for one in published_versions(shop.settings.layout)] == ["a"]
