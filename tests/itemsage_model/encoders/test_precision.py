"""Computing in bfloat16: chosen by trying, close to float32, and still learning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from itemsage_model.encoders import precision
from itemsage_model.encoders.model_files import model_bytes
from itemsage_model.serving.scorer import Scorer, load_once
from tests.itemsage_model.factories import SPEC, packed_items
from tests.itemsage_model.warehouses import losses_of, make_warehouse

CPU = torch.device("cpu")


def test_what_is_set_is_taken_and_auto_takes_what_is_faster(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precision, "bfloat16_gain", lambda _: pytest.fail("nothing to try"))
    assert precision.choose_precision("float32", CPU) == "float32"
    assert precision.choose_precision("bfloat16", CPU) == "bfloat16"
    for gain, expected in ((0.3, "float32"), (1.1, "float32"), (2.5, "bfloat16")):
        monkeypatch.setattr(precision, "bfloat16_gain", lambda _, gain=gain: gain)
        assert precision.choose_precision("auto", CPU) == expected


def test_the_gain_is_that_of_the_times(monkeypatch: pytest.MonkeyPatch):
    seconds = {torch.float32: 6.0, torch.bfloat16: 2.0}
    monkeypatch.setattr(precision, "_fastest_product", seconds.__getitem__)
    assert precision.bfloat16_gain(CPU) == 3


@pytest.mark.parametrize("layers", [1, 2])
def test_bfloat16_embeddings_are_close_and_of_unit_length(layers: int):
    spec = replace(SPEC, model=SPEC.model.model_copy(update={"layers": layers}))
    weights, items = model_bytes(spec.build(seed=3)), packed_items(40)
    exact = Scorer(weights, spec).score(items)
    rounded = Scorer(weights, spec, precision="bfloat16").score(items)
    assert rounded.dtype == np.float32
    assert not np.array_equal(exact, rounded)
    np.testing.assert_allclose(np.linalg.norm(rounded, axis=1), 1, atol=1e-5)
    assert (exact * rounded).sum(axis=1).min() > 0.999


def test_a_worker_that_is_asked_for_another_precision_builds_the_model_anew():
    weights = model_bytes(SPEC.build(seed=3))
    first = load_once(weights, SPEC)
    assert load_once(weights, SPEC) is first
    second = load_once(weights, SPEC, precision="bfloat16")
    assert second.tower.encoder.cls.dtype == torch.bfloat16
    assert load_once(weights, SPEC, rows_at_once=7, precision="bfloat16") is not second


def test_training_in_bfloat16_follows_the_float32_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    curves = []
    for name in ("float32", "bfloat16"):
        settings = make_warehouse(tmp_path / name, {"click": [40]}, train={"precision": name, "steps": 12})
        with monkeypatch.context() as patch:
            curves.append(np.array(losses_of(settings, patch)))
    assert not np.array_equal(*curves)
    np.testing.assert_allclose(curves[1], curves[0], rtol=0.03)
