"""The same items of two versions are sampled, and canaries find what they must, wherever it lies in the catalog."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession

from jobs.evaluation.vector_health import sampled, with_canaries
from jobs.runtime import gates
from schemas.errors import GateError
from schemas.metrics import Health
from schemas.settings import Settings
from schemas.settings.serving import CanarySettings

WELL = Health(1_000, 0.5, 40.0, 0.05, 0.4, 0.0)
ITEMS = 40


def items(spark: SparkSession, count: int = ITEMS, first: int = 0) -> DataFrame:
    """On a circle, a degree apart: item n's nearest are n - 1 and n + 1."""
    rows = []
    for number in range(first, first + count):
        angle = np.deg2rad(number)
        rows.append((f"i{number}", [float(np.cos(angle)), float(np.sin(angle))], f"f{number}"))
    columns = "item_id string, embedding array<float>, features_hash string"
    return spark.createDataFrame(rows, columns).repartition(3)


def queries(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame([("q", [1.0, 0.0])], "query_id string, query_vector array<float>")


def test_two_versions_give_the_same_items_sorted(spark: SparkSession) -> None:
    old, new = sampled(items(spark, 400), 0.25), sampled(items(spark, 400, first=100), 0.25)
    assert 60 < len(old.ids) < 140
    assert list(old.ids) == sorted(old.ids)
    in_both = {f"i{number}" for number in range(100, 400)}
    assert set(old.ids) & in_both == set(new.ids) & in_both
    assert len(sampled(items(spark), 1.0).ids) == ITEMS
    row = list(old.ids).index(old.ids[7])
    assert old.features[row] == f"f{old.ids[7][1:]}"


@pytest.mark.parametrize(
    ("canary", "is_found"),
    [
        ({"item": "i20", "finds": ["i19", "i21"], "within": 2}, True),
        ({"item": "i20", "finds": ["i19", "i22"], "within": 2}, False),
        ({"item": "i20", "finds": ["i20"], "within": 5}, False),  # an item does not find itself
        ({"query": "q", "finds": ["i0", "i1"], "within": 2}, True),
        ({"query": "q", "finds": ["i9"], "within": 9}, False),
        ({"query": "q", "finds": ["i9"], "within": 10}, True),
        ({"query": "none", "finds": ["i0"]}, False),
        ({"item": "none", "finds": ["i0"]}, False),
    ],
)
def test_a_canary_finds_what_it_must_or_not(spark: SparkSession, canary: dict[str, Any], is_found: bool) -> None:
    one = CanarySettings.model_validate(canary)
    found = with_canaries(WELL, items(spark), queries(spark), [one])
    assert found.canaries == {one.name: is_found}


def test_of_two_canaries_of_one_item_both_must_find_theirs(spark: SparkSession) -> None:
    right = CanarySettings(item="i20", finds=("i21",), within=2)
    wrong = CanarySettings(item="i20", finds=("i0",), within=2)
    for pair in ([right, wrong], [wrong, right]):
        assert with_canaries(WELL, items(spark), queries(spark), pair).canaries == {"item i20": False}
    assert with_canaries(WELL, items(spark), queries(spark), []) is WELL


@pytest.mark.parametrize(
    ("health", "said"),
    [
        (Health(1_000, 0.0, 40.0, 0.05), r"at least 0\.001 from their mean \(gates\.min_spread\); found 0"),
        (Health(1_000, 0.5, 1.2, 0.05), r"at least 20\.0 dimensions .*; found 1\.2"),
        (Health(1_000, 0.5, 19.0, 0.05), r"at least 20\.0 dimensions"),
        (
            Health(1_000, 0.5, 40.0, 0.2),
            r"at most 15\.0% of the items on an item of other .*; found 20\.0% \(before",
        ),
        (Health(1_000, 0.5, 40.0, 0.05, 0.01), r"2\.0% of the ten nearest of before .*; found 1\.0%"),
        (Health(1_000, 0.5, 40.0, 0.05, 0.5, 0.3), r"gates\.max_drift\); found 0\.3"),
        (
            Health(1_000, 0.5, 40.0, 0.05, 0.5, 0.0, {"item i": False}),
            r"item i to find what its \[\[canaries",
        ),
    ],
)
@pytest.mark.fault("B11", "loud", "a model that went wrong: collapsed, on each other, strange neighbours, canaries")
def test_sick_vectors_stop_before_they_are_published(
    make_settings: Callable[..., Settings], health: Health, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(GateError, match=said):
        gates.require_sound_vectors(health, WELL, make_settings().gates)
    gates.require_sound_vectors(health, WELL, make_settings(gates={"override": True}).gates)
    assert "gate overridden: " in capsys.readouterr().out


def test_well_vectors_and_a_first_version_pass(make_settings: Callable[..., Settings]) -> None:
    limits = make_settings().gates
    gates.require_sound_vectors(WELL, WELL, limits)
    gates.require_sound_vectors(Health(1_000, 0.5, 5.0, 0.9), None, limits)
    gates.require_sound_vectors(Health(3, 0.5, 1.9, 0.0), None, limits)  # three items have no more directions
    gates.require_sound_vectors(Health(0, 0.0, 0.0, 0.0), WELL, limits)
    with pytest.raises(GateError, match=r"at least 1\.2 dimensions"):
        gates.require_sound_vectors(Health(1_000, 0.5, 1.0, 0.0), None, limits)
