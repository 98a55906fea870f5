"""Columns of texts -> dense token ids of one vocabulary, the tokens being those of `tokens.token_kinds`.

`Tokenizer` looks up the tokens of each distinct piece between spaces once, those of all new pieces of a column
together, and composes a text from its pieces, which is exact because a token that crosses a space depends only on the
characters or words on both sides of it.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, repeat
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from itemsage_model.text.key_table import KeyTable
from itemsage_model.text.tokens import MAX_CHARACTERS
from itemsage_model.text.words import clean, separate_words

_MAX_CACHED = 500_000
"""Pieces, or 32 characters or token ids each, that a Tokenizer remembers before it starts afresh."""

_LEARNED_AT_ONCE = 1 << 17
"""Characters of the new pieces that are looked up together, but for the last piece; bounds memory."""

_BETWEEN = "\x1f"
"""Put between pieces that are learned together: the unit separator, to Python a blank."""

_IS_BLANK = np.array([chr(code).isspace() for code in range(0x3002)])
"""Which code points are blanks; there is none beyond the ideographic space, U+3000."""

Ints = npt.NDArray[np.int64]
Ids = npt.NDArray[np.int32]


def pack_vocabulary(trigrams: Iterable[str], unigrams: Iterable[str], bigrams: Iterable[str]) -> bytes:
    """Pack a vocabulary into compact bytes, for `load_tokenizer`; no token holds a blank or a control character."""
    return "\0".join("\n".join(tokens) for tokens in (trigrams, unigrams, bigrams)).encode()


def take_runs(values: Ids, starts: Ints, counts: Ints) -> Ids:
    """Concatenate the runs `values[start : start + count]`."""
    before = np.cumsum(counts) - counts
    indices = np.repeat((starts - before).astype(np.int32), counts)  # half the width, twice the speed
    indices += np.arange(len(indices), dtype=np.int32)
    taken: Ids = values[indices]
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


# What is known of a piece: where its ids start in the store and how many they are, how many of its tokens are unknown,
# and what its ends show to its neighbours: characters by code point, words by number.
_START, _SIZE, _MISSING, _FIRST_CHARACTER, _LAST_CHARACTER, _FIRST_WORD, _LAST_WORD = range(7)
_NONE, _UNKNOWN = -1, -2  # instead of an id or a number: there is none, or the vocabulary lacks it


class Tokenizer:
    """Turns columns of texts into token ids of one vocabulary.

    Args:
        trigrams, unigrams, bigrams: The tokens of each kind by ascending id; ids are dense over all three. A kind
            without tokens is not in use: then its tokens do not count as out of vocabulary.
        max_tokens: Most ids of one text; the first are kept. 0 = no limit.
    """

    def __init__(
        self, trigrams: Sequence[str], unigrams: Sequence[str], bigrams: Sequence[str], *, max_tokens: int = 0
    ) -> None:
        self._max_tokens = max_tokens
        self._size = len(trigrams) + len(unigrams) + len(bigrams)
        ids = np.arange(self._size)
        self._trigrams = KeyTable(
            _trigram_keys(*_code_points("".join(trigrams)).reshape(-1, 3).T),
            ids[: len(trigrams)],
            _UNKNOWN if trigrams else _NONE,
        )
        self._unigrams = {token: token_id for token_id, token in enumerate(unigrams, len(trigrams))}
        # Bigrams by the numbers of their words.
        self._words: defaultdict[str, int] = defaultdict(lambda: len(self._words))
        pairs = [[self._words[word] for word in token.split("#")] for token in bigrams]
        self._bigrams = KeyTable(
            _pair_keys(*np.array(pairs, np.int64).reshape(-1, 2).T),
            ids[self._size - len(bigrams) :],
            _UNKNOWN if bigrams else _NONE,
        )
        self._forget()

    def encode_column(self, texts: pa.StringArray) -> Encoded:
        """Token ids of each text: the tokens of `token_kinds`, ordered by position in the text instead of by kind.

        So the cap keeps the beginning of a text, with tokens of every kind. A null is an empty text.
        """
        if max(len(self._pieces), self._characters // 32, len(self._store) // 32) > _MAX_CACHED + self._size // 32:
            self._forget()
        truncated = np.zeros(len(texts), np.int64)
        if len(texts) and (pc.max(pc.binary_length(texts)).as_py() or 0) > MAX_CHARACTERS:
            truncated += np.maximum(pc.utf8_length(texts).fill_null(0).to_numpy() - MAX_CHARACTERS, 0)
            texts = pc.utf8_slice_codeunits(texts, 0, MAX_CHARACTERS)
        split = pc.split_pattern(texts, " ")
        owner = np.repeat(np.arange(len(texts)), pc.list_value_length(split).fill_null(0).to_numpy())
        pieces = split.flatten().dictionary_encode()
        distinct = pieces.dictionary.to_numpy(zero_copy_only=False).tolist()
        rows = np.array(list(map(self._pieces.get, distinct, repeat(_NONE))), np.int64)
        unseen = np.flatnonzero(rows == _NONE)
        rows[unseen] = len(self._pieces) + np.arange(len(unseen))  # the order in which they are learned
        for chunk in _chunks(distinct[index] for index in unseen.tolist()):
            self._learn(chunk)
        ids, counts, missing = self._compose(rows, pieces.indices.to_numpy(), owner, len(texts))
        if self._max_tokens and counts.max(initial=0) > self._max_tokens:
            kept = np.minimum(counts, self._max_tokens)
            truncated += counts - kept
            ids, counts = take_runs(ids, np.cumsum(counts) - counts, kept), kept
        return Encoded(ids, counts, missing, truncated)

    def _compose(self, rows: Ints, pieces: Ids, owner: Ints, text_count: int) -> tuple[Ids, Ints, Ints]:
        """Put all ids together: each piece's own, between the trigram and the bigram that lead to the piece.

        Args:
            rows: Each distinct piece's row of facts.
            pieces: Each piece, as an index into `rows`.
            owner: Each piece's text.
            text_count: Number of texts.

        Returns:
            All ids; the number of ids, and of unknown tokens, of each text.
        """
        # Distinct pieces are few: their facts stay in the cache.
        known = np.ascontiguousarray(np.frombuffer(self._facts, np.int32).reshape(-1, 7)[rows].T)
        is_visible = known[_FIRST_CHARACTER] >= 0  # an invisible piece leaves no trace: its spaces join
        if not is_visible.all():
            pieces, owner = pieces[is_visible[pieces]], owner[is_visible[pieces]]
        facts = known.take(pieces, axis=1)
        trigram = _leads(self._find_crossing, facts[_FIRST_CHARACTER], facts[_LAST_CHARACTER], owner)
        words = np.flatnonzero(facts[_FIRST_WORD] != _NONE)  # bigrams reach over pieces of punctuation
        bigram = np.full(len(pieces), _NONE)
        bigram[words] = _leads(self._find_bigrams, facts[_FIRST_WORD, words], facts[_LAST_WORD, words], owner[words])
        starts = np.stack([trigram, facts[_START], bigram], axis=1).ravel()
        counts = np.stack([trigram >= 0, facts[_SIZE], bigram >= 0], axis=1).ravel()
        ids = take_runs(np.frombuffer(self._store, np.int32), starts, counts)
        sizes = facts[_SIZE] + (trigram >= 0) + (bigram >= 0)
        missing = facts[_MISSING] + (trigram == _UNKNOWN) + (bigram == _UNKNOWN)
        sums = [np.bincount(owner, values, text_count).astype(np.int64) for values in (sizes, missing)]
        return ids, sums[0], sums[1]

    def _forget(self) -> None:
        """Start with empty caches; the store begins with every id at its own index, for single tokens."""
        self._pieces: dict[str, int] = {}
        self._characters = 0
        self._facts, self._store = array("i"), array("i", range(self._size))

    def _learn(self, pieces: list[str]) -> None:
        """Write the facts of pieces that were not seen before."""
        count = len(pieces)
        # A separator in a piece becomes a space, as all blanks are alike; nothing composes across a separator.
        cleaned = clean(_BETWEEN.join(piece.replace(_BETWEEN, " ") for piece in pieces))
        characters, character_owner, keys, trigram_owner = _character_trigrams(cleaned)
        words = [part.split() for part in separate_words(cleaned).split(_BETWEEN)]
        word_owner = np.repeat(np.arange(count), list(map(len, words)))
        flat = list(chain.from_iterable(words))
        numbers = np.array(list(map(self._words.get, flat, repeat(_UNKNOWN))), np.int64)
        absent = _UNKNOWN if self._unigrams else _NONE
        unigrams = np.array(list(map(self._unigrams.get, flat, repeat(absent))), np.int64)
        bigrams = _leads(self._find_bigrams, numbers, numbers, word_owner)
        ids = np.concatenate([self._trigrams.find(keys), unigrams, bigrams])
        owner = np.concatenate([trigram_owner, word_owner, word_owner])
        missing = np.bincount(owner[ids == _UNKNOWN], minlength=count)
        ids, owner = ids[ids >= 0], owner[ids >= 0]
        sizes = np.bincount(owner, minlength=count)
        starts = len(self._store) + np.cumsum(sizes) - sizes
        ends = [_ends(characters, character_owner, count), _ends(numbers, word_owner, count)]
        self._facts.frombytes(np.column_stack([starts, sizes, missing, *ends]).astype(np.int32).tobytes())
        self._store.frombytes(ids[np.argsort(owner, kind="stable")].astype(np.int32).tobytes())
        self._pieces.update(zip(pieces, range(len(self._pieces), len(self._pieces) + count), strict=True))
        self._characters += sum(map(len, pieces))

    def _find_crossing(self, lasts: Ints, firsts: Ints) -> Ints:
        """Ids of the trigrams over the space between two pieces."""
        return self._trigrams.find(_trigram_keys(lasts, np.int64(ord("#")), firsts))

    def _find_bigrams(self, firsts: Ints, seconds: Ints) -> Ints:
        return self._bigrams.find(_pair_keys(firsts, seconds))


def _chunks(pieces: Iterable[str]) -> Iterator[list[str]]:
    """The pieces in lists of a bounded number of characters."""
    chunk: list[str] = []
    characters = 0
    for piece in pieces:
        chunk.append(piece)
        characters += len(piece)
        if characters >= _LEARNED_AT_ONCE:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _code_points(text: str) -> Ints:
    return np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.int64)


def _trigram_keys(first: Ints | Ids, second: Ints | np.int64, third: Ints | Ids) -> Ints:
    keys: Ints = (first.astype(np.int64) << 21 | second) << 21 | third  # a code point has 21 bits
    return keys


def _pair_keys(first: Ints | Ids, second: Ints | Ids) -> Ints:
    return first.astype(np.int64) << 32 | second


def _character_trigrams(cleaned: str) -> tuple[Ints, Ints, Ints, Ints]:
    """The trigrams of `token_kinds`, of many cleaned pieces with _BETWEEN between them.

    Returns:
        Code points of the visible characters, and the piece of each; keys of the trigrams, and the piece of each.
    """
    codes = _code_points(f"{_BETWEEN}{cleaned}{_BETWEEN}")
    owner = np.cumsum(codes == ord(_BETWEEN)) - 1
    is_blank = _IS_BLANK[np.minimum(codes, len(_IS_BLANK) - 1)]
    is_kept = ~is_blank
    is_kept[1:] |= ~is_blank[:-1]  # of a run of blanks, the first
    is_kept[0] = True
    codes, owner, is_blank = codes[is_kept], owner[is_kept], is_blank[is_kept]
    marked = np.where(is_blank, ord("#"), codes)
    # Not those in whose middle one piece ends and the next begins.
    middle = np.flatnonzero(~is_blank[1:-1] | (owner[:-2] == owner[2:])) + 1
    keys = _trigram_keys(marked[middle - 1], marked[middle], marked[middle + 1])
    return codes[~is_blank], owner[~is_blank], keys, owner[middle]


def _ends(values: Ints, owner: Ints, count: int) -> Ints:
    """The first and the last value of each owner [owner, 2], or _NONE."""
    ends = np.full((count, 2), _NONE)
    ends[owner[::-1], 0] = values[::-1]  # of several values for one row, the last stays
    ends[owner, 1] = values
    return ends


def _leads(find: Callable[[Ints, Ints], Ints], firsts: Ints, lasts: Ints, owner: Ints) -> Ints:
    """Of each part, the id of the token that leads to it from its predecessor in the same whole, if there is one.

    Args:
        find: The ids by what two parts show to each other.
        firsts: What each part, a piece or a word, shows to its predecessor.
        lasts: What it shows to its successor.
        owner: The whole that each part belongs to, a text or a piece.
    """
    leads = np.full(len(owner), _NONE)
    follows = np.flatnonzero(owner[1:] == owner[:-1])
    leads[follows + 1] = find(lasts[follows], firsts[follows + 1])
    return leads


@lru_cache(maxsize=1)
def load_tokenizer(packed: bytes, max_tokens: int) -> Tokenizer:
    """Build the tokeniser of a vocabulary packed by `pack_vocabulary`, once per process."""
    trigrams, unigrams, bigrams = (kind.split("\n") if kind else [] for kind in packed.decode().split("\0"))
    return Tokenizer(trigrams, unigrams, bigrams, max_tokens=max_tokens)
