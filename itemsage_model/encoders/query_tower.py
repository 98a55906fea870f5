"""The query tower: a text -> its vector, against a small network over the frozen vectors of items; and its spec.

Source: SearchSage (Pancha, Zhai, Rosenberg and Leskovec 2021, Pinterest Engineering): texts through a transformer on
the one side, on the other what is known of a pin through a small network; a softmax over the items of a batch.
Differs from the paper: the other side has the mean of an item's images and its frozen text in the place of PinSage.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from itemsage_model.data.batch import ItemBatch, PairBatch, RaggedTensor
from itemsage_model.encoders.text_transformer import TextSpec, TextTransformer, by_length
from schemas.elements import FROZEN_TEXT, IMAGES, SizedElement
from schemas.tables import EMBEDDING_DIM

_MOST_BYTES = 1 << 30
_HEAD_RATE = 20.0
"""How much faster the new parts learn than the transformer, which is trained already."""


@dataclass(frozen=True)
class QueryTowerSpec:
    """What one must know to read a query tower's weights, and what its vectors may be compared with.

    Attributes:
        text: The transformer's sizes and tokenizer.
        base: What the weights began with: the name of a frozen encoder; "scratch" = with nothing.
        item_space: Embedding space of the items' frozen texts, to which the other side was fitted.
        is_one_space: Whether the base's vectors are of that space: items then begin as their frozen texts.
        image_length: Numbers of an image vector.
        max_images: Most images of an item.
        item_width: Width of the network over an item's frozen vectors.
        trainable_layers: Of the transformer, the last so many; -1 = all of it.
        temperature: Scale of the cosine in the loss, to begin with.
        max_temperature: Its cap.
        hard_negatives: From how many items near a text a hard negative was drawn in training; 0 = none was.
    """

    kind: ClassVar[str] = "query_tower"

    text: TextSpec
    base: str
    item_space: str
    is_one_space: bool
    image_length: int
    max_images: int
    item_width: int
    trainable_layers: int
    temperature: float
    max_temperature: float
    hard_negatives: int = 0

    @property
    def elements(self) -> tuple[SizedElement, ...]:
        """What the tower reads of an item: vectors alone, so that nobody compares the hash over all of its features."""
        return (
            IMAGES.sized(slots=self.max_images, length=self.image_length),
            FROZEN_TEXT.sized(slots=1, length=EMBEDDING_DIM),
        )

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> QueryTowerSpec:
        """The inverse of `to_json`."""
        return cls(**(values | {"text": TextSpec(**values["text"])}))

    def build(self, *, seed: int = 1) -> QueryTower:
        """A tower with fresh weights, the same for the same seed."""
        torch.manual_seed(seed)
        return QueryTower(self)


@dataclass(frozen=True)
class TextBatch:
    """Distinct texts, in parts of like length.

    Attributes:
        tokens: Token ids of each part [text, token], or what the layers that do not learn made of them.
        masks: 1 where a token stands [text, token].
        place: Where each distinct text's vector stands, once those of the parts are laid end to end.
    """

    tokens: list[Shaped[Tensor, "text token ..."]]
    masks: list[Int[Tensor, "text token"]]
    place: Int[Tensor, "distinct"]


class QueryTower(nn.Module):
    """Texts through a transformer, items through a small network over their frozen vectors.

    Each distinct text of a batch is encoded once, its token ids are made once a run: see `read_texts`.
    """

    lookup_tables: ClassVar[frozenset[str]] = frozenset()
    learning_rate_factors: ClassVar[dict[str, float]] = dict.fromkeys(
        (
            "log_temperature", "text.projection.weight", "text.projection.bias", "item.no_image", "item.no_text",
            "item.hidden.weight", "item.hidden.bias", "item.output.weight", "item.output.bias",
        ), _HEAD_RATE,
    )  # fmt: skip

    def __init__(self, spec: QueryTowerSpec) -> None:
        super().__init__()
        self.text = TextTransformer(spec.text)
        self.text.freeze_below(spec.trainable_layers)
        self.item = ItemSide(spec.image_length, spec.item_width, is_residual=spec.is_one_space)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(spec.temperature)))
        self.max_log_temperature = math.log(spec.max_temperature)
        self._keys, self._texts = torch.zeros(0, dtype=torch.long), _ragged([])
        self._lower: Tensor | None = None

    def read_texts(self, keys: npt.NDArray[np.int64], token_ids: list[list[int]]) -> None:
        """Say what the texts are whose keys batches will have; call it once the weights are those to begin with.

        What the layers that do not learn make of the texts is kept where it fits into 1 GB, so that a step computes the
        others alone.

        Args:
            keys: Of the texts, distinct.
            token_ids: Of each text.
        """
        order = np.argsort(keys, kind="stable")
        self._keys = torch.from_numpy(keys[order])
        self._texts = _ragged([token_ids[row] for row in order])
        self._lower = None
        width = self.text.projection.in_features
        if 4 * width * len(self._texts.values) <= _MOST_BYTES and self.text.can_go_on_from_lower():
            self._lower = torch.empty(len(self._texts.values), width)
            starts = (self._texts.counts.cumsum(0) - self._texts.counts).tolist()
            ids = torch.split(self._texts.values, self._texts.counts.tolist())
            for rows, padded, mask in by_length(ids):
                for row, hidden, length in zip(rows, self.text.lower(padded, mask), mask.sum(dim=1), strict=True):
                    self._lower[starts[row] : starts[row] + int(length)] = hidden[: int(length)]

    def forward(self, inputs: TextBatch) -> Float[Tensor, "distinct dim"]:
        """Vectors of unit length of the distinct texts, in the order of their keys."""
        parts = [self.text(tokens, mask) for tokens, mask in zip(inputs.tokens, inputs.masks, strict=True)]
        return torch.cat(parts)[inputs.place]

    def inputs(self, batch: PairBatch) -> TextBatch:
        """What of a batch the tower embeds: its distinct texts, in the order of their keys."""
        device = batch.query_key.device
        keys = torch.unique(batch.query_key).cpu()
        rows = torch.searchsorted(self._keys, keys).clamp(max=max(len(self._keys) - 1, 0))
        if not len(self._keys) or not torch.equal(self._keys[rows], keys):
            raise ValueError("a batch has a text that the tower was not given: see QueryTower.read_texts")
        values = self._texts.values if self._lower is None else self._lower
        found = RaggedTensor(values, self._texts.counts).take(rows)
        parts = list(by_length(torch.split(found.values, found.counts.tolist())))
        place = torch.empty(len(keys), dtype=torch.long)
        place[torch.tensor([row for rows, _, _ in parts for row in rows])] = torch.arange(len(keys))
        tokens, masks = [one.to(device) for _, one, _ in parts], [mask.to(device) for _, _, mask in parts]
        return TextBatch(tokens, masks, place.to(device))

    def sides(
        self, embedded: Float[Tensor, "distinct dim"], batch: PairBatch
    ) -> tuple[Float[Tensor, "pair dim"], Float[Tensor, "item dim"]]:
        """The vector of each pair's text, just embedded, and of each item."""
        of_pair = torch.unique(batch.query_key, return_inverse=True)[1]
        return embedded[of_pair], self.item_vectors(batch.items)

    def query_vectors(self, batch: PairBatch) -> Float[Tensor, "pair dim"]:
        """The vector of each pair's text."""
        of_pair = torch.unique(batch.query_key, return_inverse=True)[1]
        embedded: Tensor = self(self.inputs(batch))
        return embedded[of_pair]

    def item_vectors(self, items: ItemBatch) -> Float[Tensor, "item dim"]:
        """The vector of each item."""
        embedded: Tensor = self.item(items)
        return embedded

    def temperature(self) -> Float[Tensor, ""]:
        """The scale of the cosine in the loss, learned, capped."""
        return self.log_temperature.clamp(max=self.max_log_temperature).exp()


class ItemSide(nn.Module):
    """unit(t + MLP(mean image, t)) of an item's frozen text t; MLP alone where texts lie in another space than queries.

    Assumed: one hidden layer with GELU, which ends at zero where it is added, so that training starts at the frozen
    vectors. What an item lacks has a learned vector in its place.
    """

    def __init__(self, image_length: int, width: int, *, is_residual: bool) -> None:
        super().__init__()
        self.is_residual = is_residual
        self.no_image = nn.Parameter(torch.randn(image_length) / math.sqrt(image_length))
        self.no_text = nn.Parameter(torch.randn(EMBEDDING_DIM) / math.sqrt(EMBEDDING_DIM))
        self.hidden = nn.Linear(image_length + EMBEDDING_DIM, width)
        self.output = nn.Linear(width, EMBEDDING_DIM)
        if is_residual:
            nn.init.zeros_(self.output.weight)
            nn.init.zeros_(self.output.bias)

    def forward(self, items: ItemBatch) -> Float[Tensor, "item dim"]:
        """Embed items; unit length."""
        images = F.normalize(_means(items[IMAGES.values.name]), dim=-1)
        texts = _means(items[FROZEN_TEXT.values.name])
        images = torch.where((items[IMAGES.values.name].counts > 0)[:, None], images, self.no_image)
        texts = torch.where((items[FROZEN_TEXT.values.name].counts > 0)[:, None], texts, self.no_text)
        found = self.output(F.gelu(self.hidden(torch.cat([images, texts], dim=1))))
        return F.normalize(texts + found if self.is_residual else found, dim=-1)


def _means(vectors: RaggedTensor) -> Float[Tensor, "item length"]:
    """The mean of each item's vectors; zero where it has none."""
    counts = vectors.counts
    item = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    sums = torch.zeros(len(counts), vectors.values.shape[1], device=counts.device)
    return sums.index_add(0, item, vectors.values.float()) / counts.clamp_min(1)[:, None]


def _ragged(lists: list[list[int]]) -> RaggedTensor:
    values = torch.tensor([value for one in lists for value in one], dtype=torch.long)
    return RaggedTensor(values, torch.tensor([len(one) for one in lists], dtype=torch.long))
