"""Paths and URIs as somebody wrote them: whether every engine takes them alike, and whether they lie where they may."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections.abc import Sequence

from schemas.storage import absolute_uri

REFUSED = "#?%`\\[]^|"
"""What delta-rs, Spark's Delta or Petastorm read as the end of a path, as an escape or not at all."""


def opened_by_all(uri: str) -> str:
    """A path or URI that Spark, Delta, delta-rs, pyarrow and Petastorm take for the same place.

    Raises:
        ValueError: they do not.
    """
    place = absolute_uri(uri) if uri else ""
    refused = {one for one in place if one in REFUSED or unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp")}
    if refused:
        found = " ".join(one if one.isprintable() else ascii(one) for one in sorted(refused))
        where = "" if place == uri else f" in {place}"
        text = f"not every engine reads a path with {found}{where} alike: rename the folder, or name another"
        raise ValueError(f"{text} (none of {' '.join(REFUSED)}, no tab, no line break)")
    return uri


def same_scheme(uri: str) -> str:
    """A URI as the pipeline writes it: s3:// for Hadoop's two other names of it, a plain path for a local file."""
    scheme, separator, rest = uri.partition(":/")
    if separator and scheme.lower() == "file":
        return "/" + rest.lstrip("/")
    if separator and scheme.lower() in ("s3a", "s3n"):
        return f"s3:/{rest}"
    return uri


def is_within(uri: str, roots: Sequence[str]) -> bool:
    """Whether a place is one of the roots or lies below one: of local paths after every link and `..`.

    An object store has neither: to some readers `..` is a name there, to others a step up, so that a URI of one with
    `..`, an empty step or an escape (`%2e`) in it lies within nothing.
    """
    place = plain(uri)
    return place is not None and any(
        place == root or place.startswith(f"{root.rstrip('/')}/") for root in map(plain, roots) if root
    )


def plain(uri: str) -> str | None:
    """What all names of one place have in common; None where it cannot be said."""
    if ":/" in uri and "%" in uri:
        return None
    uri = same_scheme(uri)
    if "://" not in uri:
        return os.path.realpath(uri)
    scheme, _, rest = uri.partition("://")
    bucket, _, path = rest.partition("/")
    path = "/" + path.rstrip("/")
    if not bucket or posixpath.normpath(path) != path:
        return None
    return f"{scheme.lower()}://{bucket}{path}".rstrip("/")
