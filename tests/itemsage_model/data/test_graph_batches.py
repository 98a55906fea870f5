"""Batches of the graph tower: each node once a layer, negatives that grow harder, and nodes that stand alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from itemsage_model.data.graph_batches import PAIRS, GraphBatches
from itemsage_model.data.graph_nodes import GraphNodes, node_format
from itemsage_model.data.ragged import Ragged
from itemsage_model.data.reader import Pairs
from schemas.errors import TableError
from schemas.graph_tables import NODE

COUNT = 60


def ring(count: int = COUNT) -> GraphNodes:
    """Every node has the next two as neighbours, but for the last ten, and the node opposite as its hard negative."""
    rows = np.arange(count)
    counts = np.where(rows < count - 10, 2, 0)
    near = np.concatenate([[row + 1, row + 2] for row in rows[counts > 0]]) % count
    weights = np.tile(np.array([0.75, 0.25], np.float32), int((counts > 0).sum()))
    hard = Ragged((rows + count // 2) % count, np.ones(count, np.int64))
    return GraphNodes(rows * 10, np.eye(count, dtype=np.float16), Ragged(near, counts), weights, hard)


class Stream:
    """Pairs (0, 1), (1, 2), ... of the ring, for ever."""

    rank, files = 0, SimpleNamespace(table="graph_pairs")

    def batches(self, size: int, skip_rows: int) -> Iterator[Pairs]:
        row = skip_rows
        while True:
            keys = np.arange(row, row + size) % 20 * 10
            yield Pairs(keys, keys + 10, keys, np.ones(size, np.float32), np.empty((size, 0), np.float16), None)
            row += size


def batches(**changes: Any) -> GraphBatches:
    settings = {"hard_share": 0.5, "alone_share": 0.0, "steps": 11, "seed": 3} | changes
    return GraphBatches(Stream(), ring(), 4, 8, **settings)  # type: ignore[arg-type]


def test_a_batch_holds_what_its_pairs_are_and_each_node_once() -> None:
    (batch,) = islice(batches(), 1)
    assert batch.graph is not None
    assert batch.query_row is not None
    keys = batch.item_key.numpy()
    assert len(set(keys)) == len(keys)
    assert keys[batch.query_row].tolist() == batch.query_key.tolist() == [0, 10, 20, 30]
    assert keys[batch.positive].tolist() == [10, 20, 30, 40]
    first, last = batch.graph.hops
    assert len(last.own) == len(keys)
    # Features are unit vectors of their rows, so they say which nodes they are.
    outer = batch.graph.features.float().argmax(dim=1)
    assert len(set(outer.tolist())) == len(outer)
    assert (outer[first.own][last.own] * 10).tolist() == keys.tolist()
    node = int(batch.query_row[0])
    near = last.neighbours[last.starts[node] : last.starts[node] + 2]
    assert outer[first.own][near].tolist() == [1, 2]
    assert last.weights[last.starts[node] : last.starts[node] + 2].tolist() == [0.75, 0.25]


def test_negatives_grow_harder() -> None:
    hard = set(range(30 * 10, 34 * 10, 10))
    opposite: list[int] = []
    for batch in islice(batches(hard_share=1.0), 11):
        keys = batch.item_key.numpy()
        of_batch = {(key + COUNT // 2 * 10) % (COUNT * 10) for key in batch.query_key.tolist()}
        opposite.append(sum(key in of_batch for key in keys[batch.negatives]))
    assert hard
    assert opposite[-1] == 4, "the last step's negatives are those opposite to its four queries"
    assert np.mean(opposite[-3:]) > np.mean(opposite[:3])
    without = [batch.item_key[batch.negatives] for batch in islice(batches(hard_share=0.0), 11)]
    assert max(int(keys.max()) for keys in without) < (COUNT - 10) * 10, "nodes without neighbours are no negatives"


def loners() -> GraphNodes:
    """The ring, whose joined nodes have the ten others, which no random negative is, as their hard negatives."""
    nodes, joined = ring(), COUNT - 10
    rows, counts = np.tile(np.arange(joined, COUNT), joined), np.where(np.arange(COUNT) < joined, 10, 0)
    return replace(nodes, hard=Ragged(rows, counts))


def test_the_share_of_hard_negatives_rises_from_none_to_what_is_asked() -> None:
    drawn = replace(batches(hard_share=0.5), nodes=loners())
    queries, found = np.arange(4), []
    for step in range(11):
        rows = drawn._negatives(queries, np.random.default_rng(step), step)
        assert len(rows) == 8
        found.append(rows[rows >= COUNT - 10])
    assert [len(rows) for rows in found] == [round(4 * step / 10) for step in range(11)]
    assert len(set(np.concatenate(found))) > 5, "any of a node's hard negatives, not always the first"


def test_where_no_walk_has_met_anybody_negatives_are_any_nodes() -> None:
    nothing = Ragged(np.empty(0, np.int64), np.zeros(COUNT, np.int64))
    alone = replace(ring(), neighbours=nothing, weights=np.empty(0, np.float32), hard=nothing)
    (batch,) = islice(replace(batches(), nodes=alone), 1)
    assert len(batch.negatives) > 4


def test_ranks_draw_other_negatives() -> None:
    (one,) = islice(batches(), 1)
    stream = Stream()
    stream.rank = 1
    (other,) = islice(replace(batches(), stream=stream), 1)
    assert one.query_key.tolist() == other.query_key.tolist()
    assert one.item_key[one.negatives].tolist() != other.item_key[other.negatives].tolist()


def test_a_resumed_run_goes_on_with_the_same_batches() -> None:
    *_, third = islice(batches(), 3)
    (resumed,) = islice(batches(start_step=2), 1)
    assert third.item_key.tolist() == resumed.item_key.tolist()
    assert third.negatives.tolist() == resumed.negatives.tolist()


def test_some_nodes_stand_alone() -> None:
    def edges(alone_share: float) -> int:
        (batch,) = islice(batches(alone_share=alone_share), 1)
        assert batch.graph is not None
        return len(batch.graph.hops[-1].neighbours)

    assert edges(0.999) == 0 < edges(0.5) < edges(0.0)


def test_a_key_of_no_node_is_refused() -> None:
    with pytest.raises(TableError, match=r"graph_pairs.*keys of nodes"):
        ring().rows_of(np.array([0, 5]), "graph_pairs")


def test_rows_of_the_tables_become_arrays() -> None:
    raw = pa.table({"query_item_key": [5, 6], "item_key": [7, 8], "pair_weight": pa.array([1, 2.5], pa.float32())})
    pairs = PAIRS.unpack("graph_pairs", raw)
    assert pairs.query_key.tolist() == pairs.query_item_key.tolist() == [5, 6]
    assert pairs.pair_weight.tolist() == [1, 2.5]
    assert pairs.query_embedding.shape == (2, 0)


@pytest.mark.parametrize(("column", "cell"), [("neighbour_weights", b""), ("node_embedding", b""), ("hard_keys", b"1")])
def test_a_misshapen_cell_is_refused(column: str, cell: bytes) -> None:
    cells = {
        "node_embedding": np.ones(4, "<f2").tobytes(), "neighbour_keys": np.ones(1, "<i8").tobytes(),
        "neighbour_weights": np.ones(1, "<f4").tobytes(), "hard_keys": b"",
    }  # fmt: skip
    columns = {name: pa.array([value], pa.binary()) for name, value in (cells | {column: cell}).items()}
    whole = pa.table({"item_key": [1], **columns})
    sized = NODE.sized(slots=1, length=4)
    with pytest.raises(TableError, match=column):
        node_format(sized).unpack("graph_nodes", whole)
    good = pa.table({"item_key": [1], **{name: pa.array([value], pa.binary()) for name, value in cells.items()}})
    assert len(node_format(sized).unpack("graph_nodes", good)) == 1
