"""Engagements of all tasks, as they are and by their age."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jobs.evaluation.compared import Candidates, TaskPairs
from jobs.evaluation.engagements import collect_log
from schemas.tasks import Task

COLUMNS = (
    "query_item_key long, item_key long, engagement_count long, pair_weight float, fit_engagement_count long, "
    "fit_weight float"
)
CLICKS = [(7, 20, 4, 0.5, 3, 0.25), (0, 20, 2, 1.0, 2, 1.0), (8, 30, 9, 9.0, 0, 0.0)]
SAVES = [(7, 20, 1, 0.25, 0, 0.0), (7, 99, 1, 1.0, 0, 0.0)]
BEFORE_VALIDATION: Any = SimpleNamespace(count="fit_engagement_count", weight="fit_weight")
WHOLE: Any = SimpleNamespace(count="engagement_count", weight="pair_weight")


def counted(spark: Any, make_settings: Any, half_life: float, subject: Any = WHOLE) -> dict[str, Any]:
    settings = make_settings(
        tasks=[{"query_kind": "closeup", "engagement": name} for name in ("click", "save")],
        training_tables={"recency_half_life_days": half_life},
    )
    rows = {"training_closeup_click": CLICKS, "training_closeup_save": SAVES}
    job: Any = SimpleNamespace(settings=settings, read=lambda table: spark.createDataFrame(rows[table.name], COLUMNS))
    one = np.zeros(1, np.int64)
    asked = TaskPairs(
        Task("closeup", "click"), one, one, one.astype(np.float32), np.array(["q"], object), np.array([7]), one
    )
    yes = np.ones(3, bool)
    candidates = Candidates(np.array([10, 20, 30]), yes, np.array([0, 7, 9]), {}, yes, yes)
    return collect_log(job, [asked], subject).of(candidates)


def by_item(of_pairs: Any) -> dict[tuple[int, int], float]:
    return {(shown, item): count for shown, item, count in zip(*(array.tolist() for array in of_pairs), strict=True)}


def test_counts_are_summed_over_tasks_for_the_items_that_queries_show(spark: Any, make_settings: Any) -> None:
    found = counted(spark, make_settings, half_life=0)
    assert list(found) == [""]
    assert found[""].of_items.tolist() == [0, 7, 9]
    assert by_item(found[""].of_pairs) == {(7, 20): 5, (7, 99): 1}


def test_with_a_half_life_they_are_also_counted_by_age(spark: Any, make_settings: Any) -> None:
    found = counted(spark, make_settings, half_life=30)
    assert list(found) == ["", "_recent"]
    assert found["_recent"].of_items.tolist() == pytest.approx([0, 1.75, 9])
    assert by_item(found["_recent"].of_pairs) == {(7, 20): 0.75, (7, 99): 1.0}
    assert by_item(found[""].of_pairs) == {(7, 20): 5, (7, 99): 1}


def test_rivals_on_the_validation_window_know_nothing_of_it(spark: Any, make_settings: Any) -> None:
    found = counted(spark, make_settings, half_life=30, subject=BEFORE_VALIDATION)
    assert found["_recent"].of_items.tolist() == pytest.approx([0, 1.25, 0])
    assert by_item(found["_recent"].of_pairs) == {(7, 20): 0.25}
    assert by_item(found[""].of_pairs) == {(7, 20): 3}
