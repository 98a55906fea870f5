"""loss.prefixes: the same loss of the first numbers of both sides is added, and items are counted once all the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from itemsage_model.training.frequency import CountMinSketch
from itemsage_model.training.objective import Objective
from schemas.settings import LossSettings
from tests.itemsage_model.training.test_fit_pass import batch_of


@pytest.mark.parametrize("form", ["sum", "mixed", "full"])
def test_each_prefix_adds_the_loss_of_vectors_that_end_there(tmp_path: Path, form: str) -> None:
    batch, _ = batch_of(tmp_path, (0,), form)
    generator = torch.Generator().manual_seed(1)
    items = F.normalize(torch.randn(len(batch.item_key), 256, generator=generator), dim=1).requires_grad_()
    queries = F.normalize(batch.query_embedding.float(), dim=1)

    def mean_of(settings: LossSettings, length: int = 256) -> tuple[Tensor, Tensor, CountMinSketch]:
        sketch = CountMinSketch(2, 4096)
        sides = [F.normalize(side[:, :length], dim=1) for side in (queries, items)]
        losses, mean = Objective(settings, sketch, 0.25)(*sides, batch, torch.tensor(10.0))
        return losses, mean, sketch

    plain = LossSettings(form=form)
    losses, whole, counted = mean_of(plain)
    parts = [mean_of(plain, length)[1] for length in (16, 64)]
    both_losses, found, sketch = mean_of(LossSettings(form=form, prefixes=(16, 64), prefix_weight=0.5))
    torch.testing.assert_close(found, whole + 0.5 * parts[0] + 0.5 * parts[1])
    torch.testing.assert_close(both_losses, losses)  # what is reported is that of all numbers
    assert int(sketch.total) == int(counted.total)
    assert parts[0] != whole
    (gradient,) = torch.autograd.grad(found - whole, items)
    assert gradient[:, :64].abs().sum() > 0
    torch.testing.assert_close(gradient[:, 64:], torch.zeros_like(gradient[:, 64:]), atol=1e-6, rtol=0)
