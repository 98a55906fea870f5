"""The summary after a pipeline run: rows per table, recall beside its baselines, neighbours, how to read the table.

Reads the run records and two Delta tables without a JVM, as any consumer would.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.records import read_record, record_uri, recorded_output
from schemas.settings import Settings
from schemas.storage import data_files
from schemas.tables import EVALUATION, ITEM_EMBEDDINGS, ITEMS

RECORDED_STAGES = (
    "make_demo_world",
    "prepare",
    "embed_queries",
    "build_vocabulary",
    "build_item_features",
    "build_training_tables",
    "train",
    "score_catalog",
    "evaluate",
)


def read_delta(uri: str, version: int | None, columns: list[str]) -> pa.Table:
    """Some columns of one version of a Delta table, without a JVM."""
    return pa.concat_tables(pq.read_table(file, columns=columns) for file in data_files(uri, version))


def print_summary(settings: Settings) -> None:
    """Print everything."""
    records = [read_record(settings.warehouse.uri, stage) for stage in RECORDED_STAGES if _ran(settings, stage)]
    _print_rows(records)
    _print_evaluation(settings)
    published = recorded_output(read_record(settings.warehouse.uri, "score_catalog"), ITEM_EMBEDDINGS.name)
    _print_neighbours(settings, published)
    print(f"\nembeddings: {published['uri']}, Delta version {published['version']}, {published['rows']:,} rows")
    print("read them without Spark:")
    print(f"  import polars; polars.scan_delta({published['uri']!r}, version={published['version']}).collect()")


def _ran(settings: Settings, stage: str) -> bool:
    try:
        read_record(settings.warehouse.uri, stage)
    except ValueError:
        return False
    return True


def _print_rows(records: list[dict[str, object]]) -> None:
    print("rows")
    for record in records:
        print(f"  {record['stage']} ({record['seconds']} s)")
        for direction, sign in (("inputs", "in "), ("outputs", "out")):
            for entry in record[direction]:  # type: ignore[attr-defined]
                version = "" if entry["version"] is None else f"version {entry['version']}"
                print(f"    {sign} {entry['table']:<32} {entry['rows']:>12,}  {version}")
        for reason, count in record["rejected"].items():  # type: ignore[attr-defined]
            print(f"    rejected  {reason:<28} {count:>10,}")
        for name, value in record["figures"].items():  # type: ignore[attr-defined]
            print(f"    {name}: {value}")


def _print_evaluation(settings: Settings) -> None:
    entry = recorded_output(read_record(settings.warehouse.uri, "evaluate"), EVALUATION.name)
    rows = read_delta(entry["uri"], entry["version"], list(EVALUATION.column_names)).to_pylist()
    systems = list(dict.fromkeys(row["system"] for row in rows))
    systems.sort(key=_SYSTEM_ORDER.index)
    for part in ("all", "unseen"):
        chosen = [row for row in rows if row["slice"] == part and row["pair_count"]]
        if not chosen:
            continue
        print(
            f"\n{chosen[0]['metric']}, {part} held-out pairs (record: {record_uri(settings.warehouse.uri, 'evaluate')})"
        )
        print(f"  {'task':<24}{'pairs':>9}" + "".join(f"{system:>14}" for system in systems))
        for task in sorted({row["task"] for row in chosen}):
            of_task = {row["system"]: row for row in chosen if row["task"] == task}
            cells = (f"{of_task[s]['value']:>14.4f}" if s in of_task else f"{'-':>14}" for s in systems)
            print(f"  {task:<24}{next(iter(of_task.values()))['pair_count']:>9,}" + "".join(cells))


_SYSTEM_ORDER = ["itemsage", "untrained", "random", "popularity", "co_occurrence", "frozen_query", "sum", "oracle"]


def _print_neighbours(settings: Settings, published: dict[str, object]) -> None:
    """Three products and their nearest neighbours, searched among at most 50,000 items."""
    table = read_delta(str(published["uri"]), int(str(published["version"])), ["item_id", "embedding"])
    table = table.slice(0, 50_000).sort_by("item_id")
    vectors: npt.NDArray[np.float32] = table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    ids = table["item_id"].to_pylist()
    titles = _titles(settings, set(ids))
    chosen = [place for place in range(0, len(ids), max(1, len(ids) // 50)) if titles.get(ids[place])][1:40:13]
    print("\nnearest neighbours")
    for place in chosen:
        print(f"  {titles[ids[place]]}")
        similarity = vectors @ vectors[place]
        similarity[place] = -np.inf
        for neighbour in np.argsort(-similarity, kind="stable")[:5]:
            print(f"    {similarity[neighbour]:.3f}  {titles.get(ids[neighbour]) or '(no title)'}")


def _titles(settings: Settings, ids: set[str]) -> dict[str, str | None]:
    uri = settings.table_uri(ITEMS.name)
    try:
        table = read_delta(uri, None, ["item_id", "title"])
    except Exception:  # a Parquet input, or one without titles
        table = pq.read_table(uri)
        if "title" not in table.column_names:
            return dict.fromkeys(ids)
    pairs = zip(table["item_id"].to_pylist(), table["title"].to_pylist(), strict=True)
    return {item: title for item, title in pairs if item in ids}
