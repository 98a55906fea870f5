"""The head over picture vectors is trained by the trainer of the item tower, and measured against its base."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from itemsage_model.encoders.model_files import load_model
from itemsage_model.encoders.picture_tower import PictureTowerSpec
from itemsage_model.train import train_on_this_machine
from itemsage_model.training import run as training
from itemsage_model.training.courses import course_of
from itemsage_model.training.picture_inputs import PICTURE_TOWER, make_batches, pin_inputs, settings_of, validation_of
from itemsage_model.training.trainer import Trainer
from schemas.errors import InputError, SettingsError
from schemas.records import read_record
from schemas.settings import Settings
from schemas.stages import TRAIN_PICTURES
from tests.itemsage_model.pictures import KEYS, LENGTH, make_picture_warehouse, pictures

CPU = torch.device("cpu")


def base_recall(settings: Settings) -> float:
    """Recall@10 of the base on the validation pairs, slowly."""
    values, counts = pictures()
    item = np.repeat(np.arange(len(KEYS)), counts)
    unit = values.astype(np.float64) / np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    sums = np.stack([unit[item == row].sum(axis=0) for row in range(len(KEYS))])
    sums /= np.linalg.norm(sums, axis=1, keepdims=True)
    from deltalake import DeltaTable

    pairs = DeltaTable(settings.table_uri("picture_pairs_validation")).to_pyarrow_table().to_pylist()
    hits = []
    for pair in pairs:
        shown, wanted = (int(np.searchsorted(KEYS, pair[name])) for name in ("query_item_key", "item_key"))
        scores = sums @ sums[shown]
        scores[shown] = -np.inf
        hits.append((scores > scores[wanted]).sum() < 10)
    return float(np.mean(hits))


def test_it_beats_its_base_and_is_measured_against_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = make_picture_warehouse(tmp_path)
    training.train(settings, CPU, PICTURE_TOWER)
    record = read_record(settings.layout, TRAIN_PICTURES)
    base, said = base_recall(settings), capfd.readouterr().out
    assert f"validation of picture_head, step 0: recall@10 {base:.4f}" in said
    assert "on the whole period" not in said
    assert record.metrics.candidates["picture_head"].recall > 1.3 * base
    assert record.metrics.steps > 0
    assert record.metrics.model_uri == record.metrics.validated_model_uri, "no pass sees the validation window"
    model = load_model(record.metrics.model_uri, PictureTowerSpec)
    assert (model.spec.base, model.spec.length, model.spec.width) == ("picture-onnx-base", LENGTH, 16)
    assert [read.table for read in record.inputs] == ["picture_pairs", "picture_features", "picture_pairs_validation"]


def test_a_head_that_learns_nothing_is_the_base_and_that_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = make_picture_warehouse(tmp_path, is_random=True, learning_rate=0.1)
    training.train(settings, CPU, PICTURE_TOWER)
    metrics = read_record(settings.layout, TRAIN_PICTURES).metrics
    assert metrics.steps == 0
    assert "No step of training made it better." in capfd.readouterr().out
    head = load_model(metrics.model_uri, PictureTowerSpec).build().head
    assert not head.second.weight.any()


def test_without_a_validation_pair_the_last_step_counts_and_that_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = make_picture_warehouse(tmp_path, validated=0, steps=7)
    training.train(settings, CPU, PICTURE_TOWER)
    assert read_record(settings.layout, TRAIN_PICTURES).metrics.steps == 7
    assert "warning: no validation pair" in capfd.readouterr().out


def test_a_run_that_was_cut_off_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make_picture_warehouse(tmp_path, steps=9, validate_every=0)
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"checkpoint_every": 4})})
    training.train(settings, CPU, PICTURE_TOWER)
    whole = read_record(settings.layout, TRAIN_PICTURES).metrics.model_id
    step = Trainer.train_step

    def cut_off(self: Trainer, batch: object) -> object:
        if self.step == 6:
            raise KeyboardInterrupt
        return step(self, batch)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", cut_off)
        with pytest.raises(KeyboardInterrupt):
            training.train(settings, CPU, PICTURE_TOWER)
    training.train(settings, CPU, PICTURE_TOWER)
    assert read_record(settings.layout, TRAIN_PICTURES).metrics.model_id == whole


def test_two_processes_train_it_too(tmp_path: Path) -> None:
    settings = make_picture_warehouse(tmp_path, steps=4, validate_every=2)
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"processes": 2})})
    assert train_on_this_machine(settings, course_of("train_pictures")) == 0
    assert read_record(settings.layout, TRAIN_PICTURES).metrics.processes == 2


def test_a_batch_holds_its_pairs_and_its_negatives_by_their_keys(tmp_path: Path) -> None:
    settings = settings_of(make_picture_warehouse(tmp_path))
    inputs = pin_inputs(settings)
    first, second = islice(make_batches(inputs, settings, 0, CPU), 2)
    (again,) = islice(make_batches(inputs, settings, 1, CPU), 1)
    assert len(first.positive) == 32
    items = first.item_key[first.positive]
    assert torch.equal((items - first.query_item_key) % (7 * 6), torch.zeros(32, dtype=torch.long)), "of one kind"
    assert set(first.item_key.tolist()) == {*items.tolist(), *first.item_key[first.negatives].tolist()} <= set(KEYS)
    assert torch.equal(first.query_key, first.query_item_key)
    assert torch.equal(second.item_key, again.item_key), "a resumed run goes on with the same batches"
    assert not torch.equal(first.query_key, second.query_key)
    drawn = [set(batch.item_key[batch.negatives].tolist()) for batch in (first, second)]
    assert drawn[0] != drawn[1], "each step draws its own negatives"


def test_items_of_training_pairs_are_no_unseen_ones(tmp_path: Path) -> None:
    settings = settings_of(make_picture_warehouse(tmp_path))
    validation = validation_of(pin_inputs(settings), settings)
    assert validation is not None
    assert (validation.pair_count, validation.unseen_share) == (300, 0)


def test_vectors_of_another_length_are_refused(tmp_path: Path) -> None:
    settings = settings_of(make_picture_warehouse(tmp_path))
    other = settings.model_copy(update={"model": settings.model.model_copy(update={"image_length": 24})})
    with pytest.raises(InputError, match=r"picture_features.*expected vectors of 24 numbers.*found vectors of 12"):
        pin_inputs(other)


@pytest.mark.parametrize("key", ["batch_size", "negative_count"])
def test_a_batch_that_cannot_be_shared_out_is_refused_by_its_key(tmp_path: Path, key: str) -> None:
    settings = make_picture_warehouse(tmp_path, **{key: 33})
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"processes": 2})})
    with pytest.raises(
        SettingsError, match=rf"picture_head\.{key} must be a multiple of train.processes \(2\).*\(found 33\)"
    ):
        settings_of(settings)
