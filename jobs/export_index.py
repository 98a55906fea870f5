"""An index of a published version, measured before it takes the place of the former one.

Reads: one version of item_embeddings, the query_vectors that belong to it, item_changes, and which queries
held_out_<task> has.
Writes: no table, so no "one row": files at index.folder, of which a manifest and then a pointer make an index
(retrieval/manifest.py). What was measured stands in the manifest and in the run record.
Safe to rerun: nothing is done where that version is indexed already; a run that was ended half-way leaves the former
index in use, and files that the next run removes.

    spark-submit --properties-file spark-defaults.conf jobs/export_index.py --settings pipeline.toml
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import pyarrow as pa
from pydantic import TypeAdapter
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.runtime import command_line
from jobs.runtime.job_run import JobRun
from jobs.transforms.keys import item_key
from retrieval.build_index import build_name, describe, shard_of, with_shards, write_index, write_shard
from retrieval.certificate import certificate, lines, require_certified
from retrieval.deltas import RebuildNeeded, follow
from retrieval.filters import filter_columns
from retrieval.index import load
from retrieval.manifest import Certificate, Manifest, ShardFiles, discard, find_manifest, is_there, live_build, publish
from retrieval.measure import Filter, Measured, Questions, filters_of, measure, merged
from retrieval.questions import questions_of
from retrieval.shards import BuildSettings
from retrieval.source import checked, item_columns, published_items
from schemas.code_version import code_version
from schemas.errors import GateError, InputError, leaving_a_worker
from schemas.lease import require_held
from schemas.metrics import IndexMetrics
from schemas.published import Published, live, published_version
from schemas.records import find_record
from schemas.repeats import AlreadyDone
from schemas.retention import require_files
from schemas.settings import Settings
from schemas.stages import EXPORT_INDEX
from schemas.storage import absolute_uri
from schemas.tables import ITEM_EMBEDDINGS

STAGE = EXPORT_INDEX
_MADE = "shard string, items long, measured array<binary>"


@dataclass(frozen=True)
class Exam:
    """What an index is measured by."""

    questions: Questions
    filters: Sequence[Filter]
    min_recall: float

    def certify(self, measured: Sequence[Measured]) -> Certificate:
        """What was measured, as a certificate."""
        return certificate(measured, self.questions, self.filters, self.min_recall)


@dataclass(frozen=True)
class Export:
    """An index that is written, measured, and not in use yet: its manifest, the name of its build, and how it came."""

    manifest: Manifest
    build: str
    how: str


def build(
    items: DataFrame, draft: Manifest, folder: str, name: str, exam: Exam
) -> tuple[list[ShardFiles], list[Measured]]:
    """One shard for each value of `shard`, built, written, read back and measured by a worker.

    Args:
        items: item_id, embedding, model_id, the filter columns, and `shard`.
        draft: What the shards are of.
        folder: Where they are written.
        name: Of the build.
        exam: What each is measured by, on the rows that it holds.

    Returns:
        The files of the shards, and what was measured of all of them together, for each filter.
    """
    make = _maker(draft, folder, name, exam)
    made = items.groupBy("shard").applyInArrow(make, _MADE).toArrow().sort_by("shard").to_pylist()
    shards = [TypeAdapter(ShardFiles).validate_python(json.loads(row["shard"])) for row in made]
    by_filter = zip(*(map(Measured.from_bytes, row["measured"]) for row in made), strict=True)
    return shards, [merged(parts) for parts in by_filter]


def _maker(draft: Manifest, folder: str, name: str, exam: Exam) -> Callable[[pa.Table], pa.Table]:
    def make(rows: pa.Table) -> pa.Table:
        with leaving_a_worker():
            number, batches = rows["shard"][0].as_py(), rows.drop_columns(["shard"]).to_batches()
            shard = shard_of(checked(batches, draft.model_id), draft.build)
            files = write_shard(shard, folder, name, f"{number:05}")
            # What is measured is what a reader will find.
            index = load(folder, replace(draft, shards=(files,), items=files.items))
            measured = measure(index, checked(batches, draft.model_id), exam.questions, exam.filters)
        row = {
            "shard": json.dumps(asdict(files)),
            "items": files.items,
            "measured": [one.to_bytes() for one in measured],
        }
        return pa.Table.from_pylist([row])

    return make


def run(spark: SparkSession, settings: Settings) -> None:
    """Export the version that the settings name, unless it is there."""
    always = settings.model_copy(update={"rerun": True})  # whether it is done stands in the manifest
    with JobRun(spark, always, STAGE) as job:
        found, folder = _version(settings), absolute_uri(settings.index_folder).rstrip("/")
        for read in found.outputs[:2]:  # items and queries; of short vectors there is no index
            job.count_input(read)
        if not (settings.rerun or settings.index.rebuild):
            _stop_if_done(settings, found, folder)
        exported = _export(spark, settings, found, folder)
        assert exported.manifest.certificate is not None
        print("\n".join(f"  {line}" for line in lines(exported.manifest.certificate)), flush=True)
        try:
            require_certified(exported.manifest.certificate, f"index of version {found.version}")
        except GateError:
            discard(folder, exported.build)
            raise
        require_held()
        publish(folder, exported.build, exported.manifest)
        job.metrics = _metrics(exported)
        print(f"  in use: {folder}, {exported.how}", flush=True)


def _version(settings: Settings) -> Published:
    wanted = settings.index.version
    if wanted != "live":
        return published_version(settings.layout, wanted)
    found = live(settings.layout)
    if found is None:
        cure = "Score and publish a catalog first: `itemsage score`."
        raise InputError(ITEM_EMBEDDINGS.name, "", expected="a published version", found="none", cure=cure)
    return found


def _stop_if_done(settings: Settings, found: Published, folder: str) -> None:
    """Leave where the record says that this version was indexed with these settings and this code, and it is there.

    Raises:
        AlreadyDone: so it is.
    """
    try:
        record, manifest = find_record(settings.layout, STAGE), find_manifest(folder)
    except InputError:  # whatever is damaged is made anew
        return
    if record is None or manifest is None or record.metrics.build != live_build(folder):
        return
    is_same = record.settings["index"] == settings.index.model_dump(mode="json") and record.code == code_version()
    if is_same and manifest.version == found.version and is_there(folder, manifest):
        raise AlreadyDone(record)


def _export(spark: SparkSession, settings: Settings, found: Published, folder: str) -> Export:
    """Follow the change feed where that is possible and good enough; else build anew."""
    chosen = settings.index
    columns = filter_columns(found.outputs[0].uri, found.version)
    questions = questions_of(found, settings.task_list, chosen.queries_per_kind, chosen.slices)
    filters = filters_of(chosen.selectivities, found.items(list(columns)), list(columns))
    exam = Exam(questions, filters, chosen.min_recall)
    keys = BuildSettings.__dataclass_fields__
    how = BuildSettings(**{key: getattr(chosen, key) for key in keys})
    try:
        return _followed(settings, found, folder, how, exam)
    except RebuildNeeded as why:
        print(f"  built anew: {why}", flush=True)
        return _built(spark, found, folder, how, exam, f"built anew: {why}")


def _followed(settings: Settings, found: Published, folder: str, how: BuildSettings, exam: Exam) -> Export:
    """The index in use, brought to the version by the change feed.

    Raises:
        RebuildNeeded: as of `follow`; there is none, it is damaged, or it would be below the bar.
    """
    if settings.index.rebuild:
        raise RebuildNeeded("index.rebuild is set")
    try:
        before = find_manifest(folder)
        if before is None:
            raise RebuildNeeded("there is none yet")
        if before.version > found.version:
            raise RebuildNeeded(f"it holds version {before.version}, a later one")
        index = load(folder, before)
    except InputError as error:
        raise RebuildNeeded(f"the one in use cannot be read: {error}") from error
    followed = follow(index, folder, found, how, settings.index.max_delta_share)
    # Read back, as a reader will find it.
    index = load(folder, followed.manifest)
    certified = exam.certify(measure(index, published_items(found), exam.questions, exam.filters))
    if certified.weakest.recall < exam.min_recall:
        discard(folder, followed.build)
        raise RebuildNeeded(f"by the change feed its recall would be {certified.weakest.recall:.3f}")
    said = f"by the change feed from version {before.version}"
    return Export(replace(followed.manifest, certificate=certified), followed.build, said)


def _built(spark: SparkSession, found: Published, folder: str, how: BuildSettings, exam: Exam, said: str) -> Export:
    """An index of the whole version: in this process where it fits one shard, else by Spark's workers."""
    rows = found.outputs[0].rows
    shards = math.ceil(rows / how.items_per_shard)
    if shards <= 1:
        manifest, name = write_index(found, folder, how)
        measured = measure(load(folder, manifest), published_items(found), exam.questions, exam.filters)
    else:
        name, draft = build_name(found.version), describe(found, how)
        items = _items(spark, found, draft, shards)
        parts, measured = build(items, draft, folder, name, exam)
        manifest = with_shards(draft, parts)
    return Export(replace(manifest, certificate=exam.certify(measured)), name, said)


def _items(spark: SparkSession, found: Published, draft: Manifest, shards: int) -> DataFrame:
    """The rows of a version, and the shard of each: its key modulo their number."""
    uri = found.outputs[0].uri
    require_files(ITEM_EMBEDDINGS.name, uri, found.version)
    rows = spark.read.format("delta").option("versionAsOf", found.version).load(uri)
    shard = F.pmod(item_key("item_id"), F.lit(shards)).alias("shard")
    return rows.select(*item_columns(draft.columns), shard)


def _metrics(exported: Export) -> IndexMetrics:
    manifest = exported.manifest
    delta, certified = manifest.delta, manifest.certificate
    return IndexMetrics(
        manifest.version,
        manifest.model_id,
        exported.build,
        exported.how,
        items=manifest.items,
        shards=len(manifest.shards),
        adds=delta.adds.items if delta and delta.adds else 0,
        tombstones=delta.tombstones if delta else 0,
        recall={figure.name: round(figure.recall, 4) for figure in certified.figures} if certified else {},
    )


def main() -> None:
    """Entry point of spark-submit."""
    command_line.main(STAGE, run, __doc__)


if __name__ == "__main__":
    main()
