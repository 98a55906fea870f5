"""Files that rows of a table name: what is opened, what is not, and what is given up."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import fsspec
import pytest

from jobs.runtime import picture_files
from jobs.runtime.picture_files import PictureFiles, public_address, read_picture
from schemas.picture_tables import PICTURE_FAULTS, UnusablePicture
from schemas.settings import PictureSettings


def settings(*roots: str, **keys: float) -> PictureSettings:
    return PictureSettings.model_validate({"roots": roots, **keys})


def reason(uri: str, allowed: PictureSettings) -> str:
    (found,) = PictureFiles(allowed).read([uri])
    assert isinstance(found, UnusablePicture), found
    assert found.reason in PICTURE_FAULTS
    return found.reason


def test_files_below_a_root_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a picture")
    allowed = settings(str(tmp_path))
    for uri in (str(tmp_path / "a.jpg"), f"file://{tmp_path}/a.jpg", f"file:{tmp_path}/a.jpg"):
        assert PictureFiles(allowed).read([uri]) == [b"a picture"]


@pytest.mark.parametrize(
    "uri",
    [
        "/etc/passwd", "file:///etc/passwd", "{root}/../outside.jpg", "{root}/link.jpg", "{root}/folder/up.jpg",
        "inside.jpg", "", "ftp://host/a.jpg", "simplecache::file://{root}/a.jpg", "data:image/png;base64,AAAA",
        "https://shop.example/a.jpg", "{root}-other/a.jpg", "zip://a.jpg::{root}/a.zip", "{root}/a.jpg\0.png",
        "github://org:repo@main/a.jpg", "https://cdn.example@evil.example/a.jpg", "https://cdn.example.evil.example/a.jpg",
        "https://cdn.example:8080/a.jpg", "https://cdn.example/%2e%2e/a.jpg", "https://cdn.example\\@evil.example/a.jpg",
        "HTTPS://evil.example/a.jpg", "s3://other/a.jpg", "s3://bucket/../other/a.jpg",
        "memory://shop/a.jpg::/etc/passwd", "//etc/passwd",
    ],
)  # fmt: skip
def test_nothing_else_is_opened(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "photos"
    (root / "folder").mkdir(parents=True)
    (tmp_path / "photos-other").mkdir()
    for outside in (tmp_path / "outside.jpg", tmp_path / "photos-other" / "a.jpg"):
        outside.write_bytes(b"secret")
    (root / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    (root / "folder" / "up.jpg").symlink_to("../../outside.jpg")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up"))
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda *_: pytest.fail("a store was opened"))
    allowed = settings(
        str(root), "https://cdn.example", "s3://bucket/photos", "memory://shop", "github://org:repo@main", "ftp://host"
    )
    assert reason(uri.replace("{root}", str(root)), allowed) == "place_not_allowed"


def test_without_roots_nothing_is_opened(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a picture")
    assert reason(str(tmp_path / "a.jpg"), settings()) == "place_not_allowed"


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    allowed = settings(str(tmp_path), "/dev", timeout_seconds=5)
    started = time.monotonic()
    assert reason(str(tmp_path / "pipe.jpg"), allowed) == "not_fetched"
    assert reason("/dev/zero", allowed) == "not_fetched"
    assert reason(str(tmp_path), allowed) == "not_fetched"
    assert reason(str(tmp_path / "none.jpg"), allowed) == "not_found"
    assert time.monotonic() - started < 4


def test_no_more_bytes_are_read_than_may_be(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x" * 11)
    assert reason(str(tmp_path / "a.jpg"), settings(str(tmp_path), max_bytes=10)) == "too_many_bytes"
    assert PictureFiles(settings(str(tmp_path), max_bytes=11)).read([str(tmp_path / "a.jpg")]) == [b"x" * 11]


def test_a_store_is_read_through_fsspec() -> None:
    fsspec.filesystem("memory").pipe("/shop/a.jpg", b"y" * 20)
    assert PictureFiles(settings("memory://shop")).read(["memory://shop/a.jpg"]) == [b"y" * 20]
    assert reason("memory://shop/a.jpg", settings("memory://shop", max_bytes=19)) == "too_many_bytes"
    assert reason("memory://shop/none.jpg", settings("memory://shop")) == "not_found"
    assert reason("memory://other/a.jpg", settings("memory://shop")) == "place_not_allowed"


def test_what_hangs_is_given_up_and_the_others_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(uri: str, _: PictureSettings) -> bytes:
        time.sleep(30 if "slow" in uri else 0)
        return uri.encode()

    monkeypatch.setattr(picture_files, "read_picture", slow)
    files = PictureFiles(settings(timeout_seconds=0.3, budget_seconds=0.5))
    started = time.monotonic()
    found = files.read(["a", "slow", "b"])
    assert [one if isinstance(one, bytes) else one.reason for one in found] == [b"a", "too_slow", b"b"]
    found = files.read(["slow", "c"])
    assert [one if isinstance(one, bytes) else one.reason for one in found] == ["too_slow", b"c"]
    # 0.6 s are spent.
    assert [one.reason for one in files.read(["d"] * 20) if isinstance(one, UnusablePicture)] == ["budget_spent"] * 20
    assert time.monotonic() - started < 3


def test_files_come_in_their_order(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number}.jpg").write_bytes(str(number).encode())
    uris = [str(tmp_path / f"{number}.jpg") for number in range(30)]
    assert PictureFiles(settings(str(tmp_path))).read(uris) == [str(number).encode() for number in range(30)]


# ---------------------------------------------------------------- HTTP


@pytest.fixture
def host() -> Iterator[str]:
    """A server on this machine: /a.jpg, /large.jpg, /moved.jpg; everything else is not there."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = {"/a.jpg?w=2": 200, "/large.jpg": 200, "/moved.jpg": 302, "/inner.jpg": 403}.get(self.path, 404)
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/a.jpg?w=2")
            self.end_headers()
            self.wfile.write(b"z" * (300 if self.path == "/large.jpg" else 30))

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_this_machine_is_not_asked(host: str) -> None:
    assert reason(f"{host}/a.jpg?w=2", settings(host)) == "internal_address"


def test_a_host_of_the_internet_is_asked_once(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def pinned(name: str, port: int) -> str:
        asked.append(name)
        return "127.0.0.1"

    monkeypatch.setattr(picture_files, "public_address", pinned)
    assert PictureFiles(settings(host)).read([f"{host}/a.jpg?w=2"]) == [b"z" * 30]
    assert reason(f"{host}/moved.jpg", settings(host)) == "not_fetched"
    assert reason(f"{host}/inner.jpg", settings(host)) == "not_fetched"
    assert reason(f"{host}/none.jpg", settings(host)) == "not_found"
    assert reason(f"{host}/large.jpg", settings(host, max_bytes=299)) == "too_many_bytes"
    assert asked == ["localhost"] * 5


def test_the_address_that_was_looked_at_is_the_one_that_is_asked(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that answers with another address the second time leads nowhere."""
    port = int(host.rpartition(":")[2])
    monkeypatch.setattr(picture_files, "public_address", lambda *_: "127.0.0.1")
    monkeypatch.setattr(socket, "gethostbyname", lambda *_: pytest.fail("looked up again"))
    uri = f"http://a-name-that-is-none.invalid:{port}/a.jpg?w=2"
    assert read_picture(uri, settings(uri.rpartition("/")[0])) == b"z" * 30


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "192.168.1.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "::1", "fe80::1%eth0", "fd00::1", "::ffff:10.0.0.1", "::ffff:93.184.216.34",
        "64:ff9b::a00:1", "2002:a00:1::1", "240.0.0.1",
        "255.255.255.255",
    ],
)  # fmt: skip
def test_addresses_inside_are_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, ["93.184.216.34", address])
    with pytest.raises(UnusablePicture, match="internal_address"):
        public_address("cdn.example", 443)


def test_an_address_outside_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, ["93.184.216.34", "2606:4700::6810:84e5"])
    assert public_address("cdn.example", 443) == "93.184.216.34"


def answers(monkeypatch: pytest.MonkeyPatch, addresses: list[str]) -> None:
    found: Callable[..., object] = lambda *_, **__: [(0, 0, 0, "", (one, 443)) for one in addresses]  # noqa: E731
    monkeypatch.setattr(socket, "getaddrinfo", found)
