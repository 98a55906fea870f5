"""A log without a held-out pair: the run goes on, the table is empty, and it is said; and what is said of few pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from deltalake import DeltaTable, write_deltalake

from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.model_files import load_model, save_model
from itemsage_model.serving.query_vectors import adapt_queries
from jobs import evaluate
from jobs.evaluation.compared import Candidates, Queries, TaskPairs
from jobs.evaluation.comparison import adapted_queries
from jobs.evaluation.subject import Subject
from jobs.evaluation.systems import notes_of, systems_of
from pipeline.summary import print_summary
from schemas.arrow import arrow_schema
from schemas.metrics import EventCounts, ScoreMetrics, TrainingTableMetrics
from schemas.records import RunRecord, TableVersion, read_record, write_record
from schemas.stages import EVALUATE
from schemas.tables import ITEM_EMBEDDINGS, held_out_pairs
from schemas.tasks import Task
from tests.itemsage_model.factories import FULL_SPEC


@pytest.mark.fault("t10", "recovered", "a log that ends before the held-out window: no task has a pair to measure")
def test_a_log_without_a_held_out_pair_is_published_and_that_is_said(
    spark: Any, make_settings: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_settings(tasks=[{"query_kind": kind, "engagement": "click"} for kind in ("closeup", "search")])
    outputs = []
    for task in settings.task_list:
        table = held_out_pairs(task)
        write_deltalake(settings.table_uri(table.name), arrow_schema(table).empty_table())
        outputs.append(TableVersion(table.name, settings.table_uri(table.name), 0, 0))
    metrics = TrainingTableMetrics({}, EventCounts(9, 9, 0, 0, 0))
    write_record(settings.layout, RunRecord("build_training_tables", metrics, outputs=tuple(outputs)))
    evaluate.run(spark, settings)
    assert "note: search_click: no held-out pair, so there is no figure" in capsys.readouterr().out
    record = read_record(settings.layout, EVALUATE)
    assert [note.split(":")[0] for note in record.metrics.notes] == ["closeup_click", "search_click"]
    assert record.metrics.distractors == 0
    assert DeltaTable(settings.table_uri("evaluation")).to_pyarrow_table().num_rows == 0

    embeddings = settings.table_uri(ITEM_EMBEDDINGS.name)
    vectors = pa.array([[1.0, 0.0]], pa.list_(pa.float32()))
    write_deltalake(embeddings, pa.table({"item_id": ["a"], "embedding": vectors}))
    published = (TableVersion(ITEM_EMBEDDINGS.name, embeddings, 0, 1),)
    write_record(settings.layout, RunRecord("score_catalog", ScoreMetrics("m", "float32"), outputs=published))
    write_deltalake(settings.table_uri("items"), pa.table({"item_id": ["a"], "title": ["A"]}))
    print_summary(settings)
    said = capsys.readouterr().out
    assert "nothing to evaluate: no task has a held-out pair" in said
    assert "note: closeup_click: no held-out pair" in said


def pairs(engagement: str, count: int) -> TaskPairs:
    numbers = np.arange(count)
    ones = np.ones(count, np.float32)
    return TaskPairs(Task("search", engagement), numbers, numbers, ones, numbers.astype(str), numbers, numbers)


@pytest.mark.fault("t10", "recovered", "few held-out pairs, and fewer candidates than k")
def test_few_pairs_and_few_candidates_are_said_beside_the_figure() -> None:
    few, enough, none = pairs("click", 25), pairs("save", 100), pairs("buy", 0)
    assert notes_of([enough], 1_000, 10) == ()
    rare, rough, small = notes_of([few, enough, none], 10, 10)
    assert rare.startswith("search_buy: no held-out pair")
    assert rough == "search_click: 25 held-out pairs are few: the figure is off by up to 0.20 by chance"
    assert small == "recall@10 among 10 candidates is near 1 for every system: lower evaluate.k"
    assert len(notes_of([none], 0, 10)) == 1


def test_the_model_is_compared_with_its_adapted_queries_by_kind(make_settings: Any) -> None:
    settings = make_settings(tasks=[{"query_kind": kind, "engagement": "click"} for kind in ("closeup", "search")])
    tower = FULL_SPEC.build(seed=1)
    tower.query_adapter.weight.data.normal_(std=0.1)
    tower.query_adapter.identity.table.data.normal_()
    tower.remember(torch.tensor([1000]), torch.tensor([1]))
    uri, _ = save_model(settings.layout.models, tower, FULL_SPEC, {})
    ids = np.array(["a", "b", "c"], object)
    vectors = np.random.default_rng(1).normal(size=(3, 256)).astype(np.float32)
    of_search, of_closeup = pairs("click", 2), replace(pairs("click", 1), task=Task("closeup", "click"))
    keys = np.arange(3)  # the second query of the search task, c, is known
    of_search = replace(of_search, query_ids=ids[[0, 2]], query_key=keys[[0, 1]])
    task_pairs = [of_search, replace(of_closeup, query_ids=ids[[1]], query_key=keys[[2]])]
    model = load_model(uri, ItemTowerSpec)
    adapted = adapted_queries(Subject(model), task_pairs, ids, vectors)
    assert adapted_queries(Subject(model, adapts=False), task_pairs, ids, vectors) is vectors
    np.testing.assert_allclose(
        adapted[[0, 2]], adapt_queries(model, "search", vectors[[0, 2]], keys[[0, 1]]), atol=1e-6
    )
    np.testing.assert_allclose(adapted[[1]], adapt_queries(model, "closeup", vectors[[1]], keys[[2]]), atol=1e-6)
    unknown = adapt_queries(model, "search", vectors[[0, 2]], keys[[0, 0]])
    assert (np.abs(adapted[[0, 2]] - unknown).max(axis=1) > 0.01).tolist() == [False, True]

    zeros = np.zeros((3, 256), np.float32)
    queries = Queries(ids, zeros, adapted, None, np.zeros(3, bool), {}, np.full(3, "", object))
    items = {"itemsage": adapted, "untrained": adapted, "sum": adapted}
    candidates = Candidates(
        np.arange(3), np.ones(3, bool), np.zeros(3, np.int64), items, np.ones(3, bool), np.ones(3, bool)
    )
    systems = systems_of(task_pairs[1], candidates, queries, {})
    chosen = torch.tensor([0])
    assert systems["itemsage"](chosen).argmax() == systems["untrained"](chosen).argmax() == 1
    assert not systems["sum"](chosen).any()
