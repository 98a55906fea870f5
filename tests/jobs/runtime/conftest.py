"""Where the tests of storage keep their table: a path with a blank, letters beyond ASCII and signs of patterns."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"{tmp_path}/ein Laden 🪑 {{a,b}} *~+=&'/prices"
