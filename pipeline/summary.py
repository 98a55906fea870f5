"""The summary after a pipeline run: rows per table, recall beside its baselines, neighbours, how to read the table.

Reads the run records and two Delta tables without a JVM, as any consumer would.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from deltalake.exceptions import DeltaError

from itemsage_model.evaluation.floor import comparisons, hardest_rivals
from retrieval.titles import titles_of
from schemas.contracts import agreed, run_again
from schemas.errors import DeadlineError, InputError
from schemas.metrics import EvaluationMetrics
from schemas.plain_text import printable
from schemas.records import RunRecord, TableVersion, all_records, find_record, read_record
from schemas.settings import Settings
from schemas.short_vectors import short_vector
from schemas.stages import BESIDE, EVALUATE, SCORE_CATALOG, VALIDATE
from schemas.storage import read_columns, read_first_rows
from schemas.tables import EVALUATED_SYSTEMS, EVALUATION, ITEM_EMBEDDINGS

_MAX_SEARCHED = 50_000
"""Items among which neighbours are searched."""


def print_summary(settings: Settings) -> None:
    """Print everything.

    Raises:
        InputError: the records are of stages that were made with different things, or the figures are of embeddings
            that are no longer published.
    """
    beside = {stage.name for stage in BESIDE}
    records = [record for record in all_records(settings.layout) if record.stage not in beside]
    kinds = {task.query_kind for task in settings.task_list}
    agreed(settings.layout, EVALUATE, [record for record in records if record.stage != EVALUATE.name], kinds)
    published = read_record(settings.layout, SCORE_CATALOG).output(ITEM_EMBEDDINGS.name)
    _require_figures_of(published, read_record(settings.layout, EVALUATE))
    _print_rows(records)
    _print_floor(settings)
    _print_evaluation(settings)
    if published.version is None:
        print("\nnot live yet: `itemsage publish` with the same settings makes the vectors live that were evaluated")
        return
    _print_neighbours(settings, published)
    name = settings.table_name(ITEM_EMBEDDINGS.name)
    print(f"\nembeddings: {published.uri}, Delta version {published.version}, {published.rows:,} rows"
          + (f", by name {name}" if name else ""))  # fmt: skip
    print(f"read them without Spark:\n  {_how_to_read(published)}")


def _how_to_read(published: TableVersion) -> str:
    where = f"{published.uri!r}, version={published.version}"
    if published.uri == quote(published.uri, safe="/:"):
        return f"import polars; polars.scan_delta({where}).collect()"
    # Polars looks for the files of such a folder under the name that the log has for it, %20 and all.
    # Its own `to_pyarrow_table` refuses deletion vectors.
    query = "execute('select * from items').read_all()"
    return f"import deltalake; deltalake.QueryBuilder().register('items', deltalake.DeltaTable({where})).{query}"


def _require_figures_of(published: TableVersion, evaluated: RunRecord[EvaluationMetrics]) -> None:
    measured = evaluated.input(published.table)
    if measured and measured.version != published.version:
        raise InputError(
            f"run record of {evaluated.stage}",
            published.table,
            expected=f"figures of version {published.version}, which is published",
            found=f"figures of version {measured.version}",
            cure=run_again([evaluated.stage]),
        )


def _print_rows(records: list[RunRecord[Any]]) -> None:
    print("rows")
    for record in records:
        print(f"  {record.stage} ({record.seconds} s)")
        for sign, versions in (("in ", record.inputs), ("out", record.outputs)):
            for entry in versions:
                version = "" if entry.version is None else f"version {entry.version}"
                print(f"    {sign} {entry.table:<32} {entry.rows:>12,}  {version}")
        for reason, count in record.rejected.items():
            print(f"    rejected  {printable(reason):<28} {count:>10,}")
        metrics = record.metrics if isinstance(record.metrics, dict) else asdict(record.metrics)
        for name, value in metrics.items():
            if name in ("notes", "floor", "verdicts", "fallbacks"):  # beside the figures they are about
                continue
            if name == "tasks":  # a line each: there may be many
                for task, counts in value.items():
                    print(f"    {printable(task)}: {json.dumps(counts)}")
            else:
                print(f"    {name}: {printable(str(value))}")


def _print_floor(settings: Settings) -> None:
    """The model beside the rival that decides, on the validation window, and what was published therefore."""
    lines = read_record(settings.layout, SCORE_CATALOG).metrics.floor
    measured = find_record(settings.layout, VALIDATE)
    if not lines:
        return
    print("\nfloor: the model beside the best simple rival, on the validation window")
    for one in measured.metrics.verdicts if measured else ():
        ends = _interval(one.low, one.high, sign="+")
        print(f"  {one.task}, {one.part}: itemsage {one.value:.4f}, {one.system} {one.other:.4f}  {ends}".rstrip())
    for line in lines:
        print(f"  {printable(line)}")


def _print_evaluation(settings: Settings) -> None:
    record = read_record(settings.layout, EVALUATE)
    entry = record.output(EVALUATION.name)
    rows = read_columns(entry.uri, entry.version, list(EVALUATION.column_names)).to_pylist()
    metric = f"recall@{record.metrics.k}"
    if not rows:
        print("\nnothing to evaluate: no task has a held-out pair")
    for part in ("all", "unseen"):
        chosen = [row for row in rows if row["metric"] == metric and row["slice"] == part]
        if chosen:
            where = settings.layout.record(EVALUATE.name)
            print(f"\n{metric}, {part} held-out pairs, and its 95 % intervals (record: {where})")
            _print_figures(chosen, metric)
    for part in ("all", "unseen"):
        _print_short([row for row in rows if row["metric"] == metric and row["slice"] == part], f"{metric}, {part}")
    for note in record.metrics.notes:
        print(f"  note: {printable(note)}")


def _print_short(rows: list[dict[str, Any]], what: str) -> None:
    """A line for each short form: bytes an item, and of each task the figure and what of the 256 floats' it loses."""
    tasks = sorted({row["task"] for row in rows})
    found = {(row["system"], row["task"]): row for row in rows}
    names = list(dict.fromkeys(row["system"] for row in rows if row["system"] not in EVALUATED_SYSTEMS))
    if not names:
        return
    print(f"\n{what} held-out pairs, by short vectors; in brackets: 256 floats minus this, 95 % intervals")
    width = max(24, *(len(task) + 2 for task in tasks))
    print(f"  {'form':<14}{'bytes':>6}" + "".join(f"{task:>{width}}" for task in tasks))
    for name in names:
        of_form = [found[name, task] for task in tasks]
        cells = [
            f"{row['value']:.4f} {_interval(row['difference_low'], row['difference_high'], sign='+')}".rstrip()
            for row in of_form
        ]
        print(f"  {name:<14}{short_vector(name).bytes:>6}" + "".join(f"{cell:>{width}}" for cell in cells))


def _print_figures(rows: list[dict[str, Any]], metric: str) -> None:
    """A line for each task with a figure of each system, its intervals below, and how far the best rival is."""
    shown = {row["system"] for row in rows}
    width = {system: max(14, len(system) + 2) for system in EVALUATED_SYSTEMS if system in shown}
    print(f"  {'task':<24}{'pairs':>9}" + "".join(f"{system:>{width[system]}}" for system in width))
    for task in sorted({row["task"] for row in rows}):
        of_task = {row["system"]: row for row in rows if row["task"] == task}
        cells = [f"{of_task[s]['value']:.4f}" if s in of_task else "-" for s in width]
        ends = [_interval(of_task[s]["low"], of_task[s]["high"]) if s in of_task else "" for s in width]
        print(f"  {task:<24}{next(iter(of_task.values()))['pair_count']:>9,}" + _in_columns(cells, width))
        if any(ends):
            print(f"  {'':<33}" + _in_columns(ends, width))
    for one in hardest_rivals(comparisons(rows, metric)):
        below = ": below it, by more than chance explains" if one.is_below else ""
        found = f"{one.difference:+.4f} {_interval(one.low, one.high, sign='+')}".rstrip()
        print(f"  {one.task}: itemsage minus best rival ({one.rival}): {found}{below}")


def _in_columns(cells: list[str], width: dict[str, int]) -> str:
    return "".join(f"{cell:>{wide}}" for cell, wide in zip(cells, width.values(), strict=True)).rstrip()


def _interval(low: float | None, high: float | None, sign: str = "") -> str:
    """Both ends without a leading zero, such as [.123, .456]; nothing where there is none."""
    if low is None or high is None:
        return ""
    return f"[{low:{sign}.3f}, {high:{sign}.3f}]".replace("0.", ".")


def _print_neighbours(settings: Settings, published: TableVersion) -> None:
    """Three products and their nearest neighbours."""
    first = read_first_rows(published.uri, published.version, ["item_id", "embedding"], _MAX_SEARCHED)
    table = first.sort_by("item_id")
    vectors: npt.NDArray[np.float32] = table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    ids = table["item_id"].to_pylist()
    print("\nnearest neighbours")
    try:
        titles = titles_of(settings, ids)
    except (InputError, DeadlineError, OSError, DeltaError) as error:  # of a table that has changed since the run
        print(f"  by item_id, as titles cannot be read: {error}")
        titles = {}
    named = [row for row in range(0, len(ids), max(1, len(ids) // 50)) if titles.get(ids[row]) or not titles]
    for row in named[1:40:13]:
        print(f"  {printable(titles.get(ids[row], ids[row]))}")
        similarity = vectors @ vectors[row]
        similarity[row] = -np.inf
        for neighbour in np.argsort(-similarity, kind="stable")[:5]:
            title = titles.get(ids[neighbour], f"{ids[neighbour]} (no title)")
            print(f"    {similarity[neighbour]:.3f}  {printable(title)}")
