"""Image vectors of 512 and 768 numbers: from item_features through the reader, training and scoring."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.model_files import load_model
from itemsage_model.serving.scorer import Scorer
from itemsage_model.training import run as training
from schemas.elements import FEATURE_CELLS
from schemas.errors import TableError
from schemas.records import read_record
from schemas.stages import TRAIN
from tests.itemsage_model.factories import arrow_cells, item_cells
from tests.itemsage_model.warehouses import make_warehouse


@pytest.mark.parametrize("length", [512, 768])
def test_a_model_of_longer_image_vectors_trains_and_scores(tmp_path: Path, length: int):
    settings = make_warehouse(tmp_path, {"click": [30]}, model={"image_length": length}, train={"steps": 3})
    training.train(settings, torch.device("cpu"))
    model = load_model(read_record(settings.layout, TRAIN).metrics.model_uri, ItemTowerSpec)
    assert model.build().encoder.projections["images"].in_features == length
    cells = arrow_cells(item_cells(np.random.default_rng(1), 5, image_length=length))
    vectors = Scorer(model.weights, model.spec).score_batch(pa.RecordBatch.from_pydict(cells))
    assert vectors.shape == (5, 256)
    shorter = arrow_cells(item_cells(np.random.default_rng(1), 5, image_length=length - 256 + 1))
    assert list(shorter) == list(FEATURE_CELLS)
    with pytest.raises(TableError, match=f"a multiple of {2 * length} bytes a row"):
        Scorer(model.weights, model.spec).score_batch(pa.RecordBatch.from_pydict(shorter))


def test_features_of_another_length_than_the_settings_say_are_refused(tmp_path: Path):
    """Two images of 256 would pass for one of 512."""
    settings = make_warehouse(tmp_path, {"click": [30]})
    longer = settings.model_copy(update={"model": settings.model.model_copy(update={"image_length": 512})})
    with pytest.raises(TableError, match=r"image_embeddings: expected image vectors of 512 .*found vectors of 256"):
        training.train(longer, torch.device("cpu"))
