"""Damage to files, as disks, networks and people do it."""

from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

Damage = Callable[[bytes], bytes]

bounded = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
"""The same examples in every run, few enough for seconds."""


def flipped(content: bytes, place: float, bit: int = 0) -> bytes:
    """One bit turned over, `place` (0 to 1) of the way through."""
    out = bytearray(content)
    out[int(place * (len(out) - 1))] ^= 1 << bit
    return bytes(out)


def _flip(place: float, bit: int) -> Damage:
    return lambda content: flipped(content, place, bit)


def _cut(place: float) -> Damage:
    return lambda content: content[: int(place * (len(content) - 1))]


def _blank(place: float, length: int) -> Damage:
    def change(content: bytes) -> bytes:
        start = int(place * (len(content) - 1))
        return content[:start] + bytes(min(length, len(content) - start)) + content[start + length :]

    return change


def _insert(place: float, extra: bytes) -> Damage:
    def change(content: bytes) -> bytes:
        start = int(place * len(content))
        return content[:start] + extra + content[start:]

    return change


def _drop(place: float, length: int) -> Damage:
    def change(content: bytes) -> bytes:
        start = int(place * len(content))
        return content[:start] + content[start + length :]

    return change


def _digit(place: float, digit: int) -> Damage:
    """The next digit becomes another, as a slip of somebody's who edits a number."""

    def change(content: bytes) -> bytes:
        start = int(place * len(content))
        at = next((n for n in range(start, len(content)) if content[n : n + 1].isdigit()), None)
        return content if at is None else content[:at] + b"%d" % digit + content[at + 1 :]

    return change


_places = st.floats(0, 1)
damages: st.SearchStrategy[Damage] = st.one_of(
    st.builds(_flip, _places, st.integers(0, 7)),
    st.builds(_cut, _places),
    st.builds(_blank, _places, st.integers(1, 600)),
    st.builds(_insert, _places, st.binary(min_size=1, max_size=9)),
    st.builds(_drop, _places, st.integers(1, 200)),
    st.builds(_digit, _places, st.integers(0, 9)),
)
"""A bit turned over, the end cut off, a piece of zeros, a few bytes too many or too few, another digit."""


def damaged(path: Path, content: bytes, damage: Damage) -> bool:
    """Write damaged content to a file; False where it is as it was."""
    changed = damage(content)
    path.write_bytes(changed)
    return changed != content
