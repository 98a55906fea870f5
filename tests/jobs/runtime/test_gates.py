"""Gates before publishing: each opens within its limit, stops beyond it with the numbers, and may be overridden."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession

from jobs.runtime import gates
from schemas.errors import GateError, InputError
from schemas.metrics import ItemMetrics, ScoreMetrics, ShortLoss, ShortMetrics
from schemas.published import Published
from schemas.records import RunRecord, TableVersion, write_record
from schemas.settings import GateSettings, Settings
from schemas.storage import write_bytes

MakeSettings = Callable[..., Settings]


def published(rows: int = 1000, as_of: str = "2026-03-01", **metrics: Any) -> RunRecord[ScoreMetrics]:
    versions = (TableVersion("item_embeddings", "item_embeddings", 4, rows),)
    settings = {"dates": {"as_of": as_of}}
    return RunRecord("score_catalog", ScoreMetrics("m", "float32", **metrics), outputs=versions, settings=settings)


def made(without_text: int = 0, without_images: int = 0) -> ItemMetrics:
    return ItemMetrics(9, "v", items_without_text=without_text, items_without_images=without_images)


@pytest.mark.parametrize(("row_count", "opens"), [(800, True), (1500, True), (799, False), (1501, False), (1, False)])
@pytest.mark.fault("F3", "loud", "a catalog of which most is gone, or that is much larger than the published one")
def test_another_number_of_items_stops(make_settings: MakeSettings, row_count: int, opens: bool) -> None:
    if opens:
        gates.require_sound_catalog(published(), made(), row_count, make_settings())
        return
    with pytest.raises(GateError) as caught:
        gates.require_sound_catalog(published(), made(), row_count, make_settings())
    message = str(caught.value)
    assert message.startswith("item_embeddings, gates: expected 800 to 1,500 items, as 1,000 are published")
    assert f"found {row_count:,} items" in message
    assert "gates.max_row_loss 0.2, max_row_gain 0.5" in message
    assert "the version before stands" in message
    assert "--set gates.override=true" in message


@pytest.mark.parametrize(("lost", "name"), [((150, 0), "text"), ((0, 150), "images")])
@pytest.mark.fault("F3", "loud", "all texts or all images of many items gone")
def test_a_rise_of_items_without_text_or_images_stops(
    make_settings: MakeSettings, lost: tuple[int, int], name: str
) -> None:
    before = published(items_without_text=40, items_without_images=40)
    gates.require_sound_catalog(before, made(140, 140), 1000, make_settings())
    expected = rf"expected at most 14\.0% of the items without {name} \(.*{name} 0\.1\); found 150 of 1,000 \(15\.0%"
    with pytest.raises(GateError, match=expected):
        gates.require_sound_catalog(before, made(*lost), 1000, make_settings())
    # A record of before does not say how many there were.
    gates.require_sound_catalog(published(), made(*lost), 1000, make_settings())


@pytest.mark.fault("B2", "loud", "an older logical date published over a newer one")
def test_an_older_date_stops(make_settings: MakeSettings, capsys: pytest.CaptureFixture[str]) -> None:
    gates.require_newer_date(published(), make_settings())
    gates.require_newer_date(None, make_settings())
    with pytest.raises(GateError, match=r"expected dates\.as_of of 2026-03-02 or later, .*; found 2026-03-01\."):
        gates.require_newer_date(published(as_of="2026-03-02"), make_settings())
    gates.require_newer_date(published(as_of="2026-03-02"), make_settings(gates={"override": True}))
    assert "gate overridden: expected dates.as_of of 2026-03-02" in capsys.readouterr().out


def test_the_first_publication_is_compared_with_nothing_and_all_failures_are_said(make_settings: MakeSettings) -> None:
    gates.require_sound_catalog(None, made(10, 10), 10, make_settings())
    before = published(as_of="2026-03-09", items_without_text=0)
    with pytest.raises(GateError) as caught:
        gates.require_sound_catalog(before, made(10), 10, make_settings())
    for said in ("2026-03-09", "800 to 1,500", "without text"):
        assert said in str(caught.value)


def ids(spark: SparkSession, *names: str) -> DataFrame:
    return spark.createDataFrame([(name,) for name in names], "item_id string")


@pytest.mark.fault("F3", "loud", "ids written another way; the log's items gone from the catalog")
def test_other_ids_than_are_published_or_logged_stop() -> None:
    counts = gates.IdCounts(4, 2, 5, 2)
    limits = {"min_id_overlap": 0.5, "min_log_coverage": 0.4}
    gates.require_known_ids(counts, GateSettings(**limits))
    with pytest.raises(GateError, match=r"51% of the 4 published ids .*; found 2 of them \(50\.0%\)"):
        gates.require_known_ids(counts, GateSettings(**limits | {"min_id_overlap": 0.51}))
    with pytest.raises(GateError, match=r"41% of the 5 items in item_counts .*; found 2 of them \(40\.0%\)"):
        gates.require_known_ids(counts, GateSettings(**limits | {"min_log_coverage": 0.41}))
    gates.require_known_ids(gates.IdCounts(), GateSettings())


@pytest.mark.fault("B11", "loud", "what was rolled back from, published again: at once, and after other runs")
def test_what_was_rolled_back_from_is_not_published_again(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opens(model_id: str, *versions: tuple[str, str, int | None], as_of: str = "2026-03-09") -> bool:
        """versions: model, date, and the version that it was rolled back from; the first is version 1."""
        known: list[Published] = []
        for number, (model, date, back_from) in enumerate(versions, 1):
            note: dict[str, Any] = {"run_id": f"run {number}", "as_of": date}
            if back_from:
                left = known[back_from - 1]
                note["rolled_back_from"] = {"version": back_from, "model_id": left.model_id, "run_id": left.run_id}
            metrics = ScoreMetrics(model, "float32", published_id=model)
            known.append(Published(settings.layout, number, datetime.now(timezone.utc), note, metrics))
        monkeypatch.setattr(gates, "published_versions", lambda _: known[::-1])
        try:
            gates.require_not_rolled_back(make_settings(dates={"as_of": as_of}), model_id)
        except GateError:
            return False
        return True

    settings = make_settings()
    back = [("a", "2026-03-01", None), ("b", "2026-03-02", None), ("a", "2026-03-01", 2)]
    assert not opens("b", *back)
    assert opens("a", *back)
    assert opens("c", *back)
    later = [*back, ("a", "2026-03-03", None)]
    assert not opens("b", *later), "somebody has published since"
    assert opens("a", *later)
    assert opens("b", *later, ("b", "2026-03-04", None)), "published in spite of the gate"
    assert opens("b", *back, ("b", "2026-03-02", 3)), "brought back by name"
    assert not opens("a", *back, ("b", "2026-03-02", 3))
    items_alone = [("a", "2026-03-01", None), ("a", "2026-03-02", None), ("a", "2026-03-01", 2)]
    assert not opens("a", *items_alone, as_of="2026-03-02")
    assert opens("a", *items_alone, as_of="2026-03-03")


@pytest.mark.fault("D5b", "loud", "the record of what is published damaged")
def test_a_damaged_record_of_what_is_published_stops(make_settings: MakeSettings) -> None:
    settings = make_settings()
    assert gates.published(settings) is None
    write_record(settings.layout, published())
    found = gates.published(settings)
    assert found is not None
    assert found.output("item_embeddings").rows == 1000
    write_bytes(settings.layout.record("score_catalog"), b"{}")
    with pytest.raises(InputError, match=r"run record of score_catalog: .*damaged.*--set gates\.override=true"):
        gates.published(settings)
    assert gates.published(make_settings(gates={"override": True})) is None


@pytest.mark.fault("floor", "loud", "a short form of the vectors that loses more of the recall than it may")
def test_a_short_form_that_loses_too_much_stops(capsys: pytest.CaptureFixture[str]) -> None:
    limits = GateSettings(max_recall_loss_short=0.1)
    sound = {
        "int8": ShortLoss(0.5, 0.5, 0.0),
        "int8:128": ShortLoss(0.44, 0.5, 0.04),
        "int8:8": ShortLoss(0, 0.5, None),
    }
    gates.require_small_loss(ShortMetrics(tuple(sound), losses=sound), limits)
    bad = sound | {"int8:64": ShortLoss(0.4, 0.5, 0.06)}
    expected = (
        r"expected int8:64 to keep 0\.4500 of the recall of 0\.5000 of 256 floats \(gates\.max_recall_loss_short 0\.1\)"
    )
    with pytest.raises(GateError, match=expected + r"; found 0\.4000 \(-20\.0%\)") as caught:
        gates.require_small_loss(ShortMetrics(tuple(bad), losses=bad), limits)
    assert caught.value.exit_code == 4
    gates.require_small_loss(ShortMetrics(tuple(bad), losses=bad), limits.model_copy(update={"override": True}))
    assert "gate overridden: expected int8:64 to keep" in capsys.readouterr().out
