"""Items to rows of item_features: their texts as token ids, their images end to end, a hash of all, and what is summed.

Arrow in, Arrow out: what a Spark worker, or any other Arrow program, runs.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from itemsage_model.text.tokenizer import Tokenizer
from schemas.cells import pack_cells
from schemas.checksums import cells_hashes
from schemas.elements import FEATURE_CELLS, FROZEN_TEXT, IMAGES, TEXT
from schemas.tables import EMBEDDING_DIM, FEATURES_HASH, SOURCE_HASH

ITEM_COUNTERS = (
    "tokens", "out_of_vocabulary_tokens", "truncated_tokens", "images", "images_beyond_limit",
    "items_without_text", "items_without_images", "items_without_text_embedding",
)  # fmt: skip
"""Summed over all items into the run record; see `ItemMetrics`."""


def pack_items(batch: pa.RecordBatch, tokenizer: Tokenizer, kept: tuple[str, ...] = ()) -> pa.RecordBatch:
    """Tokenise and pack some items.

    Args:
        batch: item_id, item_key, SOURCE_HASH, texts (as many in every row), images (lists of float16 cells),
            images_beyond_limit, text_embedding.
        tokenizer: Turns texts into ids.
        kept: Further columns, which stay as they are.
    """
    encoded = tokenizer.encode_column(batch.column("texts").flatten())
    counts, missing, truncated = (
        column.reshape(len(batch), -1) for column in (encoded.counts, encoded.out_of_vocabulary, encoded.truncated)
    )
    rows = pa.array(np.arange(len(batch)))
    cells = [
        pack_cells(encoded.ids.astype("<i4", copy=False), counts.sum(axis=1)),
        pack_cells(counts.astype("<i4"), np.full(len(batch), counts.shape[1])),
        pc.binary_join(batch.column("images"), b"").fill_null(b""),
        # Copied, for the same reason as the keys below.
        batch.column(FROZEN_TEXT.values.name).fill_null(b"").take(rows),
    ]
    # Copied, as they would keep the whole batch, images included, until their row group is written.
    stay = ("item_id", "item_key", SOURCE_HASH, *kept)
    columns = {
        **dict(zip(stay, batch.select(list(stay)).take(rows).columns, strict=True)),
        **dict(zip(FEATURE_CELLS, cells, strict=True)),
        "out_of_vocabulary_count": pa.array(missing.sum(axis=1), pa.int32()),
        "truncated_token_count": pa.array(truncated.sum(axis=1), pa.int32()),
        "unused_image_count": batch.column("images_beyond_limit").fill_null(0).cast(pa.int32()),
        FEATURES_HASH: pa.array(cells_hashes(cells)),
    }
    return pa.RecordBatch.from_pydict(columns)


def with_counts(rows: pa.RecordBatch, image_length: int) -> pa.RecordBatch:
    """Rows of ITEM_FEATURES with what of each is summed: ITEM_COUNTERS.

    Args:
        rows: The rows.
        image_length: Numbers of one image vector.
    """
    tokens, images, frozen = (
        pc.divide(pc.binary_length(rows.column(name)), size)
        for name, size in (
            (TEXT.values.name, 4), (IMAGES.values.name, 2 * image_length), (FROZEN_TEXT.values.name, 2 * EMBEDDING_DIM),
        )
    )  # fmt: skip
    counted = {
        "tokens": tokens,
        "out_of_vocabulary_tokens": rows.column("out_of_vocabulary_count"),
        "truncated_tokens": rows.column("truncated_token_count"),
        "images": images,
        "images_beyond_limit": rows.column("unused_image_count"),
        "items_without_text": pc.equal(tokens, 0),
        "items_without_images": pc.equal(images, 0),
        "items_without_text_embedding": pc.equal(frozen, 0),
    }
    columns = dict(zip(rows.schema.names, rows.columns, strict=True))
    return pa.RecordBatch.from_pydict(columns | {name: counted[name] for name in ITEM_COUNTERS})
