"""Unity Catalog's REST API: where a table lies. Python's standard library alone, one request, nothing written down."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any
from urllib.parse import quote, urlsplit

from schemas.errors import DeadlineError, InputError

VARIABLE = "ITEMSAGE_UNITY_TOKEN"
"""Environment variable with the token; it stands in no setting, record, message or log of ours."""

_SECONDS = 30


def is_safe(uri: str) -> bool:
    """Whether a token may be sent there: over TLS, or to this machine itself."""
    parts = urlsplit(uri)
    if parts.scheme == "http":
        return _is_loopback(parts.hostname or "")
    return parts.scheme == "https" and bool(parts.hostname)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def ask_unity(uri: str, parts: Sequence[str]) -> tuple[str, str] | None:
    """Where a table lies, and its format.

    Args:
        uri: The server, such as https://example.cloud.databricks.com.
        parts: Catalog, schema and table.

    Returns:
        Its location as the catalog writes it, and its format; both are empty for a view. None = there is no such table.

    Raises:
        InputError: the server refuses the token, or answers with something else than a table.
        DeadlineError: it does not answer, or says that it is at fault; a retry may help.
    """
    name, subject = ".".join(parts), f"Unity Catalog at {uri}"
    try:
        status, content = _get(uri, f"/api/2.1/unity-catalog/tables/{quote(name, safe='')}")
    except (OSError, http.client.HTTPException) as error:
        expected = f"an answer for {name} within {_SECONDS} s"
        cure = "Run it again when it answers; correct catalog.unity_uri if it never does."
        raise DeadlineError(subject, expected=expected, found=str(error), cure=cure) from error
    if status == http.client.NOT_FOUND:
        return None
    if status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
        found = f"HTTP {status}, {'with' if os.environ.get(VARIABLE) else 'without'} a token"
        cure = f"Into {VARIABLE} goes the token of somebody who may use the catalog and the schema and read the table."
        raise InputError(subject, name, expected="leave to see the table", found=found, cure=cure)
    if status >= http.client.INTERNAL_SERVER_ERROR:
        raise DeadlineError(subject, expected=f"an answer for {name}", found=f"HTTP {status}", cure="Run it again.")
    try:
        values = json.loads(content)
        if status != http.client.OK or not isinstance(values, dict):
            raise ValueError(f"HTTP {status}")
        return str(values.get("storage_location") or ""), str(values.get("data_source_format") or "")
    except ValueError as error:
        cure = "Correct catalog.unity_uri: the server's address alone, without a path."
        found = f"HTTP {status}, {len(content):,} bytes that are no table"
        raise InputError(subject, name, expected="a table as JSON", found=found, cure=cure) from error


def _get(uri: str, path: str) -> tuple[int, bytes]:
    """Status and content; a redirection is not followed, as it would take the token elsewhere."""
    parts = urlsplit(uri)
    kind: Any = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=_SECONDS)
    headers = {"Accept": "application/json"}
    if token := os.environ.get(VARIABLE, "").strip():
        # http.client would refuse it with the token in its words.
        if not (token.isascii() and token.isprintable()):
            raise InputError(
                VARIABLE, "", expected="a token in one line of ASCII", found="another text", cure="Set it anew."
            )
        headers["Authorization"] = f"Bearer {token}"
    try:
        connection.request("GET", parts.path.rstrip("/") + path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
