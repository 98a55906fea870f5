"""When too many rows of an input cannot be used: the run stops, and says which, why and what to do."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import reduce
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.runtime import table_io
from jobs.runtime.job_run import JobRun
from schemas.columns import Table
from schemas.errors import TableError

_MUCH = 0.5
"""Share of rows left out from which on a warning says so."""

_REASONS, _SAMPLES, _SAMPLE_CHARACTERS = 5, 3, 60
"""Most reasons of a message, values that each shows, and characters of a value."""


def require_few_rejects(
    job: JobRun[Any],
    source: Table,
    rejects: Table,
    *,
    harmless: Collection[str] = (),
    hint: Callable[[DataFrame], str] = lambda _: "",
) -> None:
    """Stop on an input that is broken as a whole; otherwise print what was rejected.

    Args:
        job: The run, whose rejects are written already.
        source: The input; `max_reject_share.<its name>` is the largest share that may be unusable.
        rejects: The rejected_* table.
        harmless: Reasons that are everyday business and do not count.
        hint: What the job can say about the input's rejects, as sentences; asked only where the run stops.

    Raises:
        TableError: more rows than that, or all, are unusable.
    """
    prefix = f"{source.name}: "
    counts = {name.removeprefix(prefix): n for name, n in job.rejected.items() if name.startswith(prefix)}
    total, share = job.row_count(source), float(getattr(job.settings.max_reject_share, source.name))
    if counts:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in _by_count(counts))
        print(f"  rejected {sum(counts.values()):,} of {total:,} rows of {source.name}: {reasons}", flush=True)
    uri = job.settings.table_uri(rejects.name)
    bad = {reason: count for reason, count in counts.items() if reason not in harmless}
    if not bad or (sum(bad.values()) <= share * total and sum(bad.values()) < total):
        _require_some_left(job, source, rejects, counts, total)
        return
    stored = _stored(job, source, uri, rejects)
    key = f"max_reject_share.{source.name}"
    raise refusal(
        source,
        stored,
        bad,
        expected=f"at most {share:.1%} unusable rows ({key})",
        found=f"{sum(bad.values()):,} of {total:,}",
        cure=f"{hint(stored)}See {uri}" + ("." if sum(bad.values()) == total else f", or raise {key}."),
    )


def _stored(job: JobRun[Any], source: Table, uri: str, rejects: Table) -> DataFrame:
    return table_io.read(job.spark, uri, rejects).where(F.col("source_table") == source.name)


def _require_some_left(job: JobRun[Any], source: Table, rejects: Table, counts: dict[str, int], total: int) -> None:
    """Bound what is left out for whatever reason, everyday ones too; say so from half of the rows on.

    Raises:
        TableError: more rows are left out than `max_reject_share.all_reasons`.
    """
    left_out, share = sum(counts.values()), job.settings.max_reject_share.all_reasons
    uri = job.settings.table_uri(rejects.name)
    if left_out > share * total:
        raise refusal(
            source,
            _stored(job, source, uri, rejects),
            counts,
            expected=f"at most {share:.1%} of the rows left out, for whatever reason (max_reject_share.all_reasons)",
            found=f"{left_out:,} of {total:,}",
            cure=f"See {uri}, each row with its cure; look at [dates] and [[tasks]], or raise the share.",
        )
    if left_out > _MUCH * total:
        print(f"  warning: {left_out:,} of {total:,} rows of {source.name} are left out; see {uri}", flush=True)


def refusal(
    source: Table, rejects: DataFrame, counts: dict[str, int], *, expected: str, found: str, cure: str
) -> TableError:
    """The error that names the commonest reasons with their counts, and some of the rows of each.

    Args:
        source: The input at fault.
        rejects: Its rejects: reason, source_column, cure, and columns that tell rows apart.
        counts: Reason -> rows.
        expected: What the input should have held.
        found: How many rows are unusable; the reasons follow.
        cure: What to do, after the cure of the commonest reason.
    """
    commonest = _by_count(counts)[:_REASONS]
    parts = [f"{reason} {count:,}{_samples(rejects.where(F.col('reason') == reason))}" for reason, count in commonest]
    first = rejects.where(F.col("reason") == commonest[0][0]).select("source_column", "cure").orderBy("source_column")
    column, its_cure = first.first() or ("(all)", "")
    reasons = ", ".join(parts) + (", ..." if len(counts) > _REASONS else "")
    return TableError(source.name, column, expected=expected, found=f"{found}: {reasons}", cure=f"{its_cure} {cure}")


def require_some_of_each(
    job: JobRun[Any], source: Table, rejects: Table, column: str, values: Collection[str], checked: list[DataFrame]
) -> None:
    """Stop where no row of a kind can be used, however few rows of it there are.

    Args:
        job: The run.
        source: The input.
        rejects: The rejected_* table.
        column: The column of `checked` that says the kind.
        values: The kinds that are needed; one of which there is no row at all is another stage's business.
        checked: Rows of `with_reject` that together are the input.

    Raises:
        TableError: all rows of a kind are rejected.
    """
    rows = reduce(DataFrame.unionByName, [part.select(*source.key, column, "reject") for part in checked])
    needed = rows.where(F.col(column).isin(sorted(values)))
    counted = needed.groupBy(column, F.col("reject.reason").alias("reason")).agg(F.count("*").alias("row_count"))
    counts: dict[str, dict[str | None, int]] = {}
    for row in counted.collect():
        counts.setdefault(row[column], {})[row["reason"]] = row["row_count"]
    for value, reasons in sorted(counts.items()):
        if None not in reasons:
            bad = {str(reason): count for reason, count in reasons.items()}
            raise refusal(
                source,
                rows.where(F.col(column) == value).select(*source.key, "reject.*"),
                bad,
                expected=f"some usable row with {column} {value!r}, which the settings name",
                found=f"all {sum(bad.values()):,} unusable",
                cure=f"See {job.settings.table_uri(rejects.name)}.",
            )


def matching_loosely(rejects: DataFrame, column: str, known: DataFrame) -> str:
    """A sentence about the rejects whose id is known in other letter case or with blanks around it; empty for none.

    Args:
        rejects: Rows of a rejected_* table, those with another reason than unknown_<what the column names> included.
        column: The id's column in both.
        known: Rows with the ids that are known.
    """
    unknown = rejects.where(F.col("reason") == f"unknown_{column.removesuffix('_id')}")
    folded = F.lower(F.trim(column)).alias("folded")
    both = unknown.select(column, folded).distinct().join(known.select(folded).distinct(), on="folded", how="left_semi")
    count = both.count()
    if not count:
        return ""
    return f"{count:,} {column}s match without case and blanks: write them alike in both tables. "


def _by_count(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))


def _samples(rejects: DataFrame) -> str:
    """The smallest values of the column at fault; the ids of the rows where the rejects lack it, or it is null."""
    own = {"reason", "source_table", "source_column", "expected", "cure"}
    names = [name for name, kind in rejects.dtypes if name not in own and kind in ("string", "timestamp")]
    at_fault = [F.when(F.col("source_column") == name, F.col(name).cast("string")) for name in names]
    value = F.coalesce(*at_fault, *[F.col(name).cast("string") for name in names])
    rows = rejects.select(F.substring(value, 1, _SAMPLE_CHARACTERS).alias("value")).distinct()
    values = [repr(row["value"]) for row in rows.where("value IS NOT NULL").orderBy("value").limit(_SAMPLES).collect()]
    return f" (such as {', '.join(values)})" if values else ""
