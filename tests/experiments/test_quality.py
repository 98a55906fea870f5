"""What the quality table says of figures that are kept in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.quality import LINES, SHOPS, Line, ratios, report
from pipeline.commands import ROOT
from schemas.settings import load_settings


def row(system: str, value: float, part: str = "all", task: str = "closeup_checkout") -> dict[str, Any]:
    ends = {"low": None, "high": None} if part == "unseen" else {"low": value - 0.02, "high": value + 0.02}
    return {"task": task, "system": system, "slice": part, "metric": "recall@10", "value": value} | ends


RESULT = {
    "rows": [
        row("itemsage", 0.08), row("co_occurrence", 0.1), row("co_occurrence_recent", 0.05), row("frozen_query", 0.2),
        row("itemsage", 0.03, "unseen"), row("frozen_query", 0.02, "unseen"),
        row("itemsage", 0.5, task="search_click"),
    ]
}  # fmt: skip


def test_the_best_of_the_named_rivals_counts():
    line = Line("x", "all", ("co_occurrence", "co_occurrence_recent"), 1.0)
    assert ratios(RESULT, line) == {"closeup_checkout": (0.08, 0.1, "co_occurrence")}
    assert ratios(RESULT, Line("x", "unseen", ("frozen_query",), 1.0)) == {
        "closeup_checkout": (0.03, 0.02, "frozen_query")
    }


def test_a_line_that_is_missed_is_said_to_be(tmp_path: Path):
    for seed, value in ((1, 0.08), (2, 0.1)):
        rows = [row("itemsage", value), *RESULT["rows"][1:]]
        (tmp_path / f"online-retail-{seed}.json").write_text(json.dumps({"rows": rows}))
    lines = report(tmp_path, [1, 2, 3])
    (all_pairs,) = [line for line in lines if "| all |" in line]
    (unseen,) = [line for line in lines if "| unseen |" in line]
    assert "0.900 (0.800 to 1.000; 2 seeds)" in all_pairs
    assert "MISSED" in all_pairs
    assert "| 0.0900 [0.0700, 0.1100] | co_occurrence | 0.1000 [0.0800, 0.1200] |" in all_pairs
    assert "1.500" in unseen
    assert "| 0.0300 | frozen_query | 0.0200 |" in unseen, "too few queries for an interval"
    assert "held" in unseen


@pytest.mark.parametrize("name", SHOPS)
def test_a_shop_names_nothing_about_the_model(name: str):
    settings = load_settings(ROOT / SHOPS[name].settings)
    assert settings.preset == "auto"
    for section in (settings.model, settings.loss, settings.train):
        assert not section.model_fields_set, "the comparison is of what a shop gets without choosing"
    assert any(line.shop == name for line in LINES)
