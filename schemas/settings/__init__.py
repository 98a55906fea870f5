"""The settings file: one TOML, checked key by key. `pipeline.toml` explains every key; this file says what is legal.

It lives beside the tables because jobs and model both read it and neither may import the other (docs/decisions.md).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError, model_validator

from schemas.columns import Table
from schemas.elements import FROZEN_TEXT, IMAGES, TEXT, SizedElement
from schemas.errors import InputError, SettingsError
from schemas.graph_tables import ITEM_GRAPH_IMAGES
from schemas.names import is_name, locate, parts_of, quoted
from schemas.picture_tables import ITEM_PICTURES
from schemas.places import is_within, plain
from schemas.settings.access import CatalogSettings, SecuritySettings
from schemas.settings.data import (
    DateSettings,
    DemoWorldSettings,
    FeatureSettings,
    InputSettings,
    NegativeSettings,
    QueryEncoderSettings,
    RejectShareSettings,
    TaskSettings,
    TrainingTableSettings,
    WarehouseSettings,
)
from schemas.settings.deadlines import DeadlineSettings
from schemas.settings.graph import GraphSettings
from schemas.settings.index import IndexSettings
from schemas.settings.maintenance import MaintenanceSettings
from schemas.settings.model import LossSettings, ModelSettings, TrainSettings
from schemas.settings.pictures import PictureHeadSettings, PictureSettings
from schemas.settings.search_text import SearchTextSettings
from schemas.settings.section import Section
from schemas.settings.serving import (
    CanarySettings,
    EvaluateSettings,
    FloorSettings,
    GateSettings,
    PushSettings,
    ScoreSettings,
)
from schemas.stages import EMBED_IMAGES, Stage, stages_of
from schemas.storage import absolute_uri
from schemas.tables import EMBEDDING_DIM, INPUTS, ITEM_IMAGES
from schemas.tasks import PAPER_TASKS, Task
from schemas.warehouse import Warehouse

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def item_elements(model: ModelSettings, features: FeatureSettings, vocabulary_size: int) -> tuple[SizedElement, ...]:
    """The elements of an item's sequence with the sizes that the settings give them, in the order of their columns."""
    return (
        TEXT.sized(slots=len(features.text_features), length=EMBEDDING_DIM, id_count=vocabulary_size),
        IMAGES.sized(slots=model.max_images, length=model.image_length),
        FROZEN_TEXT.sized(slots=1, length=EMBEDDING_DIM),
    )


_AUTO_HALF_LIFE_DAYS = 120.0

SPECTRAL_PARTS = ("item_vector", "query_adapter", "query_id_rows")
"""Keys of [model] that hold the singular vectors of items and queries."""

WHY_FULL = (
    "the features of a negative are only at hand where the softmax runs over the whole catalog: set "
    'loss.form = "full", or take [[negatives]] out'
)
"""Of explicit negatives and the forms of the loss that sample."""


class Settings(Section):
    """The whole settings file."""

    preset: Literal["auto", "small_log", "large_log", "paper"] = "auto"
    rerun: bool = False
    warehouse: WarehouseSettings
    dates: DateSettings
    inputs: InputSettings = InputSettings()
    catalog: CatalogSettings = CatalogSettings()
    security: SecuritySettings = SecuritySettings()
    max_reject_share: RejectShareSettings = RejectShareSettings()
    tasks: tuple[TaskSettings, ...] = tuple(
        TaskSettings(query_kind=task.query_kind, engagement=task.engagement) for task in PAPER_TASKS
    )
    negatives: tuple[NegativeSettings, ...] = ()
    features: FeatureSettings = FeatureSettings()
    query_encoder: QueryEncoderSettings = QueryEncoderSettings()
    search_text: SearchTextSettings = SearchTextSettings()
    pictures: PictureSettings = PictureSettings()
    picture_head: PictureHeadSettings = PictureHeadSettings()
    training_tables: TrainingTableSettings = TrainingTableSettings()
    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    train: TrainSettings = TrainSettings()
    graph: GraphSettings = GraphSettings()
    score: ScoreSettings = ScoreSettings()
    gates: GateSettings = GateSettings()
    canaries: tuple[CanarySettings, ...] = ()
    floor: FloorSettings = FloorSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    index: IndexSettings = IndexSettings()
    push: PushSettings = PushSettings()
    deadlines: DeadlineSettings = DeadlineSettings()
    maintenance: MaintenanceSettings = MaintenanceSettings()
    demo_world: DemoWorldSettings = DemoWorldSettings()

    @model_validator(mode="after")
    def _combinations(self) -> Settings:
        names = [entry.task.name for entry in self.tasks]
        if not names or len(set(names)) != len(names):
            raise ValueError("tasks: name at least one task, each once")
        if len(names) > self.train.batch_size // self.train.processes:
            raise ValueError("train.batch_size: every process needs at least one pair of every task; raise it")
        is_chosen = self.preset == "paper" or "sequence" in self.model.model_fields_set
        if is_chosen and "images" in self.model.sequence and not self.inputs.has_images:
            raise ValueError('inputs.has_images is false: take "images" out of model.sequence')
        if self.graph.append_to_images and not self.inputs.has_images:
            raise ValueError(
                "graph.append_to_images: inputs.has_images is false, so there is nothing to append to: set it, and "
                "inputs.item_images to the place of item_graph_images, which are then the only images"
            )
        is_chosen = self.preset == "paper" or "start" in self.train.model_fields_set
        if is_chosen and self.train.start == "spectral" and not all(getattr(self.model, key) for key in SPECTRAL_PARTS):
            raise ValueError(
                f'train.start = "spectral" has nowhere to go: also set model.{", model.".join(SPECTRAL_PARTS)}'
            )
        self._require_usable_pictures()
        if self.negatives:
            self._require_usable_negatives()
        places = {
            "warehouse.uri": self.warehouse.uri,
            "query_encoder.folder": self.query_encoder.folder,
            "search_text.folder": self.search_text.folder,
            "pictures.folder": self.pictures.folder,
            **{f"pictures.roots[{place}]": root for place, root in enumerate(self.pictures.roots)},
            "index.folder": self.index.folder,
            "push.uri": self.push.uri if self.push.is_place else "",
        }
        if self.push.store == "lancedb":  # the program itself is most often a link out of there
            places["push.lancedb_python"] = str(Path(self.push.lancedb_python).parent)
        given = {f"inputs.{table.name}": getattr(self.inputs, table.name) for table in (*INPUTS, ITEM_PICTURES)}
        for key, place in (places | {key: text for key, text in given.items() if not is_name(text)}).items():
            if place:
                self.require_allowed(key, place)
        return self

    def require_allowed(self, key: str, place: str) -> None:
        """Refuse a place outside of `security.allowed_roots`, where there are any.

        Args:
            key: The setting or argument that names it.
            place: A path or URI.

        Raises:
            SettingsError: links, `..` and all, it lies below none of them.
        """
        roots = self.security.allowed_roots
        if roots and not is_within(place, roots):
            raise SettingsError(
                f"{key}: expected a place below one of security.allowed_roots ({', '.join(roots)}); found {place}, "
                f"which is {plain(place) or 'no plain URI'}. Name another, or have the settings file allow it."
            )

    def _require_usable_pictures(self) -> None:
        kinds = self.pictures.query_kinds
        if not self.pictures.folder:
            for key, is_set in {"demo_world.pictures": self.demo_world.pictures, "pictures.query_kinds": kinds}.items():
                if is_set:
                    raise ValueError(f"{key}: pictures need a model that embeds them: also set pictures.folder")
            if self.pictures.head:
                raise ValueError(
                    "pictures.head: there is no encoder that a head could stand on: also set pictures.folder"
                )
        elif self.inputs.item_images or not self.inputs.has_images:
            raise ValueError(
                "pictures.folder: embed_images makes item_images of item_pictures, so take inputs.item_images out and "
                "leave inputs.has_images true; or take pictures.folder out"
            )
        others = sorted(set(kinds) - {task.query_kind for task in self.task_list})
        if others or len(set(kinds)) != len(kinds):
            found = f"no task has queries of the kind {others[0]}" if others else "a kind stands there twice"
            raise ValueError(f"pictures.query_kinds: {found}; name kinds of [[tasks]], each once")

    def _require_usable_negatives(self) -> None:
        names = [entry.name for entry in self.negatives]
        if len(set(names)) != len(names):
            raise ValueError("negatives: name each query kind and engagement once")
        for entry in self.negatives:
            if entry.engagement in {task.engagement for task in self.task_list}:
                raise ValueError(
                    f"negatives: {entry.engagement} is the engagement of a task; it cannot count both ways"
                )
            if entry.query_kind not in {task.query_kind for task in self.task_list}:
                raise ValueError(f"negatives: no task has queries of the kind {entry.query_kind}; take it out")
        is_chosen = self.preset == "paper" or "form" in self.loss.model_fields_set
        if is_chosen and self.loss.form != "full":
            raise ValueError(f"negatives: {WHY_FULL} (loss.form is {self.loss.form!r})")

    @property
    def layout(self) -> Warehouse:
        """What lies where in the warehouse."""
        return Warehouse(self.warehouse.uri)

    @property
    def index_folder(self) -> str:
        """Where the index of the published vectors lies."""
        return self.index.folder or self.layout.index

    @property
    def task_list(self) -> list[Task]:
        """The tasks without their shares."""
        return [entry.task for entry in self.tasks]

    @property
    def half_life_days(self) -> float:
        """Age at which an event weighs half in the loss; 0 = every event weighs 1.

        Assumed: "auto" is 120 days where the log is longer than that, and no weighting otherwise; the paper has none.
        """
        named = self.training_tables.recency_half_life_days
        if named != "auto":
            return named
        is_long = self.preset != "paper" and self.dates.train_days > _AUTO_HALF_LIFE_DAYS
        return _AUTO_HALF_LIFE_DAYS if is_long else 0.0

    @property
    def stages(self) -> tuple[Stage[Any], ...]:
        """The stages that this shop runs, in order."""
        return stages_of([EMBED_IMAGES.name] if self.pictures.folder else [])

    @property
    def input_tables(self) -> tuple[Table, ...]:
        """The tables that this shop supplies, in the order in which a run meets them."""
        images = ITEM_PICTURES if self.pictures.folder else ITEM_IMAGES
        tables = (images if table is ITEM_IMAGES else table for table in INPUTS)
        return tuple(table for table in tables if table is not ITEM_IMAGES or self.inputs.has_images)

    @property
    def takes_graph_vectors(self) -> bool:
        """Whether items have vectors of the graph among their images, or for images."""
        return self.inputs.has_images and (self.graph.append_to_images or self.has_graph_vectors_alone)

    @property
    def has_graph_vectors_alone(self) -> bool:
        """Whether graph vectors are the only images, by any path, or by the name of their table.

        Of a name nobody asks a catalog here: it may not be known yet where its table lies.
        """
        if not self.inputs.has_images or not self.inputs.item_images:
            return False
        if named := self.input_name(ITEM_IMAGES.name):
            return parts_of(named) == parts_of(self.table_name(ITEM_GRAPH_IMAGES.name) or ITEM_GRAPH_IMAGES.name)
        place = plain(self.table_uri(ITEM_IMAGES.name))
        return place is not None and place == plain(self.layout.table(ITEM_GRAPH_IMAGES.name))

    def input_name(self, name: str) -> str:
        """The catalog's name of a table that [inputs] has by name; empty for all others."""
        named = str(getattr(self.inputs, name, ""))
        return named if is_name(named) else ""

    def table_name(self, name: str) -> str:
        """The catalog's name of a table, registered or not; empty = it is known by its place alone."""
        if getattr(self.inputs, name, "") or not self.warehouse.name:
            return self.input_name(name)
        return quoted(*parts_of(self.warehouse.name), name)

    def table_uri(self, name: str) -> str:
        """Where a table lies: the URI, or the place of the name, in [inputs]; else `<warehouse>/<name>`.

        Raises:
            InputError: as of `locate`, or the place of the name lies outside of security.allowed_roots.
            DeadlineError: as of `locate`.
        """
        named, given = self.input_name(name), getattr(self.inputs, name, "")
        if not given:
            return self.layout.table(name)
        place = locate(named, self.layout, self.catalog.unity_uri) if named else absolute_uri(given)
        try:
            self.require_allowed(f"inputs.{name}", place)
        except SettingsError as error:
            cure = "Name another table, or have the settings file allow its place."
            expected = f"a place below security.allowed_roots ({', '.join(self.security.allowed_roots)})"
            where = (f"table {named or name}", f"inputs.{name}")
            raise InputError(*where, expected=expected, found=place, cure=cure) from error
        return place

    def with_absolute_places(self) -> Settings:
        """The same settings with every relative path made absolute: for a process that runs in another folder."""
        given = {table.name: getattr(self.inputs, table.name) for table in (*INPUTS, ITEM_PICTURES)}
        named = {name: absolute_uri(place) for name, place in given.items() if place and not is_name(place)}
        index = self.index.folder
        pushed = {"uri": absolute_uri(self.push.uri)} if self.push.is_place else {}
        folder, roots = self.query_encoder.folder, tuple(map(absolute_uri, self.security.allowed_roots))
        base = self.search_text.folder
        pictures = {
            "folder": self.pictures.folder and absolute_uri(self.pictures.folder),
            "roots": tuple(map(absolute_uri, self.pictures.roots)),
        }
        return self.model_copy(
            update={
                "warehouse": self.warehouse.model_copy(update={"uri": absolute_uri(self.warehouse.uri)}),
                "inputs": self.inputs.model_copy(update=named),
                "push": self.push.model_copy(update=pushed),
                "pictures": self.pictures.model_copy(update=pictures),
                "security": self.security.model_copy(update={"allowed_roots": roots}),
                "index": self.index.model_copy(update={"folder": index and absolute_uri(index)}),
                "query_encoder": self.query_encoder.model_copy(update={"folder": folder and absolute_uri(folder)}),
                "search_text": self.search_text.model_copy(update={"folder": base and absolute_uri(base)}),
            }
        )


def load_settings(path: str | Path, overrides: list[str] | None = None) -> Settings:
    """Read a TOML settings file, apply `a.b=c` overrides and check the result.

    Args:
        path: The TOML file.
        overrides: `section.key=value`; the value is read as TOML, or as a string where it is no TOML.

    Raises:
        SettingsError: the file is missing or no TOML, or a key is unknown, mistyped or impossible.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(f"settings file {path} does not exist; copy pipeline.toml and edit it") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"settings file {path} is no valid TOML: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings file {path} cannot be read: {error}; give a text file in UTF-8") from error
    for override in overrides or []:
        _override(values, override)
    _move_old_key(values)
    try:
        # Through JSON, because pydantic's strict mode then takes lists and dates as TOML has them, and nothing else.
        return Settings.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        raise SettingsError(f"settings file {path}:\n" + "\n".join(_explain(e) for e in error.errors())) from error


def _override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    *sections, name = key.strip().split(".")
    if not separator or not all([*sections, name]) or not (sections or name in ("preset", "rerun")):
        raise SettingsError(f"--set {override}: write section.key=value, such as train.steps=500")
    if sections[:1] == ["security"]:
        raise SettingsError(f"--set {override}: what is allowed stands in the settings file alone; change it there")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise SettingsError(f"--set {override}: {section} is no section of the settings file")
    try:
        values[name] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        values[name] = text.strip()


def _move_old_key(values: dict[str, Any]) -> None:
    """A key of before version 0.2 goes on working, with a warning."""
    old = values.get("training_tables")
    if not isinstance(old, dict) or "max_reject_share" not in old:
        return
    moved = "training_tables.max_reject_share is now max_reject_share.engagement_logs"
    shares = values.setdefault("max_reject_share", {})
    if not isinstance(shares, dict) or "engagement_logs" in shares:
        raise SettingsError(f"{moved}: give only that")
    print(f"warning: {moved}", file=sys.stderr)
    shares["engagement_logs"] = old.pop("max_reject_share")


def _explain(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "the file"
    if error["type"] == "extra_forbidden":
        return f"  {where}: unknown key; remove it or correct its spelling (pipeline.toml lists every key)"
    if error["type"] == "missing":
        return f"  {where}: missing; add it (pipeline.toml explains it)"
    # A whole section as the finding would repeat the file.
    found = "" if isinstance(error["input"], dict) else f" (found {error['input']!r})"[:300]
    return f"  {where}: {error['msg'].removeprefix('Value error, ')}{found}"


__all__ = [
    "CatalogSettings", "DateSettings", "DeadlineSettings", "DemoWorldSettings", "EvaluateSettings", "FeatureSettings",
    "FloorSettings", "GateSettings", "GraphSettings", "IndexSettings", "InputSettings", "LossSettings", "ModelSettings",
    "NegativeSettings", "PictureHeadSettings", "PictureSettings", "PushSettings", "QueryEncoderSettings",
    "RejectShareSettings", "ScoreSettings", "Section", "SecuritySettings", "Settings", "TaskSettings", "TrainSettings",
    "TrainingTableSettings", "WarehouseSettings", "item_elements", "load_settings",
]  # fmt: skip
