"""The tokeniser: what the tokens of a text are, and that the fast way to ids is the obvious one."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itemsage_model.text import tokenizer
from itemsage_model.text.tokenizer import Tokenizer, load_tokenizer, pack_vocabulary, take_runs
from itemsage_model.text.tokens import MAX_CHARACTERS, token_kinds
from itemsage_model.text.words import _IDEOGRAPHS, _INVISIBLE

# Characters that tokenisers stumble over, mixed with ordinary ones.
AWKWARD = (
    "\U0010ffff\U00020000"
    "aAbé#-&.' \t\n\u00a0\u3000\u200b\u200d\ufeff\u00ad\ufe0f\u0301\u00a8\ufb01İßΣς中あ한👍🏽₂\x00\x1c\x1f\u2028"
)
TEXTS = st.one_of(st.text(st.sampled_from(AWKWARD), max_size=30), st.text(max_size=30))


def obvious(text: str) -> tuple[list[str], list[str], list[str]]:
    """The definition, character by character, without tables, caches or pieces."""
    clean = ""
    for character in unicodedata.normalize("NFKC", text):
        category = unicodedata.category(character)
        ignorable = any(low <= ord(character) <= high for low, high in _INVISIBLE)
        if character.isspace() or not (category in ("Cc", "Cf", "Cs") or ignorable):
            clean += character.casefold()
    clean = unicodedata.normalize("NFKC", clean)
    spaced = ""
    for character in clean:
        is_ideograph = any(low <= ord(character) <= high for low, high in _IDEOGRAPHS)
        is_punctuation = unicodedata.category(character).startswith("P")
        spaced += " " if is_punctuation else f" {character} " if is_ideograph else character
    words = spaced.split()
    marked = "#" + "#".join(clean.split()) + "#"
    trigrams = [a + b + c for a, b, c in zip(marked, marked[1:], marked[2:], strict=False)]
    return trigrams, words, [f"{a}#{b}" for a, b in pairwise(words)]


GOLDEN = [
    ("", [], [], []),
    (" \t\u00a0\u3000\n", [], [], []),
    ("\u200b\ufeff\x00", [], [], []),
    ("a", ["#a#"], ["a"], []),
    ("--", ["#--", "--#"], [], []),
    ("Red  mug", ["#re", "red", "ed#", "d#m", "#mu", "mug", "ug#"], ["red", "mug"], ["red#mug"]),
    ("A&B", ["#a&", "a&b", "&b#"], ["a", "b"], ["a#b"]),
    ("tea - pot", ["#te", "tea", "ea#", "a#-", "#-#", "-#p", "#po", "pot", "ot#"], ["tea", "pot"], ["tea#pot"]),
    ("CAFÉ", ["#ca", "caf", "afé", "fé#"], ["café"], []),
    ("cafe\u0301", ["#ca", "caf", "afé", "fé#"], ["café"], []),
    ("caf\u00ade\u200b\u0301", ["#ca", "caf", "afé", "fé#"], ["café"], []),
    ("Straße ﬁn", ["#st", "str", "tra", "ras", "ass", "sse", "se#", "e#f", "#fi", "fin", "in#"],
     ["strasse", "fin"], ["strasse#fin"]),
    ("東京tower", ["#東京", "東京t", "京to", "tow", "owe", "wer", "er#"], ["東", "京", "tower"], ["東#京", "京#tower"]),
    ("ﾊﾝｶﾞｰ", ["#ハン", "ハンガ", "ンガー", "ガー#"], ["ハンガー"], []),
    ("👍🏽 ok❤\ufe0f", ["#👍🏽", "👍🏽#", "🏽#o", "#ok", "ok❤", "k❤#"], ["👍🏽", "ok❤"], ["👍🏽#ok❤"]),
    ("Mug™", ["#mu", "mug", "ugt", "gtm", "tm#"], ["mugtm"], []),
    ("a\u00a0b", ["#a#", "a#b", "#b#"], ["a", "b"], ["a#b"]),
    ("５ｃｍ, ²", ["#5c", "5cm", "cm,", "m,#", ",#2", "#2#"], ["5cm", "2"], ["5cm#2"]),
    ("c# $9", ["#c#", "c##", "##$", "#$9", "$9#"], ["c", "$9"], ["c#$9"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "trigrams", "unigrams", "bigrams"), GOLDEN)
@pytest.mark.fault("E4", "loud", "any change of the tokens of texts in many scripts")
def test_golden_texts(text: str, trigrams: list[str], unigrams: list[str], bigrams: list[str]) -> None:
    assert token_kinds(text) == (trigrams, unigrams, bigrams)


@given(TEXTS)
@settings(max_examples=500, deadline=None)
def test_tokens_are_those_of_the_definition(text: str) -> None:
    assert token_kinds(text) == obvious(text)


@given(TEXTS)
@settings(deadline=None)
@pytest.mark.fault("E4", "recovered", "texts composed and decomposed, with zero-width characters and no-break spaces")
def test_composed_and_decomposed_upper_and_lower_text_have_equal_tokens(text: str) -> None:
    assert token_kinds(unicodedata.normalize("NFD", text)) == token_kinds(unicodedata.normalize("NFC", text))
    assert token_kinds(f"\u200b{text}\ufeff") == token_kinds(f" {text}\n")


@given(st.lists(TEXTS, max_size=8), st.integers(0, 3))
@settings(max_examples=500, deadline=None)
def test_ids_are_those_of_a_look_up_token_by_token(texts: list[str], unused_kind: int) -> None:
    # Every other token of the texts is known; one kind (or none) is not in use.
    known = [sorted({token for text in texts for token in obvious(text)[kind]})[::2] for kind in range(3)]
    if unused_kind < 3:
        known[unused_kind] = []
    ids = {(kind, token): 0 for kind in range(3) for token in known[kind]}
    ids = {key: number for number, key in enumerate(ids)}
    encoded = Tokenizer(*known).encode_column(pa.array(texts, pa.string()))
    ends = np.cumsum(encoded.counts)
    for text, end, count, missing in zip(texts, ends, encoded.counts, encoded.out_of_vocabulary, strict=True):
        tokens = [(kind, token) for kind in range(3) if known[kind] for token in obvious(text)[kind]]
        assert sorted(encoded.ids[end - count : end]) == sorted(ids[token] for token in tokens if token in ids)
        assert missing == sum(token not in ids for token in tokens)


def test_ids_follow_the_text_and_the_cap_keeps_its_beginning() -> None:
    vocabulary = (["#a#", "a#b", "#b#", "b#c", "#c#"], ["a", "b", "c"], ["a#b", "b#c"])
    in_order = [0, 5, 1, 2, 6, 8, 3, 4, 7, 9]
    assert Tokenizer(*vocabulary).encode_column(pa.array(["a b c"])).ids.tolist() == in_order
    capped = Tokenizer(*vocabulary, max_tokens=4).encode_column(pa.array(["a b c", "", "c"]))
    assert capped.ids.tolist() == [*in_order[:4], 4, 7]
    assert capped.counts.tolist() == [4, 0, 2]
    assert capped.truncated.tolist() == [6, 0, 0]


def test_the_ids_of_a_piece_are_its_trigrams_words_and_bigrams() -> None:
    vocabulary = (["#ab", "ab-", "b-c", "-c#"], ["ab", "c"], ["ab#c"])
    assert Tokenizer(*vocabulary).encode_column(pa.array(["ab-c ab-c"])).ids.tolist() == [*range(7)] * 2


def test_a_giant_text_is_cut_and_counted() -> None:
    encoded = Tokenizer(["aaa"], ["a"], []).encode_column(pa.array(["a" * (MAX_CHARACTERS + 5)]))
    assert encoded.counts.tolist() == [MAX_CHARACTERS - 2]
    assert encoded.truncated.tolist() == [5]


def test_every_blank_is_known() -> None:
    assert {code for code in range(0x110000) if chr(code).isspace()} == set(np.flatnonzero(tokenizer._IS_BLANK))


def test_pieces_learned_one_by_one_are_those_learned_together(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = pa.array(["red mug", "blue-mug tea", "", "red tea-pot"])
    known = [sorted({token for text in texts.to_pylist() for token in token_kinds(text)[kind]}) for kind in range(3)]
    together = Tokenizer(*known).encode_column(texts)
    monkeypatch.setattr(tokenizer, "_LEARNED_AT_ONCE", 1)
    for one, other in zip(Tokenizer(*known).encode_column(texts), together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_forgetting_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["red mug", "blue mug", "red tea pot", "blue tea"]
    known = [sorted({token for text in texts for token in token_kinds(text)[kind]}) for kind in range(3)]
    expected = Tokenizer(*known).encode_column(pa.array(texts, pa.string())).ids
    monkeypatch.setattr(tokenizer, "_MAX_CACHED", 2)
    forgetful = Tokenizer(*known)
    np.testing.assert_array_equal(
        np.concatenate([forgetful.encode_column(pa.array([text])).ids for text in texts]), expected
    )
    assert len(forgetful._pieces) <= 5


def test_a_packed_vocabulary_is_loaded_once() -> None:
    packed = pack_vocabulary(["#a#", "東京t"], [], ["a#b"])
    loaded = load_tokenizer(packed, 10)
    assert loaded.encode_column(pa.array(["a b", "東京t"])).ids.tolist() == [0, 2, 1]
    assert load_tokenizer(bytes(bytearray(packed)), 10) is loaded


def test_runs_are_taken_in_the_order_asked_for() -> None:
    values = np.arange(10, dtype=np.int32)
    taken = take_runs(values, np.array([7, 0, 3]), np.array([2, 0, 4]))
    assert taken.tolist() == [7, 8, 3, 4, 5, 6]
