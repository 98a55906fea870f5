"""The loss: a softmax of every pair's item against other items, in the published forms and a few since.

Pure: tensors in, numbers out. Rows are this rank's pairs. Columns are the DISTINCT items of the whole batch, over all
ranks: in a small catalog a batch holds an item many times, and what a softmax over the catalog needs is each item
once, divided by the probability that it is there at all.

Every form is a few [pair] operations on one primitive, the log of a sum over columns (`_LogSum`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

Form = Literal["sum", "literal", "mixed", "corrected", "full"]
"""See `pair_losses`; the same words as in the settings, which have "bucketed" besides: see `bucketed_losses`."""


@dataclass(frozen=True)
class OwnColumn:
    """One further column a row, which no other row sees: an explicit negative of the row's query.

    Attributes:
        vectors: Item vectors; gradient flows.
        log_weight: Log of how often the item counts in the row's denominator, beside what it counts there as a column
            of the sample; -inf = the row has none.
    """

    vectors: Float[Tensor, "pair dim"]
    log_weight: Float[Tensor, "pair"]


@dataclass(frozen=True)
class Columns:
    """Items that stand beside the positive in a softmax.

    Attributes:
        vectors: Item vectors, all different items; gradient flows.
        log_probability: Log probability that the item is in this sample at all: for in-batch items
            `frequency.log_inclusion_probability(share, pairs)`, for n random negatives out of C items log(n / C), for
            the whole catalog 0. For the form "literal", which counts copies one by one: the log of the item's share.
        is_masked: Columns that are no negative of the row: the query's other positives, the item it shows, and, in
            random negatives, the row's own item. The row's own in-batch column may be either; the loss knows it.
        counts: How often the item is in the sample; only "literal" reads it. None = once.
        own: Columns that only their own rows have, of the in-batch items alone; None = no row has one.
    """

    vectors: Float[Tensor, "column dim"]
    log_probability: Float[Tensor, "column"]
    is_masked: Bool[Tensor, "pair column"]
    counts: Int[Tensor, "column"] | None = None
    own: OwnColumn | None = None


def pair_losses(
    queries: Float[Tensor, "query dim"],
    positive: Int[Tensor, "pair"],
    in_batch: Columns,
    negatives: Columns | None,
    temperature: Float[Tensor, ""],
    form: Form,
    query_of_pair: Int[Tensor, "pair"] | None = None,
) -> Float[Tensor, "pair"]:
    """Compute the loss of every pair.

    With s_c = temperature <q, v_c>, p the row's positive, pi_c the probability that c is in its sample, and

        S_B = sum over in-batch c != p, unmasked, of exp(s_c) / pi_c        S_N = the same over random negatives

    (each estimates the sum over all items that could have been drawn, as Horvitz and Thompson 1952):

        sum        -log e^{s_p} / (e^{s_p} + S_B)  -  log e^{s_p} / (e^{s_p} + S_N)
        mixed      -log e^{s_p} / (e^{s_p} + S_B + S_N)
        corrected  sg(1 - P) (log S - s_p),  S = (S_B + S_N) / 2,  P = e^{s_p} / (e^{s_p} + S),  sg = stop-gradient
        literal    -log (e^{s_p} / Q_p) / (sum over the batch's pairs y of e^{s_y} / Q_y)
                   -log e^{s_p} / (sum over random negatives n of e^{s_n})
        full       -log e^{s_p} / (e^{s_p} + S_B), in_batch being the whole catalog, there with probability 1

    Without random negatives, S_N and its term are left out, and S = S_B. A row with a column of its own, n of weight w,
    has w e^{s_n} more in S_B, and in the first denominator of literal.

    Source: sum and literal: ItemSage eqs. 2 and 3; mixed: eq. 4; full: eq. 1; corrected: Khrylchenko et al. 2025
    (arXiv 2507.09331). The positive in both denominators and the masks follow the team's later released code.

    Differs from the paper: in all forms but literal, the positive is there with certainty and so is not corrected;
    copies of an item are merged; masks apply. Mixed differs from sum in nothing but the single denominator.
    Corrected has pi for the source's Q'(n) N (conditional share times draws). Its gradient is exactly that of
    -log P, so on each sample by itself it would repeat sum: it pools both samples, as the source does, and unlike
    mixed does not count the catalog twice. Its value is no log-likelihood and may be negative.

    Assumed: literal: random negatives are drawn uniformly, so that Q_n cancels out of eq. 3. A row's own column is
    there with certainty and so is not corrected; it comes on top: a weight of 1 doubles what the item counts in full.

    Args:
        queries: Query vectors; gradient flows.
        positive: Column of `in_batch` that holds each pair's item.
        in_batch: The batch's items over all ranks; for "full" the catalog.
        negatives: The random negatives over all ranks, or None.
        temperature: What the cosine is multiplied by; gradient flows.
        form: One of the above.
        query_of_pair: For "full": row of `queries` and of the mask that each pair has, where pairs share a query;
            None = a row each. Its denominator is the same for all pairs of a query, so one row a query is enough.

    Returns:
        Losses in nats, in the precision of `queries`, autocast or not.

    Raises:
        ValueError: "full" with random negatives, or another form with `query_of_pair`.
    """
    if form == "full" and negatives is not None:
        raise ValueError('loss.form = "full" has the catalog in its denominator and takes no random negatives')
    if form != "full" and query_of_pair is not None:
        raise ValueError(f"loss.form = {form!r} has a denominator for each pair and takes no query_of_pair")
    with torch.autocast(queries.device.type, enabled=False):
        scaled = queries * temperature
        if form == "full":
            return _full(scaled, positive, in_batch, query_of_pair)
        positive_logit = (scaled * in_batch.vectors[positive].to(scaled.dtype)).sum(dim=1)
        if form == "literal":
            return _literal(scaled, positive, positive_logit, in_batch, negatives)
        in_batch_sum = _log_sum(scaled, in_batch, -in_batch.log_probability, in_batch.is_masked, positive)
        log_sums = [_with_own(in_batch_sum, scaled, in_batch.own)]
        if negatives is not None:
            log_sums.append(_log_sum(scaled, negatives, -negatives.log_probability, negatives.is_masked))
        if form == "sum":
            # -log e^s / (e^s + S) = -logsigmoid(s - log S)
            return -torch.stack([F.logsigmoid(positive_logit - log_sum) for log_sum in log_sums]).sum(dim=0)
        log_sum = torch.stack(log_sums).logsumexp(dim=0)
        if form == "mixed":
            return -F.logsigmoid(positive_logit - log_sum)
        margin = log_sum - math.log(len(log_sums)) - positive_logit
        return margin.sigmoid().detach() * margin


@dataclass(frozen=True)
class Bucket:
    """Queries, and the items that they are compared with.

    Attributes:
        rows: The queries; each is in one bucket.
        columns: The items, with the probability with which each is in this bucket; masked for a row are the query's own
            positives, which `bucketed_losses` knows, and the item it shows.
    """

    rows: Int[Tensor, "row"]
    columns: Columns


def bucketed_losses(
    queries: Float[Tensor, "query dim"],
    items: Float[Tensor, "encoded dim"],
    positive: Int[Tensor, "pair"],
    query_of_pair: Int[Tensor, "pair"],
    is_shown: Bool[Tensor, "pair"],
    buckets: Sequence[Bucket],
    temperature: Float[Tensor, ""],
) -> Float[Tensor, "pair"]:
    """Compute the loss of every pair with a denominator of few items, which estimates that of "full".

    With s_c and pi_c as in `pair_losses`, O the distinct positives of the pair's query in the batch but for the item
    that the query shows, and p the pair's own:

        -log e^{s_p} / Z,   Z = sum over O + {p} of e^{s_c}  +  sum over unmasked c of the bucket of e^{s_c} / pi_c

    Items that are in with certainty, a query's positives and the ones near to its bucket, count once; the others stand
    for all those that were not drawn (Horvitz and Thompson 1952). Given the batch and the certain ones, Z is without
    bias, and with all items in the bucket it is that of "full"; its logarithm is a little too small on average.

    Differs from the paper: it has no such form. From scalable cross entropy (Mezentsev et al. 2024, arXiv 2409.18721)
    it has the buckets; there a query has only the near items, without what stands for the rest, and counts where it
    is among the nearest to a centre.

    Args:
        queries: Query vectors, each query once; gradient flows.
        items: Vectors of the encoded items; gradient flows.
        positive: Row of `items` that is each pair's item.
        query_of_pair: Row of `queries` that is each pair's query.
        is_shown: Pairs whose item is the one that the query shows: in no other pair's denominator.
        buckets: Every query is in exactly one.
        temperature: What the cosine is multiplied by; gradient flows.

    Returns:
        Losses in nats, in the precision of `queries`, autocast or not.
    """
    with torch.autocast(queries.device.type, enabled=False):
        scaled = queries * temperature
        parts = [
            _log_sum(scaled[bucket.rows], bucket.columns, -bucket.columns.log_probability, bucket.columns.is_masked)
            for bucket in buckets
        ]
        others = torch.cat(parts)[torch.cat([bucket.rows for bucket in buckets]).argsort()]
        logits = (scaled[query_of_pair] * items[positive].to(scaled.dtype)).sum(dim=1)
        log_sum = _with_positives(others, logits, positive, query_of_pair, is_shown)[query_of_pair]
        return torch.where(is_shown, torch.logaddexp(log_sum, logits), log_sum) - logits


def distillation_losses(
    queries: Float[Tensor, "row dim"],
    items: Float[Tensor, "column dim"],
    frozen_queries: Float[Tensor, "row dim"],
    frozen_items: Float[Tensor, "column dim"],
    scale: float,
) -> Float[Tensor, "row"]:
    """Compute how far each query's ranking of some items is from that of the frozen vectors.

    It is the Kullback-Leibler divergence

        sum over c of P_c (log P_c - log p_c),   P = softmax(scale <f_q, f_c>),   p = softmax(scale <q, v_c>)

    The items need no label, so those that nobody engages with keep the neighbours that the frozen encoder gave them.

    Differs from the paper: it has no such term (Hinton et al. 2015, arXiv 1503.02531). Assumed: one scale for both.

    Args:
        queries: Query vectors; gradient flows.
        items: Item vectors, in practice a random sample of the catalog; gradient flows.
        frozen_queries: The frozen encoder's vectors of the same queries.
        frozen_items: The frozen encoder's vectors of the same items.
        scale: What both cosines are multiplied by.
    """
    with torch.no_grad():
        target = (scale * frozen_queries @ frozen_items.T).log_softmax(dim=1)
    found = (scale * queries @ items.T).log_softmax(dim=1)
    return F.kl_div(found, target, reduction="none", log_target=True).sum(dim=1)


def weighted_mean(
    losses: Float[Tensor, "pair"],
    weights: Float[Tensor, "pair"],
    weight_sum: Float[Tensor, ""],
    ranks: int,
) -> Float[Tensor, ""]:
    """Compute one rank's part of the weighted mean over all ranks' pairs.

    Args:
        losses: Of this rank's pairs.
        weights: Weights of the same pairs.
        weight_sum: Sum of the weights over all ranks; 0 = no rank has a pair.
        ranks: Number of ranks. DDP averages gradients over ranks, and so the factor.

    Returns:
        `ranks * sum(weights * losses) / weight_sum`; its mean over ranks is the loss.
    """
    return (losses * weights).sum() * ranks / weight_sum.clamp_min(torch.finfo(weight_sum.dtype).tiny)


def _full(
    scaled: Float[Tensor, "query dim"],
    positive: Int[Tensor, "pair"],
    catalog: Columns,
    query_of_pair: Int[Tensor, "pair"] | None,
) -> Float[Tensor, "pair"]:
    """Equation 1: the positive is a column like any other, so one sum a query serves all of its pairs."""
    rows = torch.arange(len(scaled), device=scaled.device) if query_of_pair is None else query_of_pair
    positive_logit = (scaled[rows] * catalog.vectors[positive].to(scaled.dtype)).sum(dim=1)
    log_sum = _log_sum(scaled, catalog, -catalog.log_probability, catalog.is_masked)[rows]
    log_sum = _with_own(log_sum, scaled[rows], catalog.own)
    # A query may be followed by the very item it shows; only then is the positive not in the sum yet.
    is_missing = catalog.is_masked[rows, positive]
    return torch.where(is_missing, torch.logaddexp(log_sum, positive_logit), log_sum) - positive_logit


def _with_positives(
    log_sum: Float[Tensor, "query"],
    logits: Float[Tensor, "pair"],
    positive: Int[Tensor, "pair"],
    query_of_pair: Int[Tensor, "pair"],
    is_shown: Bool[Tensor, "pair"],
) -> Float[Tensor, "query"]:
    """The queries' sums with their pairs' items, each item once a query, however often the batch has the pair."""
    pairs = torch.stack([query_of_pair, positive], dim=1)
    _, place, counts = torch.unique(pairs, dim=0, return_inverse=True, return_counts=True)
    terms = logits - counts[place].to(logits.dtype).log()
    terms = terms.masked_fill(is_shown, -math.inf)
    highest = log_sum.detach().scatter_reduce(0, query_of_pair, terms.detach(), "amax")
    own = torch.zeros_like(log_sum).index_add(0, query_of_pair, (terms - highest[query_of_pair]).exp())
    return highest + ((log_sum - highest).exp() + own).log()


def _literal(
    scaled: Float[Tensor, "pair dim"],
    positive: Int[Tensor, "pair"],
    positive_logit: Float[Tensor, "pair"],
    in_batch: Columns,
    negatives: Columns | None,
) -> Float[Tensor, "pair"]:
    """Equations 2 and 3 as printed; a column that stands for n copies counts n times."""
    correction = -in_batch.log_probability.to(scaled.dtype)
    log_sum = _with_own(_log_sum(scaled, in_batch, correction + _log_counts(in_batch)), scaled, in_batch.own)
    losses = log_sum - positive_logit - correction[positive]
    if negatives is not None:
        losses = losses + _log_sum(scaled, negatives, _log_counts(negatives)) - positive_logit
    return losses


def _with_own(
    log_sum: Float[Tensor, "pair"], scaled: Float[Tensor, "pair dim"], own: OwnColumn | None
) -> Float[Tensor, "pair"]:
    """The sums with each row's own column."""
    if own is None:
        return log_sum
    logits = (scaled * own.vectors.to(scaled.dtype)).sum(dim=1)
    return torch.logaddexp(log_sum, logits + own.log_weight.to(scaled.dtype))


def _log_counts(candidates: Columns) -> Float[Tensor, "column"]:
    if candidates.counts is None:
        return torch.zeros_like(candidates.log_probability)
    return candidates.counts.to(candidates.log_probability.dtype).log()


def _log_sum(
    scaled: Float[Tensor, "pair dim"],
    candidates: Columns,
    offset: Float[Tensor, "column"],
    is_masked: Bool[Tensor, "pair column"] | None = None,
    positive: Int[Tensor, "pair"] | None = None,
) -> Float[Tensor, "pair"]:
    """Log of the sum over columns of exp(logit + offset), without masked columns and the positive.

    An empty sum gives the lowest finite number, not -inf: 0 times it is 0.
    """
    if not len(offset):
        return scaled.new_full((len(scaled),), torch.finfo(scaled.dtype).min)
    vectors = candidates.vectors.to(scaled.dtype)
    log_sum: Tensor = _LogSum.apply(  # type: ignore[no-untyped-call]
        scaled, vectors, offset.to(scaled.dtype), is_masked, positive
    )
    return log_sum


class _LogSum(torch.autograd.Function):
    """Log-sum-exp of `queries @ vectors.T + offset` over columns, with one [pair, column] matrix in all.

    The gradient of a log-sum-exp is the softmax, so the logits are turned into it in place and kept for backward.
    torch.logsumexp behind the masks needs three to four such matrices at its peak, and twice the time.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, vectors: Tensor, offset: Tensor, is_masked: Tensor | None, positive: Tensor | None
    ) -> Tensor:
        lowest = torch.finfo(queries.dtype).min
        logits = torch.addmm(offset, queries, vectors.T)
        if is_masked is not None:
            logits.masked_fill_(is_masked, lowest)
        if positive is not None:
            logits.scatter_(1, positive[:, None], lowest)
        highest = logits.amax(dim=1, keepdim=True)
        exponentials = logits.sub_(highest).exp_()
        sums = exponentials.sum(dim=1, keepdim=True)
        ctx.save_for_backward(queries, vectors, exponentials, sums)
        return (highest + sums.log()).squeeze(1)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        queries, vectors, exponentials, sums = ctx.saved_tensors
        # A row with every column masked has no gradient: what follows the empty sum is constant in it.
        scale = gradient[:, None] / sums
        return (exponentials @ vectors) * scale, exponentials.T @ (queries * scale), None, None, None
