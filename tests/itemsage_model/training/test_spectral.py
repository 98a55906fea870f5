"""Singular vectors of the pairs: cosines that rank as the weights do, of the rows that a pass may see."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from itemsage_model.data.pinned_files import pin_files
from itemsage_model.training.spectral import factorised, spectral_start
from tests.itemsage_model.factories import write_pairs

QUERIES, ITEMS = 40, 30


def pairs(seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of every query with about half of the items, with keys in no order."""
    random = np.random.default_rng(seed)
    query, item = np.nonzero(random.random((QUERIES, ITEMS)) < 0.5)
    keys = random.permutation(1_000).astype(np.int64)
    return keys[query], -keys[item], random.random(len(query)) + 0.1


def test_the_cosines_of_a_query_are_proportional_to_its_weights_where_the_rank_is_full():
    query, item, weight = pairs()
    found = factorised(query, item, weight)
    assert np.allclose(np.linalg.norm(found.items, axis=1), 1, atol=1e-5)
    assert np.allclose(np.linalg.norm(found.query_vectors(1), axis=1), 1, atol=1e-5)
    dense = np.zeros((QUERIES, ITEMS))
    dense[np.searchsorted(found.query_keys, query), np.searchsorted(found.item_keys, item)] = weight
    cosines = found.query_vectors(0) @ found.items.T
    assert np.allclose(cosines / cosines.max(1, keepdims=True), dense / dense.max(1, keepdims=True), atol=1e-3)


def test_repeated_pairs_count_as_often_as_they_are_there():
    query, item, weight = pairs()
    twice = factorised(np.concatenate([query, query]), np.concatenate([item, item]), np.concatenate([weight, weight]))
    once = factorised(query, item, weight)
    assert np.allclose(twice.query_vectors(0) @ twice.items.T, once.query_vectors(0) @ once.items.T, atol=1e-4)


def test_a_matrix_of_more_than_255_dimensions_keeps_the_leading_ones():
    random = np.random.default_rng(0)
    dense = np.maximum(random.normal(size=(400, 8)) @ random.normal(size=(8, 350)), 0) + 1e-3 * random.random(
        (400, 350)
    )
    query, item = np.nonzero(dense)
    found = factorised(query.astype(np.int64), item.astype(np.int64), dense[query, item])
    own = dense.argmax(axis=1)
    cosines = found.query_vectors(0) @ found.items.T
    assert (cosines.argmax(axis=1) == own).mean() > 0.9


def test_rows_without_weight_in_the_pass_are_not_seen(tmp_path: Path):
    keys = write_pairs(tmp_path / "training_closeup_click", [6, 6], late=(10, 11))
    files = pin_files("training_closeup_click", str(tmp_path / "training_closeup_click"), 0)
    whole = spectral_start([files], [1.0], "pair_weight")
    assert (whole.query_keys.tolist(), whole.item_keys.tolist()) == (list(range(12)), sorted(set(keys.tolist())))
    fitted = spectral_start([files], [1.0], "fit_weight")
    assert (fitted.query_keys.tolist(), fitted.item_keys.tolist()) == (list(range(10)), sorted(set(keys[:10].tolist())))
    nearest = fitted.item_keys[(fitted.query_vectors(0) @ fitted.items.T).argmax(axis=1)]
    assert nearest.tolist() == keys[:10].tolist()


def test_a_task_counts_by_its_share_however_many_pairs_it_has(tmp_path: Path):
    tasks = []
    for name, rows, seed in (("click", [40], 1), ("save", [10], 2)):
        write_pairs(tmp_path / name, rows, seed=seed)
        tasks.append(pin_files(name, str(tmp_path / name), 0))
    mostly = [spectral_start(tasks, shares, "pair_weight") for shares in ([1.0, 1e-6], [1e-6, 1.0])]
    alone = [spectral_start([task], [1.0], "pair_weight") for task in tasks]
    for both, one in zip(mostly, alone, strict=True):
        queries = np.searchsorted(both.query_keys, one.query_keys)
        items = np.searchsorted(both.item_keys, one.item_keys)
        nearest = (both.query_vectors(0)[queries] @ both.items[items].T).argmax(axis=1)
        assert (nearest == (one.query_vectors(0) @ one.items.T).argmax(axis=1)).all()


def test_no_pair_at_all_gives_no_vectors():
    nothing = factorised(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    assert nothing.items.shape == nothing.queries.shape == (0, 256)
