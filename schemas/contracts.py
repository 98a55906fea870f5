"""What stages must agree on before their outputs may meet, and the refusal that says which of them to run again.

Token ids mean something only with the vocabulary that made them, and embeddings only in their space. Each stage's
record says what its outputs were made with (`RunRecord.made_with`, name -> identity). A stage that reads the outputs of
several refuses those that differ, before any work, and hands on what it was made with in its own record. Names:

    vocabulary                  128-bit hash of the vocabulary of the token ids; from build_item_features
    space of <kind> queries     embedding space of the queries of a kind; from embed_queries
    space of item text          frozen encoder of the items' texts, none = they have no embedding; from embed_items
    space of images             frozen encoder of the items' pictures; from embed_images, where it runs
    graph tower                 model of the items' graph vectors, where these are images; from embed_graph
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from schemas.code_version import code_version
from schemas.errors import InputError, TableError
from schemas.input_tables import InputTable
from schemas.metrics import GraphVectorMetrics, ItemMetrics, ItemTextMetrics, PictureMetrics, QueryMetrics, TrainMetrics
from schemas.records import RunRecord, find_record
from schemas.settings import DateSettings
from schemas.stages import (
    BUILD_ITEM_FEATURES,
    BUILD_TRAINING_TABLES,
    EMBED_GRAPH,
    EMBED_IMAGES,
    EMBED_ITEMS,
    EMBED_QUERIES,
    OPTIONAL,
    WHOLE,
    Stage,
)
from schemas.tables import ITEM_FEATURES, QUERY_EMBEDDINGS
from schemas.warehouse import Warehouse

VOCABULARY = "vocabulary"
_SPACE = "space of "
ITEM_TEXT, IMAGES = f"{_SPACE}item text", f"{_SPACE}images"
GRAPH = "graph tower"
_MAKERS: dict[str, Stage[Any]] = {
    VOCABULARY: BUILD_ITEM_FEATURES, ITEM_TEXT: EMBED_ITEMS, IMAGES: EMBED_IMAGES, GRAPH: EMBED_GRAPH,
}  # fmt: skip
"""Where an identity comes from, but for the spaces of queries."""


def space_of(query_kind: str) -> str:
    """The name under which `made_with` keeps the embedding space of a kind of queries."""
    return f"{_SPACE}{query_kind} queries"


def kinds_apart(made_with: dict[str, str], query_kinds: Iterable[str]) -> list[str]:
    """The kinds whose queries are not in one space with the items' texts, sorted; all where these have no embedding.

    Of the others, frozen vectors of queries and of item texts can be compared.

    Args:
        made_with: What the tables were made with.
        query_kinds: The kinds of the tasks.
    """
    item_text = made_with.get(ITEM_TEXT, "none")
    return sorted(
        kind for kind in set(query_kinds) if item_text == "none" or made_with.get(space_of(kind)) != item_text
    )


def identities(record: RunRecord[Any]) -> dict[str, str]:
    """What a stage's outputs were made with: what its record inherited, and what the stage itself has made."""
    metrics = record.metrics
    if isinstance(metrics, QueryMetrics):
        return record.made_with | {space_of(kind): space for kind, space in metrics.embedding_spaces.items()}
    if isinstance(metrics, ItemTextMetrics):
        return record.made_with | {ITEM_TEXT: metrics.encoder or "none"}
    if isinstance(metrics, PictureMetrics):
        return record.made_with | {IMAGES: metrics.encoder}
    if isinstance(metrics, GraphVectorMetrics):
        return record.made_with | {GRAPH: metrics.model_id}
    if isinstance(metrics, ItemMetrics | TrainMetrics):
        return record.made_with | {VOCABULARY: metrics.vocabulary_hash}
    return record.made_with


def agreed(
    warehouse: Warehouse, reader: Stage[Any], records: Iterable[RunRecord[Any]], query_kinds: Iterable[str]
) -> dict[str, str]:
    """What the outputs of several stages were made with, if it is the same.

    Args:
        warehouse: Where the records lie.
        reader: The stage that is about to read these outputs.
        records: The records of the stages that wrote them.
        query_kinds: The kinds of queries that the reader's tasks have; the spaces of others do not matter.

    Raises:
        InputError: two of them differ. The message names both, and the stages to run again.
    """
    spaces = {ITEM_TEXT, IMAGES, *map(space_of, query_kinds)}
    found: dict[str, tuple[str, str]] = {}
    for record in records:
        for name, identity in identities(record).items():
            if name.startswith(_SPACE) and name not in spaces:
                continue
            stage, known = found.setdefault(name, (record.stage, identity))
            if known != identity:
                raise InputError(
                    reader.name,
                    name,
                    expected=f"one {name} in all that it reads",
                    found=f"{known} in what {stage} wrote, and {identity} in what {record.stage} wrote",
                    cure=cure(warehouse, reader, name),
                )
    return {name: identity for name, (_, identity) in sorted(found.items())}


def cure(warehouse: Warehouse, reader: Stage[Any], name: str) -> str:
    """Which stages to run again, in order, so that all that a stage reads has the identity that its maker gave last."""
    maker = _MAKERS.get(name, EMBED_QUERIES)
    before = WHOLE[: WHOLE.index(reader)] if reader in WHOLE else WHOLE
    if name == GRAPH:
        before = (EMBED_GRAPH, *before)
    recorded = [record for stage in before if (record := find_record(warehouse, stage))]
    stages = {record.stage for record in recorded}
    newest = next((identities(record).get(name) for record in recorded if record.stage == maker.name), None)
    # What was trained on outdated tables is outdated too, whatever it says: from the first one on.
    carriers = [record for record in recorded if name in identities(record) and record.stage != maker.name]
    outdated = [record.stage for record in carriers if identities(record)[name] != newest]
    if newest is None or not outdated:
        return run_again([stage.name for stage in before if stage not in OPTIONAL or stage.name in stages])
    names = [record.stage for record in carriers]
    return run_again(names[names.index(outdated[0]) :])


def run_again(stages: Sequence[str]) -> str:
    """A cure: stages to run again, in order, before the one that refuses."""
    return f"Run {', then '.join(stages)} again, such as by `make pipeline SETTINGS=... FROM={stages[0]}`."


def require_cut_from(
    tables: RunRecord[Any], features: RunRecord[ItemMetrics], queries: RunRecord[QueryMetrics]
) -> RunRecord[Any]:
    """Refuse training tables that were cut from other item_features than those that training draws its negatives from.

    Returns:
        The record of the training tables; one of before contracts gets the identities of what it was cut from.

    Raises:
        InputError: another version, or a record that does not say.
    """
    wanted, cut_from = features.output(ITEM_FEATURES.name), tables.input(ITEM_FEATURES.name)
    if cut_from is None or cut_from.version != wanted.version:
        found = "a record that does not say from which" if cut_from is None else f"version {cut_from.version}"
        raise InputError(
            "training tables",
            ITEM_FEATURES.name,
            expected=f"tables cut from version {wanted.version}, which build_item_features completed last",
            found=found,
            cure=run_again([BUILD_TRAINING_TABLES.name]),
        )
    if tables.made_with:
        return tables
    used = tables.input(QUERY_EMBEDDINGS.name)
    if used is None or used.version != queries.output(QUERY_EMBEDDINGS.name).version:
        raise InputError(
            "training tables",
            QUERY_EMBEDDINGS.name,
            expected="a record that says which embedding spaces they hold",
            found="one of before they did, and other query_embeddings since",
            cure=run_again([BUILD_TRAINING_TABLES.name]),
        )
    return RunRecord(tables.stage, tables.metrics, made_with=identities(features) | identities(queries))


def require_same_graph(
    reader: Stage[Any], features: RunRecord[ItemMetrics], trained: RunRecord[TrainMetrics], sequence: Collection[str]
) -> None:
    """Refuse items with graph vectors among their images, where the model was trained on items without, or the reverse.

    Args:
        reader: The stage that is about to score.
        features: The record of what it would score.
        trained: The record of the model.
        sequence: What the model reads; without images it does not matter.

    Raises:
        InputError: one of them has them. Where both do, `agreed` has compared the towers.
    """
    kind = {True: "items with graph vectors", False: "items without graph vectors"}
    has, knows = GRAPH in identities(features), GRAPH in identities(trained)
    if has != knows and "images" in sequence:
        raise InputError(
            reader.name,
            "graph.append_to_images",
            expected=f"{kind[knows]}, as {trained.stage} read them",
            found=f"{kind[has]} in what {features.stage} wrote",
            cure=f"{run_again([BUILD_TRAINING_TABLES.name, trained.stage])} Or put the setting back, and run "
            f"{features.stage} again.",
        )


def require_no_later(reader: Stage[Any], record: RunRecord[Any], dates: DateSettings) -> None:
    """Refuse graph vectors that know events on which something is measured now: those of a later day.

    Args:
        reader: The stage that is about to read.
        record: Of a stage of the graph; one of before records had settings says nothing.
        dates: The reader's.

    Raises:
        InputError: its events go beyond the first of the reader's validation window.
    """
    if "dates" not in record.settings:
        return
    known, begins = DateSettings.model_validate(record.settings["dates"]).validation_start, dates.validation_start
    if known > begins:
        raise InputError(
            reader.name,
            "dates.as_of",
            expected=f"a graph of events before {begins:%Y-%m-%d}, from where on it is measured",
            found=f"{record.stage} with events before {known:%Y-%m-%d}",
            cure="Run build_item_graph, train_graph and embed_graph with these dates, or later ones here.",
        )


def require_no_older(warehouse: Warehouse, reader: Stage[Any], found: InputTable, is_accepted: bool) -> None:
    """Refuse an input table that is of an older version than the stage read last: the newest of its log were lost.

    Nobody who opens such a table notices. One that was made anew, which its id says, starts again from 0.

    Args:
        warehouse: Where the stage's record lies; one that is damaged says nothing, and this run replaces it.
        reader: The stage that is about to read.
        found: What the table consists of.
        is_accepted: Whether the older version is meant: then it is only said.

    Raises:
        TableError: the version is older.
    """
    try:
        last = find_record(warehouse, reader)
    except InputError:
        return
    before = last and last.input(found.table.name)
    if not last or not before or before.version is None or before.uri != found.uri:
        return
    was_made_anew = last.table_ids.get(before.table, found.table_id) != found.table_id
    if found.version is None or found.version >= before.version or was_made_anew:
        return
    expected, came = f"version {before.version} or a later one, as {reader.name} read last", f"version {found.version}"
    if is_accepted:
        print(f"  gate overridden: {before.table}: expected {expected}; found {came}", flush=True)
        return
    raise TableError(
        before.table,
        "(all)",
        expected=expected,
        found=f"{came} at {found.uri}",
        cure="Files of its log were lost (_delta_log holds one JSON file for each version): restore them. If the table "
        "was put back on purpose, read it so once with `--set gates.override=true`.",
    )


def other_code(records: Iterable[RunRecord[Any]]) -> str:
    """A line that names the stages whose outputs other code has made, or nothing: said, not refused."""
    others = {record.stage: record.code for record in records if record.code not in ("", code_version())}
    named = ", ".join(f"{stage} ({code})" for stage, code in sorted(others.items()))
    return f"  made by other code than this ({code_version()}): {named}" if others else ""


def date_of(record: RunRecord[Any]) -> str:
    """The logical date of a run, ISO; empty where its record has none."""
    return str(record.settings.get("dates", {}).get("as_of", ""))
