"""What shoppers of the demo shop do: honest events that follow the true affinities, and the faults of a real log."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.demo_world.shop import BLOCKS, Floats, Ints, Items, Queries, Shop, generator, unit
from schemas.settings import DateSettings

TASTE = 0.3
"""Length of an engagement's own preference in each block, in log-odds."""
RARITY = 30.0
"""How many times rarer a query kind's last engagement is than its first."""
QUERY_ZIPF_EXPONENT = 0.3
DUPLICATE_SHARE, STRAY_SHARE = 0.01, 0.01
"""Of the log's rows: repeated deliveries; events that are late, in the future, or name something unknown."""
ANONYMOUS_SHARE, EVENTS_PER_USER = 0.15, 20

_CHUNK = 64  # queries at a time: their tables fit into a cache
_DAY = 86_400_000_000  # microseconds

Log = dict[str, NDArray[Any]]
"""Columns of events: event and user numbers (user -1 = unknown), event_ts in microseconds, ids, engagement."""


@dataclass(frozen=True)
class Events:
    """Events of one query kind: row of the query, row of the engagement, and whether new items are listed by then."""

    query: Ints
    engagement: Ints
    is_after_listing: NDArray[np.bool_]


def engagement_shares(count: int) -> NDArray[np.float64]:
    """Divide a query kind's events between engagements, most frequent first; the last is `RARITY` times rarer."""
    weights = RARITY ** -(np.arange(count) / max(1, count - 1))
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


def engagement_taste(seed: int, engagement: str) -> Floats:
    """Draw what an engagement prefers whatever the query: [64], added to a query's true vector."""
    rng = generator(seed, "taste", engagement)
    parts = [TASTE * unit(rng.standard_normal(dims)) for dims, _, _ in BLOCKS.values()]
    return np.concatenate([*parts, [0.0]]).astype(np.float32)


def make_log(shop: Shop, engagements: dict[str, list[str]], dates: DateSettings, count: int) -> Log:
    """Draw a log in order of time: honest events, some of them spoiled, some delivered twice.

    Args:
        shop: The shop.
        engagements: Query kind -> its engagements, most frequent first. Kinds get equal shares of the events.
        dates: The log window; new items are listed when its held-out part starts.
        count: Rows of the log.
    """
    duplicates = round(DUPLICATE_SHARE * count)
    sizes = np.diff(np.linspace(0, count - duplicates, len(engagements) + 1).astype(int))
    parts = [_honest(shop, kind, engagements[kind], dates, size) for kind, size in zip(engagements, sizes, strict=True)]
    log = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    rng = generator(shop.seed, "log")
    _spoil(log, dates, rng, round(STRAY_SHARE * count))
    user = rng.integers(max(1, count // EVENTS_PER_USER), size=len(log["event_ts"]))
    user[rng.random(len(user)) < ANONYMOUS_SHARE] = -1
    order = np.argsort(log["event_ts"], kind="stable")
    event = np.arange(len(order))
    delivered = np.sort(np.concatenate([event, rng.choice(event, duplicates, replace=False)]))
    return {"event": delivered} | {name: column[order[delivered]] for name, column in (log | {"user": user}).items()}


def _honest(shop: Shop, kind: str, engagements: list[str], dates: DateSettings, count: int) -> Log:
    """Draw events of one query kind; some queries are asked more often than others."""
    rng, queries = generator(shop.seed, "events", kind), shop.queries[kind]
    asked = np.arange(1, len(queries.ids) + 1) ** -QUERY_ZIPF_EXPONENT
    query = rng.choice(len(asked), size=count, p=asked / asked.sum())
    engagement = rng.choice(len(engagements), size=count, p=engagement_shares(len(engagements)))
    start, listed, end = (_microseconds(when) for when in (dates.train_start, dates.test_start, dates.end))
    event_ts = rng.integers(start, end, size=count)
    taste = np.stack([engagement_taste(shop.seed, name) for name in engagements])
    item = sample_items(rng, queries, shop.items, taste, Events(query, engagement, event_ts >= listed))
    return {
        "event_ts": event_ts,
        "query_id": np.array(queries.ids, dtype=object)[query],
        "item_id": np.array(shop.items.ids, dtype=object)[item],
        "engagement": np.array(engagements, dtype=object)[engagement],
    }


def _spoil(log: Log, dates: DateSettings, rng: np.random.Generator, count: int) -> None:
    """Make `count` events late, future, or strangers to the catalog or to the queries, a quarter each."""
    late, future, no_item, no_query = np.array_split(rng.permutation(len(log["event_ts"]))[:count], 4)
    log["event_ts"][late] = _microseconds(dates.train_start) - rng.integers(1, 30 * _DAY, size=len(late))
    log["event_ts"][future] = _microseconds(dates.end) + rng.integers(0, 3 * _DAY, size=len(future))
    log["item_id"][no_item] = [f"OLD-{number:06d}" for number in rng.integers(1_000_000, size=len(no_item))]
    log["query_id"][no_query] = [f"old-{number:06d}" for number in rng.integers(1_000_000, size=len(no_query))]


def _microseconds(when: datetime) -> int:
    return int(when.timestamp()) * 1_000_000


def sample_items(rng: np.random.Generator, queries: Queries, items: Items, taste: Floats, events: Events) -> Ints:
    """Draw each event's item with probability proportional to exp(affinity) among those that can be engaged.

    A draw from the affinity without taste is kept with probability exp(taste - largest taste), which gives the same
    distribution as a table per engagement at a fraction of the work. The item that the query shows is never drawn, nor
    a new item before it is listed.

    Args:
        rng: The random stream.
        queries: The kind's queries.
        items: The catalog.
        taste: Each engagement's taste, [engagement, 64].
        events: The events.

    Returns:
        The row of each event's item.
    """
    catalog = items.true_vectors
    keep = taste @ catalog.T
    keep = np.exp(keep - keep.max(axis=1, keepdims=True))
    item = np.full(len(events.query), -1)
    order = np.argsort(events.query, kind="stable")
    firsts = np.arange(0, len(queries.ids), _CHUNK)
    bounds = np.searchsorted(events.query[order], [*firsts, len(queries.ids)])
    for first, start, stop in zip(firsts, bounds, bounds[1:], strict=False):
        cumulative = _cumulative(queries, catalog, slice(first, first + _CHUNK))
        pending = order[start:stop]
        while len(pending):
            row = events.query[pending] - first
            drawn = np.searchsorted(cumulative, row + rng.random(len(pending)), side="right") - row * len(catalog)
            drawn = np.minimum(drawn, len(catalog) - 1)
            is_kept = rng.random(len(pending)) < keep[events.engagement[pending], drawn]
            is_kept &= events.is_after_listing[pending] | ~items.is_new[drawn]
            item[pending[is_kept]] = drawn[is_kept]
            pending = pending[~is_kept]
    return item


def _cumulative(queries: Queries, catalog: Floats, rows: slice) -> NDArray[np.float64]:
    """Sum up probabilities over all items, query after query: the r-th query's run from r to r + 1."""
    affinity = queries.true_vectors[rows] @ catalog.T
    shown = queries.items[rows]
    affinity[shown >= 0, shown[shown >= 0]] = -np.inf
    affinity -= affinity.max(axis=1, keepdims=True)
    cumulative = np.cumsum(np.exp(affinity, out=affinity), axis=1, dtype=np.float64)
    cumulative /= cumulative[:, -1:]
    cumulative += np.arange(len(cumulative))[:, None]
    return cumulative.ravel()
