"""Which items a step of the bucketed softmax encodes: chosen by the vectors that earlier steps left of all items."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from itemsage_model.data.batch import Buckets, ItemBatch, PairBatch
from itemsage_model.encoders.tower import Tower
from itemsage_model.training import distributed
from itemsage_model.training.masks import first_rows
from schemas.settings import LossSettings, TrainSettings
from schemas.tables import EMBEDDING_DIM

_ENCODED_TOGETHER = 1_024
_OF_PAIRS = ("positive", "query_embedding", "query_key", "query_item_key", "pair_weight", "task")


class ItemMemory:
    """Vectors of all items from earlier steps, and what a step compares with what, chosen by them.

    The queries of a batch are parted: some drawn at random are seeds, and each goes to the nearest. A bucket's items are,
    one half, those nearest to the mean of its queries, and, the other half, one drawn from each of as many parts of all
    the rest. So the former are in with certainty, and the latter with one over the size of their part.

    Each rank has its own memory and its own buckets. All draws follow from seed, step and rank. Every `checkpoint_every`
    steps the memory is filled anew with the weights as they are, so that a run resumed from a checkpoint, which does not
    hold the memory, chooses the same items as one that goes on.

    Args:
        loss: Number of buckets, and of the items of one.
        train: Seed, and how often the memory is filled.
    """

    def __init__(self, loss: LossSettings, train: TrainSettings) -> None:
        self._buckets, self._items = loss.buckets, loss.bucket_items
        self._seed, self._fill_every = train.seed, train.checkpoint_every
        self._vectors, self._encoded = torch.empty(0, EMBEDDING_DIM), torch.empty(0, dtype=torch.long)

    @torch.no_grad()
    def narrowed(self, batch: PairBatch, tower: Tower, step: int) -> PairBatch:
        """The batch with the items that this step encodes: its positives and those of its buckets.

        Args:
            batch: This rank's pairs, with all items.
            tower: Embeds items, and knows the query vectors.
            step: Steps taken.
        """
        is_training = tower.training
        tower.eval()
        if step % self._fill_every == 0 or not len(self._vectors):
            self._vectors = _embedded(batch.items, tower)
        keys, query_of_pair = torch.unique(batch.query_key, return_inverse=True)
        queries = _query_vectors(batch, first_rows(batch.query_key, keys), tower)
        tower.train(is_training)
        draw = np.random.default_rng([self._seed, step, distributed.rank()])
        bucket_of_query, centres = _parted(queries, self._buckets, draw)
        entries, log_probability = _chosen(centres @ self._vectors.T, self._items, draw)
        self._encoded = torch.unique(torch.cat([entries.flatten(), batch.positive]))
        entries = torch.searchsorted(self._encoded, entries)
        drawn = torch.unique(entries[:, entries.shape[1] // 2 :])
        return replace(
            batch,
            items=batch.items.take(self._encoded),
            item_key=batch.item_key[self._encoded],
            positive=torch.searchsorted(self._encoded, batch.positive),
            negatives=drawn[:: len(entries)],
            buckets=Buckets(bucket_of_query[query_of_pair], entries, log_probability),
        )

    def keep(self, embedded: Float[Tensor, "encoded dim"]) -> None:
        """Remember the vectors of the items of the batch that `narrowed` returned last."""
        self._vectors[self._encoded] = embedded.detach().to(self._vectors.dtype)


def _embedded(items: ItemBatch, tower: Tower) -> Float[Tensor, "item dim"]:
    """Vectors of all items, as the weights are now."""
    rows = torch.arange(len(items), device=next(iter(items.elements.values())).counts.device)
    return torch.cat([tower(items.take(some)).float() for some in rows.split(_ENCODED_TOGETHER)])


def _query_vectors(batch: PairBatch, rows: Int[Tensor, "query"], tower: Tower) -> Float[Tensor, "query dim"]:
    """Vectors of the queries of some pairs."""
    some = replace(batch, **{name: getattr(batch, name)[rows] for name in _OF_PAIRS})
    return tower.sides(torch.empty(0, EMBEDDING_DIM, device=rows.device), some)[0]


def _parted(
    queries: Float[Tensor, "query dim"], most: int, draw: np.random.Generator
) -> tuple[Int[Tensor, "query"], Float[Tensor, "bucket dim"]]:
    """The bucket of each query, and the mean direction of each bucket's queries."""
    drawn = torch.from_numpy(draw.permutation(len(queries))[:most]).to(queries.device)
    # A batch whose rows all have weight 0 is empty, and has an empty bucket.
    seeds = queries[drawn] if len(queries) else torch.zeros(1, queries.shape[1], device=queries.device)
    nearest = (queries @ seeds.T).argmax(dim=1)
    sums = torch.zeros(len(seeds), queries.shape[1], device=queries.device).index_add(0, nearest, queries)
    return nearest, F.normalize(sums, dim=1)


def _chosen(
    scores: Float[Tensor, "bucket item"], count: int, draw: np.random.Generator
) -> tuple[Int[Tensor, "bucket entry"], Float[Tensor, "bucket entry"]]:
    """The items of each bucket, the nearest before the drawn, and the log probability that each is there."""
    buckets, items = scores.shape
    count = min(count, items)
    near = count // 2
    hard = scores.topk(near, dim=1).indices.sort(dim=1).values
    parts = count - near
    bounds = torch.arange(parts + 1, device=scores.device) * (items - near) // parts
    sizes = bounds.diff()
    uniform = torch.from_numpy(draw.random((buckets, parts))).to(scores.device)
    rest = bounds[:-1] + (uniform * sizes).long()
    # The n-th item that is not hard: after as many hard ones as lie before it.
    before = torch.arange(near, device=scores.device)
    drawn = rest + torch.searchsorted(hard - before, rest, right=True)
    log_probability = torch.cat([torch.zeros(near, device=scores.device), -sizes.to(scores.dtype).log()])
    return torch.cat([hard, drawn], dim=1), log_probability.expand(buckets, -1)
