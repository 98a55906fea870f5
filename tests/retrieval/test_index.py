"""An index: what it finds, with filters and without; what it refuses; and that it is there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from retrieval import manifest as manifests
from retrieval import shards
from retrieval.build_index import write_index
from retrieval.certificate import certificate, require_certified
from retrieval.index import Index, load, open_index
from retrieval.manifest import Certificate, Figure, Manifest, publish
from retrieval.measure import Measured, Questions, filters_of, measure, merged
from retrieval.questions import questions_of
from retrieval.shards import BuildSettings
from retrieval.source import published_items
from retrieval.top import nearest as nearest_rows
from schemas.cells import to_list_column
from schemas.errors import GateError, InputError, TableError
from schemas.published import Published
from tests.retrieval.shop import CLICK, DIM, SPACES, Shop, small_shop, unit

GRAPH = BuildSettings(hnsw_m=16, ef_construction=60, ef_search=48, exact_rows=100)
EXACT = replace(GRAPH, exact_rows=100_000)
GOOD = Certificate(10, "nothing", 0.5, (Figure("all queries", 1, 1.0, 1.0, 1.0),))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    made = small_shop(tmp_path_factory.mktemp("shop"))
    made.publish()
    return made


@pytest.fixture(scope="module")
def found(shop: Shop) -> Published:
    return shop.publish()


@pytest.fixture(scope="module")
def queries(shop: Shop) -> np.ndarray:
    return unit(np.stack([shop.near(number) for number in range(40)]))


def built(found: Published, folder: Path, settings: BuildSettings = GRAPH, checked: Certificate = GOOD) -> Index:
    manifest, build = write_index(found, str(folder), settings)
    publish(str(folder), build, replace(manifest, certificate=checked))
    return load(str(folder), manifest)


@pytest.mark.parametrize("engine", ["faiss", "usearch"])
def test_an_engine_finds_what_comparing_finds_and_its_files_are_refused_by_another(
    found: Published, queries: np.ndarray, tmp_path: Path, engine: str
) -> None:
    other = {"faiss": "usearch", "usearch": "faiss"}[engine]
    index = built(found, tmp_path / "one", replace(GRAPH, engine=engine))
    again = built(found, tmp_path / "two", replace(GRAPH, engine=engine))
    exact = built(found, tmp_path / "exact", EXACT)
    assert index.shards[0].graph is not None
    np.testing.assert_array_equal(index.shards[0].vectors, exact.shards[0].vectors)
    assert index.shards[0].to_bytes() == again.shards[0].to_bytes()
    for where in (None, {"in_stock": [True]}, {"category": ["c3"]}):
        hits, expected = index.search(queries, 10, where), exact.search(queries, 10, where)
        same = [len({*one} & {*two}) for one, two in zip(hits.item_ids, expected.item_ids, strict=True)]
        assert np.mean(same) > 9.5
        np.testing.assert_allclose(hits.scores[:, 0], expected.scores[:, 0], atol=1e-5)
    single, all_of_them = index.search(queries[:1], 10), index.search(queries[:1], len(index))
    np.testing.assert_array_equal(single.item_ids[0], index.search(queries, 10).item_ids[0])
    assert len({*all_of_them.item_ids[0]}) == len(index)
    with pytest.raises(InputError, match="expected a shard; found"):
        load(str(tmp_path / "one"), replace(index.manifest, build=replace(index.manifest.build, engine=other)))
    with pytest.raises(InputError, match="no engine 'annoy'; there are faiss and usearch"):
        load(str(tmp_path / "one"), replace(index.manifest, build=replace(index.manifest.build, engine="annoy")))


@pytest.fixture(scope="module")
def index(found: Published, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return built(found, tmp_path_factory.mktemp("index"))


def nearest(shop: Shop, query: np.ndarray, k: int, passes: Callable[[dict[str, object]], bool] = bool) -> list[str]:
    """The slow way."""
    ids = [item_id for item_id in shop.vectors if passes(shop.columns[item_id])]
    scores = np.array([float(shop.vectors[item_id].astype(np.float64) @ query) for item_id in ids])
    return [ids[number] for number in np.argsort(-scores)[:k]]


def test_without_a_graph_a_search_is_exact(shop: Shop, found: Published, queries: np.ndarray, tmp_path: Path) -> None:
    hits = built(found, tmp_path, EXACT).search(queries, 5)
    assert [list(line) for line in hits.item_ids] == [nearest(shop, query, 5) for query in queries]
    assert hits.scores[3, 0] == pytest.approx(shop.vectors[hits.item_ids[3, 0]] @ queries[3], abs=1e-6)


def test_with_a_graph_nearly(shop: Shop, index: Index, queries: np.ndarray) -> None:
    assert index.shards[0].graph is not None
    hits = index.search(queries, 10)
    true = [set(nearest(shop, query, 10)) for query in queries]
    assert np.mean([len(set(line) & one) / 10 for line, one in zip(hits.item_ids, true, strict=True)]) > 0.95


@pytest.mark.parametrize("compared", [shards._COMPARED_A_STEP, 0], ids=["as it chooses", "by the graph"])
@pytest.mark.parametrize(
    ("where", "passes"),
    [
        ({"in_stock": [True]}, lambda row: row["in_stock"]),
        ({"category": ["c3"]}, lambda row: row["category"] == "c3"),
        ({"category": ["c1"], "price_band": [0, 1]}, lambda row: row["category"] == "c1" and row["price_band"] < 2),
        ({"price_band": [2]}, lambda row: row["price_band"] == 2),
    ],
)  # fmt: skip
def test_a_filter_lets_through_what_passes_and_always_k_of_it(
    shop: Shop,
    index: Index,
    queries: np.ndarray,
    where: dict[str, list[object]],
    passes: Callable[..., bool],
    compared: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Most queries lie far from all items of one category: a walk that stops near the query meets none of them."""
    monkeypatch.setattr(shards, "_COMPARED_A_STEP", compared)
    hits = index.search(queries, 10, where)
    assert all(passes(shop.columns[item_id]) for item_id in hits.item_ids.ravel())
    true = [set(nearest(shop, query, 10, passes)) for query in queries]
    assert np.mean([len(set(line) & one) / 10 for line, one in zip(hits.item_ids, true, strict=True)]) > 0.95


@pytest.mark.parametrize("ef_search", [24, 48])
@pytest.mark.parametrize("categories", [[5], [0, 1, 2, 3, 4]])
def test_a_walk_is_not_believed_where_what_is_near_does_not_pass(
    index: Index, queries: np.ndarray, categories: list[int], ef_search: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Query and the items near it are of another category; of those further out the walk meets some, by chance."""
    monkeypatch.setattr(shards, "_COMPARED_A_STEP", 0)
    shard = index.shards[0]
    [allowed] = index.allowed({"category": [f"c{number}" for number in categories]})
    asked = queries[[number for number in range(len(queries)) if number % 10 not in categories]]
    scores, rows = shard.search(asked, 10, ef_search, allowed)
    exact, _ = nearest_rows(asked, shard.vectors, 10, np.flatnonzero(allowed))
    assert allowed[rows].all()
    assert (scores >= exact[:, -1:] - 1e-5).mean() > 0.99


def test_threads_may_forget_the_same_filter(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    class Raced(dict):  # type: ignore[type-arg]
        """Another thread removes the oldest entry as soon as this one has looked which it is."""

        def __iter__(self):  # type: ignore[no-untyped-def]
            oldest = next(super().__iter__())
            self.pop(oldest)
            return iter([oldest])

    monkeypatch.setattr(index, "_filters", Raced({str(number): [] for number in range(32)}))
    [allowed] = index.allowed({"price_band": [2]})
    assert allowed.any()


def test_where_fewer_pass_than_are_asked_for_the_rest_is_empty(shop: Shop, index: Index, queries: np.ndarray) -> None:
    hits = index.search(queries[:2], 3, {"category": ["c1", "no such"], "in_stock": []})
    assert hits.item_ids.tolist() == [[None] * 3] * 2
    assert np.isneginf(hits.scores).all()
    everything = index.search(queries[:1], len(shop.vectors) + 1)
    assert set(everything.item_ids[0, :-1]) == set(shop.vectors)
    assert everything.item_ids[0, -1] is None


def test_vectors_of_items_are_those_of_the_table(shop: Shop, index: Index) -> None:
    vectors, is_there = index.vectors_of(["item-000007", "gone"])
    assert is_there.tolist() == [True, False]
    assert np.array_equal(vectors[0], shop.vectors["item-000007"])


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"colour": ["red"]}, "filter, colour: expected one of its filter columns: category, in_stock, price_band"),
        ({"in_stock": ["yes"]}, "filter, in_stock: expected values of the type bool; found 'yes'"),
        ({"price_band": [True]}, "filter, price_band: expected values of the type int64; found True"),
    ],
)
def test_a_filter_that_means_nothing_is_refused(
    index: Index, queries: np.ndarray, where: dict[str, list[object]], message: str
) -> None:
    with pytest.raises(InputError, match=message.replace("'", ".")):
        index.search(queries, 3, where)


@pytest.mark.parametrize("values", [np.array([2]), [np.int64(2)], {2}, (2,), 2])
def test_values_of_a_filter_come_as_they_are_at_hand(index: Index, queries: np.ndarray, values: object) -> None:
    found, expected = (index.search(queries[:1], 9, {"price_band": one}) for one in (values, [2]))  # type: ignore[dict-item]
    assert found.item_ids.tolist() == expected.item_ids.tolist()


@pytest.mark.parametrize(
    ("vectors", "message"),
    [(np.ones((2, 7)), r"\[query, 256\]; found the shape \[2, 7\]"), (np.full((1, DIM), np.nan), "found NaN")],
)
def test_vectors_that_are_no_queries_are_refused(index: Index, vectors: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        index.search(vectors, 3)


# ---------------------------------------------------------------- opening


def test_an_index_opens_as_it_was_written(index: Index, found: Published, queries: np.ndarray, tmp_path: Path) -> None:
    built(found, tmp_path)
    opened = open_index(str(tmp_path), version=found.version, spaces=SPACES)
    assert opened.search(queries, 10).item_ids.tolist() == index.search(queries, 10).item_ids.tolist()
    assert (opened.manifest.model_id, opened.manifest.spaces, opened.manifest.adapter) == ("model-a", SPACES, "")


def _shorten(folder: Path, manifest: Manifest) -> None:
    file = folder / manifest.shards[0].vectors.path
    file.write_bytes(file.read_bytes()[:-10])


def _flip(folder: Path, manifest: Manifest) -> None:
    file = folder / manifest.shards[0].vectors.path
    content = bytearray(file.read_bytes())
    content[-40] ^= 1
    file.write_bytes(content)


def _lose(folder: Path, manifest: Manifest) -> None:
    (folder / manifest.shards[0].rows.path).unlink()


def _edit(folder: Path, _: Manifest) -> None:
    [file] = folder.glob("*/manifest.json")
    file.write_text(file.read_text().replace("model-a", "model-b"))


def _spoil_the_pointer(folder: Path, _: Manifest) -> None:
    (folder / "live").write_text("{")


def _point_nowhere(folder: Path, _: Manifest) -> None:
    (folder / "live").write_text('{"live": "v9-0", "before": []}')


@pytest.mark.fault("A14", "loud", "a file of an index cut short, changed, lost; its manifest or pointer edited")
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_shorten, r"expected [\d,]+ bytes; found [\d,]+: it was truncated or replaced"),
        (_flip, "found another: the file was changed"),
        (_lose, "found no such file"),
        (_edit, "its sha256 differs"),
        (_spoil_the_pointer, "expected the name of a build; found a damaged file"),
        (_point_nowhere, "expected the manifest that `live` names; found no such file"),
    ],
)
def test_a_damaged_index_does_not_open(
    found: Published, tmp_path: Path, harm: Callable[[Path, Manifest], None], message: str
) -> None:
    harm(tmp_path, built(found, tmp_path).manifest)
    with pytest.raises(InputError, match=message):
        open_index(str(tmp_path))
    assert len(built(found, tmp_path)) == len(open_index(str(tmp_path)))


def test_an_index_of_another_version_or_space_or_without_a_certificate_does_not_open(
    found: Published, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="expected an index; found none"):
        open_index(str(tmp_path))
    built(found, tmp_path)
    with pytest.raises(InputError, match=f"expected version 99 of item_embeddings; found version {found.version}"):
        open_index(str(tmp_path), version=99)
    with pytest.raises(InputError, match=r"search queries: expected .* the space lsa-1; found .* lsa-2"):
        open_index(str(tmp_path), spaces={"search": "lsa-2"})
    with pytest.raises(InputError, match="expected queries of a kind it answers: closeup, search"):
        open_index(str(tmp_path)).require_space("home", "lsa-1")
    low = Certificate(10, "", 0.9, (Figure("all queries", 9, 0.8, 0.1, 1.0),))
    for checked, message in ((low, "found recall 0.800 of all queries"), (replace(GOOD, figures=()), "found none")):
        built(found, tmp_path, checked=checked)
        with pytest.raises(InputError, match=message):
            open_index(str(tmp_path))


def test_a_manifest_of_another_format_and_a_file_in_the_folders_place_are_refused(
    found: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(found, tmp_path / "index")
    monkeypatch.setattr(manifests, "FORMAT", 2)
    with pytest.raises(InputError, match=r"a manifest of format 2; found .* it is of format 1"):
        open_index(str(tmp_path / "index"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file: expected a folder; found a file. Name another"):
        open_index(str(tmp_path / "file"))


def test_a_build_that_is_ended_before_its_manifest_leaves_the_former_index(
    found: Published, tmp_path: Path, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(found, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    write_index(found, str(tmp_path), GRAPH)
    manifest, build = write_index(found, str(tmp_path), GRAPH)
    real, written = manifests.write_bytes, []

    def end(uri: str, content: bytes) -> None:
        written.append(uri)
        if uri.endswith("/live"):
            raise KeyboardInterrupt
        real(uri, content)

    with monkeypatch.context() as ending:
        ending.setattr(manifests, "write_bytes", end)
        with pytest.raises(KeyboardInterrupt):
            publish(str(tmp_path), build, replace(manifest, certificate=GOOD))
    assert [uri.rpartition("/")[2] for uri in written] == ["manifest.json", "live"]
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(open_index(str(tmp_path)).search(queries, 10).item_ids) == len(queries)
    # The next build that is done keeps the one before it, and removes what the two ended ones have left; nothing else.
    for foreign in ("notes.txt", "v1/table.parquet", "v1-other/table.parquet"):
        (tmp_path / foreign).parent.mkdir(exist_ok=True)
        (tmp_path / foreign).write_text("somebody's")
    built(found, tmp_path)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2 + 2
    assert len(list(tmp_path.rglob("*.parquet"))) == 2
    assert (tmp_path / "notes.txt").exists()


# ---------------------------------------------------------------- what it is built of


def _two_models(rows: pa.Table) -> pa.Table:
    models = pa.array(["model-a"] * (len(rows) - 1) + ["model-b"])
    return rows.set_column(rows.schema.get_field_index("model_id"), "model_id", models)


def _twice(rows: pa.Table) -> pa.Table:
    return pa.concat_tables([rows.slice(0, len(rows) - 1), rows.slice(0, 1)])


def _long(rows: pa.Table) -> pa.Table:
    vectors = np.stack(rows["embedding"].to_pylist()).astype(np.float32)
    vectors[5] *= 3
    return rows.set_column(1, "embedding", to_list_column(vectors))


def _lost(rows: pa.Table) -> pa.Table:
    return rows.slice(1)


@pytest.mark.fault("B11", "loud", "an index of a table with rows of two models, of one item twice, too few, too long")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_two_models, "column model_id: expected model-a alone, which its commit names; found model-a, model-b"),
        (_twice, "column item_id: expected one row an item; found 1 items with several, such as item-"),
        (_long, "column embedding: expected vectors of the length 1; found one of the length 3"),
        (_lost, "expected 50 rows, as the commit of version 0 says; found 49"),
    ],
)
def test_a_table_that_is_no_sound_version_is_not_indexed(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    shop = small_shop(tmp_path, items=50)
    found = shop.publish(rows=change(shop.rows()), count=50)
    with pytest.raises(TableError, match=message):
        write_index(found, str(tmp_path / "index"), GRAPH)


# ---------------------------------------------------------------- the certificate


def exam(found: Published, columns: list[str]) -> tuple[Questions, list]:  # type: ignore[type-arg]
    questions = questions_of(found, [CLICK], 50, ("query_kind", "task"))
    return questions, filters_of((0.5, 0.01, 0.001), found.items(columns), columns)


def test_the_certificate_tells_kinds_tasks_and_filters_apart(index: Index, found: Published) -> None:
    questions, filters = exam(found, ["category", "in_stock"])
    made = certificate(measure(index, published_items(found), questions, filters), questions, filters, 0.9)
    figures = {figure.name: figure for figure in made.figures}
    assert set(figures) == {
        "all queries", "closeup queries", "search queries", "held-out search_click", "0.5 of the items, at random",
        "0.01 of the items, at random", *(name for name in figures if name.startswith(("category", "in_stock"))),
    }  # fmt: skip
    assert (figures["search queries"].queries, figures["held-out search_click"].queries) == (30, 30)
    assert figures["0.5 of the items, at random"].selectivity == pytest.approx(0.5, abs=0.05)
    assert any(name.startswith("in_stock") for name in figures)
    assert made.asked == "queries, held-out ones of search"
    assert 0.9 < made.weakest.recall <= 1
    assert all(figure.milliseconds > 0 for figure in made.figures)
    require_certified(made, "index")
    with pytest.raises(GateError, match=r"index, recall@10: expected at least 1.1 .*; found .* of all queries"):
        require_certified(replace(made, min_recall=1.1), "index")


def test_recall_is_that_of_the_slow_way(shop: Shop, found: Published, tmp_path: Path) -> None:
    """With a graph that hardly links anything, so that there is something to measure."""
    index = built(found, tmp_path, replace(GRAPH, hnsw_m=4, ef_construction=8, ef_search=10))
    questions, filters = exam(found, [])
    made = certificate(measure(index, published_items(found), questions, filters[:1]), questions, filters[:1], 0)
    hits = index.search(questions.vectors, 10).item_ids
    true = [set(nearest(shop, query, 10)) for query in questions.vectors]
    slow = np.mean([len(set(line) & one) / 10 for line, one in zip(hits, true, strict=True)])
    assert made.figures[0].recall == pytest.approx(slow, abs=1e-9)
    assert 0.2 < slow < 0.99


def test_what_an_index_makes_up_does_not_count(shop: Shop, found: Published, index: Index) -> None:
    """The index holds items that the table no longer has, and old vectors of others: it says high scores for them."""
    questions, filters = exam(found, [])
    rows = shop.rows(with_columns=False)
    vectors = np.stack(rows["embedding"].to_pylist()).astype(np.float32)
    moved = np.roll(vectors, 1, axis=0)
    pieces = [(rows.select(["item_id"]), moved)]
    [stale] = measure(index, pieces, questions, filters[:1])
    assert certificate([stale], questions, filters[:1], 0).figures[0].recall < 0.2
    gone = [(rows.select(["item_id"]).slice(0, 1_000), vectors[:1_000])]
    [half] = measure(index, gone, questions, filters[:1])
    assert certificate([half], questions, filters[:1], 0).figures[0].recall < 0.8
    assert np.isneginf(half.true).mean() == pytest.approx(0.5, abs=0.1)


def test_parts_measured_apart_are_the_whole_measured_at_once(found: Published, tmp_path: Path) -> None:
    questions, filters = exam(found, ["category"])
    whole = built(found, tmp_path / "whole", EXACT)
    rows, vectors = whole.shards[0].rows, whole.shards[0].vectors
    cut = []
    for part in (slice(0, 700), slice(700, None)):
        piece = rows.slice(part.start, None if part.stop is None else part.stop - part.start)
        shard = replace(whole.shards[0], rows=piece, vectors=vectors[part])
        index = Index("part", whole.manifest, [shard])
        measured = measure(index, [(piece, vectors[part])], questions, filters)
        cut.append([Measured.from_bytes(one.to_bytes()) for one in measured])
    at_once = measure(whole, published_items(found), questions, filters)
    together = [merged(parts) for parts in zip(*cut, strict=True)]
    for one, other in zip(at_once, together, strict=True):
        assert (one.passing, one.rows) == (other.passing, other.rows)
        for name in ("said", "true", "exact"):
            assert np.allclose(getattr(one, name), getattr(other, name), atol=1e-6)
    assert certificate(together, questions, filters, 0).weakest.recall == 1


def test_without_held_out_pairs_it_asks_what_is_published(tmp_path: Path) -> None:
    shop = small_shop(tmp_path, items=50)
    found = shop.publish()
    DeltaTable(shop.warehouse.table(CLICK.held_out_table)).delete()
    questions = questions_of(found, [CLICK], 20, ("query_kind",))
    assert (len(questions.vectors), questions.asked) == (40, "queries, held-out ones of no kind")
    again = questions_of(found, [CLICK], 20, ("query_kind",))
    assert np.array_equal(questions.vectors, again.vectors)


def test_queries_of_another_model_are_refused(tmp_path: Path) -> None:
    shop = small_shop(tmp_path, items=50)
    shop.model = "model-b"
    shop.write_queries(5)
    shop.model = "model-a"
    with pytest.raises(TableError, match="table query_vectors, column model_id: expected model-a alone"):
        questions_of(shop.publish(), [CLICK], 20, ())


def test_the_manifest_says_what_it_is(found: Published, tmp_path: Path) -> None:
    built(found, tmp_path)
    [file] = tmp_path.glob("*/manifest.json")
    values = json.loads(file.read_text())
    assert values["version"] == found.version
    assert values["build"]["hnsw_m"] == 16
    assert values["columns"] == {"category": "string", "in_stock": "bool", "price_band": "int64"}
    assert values["certificate"]["figures"][0]["recall"] == 1
