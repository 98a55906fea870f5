"""Training tables -> batches: the only user of Petastorm.

A table is pinned to one Delta version and resolved to that version's files, with their row counts, before
Petastorm sees it: Petastorm reads Parquet files and would also read removed ones. Each epoch is a reader of its own
(Petastorm repeats the same order otherwise), with our own worker and pool (row_groups.py). The rows of every epoch are
counted against the table all the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from itemsage_model.data.epochs import epoch_seed, share_of_epoch
from itemsage_model.data.feature_cells import FEATURE_CELLS, all_finite, unpack_items
from itemsage_model.data.pinned_files import TableFiles, unreadable
from itemsage_model.data.prefetch import Prefetch
from itemsage_model.data.ragged import ItemRows, gather_rows
from schemas.cells import unpack_cells
from schemas.errors import TableError
from schemas.tables import EMBEDDING_DIM

_PREFETCHED_BLOCKS = 2
"""Row groups of a stream that are read and checked while the last ones are used."""

PAIR_COLUMNS = ("query_key", "item_key", "query_item_key", "pair_weight", "query_embedding")


@dataclass(frozen=True)
class Pairs:
    """Rows of a training table as arrays.

    Attributes:
        query_key, item_key, query_item_key: int64 [pair].
        pair_weight: float32 [pair].
        query_embedding: float16 [pair, dim].
        items: The features of each row's item, not yet copied; None where the columns were not read.
    """

    query_key: npt.NDArray[np.int64]
    item_key: npt.NDArray[np.int64]
    query_item_key: npt.NDArray[np.int64]
    pair_weight: npt.NDArray[np.float32]
    query_embedding: npt.NDArray[np.float16]
    items: ItemRows | None

    def __len__(self) -> int:
        return len(self.item_key)


@dataclass(frozen=True)
class CatalogItems:
    """Rows of item_features as arrays: int64 keys [item] and features, not yet copied."""

    item_key: npt.NDArray[np.int64]
    items: ItemRows

    def __len__(self) -> int:
        return len(self.item_key)


@dataclass(frozen=True)
class RowFormat:
    """What the cells of a table hold: how many text features and token ids; and whether item features are read."""

    text_count: int
    vocabulary_size: int
    with_items: bool = True


def read_files(files: TableFiles, indices: tuple[int, ...], columns: tuple[str, ...], seed: int) -> Iterator[pa.Table]:
    """Read some files of a table through Petastorm, in an order drawn from `seed`; yields one table a row group."""
    # Petastorm 0.13.1 calls interfaces that pyarrow 14 and setuptools deprecate. A filter and not catch_warnings: that
    # is process-wide too, and streams that end in another order than they began would leave all warnings off.
    for module in ("petastorm", "pyarrow", "pkg_resources"):
        warnings.filterwarnings("ignore", category=Warning, module=module)
    from itemsage_model.data.row_groups import open_reader  # noqa: PLC0415 (Petastorm takes seconds; only training needs it)

    reader = open_reader([files.uris[i] for i in indices], columns, seed)
    try:
        yield from reader
    finally:
        reader.stop()
        reader.join()


class RowStream:
    """An endless, shuffled stream of a table's rows: every row exactly once in every epoch, over all ranks.

    Rows are shuffled by file (drawn anew in each epoch) and within a pool of about `pool_rows` rows.

    Args:
        files: The pinned table.
        row_format: What the cells hold.
        pool_rows: Rows held for shuffling.
        seed: Seed of the run.
        stream: Number of this stream within the run.
        rank: This rank.
        ranks: Number of ranks.
    """

    def __init__(
        self,
        files: TableFiles,
        row_format: RowFormat,
        pool_rows: int,
        seed: int,
        stream: int,
        rank: int,
        ranks: int,
    ) -> None:
        self.files, self.row_format, self.pool_rows = files, row_format, pool_rows
        self.seed, self.stream, self.rank, self.ranks = seed, stream, rank, ranks

    def batches(self, size: int, skip_rows: int = 0) -> Iterator[Any]:
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
        pending: list[Any] = []
        try:
            for pool, order in self._pools(blocks, epoch):
                # A resumed epoch is dealt with in the same order, and its first rows are passed over.
                start = min(skip_rows, len(order))
                skip_rows -= start
                while start < len(order):
                    missing = size - sum(len(part) for part in pending)
                    pending.append(_gather(pool, order[start : start + missing]))
                    start += len(pending[-1])
                    if sum(len(part) for part in pending) == size:
                        yield pending[0] if len(pending) == 1 else _gather(pending, np.arange(size))
                        pending = []
        finally:
            blocks.close()

    def _share(self, epoch: int) -> Any:
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

    def _epochs(self, epoch: int) -> Iterator[Any]:
        """The rank's row groups of this epoch and all later ones, None after each epoch."""
        while True:
            yield from self._epoch(epoch)
            yield None
            epoch += 1

    def _epoch(self, epoch: int) -> Iterator[Any]:
        """The rank's row groups of one epoch; fails unless every row came exactly once."""
        share, rows = self._share(epoch), 0
        for raw in read_files(self.files, share.files, self._columns(), self._epoch_seed(epoch)):
            block = self._unpack(raw)
            if share.stride > 1:
                block = _gather([block], np.arange(share.offset, len(block), share.stride))
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

    def _pools(self, blocks: Iterable[Any], epoch: int) -> Iterator[tuple[list[Any], npt.NDArray[np.int64]]]:
        """Row groups of one epoch, about `pool_rows` rows together, with a random order of their rows."""
        pool: list[Any] = []
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

    def _columns(self) -> tuple[str, ...]:
        return (*PAIR_COLUMNS, *FEATURE_CELLS) if self.row_format.with_items else PAIR_COLUMNS

    def _unpack(self, raw: pa.Table) -> Pairs | CatalogItems:
        items = None
        if self.row_format.with_items:
            items = _item_rows(self.files.table, raw, self.row_format)
        queries = _query_vectors(self.files.table, raw["query_embedding"])
        return Pairs(
            _checked(self.files.table, raw, "query_key", np.int64),
            _checked(self.files.table, raw, "item_key", np.int64),
            _checked(self.files.table, raw, "query_item_key", np.int64),
            _checked(self.files.table, raw, "pair_weight", np.float32),
            queries,
            items,
        )


class CatalogStream(RowStream):
    """The same over item_features: the random negatives, each item once an epoch, so uniform over the catalog."""

    def _columns(self) -> tuple[str, ...]:
        return ("item_key", *FEATURE_CELLS)

    def _unpack(self, raw: pa.Table) -> CatalogItems:
        items = _item_rows(self.files.table, raw, self.row_format)
        return CatalogItems(_checked(self.files.table, raw, "item_key", np.int64), items)

    def whole_table(self) -> CatalogItems:
        """Every item of the catalog, sorted by key."""
        parts = [
            self._unpack(raw) for raw in read_files(self.files, tuple(range(len(self.files.uris))), self._columns(), 1)
        ]
        keys = np.concatenate([part.item_key for part in parts])
        if len(keys) != self.files.row_count:
            raise unreadable(self.files.table, "", f"{self.files.row_count} rows", f"{len(keys)}", "Read it again.")
        catalog: CatalogItems = _gather(parts, np.argsort(keys, kind="stable"))
        return catalog


def _item_rows(table: str, raw: pa.Table, row_format: RowFormat) -> ItemRows:
    cells = {name: raw[name] for name in FEATURE_CELLS}
    items = unpack_items(table, cells, row_format.text_count, row_format.vocabulary_size)
    return ItemRows([items], np.arange(len(items)))


def _gather(blocks: list[Any], rows: npt.NDArray[np.int64]) -> Any:
    """The given rows of Pairs or CatalogItems laid end to end."""
    columns = ([getattr(block, f.name) for block in blocks] for f in fields(blocks[0]))
    gathered: list[Any] = []
    for parts in columns:
        if isinstance(parts[0], ItemRows):
            gathered.append(ItemRows.concatenate(parts).take(rows))
        else:
            gathered.append(None if parts[0] is None else gather_rows(parts, rows))
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
