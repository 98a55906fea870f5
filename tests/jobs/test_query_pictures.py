"""embed_queries with pictures.query_kinds: viewed images have the embedding of the pictures that they show."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import ValidationError
from pyspark.sql import DataFrame, SparkSession

from itemsage_model.encoders.projection import load_projection
from jobs import embed_queries
from jobs.runtime import table_io
from jobs.transforms import query_pictures
from schemas.contracts import IMAGES, identities
from schemas.errors import TableError
from schemas.metrics import PictureMetrics, QueryMetrics
from schemas.records import RunRecord, TableVersion, read_record, write_record
from schemas.settings import Settings
from schemas.spark import conform, struct_type
from schemas.tables import EMBEDDING_DIM, ITEM_IMAGES, ITEMS, QUERIES, QUERY_EMBEDDINGS

LENGTH, SPACE = 300, "efficientnet-1+head"
QUERY = "query_id string, query_kind string, text string, query_embedding array<float>, embedding_space string, "
QUERY += "query_item_id string"
Vectors = npt.NDArray[np.float32]


def unit(number: int, length: int = LENGTH) -> Vectors:
    vector = np.random.default_rng(number).standard_normal(length).astype(np.float32)
    found: Vectors = vector / np.linalg.norm(vector)
    return found


IMAGES_OF = {"mug": [unit(0)], "pot": [unit(1), 5 * unit(2), unit(3)], "lamp": [unit(4)]}


def images(spark: SparkSession, of: dict[str, list[Vectors]] = IMAGES_OF) -> DataFrame:
    # The last picture of an item comes first: position decides, and not the row.
    rows = [(item, place, one.tolist()) for item, some in of.items() for place, one in reversed([*enumerate(some)])]
    return spark.createDataFrame(rows, struct_type(ITEM_IMAGES))


def queries(spark: SparkSession, *rows: tuple[Any, ...]) -> DataFrame:
    return conform(spark.createDataFrame(list(rows), QUERY), QUERIES)


ROWS = [
    ("shows-mug", "closeup", None, None, None, "mug"),
    ("shows-pot", "closeup", "a pot", None, None, "pot"),
    ("again-pot", "closeup", None, None, None, "pot"),
    ("typed", "search", "red pot", None, None, "pot"),
    ("own", "closeup", None, unit(9).tolist(), SPACE, "lamp"),
]
BARE = [("no-picture", "closeup", "a rug", None, None, "rug"), ("no-item", "closeup", None, None, None, None)]


def test_each_product_that_is_shown_gives_the_mean_of_its_first_pictures(spark: SparkSession) -> None:
    filled = query_pictures.with_picture_embeddings(
        queries(spark, *ROWS, *BARE), images(spark), ["closeup"], SPACE, max_images=2
    )
    assert filled.columns == list(QUERIES.column_names)
    found = {row["query_id"]: row for row in filled.collect()}
    assert len(found) == filled.count() == len(ROWS) + len(BARE)
    np.testing.assert_allclose(found["shows-mug"]["query_embedding"], unit(0), atol=1e-6)
    np.testing.assert_allclose(found["shows-pot"]["query_embedding"], (unit(1) + unit(2)) / 2, atol=1e-6)
    assert found["again-pot"]["query_embedding"] == found["shows-pot"]["query_embedding"]
    np.testing.assert_array_equal(np.float32(found["own"]["query_embedding"]), unit(9))
    assert {name: row["embedding_space"] for name, row in found.items()} == {
        "shows-mug": SPACE, "shows-pot": SPACE, "again-pot": SPACE, "own": SPACE, "typed": None, "no-picture": None,
        "no-item": None,
    }  # fmt: skip
    assert [found[name]["query_embedding"] for name in ("typed", "no-picture", "no-item")] == [None] * 3
    assert found["shows-pot"]["text"] == "a pot"


@pytest.fixture
def shop(spark: SparkSession, make_settings: Callable[..., Settings]) -> Callable[..., Settings]:
    """The settings of a shop whose pictures embed_images has embedded, in a space."""

    def make(
        *rows: tuple[Any, ...], space: str = SPACE, of: dict[str, list[Vectors]] = IMAGES_OF, **sections: Any
    ) -> Settings:
        pictures = {"folder": "/models/one", "query_kinds": ["closeup"]} | sections.pop("pictures", {})
        tasks = [{"query_kind": kind, "engagement": "click"} for kind in ("closeup", "search")]
        length = len(of["pot"][0])
        model = {"image_length": length, "max_images": 2}
        settings = make_settings(tasks=tasks, model=model, pictures=pictures, **sections)
        items = [(item, *[item if column.name == "title" else None for column in ITEMS.columns[1:]]) for item in of]
        spark.createDataFrame(items, struct_type(ITEMS)).write.mode("overwrite").parquet(settings.table_uri("items"))
        queries(spark, *rows).write.mode("overwrite").parquet(settings.table_uri("queries"))
        uri = settings.table_uri(ITEM_IMAGES.name)
        written = table_io.write(images(spark, of), uri, ITEM_IMAGES, note={})
        outputs = (TableVersion(ITEM_IMAGES.name, uri, written.version, written.rows),)
        write_record(settings.layout, RunRecord("embed_images", PictureMetrics(space, length), outputs=outputs))
        return settings

    return make


def vectors(spark: SparkSession, settings: Settings) -> dict[str, Vectors]:
    rows = table_io.read(spark, settings.table_uri("query_embeddings"), QUERY_EMBEDDINGS).collect()
    return {row["query_id"]: np.float32(row["query_embedding"]) for row in rows}


def metrics(settings: Settings) -> QueryMetrics:
    return read_record(settings.layout, embed_queries.STAGE).metrics


def test_viewed_images_are_projected_and_those_without_a_picture_rejected_by_name(
    spark: SparkSession, shop: Callable[..., Settings]
) -> None:
    settings = shop(*ROWS, *BARE, max_reject_share={"queries": 0.5})
    embed_queries.run(spark, settings)
    found, record = vectors(spark, settings), read_record(settings.layout, embed_queries.STAGE)
    assert found.keys() == {row[0] for row in ROWS}
    assert record.rejected == {"queries: no_picture": 2}
    assert record.metrics.embedding_spaces["closeup"].startswith(f"{SPACE}-to-{EMBEDDING_DIM}-")
    assert record.metrics.texts_encoded == 1, "a closeup's text is not what it is embedded by"
    # Of so few vectors the projection keeps every angle, but for the direction of the products' mean.
    pot = (unit(1) + unit(2)) / np.linalg.norm(unit(1) + unit(2))
    given = np.stack([unit(0), pot, pot, unit(9)])
    mean = given[[0, 1, 3]].mean(axis=0)
    common = mean / np.linalg.norm(mean)
    rest = given - np.outer(given @ common, common)
    rest /= np.linalg.norm(rest, axis=1, keepdims=True)
    projected = np.stack([found[name] for name in ("shows-mug", "shows-pot", "again-pot", "own")])
    np.testing.assert_allclose(projected @ projected.T, rest @ rest.T, atol=1e-4)
    assert identities(record)[IMAGES] == SPACE, "tables of another head's images do not meet these queries"


def test_other_vectors_of_the_pictures_make_the_queries_anew_and_the_same_ones_do_not(
    spark: SparkSession, shop: Callable[..., Settings]
) -> None:
    keep = {"query_encoder": {"refit": False}}
    settings = shop(*ROWS, **keep)
    embed_queries.run(spark, settings)
    first = vectors(spark, settings)
    settings = shop(*ROWS, of=IMAGES_OF | {"pot": [unit(7)]}, **keep)
    embed_queries.run(spark, settings)
    second = vectors(spark, settings)
    assert metrics(settings).kept_rows == len(ROWS) - 2
    changed = {name for name, vector in first.items() if not np.array_equal(vector, second[name])}
    assert changed == {"shows-pot", "again-pot"}
    settings = shop(*ROWS, space="efficientnet-1+another", pictures={"query_kinds": ["closeup"]}, **keep)
    with pytest.raises(TableError, match="one embedding space for all closeup queries; found efficientnet-1"):
        embed_queries.run(spark, settings)
    settings = shop(*ROWS[:-1], space="efficientnet-1+another", **keep)
    embed_queries.run(spark, settings)
    assert metrics(settings).embedding_spaces["closeup"].startswith("efficientnet-1+another-to-")


def test_pictures_of_256_numbers_are_projected_too_as_all_lie_around_one_direction(
    spark: SparkSession, shop: Callable[..., Settings]
) -> None:
    around = 3 * unit(99, EMBEDDING_DIM)
    settings = shop(*ROWS[:3], of={name: [unit(n, EMBEDDING_DIM) + around] for n, name in enumerate(IMAGES_OF)})
    embed_queries.run(spark, settings)
    found = vectors(spark, settings)
    assert found["shows-mug"] @ found["shows-pot"] == pytest.approx(-1, abs=1e-3), "of two, what is apart is opposite"
    assert metrics(settings).embedding_spaces["closeup"].startswith(f"{SPACE}-to-{EMBEDDING_DIM}-")


def test_each_product_counts_once_in_the_direction_that_is_left_out(
    spark: SparkSession, shop: Callable[..., Settings]
) -> None:
    again = [(f"again-{n}", "closeup", None, None, None, "mug") for n in range(50)]
    settings = shop(*ROWS[:3], *again)
    embed_queries.run(spark, settings)
    projection = load_projection(settings.layout.query_projection(SPACE))
    assert projection is not None
    assert projection.common is not None
    pot = (unit(1) + unit(2)) / np.linalg.norm(unit(1) + unit(2))
    mean = (unit(0) + pot) / np.linalg.norm(unit(0) + pot)
    np.testing.assert_allclose(projection.common, mean, atol=1e-5)


def test_a_projection_of_before_or_of_one_product_is_kept_and_said(
    spark: SparkSession, shop: Callable[..., Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = shop(*ROWS[1:3])
    embed_queries.run(spark, settings)
    warning = f"warning: {SPACE} was fitted before its direction common to all was left out, or on one product; remove"
    assert warning in capsys.readouterr().out
    assert vectors(spark, settings).keys() == {"shows-pot", "again-pot"}
    settings = shop(*ROWS)
    embed_queries.run(spark, settings)
    assert warning in capsys.readouterr().out
    shutil.rmtree(settings.layout.query_projection(SPACE))
    embed_queries.run(spark, settings.model_copy(update={"rerun": True}))
    assert warning not in capsys.readouterr().out


def test_without_the_setting_pictures_are_not_read(spark: SparkSession, shop: Callable[..., Settings]) -> None:
    settings = shop(*ROWS[1:2], ROWS[3], pictures={"query_kinds": []})
    embed_queries.run(spark, settings)
    record = read_record(settings.layout, embed_queries.STAGE)
    assert record.input(ITEM_IMAGES.name) is None
    assert IMAGES not in identities(record)
    assert len(set(record.metrics.embedding_spaces.values())) == 1, "all of them are texts"


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ({"folder": "", "query_kinds": ["closeup"]}, "also set pictures.folder"),
        ({"query_kinds": ["closeups"]}, "no task has queries of the kind closeups"),
        ({"query_kinds": ["closeup", "closeup"]}, "a kind stands there twice"),
    ],
)
def test_kinds_that_cannot_be_are_refused(
    make_settings: Callable[..., Settings], pictures: dict[str, Any], message: str
) -> None:
    tasks = [{"query_kind": "closeup", "engagement": "click"}]
    with pytest.raises(ValidationError, match=f"pictures.query_kinds: .*{message}"):
        make_settings(tasks=tasks, pictures={"folder": "/models/one"} | pictures)
