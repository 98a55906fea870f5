"""What words and the tokens of a text are: character trigrams, word unigrams and word bigrams.

The vocabulary is counted with `token_kinds`; `tokenizer.py` turns columns of texts into token ids much faster. The
frozen encoder has its words from here too, see `separate_letters`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise

from schemas.tables import MAX_TEXT_CHARACTERS

TOKEN_KINDS = ("char_trigram", "word_unigram", "word_bigram")
"""The three kinds of tokens, in the order of their ids."""

MAX_CHARACTERS = MAX_TEXT_CHARACTERS
"""Characters of one text that are read."""

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


def token_kinds(text: str) -> tuple[list[str], list[str], list[str]]:
    """Split one text into its tokens of each kind, in text order, with repetitions.

    Args:
        text: Any text; its first MAX_CHARACTERS characters are read.

    Returns:
        Character trigrams: over the whole text, with one `#` for each run of blanks and at both ends, punctuation kept.
        Word unigrams: between blanks, punctuation and ideographs; punctuation discarded, symbols and emoji kept.
        Word bigrams: two successive words, joined by `#`. A text without visible characters has no tokens.

    Source: ItemSage section 3.1 (the three kinds); details from the released code of its successor.
    Assumed: blanks at the ends of a text are dropped; invisible characters are dropped; Unicode is Python's version.
    """
    cleaned = clean(text[:MAX_CHARACTERS])
    marked = f"#{'#'.join(cleaned.split())}#"
    words = separate_words(cleaned).split()
    trigrams = [marked[i : i + 3] for i in range(len(marked) - 2)]
    return trigrams, words, [f"{first}#{second}" for first, second in pairwise(words)]
