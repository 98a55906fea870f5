"""Gates before a catalog's embeddings are published: what is about to replace the published version must resemble it.

A catalog of one item, or half of one, looks like any other to the stages before. Each gate compares with the run that
published last, as its record says; the first publication has nothing to be compared with. `[gates]` holds the limits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from schemas.contracts import date_of
from schemas.errors import GateError, InputError
from schemas.metrics import Health, ItemMetrics, ScoreMetrics, ShortMetrics
from schemas.published import Published, find_previous, published_versions
from schemas.records import RunRecord
from schemas.settings import GateSettings, Settings
from schemas.tables import ITEM_EMBEDDINGS

OVERRIDE = "If it is meant so, publish this once with `--set gates.override=true`."


@dataclass(frozen=True)
class Failure:
    """A gate that did not open: what it expected and what it found, with the numbers."""

    expected: str
    found: str


@dataclass(frozen=True)
class IdCounts:
    """Distinct item ids of the version that was published before and of the log, and how many are in the new one."""

    previous: int = 0
    previous_kept: int = 0
    logged: int = 0
    logged_kept: int = 0


def published(settings: Settings) -> RunRecord[ScoreMetrics] | None:
    """The record of the run that published last; None where nothing is published.

    Raises:
        InputError: the record is damaged; with the override it counts as none.
    """
    try:
        return find_previous(settings)
    except InputError as error:
        if settings.gates.override:
            return None
        cure = f"Without it nothing says what is published. {OVERRIDE}"
        raise InputError(error.subject, error.part, expected=error.expected, found=error.found, cure=cure) from error


def require_newer_date(previous: RunRecord[ScoreMetrics] | None, settings: Settings) -> None:
    """Refuse to publish an older logical date over a newer one; cheap, so that a run asks before all its work.

    Raises:
        GateError: the published version is of a later date, and the override is not set.
    """
    stop([*_date(previous, settings)], settings.gates)


def require_sound_catalog(
    previous: RunRecord[ScoreMetrics] | None, made: ItemMetrics, row_count: int, settings: Settings
) -> None:
    """Ask every gate that needs no table: dates, rows, shares of items without text and without images.

    Args:
        previous: The run that published last.
        made: What build_item_features counted of the items to be published.
        row_count: How many there are.
        settings: The settings.

    Raises:
        GateError: a gate did not open, and the override is not set.
    """
    stop([*_date(previous, settings), *_rows(previous, made, row_count, settings.gates)], settings.gates)


def require_known_ids(counts: IdCounts, gates: GateSettings) -> None:
    """Ask the gates that compare ids: with the published version, and with the log.

    Raises:
        GateError: a gate did not open, and the override is not set.
    """
    failures = []
    if counts.previous_kept < gates.min_id_overlap * counts.previous:
        share = counts.previous_kept / counts.previous
        expected = f"{gates.min_id_overlap:.0%} of the {counts.previous:,} published ids (gates.min_id_overlap)"
        failures.append(Failure(expected, f"{counts.previous_kept:,} of them ({share:.1%})"))
    if counts.logged_kept < gates.min_log_coverage * counts.logged:
        share = counts.logged_kept / counts.logged
        expected = (
            f"{gates.min_log_coverage:.0%} of the {counts.logged:,} items in item_counts (gates.min_log_coverage)"
        )
        failures.append(Failure(expected, f"{counts.logged_kept:,} of them ({share:.1%})"))
    stop(failures, gates)


def require_not_rolled_back(settings: Settings, model_id: str) -> None:
    """Refuse to publish once more what somebody has rolled back from, also where other runs have published since.

    A rollback between versions of one model is about its items: those of a later date may be published.

    Raises:
        GateError: it is of that model, or of that date, and the override is not set.
    """
    known = published_versions(settings.layout)
    for one in known:
        left = one.rolled_back_from
        if left and left["model_id"] == model_id:
            stop([*_left(one, left, known, settings)], settings.gates)
            return
        if one.model_id == model_id:  # it was brought back, or published again
            return


def _left(back: Published, left: dict[str, Any], known: list[Published], settings: Settings) -> Iterator[Failure]:
    model_id, date = left["model_id"], str(settings.dates.as_of)
    if back.model_id != model_id:
        expected = f"another model than {model_id}, from which version {back.version} was rolled back"
        yield Failure(expected, f"{model_id} once more")
        return
    of_left = next((one.as_of for one in known if one.version == left["version"]), "")
    if date <= of_left:
        expected = f"a later date than {of_left}, whose items version {back.version} was rolled back from"
        yield Failure(expected, date)


def require_sound_vectors(health: Health, previous: Health | None, gates: GateSettings) -> None:
    """Ask the gates that look at vectors: collapse, duplicates, neighbours, drift and canaries.

    Args:
        health: Of the vectors that are to be published.
        previous: Of those that are published; None where nothing is, or nobody looked.
        gates: The limits.

    Raises:
        GateError: a gate did not open, and the override is not set.
    """
    stop([*_health(health, previous, gates)], gates)


def require_small_loss(short: ShortMetrics, gates: GateSettings) -> None:
    """Ask whether a short form loses more of the recall of the 256 floats than it may, and than chance explains.

    Args:
        short: The forms that are to be published, and what each loses on the validation pairs.
        gates: The limits.

    Raises:
        GateError: one does, and the override is not set.
    """
    stop([*_losses(short, gates)], gates)


def _losses(short: ShortMetrics, gates: GateSettings) -> Iterator[Failure]:
    for name, loss in short.losses.items():
        allowed = gates.max_recall_loss_short * loss.full
        if loss.low is not None and loss.low > allowed:
            limit = f"gates.max_recall_loss_short {gates.max_recall_loss_short:g}"
            expected = (
                f"{name} to keep {loss.full - allowed:.4f} of the recall of {loss.full:.4f} of 256 floats ({limit})"
            )
            yield Failure(expected, f"{loss.recall:.4f} ({-loss.share:+.1%})")


def stop(failures: list[Failure], gates: GateSettings) -> None:
    """Raise for the gates that did not open, all in one; where they are overridden, say them."""
    if not failures:
        return
    if gates.override:
        for failure in failures:
            print(f"  gate overridden: expected {failure.expected}; found {failure.found}", flush=True)
        return
    raise GateError(
        ITEM_EMBEDDINGS.name,
        "gates",
        expected="; ".join(failure.expected for failure in failures),
        found="; ".join(failure.found for failure in failures),
        cure=f"Nothing was published, the version before stands. Look for the cause in the inputs. {OVERRIDE}",
    )


def _health(health: Health, previous: Health | None, gates: GateSettings) -> Iterator[Failure]:
    if not health.sampled:
        return
    least = gates.min_dimensions
    if previous is not None:
        least = max(least, previous.dimensions * (1 - gates.max_dimension_loss))
        most = previous.near_duplicates + gates.max_rise_near_duplicates
        if health.near_duplicates > most + 1e-9:
            expected = (
                f"at most {most:.1%} of the items on an item of other features (gates.max_rise_near_duplicates "
                f"{gates.max_rise_near_duplicates:g})"
            )
            yield Failure(expected, f"{health.near_duplicates:.1%} (before {previous.near_duplicates:.1%})")
    if health.spread < gates.min_spread and health.sampled > 1:
        expected = f"vectors that lie at least {gates.min_spread:g} from their mean (gates.min_spread)"
        yield Failure(expected, f"{health.spread:g}")
    if health.dimensions < least and health.sampled > least + 1:
        expected = f"vectors that use at least {least:.1f} dimensions (gates.min_dimensions, max_dimension_loss)"
        yield Failure(expected, f"{health.dimensions:.1f}")
    if health.neighbour_overlap is not None and health.neighbour_overlap < gates.min_neighbour_overlap:
        expected = f"{gates.min_neighbour_overlap:.1%} of the ten nearest of before (gates.min_neighbour_overlap)"
        yield Failure(expected, f"{health.neighbour_overlap:.1%}")
    if health.drift is not None and health.drift > gates.max_drift:
        expected = f"items as before within {gates.max_drift:g} of their vectors, as of one model (gates.max_drift)"
        yield Failure(expected, f"{health.drift:g}")
    for name in sorted(name for name, is_found in health.canaries.items() if not is_found):
        yield Failure(f"{name} to find what its [[canaries]] names", "that it does not")


def _date(previous: RunRecord[ScoreMetrics] | None, settings: Settings) -> Iterator[Failure]:
    date, published = str(settings.dates.as_of), date_of(previous) if previous else ""
    if published > date:
        yield Failure(f"dates.as_of of {published} or later, which is published", date)


def _rows(
    previous: RunRecord[ScoreMetrics] | None, made: ItemMetrics, row_count: int, gates: GateSettings
) -> Iterator[Failure]:
    if previous is None:
        return
    before = previous.output(ITEM_EMBEDDINGS.name).rows
    low, high = before * (1 - gates.max_row_loss), before * (1 + gates.max_row_gain)
    if not low <= row_count <= high:
        limits = f"gates.max_row_loss {gates.max_row_loss:g}, max_row_gain {gates.max_row_gain:g}"
        expected = f"{low:,.0f} to {high:,.0f} items, as {before:,} are published ({limits})"
        yield Failure(expected, f"{row_count:,} items ({row_count / max(before, 1) - 1:+.1%})")
    for name, was, now, key, limit in (
        ("text", previous.metrics.items_without_text, made.items_without_text, "max_rise_without_text",
         gates.max_rise_without_text),
        ("images", previous.metrics.items_without_images, made.items_without_images, "max_rise_without_images",
         gates.max_rise_without_images),
    ):  # fmt: skip
        if was is None or not before or now / row_count - was / before <= limit + 1e-9:
            continue
        expected = f"at most {was / before + limit:.1%} of the items without {name} (gates.{key} {limit:g})"
        yield Failure(expected, f"{now:,} of {row_count:,} ({now / row_count:.1%}; before {was / before:.1%})")
