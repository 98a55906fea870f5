"""Give every query its frozen embedding: its own at unit length, one of the pictures it shows, or one of its text.

Reads: queries; items (to fit the text encoder, which embed_items reads too); item_images, for kinds of queries that
pictures.query_kinds names; with query_encoder.kind = "trained" the model that train_query_encoder left.
Writes: query_embeddings, rejected_queries; the encoder at `<warehouse>/query_encoder/`, and at
`<warehouse>/query_projections/` how pictures, and embeddings of another length, become 256 numbers, once a space.
One row is: one query with its embedding; one query that cannot be used, and why.
Safe to rerun because: the encoder is fitted on a fixed sample in a fixed order, texts are encoded in groups that depend
on the texts alone, and one commit changes each table. Where the encoder is that of the last run, as with
`query_encoder.refit = false`, only queries that have changed are embedded and written.

    spark-submit --properties-file spark-defaults.conf jobs/embed_queries.py --settings pipeline.toml
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import reduce

import numpy as np
import pyarrow as pa
import safetensors.numpy
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from itemsage_model.encoders.frozen_text.stored import fit_encoder, from_bytes, load_recorded, save, to_bytes
from itemsage_model.encoders.frozen_text.text_encoder import TextEncoder
from itemsage_model.encoders.frozen_text.trained import TrainedEncoder
from itemsage_model.encoders.model_files import load_model
from itemsage_model.encoders.projection import Projection, fit_projection, load_projection, save_projection
from itemsage_model.encoders.query_tower import QueryTowerSpec
from itemsage_model.encoders.text_transformer import require_extra
from jobs.runtime import command_line
from jobs.runtime.incremental import find_kept, maker, merge_rows
from jobs.runtime.job_run import JobRun
from jobs.runtime.rejects import require_few_rejects, require_some_of_each
from jobs.transforms.items import broken_texts
from jobs.transforms.quarantine import Check, accepted, rejected, with_reject
from jobs.transforms.queries import FIT_FEATURES, catalog_texts, count_texts, with_verdicts
from jobs.transforms.query_pictures import with_picture_embeddings
from schemas.cells import to_list_column, to_matrix
from schemas.errors import SettingsError, TableError
from schemas.metrics import QueryMetrics
from schemas.records import find_record
from schemas.settings import QueryEncoderSettings, Settings
from schemas.stages import EMBED_IMAGES, EMBED_QUERIES, TRAIN_QUERY_ENCODER
from schemas.tables import (
    EMBEDDING_DIM,
    ITEM_IMAGES,
    ITEMS,
    MAX_TEXT_CHARACTERS,
    QUERIES,
    QUERY_EMBEDDINGS,
    REJECTED_QUERIES,
    SOURCE_HASH,
)
from schemas.warehouse import Warehouse

STAGE = EMBED_QUERIES


FIT_QUERIES = 20_000
"""Most queries that a projection is fitted on, and that its loss is measured on, chosen by hash."""

_MIN_KEPT = 0.8
_TINY = 1e-12


_ENCODED = "query_id string, query_kind string, query_embedding array<float>, query_item_id string, source_hash long"


def check_spaces(usable: DataFrame, encoder_name: str | None) -> dict[str, str]:
    """Refuse two embedding spaces within one query kind: their cells cannot be compared.

    Args:
        usable: Accepted queries.
        encoder_name: The space of queries without an embedding.

    Returns:
        Query kind -> its space.

    Raises:
        TableError: a kind mixes spaces.
    """
    own = F.when(F.col("query_embedding").isNotNull(), F.col("embedding_space"))
    spaces = usable.select("query_kind", F.coalesce(own, F.lit(encoder_name)).alias("space")).distinct()
    found: dict[str, list[str]] = {}
    for row in spaces.orderBy("query_kind", "space").collect():
        found.setdefault(row["query_kind"], []).append(row["space"])
    for kind, names in found.items():
        if len(names) > 1:
            raise TableError(
                QUERIES.name,
                "embedding_space",
                expected=f"one embedding space for all {kind} queries",
                found=" and ".join(names),
                cure="Embed all of them with one encoder, or leave query_embedding null and the pipeline does.",
            )
    return {kind: name for kind, (name,) in found.items()}


def fit_projections(usable: DataFrame, layout: Warehouse, of_pictures: str = "") -> dict[str, Projection]:
    """The projection of pictures, and of each space whose embeddings have another length than 256.

    Each is fitted once, and then kept.

    Args:
        usable: Accepted queries, one space per kind.
        layout: Where projections are kept.
        of_pictures: The space of pictures, empty = there is none. Its projection leaves out the direction of the mean,
            and is fitted on one query of each product that is shown, as many may show the same.

    Raises:
        TableError: a space was projected before, from another length.
    """
    is_projected = (F.col("embedding_length") != EMBEDDING_DIM) | (F.col("embedding_space") == of_pictures)
    others = usable.where(F.col("query_embedding").isNotNull() & is_projected)
    found = others.select("embedding_space", "embedding_length").distinct().orderBy("embedding_space").collect()
    projections = {}
    for space, length in found:
        uri = layout.query_projection(space)
        own, is_of_pictures = others.where(F.col("embedding_space") == space), space == of_pictures
        if is_of_pictures:
            shown = F.coalesce("query_item_id", "query_id").alias("shown")
            own = own.groupBy(shown).agg(F.min_by(F.struct("query_id", "query_embedding"), "query_id").alias("one"))
            own = own.select("one.*")
        chosen = own.orderBy(F.xxhash64("query_id"), "query_id")
        rows = chosen.limit(FIT_QUERIES).select("query_embedding").toArrow()
        sample = to_matrix(rows["query_embedding"])
        projection = load_projection(uri)
        if projection is None:
            projection = fit_projection(space, sample, has_common_direction=is_of_pictures)
            save_projection(projection, uri)
        if projection.length != length:
            raise TableError(
                QUERIES.name,
                "query_embedding",
                expected=f"{projection.length} numbers, from which {space} was projected before ({uri})",
                found=f"{length} numbers",
                cure="Give the embeddings of another encoder another embedding_space.",
            )
        share = projection.kept_share(sample)
        kept = f"{share:.1%} of the squared length kept"
        print(f"  embeddings of {space}: {length} numbers projected to {EMBEDDING_DIM}, {kept}", flush=True)
        if is_of_pictures and projection.common is None:
            print(
                f"  warning: {space} was fitted before its direction common to all was left out, or on one product; "
                f"remove {uri} to fit anew, and train again",
                flush=True,
            )
        if share < _MIN_KEPT:
            print(f"  warning: {space} was fitted on other queries than today's; remove {uri} to fit anew", flush=True)
        projections[space] = replace(projection, explained_variance=share)
    return projections


def build(
    verdicts: DataFrame,
    encoder: TextEncoder | None,
    group_count: int,
    projections: dict[str, Projection] | None = None,
) -> DataFrame:
    """Embed the queries of `with_verdicts` that passed, with `reject` where the text holds no known token.

    Args:
        verdicts: Output of `with_verdicts`.
        encoder: The fitted encoder; None where every accepted query has an embedding.
        group_count: Number of groups in which texts are encoded.
        projections: Space -> its projection, where its embeddings have another length than 256.
    """
    usable = accepted(verdicts)
    own = usable.where(F.col("query_embedding").isNotNull()).select(*QUERY_EMBEDDINGS.column_names)
    projected = projections or {}
    parts = [own.where(~F.col("embedding_space").isin(list(projected))) if projected else own]
    parts += [own.where(F.col("embedding_space") == space) for space in projected]
    functions = [_to_unit_length(None), *(_to_unit_length(projection) for projection in projected.values())]
    embedded = reduce(
        DataFrame.unionByName,
        [part.mapInArrow(function, own.schema) for part, function in zip(parts, functions, strict=True)],
    )
    if encoder is not None:
        group = F.pmod(F.xxhash64("text"), F.lit(group_count)).alias("group")
        cut = usable.withColumn("text", F.substring("text", 1, MAX_TEXT_CHARACTERS))
        groups = cut.where(F.col("query_embedding").isNull()).groupBy(group)
        from_text = groups.applyInArrow(_encode_group(usable.sparkSession, encoder), _ENCODED)
        embedded = embedded.unionByName(from_text.withColumn("embedding_space", F.lit(encoder.name)))
    is_zero = F.forall("query_embedding", lambda number: number == 0)
    is_projected = F.col("embedding_space").isin([projection.name for projection in projected.values()])
    cure = "Correct the text, give an embedding, or raise query_encoder.lsa_vocabulary."
    checks = [
        Check("lost_in_projection", is_zero & is_projected, "query_embedding", "a vector that its projection keeps",
              "Remove the space's folder in query_projections to have it fitted anew, and train again."),
        Check("unknown_text", is_zero, "text", "a text with a word that the catalog uses", cure),
    ]  # fmt: skip
    return with_reject(embedded, QUERIES, checks)


def run(spark: SparkSession, settings: Settings) -> None:
    """Read the queries, fit the encoder where it is needed, embed, write."""
    with JobRun(spark, settings, STAGE) as job:
        verdicts = with_verdicts(_read(job), settings.pictures.query_kinds).persist(StorageLevel.MEMORY_AND_DISK)
        usable = accepted(verdicts)
        texts = count_texts(usable)
        items = job.read(ITEMS)
        broken = broken_texts(items, FIT_FEATURES)
        encoder = kept_encoder(job) or trained_encoder(job)
        if encoder is None:
            is_needed = bool(usable.where("has_text").limit(1).count())
            encoder = _fit(items, settings.query_encoder, broken, is_needed=is_needed)
        name = encoder.name if encoder else None
        spaces = check_spaces(usable, name)
        projections = fit_projections(usable, settings.layout, _picture_space(job))
        spaces |= {kind: projections[space].name for kind, space in spaces.items() if space in projections}
        made_by = maker(name, *sorted(projection.name for projection in projections.values()))
        changes = find_kept(job, QUERY_EMBEDDINGS, usable.select("query_id", SOURCE_HASH), made_by)
        to_embed, groups = verdicts, texts.groups
        if changes is not None:
            to_embed = verdicts.join(changes.to_make, on="query_id", how="left_semi")
            groups = count_texts(accepted(to_embed)).groups
        embedded = build(to_embed, encoder, groups, projections).persist(StorageLevel.MEMORY_AND_DISK)
        unread = verdicts.where(F.col("reject").isNotNull())
        refused = [rejected(rows, REJECTED_QUERIES) for rows in (unread, embedded)]
        job.write_rejected(refused[0].unionByName(refused[1]), REJECTED_QUERIES)
        require_few_rejects(job, QUERIES, REJECTED_QUERIES, harmless=["duplicate_query"])
        kinds = [task.query_kind for task in settings.task_list]
        # Rows that stay have been found usable.
        sound = verdicts.where(F.col("reject").isNull())
        stay = [] if changes is None else [sound.join(changes.rows, on="query_id", how="left_anti")]
        require_some_of_each(job, QUERIES, REJECTED_QUERIES, "query_kind", kinds, [unread, embedded, *stay])
        if encoder is not None:
            save(encoder, settings.layout.query_encoder)
        kept = 0
        if changes is None:
            job.write(accepted(embedded), QUERY_EMBEDDINGS)
        else:
            kept = merge_rows(job, accepted(embedded), QUERY_EMBEDDINGS, changes).count() - accepted(embedded).count()
        explained = round(encoder.explained_variance, 4) if encoder else None
        projected = {space: round(one.explained_variance, 4) for space, one in projections.items()}
        job.metrics = QueryMetrics(
            name, texts.texts, spaces, explained, projected, texts.cut, sum(broken.values()), kept, made_by
        )
        embedded.unpersist()
        verdicts.unpersist()


def _read(job: JobRun[QueryMetrics]) -> DataFrame:
    """The queries, those of pictures.query_kinds with the embeddings of the pictures that they show."""
    queries, settings = job.read(QUERIES), job.settings
    if not settings.pictures.query_kinds:
        return queries
    kinds, most = settings.pictures.query_kinds, settings.model.max_images
    return with_picture_embeddings(queries, job.read(ITEM_IMAGES), kinds, _picture_space(job), most)


def _picture_space(job: JobRun[QueryMetrics]) -> str:
    """The embedding space of pictures, where any kind of queries has it; empty = none has."""
    return job.record(EMBED_IMAGES).metrics.encoder if job.settings.pictures.query_kinds else ""


def kept_encoder(job: JobRun[QueryMetrics]) -> TextEncoder | None:
    """The encoder of the last run, where the settings say that it is not to be fitted anew; None = fit one.

    Raises:
        SettingsError: it was fitted by other settings of [query_encoder].
        InputError: the warehouse holds another one.
    """
    wanted = job.settings.query_encoder
    last = None if wanted.refit else find_record(job.settings.layout, STAGE)
    if last is None:
        return None
    fitted = QueryEncoderSettings.model_validate(last.settings["query_encoder"])
    aside = {"refit": False, "item_text": ()}
    if fitted.model_copy(update=aside) != wanted.model_copy(update=aside):
        raise SettingsError(
            "query_encoder.refit = false keeps the encoder of the last run, which was fitted by other settings of "
            "[query_encoder]. Put them back, or fit it anew (refit = true) and run all stages again."
        )
    return load_recorded(job.settings.layout, last.metrics.encoder)


def trained_encoder(job: JobRun[QueryMetrics]) -> TextEncoder | None:
    """The encoder that train_query_encoder trained last, where the settings want it; None = another kind.

    Raises:
        InputError: none was trained in this warehouse.
        CheckpointError: its files are missing or damaged.
        SettingsError: the extra is not installed: said here, and not by a worker in the middle of the work.
    """
    if job.settings.query_encoder.kind != "trained":
        return None
    require_extra()
    model = load_model(job.record(TRAIN_QUERY_ENCODER).metrics.model_uri, QueryTowerSpec)
    prefix, weights = "text.", safetensors.numpy.load(model.weights)
    own = {name.removeprefix(prefix): values for name, values in weights.items() if name.startswith(prefix)}
    return TrainedEncoder(model.spec.text, own)


def _fit(
    items: DataFrame, settings: QueryEncoderSettings, broken: dict[str, int], *, is_needed: bool
) -> TextEncoder | None:
    """The encoder, fitted on the catalog; None where no item has a word, unless queries need it.

    `broken` says of each column how many of its texts are no UTF-8.
    """
    said = ", ".join(f"{count:,} in {column}" for column, count in broken.items())
    if said:
        print(f"  warning: texts of items that are no UTF-8 are left out: {said}", flush=True)
    texts = [row["text"] for row in catalog_texts(items).collect()]
    try:
        return fit_encoder(settings, texts)
    except SettingsError:
        raise
    except ValueError as error:
        if not is_needed:
            return None
        raise TableError(
            ITEMS.name,
            "title",
            expected="text of the catalog, to fit the query encoder on",
            found=f"{error}; texts that are no UTF-8: {said}" if said else str(error),
            cure=f"{'Write the texts as UTF-8' if said else 'Fill the text features'}, or give every query an "
            "embedding and no text.",
        ) from error


def _encode_group(spark: SparkSession, encoder: TextEncoder) -> Callable[[pa.Table], pa.Table]:
    stored = spark.sparkContext.broadcast(to_bytes(encoder))

    def encode(queries: pa.Table) -> pa.Table:
        texts = queries["text"].to_pylist()
        distinct = sorted(set(texts))
        encoded = from_bytes(*stored.value).encode(distinct)
        row_of = {text: row for row, text in enumerate(distinct)}
        embeddings = to_list_column(encoded[[row_of[text] for text in texts]])
        kept = queries.select(["query_id", "query_kind", "query_item_id", SOURCE_HASH])
        return kept.add_column(2, "query_embedding", embeddings)

    return encode


def _to_unit_length(projection: Projection | None) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Scales embeddings to length 1; of another length than 256, projects them first, and names the space anew."""

    def convert(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            numbers = to_matrix(batch.column("query_embedding"))
            exact, changed = numbers.astype(np.float64), {}
            if projection is not None:
                exact = projection.apply(numbers)
                changed["embedding_space"] = pa.array([projection.name] * len(batch), pa.string())
            lengths = np.linalg.norm(exact, axis=1, keepdims=True)
            # A vector that its projection maps to zero stays zero, and is rejected.
            unit = np.divide(exact, lengths, out=np.zeros_like(exact), where=lengths > _TINY).astype(np.float32)
            changed["query_embedding"] = to_list_column(unit)
            columns = [changed.get(name, batch.column(name)) for name in batch.schema.names]
            yield pa.RecordBatch.from_arrays(columns, batch.schema.names)

    return convert


def main() -> None:
    """Run the job from the command line."""
    command_line.main(STAGE, run, __doc__)


if __name__ == "__main__":
    main()
