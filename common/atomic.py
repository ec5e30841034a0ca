"""Files and folders that appear whole or not at all: written under a temporary name, then renamed.

What a killed process left under such a name is removed by the next one that writes there.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.disk import blame_disk
from common.leftovers import clear_once, remove, temporary_file, temporary_folder

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2(2)
# Not in this system or file system, or not let through by a container.
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the place of `path` if the block ends without an error.

    It is not forced onto the disk: a power cut may lose it, which costs seconds or is found out when it is read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_once(path.parent.absolute())
    temporary = temporary_file(path)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except Exception as error:
        blame_disk(path, error)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, lasting: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it takes the place of `path` if the block ends without an error.

    A folder that stood there is exchanged for it at one instant where the system can (Linux; not on NFS). Elsewhere it
    is moved aside first and removed last. If that fails half-way it is put back at once, and after a kill by the next
    process that writes, or misses it, there.

    Args:
        path: the folder.
        lasting: it is on the disk before it takes its place, so that not even a power cut loses both. For what hours
            went into; it may take seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_once(path.parent.absolute())
    temporary = temporary_folder(path)
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if lasting:
            _flush(temporary)
        if not path.exists():
            temporary.rename(path)
        elif not exchange(temporary, path):
            _replace_in_two_steps(temporary, path)
        if lasting:
            _force(path.parent)
    except Exception as error:
        blame_disk(path, error)
        raise
    finally:
        remove(temporary)


def exchange(one: Path, other: Path) -> bool:
    """Let two names change places at one instant; False where that cannot be done.

    Raises:
        OSError: the file system fails; both are where they were.
    """
    function = _renameat2()
    if function is None:
        return False
    if function(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(other))


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    try:
        function: Callable[..., int] = ctypes.CDLL(None, use_errno=True).renameat2
        return function
    except (OSError, AttributeError):
        return None


def _replace_in_two_steps(new: Path, path: Path) -> None:
    aside = temporary_folder(path, "old")
    try:
        path.rename(aside / path.name)
        try:
            new.rename(path)
        except BaseException:
            (aside / path.name).rename(path)
            raise
    except BaseException:
        with suppress(OSError):  # it could not be put back, and lies there
            aside.rmdir()
        raise
    remove(aside)


def _flush(folder: Path) -> None:
    """Have the disk keep all that lies in a folder."""
    for place, _, files in os.walk(folder):
        for file in files:
            _force(Path(place, file))
        _force(Path(place))


def _force(place: Path) -> None:
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has nothing to do for it
            raise
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_text(path: Path, text: str) -> None:
    """Write at the end of a file; a kill may leave a part of it."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        blame_disk(path, error)
        raise


def file_name(label: str) -> str:
    """A label as the name of a file: what might trouble a file system becomes `_`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", label)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
