"""A pinned version that VACUUM or the log's clean-up has removed: named, with the cure that cures."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from itemsage_model.data.pinned_files import pin_files
from schemas.errors import InputError, TableError


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """A table of three versions, each with one file."""
    for number in range(3):
        write_deltalake(str(tmp_path / "t"), pa.table({"a": [number]}), mode="overwrite")
    return str(tmp_path / "t")


@pytest.mark.fault("B8", "refused", "VACUUM of a version that a record still names")
def test_a_version_without_its_files_is_named_with_the_stage_to_run(uri: str) -> None:
    assert pin_files("training_a", uri, 1).row_count == 1
    DeltaTable(uri).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    with pytest.raises(TableError, match=r"\.parquet, which the recorded version .*; found no such file: .*FROM=build"):
        pin_files("training_a", uri, 1)
    assert pin_files("training_a", uri, 2).row_count == 1


@pytest.mark.fault("B8", "refused", "the log of a version that a record still names cleaned up")
def test_a_version_without_its_log_is_no_absent_table(uri: str) -> None:
    DeltaTable(uri).create_checkpoint()
    for number in (0, 1):
        (Path(uri) / "_delta_log" / f"{number:020}.json").unlink()
    with pytest.raises(InputError, match=r"expected version 1, .*; found no file 0+\.json in its log.*FROM=build"):
        pin_files("training_a", uri, 1)
    assert pin_files("training_a", uri, 2).row_count == 1
    with pytest.raises(TableError, match="expected a Delta table; found none at"):
        pin_files("training_a", uri + "x", 1)
