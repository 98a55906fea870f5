"""The picture tower: a small head over frozen picture vectors, which learns what is engaged together; and its spec."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from itemsage_model.data.batch import ItemBatch, PairBatch, RaggedTensor
from itemsage_model.data.ragged import Ragged
from schemas.elements import IMAGES, SizedElement


class PictureHead(nn.Module):
    """z = unit(x + W2 gelu(W1 (x - m) / s + w1) + w2) of a frozen vector x; W2 and w2 are zero at first, so that z = x.

    Assumed: one hidden layer. m is the mean of the shop's vectors, s the mean deviation of a number of them: frozen
    vectors lie in a narrow cone, and without both the layer hardly learns (docs/lab-log.md).

    Args:
        length: Numbers of x and of z.
        width: Of the hidden layer.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(length))
        self.register_buffer("deviation", torch.ones(()))
        self.first, self.second = nn.Linear(length, width), nn.Linear(width, length)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def measure(self, vectors: Float[Tensor, "picture length"]) -> None:
        """Take m and s from the vectors that it will be trained on."""
        self.mean.copy_(vectors.double().mean(dim=0))
        self.deviation.copy_(vectors.double().std(dim=0, correction=0).mean().clamp_min(1e-6))

    def forward(self, vectors: Float[Tensor, "picture length"]) -> Float[Tensor, "picture length"]:
        """Vectors of unit length, in float32 whatever the rest computes in."""
        with torch.autocast(vectors.device.type, enabled=False):
            hidden = F.gelu(self.first((vectors.float() - self.mean) / self.deviation))
            return F.normalize(vectors.float() + self.second(hidden), dim=-1)


class PictureTower(nn.Module):
    """A product's vector is unit(the mean of what the head makes of its pictures), on both sides of a pair.

    Args:
        spec: What it is.
    """

    lookup_tables: ClassVar[frozenset[str]] = frozenset()
    learning_rate_factors: ClassVar[dict[str, float]] = {}

    def __init__(self, spec: PictureTowerSpec) -> None:
        super().__init__()
        self.head = PictureHead(spec.length, spec.width)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(spec.temperature)))
        self.max_log_temperature = math.log(spec.max_temperature)
        self._keys = torch.zeros(0, dtype=torch.long)
        self._pictures = RaggedTensor(torch.zeros(0, spec.length), torch.zeros(0, dtype=torch.long))

    def read_pictures(self, keys: np.ndarray[Any, np.dtype[np.int64]], pictures: Ragged) -> None:
        """Say which pictures the products have whose keys batches will have; they stay in the CPU's memory.

        Args:
            keys: Of the products, sorted.
            pictures: The frozen vectors of each, in the same order.
        """
        self._keys = torch.from_numpy(keys)
        self._pictures = RaggedTensor(torch.from_numpy(pictures.values), torch.from_numpy(pictures.totals))

    def inputs(self, batch: PairBatch) -> RaggedTensor:
        """What of a batch the tower embeds: the pictures of the distinct products of both sides, by key."""
        return self._pictures_of(torch.unique(torch.cat([batch.query_item_key, batch.item_key])))

    def _pictures_of(self, keys: Int[Tensor, "item"]) -> RaggedTensor:
        device, wanted = keys.device, keys.cpu()
        rows = torch.searchsorted(self._keys, wanted).clamp(max=max(len(self._keys) - 1, 0))
        if not len(self._keys) or not torch.equal(self._keys[rows], wanted):
            raise ValueError("a batch has a product that the tower was not given: see PictureTower.read_pictures")
        found = self._pictures.take(rows)
        return RaggedTensor(found.values.to(device), found.counts.to(device))

    def forward(self, pictures: RaggedTensor) -> Float[Tensor, "item length"]:
        """Vectors of unit length of products; gradient flows to the head."""
        counts, made = pictures.counts, self.head(pictures.values)
        item = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        return F.normalize(made.new_zeros(len(counts), made.shape[1]).index_add(0, item, made), dim=-1)

    def sides(
        self, embedded: Float[Tensor, "item length"], batch: PairBatch
    ) -> tuple[Float[Tensor, "pair length"], Float[Tensor, "column length"]]:
        """The product that is each pair's query, and the batch's items: both just embedded."""
        keys = torch.cat([batch.query_item_key, batch.item_key])
        place = torch.unique(keys, return_inverse=True)[1]
        queries = len(batch.query_item_key)
        return embedded[place[:queries]], embedded[place[queries:]]

    def query_vectors(self, batch: PairBatch) -> Float[Tensor, "pair length"]:
        """The vector of the product that is each pair's query."""
        keys, place = torch.unique(batch.query_item_key, return_inverse=True)
        embedded: Tensor = self(self._pictures_of(keys))
        return embedded[place]

    def item_vectors(self, items: ItemBatch) -> Float[Tensor, "item length"]:
        """The vectors of products by their pictures."""
        embedded: Tensor = self(items[IMAGES.values.name])
        return embedded

    def temperature(self) -> Float[Tensor, ""]:
        """The scale of the cosine in the loss, learned, capped."""
        return self.log_temperature.clamp(max=self.max_log_temperature).exp()


@dataclass(frozen=True)
class PictureTowerSpec:
    """What one must know to read a picture tower's weights.

    Attributes:
        base: The frozen encoder whose vectors the head was trained on; it is applied to no other's.
        length: Numbers of a vector, before the head and after it.
        width: Of the head's hidden layer.
        max_images: Most pictures of a product.
        temperature: Scale of the cosine in the loss, to begin with.
        max_temperature: Its cap.
    """

    kind: ClassVar[str] = "picture_tower"

    base: str
    length: int
    width: int
    max_images: int
    temperature: float
    max_temperature: float

    @property
    def elements(self) -> tuple[SizedElement, ...]:
        """What the tower reads of an item."""
        return (IMAGES.sized(slots=self.max_images, length=self.length),)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> PictureTowerSpec:
        """The inverse of `to_json`."""
        return cls(**values)

    def build(self, *, seed: int = 1) -> PictureTower:
        """A tower of these sizes with fresh weights, the same for the same seed."""
        torch.manual_seed(seed)
        return PictureTower(self)
