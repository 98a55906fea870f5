"""Bits that flip in a page of a table's file: a row that differs from what was written is never used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from itemsage_model.data import row_groups
from itemsage_model.data.parquet_files import file_batches
from itemsage_model.data.pinned_files import pin_files
from itemsage_model.data.ragged import ItemRows
from itemsage_model.data.reader import RowStream, catalog_format, pair_format
from schemas.elements import FEATURE_CELLS
from schemas.errors import TableError
from schemas.tables import FEATURES_HASH, ITEM_FEATURES, ROW_CHECKSUM
from tests.itemsage_model.factories import ELEMENTS, write_catalog, write_pairs

DAMAGES = 100


def damaged_copies(file: Path, seed: int) -> Iterator[None]:
    """The file with one byte of its pages changed, again and again; whole again in the end."""
    whole, random = file.read_bytes(), np.random.default_rng(seed)
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    for _ in range(DAMAGES):
        damaged = bytearray(whole)
        damaged[random.integers(4, len(whole) - footer)] ^= 1 << random.integers(8)
        file.write_bytes(damaged)
        yield
    file.write_bytes(whole)


def outcomes(file: Path, read: Callable[[], object], seed: int) -> tuple[int, int, set[str]]:
    """How many damages were refused, how many changed what was read all the same, and what the refusals said."""
    expected, refused, unnoticed, said = read(), 0, 0, set()
    for _ in damaged_copies(file, seed):
        try:
            unnoticed += read() != expected
        except TableError as error:
            refused += 1
            said.add(str(error))
    assert read() == expected
    return refused, unnoticed, said


def arrays_of(rows: object) -> list[bytes]:
    """All that a batch holds, its items' features too."""
    found = []
    for field in fields(rows):
        value = getattr(rows, field.name)
        if isinstance(value, ItemRows):
            for ragged in value.gather().elements.values():
                found += [ragged.values.tobytes(), ragged.counts.tobytes()]
        elif value is not None:
            found.append(value.tobytes())
    return found


def first_epoch(folder: Path, row_format, table: str) -> list[list[bytes]]:
    row_groups._COMPARED.clear()  # as in a new process
    files = pin_files(table, str(folder), 0)
    stream = RowStream(files, row_format, 100, seed=3, stream=0, rank=0, ranks=1)
    return [arrays_of(block) for block in stream._epoch(0)]


@pytest.mark.fault("A14", "loud", "a bit flipped in a page of a training table, 100 times")
def test_no_flipped_bit_of_a_training_table_reaches_the_trainer(tmp_path: Path) -> None:
    write_pairs(tmp_path / "training_a", [40])
    file = next((tmp_path / "training_a").glob("*.parquet"))
    read = lambda: first_epoch(tmp_path / "training_a", pair_format(ELEMENTS), "training_a")  # noqa: E731
    refused, unnoticed, said = outcomes(file, read, seed=1)
    assert (unnoticed, refused > DAMAGES / 2) == (0, True)
    for text in said:
        assert "table training_a" in text
        assert file.name in text
        assert "FROM=build_training_tables" in text


@pytest.mark.fault("A14", "loud", "a bit flipped in a page of item_features, 100 times, in training")
def test_no_flipped_bit_of_the_catalog_reaches_the_trainer(tmp_path: Path) -> None:
    write_catalog(tmp_path / "item_features", files=1)
    file = next((tmp_path / "item_features").glob("*.parquet"))
    read = lambda: first_epoch(tmp_path / "item_features", catalog_format(ELEMENTS), "item_features")  # noqa: E731
    refused, unnoticed, _ = outcomes(file, read, seed=2)
    assert (unnoticed, refused > DAMAGES / 2) == (0, True)


@pytest.mark.fault("A14", "loud", "a bit flipped in a page of item_features, 100 times, in scoring")
def test_no_flipped_bit_of_the_catalog_is_scored(tmp_path: Path) -> None:
    write_catalog(tmp_path / "item_features", files=1)
    file = next((tmp_path / "item_features").glob("*.parquet"))
    columns = [*ITEM_FEATURES.checksummed, *FEATURE_CELLS, ROW_CHECKSUM, FEATURES_HASH]

    def read() -> list[dict[str, list[object]]]:
        return [batch.to_pydict() for batch in file_batches(file.as_uri(), columns, 7, ITEM_FEATURES)]

    refused, unnoticed, said = outcomes(file, read, seed=3)
    assert (unnoticed, refused > DAMAGES / 2) == (0, True)
    assert all(file.name in text and "FROM=build_item_features" in text for text in said)


@pytest.mark.fault("B8", "loud", "a file of the recorded version removed by VACUUM, in training and in scoring")
def test_a_file_that_is_gone_is_named_with_what_makes_it_anew(tmp_path: Path) -> None:
    write_pairs(tmp_path / "training_a", [4, 4])
    files = pin_files("training_a", str(tmp_path / "training_a"), 0)
    (file := sorted((tmp_path / "training_a").glob("*.parquet"))[1]).unlink()
    message = rf"table training_a.*{file.name}.*no such file: VACUUM.*FROM=build_training_tables"
    with pytest.raises(TableError, match=message):
        list(RowStream(files, pair_format(ELEMENTS), 100, seed=3, stream=0, rank=0, ranks=1)._epoch(0))
    with pytest.raises(TableError, match=r"table item_features.*gone.parquet.*FROM=build_item_features"):
        list(file_batches((tmp_path / "gone.parquet").as_uri(), ["item_id"], 7, ITEM_FEATURES))


@pytest.mark.fault("A14", "loud", "a file cut short, in training")
def test_a_file_that_was_cut_short_is_named(tmp_path: Path) -> None:
    write_pairs(tmp_path / "training_a", [4, 4])
    files = pin_files("training_a", str(tmp_path / "training_a"), 0)
    file = sorted((tmp_path / "training_a").glob("*.parquet"))[1]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(TableError, match=rf"whole Parquet file at .*{file.name}.*FROM=build_training_tables"):
        list(RowStream(files, pair_format(ELEMENTS), 100, seed=3, stream=0, rank=0, ranks=1)._epoch(0))


@pytest.mark.fault("A14", "loud", "a training table without checksums, as version 0.2 wrote it")
def test_rows_without_checksums_are_not_read(tmp_path: Path) -> None:
    write_pairs(tmp_path / "training_a", [4])
    (file,) = (tmp_path / "training_a").glob("*.parquet")
    pq.write_table(pq.read_table(file).drop([ROW_CHECKSUM]), file)
    with pytest.raises(TableError, match=r"training_a, column row_checksum.*FROM=build_training_tables"):
        first_epoch(tmp_path / "training_a", pair_format(ELEMENTS), "training_a")
