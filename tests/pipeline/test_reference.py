"""The generated pages of docs/ say what the code says."""

from __future__ import annotations

import sys
from typing import get_args

import pytest

from pipeline import reference
from schemas import graph_tables, picture_tables, query_pair_tables, tables
from schemas.columns import Kind, Table

PAGES = reference.pages()
MODULES = (tables, picture_tables, query_pair_tables, graph_tables)
TABLES = list(dict.fromkeys(one for module in MODULES for one in vars(module).values() if isinstance(one, Table)))
KEYS = [(name, key) for name, section in reference.sections().items() for key in section.model_fields]

TOML = """\
# Of the file.

# Of the section.
[model]
# Width and layers,
# in this order.
width = 512
layers = 1

heads = 8

# One entry a task.
# [[tasks]]
# query_kind = "search"
"""


@pytest.mark.parametrize("path", PAGES)
def test_the_page_in_docs_is_what_the_code_says(path: str):
    found = (reference.ROOT / path).read_text(encoding="utf-8")
    assert found == PAGES[path], f"{path} is stale: run `{reference.COMMAND}` and commit it"
    assert reference.COMMAND in found.splitlines()[0]


def test_every_table_and_column_is_on_its_page():
    text = PAGES["docs/tables.md"]
    for table in TABLES:
        heading = f"### {reference.escaped(table.name)}\n"
        assert text.count(heading) == 1, f"{table.name} is not on the page, or is there twice"
        part = text.partition(heading)[2].partition("\n### ")[0]
        missing = [column.name for column in table.columns if f"\n| `{column.name}` | {column.kind}" not in part]
        assert not missing, f"{table.name}: {missing}"
    assert sum(len(group) for group in reference.grouped_tables().values()) == len(TABLES)


@pytest.mark.parametrize(("name", "key"), KEYS)
def test_every_settings_key_is_on_its_page(name: str, key: str):
    heading = f"## [[{name}]]\n" if name in reference.LISTS else f"## [{name}]\n"
    part = PAGES["docs/settings.md"].partition(heading)[2].partition("\n## ")[0]
    assert f"\n| `{key}` | " in part


def test_every_kind_of_column_is_explained():
    assert set(reference.KINDS) == set(get_args(Kind))


def test_a_comment_belongs_to_the_keys_that_stand_under_it():
    explained = reference.explanations(TOML)
    assert explained.sections == {"model": "Of the section.", "tasks": "One entry a task."}
    assert explained.keys == {
        ("model", "width"): "Width and layers, in this order.",
        ("model", "layers"): "Width and layers, in this order.",
        ("model", "heads"): "",
        ("tasks", "query_kind"): "",
    }
    assert explained.first["model", "layers"] == "width"
    assert explained.first["model", "heads"] == "heads"


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 20}, "whole number, 1 to 20"),
        ({"type": "number", "exclusiveMinimum": 0}, "number, above 0"),
        ({"type": "boolean"}, "`true` or `false`"),
        ({"type": "array", "items": {"enum": ["a", "b"]}}, 'list of `"a"` or `"b"`'),
        ({"type": "string", "const": "a"}, '`"a"`'),
        ({"type": "string", "minLength": 1}, "text, not empty"),
    ],
)
def test_what_is_legal_is_said_in_words(schema: dict[str, object], words: str):
    assert reference.legal(schema) == words


def test_a_name_in_angle_brackets_is_no_tag_and_code_stays():
    assert reference.escaped("at <uri>, or `<uri>`") == "at &lt;uri>, or `<uri>`"


def test_check_names_the_stale_page(monkeypatch, capsys):
    monkeypatch.setattr(reference, "stale_pages", lambda: ["docs/tables.md"])
    monkeypatch.setattr(sys, "argv", ["reference", "--check"])
    with pytest.raises(SystemExit) as exit_:
        reference.main()
    assert exit_.value.code == 1
    assert "docs/tables.md" in capsys.readouterr().out


def test_a_page_that_is_changed_or_missing_is_stale(tmp_path, monkeypatch):
    texts = {"changed.md": "new", "same.md": "same", "missing.md": "new"}
    (tmp_path / "changed.md").write_text("old")
    (tmp_path / "same.md").write_text("same")
    monkeypatch.setattr(reference, "ROOT", tmp_path)
    monkeypatch.setattr(reference, "pages", lambda: texts)
    assert reference.stale_pages() == ["changed.md", "missing.md"]
