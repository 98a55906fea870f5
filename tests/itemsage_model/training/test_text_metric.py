"""The metric of the texts: against a slow loop, and on pairs that are made by some directions alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest

from itemsage_model.data.pinned_files import pin_files, some_files
from itemsage_model.training import text_metric as module
from itemsage_model.training.text_metric import TextMetric, metric_of, text_metric
from schemas.errors import TableError
from tests.itemsage_model.factories import write_pairs

DIM, TELLING = 24, 5


def moments_of(queries: np.ndarray, items: np.ndarray) -> np.ndarray:
    both = np.concatenate([queries, items, np.ones((len(queries), 1))], axis=1)
    return both.T @ both / len(both)


def made_pairs(rows: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Vectors that are alike, in pairs, along the first directions only."""
    random = np.random.default_rng(0)
    queries, items = random.normal(size=(2, rows, DIM))
    items[:, :TELLING] = 0.8 * queries[:, :TELLING] + 0.6 * items[:, :TELLING]
    return queries, items


def test_directions_in_which_pairs_are_alike_weigh_more_and_the_others_as_before():
    metric = metric_of(moments_of(*made_pairs()))
    assert metric.gains[-TELLING:].min() > 0.9
    assert metric.gains[:-TELLING].max() < 0.05
    telling = metric.directions[:, -TELLING:]
    assert np.linalg.norm(telling[:TELLING], axis=0).min() > 0.99


def test_items_of_pairs_are_found_better_by_the_metric():
    queries, items = made_pairs(400)
    change = metric_of(moments_of(*made_pairs())).change(16.0)

    def found(scores: np.ndarray) -> float:
        return float((scores.argmax(axis=1) == np.arange(len(scores))).mean())

    assert found((queries + queries @ change) @ (items + items @ change).T) > 2 * found(queries @ items.T)


@pytest.mark.parametrize("strength", [0.0, 4.0, 16.0])
def test_a_change_is_symmetric_keeps_the_mean_length_and_is_none_of_strength_0(strength: float):
    queries, items = made_pairs()
    change = metric_of(moments_of(queries, items)).change(strength)
    assert np.allclose(change, change.T, atol=1e-6)
    assert change.dtype == np.float32
    both = np.concatenate([queries, items])
    assert np.square(both + both @ change).sum() == pytest.approx(np.square(both).sum(), rel=1e-4)
    assert np.allclose(change, 0, atol=1e-6) == (strength == 0)


def test_dot_products_along_a_direction_have_one_plus_strength_times_gain_their_weight():
    axes = np.linalg.qr(np.random.default_rng(1).normal(size=(DIM, DIM)))[0]
    gains, energies = np.linspace(0, 1, DIM), np.linspace(2, 1, DIM)
    change = TextMetric(axes, gains, energies).change(3.0)
    mapped = axes.T @ (np.eye(DIM) + change)
    weights = np.square(np.linalg.norm(mapped, axis=1))
    assert np.allclose(weights / weights[0], 1 + 3 * gains, rtol=1e-4)


def slow_moments(folder: Path, weight: str) -> np.ndarray:
    """Row by row; a row without a text or a weight is left out."""
    total, weights = np.zeros((513, 513)), 0.0
    for row in ds.dataset(folder, format="parquet").to_table().to_pylist():
        if row[weight] > 0 and row["text_embedding"]:
            vectors = [np.frombuffer(row[name], "<f2") for name in ("query_embedding", "text_embedding")]
            both = np.concatenate([*vectors, [1.0]]).astype(np.float64)
            total += row[weight] * np.outer(both, both)
            weights += row[weight]
    return total / weights


@pytest.mark.parametrize("weight", ["pair_weight", "fit_weight"])
def test_the_moments_are_those_of_the_rows_that_a_pass_may_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight: str
):
    seen = []
    monkeypatch.setattr(module, "metric_of", lambda moments: seen.append(moments) or metric_of(moments))
    tasks = []
    for name, rows in (("click", [30, 20]), ("save", [25])):
        write_pairs(tmp_path / name, rows, late=(3, 10, 24), seed=len(rows))
        tasks.append(pin_files(name, str(tmp_path / name), 0))
    text_metric(tasks, [3.0, 1.0], weight, 1)
    expected = (3 * slow_moments(tmp_path / "click", weight) + slow_moments(tmp_path / "save", weight)) / 4
    assert np.allclose(seen[0], expected, atol=1e-6)


def test_of_a_large_file_no_more_than_enough_rows_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_pairs(tmp_path / "click", [40, 40])
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 10)
    monkeypatch.setattr(module, "_MOST_ROWS", 15)
    files = pin_files("click", str(tmp_path / "click"), 0)
    drawn = some_files(files, 15, 1)
    assert drawn.row_count == 40
    texts = ds.dataset(drawn.uris[0], format="parquet").to_table()["text_embedding"].to_pylist()[:20]
    assert sum(len(weights) for _, weights in module._pairs(drawn, "pair_weight")) == sum(map(bool, texts))


def test_pairs_without_any_text_change_nothing():
    assert not metric_of(np.zeros((2 * DIM + 1, 2 * DIM + 1))).change(4.0).any()


def test_a_damaged_row_is_an_error_that_names_the_table(tmp_path: Path):
    write_pairs(tmp_path / "click", [20])
    file = next(tmp_path.glob("click/*.parquet"))
    content = bytearray(file.read_bytes())
    vector = ds.dataset(file, format="parquet").to_table()["query_embedding"][0].as_py()
    place = content.find(vector[:16])
    assert place > 0
    content[place] ^= 0x55
    file.write_bytes(bytes(content))
    with pytest.raises(TableError, match="click"):
        text_metric([pin_files("click", str(tmp_path / "click"), 0)], [1.0], "pair_weight", 1)


def test_of_a_large_table_some_files_are_drawn_the_same_for_a_seed(tmp_path: Path):
    write_pairs(tmp_path / "click", [5] * 12)
    files = pin_files("click", str(tmp_path / "click"), 0)
    drawn = some_files(files, 18, seed=3)
    assert drawn.row_count == 20
    assert set(drawn.uris) < set(files.uris)
    assert drawn == some_files(files, 18, seed=3)
    assert len({some_files(files, 18, seed).uris for seed in range(5)}) > 1
    assert some_files(files, 60, seed=3) == files
