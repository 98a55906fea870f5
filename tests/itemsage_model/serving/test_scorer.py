"""Scoring batches: what must not be published is refused."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest
import torch

from itemsage_model.encoders.model_files import model_bytes
from itemsage_model.serving.scorer import Scorer, load_once
from schemas.elements import FEATURE_CELLS
from schemas.errors import InputError, TableError
from tests.itemsage_model.factories import SPEC, arrow_cells, item_cells


@pytest.mark.fault("B10", "loud", "weights that make one embedding NaN")
def test_embeddings_that_are_not_finite_are_refused():
    batch = pa.RecordBatch.from_pydict(arrow_cells(item_cells(np.random.default_rng(1), 5)))
    assert batch.schema.names == list(FEATURE_CELLS)
    tower = SPEC.build(seed=1)
    assert Scorer(model_bytes(tower), SPEC).score_batch(batch).shape == (5, 256)
    with torch.no_grad():
        tower.encoder.cls[0] = float("nan")
    with pytest.raises(TableError, match=r"item_embeddings.*vectors of length 1.*one of length nan.*train again"):
        Scorer(model_bytes(tower), SPEC).score_batch(batch)


@pytest.mark.fault("B10", "loud", "one embedding that is not of unit length")
def test_the_one_embedding_of_another_length_is_the_one_named(monkeypatch: pytest.MonkeyPatch):
    batch = pa.RecordBatch.from_pydict(arrow_cells(item_cells(np.random.default_rng(1), 5)))
    scorer = Scorer(model_bytes(SPEC.build(seed=1)), SPEC)
    vectors = scorer.score_batch(batch)
    vectors[3] *= 1.5
    monkeypatch.setattr(scorer, "score", lambda *_: vectors)
    with pytest.raises(TableError, match=r"one of length 1\.5"):
        scorer.score_batch(batch)


@pytest.mark.fault("C4", "loud", "one bit of the weights flipped on their way to a worker")
def test_weights_that_arrive_otherwise_than_they_were_sent_are_refused():
    weights = model_bytes(SPEC.build(seed=1))
    sent = hashlib.sha256(weights).hexdigest()
    assert load_once(weights, SPEC, sha256=sent) is load_once(weights, SPEC)
    damaged = bytearray(weights)
    damaged[-1] ^= 1
    with pytest.raises(InputError, match=f"expected sha256 {sent}; found"):
        load_once(bytes(damaged), SPEC, sha256=sent)
