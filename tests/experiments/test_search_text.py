"""The experiment of search texts: recall as it counts it, and its table where a seed has no item tower."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from experiments.search_text import SLICES, HeldOut, Vectors, recalls, report


def figures(**values: float) -> str:
    return json.dumps({"figures": {system: dict.fromkeys(SLICES, value) for system, value in values.items()}})


def test_means_are_over_the_seeds_that_have_the_figure(tmp_path: Path) -> None:
    whole = {"base": 0.1, "fine_tuned": 0.2, "fine_tuned_sides": 0.3, "tower_on_base": 0.4, "tower_on_fine_tuned": 0.6}
    (tmp_path / "demo-1.json").write_text(figures(**whole))
    (tmp_path / "demo-2-encoder.json").write_text(figures(base=0.1, fine_tuned=0.3, fine_tuned_sides=0.3))
    (tmp_path / "demo-3-encoder.json").write_text(figures(base=9.0))
    (tmp_path / "demo-3.json").write_text(figures(**whole))  # what has the tower counts
    _, _, first, *others = report(tmp_path, ["demo", "online-retail"], [1, 2, 3, 4])
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert cells == ["demo", "all", "0.1000 (3)", "0.2333 (3)", "0.3000 (3)", "0.4000 (2)", "0.6000 (2)", "2.333",
                     "1.500", "3"]  # fmt: skip
    assert len(others) == 2


def test_the_item_that_a_query_shows_is_no_candidate_and_equal_scores_count_against_a_pair() -> None:
    items = Vectors({f"i{row}": row for row in range(12)}, np.eye(12, dtype=np.float32))
    # Ten items are ahead of i11: it is found only where one of them is shown, and never where i10 is as near.
    scores = np.array([[*range(12, 2, -1), 1, 2], [*range(12, 2, -1), 2, 2]], np.float32)
    pairs = HeldOut(["q0", "q0", "q1"], ["i11", "i11", "i11"], np.ones(3), np.array([True, False, False]),
                    np.zeros(3, bool), ["", "i3", "i3"])  # fmt: skip
    found = recalls(pairs, Vectors({"q0": 0, "q1": 1}, scores), items)
    assert found == {"all": 1 / 3, "unseen_queries": 0.0, "unseen_items": 0.0}
