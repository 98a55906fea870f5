"""Explicit negatives: each counts in its own row's softmax, and in no other, from the table to the loss."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itemsage_model.data.batch import PairBatch
from itemsage_model.data.mixing import CatalogBatches
from itemsage_model.data.pinned_files import pin_files
from itemsage_model.data.reader import RowStream, catalog_format, pair_format, read_catalog
from itemsage_model.training import distributed
from itemsage_model.training.frequency import CountMinSketch
from itemsage_model.training.inputs import make_batches
from itemsage_model.training.item_inputs import pin_inputs
from itemsage_model.training.objective import Objective
from schemas.errors import InputError, SettingsError, TableError
from schemas.presets import Shop, candidates
from schemas.records import read_record, write_record
from schemas.settings import LossSettings
from schemas.stages import BUILD_TRAINING_TABLES
from tests.itemsage_model.factories import ELEMENTS, write_catalog, write_pairs
from tests.itemsage_model.warehouses import make_warehouse

ITEMS, TEMPERATURE = 20, 5.0
RETURN = {"query_kind": "closeup", "engagement": "return", "weight": 2.0}


def batches_of(folder: Path, rows: int, is_column: np.ndarray, ranks: int) -> list[PairBatch]:
    """The first batch of each rank: an equal part of the rows of the table."""
    whole = read_catalog(pin_files("item_features", str(folder / "items"), 0), catalog_format(ELEMENTS))
    files, row_format = pin_files("a", str(folder / "a"), 0), pair_format(None, has_negatives=True)
    batches = []
    for rank in range(ranks):
        stream = RowStream(files, row_format, 100, seed=3, stream=0, rank=rank, ranks=ranks)
        parts = CatalogBatches([stream], [rows // ranks], whole, rank, ranks, ELEMENTS, is_column=is_column)
        batches.append(next(iter(parts)))
    return batches


def slow_loss(query: torch.Tensor, row: int, item: int, against: int, vectors: torch.Tensor, columns: list[int]):
    """One row by its formula; items are numbered from 0."""
    del row
    logits = TEMPERATURE * (vectors @ query)
    total = sum(logits[column].exp() for column in columns)
    if against >= 0:
        total = total + 2.0 * logits[against].exp()
    return total.log() - logits[item]


@settings(max_examples=15, deadline=None)
@given(data=st.data(), ranks=st.sampled_from([1, 2]))
def test_losses_and_gradients_are_those_of_a_slow_loop(data: st.DataObject, ranks: int):
    rows = 6
    against = data.draw(
        st.lists(st.one_of(st.just(0), st.integers(1000, 1000 + ITEMS - 1)), min_size=rows, max_size=rows)
    )
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        keys = write_pairs(
            folder / "a", [rows], items=ITEMS, negatives=tuple(against), seed=data.draw(st.integers(1, 9))
        )
        write_catalog(folder / "items", items=ITEMS)
        others = data.draw(st.sets(st.integers(0, ITEMS - 1)))
        columns = sorted({int(key) - 1000 for key in keys} | others)
        batches = batches_of(folder, rows, np.isin(np.arange(ITEMS), columns), ranks)
        vectors = torch.randn(ITEMS, 256, generator=torch.Generator().manual_seed(1), requires_grad=True)
        # What a rank gathers of all ranks' slices of the catalog.
        patch.setattr(distributed, "gather_rows_with_gradient", lambda _: vectors)
        seen, losses, expected = [], [], []
        for batch in batches:
            queries = batch.query_embedding.float()
            found, mean = Objective(LossSettings(form="full"), CountMinSketch(2, 4096), 1.0)(
                queries, vectors, batch, torch.tensor(TEMPERATURE)
            )
            losses.append((mean, found))
            for query, row in zip(queries, batch.query_key.tolist(), strict=True):
                seen.append(row)
                expected.append(slow_loss(query, row, keys[row] - 1000, against[row] - 1000 if against[row] else -1,
                                          vectors, columns))  # fmt: skip
    assert sorted(seen) == list(range(rows))
    torch.testing.assert_close(torch.cat([found for _, found in losses]), torch.stack(expected).detach())
    (fast,) = torch.autograd.grad(torch.stack([mean for mean, _ in losses]).mean(), vectors)
    (slow,) = torch.autograd.grad(torch.stack(expected).mean(), vectors)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-6)


def test_a_negative_that_nobody_engages_with_is_encoded_but_no_column(tmp_path: Path):
    shop = make_warehouse(
        tmp_path, {"click": [9]}, negatives=[RETURN], loss={"form": "full"}, train={"negatives_from": "engaged"}
    )
    inputs = pin_inputs(shop)
    inputs = replace(inputs, item_keys=inputs.item_keys)
    batches = make_batches(inputs, shop, 0)
    batch = next(iter(batches))
    assert batch.explicit is not None
    columns = batch.item_key[batch.explicit.is_column].tolist()
    assert columns == inputs.item_keys.tolist()
    alone = set(batch.item_key.tolist()) - set(columns)
    assert alone, "some negative must have no pair, or this shows nothing"
    assert alone <= {1000 + 7 * row % 20 for row in range(0, 9, 3)}
    has_one = batch.explicit.weight > 0
    assert batch.explicit.weight[has_one].unique().tolist() == [2.0]
    of_row = {int(key): 1000 + 7 * int(key) % 20 for key in batch.query_key[has_one]}
    found = batch.item_key[batch.explicit.item[has_one]].tolist()
    assert found == [of_row[int(key)] for key in batch.query_key[has_one]]
    assert all(int(key) % 3 == 0 for key in batch.query_key[has_one])
    assert not any(int(key) % 3 == 0 for key in batch.query_key[~has_one])


def test_batches_go_on_after_some_steps_as_they_would_have(tmp_path: Path):
    shop = make_warehouse(tmp_path, {"click": [30]}, negatives=[RETURN], loss={"form": "full"})
    inputs = pin_inputs(shop)
    whole, resumed = iter(make_batches(inputs, shop, 0)), iter(make_batches(inputs, shop, 3))
    for _ in range(3):
        next(whole)
    for _ in range(4):
        first, second = next(whole).explicit, next(resumed).explicit
        assert first is not None
        assert second is not None
        assert torch.equal(first.item, second.item)
        assert torch.equal(first.weight, second.weight)


def test_a_negative_that_the_catalog_lacks_is_named(tmp_path: Path):
    write_pairs(tmp_path / "a", [4], negatives=(0, 77, 0, 0))
    write_catalog(tmp_path / "items")
    with pytest.raises(TableError, match=r"negative_item_key: expected keys of items of the catalog; found 1 others"):
        batches_of(tmp_path, 4, np.ones(ITEMS, bool), 1)


def test_tables_of_other_negatives_are_refused(tmp_path: Path):
    shop = make_warehouse(tmp_path, {"click": [9]}, negatives=[RETURN], loss={"form": "full"})
    record = read_record(shop.layout, BUILD_TRAINING_TABLES)
    write_record(shop.layout, replace(record, settings={}))
    with pytest.raises(InputError, match=r"negatives: expected tables cut with .*return.*Run build_training_tables"):
        pin_inputs(shop)
    assert pin_inputs(shop.model_copy(update={"negatives": ()}))


def test_auto_takes_negatives_while_it_takes_the_full_softmax_and_else_says_why_not(tmp_path: Path):
    shop = make_warehouse(tmp_path, {"click": [9]}, negatives=[RETURN], loss={"form": "full"})
    free = shop.model_copy(update={"preset": "auto", "loss": LossSettings()})
    size = Shop(
        training_pairs=9_000, items=20_000, engaged_items=12_000, engaged_queries=9_000, has_images=False,
        is_one_space=True,
    )  # fmt: skip
    tried = candidates(free, size)
    assert [(one.settings.loss.form, one.settings.negatives) for one in tried] == [("full", shop.negatives)] * 2
    with pytest.raises(SettingsError, match=r"12,001 engaged items.*'bucketed'.*\n?.*set loss.form = \"full\""):
        candidates(free, replace(size, engaged_items=12_001))
    assert candidates(shop.model_copy(update={"preset": "auto"}), replace(size, engaged_items=12_001))
