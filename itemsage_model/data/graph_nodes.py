"""The nodes of the graph in memory, read from graph_nodes; and what two convolutions need of some of them.

A rank holds all nodes: features in half precision, and of each node the rows of its neighbours, about 0.7 kB together
at 256 features. A batch then holds each node once a layer, however many neighbours share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from itemsage_model.data.feature_cells import unpack_items
from itemsage_model.data.pinned_files import TableFiles
from itemsage_model.data.ragged import ItemRows, PackedItems, Ragged, runs
from itemsage_model.data.reader import CatalogItems, RowFormat, read_catalog
from schemas.cells import unpack_cells
from schemas.elements import SizedElement
from schemas.errors import TableError
from schemas.graph_tables import GRAPH_NODES
from schemas.stages import remade
from schemas.tables import ROW_CHECKSUM

Rows = npt.NDArray[np.int64]

_LISTS = {"neighbour_keys": "<i8", "neighbour_weights": "<f4", "hard_keys": "<i8"}


@dataclass(frozen=True)
class Hop:
    """One convolution: of which nodes of the layer before each of its nodes is made.

    Attributes:
        own: Each node's row in the layer before.
        neighbours: Rows there of all nodes' neighbours, end to end.
        starts: Where each node's neighbours begin among them.
        weights: Importance of each neighbour; those of a node sum up to 1.
    """

    own: Int[Tensor, "node"]
    neighbours: Int[Tensor, "edge"]
    starts: Int[Tensor, "node"]
    weights: Float[Tensor, "edge"]


@dataclass(frozen=True)
class Neighbourhoods:
    """Some nodes with all that the convolutions need of their surroundings.

    Attributes:
        features: float16, of the nodes themselves, their neighbours, and the neighbours of these.
        hops: The convolutions, the first one first.
    """

    features: Float[Tensor, "outer length"]
    hops: tuple[Hop, ...]


@dataclass(frozen=True)
class GraphNodes:
    """All nodes, in the order of their keys.

    Attributes:
        item_key: int64 [node], sorted.
        features: float16 [node, length].
        neighbours: Rows of each node's neighbours, int64.
        weights: float32 [edge], in the order of `neighbours.values`.
        hard: Rows of each node's hard negatives, int64.
    """

    item_key: Rows
    features: npt.NDArray[np.float16]
    neighbours: Ragged
    weights: npt.NDArray[np.float32]
    hard: Ragged

    def __len__(self) -> int:
        return len(self.item_key)

    def rows_of(self, keys: Rows, table: str) -> Rows:
        """The rows of the nodes with these keys.

        Args:
            keys: int64 [key].
            table: Where they were read, for the error.

        Raises:
            TableError: one is of no node.
        """
        return _rows_of(self.item_key, keys, table)

    @cached_property
    def joined(self) -> Rows:
        """The rows of the nodes that have neighbours; of all nodes, where none has."""
        found = np.flatnonzero(self.neighbours.counts)
        return found if len(found) else np.arange(len(self))

    def around(self, targets: Rows, layers: int, alone: npt.NDArray[np.bool_] | None = None) -> Neighbourhoods:
        """What so many convolutions need to embed the nodes at `targets`, in that order.

        Args:
            targets: Rows of nodes.
            layers: Convolutions.
            alone: bool [node], the nodes that are taken as if they had no neighbours; None = none.
        """
        all_counts = self.neighbours.counts if alone is None else np.where(alone, 0, self.neighbours.counts)
        hops: list[Hop] = []
        wanted = targets
        for _ in range(layers):
            counts = all_counts[wanted]
            edges = runs(self.neighbours.starts[wanted], counts)
            needed = np.zeros(len(self), bool)
            needed[wanted] = needed[self.neighbours.values[edges]] = True
            place = np.cumsum(needed) - 1
            parts = (place[wanted], place[self.neighbours.values[edges]], np.cumsum(counts) - counts)
            own, neighbours, starts = map(torch.from_numpy, parts)
            hops.insert(0, Hop(own, neighbours, starts, torch.from_numpy(self.weights[edges])))
            wanted = np.flatnonzero(needed)
        return Neighbourhoods(torch.from_numpy(self.features[wanted]), tuple(hops))


def node_format(node: SizedElement) -> RowFormat[CatalogItems]:
    """Rows of graph_nodes.

    Args:
        node: The features of a node, as the tower knows them.
    """

    def unpack(table: str, raw: pa.Table) -> CatalogItems:
        features = unpack_items(table, {node.key: raw[node.key]}, [node])
        lists = {name: Ragged(*_unpacked(table, raw, name, dtype)) for name, dtype in _LISTS.items()}
        if (lists["neighbour_keys"].counts != lists["neighbour_weights"].counts).any():
            raise _misshapen(table, "neighbour_weights", "as many as neighbour_keys", "another number")
        if (features[node.key].counts != 1).any():
            raise _misshapen(table, node.key, f"{node.length} numbers in every row", "a row with another number")
        packed = PackedItems({**features.elements, **lists})
        return CatalogItems(raw["item_key"].to_numpy(), ItemRows([packed], np.arange(len(packed))))

    return RowFormat(GRAPH_NODES, (*GRAPH_NODES.checksummed, ROW_CHECKSUM), unpack)


def _unpacked(table: str, raw: pa.Table, name: str, dtype: str) -> tuple[npt.NDArray[np.generic], Rows]:
    try:
        return unpack_cells(raw[name], dtype)
    except ValueError as error:
        raise _misshapen(table, name, "packed numbers in every row", str(error)) from error


def read_nodes(files: TableFiles, node: SizedElement, read_seconds: float | None = None) -> GraphNodes:
    """All nodes, by the reader of all tables.

    Raises:
        TableError: a row is damaged, or names an item that is no node.
    """
    catalog = read_catalog(files, node_format(node), read_seconds)
    packed = catalog.items.gather()
    keys, near, hard = catalog.item_key, packed["neighbour_keys"], packed["hard_keys"]
    return GraphNodes(
        keys,
        packed[node.key].values,
        Ragged(_rows_of(keys, near.values, files.table), near.counts),
        packed["neighbour_weights"].values,
        Ragged(_rows_of(keys, hard.values, files.table), hard.counts),
    )


def _rows_of(known: Rows, keys: Rows, table: str) -> Rows:
    rows = np.searchsorted(known, keys).clip(max=len(known) - 1)
    is_unknown = known[rows] != keys
    if is_unknown.any():
        raise _misshapen(table, "item_key", "keys of nodes of the graph", f"{int(is_unknown.sum())} others")
    return rows


def _misshapen(table: str, column: str, expected: str, found: str) -> TableError:
    return TableError(table, column, expected=expected, found=found, cure=remade(table))
