"""An HTTPS file server on 127.0.0.1 for tests of downloads: supports Range or not, cuts connections, answers errors."""

from __future__ import annotations

import atexit
import hashlib
import http.server
import re
import shutil
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`, and does what its lists and flags say."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate())
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.files: dict[str, bytes] = {}
        """Content by path, such as "/file.bin"; "/moved/file.bin" redirects there."""
        self.redirects: dict[str, str] = {}
        """Address that a path leads to."""
        self.heads: dict[str, str] = {}
        """Headers of every answer that brings a file; they replace the server's own, and empty ones drop them."""
        self.body: Callable[[http.server.BaseHTTPRequestHandler], None] | None = None
        """Writes bodies in the place of the content."""
        self.supports_range = True
        self.obeys_if_range = True
        self.announces_size = True
        self.endless_head = False
        """Whether `body` begins before the head has ended."""
        self.success = 200
        self.cuts: list[int] = []
        """Bytes after which the next answers break off."""
        self.statuses: list[int] = []
        """Errors that answer the next requests."""
        self.requests: list[tuple[str, str | None]] = []
        """Path and Range of every request."""

    def handle_error(self, *args: object) -> None:
        pass  # clients leave before the end

    def url(self, path: str) -> str:
        return f"https://127.0.0.1:{self.server_port}{path}"

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
        if self.path in self.server.redirects:
            return self._answer(302, {"Location": self.server.redirects[self.path]})
        if self.path not in self.server.files:
            return self.send_error(404)
        content = self.server.files[self.path]
        tag = f'"{hashlib.sha256(content).hexdigest()[:8]}"'
        span = re.fullmatch(r"bytes=(\d+)-", asked or "")
        known = self.server.heads.get("ETag", tag) or self.server.heads.get("Last-Modified", "")
        if self.server.obeys_if_range and self.headers.get("If-Range", known) != known:
            span = None
        start = int(span[1]) if span and self.server.supports_range else 0
        if start and start >= len(content):
            return self._answer(416, {"Content-Range": f"bytes */{len(content)}"})
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        if self.server.announces_size:
            headers["Content-Length"] = str(len(content) - start)
        headers = {"ETag": tag} | headers | self.server.heads
        status = 206 if start else self.server.success
        self._answer(status, {name: value for name, value in headers.items() if value}, self.server.endless_head)
        if self.server.body:
            return self.server.body(self)
        end = start + self.server.cuts.pop(0) if self.server.cuts else len(content)
        self.wfile.write(content[start:end])

    def _answer(self, status: int, headers: dict[str, str], endless: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.flush_headers() if endless else self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@cache
def certificate() -> Path:
    """Key and self-signed certificate for 127.0.0.1, made anew; the test is skipped without openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    folder = Path(tempfile.mkdtemp(prefix="certificate-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    file = folder / "both.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    made = [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", file, "-out", folder / "public.pem"]
    subprocess.run(made, check=True, capture_output=True)
    file.write_text(file.read_text() + (folder / "public.pem").read_text())
    return file


@contextmanager
def local_server() -> Iterator[Server]:
    """A server whose certificate is trusted, by the environment, as long as it runs."""
    with Server() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(certificate()))
        patch.setenv("no_proxy", "127.0.0.1")
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
