"""Who owns a folder of results: nothing in it is replaced unasked, nor written by two commands at once."""

from __future__ import annotations

import hashlib
import json
import os
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.atomic import file_name, write_text
from common.errors import UserError
from common.leftovers import clear_leftovers, remove
from common.lock import locked
from evaluate.rows import Question

RUN_FILE, LOCK = "run.json", ".lock"


_SHOWN = 4
"""Differences, and names, that are told."""


def folder_of(question: Question, *names: str) -> Path:
    """The folder that belongs to a question where none is named: the same again for the same, another for another."""
    key = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:8]
    return Path("results") / file_name("-".join([*names, key]))


@contextmanager
def claimed(
    out: Path, question: Question, command: str, names: Sequence[str], overwrite: bool, kept: tuple[str, str]
) -> Iterator[None]:
    """Within the block `out` is this question's and this process's; if it fails with nothing done, it is nobody's.

    Args:
        out: folder of results.
        question: kept in `out`/run.json.
        command: kept beside it.
        names: files and folders that may be written there, kept as well; nothing else is ever removed.
        overwrite: whether results of another question, and what else bears these names, may go.
        kept: a pattern of what survives a failure, and the note that an exception gets where there is some.

    Raises:
        UserError: another process writes there, or there are results of another question, or of nobody knows which.
    """
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with locked(out / LOCK, f"--out {out}", "wait for its end, or take another --out"):
            _take(out, json.loads(json.dumps(question)), command, sorted(names), overwrite)
            for folder in {(out / name).parent for name in names} | {path.parent for path in out.glob(kept[0])}:
                clear_leftovers(folder, alone=True)
            try:
                yield
            except BaseException as error:
                _leave(out, error, *kept)
                raise
    finally:
        if made:
            with suppress(OSError):  # something is there
                out.rmdir()


def _take(out: Path, question: Question, command: str, names: Sequence[str], overwrite: bool) -> None:
    """Write down whose the folder is now; what other results left there goes if it may."""
    record = _read(out / RUN_FILE)
    held = None if record is None else record["question"]
    if held == question and record is not None and record["written"] == names:
        return
    written = list(dict.fromkeys([*(record["written"] if record else ()), *names]))
    if held != question:
        there = [name for name in written if os.path.lexists(out / name)]
        if (held is not None or there) and not overwrite:
            unknown = ", ".join(_some(there)) if held is None else RUN_FILE
            what = _difference(held, question) if held else f"{unknown}, of unknown origin"
            raise UserError(
                f"--out {out} holds {what}. Take another --out, or give --overwrite to replace what lies there"
            )
        for name in there:
            remove(out / name)
        written = list(names)
    write_text(
        out / RUN_FILE, json.dumps({"question": question, "command": command, "written": written}, indent=2) + "\n"
    )


def _leave(out: Path, error: BaseException, pattern: str, note: str) -> None:
    """Say what is kept of a run that failed; if that is nothing, the folder is no question's any more."""
    if any(out.glob(pattern)):
        error.add_note(note)
    if not any(path.is_file() and path.name not in (RUN_FILE, LOCK) for path in out.rglob("*")):
        (out / RUN_FILE).unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    """What is written down there; of no question where the file is none of ours, None where there is no file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        written = [name for name in found.get("written", []) if _is_inside(name)]
        return {"question": dict(found["question"]), "written": written}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        return {"question": {}, "written": []}


def _is_inside(name: Any) -> bool:
    """Whether a name leads to something below the folder it stands in."""
    return (
        isinstance(name, str)
        and bool(Path(name).parts)
        and not Path(name).is_absolute()
        and ".." not in Path(name).parts
    )


def _some(names: Sequence[str]) -> list[str]:
    return [*names[:_SHOWN], *([f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else [])]


def _difference(held: Question, asked: Question) -> str:
    """In words, what another question asks; what only one of them has is named where nothing else differs."""
    shared = [name for name in held if name in asked]
    changed = [name for name in shared if held[name] != asked[name]] or [*(held.keys() ^ asked.keys())]
    told = [f"{name} {_text(held.get(name))}, now {_text(asked.get(name))}" for name in changed[:_SHOWN]]
    more = f"; and {len(changed) - _SHOWN} more differences" if len(changed) > _SHOWN else ""
    return f"the results of something else: {'; '.join(told)}{more}"


def _text(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "none" if value in (None, "", []) else textwrap.shorten(text, 80, placeholder=" ...")
