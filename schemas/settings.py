"""The settings file: one TOML, checked key by key. `pipeline.toml` explains every key; this file says what is legal.

It lives beside the tables because jobs and model both read it and neither may import the other (docs/decisions.md).
"""

from __future__ import annotations

import json
import sys
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from schemas.records import absolute_uri
from schemas.tables import EMBEDDING_DIM, MAX_IMAGES, TEXT_FEATURES
from schemas.tasks import PAPER_TASKS, Task

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class SettingsError(ValueError):
    """A settings file or a `--set` that cannot be used. The message names the key and the fix."""


class Section(BaseModel):
    """A table of the TOML file: unknown keys and silent type changes are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskSettings(Section):
    """One task and its share of every batch, relative to the other tasks' shares."""

    query_kind: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    engagement: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    share: float = Field(default=1.0, gt=0)

    @property
    def task(self) -> Task:
        """The task without its share."""
        return Task(self.query_kind, self.engagement)


class WarehouseSettings(Section):
    """Where everything lies that the pipeline writes: tables at `<uri>/<table name>`."""

    uri: str = Field(min_length=1)


class InputSettings(Section):
    """URIs of the input tables, Delta or Parquet; empty = `<warehouse>/<table name>`."""

    items: str = ""
    item_images: str = ""
    queries: str = ""
    engagement_logs: str = ""
    has_images: bool = True


class DateSettings(Section):
    """The log window, counted back from `as_of`: train_days, then gap_days, then test_days."""

    as_of: date
    train_days: int = Field(ge=1)
    gap_days: int = Field(default=0, ge=0)
    test_days: int = Field(ge=1)

    @property
    def end(self) -> datetime:
        """First instant after the window (midnight UTC of as_of)."""
        return datetime(self.as_of.year, self.as_of.month, self.as_of.day, tzinfo=timezone.utc)

    @property
    def test_start(self) -> datetime:
        """First instant of the held-out window."""
        return self.end - timedelta(days=self.test_days)

    @property
    def train_end(self) -> datetime:
        """First instant after the training window."""
        return self.test_start - timedelta(days=self.gap_days)

    @property
    def train_start(self) -> datetime:
        """First instant of the training window."""
        return self.train_end - timedelta(days=self.train_days)


class FeatureSettings(Section):
    """Text features and vocabulary sizes. The defaults are the paper's (section 1.3 of its notes)."""

    text_features: tuple[str, ...] = tuple(TEXT_FEATURES)
    char_trigrams: int = Field(default=64_000, ge=0)
    word_unigrams: int = Field(default=200_000, ge=1)
    word_bigrams: int = Field(default=1_000_000, ge=0)
    min_token_count: int = Field(default=1, ge=1)
    max_tokens_per_feature: int = Field(default=2_000, ge=1)

    @field_validator("text_features")
    @classmethod
    def _known_features(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in TEXT_FEATURES]
        if unknown or not names or len(set(names)) != len(names):
            raise ValueError(f"use distinct names out of {', '.join(TEXT_FEATURES)}; remove {unknown or 'repeats'}")
        return names


class QueryEncoderSettings(Section):
    """The frozen text encoder that fills missing query embeddings."""

    kind: Literal["lsa", "sentence_transformers"] = "lsa"
    folder: str = ""
    lsa_vocabulary: int = Field(default=50_000, ge=EMBEDDING_DIM)

    @model_validator(mode="after")
    def _folder_where_needed(self) -> QueryEncoderSettings:
        if self.kind == "sentence_transformers" and not self.folder:
            raise ValueError("kind sentence_transformers needs folder = the model's local folder")
        return self


class TrainingTableSettings(Section):
    """How the training tables are cut."""

    max_pairs_per_item: int = Field(default=0, ge=0)
    max_pairs_per_query: int = Field(default=0, ge=0)
    recency_half_life_days: float = Field(default=0, ge=0)
    rows_per_file: int = Field(default=2_048, ge=1)
    max_reject_share: float = Field(default=0.2, ge=0, le=1)


class ModelSettings(Section):
    """The item tower. The defaults are the paper's, or assumed where it leaves them open (docs/paper-map.md)."""

    sequence: tuple[Literal["text", "images"], ...] = ("text", "images")
    width: int = Field(default=512, ge=8)
    layers: int = Field(default=1, ge=1)
    heads: int = Field(default=8, ge=1)
    feed_forward_width: int = Field(default=2_048, ge=1)
    head_width: int = Field(default=1_024, ge=1)
    hash_rows: int = Field(default=100_000, ge=1)
    hash_functions: int = Field(default=2, ge=1)
    missing: Literal["mask", "zeros"] = "mask"
    max_images: int = Field(default=MAX_IMAGES, ge=1, le=MAX_IMAGES)

    @model_validator(mode="after")
    def _combinations(self) -> ModelSettings:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}: change one of them")
        if not self.sequence or len(set(self.sequence)) != len(self.sequence):
            raise ValueError("sequence must hold text, images or both, each once")
        return self


class LossSettings(Section):
    """The loss; see itemsage_model/loss.py for the formulas."""

    form: Literal["sum", "literal", "mixed", "corrected", "full"] = "sum"
    frequency: Literal["sketch", "exact"] = "sketch"
    sketch_depth: int = Field(default=2, ge=1, le=8)
    sketch_width: int = Field(default=1 << 22, ge=1 << 10)
    mask_same_query: bool = True
    mask_query_item: bool = True
    temperature: float = Field(default=1 / 0.07, gt=0)
    max_temperature: float = Field(default=100.0, gt=0)

    @model_validator(mode="after")
    def _cap_above_start(self) -> LossSettings:
        if self.temperature > self.max_temperature:
            raise ValueError("temperature is above max_temperature: lower the one or raise the other")
        return self


class TrainSettings(Section):
    """Batches, optimiser, schedule and processes."""

    batch_size: int = Field(default=4_096, ge=1)
    negative_count: int = Field(default=4_096, ge=1)
    negatives_from: Literal["catalog", "engaged"] = "catalog"
    steps: int = Field(default=10_000, ge=1)
    warmup_steps: int = Field(default=300, ge=0)
    learning_rate: float = Field(default=1e-3, gt=0)
    table_learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    clip_norm: float = Field(default=0.0, ge=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    shuffle_rows: int = Field(default=32_768, ge=1)
    prefetch_batches: int = Field(default=4, ge=1)
    processes: int = Field(default=1, ge=1)
    threads: int = Field(default=0, ge=0)
    log_every: int = Field(default=50, ge=1)
    checkpoint_every: int = Field(default=1_000, ge=1)
    seed: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _divides(self) -> TrainSettings:
        for name in ("batch_size", "negative_count"):
            if getattr(self, name) % self.processes:
                raise ValueError(f"{name} must be a multiple of processes ({self.processes}): change one of them")
        return self


class ScoreSettings(Section):
    """How the catalog is scored."""

    rows_per_batch: int = Field(default=256, ge=1)
    precision: Literal["auto", "float32", "bfloat16"] = "float32"


class EvaluateSettings(Section):
    """What is measured on the held-out window."""

    k: int = Field(default=10, ge=1)
    max_pairs_per_task: int = Field(default=80_000, ge=1)
    max_distractors: int = Field(default=1_000_000, ge=1)


class DemoWorldSettings(Section):
    """The synthetic shop of `make demo`; other warehouses ignore it."""

    items: int = Field(default=20_000, ge=100)
    events: int = Field(default=400_000, ge=1_000)
    seed: int = Field(default=7, ge=0)


class Settings(Section):
    """The whole settings file."""

    warehouse: WarehouseSettings
    dates: DateSettings
    inputs: InputSettings = InputSettings()
    tasks: tuple[TaskSettings, ...] = tuple(
        TaskSettings(query_kind=task.query_kind, engagement=task.engagement) for task in PAPER_TASKS
    )
    features: FeatureSettings = FeatureSettings()
    query_encoder: QueryEncoderSettings = QueryEncoderSettings()
    training_tables: TrainingTableSettings = TrainingTableSettings()
    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    train: TrainSettings = TrainSettings()
    score: ScoreSettings = ScoreSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    demo_world: DemoWorldSettings = DemoWorldSettings()

    @model_validator(mode="after")
    def _combinations(self) -> Settings:
        names = [entry.task.name for entry in self.tasks]
        if not names or len(set(names)) != len(names):
            raise ValueError("tasks: name at least one task, each once")
        if len(names) > self.train.batch_size // self.train.processes:
            raise ValueError("train.batch_size: every process needs at least one pair of every task; raise it")
        if "images" in self.model.sequence and not self.inputs.has_images:
            raise ValueError('inputs.has_images is false: take "images" out of model.sequence')
        return self

    def table_uri(self, name: str) -> str:
        """Where a table lies: the URI named in [inputs], else `<warehouse>/<name>`."""
        named = getattr(self.inputs, name, "")
        return absolute_uri(named or f"{self.warehouse.uri.rstrip('/')}/{name}")


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
    try:
        # Through JSON, because pydantic's strict mode then takes lists and dates as TOML has them, and nothing else.
        return Settings.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        raise SettingsError(f"settings file {path}:\n" + "\n".join(_explain(e) for e in error.errors())) from error


def _override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    *sections, name = key.strip().split(".")
    if not separator or not sections or not all([*sections, name]):
        raise SettingsError(f"--set {override}: write section.key=value, such as train.steps=500")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise SettingsError(f"--set {override}: {section} is no section of the settings file")
    try:
        values[name] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        values[name] = text.strip()


def _explain(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "the file"
    if error["type"] == "extra_forbidden":
        return f"  {where}: unknown key; remove it or correct its spelling (pipeline.toml lists every key)"
    if error["type"] == "missing":
        return f"  {where}: missing; add it (pipeline.toml explains it)"
    # A whole section as the finding would repeat the file.
    found = "" if isinstance(error["input"], dict) else f" (found {error['input']!r})"[:300]
    return f"  {where}: {error['msg'].removeprefix('Value error, ')}{found}"
