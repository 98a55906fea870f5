"""What the home surface finds of what users take next, beside popularity and the closeup of their last item.

    python -m experiments.home_surface --set-earlier warehouse.uri=./earlier --set-earlier dates.as_of=2011-11-01 \
        --set-earlier dates.train_days=296 --set warehouse.uri=./online-retail-warehouse

Both are warehouses of Online Retail that `itemsage run` has filled with these settings, one of them up to an earlier
day. What the surface does is chosen on the test window of the earlier warehouse, and measured once on the other's.
A pair is a user who took something before the window, and a distinct item that the user took in it. Two slices: all
pairs, and those of items that are new to the user; there all three systems leave the user's own items out.

Users are held out in time: what they took in the window was seen by no model, what they took before it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from itemsage_model.evaluation.intervals import bootstrap
from retrieval.home import Engaged, HomeSettings, search_home
from schemas.cells import to_matrix
from schemas.published import live
from schemas.settings import Settings, load_settings
from schemas.storage import read_columns

K = 10
CHOSEN_ON = 400
"""Most users that settings are chosen on, evenly picked."""

_START = HomeSettings(recent_items=100, half_life_days=90.0, max_distance=0.9, max_interests=10, sharpness=10.0)
"""What the choice starts from: clusters as PinnerSage has them."""

Ranked = list[str]


@dataclass(frozen=True)
class User:
    """A user of the test window.

    Attributes:
        engaged: What the user took before it.
        taken: Distinct items taken in it.
    """

    engaged: tuple[Engaged, ...]
    taken: frozenset[str]

    @property
    def own(self) -> frozenset[str]:
        """Items that are not new to the user."""
        return frozenset(one.item_id for one in self.engaged)


@dataclass(frozen=True)
class Found:
    """Hits of `ExactIndex`."""

    item_ids: npt.NDArray[Any]
    scores: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ExactIndex:
    """Every item's score: a catalog of some thousand needs no other index."""

    ids: npt.NDArray[Any]
    vectors: npt.NDArray[np.float32]

    def search(self, vectors: npt.NDArray[np.float32], k: int, where: Any = None) -> Found:
        """The k nearest items of each vector, exactly."""
        assert where is None
        scores = vectors @ self.vectors.T
        order = np.argpartition(-scores, k, axis=1)[:, :k] if k < len(self.ids) else np.argsort(-scores, axis=1)
        order = np.take_along_axis(order, np.argsort(-np.take_along_axis(scores, order, 1), axis=1, kind="stable"), 1)
        return Found(self.ids[order], np.take_along_axis(scores, order, axis=1))


@dataclass(frozen=True, eq=False)
class World:
    """A published warehouse and its users.

    Attributes:
        index: Over item_embeddings.
        embeddings: item_id -> its embedding.
        closeups: item_id -> the vector of its closeup query.
        users: Those of the test window.
        popular: Number of the last days of training, 0 = all, -> items by how many baskets had them.
    """

    index: ExactIndex
    embeddings: dict[str, npt.NDArray[np.float32]]
    closeups: dict[str, npt.NDArray[np.float32]]
    users: list[User]
    popular: dict[int, Ranked]


def load_world(settings: Settings) -> World:
    """Read what is published, and the users' baskets."""
    published, dates = live(settings.layout), settings.dates
    assert published is not None, f"nothing is published in {settings.warehouse.uri}"
    items = pa.Table.from_batches(list(published.items(["item_id", "embedding"])))
    queries = pa.Table.from_batches(list(published.queries(["query_id", "query_vector"])))
    shown = read_columns(settings.table_uri("queries"), None, ["query_id", "query_item_id"])
    item_of = dict(zip(shown["query_id"].to_pylist(), shown["query_item_id"].to_pylist(), strict=True))
    ids, vectors = np.array(items["item_id"].to_pylist(), object), to_matrix(items["embedding"])
    closeups = {
        item_of[query_id]: vector
        for query_id, vector in zip(queries["query_id"].to_pylist(), to_matrix(queries["query_vector"]), strict=True)
    }
    log = read_columns(settings.table_uri("engagement_logs"), None, ["event_ts", "user_id", "item_id", "engagement"])
    baskets = (
        pl.DataFrame(pl.from_arrow(log))
        .filter((pl.col("engagement") == "checkout") & pl.col("item_id").is_in(list(ids)))
        .unique(["event_ts", "user_id", "item_id"])
        .sort("event_ts", "user_id", "item_id")
    )
    test_start, train_end = dates.test_start, dates.train_end
    popular = {}
    for days in (0, 28):
        since = train_end - pl.duration(days=days) if days else pl.lit(dates.train_start)
        counted = baskets.filter((pl.col("event_ts") >= since) & (pl.col("event_ts") < train_end))
        popular[days] = (
            counted.group_by("item_id").len().sort(["len", "item_id"], descending=[True, False])["item_id"].to_list()
        )
    known = baskets.filter(pl.col("user_id").is_not_null() & (pl.col("event_ts") < dates.end))
    users = []
    for (_,), rows in sorted(known.group_by("user_id"), key=lambda group: str(group[0][0])):
        before, after = rows.filter(pl.col("event_ts") < test_start), rows.filter(pl.col("event_ts") >= test_start)
        if len(before) and len(after):
            ages = [(test_start - moment).total_seconds() / 86_400 for moment in before["event_ts"]]
            engaged = tuple(Engaged(item, age) for item, age in zip(before["item_id"], ages, strict=True))
            users.append(User(engaged, frozenset(after["item_id"])))
    return World(ExactIndex(ids, vectors), dict(zip(ids, vectors, strict=True)), closeups, users, popular)


def home(world: World, user: User, how: HomeSettings, by_closeup: bool) -> Ranked:
    """The home surface."""
    query_of = world.closeups.get if by_closeup else None
    return [one.item_id for one in search_home(world.index, user.engaged, world.embeddings, K, how, query_of)]


def last_closeup(world: World, user: User, leave_out: bool) -> Ranked:
    """The closeup of the item taken last; of a basket the one that sorts first, as the log has no order in it."""
    last = min(user.engaged, key=lambda one: (one.age_days, one.item_id)).item_id
    own = user.own if leave_out else frozenset({last})
    found = world.index.search(world.closeups[last][None], K + len(own)).item_ids[0]
    return [item for item in found if item not in own][:K]


def popularity(world: World, user: User, days: int, leave_out: bool) -> Ranked:
    """What was in most baskets."""
    own = user.own if leave_out else frozenset()
    return [item for item in world.popular[days][: K + len(own)] if item not in own][:K]


def hits(world: World, ranked: Callable[[User], Ranked], is_new: bool) -> list[list[bool]]:
    """Of each user, which of the taken items, sorted, were found; of items that are new to the user, or of all."""
    found = []
    for user in world.users:
        wanted = sorted(user.taken - user.own if is_new else user.taken)
        shown = set(ranked(user)) if wanted else set()
        found.append([item in shown for item in wanted])
    return found


def recall(found: list[list[bool]]) -> float:
    """Share of all pairs that were found."""
    return float(np.mean([hit for user in found for hit in user]))


def choose(world: World, is_new: bool) -> tuple[HomeSettings, bool, int]:
    """Settings of the home surface, whether it asks by closeup vectors, and days of popularity: the best there."""
    some = replace(world, users=world.users[:: -(-len(world.users) // CHOSEN_ON)])
    windows = {
        one: recall(hits(world, partial(popularity, world, days=one, leave_out=is_new), is_new)) for one in (0, 28)
    }
    days = max(windows, key=windows.__getitem__)
    best: tuple[float, HomeSettings, bool] | None = None
    how, by_closeup = replace(_START, leave_out_engaged=is_new), True
    grid: Sequence[tuple[str, Sequence[Any]]] = (
        ("max_distance", (0.0, 0.6, 0.9, 1.2, 1.6, 100.0)),
        ("sharpness", (0.1, 3.0, 10.0, 30.0)),
        ("half_life_days", (7.0, 30.0, 90.0, 1_000.0)),
        ("max_interests", (1, 3, 10, 30)),
        ("recent_items", (20, 50, 100, 400)),
        ("max_distance", (0.0, 0.6, 0.9, 1.2, 1.6, 100.0)),
    )
    # One setting after the other: each is small, and the optimum is flat.
    for name, values in grid:
        for value, asks in product(values, (True, False)):
            tried = replace(how, **{name: value})
            if best is not None and (tried, asks) == best[1:]:
                continue
            found = recall(hits(some, partial(home, world, how=tried, by_closeup=asks), is_new))
            if best is None or found > best[0]:
                best = (found, tried, asks)
        assert best is not None
        how, by_closeup = best[1], best[2]
        print(f"  {name}: {best[0]:.4f} with {how}, {'closeup' if by_closeup else 'item'} vectors", flush=True)
    return how, by_closeup, days


def report(world: World, is_new: bool, chosen: tuple[HomeSettings, bool, int]) -> list[str]:
    """A line a system, with 95 % intervals over users, and the differences of the home surface to the others."""
    how, by_closeup, days = chosen
    systems: dict[str, Callable[[User], Ranked]] = {
        "home": partial(home, world, how=how, by_closeup=by_closeup),
        "last-item closeup": partial(last_closeup, world, leave_out=is_new),
        "popularity": partial(popularity, world, days=days, leave_out=is_new),
    }
    found = [hits(world, ranked, is_new) for ranked in systems.values()]
    user = np.repeat(np.arange(len(world.users)), [len(one) for one in found[0]])
    values = np.array([[hit for one in each for hit in one] for each in found], float).T
    every = np.ones(len(user), bool)
    estimates = bootstrap(user, np.ones(len(user)), values, {"all": every})["all"]
    lines = [f"{'items new to the user' if is_new else 'all items'}: {len(user):,} pairs of {len(set(user)):,} users"]
    for name, value, (low, high) in zip(systems, estimates.values, estimates.intervals(), strict=True):
        lines.append(f"  {name:<20} recall@{K} {value:.4f} [{low:.4f}, {high:.4f}]")
    others = np.arange(1, len(systems))
    ends = estimates.differences(np.zeros(len(others), np.int64), others)
    for name, at, (low, high) in zip(list(systems)[1:], others, ends, strict=True):
        difference = estimates.values[0] - estimates.values[at]
        lines.append(f"  home minus {name}: {difference:+.4f} [{low:+.4f}, {high:+.4f}]")
    return lines


def main() -> None:
    """Choose on the earlier warehouse, measure on the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", default="examples/online_retail/settings.toml")
    parser.add_argument("--set", action="append", default=[], help="of the warehouse that is measured on")
    parser.add_argument("--set-earlier", action="append", default=[], help="of the earlier warehouse, chosen on")
    arguments = parser.parse_args()
    earlier = load_world(load_settings(arguments.settings, arguments.set_earlier))
    chosen = {is_new: choose(earlier, is_new) for is_new in (True, False)}
    world = load_world(load_settings(arguments.settings, arguments.set))
    for is_new, how in chosen.items():
        print(f"chosen: {how}")
        print("\n".join(["earlier window (chosen on it): ", *report(earlier, is_new, how)]))
        print("\n".join(["test window: ", *report(world, is_new, how)]), flush=True)


if __name__ == "__main__":
    main()
