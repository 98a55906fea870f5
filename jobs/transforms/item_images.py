"""Images of items: packed into float16 cells as they are read, checked, and put in order.

Which images can be used follows from their hashes, so that whoever only asks whether an item has changed moves none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from jobs.transforms.quarantine import (
    Check,
    accepted,
    copy_checks,
    is_blank,
    rejected,
    text_checks,
    with_copies,
    with_reject,
)
from schemas.cells import pack_vectors
from schemas.columns import Column
from schemas.tables import ITEM_IMAGES, REJECTED_ITEMS

_START, _HASH = "image_start", "image_hash"
_COMPARED_IMAGES = replace(
    ITEM_IMAGES,
    columns=(
        *[column for column in ITEM_IMAGES.columns if column.name != "image_embedding"],
        Column(_START, "binary", "the first 8 numbers of the packed cell; null where it is no usable vector"),
        Column(_HASH, "int64", "64-bit hash of the packed cell; null where it is no usable vector"),
    ),
)
"""Images as they are compared: of two at one place the smaller by its first numbers is used, of equal ones by hash."""


def packed_images(images: DataFrame, length: int) -> DataFrame:
    """Images with `image_embedding` packed into cells of float16, or null where it is no usable vector.

    Beside it stand the cell's `image_start` and `image_hash`, and the vector's `given_length`. Packing comes before any
    shuffle: it halves what is moved, and checks a whole vector at a time.

    Args:
        images: Rows of ITEM_IMAGES.
        length: Numbers of a vector.
    """

    def pack(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            vectors = batch.column("image_embedding")
            columns = [batch.column("item_id"), batch.column("position")]
            columns += [pack_vectors(vectors, length), pc.list_value_length(vectors)]
            yield pa.RecordBatch.from_arrays(columns, [*batch.schema.names, "given_length"])

    packed = images.mapInArrow(pack, "item_id string, position int, image_embedding binary, given_length int")
    cell = F.col("image_embedding")
    compared = {_START: F.substring(cell, 1, 16), _HASH: F.when(cell.isNotNull(), F.xxhash64(cell))}
    return packed.withColumns(compared)


def split_images(images: DataFrame, items: DataFrame, length: int) -> tuple[DataFrame, DataFrame]:
    """Separate the images that can be used from those that cannot.

    Of several images of one item at one position the smallest by content is kept; an equal one is rejected as
    duplicate_image, another as conflicting_image.

    Args:
        images: Rows of `packed_images`, with their image_embedding or without.
        items: The usable items, unique by item_id: the join cannot multiply images.
        length: Numbers of a vector, for the reason of a reject.

    Returns:
        The usable images, unique by item_id and position, with their `rank` among the item's images (from 1); the
        others as rows of REJECTED_ITEMS.
    """
    vector = f"{length} finite numbers within float16's range, not all zero"
    row_checks = [
        Check("null_id", is_blank("item_id"), "item_id", "the id of an item", "Name the item that the image shows."),
        *text_checks(ITEM_IMAGES),
        Check(
            "null_position", F.col("position").isNull(), "position", "a number of 32 bits",
            "Number the item's images from 0.",
        ),
        Check(
            "wrong_length", F.col("given_length") != length, "image_embedding", f"{length} numbers",
            "Set model.image_length to the length of the vectors.",
        ),
        Check(
            "bad_vector", F.col(_HASH).isNull(), "image_embedding", vector, "Embed the image again.",
        ),
    ]  # fmt: skip
    sound = with_reject(images, ITEM_IMAGES, row_checks)
    by_position = Window.partitionBy("item_id").orderBy("position")
    ranked = accepted(sound).withColumn("rank", F.dense_rank().over(by_position))
    placed = with_copies(ranked, _COMPARED_IMAGES, ("item_id", "position")).join(
        items.select("item_id", F.lit(True).alias("is_known")), on="item_id", how="left"
    )
    set_checks = [
        Check("unknown_item", F.col("is_known").isNull(), "item_id", "an id of items", "Add the item or drop it."),
        *copy_checks("image", "position", "Number the item's images from 0; the smallest by content was used."),
    ]
    unique = with_reject(placed, ITEM_IMAGES, set_checks)
    rejects = rejected(sound, REJECTED_ITEMS).unionByName(rejected(unique, REJECTED_ITEMS))
    return accepted(unique).select("item_id", "position", "rank", *_said_of_images(images)), rejects


def given_lengths(images: DataFrame, length: int) -> str:
    """A sentence about the vectors of other lengths than `length`, the commonest first; empty where there is none.

    Args:
        images: Rows of `packed_images`.
        length: model.image_length.
    """
    others = images.where(F.col("given_length") != length).groupBy("given_length").agg(F.count("*").alias("row_count"))
    found = others.orderBy(F.desc("row_count"), "given_length").limit(3).collect()
    if not found:
        return ""
    lengths = ", ".join(f"{row['given_length']} numbers in {row['row_count']:,} images" for row in found)
    return f"The vectors have {lengths}: model.image_length = {found[0]['given_length']} takes most of them. "


def images_by_item(images: DataFrame, max_images: int) -> DataFrame:
    """One row per item: `images` and `image_hashes` of its first `max_images` by position, and how many lie beyond.

    Args:
        images: The usable images of `split_images`; without their image_embedding there are no `images`.
        max_images: Most images of one item.
    """
    is_within = F.col("rank") <= max_images
    said = _said_of_images(images)
    in_order = F.sort_array(F.collect_list(F.when(is_within, F.struct("position", *said))))
    lists = {_HASH: "image_hashes", "image_embedding": "images"}
    return images.groupBy("item_id").agg(
        *[in_order.getField(name).alias(lists[name]) for name in said],
        F.sum(F.when(is_within, 0).otherwise(1)).alias("images_beyond_limit"),
    )


def _said_of_images(images: DataFrame) -> list[str]:
    return [name for name in (_HASH, "image_embedding") if name in images.columns]
