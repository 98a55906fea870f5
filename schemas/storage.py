"""Storage: which file system a URI means, files replaced whole or not at all, and the files of a table version."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote
from uuid import uuid4

import pyarrow as pa
from deltalake import DeltaTable
from pyarrow import fs

from schemas.errors import TableError


def absolute_uri(uri: str) -> str:
    """A URI as it is; a plain path made absolute, so that it means the same in every process."""
    return uri if "://" in uri else str(Path(uri).resolve())


def file_system(uri: str) -> tuple[fs.FileSystem, str]:
    """The pyarrow file system of a URI or absolute path, and the path inside it.

    Raises:
        TableError: pyarrow knows no such kind of URI.
    """
    try:
        system, path = fs.FileSystem.from_uri(absolute_uri(uri))
    except pa.ArrowInvalid as error:
        raise TableError(
            "warehouse",
            "uri",
            expected="a path or a URI that pyarrow, deltalake and Spark open alike (file://, s3://, gs://, hdfs://)",
            found=f"{uri}: {error}",
            cure="Write s3:// for s3a://; set spark.hadoop.fs.s3.impl to org.apache.hadoop.fs.s3a.S3AFileSystem.",
        ) from error
    return system, path


def write_bytes(uri: str, content: bytes) -> None:
    """Write a file so that a reader finds the old content or the new, never a part: temporary file, fsync, rename."""
    system, path = file_system(uri)
    system.create_dir(path.rpartition("/")[0], recursive=True)
    if not isinstance(system, fs.LocalFileSystem):
        # Object stores publish a file only when it is closed.
        with system.open_output_stream(path) as stream:
            stream.write(content)
        return
    staged = f"{path}.{uuid4().hex}.staged"
    with open(staged, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)


def read_bytes(uri: str) -> bytes:
    """The content of a file.

    Raises:
        FileNotFoundError: there is none.
    """
    system, path = file_system(uri)
    with system.open_input_stream(path) as stream:
        content: bytes = stream.read()
    return content


def data_files(table_uri: str, version: int | None = None) -> list[str]:
    """Paths or URIs of the Parquet files of one version of a Delta table; None = the newest."""
    files = DeltaTable(table_uri, version=version).file_uris()
    # Local paths come percent-encoded, and no file is found under that name where the path has a blank.
    return [file if "://" in file else unquote(file) for file in files]
