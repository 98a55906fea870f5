"""Places: what counts as below a root, whatever links, `..`, schemes and escapes a name of it has."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.places import is_within, same_scheme


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A root `shop` with a folder `in`, a folder `shop-else` beside it, and links from one to the other."""
    for name in ("shop/in", "shop-else/in"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "shop" / "leads-out").symlink_to(tmp_path / "shop-else")
    (tmp_path / "leads-in").symlink_to(tmp_path / "shop")
    return tmp_path


@pytest.mark.parametrize(
    "place", ["shop", "shop/in", "shop/", "shop/not/there/yet", "leads-in/in", "shop-else/../shop/in"]
)
def test_a_place_below_the_root_is_within_it(disk: Path, place: str) -> None:
    root = [str(disk / "shop")]
    assert is_within(f"{disk}/{place}", root)
    assert is_within(f"file://{disk}/{place}", root)


@pytest.mark.parametrize(
    "place", ["", "shop-else", "shop/../shop-else", "shop/leads-out", "shop/leads-out/in", "shop/.."]
)
def test_a_place_that_leads_out_is_not(disk: Path, place: str) -> None:
    root = [str(disk / "shop")]
    assert not is_within(f"{disk}/{place}", root)
    assert not is_within(f"file:{disk}/{place}", root)
    assert is_within(f"{disk}/{place}", [*root, str(disk)])


def test_an_escape_in_a_uri_is_within_nothing(disk: Path) -> None:
    assert not is_within(f"file://{disk}/shop/%2e%2e/shop-else", [str(disk / "shop")])
    assert not is_within("s3://lake/shop/%2e%2e/else", ["s3://lake/shop"])


def test_a_relative_path_is_below_the_folder_it_is_relative_to(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(disk)
    assert is_within("shop/in", ["shop"])
    assert is_within("shop/in", ["."])
    assert not is_within("../elsewhere", ["."])


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("s3://lake/shop", True),
        ("s3a://lake/shop/items/", True),
        ("S3://lake/shop/items", True),
        ("s3://lake/shop-else", False),
        ("s3://lake/shop/../else", False),
        ("s3://lake/else/../shop", False),
        ("s3://lake/shop//items", False),
        ("s3://another/shop", False),
        ("gs://lake/shop", False),
        ("/lake/shop", False),
    ],
)
def test_an_object_store_has_neither_links_nor_steps_up(place: str, expected: bool) -> None:
    assert is_within(place, ["s3://lake/shop"]) is expected


def test_a_bucket_is_a_root_too() -> None:
    assert is_within("s3://lake/any/where", ["s3://lake"])
    assert is_within("s3://lake/any/where", ["s3://lake/"])
    assert not is_within("s3://lakeside/any", ["s3://lake"])


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ("file:/a/b", "/a/b"),
        ("file:///a/b", "/a/b"),
        ("s3a://lake/a", "s3://lake/a"),
        ("s3n://lake/a", "s3://lake/a"),
        ("s3://lake/a", "s3://lake/a"),
        ("abfss://c@a.dfs/x", "abfss://c@a.dfs/x"),
        ("/a/b", "/a/b"),
        ("a/b", "a/b"),
    ],
)
def test_one_place_has_one_scheme(given: str, plain: str) -> None:
    assert same_scheme(given) == plain
