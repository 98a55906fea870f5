"""Where tables come from and how they are cut: warehouse, inputs, dates, features, query encoder, training tables."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from schemas.names import is_name, is_schema_name
from schemas.places import opened_by_all
from schemas.settings.section import Section, without_secret
from schemas.tables import EMBEDDING_DIM, TEXT_FEATURES
from schemas.tasks import Task


class TaskSettings(Section):
    """One task and its share of every batch, relative to the other tasks' shares."""

    query_kind: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    engagement: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    share: float = Field(default=1.0, gt=0)

    @property
    def task(self) -> Task:
        """The task without its share."""
        return Task(self.query_kind, self.engagement)


class NegativeSettings(Section):
    """One engagement that counts against an item: returned, hidden, shown and not clicked."""

    query_kind: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    engagement: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    weight: float = Field(default=1.0, gt=0)

    @property
    def name(self) -> str:
        """`{query kind}_{engagement}`, as a task is named, which it may not be."""
        return Task(self.query_kind, self.engagement).name


def _folder(uri: str) -> str:
    if is_name(uri):
        raise ValueError(
            f"names a table or a schema; records, models and logs need a folder: write ./{uri} if it is one, and give "
            "the schema in which the tables shall be registered as warehouse.name"
        )
    return opened_by_all(uri)


def _place_or_name(text: str) -> str:
    return text if is_name(text) else opened_by_all(text)


def _schema_name(name: str) -> str:
    if name and not is_schema_name(name):
        raise ValueError("write catalog.schema, or schema alone; other than letters, digits and _ between backticks")
    return name


Folder = Annotated[str, AfterValidator(without_secret), AfterValidator(_folder)]
TablePlace = Annotated[str, AfterValidator(without_secret), AfterValidator(_place_or_name)]


class WarehouseSettings(Section):
    """Where everything lies that the pipeline writes: tables at `<uri>/<table name>`, by name `<name>.<table name>`.

    A folder is needed beside the names: records, models and the lease are files, and a process without Spark, which
    cannot ask a catalog, finds them there. As the tables lie in it too, who has the place of one has the warehouse.
    """

    uri: Folder = Field(min_length=1)
    name: Annotated[str, AfterValidator(_schema_name)] = ""
    single_writer: bool = False


class InputSettings(Section):
    """URIs or names of the input tables, Delta or Parquet; empty = `<warehouse>/<table name>`."""

    items: TablePlace = ""
    item_images: TablePlace = ""
    item_pictures: TablePlace = ""
    queries: TablePlace = ""
    engagement_logs: TablePlace = ""
    has_images: bool = True
    event_id_is: Literal["event", "order"] = "event"


class RejectShareSettings(Section):
    """The largest share of each input table's rows that may be unusable; a run that finds more stops."""

    items: float = Field(default=0.1, ge=0, le=1)
    item_images: float = Field(default=0.2, ge=0, le=1)
    item_pictures: float = Field(default=0.2, ge=0, le=1)
    queries: float = Field(default=0.2, ge=0, le=1)
    engagement_logs: float = Field(default=0.2, ge=0, le=1)
    all_reasons: float = Field(default=0.95, ge=0, le=1)


class DateSettings(Section):
    """The log window, counted back from `as_of`: test_days held out, gap_days unused, train_days of training.

    The last `validation_days` of the training window are the validation window.
    """

    as_of: date
    train_days: int = Field(ge=1)
    validation_days: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    gap_days: int = Field(default=0, ge=0)
    test_days: int = Field(ge=1)

    @model_validator(mode="after")
    def _days_to_fit_on(self) -> DateSettings:
        if self.validation_days != "auto" and self.validation_days >= self.train_days:
            raise ValueError(
                f"validation_days: use fewer than the {self.train_days} of train_days, of which they are the last"
            )
        return self

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
    def validation_start(self) -> datetime:
        """First instant of the validation window, with which the training window ends; `train_end` where it has none.

        Assumed: a tenth of the training window, and a day at least, is long enough to measure on.
        """
        a_tenth = min(max(1, round(self.train_days / 10)), self.train_days - 1)
        return self.train_end - timedelta(days=a_tenth if self.validation_days == "auto" else self.validation_days)

    @property
    def train_start(self) -> datetime:
        """First instant of the training window."""
        return self.train_end - timedelta(days=self.train_days)


def _distinct_text_features(names: tuple[str, ...]) -> tuple[str, ...]:
    unknown = [name for name in names if name not in TEXT_FEATURES]
    if unknown or not names or len(set(names)) != len(names):
        raise ValueError(f"use distinct names out of {', '.join(TEXT_FEATURES)}; remove {unknown or 'repeats'}")
    return names


TextFeatures = Annotated[tuple[str, ...], AfterValidator(_distinct_text_features)]


class FeatureSettings(Section):
    """Text features and vocabulary sizes. The defaults are the paper's."""

    text_features: TextFeatures = tuple(TEXT_FEATURES)
    char_trigrams: int = Field(default=64_000, ge=0)
    word_unigrams: int = Field(default=200_000, ge=1)
    word_bigrams: int = Field(default=1_000_000, ge=0)
    min_token_count: int = Field(default=1, ge=1)
    max_tokens_per_feature: int = Field(default=2_000, ge=1)


class QueryEncoderSettings(Section):
    """The frozen text encoder: of queries that bring no embedding, and of item texts."""

    kind: Literal["lsa", "sentence_transformers", "joined", "trained"] = "lsa"
    folder: str = ""
    lsa_vocabulary: int = Field(default=50_000, ge=EMBEDDING_DIM)
    lsa_dims: int = Field(default=1_024, ge=1)
    item_text: TextFeatures = ("title",)
    refit: bool = True

    @model_validator(mode="after")
    def _folder_where_needed(self) -> QueryEncoderSettings:
        if self.kind in ("sentence_transformers", "joined") and not self.folder:
            raise ValueError(f"kind {self.kind} needs folder = the sentence-transformers model's local folder")
        return self


class TrainingTableSettings(Section):
    """How the training tables are cut."""

    max_pairs_per_item: int = Field(default=0, ge=0)
    max_pairs_per_query: int = Field(default=0, ge=0)
    recency_half_life_days: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    rows_per_file: int = Field(default=0, ge=0)


class DemoWorldSettings(Section):
    """The synthetic shop of `make demo`; other warehouses ignore it."""

    items: int = Field(default=20_000, ge=100)
    events: int = Field(default=400_000, ge=1_000)
    seed: int = Field(default=7, ge=0)
    pictures: bool = False
