"""LanceDB, in the environment of its own that `make .venv-lancedb/installed` makes: pushed, verified, restored."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retrieval import push as pushing
from schemas.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-lancedb" / "bin" / "python"


@pytest.mark.skipif(not PYTHON.exists(), reason="make .venv-lancedb/installed")
def test_lancedb_is_pushed_verified_and_restored_in_an_environment_of_its_own(
    make_settings: Callable[..., Settings], tmp_path: Path, capfd: Any
) -> None:
    uri = str(tmp_path / "lance")
    settings = make_settings(push={"store": "lancedb", "uri": uri})
    done = subprocess.run(
        [str(PYTHON), "-m", "tests.retrieval.lancedb_acts", settings.model_dump_json()], cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout == "all acts held\n", done.stderr[-3000:]
    file = tmp_path / "settings.toml"
    file.write_text(
        f'[warehouse]\nuri = "{settings.warehouse.uri}"\n[dates]\nas_of = 2026-03-01\ntrain_days = 20\n'
        f'gap_days = 2\ntest_days = 7\n[push]\nstore = "lancedb"\nuri = "{uri}"\nlancedb_python = "{PYTHON}"\n'
    )
    with pytest.raises(SystemExit) as end:
        pushing.main(["--settings", str(file)])
    last = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
    assert (end.value.code, last["status"]) == (0, "already_done")


def test_an_environment_that_is_not_there_is_named(
    make_settings: Callable[..., Settings], tmp_path: Path, capfd: Any
) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text(
        f'[warehouse]\nuri = "{tmp_path}"\n[dates]\nas_of = 2026-03-01\ntrain_days = 20\ngap_days = 2\ntest_days = 7\n'
        f'[push]\nstore = "lancedb"\nuri = "{tmp_path}/lance"\nlancedb_python = "{tmp_path}/python"\n'
    )
    with pytest.raises(SystemExit) as end:
        pushing.main(["--settings", str(settings)])
    assert end.value.code == 2
    assert "make .venv-lancedb/installed" in capfd.readouterr().out
