"""Which code made a table or a model: the package's version and a hash of the project's own source files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

_PACKAGES = ("itemsage_model", "jobs", "retrieval", "schemas")


@lru_cache(maxsize=1)
def code_version() -> str:
    """`<package version>+<12 hexadecimal digits>`; read once in a process, from a folder or from a zip."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for name, content in sorted(_sources(files(package), package)):
            digest.update(f"{name}\0{len(content)}\0".encode())
            digest.update(content)
    try:
        released = version("itemsage-open")
    except PackageNotFoundError:  # run from a checkout
        released = "0"
    return f"{released}+{digest.hexdigest()[:12]}"


def _sources(folder: Traversable, name: str) -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        path = f"{name}/{entry.name}"
        if entry.name.endswith(".py"):
            yield path, entry.read_bytes()
        elif entry.is_dir() and entry.name != "__pycache__":
            yield from _sources(entry, path)
