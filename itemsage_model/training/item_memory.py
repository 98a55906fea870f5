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

    The queries of a batch are parted: some drawn at random are seeds, and each goes to the nearest. For each bucket all
    items are sorted by how near they are to the mean of its queries, and cut into as many parts as a bucket has items;
    one is drawn from each part, and stands for all of it. A part ends where it has its share of the mass, half of which
    is the softmax of the mean query, and half the number of items: so the nearest items are parts by themselves, and
    there with certainty, and far away a part has up to twice as many items as all parts would have on average.

    Each rank has its own memory and its own buckets. All draws follow from seed, step and rank. Every
    `checkpoint_every` steps the memory is filled anew with the weights as they are, so that a run resumed from a
    checkpoint, which does not hold the memory, chooses the same items as one that goes on.

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
        logits = tower.temperature() * centres @ self._vectors.T
        entries, log_probability = _chosen(logits, self._items, draw)
        self._encoded = torch.unique(torch.cat([entries.flatten(), batch.positive]))
        entries = torch.searchsorted(self._encoded, entries)
        return replace(
            batch,
            items=batch.items.take(self._encoded),
            item_key=batch.item_key[self._encoded],
            positive=torch.searchsorted(self._encoded, batch.positive),
            negatives=torch.unique(entries),
            buckets=Buckets(bucket_of_query[query_of_pair], entries, log_probability),
        )

    def keep(self, embedded: Float[Tensor, "encoded dim"]) -> None:
        """Remember the vectors of the items of the batch that `narrowed` returned last."""
        self._vectors[self._encoded] = embedded.detach().to(self._vectors.dtype)


def _embedded(items: ItemBatch, tower: Tower) -> Float[Tensor, "item dim"]:
    """Vectors of all items, as the weights are now."""
    rows = torch.arange(len(items), device=next(iter(items.elements.values())).counts.device)
    starts = range(0, len(rows), _ENCODED_TOGETHER)
    return torch.cat([tower(items.take(rows[start : start + _ENCODED_TOGETHER])).float() for start in starts])


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
    logits: Float[Tensor, "bucket item"], count: int, draw: np.random.Generator
) -> tuple[Int[Tensor, "bucket entry"], Float[Tensor, "bucket entry"]]:
    """The items of each bucket, all different, and the log probability that each is there."""
    buckets, items = logits.shape
    count = min(count, items)
    ordered, order = logits.sort(dim=1, descending=True)
    mass = ordered.softmax(dim=1) + 1 / items
    number = torch.arange(count, device=logits.device)
    reached = ((number + 1) * (2 / count)).to(mass.dtype).expand(buckets, -1).contiguous()
    ends = torch.searchsorted(mass.cumsum(dim=1), reached) + 1
    # Every part has an item at least, and leaves one to each part behind it; the last one ends the catalog.
    ends = ((ends - number).cummax(dim=1).values + number).minimum(items - count + 1 + number)
    ends[:, -1] = items
    sizes = ends.diff(dim=1, prepend=ends.new_zeros(buckets, 1))
    uniform = torch.from_numpy(draw.random((buckets, count))).to(logits.device)
    return order.gather(1, ends - sizes + (uniform * sizes).long()), -sizes.float().log()
