"""The graph tower: an item's frozen features and those around it in the graph -> a vector of an image's kind."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from itemsage_model.data.batch import ItemBatch, PairBatch
from itemsage_model.data.graph_batches import GraphBatch
from itemsage_model.data.graph_nodes import Hop, Neighbourhoods
from schemas.elements import SizedElement
from schemas.graph_tables import NODE
from schemas.settings import LossSettings
from schemas.settings.graph import GraphSettings

LAYERS = 2


class GraphConvolution(nn.Module):
    """n_u = sum over neighbours v of alpha_uv relu(Q h_v + q); h'_u = unit(relu(W [h_u, n_u] + w)).

    alpha are the neighbours' shares of the visits: importance pooling. A node without neighbours has n_u = 0.

    Source: PinSage (Ying et al. 2018, arXiv 1806.01973), algorithm 1, section 3.1. Assumed: a weighted sum, where the
    paper says a weighted mean; the weights sum up to 1.

    Args:
        length: Numbers of h_u.
        width: Numbers of n_u and of what comes out.
    """

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.message = nn.Linear(length, width)
        self.combine = nn.Linear(length + width, width)

    def forward(self, nodes: Float[Tensor, "before length"], hop: Hop) -> Float[Tensor, "node width"]:
        """The nodes of one layer from those of the layer before; gradient flows to all of them."""
        messages = self.messages(nodes)
        weights = hop.weights.to(messages.dtype)
        pooled = F.embedding_bag(hop.neighbours, messages, hop.starts, mode="sum", per_sample_weights=weights)
        return self.combined(nodes[hop.own], pooled)

    def messages(self, nodes: Float[Tensor, "node length"]) -> Float[Tensor, "node width"]:
        """What each node tells those whose neighbour it is."""
        return F.relu(self.message(nodes))

    def combined(
        self, own: Float[Tensor, "node length"], pooled: Float[Tensor, "node width"]
    ) -> Float[Tensor, "node width"]:
        """Each node with what it was told; unit length."""
        return F.normalize(F.relu(self.combine(torch.cat([own, pooled], dim=1))), dim=-1)


class GraphTower(nn.Module):
    """Two graph convolutions, two dense layers, and a map of the item's own features beside them; unit length.

    z_u = unit(S x_u + G2 relu(G1 h_u + g))

    Source: PinSage, algorithm 2. Differs from the paper: S x_u, by which an item without neighbours has a vector of
    its features, and training starts at the features and not at noise.

    Args:
        length: Numbers of a node's features x_u.
        width: Of the convolutions.
        dim: Of the vectors.
        loss: Start and cap of the temperature.
    """

    lookup_tables: ClassVar[frozenset[str]] = frozenset()
    learning_rate_factors: ClassVar[dict[str, float]] = {}

    def __init__(self, length: int, width: int, dim: int, loss: LossSettings) -> None:
        super().__init__()
        self.max_log_temperature = math.log(loss.max_temperature)
        lengths = [length] + [width] * (LAYERS - 1)
        self.convolutions = nn.ModuleList(GraphConvolution(before, width) for before in lengths)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, dim, bias=False)
        self.own = nn.Linear(length, dim, bias=False)
        nn.init.orthogonal_(self.own.weight)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(loss.temperature)))

    def forward(self, graph: Neighbourhoods) -> Float[Tensor, "node dim"]:
        """Embed the nodes of the last hop."""
        features = graph.features.float()
        nodes, own = features, torch.arange(len(features), device=features.device)
        for convolution, hop in zip(self.convolutions, graph.hops, strict=True):
            nodes, own = convolution(nodes, hop), own[hop.own]
        return self.finished(nodes, features[own])

    def convolution(self, number: int) -> GraphConvolution:
        """One of the convolutions, from 0."""
        return cast(GraphConvolution, self.convolutions[number])

    def finished(
        self, nodes: Float[Tensor, "node width"], features: Float[Tensor, "node length"]
    ) -> Float[Tensor, "node dim"]:
        """The vectors of nodes after the last convolution; unit length."""
        return F.normalize(self.own(features) + self.second(F.relu(self.first(nodes))), dim=-1)

    def inputs(self, batch: PairBatch) -> Neighbourhoods:
        """What of a batch the tower embeds: the items of both sides, with their surroundings."""
        return _graph_batch(batch).graph  # type: ignore[return-value]

    def sides(
        self, embedded: Float[Tensor, "item dim"], batch: PairBatch
    ) -> tuple[Float[Tensor, "pair dim"], Float[Tensor, "item dim"]]:
        """The item that is each pair's query, and all items: both just embedded."""
        return embedded[_graph_batch(batch).query_row], embedded

    def query_vectors(self, batch: PairBatch) -> Float[Tensor, "pair dim"]:
        """The vector of the item that is each pair's query."""
        return self.sides(self(self.inputs(batch)), batch)[0]

    def item_vectors(self, items: ItemBatch) -> Float[Tensor, "item dim"]:
        """The vectors of items by their features alone, as those have that nothing joins to another."""
        features = items[NODE.values.name].values
        own, none = torch.arange(len(features), device=features.device), features.new_zeros(0)
        hop = Hop(own, own[:0], torch.zeros_like(own), none.float())
        embedded: Tensor = self(Neighbourhoods(features, (hop,) * LAYERS))
        return embedded

    def temperature(self) -> Float[Tensor, ""]:
        """The scale of the cosine in the loss, learned, capped."""
        return self.log_temperature.clamp(max=self.max_log_temperature).exp()


def _graph_batch(batch: PairBatch) -> GraphBatch:
    assert isinstance(batch, GraphBatch), "the graph tower is trained on batches of GraphBatches"
    return batch


@dataclass(frozen=True)
class GraphTowerSpec:
    """What one must know to read a graph tower's weights.

    Attributes:
        graph: How the graph was cut and walked, and the tower's width.
        loss: The loss it was trained with.
        node_length: Numbers of a node's features.
        dim: Numbers of its vectors: model.image_length.
        text_space: The frozen encoder of the features' texts.
    """

    kind: ClassVar[str] = "graph_tower"

    graph: GraphSettings
    loss: LossSettings
    node_length: int
    dim: int
    text_space: str

    @property
    def node(self) -> SizedElement:
        """The features of a node."""
        return NODE.sized(slots=1, length=self.node_length)

    @property
    def elements(self) -> tuple[SizedElement, ...]:
        """What the tower reads of an item, but for its neighbours."""
        return (self.node,)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "graph": self.graph.model_dump(mode="json"),
            "loss": self.loss.model_dump(mode="json"),
            "node_length": self.node_length,
            "dim": self.dim,
            "text_space": self.text_space,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> GraphTowerSpec:
        """The inverse of `to_json`."""
        return cls(
            GraphSettings.model_validate(values["graph"]),
            LossSettings.model_validate(values["loss"]),
            int(values["node_length"]),
            int(values["dim"]),
            str(values["text_space"]),
        )

    def build(self, *, seed: int = 1) -> GraphTower:
        """A tower of these sizes with fresh weights, the same for the same seed."""
        torch.manual_seed(seed)
        return GraphTower(self.node_length, self.graph.width, self.dim, self.loss)
