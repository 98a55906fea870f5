"""What may be opened: the catalog that is asked for the places of names, and the roots below which all places lie."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from schemas.settings.section import Section
from schemas.unity import is_safe


def _server(uri: str) -> str:
    if uri and not is_safe(uri):
        raise ValueError(
            "write https://host; http:// is taken for this machine alone, as a token would go in the clear"
        )
    return uri


class CatalogSettings(Section):
    """Where Python processes ask for the places of tables that the settings know by name."""

    unity_uri: Annotated[str, AfterValidator(_server)] = ""


class SecuritySettings(Section):
    """What the settings file allows; no argument of a command changes it."""

    allowed_roots: tuple[str, ...] = ()
