"""Fixtures: one JVM for all tests (one shuffle partition, no adaptive execution), settings in a scratch warehouse."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.settings import Settings

ROOT = Path(__file__).resolve().parents[1]

pytest_plugins = ("tests.fault_report",)


def spark_defaults() -> dict[str, str]:
    """The settings of spark-defaults.conf, with the jars of ITEMSAGE_DELTA_JARS where that is set."""
    lines = (ROOT / "spark-defaults.conf").read_text().splitlines()
    values = dict(line.split(None, 1) for line in lines if line.strip() and not line.startswith("#"))
    if folder := os.environ.get("ITEMSAGE_DELTA_JARS"):
        values.pop("spark.jars.packages")
        values["spark.jars"] = ",".join(str(jar) for jar in sorted(Path(folder).glob("*.jar")))
    return {key: value.strip() for key, value in values.items()}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: `make test` deals files out in this order, as it tells xdist not to reorder them."""
    longest = ("test_month", "test_end_to_end", "test_search_text_move", "test_by_name", "test_cluster")
    items.sort(key=lambda item: next((n for n, name in enumerate(longest) if name in item.nodeid), len(longest)))


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The one Spark session of the test run."""
    from pyspark.sql import SparkSession

    # Workers start as `python3` otherwise, which need not be the one that has the packages.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName("tests")
    fast = {
        "spark.driver.memory": "3g",
        "spark.sql.shuffle.partitions": "1",
        "spark.sql.adaptive.enabled": "false",
        "spark.databricks.delta.snapshotPartitions": "1",
        # On a handful of rows, compiling a plan takes longer than interpreting it.
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
        "spark.sql.warehouse.dir": str(tmp_path_factory.mktemp("spark-warehouse")),
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
    }
    for key, value in (spark_defaults() | fast).items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., Settings]:
    """Settings in a scratch warehouse: `make_settings(train={"steps": 3})` replaces keys section by section."""

    def make(**sections: Any) -> Settings:
        values: dict[str, Any] = {
            "warehouse": {"uri": str(tmp_path / "warehouse")},
            "preset": "paper",
            "dates": {"as_of": "2026-03-01", "train_days": 20, "gap_days": 2, "test_days": 7},
        }
        for name, keys in sections.items():
            values[name] = values.get(name, {}) | keys if isinstance(keys, dict) else keys
        return Settings.model_validate(values)

    return make
