"""The three surfaces answer by one index, with the vectors that the batch jobs would have searched with."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, write_deltalake

from itemsage_model.encoders.frozen_text.lsa import fit_lsa
from pipeline import search as command
from retrieval.build_index import write_index
from retrieval.explain import Explanation
from retrieval.home import Engaged
from retrieval.index import load
from retrieval.manifest import Certificate, Figure, publish
from retrieval.shards import BuildSettings
from retrieval.surfaces import Found, Surfaces
from schemas.cells import to_list_column
from schemas.errors import InputError, SettingsError
from schemas.published import PUBLISHED
from schemas.settings import Settings
from schemas.tables import ITEM_EMBEDDINGS, QUERY_EMBEDDINGS
from tests.retrieval import test_query_side as query_side
from tests.retrieval.shop import unit

ITEMS = 300
IDS = [f"P{number:03}" for number in range(ITEMS)]
KNOWN = "a text that no word of the encoder is in"


def rewrite(uri: str, rows: pa.Table, note: dict[str, Any] | None = None) -> int:
    properties = CommitProperties({"userMetadata": json.dumps(note)}) if note else None
    write_deltalake(uri, rows, mode="overwrite", schema_mode="overwrite", commit_properties=properties)
    return int(DeltaTable(uri).version())


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> query_side.Shop:
    """A shop whose search texts are encoded here, and one of whose images is shown by a query."""
    shop = query_side.publish(tmp_path_factory.mktemp("shop"), fit_lsa(query_side.CATALOG, vocabulary_size=2_000))
    layout, before = shop.settings.layout, shop.published
    frozen = unit(np.random.default_rng(1).normal(size=(2, 256)))
    rows = pa.Table.from_batches([*before.queries(), *query_side.query_rows(before, frozen, "closeup")])
    queries = rewrite(layout.table("query_vectors"), rows)
    shown = {"closeup0": "P007", "closeup1": None}
    ids, kinds = rows["query_id"].to_pylist(), rows["query_kind"].to_pylist()
    embedded = pa.table({
        "query_id": ids, "query_kind": kinds, "query_item_id": [shown.get(one) for one in ids],
        "query_embedding": to_list_column(np.zeros((len(ids), 256), np.float32)),
    })  # fmt: skip
    embeddings = rewrite(layout.table(QUERY_EMBEDDINGS.name), embedded)
    note = json.loads(json.dumps(before.note))
    note["made_of"][QUERY_EMBEDDINGS.name] = embeddings
    note[PUBLISHED] |= {"rows": ITEMS, "query_vectors": {"version": queries, "rows": len(rows)}}
    vectors = unit(np.random.default_rng(2).normal(size=(ITEMS, 256)))
    items = {"item_id": IDS, "embedding": to_list_column(vectors), "model_id": [before.model_id] * ITEMS}
    items |= {"in_stock": [number % 3 == 0 for number in range(ITEMS)]}
    rewrite(layout.table(ITEM_EMBEDDINGS.name), pa.table(items), note)
    rewrite(layout.table("items"), pa.table({"item_id": IDS, "title": [f"Lamp {one}" for one in IDS]}))
    texts = [KNOWN if one == "search3" else None for one in ids]
    told = {"query_id": ids, "query_kind": kinds, "text": pa.array(texts, pa.string())}
    rewrite(layout.table("queries"), pa.table(told))
    return shop


def exported(shop: query_side.Shop) -> None:
    folder = shop.settings.index_folder
    manifest, build = write_index(
        shop.published, folder, BuildSettings(hnsw_m=16, ef_construction=60, ef_search=64, exact_rows=100)
    )
    figure = Figure("all queries", 1, 1.0, 1.0, 0.1)
    made = replace(manifest, certificate=Certificate(10, "", 0.9, (figure,)))
    publish(folder, build, made)
    assert len(load(folder, manifest)) == ITEMS


@pytest.fixture(scope="module")
def surfaces(shop: query_side.Shop) -> Surfaces:
    exported(shop)
    return Surfaces.open(shop.settings)


def nearest(surfaces: Surfaces, vector: np.ndarray, k: int, left_out: str = "") -> list[str]:
    vectors, _ = surfaces.index.vectors_of(IDS)
    order = [IDS[row] for row in np.argsort(-(vectors @ vector)) if IDS[row] != left_out]
    return order[:k]


def test_a_text_is_searched_by_the_vector_that_the_batch_jobs_give_it(
    shop: query_side.Shop, surfaces: Surfaces
) -> None:
    for text in ("red mug", "Glas-Laterne", "新款跑鞋"):
        found = surfaces.search(text, k=5)
        expected = shop.batch_vectors([text])[0]
        np.testing.assert_allclose(found.queries[""], expected, atol=1e-5)
        assert [hit.item_id for hit in found.hits] == nearest(surfaces, expected, 5)
        assert found.milliseconds > 0


def test_a_text_of_a_known_query_is_answered_by_its_own_vector(surfaces: Surfaces) -> None:
    own = surfaces.query_vectors(["search3"])["search3"]
    assert [hit.item_id for hit in surfaces.search(KNOWN, k=4).hits] == nearest(surfaces, own, 4)


def test_texts_that_cannot_be_encoded_are_refused_by_name(surfaces: Surfaces) -> None:
    with pytest.raises(InputError, match="closeup text: expected queries of image-1, whose encoder is not here"):
        surfaces.search("red mug", kind="closeup")
    with pytest.raises(InputError, match="a text with a word that the encoder knows; found 'qzxqzx'"):
        surfaces.search("qzxqzx")
    with pytest.raises(InputError, match="query kind: expected one of closeup, search; found home"):
        surfaces.search("red mug", kind="home")


def test_closeup_of_a_query_of_an_item_and_of_a_frozen_vector(shop: query_side.Shop, surfaces: Surfaces) -> None:
    own = surfaces.query_vectors(["closeup0"])["closeup0"]
    assert [hit.item_id for hit in surfaces.closeup("closeup0", k=3).hits] == nearest(surfaces, own, 3)
    # The item that a query shows is asked for by that query; another by its own embedding; neither is an answer.
    assert [hit.item_id for hit in surfaces.closeup(item_id="P007", k=ITEMS).hits] == nearest(
        surfaces, own, ITEMS, "P007"
    )
    (vector,), _ = surfaces.index.vectors_of(["P008"])
    assert [hit.item_id for hit in surfaces.closeup(item_id="P008", k=3).hits] == nearest(surfaces, vector, 3, "P008")
    frozen = np.random.default_rng(5).normal(size=256).astype(np.float32)
    found = surfaces.closeup_of_vector(frozen, "image-1", k=3)
    adapted = shop.adapted(unit(frozen[None]), "closeup")[0]
    assert [hit.item_id for hit in found.hits] == nearest(surfaces, adapted, 3)
    for vector, space in ((frozen, "image-2"), (frozen[:100], "image-1"), (0 * frozen, "image-1")):
        with pytest.raises(InputError, match="closeup vector: expected 256 numbers of image-1"):
            surfaces.closeup_of_vector(vector, space)
    for asked in ({"query_id": "nobody"}, {"item_id": "nobody"}):
        with pytest.raises(InputError, match=r"nobody: expected .*; found none"):
            surfaces.closeup(**asked)


def test_home_leaves_out_what_the_user_has_and_says_what_speaks_for_an_item(surfaces: Surfaces) -> None:
    user = [Engaged("P001", 0.0), Engaged("P200", 3.0), Engaged("gone", 1.0)]
    found = surfaces.home(user, k=20)
    assert len(found.hits) == 20
    assert not {"P001", "P200"} & {hit.item_id for hit in found.hits}
    assert {hit.because_of for hit in found.hits} == {"P001", "P200"} == set(found.queries)
    assert surfaces.home([Engaged("gone", 0.0)]).hits == ()


def test_a_filter_holds_on_every_surface(surfaces: Surfaces) -> None:
    where = {"in_stock": [True]}
    answers = [
        surfaces.search("red mug", 12, where), surfaces.closeup(item_id="P001", k=12, where=where),
        surfaces.home([Engaged("P001", 0)], 12, where),
    ]  # fmt: skip
    for found in answers:
        assert len(found.hits) == 12
        assert all(int(hit.item_id[1:]) % 3 == 0 for hit in found.hits)


@pytest.mark.fault("B12", "loud", "an index of another model under the version's number")
def test_an_index_of_another_model_is_refused(shop: query_side.Shop, surfaces: Surfaces, tmp_path: Path) -> None:
    settings = Settings.model_validate(
        shop.settings.model_dump(mode="json") | {"index": {"folder": str(tmp_path / "index")}}
    )
    manifest = surfaces.index.manifest
    made, build = write_index(shop.published, settings.index_folder, manifest.build)
    publish(settings.index_folder, build, replace(manifest, model_id="another", shards=made.shards))
    with pytest.raises(InputError, match="model_id: expected the model of version 1"):
        Surfaces.open(settings)
    gone, build = write_index(shop.published, settings.index_folder, manifest.build)
    publish(settings.index_folder, build, replace(manifest, version=99, shards=gone.shards))
    with pytest.raises(InputError, match="a version that the log of item_embeddings still has; found version 99"):
        Surfaces.open(settings)


def test_more_than_there_are_is_all_of_them_and_fewer_than_one_is_refused(surfaces: Surfaces) -> None:
    """Room is made for what can be found, and not for a number that somebody has typed."""
    most = 10**12
    everything = [surfaces.search("red mug", k=most), surfaces.closeup("closeup0", k=most)]
    assert {len(found.hits) for found in everything} == {ITEMS}
    others = [surfaces.closeup(item_id="P008", k=most), surfaces.home([Engaged("P008", 0)], k=most)]
    assert {len(found.hits) for found in others} == {ITEMS - 1}
    for k in (0, -3):
        with pytest.raises(InputError, match=f"k: expected at least 1; found {k}"):
            surfaces.home([Engaged("P008", 0)], k=k)


def test_what_no_answer_would_be_right_for_is_refused(surfaces: Surfaces) -> None:
    for text in ("", " \n"):
        with pytest.raises(InputError, match="search text: expected a text"):
            surfaces.search(text)
    with pytest.raises(InputError, match="age of P002: expected days since"):
        surfaces.home([Engaged("P001", 1), Engaged("P002", float("nan"))])
    with pytest.raises(InputError, match="query kind: expected one of closeup, search; found close-up"):
        surfaces.closeup(item_id="P007", kind="close-up")


def asked(surfaces: Surfaces, *arguments: str) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.search(surfaces.settings, parser.parse_args(arguments))


def test_the_command_prints_scores_titles_and_milliseconds(
    surfaces: Surfaces, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked(surfaces, "--text", "red mug", "--k", "2", "--where", "in_stock=true,")
    said = capsys.readouterr().out
    assert "search  red mug  (" in said
    assert " ms, version 1, 300 items)" in said
    assert said.count("  Lamp P") == 2
    (tmp_path / "vector.json").write_text(json.dumps([1.0] * 256))
    asked(surfaces, "--vector", str(tmp_path / "vector.json"), "--space", "image-1", "--k", "1")
    asked(surfaces, "--home", "P001:2,P002", "--k", "3")
    assert "as of Lamp P00" in capsys.readouterr().out
    asked(surfaces, "--samples", "1", "--k", "1")
    assert KNOWN in capsys.readouterr().out
    (tmp_path / "vector.json").write_text("no list")
    for arguments in (["--vector", str(tmp_path / "vector.json")], ["--text", "a", "--where", "in_stock=maybe"]):
        with pytest.raises(SettingsError, match="expected a"):
            asked(surfaces, *arguments)


def test_the_command_takes_no_argument_that_means_nothing(
    surfaces: Surfaces, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["--samples", "0"], ["--samples", "-1"], ["--text", "red mug", "--k", "0"]):
        with pytest.raises(SystemExit):
            asked(surfaces, *arguments)
        assert "expected a number, at least 1; found" in capsys.readouterr().err
    for arguments in (
        ["--samples", "1", "--where", "in_stock=true"], ["--home", "P001", "--kind", "search"],
        ["--query", "closeup0", "--kind", "search"], ["--text", "red mug", "--space", "lsa-1"],
    ):  # fmt: skip
        with pytest.raises(SettingsError, match=f"{arguments[2]}: {arguments[0]} takes no notice of it"):
            asked(surfaces, *arguments)
    with pytest.raises(SettingsError, match=r'--where in_stock="true: expected values such as'):
        asked(surfaces, "--text", "red mug", "--where", 'in_stock="true')


def test_a_filter_named_twice_has_the_values_of_both(surfaces: Surfaces, capsys: pytest.CaptureFixture[str]) -> None:
    counts = []
    for more in ([], ["--where", "in_stock=false"]):
        asked(surfaces, "--text", "red mug", "--k", str(ITEMS), "--where", "in_stock=true", *more)
        counts.append(capsys.readouterr().out.count("  Lamp P"))
    assert counts == [ITEMS / 3, ITEMS]


def test_a_value_with_a_comma_stands_in_quotes() -> None:
    index = SimpleNamespace(manifest=SimpleNamespace(columns={"brand": "string"}))
    told = command._filter(SimpleNamespace(index=index), 'brand="Calden, Ltd",the "best",')  # type: ignore[arg-type]
    assert told == ("brand", ["Calden, Ltd", 'the "best"', None])


def test_items_of_the_home_surface_that_nobody_knows_are_named(
    surfaces: Surfaces, capsys: pytest.CaptureFixture[str]
) -> None:
    asked(surfaces, "--home", "P001:2, nobody:3,P002", "--k", "3")
    said = capsys.readouterr().out
    assert "not in the index, and passed over: nobody\n" in said
    assert said.count("  Lamp P") == 3
    with pytest.raises(SettingsError, match="--home P001:yesterday: expected days since the user took it"):
        asked(surfaces, "--home", "P001:yesterday")


def test_an_id_with_a_colon_is_told_from_an_age_by_the_index() -> None:
    def vectors_of(ids: list[str]) -> tuple[None, np.ndarray]:
        return None, np.array([one in ("shop:7", "P1") for one in ids])

    of_shop = SimpleNamespace(index=SimpleNamespace(vectors_of=vectors_of))
    found = command._engaged(of_shop, "shop:7,shop:7:2,P1:3,P1")  # type: ignore[arg-type]
    assert found == [Engaged("shop:7", 0), Engaged("shop:7", 2), Engaged("P1", 3), Engaged("P1", 0)]


def test_it_is_said_that_another_version_is_live_than_the_index_holds(
    shop: query_side.Shop, surfaces: Surfaces, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a rollback, which the index has not followed."""
    asked(surfaces, "--text", "red mug")
    assert "The index holds" not in capsys.readouterr().out
    held = surfaces.published
    with monkeypatch.context() as later:
        later.setattr(command, "live", lambda _: replace(held, version=held.version + 1))
        asked(surfaces, "--text", "red mug")
    assert f"The index holds version {held.version}; live is {held.version + 1}" in capsys.readouterr().out


def test_shares_of_the_home_surface_say_of_which_score_they_are(
    surfaces: Surfaces, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The score that is printed is merged of several; the shares add up to that with one of the user's items."""

    def why(_: Surfaces, found: Found) -> dict[str, Explanation]:
        return {hit.item_id: Explanation(0.5, 0.1, {"title": 0.4}, True) for hit in found.hits}

    monkeypatch.setattr(Surfaces, "why", why)
    asked(surfaces, "--home", "P001", "--k", "1", "--why")
    assert "      score with Lamp P001:\n      +0.4000  title\n" in capsys.readouterr().out
    asked(surfaces, "--item", "P001", "--k", "1", "--why")
    assert "score with" not in capsys.readouterr().out


def test_samples_are_as_many_of_each_kind_as_are_asked_for(surfaces: Surfaces) -> None:
    everything = Counter(row["query_kind"] for row in command._queries(surfaces, 10**6))
    for most in (1, 2):
        some = Counter(row["query_kind"] for row in command._queries(surfaces, most))
        assert some == {kind: min(count, most) for kind, count in everything.items()}


def test_a_reader_who_has_seen_enough_is_no_error() -> None:
    """As of `itemsage search ... | head -1`."""
    code = "from pipeline.search import _print\nfor _ in range(9):\n    _print(['a line'] * 1_000)"
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b"")
