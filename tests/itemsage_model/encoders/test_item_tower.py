"""What the tower has beyond the paper's: it starts as the frozen vectors, and unseen items owe it nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from itemsage_model.data.batch import ItemBatch, RaggedTensor, to_item_batch
from itemsage_model.encoders.encoder import Tokens
from itemsage_model.encoders.item_tower import ItemTower, ItemTowerSpec
from itemsage_model.encoders.model_files import model_bytes
from itemsage_model.serving.scorer import Scorer
from tests.itemsage_model.factories import ELEMENTS, FULL_SPEC, SPEC, packed_items

ITEMS = packed_items(12)
KEYS = torch.arange(12) + 1000
TRAINED = KEYS[:6]
TEXTS = ITEMS["text_embedding"]
HAS_TEXT = torch.from_numpy(TEXTS.counts > 0)
FROZEN = torch.zeros(12, 256)
FROZEN[HAS_TEXT] = torch.from_numpy(TEXTS.values).float()


def spec(**settings: Any) -> ItemTowerSpec:
    return replace(FULL_SPEC, model=FULL_SPEC.model.model_copy(update=settings))


def tower(**settings: Any) -> ItemTower:
    made: ItemTower = spec(**settings).build(seed=1)
    made.remember(TRAINED)
    return made


def batch() -> ItemBatch:
    return to_item_batch(ITEMS, ELEMENTS, KEYS)


def test_the_items_made_here_are_of_all_kinds():
    assert 0 < HAS_TEXT.sum() < 12
    assert HAS_TEXT[:6].any()
    assert HAS_TEXT[6:].any()


def test_every_parameter_of_a_tower_with_all_parts_gets_a_gradient():
    model = tower()
    embedded = model(batch())
    embedded[:, 0].sum().backward()
    others = {
        "log_temperature",
        "query_adapter.weight",
        "query_adapter.bias",
        "query_adapter.beta",
        "query_adapter.identity.table",
    }
    for name, parameter in model.named_parameters():
        if name not in others:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(12))


def test_every_parameter_is_in_the_graph_where_all_identities_are_hidden():
    model = tower()
    model.remember(KEYS[:0])
    model(batch()).sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if n.startswith(("item_", "encoder", "resid")))
    assert not model.item_identity.table.grad.any()


@pytest.mark.parametrize("sequence", [("text", "images", "frozen_text", "item_id"), ()])
def test_at_the_start_the_maps_leave_the_frozen_vectors_as_they_are(sequence: tuple[str, ...]):
    model = tower(sequence=sequence).eval()
    if sequence:
        model.residual.alpha.data.zero_()
    else:
        assert model.encoder is None
        assert {name for name, _ in model.named_parameters()} == {
            "log_temperature", "residual.item_map", "residual.without_text", "query_adapter.weight",
            "query_adapter.bias", "query_adapter.beta", "query_adapter.identity.table",
        }  # fmt: skip
    embedded = model(batch())
    assert torch.equal(embedded[HAS_TEXT], F.normalize(FROZEN[HAS_TEXT], dim=1))
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(12))


def test_an_embedding_is_the_frozen_vector_its_map_and_the_tower():
    model, plain = tower().eval(), tower(residual=False, item_map=False).eval()
    plain.load_state_dict({n: t for n, t in model.state_dict().items() if not n.startswith("residual")})
    with torch.no_grad():
        model.residual.item_map.normal_(std=0.1)
        model.residual.alpha.fill_(0.7)
    alone = plain(batch())
    sums = FROZEN + FROZEN @ model.residual.item_map + 0.7 * alone
    torch.testing.assert_close(model(batch())[HAS_TEXT], F.normalize(sums[HAS_TEXT], dim=1))
    torch.testing.assert_close(model(batch())[~HAS_TEXT], alone[~HAS_TEXT])


def test_frozen_text_in_the_sequence_moves_items_with_text_alone():
    with_text = tower(sequence=("images", "frozen_text"), residual=False, item_map=False).eval()
    texts = batch()["text_embedding"]
    others = RaggedTensor(texts.values.flip(1), texts.counts)
    moved = (with_text(batch()) - with_text(ItemBatch(batch().elements | {"text_embedding": others}))).abs().sum(dim=1)
    assert torch.equal(moved > 1e-4, HAS_TEXT)


def test_an_item_never_trained_on_does_not_depend_on_the_table_of_identities():
    model = tower().eval()
    before = model(batch())
    model.item_identity.table.data.normal_()
    moved = (model(batch()) - before).abs().sum(dim=1)
    assert (moved[:6] > 1e-4).all()
    assert not moved[6:].any()


def test_in_training_identities_are_hidden_now_and_then():
    model = tower(id_dropout=0.5)
    assert not torch.equal(model(batch()), model(batch()))
    model.eval()
    assert torch.equal(model(batch()), model(batch()))


def test_a_seed_gives_the_parts_of_the_papers_tower_the_weights_that_it_always_gave():
    plain = SPEC.build(seed=3).state_dict()
    extended = replace(SPEC, model=SPEC.model.model_copy(update={"residual": True, "query_adapter": True}))
    extended = replace(extended, task_kinds=("search",)).build(seed=3).state_dict()
    assert set(plain) < set(extended)
    assert all(torch.equal(tensor, extended[name]) for name, tensor in plain.items())


def test_the_fold_of_all_four_parts_is_the_same_function():
    model = tower().eval()
    fold = model.fold()
    assert set(fold.modalities) == {"text", "images", "frozen_text", "item_id"}
    sequence: dict[str, Tokens] = model._sequence(batch())
    folded, unfolded = model.encoder._folded(sequence, fold), model.encoder._unfolded(sequence)
    torch.testing.assert_close(folded, unfolded, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(batch(), fold), model(batch()))
    assert tower(layers=2).fold() is None
    assert tower(sequence=()).fold() is None


@pytest.mark.parametrize("settings", [{}, {"layers": 2}, {"sequence": ()}, {"missing": "zeros"}])
def test_the_scorer_gives_each_item_the_towers_vector_whatever_its_neighbours(settings: dict[str, Any]):
    model = tower(**settings)
    scorer = Scorer(model_bytes(model), spec(**settings))
    expected = model.eval()(batch()).detach().numpy()
    np.testing.assert_allclose(scorer.score(ITEMS, KEYS.numpy()), expected, atol=1e-5)
    alone = [scorer.score(ITEMS.take(np.array([i])), KEYS[i : i + 1].numpy()) for i in range(12)]
    np.testing.assert_allclose(np.concatenate(alone), expected, atol=1e-5)


def test_in_bfloat16_the_frozen_vectors_keep_their_precision():
    model = tower()
    model.residual.item_map.data.normal_(std=0.1)
    with_alpha = model_bytes(model)
    model.residual.alpha.data.zero_()
    for weights, tolerance in ((with_alpha, 5e-3), (model_bytes(model), 0)):
        exact = Scorer(weights, spec()).score(ITEMS, KEYS.numpy())
        rounded = Scorer(weights, spec(), precision="bfloat16").score(ITEMS, KEYS.numpy())
        np.testing.assert_allclose(rounded[HAS_TEXT], exact[HAS_TEXT], atol=tolerance, rtol=0)
