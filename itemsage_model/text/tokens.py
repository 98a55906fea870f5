"""What the tokens of a text are: character trigrams, word unigrams and word bigrams.

The vocabulary is counted with `token_kinds`; `tokenizer.py` turns columns of texts into token ids much faster.
"""

from __future__ import annotations

from itertools import pairwise

from itemsage_model.text.words import clean, separate_words
from schemas.tables import MAX_TEXT_CHARACTERS

TOKEN_KINDS = ("char_trigram", "word_unigram", "word_bigram")
"""The three kinds of tokens, in the order of their ids."""

MAX_CHARACTERS = MAX_TEXT_CHARACTERS
"""Characters of one text that are read."""


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
