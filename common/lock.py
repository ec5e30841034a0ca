"""One writer at a time: a lock that ends with its process and names who holds it.

It is the kernel's (`flock`), so it holds between hosts where the file system shares such locks: NFS 4, GPFS, Lustre
mounted with `flock`. Where a file system has none, that is said and the work goes on; where it keeps them to each host
(Lustre's `localflock`, `nolock` of NFS), writers on two hosts do not see each other.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import UserError

PAUSE = 0.2
"""Seconds between two looks at a lock that is waited for."""
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_held: set[int] = set()
"""Descriptors of this process. A child that a fork makes closes them: the lock is its parent's, and ends with it."""


@contextmanager
def locked(
    path: Path, what: str, advice: str, patience: float = 0.0, say: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold the lock `path` within the block; the file is removed at its end.

    Args:
        path: the lock's file, in a folder that exists.
        what: what it stands for, in messages.
        advice: what to do where somebody else has it.
        patience: seconds to wait for that one's end.
        say: tells the user; by default on standard error.

    Raises:
        UserError: somebody else has it; names its process and host.
    """
    handle = _acquire(path, what, advice, patience, say or _tell)
    _held.add(handle)
    try:
        yield
    finally:
        if handle in _held:  # not in a child
            _held.remove(handle)
            with suppress(OSError):
                path.unlink()  # still held, so nobody else's
            os.close(handle)


def _acquire(path: Path, what: str, advice: str, patience: float, say: Callable[[str], None]) -> int:
    end, told = time.monotonic() + patience, False
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(handle)
            os.close(handle)
            if time.monotonic() >= end:
                raise UserError(f"{what} is in use by {holder}; {advice}") from None
            if not told:
                say(f"{what} is in use by {holder}; waiting up to {patience:.0f} s for its end")
                told = True
            time.sleep(PAUSE)
            continue
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(handle)
                error.filename = str(path)
                raise
            say(f"{path.parent}: this file system has no locks; see to it that nothing else writes {what} meanwhile")
        if _is_at(handle, path):
            _sign(handle)
            return handle
        os.close(handle)  # its holder removed it just now


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _sign(handle: int) -> None:
    """Write down who holds a lock. It counts without that, too, as on a full disk."""
    text = json.dumps({"host": platform.node(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")})
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, text.encode(), 0)


def _holder(handle: int) -> str:
    try:
        signed = json.loads(os.pread(handle, 1000, 0))
        return f"process {signed['process']} on {signed['host']} since {signed['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # not signed yet
        return "another process"


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


def _let_go() -> None:
    for handle in _held:
        with suppress(OSError):
            os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
