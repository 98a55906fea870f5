"""Named sets of settings, and the choice among them by what a shop is like.

A preset fills the keys of [model], [loss] and [train] that the settings file does not name; a key that it names wins.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from schemas.errors import SettingsError
from schemas.settings import SPECTRAL_PARTS, WHY_FULL, FeatureSettings, ModelSettings, Section, Settings

MAX_FULL_SOFTMAX_ITEMS = 12_000
"""Engaged items up to which the softmax runs over all of them; beyond, a step takes longer than it is worth."""
MAX_SPECTRAL_KEYS, MAX_SPECTRAL_PAIRS = 200_000, 30_000_000
"""Engaged items or queries, and pairs, up to which singular vectors cost a minute or two and a few gigabytes."""
MAX_BUCKETED_ITEMS = 500_000
"""Engaged items up to which every process holds the features of all of them, and a step looks at a vector of each."""
_VALIDATIONS = 20
_LEAST_STEPS = 40


@dataclass(frozen=True)
class Shop:
    """What the choice goes by.

    Attributes:
        training_pairs: Rows of all training tables.
        items: Items of the catalog.
        engaged_items: Those with a training pair.
        engaged_queries: Queries with one.
        has_images: Whether items have image vectors.
        is_one_space: Whether queries of all kinds and item texts are embedded by one encoder.
    """

    training_pairs: int
    items: int
    engaged_items: int
    engaged_queries: int
    has_images: bool
    is_one_space: bool


@dataclass(frozen=True)
class Candidate:
    """A preset with its settings for one shop, and the reason for it in words."""

    name: str
    settings: Settings
    reason: str


def paper() -> tuple[ModelSettings, FeatureSettings]:
    """The paper's sizes: width 512, one block, 100,000 x 256 hash table, vocabulary of 1,264,000.

    Source: ItemSage sections 3.1-3.2. Assumed: head width 1,024 (not legible in Figure 3).
    """
    return ModelSettings(), FeatureSettings()


def demo() -> tuple[ModelSettings, FeatureSettings]:
    """The demo's sizes: every part of the paper's model, narrower."""
    model = ModelSettings(width=256, heads=8, feed_forward_width=512, head_width=512, hash_rows=10_000)
    return model, FeatureSettings(char_trigrams=10_000, word_unigrams=10_000, word_bigrams=20_000)


def candidates(settings: Settings, shop: Shop | None) -> list[Candidate]:
    """The configurations to try: the one that is named, or for "auto" those that suit shops like this one.

    Args:
        settings: As the settings file gives them.
        shop: What the shop is like; None is enough for "paper".

    Raises:
        SettingsError: the settings have negatives, which the loss that suits the shop cannot take.
    """
    if settings.preset == "paper" or shop is None:
        return [Candidate("paper", settings, "the settings file names it")]
    if "residual" in settings.model.model_fields_set and not settings.model.residual:
        # Both presets start from the frozen vectors by the residual path alone.
        shop = replace(shop, is_one_space=False)
    if settings.preset != "auto":
        return [_candidate(settings.preset, settings, shop, "the settings file names it")]
    small = (
        "maps of the frozen vectors, held near them, forget little of what the encoder knows of unseen items"
        if shop.is_one_space
        else "a tower over texts and images learns what items are, of which few engagements say enough"
    )
    large = "identities of items and queries hold what is engaged with together"
    return [_candidate("small_log", settings, shop, small), _candidate("large_log", settings, shop, large)]


def _candidate(name: str, settings: Settings, shop: Shop, reason: str) -> Candidate:
    filled = {"small_log": _small_log, "large_log": _large_log}[name](shop)
    is_refused = any(
        key in settings.model.model_fields_set and not getattr(settings.model, key) for key in SPECTRAL_PARTS
    )
    if is_refused and filled["train"].pop("start", ""):
        filled["train"]["table_learning_rate"] = 1e-2  # what does not start as something must learn
    chosen = with_defaults(settings.model_copy(update={"negatives": ()}), filled)
    if settings.negatives and chosen.loss.form != "full":
        shop_is = f"with {shop.engaged_items:,} engaged items, preset {name!r} takes loss.form = {chosen.loss.form!r}"
        raise SettingsError(f"negatives: {shop_is}; {WHY_FULL}")
    return Candidate(name, chosen.model_copy(update={"negatives": settings.negatives}), reason)


def with_defaults(settings: Settings, filled: dict[str, dict[str, Any]]) -> Settings:
    """Settings with some keys of some sections changed, but for those that the settings file names."""
    sections: dict[str, Any] = {}
    for name, values in filled.items():
        section = getattr(settings, name)
        named = section.model_fields_set
        free = {key: value for key, value in values.items() if key not in named and _has_use(key, section)}
        sections[name] = type(section).model_validate(section.model_dump() | free)
    return Settings.model_validate(settings.model_dump() | {name: part.model_dump() for name, part in sections.items()})


_OF_ANOTHER = {"query_id_rows": "query_adapter", "item_map": "residual"}
"""Keys that mean something only beside another."""


def _has_use(key: str, section: Section) -> bool:
    """Whether a key may be filled: not where the settings file switches off what it belongs to."""
    other = _OF_ANOTHER.get(key, "")
    return other not in section.model_fields_set or bool(getattr(section, other))


def _small_log(shop: Shop) -> dict[str, dict[str, Any]]:
    """Maps on the frozen vectors of both sides that start as no change, held near them; no tower.

    Where queries and items are no neighbours in one space there is nothing to start from: see `_content`.
    """
    if not shop.is_one_space:
        return _content(shop)
    # What nobody bought yet is kept from leading all lists by being a negative; how far, the pull corrects.
    negatives = "engaged" if _is_full(shop) and shop.items > MAX_FULL_SOFTMAX_ITEMS else "catalog"
    return {
        "model": {
            "sequence": (),
            "residual": True,
            "item_map": True,
            "item_vector": True,
            "id_rows": _rows(shop.engaged_items),
            "query_adapter": True,
        },
        "loss": _loss(shop) | {"distillation": 1.0},
        "train": _train(shop, _batch_size(shop), steps=_LEAST_STEPS)
        | {"learning_rate": 1e-3, "table_learning_rate": 1e-2, "weight_decay": 0.1, "negatives_from": negatives}
        | {"patience": 3},
    }


def _content(shop: Shop) -> dict[str, dict[str, Any]]:
    """A tower of half the paper's width over what an item is, and nothing of who it is, as the paper trains it.

    Negatives come from the whole catalog where most of it is engaged with; else they would push the rest away.
    """
    steps = _train(shop, min(1_024, _batch_size(shop)), steps=480)
    is_engaged = 2 * shop.engaged_items >= shop.items
    return {
        "model": _narrow(_parts(shop, ["text", "images", "frozen_text"]), 256),
        "loss": _loss(shop) if _is_full(shop) else {"form": "sum"},
        "train": steps
        | {"learning_rate": 3e-3, "table_learning_rate": 1e-2, "average_decay": 0.95, "patience": 3}
        | {"negatives_from": "catalog" if is_engaged and not _is_full(shop) else "engaged"}
        | {"validate_every": max(5, steps["steps"] // 12)},
    }


def _large_log(shop: Shop) -> dict[str, dict[str, Any]]:
    """The frozen vectors and, as singular vectors to start with, who an item and a query are.

    Where those cannot be compared or computed: a tower of half the paper's width in which an item is one more element.
    """
    is_small = max(shop.engaged_items, shop.engaged_queries) <= MAX_SPECTRAL_KEYS
    if shop.is_one_space and is_small and shop.training_pairs <= MAX_SPECTRAL_PAIRS:
        return _spectral(shop)
    model = _narrow(_parts(shop, ["images", "frozen_text", "item_id"]), 256) | {
        "query_adapter": True,
        "residual": shop.is_one_space,
        "item_map": shop.is_one_space,
        "id_rows": _rows(shop.engaged_items),
        "query_id_rows": min(_rows(shop.engaged_queries), MAX_SPECTRAL_KEYS),
    }
    return {
        "model": model,
        "loss": _loss(shop),
        "train": _train(shop, _batch_size(shop), steps=300 if _is_full(shop) else 800)
        | {"learning_rate": 3e-3, "table_learning_rate": 1e-2},
    }


def _spectral(shop: Shop) -> dict[str, dict[str, Any]]:
    """Few steps for the maps alone: what the singular vectors hold, training soon loses to the pairs' noise."""
    model = {
        "sequence": ("images", "frozen_text") if shop.has_images else (),
        "residual": True,
        "item_map": True,
        "item_vector": True,
        "id_rows": _rows(shop.engaged_items),
        "query_adapter": True,
        "query_id_rows": _rows(shop.engaged_queries),
    }
    train = {"start": "spectral", "learning_rate": 3e-4, "table_learning_rate": 0.0, "patience": 2}
    return {
        "model": (_narrow((), 256) | model) if shop.has_images else model,
        "loss": _loss(shop) | {"temperature": 25.0},
        "train": _train(shop, _batch_size(shop), steps=_LEAST_STEPS) | train,
    }


def _rows(identities: int) -> int:
    """One for each; see `KeyIdentity`."""
    return max(1, identities)


def _parts(shop: Shop, sequence: list[str]) -> tuple[str, ...]:
    return tuple(name for name in sequence if name != "images" or shop.has_images)


def _narrow(sequence: tuple[str, ...], width: int) -> dict[str, Any]:
    return {
        "sequence": sequence, "width": width, "heads": 8, "feed_forward_width": 2 * width, "head_width": 2 * width,
        "hash_rows": 20_000,
    }  # fmt: skip


def _batch_size(shop: Shop) -> int:
    """A power of two of at most a sixteenth of the pairs.

    A softmax over all items has a row a query, however many pairs there are of it: there large batches cost little,
    and in a long-tailed log they are what makes few steps enough.
    """
    size, most = 256, 65_536 if _is_full(shop) else 4_096
    while 2 * size <= min(most, shop.training_pairs // 16):
        size *= 2
    return size


def _is_full(shop: Shop) -> bool:
    return shop.engaged_items <= MAX_FULL_SOFTMAX_ITEMS


def _loss(shop: Shop) -> dict[str, Any]:
    """The softmax over all engaged items where it is affordable, else an estimate of it, else over a sample."""
    if not _is_full(shop) and shop.engaged_items <= MAX_BUCKETED_ITEMS:
        return {"form": "bucketed", "buckets": 16, "bucket_items": 256, "frequency": "exact"}
    return {"form": "full" if _is_full(shop) else "mixed", "frequency": "exact"}


def _train(shop: Shop, batch: int, steps: int) -> dict[str, Any]:
    """Up to so many steps, or thirty passes over a small log; negatives are items that somebody engaged with.

    An item that is never a positive would be pushed away from every query each time it is drawn, and in a small
    catalog it is drawn again and again.
    """
    steps = max(_LEAST_STEPS, min(steps, 30 * shop.training_pairs // batch))
    every = max(5, steps // _VALIDATIONS)
    return {
        "batch_size": batch, "negative_count": min(batch, 4_096), "negatives_from": "engaged", "steps": steps,
        "warmup_steps": max(1, min(15, steps // 10)), "schedule": "constant",
        "average_decay": 0.9 if steps < 400 else 0.98, "validate_every": every, "patience": 8, "log_every": every,
        "checkpoint_every": 4 * every,
    }  # fmt: skip
