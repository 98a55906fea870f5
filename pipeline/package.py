"""`make package`: the project's modules as one zip, for the `--py-files` of spark-submit on a cluster.

    python -m pipeline.package [FILE]       FILE is dist/itemsage.zip unless it is named

The same sources give the same bytes, whenever and wherever it runs.
"""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

from pipeline.commands import ROOT

PACKAGES = ("itemsage_model", "jobs", "pipeline", "retrieval", "schemas")
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip can hold."""


def build(target: Path) -> str:
    """Write the zip; returns its sha256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    files = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    with zipfile.ZipFile(target, "w") as archive:
        for path in files:
            entry = zipfile.ZipInfo(path.relative_to(ROOT).as_posix(), _EPOCH)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, path.read_bytes())
    return hashlib.sha256(target.read_bytes()).hexdigest()


def main() -> None:
    """Entry point."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist" / "itemsage.zip"
    print(f"wrote {target}, sha256 {build(target)}")


if __name__ == "__main__":
    main()
