"""One answer of a file server over HTTPS: encrypted, of the right kind, and not endlessly slow."""

from __future__ import annotations

import http.client
import io
import re
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.message import Message
from typing import Any

from common.errors import UserError, first_line

TIMEOUT = 30.0
"""Seconds a server may stay silent."""
WINDOW = 60.0
"""Seconds over which the speed of a connection is measured."""
SLOWEST = 10_000
"""Bytes per second below which a connection is given up."""
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
"""HTTP statuses after which trying again makes sense."""
_LENGTH = "[0-9]{1,18}"


class BrokenConnectionError(Exception):
    """The connection failed; trying again may help."""


@dataclass
class Answer:
    """What a server sends of a file."""

    response: http.client.HTTPResponse
    start: int
    """First byte that it brings."""
    total: int | None
    """Bytes of the whole file, where the server says it."""
    ends: bool
    """Whether the end of the body is marked, so that one that is cut short is noticed."""
    version: str
    """Entity tag or date of the file, see `version_of`; empty where the server gives none."""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; empty at the end.

        Raises:
            BrokenConnectionError: cut, silent or too slow.
        """
        try:
            return self.response.read1(size)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise BrokenConnectionError(f"{type(error).__name__}: {error}") from error


def ask(url: str, have: int, version: str) -> Answer | None:
    """Ask for everything from byte `have` on, as long as the file is still of that version.

    Args:
        url: https.
        have: bytes that are there already.
        version: of the file that they belong to; empty if unknown.

    Returns:
        The answer, which starts at `have`, or at 0 where the file has changed or the server sends whole files only.
        None if the file ends exactly at `have`.

    Raises:
        UserError: the address is not https or leads elsewhere, there is no such file, or no file comes.
        BrokenConnectionError: no connection, or an answer that makes no sense.
    """
    _refuse_unencrypted(url, url)
    headers = {"User-Agent": "dcls-align"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if version:
            headers["If-Range"] = version
    try:
        response = _opener().open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        return _refused(error, url, have, version)
    except urllib.error.URLError as error:
        raise BrokenConnectionError(f"no connection ({error.reason})") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise BrokenConnectionError(f"{type(error).__name__}: {error}") from error
    try:
        return _answer(response, url, have, version) or _close_and_ask(response, url)
    except Exception:
        response.close()
        raise


def version_of(headers: Message) -> str:
    """What names this state of the file: a strong entity tag, or else the date of its last change."""
    tag = headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")


# --- answers --------------------------------------------------------------------------------------------------


def _answer(response: http.client.HTTPResponse, url: str, have: int, version: str) -> Answer | None:
    """What a response brings; None where it goes on with another file than the one that was begun."""
    if response.status not in (200, 206):
        raise UserError(f"{url}: the server answered {response.status} {response.reason} and sent no file")
    kind = response.headers.get_content_type()
    if "Content-Type" in response.headers and kind in ("text/html", "application/xhtml+xml"):
        raise UserError(
            f"{url}: a web page came in place of the file ({response.url}). A network that asks for a login answers "
            "so: open the address in a browser"
        )
    length = response.headers.get("Content-Length")
    if length is not None and not re.fullmatch(_LENGTH, length):
        raise BrokenConnectionError(f"the server announced a length of {length[:40]!r}")
    found = version_of(response.headers)
    if response.status == 200:
        total = None if length is None else int(length)
        return Answer(response, 0, total, response.chunked or total is not None, found)
    asked = response.headers.get("Content-Range", "")
    span = re.fullmatch(rf"bytes ({_LENGTH})-{_LENGTH}/({_LENGTH}|\*)", asked)
    if span is None or int(span[1]) != have:
        raise UserError(f"{url}: asked for the bytes from {have}, got {asked[:80]!r}")
    if version and found and found != version:
        return None
    total = None if span[2] == "*" else int(span[2])
    return Answer(response, have, total, response.chunked or length is not None, found or version)


def _close_and_ask(response: http.client.HTTPResponse, url: str) -> Answer | None:
    response.close()
    return ask(url, 0, "")


def _refused(error: urllib.error.HTTPError, url: str, have: int, version: str) -> Answer | None:
    """What to make of a status that tells of an error."""
    if error.code == 416 and have:
        length = re.fullmatch(rf"bytes \*/({_LENGTH})", error.headers.get("Content-Range", ""))
        found = version_of(error.headers)
        if length and int(length[1]) == have and (not version or not found or found == version):
            return None
        return ask(url, 0, "")
    if error.code in _TRANSIENT:
        raise BrokenConnectionError(f"the server answered {error.code} {first_line(error.reason)}") from error
    raise UserError(
        f"{url}: the server answered {error.code} {first_line(error.reason)}; is the address still right?"
    ) from error


# --- the connection -------------------------------------------------------------------------------------------


def _refuse_unencrypted(url: str, asked: str) -> None:
    """Raises UserError unless `url`, where `asked` led, is fetched over HTTPS."""
    if not url.lower().startswith("https://"):
        led = "" if url == asked else f" leads to {url[:200]}, which"
        raise UserError(f"{asked}{led} is not https; nothing is fetched unencrypted")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to HTTPS only."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        fp.close()  # else its body would be read to the end, however long
        _refuse_unencrypted(newurl, req.full_url)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Paced(io.RawIOBase):
    """The bytes of a connection, which ends with an error where it is too slow for a whole window of time."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.since, self.count = inner, time.monotonic(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        now = time.monotonic()
        if now - self.since > WINDOW:
            if self.count < SLOWEST * WINDOW:
                raise TimeoutError(f"fewer than {SLOWEST:,} bytes per second")
            self.since, self.count = now, 0
        read: int | None = self.inner.readinto(buffer)
        self.count += read or 0
        return read

    def close(self) -> None:
        self.inner.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """A response whose head and body come at a least speed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fp = io.BufferedReader(_Paced(self.fp.detach()))


class _Connection(http.client.HTTPSConnection):
    response_class = _Response


class _Https(urllib.request.HTTPSHandler):
    """Certificates are checked against those of the system, or of `SSL_CERT_FILE`."""

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, req, context=ssl.create_default_context())


def _opener() -> urllib.request.OpenerDirector:
    """Knows HTTPS, by a proxy if the environment names one, and no other way to fetch anything."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Https(),
        _Redirects(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener
