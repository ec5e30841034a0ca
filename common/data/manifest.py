"""`manifest.json` beside files of data: their sizes and hashes, and the check of files against them.

`{"files": {"train-0.parquet": {"size": 123, "sha256": "..."}, ...}}`, names of files of the same folder.
`python -m common.data.manifest FOLDER` writes one.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import NamedTuple

from filelock import FileLock
from tqdm import tqdm

from common.arguments import ArgumentParser
from common.atomic import write_text
from common.download import cache_folder
from common.entry import run_command
from common.errors import UserError
from common.weights import sha256

MANIFEST = "manifest.json"
_LONG = 2**30
"""Bytes from which on hashing is announced."""


class Entry(NamedTuple):
    """What a manifest says of a file."""

    size: int
    """Bytes."""
    sha256: str
    """Hexadecimal."""


def read_manifest(folder: Path) -> dict[str, Entry] | None:
    """What a folder's manifest lists, by name; None where there is none.

    Raises:
        UserError: the file is no manifest.
    """
    path = folder / MANIFEST
    try:
        files = json.loads(path.read_bytes())["files"]
        entries = {name: Entry(int(entry["size"]), entry["sha256"].lower()) for name, entry in files.items()}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{path} is no manifest of sizes and hashes; if it is of something else rename it, else write it again: "
            f"python -m common.data.manifest {folder}"
        ) from error
    return entries


def check_files(files: Sequence[Path], pattern: str | None = None) -> None:
    """Hold files against the manifest beside them, where there is one.

    Sizes are compared every time. Contents are hashed once and remembered in the cache folder until a file's size or
    time of modification changes.

    Args:
        files: to be read.
        pattern: by which they were found; what a manifest lists and fits it must be among them.

    Raises:
        UserError: a file is not listed, missing, or another one than listed.
    """
    for folder in dict.fromkeys(file.parent for file in files):
        listed = read_manifest(folder)
        if listed is not None:
            names = [file.name for file in files if file.parent == folder]
            if problem := _problem(folder, names, listed, pattern):
                raise UserError(f"{problem}, or if it is right: python -m common.data.manifest {folder}")


def _problem(folder: Path, names: Sequence[str], listed: dict[str, Entry], pattern: str | None) -> str | None:
    """What is wrong with a folder, and what to do."""
    fitting = [name for name in listed if pattern is not None and PurePath(folder / name).match(pattern)]
    if missing := sorted(set(fitting) - set(names)):
        return f"{folder / missing[0]} and {len(missing) - 1} more of {MANIFEST} are missing; get them"
    for name in names:
        if name not in listed:
            return f"{folder / name} is not listed in {MANIFEST}; take it away"
        if (size := (folder / name).stat().st_size) != listed[name].size:
            return f"{folder / name} has {size:,} bytes, in {MANIFEST} {listed[name].size:,}; get it again"
    for name, entry in entries_of(folder, names).items():
        if entry != listed[name]:
            return f"{folder / name} has the SHA-256 {entry.sha256}, not that in {MANIFEST}; get it again"
    return None


def entries_of(folder: Path, names: Sequence[str]) -> dict[str, Entry]:
    """What a manifest should say of files in a folder; those known from before are not read. Processes take turns."""
    kept = cache_folder() / "hashes" / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:24]}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(kept.with_suffix(".lock")):
        known = _remembered(kept)
        states = {name: _state(folder / name) for name in names}
        new = [name for name in names if known.get(name, [])[:2] != states[name]]
        if (size := sum(states[name][0] for name in new)) > _LONG:
            print(f"hashing {len(new)} files of {folder}, {size / 2**30:.1f} GiB, this once", file=sys.stderr)
        for name in tqdm(new, desc="hashing", unit="file", leave=False, disable=None):
            known[name] = [*states[name], sha256(folder / name)]
        if new:
            write_text(kept, json.dumps(known))
    return {name: Entry(states[name][0], known[name][2]) for name in names}


def _remembered(path: Path) -> dict[str, list]:
    """Size, time of modification and SHA-256 by name; what is damaged is forgotten."""
    with suppress(OSError, ValueError, AttributeError):
        found = json.loads(path.read_bytes()).items()
        return {name: entry for name, entry in found if isinstance(entry, list) and len(entry) == 3}
    return {}


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def write_manifest(folder: Path, names: Sequence[str], others: Mapping[str, Entry] | None = None) -> Path:
    """List files of a folder, beside what is to be said of `others`; returns the manifest."""
    entries = {**(others or {}), **entries_of(folder, names)}
    files = {name: entry._asdict() for name, entry in sorted(entries.items())}
    write_text(folder / MANIFEST, json.dumps({"files": files}, indent=2) + "\n")
    return folder / MANIFEST


def main(argv: Sequence[str] | None = None) -> int:
    """List all files of a folder; returns 0."""
    parser = ArgumentParser(prog="python -m common.data.manifest", description="List a folder's files in manifest.json")
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args(argv).folder
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; give the one that holds the shards")
    names = [file.name for file in sorted(folder.iterdir()) if file.is_file()]
    names = [name for name in names if name != MANIFEST and not name.startswith(".")]
    print(f"{write_manifest(folder, names)}: {len(names)} files")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
