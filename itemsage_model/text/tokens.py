"""What the tokens of a text are: character trigrams, word unigrams and word bigrams.

The vocabulary is counted with `token_kinds`; `tokenizer.py` turns columns of texts into token ids much faster.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from itertools import pairwise

TOKEN_KINDS = ("char_trigram", "word_unigram", "word_bigram")
"""The three kinds of tokens, in the order of their ids."""

MAX_CHARACTERS = 16_384
"""Characters of one text that are read; bounds memory against a stray cell of 50 MB."""

# CJK ideographs, each a word of its own (as BERT's tokeniser has it, with Unicode's later extensions).
_IDEOGRAPHS = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F), (0x30000, 0x323AF))
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


_FOLD, _SEPARATE = _PerCharacter(_fold), _PerCharacter(_separate)


def clean(text: str) -> str:
    """Compatibility characters as their plain ones (NFKC), casefolded, without invisible characters."""
    folded = unicodedata.normalize("NFKC", text).translate(_FOLD)
    return unicodedata.normalize("NFKC", folded)


def separate_words(cleaned: str) -> str:
    """A blank instead of each punctuation character (category P*), and blanks around each ideograph."""
    return cleaned.translate(_SEPARATE)


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
