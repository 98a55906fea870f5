"""Text that may be shown: without what a terminal would obey, and without keys and passwords."""

from __future__ import annotations

import re

# Control characters, C1 controls, marks that turn or hide text, line separators, halves of surrogate pairs. The two
# joiners (U+200C, U+200D) stay: whole scripts need them.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")

# `scheme://user:password@`. What stands before the colon has no slash; a port (host:8020/path@x) is no password.
_PASSWORD = re.compile(r"(://)[^/\s:@'\"]*:(?!\d*(?:[/?#\s'\"]|$))[^\s@'\"]*@")
# The only user in the URI of such a store is a key; in abfss://container@account and hdfs://user@host it is a name.
_KEY = re.compile(r"(s3[an]?://)[^/\s:@'\"]+@")
_IN_QUERY = re.compile(r"(?i)([?&][\w.-]*(?:key|secret|token|password|signature|sig|credential)[\w.-]*=)[^&\s'\"]+")


def printable(text: str, *, lines: bool = False) -> str:
    """The text with all escaped that a terminal would obey or hide: the escape character becomes backslash, x1b.

    Args:
        text: Any text, such as a product's title.
        lines: Whether line breaks and tabs stay.
    """
    return _UNPRINTABLE.sub(lambda found: _escaped(found[0], lines), text)


def holds_secret(uri: str) -> bool:
    """Whether a URI holds a password, a key or a token."""
    return bool(_PASSWORD.search(uri) or _KEY.search(uri) or _IN_QUERY.search(uri))


def without_secrets(text: str) -> str:
    """The text with `***` for every password, key and token of the URIs in it."""
    return _IN_QUERY.sub(r"\1***", _KEY.sub(r"\1***@", _PASSWORD.sub(r"\1***@", text)))


def shown(text: str, *, lines: bool = False) -> str:
    """What may be said of a text in a message: `printable` and `without_secrets`."""
    return printable(without_secrets(text), lines=lines)


def _escaped(character: str, lines: bool) -> str:
    if lines and character in "\n\t":
        return character
    return character.encode("unicode_escape").decode()
