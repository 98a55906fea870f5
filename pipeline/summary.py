"""The summary after a pipeline run: rows per table, recall beside its baselines, neighbours, how to read the table.

Reads the run records and two Delta tables without a JVM, as any consumer would.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from pyarrow import fs

from schemas.contracts import agreed, run_again
from schemas.errors import InputError
from schemas.metrics import EvaluationMetrics
from schemas.records import RunRecord, TableVersion, read_record
from schemas.settings import Settings
from schemas.stages import EVALUATE, PIPELINE, SCORE_CATALOG, Stage
from schemas.storage import file_system, read_columns
from schemas.tables import EVALUATED_SYSTEMS, EVALUATION, ITEM_EMBEDDINGS, ITEMS

_MAX_SEARCHED = 50_000
"""Items among which neighbours are searched."""


def print_summary(settings: Settings) -> None:
    """Print everything.

    Raises:
        InputError: the records are of stages that were made with different things, or the figures are of embeddings
            that are no longer published.
    """
    records = recorded_runs(settings)
    kinds = {task.query_kind for task in settings.task_list}
    agreed(settings.layout, EVALUATE, [record for record in records if record.stage != EVALUATE.name], kinds)
    published = read_record(settings.layout, SCORE_CATALOG).output(ITEM_EMBEDDINGS.name)
    _require_figures_of(published, read_record(settings.layout, EVALUATE))
    _print_rows(records)
    _print_evaluation(settings)
    _print_neighbours(settings, published)
    print(f"\nembeddings: {published.uri}, Delta version {published.version}, {published.rows:,} rows")
    print("read them without Spark:")
    print(f"  import polars; polars.scan_delta({published.uri!r}, version={published.version}).collect()")


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


def recorded_runs(settings: Settings) -> list[RunRecord[Any]]:
    """The records in the warehouse: of what made the input tables, if it left one, then of the stages in order."""
    system, folder = file_system(settings.layout.records)
    found = system.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    # Copies that somebody has kept, such as train.old.json, are no records.
    names = sorted(match[1] for info in found if (match := re.fullmatch(r"(\w+)\.json", info.base_name)))
    known = {stage.name: stage for stage in PIPELINE}
    before: list[Stage[Any]] = [Stage(name, (), (), dict) for name in names if name not in known]
    return [read_record(settings.layout, stage) for stage in (*before, *PIPELINE) if stage.name in names]


def _print_rows(records: list[RunRecord[Any]]) -> None:
    print("rows")
    for record in records:
        print(f"  {record.stage} ({record.seconds} s)")
        for sign, versions in (("in ", record.inputs), ("out", record.outputs)):
            for entry in versions:
                version = "" if entry.version is None else f"version {entry.version}"
                print(f"    {sign} {entry.table:<32} {entry.rows:>12,}  {version}")
        for reason, count in record.rejected.items():
            print(f"    rejected  {reason:<28} {count:>10,}")
        metrics = record.metrics if isinstance(record.metrics, dict) else asdict(record.metrics)
        for name, value in metrics.items():
            if name == "tasks":  # a line each: there may be many
                for task, counts in value.items():
                    print(f"    {task}: {json.dumps(counts)}")
            else:
                print(f"    {name}: {value}")


def _print_evaluation(settings: Settings) -> None:
    entry = read_record(settings.layout, EVALUATE).output(EVALUATION.name)
    rows = read_columns(entry.uri, entry.version, list(EVALUATION.column_names)).to_pylist()
    systems = [system for system in EVALUATED_SYSTEMS if system in {row["system"] for row in rows}]
    for part in ("all", "unseen"):
        chosen = [row for row in rows if row["slice"] == part and row["pair_count"]]
        if not chosen:
            continue
        print(f"\n{chosen[0]['metric']}, {part} held-out pairs (record: {settings.layout.record(EVALUATE.name)})")
        print(f"  {'task':<24}{'pairs':>9}" + "".join(f"{system:>14}" for system in systems))
        for task in sorted({row["task"] for row in chosen}):
            of_task = {row["system"]: row for row in chosen if row["task"] == task}
            cells = (f"{of_task[s]['value']:>14.4f}" if s in of_task else f"{'-':>14}" for s in systems)
            print(f"  {task:<24}{next(iter(of_task.values()))['pair_count']:>9,}" + "".join(cells))


def _print_neighbours(settings: Settings, published: TableVersion) -> None:
    """Three products and their nearest neighbours."""
    table = read_columns(published.uri, published.version, ["item_id", "embedding"])
    table = table.slice(0, _MAX_SEARCHED).sort_by("item_id")
    vectors: npt.NDArray[np.float32] = table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    ids = table["item_id"].to_pylist()
    titles = _titles(settings, set(ids))
    chosen = [row for row in range(0, len(ids), max(1, len(ids) // 50)) if titles.get(ids[row])][1:40:13]
    print("\nnearest neighbours")
    for row in chosen:
        print(f"  {titles[ids[row]]}")
        similarity = vectors @ vectors[row]
        similarity[row] = -np.inf
        for neighbour in np.argsort(-similarity, kind="stable")[:5]:
            print(f"    {similarity[neighbour]:.3f}  {titles.get(ids[neighbour]) or '(no title)'}")


def _titles(settings: Settings, ids: set[str]) -> dict[str, str | None]:
    uri = settings.table_uri(ITEMS.name)
    try:
        table = read_columns(uri, None, ["item_id", "title"])
    except Exception:  # a Parquet input, or one without titles
        table = pq.read_table(uri)
        if "title" not in table.column_names:
            return dict.fromkeys(ids)
    pairs = zip(table["item_id"].to_pylist(), table["title"].to_pylist(), strict=True)
    return {item: title for item, title in pairs if item in ids}
