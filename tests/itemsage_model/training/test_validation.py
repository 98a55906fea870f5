"""Recall on the validation window, against a slow loop; and how far unseen items are pulled."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from itemsage_model.data.batch import to_item_batch
from itemsage_model.data.pinned_files import pin_files
from itemsage_model.data.reader import CatalogItems, catalog_format, read_catalog
from itemsage_model.data.validation import ValidationPairs
from itemsage_model.encoders.item_tower import ItemTower
from itemsage_model.evaluation.recall import HeldOut, ranks
from itemsage_model.training import validation as module
from itemsage_model.training.pulled_hits import pulled_hits
from itemsage_model.training.validation import Recall, Validation
from tests.itemsage_model.factories import FULL_SPEC, write_catalog

CPU = torch.device("cpu")
ITEMS, PAIRS = 60, 200
SHARES = (3.0, 1.0, 2.0)
"""Of the three tasks of FULL_SPEC, whose queries are of two kinds."""
FIT_KEYS = np.arange(20, dtype=np.int64) + 1000
"""Items 0 to 19 are engaged before the window; the tower has trained on them."""


def tower() -> ItemTower:
    """A tower whose every part moves its vectors."""
    made: ItemTower = replace(FULL_SPEC, trained_items=20, trained_queries=20).build(seed=1)
    torch.manual_seed(2)
    with torch.no_grad():
        for part in (made.query_adapter.weight, made.query_adapter.bias, made.residual.item_map):
            part.normal_(std=0.05)
        made.query_adapter.identity.table.normal_(std=0.05)
        made.item_identity.table.normal_(std=0.5)
    made.remember(torch.from_numpy(FIT_KEYS), torch.arange(20))
    return made


@pytest.fixture
def catalog(tmp_path: Path) -> CatalogItems:
    write_catalog(tmp_path / "items", items=ITEMS, files=3)
    return read_catalog(pin_files("item_features", str(tmp_path / "items"), 0), catalog_format(FULL_SPEC.elements))


def pairs_of_task(number: int, items: int = ITEMS + 5, rows: int = PAIRS) -> ValidationPairs:
    """Random pairs of 40 queries, every third of which shows an item; items 60 to 64 are in no catalog."""
    random = np.random.default_rng(number)
    query = random.integers(0, 40, rows)
    vectors = F.normalize(torch.randn(40, 256, generator=torch.Generator().manual_seed(number)), dim=1).numpy()
    shown = np.where(np.arange(40) % 3 == 0, np.arange(40) % (ITEMS + 5) + 1000, 0)
    return ValidationPairs(
        vectors[query], query.astype(np.int64), random.integers(0, items, rows) + 1000, shown[query],
        random.integers(1, 5, rows).astype(np.float32),
    )  # fmt: skip


@torch.no_grad()
def slow_recall(model: ItemTower, catalog: CatalogItems, tasks: list[ValidationPairs]) -> tuple[float, float]:
    """Of all pairs and of unseen items: pair by pair, item by item."""
    model.eval()
    elements = FULL_SPEC.elements
    packed = to_item_batch(catalog.items.gather(), elements, torch.from_numpy(catalog.item_key))
    items = dict(zip(catalog.item_key.tolist(), model(packed).detach(), strict=True))
    kinds = [model.query_adapter.number_of(kind) for kind in FULL_SPEC.task_kinds]
    totals = [[0.0, 0.0], [0.0, 0.0]]  # of all, of unseen: sum of shares x recall, sum of shares
    for pairs, share, kind in zip(tasks, SHARES, kinds, strict=True):
        sums = [[0.0, 0.0], [0.0, 0.0]]
        for row in range(len(pairs)):
            key, shown, weight = (int(a[row]) for a in (pairs.item_key, pairs.query_item_key, pairs.weight))
            if key not in items:
                continue
            frozen = torch.from_numpy(pairs.query_embedding[row : row + 1])
            query = model.query_adapter(frozen, torch.tensor([kind]), torch.from_numpy(pairs.query_key[row : row + 1]))
            scores = {other: float(query[0] @ vector) for other, vector in items.items()}
            better = sum(scores[other] >= scores[key] for other in items if other not in (key, shown))
            for part, counts in zip(sums, (True, key not in FIT_KEYS), strict=True):
                part[0] += weight * (better < 10) * counts
                part[1] += weight * counts
        for total, (hits, weights) in zip(totals, sums, strict=True):
            if weights:
                total[0] += share * hits / weights
                total[1] += share
    of_all, of_unseen = (total / shares if shares else float("nan") for total, shares in totals)
    return of_all, of_unseen


def validation(catalog: CatalogItems, tasks: list[ValidationPairs]) -> Validation:
    return Validation(tasks, SHARES, catalog, FIT_KEYS, FULL_SPEC.elements)


def test_recall_is_that_of_a_slow_loop_overall_and_on_unseen_items(catalog: CatalogItems) -> None:
    tasks = [pairs_of_task(number) for number in range(3)]
    model = tower()
    found = validation(catalog, tasks).recall(model, 7, CPU)
    of_all, of_unseen = slow_recall(model, catalog, tasks)
    assert (found.step, found.of_all, found.of_unseen) == (7, pytest.approx(of_all), pytest.approx(of_unseen))
    assert 0.02 < of_unseen != of_all < 0.98


def test_an_items_vector_does_not_depend_on_how_many_are_scored_at_once(
    catalog: CatalogItems, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, model = [pairs_of_task(number) for number in range(3)], tower()
    whole = validation(catalog, tasks).recall(model, 1, CPU)
    monkeypatch.setattr(module, "_ITEMS_AT_ONCE", 7)
    assert validation(catalog, tasks).recall(model, 1, CPU) == whole


def test_a_training_tower_is_measured_as_it_will_score_and_trains_on(catalog: CatalogItems) -> None:
    measured, model = validation(catalog, [pairs_of_task(number) for number in range(3)]), tower()
    model.train()
    draws = model.item_identity.draws.clone()
    assert measured.recall(model, 1, CPU) == measured.recall(model, 1, CPU)
    assert model.training
    assert torch.equal(model.item_identity.draws, draws)  # nothing was hidden
    assert not any(parameter.grad is not None for parameter in model.parameters())
    model.eval()
    measured.recall(model, 1, CPU)
    assert not model.training


def test_without_unseen_items_their_recall_is_no_number(catalog: CatalogItems) -> None:
    found = validation(catalog, [pairs_of_task(number, items=20) for number in range(3)])
    assert found.unseen_share == 0
    recall = found.recall(tower(), 1, CPU)
    assert math.isnan(recall.of_unseen)
    assert "unseen" not in str(recall)
    assert "unseen" in str(Recall(1, 0.5, 0.25))


def test_a_task_without_pairs_has_no_part_in_the_mean(catalog: CatalogItems) -> None:
    tasks, model = [pairs_of_task(0), pairs_of_task(1, rows=0), pairs_of_task(2)], tower()
    found = validation(catalog, tasks)
    recall = found.recall(model, 1, CPU)
    parts = []
    for number in (0, 2):
        alone = [tasks[i] if i == number else pairs_of_task(i, rows=0) for i in range(3)]
        parts.append(validation(catalog, alone).recall(model, 1, CPU).of_all)
    assert recall.of_all == pytest.approx((SHARES[0] * parts[0] + SHARES[2] * parts[1]) / (SHARES[0] + SHARES[2]))
    known = [int((task.item_key < 1000 + ITEMS).sum()) for task in tasks]
    assert found.pair_count == sum(known) < 2 * PAIRS


def test_nothing_is_measured_where_no_pairs_item_is_a_candidate(catalog: CatalogItems) -> None:
    tasks = [pairs_of_task(number) for number in range(3)]
    for task in tasks:
        task.item_key[:] = 5
    assert validation(catalog, tasks).pair_count == 0


def test_a_sample_has_the_right_sums_on_average_and_the_largest_surely():
    sizes = np.random.default_rng(1).pareto(1.0, 300)
    sums, found = [], np.zeros(300)
    draw = np.random.default_rng
    for seed in range(400):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module.np.random, "default_rng", lambda _, seed=seed: draw(seed))
            factor = module._sample(sizes, 40)
        assert np.count_nonzero(factor) == 40
        assert factor[sizes.argmax()] == pytest.approx(1)
        sums.append((factor * sizes).sum())
        found += factor
    assert np.mean(sums) == pytest.approx(sizes.sum(), rel=0.02)
    assert (found[np.argsort(-sizes)[:50]] / 400).mean() == pytest.approx(1, abs=0.05)


def test_a_sample_is_of_whole_queries_half_of_them_with_unseen_items(
    catalog: CatalogItems, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the first queries in place of drawn ones."""

    def first(sizes: np.ndarray, most: int) -> np.ndarray:
        kept = np.flatnonzero(sizes)[:most]
        return np.bincount(kept, minlength=len(sizes)).astype(float)

    monkeypatch.setattr(module, "_sample", first)
    tasks, model = [pairs_of_task(number) for number in range(3)], tower()
    every = validation(catalog, tasks)
    monkeypatch.setattr(module, "MAX_SCORES", 3 * ITEMS * 10)  # 15, 5 and 10 queries by the shares
    sampled = validation(catalog, tasks)
    assert sampled.pair_count < every.pair_count
    monkeypatch.undo()
    drawn, all_of_unseen = [], []
    for task, half in zip(tasks, (7, 2, 5), strict=True):
        known = task.item_key < 1000 + ITEMS
        head = np.unique(task.query_key[known])[:half]
        unseen = np.unique(task.query_key[known & ~np.isin(task.item_key, FIT_KEYS)])[:half]
        columns = (task.query_embedding, task.query_key, task.item_key, task.query_item_key, task.weight)
        for chosen, queries in ((drawn, head), (all_of_unseen, unseen)):
            rows = known & np.isin(task.query_key, queries)
            chosen.append(ValidationPairs(*(column[rows] for column in columns)))
    assert sampled.pair_count == sum(map(len, drawn))
    assert sampled.unseen_count == sum(int((~np.isin(task.item_key, FIT_KEYS)).sum()) for task in all_of_unseen)
    found = sampled.recall(model, 1, CPU)
    assert found.of_all == pytest.approx(slow_recall(model, catalog, drawn)[0])
    assert found.of_unseen == pytest.approx(slow_recall(model, catalog, all_of_unseen)[1])


def test_the_frozen_vectors_are_measured_as_they_are(catalog: CatalogItems) -> None:
    tasks = [pairs_of_task(number) for number in range(3)]
    texts = catalog.items.gather()["text_embedding"]
    rows = np.cumsum(texts.counts) - 1
    vectors = np.where(texts.counts[:, None] > 0, texts.values[rows], 0).astype(np.float32)
    of_all, shares = 0.0, sum(SHARES)
    for pairs, share in zip(tasks, SHARES, strict=True):
        hits = weights = 0.0
        for row in np.flatnonzero(pairs.item_key < 1000 + ITEMS):
            scores = vectors @ pairs.query_embedding[row]
            item, shown = int(pairs.item_key[row]) - 1000, int(pairs.query_item_key[row]) - 1000
            better = sum(scores[i] >= scores[item] for i in range(ITEMS) if i not in (item, shown))
            hits += pairs.weight[row] * (better < 10)
            weights += pairs.weight[row]
        of_all += share / shares * hits / weights
    found = validation(catalog, tasks).frozen()
    assert found is not None
    assert found.of_all == pytest.approx(of_all)


@pytest.mark.parametrize(
    "rivals",
    [(0.1, 0.1), (0.02, 0.4), (0.4, 0.02), (0.0, 0.1), (0.1, math.nan), (0.1, 0.0), (math.nan, math.nan)],
)
def test_unseen_items_are_pulled_to_what_is_worth_most_and_then_as_is_cheap(
    catalog: CatalogItems, rivals: tuple[float, float]
) -> None:
    """Against a slow loop over all pulls."""
    measured, model = validation(catalog, [pairs_of_task(number) for number in range(3)]), tower().eval()
    measured.rivals = Recall(0, *rivals)
    items = to_item_batch(catalog.items.gather(), FULL_SPEC.elements, torch.from_numpy(catalog.item_key))
    before = model(items).detach()
    found = measured.calibrate(model, 3, CPU)
    left = measured.recall(model, 3, CPU)
    assert (found.recall.of_all, found.recall.of_unseen) == (left.of_all, left.of_unseen), "the tower has the pull"
    moved = (model(items) - before).abs().sum(dim=1) > 1e-6
    assert not moved[:20].any()
    assert moved[20:].float().mean() > 0.9
    reached = []
    for pull in module._PULLS:
        model.pull_unseen(pull * measured.mean_query(model, CPU))
        reached.append(measured.recall(model, 3, CPU))
    of_all, of_unseen = rivals
    both = [
        min(one.of_all, one.of_unseen / of_unseen * of_all) if of_unseen > 0 and of_all > 0 else one.of_all
        for one in reached
    ]
    assert found.recall.worth == pytest.approx(max(both))
    best, chosen = both.index(max(both)), module._PULLS.index(found.pull)
    cheap = [place for place in range(best, len(both)) if reached[place].of_all >= 0.98 * reached[best].of_all]
    assert chosen == cheap[-1]


def test_hits_of_all_pulls_at_once_are_those_of_each_by_itself() -> None:
    generator = torch.Generator().manual_seed(4)
    queries, items, direction = (
        F.normalize(torch.randn(rows, 8, generator=generator), dim=1) for rows in (30, 90, 1)
    )  # fmt: skip
    items[50:55] = items[20:25]  # ties, also between the kinds
    is_pulled = torch.arange(90) % 3 == 0
    pairs = torch.randint(0, 30, (200,), generator=generator)
    held_out = HeldOut(
        query=pairs, positive=torch.randint(0, 90, (200,), generator=generator),
        query_item=torch.where(torch.arange(30) % 2 == 0, torch.arange(30) * 3 % 90, -1),
        weights=torch.ones(200), distractors=torch.ones(90, dtype=torch.bool),
    )  # fmt: skip
    pulls = (-2.0, -0.3, 0.0, 0.2, 0.9)
    for kinds in (is_pulled, ~is_pulled, torch.zeros(90, dtype=torch.bool), torch.ones(90, dtype=torch.bool)):
        found = pulled_hits(held_out, queries, items, kinds, direction[0], pulls, 10)
        for pull, hits in zip(pulls, found, strict=True):
            moved = torch.where(kinds[:, None], F.normalize(items + pull * direction, dim=1), items)
            scores = queries.double() @ moved.double().T
            expected = ranks(held_out, lambda block, scores=scores: scores[block].float()) <= 10
            assert (hits != expected).sum() <= 1  # rounding may part a tie
        assert 0.02 < hits.float().mean() < 0.5


def test_the_mean_query_is_the_same_of_a_tower_that_trains(catalog: CatalogItems) -> None:
    measured, model = validation(catalog, [pairs_of_task(number) for number in range(3)]), tower()
    found = measured.mean_query(model.train(), CPU)
    assert model.training
    assert torch.equal(found, measured.mean_query(model.eval(), CPU))
    assert float(found.norm()) == pytest.approx(1)
