"""Warehouses that a trainer can run on, made without Spark; and what a run on one leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from deltalake import DeltaTable, write_deltalake

from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.model_files import load_model
from itemsage_model.training import run as training
from itemsage_model.training.trainer import Trainer
from schemas.checksums import row_checksums
from schemas.metrics import EventCounts, ItemMetrics, QueryMetrics, TrainingTableMetrics
from schemas.records import RunRecord, TableVersion, read_record, write_record
from schemas.settings import Settings
from schemas.stages import TRAIN
from schemas.tables import ROW_CHECKSUM, VALIDATION_PAIRS
from tests.itemsage_model.factories import CHECKSUMS, VOCABULARY, write_catalog, write_pairs, write_table


def make_warehouse(folder: Path, file_rows: dict[str, list[int]], validated: int = 0, **sections: Any) -> Settings:
    """A warehouse after build_training_tables, written without Spark, and settings that train on it.

    With `negatives`, every third row of the first task's table has an item against it, and no row of the others.

    Args:
        folder: Of the warehouse.
        file_rows: Engagement -> rows of each file of its training table.
        validated: How many rows of each training table, its last, are of the validation window alone.
        sections: Keys of the settings that differ from those of a small model, by section; or a preset.
    """
    values: dict[str, Any] = {
        "warehouse": {"uri": str(folder)},
        "preset": "paper",
        "dates": {"as_of": "2026-03-01", "train_days": 20, "test_days": 7},
        "tasks": [{"query_kind": "closeup", "engagement": name} for name in file_rows],
        "features": {"text_features": ["title", "brand", "size"]},
        "model": {"width": 16, "heads": 2, "feed_forward_width": 24, "head_width": 16, "hash_rows": 64},
        "loss": {"sketch_width": 4096},
        "train": {
            "batch_size": 8, "negative_count": 8, "steps": 20, "warmup_steps": 4, "log_every": 1, "shuffle_rows": 64,
            "checkpoint_every": 1000, "threads": 1, "precision": "float32",
        },
    }  # fmt: skip
    for name, keys in sections.items():
        values[name] = values.get(name, {}) | keys if isinstance(keys, dict) else keys
    settings = Settings.model_validate(values)
    counts, outputs, length = [], [], settings.model.image_length
    for number, (name, rows) in enumerate(file_rows.items()):
        table = f"training_closeup_{name}"
        late = tuple(range(sum(rows) - validated, sum(rows)))
        against = [1000 + 7 * row % 20 if row % 3 == 0 else 0 for row in range(sum(rows))]
        negatives = tuple(against) if settings.negatives and not number else ()
        keys = write_pairs(folder / table, rows, seed=number + 1, image_length=length, late=late, negatives=negatives)
        fit_keys = keys[: len(keys) - validated]
        outputs.append(entry(folder, table, 0, len(keys)))
        if validated:
            outputs.append(_write_validation(folder, f"closeup_{name}", late))
        counts += [
            {"item_id": f"i{key - 1000}", "item_key": int(key), "task": f"closeup_{name}",
             "pair_count": int((keys == key).sum()), "engagement_count": 1,
             "fit_pair_count": int((fit_keys == key).sum()), "fit_engagement_count": int(key in fit_keys)}
            for key in sorted(set(keys))
        ]  # fmt: skip
    write_catalog(folder / "item_features", image_length=length)
    write_deltalake(str(folder / "item_counts"), pa.Table.from_pylist(counts))
    outputs.append(entry(folder, "item_counts", 0, len(counts)))
    features = (entry(folder, "item_features", 0, 20),)
    for record in (
        RunRecord(
            "build_training_tables",
            TrainingTableMetrics({}, EventCounts(0, 0, 0, 0, 0)),
            inputs=features,
            outputs=tuple(outputs),
            settings=settings.model_dump(mode="json", include={"negatives"}),
            made_with={"vocabulary": "abc", "space of closeup queries": "pinsage-1"},
        ),
        RunRecord(
            "build_item_features",
            ItemMetrics(VOCABULARY, "abc", length),
            outputs=features,
            made_with={"space of item text": "pinsage-1"},
        ),
        RunRecord("embed_queries", QueryMetrics(None, 0, {"closeup": "pinsage-1"})),
    ):
        write_record(settings.layout, record)
    return settings


def _write_validation(folder: Path, task: str, late: tuple[int, ...]) -> TableVersion:
    """The table of the task's validation pairs, which are rows of its training table."""
    pairs = DeltaTable(folder / f"training_{task}").to_pyarrow_table().drop(list(CHECKSUMS)).sort_by("query_key")
    rows = pairs.filter(pc.is_in(pairs["query_key"], pa.array(late))).select(
        [name for name in VALIDATION_PAIRS.column_names if name != ROW_CHECKSUM]
    )
    (batch,) = rows.combine_chunks().to_batches()
    write_table(
        folder / f"validation_{task}",
        [rows.append_column(ROW_CHECKSUM, pa.array(row_checksums(batch, VALIDATION_PAIRS)))],
    )
    return entry(folder, f"validation_{task}", 0, len(rows))


def entry(folder: Path, table: str, version: int, rows: int) -> TableVersion:
    return TableVersion(table, str(folder / table), version, rows)


def trained_weights(settings: Settings) -> dict[str, torch.Tensor]:
    return load_model(read_record(settings.layout, TRAIN).metrics.model_uri, ItemTowerSpec).build().state_dict()


def losses_of(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """Train, and return the losses of every step and task."""
    reports = []
    original = Trainer.fit
    monkeypatch.setattr(
        Trainer,
        "fit",
        lambda self, batches, report, *others: original(
            self, batches, lambda r: (reports.append(r), report(r)), *others
        ),
    )
    training.train(settings, torch.device("cpu"))
    return [[round(loss, 6) for loss in report.losses] for report in reports]
