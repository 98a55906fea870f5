"""What a shop has without a model, on the validation window: what neither all items nor new ones may fall below.

The stage validate asks more rivals, with their intervals, before anything is published; training needs to know only
how much of the one is worth how much of the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from itemsage_model.data.pinned_files import TableFiles
from itemsage_model.data.query_keys import weighing_rows
from itemsage_model.evaluation.baselines import co_occurrence, popularity
from itemsage_model.evaluation.recall import ScoreQueries
from itemsage_model.training.validation import Recall, Validation

_FEW_HITS = 25
"""A recall of so many hits has a standard error of a fifth of itself."""
_MEASURES = ("fit_engagement_count", "fit_weight")


def measure_rivals(validation: Validation, tasks: Sequence[TableFiles]) -> None:
    """Measure frozen vectors, popularity and counts of pairs, these by number and by age; set `validation.rivals`.

    Of all pairs the best of them counts. Of pairs with unseen items the frozen vectors alone can find any: less a
    standard error where they find a handful, as one lucky hit would cost the recall of everything else.

    Args:
        validation: With tasks as many as those below.
        tasks: Files of the training tables; what is before the window is read.

    Raises:
        TableError: a file is damaged, gone or lacks a column.
    """
    counts, popular = _before(validation, tasks)
    frozen = validation.frozen()
    found = [validation.measured(systems) for systems in (*counts, *popular)]
    of_all = max(one.of_all for one in (*found, *([frozen] if frozen else [])))
    of_unseen = math.nan
    if frozen is not None and not math.isnan(frozen.of_unseen):
        hits = max(frozen.of_unseen * validation.unseen_count, 1.0)
        of_unseen = frozen.of_unseen * (1 - 1 / math.sqrt(hits)) if hits < _FEW_HITS else frozen.of_unseen
    validation.rivals = Recall(0, of_all, of_unseen)


def _before(
    validation: Validation, tasks: Sequence[TableFiles]
) -> tuple[list[list[ScoreQueries]], list[list[ScoreQueries]]]:
    """For each measure, the counts of pairs and the popularity of each task that is validated."""
    catalog = validation.catalog.item_key
    counts: list[list[ScoreQueries]] = [[] for _ in _MEASURES]
    popular: list[list[ScoreQueries]] = [[] for _ in _MEASURES]
    for task in validation.tasks:
        keys = task.queries.query_key.numpy()
        sums = [np.zeros(len(catalog)) for _ in _MEASURES]
        kept: list[tuple[npt.NDArray[np.int64], ...]] = [(np.empty(0, np.int64),) * 2]
        weights: list[list[npt.NDArray[np.float64]]] = [[np.empty(0)] for _ in _MEASURES]
        columns = ["query_key", "item_key", _MEASURES[0]]
        for batch in weighing_rows(tasks[task.number], columns, _MEASURES[1]):
            query, item = batch["query_key"].to_numpy(), batch["item_key"].to_numpy()
            place = np.minimum(np.searchsorted(catalog, item), len(catalog) - 1)
            is_candidate, is_asked = catalog[place] == item, np.isin(query, keys)
            kept.append((query[is_asked], item[is_asked]))
            for number, name in enumerate(_MEASURES):
                values = batch[name].to_numpy().astype(np.float64)
                sums[number] += np.bincount(place[is_candidate], values[is_candidate], minlength=len(catalog))
                weights[number].append(values[is_asked])
        query, item = (np.concatenate(part) for part in zip(*kept, strict=True))
        for number in range(len(_MEASURES)):
            of_items = sums[number] if number else sums[number].astype(np.int64)
            pairs = query, item, np.concatenate(weights[number])
            counts[number].append(co_occurrence(keys, catalog, pairs, of_items))
            popular[number].append(popularity(of_items))
    return counts, popular
