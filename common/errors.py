"""The error a user can mend; entry points print its message without a traceback and exit with status 2."""

import difflib
from collections.abc import Collection


class UserError(Exception):
    """Something the user asked for cannot be done.

    The message says what is wrong (with the value seen), where, and what to do.
    """


def did_you_mean(name: str, known: Collection[str], shown: int = 30) -> str:
    """What to take instead of an unknown name: those like it, or else the first `shown` of all."""
    near = difflib.get_close_matches(name, known, 3)
    if near:
        return f"did you mean {' or '.join(near)}?"
    more = ", ..." if len(known) > shown else ""
    return f"known: {', '.join(list(known)[:shown])}{more}"


def first_line(error: object) -> str:
    """What a message says first, at most 200 characters."""
    return next(iter(str(error).strip().splitlines()), "no message")[:200]
