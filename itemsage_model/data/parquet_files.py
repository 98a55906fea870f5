"""Opening Parquet files so that reading them is as fast as pyarrow can, and saying what is wrong with them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.checksums import require_undamaged
from schemas.columns import Table
from schemas.errors import InputError, TableError
from schemas.stages import remade
from schemas.storage import file_system

_LOCAL_READ_BYTES = 1 << 20
"""From a local disk a column is decompressed piece by piece, in the cache; from an object store in few large reads."""

_READING: dict[object, tuple[str, float]] = {}

_STORAGE_FAILED = re.compile("AWS Error|google::cloud|GCS|HDFS|curl|[Tt]imeout|[Tt]imed out|[Cc]onnection")
"""What pyarrow says where the storage failed and not the file; both are an OSError."""


def open_parquet(path: str, filesystem: Any) -> pq.ParquetFile:
    """Open one file; the caller closes it.

    Args:
        path: Inside the file system.
        filesystem: Of pyarrow or of fsspec.
    """
    # Arrow's other allocators give the pages of what was read back to the system, to get them anew for the next read.
    if "mimalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.mimalloc_memory_pool())
    # pyarrow's old and new file systems and fsspec's have no class in common.
    is_local = type(filesystem).__name__ == "LocalFileSystem"
    how: dict[str, Any] = {"buffer_size": _LOCAL_READ_BYTES} if is_local else {"pre_buffer": True}
    return pq.ParquetFile(path, filesystem=filesystem, **how)


def file_batches(
    uri: str, columns: list[str], rows: int, table: Table, row_groups: Sequence[int] | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of one file, at most `rows` at a time, in one thread, compared with the checksums in them.

    Args:
        uri: The file.
        columns: What to read; with the checksums' own columns, as `require_undamaged` says, or they are not compared.
        rows: Most rows of a batch.
        table: What they mean.
        row_groups: Which of the file's; None = all.

    Raises:
        TableError: the file lacks a column, is damaged or gone.
    """
    filesystem, path = file_system(uri)
    with naming_the_file(uri, table.name), open_parquet(path, filesystem) as file:
        _require_columns(file, uri, columns)
        for batch in file.iter_batches(rows, columns=columns, use_threads=False, row_groups=row_groups):
            require_undamaged(batch, table, uri)
            yield batch


@contextmanager
def being_read(what: str) -> Iterator[None]:
    """Notes what is read meanwhile, for `reading_now`."""
    token = object()
    _READING[token] = (what, time.monotonic())
    try:
        yield
    finally:
        del _READING[token]


def reading_now() -> str:
    """What this process reads at the moment, and for how long."""
    now = time.monotonic()
    return ", ".join(f"{what} for {now - since:.0f} s" for what, since in list(_READING.values())) or "no file"


@contextmanager
def naming_the_file(uri: str, table: str) -> Iterator[None]:
    """Makes what goes wrong in reading a file an error that names file, table and cure, but where the storage failed.

    Raises:
        TableError: the file is damaged or gone.
        MemoryError: there was too little memory; no fault of the file.
    """
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise MemoryError(f"{' '.join(str(error).split())[:300]}, while reading {uri} of table {table}") from error
    except FileNotFoundError as error:
        raise gone(table, uri) from error
    except (OSError, pa.ArrowException, ValueError, LookupError) as error:
        if getattr(error, "errno", None) or _STORAGE_FAILED.search(str(error)):
            raise
        cause = " ".join(str(error).split())[:300]
        raise TableError(
            table,
            "(files)",
            expected=f"a whole Parquet file at {uri}",
            found=f"a damaged one: {cause}",
            cure=remade(table),
        ) from error


def gone(table: str, uri: str) -> TableError:
    """The error of a file that the table's log names and the storage lacks."""
    return TableError(
        table,
        "(files)",
        expected=f"the file {uri}, which the recorded version of the table names",
        found="no such file: VACUUM removes the files of versions that are not the newest, or somebody deleted it",
        cure=remade(table),
    )


def row_group_rows(uri: str, table: str) -> list[int]:
    """Rows of each row group of a file.

    Raises:
        TableError: the file is damaged or gone.
    """
    filesystem, path = file_system(uri)
    with naming_the_file(uri, table), open_parquet(path, filesystem) as file:
        return [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]


def _require_columns(file: pq.ParquetFile, uri: str, columns: Sequence[str]) -> None:
    present = file.schema_arrow.names
    for name in columns:
        if name not in present:  # pyarrow would leave it out in silence
            cure = "Run the job that writes the table again."
            raise TableError(uri, name, expected="this column", found=", ".join(present), cure=cure)


def first_unreadable(uris: list[str], table: str, columns: Sequence[str]) -> TableError | None:
    """What is wrong with the first file that is gone, has a damaged footer or lacks a column; None where none is."""
    for uri in uris:
        filesystem, path = file_system(uri)
        try:
            with naming_the_file(uri, table), open_parquet(path, filesystem) as file:
                _require_columns(file, uri, columns)
        except TableError as error:
            return error
    return None
