"""The bucketed softmax: its loss against a slow loop and against the full one, and the choice of the items."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from itemsage_model.data.batch import PairBatch
from itemsage_model.encoders.item_tower import ItemTower
from itemsage_model.training.frequency import CountMinSketch
from itemsage_model.training.inputs import make_batches
from itemsage_model.training.item_inputs import pin_inputs
from itemsage_model.training.item_memory import _OF_PAIRS, ItemMemory, _chosen
from itemsage_model.training.loss import Bucket, Columns, bucketed_losses
from itemsage_model.training.objective import Objective
from schemas.settings import LossSettings, Settings, TrainSettings
from tests.itemsage_model.factories import BEYOND_THE_PAPER
from tests.itemsage_model.warehouses import make_warehouse

# Seven pairs of four queries; query 0 has item 1 twice and shows item 3, which is also the item of one of its pairs.
QUERY_OF_PAIR, POSITIVE, SHOWN = (0, 0, 0, 1, 2, 2, 3), (1, 1, 3, 0, 4, 5, 5), (3, None, 2, None)
BUCKETS = (((0, 2), {1: 1.0, 2: 0.5, 3: 1.0, 4: 0.25}), ((1, 3), {0: 1.0, 5: 0.5, 2: 0.5}))
"""Of each bucket the queries, and its items with the probability that they are in."""


def parameters() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    made = [torch.randn(rows, 3, generator=generator, dtype=torch.float64) for rows in (4, 6)]
    return [part.requires_grad_() for part in (*made, torch.tensor(1.7, dtype=torch.float64))]


def fast_losses(queries: Tensor, items: Tensor, temperature: Tensor) -> Tensor:
    positive, query_of_pair = torch.tensor(POSITIVE), torch.tensor(QUERY_OF_PAIR)
    buckets = []
    for rows, columns in BUCKETS:
        entries = torch.tensor(list(columns))
        log_probability = torch.tensor(list(columns.values()), dtype=torch.float64).log()
        hidden = [{SHOWN[row], *(i for q, i in zip(QUERY_OF_PAIR, POSITIVE, strict=True) if q == row)} for row in rows]
        mask = torch.tensor([[item in items_of_row for item in columns] for items_of_row in hidden])
        buckets.append(Bucket(torch.tensor(rows), Columns(items[entries], log_probability, mask)))
    is_shown = torch.tensor([SHOWN[q] == item for q, item in zip(QUERY_OF_PAIR, POSITIVE, strict=True)])
    return bucketed_losses(queries, items, positive, query_of_pair, is_shown, buckets, temperature)


def test_losses_are_those_of_a_slow_loop_and_gradients_those_of_the_losses():
    found = fast_losses(*parameters())
    queries, items, temperature = (part.tolist() for part in parameters())
    for pair, (query, item) in enumerate(zip(QUERY_OF_PAIR, POSITIVE, strict=True)):
        e = [math.exp(temperature * sum(a * b for a, b in zip(queries[query], v, strict=True))) for v in items]
        own = {i for q, i in zip(QUERY_OF_PAIR, POSITIVE, strict=True) if q == query}
        total = sum(e[i] for i in (own - {SHOWN[query]}) | {item})
        for rows, columns in BUCKETS:
            if query in rows:
                total += sum(e[i] / p for i, p in columns.items() if i not in own and i != SHOWN[query])
        assert float(found[pair].detach()) == pytest.approx(math.log(total) - math.log(e[item]), rel=1e-12)
    assert torch.autograd.gradcheck(fast_losses, parameters())


def test_a_query_all_of_whose_items_are_hidden_costs_nothing_and_stays_finite():
    queries, items, temperature = (part.detach().float().requires_grad_() for part in parameters())
    mask = torch.ones(1, 2, dtype=torch.bool)
    bucket = Bucket(torch.tensor([0]), Columns(items[:2], torch.tensor([0.0, -700.0]), mask))
    only = (torch.tensor([1]), torch.tensor([0]), torch.tensor([True]), [bucket])
    losses = bucketed_losses(queries[:1] * 1e4, items, *only, temperature)
    assert losses.tolist() == [0.0]
    assert all(part.isfinite().all() for part in torch.autograd.grad(losses.sum(), [queries, items, temperature]))


@settings(deadline=None, max_examples=50)
@given(
    items=st.integers(1, 40),
    count=st.integers(1, 40),
    scale=st.sampled_from([0.0, 3.0, 50.0]),
    seed=st.integers(0, 99),
)
def test_a_bucket_has_one_item_of_each_part_of_the_catalog(items: int, count: int, scale: float, seed: int):
    draw = np.random.default_rng(seed)
    logits = scale * torch.from_numpy(draw.random((3, items)))
    entries, log_probability = _chosen(logits, count, draw)
    size = min(items, count)
    for row, chosen, logs in zip(logits, entries, log_probability, strict=True):
        parts = (-logs).exp().round().long()
        # The drawn stand for exactly all items, each for as many as its part has, in the order of the scores.
        assert parts.tolist() == [size for size in parts.tolist() if size >= 1]
        assert int(parts.sum()) == items
        place = row.argsort(descending=True, stable=True).argsort()[chosen]
        assert len(chosen) == size
        for end, part, rank in zip(parts.cumsum(0).tolist(), parts.tolist(), place.tolist(), strict=True):
            assert scale == 0 or end - part <= rank < end


def test_near_items_are_there_with_certainty_and_the_weights_of_all_are_one_on_average():
    draw, rounds = np.random.default_rng(3), 4_000
    logits, weights = torch.linspace(9, 0, 23)[None], torch.zeros(23)
    for _ in range(rounds):
        (entries,), (log_probability,) = _chosen(logits, 9, draw)
        assert entries[:2].tolist() == [0, 1]
        assert log_probability[:2].tolist() == [0, 0]
        weights.index_add_(0, entries, (-log_probability).exp() / rounds)
    torch.testing.assert_close(weights, torch.ones(23), atol=0.15, rtol=0)


def shop(folder: Path, **loss: int | float) -> Settings:
    return make_warehouse(
        folder, {"click": [30, 20]}, model=BEYOND_THE_PAPER | {"id_dropout": 0.0}, loss={"form": "bucketed"} | loss,
        train={"batch_size": 12},
    )  # fmt: skip


def whole_batch(chosen: Settings) -> tuple[PairBatch, ItemTower]:
    inputs = pin_inputs(chosen)
    tower = inputs.spec.build(seed=1)
    tower.remember(torch.from_numpy(inputs.item_keys), torch.from_numpy(inputs.query_keys))
    return next(iter(make_batches(inputs, chosen, 0))), tower


def test_with_all_items_in_every_bucket_it_is_the_full_softmax(tmp_path: Path):
    batch, tower = whole_batch(shop(tmp_path))
    # Two pairs a query, some with an item that their query shows.
    batch = replace(batch, query_key=batch.query_key // 2, query_embedding=batch.query_embedding[[0] * 12])
    batch = replace(batch, query_item_key=batch.item_key[batch.positive.roll(1)])
    results = {}
    for form in ("full", "bucketed"):
        loss = LossSettings(form=form, buckets=3, bucket_items=99)
        memory = ItemMemory(loss, TrainSettings())
        some = memory.narrowed(batch, tower, 0) if form == "bucketed" else batch
        assert len(some.item_key) == 20
        vectors = tower(tower.inputs(some))
        queries, items = tower.sides(vectors, some)
        losses, mean = Objective(loss, CountMinSketch(2, 4096), 1.0)(queries, items, some, tower.temperature())
        mean.backward()
        results[form] = [losses, *(part.grad.clone() for part in tower.parameters() if part.grad is not None)]
        tower.zero_grad()
    assert len(results["full"]) > 10
    for full, bucketed in zip(*results.values(), strict=True):
        torch.testing.assert_close(bucketed, full, rtol=1e-4, atol=1e-6)


def test_the_choice_follows_from_seed_and_step_and_holds_positives_and_features(tmp_path: Path):
    batch, tower = whole_batch(shop(tmp_path))
    loss = LossSettings(form="bucketed", buckets=2, bucket_items=4)
    first, again, other = (ItemMemory(loss, TrainSettings(seed=seed)).narrowed(batch, tower, 7) for seed in (1, 1, 2))
    later = ItemMemory(loss, TrainSettings()).narrowed(batch, tower, 8)
    assert first.buckets is not None
    assert first.buckets.items.shape == (2, 4)
    assert torch.equal(first.buckets.items, again.buckets.items)
    assert not torch.equal(first.item_key[first.buckets.items], other.item_key[other.buckets.items])
    assert not torch.equal(first.item_key[first.buckets.items], later.item_key[later.buckets.items])
    assert len(first.item_key) < 20
    assert torch.equal(first.item_key[first.positive], batch.item_key[batch.positive])
    assert torch.equal(first.items.item_key, first.item_key)
    tower.eval()
    rows = torch.searchsorted(batch.item_key, first.item_key)
    torch.testing.assert_close(tower(first.items), tower(batch.items)[rows])
    assert set(first.negatives.tolist()) <= set(first.buckets.items.flatten().tolist())
    assert tower.training is False


def test_what_a_step_has_encoded_is_what_the_next_one_looks_at_until_all_is_encoded_anew(tmp_path: Path):
    batch, tower = whole_batch(shop(tmp_path))
    memory = ItemMemory(LossSettings(form="bucketed", buckets=1, bucket_items=4), TrainSettings(checkpoint_every=5))
    some = memory.narrowed(batch, tower, 0)
    (query,) = torch.nn.functional.normalize(tower.sides(torch.empty(0, 256), batch)[0].mean(0, keepdim=True), dim=1)
    is_first = torch.arange(len(some.item_key)) < 2
    memory.keep(torch.where(is_first[:, None], query, -query).detach())
    near = [memory.narrowed(batch, tower, step) for step in (1, 5)]
    found = [set(one.item_key[one.buckets.items[0, :2]].tolist()) for one in near if one.buckets is not None]
    assert found[0] == set(some.item_key[:2].tolist())
    assert found[1] != found[0]


def test_a_batch_without_pairs_has_a_loss_of_nothing_and_a_gradient_everywhere(tmp_path: Path):
    batch, tower = whole_batch(shop(tmp_path))
    pairs = {name: getattr(batch, name)[:0] for name in _OF_PAIRS}
    loss = LossSettings(form="bucketed", buckets=2, bucket_items=6)
    empty = ItemMemory(loss, TrainSettings()).narrowed(replace(batch, **pairs), tower, 0)
    queries, items = tower.sides(tower(empty.items), empty)
    losses, mean = Objective(loss, CountMinSketch(2, 4096), 1.0)(queries, items, empty, tower.temperature())
    mean.backward()
    assert len(losses) == 0
    assert all(part.grad is not None and not part.grad.any() for part in tower.parameters())


def test_explicit_negatives_are_refused_by_name(tmp_path: Path):
    negatives = [{"query_kind": "closeup", "engagement": "return", "weight": 2.0}]
    with pytest.raises(ValueError, match=r"loss\.form is 'bucketed'"):
        make_warehouse(tmp_path, {"click": [9]}, loss={"form": "bucketed"}, negatives=negatives)
