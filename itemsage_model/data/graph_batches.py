"""Batches to train the graph tower on: pairs of items, shared negatives, and harder ones as training goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from jaxtyping import Int
from torch import Tensor

from itemsage_model.data.batch import ItemBatch, PairBatch
from itemsage_model.data.graph_nodes import GraphNodes, Neighbourhoods, Rows
from itemsage_model.data.reader import Pairs, RowFormat, RowStream
from schemas.graph_tables import GRAPH_PAIRS
from schemas.tables import ROW_CHECKSUM

PAIRS = RowFormat(
    GRAPH_PAIRS,
    (*GRAPH_PAIRS.checksummed, ROW_CHECKSUM),
    lambda _, raw: Pairs(
        query_key=raw["query_item_key"].to_numpy(),
        item_key=raw["item_key"].to_numpy(),
        query_item_key=raw["query_item_key"].to_numpy(),
        pair_weight=_weights(raw),
        query_embedding=np.empty((len(raw), 0), np.float16),
        items=None,
    ),
)
"""Rows of graph_pairs: the query is the item that it shows, and has no embedding but the one that is learned."""


def _weights(raw: pa.Table) -> npt.NDArray[np.float32]:
    return raw["pair_weight"].to_numpy()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class GraphBatch(PairBatch):
    """A batch of pairs of items; those of both sides are embedded together.

    Attributes:
        graph: The distinct items, in the order of `item_key`, with their surroundings.
        query_row: For each pair, the index of the item that is its query.
    """

    graph: Neighbourhoods | None = None
    query_row: Int[Tensor, "pair"] | None = None


@dataclass(frozen=True)
class GraphBatches:
    """An endless iterable of one rank's batches.

    Of the negatives that all pairs share, a growing part are hard ones: items that walks from the batch's queries have
    met, but rarely. Their share rises from 0 at the first step to `hard_share` at the last.

    Some nodes, drawn anew for each batch, are taken as if nothing joined them to others, and random negatives are nodes
    with neighbours: else the tower would learn that what has none is never a positive, and new items have none.

    Source: PinSage (Ying et al. 2018, arXiv 1806.01973), section 3.3: hard negatives by rank, and a curriculum.
    Differs from the paper: the hard negatives of a query are negatives of the others too, and their number grows with
    the steps and not with the epochs; and nodes without their neighbours, of which it has none.

    Attributes:
        stream: The pairs.
        nodes: All nodes.
        pair_count: Pairs of a batch.
        negative_count: Negatives of a batch.
        hard_share: Share of hard negatives at the last step.
        alone_share: Share of the nodes that are taken without their neighbours.
        steps: Steps of the whole training.
        seed: Seed of the run; with rank and step it decides which negatives are drawn.
        start_step: Steps already taken by an earlier run.
        layers: Convolutions of the tower.
    """

    stream: RowStream[Pairs]
    nodes: GraphNodes
    pair_count: int
    negative_count: int
    hard_share: float
    alone_share: float
    steps: int
    seed: int
    start_step: int = 0
    layers: int = 2

    def __iter__(self) -> Iterator[GraphBatch]:
        blocks = self.stream.batches(self.pair_count, self.start_step * self.pair_count)
        for step, pairs in zip(count(self.start_step), blocks, strict=False):
            generator = np.random.default_rng((self.seed, self.stream.rank, step))
            table = self.stream.files.table
            queries, items = (self.nodes.rows_of(keys, table) for keys in (pairs.query_item_key, pairs.item_key))
            negatives = self._negatives(queries, generator, step)
            alone = generator.random(len(self.nodes)) < self.alone_share
            yield self._batch(pairs, queries, items, negatives, alone)

    def _negatives(self, queries: Rows, generator: np.random.Generator, step: int) -> Rows:
        """Rows of the negatives: some of the queries' hard ones, any items for the rest."""
        wanted = round(self.negative_count * self.hard_share * min(1.0, step / max(1, self.steps - 1)))
        asked = np.unique(queries)
        counts = self.nodes.hard.counts[asked]
        able = np.flatnonzero(counts)
        chosen = able[generator.integers(len(able), size=wanted)] if len(able) else np.empty(0, np.int64)
        which = (generator.random(len(chosen)) * counts[chosen]).astype(np.int64)
        hard = self.nodes.hard.values[self.nodes.hard.starts[asked[chosen]] + which]
        joined = self.nodes.joined
        return np.concatenate([hard, joined[generator.integers(len(joined), size=self.negative_count - len(hard))]])

    def _batch(
        self, pairs: Pairs, queries: Rows, items: Rows, negatives: Rows, alone: npt.NDArray[np.bool_]
    ) -> GraphBatch:
        targets, index = np.unique(np.concatenate([queries, items, negatives]), return_inverse=True)
        size = len(pairs)
        return GraphBatch(
            items=ItemBatch({}),
            item_key=torch.from_numpy(self.nodes.item_key[targets]),
            positive=torch.from_numpy(index[size : 2 * size]),
            negatives=torch.from_numpy(np.unique(index[2 * size :])),
            query_embedding=torch.from_numpy(pairs.query_embedding),
            query_key=torch.from_numpy(pairs.query_key),
            query_item_key=torch.from_numpy(pairs.query_item_key),
            pair_weight=torch.from_numpy(pairs.pair_weight),
            task=torch.zeros(size, dtype=torch.int64),
            graph=self.nodes.around(targets, self.layers, alone),
            query_row=torch.from_numpy(index[:size]),
        )
