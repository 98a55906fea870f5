"""The version of the code: it changes with any source file, and not with anything else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def version_in(path: Path) -> str:
    """What the code in a folder or a zip says of itself."""
    code = "from schemas.code_version import code_version; print(code_version())"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=path.parent, env={"PYTHONPATH": str(path)}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_changed_source_file_is_another_version_in_a_folder_and_in_a_zip(tmp_path: Path) -> None:
    for package in ("schemas", "jobs", "itemsage_model", "retrieval"):
        shutil.copytree(ROOT / package, tmp_path / "a" / package, ignore=shutil.ignore_patterns("__pycache__"))
    first = version_in(tmp_path / "a")
    assert version_in(tmp_path / "a") == first
    zipped = shutil.make_archive(str(tmp_path / "b"), "zip", tmp_path / "a")
    assert version_in(Path(zipped)) == first
    with (tmp_path / "a" / "jobs" / "runtime" / "gates.py").open("a") as file:
        file.write("# changed\n")
    assert version_in(tmp_path / "a") != first
