"""[graph]: what cannot be is refused by name, and graph vectors are known as such by whatever path they are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from schemas.errors import SettingsError
from schemas.settings import Settings

MakeSettings = Callable[..., Settings]


@pytest.mark.parametrize(
    ("key", "value"),
    [("walks", 10_001), ("hard_negatives", 10**9), ("width", 10**9), ("seed", 1 << 63), ("learning_rate", float("inf")),
     ("half_life_days", float("nan")), ("restart", 1.0), ("hard_from", 5)],
)  # fmt: skip
def test_what_cannot_be_is_refused(make_settings: MakeSettings, key: str, value: float) -> None:
    with pytest.raises(ValidationError, match=key):
        make_settings(graph={key: value})


def test_processes_that_cannot_share_a_batch_are_refused(make_settings: MakeSettings) -> None:
    settings = make_settings(graph={"batch_size": 1_024, "negative_count": 1_023})
    train = settings.train.model_copy(update={"processes": 3})
    with pytest.raises(SettingsError, match=r"graph\.batch_size must be a multiple of train\.processes \(3\).*1024"):
        settings.graph.train_settings(train)
    assert settings.graph.train_settings(settings.train).batch_size == 1_024


def test_graph_vectors_are_known_by_any_path(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(make_settings().layout.table("item_graph_images"))
    (tmp_path / "link").symlink_to(place.parent)
    monkeypatch.chdir(place.parent.parent)
    relative = f"{place.parent.name}/../{place.parent.name}/item_graph_images"
    for named in (str(place), f"{place}/", f"file://{place}", relative, str(tmp_path / "link" / "item_graph_images")):
        settings = make_settings(inputs={"item_images": named})
        assert settings.has_graph_vectors_alone, named
        assert settings.takes_graph_vectors
    for inputs in (
        {},
        {"item_images": str(place.parent / "item_images")},
        {"item_images": "s3://shop/item_graph_images"},
    ):
        assert not make_settings(inputs=inputs).has_graph_vectors_alone
    assert make_settings(graph={"append_to_images": True}).takes_graph_vectors
