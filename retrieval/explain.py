"""Why an item is found: exact shares of each of its text features and images in its score with a query.

A share is the feature's Shapley value: what the score gains when the model sees the feature too, averaged over the
orders in which features could be shown to it. The shares and the score of an item with no feature at all add up to the
score, whatever the model does in between: it is asked with features masked as an item without them has them.

Source: Shapley values as shares of a prediction (Lundberg and Lee 2017); baseline = the model's own empty item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import factorial
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from itemsage_model.data.ragged import PackedItems, Ragged
from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.model_files import load_model
from itemsage_model.encoders.precision import Precision
from itemsage_model.serving.scorer import Scorer, unpack_rows
from schemas.elements import FEATURE_CELLS, FROZEN_TEXT, IMAGES, TEXT
from schemas.errors import InputError
from schemas.published import Published
from schemas.storage import read_batches
from schemas.tables import ITEM_FEATURES

MOST_FOR_ALL_SUBSETS = 10
"""Up to so many features all their subsets are asked for: 1,024. With more, the orders are drawn, and the shares, which
still add up to the score, are estimates of the mean over all orders."""

IDENTITY = "the item's own engagements"
_ORDERS = 64
_MOST_KEPT = 10_000
"""Items whose rows an explainer keeps."""
_TOLERANCE = 1e-4

Keep = npt.NDArray[np.bool_]
"""Which features an item is shown with [asked, feature]."""


@dataclass(frozen=True)
class Explanation:
    """A score and what it consists of: baseline + all shares = score, to rounding.

    Attributes:
        score: The dot product of query and item.
        baseline: That of the query and an item without any feature.
        shares: Feature -> its share, the largest first.
        is_complete: Whether all subsets of the features were asked for; else `_ORDERS` orders and their reverses.
    """

    score: float
    baseline: float
    shares: dict[str, float]
    is_complete: bool

    def lines(self) -> list[str]:
        """One line a share, the baseline, and their sum."""
        rows = [*self.shares.items(), ("any item without features", self.baseline), ("score", self.score)]
        return [f"{value:+.4f}  {name}" for name, value in rows]


@dataclass(frozen=True)
class _Feature:
    """One thing that can be masked.

    Attributes:
        name: What it is called.
        texts: Slots of the text features.
        images: Positions of images.
        has_frozen: Whether the frozen vector of the text goes with it.
        has_identity: Whether the item's identity does.
    """

    name: str
    texts: tuple[int, ...] = ()
    images: tuple[int, ...] = ()
    has_frozen: bool = False
    has_identity: bool = False


@dataclass(frozen=True, eq=False)
class Explainer:
    """What explains the scores of one published version.

    Attributes:
        published: The version.
        scorer: Its model.
        frozen_of: The text features that the frozen vector is made of, `query_encoder.item_text`.
    """

    published: Published
    scorer: Scorer
    frozen_of: Sequence[str]
    _rows: dict[str, tuple[pa.RecordBatch, npt.NDArray[np.float32]]] = field(default_factory=dict)

    @staticmethod
    def load(published: Published, frozen_of: Sequence[str]) -> Explainer:
        """Of a version, with the model that scored it.

        Raises:
            CheckpointError: the model's files are missing or damaged.
        """
        folder = f"{published.warehouse.models}/{published.metrics.model_id}"
        model = load_model(folder, ItemTowerSpec)
        precision = cast(Precision, published.metrics.precision)
        return Explainer(published, Scorer(model.weights, model.spec, precision=precision), frozen_of)

    def explain(self, item_ids: Sequence[str], query: npt.NDArray[np.float32]) -> list[Explanation]:
        """The shares in the scores of some published items; one pass over the tables finds all that are new.

        Args:
            item_ids: Which items.
            query: The vector that they are compared with, of unit length [dim].

        Raises:
            InputError: there is no such item, or the model does not make the vector that is published, as where a
                frozen vector took its place.
        """
        if len(self._rows) > _MOST_KEPT:
            self._rows.clear()
        self._read([item_id for item_id in item_ids if item_id not in self._rows])
        explained = []
        for item_id in item_ids:
            row, embedding = self._rows[item_id]
            found = explain_row(self.scorer, row, query, self.frozen_of)
            published = float(query.astype(np.float64) @ embedding)
            if abs(found.score - published) > _TOLERANCE:
                raise self._refusal(
                    item_id,
                    f"the score that its model gives its features, {found.score:.4f}",
                    f"{published:.4f}",
                    "Its vector is a frozen one (the floor), or its features were made anew: score the catalog again.",
                )
            explained.append(found)
        return explained

    def _read(self, item_ids: Sequence[str]) -> None:
        if not item_ids:
            return
        version = self.published.note["made_of"][ITEM_FEATURES.name]
        uri = self.published.warehouse.table(ITEM_FEATURES.name)
        rows = _only(read_batches(uri, version, ["item_id", "item_key", *FEATURE_CELLS]), item_ids)
        vectors = _only(self.published.items(["item_id", "embedding"]), item_ids)
        for item_id in item_ids:
            if item_id not in rows or item_id not in vectors:
                raise self._refusal(item_id, "an item of the version", "none", "Name an item_id of item_embeddings.")
            embedding = np.array(vectors[item_id].column("embedding")[0].as_py(), np.float32)
            self._rows[item_id] = rows[item_id], embedding

    def _refusal(self, item_id: str, expected: str, found: str, cure: str) -> InputError:
        subject = f"item_embeddings, version {self.published.version}"
        return InputError(subject, f"item {item_id}", expected=expected, found=found, cure=cure)


def explain_row(
    scorer: Scorer, row: pa.RecordBatch, query: npt.NDArray[np.float32], frozen_of: Sequence[str] = ()
) -> Explanation:
    """The shares in the score of one row of item_features.

    Args:
        scorer: The model.
        row: item_key and the feature cells of one item.
        query: The vector that it is compared with [dim].
        frozen_of: The text features that the frozen vector is made of. Where it is one, that feature is both; else the
            frozen vector is a feature of its own.
    """
    spec, packed = scorer.spec, unpack_rows(row, scorer.spec)
    key = int(row.column("item_key")[0].as_py())
    features = _features(scorer, packed, key, frozen_of)
    exact = query.astype(np.float64)

    def score(keep: Keep) -> npt.NDArray[np.float64]:
        scores = []
        for first in range(0, len(keep), scorer.rows_at_once):
            some = keep[first : first + scorer.rows_at_once]
            keys = None
            if spec.model.knows_items:
                has_identity = np.array([one.has_identity for one in features], bool)
                keys = np.where((some & has_identity).any(axis=1), key, _unknown_key(scorer))
            scores.append(scorer.score(_masked(packed, features, some), keys).astype(np.float64) @ exact)
        return np.concatenate(scores)

    shares, baseline, whole = _shapley(score, len(features))
    named = {one.name: float(share) for one, share in zip(features, shares, strict=True)}
    ordered = dict(sorted(named.items(), key=lambda entry: -entry[1]))
    return Explanation(whole, baseline, ordered, len(features) <= MOST_FOR_ALL_SUBSETS)


def _only(batches: Iterable[pa.RecordBatch], item_ids: Sequence[str]) -> dict[str, pa.RecordBatch]:
    """item_id -> its row, of those that are there."""
    wanted = pa.array(item_ids, pa.string())
    chosen = (batch.filter(pc.is_in(batch.column("item_id"), wanted)) for batch in batches)
    return {rows.column("item_id")[n].as_py(): rows.slice(n, 1) for rows in chosen for n in range(len(rows))}


def _features(scorer: Scorer, packed: PackedItems, key: int, frozen_of: Sequence[str]) -> list[_Feature]:
    """What the item has of what the model reads."""
    model, names = scorer.spec.model, scorer.spec.features.text_features
    reads_frozen = model.residual or FROZEN_TEXT.name in model.sequence
    has_frozen = reads_frozen and bool(packed[FROZEN_TEXT.values.name].totals[0])
    found: dict[str, _Feature] = {}
    if TEXT.name in model.sequence:
        counts = packed[TEXT.values.name].counts[0]
        found = {name: _Feature(name, texts=(slot,)) for slot, name in enumerate(names) if counts[slot]}
    if has_frozen:
        name = frozen_of[0] if len(frozen_of) == 1 else f"frozen text of {', '.join(frozen_of)}"
        found[name] = _Feature(name, found[name].texts if name in found else (), has_frozen=True)
    if IMAGES.name in model.sequence:
        count = min(int(packed[IMAGES.values.name].totals[0]), model.max_images)
        found |= {f"image {n}": _Feature(f"image {n}", images=(n,)) for n in range(count)}
    if model.knows_items and scorer.tower.item_identity.is_known(torch.tensor([key])).item():
        found[IDENTITY] = _Feature(IDENTITY, has_identity=True)
    return list(found.values())


def _unknown_key(scorer: Scorer) -> int:
    """A key that no item with an identity has."""
    tried = torch.arange(1, 1_000)
    return int(tried[~scorer.tower.item_identity.is_known(tried)][0])


def _masked(packed: PackedItems, features: Sequence[_Feature], keep: Keep) -> PackedItems:
    """The item once a row of `keep`, without the features that are not kept there."""
    elements = {}
    for name, ragged in packed.elements.items():
        slots = ragged.counts.shape[1] if ragged.counts.ndim == 2 else int(ragged.totals[0])
        lengths = ragged.counts[0] if ragged.counts.ndim == 2 else np.ones(slots, np.int64)
        kept = np.zeros((len(keep), slots), bool)
        for number, feature in enumerate(features):
            own = {TEXT.values.name: feature.texts, IMAGES.values.name: feature.images}.get(name, ())
            if name == FROZEN_TEXT.values.name and feature.has_frozen:
                own = tuple(range(slots))
            kept[:, list(own)] |= keep[:, [number]]
        rows = [np.flatnonzero(np.repeat(one, lengths)) for one in kept]
        counts = kept * lengths
        values = ragged.values[np.concatenate(rows)] if rows else ragged.values[:0]
        elements[name] = Ragged(
            values, (counts if ragged.counts.ndim == 2 else counts.sum(1)).astype(ragged.counts.dtype)
        )
    return PackedItems(elements)


def _shapley(
    score: Callable[[Keep], npt.NDArray[np.float64]], count: int
) -> tuple[npt.NDArray[np.float64], float, float]:
    """Each feature's share [feature], the score of none, and that of all."""
    if count <= MOST_FOR_ALL_SUBSETS:
        number = np.arange(1 << count)
        keep = (number[:, None] >> np.arange(count) & 1).astype(bool)
        values, sizes = score(keep), keep.sum(axis=1)
        shares = np.zeros(count)
        weight = np.array([factorial(size) * factorial(count - size - 1) / factorial(count) for size in range(count)])
        for feature in range(count):
            without = number[~keep[:, feature]]
            shares[feature] = weight[sizes[without]] @ (values[without | 1 << feature] - values[without])
        return shares, float(values[0]), float(values[-1])
    random = np.random.default_rng(count)
    orders = np.array([random.permutation(count) for _ in range(_ORDERS)])
    orders = np.concatenate([orders, orders[:, ::-1]])
    # [order, 1 + feature, feature]: after how many features of the order which are shown
    place = np.argsort(orders, axis=1)
    shown = place[:, None, :] < np.arange(count + 1)[None, :, None]
    distinct, row = np.unique(shown.reshape(-1, count), axis=0, return_inverse=True)
    values = score(distinct)[row.reshape(len(orders), count + 1)]
    gains = np.diff(values, axis=1)
    return np.take_along_axis(gains, place, axis=1).mean(axis=0), float(values[0, 0]), float(values[0, -1])
