"""The item tower: an item's elements -> its embedding; with the temperature that the loss learns; and its spec."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from itemsage_model.data.batch import ItemBatch, PairBatch, RaggedTensor
from itemsage_model.encoders.encoder import Encoder, Fold, Tokens
from itemsage_model.encoders.hash_embedding import HashEmbedding
from itemsage_model.encoders.tower import Tower
from schemas.elements import TEXT, SizedElement
from schemas.settings import FeatureSettings, LossSettings, ModelSettings, item_elements
from schemas.tables import EMBEDDING_DIM


class ItemTower(nn.Module):
    """Hash embeddings of the texts and frozen image vectors, through the encoder, to a unit-length embedding.

    Missing images and empty texts are masked. `missing = "zeros"` attends to their zero vectors instead.
    Assumed: which of the two; the paper does not say.

    Args:
        settings: Sizes.
        loss: Start and cap of the temperature.
        elements: What a batch holds of an item; those that settings.sequence names enter the sequence.
    """

    lookup_tables: ClassVar[frozenset[str]] = frozenset({"hash_embedding.table", "hash_embedding.importance"})

    def __init__(self, settings: ModelSettings, loss: LossSettings, elements: Sequence[SizedElement]) -> None:
        super().__init__()
        self.settings = settings
        self.max_log_temperature = math.log(loss.max_temperature)
        sized = {element.element.name: element for element in elements}
        self.elements = {name: sized[name] for name in settings.sequence}
        if TEXT.name in self.elements:
            text = self.elements[TEXT.name]
            self.hash_embedding = HashEmbedding(text.id_count, settings.hash_rows, text.length, settings.hash_functions)
        self.encoder = Encoder(
            {name: element.length for name, element in self.elements.items()},
            width=settings.width,
            layers=settings.layers,
            heads=settings.heads,
            feed_forward_width=settings.feed_forward_width,
            head_width=settings.head_width,
            dim=EMBEDDING_DIM,
        )
        self.log_temperature = nn.Parameter(torch.tensor(math.log(loss.temperature)))

    def forward(self, items: ItemBatch, fold: Fold | None = None) -> Float[Tensor, "item dim"]:
        """Embed items; unit length. `fold` may hold the encoder's constants, where the weights are frozen."""
        sequence = {
            name: (self._hashed if element.id_count else self._frozen)(items[element.key], element)
            for name, element in self.elements.items()
        }
        embeddings: Tensor = self.encoder(sequence, fold)
        return embeddings

    def inputs(self, batch: PairBatch) -> ItemBatch:
        """What of a batch the tower embeds: its items."""
        return batch.items

    def sides(
        self, embedded: Float[Tensor, "item dim"], batch: PairBatch
    ) -> tuple[Float[Tensor, "pair dim"], Float[Tensor, "item dim"]]:
        """The frozen query vector of each pair, and the items just embedded."""
        return batch.query_embedding.float(), embedded

    def temperature(self) -> Float[Tensor, ""]:
        """The scale of the cosine in the loss, learned, capped."""
        return self.log_temperature.clamp(max=self.max_log_temperature).exp()

    def _hashed(self, texts: RaggedTensor, element: SizedElement) -> Tokens:
        """Lists of token ids, a slot each, summed by the hash embedding."""
        del element
        is_present = texts.counts > 0
        if self.settings.missing == "zeros":
            is_present = torch.ones_like(is_present)
        vectors = self.hash_embedding(texts.values, texts.counts[is_present])
        return Tokens(vectors.to(self._dtype()), is_present)

    def _frozen(self, vectors: RaggedTensor, element: SizedElement) -> Tokens:
        """Frozen vectors, a slot each."""
        slots = torch.arange(element.slots, device=vectors.counts.device)
        tokens = Tokens(vectors.values.to(self._dtype()), slots < vectors.counts[:, None])
        if self.settings.missing == "zeros":
            return Tokens(tokens.padded().flatten(0, 1), torch.ones_like(tokens.is_present))
        return tokens

    def _dtype(self) -> torch.dtype:
        """What the encoder computes in. Autocast would convert every feature twice, to score it and to pool it."""
        cls = self.encoder.cls
        is_cast = torch.is_autocast_enabled(cls.device.type)
        return torch.get_autocast_dtype(cls.device.type) if is_cast else cls.dtype


@dataclass(frozen=True)
class ItemTowerSpec:
    """What one must know to read an item tower's weights, and what its embeddings may be compared with.

    Attributes:
        model: Sizes of the tower.
        loss: The loss it was trained with.
        features: Text features and vocabulary limits.
        vocabulary_size: Number of token ids.
        embedding_spaces: Query kind -> frozen query space that the embeddings were fitted to.
    """

    kind: ClassVar[str] = "item_tower"

    model: ModelSettings
    loss: LossSettings
    features: FeatureSettings
    vocabulary_size: int
    embedding_spaces: dict[str, str]

    @property
    def elements(self) -> tuple[SizedElement, ...]:
        """What an item is to the model, in the order of the columns."""
        return item_elements(self.model, self.features, self.vocabulary_size)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "model": self.model.model_dump(mode="json"),
            "loss": self.loss.model_dump(mode="json"),
            "features": self.features.model_dump(mode="json"),
            "vocabulary_size": self.vocabulary_size,
            "embedding_spaces": self.embedding_spaces,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ItemTowerSpec:
        """The inverse of `to_json`."""
        return cls(
            ModelSettings.model_validate(values["model"]),
            LossSettings.model_validate(values["loss"]),
            FeatureSettings.model_validate(values["features"]),
            int(values["vocabulary_size"]),
            dict(values["embedding_spaces"]),
        )

    def build(self, *, seed: int = 1) -> ItemTower:
        """A tower of these sizes with fresh weights, the same for the same seed."""
        torch.manual_seed(seed)
        return ItemTower(self.model, self.loss, self.elements)


def parameter_counts(tower: Tower) -> dict[str, int]:
    """Number of weights of each part of the tower, and their `total`."""
    counts: dict[str, int] = {}
    for name, parameter in tower.named_parameters():
        part = {"hash_embedding": ".".join(name.split(".")[:2]), "encoder": ".".join(name.split(".")[:2])}
        key = part.get(name.split(".", maxsplit=1)[0], name)
        counts[key] = counts.get(key, 0) + parameter.numel()
    return counts | {"total": sum(counts.values())}
