"""Row 9: what the paper's hash tables cost in scoring, against the demo's, the rest of the model being equal.

Vocabulary 1,264,000 and 100,000 x 256 rows against 40,000 and 10,000 x 256: the small table fits into a cache, the
large one does not. One thread, as a task slot has; 20 images and about 300 tokens an item, other items in every step.

    python -m benchmarks.hash_tables [--rounds N] [--small]
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.contest import Contender, Row, Turn, compete, judge, repeat, require
from benchmarks.report import Options, main, print_outcome
from benchmarks.synthetic import Catalog
from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.model_files import model_bytes
from itemsage_model.serving.scorer import Scorer
from schemas.presets import demo, paper
from schemas.settings import LossSettings, ScoreSettings

PAPER, DEMO = "paper-size tables", "demo-size tables"


def rows(options: Options) -> Iterator[Row]:
    """Time both."""
    items = options.choose(ScoreSettings().rows_per_batch, 64)
    contenders = [Contender(name, scoring_turn, (name, items)) for name in (PAPER, DEMO)]
    outcome = compete(contenders, options.rounds or 8)
    print_outcome(f"scoring, one thread, {items} items a batch", "items", outcome)
    slower = outcome.ratios(DEMO, PAPER)
    yield judge("9", "time per item with paper-size hash tables", DEMO, slower, at_most=1.5)


def scoring_turn(tables: str, items: int) -> Turn:
    """Scoring with the paper's encoder and the tables of that name."""
    torch.set_num_threads(1)
    sizes, features = paper()
    if tables == DEMO:
        small, features = demo()
        sizes = sizes.model_copy(update={"hash_rows": small.hash_rows})
    catalog = Catalog(32 * items, features)
    spec = ItemTowerSpec(sizes, LossSettings(), features, catalog.vocabulary_size, {})
    scorer = Scorer(model_bytes(spec.build()), spec)
    whole = catalog.first_items(catalog.items)
    batches = [whole.take(np.arange(start, start + items)) for start in range(0, catalog.items, items)]
    lengths = np.linalg.norm(scorer.score(batches[0]), axis=1)
    require(bool(np.allclose(lengths, 1, atol=1e-3)), "an embedding has no unit length")
    turns = itertools.cycle(batches)
    return lambda: repeat(lambda: scorer.score(next(turns)), items, 2.0)


if __name__ == "__main__":
    main("benchmarks.hash_tables")
