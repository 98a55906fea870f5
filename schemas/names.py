"""Tables by the names that a catalog gives them, `catalog.schema.table` or `schema.table`, and where they lie.

pyarrow, deltalake and Petastorm open places, not names. So a name is resolved to its place whenever it is used:

- In a job, by Spark's own catalog, whatever plugin that is (Hive metastore, Unity Catalog): jobs/runtime/catalog.py.
  The answer is written to `<warehouse>/_names/`: name, place, format and a sha256 of these, nothing else.
- In a Python process, by Unity Catalog's REST API where `catalog.unity_uri` names a server that knows the table
  (schemas/unity.py); else by what the last job, or `itemsage names`, has written down.

Credentials are nobody's business here: storage is opened with those of the environment, as by its path.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, replace

from schemas.errors import InputError
from schemas.places import opened_by_all, same_scheme
from schemas.plain_text import holds_secret
from schemas.storage import read_bytes, write_bytes
from schemas.tables import ITEM_EMBEDDINGS
from schemas.unity import ask_unity
from schemas.warehouse import Warehouse

_PART = r"(?:\w+|`[^`/:]+`)"
_NAME = re.compile(rf"{_PART}(?:\.{_PART}){{1,2}}")
_SCHEMA = re.compile(rf"{_PART}(?:\.{_PART})?")

_FORMATS = ("delta", "parquet")


@dataclass(frozen=True)
class Located:
    """Where a named table lies.

    Attributes:
        name: As the settings have it.
        uri: The place, as every engine here opens it.
        format: delta or parquet.
    """

    name: str
    uri: str
    format: str


def is_name(text: str) -> bool:
    """Whether a text names a table instead of a place; what lies on this disk under it is a place."""
    return bool(_NAME.fullmatch(text)) and text.isprintable() and not os.path.lexists(text)


def is_schema_name(text: str) -> bool:
    """Whether a text names a schema, with its catalog or without."""
    return bool(_SCHEMA.fullmatch(text)) and text.isprintable()


def parts_of(name: str) -> tuple[str, ...]:
    """Catalog, schema and table, as far as the name has them, without backticks."""
    return tuple(part.strip("`") for part in re.findall(_PART, name))


def quoted(*parts: str) -> str:
    """A name as SQL takes it, whatever letters it has."""
    return ".".join(f"`{part}`" for part in parts)


def located(name: str, location: str, kind: str) -> Located:
    """What a catalog says of a table, as the pipeline can use it.

    Args:
        name: The table.
        location: Where it lies, in the catalog's spelling.
        kind: Its format.

    Raises:
        InputError: it is a view, of another format, or lies where not every engine finds it.
    """
    subject, expected = f"table {name}", "a Delta or Parquet table"
    if kind.lower() not in _FORMATS or not location:
        found = kind.lower() if kind and location else "a view, or a table without files of its own"
        raise InputError(subject, "", expected=expected, found=found, cure="Save it as a Delta table, and name that.")
    uri = same_scheme(location)
    if holds_secret(uri):
        cure = "Give it where Spark, pyarrow and deltalake look for credentials, and take it out of the catalog."
        raise InputError(subject, "", expected=expected, found=f"a key or a password in its location, {uri}", cure=cure)
    try:
        opened_by_all(uri)
    except ValueError as error:
        raise InputError(subject, "", expected=expected, found=f"one at {uri}", cure=f"{error}.") from error
    return Located(name, uri, kind.lower())


def locate(name: str, warehouse: Warehouse, unity_uri: str = "") -> str:
    """The place of a named table, found without Spark.

    Args:
        name: The table.
        warehouse: Where jobs have written down what Spark's catalog says.
        unity_uri: Unity Catalog's server; empty = there is none.

    Raises:
        InputError: nobody has said where the table lies, or it is none that can be read here.
        DeadlineError: Unity Catalog does not answer.
    """
    parts = parts_of(name)
    if unity_uri and len(parts) == 3 and (answer := ask_unity(unity_uri, parts)):
        return located(name, *answer).uri
    if found := read_note(warehouse, name):
        return found.uri
    expected = f"its place, at {_note_of(warehouse, name)}"
    raise InputError(
        f"table {name}",
        "",
        expected=f"{expected}, or in Unity Catalog at {unity_uri}" if unity_uri else expected,
        found="none",
        cure="Run `itemsage names` with the same settings: it asks Spark's catalog. Is it a path, write ./ before it.",
    )


def write_note(warehouse: Warehouse, found: Located) -> None:
    """Write down where a table lies; a place inside the warehouse as the path from there."""
    values = asdict(replace(found, uri=warehouse.relative(found.uri)))
    stored = values | {"sha256": _checksum(values)}
    if read_note(warehouse, found.name) != found:
        write_bytes(_note_of(warehouse, found.name), (json.dumps(stored, indent=2) + "\n").encode())


def read_note(warehouse: Warehouse, name: str) -> Located | None:
    """What was written down of a table last; None where nothing was, or the file is damaged."""
    try:
        values = json.loads(read_bytes(_note_of(warehouse, name)))
        checksum = values.pop("sha256")
        found = Located(**values)
    except (FileNotFoundError, ValueError, AttributeError, KeyError, TypeError):
        return None
    is_whole = checksum == _checksum(values) and found.name == name
    return replace(found, uri=warehouse.resolved(found.uri)) if is_whole else None


def warehouse_named(schema: str, unity_uri: str) -> Warehouse:
    """The warehouse whose tables Unity Catalog has in a schema: for readers that know nothing but the name.

    Args:
        schema: Catalog and schema, as in `warehouse.name`.
        unity_uri: Unity Catalog's server.

    Raises:
        InputError: item_embeddings is not registered there.
        DeadlineError: as of `locate`.
    """
    parts = (*parts_of(schema), ITEM_EMBEDDINGS.name)
    answer = ask_unity(unity_uri, parts)
    if answer is None:
        cure = "Run a stage with warehouse.name set to this schema, or correct the name."
        expected = f"a table in Unity Catalog at {unity_uri}"
        raise InputError(f"table {quoted(*parts)}", "", expected=expected, found="none", cure=cure)
    return Warehouse(located(quoted(*parts), *answer).uri.rstrip("/").rpartition("/")[0])


def _note_of(warehouse: Warehouse, name: str) -> str:
    parts = parts_of(name)
    readable = ".".join(re.sub(r"\W+", "-", part) for part in parts)
    return warehouse.place("_names", f"{readable}-{hashlib.sha256(quoted(*parts).encode()).hexdigest()[:8]}.json")


def _checksum(values: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
