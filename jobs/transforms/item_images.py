"""Images of items: packed into float16 cells as they are read, checked, and put in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from jobs.transforms.quarantine import Check, accepted, rejected, with_reject
from schemas.tables import EMBEDDING_DIM, ITEM_IMAGES, REJECTED_ITEMS


def packed_images(images: DataFrame) -> DataFrame:
    """Images with `image_embedding` packed into 512 bytes of float16, or null where it is no usable vector.

    Packing comes before any shuffle: it halves what is moved, and checks 256 numbers at a time.
    """
    return images.mapInArrow(_pack, "item_id string, position int, image_embedding binary")


def _pack(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        cells = pack_vectors(batch.column("image_embedding"))
        yield pa.RecordBatch.from_arrays([batch.column("item_id"), batch.column("position"), cells], batch.schema.names)


def pack_vectors(vectors: pa.ListArray) -> pa.BinaryArray:
    """Pack lists of float32 into cells of little-endian float16.

    A list that is null, has another length than 256, holds a null, NaN, infinity or a number beyond float16's
    range, or is all zero in float16 becomes null.
    """
    is_whole = pc.equal(pc.list_value_length(vectors), EMBEDDING_DIM).fill_null(False)
    numbers = vectors.filter(is_whole).flatten().to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):
        halves = numbers.reshape(-1, EMBEDDING_DIM).astype("<f2")
    is_usable = np.isfinite(halves).all(axis=1) & (halves != 0).any(axis=1)
    is_valid = is_whole.to_numpy(zero_copy_only=False).copy()
    is_valid[is_valid] = is_usable
    ends = np.cumsum(is_valid * halves.itemsize * EMBEDDING_DIM)
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    validity = np.packbits(is_valid, bitorder="little")
    buffers = [pa.py_buffer(part) for part in (validity, offsets, np.ascontiguousarray(halves[is_usable]))]
    return pa.Array.from_buffers(pa.binary(), len(is_valid), buffers)


def split_images(images: DataFrame, items: DataFrame) -> tuple[DataFrame, DataFrame]:
    """Separate the images that can be used from those that cannot.

    Of several images of one item at one position the smallest by content is kept.

    Args:
        images: Rows of `packed_images`.
        items: The usable items, unique by item_id: the join cannot multiply images.

    Returns:
        The usable images, unique by item_id and position, with their `place` among the item's images (from 1); the
        others as rows of REJECTED_ITEMS.
    """
    vector = f"{EMBEDDING_DIM} finite numbers within float16's range, not all zero"
    is_blank = F.col("item_id").isNull() | (F.trim("item_id") == "")
    row_checks = [
        Check("null_id", is_blank, "item_id", "the id of an item", "Name the item that the image shows."),
        Check("null_position", F.col("position").isNull(), "position", "a number", "Number the item's images from 0."),
        Check(
            "bad_vector", F.col("image_embedding").isNull(), "image_embedding", vector, "Embed the image again."
        ),
    ]  # fmt: skip
    sound = with_reject(images, ITEM_IMAGES, row_checks)
    by_position = Window.partitionBy("item_id").orderBy("position")
    copies = Window.partitionBy("item_id", "position").orderBy("image_embedding")
    placed = (
        accepted(sound)
        .withColumn("place", F.dense_rank().over(by_position))
        .withColumn("copy", F.row_number().over(copies))
        .join(items.select("item_id", F.lit(True).alias("is_known")), on="item_id", how="left")
    )
    set_checks = [
        Check("unknown_item", F.col("is_known").isNull(), "item_id", "an id of items", "Add the item or drop it."),
        Check(
            "duplicate_image", F.col("copy") > 1, "position", "one image per item and position",
            "Number the item's images; the smallest by content was used.",
        ),
    ]  # fmt: skip
    unique = with_reject(placed, ITEM_IMAGES, set_checks)
    rejects = rejected(sound, REJECTED_ITEMS).unionByName(rejected(unique, REJECTED_ITEMS))
    return accepted(unique).select("item_id", "position", "image_embedding", "place"), rejects


def images_by_item(images: DataFrame, most: int) -> DataFrame:
    """One row per item: its first `most` images by position, and how many lie beyond.

    Args:
        images: The usable images of `split_images`.
        most: Most images of one item.
    """
    is_within = F.col("place") <= most
    in_order = F.sort_array(F.collect_list(F.when(is_within, F.struct("position", "image_embedding"))))
    return images.groupBy("item_id").agg(
        in_order.getField("image_embedding").alias("images"),
        F.sum(F.when(is_within, 0).otherwise(1)).alias("images_beyond_limit"),
    )
