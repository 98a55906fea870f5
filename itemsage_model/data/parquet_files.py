"""Opening Parquet files so that reading them is as fast as pyarrow can."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import TableError
from schemas.storage import file_system

_LOCAL_READ_BYTES = 1 << 20
"""From a local disk a column is decompressed piece by piece, in the cache; from an object store in few large reads."""


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


def file_batches(uri: str, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
    """The rows of one file, at most `rows` at a time, in one thread.

    Raises:
        TableError: the file lacks a column.
    """
    filesystem, path = file_system(uri)
    with open_parquet(path, filesystem) as file:
        present = file.schema_arrow.names
        for name in columns:
            if name not in present:  # pyarrow would leave it out in silence
                cure = "Run the job that writes the table again."
                raise TableError(uri, name, expected="this column", found=", ".join(present), cure=cure)
        yield from file.iter_batches(rows, columns=columns, use_threads=False)
