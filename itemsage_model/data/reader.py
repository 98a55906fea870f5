"""Training tables -> batches: the only user of Petastorm.

A table is pinned to one Delta version and resolved to that version's files, with their row counts, before
Petastorm sees it: Petastorm reads Parquet files and would also read removed ones. Each epoch is a reader of its own
(Petastorm repeats the same order otherwise), with our own worker and pool (row_groups.py). The rows of every epoch are
counted against the table all the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from itemsage_model.data.epochs import Share, epoch_seed, share_of_epoch
from itemsage_model.data.feature_cells import all_finite, unpack_items
from itemsage_model.data.parquet_files import being_read, first_unreadable, reading_now
from itemsage_model.data.pinned_files import TableFiles, unreadable
from itemsage_model.data.prefetch import Prefetch
from itemsage_model.data.ragged import ItemRows, take_rows
from schemas.cells import unpack_cells
from schemas.columns import Table
from schemas.elements import SizedElement
from schemas.errors import TableError
from schemas.stages import remade
from schemas.tables import EMBEDDING_DIM, FEATURES_HASH, ITEM_FEATURES, ROW_CHECKSUM, TRAINING_PAIRS

_PREFETCHED_BLOCKS = 2
"""Row groups of a stream that are read and checked while the last ones are used."""

PAIR_ARRAYS = (
    "query_key", "item_key", "query_item_key", "pair_weight", "fit_weight", "negative_item_key", "negative_weight",
    "query_embedding",
)  # fmt: skip
"""What the trainer reads of a pair, beside the features of its item: some of it because the checksum covers it."""

Weight = Literal["pair_weight", "fit_weight"]
"""Which column is a pair's weight in the loss; pairs of the validation window alone have a fit_weight of 0."""


@dataclass(frozen=True)
class Pairs:
    """Rows of a training table as arrays.

    Attributes:
        query_key, item_key, query_item_key: int64 [pair].
        pair_weight: float32 [pair], of the column that was asked for.
        query_embedding: float16 [pair, dim].
        items: The features of each row's item, not yet copied; None where the columns were not read.
        negative_item_key: int64 [pair], an item that counts against the row; 0 = none. None where not asked for.
        negative_weight: float32 [pair], how often it counts; None like the keys.
    """

    query_key: npt.NDArray[np.int64]
    item_key: npt.NDArray[np.int64]
    query_item_key: npt.NDArray[np.int64]
    pair_weight: npt.NDArray[np.float32]
    query_embedding: npt.NDArray[np.float16]
    items: ItemRows | None
    negative_item_key: npt.NDArray[np.int64] | None = None
    negative_weight: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.item_key)


@dataclass(frozen=True)
class CatalogItems:
    """Rows of item_features as arrays: int64 keys [item] and features, not yet copied."""

    item_key: npt.NDArray[np.int64]
    items: ItemRows

    def __len__(self) -> int:
        return len(self.item_key)


Rows = TypeVar("Rows", Pairs, CatalogItems)


@dataclass(frozen=True)
class RowFormat(Generic[Rows]):
    """What is read of a table's rows: which columns, and how a row group of them becomes arrays.

    Attributes:
        declared: What the rows mean, whatever the table's name.
        columns: Names of the columns.
        unpack: Turns the table's name and some of its rows into arrays.
    """

    declared: Table
    columns: tuple[str, ...]
    unpack: Callable[[str, pa.Table], Rows]


def pair_format(
    elements: Sequence[SizedElement] | None, weight: Weight = "pair_weight", *, has_negatives: bool = False
) -> RowFormat[Pairs]:
    """Rows of a training table.

    Args:
        elements: What is read of their items' features; None = nothing.
        weight: The column that becomes `Pairs.pair_weight`.
        has_negatives: Whether the rows' explicit negatives are asked for.
    """
    cells = column_names(elements or ())

    def unpack(table: str, raw: pa.Table) -> Pairs:
        return Pairs(
            _checked(table, raw, "query_key", np.int64),
            _checked(table, raw, "item_key", np.int64),
            _checked(table, raw, "query_item_key", np.int64),
            _checked(table, raw, weight, np.float32),
            _query_vectors(table, raw["query_embedding"]),
            _item_rows(table, raw, elements) if elements else None,
            _checked(table, raw, "negative_item_key", np.int64) if has_negatives else None,
            _checked(table, raw, "negative_weight", np.float32) if has_negatives else None,
        )

    checked = (ROW_CHECKSUM, FEATURES_HASH) if elements else (ROW_CHECKSUM,)
    return RowFormat(TRAINING_PAIRS, (*PAIR_ARRAYS, *cells, *checked), unpack)


def catalog_format(elements: Sequence[SizedElement]) -> RowFormat[CatalogItems]:
    """Rows of item_features."""

    def unpack(table: str, raw: pa.Table) -> CatalogItems:
        return CatalogItems(_checked(table, raw, "item_key", np.int64), _item_rows(table, raw, elements))

    columns = (*ITEM_FEATURES.checksummed, *column_names(elements), ROW_CHECKSUM, FEATURES_HASH)
    return RowFormat(ITEM_FEATURES, columns, unpack)


def column_names(elements: Sequence[SizedElement]) -> tuple[str, ...]:
    """The columns that hold some elements."""
    return tuple(column.name for sized in elements for column in sized.element.columns)


def read_files(
    files: TableFiles, indices: tuple[int, ...], row_format: RowFormat[Rows], seed: int
) -> Iterator[pa.Table]:
    """Read some files of a table through Petastorm, in an order drawn from `seed`; yields one table a row group.

    Raises:
        TableError: a file is damaged or gone.
    """
    # Petastorm 0.13.1 calls interfaces that pyarrow 14 and setuptools deprecate. A filter and not catch_warnings: that
    # is process-wide too, and streams that end in another order than they began would leave all warnings off.
    for module in ("petastorm", "pyarrow", "pkg_resources"):
        warnings.filterwarnings("ignore", category=Warning, module=module)
    from itemsage_model.data.row_groups import open_reader  # noqa: PLC0415 (Petastorm takes seconds; only training needs it)

    uris = [files.uris[i] for i in indices]
    try:
        with being_read(f"the footers of {files.table}"):
            reader = open_reader(uris, row_format.columns, seed, replace(row_format.declared, name=files.table))
    except Exception as error:
        # Petastorm, which reads the footers, does not say of which file.
        if found := first_unreadable(uris, files.table, row_format.columns):
            raise found from error
        raise
    try:
        for rows in reader:
            _require_columns(files.table, row_format.columns, rows)
            yield rows
    finally:
        reader.stop()
        reader.join()


def _require_columns(table: str, columns: tuple[str, ...], rows: pa.Table) -> None:
    """Petastorm and pyarrow leave out what a file does not have, and a checksum that is not there is not compared."""
    for name in columns:
        if name not in rows.schema.names:
            found = ", ".join(rows.schema.names)
            raise TableError(table, name, expected="this column in every file", found=found, cure=remade(table))


class RowStream(Generic[Rows]):
    """An endless, shuffled stream of a table's rows: every row exactly once in every epoch, over all ranks.

    Rows are shuffled by file (drawn anew in each epoch) and within a pool of about `pool_rows` rows.

    Args:
        files: The pinned table.
        row_format: What is read of a row.
        pool_rows: Rows held for shuffling.
        seed: Seed of the run.
        stream: Number of this stream within the run.
        rank: This rank.
        ranks: Number of ranks.
    """

    def __init__(
        self,
        files: TableFiles,
        row_format: RowFormat[Rows],
        pool_rows: int,
        seed: int,
        stream: int,
        rank: int,
        ranks: int,
    ) -> None:
        self.files, self.pool_rows = files, pool_rows
        self.row_format: RowFormat[Rows] = row_format
        self.seed, self.stream, self.rank, self.ranks = seed, stream, rank, ranks

    def batches(self, size: int, skip_rows: int = 0) -> Iterator[Rows]:
        """Batches of exactly `size` rows, for ever; a batch may straddle two epochs.

        Args:
            size: Rows of a batch.
            skip_rows: Rows that an earlier run of this stream has already used.
        """
        epoch = 0
        while skip_rows >= (rows := self._share(epoch).rows):
            skip_rows -= rows
            epoch += 1
        blocks = Prefetch(self._epochs(epoch), _PREFETCHED_BLOCKS)
        pending: list[Rows] = []
        try:
            for pool, order in self._pools(blocks, epoch):
                # A resumed epoch is dealt with in the same order, and its first rows are passed over.
                start = min(skip_rows, len(order))
                skip_rows -= start
                while start < len(order):
                    missing = size - sum(len(part) for part in pending)
                    pending.append(gather_blocks(pool, order[start : start + missing]))
                    start += len(pending[-1])
                    if sum(len(part) for part in pending) == size:
                        yield pending[0] if len(pending) == 1 else gather_blocks(pending, np.arange(size))
                        pending = []
        finally:
            blocks.close()

    def _share(self, epoch: int) -> Share:
        share = share_of_epoch(list(self.files.rows), self.rank, self.ranks, self._epoch_seed(epoch))
        if not share.rows:
            raise unreadable(
                self.files.table,
                "",
                f"at least one row for each of {self.ranks} processes",
                f"{self.files.row_count} rows",
                "Lower train.processes or widen [dates].",
            )
        return share

    def _epochs(self, epoch: int) -> Iterator[Rows | None]:
        """The rank's row groups of this epoch and all later ones, None after each epoch."""
        while True:
            yield from self._epoch(epoch)
            yield None
            epoch += 1

    def _epoch(self, epoch: int) -> Iterator[Rows]:
        """The rank's row groups of one epoch; fails unless every row came exactly once."""
        share, rows = self._share(epoch), 0
        for raw in read_files(self.files, share.files, self.row_format, self._epoch_seed(epoch)):
            block = self.row_format.unpack(self.files.table, raw)
            if share.stride > 1:
                block = gather_blocks([block], np.arange(share.offset, len(block), share.stride))
            rows += len(block)
            yield block
        if rows != share.rows:
            raise unreadable(
                self.files.table,
                "",
                f"{share.rows} rows in epoch {epoch} (version {self.files.version})",
                f"{rows} rows",
                "Files changed or were lost while training read them; keep the version and restart.",
            )

    def _pools(self, blocks: Iterable[Rows | None], epoch: int) -> Iterator[tuple[list[Rows], npt.NDArray[np.int64]]]:
        """Row groups of one epoch, about `pool_rows` rows together, with a random order of their rows."""
        pool: list[Rows] = []
        random = self._random(epoch)
        for block in blocks:
            pool += [] if block is None else [block]
            rows = sum(len(part) for part in pool)
            if rows >= self.pool_rows or (rows and block is None):
                yield pool, random.permutation(rows)
                pool = []
            if block is None:
                epoch += 1
                random = self._random(epoch)

    def _random(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng((self._epoch_seed(epoch), self.rank))

    def _epoch_seed(self, epoch: int) -> int:
        return epoch_seed(self.seed, self.stream, epoch)


def read_catalog(
    files: TableFiles, row_format: RowFormat[CatalogItems], read_seconds: float | None = None
) -> CatalogItems:
    """Every item of the catalog, sorted by key.

    Raises:
        DeadlineError: the next row group does not come within `read_seconds`.
    """
    everything = Prefetch(
        read_files(files, tuple(range(len(files.uris))), row_format, 1), _PREFETCHED_BLOCKS, read_seconds, reading_now
    )
    parts = [row_format.unpack(files.table, raw) for raw in everything]
    keys = np.concatenate([part.item_key for part in parts])
    if len(keys) != files.row_count:
        raise unreadable(files.table, "", f"{files.row_count} rows", f"{len(keys)}", "Read it again.")
    return gather_blocks(parts, np.argsort(keys, kind="stable"))


def _item_rows(table: str, raw: pa.Table, elements: Sequence[SizedElement]) -> ItemRows:
    items = unpack_items(table, {name: raw[name] for name in column_names(elements)}, elements)
    return ItemRows([items], np.arange(len(items)))


def gather_blocks(blocks: list[Rows], rows: npt.NDArray[np.int64]) -> Rows:
    """The given rows of Pairs or CatalogItems laid end to end."""
    columns = ([getattr(block, f.name) for block in blocks] for f in fields(blocks[0]))
    gathered: list[Any] = []
    for parts in columns:
        if isinstance(parts[0], ItemRows):
            gathered.append(ItemRows.concatenate(parts).take(rows))
        else:
            gathered.append(None if parts[0] is None else take_rows(parts, rows))
    return type(blocks[0])(*gathered)


def _checked(table: str, raw: pa.Table, column: str, dtype: Any) -> Any:
    values = raw[column]
    if values.null_count or values.type != pa.from_numpy_dtype(dtype):
        raise TableError(
            table,
            column,
            expected=f"{np.dtype(dtype).name} without nulls",
            found=f"{values.null_count} nulls in {values.type}",
            cure="Write the table again with build_training_tables.",
        )
    return values.to_numpy()


def _query_vectors(table: str, cells: pa.ChunkedArray) -> npt.NDArray[np.float16]:
    try:
        numbers, counts = unpack_cells(cells, "<f2")
        found = "another length, or NaN or infinity"
    except ValueError as error:
        numbers, counts, found = np.empty(0, np.float16), np.zeros(1, np.int64), str(error)
    if (counts != EMBEDDING_DIM).any() or not all_finite(numbers):
        raise TableError(
            table,
            "query_embedding",
            expected=f"{EMBEDDING_DIM} finite float16 numbers a row",
            found=found,
            cure="Write the table again with build_training_tables.",
        )
    return numbers.reshape(-1, EMBEDDING_DIM)
