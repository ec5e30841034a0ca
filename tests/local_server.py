"""A file server on 127.0.0.1 for tests of downloads: supports Range or not, cuts connections, answers errors."""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`, and does what its lists and flags say."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        """Content by path, such as "/file.bin"; "/moved/file.bin" redirects there."""
        self.supports_range = True
        self.announces_size = True
        self.cuts: list[int] = []
        """Bytes after which the next answers break off."""
        self.statuses: list[int] = []
        """Errors that answer the next requests."""
        self.requests: list[tuple[str, str | None]] = []
        """Path and Range of every request."""

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    @property
    def ranges(self) -> list[str | None]:
        return [span for _, span in self.requests]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.requests.append((self.path, asked))
        if self.server.statuses:
            return self.send_error(self.server.statuses.pop(0))
        if self.path.startswith("/moved/"):
            return self._answer(302, {"Location": self.path.removeprefix("/moved")})
        if self.path not in self.server.files:
            return self.send_error(404)
        content = self.server.files[self.path]
        span = re.fullmatch(r"bytes=(\d+)-", asked or "")
        start = int(span[1]) if span and self.server.supports_range else 0
        if start and start >= len(content):
            return self._answer(416, {"Content-Range": f"bytes */{len(content)}"})
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        if self.server.announces_size:
            headers["Content-Length"] = str(len(content) - start)
        self._answer(206 if start else 200, headers)
        end = start + self.server.cuts.pop(0) if self.server.cuts else len(content)
        self.wfile.write(content[start:end])

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def local_server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
