"""The home surface: a user's recent items -> several queries, one an interest; their searches merged to one list.

A mean of all that a user took lies between interests and near to none of them. So the items are clustered, each cluster
is searched for by its medoid, an item that is really there, and counts for as much as its items are recent.

Source: PinnerSage (Pal et al., KDD 2020): Ward's clustering, medoids, importance = sum of exp(-decay x age).
Differs from PinnerSage: all interests are searched, not a sample of three, and scores are merged by a soft maximum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, linkage

Vectors = npt.NDArray[np.float32]


class Hits(Protocol):
    """What a search returns."""

    @property
    def item_ids(self) -> npt.NDArray[Any]:
        """Object [query, k]; None where fewer were found."""

    @property
    def scores(self) -> Vectors:
        """float32 [query, k]."""


class Index(Protocol):
    """Whatever searches vectors, such as retrieval.index."""

    def search(self, vectors: Vectors, k: int, where: Mapping[str, Sequence[Any]] | None = None) -> Hits:
        """The k items nearest to each vector [query, dim]."""


@dataclass(frozen=True)
class HomeSettings:
    """How a user's items become queries, and the answers one list.

    The defaults are what experiments/home_surface.py chose on an earlier window of Online Retail: there every recent
    item is an interest of its own. Clusters (max_distance 0.6, 10 interests) need a third of the searches, and find 5 %
    less; the medoid of a single cluster finds half.

    Attributes:
        recent_items: Distinct items of a user that count, the most recent ones.
        half_life_days: After so many days an item counts half.
        max_distance: Ward distance, between unit vectors, up to which clusters are merged; 0 = an item a cluster.
        max_interests: Most clusters that are searched for, the most important first.
        depth: Items asked for of each search; as many as the answer shall have, where these are more.
        sharpness: Of the soft maximum over interests; towards 0 it is their weighted mean.
        leave_out_engaged: Whether the user's own items are left out of the answer.
    """

    recent_items: int = 50
    half_life_days: float = 7.0
    max_distance: float = 0.0
    max_interests: int = 30
    depth: int = 100
    sharpness: float = 10.0
    leave_out_engaged: bool = True


@dataclass(frozen=True)
class Engaged:
    """One item that the user took.

    Attributes:
        item_id: Which.
        age_days: How long ago, in days; 0 = now, as is what lies ahead.
    """

    item_id: str
    age_days: float


@dataclass(frozen=True)
class Interest:
    """A cluster of a user's items.

    Attributes:
        medoid: The item that lies nearest to all of them, by which is searched.
        items: Its items, the most recent first.
        weight: Its share of the user's interest; those of all clusters add up to 1, before the last ones are cut off.
    """

    medoid: str
    items: tuple[str, ...]
    weight: float


class Answer(NamedTuple):
    """One item for the user, its score, and the medoid of the interest that speaks for it most."""

    item_id: str
    score: float
    because_of: str


def recent(engaged: Sequence[Engaged], most: int) -> list[Engaged]:
    """Each item once, at its most recent; the most recent first, ties by item_id, at most so many."""
    youngest: dict[str, float] = {}
    for one in engaged:
        # A clock that goes ahead of ours makes no item more than new.
        youngest[one.item_id] = min(max(one.age_days, 0.0), youngest.get(one.item_id, math.inf))
    ordered = sorted(youngest.items(), key=lambda entry: (entry[1], entry[0]))
    return [Engaged(item_id, age) for item_id, age in ordered[:most]]


def interests(engaged: Sequence[Engaged], vectors: Vectors, settings: HomeSettings) -> list[Interest]:
    """The user's interests, the most important first.

    Args:
        engaged: Distinct items, the most recent first, as `recent` returns them.
        vectors: Their embeddings, of unit length [item, dim].
        settings: How.

    Returns:
        At most `settings.max_interests`; the same for the same items, whatever else is asked.
    """
    if not engaged:
        return []
    cluster = _clusters(vectors, settings.max_distance)
    weights = np.exp2([-one.age_days / settings.half_life_days for one in engaged])
    # So old that all weights are zero: they are as interesting as each other.
    weights = weights / weights.sum() if weights.sum() > 0 else np.full(len(engaged), 1 / len(engaged))
    found = []
    for number in np.unique(cluster):
        (rows,) = np.nonzero(cluster == number)
        # Of unit vectors, the least sum of squared distances is the largest sum of products.
        near = vectors[rows].astype(np.float64) @ vectors[rows].sum(axis=0, dtype=np.float64)
        medoid = rows[int(np.argmax(np.round(near, 9)))]
        items = tuple(engaged[row].item_id for row in rows)
        found.append(Interest(engaged[medoid].item_id, items, float(weights[rows].sum())))
    found.sort(key=lambda interest: (-round(interest.weight, 12), interest.medoid))
    return found[: settings.max_interests]


def _clusters(vectors: Vectors, max_distance: float) -> npt.NDArray[np.int64]:
    """The number of each row's cluster: Ward's, merged as long as two are no farther apart."""
    if len(vectors) == 1 or max_distance <= 0:
        return np.arange(len(vectors))
    merges = linkage(vectors.astype(np.float64), method="ward")
    numbers: npt.NDArray[np.int64] = fcluster(merges, max_distance, criterion="distance").astype(np.int64)
    return numbers


def merge(found: Hits, asked: Sequence[Interest], left_out: Collection[str], k: int, sharpness: float) -> list[Answer]:
    """The answers of several searches as one list, each item once, the best first; ties by item_id.

    An item's score is ln(sum over interests of weight x exp(sharpness x score)) / sharpness: near the best of its
    scores, higher where several interests find it, and lower where the one that does matters little. A search that did
    not return it counts with the last score that it did return, which the item cannot exceed there.

    Args:
        found: What was found for each interest.
        asked: The interests, one a row of `found`.
        left_out: Items that are no answer.
        k: How many.
        sharpness: Above 0.
    """
    shares = np.array([interest.weight for interest in asked])
    shares = shares / shares.sum()
    places: dict[str, int] = {}
    for item_id in found.item_ids.ravel().tolist():
        if item_id is not None and item_id not in left_out:
            places.setdefault(item_id, len(places))
    if not places:
        return []
    finite = np.isfinite(found.scores)
    floors = np.where(finite, found.scores, np.inf).min(axis=1)
    # [interest, item], and one more column for what is left out
    scores = np.repeat(np.where(finite.any(axis=1), floors, -1.0)[:, None], len(places) + 1, axis=1).astype(np.float64)
    for row, ids in enumerate(found.item_ids.tolist()):
        scores[row, [places.get(item_id, -1) for item_id in ids]] = found.scores[row]
    with np.errstate(divide="ignore"):  # an interest so old that it weighs nothing
        each = np.log(shares)[:, None] + sharpness * scores[:, :-1]
    totals, best = np.logaddexp.reduce(each, axis=0) / sharpness, each.argmax(axis=0)
    answers = [
        Answer(item_id, float(total), asked[row].medoid)
        for item_id, total, row in zip(places, totals, best, strict=True)
    ]
    return sorted(answers, key=lambda answer: (-answer.score, answer.item_id))[:k]


def search_home(
    index: Index,
    engaged: Sequence[Engaged],
    embeddings: Mapping[str, Vectors],
    k: int,
    settings: HomeSettings | None = None,
    query_of: Callable[[str], Vectors | None] | None = None,
    where: Mapping[str, Sequence[Any]] | None = None,
) -> list[Answer]:
    """Items for a user's home page.

    Args:
        index: Searches item_embeddings.
        engaged: What the user took, in any order, with repetitions.
        embeddings: item_id -> its embedding; of other items nothing is known, and they are passed over.
        k: How many.
        settings: How; None = the defaults.
        query_of: item_id -> the vector to search with in its place, such as that of its closeup query in query_vectors;
            None, or where it returns None: the item's embedding.
        where: As of the index.

    Returns:
        At most k answers; none where no item of the user is known, as for a new user: popularity is then what is left.
    """
    how = settings or HomeSettings()
    known = recent([one for one in engaged if one.item_id in embeddings], how.recent_items)
    if not known:
        return []
    asked = interests(known, np.stack([embeddings[one.item_id] for one in known]), how)
    queries = [(query_of(one.medoid) if query_of else None, embeddings[one.medoid]) for one in asked]
    vectors = np.stack([item if query is None else query for query, item in queries])
    own = {one.item_id for one in engaged} if how.leave_out_engaged else set()
    found = index.search(vectors, max(how.depth, k) + len(own), where=where)
    return merge(found, asked, own, k, how.sharpness)
