"""The one tokeniser: text -> character trigrams, word unigrams and word bigrams -> dense token ids.

`token_kinds` says what the tokens of a text are; the vocabulary is counted with it. `Tokenizer` turns columns of texts
into ids: it asks `token_kinds` once per distinct piece between blanks and composes a text from its pieces, which is
exact because a token that crosses a blank depends only on the characters or words on both sides of that blank.
"""

from __future__ import annotations

import unicodedata
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

TOKEN_KINDS = ("char_trigram", "word_unigram", "word_bigram")
"""The three kinds of tokens, in the order of their ids."""

MAX_CHARACTERS = 16_384
"""Characters of one text that are read; bounds memory against a stray cell of 50 MB."""

_MOST_CACHED = 500_000
"""Pieces, pairs of words or 32 token ids that a Tokenizer remembers before it starts afresh."""

# CJK ideographs, each a word of its own (as BERT's tokeniser has it, with Unicode's later extensions).
_IDEOGRAPHS = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F), (0x30000, 0x323AF))
# Unicode's default-ignorable code points that are no format characters: fillers, joiners, variation selectors.
_FILLERS = ((0x34F, 0x34F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x2065, 0x2065), (0x3164, 0x3164))
_INVISIBLE = (*_FILLERS, (0xFE00, 0xFE0F), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0xE0000, 0xE0FFF))

Ints = npt.NDArray[np.int64]
Ids = npt.NDArray[np.int32]
Key = TypeVar("Key")
Value = TypeVar("Value")


class _Cache(dict[Key, Value]):
    """A dictionary that asks `learn` for a key it has not seen."""

    def __init__(self, learn: Callable[[Key], Value]) -> None:
        self._learn = learn

    def __missing__(self, key: Key) -> Value:
        self[key] = value = self._learn(key)
        return value


def _is_within(code: int, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(first <= code <= last for first, last in ranges)


def _fold(code: int) -> str:
    """Casefold; drop control, format, surrogate and other invisible characters that are no blanks."""
    character = chr(code)
    is_invisible = unicodedata.category(character) in ("Cc", "Cf", "Cs") or _is_within(code, _INVISIBLE)
    return "" if is_invisible and not character.isspace() else character.casefold()


def _separate(code: int) -> str:
    """Put a blank for punctuation (category P*), and blanks around an ideograph."""
    character = chr(code)
    if unicodedata.category(character).startswith("P"):
        return " "
    return f" {character} " if _is_within(code, _IDEOGRAPHS) else character


_FOLD, _SEPARATE = _Cache(_fold), _Cache(_separate)  # tables for str.translate, filled as characters occur


def token_kinds(text: str) -> tuple[list[str], list[str], list[str]]:
    """Split one text into its tokens of each kind, in text order, with repetitions.

    Args:
        text: Any text; its first MAX_CHARACTERS characters are read.

    Returns:
        Character trigrams: over the whole text, with one `#` for each run of blanks and at both ends, punctuation kept.
        Word unigrams: between blanks, punctuation and ideographs; punctuation discarded, symbols and emoji kept.
        Word bigrams: two successive words, joined by `#`. A text without visible characters has no tokens.

    Source: ItemSage section 2.2 (the three kinds); details from the released code of its successor.
    Assumed: blanks at the ends of a text are dropped; invisible characters are dropped; Unicode is Python's version.
    """
    folded = unicodedata.normalize("NFKC", text[:MAX_CHARACTERS]).translate(_FOLD)
    clean = unicodedata.normalize("NFKC", folded)
    marked = f"#{'#'.join(clean.split())}#"
    words = clean.translate(_SEPARATE).split()
    trigrams = [marked[i : i + 3] for i in range(len(marked) - 2)]
    return trigrams, words, [f"{first}#{second}" for first, second in pairwise(words)]


def pack_vocabulary(trigrams: Iterable[str], unigrams: Iterable[str], bigrams: Iterable[str]) -> bytes:
    """Pack a vocabulary into compact bytes, for `load_tokenizer`; no token holds a blank or a control character."""
    return "\0".join("\n".join(tokens) for tokens in (trigrams, unigrams, bigrams)).encode()


def take_runs(values: Ids, starts: Ints, counts: Ints) -> Ids:
    """Concatenate the runs `values[start : start + count]`."""
    before = np.cumsum(counts) - counts
    taken: Ids = values[np.repeat(starts - before, counts) + np.arange(counts.sum())]
    return taken


class Encoded(NamedTuple):
    """Token ids of a column of texts.

    Attributes:
        ids: Ids of all texts, one text after the other.
        counts: Number of ids of each text.
        out_of_vocabulary: Tokens of each text that the vocabulary lacks.
        truncated: Ids of each text cut off by the cap, plus its characters beyond MAX_CHARACTERS.
    """

    ids: Ids
    counts: Ints
    out_of_vocabulary: Ints
    truncated: Ints


# What is known of a piece: where its ids start in the flat store and how many they are, how many of its tokens are
# unknown, and what its ends show to its neighbours: characters by code point, words by number, _NONE if it has none.
_START, _SIZE, _MISSING, _FIRST_CHARACTER, _LAST_CHARACTER, _FIRST_WORD, _LAST_WORD = range(7)
_NONE, _UNKNOWN = -1, -2  # instead of an id: there is no token, or the vocabulary lacks it
_LOW = (1 << 32) - 1


class Tokenizer:
    """Turns columns of texts into token ids of one vocabulary.

    Args:
        trigrams, unigrams, bigrams: The tokens of each kind by ascending id; ids are dense over all three. A kind
            without tokens is not in use: then its tokens do not count as out of vocabulary.
        max_tokens: Most ids of one text; the first are kept. 0 = no limit.
    """

    def __init__(
        self, trigrams: Iterable[str], unigrams: Iterable[str], bigrams: Iterable[str], *, max_tokens: int = 0
    ) -> None:
        self._max_tokens = max_tokens
        self._vocabularies: list[dict[str, int]] = []
        first_id = 0
        for tokens in (trigrams, unigrams, bigrams):
            self._vocabularies.append({token: token_id for token_id, token in enumerate(tokens, first_id)})
            first_id += len(self._vocabularies[-1])
        self._forget()

    def encode_column(self, texts: Sequence[str]) -> Encoded:
        """Token ids of each text: the tokens of `token_kinds`, ordered by their place in the text instead of by kind.

        So the cap keeps the beginning of a text, with tokens of every kind.
        """
        if max(len(self._pieces), len(self._bigrams), len(self._store) // 32) > _MOST_CACHED:
            self._forget()
        pieces: list[str] = []
        piece_counts = []
        for text in texts:
            split = text[:MAX_CHARACTERS].split()
            pieces += split
            piece_counts.append(len(split))
        rows = np.fromiter(map(self._pieces.__getitem__, pieces), np.int64, len(pieces))
        owner = np.repeat(np.arange(len(texts)), piece_counts)
        ids, counts, missing = self._compose(rows, owner, len(texts))
        truncated = np.fromiter((max(0, len(text) - MAX_CHARACTERS) for text in texts), np.int64, len(texts))
        if self._max_tokens and counts.max(initial=0) > self._max_tokens:
            kept = np.minimum(counts, self._max_tokens)
            truncated += counts - kept
            ids, counts = take_runs(ids, np.cumsum(counts) - counts, kept), kept
        return Encoded(ids, counts, missing, truncated)

    def _compose(self, rows: Ints, owner: Ints, text_count: int) -> tuple[Ids, Ints, Ints]:
        """Put all ids together: each piece's own, between the trigram and the bigram that lead to the piece.

        Args:
            rows: Each piece's row of facts.
            owner: Each piece's text.
            text_count: Number of texts.

        Returns:
            All ids; the number of ids, and of unknown tokens, of each text.
        """
        facts = np.frombuffer(self._facts, np.int64).reshape(-1, 7)[rows]
        is_visible = facts[:, _FIRST_CHARACTER] >= 0  # an invisible piece leaves no trace: its blanks join
        facts, owner = facts[is_visible], owner[is_visible]
        has_word = facts[:, _FIRST_WORD] >= 0  # bigrams reach over pieces of punctuation
        starts = np.full((len(facts), 3), _NONE)
        starts[:, 0] = _leads(self._trigrams, facts[:, _FIRST_CHARACTER], facts[:, _LAST_CHARACTER], owner)
        starts[:, 1] = facts[:, _START]
        starts[has_word, 2] = _leads(
            self._bigrams, facts[has_word, _FIRST_WORD], facts[has_word, _LAST_WORD], owner[has_word]
        )
        counts = (starts >= 0).astype(np.int64)
        counts[:, 1] = facts[:, _SIZE]
        ids = take_runs(np.frombuffer(self._store, np.int32), starts.ravel(), counts.ravel())
        missing = facts[:, _MISSING] + (starts == _UNKNOWN).sum(axis=1)
        sums = [np.bincount(owner, values, text_count).astype(np.int64) for values in (counts.sum(axis=1), missing)]
        return ids, sums[0], sums[1]

    def _forget(self) -> None:
        self._facts, self._store = array("q"), array("i")
        self._words: list[str] = []
        self._word_numbers = _Cache(self._number_word)
        self._pieces = _Cache(self._learn_piece)
        self._trigrams: _Cache[int, int] = _Cache(lambda pair: self._look_up(0, chr(pair >> 32), chr(pair & _LOW)))
        self._bigrams: _Cache[int, int] = _Cache(
            lambda pair: self._look_up(2, self._words[pair >> 32], self._words[pair & _LOW])
        )

    def _number_word(self, word: str) -> int:
        self._words.append(word)
        return len(self._words) - 1

    def _look_up(self, kind: int, before: str, after: str) -> int:
        """Find the place in the store of a token's id."""
        vocabulary = self._vocabularies[kind]
        token = f"{before}#{after}"
        if token not in vocabulary:
            return _UNKNOWN if vocabulary else _NONE
        self._store.append(vocabulary[token])
        return len(self._store) - 1

    def _learn_piece(self, piece: str) -> int:
        """Write the facts of a piece without blanks; returns their row."""
        kinds = token_kinds(piece)
        start, missing = len(self._store), 0
        for tokens, vocabulary in zip(kinds, self._vocabularies, strict=True):
            known = [vocabulary[token] for token in tokens if token in vocabulary]
            self._store.extend(known)
            missing += len(tokens) - len(known) if vocabulary else 0
        trigrams, words, _ = kinds
        characters = (ord(trigrams[0][1]), ord(trigrams[-1][1])) if trigrams else (-1, -1)
        ends = (self._word_numbers[words[0]], self._word_numbers[words[-1]]) if words else (-1, -1)
        self._facts.extend((start, len(self._store) - start, missing, *characters, *ends))
        return len(self._pieces)


def _leads(cache: _Cache[int, int], first: Ints, last: Ints, owner: Ints) -> Ints:
    """Of each piece, the id of the token that leads to it from its predecessor in the same text, if there is one."""
    leads = np.full(len(owner), _NONE)
    follows = np.flatnonzero(owner[1:] == owner[:-1]) + 1
    pairs = (last[follows - 1] << 32 | first[follows]).tolist()
    leads[follows] = np.fromiter(map(cache.__getitem__, pairs), np.int64, len(pairs))
    return leads


@lru_cache(maxsize=1)
def load_tokenizer(packed: bytes, max_tokens: int) -> Tokenizer:
    """Build the tokeniser of a vocabulary packed by `pack_vocabulary`, once per process."""
    trigrams, unigrams, bigrams = (kind.split("\n") if kind else [] for kind in packed.decode().split("\0"))
    return Tokenizer(trigrams, unigrams, bigrams, max_tokens=max_tokens)
