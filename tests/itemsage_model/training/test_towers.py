"""One trainer for every tower: a small query tower, whose items are frozen, is trained, saved and resumed as it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from itemsage_model.data.batch import ItemBatch, PairBatch, RaggedTensor
from itemsage_model.encoders.model_files import load_model, save_model
from itemsage_model.training.checkpoint import load_checkpoint, save_checkpoint
from itemsage_model.training.frequency import CountMinSketch
from itemsage_model.training.objective import Objective
from itemsage_model.training.trainer import StepReport, Trainer
from schemas.settings import LossSettings, TrainSettings

DIM, QUERIES, ITEMS = 256, 6, 12
LOSS = LossSettings(sketch_width=4096)
SETTINGS = TrainSettings(
    batch_size=QUERIES, negative_count=ITEMS - QUERIES, steps=30, warmup_steps=2, log_every=1, precision="float32",
    learning_rate=0.02, table_learning_rate=0.05,
)  # fmt: skip


class QueryTower(nn.Module):
    """Learns one vector a query against item vectors that are frozen: the mirror image of an item tower."""

    lookup_tables: ClassVar[frozenset[str]] = frozenset({"table.weight"})
    learning_rate_factors: ClassVar[dict[str, float]] = {"output.bias": 3.0}

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(QUERIES, 32)
        self.output = nn.Linear(32, DIM)

    def forward(self, query_ids: Tensor) -> Tensor:
        return F.normalize(self.output(self.table(query_ids)), dim=-1)

    def inputs(self, batch: PairBatch) -> Tensor:
        return batch.query_key

    def sides(self, embedded: Tensor, batch: PairBatch) -> tuple[Tensor, Tensor]:
        return embedded, batch.items["frozen"].values.float()

    def temperature(self) -> Tensor:
        return self.output.weight.new_tensor(10.0)


@dataclass(frozen=True)
class QueryTowerSpec:
    kind: ClassVar[str] = "query_tower"

    def to_json(self) -> dict[str, Any]:
        return {"queries": QUERIES}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> QueryTowerSpec:
        assert values == {"queries": QUERIES}
        return cls()

    def build(self, *, seed: int = 1) -> QueryTower:
        torch.manual_seed(seed)
        return QueryTower()


def batches() -> Iterator[PairBatch]:
    """Query i is engaged with item i, always; the other items are negatives."""
    torch.manual_seed(3)
    frozen = F.normalize(torch.randn(ITEMS, DIM), dim=-1)
    items = ItemBatch({"frozen": RaggedTensor(frozen.half(), torch.ones(ITEMS, dtype=torch.long))})
    pair = torch.arange(QUERIES)
    while True:
        yield PairBatch(
            items=items,
            item_key=torch.arange(ITEMS) + 100,
            positive=pair,
            negatives=torch.arange(QUERIES, ITEMS),
            query_embedding=torch.zeros(QUERIES, DIM).half(),
            query_key=pair,
            query_item_key=torch.zeros(QUERIES, dtype=torch.long),
            pair_weight=torch.ones(QUERIES),
            task=torch.zeros(QUERIES, dtype=torch.long),
        )


def trainer(steps: int = 30, form: str = "sum") -> Trainer:
    objective = Objective(LOSS.model_copy(update={"form": form}), CountMinSketch(2, 4096), 0.5)
    return Trainer(QueryTowerSpec().build(seed=4), objective, SETTINGS.model_copy(update={"steps": steps}), 1)


@pytest.mark.parametrize("form", ["sum", "mixed", "corrected", "full"])
def test_a_query_tower_learns_by_the_same_trainer_and_losses(form: str):
    reports: list[StepReport] = []
    ours = trainer(form=form)
    ours.fit(batches(), reports.append, lambda: None)
    assert reports[-1].losses[0] < 0.6 * reports[0].losses[0]
    batch = next(batches())
    queries, items = ours.tower.sides(ours.tower(ours.tower.inputs(batch)), batch)
    assert (queries @ items.T).argmax(dim=1).tolist() == batch.positive.tolist()


def test_its_lookup_table_has_the_learning_rate_of_tables_and_no_decay():
    groups = trainer().optimizer.param_groups
    of_table = next(group for group in groups if group["params"][0].shape == (QUERIES, 32))
    assert (of_table["start_rate"], of_table["weight_decay"]) == (0.05, 0.0)
    of_bias = next(group for group in groups if group["params"][0].shape == (DIM,))
    assert (of_bias["start_rate"], of_bias["weight_decay"]) == (pytest.approx(0.06), 0.0)


def test_it_is_saved_and_loaded_like_any_tower(tmp_path: Path):
    ours = trainer()
    ours.fit(batches(), lambda _: None, lambda: None)
    uri, identity = save_model(str(tmp_path), ours.tower, QueryTowerSpec(), {})
    model = load_model(uri, QueryTowerSpec)
    assert model.model_id == identity
    for name, tensor in model.build().state_dict().items():
        assert torch.equal(tensor, ours.tower.state_dict()[name]), name


def test_it_resumes_from_a_checkpoint_to_the_same_weights(tmp_path: Path):
    whole, broken, resumed = trainer(), trainer(), trainer()
    whole.fit(batches(), lambda _: None, lambda: None)
    source = batches()
    for _ in range(11):
        broken.train_step(next(source))
    tensors = broken.tower.state_dict() | {f"objective.{k}": v for k, v in broken.objective.state_dict().items()}
    save_checkpoint(str(tmp_path), broken.step, tensors, broken.optimizer, {"run_id": "one"})
    tensors = load_checkpoint(str(tmp_path), 11, resumed.optimizer, {"run_id": "one"})
    resumed.tower.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("objective.")})
    resumed.objective.load_state_dict(
        {k.removeprefix("objective."): v for k, v in tensors.items() if k.startswith("objective.")}
    )
    resumed.step = 11
    resumed.fit(source, lambda _: None, lambda: None)
    for name, tensor in resumed.tower.state_dict().items():
        assert torch.equal(tensor, whole.tower.state_dict()[name]), name
