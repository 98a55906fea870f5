"""What a run reads besides its rows: item counts, as numbers, and only where the settings ask for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from deltalake import DeltaTable

from itemsage_model.data.mixing import pairs_per_task
from itemsage_model.data.reader import Weight
from itemsage_model.training import item_inputs as training_inputs
from itemsage_model.training.inputs import item_shares
from itemsage_model.training.item_inputs import pin_inputs
from schemas.errors import InputError
from schemas.records import read_record, write_record
from schemas.settings import Settings
from schemas.stages import BUILD_ITEM_FEATURES
from tests.itemsage_model.warehouses import make_warehouse


@pytest.mark.parametrize("sections", [{"loss": {"frequency": "exact"}}, {"train": {"negatives_from": "engaged"}}])
def test_shares_are_those_of_a_slow_sum(tmp_path: Path, sections: dict) -> None:
    settings = make_warehouse(tmp_path, {"click": [30, 11], "save": [9]}, **sections)
    inputs = pin_inputs(settings)
    rows = DeltaTable(tmp_path / "item_counts").to_pyarrow_table().to_pylist()
    sizes = dict(zip(("closeup_click", "closeup_save"), pairs_per_task(8, [1.0, 1.0]), strict=True))
    totals = {task: sum(row["pair_count"] for row in rows if row["task"] == task) for task in sizes}
    expected: dict[int, float] = {}
    for row in rows:
        share = sizes[row["task"]] / 8 * row["pair_count"] / totals[row["task"]]
        expected[row["item_key"]] = expected.get(row["item_key"], 0) + share
    assert inputs.item_keys.tolist() == sorted(expected)
    np.testing.assert_allclose(inputs.item_shares, [expected[key] for key in sorted(expected)], rtol=1e-12)
    assert inputs.item_shares.sum() == pytest.approx(1)


def with_item_text_space(settings: Settings, made_with: dict[str, str]) -> Settings:
    """The same warehouse, whose item texts were embedded in another space."""
    record = read_record(settings.layout, BUILD_ITEM_FEATURES)
    write_record(settings.layout, replace(record, made_with=made_with))
    return settings


def test_a_residual_path_between_two_spaces_is_refused_by_name(tmp_path: Path) -> None:
    settings = make_warehouse(tmp_path, {"click": [30]}, model={"residual": True})
    assert pin_inputs(settings).spec.model.residual
    other = with_item_text_space(settings, {"space of item text": "lsa-7"})
    said = r"train, model\.residual: expected frozen item texts in the space of the closeup queries, pinsage-1; found "
    with pytest.raises(InputError, match=said + r"lsa-7\. Embed both with one encoder: run embed_queries, embed_items"):
        pin_inputs(other)
    for none in ({}, {"space of item text": "none"}):
        with pytest.raises(InputError, match=said + r"none\. .*; or set model\.residual = false"):
            pin_inputs(with_item_text_space(settings, none))


def test_the_spaces_do_not_matter_without_a_residual_path(tmp_path: Path) -> None:
    settings = make_warehouse(tmp_path, {"click": [30]}, model={"sequence": ("text", "frozen_text")})
    pin_inputs(with_item_text_space(settings, {"space of item text": "lsa-7"}))


def test_item_counts_are_not_read_where_nothing_asks_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make_warehouse(tmp_path, {"click": [30]})
    monkeypatch.setattr(training_inputs, "item_shares", lambda *_: pytest.fail("read"))
    assert len(pin_inputs(settings).item_keys) == 0


@pytest.mark.parametrize("weight", ["pair_weight", "fit_weight"])
def test_shares_counted_in_the_pairs_are_those_of_item_counts(tmp_path: Path, weight: Weight) -> None:
    settings = make_warehouse(tmp_path, {"click": [30, 17], "save": [25]}, validated=6)
    inputs = pin_inputs(settings)
    keys, shares = item_shares(inputs, settings, weight)
    counted_keys, counted = item_shares(replace(inputs, counts=None), settings, weight)
    assert len(keys) > 3
    assert counted_keys.tolist() == keys.tolist()
    assert counted.tolist() == pytest.approx(shares.tolist())
