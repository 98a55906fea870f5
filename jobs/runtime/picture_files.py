"""Pictures where they lie: read from disk, from a store or over HTTP, and from nowhere that was not allowed.

A URI comes out of a table, so it is somebody's word. It is opened below `pictures.roots` alone, after every link and
`..`; on disk only if it is a file; over HTTP only at an address of the public internet, which is the one that is then
connected to, and without following a redirection. What does not come in time is given up.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import socket
import ssl
import stat
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import fsspec  # type: ignore[import-untyped]

from schemas.picture_tables import UnusablePicture
from schemas.places import is_within, plain, same_scheme
from schemas.settings import PictureSettings

AT_ONCE = 8
"""Files that are read side by side; most of reading one from a store is waiting."""

_STORES = ("s3", "gs", "gcs", "az", "abfs", "abfss", "hdfs", "memory")
"""Stores that fsspec may open. No address stands in such a URI: the process's own configuration says where they are."""
_PIECE = 1 << 16
_TRANSLATED = ("::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
"""IPv6 addresses that stand for an IPv4 one, which may be inside."""


@dataclass
class PictureFiles:
    """The files that one task reads.

    Attributes:
        settings: Roots, sizes, times.
        spent: Seconds that reading has taken so far.
    """

    settings: PictureSettings
    spent: float = 0.0

    def read(self, uris: Sequence[str]) -> list[bytes | UnusablePicture]:
        """The bytes of some files, or why there are none, in their order."""
        found: list[bytes | UnusablePicture] = []
        for first in range(0, len(uris), AT_ONCE):
            found += self._side_by_side(uris[first : first + AT_ONCE])
        return found

    def _side_by_side(self, uris: Sequence[str]) -> list[bytes | UnusablePicture]:
        if self.spent >= self.settings.budget_seconds:
            return [UnusablePicture("budget_spent", f"{self.spent:.0f} s") for _ in uris]
        slow = UnusablePicture("too_slow", f"nothing after {self.settings.timeout_seconds:g} s")
        found: list[bytes | UnusablePicture] = [slow] * len(uris)

        def fill(place: int) -> None:
            try:
                found[place] = read_picture(uris[place], self.settings)
            except UnusablePicture as fault:
                found[place] = fault
            except FileNotFoundError:
                found[place] = UnusablePicture("not_found")
            # Every store has errors of its own; the row says which.
            except Exception as error:
                found[place] = UnusablePicture("not_fetched", f"{type(error).__name__}: {error}"[:200])

        started = time.monotonic()
        # Nothing ends a read that hangs: such a thread is left behind, and the budget bounds how many.
        threads = [threading.Thread(target=fill, args=(place,), daemon=True) for place in range(len(uris))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, started + self.settings.timeout_seconds - time.monotonic()))
        self.spent += time.monotonic() - started
        return list(found)


def read_picture(uri: str, settings: PictureSettings) -> bytes:
    """The bytes of one file.

    Raises:
        UnusablePicture: it may not be opened, is no file, or is too large.
        OSError: it cannot be read.
    """
    place = same_scheme(uri)
    if not is_named_whole(place) or not is_within(place, settings.roots):
        raise UnusablePicture("place_not_allowed")
    scheme, separator, _ = place.partition("://")
    if not separator:
        return _from_disk(str(plain(place)), settings.max_bytes)
    if scheme in ("http", "https"):
        return _over_http(place, settings)
    if scheme not in _STORES:
        raise UnusablePicture("place_not_allowed", f"{scheme}://")
    system, path = fsspec.core.url_to_fs(place)
    return _bounded(system.cat_file(path, start=0, end=settings.max_bytes + 1), settings.max_bytes)


def is_named_whole(place: str) -> bool:
    """Whether a place says by itself where it is: an absolute path or a URI, and no chain of file systems (`::`)."""
    return "::" not in place and "\0" not in place and (place.startswith("/") or "://" in place)


def _bounded(content: bytes, most: int) -> bytes:
    if len(content) > most:
        raise UnusablePicture("too_many_bytes")
    return content


def _from_disk(path: str, most: int) -> bytes:
    # Whatever was put in the file's place since its links were followed: no link is followed now, no pipe waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UnusablePicture("not_fetched", "no file")
        return _bounded(file.read(most + 1), most)


# ---------------------------------------------------------------- HTTP


class _Pinned(http.client.HTTPConnection):
    """A connection to one address of a host, by the host's own certificate where it is HTTPS."""

    def __init__(self, host: str, port: int, address: str, tls: ssl.SSLContext | None, seconds: float) -> None:
        super().__init__(host, port, timeout=seconds)
        self._address, self._tls = address, tls

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self.port), self.timeout)
        if self._tls:
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host)


def _over_http(uri: str, settings: PictureSettings) -> bytes:
    parts = urlsplit(uri)
    is_secure = parts.scheme == "https"
    host, port = parts.hostname or "", parts.port or (443 if is_secure else 80)
    tls = ssl.create_default_context() if is_secure else None
    connection = _Pinned(host, port, public_address(host, port), tls, settings.timeout_seconds)
    try:
        connection.request("GET", parts._replace(scheme="", netloc="", fragment="").geturl() or "/")
        answer = connection.getresponse()
        if answer.status in (404, 410):
            raise UnusablePicture("not_found", f"status {answer.status}")
        if answer.status != 200:
            raise UnusablePicture("not_fetched", f"status {answer.status}")
        content = bytearray()
        while len(content) <= settings.max_bytes and (piece := answer.read(_PIECE)):
            content += piece
        return _bounded(bytes(content), settings.max_bytes)
    finally:
        connection.close()


def public_address(host: str, port: int) -> str:
    """An address of a host, all of whose addresses are on the public internet.

    Raises:
        UnusablePicture: one is not: loopback, private, link-local (where clouds keep their credentials), reserved.
    """
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for text in found:
        address = ipaddress.ip_address(text.partition("%")[0])
        is_translated = any(address in ipaddress.ip_network(network) for network in _TRANSLATED)
        if not address.is_global or address.is_multicast or is_translated:
            raise UnusablePicture("internal_address", f"{host} is {text}")
    return found[0]
