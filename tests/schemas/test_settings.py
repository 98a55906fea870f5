"""Settings: what is impossible is refused with the key's name and the fix."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest

from schemas.errors import InputError, SettingsError
from schemas.settings import Settings, load_settings
from schemas.tables import ITEM_FEATURES, ITEMS

MINIMAL = """
[warehouse]
uri = "warehouse"
[dates]
as_of = 2026-03-01
train_days = 20
gap_days = 2
test_days = 7
"""

Load = Callable[..., Settings]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def write_and_load(text: str = "", *overrides: str) -> Settings:
        path = tmp_path / "shop.toml"
        path.write_text(MINIMAL + text, encoding="utf-8")
        return load_settings(path, list(overrides))

    return write_and_load


def test_a_minimal_file_has_the_papers_tasks(load: Load) -> None:
    settings = load()
    names = [entry.task.name for entry in settings.tasks]
    assert names[0] == "closeup_click"
    assert names[-1] == "search_checkout"
    assert len(names) == 8


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ('{model_id = "string"}', "'model_id'"),
        ('{InStock = "boolean"}', "'InStock'"),
        ('{colors = "string"}', "colors"),
        ('{price = "money"}', "price"),
    ],
)
def test_a_filter_is_a_column_of_its_own_of_one_value_an_item(load: Load, filters: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load(f"[score]\nfilters = {filters}")
    score = load('[score]\nfilters = {brand = "string"}').score
    assert score.filtered(ITEMS) == ITEMS
    # Of a table that was written before the settings named it, the error says which stage to run.
    assert "build_item_features brings here from items: run it again" in score.filtered(ITEM_FEATURES).columns[-1].doc


def test_the_windows_follow_each_other(load: Load) -> None:
    dates = load().dates
    assert [dates.train_start, dates.train_end, dates.test_start, dates.end] == [
        datetime(2026, 1, 31, tzinfo=timezone.utc),
        datetime(2026, 2, 20, tzinfo=timezone.utc),
        datetime(2026, 2, 22, tzinfo=timezone.utc),
        datetime(2026, 3, 1, tzinfo=timezone.utc),
    ]


@pytest.mark.parametrize(
    ("train_days", "validation_days", "days"),
    [(20, '"auto"', 2), (365, '"auto"', 36), (9, '"auto"', 1), (1, '"auto"', 0), (20, "0", 0), (20, "19", 19)],
)
def test_the_validation_window_is_the_end_of_the_training_window(
    load: Load, train_days: int, validation_days: str, days: int
) -> None:
    dates = load("", f"dates.train_days={train_days}", f"dates.validation_days={validation_days}").dates
    assert (dates.train_end - dates.validation_start).days == days
    assert dates.validation_start > dates.train_start


@pytest.mark.parametrize(
    ("half_life", "train_days", "days"), [('"auto"', 120, 0), ('"auto"', 121, 120), ("7.5", 9, 7.5)]
)
def test_a_half_life_may_follow_from_the_length_of_the_log(
    load: Load, half_life: str, train_days: int, days: float
) -> None:
    chosen = (f"training_tables.recency_half_life_days={half_life}", f"dates.train_days={train_days}")
    settings = load("", *chosen)
    assert settings.half_life_days == days


def test_a_shop_can_name_its_own_tasks(load: Load) -> None:
    settings = load('[[tasks]]\nquery_kind = "listing"\nengagement = "inquiry"\nshare = 2\n')
    assert [(entry.task.name, entry.share) for entry in settings.tasks] == [("listing_inquiry", 2.0)]


def test_an_override_wins_and_is_read_as_toml_or_text(load: Load) -> None:
    settings = load(
        "[train]\nsteps = 5\n",
        "train.steps=7",
        "warehouse.uri=/data/läden/a b",
        "dates.as_of=2026-04-01",
        'model.sequence=["text"]',
        "inputs.has_images=false",
    )
    assert settings.train.steps == 7
    assert settings.warehouse.uri == "/data/läden/a b"
    assert settings.dates.as_of.month == 4
    assert settings.model.sequence == ("text",)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[train]\nstep = 5\n", ["train.step", "unknown key", "spelling"]),
        ("[trian]\nsteps = 5\n", ["trian", "unknown key"]),
        ("[train]\nsteps = 5.5\n", ["train.steps", "integer", "found 5.5"]),
        ('[train]\nsteps = "5"\n', ["train.steps", "integer", "found '5'"]),
        ("[train]\nsteps = true\n", ["train.steps", "integer", "found True"]),
        ("[train]\nsteps = 0\n", ["train.steps", "greater than or equal to 1", "found 0"]),
        ("[train]\nlearning_rate = nan\n", ["train.learning_rate", "greater than 0"]),
        ('[train]\nprecision = "float16"\n', ["train.precision", "'auto', 'float32' or 'bfloat16'", "found 'float16'"]),
        ('[[tasks]]\nquery_kind = "Search"\nengagement = "click"\n', ["tasks.0.query_kind", "found 'Search'"]),
        ('[[tasks]]\nquery_kind = "search"\n', ["tasks.0.engagement", "missing", "add it"]),
        ("tasks = []\n", ["name at least one task"]),
    ],
)
def test_a_wrong_key_or_type_is_named(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(text + MINIMAL if text.startswith("tasks") else MINIMAL + text)
    with pytest.raises(SettingsError) as caught:
        load_settings(path)
    assert all(part in str(caught.value) for part in [*parts, str(path)]), str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["model.width=100"], ["model", "width 100", "heads 8", "change one"]),
        (['model.sequence=["text", "text"]'], ["model", "sequence", "each once"]),
        (["model.sequence=[]"], ["model", "sequence is empty", "residual = true"]),
        (["model.item_map=true"], ["model", "item_map", "set residual = true"]),
        (["preset=paper", "inputs.has_images=false"], ["inputs.has_images", 'take "images" out of model.sequence']),
        (["loss.temperature=200"], ["loss", "max_temperature", "raise the other"]),
        (["dates.validation_days=20"], ["dates", "validation_days", "fewer than the 20 of train_days"]),
        (["query_encoder.kind=sentence_transformers"], ["query_encoder", "folder", "local folder"]),
        (["train.processes=3"], ["train", "batch_size", "multiple of processes (3)"]),
        (["train.batch_size=4", "train.negative_count=4"], ["train.batch_size", "every task", "raise it"]),
        (['features.text_features=["titel"]'], ["features.text_features", "title", "remove ['titel']"]),
        (['features.text_features=["size", "size"]'], ["features.text_features", "repeats"]),
        (['score.short_vectors=["int4"]'], ["score.short_vectors", "'int4' is no short form", "such as int8:64"]),
        (['score.short_vectors=["int8", "int8:256"]'], ["score.short_vectors", "each short form once"]),
        (["loss.prefixes=[256]"], ["loss.prefixes", "less than 256"]),
    ],
)
def test_an_impossible_combination_is_named(load: Load, overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load("", *overrides)
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "warehouse" not in message, "the message repeats the whole file"


@pytest.mark.parametrize(
    ("entries", "form", "parts"),
    [
        ([("search", "return")], "mixed", ["negatives", 'set loss.form = "full"', "'mixed'"]),
        ([("search", "return")] * 2, "full", ["negatives", "each query kind and engagement once"]),
        ([("search", "click")], "full", ["negatives", "click is the engagement of a task"]),
        ([("photo", "return")], "full", ["negatives", "no task has queries of the kind photo"]),
    ],
)
def test_impossible_negatives_are_named(
    load: Load, entries: list[tuple[str, str]], form: str, parts: list[str]
) -> None:
    named = [f'[[negatives]]\nquery_kind = "{kind}"\nengagement = "{engagement}"\n' for kind, engagement in entries]
    with pytest.raises(SettingsError) as caught:
        load("".join(named), f"loss.form={form}")
    message = str(caught.value)
    assert all(part in message for part in parts), message


def test_negatives_have_a_weight_and_leave_the_form_of_the_loss_to_the_preset(load: Load) -> None:
    (entry,) = load('[[negatives]]\nquery_kind = "search"\nengagement = "return"\n').negatives
    assert (entry.name, entry.weight) == ("search_return", 1.0)


def test_every_fault_is_listed_at_once(load: Load) -> None:
    with pytest.raises(SettingsError) as caught:
        load("", "train.steps=0", "train.stpes=1", "score.rows_per_batch=many")
    assert [name in str(caught.value) for name in ("train.steps", "train.stpes", "score.rows_per_batch")] == [True] * 3


@pytest.mark.parametrize("override", ["steps=5", "train.steps", "train.=5", ".steps=5", "warehouse.uri.deep=5"])
def test_a_malformed_override_is_quoted(load: Load, override: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load("", override)
    assert f"--set {override}" in str(caught.value)


def test_an_override_cannot_reach_into_the_list_of_tasks(load: Load) -> None:
    with pytest.raises(SettingsError, match=r"--set tasks\.0\.share=2: tasks is no section"):
        load('[[tasks]]\nquery_kind = "listing"\nengagement = "inquiry"\n', "tasks.0.share=2")


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.toml does not exist; copy pipeline\.toml"):
        load_settings(tmp_path / "absent.toml")
    (tmp_path / "broken.toml").write_text("[train\n")
    with pytest.raises(SettingsError, match=r"broken\.toml is no valid TOML"):
        load_settings(tmp_path / "broken.toml")
    (tmp_path / "latin.toml").write_bytes('[warehouse]\nuri = "läden"\n'.encode("latin-1"))
    with pytest.raises(SettingsError, match=r"latin\.toml cannot be read.*UTF-8"):
        load_settings(tmp_path / "latin.toml")
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(tmp_path)


def test_tables_lie_in_the_warehouse_unless_named(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load('[inputs]\nitems = "s3://shop/items"\n')
    assert settings.table_uri("items") == "s3://shop/items"
    assert settings.table_uri("queries") == f"{tmp_path}/warehouse/queries"
    assert settings.table_uri("item_features") == f"{tmp_path}/warehouse/item_features"


@pytest.mark.parametrize("name", ["#1", "50%20x", "a?b", "a`b", "a\\b", "[1]", "a\tb", "a\nb", "a^b", "a|b"])
@pytest.mark.parametrize("key", ["warehouse.uri", "inputs.items"])
@pytest.mark.fault("t12", "loud", "a path with # % ? [ ] or a line break, which engines read differently")
def test_a_path_that_engines_read_differently_is_refused_before_anything_runs(
    name: str, key: str, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match=f"{key}: not every engine reads a path with .* alike: rename the folder"):
        load("", f"{key}={json.dumps(f'/shops/{name}/here')}")
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(SettingsError, match=f"warehouse.uri: .* in {re.escape(str(tmp_path))}"):
        load("", "warehouse.uri=here")


@pytest.mark.parametrize("name", ["my shop", "w\u00e4re", "\U0001fa91", "a,b;c", "{a} *", "it's (1) & 2 = 3 + !"])
def test_a_path_that_all_engines_read_alike_is_taken(name: str, load: Load) -> None:
    uri = f"/shops/{name}/here"
    assert load("", f"warehouse.uri={json.dumps(uri, ensure_ascii=False)}").table_uri("items") == f"{uri}/items"


@pytest.mark.parametrize("is_override", [False, True])
def test_the_share_of_rejected_events_may_still_stand_where_it_stood(
    load: Load, capsys: pytest.CaptureFixture[str], is_override: bool
) -> None:
    text, override = "[training_tables]\nmax_reject_share = 0.5\n", "training_tables.max_reject_share=0.5"
    settings = load("", override) if is_override else load(text)
    assert settings.max_reject_share.engagement_logs == 0.5
    assert settings.max_reject_share.items == 0.1
    moved = "training_tables.max_reject_share is now max_reject_share.engagement_logs"
    assert f"warning: {moved}" in capsys.readouterr().err
    with pytest.raises(SettingsError, match=f"{moved}: give only that"):
        load(text + "[max_reject_share]\nengagement_logs = 0.4\n")


@pytest.mark.fault("C15", "recovered", "relative places in the settings of a process that runs in another folder")
def test_settings_travel_with_absolute_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "shop.toml"
    path.write_text('[warehouse]\nuri = "./w"\n[inputs]\nitems = "in/items"\nqueries = "s3://shop/queries"\n'
                    "[dates]\nas_of = 2026-03-01\ntrain_days = 20\ntest_days = 7\n")  # fmt: skip
    sent = Settings.model_validate_json(load_settings(path).with_absolute_places().model_dump_json())
    monkeypatch.chdir("/")
    assert sent.layout.uri == f"{tmp_path}/w"
    assert sent.table_uri("items") == f"{tmp_path}/in/items"
    assert sent.table_uri("queries") == "s3://shop/queries"
    assert sent.table_uri("engagement_logs") == f"{tmp_path}/w/engagement_logs"


# ---------------------------------------------------------------- names


def test_an_input_may_be_named_and_a_warehouse_registered(load: Load) -> None:
    settings = load(
        '[inputs]\nitems = "main.shop.items"\nqueries = "s3://shop/queries"\n', "warehouse.name=main.`my shop`"
    )
    assert settings.table_name("items") == "main.shop.items"
    assert settings.table_name("queries") == ""  # known by its place alone
    assert settings.table_name("engagement_logs") == "`main`.`my shop`.`engagement_logs`"
    assert settings.table_name("training_closeup_click") == "`main`.`my shop`.`training_closeup_click`"
    assert settings.with_absolute_places().inputs.items == "main.shop.items"
    plain = load()
    assert [plain.table_name(name) for name in ("items", "item_embeddings")] == ["", ""]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("warehouse.uri=main.itemsage", r"warehouse\.uri: names a table or a schema; .* write \./main\.itemsage if"),
        ("warehouse.name=a.b.c", r"warehouse\.name: write catalog\.schema"),
        ("warehouse.name=my-shop", r"warehouse\.name: write catalog\.schema"),
        ("warehouse.name=main/shop", r"warehouse\.name: write catalog\.schema"),
        ("inputs.items=main.shop.`a\tb`", r"inputs\.items: not every engine reads a path with"),
        ("catalog.unity_uri=http://example.org", r"catalog\.unity_uri: write https://host; http:// is taken"),
        ("catalog.unity_uri=https://me:secret@example.org", r"catalog\.unity_uri: holds a key or a password"),
    ],
)  # fmt: skip
def test_a_name_that_is_none_is_refused(load: Load, override: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        load("", override)
    assert "secret" not in str(caught.value)


# ---------------------------------------------------------------- allowed roots


@pytest.fixture
def bounded(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Settings that allow the folder `shop` alone, in which the process runs."""
    (tmp_path / "shop" / "warehouse").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "shop" / "link").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "shop")

    def write_and_load(*overrides: str) -> Settings:
        return load('[security]\nallowed_roots = [".", "s3://lake/shop"]\n', *overrides)

    return write_and_load


@pytest.mark.parametrize(
    "place",
    ["in/items", "./items.parquet", "../shop/in", "s3://lake/shop/items", "s3a://lake/shop/items", "main.shop.items"],
)
def test_what_lies_below_an_allowed_root_is_taken(bounded: Load, place: str) -> None:
    assert bounded(f"inputs.items={place}").inputs.items == place
    assert Settings.model_validate_json(bounded().with_absolute_places().model_dump_json()) is not None


@pytest.mark.parametrize(
    ("key", "place", "found"),
    [
        ("inputs.items", "../elsewhere", "/elsewhere"),
        ("inputs.queries", "/etc/passwd", "/etc/passwd"),
        ("inputs.item_images", "file:///etc", "/etc"),
        ("inputs.engagement_logs", "link/log", "/elsewhere/log"),
        ("warehouse.uri", "in/../../elsewhere", "/elsewhere"),
        ("warehouse.uri", "s3://lake/shop/../else", "no plain URI"),
        ("inputs.items", "s3://another/shop", "s3://another/shop"),
        ("query_encoder.folder", "link", "/elsewhere"),
    ],
)
def test_what_leads_out_of_the_allowed_roots_is_refused(bounded: Load, key: str, place: str, found: str) -> None:
    with pytest.raises(SettingsError, match=rf"{re.escape(key)}: expected a place below one of security\.allowed_roots "
                       rf"\(\., s3://lake/shop\); found {re.escape(place)}, which is \S*{found}\."):  # fmt: skip
        bounded(f"{key}={place}")


def test_no_argument_changes_what_is_allowed(bounded: Load) -> None:
    for override in ('security.allowed_roots=["/"]', "security.allowed_roots=[]"):
        with pytest.raises(SettingsError, match="what is allowed stands in the settings file alone"):
            bounded(override)


def test_a_name_that_became_a_path_is_held_to_the_roots_too(bounded: Load, tmp_path: Path) -> None:
    settings = bounded("inputs.items=link.items")
    (tmp_path / "shop" / "link.items").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"table items, inputs\.items: expected a place below security\.allowed_roots"):
        settings.table_uri("items")
