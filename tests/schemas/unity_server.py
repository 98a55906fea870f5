"""A Unity Catalog on the loopback address, for the tests of names: knows some tables, and who asks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote

PATH = "/api/2.1/unity-catalog/tables/"


@dataclass
class Unity:
    """What it knows, and what it was asked.

    Attributes:
        tables: Full name -> the fields of its TableInfo.
        token: What it wants to see; empty = nothing.
        status: What it answers instead of anything else; 0 = nothing of that kind.
        asked: Paths of the requests.
        tokens: Authorization headers of the requests.
        uri: Where it listens.
    """

    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    token: str = ""
    status: int = 0
    asked: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    uri: str = ""

    def answer(self, path: str, token: str) -> tuple[int, bytes]:
        self.asked.append(path)
        self.tokens.append(token)
        if self.status:
            return self.status, b"<html>a page that is no table</html>"
        if self.token and token != f"Bearer {self.token}":
            return 403, b'{"error_code": "PERMISSION_DENIED"}'
        found = self.tables.get(unquote(path.removeprefix(PATH))) if path.startswith(PATH) else None
        return (200, json.dumps(found).encode()) if found else (404, b'{"error_code": "TABLE_DOES_NOT_EXIST"}')


@contextmanager
def serving(unity: Unity) -> Iterator[Unity]:
    """The server, up for the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, content = unity.answer(self.path, self.headers.get("Authorization", ""))
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", f"{unity.uri}/elsewhere")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    unity.uri = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield unity
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
