"""Arms with graph vectors: settings that can be, equal but for what an arm is about, and a table that says it."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from experiments import graph_arms
from experiments.graph_arms import ARMS, GRAPH_COMMANDS, measure, report
from schemas.settings import Settings, load_settings


def settings_of(arguments: list[str]) -> Settings:
    changes = [arguments[place + 1] for place, one in enumerate(arguments) if one == "--set"]
    return load_settings(arguments[arguments.index("--settings") + 1], changes)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would have been run; nothing is."""
    found: list[list[str]] = []
    monkeypatch.setattr(graph_arms, "run_stages", found.append)
    monkeypatch.setattr(graph_arms.subprocess, "run", lambda command, **_: found.append(command[3:]))
    monkeypatch.setattr(graph_arms, "evaluated", lambda settings: [])
    return found


def test_the_graph_is_made_once_and_each_arm_is_what_its_name_says(tmp_path: Path, runs: list[list[str]]) -> None:
    wanted = Namespace(folder=tmp_path, online_retail="log.tar.xz", steps=7, seed=3, set=["evaluate.k=5"])
    measure("online-retail", ARMS["online-retail"][0], wanted)
    assert [run[0] for run in runs[1:4]] == list(GRAPH_COMMANDS)
    assert runs[0][-1].endswith("--data log.tar.xz")
    assert "--prepare" not in runs[-1]
    (tmp_path / "online-retail" / "item_graph_images").mkdir(parents=True)
    runs.clear()
    for arm in ARMS["online-retail"]:
        measure("online-retail", arm, wanted)
    auto, auto_graph, tower, tower_graph = map(settings_of, runs)
    assert len(runs) == 4
    assert [one.has_graph_vectors_alone for one in (auto, auto_graph, tower, tower_graph)] == [False, True, False, True]
    assert (auto.preset, tower.preset, tower.train.steps, tower_graph.train.steps) == ("auto", "small_log", 7, 7)
    assert "images" in tower_graph.model.sequence
    assert "images" not in tower.model.sequence
    assert all((one.train.seed, one.evaluate.k, one.floor.gate) == (3, 5, "off") for one in (auto, tower_graph))


def test_the_demos_arms_differ_by_what_the_tower_sees_alone(tmp_path: Path, runs: list[list[str]]) -> None:
    (tmp_path / "demo" / "item_graph_images").mkdir(parents=True)
    for arm in ARMS["demo"]:
        measure("demo", arm, Namespace(folder=tmp_path, online_retail="", steps=7, seed=1, set=[]))
    *others, graph = map(settings_of, runs)
    assert [one.model.sequence for one in (*others, graph)] == [
        ("text", "frozen_text"), ("images",), ("text", "images", "frozen_text"), ("text", "images", "frozen_text"),
    ]  # fmt: skip
    assert [one.takes_graph_vectors for one in (*others, graph)] == [False, False, False, True]
    same = {"model": graph.model, "graph": graph.graph}
    assert all(one.model_copy(update=same) == graph.model_copy(update=same) for one in others)


def test_the_table_has_an_arm_beside_the_better_co_occurrence() -> None:
    row: dict[str, Any] = {"task": "closeup_checkout", "slice": "all", "low": None, "high": None}
    rows = [row | {"system": name, "value": value} for name, value in
            (("itemsage", 0.06), ("co_occurrence", 0.04), ("co_occurrence_recent", 0.05))]  # fmt: skip
    *_, line = report([{"shop": "online-retail", "arm": "tower, graph", "rows": rows}])
    assert line == "| online-retail | closeup_checkout | all | tower, graph | 0.0600 | 0.0500 | 1.200 |"
