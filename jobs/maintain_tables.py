"""Compact what grows by appending, and remove what nothing reads any more: by default, only list it.

Reads: the logs of all tables in the warehouse, the run records.
Writes: runs, its files compacted; no other table gets a new row, so no "one row". What was removed is counted in its
run record.
Safe to rerun: with `maintenance.dry_run = true` nothing is removed. No version that a run record names loses a file,
nothing younger than `maintenance.retention_hours` is touched, and no run can write the warehouse meanwhile.

    spark-submit --properties-file spark-defaults.conf jobs/maintain_tables.py --settings pipeline.toml \
        --set maintenance.dry_run=false
"""

from __future__ import annotations

from deltalake import DeltaTable
from pyspark.sql import SparkSession

from jobs.runtime import command_line
from jobs.runtime.job_run import JobRun
from jobs.runtime.litter import find_litter, table_folders, unread_files
from schemas.metrics import MaintenanceMetrics, Removed
from schemas.settings import Settings
from schemas.stages import MAINTAIN_TABLES
from schemas.tables import RUNS

STAGE = MAINTAIN_TABLES


def run(spark: SparkSession, settings: Settings) -> None:
    """Tidy the warehouse, while nobody else writes it."""
    always = settings.model_copy(update={"rerun": True})  # what there is to do stands in no record
    with JobRun(spark, always, STAGE) as job:
        job.metrics = MaintenanceMetrics(settings.maintenance.dry_run, _compact_runs(settings), *_tidy(settings))


def _compact_runs(settings: Settings) -> int:
    """Rewrite the many small files of `runs` into few; returns by how many they are fewer."""
    uri = settings.table_uri(RUNS.name)
    if settings.maintenance.dry_run or not DeltaTable.is_deltatable(uri):
        return 0
    done = DeltaTable(uri).optimize.compact()
    return int(done["numFilesRemoved"]) - int(done["numFilesAdded"])


def _tidy(settings: Settings) -> tuple[dict[str, Removed], dict[str, Removed]]:
    """List and remove; returns what there was by table, and by kind of other files."""
    is_dry, hours = settings.maintenance.dry_run, settings.maintenance.retention_hours
    tables: dict[str, Removed] = {}
    for uri in table_folders(settings.layout):
        found = unread_files(settings.layout, uri, hours)
        name = uri.rpartition("/")[2]
        _say(found, name, is_dry)
        if found.files and not is_dry:
            unread_files(settings.layout, uri, hours, remove=True)
        tables |= {name: found} if found.files else {}
    others: dict[str, Removed] = {}
    for litter in find_litter(settings, hours):
        found = Removed(len(litter.paths), litter.size)
        _say(found, litter.what, is_dry)
        if not is_dry:
            litter.remove()
        others[litter.what] = found
    return tables, others


def _say(found: Removed, what: str, is_dry: bool) -> None:
    if found.files:
        verb = "would remove" if is_dry else "removing"
        print(f"  {verb} {found.files:,} files, {found.bytes / 1e6:,.1f} MB: {what}", flush=True)


def main() -> None:
    """Entry point of spark-submit."""
    command_line.main(STAGE, run, __doc__)


if __name__ == "__main__":
    main()
