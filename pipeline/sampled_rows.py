"""What the rows say that `doctor` looks at: what they hold, and how many of them the jobs will reject."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.transforms.engagements import EVERYDAY_REASONS
from pipeline.expected_rejects import RULES, Known, Mask, Rule, first_rules
from pipeline.findings import Finding, Sample
from schemas.columns import Table
from schemas.input_rows import readable, stored_rows
from schemas.settings import Settings
from schemas.tables import EMBEDDING_DIM, ENGAGEMENT_LOGS, ITEM_IMAGES, ITEMS, QUERIES

MOST_IDS = 1_000_000
"""Rows of a table up to which all of its ids are read, to know those that other tables name."""

HARMLESS = ("duplicate_item", "duplicate_image", "duplicate_query", *EVERYDAY_REASONS)
"""Reasons that do not count as bad rows."""

_VALUES, _CHARACTERS = 3, 60
"""Values at fault that a finding shows, and characters of a value."""


def content_findings(settings: Settings, samples: Mapping[str, Sample]) -> Iterator[Finding]:
    """What the sampled rows say: texts, lengths of vectors, kinds of queries, engagements, dates."""
    rows = {name: readable(sample.rows) for name, sample in samples.items()}
    if ITEMS.name in rows:
        yield from _text_findings(settings, rows[ITEMS.name], is_whole=samples[ITEMS.name].is_whole)
    if ITEM_IMAGES.name in rows:
        yield from _length_findings(
            rows[ITEM_IMAGES.name], ITEM_IMAGES, "image_embedding", settings.model.image_length, "model.image_length"
        )
    if QUERIES.name in rows:
        yield from _query_findings(settings, rows[QUERIES.name])
    if ENGAGEMENT_LOGS.name in rows:
        yield from _log_findings(settings, rows[ENGAGEMENT_LOGS.name])


def _text_findings(settings: Settings, items: pa.Table, *, is_whole: bool) -> Iterator[Finding]:
    wanted = settings.features.text_features
    present = [name for name in wanted if name in items.schema.names and items[name].null_count < len(items)]
    if present or "text" not in settings.model.sequence:
        yield Finding("ok", "texts of items", f"{len(present)} of {len(wanted)} features: {', '.join(present)}")
    else:
        found = ", ".join(items.schema.names)
        # Of a longer table, rows that were not looked at may have texts.
        yield Finding("fault" if is_whole else "look", "texts of items", f"none of {', '.join(wanted)} "
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


# ---------------------------------------------------------------- rows that the jobs will reject


def reject_findings(settings: Settings, samples: Mapping[str, Sample]) -> Iterator[Finding]:
    """Whether a run stops because too many rows of a table cannot be used, as far as expected_rejects knows."""
    known = _known(samples)
    for name, sample in samples.items():
        if sample.found.faults:  # a run stops before it
            continue
        rules = RULES[name](sample.rows, settings, known)
        broken = first_rules(rules, len(sample.rows))
        counts = {number: int((broken == number).sum()) for number in np.unique(broken[broken >= 0]).tolist()}
        bad = sum(count for number, count in counts.items() if rules[number].reason not in HARMLESS)
        yield _reject_finding(settings, sample, bad, sum(counts.values()), _said(sample.rows, rules, broken, counts))


def _reject_finding(settings: Settings, sample: Sample, bad: int, left_out: int, reasons: str) -> Finding:
    """The verdict on rows that are bad, and on those that are left out for whatever reason."""
    name, looked, total = sample.found.table.name, len(sample.rows), sample.found.rows or 0
    share, all_reasons = getattr(settings.max_reject_share, name), settings.max_reject_share.all_reasons

    def is_over(rows: int) -> bool:
        return (bad > 0 and (bad > share * rows or bad == rows)) or left_out > all_reasons * rows

    limit = f"at most {share:.1%} may be (max_reject_share.{name})"
    if left_out > all_reasons * looked and not bad > share * looked:
        limit = f"at most {all_reasons:.1%} may be left out, for whatever reason (max_reject_share.all_reasons)"
    counted = f"{left_out:,} of {looked:,} rows" if left_out else f"none of {looked:,} rows"
    text = f"{counted} looked at would be rejected{reasons}"
    if is_over(total):
        return Finding("fault", f"table {name}, rejects", f"{text}; {limit}: a run stops; correct them")
    if is_over(looked):
        return Finding("look", f"table {name}, rejects", f"{text}; {limit}: a run stops if the others are like these")
    return Finding("ok", f"table {name}, rejects", text)


def _said(rows: pa.Table, rules: list[Rule], broken: npt.NDArray[np.int64], counts: dict[int, int]) -> str:
    """Reasons by how many rows they have, with the column at fault and some of its values."""
    parts = []
    for number, count in sorted(counts.items(), key=lambda entry: -entry[1]):
        rule = rules[number]
        parts.append(f"{rule.reason} {count:,} ({rule.column}{_examples(rows, rule.column, broken == number)})")
    return f": {', '.join(parts)}" if parts else ""


def _examples(rows: pa.Table, column: str, is_at_fault: Mask) -> str:
    """Some values of the column at fault, where they are short."""
    if column not in rows.schema.names or pa.types.is_list(rows[column].type):
        return ""
    found = readable(rows.select([column]).filter(pa.array(is_at_fault)))[column].drop_null()
    texts = [repr(str(value)[:_CHARACTERS]) for value in found.unique().slice(0, _VALUES).to_pylist()]
    return f", such as {', '.join(texts)}" if texts else ""


def _known(samples: Mapping[str, Sample]) -> Known:
    """All ids that other tables name; none of a table that is larger than MOST_IDS, or at fault."""

    def columns_of(table: Table, *names: str) -> pa.Table | None:
        sample = samples.get(table.name)
        if sample is None or sample.found.faults or (sample.found.rows or 0) > MOST_IDS:
            return None
        if sample.is_whole:
            return sample.rows.select(names)
        return pa.Table.from_batches(stored_rows(sample.found, names))

    items = columns_of(ITEMS, "item_id")
    return Known(None if items is None else items["item_id"], columns_of(QUERIES, "query_id", "query_kind"))
