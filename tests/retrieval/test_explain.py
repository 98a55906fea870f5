"""Shares of an item's features in its score: they add up to it, and are those of the definition."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from deltalake import CommitProperties, DeltaTable, write_deltalake

from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.model_files import model_bytes, save_model
from itemsage_model.serving.scorer import Scorer
from retrieval import explain as explain_module
from retrieval.explain import IDENTITY, Explainer, explain_row
from schemas.cells import to_list_column
from schemas.errors import InputError
from schemas.metrics import ScoreMetrics
from schemas.published import PUBLISHED, live
from schemas.settings import Settings
from tests.itemsage_model.factories import FULL_SPEC, SPEC, arrow_cells, item_cells, write_catalog

KEYS = torch.arange(1_000, 1_006)


def scorer_of(spec: ItemTowerSpec) -> Scorer:
    tower = spec.build()
    tower.remember(KEYS)
    if tower.item_identity is not None:
        tower.item_identity.table.data.normal_()
        tower.pull_unseen(torch.full((256,), 0.01))
    return Scorer(model_bytes(tower), spec)


def rows(items: int, most_images: int = 2) -> pa.RecordBatch:
    cells = arrow_cells(item_cells(np.random.default_rng(3), items, most_images))
    return pa.RecordBatch.from_pydict({"item_key": pa.array(np.arange(1_000, 1_000 + items)), **cells})


def query() -> np.ndarray:
    vector = np.random.default_rng(5).normal(size=256).astype(np.float32)
    return vector / np.linalg.norm(vector)


SMALL = replace(SPEC, model=SPEC.model.model_copy(update={"sequence": ("text", "images")}))
FROZEN = replace(
    FULL_SPEC, model=FULL_SPEC.model.model_copy(update={"sequence": (), "item_vector": True, "residual": True})
)  # fmt: skip


@pytest.mark.parametrize("spec", [SMALL, FULL_SPEC, FROZEN], ids=["paper", "full", "maps and identities"])
def test_shares_and_baseline_add_up_to_the_score_that_is_published(spec: ItemTowerSpec) -> None:
    scorer, table, vector = scorer_of(spec), rows(12), query()
    scores = scorer.score_batch(table) @ vector
    for n in range(len(table)):
        found = explain_row(scorer, table.slice(n, 1), vector, ["title"])
        assert found.score == pytest.approx(scores[n], abs=1e-5)
        assert found.baseline + sum(found.shares.values()) == pytest.approx(found.score, abs=1e-9)
        assert (IDENTITY in found.shares) == (spec is not SMALL and n < len(KEYS))
        assert list(found.shares.values()) == sorted(found.shares.values(), reverse=True)
        assert found.lines()[-1].endswith("score")


def test_shares_are_the_mean_gain_over_all_orders_in_which_features_are_shown() -> None:
    scorer, vector = scorer_of(SMALL), query()
    table = rows(12)
    n = next(n for n in range(12) if len(explain_row(scorer, table.slice(n, 1), vector).shares) == 4)
    row = table.slice(n, 1)
    found = explain_row(scorer, row, vector)

    def score(shown: frozenset[str]) -> float:
        """Of the item as a table would have it without the other features."""
        counts = np.frombuffer(row.column("text_token_counts")[0].as_py(), "<i4")
        ids = np.split(np.frombuffer(row.column("text_token_ids")[0].as_py(), "<i4"), np.cumsum(counts)[:-1])
        images = np.frombuffer(row.column("image_embeddings")[0].as_py(), "<f2").reshape(-1, 256)
        kept = [one if name in shown else one[:0] for name, one in zip(("title", "brand", "size"), ids, strict=True)]
        cells = {
            "text_token_ids": [np.concatenate(kept).tobytes()],
            "text_token_counts": [np.array([len(one) for one in kept], "<i4").tobytes()],
            "image_embeddings": [b"".join(one.tobytes() for i, one in enumerate(images) if f"image {i}" in shown)],
            "text_embedding": [b""],
        }
        one = pa.RecordBatch.from_pydict({"item_key": row.column("item_key"), **arrow_cells(cells)})
        return float(scorer.score_batch(one)[0].astype(np.float64) @ vector)

    gains: dict[str, list[float]] = {name: [] for name in found.shares}
    for order in permutations(found.shares):
        for place, name in enumerate(order):
            gains[name].append(score(frozenset(order[: place + 1])) - score(frozenset(order[:place])))
    assert found.baseline == pytest.approx(score(frozenset()), abs=1e-6)
    assert found.shares == pytest.approx({name: np.mean(each) for name, each in gains.items()}, abs=1e-6)
    assert max(found.shares.values()) - min(found.shares.values()) > 1e-3


def test_with_many_features_orders_are_drawn_and_shares_still_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, vector = scorer_of(SMALL), query()
    row = next(row for row in (rows(30, 9).slice(n, 1) for n in range(30))
               if len(explain_row(scorer, row, vector).shares) in (8, 9, 10))  # fmt: skip
    whole = explain_row(scorer, row, vector)
    monkeypatch.setattr(explain_module, "MOST_FOR_ALL_SUBSETS", 3)
    drawn = explain_row(scorer, row, vector)
    assert (whole.is_complete, drawn.is_complete) == (True, False)
    assert drawn.baseline + sum(drawn.shares.values()) == pytest.approx(drawn.score, abs=1e-9)
    assert drawn.shares == pytest.approx(whole.shares, abs=0.002)
    assert explain_row(scorer, row, vector) == drawn


def test_the_frozen_text_goes_with_its_feature_or_is_one_of_its_own() -> None:
    scorer, row, vector = scorer_of(FULL_SPEC), rows(12).slice(1, 1), query()
    together = explain_row(scorer, row, vector, ["title"]).shares
    apart = explain_row(scorer, row, vector, ["title", "brand"]).shares
    assert "frozen text of title, brand" in apart
    assert not any(name.startswith("frozen") for name in together)
    assert len(apart) >= len(together)


def test_without_its_identity_an_item_is_as_one_that_nobody_met() -> None:
    scorer, vector = scorer_of(FROZEN), query()
    row = rows(12).slice(1, 1)
    found = explain_row(scorer, row, vector, ["title"])

    def score(key: int, *, has_text: bool) -> float:
        cells = {name: row.column(name) for name in row.schema.names}
        cells["item_key"] = pa.array([key])
        if not has_text:
            cells["text_embedding"] = pa.array([b""], pa.binary())
        return float(scorer.score_batch(pa.RecordBatch.from_pydict(cells))[0].astype(np.float64) @ vector)

    none, text = score(77, has_text=False), score(77, has_text=True)
    met, both = score(1_001, has_text=False), score(1_001, has_text=True)
    expected = {IDENTITY: ((met - none) + (both - text)) / 2, "title": ((text - none) + (both - met)) / 2}
    assert found.shares == pytest.approx(expected, abs=1e-6)
    assert found.baseline == pytest.approx(none, abs=1e-6)
    assert abs(expected[IDENTITY]) > 1e-3


def test_items_of_a_published_version_are_explained_or_refused_by_name(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, vector = make_settings().layout, query()
    write_catalog(Path(layout.table("item_features")), items=6)
    tower = FULL_SPEC.build()
    _, model_id = save_model(layout.models, tower, FULL_SPEC, {})
    scorer = Scorer(model_bytes(tower), FULL_SPEC)
    table = DeltaTable(layout.table("item_features")).to_pyarrow_table().sort_by("item_id")
    (features,) = table.combine_chunks().to_batches()
    embeddings = scorer.score_batch(features)
    embeddings[5] = vector  # in the place of the model's
    rows = pa.table({"item_id": features.column("item_id"), "embedding": to_list_column(embeddings)})
    metrics = ScoreMetrics(model_id, "float32", published_id=model_id)
    belongs = {"metrics": asdict(metrics), "rows": 6, "query_vectors": {"version": 0, "rows": 0}}
    note = {"run_id": "run", "as_of": "2026-03-01", "made_of": {"item_features": 0}, PUBLISHED: belongs}
    properties = CommitProperties({"userMetadata": json.dumps(note)})
    write_deltalake(layout.table("item_embeddings"), rows, commit_properties=properties)
    published = live(layout)
    assert published is not None
    explainer = Explainer.load(published, ["title"])
    first, again = explainer.explain(["i1", "i3"], vector), explainer.explain(["i3"], vector)
    assert [one.score for one in first] == pytest.approx([embeddings[1] @ vector, embeddings[3] @ vector], abs=1e-5)
    assert again == first[1:]
    monkeypatch.setattr(explain_module, "_MOST_KEPT", 1)
    assert explainer.explain(["i3", "i1"], vector) == first[::-1]
    assert len(explainer._rows) == 2
    with pytest.raises(
        InputError, match=r"version 0, item i5: expected the score that its model gives .*found 1\.0000"
    ):
        explainer.explain(["i5"], vector)
    with pytest.raises(InputError, match="item nobody: expected an item of the version; found none"):
        explainer.explain(["i1", "nobody"], vector)
