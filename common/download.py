"""Downloads that survive a broken connection: resumed where they stopped, checked, and in place only when whole."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock
from tqdm import tqdm

from common.errors import UserError
from common.weights import sha256 as file_sha256

ATTEMPTS = 4
"""Connections in a row that may bring nothing before a download is given up."""
FIRST_PAUSE = 1.0
"""Seconds before the second attempt; each further pause is twice as long."""
TIMEOUT = 30.0
"""Seconds a server may stay silent."""
_CHUNK = 1 << 20
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
"""HTTP statuses after which trying again makes sense."""


class _BrokenConnectionError(Exception):
    """The connection failed; what arrived is in the partial file."""


def cache_folder() -> Path:
    """Where downloads are kept: `$DCLS_ALIGN_CACHE`, or `~/.cache/dcls-align`."""
    chosen = os.environ.get("DCLS_ALIGN_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "dcls-align"


def download(url: str, to: Path, expected_size: int | None = None, sha256: str | None = None) -> Path:
    """Fetch a file unless it is there already.

    What arrives is kept beside the target as `NAME.part`, and a second call goes on from there (HTTP Range;
    a server that does not support it sends everything again). Processes that want one file take turns.

    Args:
        url: http or https.
        to: the file; it appears under this name only once it is whole and checked.
        expected_size: bytes; else what the server announces is taken.
        sha256: hexadecimal, if known. A file at `to` that does not fit it or the size is fetched again.

    Returns:
        `to`.

    Raises:
        UserError: no connection, no such file on the server, wrong size or hash, no room on the disk.
    """
    part = to.with_name(f"{to.name}.part")
    lock = cache_folder() / "locks" / f"{hashlib.sha256(str(to.absolute()).encode()).hexdigest()[:24]}.lock"
    try:
        for folder in (to.parent, lock.parent):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be made ({error.strerror}); downloads need a folder") from error
    with FileLock(lock):
        if to.is_file() and _problem(to, expected_size, sha256) is None:
            return to
        _fetch(url, part, to, expected_size)
        if problem := _problem(part, expected_size, sha256):
            part.unlink()
            raise UserError(f"{url} brought another file than the one known here: {problem}. Nothing was kept.")
        part.replace(to)
    return to


def _problem(path: Path, size: int | None, digest: str | None) -> str | None:
    """What is wrong with a file, or None."""
    if size is not None and (found := path.stat().st_size) != size:
        return f"{found:,} bytes instead of {size:,}"
    if digest is not None and (found_digest := file_sha256(path)) != digest:
        return f"SHA-256 {found_digest} instead of {digest}"
    return None


def _fetch(url: str, part: Path, to: Path, expected_size: int | None) -> None:
    """Connect as often as it takes until `part` is whole."""
    failures = 0
    with tqdm(desc=to.name, unit="B", unit_scale=True, unit_divisor=1024, disable=None) as bar:
        while True:
            before = _size(part)
            try:
                return _transfer(url, part, expected_size, bar)
            except _BrokenConnectionError as error:
                failures = 1 if _size(part) > before else failures + 1
                if failures >= ATTEMPTS:
                    raise UserError(
                        f"{url} could not be downloaded: {error} ({failures} attempts). Check the connection; the "
                        f"same command goes on after the {_size(part):,} bytes that have arrived. A file fetched in "
                        f"another way may be put at {to}"
                    ) from error
            time.sleep(FIRST_PAUSE * 2 ** (failures - 1))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _transfer(url: str, part: Path, expected_size: int | None, bar: tqdm) -> None:
    """One connection: append to `part` what is missing; returns once all is there.

    Raises:
        UserError: trying again is of no use.
        _BrokenConnectionError: it may be.
    """
    have = _size(part)
    response = _request(url, have)
    if response is None:  # the server has nothing after byte `have`
        if expected_size in (None, have):
            return
        part.unlink()
        raise _BrokenConnectionError("the part that had arrived was of another file")
    with response:
        start, total = _announced(response, have)
        if expected_size is not None and total is not None and total != expected_size:
            raise UserError(f"{url} has {total:,} bytes on the server; {expected_size:,} were expected")
        bar.total = total
        bar.update(start - bar.n)
        with _open_part(part, resume=start > 0) as file:
            file.seek(start)
            while chunk := _read(response):
                try:
                    file.write(chunk)
                except OSError as error:
                    raise UserError(f"{part} cannot be written: {error.strerror}") from error
                bar.update(len(chunk))
    if total is not None and _size(part) < total:
        raise _BrokenConnectionError(f"the connection ended after {_size(part):,} of {total:,} bytes")


def _request(url: str, have: int) -> http.client.HTTPResponse | None:
    """Ask for everything from byte `have` on; None if the file ends exactly there."""
    headers = {"User-Agent": "dcls-align"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT
        )
        return response
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and have:
                length = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
                if length and int(length[1]) == have:
                    return None
                return _request(url, 0)
            if error.code in _TRANSIENT:
                raise _BrokenConnectionError(f"the server answered {error.code} {error.reason}") from error
        raise UserError(
            f"{url}: the server answered {error.code} {error.reason}; is the address still right?"
        ) from error
    except urllib.error.URLError as error:
        raise _BrokenConnectionError(f"no connection ({error.reason})") from error
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenConnectionError(f"{type(error).__name__}: {error}") from error


def _announced(response: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
    """First byte and total size of what a response brings; a server without Range sends all from byte 0."""
    if response.status == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if span is None or int(span[1]) != have:
            raise UserError(
                f"{response.url}: asked for bytes from {have}, got {response.headers.get('Content-Range')!r}"
            )
        return have, None if span[2] == "*" else int(span[2])
    length = response.headers.get("Content-Length")
    return 0, int(length) if length else None


def _open_part(part: Path, resume: bool) -> BinaryIO:
    try:
        return part.open("r+b" if resume else "wb")
    except OSError as error:
        raise UserError(f"{part} cannot be written: {error.strerror}") from error


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenConnectionError(f"{type(error).__name__}: {error}") from error
