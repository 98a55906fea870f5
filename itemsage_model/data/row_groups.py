"""How Petastorm reads our tables: one row group after another, handed over as the Arrow table it is.

Petastorm's reader deals out the row groups; its worker and pool are parts that it takes from the caller. Its own worker
copies every row group twice on the way to numpy objects. Of its own pools, the thread pool of 0.13.1 ends early
and loses rows in silence, and the dummy pool sleeps for a tenth of a second whenever it is asked too early.

Of a folder with a file `_common_metadata` Petastorm unpickles the schema, behind a list of modules that lets `exec`
pass (SECURITY.md). It is told files, never folders; and where it would unpickle all the same, it is refused here.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn
from urllib.parse import unquote

import pyarrow as pa
from petastorm.etl import dataset_metadata
from petastorm.fs_utils import get_filesystem_and_path_or_paths
from petastorm.reader import Reader
from petastorm.workers_pool import EmptyResultError
from petastorm.workers_pool.worker_base import WorkerBase

from itemsage_model.data.parquet_files import being_read, naming_the_file, open_parquet
from schemas.checksums import require_undamaged
from schemas.columns import Table
from schemas.errors import InputError

_WAIT_SECONDS = 0.002

_COMPARED: set[tuple[str, int]] = set()
"""Row groups that this process has compared with their checksums. In every epoch it would slow the reading by half."""


def _refuse_pickle(_: bytes) -> NoReturn:
    raise InputError(
        "a table's folder",
        "_common_metadata",
        expected="Parquet files alone",
        found="a pickled schema, which may hold any code",
        cure="Nothing of ours writes such a file: find out who did, and remove it.",
    )


dataset_metadata.depickle_legacy_package_name_compatible = _refuse_pickle


def open_reader(urls: list[str], columns: tuple[str, ...], seed: int, table: Table) -> Reader:
    """A Petastorm reader of some Parquet files, once over, that yields a pyarrow Table per row group.

    Args:
        urls: The files.
        columns: Columns to read.
        seed: Decides the order of the row groups.
        table: What they mean, for the checksums in the rows.
    """
    # Petastorm takes the path of a file:// URL as it stands, percent signs and all.
    plain = [unquote(url) if url.startswith("file://") else url for url in urls]
    filesystem, paths = get_filesystem_and_path_or_paths(plain)
    return Reader(
        filesystem,
        paths,
        schema_fields=[f"^{name}$" for name in columns],
        seed=seed,
        reader_pool=InOrder(table),
        worker_class=RowGroups,
        is_batched_reader=True,
    )


class RowGroups(WorkerBase):  # type: ignore[misc]
    """Petastorm's worker: reads one row group.

    Args:
        worker_id: Its number.
        publish: Takes what was read.
        arguments: The reader's file system, dataset paths, schema, n-gram, pieces and what else it has for workers.
    """

    def __init__(self, worker_id: int, publish: Callable[[pa.Table], None], arguments: tuple[Any, ...]) -> None:
        super().__init__(worker_id, publish, arguments)
        self._filesystem, _, schema, _, self._pieces = arguments[:5]
        self._columns = list(schema.fields)

    @staticmethod
    def new_results_queue_reader() -> _Tables:
        """What the reader takes the results from."""
        return _Tables()

    def process(self, piece_index: int, **_: Any) -> None:
        """Read the row group of this number."""
        piece = self._pieces[piece_index]
        with open_parquet(piece.path, self._filesystem) as file:
            self.publish_func(file.read_row_group(piece.row_group, columns=self._columns))

    def place_of(self, piece_index: int, **_: Any) -> tuple[str, int]:
        """The file that this row group is of, and its number there."""
        piece = self._pieces[piece_index]
        return str(piece.path), int(piece.row_group)


class InOrder:
    """Petastorm's pool: reads the row groups one by one, in the caller's thread, in the order they are dealt out.

    Args:
        table: What the rows mean: each row group is compared with the checksums in it.
    """

    workers_count = 1

    def __init__(self, table: Table) -> None:
        self._table = table
        self._dealt: queue.Queue[dict[str, Any]] = queue.Queue()
        self._read: deque[pa.Table] = deque()

    def start(self, worker_class: type[RowGroups], worker_args: tuple[Any, ...], ventilator: Any) -> None:
        """Called by the reader."""
        self._worker = worker_class(0, self._read.append, worker_args)
        self._ventilator = ventilator
        ventilator.start()

    def ventilate(self, **item: Any) -> None:
        """Called by the reader's ventilator, in its own thread, for every row group."""
        self._dealt.put(item)

    def get_results(self) -> pa.Table:
        """The next row group.

        Raises:
            EmptyResultError: all have been read.
            TableError: a file is damaged or gone.
        """
        while True:
            # Asked before the queue is looked at: what was dealt last stands in the queue by then.
            is_complete = self._ventilator.completed()
            try:
                item = self._dealt.get(timeout=_WAIT_SECONDS)
            except queue.Empty:
                if is_complete:
                    raise EmptyResultError from None
                continue
            place = self._worker.place_of(**item)
            with being_read(place[0]), naming_the_file(place[0], self._table.name):
                self._worker.process(**item)
                rows = self._read.popleft()
                if place not in _COMPARED:
                    require_undamaged(rows, self._table, place[0])
                    _COMPARED.add(place)
            self._ventilator.processed_item()
            return rows

    def stop(self) -> None:
        """Read no further row group."""
        self._ventilator.stop()

    def join(self) -> None:
        """Nothing runs on."""


class _Tables:
    """Takes row groups from the pool as they are."""

    batched_output = True

    def read_next(self, pool: InOrder, schema: Any, ngram: Any) -> pa.Table:
        """The next row group, for `Reader.__next__`."""
        del schema, ngram
        try:
            return pool.get_results()
        except EmptyResultError:
            raise StopIteration from None
