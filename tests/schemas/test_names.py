"""Names of tables: which texts are such, where they lie without Spark, and that no credential is written or said."""

from __future__ import annotations

import json
import shutil
import socket
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.errors import DeadlineError, InputError
from schemas.names import (
    Located,
    is_name,
    is_schema_name,
    locate,
    located,
    parts_of,
    quoted,
    read_note,
    warehouse_named,
    write_note,
)
from schemas.unity import VARIABLE, ask_unity, is_safe
from schemas.warehouse import Warehouse
from tests.schemas.unity_server import PATH, Unity, serving

TOKEN = "dapi-not-to-be-seen"


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(str(tmp_path / "warehouse"))


@pytest.fixture
def unity(monkeypatch: pytest.MonkeyPatch) -> Iterator[Unity]:
    monkeypatch.delenv(VARIABLE, raising=False)
    delta = {"storage_location": "s3://lake/items", "data_source_format": "DELTA", "table_type": "EXTERNAL"}
    with serving(Unity({"main.shop.items": delta})) as server:
        yield server


@pytest.mark.parametrize("text", ["main.shop.items", "shop.items", "spark_catalog.`my-shop`.items", "`a b`.`c.d`"])
def test_these_are_names(text: str) -> None:
    assert is_name(text)


@pytest.mark.parametrize(
    "text",
    ["", "items", "./shop.items", "s3://lake/shop.items", "/lake/shop.items", "a.b.c.d", "shop.", ".items", "shop..a",
     "my-shop.items", "shop.items\n", "`a/b`.items", "`a\x1bb`.items", "dbfs:shop.items", "shop.`a`b`", "../shop.a"],
)  # fmt: skip
def test_these_are_none(text: str) -> None:
    assert not is_name(text)


def test_what_lies_on_the_disk_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_name("shop.items")
    (tmp_path / "shop.items").mkdir()
    assert not is_name("shop.items")


def test_a_name_has_parts() -> None:
    assert parts_of("main.`my shop.v2`.items") == ("main", "my shop.v2", "items")
    assert quoted(*parts_of("main.shop.items")) == "`main`.`shop`.`items`"
    assert [is_schema_name(text) for text in ("main.shop", "shop", "a.b.c", "./shop", "s3://b/x", "")] == [
        True, True, False, False, False, False
    ]  # fmt: skip


def test_what_was_written_down_is_found_again_after_the_warehouse_has_moved(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    inside = Located("spark_catalog.shop.items", warehouse.table("items"), "delta")
    outside = Located("shop.queries", "/lake/queries", "parquet")
    for found in (inside, outside):
        write_note(warehouse, found)
        assert locate(found.name, warehouse) == found.uri
    shutil.move(warehouse.uri, tmp_path / "moved")
    moved = Warehouse(str(tmp_path / "moved"))
    assert locate(inside.name, moved) == moved.table("items")
    assert locate(outside.name, moved) == "/lake/queries"


def test_names_that_differ_in_a_dot_alone_do_not_share_a_file(warehouse: Warehouse) -> None:
    names = ("a.b.c", "`a.b`.c", "a.`b.c`", "`a b`.c", "`a-b`.c")
    for name in names:
        write_note(warehouse, Located(name, f"/lake/{name.replace('`', '')}", "delta"))
    assert len({read_note(warehouse, name) for name in names}) == len(names)
    assert len(list(Path(warehouse.place("_names")).iterdir())) == len(names)


def test_a_damaged_note_is_none(warehouse: Warehouse) -> None:
    write_note(warehouse, Located("shop.items", "/lake/items", "delta"))
    (file,) = Path(warehouse.place("_names")).iterdir()
    for text in (file.read_text().replace("/lake/items", "/lake/other"), "", "[]", '{"sha256": ""}'):
        file.write_text(text)
        assert read_note(warehouse, "shop.items") is None
    write_note(warehouse, Located("shop.items", "/lake/items", "delta"))
    assert locate("shop.items", warehouse) == "/lake/items"


def test_a_name_that_nobody_knows_is_refused_with_its_cure(warehouse: Warehouse, unity: Unity) -> None:
    cure = r"found none\. Run `itemsage names` .* write \./ before it"
    with pytest.raises(
        InputError, match=rf"table shop\.items: expected its place, at .*_names/shop\.items-\w+\.json; {cure}"
    ):
        locate("shop.items", warehouse)
    with pytest.raises(InputError, match=f"or in Unity Catalog at {unity.uri}; found none"):
        locate("main.shop.queries", warehouse, unity.uri)


@pytest.mark.parametrize(
    ("location", "kind", "found"),
    [
        ("/lake/items", "CSV", "csv"),
        ("", "DELTA", "a view, or a table without files of its own"),
        ("", "", "a view, or a table without files of its own"),
        ("s3://key:secret@lake/items", "DELTA", r"a key or a password in its location, s3://\*\*\*@lake/items"),
        ("/lake/50%/items", "DELTA", "one at /lake/50%/items. not every engine"),
    ],
)
def test_what_cannot_be_read_by_all_is_refused(location: str, kind: str, found: str) -> None:
    with pytest.raises(
        InputError, match=f"table shop.items: expected a Delta or Parquet table; found {found}"
    ) as caught:
        located("shop.items", location, kind)
    assert "secret" not in str(caught.value)


def test_unity_catalog_says_where_a_table_lies(warehouse: Warehouse, unity: Unity) -> None:
    assert locate("main.shop.items", warehouse, unity.uri) == "s3://lake/items"
    unity.tables["main.my shop.items"] = {"storage_location": "file:///lake/items", "data_source_format": "PARQUET"}
    assert locate("main.`my shop`.items", warehouse, f"{unity.uri}/") == "/lake/items"
    assert unity.asked == [f"{PATH}main.shop.items", f"{PATH}main.my%20shop.items"]
    assert not Path(warehouse.place("_names")).exists()


def test_what_unity_catalog_does_not_know_spark_may_have_said(warehouse: Warehouse, unity: Unity) -> None:
    for name in ("spark_catalog.shop.items", "shop.items"):
        write_note(warehouse, Located(name, "/lake/items", "delta"))
        assert locate(name, warehouse, unity.uri) == "/lake/items"
    assert unity.asked == [f"{PATH}spark_catalog.shop.items"]  # of two parts it has none
    write_note(warehouse, Located("main.shop.items", "/lake/of/yesterday", "delta"))
    assert locate("main.shop.items", warehouse, unity.uri) == "s3://lake/items"


def test_the_token_comes_from_the_environment_and_goes_nowhere_else(
    warehouse: Warehouse, unity: Unity, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    unity.token = TOKEN
    refused = rf"main\.shop\.items: expected leave to see the table; found HTTP 403, without a token\. Into {VARIABLE}"
    with pytest.raises(InputError, match=refused):
        locate("main.shop.items", warehouse, unity.uri)
    monkeypatch.setenv(VARIABLE, f"{TOKEN}\n")
    assert locate("main.shop.items", warehouse, unity.uri) == "s3://lake/items"
    assert unity.tokens == ["", f"Bearer {TOKEN}"]
    said = []
    for wrong in (f"{TOKEN}\r\nX-Other: 1", f"{TOKEN}é", f"another-{TOKEN}"):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(InputError) as caught:
            locate("main.shop.items", warehouse, unity.uri)
        said.append("".join(traceback.format_exception(caught.value)))
    assert [TOKEN in text for text in (*said, *capfd.readouterr())] == [False] * 5
    assert not Path(warehouse.uri).exists()


def test_a_redirection_does_not_take_the_token_elsewhere(
    warehouse: Warehouse, unity: Unity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, TOKEN)
    unity.status = 302
    with pytest.raises(
        InputError, match=r"expected a table as JSON; found HTTP 302, .* that are no table\. Correct catalog"
    ):
        locate("main.shop.items", warehouse, unity.uri)
    assert unity.asked == [f"{PATH}main.shop.items"]


def test_a_server_that_is_at_fault_is_asked_again_by_whoever_retries(warehouse: Warehouse, unity: Unity) -> None:
    unity.status = 503
    with pytest.raises(DeadlineError, match="found HTTP 503"):
        locate("main.shop.items", warehouse, unity.uri)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, and nobody listens
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(DeadlineError, match=r"within 30 s; found .*refused"):
            ask_unity(uri, ("main", "shop", "items"))


def test_an_answer_that_is_no_table_is_refused(warehouse: Warehouse, unity: Unity) -> None:
    unity.status = 200
    with pytest.raises(InputError, match=r"found HTTP 200, 36 bytes that are no table\. Correct catalog\.unity_uri"):
        locate("main.shop.items", warehouse, unity.uri)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("https://example.org", True),
        ("https://example.org:8443/base", True),
        ("http://127.0.0.1:8080", True),
        ("http://[::1]:8080", True),
        ("http://localhost:8080", True),
        ("http://example.org", False),
        ("http://localhost.example.org", False),
        ("http://127.0.0.1.example.org", False),
        ("ftp://127.0.0.1", False),
        ("https://", False),
        ("example.org", False),
    ],
)
def test_a_token_goes_over_tls_or_to_this_machine(uri: str, expected: bool) -> None:
    assert is_safe(uri) is expected


def test_a_reader_finds_a_warehouse_by_the_name_of_its_schema(unity: Unity) -> None:
    unity.tables["main.itemsage.item_embeddings"] = {
        "storage_location": "s3a://lake/itemsage/item_embeddings", "data_source_format": "DELTA"
    }  # fmt: skip
    assert warehouse_named("main.itemsage", unity.uri).table("query_vectors") == "s3://lake/itemsage/query_vectors"
    with pytest.raises(
        InputError, match=r"table `main`\.`other`\.`item_embeddings`: expected a table in Unity Catalog"
    ):
        warehouse_named("main.other", unity.uri)


def test_a_note_holds_nothing_but_name_place_and_format(warehouse: Warehouse) -> None:
    write_note(warehouse, Located("shop.items", "/lake/items", "delta"))
    (file,) = Path(warehouse.place("_names")).iterdir()
    assert set(json.loads(file.read_text())) == {"name", "uri", "format", "sha256"}
