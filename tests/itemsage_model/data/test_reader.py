from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from deltalake import DeltaTable, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st

from itemsage_model.data import reader
from itemsage_model.data.epochs import epoch_seed, share_of_epoch
from itemsage_model.data.feature_cells import all_finite
from itemsage_model.data.mixing import CatalogBatches, MixedBatches, pairs_per_task
from itemsage_model.data.pinned_files import pin_files
from itemsage_model.data.prefetch import Prefetch
from itemsage_model.data.ragged import PackedItems
from itemsage_model.data.reader import RowStream, catalog_format, pair_format, read_catalog
from schemas.elements import IMAGES
from schemas.errors import TableError
from schemas.tables import TRAINING_PAIRS
from tests.itemsage_model.factories import ELEMENTS, packed_items, with_checksums, write_catalog, write_pairs

PAIRS, CATALOG = pair_format(ELEMENTS), catalog_format(ELEMENTS)
IMAGES_OF_4 = tuple(replace(element, slots=4) if element.element is IMAGES else element for element in ELEMENTS)


def stream(files, *, rank=0, ranks=1, pool_rows=8, row_format=PAIRS):
    return RowStream(files, row_format, pool_rows, seed=3, stream=0, rank=rank, ranks=ranks)


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=30),
    st.integers(1, 6),
    st.integers(1, 2**31 - 1),
)
def test_every_row_of_an_epoch_belongs_to_one_rank(file_rows, ranks, seed):
    rows = []
    for rank in range(ranks):
        share = share_of_epoch(file_rows, rank, ranks, seed)
        own = [(f, r) for f in share.files for r in range(share.offset, file_rows[f], share.stride)]
        assert len(own) == share.rows
        rows += own
    assert sorted(rows) == [(f, r) for f, count in enumerate(file_rows) for r in range(count)]


def test_files_are_dealt_anew_in_every_epoch():
    shares = {share_of_epoch([5] * 8, 0, 2, epoch_seed(1, 0, epoch)).files for epoch in range(6)}
    assert len({frozenset(files) for files in shares}) > 1


@given(
    st.integers(1, 8).flatmap(
        lambda k: st.tuples(st.integers(k, 200), st.lists(st.floats(0.01, 9), min_size=k, max_size=k))
    )
)
def test_a_batch_is_split_completely_and_every_task_has_a_pair(case):
    size, shares = case
    counts = pairs_per_task(size, shares)
    assert sum(counts) == size
    assert min(counts) >= 1


def test_equal_shares_give_equal_counts():
    assert pairs_per_task(8, [1.0] * 4) == [2, 2, 2, 2]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_gathering_from_parts_is_picking_items_one_by_one(sizes, seed):
    parts = [packed_items(size, seed=seed + number) for number, size in enumerate(sizes)]
    whole = [(part, row) for part in parts for row in range(len(part))]
    rows = np.random.default_rng(seed).integers(0, len(whole), 7 if whole else 0)
    gathered = PackedItems.gather(parts, rows)
    for place, row in enumerate(rows):
        part, own = whole[row]
        expected, found = part.take(np.array([own])), gathered.take(np.array([place]))
        tokens, images = part["text_token_ids"].counts.sum(1), part["image_embeddings"].counts
        first_token, first_image = tokens[:own].sum(), images[:own].sum()
        np.testing.assert_array_equal(
            found["text_token_ids"].values, part["text_token_ids"].values[first_token : first_token + tokens[own]]
        )
        np.testing.assert_array_equal(
            found["image_embeddings"].values, part["image_embeddings"].values[first_image : first_image + images[own]]
        )
        np.testing.assert_array_equal(found["text_token_ids"].counts, expected["text_token_ids"].counts)
    assert len(gathered) == len(rows)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_seen(value):
    halves = np.array([[0.0, -0.0, 65504.0, -65504.0, 6e-8, 1.0]], np.float16)
    assert all_finite(halves)
    halves[0, 4] = value
    assert not all_finite(halves)


@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.fault("A12", "recovered", "files of other numbers of row groups than there are processes")
def test_every_row_of_every_epoch_is_read_once_over_all_ranks(tmp_path: Path, ranks: int):
    write_pairs(tmp_path / "t", [7, 3, 12])
    files = pin_files("training_a", str(tmp_path / "t"), 0)
    for epoch in range(2):
        rows = [
            key
            for rank in range(ranks)
            for block in stream(files, rank=rank, ranks=ranks)._epoch(epoch)
            for key in block.query_key
        ]
        assert sorted(rows) == list(range(22))


def test_batches_are_full_and_straddle_epochs_without_losing_a_row(tmp_path: Path):
    write_pairs(tmp_path / "t", [7, 4])
    files = pin_files("training_a", str(tmp_path / "t"), 0)
    rows = np.concatenate([b.query_key for b in islice(stream(files).batches(5), 11)])
    assert len(rows) == 55
    for epoch in range(5):
        assert sorted(rows[epoch * 11 : (epoch + 1) * 11]) == list(range(11))
    assert list(rows[:11]) != list(rows[11:22])


def test_a_batch_holds_what_was_written(tmp_path: Path):
    keys = write_pairs(tmp_path / "t", [6])
    write_catalog(tmp_path / "items")
    catalog = read_catalog(pin_files("item_features", str(tmp_path / "items"), 0), CATALOG)
    block = next(stream(pin_files("training_a", str(tmp_path / "t"), 0)).batches(6))
    assert list(block.item_key) == [keys[row] for row in block.query_key]
    place = np.searchsorted(catalog.item_key, block.item_key)
    expected, found = catalog.items.take(place).gather(), block.items.gather()
    for name in ("text_token_ids", "image_embeddings"):
        np.testing.assert_array_equal(found[name].values, expected[name].values)
        np.testing.assert_array_equal(found[name].counts, expected[name].counts)


def test_skipping_rows_resumes_in_the_middle_of_an_epoch(tmp_path: Path):
    write_pairs(tmp_path / "t", [7, 4])
    files = pin_files("training_a", str(tmp_path / "t"), 0)
    whole = [list(b.query_key) for b in islice(stream(files).batches(4), 8)]
    resumed = [list(b.query_key) for b in islice(stream(files).batches(4, skip_rows=20), 3)]
    assert resumed == whole[5:]


def test_only_the_pinned_version_is_read(tmp_path: Path):
    write_pairs(tmp_path / "t", [5])
    write_deltalake(str(tmp_path / "t"), DeltaTable(tmp_path / "t").to_pyarrow_table().slice(0, 2), mode="overwrite")
    (tmp_path / "t" / "orphan.parquet").write_bytes(b"not a table")
    assert len(next(stream(pin_files("training_a", str(tmp_path / "t"), 0)).batches(5)).query_key) == 5
    assert pin_files("training_a", str(tmp_path / "t"), 1).row_count == 2


def test_the_newest_version_is_pinned_by_default_and_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"table item_features, .*a Delta table.*Run the job that writes it"):
        pin_files("item_features", str(tmp_path / "items"))
    for rows in (3, 5):
        write_deltalake(str(tmp_path / "items"), pa.table({"a": range(rows)}), mode="append")
    files = pin_files("item_features", str(tmp_path / "items"))
    assert (files.version, files.row_count) == (1, 8)
    assert [pq.read_metadata(uri.removeprefix("file://")).num_rows for uri in files.uris] == list(files.rows)


@pytest.mark.fault("A12", "loud", "half of the row groups are passed over in silence")
def test_lost_rows_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_pairs(tmp_path / "t", [5, 5])
    files = pin_files("training_a", str(tmp_path / "t"), 0)
    whole = reader.read_files

    def half(*arguments):
        yield next(iter(whole(*arguments)))

    monkeypatch.setattr(reader, "read_files", half)
    with pytest.raises(TableError, match=r"training_a.*expected 10 rows in epoch 0.*found 5 rows"):
        list(stream(files)._epoch(0))


def test_an_empty_table_and_too_few_rows_are_named(tmp_path: Path):
    write_pairs(tmp_path / "t", [1])
    with pytest.raises(TableError, match=r"each of 2 processes.*train\.processes"):
        next(stream(pin_files("training_a", str(tmp_path / "t"), 0), rank=1, ranks=2).batches(1))
    write_deltalake(str(tmp_path / "t"), DeltaTable(tmp_path / "t").to_pyarrow_table().slice(0, 0), mode="overwrite")
    with pytest.raises(TableError, match="empty table"):
        pin_files("training_a", str(tmp_path / "t"), 1)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("text_token_ids", b"\xff\xff\xff\x7f", "text_token_ids"),
        ("text_token_counts", b"\0\0\0\0", "text_token_counts"),
        ("image_embeddings", b"\0" * 100, "multiple of 512 bytes"),
        ("image_embeddings", b"\x00\x7e" * 256, "NaN or infinity"),
        ("query_embedding", b"\0" * 10, "256 finite float16"),
        ("image_embeddings", None, "packed bytes in every row"),
        ("query_key", None, "int64 without nulls"),
    ],
)
@pytest.mark.fault("A9", "loud", "a null, NaN, ragged or mis-sized cell in a training table")
def test_a_poisoned_cell_is_an_error_that_names_the_column(tmp_path: Path, column, value, message):
    write_pairs(tmp_path / "t", [3])
    table = DeltaTable(tmp_path / "t").to_pyarrow_table()
    values = table[column].to_pylist()
    values[1] = value
    place = table.column_names.index(column)
    poisoned = table.set_column(place, column, pa.array(values, table.schema.field(column).type))
    # Written so, and not damaged since.
    poisoned = poisoned if value is None else with_checksums(poisoned, TRAINING_PAIRS)
    write_deltalake(str(tmp_path / "t"), poisoned, mode="overwrite")
    with pytest.raises(TableError, match=message):
        next(stream(pin_files("training_a", str(tmp_path / "t"), 1)).batches(3))


def test_a_mixed_batch_encodes_each_distinct_item_once(tmp_path: Path):
    write_pairs(tmp_path / "a", [9], seed=1)
    write_pairs(tmp_path / "b", [4], seed=2)
    write_catalog(tmp_path / "items")
    tasks = [stream(pin_files(n, str(tmp_path / n), 0)) for n in ("a", "b")]
    catalog = stream(pin_files("item_features", str(tmp_path / "items"), 0), row_format=CATALOG)
    batch = next(iter(MixedBatches(tasks, [6, 3], catalog, 10, None, IMAGES_OF_4)))
    assert batch.task.tolist() == [0] * 6 + [1] * 3
    assert len(set(batch.item_key.tolist())) == len(batch.item_key) == len(batch.items)
    assert torch.equal(batch.items.item_key, batch.item_key)
    assert len(batch.negatives) == 10
    whole = read_catalog(pin_files("item_features", str(tmp_path / "items"), 0), CATALOG)
    expected = whole.items.take(np.searchsorted(whole.item_key, batch.item_key.numpy())).gather()
    for name in ("text_token_ids", "image_embeddings"):
        np.testing.assert_array_equal(batch.items[name].counts, expected[name].counts)


def test_engaged_negatives_only(tmp_path: Path):
    write_pairs(tmp_path / "a", [9])
    write_catalog(tmp_path / "items")
    catalog = stream(pin_files("item_features", str(tmp_path / "items"), 0), row_format=CATALOG)
    engaged = np.array([1001, 1005, 1007])
    batches = MixedBatches([stream(pin_files("a", str(tmp_path / "a"), 0))], [6], catalog, 20, engaged, IMAGES_OF_4)
    batch = next(iter(batches))
    assert sorted(batch.item_key[batch.negatives].tolist()) == [1001, 1005, 1007]


def test_rows_that_only_the_validation_window_has_enter_no_batch_of_the_fit_pass(tmp_path: Path):
    late = (0, 2, 3, 8, 9)
    keys = write_pairs(tmp_path / "a", [11], late=late)
    write_pairs(tmp_path / "b", [4], seed=2, late=(0, 1, 2, 3))
    write_catalog(tmp_path / "items")
    pinned = pin_files("item_features", str(tmp_path / "items"), 0)
    whole = read_catalog(pinned, CATALOG)

    def tasks(elements):
        row_format = pair_format(elements, weight="fit_weight")
        return [stream(pin_files(n, str(tmp_path / n), 0), row_format=row_format) for n in ("a", "b")]

    kept = [row for row in range(11) if row not in late]
    for batches in (
        MixedBatches(tasks(IMAGES_OF_4), [11, 3], None, 0, None, IMAGES_OF_4),
        CatalogBatches(tasks(None), [11, 3], whole, 0, 1, IMAGES_OF_4),
    ):
        for batch in islice(iter(batches), 3):
            assert sorted(batch.query_key.tolist()) == kept
            assert batch.pair_weight.tolist() == [1.0] * len(kept)
            assert batch.task.tolist() == [0] * len(kept)
            assert batch.item_key[batch.positive].tolist() == [keys[row] for row in batch.query_key]
            if isinstance(batches, MixedBatches):
                assert set(batch.item_key.tolist()) == {keys[row] for row in kept}


def test_catalog_batches_point_into_the_whole_catalog(tmp_path: Path):
    write_pairs(tmp_path / "a", [9])
    write_catalog(tmp_path / "items")
    whole = read_catalog(pin_files("item_features", str(tmp_path / "items"), 0), CATALOG)
    own = [
        next(iter(CatalogBatches([stream(pin_files("a", str(tmp_path / "a"), 0))], [6], whole, rank, 2, IMAGES_OF_4)))
        for rank in range(2)
    ]
    assert sum(len(batch.items) for batch in own) == 20
    assert torch.equal(torch.cat([batch.items.item_key for batch in own]), own[0].item_key)
    first = next(stream(pin_files("a", str(tmp_path / "a"), 0)).batches(6))
    assert own[0].item_key[own[0].positive].tolist() == first.item_key.tolist()


def test_prefetching_keeps_the_order_and_raises_where_the_batch_is_taken():
    def batches():
        yield from range(5)
        raise ValueError("poison")

    prefetched = Prefetch(batches(), 2)
    seen = []
    with pytest.raises(ValueError, match="poison"):
        seen.extend(iter(prefetched))
    assert seen == [] or seen == list(range(5))
    prefetched.close()
