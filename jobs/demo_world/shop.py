"""The demo shop in numbers: hidden vectors of items and queries, and their images. From a seed; numpy only, no Spark.

An item's hidden vector is six blocks side by side, each of unit length: category, style, brand, colour, material, look.
Text tells all but the look; images show all but brand and material. A query is the same blocks, weighted by how much
shoppers care, and affinity is the dot product. Every frozen encoder of this world is a random rotation of that space,
one per query kind; images lie in the closeup rotation. Each encoder also adds a direction that all its vectors share,
as real ones do, and a photograph its background, which nobody engages for.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.demo_world.words import (
    BRANDS,
    CATEGORIES,
    COLORS,
    DEPARTMENTS,
    MATERIALS,
    MOODS,
    STYLES,
    Attributes,
    query_text,
)
from schemas.tables import EMBEDDING_DIM

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

# Block -> (dimensions, weight in a query, weight in an image). With the popularity they make the 64-d true vectors.
BLOCKS = {
    "category": (20, 7.0, 0.5),
    "style": (8, 2.5, 0.8),
    "brand": (10, 3.5, 0.0),
    "color": (6, 2.5, 0.8),
    "material": (7, 3.5, 0.0),
    "look": (12, 5.0, 1.0),
}
_DIMS = [dims for dims, _, _ in BLOCKS.values()]
HIDDEN_DIM = sum(_DIMS)
BACKGROUND_DIM = 16
SHARPNESS = 7.0
"""Log-odds per unit of dot product between an item's hidden vector and a query's unit vector."""
SHARED_SHARE, BACKGROUND_SHARE = 0.1, 0.2
"""Parts of a query's squared length: the direction that all queries share; the photograph's background (closeup)."""
ZIPF_EXPONENT, FAME_NOISE = 0.3, 0.3
ITEM_LOOK = 0.5
"""Length of an item's own part of its look, beside its mood's."""
MAX_ITEM_IMAGES = 25
NO_IMAGE_SHARE, DELISTED_SHARE, NEW_SHARE, UNSEEN_PIN_SHARE = 0.05, 0.01, 0.03, 0.3
NEVER = -12.0
"""Log popularity of delisted items."""


def generator(seed: int, *names: str) -> np.random.Generator:
    """Seed a stream for a named part of its own, so that a change in one part leaves the others as they are."""
    return np.random.default_rng([seed, zlib.crc32("/".join(names).encode())])


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale rows to length 1."""
    lengths: NDArray[np.float64] = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / lengths


def rotation(seed: int, query_kind: str) -> Floats:
    """Draw orthonormal columns that place hidden space, shared direction and background in an encoder's space."""
    random = generator(seed, "rotation", query_kind).standard_normal((EMBEDDING_DIM, HIDDEN_DIM + 1 + BACKGROUND_DIM))
    columns: Floats = np.linalg.qr(random)[0].astype(np.float32)
    return columns


def spread_over_blocks(values: Any) -> Floats:
    """Repeat one value per block, [..., 6], over the block's dimensions, [..., 63]."""
    return np.repeat(np.asarray(values, dtype=np.float32), _DIMS, axis=-1)


QUERY_WEIGHTS = spread_over_blocks([in_query for _, in_query, _ in BLOCKS.values()])
IMAGE_WEIGHTS = spread_over_blocks([in_image for _, _, in_image in BLOCKS.values()])


class Codebook:
    """The unit vectors behind every category, style, brand, colour, material and mood, and how they go together."""

    def __init__(self, seed: int) -> None:
        rng = generator(seed, "codebook")

        def vectors(block: str, count: int) -> NDArray[np.float64]:
            return unit(rng.standard_normal((count, BLOCKS[block][0])))

        self.shelf = np.array([DEPARTMENTS.index(department) for department, _ in CATEGORIES])
        shelves = vectors("category", len(DEPARTMENTS))[self.shelf]
        self.vectors = {
            "category": unit(0.6 * shelves + 0.8 * vectors("category", len(CATEGORIES))),
            "style": vectors("style", len(STYLES)),
            "brand": vectors("brand", len(BRANDS)),
            "color": vectors("color", len(COLORS)),
            "material": vectors("material", len(MATERIALS)),
            "mood": vectors("look", len(MOODS)),
        }
        self.shelf_materials = [[MATERIALS.index(name) for name in department.materials] for department in DEPARTMENTS]
        # Brand b stands on shelf b mod the number of shelves, leans to one style, and is more or less known.
        self.brand_style = rng.integers(len(STYLES), size=len(BRANDS))
        self.brand_fame = rng.standard_normal(len(BRANDS))

    def draw(self, rng: np.random.Generator, count: int) -> list[Attributes]:
        """Draw attributes as this shop's items and its shoppers' wishes have them."""
        drawn = []
        for category in rng.integers(len(CATEGORIES), size=count):
            shelf = int(self.shelf[category])
            brand = int(rng.choice(np.arange(shelf, len(BRANDS), len(DEPARTMENTS))))
            style = self.brand_style[brand] if rng.random() < 0.4 else rng.integers(len(STYLES))
            material = rng.choice(self.shelf_materials[shelf])
            color, mood = rng.integers(len(COLORS)), rng.integers(len(MOODS))
            drawn.append(Attributes(int(category), int(style), brand, int(color), int(material), int(mood)))
        return drawn

    def hidden(self, drawn: list[Attributes], look_noise: NDArray[np.float64] | float = 0.0) -> Floats:
        """Look up hidden vectors, one row each: six blocks of unit length.

        Args:
            drawn: The attributes.
            look_noise: Added to the mood's vector before the look is scaled to unit length; an item's own part.
        """
        parts = [vectors[[getattr(one, name) for one in drawn]] for name, vectors in self.vectors.items()]
        parts[-1] = unit(parts[-1] + look_noise)
        rows: Floats = np.concatenate(parts, axis=1).astype(np.float32)
        return rows


@dataclass(frozen=True)
class Items:
    """The catalog: ids, attributes, hidden vectors [item, 63], log popularity [item], and which items are new."""

    ids: list[str]
    attributes: list[Attributes]
    hidden: Floats
    log_popularity: Floats
    is_new: NDArray[np.bool_]

    @property
    def true_vectors(self) -> Floats:
        """What the oracle knows of an item: its hidden vector and, last, its log popularity."""
        vectors: Floats = np.concatenate([self.hidden, self.log_popularity[:, None]], axis=1)
        return vectors


def make_items(codebook: Codebook, seed: int, count: int) -> Items:
    """Draw the catalog. Well-known brands are popular; popularity is Zipf's; a few items are delisted or new."""
    rng = generator(seed, "items")
    attributes = codebook.draw(rng, count)
    hidden = codebook.hidden(attributes, _own_look(rng, count))
    fame = codebook.brand_fame[[item.brand for item in attributes]] + FAME_NOISE * rng.standard_normal(count)
    rank = np.argsort(np.argsort(-fame)) + 1
    log_popularity = -ZIPF_EXPONENT * (np.log(rank) - np.log(count))
    order = rng.permutation(count)
    delisted, new = max(1, round(DELISTED_SHARE * count)), max(1, round(NEW_SHARE * count))
    log_popularity[order[:delisted]] = NEVER
    is_new = np.zeros(count, dtype=bool)
    is_new[order[delisted : delisted + new]] = True
    ids = [f"{_PREFIXES[codebook.shelf[item.category]]}-{100_000 + row}" for row, item in enumerate(attributes)]
    return Items(ids, attributes, hidden, log_popularity.astype(np.float32), is_new)


_PREFIXES = ("TBL", "SEA", "STO", "LIG", "DEC", "TEX", "BED", "KIT", "OUT", "WOM", "MEN", "SHO", "BAG", "JEW", "TOY")


def _own_look(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    return ITEM_LOOK * unit(rng.standard_normal((count, BLOCKS["look"][0])))


def make_images(items: Items, seed: int) -> tuple[Ints, Ints, Floats]:
    """Photograph the items: row of the item, position, embedding [image, 256] of unit length.

    Each shows the item's visible blocks before a background of its own, blurred; 0 to 25 an item, most have a few.
    """
    rng = generator(seed, "images")
    count = _draw_counts(rng, len(items.ids))
    item = np.repeat(np.arange(len(items.ids)), count)
    position = np.arange(len(item)) - np.repeat(np.cumsum(count) - count, count)
    visible = items.hidden[item] * IMAGE_WEIGHTS
    shared = np.full((len(item), 1), 0.7, dtype=np.float32)
    background = 1.2 * unit(rng.standard_normal((len(item), BACKGROUND_DIM)))
    blur = rng.standard_normal((len(item), EMBEDDING_DIM), dtype=np.float32) * np.float32(0.02)
    placed = np.concatenate([visible, shared, background], axis=1).astype(np.float32) @ rotation(seed, "closeup").T
    placed += blur
    return item, position, placed / np.linalg.norm(placed, axis=1, keepdims=True)


def image_counts(items: Items, seed: int) -> Ints:
    """How many photographs `make_images` takes of each item."""
    return _draw_counts(generator(seed, "images"), len(items.ids))


def _draw_counts(rng: np.random.Generator, item_count: int) -> Ints:
    count = np.minimum(rng.geometric(0.2, size=item_count), MAX_ITEM_IMAGES)
    count[rng.random(item_count) < NO_IMAGE_SHARE] = 0
    return count


@dataclass(frozen=True)
class Queries:
    """The queries of one kind.

    Attributes:
        ids: Query ids.
        texts: What was typed, or None for images.
        items: Row of the catalog item that the query shows, or -1.
        embeddings: [query, 256], unit length, in the rotation of the kind.
        true_vectors: [query, 64], affinity = dot product with an item's true vector, before any engagement's taste.
    """

    ids: list[str]
    texts: list[str | None]
    items: Ints
    embeddings: Floats
    true_vectors: Floats


def make_queries(
    codebook: Codebook, items: Items, seed: int, query_kind: str, count: int, pictured: Ints | None = None
) -> Queries:
    """Draw queries of one kind: `search` types a text, any other kind views an image of an item or of an unseen pin.

    Args:
        codebook: The shop's attributes.
        items: The catalog.
        seed: The world's seed.
        query_kind: Its name, which seeds its rotation.
        count: How many; of search queries with equal texts one is kept.
        pictured: Rows of the items that a viewed image can show, which is then one of theirs; None = all, and pins.
    """
    rng = generator(seed, "queries", query_kind)
    texts: list[str | None]
    if query_kind == "search":
        hidden, texts = _wishes(codebook, rng, count)
        shown, background_share = np.full(len(texts), -1), 0.0
    else:
        if pictured is None:
            known = rng.permutation(len(items.ids))[: round(count * (1 - UNSEEN_PIN_SHARE))]
            pins = count - len(known)
        else:
            known, pins = rng.permutation(pictured)[:count], 0
        shown = rng.permutation(np.concatenate([known, np.full(pins, -1)]))
        texts = [None] * len(shown)
        hidden = items.hidden[shown]
        hidden[shown < 0] = codebook.hidden(codebook.draw(rng, pins), _own_look(rng, pins))
        background_share = BACKGROUND_SHARE
    wanted = unit(hidden * QUERY_WEIGHTS)
    one = np.ones((len(wanted), 1))
    background = unit(rng.standard_normal((len(wanted), BACKGROUND_DIM)))
    shares = np.sqrt([1 - SHARED_SHARE - background_share, SHARED_SHARE, background_share])
    placed = np.concatenate([wanted * shares[0], one * shares[1], background * shares[2]], axis=1)
    embeddings = placed.astype(np.float32) @ rotation(seed, query_kind).T
    ids = [f"{query_kind}-{number:06d}" for number in range(len(wanted))]
    true_vectors = np.concatenate([SHARPNESS * wanted, one], axis=1).astype(np.float32)
    return Queries(ids, texts, shown, embeddings, true_vectors)


def _wishes(codebook: Codebook, rng: np.random.Generator, count: int) -> tuple[Floats, list[str | None]]:
    """Draw hidden vectors with texts that all differ: a frozen text encoder gives equal texts equal vectors.

    What the text leaves open is zero in the vector.
    """
    wishes = codebook.draw(rng, count)
    told = rng.random((count, 5)) < (0.45, 0.35, 0.45, 0.5, 0.8)  # style, brand, colour, material, mood
    phrasing = rng.integers(6, size=count)
    first: dict[str | None, int] = {}
    for row, wish in enumerate(wishes):
        first.setdefault(query_text(wish, tuple(told[row]), int(phrasing[row])), row)
    rows = list(first.values())
    is_told = np.concatenate([np.ones((len(rows), 1)), told[rows]], axis=1)
    hidden = codebook.hidden([wishes[row] for row in rows])
    return hidden * spread_over_blocks(is_told), list(first)


@dataclass(frozen=True)
class Shop:
    """A whole shop: the seed it follows from, its items, and its queries by kind."""

    seed: int
    items: Items
    queries: dict[str, Queries]


def make_shop(seed: int, item_count: int, query_counts: dict[str, int], *, has_pictures: bool = False) -> Shop:
    """Draw a shop.

    Args:
        seed: Decides everything.
        item_count: Size of the catalog.
        query_counts: Query kind -> number of queries.
        has_pictures: Whether viewed images are the drawn pictures of items: fewer queries, where fewer items have any.
    """
    codebook = Codebook(seed)
    items = make_items(codebook, seed, item_count)
    pictured = np.flatnonzero(image_counts(items, seed)) if has_pictures else None
    queries = {kind: make_queries(codebook, items, seed, kind, count, pictured) for kind, count in query_counts.items()}
    return Shop(seed, items, queries)
