"""All that a row of item_features is made of, item by item, and the hash by which it is known whether that stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.transforms.item_images import images_by_item, split_images
from jobs.transforms.items import joined_texts, split_items
from jobs.transforms.keys import item_key, source_hash
from schemas.elements import FROZEN_TEXT
from schemas.settings import Settings

_NO_IMAGES = {"images": "array<binary>", "image_hashes": "array<long>", "images_beyond_limit": "long"}


class Usable(NamedTuple):
    """What of the shop's items and images can be used.

    Attributes:
        items: item_id, texts, and the columns of score.filters; unique by item_id.
        images: Rows of `images_by_item`; None = the shop has none.
        rejected: Rows of REJECTED_ITEMS.
    """

    items: DataFrame
    images: DataFrame | None
    rejected: DataFrame


def split(items: DataFrame, images: DataFrame | None, settings: Settings, parts: int) -> Usable:
    """Separate what can be used from what cannot.

    Args:
        items: Rows of ITEMS, with the columns of score.filters.
        images: Rows of `packed_images` in `parts` partitions by item_id, read twice: persist them; None = the shop has
            none.
        settings: Names the text features, and the length and the most images of one item.
        parts: As of `item_sources`.
    """
    usable, rejects = split_items(items)
    texts = joined_texts(usable, settings.features.text_features, tuple(settings.score.filters))
    if images is None:
        return Usable(texts, None, rejects)
    known = usable.select("item_id").repartition(parts, "item_id")
    usable_images, rejected_images = split_images(images, known, settings.model.image_length)
    by_item = images_by_item(usable_images, settings.model.max_images)
    return Usable(texts, by_item, rejects.unionByName(rejected_images))


def item_sources(usable: Usable, embeddings: DataFrame, filters: Sequence[str], parts: int) -> DataFrame:
    """What each row of ITEM_FEATURES is made of, its item_key and its SOURCE_HASH.

    All that is joined is dealt out into the same parts by hand: of sides with different numbers of partitions Spark
    takes whichever it likes, so that the files would hold other rows from one day, or one cluster, to the next.

    Args:
        usable: What can be used; images without their vectors do, where only the hash is asked for.
        embeddings: Rows of ITEM_TEXT_EMBEDDINGS.
        filters: The columns of score.filters.
        parts: Partitions, by a hash of item_id.
    """
    items = usable.items.repartition(parts, "item_id")
    if usable.images is None:
        with_images = items.withColumns({name: F.lit(None).cast(kind) for name, kind in _NO_IMAGES.items()})
    else:
        # Both sides are unique by item_id, so the join neither multiplies nor drops items.
        with_images = items.join(usable.images, on="item_id", how="left")
    # Both sides are unique by item_id. An item that came after embed_items ran has no embedding, which is counted.
    texts = embeddings.select("item_id", FROZEN_TEXT.values.name).repartition(parts, "item_id")
    whole = with_images.join(texts, on="item_id", how="left")
    hashed = source_hash("texts", *filters, "image_hashes", "images_beyond_limit", FROZEN_TEXT.values.name)
    return whole.select("*", item_key("item_id").alias("item_key"), hashed)
