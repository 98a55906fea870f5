"""Contracts between stages: a mixture is refused by name, and the cure names the stages that cure it, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from schemas import contracts
from schemas.code_version import code_version
from schemas.errors import InputError
from schemas.metrics import (
    EventCounts,
    GraphVectorMetrics,
    ItemMetrics,
    ItemTextMetrics,
    QueryMetrics,
    ScoreMetrics,
    TrainingTableMetrics,
    TrainMetrics,
)
from schemas.records import RunRecord, TableVersion, write_record
from schemas.settings import Settings
from schemas.stages import (
    stage_named,
)
from schemas.warehouse import Warehouse

SPACE = contracts.space_of("search")
FEATURES = TableVersion("item_features", "item_features", 5, 10)
QUERIES = TableVersion("query_embeddings", "query_embeddings", 7, 10)


def record(stage: str, vocabulary: str = "", space: str = "", **fields: object) -> RunRecord[object]:
    made_with = {name: value for name, value in ((contracts.VOCABULARY, vocabulary), (SPACE, space)) if value}
    metrics: object
    if stage == "embed_queries":
        made_with, metrics = {}, QueryMetrics(space, 1, {"search": space, "closeup": "pinsage-1"})
        fields = {"outputs": (QUERIES,)} | fields
    elif stage == "build_item_features":
        made_with, metrics = {}, ItemMetrics(9, vocabulary)
        fields = {"outputs": (FEATURES,)} | fields
    elif stage == "train":
        metrics = TrainMetrics("m", "models/m", vocabulary)
    elif stage == "build_training_tables":
        metrics = TrainingTableMetrics({}, EventCounts(0, 0, 0, 0, 0))
        fields = {"inputs": (FEATURES, QUERIES)} | fields
    else:
        metrics = ScoreMetrics("m", "float32")
    return RunRecord(stage, metrics, made_with=made_with, **fields)  # type: ignore[arg-type]


def agreed(folder: Path, reader: str, *records: RunRecord[object]) -> dict[str, str]:
    """The records are those of the warehouse; all are read."""
    warehouse = Warehouse(str(folder))
    for one in records:
        write_record(warehouse, one)
    return contracts.agreed(warehouse, stage_named(reader), records, ["search"])


def test_what_agrees_is_handed_on(tmp_path: Path) -> None:
    read = (
        record("embed_queries", space="a"),
        record("build_item_features", "v"),
        record("build_training_tables", "v", "a"),
    )
    assert agreed(tmp_path, "train", *read) == {SPACE: "a", "vocabulary": "v"}


@pytest.mark.fault("B12", "loud", "vocabulary and features rebuilt, training tables not; then train")
def test_tables_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    read = record("build_item_features", "new"), record("build_training_tables", "old", "a")
    with pytest.raises(InputError) as caught:
        agreed(tmp_path, "train", *read)
    message = str(caught.value)
    assert "train, vocabulary: expected one vocabulary in all that it reads" in message
    assert "new in what build_item_features wrote, and old in what build_training_tables wrote" in message
    assert (
        "Run build_training_tables again, such as by `make pipeline SETTINGS=... FROM=build_training_tables`" in message
    )


@pytest.mark.fault("B11", "loud", "item texts embedded by another encoder than the model was trained with")
def test_features_of_another_item_text_encoder_are_refused(tmp_path: Path) -> None:
    texts = RunRecord("embed_items", ItemTextMetrics("lsa-2"))
    assert contracts.identities(texts) == {contracts.ITEM_TEXT: "lsa-2"}
    features, trained = record("build_item_features", "v"), record("train", "v", "a")
    features.made_with[contracts.ITEM_TEXT], trained.made_with[contracts.ITEM_TEXT] = "lsa-2", "lsa-1"
    write_record(Warehouse(str(tmp_path)), texts)
    with pytest.raises(InputError, match=r"score_catalog, space of item text: expected one .*lsa-2 in "
                       r"what build_item_features wrote, and lsa-1 in what train wrote.*Run train again"):  # fmt: skip
        agreed(tmp_path, "score_catalog", features, trained)


def test_features_with_vectors_of_another_graph_tower_are_refused(tmp_path: Path) -> None:
    vectors = RunRecord("embed_graph", GraphVectorMetrics("new"))
    features, trained = record("build_item_features", "v"), record("train", "v", "a")
    features.made_with[contracts.GRAPH], trained.made_with[contracts.GRAPH] = "new", "old"
    for one in (vectors, features, trained):
        write_record(Warehouse(str(tmp_path)), one)
    with pytest.raises(InputError, match=r"graph tower: .*new in what build_item_features .*old in what train wrote"
                       r".*Run train again, such as by `make pipeline SETTINGS=... FROM=train`"):  # fmt: skip
        agreed(tmp_path, "score_catalog", features, trained)
    assert agreed(tmp_path, "build_item_features", vectors) == {contracts.GRAPH: "new"}


@pytest.mark.parametrize(("has", "knows"), [(True, False), (False, True)])
def test_graph_vectors_that_the_model_has_not_seen_are_refused(has: bool, knows: bool) -> None:
    features, trained = record("build_item_features", "v"), record("train", "v", "a")
    features.made_with.update({contracts.GRAPH: "tower"} if has else {})
    trained.made_with.update({contracts.GRAPH: "tower"} if knows else {})
    reader = stage_named("score_catalog")
    said = (
        r"score_catalog, graph\.append_to_images: expected items with.* as train .*found items with.* "
        r"build_item_features wrote.*Run build_training_tables, then train again"
    )
    with pytest.raises(InputError, match=said):
        contracts.require_same_graph(reader, features, trained, ("text", "images"))  # type: ignore[arg-type]
    contracts.require_same_graph(reader, features, trained, ("text",))  # type: ignore[arg-type]
    contracts.require_same_graph(reader, features, features, ("images",))  # type: ignore[arg-type]


def test_a_graph_that_knows_what_is_measured_now_is_refused(make_settings: Callable[..., Settings]) -> None:
    today, earlier = (make_settings(dates={"as_of": day}) for day in ("2026-03-02", "2026-03-01"))
    graph = RunRecord("embed_graph", GraphVectorMetrics("m"), settings=today.model_dump(mode="json"))
    reader = stage_named("build_item_features")
    with pytest.raises(InputError, match=r"before 2026-02-18, .*embed_graph .*before 2026-02-19.* Run build"):
        contracts.require_no_later(reader, graph, earlier.dates)
    contracts.require_no_later(reader, graph, today.dates)
    contracts.require_no_later(reader, replace(graph, settings={}), earlier.dates)


@pytest.mark.fault("B11", "loud", "queries embedded in another space than the model was trained with")
def test_a_model_of_another_space_is_refused(tmp_path: Path) -> None:
    read = (
        record("embed_queries", space="today"), record("build_item_features", "v"),
        record("build_training_tables", "v", "yesterday"), record("train", "v", "yesterday"),
    )  # fmt: skip
    with pytest.raises(
        InputError, match=r"today in what embed_queries .* yesterday in what build_training_tables"
    ) as caught:
        agreed(tmp_path, "score_catalog", *read)
    assert "Run build_training_tables, then train again" in str(caught.value)


def test_only_what_is_outdated_runs_again(tmp_path: Path) -> None:
    read = (
        record("build_item_features", "new"), record("build_training_tables", "new", "a"), record("train", "old", "a"),
    )  # fmt: skip
    with pytest.raises(InputError, match=r"Run train again, such as by `make pipeline SETTINGS=\.\.\. FROM=train`"):
        agreed(tmp_path, "score_catalog", *read)


def test_evaluating_embeddings_of_another_space_says_how_to_make_them_anew(tmp_path: Path) -> None:
    read = (
        record("embed_queries", space="b"), record("build_training_tables", "v", "b"), record("train", "v", "b"),
        record("score_catalog", "v", "a"),
    )  # fmt: skip
    with pytest.raises(
        InputError, match=r"evaluate, space of search queries: .*a in what score_catalog wrote\. Run score_c"
    ):
        agreed(tmp_path, "evaluate", *read)


def test_spaces_of_queries_that_no_task_has_do_not_matter(tmp_path: Path) -> None:
    tables = record("build_training_tables", "v", "a")
    tables.made_with[contracts.space_of("closeup")] = "another"
    assert agreed(tmp_path, "train", record("embed_queries", space="a"), tables) == {SPACE: "a", "vocabulary": "v"}


@pytest.mark.fault("B12", "loud", "features rebuilt with the same vocabulary, training tables not; then train")
def test_tables_cut_from_another_version_of_the_features_are_refused() -> None:
    features, queries = record("build_item_features", "v"), record("embed_queries", space="a")
    older = TableVersion("item_features", "item_features", 4, 10)
    for inputs, found in (((older,), "version 4"), ((), "does not say")):
        tables = record("build_training_tables", "v", "a", inputs=inputs)
        with pytest.raises(InputError, match=rf"cut from version 5, .* found .*{found}.*FROM=build_training_tables"):
            contracts.require_cut_from(tables, features, queries)  # type: ignore[arg-type]
    tables = record("build_training_tables", "v", "a")
    assert contracts.require_cut_from(tables, features, queries) is tables  # type: ignore[arg-type]


def test_newer_queries_of_the_same_space_are_no_mixture(tmp_path: Path) -> None:
    newer = record("embed_queries", space="a", outputs=(TableVersion("query_embeddings", "q", 8, 10),))
    tables = record("build_training_tables", "v", "a")
    contracts.require_cut_from(tables, record("build_item_features", "v"), newer)  # type: ignore[arg-type]
    assert agreed(tmp_path, "train", newer, tables)[SPACE] == "a"


def test_tables_of_before_contracts_are_known_by_the_versions_they_were_cut_from() -> None:
    features, queries = record("build_item_features", "v"), record("embed_queries", space="a")
    tables = record("build_training_tables")
    known = contracts.require_cut_from(tables, features, queries)  # type: ignore[arg-type]
    assert known.made_with == {"vocabulary": "v", SPACE: "a", contracts.space_of("closeup"): "pinsage-1"}
    newer = record("embed_queries", space="a", outputs=(TableVersion("query_embeddings", "q", 8, 10),))
    with pytest.raises(InputError, match=r"which embedding spaces they hold; .*FROM=build_training_tables"):
        contracts.require_cut_from(tables, features, newer)  # type: ignore[arg-type]


def test_other_code_is_said_and_not_refused() -> None:
    same, other, older = record("train"), record("embed_queries", code="0.1.0+x"), record("evaluate", code="")
    assert contracts.other_code([same, older]) == ""
    assert (
        contracts.other_code([same, other])
        == f"  made by other code than this ({code_version()}): embed_queries (0.1.0+x)"
    )


@pytest.mark.parametrize(
    ("made_with", "apart"),
    [
        ({contracts.ITEM_TEXT: "lsa-1", SPACE: "lsa-1", contracts.space_of("closeup"): "lsa-1"}, []),
        ({contracts.ITEM_TEXT: "lsa-1", SPACE: "lsa-1", contracts.space_of("closeup"): "pinsage-1"}, ["closeup"]),
        ({contracts.ITEM_TEXT: "lsa-1", SPACE: "lsa-1"}, ["closeup"]),
        ({contracts.ITEM_TEXT: "none", SPACE: "none", contracts.space_of("closeup"): "lsa-1"}, ["closeup", "search"]),
        ({SPACE: "lsa-1"}, ["closeup", "search"]),
    ],
)
def test_the_kinds_of_queries_that_are_not_in_the_space_of_the_texts(
    made_with: dict[str, str], apart: list[str]
) -> None:
    assert contracts.kinds_apart(made_with, ["search", "closeup", "search"]) == apart
