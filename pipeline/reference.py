"""Two pages of docs/ made from the code: docs/tables.md and docs/settings.md.

    python -m pipeline.reference            writes both pages
    python -m pipeline.reference --check    writes nothing; exit code 1 where a page is not what the code says

Tables and stages come from `schemas/tables.py` and `schemas/stages.py`. Of a settings key, default and range come from
the class of its section in `schemas/settings/`, and the explanation from the comment above it in `pipeline.toml`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pipeline.commands import ROOT
from schemas import graph_tables, picture_tables, query_pair_tables, tables
from schemas.columns import Column, Kind, Table
from schemas.settings import InputSettings, Section, Settings
from schemas.stages import BESIDE, MAKE_DEMO_WORLD, OPTIONAL, WHOLE, is_among, maker_of

COMMAND = "python -m pipeline.reference"

_DECLARED_IN = (tables, picture_tables, query_pair_tables, graph_tables)
"""Where tables are declared; what one has from the other counts once."""

LISTS = ("tasks", "negatives", "canaries")
"""Sections of which the settings file may have several."""

KINDS: dict[Kind, str] = {
    "string": "a text",
    "int32": "a 32-bit integer; an input may have any other, and a number that does not fit counts as null",
    "int64": "a 64-bit integer; an input may have a shorter one",
    "float32": "a 32-bit float",
    "float64": "a 64-bit float; an input may have a float32",
    "boolean": "true or false",
    "timestamp": "an instant, with a time zone; stored in microseconds, UTC",
    "binary": "packed little-endian numbers; the column's text says which",
    "vector": "a list of float32; an input may have a list of float64",
    "strings": "a list of texts; an input may have a single text",
}
"""What each kind of column is, and what else is taken for it."""


def pages() -> dict[str, str]:
    """Both pages: path below the root of the project -> Markdown text."""
    comments = (ROOT / "pipeline.toml").read_text(encoding="utf-8")
    return {"docs/tables.md": tables_page(), "docs/settings.md": settings_page(comments)}


# ---------------------------------------------------------------- tables


def tables_page() -> str:
    """Every declared table: what one row is, its key, who writes and reads it, its columns."""
    lines = [*_heading("Tables", "`schemas/tables.py` and `schemas/stages.py`")]
    lines += ["A table lies at `<warehouse>/<table name>`; `<task>` stands for the name of each task."]
    lines += ["An input table may lie elsewhere: `[inputs]` of the settings says where.", ""]
    lines += ["What the kinds of columns mean:", "", *markdown_table(["kind", "what it is"], list(KINDS.items())), ""]
    for heading, group in grouped_tables().items():
        lines += [f"## {heading}", ""]
        for table in group:
            lines += [*_table_section(table), ""]
    return "\n".join(lines).rstrip() + "\n"


def grouped_tables() -> dict[str, list[Table]]:
    """Heading -> tables, in the order of their declaration."""
    values = [value for module in _DECLARED_IN for value in vars(module).values() if isinstance(value, Table)]
    declared = list(dict.fromkeys(values))
    made = [table for table in declared if maker_of(table.name)]
    inputs = [table for table in declared if table.name in InputSettings.model_fields]
    of_all = [tables.RUNS]
    others = [table for table in declared if table not in (*made, *inputs, *of_all)]
    return {
        "Inputs: the shop's own tables": inputs, "Written by the jobs": made, "Written by whoever runs a stage": of_all,
        "Only in the demo": others,
    }  # fmt: skip


def _table_section(table: Table) -> list[str]:
    readers = [f"`{stage.name}`" for stage in (*WHOLE, *BESIDE) if is_among(table.name, stage.reads)]
    key = ", ".join(f"`{name}`" for name in table.key) or "none"
    return [
        f"### {escaped(table.name)}", "",
        f"- One row is: {escaped(table.one_row_is)}.",
        f"- Key: {key}.",
        f"- Written by {_writer(table)}.",
        f"- Read by {', '.join(readers) or 'no stage'}.", "",
        *markdown_table(["column", "kind", "may be missing", "what it is"], [_column_row(c) for c in table.columns]),
    ]  # fmt: skip


def _writer(table: Table) -> str:
    if maker := maker_of(table.name):
        return f"`{maker.name}`"
    if table is tables.RUNS:
        return "every stage, when it has ended"
    demo = f"`{MAKE_DEMO_WORLD.name}`"
    if table.name not in InputSettings.model_fields:
        return demo
    or_by = next(
        (f", or by `{stage.name}` where it runs" for stage in OPTIONAL if is_among(table.name, stage.writes)), ""
    )
    return f"the shop{or_by}; in the demo by {demo}"


def _column_row(column: Column) -> tuple[str, ...]:
    missing = "the column, or a value" if column.optional else "a value" if column.nullable else "no"
    is_fixed = column.shape and min(column.shape) > 0
    kind = f"{column.kind} of {' x '.join(map(str, column.shape))}" if is_fixed else column.kind
    return f"`{column.name}`", kind, missing, column.doc


# ---------------------------------------------------------------- settings


@dataclass(frozen=True)
class Explained:
    """What the comments of pipeline.toml say.

    Attributes:
        sections: Section -> the comment above its header.
        keys: (section, key) -> the comment above the key, or above the first of the keys that stand with it.
        first: (section, key) -> the first key under the same comment.
    """

    sections: dict[str, str]
    keys: dict[tuple[str, str], str]
    first: dict[tuple[str, str], str]


def settings_page(toml: str) -> str:
    """Every settings key: its default, what is legal and what it means.

    Args:
        toml: The text of pipeline.toml.
    """
    explained = explanations(toml)
    lines = [*_heading("Settings", "`pipeline.toml` and `schemas/settings/`")]
    lines += ["`pipeline.toml` holds all of them, to be copied. A key that is left out has the default shown here;"]
    lines += ["a key without one must be given. `--set section.key=value` overrides one key for one run."]
    lines += ["Some values exclude each other: such a file is refused with a message that says what to change.", ""]
    lines += ["## At the top of the file", "", *_keys_table("", Settings, explained), ""]
    for name, section in sections().items():
        heading = f"## [[{name}]]" if name in LISTS else f"## [{name}]"
        lines += [heading, "", escaped(_first_sentence(section)), ""]
        if text := explained.sections.get(name):
            lines += [escaped(text), ""]
        lines += [*_keys_table(name, section, explained), ""]
    return "\n".join(lines).rstrip() + "\n"


def sections() -> dict[str, type[Section]]:
    """Section name -> its class, in the order of `Settings`."""
    found: dict[str, type[Section]] = {}
    for name, field in Settings.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation)[:1])
        section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)
        if section is not None:
            found[name] = section
    return found


def explanations(toml: str) -> Explained:
    """Read the comments of pipeline.toml; the keys of `[[tasks]]` and `[[negatives]]` are comments there themselves."""
    explained = Explained({}, {}, {})
    section, first, comment, is_open = "", "", "", False
    for line in toml.splitlines():
        if header := re.fullmatch(r"(# )?\[{1,2}(\w+)\]{1,2}", line):
            section = header[2]
            explained.sections[section], comment, is_open = comment, "", False
        elif key := re.match(r"(\w+) = " if section not in LISTS else r"# (\w+) = ", line):
            first = first if is_open else key[1]
            explained.keys[section, key[1]], explained.first[section, key[1]], is_open = comment, first, True
        elif line.startswith("#"):
            comment, is_open = (line[1:].strip() if is_open or not comment else f"{comment} {line[1:].strip()}"), False
        else:
            comment, is_open = "", False
    return explained


def _keys_table(name: str, section: type[Section], explained: Explained) -> list[str]:
    schema = section.model_json_schema()["properties"]
    rows = []
    for key, field in section.model_fields.items():
        if section is Settings and key in sections():
            continue
        default = "must be given" if field.is_required() else f"`{_toml(field.default)}`"
        first = explained.first.get((name, key), key)
        text = explained.keys.get((name, key), "")
        text = f"see `{first}`" if text and first != key else text
        rows.append((f"`{key}`", default, legal(schema[key]), text))
    return markdown_table(["key", "default", "what is legal", "what it means"], rows)


def legal(schema: dict[str, Any]) -> str:
    """What a key's JSON schema allows, in words."""
    if choices := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return " or ".join(f'`"{choice}"`' for choice in choices)
    if kinds := schema.get("anyOf"):
        return " or ".join(legal(kind) for kind in kinds)
    if schema["type"] == "array":
        return f"list of {legal(schema['items'])}"
    if schema["type"] == "string":
        return _legal_text(schema)
    if schema["type"] == "object":
        return f"table of {legal(schema['additionalProperties'])}"
    nouns = {"boolean": "`true` or `false`", "integer": "whole number", "number": "number"}
    return _range(nouns[schema["type"]], schema)


def _legal_text(schema: dict[str, Any]) -> str:
    if schema.get("format") == "date":
        return "date, such as 2026-03-01"
    if "pattern" in schema:
        return f"text that matches `{schema['pattern']}`"
    return "text, not empty" if schema.get("minLength") else "text"


def _range(noun: str, schema: dict[str, Any]) -> str:
    if "minimum" in schema and "maximum" in schema:
        return f"{noun}, {schema['minimum']} to {schema['maximum']}"
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    bounds = [f"{word} {schema[name]}" for name, word in words.items() if name in schema]
    return ", ".join([noun, *bounds])


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_toml(one) for one in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_toml(one)}" for name, one in value.items()) + "}"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _first_sentence(section: type[Section]) -> str:
    return re.split(r"(?<=\.)\s", section.__doc__ or "", maxsplit=1)[0]


# ---------------------------------------------------------------- both


def _heading(title: str, sources: str) -> tuple[str, ...]:
    return f"Generated by `{COMMAND}` from {sources}: edit those, not this page.", "", f"# {title}", ""


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    cells = [[escaped(cell).replace("|", "\\|") for cell in row] for row in (head, ["---"] * len(head), *rows)]
    return [f"| {' | '.join(row)} |" for row in cells]


def escaped(text: str) -> str:
    """A text whose `<name>` Markdown does not take for a tag; what stands between backticks stays."""
    parts = text.split("`")
    return "`".join(part.replace("<", "&lt;") if number % 2 == 0 else part for number, part in enumerate(parts))


def stale_pages() -> list[str]:
    """Paths of the pages that are not what the code says."""
    return [
        path for path, text in pages().items()
        if not (ROOT / path).is_file() or (ROOT / path).read_text(encoding="utf-8") != text
    ]  # fmt: skip


def main() -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a page is stale")
    if parser.parse_args().check:
        stale = stale_pages()
        for path in stale:
            print(f"error: {path} is not what the code says; run `{COMMAND}`")
        sys.exit(1 if stale else 0)
    for path, text in pages().items():
        (ROOT / path).write_text(text, encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
