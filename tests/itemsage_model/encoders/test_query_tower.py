"""The query tower: texts in whatever order and company, items from their frozen vectors, gradients everywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from itemsage_model.data.batch import ItemBatch, PairBatch, to_item_batch
from itemsage_model.encoders.frozen_text.trained import TrainedEncoder
from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.model_files import CheckpointError, load_model, save_model
from itemsage_model.encoders.query_tower import QueryTower, QueryTowerSpec
from itemsage_model.encoders.tower import Tower
from tests.itemsage_model.factories import packed_items
from tests.itemsage_model.texts import KEYS, TEXT_SPEC, TEXTS, TOWER_SPEC

ITEMS = 20


def tower_of(spec: QueryTowerSpec = TOWER_SPEC) -> QueryTower:
    tower = spec.build(seed=3)
    tower.read_texts(KEYS, spec.text.token_ids(TEXTS))
    return tower


def items() -> ItemBatch:
    return to_item_batch(packed_items(ITEMS), TOWER_SPEC.elements)


def batch_of(query_keys: list[int]) -> PairBatch:
    pairs = len(query_keys)
    return PairBatch(
        items=items(),
        item_key=torch.arange(ITEMS),
        positive=torch.arange(pairs) % ITEMS,
        negatives=torch.zeros(0, dtype=torch.long),
        query_embedding=torch.zeros(pairs, 256).half(),
        query_key=torch.tensor(query_keys),
        query_item_key=torch.zeros(pairs, dtype=torch.long),
        pair_weight=torch.ones(pairs),
        task=torch.zeros(pairs, dtype=torch.long),
    )


def test_a_text_has_one_vector_whichever_others_are_in_the_batch() -> None:
    tower = tower_of().eval()
    alone = torch.cat([tower.query_vectors(batch_of([int(key)])) for key in KEYS])
    together = tower.query_vectors(batch_of([*KEYS.tolist(), int(KEYS[0])]))
    assert torch.allclose(alone, together[:-1], atol=1e-6)
    assert torch.equal(together[-1], together[0])
    assert torch.allclose(together.norm(dim=1), torch.ones(len(together)))
    # Of other texts, not of one and the same.
    assert (F.cosine_similarity(together[:1], together[1:-1]) < 0.9999).all()


def test_each_distinct_text_is_encoded_once() -> None:
    inputs = tower_of().inputs(batch_of([4, 4, 2, 4, 2]))
    assert sum(len(ids) for ids in inputs.tokens) == 2
    assert len(inputs.place) == 2


def test_both_sides_are_those_that_validation_sees() -> None:
    tower, batch = tower_of().eval(), batch_of([1, 5, 1])
    queries, of_items = tower.sides(tower(tower.inputs(batch)), batch)
    assert torch.equal(queries, tower.query_vectors(batch))
    assert torch.equal(of_items, tower.item_vectors(batch.items))
    assert isinstance(tower, Tower)


def test_every_parameter_gets_a_gradient() -> None:
    tower, batch = tower_of(replace(TOWER_SPEC, is_one_space=False)), batch_of(KEYS.tolist())
    queries, of_items = tower.sides(tower(tower.inputs(batch)), batch)
    (tower.temperature() * (queries @ of_items.T)).log_softmax(dim=1)[:, 0].sum().backward()
    without = [name for name, parameter in tower.named_parameters() if parameter.grad is None]
    assert without == []
    assert set(tower.learning_rate_factors) <= {name for name, _ in tower.named_parameters()}


@pytest.mark.parametrize(("layers", "trained"), [(0, set()), (1, {"2"}), (4, {"0", "1", "2"}), (-1, {"0", "1", "2"})])
def test_lower_layers_stay_as_they_are(layers: int, trained: set[str]) -> None:
    tower = tower_of(replace(TOWER_SPEC, trainable_layers=layers))
    named = {name: one.requires_grad for name, one in tower.text.transformer.named_parameters()}
    assert {name.split(".")[2] for name, learns in named.items() if learns and "layer." in name} == trained
    assert named["embeddings.word_embeddings.weight"] == (layers == -1)
    assert tower.text.projection.weight.requires_grad


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta"])
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_what_does_not_learn_is_computed_once_and_comes_to_the_same(
    kind: str, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"distilbert": {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24, "dropout": 0.0,
                            "attention_dropout": 0.0}}.get(kind, {})  # fmt: skip
    config = {**TEXT_SPEC.config, "model_type": kind, "max_position_embeddings": 64, **sizes}
    spec = replace(TOWER_SPEC, trainable_layers=layers, text=replace(TEXT_SPEC, config=config))
    kept, batch = tower_of(spec).eval(), batch_of(KEYS.tolist())
    assert all(tokens.is_floating_point() for tokens in kept.inputs(batch).tokens)
    monkeypatch.setattr("itemsage_model.encoders.query_tower._MOST_BYTES", 0)
    whole = tower_of(spec).eval()
    assert not any(tokens.is_floating_point() for tokens in whole.inputs(batch).tokens)
    vectors = [tower.query_vectors(batch) for tower in (kept, whole)]
    assert torch.allclose(*vectors, atol=1e-5)
    for found in vectors:
        found[:, 0].sum().backward()
    gradients = [
        {name: one.grad for name, one in tower.text.named_parameters() if one.grad is not None}
        for tower in (kept, whole)
    ]
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-5) for name in gradients[0])
    assert any(".layer.2." in name for name in gradients[0]) == (layers > 0)


def test_items_begin_as_their_frozen_texts_where_these_lie_in_the_space_of_the_base() -> None:
    batch = items()
    texts, has_text = batch["text_embedding"], batch["text_embedding"].counts > 0
    vectors = tower_of().item_vectors(batch)
    assert torch.allclose(vectors[has_text], F.normalize(texts.values.float(), dim=-1), atol=1e-6)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(ITEMS))
    other = tower_of(replace(TOWER_SPEC, is_one_space=False)).item_vectors(batch)
    assert not torch.allclose(other[has_text], vectors[has_text], atol=1e-2)


def test_images_move_an_item_and_missing_ones_do_not_make_it_nan() -> None:
    tower, batch = tower_of(replace(TOWER_SPEC, is_one_space=False)), items()
    without = ItemBatch({name: one.take(torch.zeros(0, dtype=torch.long)) for name, one in batch.elements.items()})
    assert len(tower.item_vectors(without)) == 0
    counts = batch["image_embeddings"].counts
    assert (counts == 0).any()
    moved = ItemBatch(batch.elements | {"image_embeddings": replace(
        batch["image_embeddings"], values=-batch["image_embeddings"].values)})  # fmt: skip
    changed = (tower.item_vectors(moved) - tower.item_vectors(batch)).abs().max(dim=1).values > 1e-6
    assert changed.tolist() == (counts > 0).tolist()


def test_a_text_that_nobody_read_is_refused() -> None:
    with pytest.raises(ValueError, match="a text that the tower was not given"):
        tower_of().inputs(batch_of([99]))
    with pytest.raises(ValueError, match="a text that the tower was not given"):
        TOWER_SPEC.build().inputs(batch_of([1]))


def test_cls_takes_the_first_token() -> None:
    spec = replace(TOWER_SPEC, text=replace(TEXT_SPEC, pooling="cls"))
    ids = TEXT_SPEC.token_ids(TEXTS[:1])
    text = spec.build(seed=3).text.eval()
    hidden = text.transformer(input_ids=torch.tensor(ids)).last_hidden_state[:, 0]
    expected = F.normalize(text.projection(hidden), dim=-1)
    assert torch.allclose(text(torch.tensor(ids), torch.ones(1, len(ids[0]), dtype=torch.long)), expected, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_text_in_which_the_tokenizer_finds_nothing_has_a_vector(pooling: Literal["mean", "cls"]) -> None:
    bare = json.loads(TEXT_SPEC.tokenizer) | {"post_processor": None}
    spec = replace(TEXT_SPEC, tokenizer=json.dumps(bare), pooling=pooling)
    texts = ["\u200b", "red shoes", " "]
    assert not spec.cut_tokenizer().encode(texts[0]).ids
    weights = replace(TOWER_SPEC, text=spec).build(seed=3).text.state_dict()
    encoder = TrainedEncoder(spec, {name: value.numpy() for name, value in weights.items()})
    for some in (texts, texts[:1]):
        lengths = np.linalg.norm(encoder.encode(some), axis=1).round(3).tolist()
        assert lengths == [1, 1, 0][: len(some)]


def test_long_texts_are_cut() -> None:
    assert max(map(len, TEXT_SPEC.token_ids(TEXTS))) == TEXT_SPEC.max_tokens


def test_it_is_saved_and_loaded_without_its_folder(tmp_path) -> None:
    ours = tower_of()
    uri, _ = save_model(str(tmp_path), ours, TOWER_SPEC, {})
    model = load_model(uri, QueryTowerSpec)
    assert model.spec == TOWER_SPEC
    before = {name: value for name, value in TOWER_SPEC.to_json().items() if name != "hard_negatives"}
    assert QueryTowerSpec.from_json(before) == TOWER_SPEC  # a folder of before there were any
    loaded = model.build()
    loaded.read_texts(KEYS, model.spec.text.token_ids(TEXTS))
    batch = batch_of([3, 1])
    assert torch.equal(loaded.query_vectors(batch), ours.eval().query_vectors(batch))
    with pytest.raises(CheckpointError, match="expected a model of kind item_tower; found query_tower"):
        load_model(uri, ItemTowerSpec)


def test_token_ids_are_found_by_key() -> None:
    tower = tower_of()
    row = int(np.flatnonzero(KEYS == 2)[0])
    (ids,) = tower.inputs(batch_of([2])).tokens
    assert ids[0].tolist() == TEXT_SPEC.token_ids([TEXTS[row]])[0]
