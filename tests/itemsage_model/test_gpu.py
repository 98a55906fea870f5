"""What a GPU computes equals what the CPU does: hash embeddings, the tower, and whole training steps."""

from __future__ import annotations

from itertools import repeat

import pytest
import torch

from benchmarks.gpu_training import make_batch, make_tower
from itemsage_model.data.batch import ItemBatch, PairBatch, RaggedTensor
from itemsage_model.data.prefetch import Prefetch
from itemsage_model.encoders.hash_embedding import HashEmbedding
from itemsage_model.training.frequency import CountMinSketch
from itemsage_model.training.objective import Objective
from itemsage_model.training.trainer import Trainer
from schemas.elements import IMAGES, TEXT
from schemas.settings import LossSettings, TrainSettings

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that CUDA finds here"),
    pytest.mark.filterwarnings("ignore:Sparse "),
]

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("longest", [12, 0])
def test_bags_of_very_unequal_lengths_have_equal_values_and_gradients(longest: int):
    torch.manual_seed(0)
    layer = HashEmbedding(3_000, 500, 16, 2).double()
    counts = torch.randint(0, longest + 1, (4_000,))
    ids = torch.randint(0, 3_000, (int(counts.sum()),))
    ids[::2] = 7  # the bag of this token is in backward as long as half of all
    upstream = torch.randn(4_000, 16, dtype=torch.float64)
    found = {}
    for device in (CPU, GPU):
        there = layer.to(device)
        vectors = there(ids.to(device), counts.to(device))
        gradients = torch.autograd.grad(vectors, [there.table, there.importance], upstream.to(device))
        found[device] = [tensor.cpu() for tensor in (vectors.detach(), *gradients)]
    for own, expected in zip(found[GPU], found[CPU], strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-10, atol=1e-10)


def without(items: ItemBatch, key: str) -> ItemBatch:
    element = items[key]
    none = RaggedTensor(element.values[:0], torch.zeros_like(element.counts))
    return ItemBatch(items.elements | {key: none})


def without_images(items: ItemBatch) -> ItemBatch:
    return without(items, IMAGES.values.name)


def without_texts(items: ItemBatch) -> ItemBatch:
    return without(items, TEXT.values.name)


@pytest.mark.parametrize("change", [lambda items: items, without_images, without_texts])
def test_embeddings_and_every_gradient_are_equal(change):
    items, target = change(make_batch(32).items), torch.randn(64, 256)
    found = {}
    for device in (CPU, GPU):
        tower = make_tower("folded", device.type)
        embeddings = tower(items.to(device))
        (embeddings * target.to(device)).sum().backward()
        gradients = {name: weight.grad.cpu() for name, weight in tower.named_parameters() if weight.grad is not None}
        found[device] = (embeddings.detach().cpu(), gradients)
    torch.testing.assert_close(found[GPU][0], found[CPU][0], rtol=0, atol=1e-5)
    assert found[GPU][1].keys() == found[CPU][1].keys()
    for name, gradient in found[GPU][1].items():
        expected = found[CPU][1][name]
        assert (gradient - expected).norm() <= 1e-4 * (expected.norm() + 1e-6), name


def losses_on(device: torch.device, precision: str, batch: PairBatch) -> list[float]:
    """Losses of some steps; a GPU gets its batches as `train` brings them there, from page-locked memory."""
    loss = LossSettings()
    tower = make_tower("folded", device.type)
    objective = Objective(loss, CountMinSketch(loss.sketch_depth, loss.sketch_width), 0.1).to(device)
    settings = TrainSettings(
        batch_size=64, negative_count=64, precision=precision, steps=4, warmup_steps=2, log_every=1
    )
    batches = Prefetch(map(PairBatch.pin_memory, repeat(batch)) if device == GPU else repeat(batch), 2)
    losses: list[float] = []
    Trainer(tower, objective, settings, 1).fit(batches, lambda report: losses.extend(report.losses), lambda: None)
    batches.close()
    assert next(tower.parameters()).device.type == device.type
    return losses


def test_batches_come_to_the_gpu_as_they_were():
    batches = [make_batch(size) for size in (16, 32, 8, 64)]
    there = [batch.to(GPU) for batch in Prefetch(map(PairBatch.pin_memory, batches), 2)]
    for found, expected in zip(there, batches, strict=True):
        for name in ("item_key", "positive", "negatives", "query_embedding", "pair_weight", "task"):
            assert torch.equal(getattr(found, name).cpu(), getattr(expected, name)), name
        for name, element in expected.items.elements.items():
            assert torch.equal(found.items[name].values.cpu(), element.values), name
            assert torch.equal(found.items[name].counts.cpu(), element.counts), name


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 2e-3), ("bfloat16", 3e-2)])
def test_training_steps_have_equal_losses(precision: str, tolerance: float):
    batch = make_batch(64)
    expected, found = losses_on(CPU, "float32", batch), losses_on(GPU, precision, batch)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=tolerance, atol=tolerance)
    assert found[-1] < found[0]
