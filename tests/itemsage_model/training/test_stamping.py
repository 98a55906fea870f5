"""A model says what it was trained on: what was read at the start, whatever happens meanwhile; mixtures are refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.model_files import CheckpointError, load_model
from itemsage_model.training import run as training
from itemsage_model.training.trainer import Trainer
from schemas import lease
from schemas.contracts import agreed
from schemas.errors import InputError
from schemas.metrics import ItemMetrics, QueryMetrics
from schemas.records import RunRecord, read_record, write_record
from schemas.settings import Settings
from schemas.stages import BUILD_ITEM_FEATURES, BUILD_TRAINING_TABLES, EMBED_QUERIES, SCORE_CATALOG, TRAIN
from tests.itemsage_model.factories import VOCABULARY
from tests.itemsage_model.warehouses import entry, make_warehouse, trained_weights

CPU = torch.device("cpu")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_warehouse(tmp_path / "shop", {"click": [30, 20]}, train={"steps": 2})


def features_of(settings: Settings, vocabulary_hash: str, version: int = 0) -> RunRecord[ItemMetrics]:
    outputs = (entry(Path(settings.warehouse.uri), "item_features", version, 20),)
    return RunRecord("build_item_features", ItemMetrics(VOCABULARY, vocabulary_hash), outputs=outputs)


@pytest.mark.fault("danger 1", "loud", "vocabulary and features rebuilt, training tables not; then train")
def test_training_tables_of_another_vocabulary_are_refused(settings: Settings) -> None:
    write_record(settings.layout, features_of(settings, "another", version=1))
    with pytest.raises(InputError, match=r"cut from version 1, .* found version 0\. .*FROM=build_training_tables"):
        training.train(settings, CPU)
    write_record(settings.layout, features_of(settings, "another"))
    with pytest.raises(InputError, match=r"vocabulary: .*another in what build_item_features wrote, and abc in what"):
        training.train(settings, CPU)
    assert not Path(settings.layout.models).exists()


@pytest.mark.fault("danger 1", "loud", "features rebuilt while training runs, vocabularies of one size; then score")
def test_a_model_is_stamped_with_what_was_read_at_the_start(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer.fit

    def overtaken(self: Trainer, *arguments: Any) -> None:
        original(self, *arguments)
        write_record(settings.layout, features_of(settings, "another", version=1))
        write_record(settings.layout, RunRecord("embed_queries", QueryMetrics(None, 0, {"closeup": "pinsage-2"})))

    monkeypatch.setattr(Trainer, "fit", overtaken)
    training.train(settings, CPU)
    trained = read_record(settings.layout, TRAIN)
    assert trained.metrics.vocabulary_hash == "abc"
    assert trained.made_with == {
        "vocabulary": "abc", "space of closeup queries": "pinsage-1", "space of item text": "pinsage-1",
    }  # fmt: skip
    assert load_model(trained.metrics.model_uri, ItemTowerSpec).spec.embedding_spaces == {"closeup": "pinsage-1"}
    features, queries = (read_record(settings.layout, stage) for stage in (BUILD_ITEM_FEATURES, EMBED_QUERIES))
    for read, said in ((features, "vocabulary"), (queries, "space of closeup queries")):
        with pytest.raises(InputError, match=rf"score_catalog, {said}: .*Run build_training_tables, then train again"):
            agreed(settings.layout, SCORE_CATALOG, [read, trained], ["closeup"])


@pytest.mark.fault("B11", "loud", "queries embedded anew in another space, training tables not; then train")
def test_training_tables_of_another_space_are_refused(settings: Settings) -> None:
    write_record(settings.layout, RunRecord("embed_queries", QueryMetrics(None, 0, {"closeup": "lsa-2"})))
    with pytest.raises(InputError, match=r"lsa-2 in what embed_queries wrote, and pinsage-1 in what build_train"):
        training.train(settings, CPU)


@pytest.mark.fault("copy", "recovered", "a warehouse moved before training, and copied after it")
def test_a_moved_warehouse_trains_and_a_copied_one_has_its_own_model(settings: Settings, tmp_path: Path) -> None:
    shutil.move(settings.warehouse.uri, tmp_path / "moved")
    moved, copied = (
        settings.model_copy(update={"warehouse": settings.warehouse.model_copy(update={"uri": f"{tmp_path}/{name}"})})
        for name in ("moved", "copied")
    )
    training.train(moved, CPU)
    shutil.copytree(moved.warehouse.uri, copied.warehouse.uri)
    shutil.rmtree(moved.warehouse.uri)
    assert read_record(copied.layout, TRAIN).metrics.model_uri.startswith(f"{tmp_path}/copied/models/")
    assert trained_weights(copied)


@pytest.mark.fault("D5", "loud", "any byte of model.json changed: 300 of them")
def test_a_model_with_any_byte_of_its_json_changed_is_refused_or_says_the_same(settings: Settings) -> None:
    training.train(settings, CPU)
    uri = read_record(settings.layout, TRAIN).metrics.model_uri
    sound, file = load_model(uri, ItemTowerSpec), Path(uri, "model.json")
    whole = file.read_bytes()
    assert json.loads(whole)["facts"]["trained_on"][0]["uri"] == "training_closeup_click"
    refused = 0
    for place in range(0, len(whole), max(1, len(whole) // 300)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            assert load_model(uri, ItemTowerSpec) == sound, place
        except CheckpointError:
            refused += 1
    assert refused > 200


@pytest.mark.fault("B3", "loud", "a trainer whose lease was given to another run saves neither model nor record")
def test_a_trainer_that_lost_the_warehouse_saves_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer.fit

    def robbed(self: Trainer, *arguments: Any) -> None:
        original(self, *arguments)
        lease._write(settings.layout, 2, [])

    monkeypatch.setattr(Trainer, "fit", robbed)
    with pytest.raises(lease.LeaseError, match="Nothing was committed"):
        training.train(settings, CPU)
    assert not Path(settings.layout.models).exists()
    assert not Path(settings.layout.record("train")).exists()


def test_another_run_of_the_same_training_is_refused_at_once(settings: Settings) -> None:
    date = str(settings.dates.as_of)
    with lease.hold(settings.layout, "train", date), pytest.raises(lease.LeaseError, match="found train of 2026-03-01"):
        training.train(settings, CPU)


def test_a_record_of_before_contracts_trains_if_nothing_was_rebuilt(settings: Settings) -> None:
    tables, folder = read_record(settings.layout, BUILD_TRAINING_TABLES), Path(settings.warehouse.uri)
    queries = entry(folder, "query_embeddings", 0, 5)
    inputs = (*tables.inputs, queries)
    write_record(settings.layout, replace(tables, made_with={}, inputs=inputs))
    metrics = QueryMetrics(None, 0, {"closeup": "pinsage-1"})
    write_record(settings.layout, RunRecord("embed_queries", metrics, outputs=(queries,)))
    training.train(settings, CPU)
    assert read_record(settings.layout, TRAIN).made_with["space of closeup queries"] == "pinsage-1"
