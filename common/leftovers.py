"""Temporary names that name their owner, so that what a dead writer left behind is found and removed."""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path

_LETTERS = 60
"""Of a name that stand in its temporary one, as file systems allow 255 bytes."""
_PATTERN = re.compile(
    r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{8})-(?P<pid>[0-9]+)-(?P<start>[0-9]+)\.\w{8}\.(?P<kind>part|old)"
)


def temporary_file(path: Path) -> Path:
    """A new empty file beside `path`, named after it and this process."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path), suffix=".part")
    os.close(handle)
    return Path(name)


def temporary_folder(path: Path, kind: str = "part") -> Path:
    """A new empty folder beside `path`, named after it and this process; `old` is what will be put back."""
    return Path(tempfile.mkdtemp(dir=path.parent, prefix=_prefix(path), suffix=f".{kind}"))


def clear_leftovers(folder: Path, name: str | None = None, alone: bool = False) -> None:
    """Remove what dead writers left in a folder; where they had moved away what stood there, it is put back.

    Whether a writer is dead can be seen on its own host only.

    Args:
        folder: where temporary names are looked for, not below.
        name: only those of this file or folder.
        alone: nobody else may write them now, as a lock is held; so they are dead, wherever they ran.
    """
    with suppress(OSError):  # no such folder, or not ours to tidy
        for path in sorted(folder.iterdir()):
            found = _PATTERN.fullmatch(path.name)
            if found is None or (name is not None and found["name"] != name[:_LETTERS]):
                continue
            owner = found["host"], int(found["pid"]), int(found["start"])
            if owner != _owner() and (alone or _died(*owner)):
                if found["kind"] == "old":
                    _put_back(path, folder)
                remove(path)


@functools.cache
def clear_once(folder: Path) -> None:
    """`clear_leftovers`, at the first call for a folder in this process."""
    clear_leftovers(folder)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder if it can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _put_back(aside: Path, folder: Path) -> None:
    for content in aside.iterdir():
        if not os.path.lexists(folder / content.name):
            content.rename(folder / content.name)


def _prefix(path: Path) -> str:
    host, pid, start = _owner()
    return f".{path.name[:_LETTERS]}.{host}-{pid}-{start}."


def _owner() -> tuple[str, int, int]:
    return _host(), os.getpid(), _state(os.getpid())[1]


@functools.cache
def _host() -> str:
    """This host and, in a container, its numbering of processes, in eight letters."""
    numbering = ""
    with suppress(OSError):
        numbering = os.readlink("/proc/self/ns/pid")
    return f"{zlib.crc32(f'{platform.node()} {numbering}'.encode()):08x}"


def _died(host: str, pid: int, start: int) -> bool:
    """Whether a process is gone for certain; its number may belong to a younger one."""
    if host != _host():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    letter, since = _state(pid)
    return letter in "ZX" or bool(since and since != start)


def _state(pid: int) -> tuple[str, int]:
    """State of a process (`Z`: ended, not yet reaped) and when it began, in ticks since the start of the system."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        return fields[0], int(fields[19])
    except (OSError, ValueError, IndexError):  # no such file system here, or hidden
        return "R", 0
