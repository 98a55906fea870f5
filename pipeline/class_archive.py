"""Java's class archive: a third of a short Spark stage is the JVM loading and checking the same classes once more.

The first Spark stage of a pipeline writes the classes it has loaded into one file beside the environment (about 190 MB)
as it ends, which takes it some 20 s; every later stage maps that file. Java compares it with its own version and its
class path, and loads classes as ever where it does not fit. Delete the file to have it written anew.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

ARCHIVE = Path(sys.prefix) / "spark-classes.jsa"

_FREE_BYTES = 1 << 30
"""Wanted on the disk: a JVM that cannot write its archive ends with an error, whatever its stage has done."""

# What Java says of its archive would stand on standard output, among the stage's own lines.
_QUIET = "-Xshare:auto -Xlog:disable -Xlog:all=error:stderr"


@contextmanager
def shared_classes(environment: Mapping[str, str], archive: Path = ARCHIVE) -> Iterator[dict[str, str]]:
    """The environment in which spark-submit starts a JVM that reads the archive, or else writes it where it can.

    A written archive is kept when the block ends without an exception. What the user set in SPARK_SUBMIT_OPTS wins.
    """
    staged = archive.with_name(f"{archive.name}.{uuid4().hex}")
    option = None
    if archive.exists():
        option = f'"-XX:SharedArchiveFile={archive}"'
    elif os.access(archive.parent, os.W_OK) and shutil.disk_usage(archive.parent).free > _FREE_BYTES:
        option = f'"-XX:ArchiveClassesAtExit={staged}"'
    options = [_QUIET, option, environment.get("SPARK_SUBMIT_OPTS")]
    try:
        yield {**environment, "SPARK_SUBMIT_OPTS": " ".join(filter(None, options))}
        if staged.exists():
            staged.replace(archive)
    finally:
        staged.unlink(missing_ok=True)
