"""Pictures of items: every kind of dirt, each distinct one once, runs after each other and one that ended early."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from pyspark.sql import SparkSession

from itemsage_model.encoders.model_files import save_model
from itemsage_model.encoders.picture_tower import PictureTower, PictureTowerSpec
from itemsage_model.encoders.pictures.stored import open_encoder
from itemsage_model.serving.picture_scorer import head_vectors
from jobs import embed_images
from jobs.runtime.job_run import JobRun
from pipeline.expected_rejects import Known, first_rules, picture_rules
from schemas.contracts import IMAGES, agreed, identities
from schemas.errors import InputError, SettingsError, TableError
from schemas.metrics import TrainMetrics
from schemas.records import RunRecord, find_record, write_record
from schemas.repeats import AlreadyDone
from schemas.settings import Settings
from schemas.stages import BUILD_ITEM_FEATURES, EMBED_IMAGES, SCORE_CATALOG
from schemas.tables import ITEM_IMAGES
from tests.itemsage_model.encoders.pictures.drawn import HTML, SVG, drawn, jpeg, png_header, saved
from tests.itemsage_model.encoders.pictures.test_stored import PREPROCESSOR, TinyVision, export

Picture = tuple[str, int | None, bytes | None, str | None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose vectors have 12 numbers."""
    import torch

    folder = tmp_path_factory.mktemp("vision")
    torch.manual_seed(5)
    export(TinyVision(False).eval(), folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return folder


@pytest.fixture
def shop(make_settings: Callable[..., Settings], tmp_path: Path, model: Path) -> Callable[..., Settings]:
    """Writes item_pictures, and returns the settings: `shop([("mug", 0, b"...", None)], pictures={...})`."""

    def make(rows: list[Picture], **sections: Any) -> Settings:
        named = {"folder": str(model), "roots": [str(tmp_path / "photos")]} | sections.pop("pictures", {})
        shares = {"max_reject_share": {"item_pictures": 0.99}}
        settings = make_settings(pictures=named, model={"image_length": 12}, **(shares | sections))
        names = ("item_id", "position", "picture", "picture_uri")
        kinds = (pa.string(), pa.int32(), pa.binary(), pa.string())
        columns = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), kinds, strict=True)]
        write_deltalake(
            settings.table_uri("item_pictures"), pa.table(dict(zip(names, columns, strict=True))), mode="overwrite"
        )
        return settings

    return make


def rows_of(settings: Settings, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = DeltaTable(settings.table_uri(name)).to_pyarrow_table().to_pylist()
    return sorted(rows, key=lambda row: str((row.get("item_id"), row.get("position"), row.get("picture_hash"))))


def places(settings: Settings) -> list[tuple[str, int]]:
    return [(row["item_id"], row["position"]) for row in rows_of(settings, "item_images")]


def reasons(settings: Settings) -> dict[tuple[str | None, int | None], str]:
    return {(row["item_id"], row["position"]): row["reason"] for row in rows_of(settings, "rejected_pictures")}


def record(settings: Settings) -> RunRecord[Any]:
    found = find_record(settings.layout, EMBED_IMAGES)
    assert found is not None
    return found


DIRT: dict[str, bytes] = {
    "empty": b"", "html": HTML, "svg": SVG, "truncated": jpeg()[:3000], "too_many_pixels": png_header(10_000, 10_001),
    "refused_format": saved(drawn(), "TIFF"), "unknown_format": b"\0" * 64,
    "too_narrow": saved(drawn(size=(4000, 20)), "PNG"),
}  # fmt: skip
SOUND: dict[str, bytes] = {
    "grey": saved(drawn().convert("L"), "JPEG"), "cmyk": saved(drawn().convert("CMYK"), "JPEG"),
    "webp": saved(drawn(2), "WEBP"),
    "palette": saved(drawn().quantize(32), "PNG"), "avif": saved(drawn(1), "AVIF"),
    "animated": saved(drawn(), "GIF", save_all=True, append_images=[drawn(1)]),
}  # fmt: skip


def test_a_broken_picture_is_a_row_with_its_reason_and_the_rest_goes_on(
    spark: SparkSession, shop: Callable[..., Settings], model: Path
) -> None:
    settings = shop([(name, 0, content, None) for name, content in (DIRT | SOUND).items()])
    embed_images.run(spark, settings)
    assert reasons(settings) == {(name, 0): name for name in DIRT}
    stored = DeltaTable(settings.table_uri("item_pictures")).to_pyarrow_table()
    rules = picture_rules(stored, settings, Known())
    broken = first_rules(rules, len(stored))
    assert sorted(rules[number].reason for number in broken[broken >= 0]) == sorted(DIRT)
    assert places(settings) == sorted((name, 0) for name in SOUND)
    encoder = open_encoder(str(model))
    for row in rows_of(settings, "item_images"):
        wanted = encoder.encode([encoder.preprocessing(SOUND[row["item_id"]], 50_000_000)])[0]
        np.testing.assert_array_equal(np.array(row["image_embedding"], np.float32), wanted)
    bomb = next(row for row in rows_of(settings, "rejected_pictures") if row["item_id"] == "too_many_pixels")
    assert (bomb["found"], bomb["source_column"]) == ("10000 x 10001", "picture")
    assert "pictures.max_pixels" in bomb["cure"]


def test_rows_that_name_no_picture_or_no_place(
    spark: SparkSession, shop: Callable[..., Settings], tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "mug.jpg").write_bytes(jpeg(1))
    (tmp_path / "secret.jpg").write_bytes(jpeg(2))
    (photos / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    rows: list[Picture] = [
        ("mug", 0, None, str(photos / "mug.jpg")), ("mug", 1, None, f"file://{photos}/mug.jpg"),
        ("outside", 0, None, str(tmp_path / "secret.jpg")), ("up", 0, None, f"{photos}/../secret.jpg"),
        ("link", 0, None, str(photos / "link.jpg")), ("gone", 0, None, str(photos / "none.jpg")),
        ("folder", 0, None, str(photos)), ("relative", 0, None, "photos/mug.jpg"), ("", 0, jpeg(), None),
        ("lost", None, jpeg(), None), ("neither", 0, None, None), ("both", 0, jpeg(), "/x.jpg"),
        ("twin", 0, jpeg(3), None), ("twin", 0, jpeg(3), None), ("rival", 0, jpeg(4), None),
        ("rival", 0, jpeg(5), None),
    ]  # fmt: skip
    settings = shop(rows)
    embed_images.run(spark, settings)
    assert places(settings) == [("mug", 0), ("mug", 1), ("rival", 0), ("twin", 0)]
    assert reasons(settings) == {
        ("outside", 0): "place_not_allowed", ("up", 0): "place_not_allowed", ("link", 0): "place_not_allowed",
        ("gone", 0): "not_found", ("folder", 0): "not_fetched", ("relative", 0): "place_not_allowed",
        ("", 0): "null_id",
        ("lost", None): "null_position", ("neither", 0): "no_picture", ("both", 0): "two_pictures",
        ("twin", 0): "duplicate_picture", ("rival", 0): "conflicting_picture",
    }  # fmt: skip
    outside = next(row for row in rows_of(settings, "rejected_pictures") if row["item_id"] == "outside")
    assert (outside["source_column"], outside["picture_uri"]) == ("picture_uri", str(tmp_path / "secret.jpg"))
    assert record(settings).rejected["item_pictures: place_not_allowed"] == 4


def test_each_distinct_picture_is_made_once_and_never_again(spark: SparkSession, shop: Callable[..., Settings]) -> None:
    rows: list[Picture] = [(f"item-{number}", 0, jpeg(number % 4), None) for number in range(12)]
    settings = shop([*rows, ("broken", 0, b"x", None)])
    embed_images.run(spark, settings)
    metrics = record(settings).metrics
    assert (metrics.pictures, metrics.pictures_encoded, metrics.kept_rows) == (5, 5, 0)
    assert len(rows_of(settings, "picture_embeddings")) == 5
    with pytest.raises(AlreadyDone):
        embed_images.run(spark, settings)

    first = {row["picture_hash"]: row for row in rows_of(settings, "picture_embeddings")}
    settings = shop([*rows, ("broken", 0, b"x", None), ("new", 0, jpeg(9), None)])
    embed_images.run(spark, settings)
    metrics = record(settings).metrics
    assert (metrics.pictures, metrics.pictures_encoded, metrics.kept_rows) == (6, 1, 5)
    stored = {row["picture_hash"]: row for row in rows_of(settings, "picture_embeddings")}
    assert {name: stored[name] for name in first} == first
    assert len(rows_of(settings, "item_images")) == 13
    assert reasons(settings) == {("broken", 0): "unknown_format"}


def test_a_picture_that_has_changed_behind_its_name_is_made_anew(
    spark: SparkSession, shop: Callable[..., Settings], tmp_path: Path
) -> None:
    file = tmp_path / "photos" / "mug.jpg"
    file.parent.mkdir()
    file.write_bytes(jpeg(1))
    settings = shop([("mug", 0, None, str(file)), ("cup", 0, jpeg(2), None)])
    embed_images.run(spark, settings)
    before = {row["item_id"]: row["image_embedding"] for row in rows_of(settings, "item_images")}
    file.write_bytes(jpeg(3))
    embed_images.run(spark, shop([("mug", 0, None, str(file)), ("cup", 0, jpeg(2), None)]))
    after = {row["item_id"]: row["image_embedding"] for row in rows_of(settings, "item_images")}
    assert after["cup"] == before["cup"]
    assert after["mug"] != before["mug"]


def test_what_a_run_has_made_before_it_ended_early_is_not_made_again(
    spark: SparkSession, shop: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[Picture] = [(f"item-{number:02}", 0, jpeg(number), None) for number in range(20)]
    settings = shop(rows, pictures={"commit_every": 5})
    rounds = 0
    stage_worker_rows = JobRun.stage_worker_rows

    def third_fails(*arguments: Any, **named: Any) -> Any:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            raise KeyboardInterrupt
        return stage_worker_rows(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(JobRun, "stage_worker_rows", third_fails)
        with pytest.raises(KeyboardInterrupt):
            embed_images.run(spark, settings)
    assert find_record(settings.layout, EMBED_IMAGES) is None
    made = {row["picture_hash"]: row for row in rows_of(settings, "picture_embeddings")}
    assert 0 < len(made) < 20
    embed_images.run(spark, settings)
    metrics = record(settings).metrics
    assert (metrics.pictures, metrics.pictures_encoded) == (20, 20 - len(made))
    stored = {row["picture_hash"]: row for row in rows_of(settings, "picture_embeddings")}
    assert {name: stored[name] for name in made} == made
    assert len(stored) == len(places(settings)) == 20


def test_another_encoder_makes_all_pictures_anew(
    spark: SparkSession, shop: Callable[..., Settings], tmp_path: Path
) -> None:
    """In another folder, and then in the same one, where only the files have changed."""
    import torch

    rows: list[Picture] = [(f"item-{number}", 0, jpeg(number), None) for number in range(3)]
    embed_images.run(spark, shop(rows))
    other = tmp_path / "other"
    other.mkdir()
    (other / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    settings = shop(rows, pictures={"folder": str(other)})
    for seed in (6, 7):
        before = record(settings).metrics
        torch.manual_seed(seed)
        export(TinyVision(False).eval(), other)
        embed_images.run(spark, settings)
        after = record(settings).metrics
        assert after.encoder != before.encoder
        assert (after.pictures_encoded, len(rows_of(settings, "picture_embeddings"))) == (3, 3)


def test_pictures_that_no_item_has_any_more_are_left_out_in_time(
    spark: SparkSession, shop: Callable[..., Settings]
) -> None:
    rows: list[Picture] = [(f"item-{number}", 0, jpeg(number), None) for number in range(6)]
    embed_images.run(spark, shop(rows))
    settings = shop(rows[:4])
    embed_images.run(spark, settings)
    assert (len(places(settings)), len(rows_of(settings, "picture_embeddings"))) == (4, 6)
    embed_images.run(spark, shop(rows[:2]))
    assert (len(places(settings)), len(rows_of(settings, "picture_embeddings"))) == (2, 2)
    assert record(settings).metrics.pictures_encoded == 0


def test_a_first_run_of_which_nothing_can_be_used_says_why(spark: SparkSession, shop: Callable[..., Settings]) -> None:
    """As where pictures.roots was forgotten, when there is no table of former embeddings yet."""
    settings = shop([("a", 0, None, "/nowhere/a.jpg"), ("b", 0, None, "/nowhere/b.jpg")])
    with pytest.raises(TableError, match=r"item_pictures.*place_not_allowed 2.*Name the place in pictures\.roots"):
        embed_images.run(spark, settings)


def test_a_day_on_which_no_file_can_be_read_costs_no_embedding(
    spark: SparkSession, shop: Callable[..., Settings], tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    rows: list[Picture] = []
    for number in range(3):
        (photos / f"{number}.jpg").write_bytes(jpeg(number))
        rows.append((f"item-{number}", 0, None, str(photos / f"{number}.jpg")))
    settings = shop(rows)
    embed_images.run(spark, settings)
    stored = rows_of(settings, "picture_embeddings")
    photos.rename(tmp_path / "elsewhere")
    with pytest.raises(TableError, match="not_found 3"):
        embed_images.run(spark, shop(rows))
    assert rows_of(settings, "picture_embeddings") == stored
    (tmp_path / "elsewhere").rename(photos)
    embed_images.run(spark, shop(rows))
    assert record(settings).metrics.pictures_encoded == 0


def train_head(settings: Settings, base: str, seed: int, steps: int = 3) -> PictureTower:
    """A head that is no longer its base, as train_pictures leaves it."""
    import torch

    spec = PictureTowerSpec(base, 12, 8, 20, 20.0, 100.0)
    tower = spec.build(seed=seed)
    torch.nn.init.normal_(tower.head.second.weight, std=0.3)
    uri, identity = save_model(settings.layout.models, tower, spec, {})
    write_record(settings.layout, RunRecord("train_pictures", TrainMetrics(identity, uri, "", steps=steps)))
    return tower


def test_a_head_changes_what_is_stored_and_no_picture_is_encoded_again(
    spark: SparkSession, shop: Callable[..., Settings]
) -> None:
    rows: list[Picture] = [(f"item-{number % 4}", number // 4, jpeg(number % 5), None) for number in range(6)]
    base = shop(rows)
    embed_images.run(spark, base)
    stored, images = rows_of(base, "picture_embeddings"), rows_of(base, "item_images")
    spaces, found = [record(base).metrics.encoder], []
    for seed in (1, 2):
        settings = shop(rows, pictures={"head": True})
        head = train_head(settings, record(base).metrics.base, seed).head
        embed_images.run(spark, settings)
        metrics = record(settings).metrics
        assert (metrics.pictures_encoded, metrics.base) == (0, spaces[0])
        spaces.append(metrics.encoder)
        assert rows_of(settings, "picture_embeddings") == stored
        found.append(rows_of(settings, "item_images"))
        wanted = head_vectors(head, np.array([row["image_embedding"] for row in images], np.float32))
        np.testing.assert_allclose([row["image_embedding"] for row in found[-1]], wanted, atol=1e-6)
        with pytest.raises(AlreadyDone):
            embed_images.run(spark, settings)
    assert len(set(spaces)) == 3
    assert spaces[1].startswith(f"{spaces[0]}+")
    places_of = [[(row["item_id"], row["position"]) for row in part] for part in (images, *found)]
    assert places_of[0] == places_of[1] == places_of[2]
    assert found[0] != found[1]
    hashes = {row["picture_hash"]: row["image_embedding"] for row in stored}
    kept = [hashes[row["picture_hash"]] for row in rows_of(base, "item_picture_hashes")]
    assert kept == [row["image_embedding"] for row in images], "the hashes lead to the base, whatever item_images holds"
    embed_images.run(spark, shop(rows))
    assert rows_of(base, "item_images") == images, "and back"


def test_a_head_that_was_not_better_is_not_applied_and_that_is_said(
    spark: SparkSession, shop: Callable[..., Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = shop([("a", 0, jpeg(1), None)])
    embed_images.run(spark, settings)
    images, before = rows_of(settings, "item_images"), record(settings).metrics
    train_head(settings, before.base, 1, steps=0)
    embed_images.run(spark, shop([("a", 0, jpeg(1), None)], pictures={"head": True}))
    assert "warning: no step of training made the head better than the base" in capsys.readouterr().out
    assert rows_of(settings, "item_images") == images
    assert record(settings).metrics.encoder == before.encoder


def test_a_head_of_another_encoder_and_one_that_is_not_there_are_refused(
    spark: SparkSession, shop: Callable[..., Settings]
) -> None:
    settings = shop([("a", 0, jpeg(1), None)], pictures={"head": True})
    with pytest.raises(InputError, match="train_pictures"):
        embed_images.run(spark, settings)
    train_head(settings, "picture-onnx-other", 1)
    with pytest.raises(InputError, match=r"expected one trained on picture-onnx-.*found one trained on picture-onnx-o"):
        embed_images.run(spark, settings)
    assert not Path(settings.table_uri("item_images")).exists()


def test_too_many_broken_pictures_stop_the_run(spark: SparkSession, shop: Callable[..., Settings]) -> None:
    settings = shop([("a", 0, b"x", None), ("b", 0, jpeg(), None)], max_reject_share={"item_pictures": 0.2})
    with pytest.raises(TableError, match=r"at most 20.0% unusable rows.*1 of 2: unknown_format 1 \(such as 'a'\)"):
        embed_images.run(spark, settings)
    assert not Path(settings.table_uri("item_images")).exists()


def test_the_length_of_the_settings_is_that_of_the_model(spark: SparkSession, shop: Callable[..., Settings]) -> None:
    with pytest.raises(
        SettingsError, match=r"model.image_length = 256, and picture-onnx-\w+ makes vectors of 12 numbers"
    ):
        embed_images.run(
            spark, shop([("a", 0, jpeg(), None)]).model_copy(update={"model": Settings.model_fields["model"].default})
        )


@pytest.mark.parametrize("kind", ["Parquet", "Delta"])
def test_a_table_of_the_shops_own_is_not_replaced(
    spark: SparkSession, shop: Callable[..., Settings], kind: str
) -> None:
    settings = shop([("a", 0, jpeg(), None)])
    uri, own = settings.table_uri("item_images"), pa.table({"item_id": ["a"], "position": pa.array([0], pa.int32())})
    if kind == "Delta":
        write_deltalake(uri, own)
    else:
        Path(uri).mkdir(parents=True)
        pq.write_table(own, f"{uri}/own.parquet")
    with pytest.raises(InputError, match=r"one of somebody else's\. Move it away"):
        embed_images.run(spark, settings)


def test_a_picture_is_too_large_by_its_bytes(spark: SparkSession, shop: Callable[..., Settings]) -> None:
    settings = shop(
        [("large", 0, jpeg(1, (800, 600)), None), ("small", 0, jpeg(1), None)], pictures={"max_bytes": 14_000}
    )
    assert len(jpeg(1)) < 14_000 < len(jpeg(1, (800, 600)))
    embed_images.run(spark, settings)
    assert (places(settings), reasons(settings)) == ([("small", 0)], {("large", 0): "too_many_bytes"})


def test_features_are_made_of_the_version_that_this_stage_has_recorded(
    spark: SparkSession, shop: Callable[..., Settings]
) -> None:
    settings = shop([("a", 0, jpeg(1), None), ("b", 0, jpeg(2), None)])
    features = JobRun(spark, settings, BUILD_ITEM_FEATURES)
    with pytest.raises(InputError, match="expected a complete run of embed_images"):
        features.read(ITEM_IMAGES)
    embed_images.run(spark, settings)
    later = DeltaTable(settings.table_uri("item_images")).to_pyarrow_table()
    write_deltalake(settings.table_uri("item_images"), later.slice(0, 1), mode="overwrite")
    assert sorted(row["item_id"] for row in features.read(ITEM_IMAGES).collect()) == ["a", "b"]


def test_vectors_of_two_encoders_do_not_meet(spark: SparkSession, shop: Callable[..., Settings]) -> None:
    settings = shop([("a", 0, jpeg(1), None)])
    embed_images.run(spark, settings)
    images = record(settings)
    trained = RunRecord("train", None, made_with={IMAGES: "picture-onnx-another"})
    assert identities(images)[IMAGES] == images.metrics.encoder
    with pytest.raises(InputError, match=r"one space of images in all that it reads; found picture-onnx-"):
        agreed(settings.layout, SCORE_CATALOG, [images, trained], ["search"])


@pytest.mark.parametrize(
    "sections",
    [
        {"inputs": {"item_images": "/shop/item_images"}},
        {"inputs": {"has_images": False}, "model": {"sequence": ["text"]}},
        {"pictures": {"folder": ""}, "demo_world": {"pictures": True}},
        {"pictures": {"folder": "", "head": True}},
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(
    make_settings: Callable[..., Settings], sections: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"pictures\.folder"):
        make_settings(**({"pictures": {"folder": "/models/clip"}} | sections))


def test_pictures_lie_where_the_settings_file_allows(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    bounds = {"security": {"allowed_roots": [str(tmp_path)]}}
    make_settings(pictures={"folder": str(tmp_path / "clip"), "roots": [str(tmp_path / "photos")]}, **bounds)
    for named in ({"folder": "/models/clip"}, {"folder": str(tmp_path / "clip"), "roots": ["https://cdn.example"]}):
        with pytest.raises(ValueError, match=r"pictures\.(folder|roots\[0\]): expected a place below"):
            make_settings(pictures=named, **bounds)


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), 1e12, 0.0])
@pytest.mark.parametrize("key", ["timeout_seconds", "budget_seconds"])
def test_a_time_that_no_thread_can_wait_is_refused(
    make_settings: Callable[..., Settings], key: str, seconds: float
) -> None:
    with pytest.raises(ValueError, match=key):
        make_settings(pictures={key: seconds})
