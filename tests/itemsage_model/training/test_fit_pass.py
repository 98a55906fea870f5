"""The fit pass: pairs of the validation window alone are in no batch, no softmax and no count, and may leave none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from itemsage_model.data.batch import PairBatch
from itemsage_model.data.mixing import CatalogBatches, MixedBatches
from itemsage_model.data.pinned_files import pin_files
from itemsage_model.data.reader import RowStream, catalog_format, pair_format, read_catalog
from itemsage_model.training.frequency import CountMinSketch
from itemsage_model.training.objective import Objective
from schemas.settings import LossSettings
from tests.itemsage_model.factories import ELEMENTS, write_catalog, write_pairs

ROWS = 12


def batch_of(folder: Path, late: tuple[int, ...], form: str) -> tuple[PairBatch, np.ndarray]:
    """One batch of all rows of an epoch, and every row's item key."""
    keys = write_pairs(folder / "a", [ROWS], late=late)
    write_catalog(folder / "items")
    catalog = pin_files("item_features", str(folder / "items"), 0)
    row_format = pair_format(None if form == "full" else ELEMENTS, weight="fit_weight")
    stream = RowStream(pin_files("a", str(folder / "a"), 0), row_format, 100, seed=3, stream=0, rank=0, ranks=1)
    if form == "full":
        whole = read_catalog(catalog, catalog_format(ELEMENTS))
        return next(iter(CatalogBatches([stream], [ROWS], whole, 0, 1, ELEMENTS))), keys
    negatives = RowStream(catalog, catalog_format(ELEMENTS), 100, seed=3, stream=1, rank=0, ranks=1)
    return next(iter(MixedBatches([stream], [ROWS], negatives, 5, None, ELEMENTS))), keys


def losses_of(batch: PairBatch, sketch: CountMinSketch, form: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    items = torch.randn(len(batch.item_key), 256, generator=generator, requires_grad=True)
    objective = Objective(LossSettings(form=form), sketch, 0.25)
    losses, mean = objective(batch.query_embedding.float(), items, batch, torch.tensor(10.0))
    mean.backward()
    assert items.grad is not None
    return losses, items.grad


@pytest.mark.parametrize("form", ["sum", "literal", "mixed", "corrected", "full"])
def test_a_batch_without_its_late_rows_is_a_smaller_batch(tmp_path: Path, form: str) -> None:
    late = (0, 3, 4, 7, 11)
    batch, keys = batch_of(tmp_path, late, form)
    sketch = CountMinSketch(2, 4096)
    losses, gradient = losses_of(batch, sketch, form)
    early = [row for row in range(ROWS) if row not in late]
    assert sorted(batch.query_key.tolist()) == early
    assert len(losses) == len(early)
    assert torch.isfinite(losses).all()
    assert torch.isfinite(gradient).all()
    if form != "full":
        assert int(sketch.total) == len(early)
        only_late = torch.tensor(sorted(set(keys[list(late)]) - set(keys[early])))
        assert len(only_late)
        assert sketch.estimate(only_late).tolist() == [0] * len(only_late)


@pytest.mark.parametrize("form", ["sum", "literal", "mixed", "corrected", "full"])
@pytest.mark.fault("A6", "recovered", "a batch of which the filter of the fit pass leaves nothing")
def test_a_batch_of_late_rows_alone_changes_nothing(tmp_path: Path, form: str) -> None:
    batch, _ = batch_of(tmp_path, tuple(range(ROWS)), form)
    losses, gradient = losses_of(batch, CountMinSketch(2, 4096), form)
    assert len(losses) == 0
    assert gradient.abs().max() == 0
