"""A read that hangs in the storage ends training within the deadline, and names the file."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch

from itemsage_model.data.prefetch import Prefetch
from itemsage_model.data.row_groups import RowGroups
from itemsage_model.training import run as training
from schemas.errors import DeadlineError
from tests.itemsage_model.warehouses import make_warehouse


@pytest.mark.fault("A4", "loud", "a read of a training table that hangs in the storage, and a deadline of 2 s")
def test_a_read_that_hangs_is_named_within_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make_warehouse(tmp_path, {"click": [30, 20]}, deadlines={"read_seconds": 2})
    (stuck,) = (tmp_path / "training_closeup_click").glob("part-00001.parquet")
    read, is_over = RowGroups.process, threading.Event()

    def hang(self: RowGroups, piece_index: int, **others: object) -> None:
        if self.place_of(piece_index)[0].endswith("training_closeup_click/part-00001.parquet"):
            is_over.wait(60)
        read(self, piece_index, **others)

    monkeypatch.setattr(RowGroups, "process", hang)
    started = time.monotonic()
    with pytest.raises(DeadlineError, match=rf"within 2 s \(deadlines.read_seconds\).*{stuck.name} for \d+ s"):
        training.train(settings, torch.device("cpu"))
    is_over.set()
    assert time.monotonic() - started < 50


def test_a_thread_that_hangs_is_left_behind() -> None:
    is_over = threading.Event()
    prefetched = Prefetch(iter(lambda: is_over.wait(60), None), 1, 0.2, lambda: "part-7.parquet")
    with pytest.raises(DeadlineError, match=r"part-7\.parquet"):
        next(iter(prefetched))
    prefetched.close()
    is_over.set()
