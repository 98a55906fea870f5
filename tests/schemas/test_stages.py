"""The stages: what they declare is what the jobs say and can do, in an order that works."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from schemas import graph_tables, picture_tables, query_pair_tables, tables
from schemas.columns import Table
from schemas.stages import (
    BESIDE,
    BUILD_ITEM_FEATURES,
    EMBED_IMAGES,
    MAKE_DEMO_WORLD,
    OPTIONAL,
    PIPELINE,
    TRAIN,
    WHOLE,
    Stage,
    is_among,
    maker_of,
    stage_named,
    stages_of,
)
from schemas.tables import ITEM_EMBEDDINGS, ITEMS, TRAINING_PAIRS, training_pairs
from schemas.tasks import Task
from schemas.warehouse import Warehouse

ROOT = Path(__file__).resolve().parents[2]
SHOP = {"items", "item_images", "item_pictures", "queries", "engagement_logs"}


def test_every_stage_reads_what_the_shop_supplies_or_an_earlier_stage_or_one_beside_writes() -> None:
    beside = {table.name for stage in BESIDE for table in stage.writes}
    for stages in (PIPELINE, WHOLE):
        written = SHOP | beside | {table.name for table in MAKE_DEMO_WORLD.writes}
        for stage in stages:
            assert {table.name for table in stage.reads} <= written, stage.name
            written |= {table.name for table in stage.writes}


def test_every_table_that_a_job_writes_has_one_maker() -> None:
    modules = (tables, picture_tables, graph_tables, query_pair_tables)
    values = [value for module in modules for value in vars(module).values()]
    declared = {table.name for table in values if isinstance(table, Table)}
    of_jobs = [table.name for stage in (*WHOLE, *BESIDE) for table in stage.writes]
    assert len(of_jobs) == len(set(of_jobs))
    assert declared == {*of_jobs, tables.RUNS.name, *(table.name for table in MAKE_DEMO_WORLD.writes)}


def test_a_shop_runs_the_optional_stages_that_it_has_chosen() -> None:
    assert stages_of([]) == PIPELINE == tuple(stage for stage in WHOLE if stage not in OPTIONAL)
    chosen = stages_of([EMBED_IMAGES.name])
    assert chosen.index(EMBED_IMAGES) < chosen.index(BUILD_ITEM_FEATURES)
    assert set(chosen) == {*PIPELINE, EMBED_IMAGES}


def test_a_table_that_a_shop_may_supply_has_a_maker_only_where_one_runs() -> None:
    assert maker_of("item_images") is maker_of("item_images", PIPELINE) is None
    assert maker_of("item_images", WHOLE) is EMBED_IMAGES
    assert maker_of("picture_embeddings") is EMBED_IMAGES
    assert maker_of("item_pictures", WHOLE) is None


def test_a_tasks_table_belongs_to_its_family() -> None:
    name = training_pairs(Task("search", "inquiry")).name
    assert is_among(name, (TRAINING_PAIRS,))
    assert not is_among(name, (ITEM_EMBEDDINGS, ITEMS))
    assert maker_of(name) is stage_named("build_training_tables")
    assert maker_of("items") is None


@pytest.mark.parametrize("stage", [MAKE_DEMO_WORLD, *WHOLE], ids=lambda stage: stage.name)
def test_a_jobs_docstring_names_the_tables_of_its_stage(stage: Stage[Any]) -> None:
    assert importlib.import_module(f"jobs.{stage.name}").STAGE is stage
    path = ROOT / "jobs" / f"{stage.name}.py" if stage is not TRAIN else ROOT / "itemsage_model" / "train.py"
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    reads, _, rest = text.partition("Writes:")
    writes = rest.partition("ne row")[0]
    for table in stage.reads:
        assert re.search(rf"\b{re.escape(table.name)}(?![\w<])", reads), f"{path.name} reads {table.name}"
    for table in stage.writes:
        assert re.search(rf"\b{re.escape(table.name)}(?![\w<])", writes), f"{path.name} writes {table.name}"


def test_a_stage_that_is_none_is_refused_with_those_that_are() -> None:
    with pytest.raises(KeyError, match="no stage 'scoring'; the stages are embed_images, embed_queries"):
        stage_named("scoring")


def test_a_warehouse_is_laid_out_alike_however_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for uri in ("shop", "shop/", f"{tmp_path}/shop"):
        layout = Warehouse(uri)
        assert layout.table("items") == f"{tmp_path}/shop/items"
        assert layout.record("train") == f"{tmp_path}/shop/_runs/train.json"
        assert layout.tensorboard("run") == f"{tmp_path}/shop/tensorboard/run"
    store = Warehouse("s3://bucket/shop/")
    assert (store.models, store.tensorboard("run")) == ("s3://bucket/shop/models", "")
    assert store.query_projection("clip/vit b").endswith("/query_projections/clip%2Fvit%20b")
    assert store.query_projection("clip-1.0").endswith("/query_projections/clip-1.0")
    assert store.query_projection("..").endswith("/query_projections/%2E%2E")
