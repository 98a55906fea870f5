"""From the two sides of a rank's batch to its loss: gather the items of all ranks, count, correct, compare.

The few lines that join gathering, frequencies and loss; each of those lives in its own file.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from itemsage_model.data.batch import PairBatch
from itemsage_model.training import distributed
from itemsage_model.training.frequency import CountMinSketch, ExactFrequency, log_inclusion_probability
from itemsage_model.training.loss import (
    Bucket,
    Columns,
    OwnColumn,
    bucketed_losses,
    distillation_losses,
    pair_losses,
    weighted_mean,
)
from itemsage_model.training.masks import first_rows, same_item_mask, same_query_mask
from schemas.elements import FROZEN_TEXT
from schemas.settings import LossSettings

_DISTILLED_QUERIES, _DISTILLED_ITEMS = 2_048, 1_024
"""Most of a batch that are compared with the frozen vectors: more say no more, and cost time."""


class Objective(nn.Module):
    """The loss of a batch over all ranks, with the frequencies that its correction needs.

    Args:
        settings: Form of the loss, masks.
        frequency: Item frequencies among the batches' pairs.
        sampled_share: Share of the catalog that is drawn as random negatives of one batch.
    """

    def __init__(
        self,
        settings: LossSettings,
        frequency: CountMinSketch | ExactFrequency,
        sampled_share: float,
    ) -> None:
        super().__init__()
        self.settings, self.frequency, self.sampled_share = settings, frequency, sampled_share

    def forward(
        self,
        queries: Float[Tensor, "pair dim"],
        items: Float[Tensor, "encoded dim"],
        batch: PairBatch,
        temperature: Float[Tensor, ""],
    ) -> tuple[Float[Tensor, "pair"], Float[Tensor, ""]]:
        """Compute the losses of this rank's pairs, and its part of the mean over all ranks.

        With loss.prefixes, the mean counts the same loss of the first n numbers of both sides too, brought to unit
        length.

        Source of that: Matryoshka representation learning (Kusupati et al. 2022, arXiv 2205.13147). Differs from the
        paper, which has one length. Assumed: one temperature for all lengths. Without a query adapter the first
        numbers of a query are those of its frozen vector, which cannot adapt.

        Args:
            queries: Vector of each pair's query.
            items: Vectors of `batch.items`. Gradient flows to both; see `Tower.sides`.
            batch: This rank's batch.
            temperature: Scale of the cosine.

        Returns:
            The loss of each pair by all numbers, without gradient, and the scalar to differentiate (see
            `loss.weighted_mean`).
        """
        if self.settings.form not in ("full", "bucketed"):
            self.frequency.update(distributed.gather_rows(batch.item_key[batch.positive]))
        losses = self._losses(queries, items, batch, temperature)
        with_prefixes = losses
        for length in self.settings.prefixes:
            short_queries, short_items = (F.normalize(side[:, :length], dim=-1) for side in (queries, items))
            short = self._losses(short_queries, short_items, batch, temperature)
            with_prefixes = with_prefixes + self.settings.prefix_weight * short
        weight_sum = distributed.sum_over_ranks(batch.pair_weight.sum())
        mean = weighted_mean(with_prefixes, batch.pair_weight, weight_sum, distributed.world_size())
        if self.settings.distillation:
            mean = mean + self.settings.distillation * self._distillation(queries, items, batch)
        return losses.detach(), mean

    def _losses(self, queries: Tensor, items: Tensor, batch: PairBatch, temperature: Tensor) -> Tensor:
        """The loss of each pair by vectors of any length."""
        if self.settings.form == "bucketed":
            return self._bucketed_losses(queries, items, batch, temperature)
        all_vectors = distributed.gather_rows_with_gradient(items)
        if self.settings.form == "full":
            return self._full_losses(queries, all_vectors, batch, temperature)
        all_keys = distributed.gather_rows(batch.item_key)
        positive, in_batch = self._in_batch(all_vectors, all_keys, batch)
        if batch.explicit is not None:
            own = OwnColumn(items[batch.explicit.item], batch.explicit.weight.log())
            in_batch = replace(in_batch, own=own)
        negatives = self._negatives(all_vectors, all_keys, batch)
        return pair_losses(queries, positive, in_batch, negatives, temperature, self.settings.form)

    def _distillation(self, queries: Tensor, items: Tensor, batch: PairBatch) -> Tensor:
        """Mean divergence of this rank's queries from the frozen ranking of some items, each query once.

        The items are the random negatives, or evenly spaced ones of the catalog, or of those of the buckets, from
        another start each time.
        """
        keys = torch.unique(batch.query_key)
        rows = first_rows(batch.query_key, keys)[:_DISTILLED_QUERIES]
        texts = batch.items[FROZEN_TEXT.values.name]
        chosen = batch.negatives
        if self.settings.form == "full":
            chosen = torch.arange(len(items), device=items.device)
        if self.settings.form in ("full", "bucketed"):
            spacing = max(1, len(chosen) // _DISTILLED_ITEMS)
            start = int(batch.query_key[:1].sum()) % spacing
            chosen = chosen[start::spacing]
        has_text = texts.counts > 0
        chosen = chosen[has_text[chosen]]
        if not len(chosen) or not len(rows):
            return items.sum() * 0
        frozen = texts.values[has_text.cumsum(0)[chosen] - 1].float()
        frozen_queries = batch.query_embedding[rows].float()
        scale = self.settings.distillation_scale
        return distillation_losses(queries[rows], items[chosen], frozen_queries, frozen, scale).mean()

    def _in_batch(self, all_vectors: Tensor, all_keys: Tensor, batch: PairBatch) -> tuple[Tensor, Columns]:
        """Column of each pair's item, and the distinct items of all ranks' pairs."""
        pair_keys = batch.item_key[batch.positive]
        all_pair_keys = distributed.gather_rows(pair_keys)
        keys, all_positive, counts = torch.unique(all_pair_keys, return_inverse=True, return_counts=True)
        share = self.frequency.share(keys)
        literal = self.settings.form == "literal"
        # Rows of weight 0 are left out of a batch, so its size varies.
        draws = max(len(all_pair_keys), 1)
        log_probability = share.log() if literal else log_inclusion_probability(share, draws)
        mask = self._query_item_mask(batch.query_item_key, keys)
        if self.settings.mask_same_query:
            all_queries = distributed.gather_rows(batch.query_key)
            mask |= same_query_mask(batch.query_key, all_queries, all_positive, len(keys))
        candidates = Columns(all_vectors[first_rows(all_keys, keys)], log_probability, mask, counts)
        return torch.searchsorted(keys, pair_keys), candidates

    def _negatives(self, all_vectors: Tensor, all_keys: Tensor, batch: PairBatch) -> Columns | None:
        """The distinct random negatives of all ranks; never the row's own item."""
        keys = torch.unique(distributed.gather_rows(batch.item_key[batch.negatives]))
        if not len(keys):
            return None
        log_probability = torch.full((len(keys),), math.log(self.sampled_share), device=keys.device)
        mask = self._query_item_mask(batch.query_item_key, keys) | same_item_mask(batch.item_key[batch.positive], keys)
        return Columns(all_vectors[first_rows(all_keys, keys)], log_probability, mask)

    def _full_losses(self, pair_queries: Tensor, all_vectors: Tensor, batch: PairBatch, temperature: Tensor) -> Tensor:
        """Against every item, each query of the batch once.

        A query's other positives stay in the denominator, as in any multinomial likelihood. A row's explicit negative
        counts in it beside what it counts as a column; it is gathered with the catalog, so no rank waits for another.
        """
        queries, query_of_pair = torch.unique(batch.query_key, return_inverse=True)
        first = first_rows(batch.query_key, queries)
        certain = torch.zeros(len(batch.item_key), device=all_vectors.device)
        mask = self._query_item_mask(batch.query_item_key[first], batch.item_key)
        own = None
        if batch.explicit is not None:
            mask |= ~batch.explicit.is_column
            own = OwnColumn(all_vectors[batch.explicit.item], batch.explicit.weight.log())
        catalog = Columns(all_vectors, certain, mask, own=own)
        return pair_losses(pair_queries[first], batch.positive, catalog, None, temperature, "full", query_of_pair)

    def _bucketed_losses(self, pair_queries: Tensor, items: Tensor, batch: PairBatch, temperature: Tensor) -> Tensor:
        """Each query of the batch once, against the items of its bucket on this rank, and its own positives."""
        assert batch.buckets is not None, "the trainer lets an ItemMemory choose the items"
        queries, query_of_pair = torch.unique(batch.query_key, return_inverse=True)
        first = first_rows(batch.query_key, queries)
        shown = batch.query_item_key[first]
        buckets = []
        for number, entries in enumerate(batch.buckets.items):
            rows = (batch.buckets.of_pair[first] == number).nonzero().squeeze(1)
            place = torch.full((len(items),), -1, device=items.device)
            place[entries] = torch.arange(len(entries), device=items.device)
            own = place[batch.positive]
            is_in = own >= 0
            mask = same_query_mask(queries[rows], batch.query_key[is_in], own[is_in], len(entries))
            mask |= self._query_item_mask(shown[rows], batch.item_key[entries])
            columns = Columns(items[entries], batch.buckets.log_probability[number], mask)
            buckets.append(Bucket(rows, columns))
        is_shown = (batch.item_key[batch.positive] == batch.query_item_key) & self.settings.mask_query_item
        return bucketed_losses(
            pair_queries[first], items, batch.positive, query_of_pair, is_shown, buckets, temperature
        )

    def _query_item_mask(self, shown: Int[Tensor, "row"], keys: Int[Tensor, "column"]) -> Tensor:
        return same_item_mask(shown if self.settings.mask_query_item else torch.zeros_like(shown), keys)
