"""Give every usable item the frozen embedding of its text, by the encoder that embed_queries fitted.

Reads: items; the encoder at `<warehouse>/query_encoder/`.
Writes: item_text_embeddings.
One row is: one product with the frozen embedding of its text, or an empty cell where the encoder knows nothing of it.
Safe to rerun because: each distinct text is encoded once, in an order that depends on the texts alone, and one commit
changes the table. Where the encoder is that of the last run, only texts that have changed are encoded and written.

    spark-submit --properties-file spark-defaults.conf jobs/embed_items.py --settings pipeline.toml
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from itemsage_model.encoders.frozen_text.stored import from_bytes, load_recorded, to_bytes
from itemsage_model.encoders.frozen_text.text_encoder import TextEncoder
from jobs.runtime import command_line
from jobs.runtime.changes import ADDED, CHANGED, Changes
from jobs.runtime.incremental import find_kept, maker, merge_worker_rows
from jobs.runtime.job_run import JobRun
from jobs.runtime.worker_rows import WorkerRows
from jobs.transforms.items import item_texts, split_items
from schemas.cells import pack_cells
from schemas.elements import FROZEN_TEXT
from schemas.metrics import ItemTextMetrics
from schemas.settings import Settings
from schemas.stages import EMBED_ITEMS, EMBED_QUERIES
from schemas.tables import EMBEDDING_DIM, ITEM_TEXT_EMBEDDINGS, ITEMS, SOURCE_HASH

STAGE = EMBED_ITEMS

_ITEMS_PER_PART = 16_384
"""Items, about, that one task embeds."""

_COUNTS = ("texts_encoded", "items_without_text", "items_of_unknown_text", "truncated_texts")
"""Summed over all items into the run record; see `ItemTextMetrics`."""


def build(sources: DataFrame, encoder: TextEncoder | None, part_count: int) -> WorkerRows:
    """Rows of ITEM_TEXT_EMBEDDINGS, with the sums of _COUNTS.

    Args:
        sources: Rows of `item_texts`.
        encoder: The frozen text encoder; None leaves every cell empty.
        part_count: Number of parts in which texts are encoded.
    """
    # Equal texts meet in one part, one behind the other; items without a text are dealt out.
    share = F.when(F.trim("text") == "", F.col("item_id")).otherwise(F.col("text"))
    source = sources.repartition(part_count, share).sortWithinPartitions("text", "item_id")
    space = encoder.name if encoder else ""
    stored = sources.sparkSession.sparkContext.broadcast(to_bytes(encoder) if encoder else None)

    def embed(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        encode = from_bytes(*stored.value).encode if stored.value else _no_vectors
        known: dict[str, npt.NDArray[np.float32]] = {}
        for batch in batches:
            texts = batch.column("text").dictionary_encode()
            distinct = texts.dictionary.to_pylist()
            new = [text for text in distinct if text not in known]
            vector_of = known | dict(zip(new, encode(new), strict=True))
            yield _rows(batch, texts, [vector_of[text] for text in distinct], new, space)
            # The next batch may begin with the text that this one ends with.
            known = {text: vector_of[text] for text in distinct[-1:]}

    return WorkerRows(source, embed, _COUNTS)


def _no_vectors(texts: list[str]) -> npt.NDArray[np.float32]:
    return np.zeros((len(texts), EMBEDDING_DIM), np.float32)


def _rows(
    batch: pa.RecordBatch,
    texts: pa.DictionaryArray,
    vectors: list[npt.NDArray[np.float32]],
    new: list[str],
    space: str,
) -> pa.RecordBatch:
    """Rows of ITEM_TEXT_EMBEDDINGS, with _COUNTS.

    Args:
        batch: item_id, text, is_cut, SOURCE_HASH.
        texts: The texts, encoded by the distinct ones.
        vectors: Of each distinct text; zero = unknown.
        new: Those of the distinct texts that no batch before had.
        space: The encoder's name.
    """
    row = texts.indices.to_numpy()
    is_known = np.array([vector.any() for vector in vectors], bool)[row]
    is_blank = np.array([not text.strip() for text in texts.dictionary.to_pylist()], bool)[row]
    halves = np.array(vectors, "<f2").reshape(-1, EMBEDDING_DIM)[row[is_known]]
    encoded = np.zeros(len(batch), np.int64)
    encoded[:1] = sum(bool(text.strip()) for text in new) if space else 0
    columns = {
        "item_id": batch.column("item_id"),
        FROZEN_TEXT.values.name: pack_cells(halves, is_known * np.int64(EMBEDDING_DIM)),
        "embedding_space": pa.repeat(pa.scalar(space), len(batch)),
        SOURCE_HASH: batch.column(SOURCE_HASH),
        "texts_encoded": pa.array(encoded),
        "items_without_text": pa.array(is_blank),
        "items_of_unknown_text": pa.array(~is_blank & ~is_known),
        "truncated_texts": batch.column("is_cut"),
    }
    return pa.RecordBatch.from_pydict(columns)


def run(spark: SparkSession, settings: Settings) -> None:
    """Read the items and the encoder, embed, write."""
    with JobRun(spark, settings, STAGE) as job:
        items, encoder = job.read(ITEMS), load_recorded(settings.layout, job.record(EMBED_QUERIES).metrics.encoder)
        names, name = settings.query_encoder.item_text, encoder.name if encoder else None
        made_by = maker(name, *names)
        sources = item_texts(split_items(items)[0], names).persist(StorageLevel.MEMORY_AND_DISK)
        changes = find_kept(job, ITEM_TEXT_EMBEDDINGS, sources, made_by)
        if changes is None:
            parts = 1 + job.row_count(ITEMS) // _ITEMS_PER_PART
            sums = job.write_worker_rows(build(sources, encoder, parts), ITEM_TEXT_EMBEDDINGS).sums
            job.metrics = ItemTextMetrics(name, **sums, made_by=made_by)
        else:
            changed = sources.join(changes.to_make, on="item_id", how="left_semi")
            rows = build(changed, encoder, 1 + changes.total // _ITEMS_PER_PART)
            job.metrics = _merged(job, rows, sources, changes, ItemTextMetrics(name, made_by=made_by))
        sources.unpersist()


def _merged(
    job: JobRun[ItemTextMetrics], rows: WorkerRows, sources: DataFrame, changes: Changes, metrics: ItemTextMetrics
) -> ItemTextMetrics:
    """Make and merge the changed rows, and count all of them."""
    to_make = changes.counts[ADDED] + changes.counts[CHANGED]
    sums, stored = merge_worker_rows(job, rows, ITEM_TEXT_EMBEDDINGS, changes)
    counts = sources.agg(F.count_if(F.trim("text") == "").alias("blank"), F.count_if("is_cut").alias("cut")).first()
    empty = stored.where(F.length(FROZEN_TEXT.values.name) == 0).count()
    assert counts is not None
    return replace(
        metrics,
        texts_encoded=sums["texts_encoded"],
        items_without_text=counts["blank"],
        items_of_unknown_text=empty - counts["blank"],
        truncated_texts=counts["cut"],
        kept_rows=stored.count() - to_make,
    )


def main() -> None:
    """Run the job from the command line."""
    command_line.main(STAGE, run, __doc__)


if __name__ == "__main__":
    main()
