"""From one embedding space to the next on a tiny shop: an encoder is trained, its vectors stand beside what is live, go
live by one commit, and back; whoever reads meanwhile has the items, queries and texts of one space."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable, write_deltalake

from itemsage_model.encoders.frozen_text.stored import load
from jobs import make_demo_world
from pipeline import commands
from retrieval.query_side import load_parts
from schemas.contracts import ITEM_TEXT
from schemas.errors import InputError
from schemas.published import Published, live, published_versions
from schemas.records import read_record
from schemas.settings import Settings, load_settings
from schemas.stages import EMBED_QUERIES, TRAIN_QUERY_ENCODER

pytest.importorskip("transformers", reason="the extra sentence-transformers is not installed")

# It runs the pipeline twice.
pytestmark = pytest.mark.timeout(1800)

SHOP = """
[dates]
as_of = 2026-03-01
train_days = 20
gap_days = 1
test_days = 7
[[tasks]]
query_kind = "search"
engagement = "click"
[features]
char_trigrams = 500
word_unigrams = 500
word_bigrams = 200
[query_encoder]
lsa_vocabulary = 400
[search_text]
max_tokens = 16
item_width = 16
batch_size = 32
negative_count = 32
hard_negatives = 20
steps = 4
warmup_steps = 1
validate_every = 0
[model]
sequence = ["text", "images", "frozen_text"]
query_adapter = true
width = 32
heads = 4
feed_forward_width = 32
head_width = 32
hash_rows = 500
[loss]
sketch_width = 4096
[train]
batch_size = 50
negative_count = 50
steps = 6
warmup_steps = 2
validate_every = 0
threads = 1
[demo_world]
items = 200
events = 3000
seed = 3
[max_reject_share]
engagement_logs = 0.9
"""
TEXTS = ["red shoes", "rde sheos", "DIN 912 M6x20", "新款跑鞋红色"]
TO_TRAINED = ("--set", "query_encoder.kind=trained", "--set", "score.publish=candidate")


@pytest.fixture(scope="module")
def settings_file(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings of a shop with its input tables; nobody has embedded its searches yet."""
    folder = tmp_path_factory.mktemp("move")
    path = folder / "shop.toml"
    path.write_text(f'preset = "paper"\n[warehouse]\nuri = "{folder}/warehouse"\n{SHOP}')
    settings = load_settings(path)
    make_demo_world.run(spark, settings)
    uri = settings.table_uri("queries")
    kept = DeltaTable(uri).to_pyarrow_table().drop(["query_embedding", "embedding_space"])
    searches = kept.filter(pc.equal(kept["query_kind"], "search"))
    write_deltalake(uri, searches, mode="overwrite", schema_mode="overwrite")
    return path


@pytest.fixture(scope="module")
def front_door(settings_file: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`itemsage COMMAND ...` on the shop's settings; fails where its exit code is another than `code`."""

    def run(command: str, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", command, "--settings", str(settings_file), *arguments],
            capture_output=True, text=True, check=False, cwd=commands.ROOT, env=commands.environment(), timeout=900,
        )  # fmt: skip
        assert done.returncode == code, done.stdout[-4000:] + done.stderr[-2000:]
        return done

    return run


def space_of_live(settings: Settings) -> str:
    """The one space of everything that is live: items and queries of one model, and the encoder of its texts."""
    found = live(settings.layout)
    assert found is not None
    models = {str(name) for part in (found.items(["model_id"]), found.queries(["model_id"])) for batch in part
              for name in set(batch.column(0).to_pylist())}  # fmt: skip
    assert models == {found.model_id}
    (space,) = set(found.metrics.spaces.values())
    assert found.note["made_with"][ITEM_TEXT] == space
    encoder = load_parts(found).encoder
    assert encoder is not None
    assert encoder.name == space
    return space


@contextmanager
def read_again_and_again(settings: Settings) -> Iterator[list[str]]:
    """The spaces that a reader finds live, one after the other, while something else goes on; each time it is one."""
    found: list[str] = []
    failed: list[BaseException] = []
    ended = Event()

    def read() -> None:
        while not ended.wait(0.2):
            try:
                space = space_of_live(settings)
            except BaseException as error:
                failed.append(error)
                return
            if not found or found[-1] != space:
                found.append(space)

    reader = Thread(target=read)
    reader.start()
    try:
        yield found
    finally:
        ended.set()
        reader.join()
    if failed:
        raise failed[0]


def frozen_texts(found: Published) -> Any:
    encoder = load_parts(found).encoder
    assert encoder is not None
    return encoder.encode(TEXTS)


def test_a_whole_space_goes_live_in_one_step_and_back(
    settings_file: Path, front_door: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    front_door("run")
    settings = load_settings(settings_file)
    first = live(settings.layout)
    assert first is not None
    old = space_of_live(settings)
    assert old.startswith("lsa-")
    texts = frozen_texts(first)

    # A new encoder touches nothing that is in use.
    front_door("build-query-pairs")
    front_door("train-query-encoder")
    assert read_record(settings.layout, TRAIN_QUERY_ENCODER).metrics.steps == 4
    assert live(settings.layout) == first
    assert load(settings.layout.query_encoder).name == old

    # Queries, items and item tower of the new space are made beside what is live.
    with read_again_and_again(settings) as spaces:
        front_door("run", "--from", "embed_queries", *TO_TRAINED)
        assert live(settings.layout) == first
    assert spaces == [old]
    new = read_record(settings.layout, EMBED_QUERIES).metrics.encoder
    assert new is not None
    assert new.startswith("trained-")
    # The warehouse's own encoder is the new one by now; texts of what is live go through the old one all the same.
    assert load(settings.layout.query_encoder).name == new
    np.testing.assert_array_equal(frozen_texts(first), texts)

    with read_again_and_again(settings) as spaces:
        front_door("publish", *TO_TRAINED)
    assert spaces in ([old, new], [new], [old])  # as often as the reader came by: one of the two, never both
    assert space_of_live(settings) == new
    second = live(settings.layout)
    assert second is not None
    with pytest.raises(InputError, match=f"search queries: expected queries of the space {new}.*of the space {old}"):
        second.require_space("search", old)

    with read_again_and_again(settings) as spaces:
        front_door("rollback")
    assert set(spaces) <= {old, new}
    assert space_of_live(settings) == old
    third = live(settings.layout)
    assert third is not None
    assert (third.model_id, third.run_id) == (first.model_id, first.run_id)
    np.testing.assert_array_equal(frozen_texts(third), texts)

    # The old tower is the one to score with again, and refuses the features and queries of the new space.
    said = front_door("score", *TO_TRAINED[:2], code=3).stdout
    assert json.loads(said.splitlines()[-1])["exit_code"] == 3
    assert f"{old} in what" in said
    assert f"{new} in what" in said
    assert live(settings.layout) == third
    assert [one.model_id for one in published_versions(settings.layout)][:2] == [first.model_id, second.model_id]
