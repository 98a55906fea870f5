"""Which rows the jobs will reject, foreseen without Spark: the first reason of every row that `doctor` looks at.

The rules are the jobs' (jobs/transforms), as Spark's expressions. Asked here are those that stop whole runs: blank and
long ids, text that is no UTF-8, repeated ids, images that are no vectors, queries with nothing to embed, and events
outside the windows, of unknown ids or of engagements that nobody names. tests/pipeline/test_expected_rejects.py holds
both against each other. Left to the jobs: not_a_vector, unknown_text and lost_in_projection of queries, no_picture
of one whose product has none, key_collision, and ids that are unknown because their own row is rejected.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.picture_findings import picture_fault
from schemas.cells import pack_vectors
from schemas.columns import Table
from schemas.picture_tables import ITEM_PICTURES
from schemas.settings import Settings
from schemas.tables import ENGAGEMENT_LOGS, ITEM_IMAGES, ITEMS, QUERIES
from schemas.tasks import Task

Mask = npt.NDArray[np.bool_]

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Rule(NamedTuple):
    """One way for rows to be unusable: the reason and the column at fault, as in the rejected_* tables; the rows."""

    reason: str
    column: str
    rows: Mask


@dataclass(frozen=True)
class Known:
    """All ids of the tables that others name; None = not all were looked at.

    Attributes:
        items: item_id of all items.
        queries: query_id and query_kind of all queries.
    """

    items: pa.Array | None = None
    queries: pa.Table | None = None


def first_rules(rules: Sequence[Rule], row_count: int) -> npt.NDArray[np.int64]:
    """Of every row the number of the first rule that it breaks, or -1."""
    broken = np.full(row_count, -1)
    for number, rule in enumerate(rules):
        broken[(broken < 0) & rule.rows] = number
    return broken


def item_rules(items: pa.Table) -> list[Rule]:
    """Of ITEMS, in the order in which the jobs ask."""
    rules = [_blank(items, "null_id", "item_id"), *_text_rules(items, ITEMS)]
    return rules + _copy_rules(items, ITEMS, ("item_id",), "item", rules)


def image_rules(images: pa.Table, settings: Settings, known: Known) -> list[Rule]:
    """Of ITEM_IMAGES."""
    length, vectors = settings.model.image_length, _column(images, "image_embedding")
    cells = pack_vectors(vectors, length)
    rules = [
        _blank(images, "null_id", "item_id"),
        *_text_rules(images, ITEM_IMAGES),
        Rule("null_position", "position", _mask(_column(images, "position").is_null())),
        Rule("wrong_length", "image_embedding", _mask(pc.not_equal(pc.list_value_length(vectors), length))),
        Rule("bad_vector", "image_embedding", _mask(cells.is_null())),
    ]
    unknown = [_unknown(images, "unknown_item", "item_id", known.items)] if known.items is not None else []
    packed = images.set_column(images.schema.get_field_index("image_embedding"), "image_embedding", cells)
    return rules + unknown + _copy_rules(packed, ITEM_IMAGES, ("item_id", "position"), "image", rules)


def picture_rules(pictures: pa.Table, settings: Settings, known: Known) -> list[Rule]:
    """Of ITEM_PICTURES, but for copies, and for pictures that lie elsewhere, which are not opened for a look."""
    content, is_elsewhere = _column(pictures, "picture"), ~_is_blank(pictures, "picture_uri")
    is_here = ~_mask(content.is_null())
    size = pc.greater(pc.binary_length(content), settings.pictures.max_bytes)
    faults = np.array([picture_fault(one, settings) for one in content.to_pylist()], object)
    return [
        _blank(pictures, "null_id", "item_id"),
        *_text_rules(pictures, ITEM_PICTURES),
        Rule("null_position", "position", _mask(_column(pictures, "position").is_null())),
        Rule("no_picture", "picture", ~is_here & ~is_elsewhere),
        Rule("two_pictures", "picture_uri", is_here & is_elsewhere),
        Rule("too_many_bytes", "picture", _mask(size)),
        *(Rule(reason, "picture", faults == reason) for reason in sorted({fault for fault in faults if fault})),
    ]


def query_rules(queries: pa.Table, settings: Settings) -> list[Rule]:
    """Of QUERIES, but for what their numbers are, and for products without pictures that they show."""
    has_embedding = ~_mask(_column(queries, "query_embedding").is_null())
    is_bare = ~has_embedding & _is_in(_column(queries, "query_kind"), settings.pictures.query_kinds)
    is_unnamed, is_mute = _is_blank(queries, "embedding_space"), _is_blank(queries, "text")
    rules = [
        _blank(queries, "null_id", "query_id"),
        _blank(queries, "null_kind", "query_kind"),
        *_text_rules(queries, QUERIES),
        Rule("unnamed_space", "embedding_space", has_embedding & is_unnamed),
        Rule("no_picture", "query_item_id", is_bare & _is_blank(queries, "query_item_id")),
        Rule("no_embedding_no_text", "text", ~has_embedding & ~is_bare & is_mute),
    ]
    return rules + _copy_rules(queries, QUERIES, ("query_id",), "query", rules)


def event_rules(log: pa.Table, settings: Settings, known: Known) -> list[Rule]:
    """Of ENGAGEMENT_LOGS."""
    needed = [column.name for column in ENGAGEMENT_LOGS.columns if not column.nullable]
    nulls = [_blank(log, f"null_{name}", name) for name in needed]
    dates = settings.dates
    when = _column(log, "event_ts").cast(pa.int64()).fill_null(0).to_numpy()
    start, train_end, test_start, end = map(
        _microseconds, (dates.train_start, dates.train_end, dates.test_start, dates.end)
    )
    negatives = [Task(one.query_kind, one.engagement) for one in settings.negatives]
    named = [*settings.task_list, *negatives]
    engagement = _column(log, "engagement")
    rules = [
        *nulls,
        *_text_rules(log, ENGAGEMENT_LOGS),
        *_delivery_rules(log, settings, first_rules(nulls, len(log)) < 0),
        Rule("late", "event_ts", when < start),
        Rule("future", "event_ts", when >= end),
        Rule("gap", "event_ts", (when >= train_end) & (when < test_start)),
    ]
    if known.queries is not None:
        rules.append(_unknown(log, "unknown_query", "query_id", known.queries["query_id"]))
    if known.items is not None:
        rules.append(_unknown(log, "unknown_item", "item_id", known.items))
    rules.append(Rule("unknown_engagement", "engagement", ~_is_in(engagement, [one.engagement for one in named])))
    if known.queries is not None:
        place = pc.index_in(_column(log, "query_id"), value_set=_bytes(known.queries["query_id"]))
        kind = _bytes(known.queries["query_kind"]).take(place)

        def of(tasks: Iterable[Task]) -> Mask:
            masks = [_is_in(kind, [one.query_kind]) & _is_in(engagement, [one.engagement]) for one in tasks]
            found: Mask = np.logical_or.reduce([np.zeros(len(log), bool), *masks])
            return found

        is_measured = of(negatives) & (when >= _microseconds(dates.validation_start))
        rules += [Rule("measured_negative", "event_ts", is_measured), Rule("no_task", "engagement", ~of(named))]
    return rules


# ---------------------------------------------------------------- rules of several tables


def _blank(rows: pa.Table, reason: str, column: str) -> Rule:
    return Rule(reason, column, _is_blank(rows, column))


def _is_blank(rows: pa.Table, name: str) -> Mask:
    """Null, or nothing but blanks; of what is no text, null."""
    values = _column(rows, name)
    if not pa.types.is_binary(values.type):
        return _mask(values.is_null())
    return ~_mask(pc.match_substring_regex(values, r"[^ \t\n\v\f\r]"))


def _text_rules(rows: pa.Table, table: Table) -> list[Rule]:
    rules = []
    for column in table.columns:
        values = _column(rows, column.name)
        if column.kind in ("string", "strings"):
            rules.append(Rule("bad_text", column.name, _is_no_text(values)))
        if column.max_bytes:
            too_long = pc.greater(pc.binary_length(values), column.max_bytes)
            rules.append(Rule("long_id", column.name, _mask(too_long)))
    return rules


def _is_no_text(values: pa.Array) -> Mask:
    is_list = pa.types.is_list(values.type)
    try:
        values.cast(pa.list_(pa.string()) if is_list else pa.string()).validate(full=True)
    except pa.ArrowInvalid:
        # One of them; which, Arrow does not say.
        parts = (value if is_list else [value] for value in values.to_pylist())
        return np.array([not all(map(_is_utf8, found or ())) for found in parts], bool)
    return np.zeros(len(values), bool)


def _is_utf8(text: bytes | None) -> bool:
    try:
        return text is None or isinstance(text.decode(), str)
    except UnicodeDecodeError:
        return False


def _unknown(rows: pa.Table, reason: str, column: str, known: pa.Array) -> Rule:
    return Rule(reason, column, ~_mask(pc.is_in(_column(rows, column), value_set=_bytes(known))))


def _copy_rules(rows: pa.Table, table: Table, key: tuple[str, ...], noun: str, earlier: list[Rule]) -> list[Rule]:
    """Rows of one key beside the fullest: those that say nothing else, and those that do."""
    repeats, conflicts = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    others = [column.name for column in table.columns if column.name not in key]
    for places, copies in _groups(rows, key, others, first_rules(earlier, len(rows)) < 0):
        said = [tuple(map(_said, copy)) for copy in copies]
        order = [(mine.count(None), _order(copy)) for mine, copy in zip(said, copies, strict=True)]
        fullest = min(range(len(order)), key=order.__getitem__)
        for place, mine in zip(places, said, strict=True):
            adds = any(one is not None and one != first for one, first in zip(mine, said[fullest], strict=True))
            (conflicts if adds else repeats)[place] = place != places[fullest]
    return [Rule(f"duplicate_{noun}", key[-1], repeats), Rule(f"conflicting_{noun}", key[-1], conflicts)]


def _said(value: Any) -> Any:
    """What a value says, or None where it says nothing."""
    if isinstance(value, list) and all(part is None or isinstance(part, bytes) for part in value):
        value = b" ".join(part for part in value if part is not None)
    if isinstance(value, bytes):
        return value if value.strip(b" \t\n\v\f\r") else None
    return value


def _order(value: Any) -> Any:
    """What sorts as the jobs do: nulls first."""
    return value is not None, [_order(part) for part in value] if isinstance(value, list) else value


def _delivery_rules(log: pa.Table, settings: Settings, is_complete: Mask) -> list[Rule]:
    """Rows of one event after its first: those that repeat it, and those that say something else."""
    facts = ["event_ts", "query_id", "item_id", "engagement"]
    key = ("event_id", *facts) if settings.inputs.event_id_is == "order" else ("event_id",)
    repeats, reused = np.zeros(len(log), bool), np.zeros(len(log), bool)
    for places, deliveries in _groups(log, key, facts, is_complete):
        first = min(range(len(deliveries)), key=deliveries.__getitem__)
        for place, delivery in zip(places, deliveries, strict=True):
            (repeats if delivery == deliveries[first] else reused)[place] = place != places[first]
    return [Rule("duplicate_event", "event_id", repeats), Rule("reused_event_id", "event_id", reused)]


def _groups(
    rows: pa.Table, key: Sequence[str], names: Sequence[str], is_counted: Mask
) -> Iterable[tuple[list[int], list[list[Any]]]]:
    """Of each key that several counted rows have, the rows' places and their values of some columns."""
    number = np.zeros(int(is_counted.sum()), np.int64)
    for name in key:
        codes = _column(rows, name).dictionary_encode().indices.fill_null(-1).to_numpy()[is_counted]
        _, number = np.unique(number * (len(rows) + 1) + codes, return_inverse=True)
    is_repeated = np.bincount(number, minlength=1)[number] > 1
    repeated = np.flatnonzero(is_counted)[is_repeated]
    values = zip(*(_column(rows, name).take(pa.array(repeated)).to_pylist() for name in names), strict=True)
    groups: defaultdict[int, tuple[list[int], list[list[Any]]]] = defaultdict(lambda: ([], []))
    for group, place, row in zip(number[is_repeated].tolist(), repeated.tolist(), values, strict=True):
        groups[group][0].append(place)
        groups[group][1].append(list(row))
    return groups.values()


# ---------------------------------------------------------------- columns


def _column(rows: pa.Table, name: str) -> pa.Array:
    """A column, its texts as bytes; nulls where it is not there."""
    return _bytes(rows[name]) if name in rows.schema.names else pa.nulls(len(rows), pa.binary())


def _bytes(values: Any) -> pa.Array:
    whole = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    raw = {pa.string(): pa.binary(), pa.list_(pa.string()): pa.list_(pa.binary())}.get(whole.type)
    return whole.cast(raw) if raw else whole


def _is_in(values: pa.Array, names: Iterable[str]) -> Mask:
    return _mask(pc.is_in(values, value_set=pa.array([name.encode() for name in names], pa.binary())))


def _mask(values: pa.Array) -> Mask:
    """Booleans, of which null is false."""
    found: Mask = values.fill_null(False).to_numpy(zero_copy_only=False)
    return found


def _microseconds(when: datetime) -> int:
    return (when - _EPOCH) // timedelta(microseconds=1)


RULES: dict[str, Callable[[pa.Table, Settings, Known], list[Rule]]] = {
    ITEMS.name: lambda rows, settings, known: item_rules(rows),
    ITEM_IMAGES.name: image_rules,
    ITEM_PICTURES.name: picture_rules,
    QUERIES.name: lambda rows, settings, known: query_rules(rows, settings),
    ENGAGEMENT_LOGS.name: event_rules,
}
"""Of each input table, in the order in which the jobs ask."""
