"""What was engaged with in training, as numbers of engagements and, where the shop has them age, by their age."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from itemsage_model.evaluation.baselines import ItemPairs
from jobs.evaluation.candidates import totals_of
from jobs.evaluation.compared import Candidates, Engagements, TaskPairs
from jobs.evaluation.subject import Subject
from jobs.evaluation.texts import shown_items
from jobs.runtime.job_run import JobRun, side_by_side
from schemas.tables import training_pairs

_RECENT = "_recent"


@dataclass(frozen=True)
class Log:
    """Training engagements before the candidates are known.

    Attributes:
        recent: Rows (item_key, total), each engagement counted by its age; None where none has an age.
        of_pairs: Ending of the systems' names -> engagements with each item after queries that show an item.
    """

    recent: pa.Table | None
    of_pairs: dict[str, ItemPairs]

    def of(self, candidates: Candidates) -> dict[str, Engagements]:
        """Ending of the systems' names -> what they count."""
        of_items = {"": candidates.engagement_count}
        totals = {} if self.recent is None else {_RECENT: totals_of(self.recent, candidates.item_key)}
        return {ending: Engagements((of_items | totals)[ending], pairs) for ending, pairs in self.of_pairs.items()}


def collect_log(job: JobRun[Any], task_pairs: list[TaskPairs], subject: Subject) -> Log:
    """Engagements over the training tables of all tasks; where the shop has them age, also counted by age."""
    parts = side_by_side([partial(job.read, training_pairs(task)) for task in job.settings.task_list])
    columns = ("query_item_key", "item_key", subject.count, subject.weight)
    known = [part.select(*columns).where(F.col(subject.count) > 0) for part in parts]
    pairs = reduce(DataFrame.unionByName, known)
    counted, recent = {"": subject.count}, None
    if job.settings.half_life_days > 0:
        counted[_RECENT] = subject.weight
        recent = pairs.groupBy("item_key").agg(F.sum(subject.weight).alias("total")).toArrow()
    table = _after_shown(pairs, task_pairs, counted)
    shown, items = table["query_item_key"].to_numpy(), table["item_key"].to_numpy()
    sums = {ending: table[column].to_numpy().astype(np.float64) for ending, column in counted.items()}
    return Log(recent, {ending: (shown, items, weights) for ending, weights in sums.items()})


def _after_shown(pairs: DataFrame, task_pairs: list[TaskPairs], counted: dict[str, str]) -> pa.Table:
    """Rows (query_item_key, item_key) with sums, for the items that the held-out queries show.

    Nobody asks about another query's item, and there are at most evaluate.max_pairs_per_task of a task.
    """
    spark = pairs.sparkSession
    asked = F.broadcast(spark.createDataFrame(pa.table({"query_item_key": shown_items(task_pairs)})))
    sums = [F.sum(column).alias(column) for column in counted.values()]
    of_shown = pairs.join(asked, on="query_item_key", how="left_semi")
    return of_shown.groupBy("query_item_key", "item_key").agg(*sums).toArrow()
