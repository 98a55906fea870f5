"""Batches to train the head over picture vectors on: pairs of products and shared random negatives, by their keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from itemsage_model.data.batch import ItemBatch, PairBatch
from itemsage_model.data.feature_cells import unpack_items
from itemsage_model.data.ragged import ItemRows
from itemsage_model.data.reader import CatalogItems, Pairs, RowFormat, RowStream
from schemas.elements import SizedElement
from schemas.picture_tables import PICTURE_FEATURES
from schemas.tables import ROW_CHECKSUM


def picture_format(pictures: SizedElement) -> RowFormat[CatalogItems]:
    """Rows of picture_features.

    Args:
        pictures: The vectors of a product, as the tower knows them.
    """

    def unpack(table: str, raw: pa.Table) -> CatalogItems:
        packed = unpack_items(table, {pictures.key: raw[pictures.key]}, [pictures])
        return CatalogItems(raw["item_key"].to_numpy(), ItemRows([packed], np.arange(len(packed))))

    return RowFormat(PICTURE_FEATURES, (*PICTURE_FEATURES.checksummed, ROW_CHECKSUM), unpack)


@dataclass(frozen=True)
class PictureBatches:
    """An endless iterable of one rank's batches, which hold keys: the tower knows whose pictures they are.

    Attributes:
        stream: The pairs.
        item_key: int64 [item], the products that negatives are drawn from.
        pair_count: Pairs of a batch.
        negative_count: Negatives of a batch.
        seed: Seed of the run; with rank and step it decides which negatives are drawn.
        start_step: Steps already taken by an earlier run.
    """

    stream: RowStream[Pairs]
    item_key: npt.NDArray[np.int64]
    pair_count: int
    negative_count: int
    seed: int
    start_step: int = 0

    def __iter__(self) -> Iterator[PairBatch]:
        blocks = self.stream.batches(self.pair_count, self.start_step * self.pair_count)
        for step, pairs in zip(count(self.start_step), blocks, strict=False):
            generator = np.random.default_rng((self.seed, self.stream.rank, step))
            drawn = self.item_key[generator.integers(len(self.item_key), size=self.negative_count)]
            keys, place = np.unique(np.concatenate([pairs.item_key, drawn]), return_inverse=True)
            yield PairBatch(
                items=ItemBatch({}),
                item_key=torch.from_numpy(keys),
                positive=torch.from_numpy(place[: len(pairs)]),
                negatives=torch.from_numpy(np.unique(place[len(pairs) :])),
                query_embedding=torch.from_numpy(pairs.query_embedding),
                query_key=torch.from_numpy(pairs.query_key),
                query_item_key=torch.from_numpy(pairs.query_item_key),
                pair_weight=torch.from_numpy(pairs.pair_weight),
                task=torch.zeros(len(pairs), dtype=torch.int64),
            )
