"""Presets: what a shop is like decides what is tried, and a key that the settings file names wins over all of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from schemas.presets import MAX_BUCKETED_ITEMS, MAX_FULL_SOFTMAX_ITEMS, Candidate, Shop, candidates
from schemas.settings import Settings

SHOP = Shop(
    training_pairs=74_000, items=11_753, engaged_items=5_000, engaged_queries=9_000, has_images=True, is_one_space=True
)


def settings(**sections: Any) -> Settings:
    dates = {"as_of": "2026-03-01", "train_days": 20, "test_days": 7}
    return Settings.model_validate({"warehouse": {"uri": "w"}, "dates": dates} | sections)


def of_shop(name: str, shop: Shop = SHOP, **sections: Any) -> Settings:
    (found,) = [one.settings for one in candidates(settings(**sections), shop) if one.name == name]
    return found


def test_auto_tries_a_small_and_a_large_configuration_and_says_why():
    tried = candidates(settings(), SHOP)
    assert [one.name for one in tried] == ["small_log", "large_log"]
    assert all(one.reason and one.settings.train.validate_every for one in tried)
    assert all(one.settings.train.steps >= one.settings.train.validate_every for one in tried)


@pytest.mark.parametrize("name", ["small_log", "large_log"])
def test_a_preset_that_is_named_is_the_only_one(name: str):
    (only,) = candidates(settings(preset=name), SHOP)
    assert only.name == name
    (of_auto,) = [one for one in candidates(settings(), SHOP) if one.name == name]
    for section in ("model", "loss", "train"):
        assert getattr(only.settings, section) == getattr(of_auto.settings, section)


@pytest.mark.parametrize("shop", [SHOP, None])
def test_paper_leaves_the_settings_as_they_are(shop: Shop | None):
    given = settings(preset="paper", train={"steps": 7})
    assert candidates(given, shop) == [Candidate("paper", given, "the settings file names it")]


def test_keys_that_the_file_names_win_also_where_they_name_the_default():
    named: dict[str, Any] = {
        "model": {"width": 64, "query_adapter": False, "query_id_rows": 9},
        "loss": {"form": "sum", "distillation": 0.0},
        "train": {"steps": 33, "validate_every": 0, "schedule": "cosine"},
    }
    for one in candidates(settings(**named), SHOP):
        for section, values in named.items():
            found = getattr(one.settings, section).model_dump()
            assert {key: found[key] for key in values} == values, one.name
        assert one.settings.train.start == "random", "there is nowhere for singular vectors to go"
        assert one.settings.train.table_learning_rate > 0
    assert of_shop("large_log", **named).train.negatives_from == "engaged"


def test_sections_beside_model_loss_and_train_are_left_alone():
    given = settings(features={"char_trigrams": 77}, evaluate={"k": 5})
    for one in candidates(given, SHOP):
        kept = one.settings.model_dump(exclude={"model", "loss", "train"})
        assert kept == given.model_dump(exclude={"model", "loss", "train"})


def test_a_small_log_in_one_space_is_maps_alone_held_near_the_frozen_vectors():
    found = of_shop("small_log")
    assert (found.model.sequence, found.model.residual, found.model.item_map) == ((), True, True)
    assert found.model.query_adapter
    assert found.loss.distillation > 0


@pytest.mark.parametrize("name", ["small_log", "large_log"])
def test_without_a_common_space_there_is_a_tower_and_no_residual_path(name: str):
    found = of_shop(name, replace(SHOP, is_one_space=False))
    assert "frozen_text" in found.model.sequence
    assert not found.model.residual
    assert not found.model.item_map
    assert found.loss.distillation == 0


@pytest.mark.parametrize("name", ["small_log", "large_log"])
@pytest.mark.parametrize("is_one_space", [True, False])
def test_a_residual_path_that_the_file_refuses_is_as_no_common_space(name: str, is_one_space: bool):
    shop = replace(SHOP, is_one_space=is_one_space)
    found = of_shop(name, shop, model={"residual": False})
    expected = of_shop(name, replace(SHOP, is_one_space=False))
    assert (found.model, found.loss) == (expected.model, expected.loss)


@pytest.mark.parametrize("is_one_space", [True, False])
def test_images_are_in_a_sequence_where_the_shop_has_some(is_one_space: bool):
    shop = replace(SHOP, is_one_space=is_one_space)
    for one in candidates(settings(), shop):
        assert ("images" in one.settings.model.sequence) == bool(one.settings.model.sequence)
    for one in candidates(settings(inputs={"has_images": False}), replace(shop, has_images=False)):
        assert "images" not in one.settings.model.sequence


def test_who_an_item_is_enters_the_large_configuration_with_rows_for_all_engaged_items():
    apart = replace(SHOP, is_one_space=False)
    assert "item_id" not in of_shop("small_log", apart).model.sequence
    for shop in (apart, replace(SHOP, engaged_queries=10**7)):
        found = of_shop("large_log", shop)
        assert "item_id" in found.model.sequence
        assert found.train.start == "random"
        assert found.model.id_rows >= SHOP.engaged_items


def test_in_one_space_the_large_configuration_starts_from_singular_vectors_with_rows_for_all_that_have_one():
    found = of_shop("large_log")
    assert (found.train.start, found.model.item_vector) == ("spectral", True)
    assert (found.model.id_rows, found.model.query_id_rows) == (SHOP.engaged_items, SHOP.engaged_queries)


def test_singular_vectors_need_a_place_in_the_model():
    model = {"residual": True, "item_vector": True, "query_adapter": True, "query_id_rows": 9}
    assert settings(preset="paper", model=model, train={"start": "spectral"}).train.start == "spectral"
    for key in ("item_vector", "query_adapter", "query_id_rows"):
        with pytest.raises(ValueError, match="has nowhere to go"):
            settings(preset="paper", model=model | {key: 0 if key == "query_id_rows" else False},
                     train={"start": "spectral"})  # fmt: skip
    with pytest.raises(ValueError, match="item_vector belongs to the residual path"):
        settings(model={"item_vector": True})
    with pytest.raises(ValueError, match="two places for one identity"):
        settings(model={"item_vector": True, "residual": True, "sequence": ["item_id"]})


def test_the_softmax_is_full_as_long_as_it_is_affordable():
    shop = replace(SHOP, items=10**6, training_pairs=10**8)
    forms = {
        MAX_FULL_SOFTMAX_ITEMS: "full", MAX_FULL_SOFTMAX_ITEMS + 1: "bucketed",
        MAX_BUCKETED_ITEMS: "bucketed", MAX_BUCKETED_ITEMS + 1: "mixed",
    }  # fmt: skip
    for engaged, form in forms.items():
        for one in candidates(settings(), replace(shop, engaged_items=engaged)):
            assert (one.settings.loss.form, one.settings.loss.frequency) == (form, "exact")


@pytest.mark.parametrize("pairs", [0, 1, 40, 3_000, 74_000, 10**9])
@pytest.mark.parametrize("engaged", [1, 10**7])
def test_every_shop_gets_settings_that_hold(pairs: int, engaged: int):
    shop = replace(SHOP, training_pairs=pairs, engaged_items=engaged)
    for one in candidates(settings(), shop):
        train = one.settings.train
        assert 256 <= train.batch_size <= max(256, pairs // 8)
        assert train.steps >= 40
        assert train.steps * train.batch_size <= max(40 * train.batch_size, 30 * pairs)
        assert 1 <= train.warmup_steps < train.steps
        assert 0 < train.validate_every <= train.steps


@pytest.mark.parametrize("processes", [2, 16])
def test_batches_divide_among_the_processes(processes: int):
    for one in candidates(settings(train={"processes": processes}), SHOP):
        assert one.settings.train.batch_size % processes == 0
        assert one.settings.train.negative_count % processes == 0
