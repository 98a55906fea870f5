"""The item tower: features of an item -> its embedding; and the learned temperature that the loss scales by."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from itemsage_model.data.batch import ItemBatch
from itemsage_model.encoders.encoder import Encoder, Fold, Tokens
from itemsage_model.encoders.hash_embedding import HashEmbedding
from schemas.settings import LossSettings, ModelSettings
from schemas.tables import EMBEDDING_DIM


class ItemTower(nn.Module):
    """Hash embeddings of the texts and frozen image vectors, through the encoder, to a unit-length embedding.

    Missing images and empty texts are masked. `missing = "zeros"` attends to their zero vectors instead, which is
    how the paper is remembered.

    Args:
        settings: Sizes.
        loss: Start and cap of the temperature.
        vocabulary_size: Number of token ids.
    """

    def __init__(self, settings: ModelSettings, loss: LossSettings, vocabulary_size: int) -> None:
        super().__init__()
        self.settings = settings
        self.max_log_temperature = math.log(loss.max_temperature)
        if "text" in settings.sequence:
            self.hash_embedding = HashEmbedding(
                vocabulary_size, settings.hash_rows, EMBEDDING_DIM, settings.hash_functions
            )
        self.encoder = Encoder(
            settings.sequence,
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
        sequence = {name: getattr(self, f"_{name}")(items) for name in self.settings.sequence}
        embeddings: Tensor = self.encoder(sequence, fold)
        return embeddings

    def temperature(self) -> Float[Tensor, ""]:
        """The scale of the cosine in the loss, learned, capped."""
        return self.log_temperature.clamp(max=self.max_log_temperature).exp()

    def _text(self, items: ItemBatch) -> Tokens:
        is_present = items.text_token_counts > 0
        if self.settings.missing == "zeros":
            is_present = torch.ones_like(is_present)
        texts = self.hash_embedding(items.text_token_ids, items.text_token_counts[is_present])
        return Tokens(texts.to(self._dtype()), is_present)

    def _images(self, items: ItemBatch) -> Tokens:
        slots = torch.arange(self.settings.max_images, device=items.image_counts.device)
        images = Tokens(items.image_embeddings.to(self._dtype()), slots < items.image_counts[:, None])
        if self.settings.missing == "zeros":
            return Tokens(images.padded().flatten(0, 1), torch.ones_like(images.is_present))
        return images

    def _dtype(self) -> torch.dtype:
        """What the encoder computes in. Autocast would convert every feature twice, to score it and to pool it."""
        cls = self.encoder.cls
        is_cast = torch.is_autocast_enabled(cls.device.type)
        return torch.get_autocast_dtype(cls.device.type) if is_cast else cls.dtype


def parameter_counts(tower: ItemTower) -> dict[str, int]:
    """Number of weights of each part of the tower, and their `total`."""
    counts: dict[str, int] = {}
    for name, parameter in tower.named_parameters():
        part = {"hash_embedding": ".".join(name.split(".")[:2]), "encoder": ".".join(name.split(".")[:2])}
        key = part.get(name.split(".", maxsplit=1)[0], name)
        counts[key] = counts.get(key, 0) + parameter.numel()
    return counts | {"total": sum(counts.values())}
