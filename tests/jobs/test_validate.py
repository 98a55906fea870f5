"""validate: nothing is measured where nothing was validated, and never on a window that the model has seen."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from deltalake import DeltaTable

from jobs import validate
from jobs.evaluation.candidates import with_fallbacks
from schemas.errors import InputError
from schemas.metrics import EventCounts, TrainingTableMetrics, TrainMetrics
from schemas.records import RunRecord, TableVersion, read_record, write_record
from schemas.stages import VALIDATE
from schemas.tables import FROZEN_ALL, FROZEN_UNSEEN


def recorded(settings: Any, validated: str, *, trained_on: int = 0, cut: int = 0) -> None:
    def counts(version: int) -> TableVersion:
        return TableVersion("item_counts", settings.table_uri("item_counts"), version, 1)

    metrics = TrainMetrics("m", "/models/m", "v", validated_model_uri=validated)
    write_record(settings.layout, RunRecord("train", metrics, inputs=(counts(trained_on),)))
    tables = TrainingTableMetrics({}, EventCounts(0, 0, 0, 0, 0))
    write_record(settings.layout, RunRecord("build_training_tables", tables, outputs=(counts(cut),)))


@pytest.mark.parametrize(
    ("validated", "gate", "why"),
    [("", "fallback", "training validated nothing"), ("/models/fitted", "off", 'floor.gate is "off"')],
)
def test_without_a_validated_model_it_says_so_and_asks_spark_nothing(
    make_settings: Any, capsys: pytest.CaptureFixture[str], validated: str, gate: str, why: str
) -> None:
    settings = make_settings(floor={"gate": gate})
    recorded(settings, validated)
    context = SimpleNamespace(statusTracker=None, cancelJob=None)
    spark: Any = SimpleNamespace(sparkContext=context)
    validate.run(spark, settings)
    assert f"floor: not compared with simple rivals: {why}" in capsys.readouterr().out
    metrics = read_record(settings.layout, VALIDATE).metrics
    assert (metrics.model_id, metrics.verdicts) == ("m", ())
    assert metrics.note.startswith(why)
    assert DeltaTable(settings.table_uri("validation")).to_pyarrow_table().num_rows == 0


@pytest.mark.fault("floor", "loud", "training tables cut again between training and validate")
def test_another_window_than_the_one_that_training_left_out_is_refused(spark: Any, make_settings: Any) -> None:
    settings = make_settings()
    recorded(settings, "/models/fitted", trained_on=3, cut=4)
    with pytest.raises(InputError, match=r"trained on version 4, .*found one trained on version 3\. Run train again"):
        validate.run(spark, settings)


def test_a_fallback_replaces_unseen_items_or_all_but_never_one_without_a_frozen_vector() -> None:
    ours, frozen = np.full((4, 2), 5.0, np.float32), np.eye(4, 2, dtype=np.float32)
    made = with_fallbacks(ours, frozen, np.array([0, 3, 0, 3]))
    assert made[FROZEN_UNSEEN].tolist() == [[1, 0], [5, 5], [5, 5], [5, 5]]
    assert made[FROZEN_ALL].tolist() == [[1, 0], [0, 1], [5, 5], [5, 5]]
