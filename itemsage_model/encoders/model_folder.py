"""Which model a local folder holds, by its files: what every process that loads it compares."""

from __future__ import annotations

import hashlib
from pathlib import Path

_PIECE = 1 << 20


def folder_sha256(folder: str) -> str:
    """sha256 over the names and the contents of a folder's files, read piece by piece."""
    root, digest = Path(folder), hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        of_file = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                of_file.update(piece)
        digest.update(f"{path.relative_to(root).as_posix()}\0{of_file.hexdigest()}\n".encode())
    return digest.hexdigest()
