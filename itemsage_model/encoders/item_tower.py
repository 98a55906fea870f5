"""The item tower: an item's elements -> its embedding; with the temperature that the loss learns; and its spec."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from itemsage_model.data.batch import ItemBatch, PairBatch, RaggedTensor
from itemsage_model.encoders.encoder import Encoder, Fold, Tokens
from itemsage_model.encoders.hash_embedding import HashEmbedding
from itemsage_model.encoders.identity import KeyIdentity
from itemsage_model.encoders.query_adapter import QueryAdapter
from itemsage_model.encoders.residual import Residual
from itemsage_model.encoders.tower import Tower
from schemas.elements import FROZEN_TEXT, TEXT, SizedElement
from schemas.settings import FeatureSettings, LossSettings, ModelSettings, item_elements
from schemas.tables import EMBEDDING_DIM

ITEM_ID = "item_id"
"""The name of an item's identity in model.sequence; it is no element, as it has no cell but the column item_key."""


class ItemTower(nn.Module):
    """The parts of an item's sequence through the encoder to a unit-length embedding; the residual path around it.

    Parts: hash embeddings of the texts, frozen image vectors, the frozen vector of the text, the item's identity.
    Missing images and empty texts are masked. `missing = "zeros"` attends to their zero vectors instead.
    Assumed: which of the two; the paper does not say.
    Differs from the paper: frozen text, identity, residual path and query adapter, all of them off by default.

    Args:
        settings: Sizes.
        loss: Start and cap of the temperature.
        elements: What a batch holds of an item; those that settings.sequence names enter the sequence.
        task_kinds: Query kind of each task, in the order of the tasks; only the query adapter asks.
        trained_items: How many items have training pairs; only the item identity asks.
        trained_queries: How many queries have; only the query identity asks.
    """

    lookup_tables: ClassVar[frozenset[str]] = frozenset(
        {"hash_embedding.table", "hash_embedding.importance", "item_identity.table", "query_adapter.identity.table"}
    )
    unseen_pull: Tensor
    learning_rate_factors: ClassVar[dict[str, float]] = {
        "residual.alpha": 10.0, "residual.gamma": 10.0, "query_adapter.beta": 10.0,
    }  # fmt: skip

    def __init__(
        self,
        settings: ModelSettings,
        loss: LossSettings,
        elements: Sequence[SizedElement],
        task_kinds: Sequence[str] = (),
        trained_items: int = 0,
        trained_queries: int = 0,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.max_log_temperature = math.log(loss.max_temperature)
        sized = {element.element.name: element for element in elements}
        self.elements: dict[str, SizedElement] = {name: sized[name] for name in settings.sequence if name != ITEM_ID}
        if TEXT.name in self.elements:
            text = self.elements[TEXT.name]
            self.hash_embedding = HashEmbedding(text.id_count, settings.hash_rows, text.length, settings.hash_functions)
        self.encoder = _encoder(settings, self.elements) if settings.sequence else None
        self.log_temperature = nn.Parameter(torch.tensor(math.log(loss.temperature)))
        # The paper's tower has none of these; they come last so that a seed gives it the weights it always gave.
        self.item_identity = (
            KeyIdentity(settings.id_rows, EMBEDDING_DIM, settings.id_dropout, trained_items)
            if settings.knows_items
            else None
        )
        self.residual = (
            Residual(
                EMBEDDING_DIM,
                has_tower=self.encoder is not None,
                has_map=settings.item_map,
                has_identity=settings.item_vector,
            )
            if settings.residual
            else None
        )
        self.query_adapter = make_query_adapter(settings, task_kinds, trained_queries)
        if self.item_identity is not None:
            self.register_buffer("unseen_pull", torch.zeros(EMBEDDING_DIM))
        if self.item_identity is not None and settings.item_vector:
            nn.init.zeros_(self.item_identity.table)  # training starts at the frozen vectors

    def forward(self, items: ItemBatch, fold: Fold | None = None) -> Float[Tensor, "item dim"]:
        """Embed items; unit length. `fold` may hold the encoder's constants, where the weights are frozen."""
        embeddings: Tensor | None = None if self.encoder is None else self.encoder(self._sequence(items), fold)
        if self.residual is not None:
            texts = items[FROZEN_TEXT.values.name]
            frozen = Tokens(texts.values.float(), texts.counts[:, None] > 0)
            embeddings = self.residual(frozen.padded()[:, 0], frozen.is_present[:, 0], embeddings, self._vectors(items))
        assert embeddings is not None, "the settings refuse a tower with neither a sequence nor a residual path"
        if self.item_identity is None or self.training:
            return embeddings
        assert items.item_key is not None
        is_seen = self.item_identity.is_present(items.item_key)
        return torch.where(is_seen[:, None], embeddings, F.normalize(embeddings + self.unseen_pull, dim=-1))

    def fold(self) -> Fold | None:
        """The encoder's constants, to pass to `forward` while the weights are frozen; None where there are none."""
        return self.encoder.fold() if self.encoder is not None and len(self.encoder.blocks) == 1 else None

    def remember(self, item_key: Int[Tensor, "item"], query_key: Int[Tensor, "query"] | None = None) -> None:
        """Say which items and which queries have training pairs: they, and no others, have an identity."""
        if self.item_identity is not None:
            self.item_identity.remember(item_key)
        if self.query_adapter is not None and self.query_adapter.identity is not None and query_key is not None:
            self.query_adapter.identity.remember(query_key)

    def pull_unseen(self, pull: Float[Tensor, "dim"]) -> None:
        """What is added to the embeddings of items without training pairs, once training is over.

        Items that are sold lie nearer to all queries than those that nobody could buy yet. A pull towards the mean
        query evens that out, as far as the one who calls wants it; see `training.validation`.
        """
        if self.item_identity is not None:
            self.unseen_pull.copy_(pull)

    def in_precision(self, dtype: torch.dtype) -> ItemTower:
        """This tower with its encoder and tables in `dtype`; maps of frozen vectors stay in float32."""
        for part in (self.hash_embedding if TEXT.name in self.elements else None, self.item_identity, self.encoder):
            if part is not None:
                part.to(dtype)
        return self

    def inputs(self, batch: PairBatch) -> ItemBatch:
        """What of a batch the tower embeds: its items."""
        return batch.items

    def sides(
        self, embedded: Float[Tensor, "item dim"], batch: PairBatch
    ) -> tuple[Float[Tensor, "pair dim"], Float[Tensor, "item dim"]]:
        """The query vector of each pair, frozen or adapted, and the items just embedded."""
        return self.query_vectors(batch), embedded

    def query_vectors(self, batch: PairBatch) -> Float[Tensor, "pair dim"]:
        """The query vector of each pair, frozen or adapted."""
        queries = batch.query_embedding.float()
        if self.query_adapter is not None:
            # Each query once: a large batch has it many times over.
            keys, of_pair = torch.unique(batch.query_key, return_inverse=True)
            pair = torch.zeros_like(keys).scatter_(0, of_pair, torch.arange(len(of_pair), device=keys.device))
            kind = self.query_adapter.kind_of_task[batch.task[pair]]
            queries = self.query_adapter(queries[pair], kind, keys)[of_pair]
        return queries

    def item_vectors(self, items: ItemBatch) -> Float[Tensor, "item dim"]:
        """The embedding of each item."""
        embedded: Tensor = self(items)
        return embedded

    def temperature(self) -> Float[Tensor, ""]:
        """The scale of the cosine in the loss, learned, capped."""
        return self.log_temperature.clamp(max=self.max_log_temperature).exp()

    def _sequence(self, items: ItemBatch) -> dict[str, Tokens]:
        """Each part of the sequence: its features and its mask."""
        sequence: dict[str, Tokens] = {
            name: (self._hashed if element.id_count else self._frozen)(items[element.key], element)
            for name, element in self.elements.items()
        }
        if self.item_identity is not None and not self.settings.item_vector:
            assert items.item_key is not None, "a tower with item_id in its sequence needs the items' keys"
            is_present = self.item_identity.is_present(items.item_key)
            vectors = self.item_identity(items.item_key[is_present])
            sequence[ITEM_ID] = Tokens(vectors.to(self._dtype()), is_present[:, None])
        return sequence

    def _vectors(self, items: ItemBatch) -> Float[Tensor, "item dim"] | None:
        """The vector beside tower and residual path that each item has as its own, zero where it has none."""
        if self.item_identity is None or not self.settings.item_vector:
            return None
        assert items.item_key is not None, "a tower with item vectors needs the items' keys"
        rows = self.item_identity.is_present(items.item_key).nonzero().squeeze(1)
        vectors = self.item_identity(items.item_key[rows])
        nothing = torch.zeros(len(items.item_key), EMBEDDING_DIM, device=vectors.device)
        return nothing.index_add(0, rows, vectors.float())

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
        assert self.encoder is not None
        cls = self.encoder.cls
        is_cast = torch.is_autocast_enabled(cls.device.type)
        return torch.get_autocast_dtype(cls.device.type) if is_cast else cls.dtype


def _encoder(settings: ModelSettings, elements: Mapping[str, SizedElement]) -> Encoder:
    """The encoder of a sequence: what an element has as length, and an identity as long as a text."""
    return Encoder(
        {name: elements[name].length if name in elements else EMBEDDING_DIM for name in settings.sequence},
        width=settings.width,
        layers=settings.layers,
        heads=settings.heads,
        feed_forward_width=settings.feed_forward_width,
        head_width=settings.head_width,
        dim=EMBEDDING_DIM,
    )


def make_query_adapter(settings: ModelSettings, task_kinds: Sequence[str], trained_queries: int) -> QueryAdapter | None:
    """The query adapter that the settings ask for, with fresh weights; None where they ask for none."""
    if not settings.query_adapter:
        return None
    rows = settings.query_id_rows
    identity = KeyIdentity(rows, EMBEDDING_DIM, settings.id_dropout, trained_queries) if rows else None
    return QueryAdapter(task_kinds, EMBEDDING_DIM, identity)


@dataclass(frozen=True)
class ItemTowerSpec:
    """What one must know to read an item tower's weights, and what its embeddings may be compared with.

    Attributes:
        model: Sizes of the tower.
        loss: The loss it was trained with.
        features: Text features and vocabulary limits.
        vocabulary_size: Number of token ids.
        embedding_spaces: Query kind -> frozen query space that the embeddings were fitted to.
        task_kinds: Query kind of each task that it was trained on, in the order of the tasks.
        trained_items: Number of items with training pairs.
        trained_queries: Number of queries with training pairs; 0 where the model has no identities of queries.
    """

    kind: ClassVar[str] = "item_tower"

    model: ModelSettings
    loss: LossSettings
    features: FeatureSettings
    vocabulary_size: int
    embedding_spaces: dict[str, str]
    task_kinds: tuple[str, ...] = ()
    trained_items: int = 0
    trained_queries: int = 0

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
            "task_kinds": list(self.task_kinds),
            "trained_items": self.trained_items,
            "trained_queries": self.trained_queries,
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
            # Absent in models of before version 0.3, which have neither query adapter nor identities.
            tuple(values.get("task_kinds", ())),
            int(values.get("trained_items", 0)),
            int(values.get("trained_queries", 0)),
        )

    def build(self, *, seed: int = 1) -> ItemTower:
        """A tower of these sizes with fresh weights, the same for the same seed."""
        torch.manual_seed(seed)
        return ItemTower(
            self.model, self.loss, self.elements, self.task_kinds, self.trained_items, self.trained_queries
        )


def parameter_counts(tower: Tower) -> dict[str, int]:
    """Number of weights of each part of the tower, and their `total`."""
    counts: dict[str, int] = {}
    for name, parameter in tower.named_parameters():
        part = {"hash_embedding": ".".join(name.split(".")[:2]), "encoder": ".".join(name.split(".")[:2])}
        key = part.get(name.split(".", maxsplit=1)[0], name)
        counts[key] = counts.get(key, 0) + parameter.numel()
    return counts | {"total": sum(counts.values())}
