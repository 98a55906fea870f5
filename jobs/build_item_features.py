"""Turn every usable item into what the model reads: token ids of its texts, its packed images, its text's embedding.

Reads:  items, item_images (unless inputs.has_images is false), vocabulary, item_text_embeddings; item_graph_images
        where graph.append_to_images
Writes: item_features, rejected_items; changed_item_features, item_feature_changes
One row of item_features is one product as the model reads it; one of rejected_items is one row of items or
item_images that cannot be used, and why. One of the others is a product that is not as it was before the last run.
Safe to rerun because every row follows from the inputs and the settings alone, and each table is replaced in one
commit. Where vocabulary, settings and code are those of the last run, only items that have changed are made; the rows
of the others are copied as they are stored, in the order in which making them would put them. Where the inputs are
Delta tables, only items are looked at of which a row lies in a file that the last run has not read.

    spark-submit --properties-file spark-defaults.conf jobs/build_item_features.py --settings pipeline.toml
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import mmh3
import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from itemsage_model.data.parquet_files import file_batches
from itemsage_model.text.item_rows import ITEM_COUNTERS, pack_items, with_counts
from itemsage_model.text.tokenizer import load_tokenizer, pack_vocabulary
from itemsage_model.text.tokens import TOKEN_KINDS
from jobs.runtime import command_line, table_io
from jobs.runtime.changes import ADDED, CHANGED, REMOVED, Changes
from jobs.runtime.incremental import is_as_written, last_run, maker, source_changes
from jobs.runtime.job_run import JobRun
from jobs.runtime.kept_files import Copy, lies_in_parts, merged_rows, part_count
from jobs.runtime.rejects import matching_loosely, require_few_rejects
from jobs.runtime.touched_items import touched_items
from jobs.runtime.worker_rows import WorkerRows
from jobs.transforms.item_images import given_lengths, packed_images
from jobs.transforms.item_sources import Usable, item_sources, split
from jobs.transforms.keys import item_key
from jobs.transforms.quarantine import readable
from schemas.arrow import arrow_schema
from schemas.columns import Table
from schemas.errors import TableError
from schemas.graph_tables import ITEM_GRAPH_IMAGES
from schemas.metrics import ItemMetrics
from schemas.records import RunRecord
from schemas.settings import Settings
from schemas.stages import BUILD_ITEM_FEATURES, EMBED_GRAPH
from schemas.tables import (
    CHANGED_ITEM_FEATURES,
    ITEM_FEATURE_CHANGES,
    ITEM_FEATURES,
    ITEM_IMAGES,
    ITEM_TEXT_EMBEDDINGS,
    ITEMS,
    REJECTED_ITEMS,
    ROW_CHECKSUM,
    SOURCE_HASH,
    VOCABULARY,
)

STAGE = BUILD_ITEM_FEATURES

_ROWS_AT_ONCE = 512
"""Items that are tokenised together; bounds the memory of a worker where texts are long."""

_ROWS_PER_COPY = 2_048

_MOST_TOUCHED = 0.5
"""Where more than this share of the items may have changed, all are looked at."""


def build(usable: Usable, embeddings: DataFrame, vocabulary: bytes, settings: Settings, parts: int = 1) -> WorkerRows:
    """Turn items and their images into rows of ITEM_FEATURES, sorted by item_id in each part; sums: ITEM_COUNTERS.

    Args:
        usable: What can be used, with the vectors of the images.
        embeddings: Rows of ITEM_TEXT_EMBEDDINGS.
        vocabulary: Bytes of `packed_vocabulary`.
        settings: Names the text features and the most tokens of one item.
        parts: Files to write; which row is in which follows from its item_id.
    """
    kept = tuple(settings.score.filters)
    shared = usable.items.sparkSession.sparkContext.broadcast(vocabulary)
    max_tokens, image_length = settings.features.max_tokens_per_feature, settings.model.image_length

    def pack(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        tokenizer = load_tokenizer(shared.value, max_tokens)
        for batch in batches:
            for start in range(0, len(batch), _ROWS_AT_ONCE):
                yield with_counts(pack_items(batch.slice(start, _ROWS_AT_ONCE), tokenizer, kept), image_length)

    rows = item_sources(usable, embeddings, kept, parts).sortWithinPartitions("item_id")
    return WorkerRows(rows, pack, ITEM_COUNTERS)


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


@dataclass(frozen=True)
class _Inputs:
    """What a run reads.

    Attributes:
        items: Rows of ITEMS, with the columns of score.filters.
        images: Rows of ITEM_IMAGES, or what `packed` makes of them; None = the shop has none.
        embeddings: Rows of ITEM_TEXT_EMBEDDINGS.
        vocabulary: Bytes of `packed_vocabulary`.
        parts: Files of item_features.
    """

    items: DataFrame
    images: DataFrame | None
    embeddings: DataFrame
    vocabulary: bytes
    parts: int

    def of(self, ids: DataFrame) -> _Inputs:
        """What is there of some items; see `_of`."""
        images = None if self.images is None else _of(ids, self.images)
        return replace(self, items=_of(ids, self.items), images=images, embeddings=_of(ids, self.embeddings))

    def packed(self, image_length: int) -> DataFrame | None:
        """The images as rows of `packed_images`, dealt out by item_id."""
        if self.images is None or "image_hash" in self.images.columns:
            return self.images
        return packed_images(self.images, image_length).repartition(self.parts, "item_id")

    def kept(self, image_length: int) -> _Inputs:
        """The same, kept by Spark: what is there of some items takes a pass over all to find."""
        packed = self.packed(image_length)
        images = None if packed is None else packed.persist()
        return replace(self, items=self.items.persist(), images=images, embeddings=self.embeddings.persist())

    def forget(self) -> None:
        """Let Spark drop them."""
        for rows in (self.items, self.images, self.embeddings):
            if rows is not None:
                rows.unpersist()

    @property
    def vocabulary_hash(self) -> str:
        """128-bit hash of the vocabulary, hexadecimal."""
        return mmh3.mmh3_x64_128_digest(self.vocabulary, 0).hex()

    def made_by(self, settings: Settings) -> str:
        """What makes rows of equal sources equal, and lie at the same place."""
        features, score = settings.features.model_dump_json(), sorted(settings.score.filters.items())
        sizes = settings.model.image_length, settings.model.max_images, self.parts
        return maker(self.vocabulary_hash, features, repr(score), repr(sizes))


def _of(ids: DataFrame, rows: DataFrame, how: str = "left_semi") -> DataFrame:
    """The rows of some items; those of the others by "left_anti".

    By key: a row is judged beside the others of its key (key_collision), and a null has one. By that of the id as
    rejected_items holds it: an id that is no text, or too long, is known there by nothing else.

    Args:
        ids: item_id; a null stands for all rows without one.
        rows: Rows with an item_id.
        how: Which join.
    """
    keys = ids.select(item_key(readable(ids["item_id"])).alias("wanted_key"))
    return rows.join(keys, item_key(readable(rows["item_id"])) == F.col("wanted_key"), how)


def _read(job: JobRun[ItemMetrics]) -> _Inputs:
    items = job.read(job.settings.score.filtered(ITEMS))
    images = _images(job) if job.settings.inputs.has_images else None
    vocabulary = packed_vocabulary(job.read(VOCABULARY, may_be_empty=True))
    return _Inputs(items, images, job.read(ITEM_TEXT_EMBEDDINGS), vocabulary, part_count(job.row_count(ITEMS)))


def _images(job: JobRun[ItemMetrics]) -> DataFrame:
    """The shop's images, and each item's graph vector where the settings append it."""
    images = job.read(ITEM_IMAGES)
    if not job.settings.graph.append_to_images:
        return images
    job.require_agreement([EMBED_GRAPH])
    # Before any position that a shop has: model.max_images never leaves it out.
    first = F.lit(-(2**31)).alias("position")
    vectors = job.read(ITEM_GRAPH_IMAGES).select("item_id", first, "image_embedding")
    return images.unionByName(vectors)


def _metrics(
    job: JobRun[ItemMetrics], inputs: _Inputs, made_by: str, sums: dict[str, int], kept_from: str = ""
) -> ItemMetrics:
    return ItemMetrics(
        vocabulary_size=job.row_count(VOCABULARY),
        # What training and scoring compare: token ids mean something only with the vocabulary that made them.
        vocabulary_hash=inputs.vocabulary_hash,
        image_length=job.settings.model.image_length,
        kept_from=kept_from,
        made_by=made_by,
        **sums,
    )


def _write_all(job: JobRun[ItemMetrics], inputs: _Inputs, usable: Usable, made_by: str) -> ItemMetrics:
    """Make every row anew; returns what was counted."""
    settings = job.settings
    rows = build(usable, inputs.embeddings, inputs.vocabulary, settings, inputs.parts)
    for table in (settings.score.filtered(CHANGED_ITEM_FEATURES), ITEM_FEATURE_CHANGES):
        job.write_arrow(arrow_schema(table).empty_table(), table)
    sums = job.write_worker_rows(rows, settings.score.filtered(ITEM_FEATURES)).sums
    return _metrics(job, inputs, made_by, sums)


def _write_changed(
    job: JobRun[ItemMetrics], inputs: _Inputs, usable: Usable, last: RunRecord[ItemMetrics], touched: DataFrame | None
) -> ItemMetrics | None:
    """Make the rows that have changed, and copy the others; returns what was counted of all.

    Args:
        job: The run.
        inputs: What it reads, of the items that are touched.
        usable: What of that can be used; of images their hashes do.
        last: The run before, whose rows can stay.
        touched: item_id of the items that may have changed; None = any may.

    Returns:
        None where all rows are to be made anew, such as those of a damaged file.
    """
    settings = job.settings
    table, changed_table = (settings.score.filtered(one) for one in (ITEM_FEATURES, CHANGED_ITEM_FEATURES))
    stored = last.output(table.name)
    if not lies_in_parts(stored, inputs.parts):
        return None
    some = None if touched is None else partial(_of, touched)
    sources = item_sources(usable, inputs.embeddings, tuple(settings.score.filters), inputs.parts)
    changes = source_changes(job, stored, table, sources.select("item_id", SOURCE_HASH), some)
    if changes is None:
        return None
    counts = changes.counts
    made = job.write_worker_rows(
        _changed_rows(inputs, changes, settings), changed_table, counts[ADDED] + counts[CHANGED]
    )
    which = changes.rows.select("item_id", item_key("item_id").alias("item_key"), "change").toArrow()
    changes.forget()
    job.write_arrow(which, ITEM_FEATURE_CHANGES)
    if not changes.total:
        job.count_output(stored)
        return replace(last.metrics, kept_rows=stored.rows, kept_from=stored.checksum)
    rows = merged_rows(job.spark, stored, made, inputs.parts, which["item_key"].to_numpy(), _copy(table, settings))
    try:
        written = job.write_worker_rows(rows, table, stored.rows + counts[ADDED] - counts[REMOVED])
    except TableError as error:
        if error.subject != table.name:
            raise
        print(f"  warning: no row of {table.name} can stay, all are made anew: {error}", flush=True)
        return None
    sums = {**written.sums, "kept_rows": written.rows - made.rows}
    return _metrics(job, inputs, last.metrics.made_by, sums, stored.checksum)


def _copy(table: Table, settings: Settings) -> Copy:
    """How rows that stay are read, compared with their checksums, and counted."""
    columns, length = list(table.column_names), settings.model.image_length

    def read(uri: str) -> Iterator[pa.RecordBatch]:
        return file_batches(uri, columns, _ROWS_PER_COPY, table)

    def finish(batch: pa.RecordBatch) -> pa.RecordBatch:
        # The checksum is made by whoever writes the row.
        stored = [name for name in batch.schema.names if name != ROW_CHECKSUM]
        return with_counts(batch.select(stored), length)

    return Copy(read, finish, ITEM_COUNTERS)


def _changed_rows(inputs: _Inputs, changes: Changes, settings: Settings) -> WorkerRows:
    """The rows that have changed, made anew."""
    of_them = inputs.of(changes.to_make)
    usable = split(of_them.items, of_them.packed(settings.model.image_length), settings, inputs.parts)
    return build(usable, of_them.embeddings, inputs.vocabulary, settings, inputs.parts)


def _touched(job: JobRun[ItemMetrics], last: RunRecord[ItemMetrics]) -> DataFrame | None:
    """item_id of the items that may have changed since the last run, kept by Spark; None = any may."""
    settings = job.settings
    images = (ITEM_IMAGES,) if settings.inputs.has_images else ()
    graph = (ITEM_GRAPH_IMAGES,) if settings.graph.append_to_images else ()
    tables = (ITEMS, *images, *graph, ITEM_TEXT_EMBEDDINGS)
    had = {read.table for read in last.inputs} == {VOCABULARY.name, *(table.name for table in tables)}
    can_stay = had and is_as_written(job, last.output(REJECTED_ITEMS.name))
    ids = touched_items(job, last, tables) if can_stay else None
    if ids is None:
        return None
    ids = ids.persist()
    count, of = ids.count(), job.row_count(ITEMS)
    print(f"  {count:,} of {of:,} items lie in files that are new or gone; the others are as they were", flush=True)
    if count <= _MOST_TOUCHED * of:
        return ids
    ids.unpersist()
    return None


def run(spark: SparkSession, settings: Settings) -> None:
    """Read items, images, text embeddings and the vocabulary; write the features and what was rejected."""
    with JobRun(spark, settings, STAGE) as job:
        inputs, image_length = _read(job), settings.model.image_length
        made_by = inputs.made_by(settings)
        last = last_run(job, settings.score.filtered(ITEM_FEATURES), made_by)
        touched = _touched(job, last) if last else None
        # Which of all items have changed, the hashes of their images say; of a few all is kept.
        near = inputs if touched is None else inputs.of(touched).kept(image_length)
        images = near.packed(image_length)
        if images is not None and touched is None:
            images = (images.drop("image_embedding") if last else images).persist()
        usable = split(near.items, images, settings, inputs.parts)
        rejected = usable.rejected
        if last and touched is not None:
            was = last.output(REJECTED_ITEMS.name)
            stay = _of(touched, table_io.read(spark, was.uri, REJECTED_ITEMS, version=was.version), "left_anti")
            rejected = rejected.unionByName(stay)
        job.write_rejected(rejected, REJECTED_ITEMS)
        _require_few_rejects(job, inputs.items, inputs.packed(image_length))
        metrics = _write_changed(job, near, usable, last, touched) if last else None
        if metrics is None:
            whole = split(inputs.items, inputs.packed(image_length), settings, inputs.parts) if last else usable
            metrics = _write_all(job, inputs, whole, made_by)
        job.metrics = metrics
        for kept in (images, touched):
            if kept is not None:
                kept.unpersist()
        if near is not inputs:
            near.forget()


def main() -> None:
    """Run the job from its command line."""
    command_line.main(STAGE, run, __doc__)


if __name__ == "__main__":
    main()
