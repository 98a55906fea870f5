"""`itemsage doctor`: what would go wrong with these settings on this machine, found before anything runs.

Looks at the machine (Python, Java, packages, Delta's jars and the places that name its version), and at the input
tables: their columns, and a sample of their rows. Reads without a JVM, changes nothing, and takes seconds. Which rows
are rejected is for the jobs to say: their rules are Spark's expressions, and a second copy of them here would drift.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake.exceptions import DeltaError

from pipeline.commands import ROOT, jars_on_disk
from pipeline.litter import find_litter
from schemas.arrow import arrow_type
from schemas.columns import Table
from schemas.errors import EXIT_INPUT, InputError
from schemas.input_files import CORRECT_URI
from schemas.input_rows import input_rows
from schemas.input_tables import InputTable, look_at_input
from schemas.settings import Settings
from schemas.tables import EMBEDDING_DIM, ENGAGEMENT_LOGS, ITEM_IMAGES, ITEMS, QUERIES

SAMPLE_ROWS = 10_000
"""Rows of a table that are looked at: the first of its first files."""

Verdict = Literal["ok", "look", "fault"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at: ok; worth a look; or a fault, which would stop a run. The text says what to mend."""

    verdict: Verdict
    subject: str
    text: str


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
                  f"to {settings.dates.end:%Y-%m-%d}; warehouse {settings.layout.uri}")  # fmt: skip
    samples: dict[str, pa.Table] = {}
    for table in (ITEMS, ITEM_IMAGES, QUERIES, ENGAGEMENT_LOGS):
        if table is ITEM_IMAGES and not settings.inputs.has_images:
            continue
        sample = yield from table_findings(settings, table)
        if sample is not None:
            samples[table.name] = sample
    yield from content_findings(settings, samples)
    for litter in find_litter(settings):
        text = (
            f"{len(litter.paths):,} files, {litter.size / 1e6:,.1f} MB, which nothing reads; to remove: {litter.cure}"
        )
        yield Finding("look", litter.what, text)


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


def table_findings(settings: Settings, table: Table) -> Generator[Finding, None, pa.Table | None]:
    """Whether an input table is as the jobs need it, which read it as it is read here.

    Returns:
        A sample of its rows; None where there is none.
    """
    uri, subject = settings.table_uri(table.name), f"table {table.name}"
    try:
        found = look_at_input(uri, table)
        sample, unread = _sample(found)
    except (InputError, OSError, ValueError, DeltaError) as error:
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
    return sample


def _sample(found: InputTable) -> tuple[pa.Table | None, str]:
    """The first rows, of the columns that are not at fault; or why pyarrow, older than who wrote them, reads none."""
    usable = [name for name in found.known if name not in {fault.part for fault in found.faults}]
    schema = pa.schema([(name, arrow_type(found.table.column(name))) for name in usable])
    try:
        return _head(input_rows(found, usable), schema), ""
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        return None, " ".join(str(error).split())[:200]


def _head(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    """The first SAMPLE_ROWS rows; no more is read than the piece that holds the last of them."""
    taken: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        taken.append(batch)
        count += len(batch)
        if count >= SAMPLE_ROWS:
            break
    return pa.Table.from_batches(taken, schema).slice(0, SAMPLE_ROWS)


def content_findings(settings: Settings, samples: dict[str, pa.Table]) -> Iterator[Finding]:
    """What the sampled rows say: texts, lengths of vectors, kinds of queries, engagements, dates."""
    if ITEMS.name in samples:
        yield from _text_findings(settings, samples[ITEMS.name])
    if ITEM_IMAGES.name in samples:
        yield from _length_findings(
            samples[ITEM_IMAGES.name], ITEM_IMAGES, "image_embedding", settings.model.image_length, "model.image_length"
        )
    if QUERIES.name in samples:
        yield from _query_findings(settings, samples[QUERIES.name])
    if ENGAGEMENT_LOGS.name in samples:
        yield from _log_findings(settings, samples[ENGAGEMENT_LOGS.name])


def _text_findings(settings: Settings, items: pa.Table) -> Iterator[Finding]:
    wanted = settings.features.text_features
    present = [name for name in wanted if name in items.schema.names and items[name].null_count < len(items)]
    if present or "text" not in settings.model.sequence:
        yield Finding("ok", "texts of items", f"{len(present)} of {len(wanted)} features: {', '.join(present)}")
    else:
        found = ", ".join(items.schema.names)
        # Of a longer table, rows that were not looked at may have texts.
        yield Finding("fault" if len(items) < SAMPLE_ROWS else "look", "texts of items", f"none of {', '.join(wanted)} "
                      f"has a value; found {found}; rename the columns that hold texts")  # fmt: skip


def _length_findings(rows: pa.Table, table: Table, column: str, expected: int, key: str) -> Iterator[Finding]:
    if column not in rows.schema.names:
        return
    lengths, counts = np.unique(pc.list_value_length(rows[column].drop_null()).to_numpy(), return_counts=True)
    found = {int(length): int(count) for length, count in zip(lengths, counts, strict=True)}
    subject = f"table {table.name}, column {column}"
    if not found:
        yield Finding("look", subject, "no value in the sample")
    elif set(found) != {expected}:
        text = ", ".join(f"{length} numbers in {count:,} rows" for length, count in found.items())
        if expected in found:
            yield Finding("look", subject, f"{text}; all but {expected} ({key}) are rejected")
            return
        yield Finding("fault", subject, f"expected {expected} numbers ({key}); found {text}; set {key} to the length "
                      "of the vectors, or correct them")  # fmt: skip
    else:
        yield Finding("ok", subject, f"{expected} numbers in each of {sum(found.values()):,} rows")


def _query_findings(settings: Settings, queries: pa.Table) -> Iterator[Finding]:
    subject = "table queries, column query_kind"
    if "query_kind" in queries.schema.names:
        wanted = {task.query_kind for task in settings.task_list}
        found = {kind for kind in queries["query_kind"].unique().to_pylist() if kind}
        if missing := wanted - found:
            text = f"no query of kind {_names(missing)} in the sample; found {_names(found)}"
            yield Finding("look", subject, f"{text}; correct it, or take its [[tasks]] out")
        else:
            yield Finding("ok", subject, f"queries of every kind: {_names(wanted)}")
    if "query_embedding" in queries.schema.names:
        lengths = pc.unique(pc.list_value_length(queries["query_embedding"].drop_null())).to_pylist()
        if others := {str(length) for length in lengths if length != EMBEDDING_DIM}:
            text = f"{_names(others)} numbers: embed_queries projects them to {EMBEDDING_DIM}"
            yield Finding("look", "table queries, column query_embedding", text)


def _log_findings(settings: Settings, log: pa.Table) -> Iterator[Finding]:
    names = log.schema.names
    if "engagement" in names:
        subject = "table engagement_logs, column engagement"
        wanted = {task.engagement for task in settings.task_list}
        found = {name for name in log["engagement"].unique().to_pylist() if name}
        if wanted & found:
            yield Finding("ok", subject, f"of the tasks: {_names(wanted & found)}")
        else:
            text = f"none of {_names(wanted)}; found {_names(found)}"
            yield Finding("fault", subject, f"{text}; correct [[tasks]] or the log")
    if "event_ts" in names:
        dates, instants = settings.dates, log["event_ts"]
        inside = _count_inside(instants, dates.train_start, dates.end)
        window = f"{dates.train_start:%Y-%m-%d} up to {dates.end:%Y-%m-%d}"
        first, last = (str(value)[:19] for value in pc.min_max(instants).as_py().values())
        text = f"{inside:,} of {len(log):,} events of the sample from {window}; the sample runs from {first} to {last}"
        cure = "" if inside else "; correct dates.as_of"
        yield Finding("ok" if inside else "fault", "table engagement_logs, column event_ts", text + cure)


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names)[:20])


def _count_inside(instants: pa.ChunkedArray, start: Any, end: Any) -> int:
    low, high = (pa.scalar(when, instants.type) for when in (start, end))
    return int(pc.sum(pc.and_(pc.greater_equal(instants, low), pc.less(instants, high)), min_count=0).as_py())
