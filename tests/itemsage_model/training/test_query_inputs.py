"""The text encoder is trained by the trainer of the item tower: its tables, its start, its record, its refusals."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from itemsage_model.encoders.frozen_text.sentence import fit_sentence_encoder
from itemsage_model.encoders.frozen_text.stored import save
from itemsage_model.encoders.frozen_text.trained import TrainedEncoder
from itemsage_model.encoders.model_files import load_model
from itemsage_model.encoders.query_tower import QueryTowerSpec
from itemsage_model.train import train_on_this_machine, train_on_this_rank
from itemsage_model.training import item_inputs
from itemsage_model.training import run as training
from itemsage_model.training.courses import course_of
from itemsage_model.training.query_inputs import QUERY_ENCODER, pin_inputs, settings_of
from itemsage_model.training.text_start import text_start
from itemsage_model.training.trainer import Trainer
from schemas.errors import InputError, SettingsError
from schemas.records import read_record, write_record
from schemas.repeats import AlreadyDone, stop_if_done
from schemas.settings import Settings
from schemas.stages import BUILD_QUERY_PAIRS, EMBED_QUERIES, TRAIN_QUERY_ENCODER
from tests.itemsage_model.texts import CONFIG, TEXT_SPEC, TEXTS, TOWER_SPEC, make_text_warehouse

CPU = torch.device("cpu")


def reports_of(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """Train, and return the losses of every step and stream."""
    found: list[list[float]] = []
    fit = Trainer.fit
    monkeypatch.setattr(
        Trainer, "fit",
        lambda self, batches, report, *others: fit(
            self, batches, lambda one: (found.append(one.losses), report(one)), *others
        ),
    )  # fmt: skip
    training.train(settings, CPU, QUERY_ENCODER)
    return found


def test_it_learns_which_text_belongs_to_which_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make_text_warehouse(tmp_path, item_text_share=0.25, steps=80, learning_rate=3e-3)
    losses = reports_of(settings, monkeypatch)
    assert len(losses[0]) == 2  # searches, and items' own texts
    assert np.mean(losses[-5:], axis=0)[0] < 0.8 * np.mean(losses[:3], axis=0)[0]
    record = read_record(settings.layout, TRAIN_QUERY_ENCODER)
    assert record.settings == settings.model_dump(mode="json")
    assert [read.table for read in record.inputs] == [
        "query_pairs", "item_text_pairs", "query_pairs_validation", "item_features",
    ]  # fmt: skip
    model = load_model(record.metrics.model_uri, QueryTowerSpec)
    assert (model.spec.base, model.spec.item_space, model.spec.is_one_space) == ("scratch", "pinsage-1", False)


def test_a_shop_without_images_trains_one_too(tmp_path: Path) -> None:
    settings = make_text_warehouse(tmp_path, steps=2)
    inputs = settings.inputs.model_copy(update={"has_images": False})
    training.train(settings.model_copy(update={"preset": "auto", "inputs": inputs}), CPU, QUERY_ENCODER)
    assert read_record(settings.layout, TRAIN_QUERY_ENCODER).metrics.steps == 2


def test_from_scratch_is_said_loudly(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pin_inputs(settings_of(make_text_warehouse(tmp_path, max_tokens=17)))
    assert "warning: search_text.folder names no pretrained encoder" in capfd.readouterr().out


def test_the_same_run_twice_is_the_same_model_and_the_third_has_nothing_to_do(tmp_path: Path) -> None:
    settings = make_text_warehouse(tmp_path, steps=4)
    found = []
    for _ in range(2):
        train_on_this_rank(settings, QUERY_ENCODER)
        found.append(read_record(settings.layout, TRAIN_QUERY_ENCODER).metrics.model_id)
    assert found[0] == found[1]
    with pytest.raises(AlreadyDone):
        stop_if_done(settings, TRAIN_QUERY_ENCODER)
    write_record(settings.layout, replace(read_record(settings.layout, BUILD_QUERY_PAIRS), run_id="another"))
    stop_if_done(settings, TRAIN_QUERY_ENCODER)


def test_a_run_that_was_cut_off_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make_text_warehouse(tmp_path, steps=9)
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"checkpoint_every": 4})})
    training.train(settings, CPU, QUERY_ENCODER)
    whole = read_record(settings.layout, TRAIN_QUERY_ENCODER).metrics.model_id
    step = Trainer.train_step

    def cut_off(self: Trainer, batch: object) -> object:
        if self.step == 6:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(Trainer, "train_step", cut_off)
    with pytest.raises(KeyboardInterrupt):
        training.train(settings, CPU, QUERY_ENCODER)
    steps: list[int] = []
    monkeypatch.setattr(Trainer, "train_step", lambda self, batch: (steps.append(self.step), step(self, batch))[1])
    training.train(settings, CPU, QUERY_ENCODER)
    assert steps == [4, 5, 6, 7, 8]
    assert read_record(settings.layout, TRAIN_QUERY_ENCODER).metrics.model_id == whole


def test_it_is_measured_on_the_validation_window_and_trained_on_the_whole(tmp_path: Path) -> None:
    settings = make_text_warehouse(tmp_path, validated=9, steps=6, validate_every=3, item_text_share=0.2)
    training.train(settings, CPU, QUERY_ENCODER)
    metrics = read_record(settings.layout, TRAIN_QUERY_ENCODER).metrics
    assert list(metrics.candidates) == ["query_encoder"]
    assert metrics.validated_model_uri
    assert 0 <= metrics.candidates["query_encoder"].recall <= 1


def test_pairs_cut_from_other_features_are_refused(tmp_path: Path) -> None:
    settings = make_text_warehouse(tmp_path)
    record = read_record(settings.layout, BUILD_QUERY_PAIRS)
    (features,) = record.inputs
    write_record(settings.layout, replace(record, inputs=(replace(features, version=3),)))
    with pytest.raises(InputError, match=r"query_pairs.*item_features.*version 0.*found version 3.*build_query_pairs"):
        pin_inputs(settings_of(settings))


def test_pairs_of_another_space_are_refused(tmp_path: Path) -> None:
    settings = make_text_warehouse(tmp_path)
    record = read_record(settings.layout, BUILD_QUERY_PAIRS)
    write_record(settings.layout, replace(record, made_with=record.made_with | {"space of item text": "trained-2"}))
    with pytest.raises(InputError, match=r"train_query_encoder.*space of item text.*pinsage-1 .*trained-2"):
        pin_inputs(settings_of(settings))


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    settings = make_text_warehouse(tmp_path / "a", folder=str(tmp_path / "none"))
    with pytest.raises(SettingsError, match=r"search_text\.folder = .* is no folder"):
        pin_inputs(settings_of(settings))
    (tmp_path / "none").mkdir()
    with pytest.raises(SettingsError, match=r"holds no tokenizer\.json"):
        pin_inputs(settings_of(settings))


def save_bert(folder: Path, **changed: Any) -> Any:
    """A folder of a tiny transformer with the tokenizer of the tests' texts; returns its model."""
    from transformers import BertConfig, BertModel

    sizes = CONFIG | changed
    torch.manual_seed(3)
    base = BertModel(BertConfig(**{key: value for key, value in sizes.items() if key != "model_type"}))
    base.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(TEXT_SPEC.tokenizer)
    return base


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"max_position_embeddings": 8}, r"search_text\.max_tokens = 16: .*\(8 places\); lower it"),
     ({"vocab_size": 20}, r"tokenizer\.json has \d+ pieces .* transformer knows 20: the two are not of one model")],
)  # fmt: skip
def test_a_folder_that_cannot_read_the_texts_is_refused_before_a_step(
    tmp_path: Path, changed: dict[str, int], said: str
) -> None:
    save_bert(tmp_path / "bert", **changed)
    settings = make_text_warehouse(tmp_path / "shop", folder=str(tmp_path / "bert"))
    with pytest.raises(SettingsError, match=said):
        pin_inputs(settings_of(settings))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_it_begins_as_the_frozen_encoder_only_where_it_comes_to_its_vectors(
    tmp_path: Path, pooling: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, shop = tmp_path / "bert", tmp_path / "shop"
    save_bert(folder)
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}'
    )
    frozen = fit_sentence_encoder(str(folder), list(TEXTS))  # which takes the mean where a folder does not say
    settings = make_text_warehouse(shop, folder=str(folder), pooling=pooling)
    save(frozen, settings.layout.query_encoder)
    queries = read_record(settings.layout, EMBED_QUERIES)
    named = replace(queries.metrics, encoder=frozen.name)
    start = text_start(settings, replace(queries, metrics=named), frozen.name, sorted(TEXTS))
    is_same = pooling == "mean"
    assert (start.is_one_space, start.name == frozen.name) == (is_same, is_same)
    assert ("does not come to the vectors" in capfd.readouterr().out) != is_same
    found = TrainedEncoder(start.spec, {name: value.numpy() for name, value in start.weights.items()})
    apart = np.abs(found.encode(["red shoes"]) - frozen.encode(["red shoes"])).max()
    assert (apart < 1e-3) == is_same


def test_going_on_from_a_trained_encoder_says_what_it_keeps(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = make_text_warehouse(tmp_path, max_tokens=16)
    weights = TOWER_SPEC.build(seed=3).text.state_dict()
    frozen = TrainedEncoder(TEXT_SPEC, {name: value.numpy() for name, value in weights.items()})
    save(frozen, settings.layout.query_encoder)
    queries = read_record(settings.layout, EMBED_QUERIES)
    record = replace(queries, metrics=replace(queries.metrics, encoder=frozen.name))
    start = text_start(settings, record, frozen.name, sorted(TEXTS))
    assert (start.name, start.is_one_space, start.spec.max_tokens) == (frozen.name, True, 32)
    said = capfd.readouterr().out
    assert "keeps its max_tokens of 32: search_text.max_tokens = 16 is not used" in said
    assert "pooling" not in said


@pytest.mark.parametrize("package", ["transformers", "tokenizers"])
def test_without_the_extra_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    settings = settings_of(make_text_warehouse(tmp_path, max_tokens=13))
    monkeypatch.setitem(sys.modules, package, None)
    for ask in (lambda: pin_inputs(settings), lambda: TEXT_SPEC.token_ids(["red"])):
        with pytest.raises(SettingsError, match="run `make sentence-transformers`"):
            ask()


def test_items_without_texts_are_no_reason_to_look_at_the_dates(tmp_path: Path) -> None:
    settings = make_text_warehouse(tmp_path, item_text_share=0.25)
    record = read_record(settings.layout, BUILD_QUERY_PAIRS)
    outputs = tuple(replace(one, rows=0) if one.table == "item_text_pairs" else one for one in record.outputs)
    write_record(settings.layout, replace(record, outputs=outputs))
    with pytest.raises(SettingsError, match=r"search_text\.item_text_share = 0\.25: .* set it to 0"):
        pin_inputs(settings_of(settings))


def test_a_pretrained_folder_begins_with_its_weights_and_the_leading_directions(tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    base = save_bert(folder)
    settings = settings_of(make_text_warehouse(tmp_path / "shop", folder=str(folder), trainable_layers=1))
    inputs = pin_inputs(settings)
    tower = QUERY_ENCODER.begin(inputs, settings)
    for name, tensor in tower.text.transformer.state_dict().items():
        assert torch.equal(tensor, base.state_dict()[name]), name
    # Narrower than 256: what the pooled vectors are stays, and so do their cosines.
    ids = inputs.spec.text.token_ids(TEXTS[:1])
    hidden = base.eval()(torch.tensor(ids)).last_hidden_state.mean(dim=1)
    found = tower.eval().text(torch.tensor(ids), torch.ones(1, len(ids[0]), dtype=torch.long))
    assert torch.allclose(found[:, :16], torch.nn.functional.normalize(hidden, dim=-1), atol=1e-5)
    assert inputs.spec.base.startswith("folder-")


def test_courses_are_found_by_their_stage() -> None:
    assert course_of("train_query_encoder") is QUERY_ENCODER
    assert course_of("train").stage.name == "train"
    with pytest.raises(KeyError, match="train_query_encoder"):
        course_of("evaluate")


def test_an_item_tower_refuses_tables_of_the_space_before(tmp_path: Path) -> None:
    settings = make_text_warehouse(tmp_path)
    item_inputs.pin_inputs(settings)
    queries = read_record(settings.layout, EMBED_QUERIES)
    moved = replace(queries.metrics, embedding_spaces={"closeup": "trained-2"})
    write_record(settings.layout, replace(queries, metrics=moved))
    said = r"train, space of closeup queries.*trained-2 in what embed_queries wrote, and pinsage-1 in what build_t"
    with pytest.raises(InputError, match=rf"(?s){said}.*Run build_training_tables"):
        item_inputs.pin_inputs(settings)


def test_two_processes_train_one_encoder(tmp_path: Path) -> None:
    settings = make_text_warehouse(tmp_path, steps=3, trainable_layers=1)
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"processes": 2})})
    assert train_on_this_machine(settings, QUERY_ENCODER) == 0
    record = read_record(settings.layout, TRAIN_QUERY_ENCODER)
    assert (record.metrics.steps, record.metrics.processes) == (3, 2)
