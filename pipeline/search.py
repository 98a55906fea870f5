"""`itemsage search`: what the three surfaces answer, in a terminal; see retrieval/surfaces.py.

--text "red lamp"            search: a text
--query ID | --item ID       closeup: a query of query_vectors, or an item
--vector FILE --space NAME   closeup: a frozen vector (JSON list of numbers) of an embedding space
--home ID[:AGE],...          home: the user's recent items, and how many days ago
--samples N                  N real queries on each surface
--why                        what each score consists of
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import statistics
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow.compute as pc

from retrieval.home import Engaged
from retrieval.surfaces import CLOSEUP, SEARCH, Found, Surfaces
from schemas.errors import SettingsError
from schemas.input_rows import input_rows
from schemas.input_tables import find_input
from schemas.plain_text import printable
from schemas.published import live
from schemas.settings import Settings
from schemas.storage import read_bytes
from schemas.tables import QUERIES

_REPEATED = 20
"""How often a sample is asked: the first time pays for what is loaded then."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--text", help="search: a text")
    asked.add_argument("--query", help="closeup: query_id of query_vectors")
    asked.add_argument("--item", help="closeup: item_id")
    asked.add_argument("--vector", help="closeup: a file with a frozen vector, a JSON list of numbers")
    asked.add_argument("--home", help="home: item_id[:days ago],... of a user")
    asked.add_argument("--samples", type=_count, help="so many real queries on each surface")
    parser.add_argument("--space", default="", help="of --vector: its embedding space")
    parser.add_argument(
        "--kind", default="", help="query kind; by default search for --text, closeup for --item and --vector"
    )
    parser.add_argument("--k", type=_count, default=10, help="how many items")
    parser.add_argument(
        "--where", action="append", default=[], metavar="COLUMN=VALUE[,VALUE]",
        help='a filter; a value with a comma stands in double quotes: brand="Calden, Ltd",Torford',
    )  # fmt: skip
    parser.add_argument("--why", action="store_true", help="what each score consists of")


def search(settings: Settings, arguments: argparse.Namespace) -> None:
    """Ask, and print the answers.

    Raises:
        InputError, SettingsError: as of `Surfaces`, or an argument is not usable.
    """
    _require_used(arguments)
    surfaces = Surfaces.open(settings)
    now = live(settings.layout)
    if now is not None and now.version != surfaces.published.version:
        print(
            f"The index holds version {surfaces.published.version}; live is {now.version}: run itemsage export-index."
        )
    if arguments.samples is not None:
        for surface, asked, found in samples(surfaces, arguments.samples, arguments.k):
            _show(surfaces, f"{surface}  {asked}", found, why=arguments.why)
        return
    where: dict[str, list[Any]] = {}
    for column, values in (_filter(surfaces, one) for one in arguments.where):
        where.setdefault(column, []).extend(values)
    k, kind = arguments.k, arguments.kind
    if arguments.text is not None:
        found = surfaces.search(arguments.text, k, where, kind or SEARCH)
        _show(surfaces, f"search  {arguments.text}", found, why=arguments.why)
    elif arguments.home is not None:
        engaged = _engaged(surfaces, arguments.home)
        found = surfaces.home(engaged, k, where)
        _show(surfaces, f"home  {arguments.home}", found, why=arguments.why)
    elif arguments.vector is not None:
        settings.require_allowed("--vector", arguments.vector)
        frozen = _vector(arguments.vector)
        found = surfaces.closeup_of_vector(frozen, arguments.space, k, where, kind or CLOSEUP)
        _show(surfaces, f"closeup  {arguments.vector}", found, why=arguments.why)
    else:
        query, item = arguments.query or "", arguments.item or ""
        found = surfaces.closeup(query, item, k, where, kind or CLOSEUP)
        _show(surfaces, f"closeup  {query or item}", found, why=arguments.why)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number, at least 1; found {text}")
    return int(text)


def _require_used(arguments: argparse.Namespace) -> None:
    """Refuse an argument that what is asked takes no notice of.

    Raises:
        SettingsError: there is one.
    """
    takes: dict[str, tuple[str, ...]] = {
        "samples": (),
        "query": ("where",),
        "home": ("where",),
        "vector": ("where", "kind", "space"),
    }
    asked = next(name for name in ("text", "item", *takes) if getattr(arguments, name) is not None)
    for name in ("where", "kind", "space"):
        if getattr(arguments, name) and name not in takes.get(asked, ("where", "kind")):
            raise SettingsError(f"--{name}: --{asked} takes no notice of it; leave it out")


def samples(surfaces: Surfaces, count: int, k: int) -> Iterator[tuple[str, str, Found]]:
    """Surface, what was asked, and what was found, of some real queries on each; kinds that are not there are left out.

    The shop's first queries are taken, of those that the version answers. A user of the home surface is made up of the
    items that two such queries show.
    """
    rows = list(islice(_queries(surfaces, 8 * count), 8 * count))
    known = surfaces.query_vectors([row["query_id"] for row in rows])
    rows = [row for row in rows if row["query_id"] in known]
    for row in [row for row in rows if row["query_item_id"]][:count]:
        yield CLOSEUP, _shown(row), _timed(lambda row=row: surfaces.closeup(query_id=row["query_id"], k=k))
    for row in [row for row in rows if row["text"] and not row["query_item_id"]][:count]:
        ask = {"text": row["text"], "k": k, "kind": row["query_kind"]}
        yield SEARCH, _shown(row), _timed(lambda ask=ask: surfaces.search(**ask), 1)
    items = list(dict.fromkeys(row["query_item_id"] for row in rows if row["query_item_id"]))
    for first in range(min(count, len(items) // 2)):
        user = [Engaged(item, float(age)) for age, item in enumerate(items[2 * first : 2 * first + 2])]
        titles = surfaces.titles(one.item_id for one in user)
        asked = ", ".join(f"{titles.get(one.item_id, one.item_id)} ({one.age_days:.0f} days ago)" for one in user)
        yield "home", asked, _timed(lambda user=user: surfaces.home(user, k))


def _queries(surfaces: Surfaces, most: int) -> Iterator[dict[str, Any]]:
    """Queries of the shop, at most so many of each kind; of every kind as many at a time."""
    table = find_input(surfaces.settings.table_uri(QUERIES.name), QUERIES)
    taken: dict[str, list[dict[str, Any]]] = {}
    for batch in input_rows(table, ("query_id", "query_kind", "text", "query_item_id")):
        for kind in pc.unique(batch.column("query_kind")).to_pylist():
            rows = batch.filter(pc.equal(batch.column("query_kind"), kind)).slice(0, most)
            taken.setdefault(kind, []).extend(rows.to_pylist()[: most - len(taken.get(kind, []))])
    for number in range(max(map(len, taken.values()), default=0)):
        yield from (rows[number] for rows in taken.values() if number < len(rows))


def _timed(ask: Any, times: int = _REPEATED) -> Found:
    found = [ask() for _ in range(times)]
    middle = statistics.median(one.milliseconds for one in found)
    return Found(found[0].hits, found[0].queries, middle)


def _shown(row: dict[str, Any]) -> str:
    return row["text"] or f"query {row['query_id']}, which shows {row['query_item_id']}"


def _show(surfaces: Surfaces, asked: str, found: Found, *, why: bool) -> None:
    manifest = surfaces.index.manifest
    lines = [
        f"\n{printable(asked)}  ({found.milliseconds:.1f} ms, version {manifest.version}, {manifest.items:,} items)"
    ]
    titles = surfaces.titles([*(hit.item_id for hit in found.hits), *found.queries])
    explained = surfaces.why(found) if why else {}
    for hit in found.hits:
        title, whose = titles.get(hit.item_id, "(no title)"), titles.get(hit.because_of, hit.because_of)
        because = f"  as of {whose}" if whose else ""
        lines.append(printable(f"  {hit.score:.4f}  {hit.item_id}  {title}{because}"))
        if hit.item_id in explained:
            lines += [printable(f"      score with {whose}:")] if whose else []
            lines += [printable(f"      {line}") for line in explained[hit.item_id].lines()]
    _print(lines if found.hits else [*lines, "  nothing"])


def _print(lines: Sequence[str]) -> None:
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:  # whoever reads has seen enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _filter(surfaces: Surfaces, text: str) -> tuple[str, list[Any]]:
    """`column=value,value` in the types of the index's columns; an empty value is an unknown one."""
    column, sign, values = text.partition("=")
    if not sign:
        raise SettingsError(f"--where {text}: write column=value or column=value,value")
    kind = surfaces.index.manifest.columns.get(column, "string")
    try:
        listed = next(csv.reader([values], strict=True)) or [""]
    except csv.Error as error:
        raise SettingsError(
            f'--where {text}: expected values such as brand="Calden, Ltd",Torford; found {error}'
        ) from error
    return column, [_value(one, kind, text) for one in listed]


def _value(text: str, kind: str, where: str) -> Any:
    if not text:
        return None
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        if kind.startswith(("int", "uint")):
            return int(text)
        return float(text) if kind in ("float", "double") else text
    except (ValueError, KeyError) as error:
        raise SettingsError(f"--where {where}: expected a {kind}; found {text}") from error


def _engaged(surfaces: Surfaces, text: str) -> list[Engaged]:
    """`item[:days ago],...`; an item_id with a colon in it is known by the index."""
    listed = [one.strip() for one in text.split(",")]
    _, is_whole = surfaces.index.vectors_of(listed)
    pairs = [
        (one, "0") if whole or ":" not in one else one.rsplit(":", 1)
        for one, whole in zip(listed, is_whole, strict=True)
    ]
    _, is_known = surfaces.index.vectors_of([item for item, _ in pairs])
    engaged = []
    for (item, age), known in zip(pairs, is_known, strict=True):
        if not known:
            _print([f"not in the index, and passed over: {printable(item)}"])
            continue
        try:
            engaged.append(Engaged(item, float(age)))
        except ValueError as error:
            raise SettingsError(f"--home {item}:{age}: expected days since the user took it; found {age}") from error
    return engaged


def _vector(place: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    try:
        numbers: Sequence[float] = json.loads(read_bytes(place))
        return np.array(numbers, np.float32).reshape(-1)
    except (OSError, ValueError, TypeError) as error:
        raise SettingsError(f"--vector {place}: expected a JSON list of numbers; found {error}") from error
