"""LanceDB, in the environment of its own that `make .venv-lancedb/installed` makes: pushed, verified, restored."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval import push as pushing
from schemas.settings import Settings
from tests.retrieval.push_shop import PushShop

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-lancedb" / "bin" / "python"
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="make .venv-lancedb/installed")

READ = """
import json, sys, lancedb
table = lancedb.connect(sys.argv[1]).open_table("items")
newest = table.count_rows()
tags = table.tags.list()
if "itemsage" in tags:
    table.checkout("itemsage")
rows = table.to_arrow().to_pylist() if "itemsage" in tags else []
print(json.dumps({"newest": newest, "rows": rows}))
"""
LYING = """
import sys
import pyarrow.compute as pc
from retrieval import push
from retrieval.stores.lancedb import Lance
honest = Lance.upsert
Lance.upsert = lambda self, rows: honest(self, rows.filter(pc.not_equal(rows.column("item_id"), "N1")))
push.main(sys.argv[1:])
"""
KILLED = """
import os, signal, sys
from retrieval import push
from retrieval.stores.lancedb import Lance
honest, calls = Lance.upsert, []
def kill(self, rows):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    honest(self, rows)
Lance.upsert, Lance.rows_at_once = kill, 16
push.main(sys.argv[1:])
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Some code in LanceDB's environment."""
    return subprocess.run(
        [str(PYTHON), "-c", code, *arguments], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_lancedb_is_pushed_verified_and_restored(
    make_settings: Callable[..., Settings], tmp_path: Path, capfd: Any
) -> None:
    uri, shop = str(tmp_path / "lance"), PushShop(make_settings())
    settings = tmp_path / "settings.toml"
    settings.write_text(
        f'[warehouse]\nuri = "{shop.settings.warehouse.uri}"\n[dates]\nas_of = 2026-03-01\ntrain_days = 20\n'
        f'gap_days = 2\ntest_days = 7\n[push]\nstore = "lancedb"\nuri = "{uri}"\nlancedb_python = "{PYTHON}"\n'
    )

    def push() -> tuple[int, dict[str, Any], str]:
        with pytest.raises(SystemExit) as end:
            pushing.main(["--settings", str(settings)])
        said = capfd.readouterr().out
        return int(end.value.code or 0), json.loads(said.strip().splitlines()[-1]), said

    def require_rows(rows: dict[str, Any]) -> None:
        found = json.loads(run(READ, uri).stdout)
        assert found["newest"] == len(rows)
        assert {row["item_id"]: (row["brand"], row["in_stock"], row["price"], row["sold"],
                                 np.array(row["embedding"], np.float32).tobytes()) for row in found["rows"]} == {
            item: (row["brand"], row["in_stock"], row["price"], row["sold"], row["embedding"].tobytes())
            for item, row in rows.items()
        }  # fmt: skip

    shop.put(*(f"P{number}" for number in range(60)), "it's \"q\" \\ 靴")
    shop.publish()
    assert run(KILLED, "--settings", str(settings)).returncode == -9
    assert json.loads(run(READ, uri).stdout) == {"newest": 32, "rows": []}
    code, last, said = push()
    assert (code, last["status"], last["stages"][0]["rows_written"]) == (0, "done", 61), said
    require_rows(shop.rows)
    assert push()[1]["status"] == "already_done"
    before = dict(shop.rows)
    shop.put("P3", "N1", seed=900)
    shop.publish(["P3", "N1"], ["P7", "it's \"q\" \\ 靴"])
    lied = run(LYING, "--settings", str(settings))
    assert lied.returncode == 4
    assert "missing: N1" in lied.stdout
    require_rows(before)
    code, last, said = push()
    assert (code, last["stages"][0]["rows_written"]) == (0, 2), said
    assert "changes since version 0, 2 upserts and 2 deletes" in said
    require_rows(shop.rows)


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
