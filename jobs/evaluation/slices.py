"""Which held-out pairs belong together: by how often training has seen their item, and by what the item has."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from jobs.evaluation.compared import Candidates

Chosen = npt.NDArray[np.bool_]

MOST_CATEGORIES = 10
_SHARE_NAMES = ("head", "middle", "tail")


def slices_of(candidates: Candidates, positive: npt.NDArray[np.int64], slice_by: str = "") -> dict[str, Chosen]:
    """Name -> the pairs of each slice that has any [pair].

    Args:
        candidates: What is known of the items.
        positive: Position of each pair's item among them [pair].
        slice_by: The text feature whose values are `candidates.category`.
    """
    counts = candidates.engagement_count
    third = engagement_thirds(counts)[positive]
    found = {"all": np.ones(len(positive), bool), "unseen": counts[positive] == 0, "seen": counts[positive] > 0}
    found |= {name: third == place for place, name in enumerate(_SHARE_NAMES)}
    for name, has in (("images", candidates.has_images[positive]), ("text", candidates.has_text[positive])):
        if has.any() and not has.all():
            found |= {f"with_{name}": has, f"without_{name}": ~has}
    if candidates.category is not None:
        category = candidates.category[positive]
        values, pairs = np.unique(category[category != ""], return_counts=True)
        most = values[np.argsort(-pairs, kind="stable")[:MOST_CATEGORIES]]
        found |= {f"{slice_by}={value}": category == value for value in most}
    return {name: chosen for name, chosen in found.items() if chosen.any()}


def engagement_thirds(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """0 for the most engaged items that have a third of all engagements, 1 and 2 for the next thirds, -1 for unseen.

    An item belongs to the third in which its first engagement falls, all items laid end to end, the most engaged first.

    Args:
        counts: Training engagements of each item [item].
    """
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    third = np.empty(len(counts), np.int64)
    third[order] = 3 * before // max(int(counts.sum()), 1)
    third[counts == 0] = -1
    return third
