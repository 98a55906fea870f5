"""`itemsage doctor`: what would go wrong with these settings on this machine, found before anything runs.

Looks at the machine (Python, Java, packages, Delta's jars and the places that name its version), and at the input
tables: their columns, and a sample of their rows. Reads without a JVM, changes nothing, and takes seconds. Of the
rules by which the jobs reject rows it knows those of pipeline/expected_rejects.py.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Generator, Iterator
from importlib.metadata import PackageNotFoundError, version

import pyarrow as pa
from deltalake.exceptions import DeltaError

from jobs.runtime.litter import find_litter, unread_in_tables
from pipeline.commands import ROOT, jars_on_disk
from pipeline.findings import Finding, Sample
from pipeline.picture_findings import encoder_findings
from pipeline.sampled_rows import content_findings, reject_findings
from schemas.arrow import arrow_type
from schemas.columns import Table
from schemas.errors import EXIT_INPUT, DeadlineError, InputError
from schemas.input_files import CORRECT_URI
from schemas.input_rows import stored_rows
from schemas.input_tables import InputTable, look_at_input
from schemas.picture_tables import ITEM_PICTURES
from schemas.settings import Settings
from schemas.tables import ENGAGEMENT_LOGS

SAMPLE_ROWS, SAMPLE_EVENTS, SAMPLE_PICTURES = 10_000, 500_000, 100
"""Rows that are looked at: of a table; of the log, whose rows are short; of pictures, which are decoded."""

_SAMPLES = {ENGAGEMENT_LOGS.name: SAMPLE_EVENTS, ITEM_PICTURES.name: SAMPLE_PICTURES}


def examine(settings: Settings) -> int:
    """Print every finding; returns the exit code: 3 where there is a fault, else 0."""
    findings = []
    for finding in all_findings(settings):
        print(f"  {finding.verdict:<6}{finding.subject}: {finding.text}", flush=True)
        findings.append(finding)
    count = {verdict: sum(finding.verdict == verdict for finding in findings) for verdict in ("ok", "look", "fault")}
    print(f"faults: {count['fault']}; to look at: {count['look']}; ok: {count['ok']}")
    return EXIT_INPUT if count["fault"] else 0


def all_findings(settings: Settings) -> Iterator[Finding]:
    """Every finding, in the order in which a run would meet what it is about."""
    yield from machine_findings()
    yield from version_findings()
    yield Finding("ok", "settings", f"{len(settings.tasks)} tasks; logs from {settings.dates.train_start:%Y-%m-%d} up "
                  f"to {settings.dates.end:%Y-%m-%d}; warehouse {settings.layout.uri}"
                  + (f", registered as {settings.warehouse.name}" if settings.warehouse.name else ""))  # fmt: skip
    yield from encoder_findings(settings)
    samples: dict[str, Sample] = {}
    for table in settings.input_tables:
        sample = yield from table_findings(settings, table)
        if sample is not None:
            samples[table.name] = sample
    yield from content_findings(settings, samples)
    yield from reject_findings(settings, samples)
    yield from litter_findings(settings)


def litter_findings(settings: Settings) -> Iterator[Finding]:
    """What runs have left behind and nothing reads any more."""
    said = "{:,} files, {:,.1f} MB, which nothing reads; to remove: {}"
    for litter in find_litter(settings):
        yield Finding("look", litter.what, said.format(len(litter.paths), litter.size / 1e6, litter.cure))
    if (unread := unread_in_tables(settings)).files:
        cure = "spark-submit ... jobs/maintain_tables.py (docs/guide.md)"
        text = said.format(unread.files, unread.bytes / 1e6, cure)
        yield Finding("look", "files of replaced versions and of failed runs", text)


# ---------------------------------------------------------------- the machine


def machine_findings() -> Iterator[Finding]:
    """Python and Java, as `make` asks before it installs; and where Delta's jars lie."""
    check = [sys.executable, str(ROOT / "pipeline" / "preflight.py")]
    done = subprocess.run(check, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False)
    if done.returncode:
        yield Finding("fault", "Python and Java", done.stdout.strip().removeprefix("error: "))
    else:
        yield Finding("ok", "Python and Java", f"Python {platform.python_version()}, a Java that Spark 4 takes")
    if jars := jars_on_disk():
        yield Finding("ok", "Delta's jars", ", ".join(jars))
    else:
        yield Finding("look", "Delta's jars", "not on this disk; `make ready` fetches them, or set ITEMSAGE_DELTA_JARS")


def version_findings() -> Iterator[Finding]:
    """Packages that must agree: Spark with Delta, and Delta's version in every place that names it."""
    try:
        installed = {name: version(name) for name in ("pyspark", "delta-spark", "deltalake", "pyarrow", "torch")}
    except PackageNotFoundError as error:
        yield Finding("fault", "packages", f"{error.name} is not installed; run `make .venv/installed`")
        return
    yield Finding("ok", "packages", ", ".join(f"{name} {found}" for name, found in installed.items()))
    places = delta_versions() | {"the installed delta-spark": {installed["delta-spark"]}}
    named = set().union(*places.values())
    if len(named) > 1:
        text = "; ".join(f"{place} {', '.join(sorted(found))}" for place, found in places.items())
        yield Finding("fault", "Delta's version", f"one everywhere is expected; found {text}")
    else:
        yield Finding("ok", "Delta's version", f"{named.pop()} in {', '.join(places)}")


def delta_versions() -> dict[str, set[str]]:
    """Every version of delta-spark that a file of the project names, by file."""
    patterns = {
        "pyproject.toml": r"delta-spark==([\d.]+\d)",
        "spark-defaults.conf": r"delta-spark_2\.13:([\d.]+\d)",
        "README.md": r"delta-(?:spark_2\.13|storage):([\d.]+\d)",
        "pipeline/preflight.py": r'DELTA_VERSION = "([\d.]+)"',
    }
    return {file: set(re.findall(pattern, (ROOT / file).read_text())) for file, pattern in patterns.items()}


# ---------------------------------------------------------------- the input tables


def table_findings(settings: Settings, table: Table) -> Generator[Finding, None, Sample | None]:
    """Whether an input table is as the jobs need it, which read it as it is read here.

    Returns:
        A sample of its rows; None where there is none.
    """
    uri, subject = settings.input_name(table.name), f"table {table.name}"
    try:
        uri = settings.table_uri(table.name)
        found = look_at_input(uri, table)
        sample, unread = _sample(found)
    except (InputError, DeadlineError, OSError, ValueError, DeltaError) as error:
        cause = " ".join(str(error).removeprefix(f"table {table.name}, column (all): ").split())[:500]
        # Another place cures nothing but a table that is not at this one.
        key = f" (inputs.{table.name})" if getattr(error, "cure", "") == CORRECT_URI else ""
        yield Finding("fault", subject, f"cannot be read at {uri}: {cause}{key}")
        return None
    if found.unproven:
        yield Finding("look", subject, f"{uri} can only be opened by Spark: {found.unproven}")
        return None
    for fault in found.faults:
        yield Finding("fault", f"{subject}, column {fault.part}", f"expected {fault.expected}; found "
                      f"{fault.found}. {fault.cure}")  # fmt: skip
    if found.others:
        yield Finding("look", subject, f"columns that nothing reads: {', '.join(found.others)}")
    if not found.rows:
        yield Finding("fault", subject, f"no row at {uri}")
        return None
    if sample is None:
        yield Finding("look", subject, f"only Spark can read its rows: {unread}")
    elif not found.faults:
        yield Finding("ok", subject, f"{len(found.known)} columns; {len(sample):,} rows looked at, {uri}: {found}")
    return None if sample is None else Sample(sample, found)


def _sample(found: InputTable) -> tuple[pa.Table | None, str]:
    """The first rows, of the columns that are not at fault; or why pyarrow, older than who wrote them, reads none."""
    usable = [name for name in found.known if name not in {fault.part for fault in found.faults}]
    schema = pa.schema([(name, arrow_type(found.table.column(name))) for name in usable])
    try:
        most = _SAMPLES.get(found.table.name, SAMPLE_ROWS)
        return _head(stored_rows(found, usable), schema, most), ""
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        return None, " ".join(str(error).split())[:200]


def _head(batches: Iterator[pa.RecordBatch], schema: pa.Schema, most: int) -> pa.Table:
    """The first rows; no more is read than the piece that holds the last of them."""
    taken: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        taken.append(batch)
        count += len(batch)
        if count >= most:
            break
    return pa.Table.from_batches(taken, schema).slice(0, most)
