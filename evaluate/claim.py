"""What a folder of results holds is written down in it, so that nothing there is replaced unasked."""

from __future__ import annotations

import hashlib
import json
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.atomic import file_name, write_text
from common.errors import UserError

RUN_FILE = "run.json"
Question = dict[str, Any]
"""What results depend on, by what people call it; plain values."""
_SHOWN = 4
"""Differences that are told."""


def folder_of(question: Question, *names: str) -> Path:
    """The folder that belongs to a question where none is named: the same again for the same, another for another."""
    key = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:8]
    return Path("results") / file_name("-".join([*names, key]))


@contextmanager
def claimed(
    out: Path, question: Question, command: str, written: Sequence[str], overwrite: bool, kept: tuple[str, str]
) -> Iterator[None]:
    """Within the block `out` is this question's; if the block fails and nothing lies there yet, it is nobody's again.

    Args:
        out: folder of results.
        question: kept in `out`/run.json.
        command: kept beside it.
        written: what will be written there, as patterns; of another question it is removed if `overwrite` says so.
        overwrite: whether results of another question may go.
        kept: a pattern of what survives a failure, and the note that an exception gets where there is some.

    Raises:
        UserError: there are results of another question, or of nobody knows which.
    """
    question = json.loads(json.dumps(question))  # as what lies there was
    held = _read(out / RUN_FILE)
    if held != question:
        there = list(dict.fromkeys(path for pattern in written for path in sorted(out.glob(pattern))))
        if (held is not None or there) and not overwrite:
            unknown = there[0].name if held is None else RUN_FILE
            what = _difference(held, question) if held else f"{unknown}, of unknown origin"
            raise UserError(
                f"--out {out} holds {what}. Take another --out, or give --overwrite to replace what lies there"
            )
        for path in there:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        write_text(out / RUN_FILE, json.dumps({"question": question, "command": command}, indent=2) + "\n")
    try:
        yield
    except BaseException as error:
        pattern, note = kept
        if any(out.glob(pattern)):
            error.add_note(note)
        if not any(path.is_file() and path.name != RUN_FILE for path in out.rglob("*")):
            (out / RUN_FILE).unlink(missing_ok=True)
            with suppress(OSError):  # something else is there
                out.rmdir()
        raise


def _read(path: Path) -> Question | None:
    """The question written down there; empty where the file is none of ours, None where there is no file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["question"]
        return dict(found)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return {}


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
