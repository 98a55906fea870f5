"""Where things lie in a warehouse."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.warehouse import Warehouse


def test_each_warehouse_has_logs_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Warehouse(f"{tmp_path}/w").logs == f"{tmp_path}/w/_logs"
    monkeypatch.chdir(tmp_path)
    uris = ["s3://bucket/shop", "s3://bucket-shop", "abfss://bucket@shop", "s3://bucket/shop/2", f"gs://b/{'x' * 300}"]
    folders = [Path(Warehouse(uri).logs) for uri in uris]
    assert {folder.parent for folder in folders} == {tmp_path / "logs"}
    assert len({folder.name for folder in folders}) == len(uris)
    assert folders[0].name.startswith("bucket-shop-")
    assert max(len(folder.name) for folder in folders) < 80
    assert Warehouse("s3://bucket/shop/").logs == str(folders[0])
