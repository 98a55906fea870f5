"""The graph tower: the formula, node by node; its gradients; its spec; and that it learns by the common trainer."""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch
from torch.nn import functional as F

from itemsage_model.data.batch import ItemBatch, RaggedTensor
from itemsage_model.encoders.graph_tower import GraphTower, GraphTowerSpec
from itemsage_model.encoders.tower import Tower
from itemsage_model.training.frequency import CountMinSketch
from itemsage_model.training.objective import Objective
from itemsage_model.training.trainer import Trainer
from schemas.settings import LossSettings, TrainSettings
from schemas.settings.graph import GraphSettings
from tests.itemsage_model.data.test_graph_batches import COUNT, batches, ring

SPEC = GraphTowerSpec(GraphSettings(width=8), LossSettings(form="mixed"), COUNT, 16, "space")


def slow(tower: GraphTower, row: int) -> torch.Tensor:
    """The vector of one node, by recursion over its neighbours."""
    nodes = ring()

    def layer(number: int, at: int) -> torch.Tensor:
        if number == 0:
            return torch.from_numpy(nodes.features[at].astype(np.float32))
        part = tower.convolution(number - 1)
        start, count = int(nodes.neighbours.starts[at]), int(nodes.neighbours.counts[at])
        pooled = torch.zeros(8)
        for edge in range(start, start + count):
            told = F.relu(part.message(layer(number - 1, int(nodes.neighbours.values[edge]))))
            pooled += float(nodes.weights[edge]) * told
        own = F.relu(part.combine(torch.cat([layer(number - 1, at), pooled])))
        return own / own.norm().clamp(min=1e-12)

    last = tower.own(layer(0, row)) + tower.second(F.relu(tower.first(layer(2, row))))
    return last / last.norm()


def test_the_tower_is_the_formula() -> None:
    tower = SPEC.build(seed=2)
    rows = np.array([3, 0, 55, 48])
    with torch.inference_mode():
        found = tower(ring().around(rows, 2))
        expected = torch.stack([slow(tower, int(row)) for row in rows])
    torch.testing.assert_close(found, expected)


def test_features_alone_are_an_item_that_nothing_joins() -> None:
    tower = SPEC.build(seed=2)
    features = torch.from_numpy(ring().features[55:56])
    items = ItemBatch({"node_embedding": RaggedTensor(features, torch.ones(1, dtype=torch.int64))})
    with torch.inference_mode():
        torch.testing.assert_close(tower.item_vectors(items), tower(ring().around(np.array([55]), 2)))


def test_every_parameter_gets_a_gradient() -> None:
    tower = SPEC.build(seed=2)
    (batch,) = islice(batches(), 1)
    queries, items = tower.sides(tower(tower.inputs(batch)), batch)
    (tower.temperature() * (queries * items[batch.positive]).sum()).backward()
    assert [name for name, parameter in tower.named_parameters() if parameter.grad is None] == []
    torch.testing.assert_close(tower.query_vectors(batch), queries)
    torch.testing.assert_close(queries, tower(ring().around(np.arange(4), 2)), msg="the queries are items 0 to 3")


def test_a_spec_survives_json_and_its_tower_is_one() -> None:
    assert GraphTowerSpec.from_json(SPEC.to_json()) == SPEC
    tower = SPEC.build(seed=2)
    assert isinstance(tower, Tower)
    same, other = SPEC.build(seed=2), SPEC.build(seed=3)
    assert torch.equal(tower.own.weight, same.own.weight)
    assert not torch.equal(tower.own.weight, other.own.weight)


def test_the_common_trainer_teaches_it_the_next_of_the_ring() -> None:
    tower, loss = SPEC.build(seed=2), LossSettings(form="mixed")
    settings = TrainSettings(batch_size=4, negative_count=8, steps=60, warmup_steps=1, learning_rate=0.02)
    objective = Objective(loss, CountMinSketch(2, 1 << 10), 8 / COUNT)
    losses: list[float] = []
    trainer = Trainer(tower, objective, settings.model_copy(update={"log_every": 10}), 1)
    trainer.fit(batches(steps=60), lambda report: losses.extend(report.losses), lambda: None)
    assert losses[-1] < 0.6 * losses[0]
