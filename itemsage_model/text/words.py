"""What the words of a text are, and the parts of words that the frozen text encoder knows; Python's library alone.

The query side copies this file as it is into the folder that a service loads (retrieval/query_side.py), so that what
answers a query cannot have other words than what made the tables. It imports nothing of ours for that reason.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise

# CJK ideographs, each a word of its own (as BERT's tokeniser has it, with Unicode's later extensions).
_IDEOGRAPHS = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F), (0x30000, 0x323AF))
# Hebrew begins here, and with it the scripts without capitals; what Latin has of such letters stands before.
_FIRST_UNCASED = 0x590
# Unicode's default-ignorable code points that are no format characters: fillers, joiners, variation selectors.
_FILLERS = ((0x34F, 0x34F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x2065, 0x2065), (0x3164, 0x3164))
_INVISIBLE = (*_FILLERS, (0xFE00, 0xFE0F), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0xE0000, 0xE0FFF))


class _PerCharacter(dict[int, str]):
    """A table for str.translate that is filled as characters occur."""

    def __init__(self, translate: Callable[[int], str]) -> None:
        self._translate = translate

    def __missing__(self, code: int) -> str:
        self[code] = translated = self._translate(code)
        return translated


def _is_within(code: int, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(first <= code <= last for first, last in ranges)


def _fold(code: int) -> str:
    """Casefold; drop control, format, surrogate and other invisible characters that are no blanks."""
    character = chr(code)
    is_invisible = unicodedata.category(character) in ("Cc", "Cf", "Cs") or _is_within(code, _INVISIBLE)
    return "" if is_invisible and not character.isspace() else character.casefold()


def _separate(code: int) -> str:
    character = chr(code)
    if unicodedata.category(character).startswith("P"):
        return " "
    return f" {character} " if _is_within(code, _IDEOGRAPHS) else character


def _separate_letter(code: int) -> str:
    character = chr(code)
    if character.isalnum():
        return _separate(code)
    # A word of Hindi or Thai would fall to pieces at its vowel signs. An accent that is left over from a stray "´"
    # would join what it stands between.
    name = unicodedata.name(character, "") if unicodedata.category(character).startswith("M") else "COMBINING"
    return " " if name.startswith("COMBINING") and character != "_" else character


@lru_cache(maxsize=1 << 16)
def _is_uncased(code: int) -> bool:
    is_letter = code >= _FIRST_UNCASED and unicodedata.category(chr(code)) in ("Lo", "Lm")
    return is_letter and not _is_within(code, _IDEOGRAPHS)


_FOLD, _SEPARATE, _SEPARATE_LETTER = _PerCharacter(_fold), _PerCharacter(_separate), _PerCharacter(_separate_letter)


def clean(text: str) -> str:
    """Compatibility characters as their plain ones (NFKC), casefolded, without invisible characters."""
    folded = unicodedata.normalize("NFKC", text).translate(_FOLD)
    return unicodedata.normalize("NFKC", folded)


def separate_words(cleaned: str) -> str:
    """A blank instead of each punctuation character (category P*), and blanks around each ideograph."""
    return cleaned.translate(_SEPARATE)


def separate_letters(cleaned: str) -> str:
    """As `separate_words`, but with a blank instead of each symbol too, and with `_` as a letter, as in codes."""
    return cleaned.translate(_SEPARATE_LETTER)


def has_uncased_letter(word: str) -> bool:
    """Whether a letter of the word is of a script without capitals, such as Thai, Korean, Arabic; not if an ideograph.

    Such words are short, or not parted by blanks at all, so that one or two characters can be what is looked for.
    """
    return not word.isascii() and any(_is_uncased(ord(character)) for character in word)


def words_and_parts(text: str) -> list[str]:
    """Words, pairs of neighbouring words, and the letter trigrams of each word with its blanks, marked by #.

    Of words in scripts without capitals also each character and each two neighbours, marked by ^: whatever text of one
    or two characters the catalog holds is then known. An ideograph is a word of its own.
    """
    words = separate_letters(clean(text)).split()
    pairs = [f"{first} {second}" for first, second in pairwise(words)]
    padded = [f" {word} " for word in words]
    trigrams = [f"#{word[i : i + 3]}" for word in padded for i in range(len(word) - 2)]
    uncased = filter(has_uncased_letter, words)
    shorter = [f"^{word[i : i + n]}" for word in uncased for n in (1, 2) for i in range(len(word) + 1 - n)]
    return words + pairs + trigrams + shorter
