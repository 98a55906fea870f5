"""The query adapter: no change at the start, a map a kind, part of the model and its id."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from itemsage_model.encoders.item_tower import ItemTower, ItemTowerSpec
from itemsage_model.encoders.model_files import load_model, model_bytes, save_model
from itemsage_model.encoders.query_adapter import QueryAdapter
from itemsage_model.serving.query_vectors import adapt_queries, saved_adapter
from schemas.errors import InputError
from tests.itemsage_model.factories import FULL_SPEC, SPEC
from tests.itemsage_model.pair_batches import pair_batch

QUERIES = F.normalize(torch.randn(7, 256, generator=torch.Generator().manual_seed(1)), dim=1)


def trained() -> ItemTower:
    """A tower whose adapter is away from its start."""
    tower: ItemTower = FULL_SPEC.build(seed=1)
    torch.manual_seed(3)
    with torch.no_grad():
        tower.query_adapter.weight.normal_(std=0.05)
        tower.query_adapter.bias.normal_(std=0.05)
    return tower


def test_at_the_start_it_changes_nothing_and_all_of_it_learns():
    adapter = QueryAdapter(("search", "closeup"), 256)
    adapted = adapter(QUERIES, torch.tensor([0, 1, 1, 0, 0, 1, 0]))
    torch.testing.assert_close(adapted, QUERIES)
    adapted[:, 0].sum().backward()
    assert (adapter.weight.grad.flatten(1).abs().sum(1) > 0).all()
    assert (adapter.bias.grad.abs().sum(1) > 0).all()


def test_each_query_is_mapped_by_its_own_kind():
    adapter, kinds = trained().query_adapter, [0, 1, 1, 0, 0, 1, 0]
    assert adapter.kinds == ["closeup", "search"]
    expected = [
        F.normalize(q + q @ adapter.weight[k] + adapter.bias[k], dim=0) for q, k in zip(QUERIES, kinds, strict=True)
    ]
    torch.testing.assert_close(adapter(QUERIES, torch.tensor(kinds)), torch.stack(expected))


def test_the_sides_of_a_batch_are_adapted_by_the_kind_of_each_pairs_task():
    tower, batch = trained(), pair_batch(QUERIES.half(), torch.tensor([0, 0, 1, 1, 2, 2, 2]))
    queries, items = tower.sides(torch.ones(3, 256), batch)
    of_kind = torch.tensor([1, 1, 0, 0, 1, 1, 1])  # search, closeup, search
    torch.testing.assert_close(queries, tower.query_adapter(batch.query_embedding.float(), of_kind))
    assert torch.equal(items, torch.ones(3, 256))
    assert torch.equal(SPEC.build().sides(items, batch)[0], batch.query_embedding.float())


def test_it_is_saved_with_the_model_and_part_of_its_id(tmp_path: Path):
    tower = trained()
    uri, identity = save_model(str(tmp_path), tower, FULL_SPEC, {})
    model = load_model(uri, ItemTowerSpec)
    assert model.spec == FULL_SPEC
    for name, tensor in model.build().state_dict().items():
        assert torch.equal(tensor, tower.state_dict()[name]), name
    tower.query_adapter.bias.data[0, 0] += 1
    assert save_model(str(tmp_path), tower, FULL_SPEC, {})[1] != identity


def test_a_reader_gets_the_vectors_that_training_compared_with(tmp_path: Path):
    tower = trained()
    model = load_model(save_model(str(tmp_path), tower, FULL_SPEC, {})[0], ItemTowerSpec)
    expected = tower.query_adapter(QUERIES, torch.ones(7, dtype=torch.long)).detach().numpy()
    found = adapt_queries(model, "search", QUERIES.numpy())
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(
        InputError, match=r"query_adapter: expected one trained on title queries; found one trained on "
    ):
        adapt_queries(model, "title", QUERIES.numpy())


def test_a_model_without_one_compares_with_the_frozen_vectors(tmp_path: Path):
    model = load_model(save_model(str(tmp_path), SPEC.build(), SPEC, {})[0], ItemTowerSpec)
    assert saved_adapter(model) is None
    assert adapt_queries(model, "any", QUERIES.numpy()) is not None
    np.testing.assert_array_equal(adapt_queries(model, "any", QUERIES.numpy()), QUERIES.numpy())
    assert b"query_adapter" not in model_bytes(model.build())
