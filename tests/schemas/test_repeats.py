"""Run twice is run once: nothing to do while settings, code, inputs, makers and outputs are what they were."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from schemas import repeats
from schemas.input_tables import find_input
from schemas.metrics import ItemTextMetrics, QueryMetrics, TrainMetrics, VocabularyMetrics
from schemas.records import RunRecord, TableVersion, read_record, write_record
from schemas.repeats import AlreadyDone, files_besides_tables, stop_if_done
from schemas.settings import Settings
from schemas.stages import BUILD_VOCABULARY, EMBED_ITEMS, EMBED_QUERIES, TRAIN
from schemas.tables import ITEMS, VOCABULARY

MakeSettings = Callable[..., Settings]


class Shop:
    """A warehouse in which build_vocabulary has run once, on items that are Delta or Parquet."""

    def __init__(self, make_settings: MakeSettings, folder: Path, is_delta: bool = True) -> None:
        self.make_settings, self.items, self.is_delta = make_settings, folder / "items", is_delta
        self.inputs = {"items": str(self.items)}
        self.write_items("red")
        self.vocabulary = self.settings().table_uri(VOCABULARY.name)
        self.write_vocabulary()
        found = find_input(str(self.items), ITEMS)
        self.record = RunRecord(
            BUILD_VOCABULARY.name,
            VocabularyMetrics(),
            inputs=(TableVersion(ITEMS.name, str(self.items), found.version, 1),),
            outputs=(TableVersion(VOCABULARY.name, self.vocabulary, 0, 1),),
            settings=self.settings().model_dump(mode="json"),
            table_ids={ITEMS.name: found.table_id},
            made_after={},
        )
        write_record(self.settings().layout, self.record)

    def settings(self, **sections: object) -> Settings:
        return self.make_settings(inputs=self.inputs, **sections)

    def write_items(self, title: str) -> None:
        rows = pa.table({"item_id": ["a"], "title": [title]})
        if self.is_delta:
            write_deltalake(str(self.items), rows, mode="overwrite")
            return
        self.items.mkdir(exist_ok=True)
        pq.write_table(rows, self.items / "part.parquet")

    def write_vocabulary(self) -> None:
        write_deltalake(self.vocabulary, pa.table({"token": ["red"]}), mode="overwrite")

    def is_done(self, **sections: object) -> bool:
        try:
            stop_if_done(self.settings(**sections), BUILD_VOCABULARY)
        except AlreadyDone:
            return True
        return False


@pytest.mark.parametrize("is_delta", [True, False])
def test_a_stage_is_done_until_its_input_is_written_anew(
    make_settings: MakeSettings, tmp_path: Path, is_delta: bool
) -> None:
    shop = Shop(make_settings, tmp_path, is_delta)
    assert shop.is_done()
    shop.write_items("new")
    assert not shop.is_done()


def test_a_file_of_the_same_length_that_was_written_later_is_another(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    shop = Shop(make_settings, tmp_path, is_delta=False)
    os.utime(shop.items / "part.parquet", ns=(1, 1))
    assert not shop.is_done()


@pytest.mark.fault("F1", "recovered", "an input that was removed and made anew, with the version number that was read")
def test_a_table_made_anew_with_the_same_version_is_another(make_settings: MakeSettings, tmp_path: Path) -> None:
    shop = Shop(make_settings, tmp_path)
    shutil.rmtree(shop.items)
    shop.write_items("red")
    assert not shop.is_done()
    shutil.rmtree(shop.items)
    assert not shop.is_done()


def test_other_settings_code_or_the_wish_to_run_again_do_the_work(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(make_settings, tmp_path)
    assert not shop.is_done(features={"max_tokens_per_feature": 9})
    assert not shop.is_done(rerun=True)
    write_record(
        shop.settings().layout, replace(shop.record, settings=shop.settings(rerun=True).model_dump(mode="json"))
    )
    assert shop.is_done()
    monkeypatch.setattr(repeats, "code_version", lambda: "0+other")
    assert not shop.is_done()


@pytest.mark.fault("B1", "recovered", "a table that somebody wrote to, or removed, after the stage that made it")
def test_an_output_that_is_not_what_was_written_is_made_anew(make_settings: MakeSettings, tmp_path: Path) -> None:
    shop = Shop(make_settings, tmp_path)
    DeltaTable(shop.vocabulary).vacuum(168, dry_run=False)
    assert shop.is_done(), "a commit that changes no row"
    shop.write_vocabulary()
    assert not shop.is_done()
    shutil.rmtree(shop.vocabulary)
    assert not shop.is_done()


def test_a_stage_follows_the_stages_whose_records_it_read(make_settings: MakeSettings, tmp_path: Path) -> None:
    shop = Shop(make_settings, tmp_path)
    layout = shop.settings().layout
    maker = RunRecord(EMBED_ITEMS.name, ItemTextMetrics(None), seconds=1.0)
    write_record(layout, maker)
    sha256 = read_record(layout, EMBED_ITEMS).sha256
    write_record(layout, replace(shop.record, made_after={EMBED_ITEMS.name: sha256}))
    assert shop.is_done()
    write_record(layout, replace(maker, seconds=2.0))
    assert not shop.is_done()
    Path(layout.record(EMBED_ITEMS.name)).unlink()
    assert not shop.is_done()


def test_a_record_of_before_or_a_damaged_one_says_nothing(make_settings: MakeSettings, tmp_path: Path) -> None:
    shop = Shop(make_settings, tmp_path)
    layout = shop.settings().layout
    for changed in (replace(shop.record, made_after=None), replace(shop.record, table_ids={})):
        write_record(layout, changed)
        assert not shop.is_done()
    Path(layout.record(BUILD_VOCABULARY.name)).write_text("{")
    assert not shop.is_done()


def test_training_is_done_while_its_model_is_there(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings()
    model = Path(settings.layout.models) / "m"
    model.mkdir(parents=True)
    (model / "model.json").write_text("{}")
    metrics = TrainMetrics("m", str(model), "v")
    write_record(
        settings.layout,
        RunRecord(TRAIN.name, metrics, settings=settings.model_dump(mode="json"), made_after={}),
    )
    with pytest.raises(AlreadyDone, match="nothing has changed since"):
        stop_if_done(settings, TRAIN)
    (model / "model.json").unlink()
    stop_if_done(settings, TRAIN)


def test_the_files_of_a_text_encoder_are_an_input(make_settings: MakeSettings, tmp_path: Path) -> None:
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "weights").write_text("1")
    settings = make_settings(query_encoder={"kind": "sentence_transformers", "folder": str(encoder)})
    assert files_besides_tables(settings, BUILD_VOCABULARY) == {}
    record = RunRecord(
        EMBED_QUERIES.name,
        QueryMetrics(None, 0, {}),
        settings=settings.model_dump(mode="json"),
        table_ids=files_besides_tables(settings, EMBED_QUERIES),
        made_after={},
    )
    write_record(settings.layout, record)
    with pytest.raises(AlreadyDone):
        stop_if_done(settings, EMBED_QUERIES)
    (encoder / "weights").write_text("22")
    stop_if_done(settings, EMBED_QUERIES)
