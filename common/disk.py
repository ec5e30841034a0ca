"""A full or failing disk, recognised behind whatever error a library made of it."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common.errors import UserError

# Full, over quota, failing, gone, or moved between two file systems.
_FAILED = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EXDEV)
PROBE = 2**20
"""Bytes that are written to see whether a place takes any."""


def refusal(error: BaseException) -> OSError | None:
    """The error of the file system that ended a command; None where something else did.

    Any refusal counts where the place is named and nothing else was raised after it. A disk that fails counts wherever
    it stands among the causes: libraries raise errors of their own on the way out.
    """
    if isinstance(error, OSError) and error.errno and error.filename is not None:
        return error
    return next((e for e in _causes(error) if isinstance(e, OSError) and e.errno in _FAILED), None)


def told(refused: OSError) -> str:
    """What was refused, where, and what to do."""
    full = refused.errno in (errno.ENOSPC, errno.EDQUOT)
    advice = "make room there" if full else "check the place and its permissions"
    return f"{refused.filename or 'writing'}: {os.strerror(refused.errno or 0)}; {advice}"


def blame_disk(place: Path, error: Exception) -> None:
    """See whether the disk is why `place` could not be written; to be called before what was written is removed.

    An error of the disk that names no file gets the name of this one. Some libraries raise errors that tell nothing of
    the disk, so where there is none among the causes the disk itself is asked, by writing to it.

    Raises:
        OSError: the disk takes nothing more.
    """
    if isinstance(error, UserError):
        return
    found = refusal(error)
    if found is not None:
        found.filename = found.filename or str(place)
        return
    try:
        with tempfile.TemporaryFile(dir=place.parent) as file:
            file.write(bytes(PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as refused:
        if refused.errno in _FAILED:
            refused.filename = str(place)
            raise refused from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and what it was raised from, or while that was handled."""
    seen: set[int] = set()
    left: BaseException | None = error
    while left is not None and id(left) not in seen:
        seen.add(id(left))
        yield left
        left = left.__cause__ or left.__context__
