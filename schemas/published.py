"""What is published, read without Spark: the newest commit of item_embeddings is the pointer to all that belongs to it.

The commit's note (userMetadata, JSON) names the run, the model, the spaces of the queries, and the versions of
query_vectors and item_short_vectors that belong to these items. So one commit makes a new model live, and one brings
the former back; whoever reads through here has the items and the queries of one model, at any instant. Whoever reads
the newest versions of the tables by other means compares their model_id.

    from schemas.published import live
    found = live(Warehouse("/data/warehouse"))
    found.require_space("search", "lsa-1f0c...")
    for batch in found.items(): ...
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable
from pydantic import TypeAdapter

from schemas.errors import InputError
from schemas.feed import ALL, REMOVED, SOME, begin_version, recorded_changes
from schemas.lease import require_held
from schemas.metrics import ScoreMetrics
from schemas.records import RunRecord, TableVersion, find_record, write_record
from schemas.retention import why_gone
from schemas.settings import Settings
from schemas.stages import SCORE_CATALOG, TRAIN, VALIDATE, Stage
from schemas.storage import (
    commits_of,
    is_file,
    is_unchanged_since,
    read_batches,
    read_bytes,
    version_files,
    write_bytes,
)
from schemas.tables import ITEM_EMBEDDINGS, ITEM_SHORT_VECTORS, QUERY_VECTORS
from schemas.warehouse import ENCODER_FILES, Warehouse

UPSERT, DELETE = "upsert", "delete"

_MAKERS: tuple[Stage[Any], ...] = (TRAIN, VALIDATE)

PUBLISHED = "published"
"""Entry of a commit's note that says what the version is."""


@dataclass(frozen=True)
class Published:
    """One version of item_embeddings, and what belongs to it.

    Attributes:
        warehouse: Where it lies.
        version: Of item_embeddings.
        committed: When it became live.
        note: What its commit says.
        metrics: What score_catalog counted.
    """

    warehouse: Warehouse
    version: int
    committed: datetime
    note: dict[str, Any]
    metrics: ScoreMetrics

    @property
    def model_id(self) -> str:
        """The model_id of its rows."""
        return self.metrics.published_id

    @property
    def run_id(self) -> str:
        """The run that scored it."""
        return str(self.note["run_id"])

    @property
    def as_of(self) -> str:
        """Its logical date."""
        return str(self.note["as_of"])

    @property
    def rolled_back_from(self) -> dict[str, Any] | None:
        """What was live before it was brought back; None where it was not."""
        return self.note.get("rolled_back_from")

    @property
    def outputs(self) -> tuple[TableVersion, ...]:
        """Its items, its queries, and the short vectors of its items if it has any."""
        found, place = self.note[PUBLISHED], self.warehouse.table
        items = TableVersion(ITEM_EMBEDDINGS.name, place(ITEM_EMBEDDINGS.name), self.version, found["rows"])
        others = [name for name in (QUERY_VECTORS.name, ITEM_SHORT_VECTORS.name) if name in found]
        return items, *(TableVersion(name, place(name), found[name]["version"], found[name]["rows"]) for name in others)

    @property
    def short_output(self) -> TableVersion | None:
        """The short vectors of its items; None where it has none. retrieval/short_tables.py reads them."""
        return next((one for one in self.outputs if one.table == ITEM_SHORT_VECTORS.name), None)

    @property
    def short_forms(self) -> tuple[str, ...]:
        """Their forms, as score.short_vectors names them."""
        return self.metrics.short.forms if self.metrics.short and self.short_output else ()

    @property
    def rotation_uri(self) -> str:
        """The file of the rotation after which their prefixes were taken; empty where there is none."""
        name = self.metrics.short.rotation if self.metrics.short else ""
        return name and f"{self.warehouse.model(self.metrics.model_id)}/{name}"

    def items(self, columns: Sequence[str] = ITEM_EMBEDDINGS.column_names) -> Iterator[pa.RecordBatch]:
        """Its rows of item_embeddings, a piece after the other."""
        return read_batches(self.outputs[0].uri, self.version, list(columns))

    def queries(self, columns: Sequence[str] = QUERY_VECTORS.column_names) -> Iterator[pa.RecordBatch]:
        """The rows of query_vectors that its items answer."""
        return read_batches(self.outputs[1].uri, self.outputs[1].version, list(columns))

    def require_space(self, query_kind: str, embedding_space: str) -> None:
        """Refuse queries of another space, such as of an encoder that was fitted anew, than its items answer.

        Raises:
            InputError: it answers no queries of this kind, or those of another space.
        """
        answered = self.metrics.spaces.get(query_kind)
        if answered != embedding_space:
            raise InputError(
                f"item_embeddings, version {self.version}",
                f"{query_kind} queries",
                expected=f"queries of the space {answered}"
                if answered
                else f"queries of a kind that it answers: {', '.join(sorted(self.metrics.spaces)) or 'none is named'}",
                found=f"queries of the space {embedding_space}",
                cure="Encode them as the queries of this version were, or read the version that answers them.",
            )

    def require_model(self, model_id: str) -> None:
        """Refuse a query adapter that was trained with other items.

        Raises:
            InputError: the model is another than the one that made its rows.
        """
        if model_id != self.metrics.model_id:
            raise InputError(
                f"item_embeddings, version {self.version}",
                "model_id",
                expected=f"the query adapter of {self.metrics.model_id}",
                found=f"that of {model_id}",
                cure="Load the model that this version names, or read the version of the other.",
            )

    def to_record(self) -> RunRecord[ScoreMetrics]:
        """The record of the run that scored it, as far as the commit tells; no rerun counts as done before."""
        dates = {"dates": {"as_of": self.as_of}}
        return RunRecord(
            SCORE_CATALOG.name, self.metrics, self.run_id, outputs=self.outputs, settings=dates,
            made_with=self.note.get("made_with", {}), code=str(self.note.get("code", "")),
        )  # fmt: skip


def published_versions(warehouse: Warehouse) -> list[Published]:
    """Every version that was live, the newest, which is live, first; none where nothing is, or only of before."""
    uri = warehouse.table(ITEM_EMBEDDINGS.name)
    if not DeltaTable.is_deltatable(uri):
        return []
    found = (_published(warehouse, commit) for commit in commits_of(uri))
    return [one for one in found if one is not None]


def live(warehouse: Warehouse) -> Published | None:
    """What is published now; None where nothing is, or only by code of before commits said what they are."""
    return next(iter(published_versions(warehouse)), None)


def is_newest(found: Published) -> bool:
    """Whether no row has changed since its commit."""
    return is_unchanged_since(found.outputs[0].uri, found.version)


def published_version(warehouse: Warehouse, version: int) -> Published:
    """A named version.

    Raises:
        InputError: no such version was published, or its commit is no longer in the log.
    """
    known = published_versions(warehouse)
    for one in known:
        if one.version == version:
            return one
    raise InputError(
        ITEM_EMBEDDINGS.name,
        f"version {version}",
        expected=f"a version that was published: {', '.join(str(one.version) for one in known) or 'none was'}",
        found=f"version {version}",
        cure="`itemsage versions` lists them.",
    )


def changes_since(warehouse: Warehouse, since: int, until: int | None = None) -> dict[str, str] | None:
    """What an index that holds one version must do to hold a later one.

    Args:
        warehouse: Where they lie.
        since: Version of item_embeddings that the index holds.
        until: The version it shall hold; None = the one that is live.

    Returns:
        item_id -> UPSERT or DELETE; None = read the version whole, as a new model or a rollback came between, the
        version is an older one, or the feed does not tell.
    """
    known = [one.version for one in published_versions(warehouse)]
    until = (known[0] if known else since) if until is None else until
    if since == until:
        return {}
    between = [version for version in known if since < version <= until]
    found = recorded_changes(warehouse, since, until)
    if (
        since > until
        or since not in known
        or until not in known
        or any(("", SOME) not in found.get(one, []) for one in between)
    ):
        return None
    todo: dict[str, str] = {}
    for version in sorted(between):
        for item, change in found[version]:
            if item:
                todo[item] = DELETE if change == REMOVED else UPSERT
    return todo


def _published(warehouse: Warehouse, commit: dict[str, Any]) -> Published | None:
    try:
        note = json.loads(commit.get("userMetadata") or "{}")
    except ValueError:  # of before
        return None
    if not isinstance(note, dict) or PUBLISHED not in note:
        return None
    metrics = TypeAdapter(ScoreMetrics).validate_python(note[PUBLISHED]["metrics"])
    committed = datetime.fromtimestamp(int(commit["timestamp"]) / 1_000, timezone.utc)
    return Published(warehouse, int(commit["version"]), committed, note, metrics)


def keep_makers(warehouse: Warehouse, model_id: str) -> None:
    """Keep the records of a model's training and validation beside it: what a rollback to it brings back."""
    for stage in _MAKERS:
        record = None
        with suppress(InputError):  # a damaged one, which this publication has no need of
            record = find_record(warehouse, stage)
        if record is not None and record.metrics.model_id == model_id:
            write_bytes(_kept(warehouse, model_id, stage), read_bytes(warehouse.record(stage.name)))


def keep_encoder(warehouse: Warehouse, model_id: str, spaces: Collection[str]) -> None:
    """Keep the text encoder of a model's queries beside it: the next one takes its place long before it is live.

    Args:
        warehouse: Where both lie.
        model_id: The model.
        spaces: Of its queries; an encoder of none of them is not kept.
    """
    source, kept = warehouse.query_encoder, warehouse.model_encoder(model_id)
    if is_file(f"{kept}/{ENCODER_FILES[-1]}") or not is_file(f"{source}/{ENCODER_FILES[-1]}"):
        return
    files = {name: read_bytes(f"{source}/{name}") for name in ENCODER_FILES}
    if json.loads(files[ENCODER_FILES[0]])["name"] in spaces:
        for name, content in files.items():
            write_bytes(f"{kept}/{name}", content)


def _bring_makers_back(warehouse: Warehouse, model_id: str) -> None:
    for stage in _MAKERS:
        kept = _kept(warehouse, model_id, stage)
        if is_file(kept):
            write_bytes(warehouse.record(stage.name), read_bytes(kept))


def _kept(warehouse: Warehouse, model_id: str, stage: Stage[Any]) -> str:
    return f"{warehouse.model(model_id)}/{stage.name}.json"


def roll_back(settings: Settings, version: int | None = None) -> Published:
    """Make a former version live again, by one commit; called under a lease.

    Later runs score with its model, as the records of its training are those of its time. Run again after it was ended
    half-way, it does the rest, and goes back no further.

    Args:
        settings: The settings.
        version: Which; None = the one that was live before the one that is.

    Returns:
        What is live now.

    Raises:
        InputError: there is no such version, or files of it, or of its queries, are gone.
    """
    warehouse = settings.layout
    known = published_versions(warehouse)
    now = next(iter(known), None)
    if now is None:
        raise InputError(ITEM_EMBEDDINGS.name, "", expected="a published version", found="none", cure="Publish one.")
    if version is not None:
        target = published_version(warehouse, version)
    else:
        target = now if _is_half_way(warehouse, now) else _before(known, now)
    if target.run_id != now.run_id:
        _require_files(target)
        left = {"version": now.version, "model_id": now.model_id, "run_id": now.run_id}
        note = {**target.note, "rolled_back_from": left, "restored": target.version}
        require_held()
        table = DeltaTable(target.outputs[0].uri)
        begin_version(warehouse, table.version() + 1, ALL)
        table.restore(target.version, commit_properties=CommitProperties({"userMetadata": json.dumps(note)}))
        now = live(warehouse)
        assert now is not None
    # Also where an earlier try was ended after its commit; the record of what is live comes last, and says so.
    _bring_makers_back(warehouse, now.metrics.model_id)
    write_record(warehouse, now.to_record())
    return now


def _is_half_way(warehouse: Warehouse, now: Published) -> bool:
    """Whether a rollback was ended between its commit and its last record."""
    record = None
    with suppress(InputError):  # a damaged one is written anew either way
        record = find_record(warehouse, SCORE_CATALOG)
    recorded = record.output(ITEM_EMBEDDINGS.name).version if record else None
    return now.rolled_back_from is not None and recorded is not None and recorded < now.version


def _before(known: Sequence[Published], now: Published) -> Published:
    """The newest of another run than the one that is live, and than those that were rolled back from."""
    left = {now.run_id, *(one.rolled_back_from["run_id"] for one in known if one.rolled_back_from)}
    for one in known:
        if one.run_id not in left:
            return one
    raise InputError(
        ITEM_EMBEDDINGS.name,
        "",
        expected="an earlier version to go back to",
        found=f"version {now.version} alone, of {now.run_id}",
        cure="`itemsage versions` lists what can be named with --to.",
    )


def _require_files(target: Published) -> None:
    """Refuse a version of which files are gone, before anything is committed."""
    for output in target.outputs:
        assert output.version is not None
        for file in version_files(output.uri, output.version).files:
            if not is_file(file.path):
                raise InputError(
                    f"table {output.table}",
                    f"version {output.version}",
                    expected=f"its file {file.path}",
                    found=f"no such file: {why_gone(output.uri, output.version)}",
                    cure="Go back to a younger version (`itemsage versions`), or train and score again.",
                )


def find_previous(settings: Settings) -> RunRecord[ScoreMetrics] | None:
    """The run whose vectors are live; None where nothing is published.

    Raises:
        InputError: only a record says so, and it is damaged.
    """
    if found := live(settings.layout):
        return found.to_record()
    return find_record(settings.layout, SCORE_CATALOG)
