"""security.allowed_roots holds for what arguments name, too, before anything of it is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from examples.complete_journey import prepare as complete_journey
from examples.online_retail import prepare as online_retail
from pipeline.one_session import steps_of
from schemas.errors import SettingsError
from schemas.settings import SecuritySettings, Settings

SPARK: Any = None
"""No session: what is refused is refused before one is used."""


@pytest.fixture
def bounded(make_settings: Callable[..., Settings], tmp_path: Path) -> Settings:
    return make_settings(security={"allowed_roots": (str(tmp_path),)})


def test_a_script_of_prepare_is_the_projects_own_or_lies_below_a_root(
    bounded: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "..")  # scripts are looked for in the project, whoever calls
    for script in ("jobs/make_demo_world.py", "examples/online_retail/prepare.py --data x", f"{tmp_path}/prepare.py"):
        assert len(steps_of(SPARK, bounded, [], [], script)) == 1
    for script in ("../elsewhere.py", "/etc/profile", f"{tmp_path}/../prepare.py"):
        with pytest.raises(SettingsError, match=r"--prepare: expected a place below one of security\.allowed_roots"):
            steps_of(SPARK, bounded, [], [], script)
    unbounded = bounded.model_copy(update={"security": SecuritySettings()})
    assert len(steps_of(SPARK, unbounded, [], [], "/anywhere/prepare.py")) == 1


@pytest.mark.parametrize("run", [online_retail.run, complete_journey.run])
def test_data_of_an_example_lie_below_a_root(bounded: Settings, tmp_path: Path, run: Callable[..., None]) -> None:
    (tmp_path / "link").symlink_to("/etc")
    for place in ("/etc", f"{tmp_path}/link", f"{tmp_path}/../data"):
        with pytest.raises(SettingsError, match=r"--data: expected a place below one of security\.allowed_roots"):
            run(SPARK, bounded, place)
