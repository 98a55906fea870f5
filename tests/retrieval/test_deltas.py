"""An index that follows the change feed: a month of days, what ends the following, and kills between its files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retrieval import manifest as manifests
from retrieval.build_index import write_index
from retrieval.certificate import certificate
from retrieval.deltas import Followed, RebuildNeeded, follow
from retrieval.index import Index, load, open_index
from retrieval.manifest import Certificate, publish
from retrieval.measure import filters_of, measure
from retrieval.questions import questions_of
from retrieval.shards import BuildSettings
from retrieval.source import published_items
from schemas.published import Published
from tests.retrieval.shop import CLICK, Shop, small_shop

GRAPH = BuildSettings(hnsw_m=16, ef_construction=60, ef_search=48, exact_rows=100)
COLUMNS = ["in_stock"]


def certified(index: Index, found: Published, min_recall: float = 0.95) -> Certificate:
    questions = questions_of(found, [CLICK], 60, ())
    filters = filters_of((0.5, 0.01), found.items(COLUMNS), COLUMNS)
    return certificate(measure(index, published_items(found), questions, filters), questions, filters, min_recall)


def put(folder: Path, found: Published, manifest: manifests.Manifest, build: str) -> Certificate:
    made = certified(load(str(folder), manifest), found)
    publish(str(folder), build, replace(manifest, certificate=made))
    return made


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return small_shop(tmp_path)


def first(shop: Shop, folder: Path) -> Published:
    found = shop.publish()
    put(folder, found, *write_index(found, str(folder), GRAPH))
    return found


def day(shop: Shop, count: int) -> Published:
    """Some items are added, some change, some are gone; some of these on several days."""
    removed = shop.remove(count)
    changed = shop.change(count)
    return shop.publish({"removed": removed, "changed": changed, "added": shop.add(count)})


def next_of(folder: Path, found: Published, max_share: float = 0.5) -> Followed:
    return follow(open_index(str(folder)), str(folder), found, GRAPH, max_share)


def advance(folder: Path, found: Published) -> None:
    followed = next_of(folder, found)
    put(folder, found, followed.manifest, followed.build)


def test_after_a_month_of_days_it_answers_like_one_that_was_built_anew(tmp_path: Path) -> None:
    folder, shop = tmp_path / "index", small_shop(tmp_path, items=800)
    found = first(shop, folder)
    for number in range(30):
        found = day(shop, 2)
        if number % 10 == 9:
            advance(folder, found)
        else:  # measured on some days only, for the time it takes here
            followed = next_of(folder, found)
            made = replace(followed.manifest, certificate=open_index(str(folder)).manifest.certificate)
            publish(str(folder), followed.build, made)
    index = open_index(str(folder), version=found.version)
    delta = index.manifest.delta
    assert delta is not None
    assert (delta.base_version, len(index.manifest.shards)) == (0, 1)
    assert len(index) == len(shop.vectors)
    assert 100 < delta.tombstones <= 2 * 2 * 30
    questions = questions_of(found, [CLICK], 60, ())
    manifest, _ = write_index(found, str(tmp_path / "anew"), GRAPH)
    anew = load(str(tmp_path / "anew"), manifest)
    for where in (None, {"in_stock": [True]}):
        mine, theirs = (one.search(questions.vectors, 10, where).item_ids for one in (index, anew))
        assert set(mine.ravel()) <= set(shop.vectors)
        shared = [len(set(line) & set(other)) / 10 for line, other in zip(mine, theirs, strict=True)]
        assert np.mean(shared) > 0.95
    of_both = [certified(one, found).weakest.recall for one in (index, anew)]
    assert of_both[0] > 0.95
    assert of_both[0] > of_both[1] - 0.02
    # Shards of the first day, the delta of the last two; nothing of the 28 days between.
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 3


def test_a_changed_item_is_found_where_it_is_now_and_a_removed_one_nowhere(shop: Shop, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    first(shop, folder)
    [gone] = shop.remove(1)
    old = dict(shop.vectors)
    [moved] = shop.change(1)
    [new] = shop.add(1)
    index = next_of(folder, shop.publish({"removed": [gone], "changed": [moved], "added": [new]})).index
    vectors = np.stack([old[moved], shop.vectors[moved], shop.vectors[new]])
    hits = index.search(vectors, 2_000)
    for line in hits.item_ids:
        assert sorted(line) == sorted(shop.vectors)
    assert (hits.item_ids[1, 0], hits.item_ids[2, 0]) == (moved, new)
    place = list(hits.item_ids[0]).index(moved)
    assert hits.scores[0, place] == pytest.approx(old[moved] @ shop.vectors[moved], abs=1e-5)
    assert index.vectors_of([gone, moved])[1].tolist() == [False, True]
    assert np.array_equal(index.vectors_of([moved])[0][0], shop.vectors[moved])


def test_an_item_that_comes_back_and_one_that_came_and_went(shop: Shop, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    first(shop, folder)
    vector, row = shop.vectors.pop("item-000005"), shop.columns.pop("item-000005")
    [visitor] = shop.add(1)
    found = shop.publish({"removed": ["item-000005"], "added": [visitor]})
    advance(folder, found)
    shop.vectors["item-000005"], shop.columns["item-000005"] = vector, row
    del shop.vectors[visitor]
    index = next_of(folder, shop.publish({"added": ["item-000005"], "removed": [visitor]})).index
    assert len(index) == 2_000
    assert index.vectors_of(["item-000005", visitor])[1].tolist() == [True, False]
    assert list(index.search(vector[None], 2_000).item_ids[0]).count("item-000005") == 1


def test_what_ends_the_following(shop: Shop, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    first(shop, folder)
    found = day(shop, 50)
    with pytest.raises(RebuildNeeded, match=r"100 adds and 1.. tombstones are more than 9% of 2,000 items"):
        next_of(folder, found, max_share=0.09)
    with pytest.raises(RebuildNeeded, match="its hnsw_m: 16, and now 8"):
        follow(open_index(str(folder)), str(folder), found, replace(GRAPH, hnsw_m=8), 0.5)
    shop.vectors.pop(next(iter(shop.vectors)))
    with pytest.raises(RebuildNeeded, match="with the feed it would hold 2,000 items, and version 2 has 1,999"):
        next_of(folder, shop.publish({"changed": []}))
    with pytest.raises(RebuildNeeded, match="filter columns"):
        next_of(folder, shop.publish({"changed": []}, rows=shop.rows(with_columns=False)))
    with pytest.raises(RebuildNeeded, match="the feed does not lead from version 0 to 4"):
        next_of(folder, shop.publish())


@pytest.mark.fault("B12", "loud", "a change feed that leaves out half of the items that moved: the certificate tells")
def test_a_delta_that_missed_a_change_fails_its_certificate(shop: Shop, tmp_path: Path) -> None:
    """The feed leaves out items that have moved: what the index says of them is of yesterday."""
    folder = tmp_path / "index"
    first(shop, folder)
    shop.change(1_000)
    found = shop.publish({"changed": []})
    made = certified(next_of(folder, found).index, found)
    assert made.weakest.recall < 0.8


@pytest.mark.fault("B6", "recovered", "an index's export ended at each of its five writes")
def test_killed_at_any_write_the_former_version_opens_and_the_next_try_succeeds(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "index"
    before = first(shop, folder)
    found, real = day(shop, 3), manifests.write_bytes
    for moment in range(5):  # vectors and rows of the adds, tombstones, manifest, pointer
        count = iter(range(100))

        def end(uri: str, content: bytes, moment: int = moment, count: object = count) -> None:
            if next(count) == moment:  # type: ignore[call-overload]
                raise KeyboardInterrupt
            real(uri, content)

        with monkeypatch.context() as ending:
            ending.setattr(manifests, "write_bytes", end)
            with pytest.raises(KeyboardInterrupt):
                advance(folder, found)
        assert open_index(str(folder)).manifest.version == before.version
    advance(folder, found)
    assert len(open_index(str(folder), version=found.version)) == len(shop.vectors)
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 2
