"""Turn every usable item into what the model reads: token ids of its texts, its packed images, its text's embedding.

Reads:  items, item_images (unless inputs.has_images is false), vocabulary, item_text_embeddings; item_graph_images
        where graph.append_to_images
Writes: item_features, rejected_items
One row of item_features is one product as the model reads it; one of rejected_items is one row of items or
item_images that cannot be used, and why.
Safe to rerun because every row follows from the inputs and the settings alone, and each table is replaced in one
commit.

    spark-submit --properties-file spark-defaults.conf jobs/build_item_features.py --settings pipeline.toml
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import mmh3
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from itemsage_model.text.tokenizer import Tokenizer, load_tokenizer, pack_vocabulary
from itemsage_model.text.tokens import TOKEN_KINDS
from jobs.runtime import command_line
from jobs.runtime.job_run import JobRun
from jobs.runtime.rejects import matching_loosely, require_few_rejects
from jobs.runtime.worker_rows import WorkerRows
from jobs.transforms.item_images import given_lengths, images_by_item, packed_images, split_images
from jobs.transforms.items import joined_texts, split_items
from jobs.transforms.keys import item_key
from schemas.cells import pack_cells
from schemas.checksums import cells_hashes
from schemas.elements import FEATURE_CELLS, FROZEN_TEXT
from schemas.errors import TableError
from schemas.graph_tables import ITEM_GRAPH_IMAGES
from schemas.metrics import ItemMetrics
from schemas.settings import Settings
from schemas.stages import BUILD_ITEM_FEATURES, EMBED_GRAPH
from schemas.tables import (
    FEATURES_HASH,
    ITEM_FEATURES,
    ITEM_IMAGES,
    ITEM_TEXT_EMBEDDINGS,
    ITEMS,
    REJECTED_ITEMS,
    VOCABULARY,
)

STAGE = BUILD_ITEM_FEATURES

_ROWS_AT_ONCE = 512
"""Items that are tokenised together; bounds the memory of a worker where texts are long."""

_COUNTS = (
    "tokens", "out_of_vocabulary_tokens", "truncated_tokens", "images", "images_beyond_limit",
    "items_without_text", "items_without_images", "items_without_text_embedding",
)  # fmt: skip
"""Summed over all items into the run record; see `ItemMetrics`."""


class ItemFeatures(NamedTuple):
    """What `build` makes.

    Attributes:
        features: Rows of ITEM_FEATURES, with the sums of _COUNTS.
        rejected: Rows of REJECTED_ITEMS.
    """

    features: WorkerRows
    rejected: DataFrame


def build(
    items: DataFrame, images: DataFrame | None, embeddings: DataFrame, vocabulary: bytes, settings: Settings
) -> ItemFeatures:
    """Turn items and their images into features.

    Args:
        items: Rows of ITEMS, with the columns of score.filters.
        images: Rows of `packed_images`, read twice: persist them; None = the shop has none.
        embeddings: Rows of ITEM_TEXT_EMBEDDINGS.
        vocabulary: Bytes of `packed_vocabulary`.
        settings: Names the text features and the most tokens and images of one item.
    """
    usable, rejects = split_items(items)
    kept = tuple(settings.score.filters)
    texts = joined_texts(usable, settings.features.text_features, kept)
    if images is None:
        with_images = texts.withColumns(
            {"images": F.lit(None).cast("array<binary>"), "images_beyond_limit": F.lit(0).cast("long")}
        )
    else:
        usable_images, rejected_images = split_images(images, usable, settings.model.image_length)
        rejects = rejects.unionByName(rejected_images)
        # Both sides are unique by item_id, so the join neither multiplies nor drops items.
        with_images = texts.join(images_by_item(usable_images, settings.model.max_images), on="item_id", how="left")
    shared = items.sparkSession.sparkContext.broadcast(vocabulary)
    max_tokens = settings.features.max_tokens_per_feature

    def pack(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        tokenizer = load_tokenizer(shared.value, max_tokens)
        for batch in batches:
            for start in range(0, len(batch), _ROWS_AT_ONCE):
                yield pack_items(batch.slice(start, _ROWS_AT_ONCE), tokenizer, kept)

    # Both sides are unique by item_id. An item that came after embed_items ran has no embedding, which is counted.
    whole = with_images.join(embeddings.select("item_id", FROZEN_TEXT.values.name), on="item_id", how="left")
    keyed = whole.withColumn("item_key", item_key("item_id"))
    return ItemFeatures(WorkerRows(keyed, pack, _COUNTS), rejects)


def packed_vocabulary(vocabulary: DataFrame) -> bytes:
    """Collect the vocabulary (at most 1.3 million tokens at the paper's sizes) into compact bytes.

    Raises:
        TableError: the ids are not 0, 1, 2, ... over trigrams, unigrams and bigrams, in this order.
    """
    rows = vocabulary.select("token_id", "token_kind", "token").toArrow().sort_by("token_id")
    kinds, tokens = (rows.column(name).to_numpy() for name in ("token_kind", "token"))
    by_kind = [tokens[kinds == kind].tolist() for kind in TOKEN_KINDS]
    in_order = np.repeat(TOKEN_KINDS, [len(part) for part in by_kind])
    is_dense = np.array_equal(rows.column("token_id").to_numpy(), np.arange(len(rows)))
    if not is_dense or not np.array_equal(kinds, in_order):
        raise TableError(
            VOCABULARY.name,
            "token_id",
            expected=f"the ids 0 to {len(rows) - 1}, each once, over {', then '.join(TOKEN_KINDS)}",
            found="gaps, repeated ids or another order",
            cure="Run build_vocabulary again.",
        )
    return pack_vocabulary(*by_kind)


def pack_items(batch: pa.RecordBatch, tokenizer: Tokenizer, kept: tuple[str, ...] = ()) -> pa.RecordBatch:
    """Tokenise and pack some items.

    Args:
        batch: item_id, item_key, texts (as many in every row), images (lists of float16 cells), images_beyond_limit,
            text_embedding.
        tokenizer: Turns texts into ids.
        kept: Further columns, which stay as they are.
    """
    encoded = tokenizer.encode_column(batch.column("texts").flatten())
    counts, missing, truncated = (
        column.reshape(len(batch), -1) for column in (encoded.counts, encoded.out_of_vocabulary, encoded.truncated)
    )
    token_counts, rows = counts.sum(axis=1), pa.array(np.arange(len(batch)))
    cells = [
        pack_cells(encoded.ids.astype("<i4", copy=False), token_counts),
        pack_cells(counts.astype("<i4"), np.full(len(batch), counts.shape[1])),
        pc.binary_join(batch.column("images"), b"").fill_null(b""),
        # Copied, for the same reason as the keys below.
        batch.column(FROZEN_TEXT.values.name).fill_null(b"").take(rows),
    ]
    image_counts = pc.list_value_length(batch.column("images")).fill_null(0).to_numpy()
    counted = {
        "tokens": token_counts,
        "out_of_vocabulary_tokens": missing.sum(axis=1),
        "truncated_tokens": truncated.sum(axis=1),
        "images": image_counts,
        "images_beyond_limit": batch.column("images_beyond_limit").fill_null(0),
        "items_without_text": token_counts == 0,
        "items_without_images": image_counts == 0,
        "items_without_text_embedding": pc.equal(pc.binary_length(cells[-1]), 0),
    }
    # Copied, as they would keep the whole batch, images included, until their row group is written.
    stay = ("item_id", "item_key", *kept)
    columns = {
        **dict(zip(stay, batch.select(list(stay)).take(rows).columns, strict=True)),
        **dict(zip(FEATURE_CELLS, cells, strict=True)),
        "out_of_vocabulary_count": pa.array(missing.sum(axis=1), pa.int32()),
        FEATURES_HASH: pa.array(cells_hashes(cells)),
    }
    return pa.RecordBatch.from_pydict(columns | {name: pa.array(counted[name]) for name in _COUNTS})


def _require_few_rejects(job: JobRun[ItemMetrics], items: DataFrame, images: DataFrame | None) -> None:
    """Stop before features are made of a catalog, or of images, that are broken as a whole.

    Raises:
        TableError: more items or images are unusable than the settings allow, or all of them.
    """
    require_few_rejects(job, ITEMS, REJECTED_ITEMS, harmless=["duplicate_item"])
    if images is None:
        return

    def hint(rejects: DataFrame) -> str:
        return given_lengths(images, job.settings.model.image_length) + matching_loosely(rejects, "item_id", items)

    require_few_rejects(job, ITEM_IMAGES, REJECTED_ITEMS, harmless=["duplicate_image"], hint=hint)


def _images(job: JobRun[ItemMetrics]) -> DataFrame | None:
    """The shop's images, packed, and before each item's its graph vector where the settings append it; None = none."""
    if not job.settings.inputs.has_images:
        return None
    length = job.settings.model.image_length
    images = packed_images(job.read(ITEM_IMAGES), length)
    if job.settings.graph.append_to_images:
        job.require_agreement([EMBED_GRAPH])
        # At position -1 it comes first: model.max_images never leaves it out.
        vectors = job.read(ITEM_GRAPH_IMAGES).select("item_id", F.lit(-1).alias("position"), "image_embedding")
        images = images.unionByName(packed_images(vectors, length))
    return images.persist()


def run(spark: SparkSession, settings: Settings) -> None:
    """Read items, images, text embeddings and the vocabulary; write the features and what was rejected."""
    with JobRun(spark, settings, STAGE) as job:
        items = job.read(settings.score.filtered(ITEMS))
        images = _images(job)
        vocabulary = packed_vocabulary(job.read(VOCABULARY, may_be_empty=True))
        built = build(items, images, job.read(ITEM_TEXT_EMBEDDINGS), vocabulary, settings)
        job.write_rejected(built.rejected, REJECTED_ITEMS)
        _require_few_rejects(job, items, images)
        sums = job.write_worker_rows(built.features, settings.score.filtered(ITEM_FEATURES)).sums
        # What training and scoring compare: token ids mean something only with the vocabulary that made them.
        vocabulary_hash = mmh3.mmh3_x64_128_digest(vocabulary, 0).hex()
        job.metrics = ItemMetrics(job.row_count(VOCABULARY), vocabulary_hash, settings.model.image_length, **sums)
        if images is not None:
            images.unpersist()


def main() -> None:
    """Run the job from its command line."""
    command_line.main(STAGE, run, __doc__)


if __name__ == "__main__":
    main()
