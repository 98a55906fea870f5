"""The picture tower: the base at first, the formula after, both sides of a batch, and its spec; and its scorer."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional as F

from itemsage_model.data.batch import ItemBatch, PairBatch, RaggedTensor
from itemsage_model.data.ragged import Ragged
from itemsage_model.encoders.model_files import model_bytes
from itemsage_model.encoders.picture_tower import PictureTower, PictureTowerSpec
from itemsage_model.encoders.tower import Tower
from itemsage_model.serving.picture_scorer import PictureScorer, head_vectors
from schemas.cells import to_list_column, to_matrix
from tests.itemsage_model.pictures import KEYS, LENGTH, pictures

SPEC = PictureTowerSpec("picture-onnx-base", LENGTH, 8, 20, 20.0, 100.0)


@pytest.fixture
def tower() -> PictureTower:
    values, counts = pictures()
    made = SPEC.build(seed=2)
    made.read_pictures(KEYS, Ragged(values, counts))
    made.head.measure(torch.from_numpy(values))
    return made


def taught(tower: PictureTower) -> PictureTower:
    """With weights that are not those of the start."""
    torch.manual_seed(4)
    for parameter in tower.head.second.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return tower


def pair_batch(queries: list[int], items: list[int], positive: list[int]) -> PairBatch:
    keys = torch.from_numpy(KEYS)
    return PairBatch(
        ItemBatch({}), keys[items], torch.tensor(positive), torch.arange(0), torch.empty(len(queries), 0),
        keys[queries], keys[queries], torch.ones(len(queries)), torch.zeros(len(queries), dtype=torch.long),
    )  # fmt: skip


def slow(tower: PictureTower, row: int) -> torch.Tensor:
    """The vector of one product, picture by picture, in double."""
    values, counts = pictures()
    start, head, total = int(counts[:row].sum()), tower.head, torch.zeros(LENGTH, dtype=torch.float64)
    all_numbers = torch.from_numpy(values).double()
    mean, deviation = all_numbers.mean(dim=0), all_numbers.std(dim=0, correction=0).mean()
    for x in all_numbers[start : start + int(counts[row])]:
        hidden = F.gelu(head.first.weight.double() @ ((x - mean) / deviation) + head.first.bias.double())
        z = x + head.second.weight.double() @ hidden + head.second.bias.double()
        total += z / z.norm()
    return (total / total.norm()).float()


def test_training_starts_at_the_base(tower: PictureTower) -> None:
    values, _ = pictures()
    base = F.normalize(torch.from_numpy(values).float(), dim=-1)
    assert torch.equal(tower.head(torch.from_numpy(values)), base)
    assert not torch.allclose(taught(tower).head(torch.from_numpy(values)), base, atol=1e-2)


def test_the_tower_is_the_formula_on_both_sides(tower: PictureTower) -> None:
    taught(tower)
    batch = pair_batch([5, 0, 5], [59, 3, 5], [0, 1, 0])
    with torch.inference_mode():
        queries, items = tower.sides(tower(tower.inputs(batch)), batch)
        torch.testing.assert_close(queries, torch.stack([slow(tower, row) for row in (5, 0, 5)]))
        torch.testing.assert_close(items, torch.stack([slow(tower, row) for row in (59, 3, 5)]))
        torch.testing.assert_close(tower.query_vectors(batch), queries)
    values, counts = pictures()
    given = ItemBatch({"image_embeddings": RaggedTensor(torch.from_numpy(values), torch.from_numpy(counts))})
    with torch.inference_mode():
        torch.testing.assert_close(tower.item_vectors(given)[[59, 3, 5]], items)


def test_every_parameter_gets_a_gradient(tower: PictureTower) -> None:
    taught(tower)
    batch = pair_batch([1, 2], [7, 8], [0, 1])
    queries, items = tower.sides(tower(tower.inputs(batch)), batch)
    (tower.temperature() * (queries * items[batch.positive]).sum()).backward()
    assert [name for name, parameter in tower.named_parameters() if parameter.grad is None] == []


def test_a_product_that_the_tower_was_not_given_is_no_other(tower: PictureTower) -> None:
    batch = pair_batch([1], [2], [0])
    stranger = PairBatch(*(getattr(batch, name) for name in PairBatch.__dataclass_fields__))
    object.__setattr__(stranger, "query_item_key", torch.tensor([int(KEYS[1]) + 1]))
    with pytest.raises(ValueError, match="a product that the tower was not given"):
        tower.inputs(stranger)


def test_a_spec_survives_json_and_its_tower_is_one() -> None:
    assert PictureTowerSpec.from_json(SPEC.to_json()) == SPEC
    assert isinstance(SPEC.build(), Tower)
    same, other = SPEC.build(seed=1), SPEC.build(seed=2)
    assert not torch.equal(same.head.first.weight, other.head.first.weight)


def test_a_scored_picture_does_not_depend_on_its_company(tower: PictureTower) -> None:
    head, values = taught(tower).eval().head, pictures()[0].astype(np.float32)
    together = head_vectors(head, np.tile(values, (5, 1)))
    alone = np.concatenate([head_vectors(head, values[row : row + 1]) for row in range(20)])
    np.testing.assert_array_equal(together[:20], alone)
    np.testing.assert_array_equal(together[: len(values)], together[-len(values) :])


def test_a_worker_changes_the_vectors_and_nothing_else(tower: PictureTower) -> None:
    values = pictures()[0][:20].astype(np.float32)
    batch = pa.RecordBatch.from_pydict(
        {"item_id": [f"i{n}" for n in range(20)], "image_embedding": to_list_column(values)}
    )
    weights = model_bytes(taught(tower))
    found = list(PictureScorer(lambda: weights, SPEC).scored([batch, batch.slice(0, 0)]))
    assert [len(one) for one in found] == [20, 0]
    assert found[0].column("item_id") == batch.column("item_id")
    with torch.inference_mode():
        wanted = tower.head(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(to_matrix(found[0].column("image_embedding")), wanted, atol=1e-6)
