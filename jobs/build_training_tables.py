"""Cut the engagement logs into one training, one validation and one held-out table per task.

Reads:  engagement_logs, query_embeddings, item_features
Writes: training_<task>, validation_<task> and held_out_<task> for every task of the settings, item_counts,
        rejected_events
One row of training_<task> is one (query, item) pair with its engagement count, the query's embedding, an item that
counts against it if there is one, and the item's features; one of validation_<task> is one pair of the end of the
training window, whose events training_<task> counts too, but not in fit_weight; one of held_out_<task> is one pair of
the held-out window; one of item_counts is one item of one task's training table; one of rejected_events is one event
that no table counts, with the reason.
Safe to rerun because the rows follow from the inputs and the settings alone, and every table is replaced in one commit.

    spark-submit --properties-file spark-defaults.conf jobs/build_training_tables.py --settings pipeline.toml
"""

from __future__ import annotations

from functools import reduce

from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from jobs.runtime import command_line
from jobs.runtime.job_run import JobRun, side_by_side
from jobs.runtime.rejects import matching_loosely, require_few_rejects
from jobs.runtime.worker_rows import Place
from jobs.transforms.engagements import EVERYDAY_REASONS, HELD_OUT, NEGATIVE, TRAINING, checked_engagements
from jobs.transforms.hot_keys import hot_keys
from jobs.transforms.quarantine import accepted, rejected
from jobs.transforms.training_pairs import (
    FileLayout,
    capped,
    laid_out,
    measured_rows,
    packed,
    pairs_of,
    training_rows,
    with_file,
    with_negatives,
)
from schemas.columns import Table
from schemas.errors import TableError
from schemas.metrics import EventCounts, TaskCounts, TrainingTableMetrics
from schemas.settings import Settings
from schemas.stages import BUILD_TRAINING_TABLES
from schemas.tables import (
    ENGAGEMENT_LOGS,
    ITEM_COUNTS,
    ITEM_FEATURES,
    QUERY_EMBEDDINGS,
    REJECTED_EVENTS,
    ROW_CHECKSUM,
    TRAINING_PAIRS,
    VALIDATION_PAIRS,
    held_out_pairs,
    training_pairs,
    validation_pairs,
)
from schemas.tasks import Task

STAGE = BUILD_TRAINING_TABLES

_KEYS = ("query_id", "item_id")
_COLUMNS = [name for name in TRAINING_PAIRS.column_names if name != ROW_CHECKSUM]
"""Of a training row before it is written."""
_MEASURED_COLUMNS = [name for name in VALIDATION_PAIRS.column_names if name != ROW_CHECKSUM]
"""Of a validation row; a held-out row has most of them."""
_HELD_OUT_ROWS_PER_FILE, _VALIDATION_ROWS_PER_FILE = 1_000_000, 100_000


def build_engagements(
    logs: DataFrame, queries: DataFrame, items: DataFrame, settings: Settings, *, event_count: int
) -> DataFrame:
    """Every event of the logs once, with its task, its window and its verdict; see `checked_engagements`."""
    hot = hot_keys(logs, _KEYS, row_count=event_count)
    return checked_engagements(logs, queries, items, settings=settings, hot=hot)


def build_pairs(engagements: DataFrame, settings: Settings) -> DataFrame:
    """The pairs of all tasks and windows, before the caps, from the rows of `build_engagements`."""
    return pairs_of(
        accepted(engagements).where(F.col("window") != NEGATIVE),
        train_end=settings.dates.train_end,
        validation_start=settings.dates.validation_start,
        half_life_days=settings.half_life_days,
    )


def build_training(
    pairs: DataFrame,
    packed_queries: DataFrame,
    features: DataFrame,
    layout: FileLayout,
    hot: dict[str, list[str]],
) -> DataFrame:
    """The training rows of all tasks, each file's rows in a partition of their own and in random-looking order.

    Args:
        pairs: The training pairs of all tasks, after the caps.
        packed_queries: query_id (unique), the packed embedding and the query's negatives.
        features: item_features, unique by item_id.
        layout: Which files the rows fill.
        hot: Frequent query_ids and item_ids; see `hot_keys`.
    """
    placed = with_file(pairs, layout)
    rows = training_rows(placed, packed_queries, features.drop("item_key"), hot=hot)
    rows = rows.withColumnRenamed("fit_count", "fit_engagement_count")
    return laid_out(rows.select(*_COLUMNS, "file", "position"), layout.file_count)


def build_measured(pairs: DataFrame, packed_queries: DataFrame, layout: FileLayout, hot: list[str]) -> DataFrame:
    """The held-out and validation rows of all tasks, laid out like the training rows; see `measured_rows`."""
    rows = measured_rows(pairs, packed_queries, layout, hot)
    return laid_out(rows.select(*_MEASURED_COLUMNS, "file", "position"), layout.file_count)


def build_item_counts(pairs: DataFrame) -> DataFrame:
    """How often each item is a positive of each task, from the capped training pairs of all tasks."""
    counts = pairs.groupBy("item_id", "item_key", "task")
    return counts.agg(
        F.count("*").alias("pair_count"),
        F.sum("engagement_count").alias("engagement_count"),
        F.count_if(F.col("fit_count") > 0).alias("fit_pair_count"),
        F.sum("fit_count").alias("fit_engagement_count"),
    )


def run(spark: SparkSession, settings: Settings) -> None:
    """Read the logs, queries and features; write the tables of every task, the item counts and the rejects."""
    with JobRun(spark, settings, STAGE) as job:
        logs = job.read(ENGAGEMENT_LOGS)
        queries = job.read(QUERY_EMBEDDINGS)
        features = job.read(ITEM_FEATURES)
        event_count = job.row_count(ENGAGEMENT_LOGS)
        _require_unique({QUERY_EMBEDDINGS: queries, ITEM_FEATURES: features})
        engagements = build_engagements(logs, queries, features, settings, event_count=event_count).persist()
        pairs = build_pairs(engagements, settings).persist()
        weights = {entry.name: entry.weight for entry in settings.negatives}
        packed_queries = with_negatives(packed(queries), accepted(engagements), weights).persist()
        try:
            job.write_rejected(rejected(engagements, REJECTED_EVENTS), REJECTED_EVENTS)
            _require_few_rejects(job, queries, features)
            negative_events = accepted(engagements).where(F.col("window") == NEGATIVE).count() if weights else 0
            _write_tasks(job, pairs, packed_queries, features, negative_events)
        finally:
            for cached in (engagements, pairs, packed_queries):
                cached.unpersist()


def _write_tasks(
    job: JobRun[TrainingTableMetrics],
    pairs: DataFrame,
    packed_queries: DataFrame,
    features: DataFrame,
    negative_events: int,
) -> None:
    """Count the pairs, check the counts, and only then write the item counts and every task's tables."""
    settings, cut = job.settings, job.settings.training_tables
    training = pairs.where(F.col("window") == TRAINING)
    kept = capped(training, per_item=cut.max_pairs_per_item, per_query=cut.max_pairs_per_query)
    counts = _task_counts(pairs, kept, settings.task_list)
    job.metrics = TrainingTableMetrics(counts, _balanced_events(job, counts, negative_events))
    _require_pairs(counts, settings)
    hot = hot_keys(kept, _KEYS, row_count=sum(of_task.training_pairs for of_task in counts.values()))

    sizes = _sizes(counts, settings.task_list)

    def write_training() -> None:
        tables = [training_pairs(task) for task in settings.task_list]
        layout = FileLayout.of({table.name: sizes[table.name] for table in tables}, cut.rows_per_file)
        rows = build_training(kept, packed_queries, features, layout, hot)
        job.write_tables(rows, _places(job, tables, layout, sizes))

    def write_measured() -> None:
        validation = [validation_pairs(task) for task in settings.task_list]
        held_out = [held_out_pairs(task) for task in settings.task_list]
        layout = FileLayout.of({table.name: sizes[table.name] for table in validation}, _VALIDATION_ROWS_PER_FILE)
        layout += FileLayout.of({table.name: sizes[table.name] for table in held_out}, _HELD_OUT_ROWS_PER_FILE)
        rows = build_measured(pairs, packed_queries, layout, hot["query_id"])
        job.write_tables(rows, _places(job, [*validation, *held_out], layout, sizes))

    def write_counts() -> None:
        job.write(build_item_counts(kept), ITEM_COUNTS)

    side_by_side([write_training, write_measured, write_counts])


def _sizes(counts: dict[str, TaskCounts], tasks: list[Task]) -> dict[str, int]:
    """Rows of every task's tables, by the name of the table."""
    sizes = {}
    for task in tasks:
        of_task = counts[task.name]
        sizes[task.training_table] = of_task.training_pairs
        sizes[task.validation_table] = of_task.validation_pairs
        sizes[task.held_out_table] = of_task.held_out_pairs
    return sizes


def _places(
    job: JobRun[TrainingTableMetrics], tables: list[Table], layout: FileLayout, sizes: dict[str, int]
) -> list[Place]:
    """The tables, each with its files' numbers and its rows."""
    return [job.place(table, layout.first_file[table.name], sizes[table.name]) for table in tables]


def _task_counts(pairs: DataFrame, kept: DataFrame, tasks: list[Task]) -> dict[str, TaskCounts]:
    """Pairs and events of each task, by its name."""
    before, after = _totals(pairs), _totals(kept)
    nothing = Row(pairs=0, events=0, fit_pairs=0, fit_events=0, validation_pairs=0)
    counts = {}
    for task in tasks:
        all_training, held_out = (before.get((task.name, window), nothing) for window in (TRAINING, HELD_OUT))
        training = after.get((task.name, TRAINING), nothing)
        counts[task.name] = TaskCounts(
            training_pairs=training["pairs"],
            training_events=training["events"],
            held_out_pairs=held_out["pairs"],
            held_out_events=held_out["events"],
            capped_pairs=all_training["pairs"] - training["pairs"],
            capped_events=all_training["events"] - training["events"],
            fit_pairs=training["fit_pairs"],
            fit_events=training["fit_events"],
            validation_pairs=all_training["validation_pairs"],
            validation_events=all_training["events"] - all_training["fit_events"],
        )
    return counts


def _totals(pairs: DataFrame) -> dict[tuple[str, str], Row]:
    """(task, window) -> pairs and events, and how many of them are of before the validation window."""
    sums = pairs.groupBy("task", "window").agg(
        F.count("*").alias("pairs"),
        F.sum("engagement_count").alias("events"),
        F.count_if(F.col("fit_count") > 0).alias("fit_pairs"),
        F.sum("fit_count").alias("fit_events"),
        F.count_if(F.col("fit_count") < F.col("engagement_count")).alias("validation_pairs"),
    )
    return {(row["task"], row["window"]): row for row in sums.collect()}


def _require_unique(tables: dict[Table, DataFrame]) -> None:
    """A repeated key would repeat every event that names it; asked of all tables in one Spark job.

    Raises:
        TableError: a key stands in several rows.
    """
    declared = list(tables)
    keys = reduce(
        DataFrame.unionByName,
        [
            tables[table].select(F.lit(number).alias("number"), F.col(*table.key).alias("key"))
            for number, table in enumerate(declared)
        ],
    )
    counted = keys.groupBy("number", "key").agg(F.count("*").alias("row_count"))
    repeated = counted.where("row_count > 1").orderBy("number", "key").first()
    if repeated is not None:
        table = declared[repeated["number"]]
        raise TableError(
            table.name,
            *table.key,
            expected="each value in one row",
            found=f"{repeated['row_count']} rows with {repeated['key']!r}",
            cure=f"Build {table.name} again from inputs without the repeat.",
        )


def _require_few_rejects(job: JobRun[TrainingTableMetrics], queries: DataFrame, features: DataFrame) -> None:
    """Stop before training on a log that is broken as a whole.

    Raises:
        TableError: more events are bad than the settings allow.
    """

    def hint(rejects: DataFrame) -> str:
        known = {"query_id": queries, "item_id": features}
        return "".join(matching_loosely(rejects, column, rows) for column, rows in known.items())

    require_few_rejects(job, ENGAGEMENT_LOGS, REJECTED_EVENTS, harmless=EVERYDAY_REASONS, hint=hint)


def _require_pairs(counts: dict[str, TaskCounts], settings: Settings) -> None:
    """A task without training pairs cannot fill its share of a batch; one without held-out pairs cannot be measured.

    Raises:
        TableError: a task has no training pair.
    """
    dates = settings.dates
    for name, of_task in counts.items():
        if not of_task.training_pairs:
            raise TableError(
                f"training_{name}",
                "(all)",
                expected=f"at least one pair of {name} from {dates.train_start} up to {dates.train_end}",
                found="none among the events that passed the checks",
                cure="Correct dates.as_of or raise dates.train_days, or take the task out of [[tasks]].",
            )
        if not of_task.held_out_pairs:
            print(f"  warning: task {name} has no held-out pair, so its recall cannot be measured", flush=True)
        if dates.validation_start < dates.train_end and not (of_task.validation_pairs and of_task.fit_pairs):
            side = "in" if of_task.fit_pairs else "before"
            print(f"  warning: task {name} has no pair {side} the validation window, from {dates.validation_start} on, "
                  "so training cannot be measured on it: change dates.validation_days", flush=True)  # fmt: skip


def _balanced_events(
    job: JobRun[TrainingTableMetrics], counts: dict[str, TaskCounts], negative_events: int
) -> EventCounts:
    """What became of every event: each is counted, capped, a negative or rejected, exactly once.

    Raises:
        TableError: events are lost or counted twice.
    """
    read = job.row_count(ENGAGEMENT_LOGS)
    training, held_out, capped = (
        sum(getattr(of_task, name) for of_task in counts.values())
        for name in ("training_events", "held_out_events", "capped_events")
    )
    rejected_events = sum(job.rejected.values())
    found = training + held_out + capped + negative_events + rejected_events
    _require_equal(ENGAGEMENT_LOGS.name, "events", read, found)
    if job.settings.negatives and not negative_events:
        names = ", ".join(entry.name for entry in job.settings.negatives)
        print(f"  warning: no usable event of [[negatives]] ({names}) before the validation window", flush=True)
    return EventCounts(read, training, held_out, capped, rejected_events, negative_events)


def _require_equal(table: str, noun: str, expected: int, found: int) -> None:
    if expected != found:
        raise TableError(
            table,
            "(all)",
            expected=f"{expected:,} {noun}",
            found=f"{found:,}",
            cure="An input changed while the job ran, or the job is wrong: run it again on inputs at rest.",
        )


def main() -> None:
    """The command line."""
    command_line.main(STAGE, run, __doc__)


if __name__ == "__main__":
    main()
