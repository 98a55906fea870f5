"""The query adapter: no change at the start, a map a kind, a vector a known query, part of the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from itemsage_model.encoders.item_tower import ItemTower, ItemTowerSpec
from itemsage_model.encoders.model_files import load_model, model_bytes, save_model
from itemsage_model.serving.query_vectors import adapt_queries, saved_adapter
from schemas.errors import InputError
from tests.itemsage_model.factories import FULL_SPEC, SPEC
from tests.itemsage_model.pair_batches import pair_batch

KEYS = torch.arange(7) + 50
KNOWN = KEYS[:4]
QUERIES = F.normalize(torch.randn(7, 256, generator=torch.Generator().manual_seed(1)), dim=1)


def trained() -> ItemTower:
    """A tower whose adapter is away from its start."""
    tower: ItemTower = FULL_SPEC.build(seed=1)
    torch.manual_seed(3)
    with torch.no_grad():
        tower.query_adapter.weight.normal_(std=0.05)
        tower.query_adapter.bias.normal_(std=0.05)
        tower.query_adapter.identity.table.normal_(std=0.05)
    tower.remember(torch.tensor([1000]), KNOWN)
    return tower


def test_at_the_start_it_changes_nothing_and_all_of_it_learns():
    adapter = FULL_SPEC.build().query_adapter
    adapter.identity.remember(KNOWN)
    adapted = adapter(QUERIES, torch.tensor([0, 1, 1, 0, 0, 1, 0]), KEYS)
    torch.testing.assert_close(adapted, QUERIES)
    adapted[:, 0].sum().backward()
    assert (adapter.weight.grad.flatten(1).abs().sum(1) > 0).all()
    assert (adapter.bias.grad.abs().sum(1) > 0).all()
    assert adapter.identity.table.grad.abs().sum() > 0
    assert adapter.beta.grad is not None


def test_each_query_is_mapped_by_its_own_kind():
    adapter, kinds = trained().query_adapter, [0, 1, 1, 0, 0, 1, 0]
    assert adapter.kinds == ["closeup", "search"]
    expected = [
        F.normalize(q + q @ adapter.weight[k] + adapter.bias[k], dim=0) for q, k in zip(QUERIES, kinds, strict=True)
    ]
    unknown = torch.zeros(7, dtype=torch.long)
    torch.testing.assert_close(adapter(QUERIES, torch.tensor(kinds), unknown), torch.stack(expected))


def test_a_known_query_has_a_vector_beside_the_map_and_an_unknown_one_has_not():
    adapter, kinds = trained().query_adapter.eval(), torch.tensor([0, 1, 1, 0, 0, 1, 0])
    adapter.beta.data.fill_(0.7)
    expected = []
    for row, (q, k, key) in enumerate(zip(QUERIES, kinds, KEYS, strict=True)):
        moved = q + q @ adapter.weight[k] + adapter.bias[k]
        if row < len(KNOWN):
            moved = moved + 0.7 * adapter.identity(key[None])[0]
        expected.append(F.normalize(moved, dim=0))
    torch.testing.assert_close(adapter(QUERIES, kinds, KEYS), torch.stack(expected))
    before = adapter(QUERIES, kinds, KEYS)
    adapter.identity.table.data.normal_()
    moved = (adapter(QUERIES, kinds, KEYS) - before).abs().sum(dim=1)
    assert (moved[:4] > 1e-3).all()
    assert not moved[4:].any()


def test_in_training_identities_are_hidden_now_and_then():
    adapter, kinds = trained().query_adapter, torch.zeros(7, dtype=torch.long)
    adapter.identity.dropout = 0.5
    assert not torch.equal(adapter(QUERIES, kinds, KEYS), adapter(QUERIES, kinds, KEYS))
    adapter.eval()
    assert torch.equal(adapter(QUERIES, kinds, KEYS), adapter(QUERIES, kinds, KEYS))


def test_every_parameter_is_in_the_graph_where_no_query_of_a_batch_is_known():
    adapter = trained().query_adapter
    adapter(QUERIES, torch.zeros(7, dtype=torch.long), KEYS + 1_000).sum().backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters())
    assert not adapter.identity.table.grad.any()


def test_without_identities_it_is_the_map_alone():
    maps = replace(FULL_SPEC, model=FULL_SPEC.model.model_copy(update={"query_id_rows": 0})).build().query_adapter
    assert {name for name, _ in maps.named_parameters()} == {"weight", "bias"}
    none = FULL_SPEC.model.model_copy(update={"query_adapter": False})
    assert replace(FULL_SPEC, model=none).build().query_adapter is None


def test_the_sides_of_a_batch_are_adapted_by_the_kind_of_each_pairs_task():
    tower, batch = trained().eval(), pair_batch(QUERIES.half(), torch.tensor([0, 0, 1, 1, 2, 2, 2]))
    batch = replace(batch, query_key=KEYS)
    queries, items = tower.sides(torch.ones(3, 256), batch)
    of_kind = torch.tensor([1, 1, 0, 0, 1, 1, 1])  # search, closeup, search
    torch.testing.assert_close(queries, tower.query_adapter(batch.query_embedding.float(), of_kind, KEYS))
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
    tower = trained().eval()
    model = load_model(save_model(str(tmp_path), tower, FULL_SPEC, {})[0], ItemTowerSpec)
    expected = tower.query_adapter(QUERIES, torch.ones(7, dtype=torch.long), KEYS).detach().numpy()
    found = adapt_queries(model, "search", QUERIES.numpy(), KEYS.numpy())
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(
        InputError, match=r"query_adapter: expected one trained on title queries; found one trained on "
    ):
        adapt_queries(model, "title", QUERIES.numpy(), KEYS.numpy())


def test_a_model_without_one_compares_with_the_frozen_vectors(tmp_path: Path):
    model = load_model(save_model(str(tmp_path), SPEC.build(), SPEC, {})[0], ItemTowerSpec)
    assert saved_adapter(model) is None
    found = adapt_queries(model, "any", QUERIES.numpy(), KEYS.numpy())
    np.testing.assert_array_equal(found, QUERIES.numpy())
    assert b"query_adapter" not in model_bytes(model.build())
