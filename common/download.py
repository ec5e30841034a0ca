"""Downloads that survive a broken connection: resumed where they stopped, checked, in place only once whole."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock
from tqdm import tqdm

from common.connection import SLOWEST, Answer, BrokenConnectionError, ask
from common.errors import UserError
from common.weights import sha256 as file_sha256

ATTEMPTS = 4
"""Connections in a row that may fail before a download is given up. One that came up to `SLOWEST` did not fail."""
FIRST_PAUSE = 1.0
"""Seconds before the second attempt; each further pause is twice as long."""
LARGEST = 4 << 30
"""Bytes of the largest file that is fetched where the caller knows neither its size nor a bound of its own."""
_CHUNK = 1 << 20


def cache_folder() -> Path:
    """Where downloads are kept: `$DCLS_ALIGN_CACHE`, or `~/.cache/dcls-align`."""
    chosen = os.environ.get("DCLS_ALIGN_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "dcls-align"


def download(
    url: str, to: Path, expected_size: int | None = None, sha256: str | None = None, at_most: int = LARGEST
) -> Path:
    """Fetch a file unless it is there already.

    What arrives is kept beside the target as `NAME.part`, with what names its version (entity tag or date) as
    `NAME.part.version`. A second call goes on from there (HTTP Range) unless the file has changed meanwhile; where no
    version and no hash could tell, it begins anew. Processes that want one file take turns.

    Args:
        url: https; so is every address it leads to.
        to: the file; it appears under this name only once it is whole and checked.
        expected_size: bytes; else what the server announces is taken.
        sha256: hexadecimal, if known. A file at `to` that does not fit it or the size is fetched again.
        at_most: bytes, where `expected_size` is not known; no more are written.

    Returns:
        `to`.

    Raises:
        UserError: no connection, no such file on the server, wrong size or hash, no room on the disk.
    """
    part = _Part(to.with_name(f"{to.name}.part"))
    lock = cache_folder() / "locks" / f"{hashlib.sha256(str(to.absolute()).encode()).hexdigest()[:24]}.lock"
    try:
        for folder in (to.parent, lock.parent):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be made ({error.strerror}); downloads need a folder") from error
    with FileLock(lock):
        if to.is_file() and _problem(to, expected_size, sha256) is None:
            return to
        if not part.version and sha256 is None:
            part.remove()
        _fetch(url, part, to, _Known(expected_size, sha256 is not None, at_most))
        if problem := _problem(part.path, expected_size, sha256):
            part.remove()
            raise UserError(f"{url} brought another file than the one known here: {problem}. Nothing was kept.")
        part.path.replace(to)
        part.remove()
    return to


@dataclass(frozen=True)
class _Known:
    """What is known of a file before it comes."""

    size: int | None
    hashed: bool
    """Whether its hash is known, so that a file that is cut short is noticed."""
    at_most: int


class _Part:
    """What has arrived of a file, and of which version of it."""

    def __init__(self, path: Path) -> None:
        self.path, self._note = path, path.with_name(f"{path.name}.version")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def version(self) -> str:
        """Empty where nothing is known."""
        return self._note.read_text(encoding="latin-1") if self._note.is_file() else ""

    def open(self, start: int, version: str) -> BinaryIO:
        """Open it to be written from byte `start` on; at 0 it begins anew."""
        try:
            file = self.path.open("r+b" if start else "wb")  # emptied before another version is noted
            file.seek(start)
            self._note.write_text(version, encoding="latin-1")
            return file
        except OSError as error:
            raise self._unwritable(error) from error

    def write(self, file: BinaryIO, chunk: bytes) -> None:
        try:
            file.write(chunk)
        except OSError as error:
            raise self._unwritable(error) from error

    def remove(self) -> None:
        for path in (self.path, self._note):
            path.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"{self.path} cannot be written: {error.strerror}")


def _problem(path: Path, size: int | None, digest: str | None) -> str | None:
    """What is wrong with a file, or None."""
    if size is not None and (found := path.stat().st_size) != size:
        return f"{found:,} bytes instead of {size:,}"
    if digest is not None and (found_digest := file_sha256(path)) != digest:
        return f"SHA-256 {found_digest} instead of {digest}"
    return None


def _fetch(url: str, part: _Part, to: Path, known: _Known) -> None:
    """Connect as often as it takes until the part is whole."""
    failures = 0
    with tqdm(desc=to.name, unit="B", unit_scale=True, unit_divisor=1024, disable=None) as bar:
        while True:
            before, since = part.size, time.monotonic()
            try:
                return _transfer(url, part, known, bar)
            except BrokenConnectionError as error:
                enough = SLOWEST * max(time.monotonic() - since, 1.0)
                failures = 1 if part.size - before >= enough else failures + 1
                if failures >= ATTEMPTS:
                    raise UserError(
                        f"{url} could not be downloaded: {error} ({failures} attempts). Check the connection; the "
                        f"same command goes on after the {part.size:,} bytes that have arrived. A file fetched in "
                        f"another way may be put at {to}"
                    ) from error
            time.sleep(FIRST_PAUSE * 2 ** (failures - 1))


def _transfer(url: str, part: _Part, known: _Known, bar: tqdm) -> None:
    """One connection: append to the part what is missing; returns once all is there.

    Raises:
        UserError: trying again is of no use.
        BrokenConnectionError: it may be.
    """
    have = part.size
    answer = ask(url, have, part.version)
    if answer is None:  # the server has nothing after byte `have`
        if known.size in (None, have):
            return
        part.remove()
        raise BrokenConnectionError("the part that had arrived was of another file")
    with answer.response:
        total = _total(url, answer, known)
        bar.total = total
        bar.update(answer.start - bar.n)
        with part.open(answer.start, answer.version) as file:
            done = answer.start
            while chunk := answer.read(_CHUNK):
                done += len(chunk)
                if done > (known.at_most if total is None else total):
                    file.close()
                    part.remove()
                    raise UserError(f"{url} does not end where it should: {_bound(total, known)}. Nothing was kept")
                part.write(file, chunk)
                bar.update(len(chunk))
    if total is not None and done < total:
        raise BrokenConnectionError(f"the connection ended after {done:,} of {total:,} bytes")
    if not done and known.size != 0:
        part.remove()
        raise UserError(f"{url} is empty on the server; is the address still right?")


def _total(url: str, answer: Answer, known: _Known) -> int | None:
    """Bytes that there will be, as far as that is known.

    Raises:
        UserError: not those that were expected, too many, or a body of which nobody could say whether it is whole.
    """
    total = answer.total
    if known.size is not None:
        if total not in (None, known.size):
            raise UserError(f"{url} has {total:,} bytes on the server; {known.size:,} were expected")
        return known.size
    if total is not None and total > known.at_most:
        raise UserError(f"{url} has {total:,} bytes on the server; {_bound(None, known)}")
    if not answer.ends and not known.hashed:
        raise UserError(f"{url}: the server does not say how long the file is, so it could end unnoticed")
    return total


def _bound(total: int | None, known: _Known) -> str:
    return f"at most {known.at_most:,} are taken" if total is None else f"{total:,} were announced or expected"
