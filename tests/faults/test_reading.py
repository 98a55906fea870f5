"""Reading training data: what is not the table's version, or is not whole, is an error and never a batch."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from deltalake import DeltaTable, convert_to_deltalake, write_deltalake
from packaging.requirements import Requirement
from petastorm.workers_pool import EmptyResultError

from itemsage_model.data import row_groups
from itemsage_model.data.pinned_files import TableFiles, pin_files
from itemsage_model.data.reader import RowStream, pair_format
from itemsage_model.data.row_groups import InOrder, RowGroups
from itemsage_model.training import run as training
from schemas.errors import TableError
from tests.fault_report import Trials
from tests.itemsage_model.factories import ELEMENTS, write_pairs
from tests.itemsage_model.warehouses import make_warehouse

ROOT = Path(__file__).resolve().parents[2]
PAIRS = pair_format(ELEMENTS)


def stream(files: TableFiles) -> RowStream:  # type: ignore[type-arg]
    return RowStream(files, PAIRS, 8, seed=3, stream=0, rank=0, ranks=1)


def epoch(files: TableFiles, number: int = 0) -> list[int]:
    """The rows of one epoch, by the numbers that `write_pairs` gave them."""
    return sorted(int(key) for block in stream(files)._epoch(number) for key in block.query_key)


@pytest.mark.fault(
    "A1", "recovered", "a table overwritten, rows deleted and orphans dropped in while a run has it pinned"
)
def test_an_epoch_is_the_pinned_version_alone(tmp_path: Path) -> None:
    folder = tmp_path / "training_a"
    write_pairs(folder, [9, 4])
    pinned = pin_files("training_a", str(folder), 0)
    whole = DeltaTable(folder).to_pyarrow_table()
    write_deltalake(str(folder), whole.slice(0, 5), mode="overwrite")
    write_deltalake(str(folder), whole.slice(5, 1), mode="append")
    gone = whole["query_key"][5].as_py()
    DeltaTable(folder).delete(f"query_key = {gone}")
    pq.write_table(whole, folder / "orphan.parquet")
    assert epoch(pinned) == list(range(13))
    assert epoch(pin_files("training_a", str(folder), 1)) == sorted(whole.slice(0, 5)["query_key"].to_pylist())
    newest = pin_files("training_a", str(folder))
    assert newest.version == 3
    assert epoch(newest) == sorted(whole.slice(0, 5)["query_key"].to_pylist())
    assert epoch(pin_files("training_a", str(folder), 2)) == sorted(whole.slice(0, 6)["query_key"].to_pylist())


@pytest.mark.fault("A1", "loud", "a folder of Parquet files where a table is meant")
def test_a_folder_of_files_is_no_table(tmp_path: Path) -> None:
    pq.write_table(pa.table({"query_key": [1]}), tmp_path / "part.parquet")
    with pytest.raises(TableError, match=r"table training_a, .*expected a Delta table; found none at .*Run the job"):
        pin_files("training_a", str(tmp_path))


@pytest.mark.fault(
    "A4", "loud", "a reading thread that raises SystemExit(0), which would end the trainer as if it were done"
)
def test_a_reader_that_exits_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(*_: object, **__: object) -> None:
        raise SystemExit(0)

    settings = make_warehouse(tmp_path, {"click": [30]}, deadlines={"read_seconds": 20})
    monkeypatch.setattr(RowGroups, "process", leave)
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=r"reading ended with SystemExit\(0\)"):
        training.train(settings, torch.device("cpu"))
    assert time.monotonic() - started < 20


@pytest.mark.fault("A5", "loud", "a table of empty row groups, an empty folder, one row for two processes")
def test_no_rows_are_named_and_never_waited_for(tmp_path: Path) -> None:
    write_pairs(tmp_path / "one", [1])
    nothing = pq.read_table(next((tmp_path / "one").glob("*.parquet"))).slice(0, 0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "none").mkdir()
    for number in range(3):
        pq.write_table(nothing, tmp_path / "none" / f"part-{number}.parquet")
    convert_to_deltalake(str(tmp_path / "none"))
    with pytest.raises(TableError, match="at least one row; found an empty table"):
        pin_files("training_a", str(tmp_path / "none"))
    with pytest.raises(TableError, match="expected a Delta table; found none"):
        pin_files("training_a", str(tmp_path / "empty"))
    alone = pin_files("training_a", str(tmp_path / "one"))
    second = RowStream(alone, PAIRS, 8, seed=3, stream=0, rank=1, ranks=2)
    with pytest.raises(TableError, match=r"at least one row for each of 2 processes; found 1 rows.*train\.processes"):
        next(second.batches(1))


@pytest.mark.fault("A5", "recovered", "empty files among the files of a table")
def test_empty_files_are_passed_over(tmp_path: Path) -> None:
    write_pairs(tmp_path / "t", [3, 2])
    nothing = DeltaTable(tmp_path / "t").to_pyarrow_table().slice(0, 0)
    pq.write_table(nothing, tmp_path / "t" / "part-00000-empty.parquet")
    for log in (tmp_path / "t" / "_delta_log").iterdir():
        log.unlink()
    convert_to_deltalake(str(tmp_path / "t"))
    files = pin_files("training_a", str(tmp_path / "t"))
    assert [epoch(files, number) for number in range(2)] == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.fault("A10", "recovered", "two epochs broken off after three batches, and begun anew")
def test_an_epoch_that_was_broken_off_is_begun_anew(tmp_path: Path) -> None:
    write_pairs(tmp_path / "t", [9, 7])
    files = pin_files("training_a", str(tmp_path / "t"))
    one = stream(files)
    first, second = ([batch.query_key.tolist() for batch in islice(one.batches(4), 3)] for _ in range(2))
    assert first == second
    assert len({key for batch in first for key in batch}) == 12


@pytest.mark.fault(
    "A11", "recovered", "20 epochs of a table: the memory of the last ten grows by less than 1 MB an epoch"
)
def test_memory_does_not_grow_by_the_epoch(tmp_path: Path) -> None:
    write_pairs(tmp_path / "t", [500] * 12, items=400)
    files, used = pin_files("training_a", str(tmp_path / "t")), []
    one = stream(files)
    batches = one.batches(100)
    for _ in range(20):
        for _ in range(files.row_count // 100):
            next(batches)
        used.append(psutil.Process().memory_info().rss / 1e6)
    batches.close()
    slope = np.polyfit(range(10), used[10:], 1)[0]
    assert slope < 1, used


@pytest.mark.fault("A13", "loud", "a package of another version than the locked one: this very test fails")
def test_what_is_installed_is_what_is_locked() -> None:
    """The batches that all other tests here read are read with these."""
    lines = re.findall(r"^([A-Za-z0-9_.-]+==[^\\\n]+?)(?: \\)?$", (ROOT / "requirements.txt").read_text(), re.M)
    wanted = [Requirement(line) for line in lines]
    here = {
        one.name: str(one.specifier).removeprefix("==") for one in wanted if not one.marker or one.marker.evaluate()
    }
    assert {"petastorm", "pyarrow", "deltalake", "pyspark", "torch"} <= here.keys()
    for name in ("petastorm", "pyarrow", "deltalake", "pyspark", "torch", "numpy", "delta-spark"):
        assert metadata.version(name).partition("+")[0] == here[name].partition("+")[0], name


@pytest.mark.fault("A14", "loud", "a file of a training table emptied, cut at 40 places, and gone")
def test_a_file_that_is_not_whole_is_named(tmp_path: Path, trials: Trials) -> None:
    write_pairs(tmp_path / "training_a", [6, 5])
    files = pin_files("training_a", str(tmp_path / "training_a"), 0)
    file = tmp_path / "training_a" / "part-00001.parquet"
    whole = file.read_bytes()
    for size in [0, 1, *np.linspace(4, len(whole) - 1, 39).astype(int).tolist()]:
        file.write_bytes(whole[:size])
        row_groups._COMPARED.clear()
        started = time.monotonic()
        with pytest.raises(TableError, match=rf"table training_a.*{file.name}.*FROM=build_training_tables"):
            epoch(files)
        trials.add(loud=1, seconds=time.monotonic() - started)
    file.write_bytes(whole)
    assert epoch(files) == list(range(11))


@pytest.mark.fault("A15", "recovered", "200 reads of 2, 8 and 64 small files: every row, every time")
def test_small_files_lose_no_row(tmp_path: Path, kills: int, trials: Trials) -> None:
    for count in (2, 8, 64):
        write_pairs(tmp_path / f"t{count}", [1] * count)
        files = pin_files("training_a", str(tmp_path / f"t{count}"))
        for number in range(kills):
            assert epoch(files, number) == list(range(count))
            trials.add(recovered=1)


@pytest.mark.fault(
    "A15", "loud", "a pool that asks whether all is read before all is dealt out, as Petastorm's own does"
)
def test_with_the_race_put_back_the_count_is_loud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pairs(tmp_path / "t", [2] * 8)
    files = pin_files("training_a", str(tmp_path / "t"))
    deal: Callable[..., None] = InOrder.ventilate

    def late(self: InOrder, **item: object) -> None:
        time.sleep(0.02)
        deal(self, **item)

    whole = InOrder.get_results

    def racing(self: InOrder) -> pa.Table:
        if self._dealt.empty():
            raise EmptyResultError
        return whole(self)

    monkeypatch.setattr(InOrder, "ventilate", late)
    assert epoch(files) == list(range(16)), "dealt out late, but all of it"
    monkeypatch.setattr(InOrder, "get_results", racing)
    with pytest.raises(TableError, match=r"training_a.*expected 16 rows in epoch 0.*found \d+ rows"):
        epoch(files)


@pytest.mark.fault("A8", "recovered", "six epochs over two processes: other orders and shares, every row once")
def test_epochs_differ_in_order_and_in_who_reads_what(tmp_path: Path) -> None:
    write_pairs(tmp_path / "t", [5] * 8)
    files = pin_files("training_a", str(tmp_path / "t"))
    ranks = [RowStream(files, PAIRS, 8, seed=3, stream=0, rank=rank, ranks=2) for rank in range(2)]
    orders, shares = set(), set()
    for number in range(6):
        rows = [[int(key) for block in one._epoch(number) for key in block.query_key] for one in ranks]
        assert Counter(rows[0] + rows[1]) == Counter(range(40))
        orders.add(tuple(rows[0]))
        shares.add(frozenset(rows[0]))
    assert len(orders) == 6
    assert len(shares) > 1
