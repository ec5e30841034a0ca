"""Random damage of a file's content, as disks, cables and half copies make it."""

from collections.abc import Sequence

from hypothesis import strategies as st

Damage = Sequence[tuple[str, float, int]]
DAMAGE = st.lists(
    st.tuples(
        st.sampled_from(["flip", "digit", "cut", "drop", "repeat", "zero"]),
        st.integers(0, 2**16).map(lambda n: n / 2**16),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=2,
)


def damaged(content: bytes, damage: Damage) -> bytes:
    """The content after each of some damages: what, where (0 the begin, 1 the end), how much or which bit."""
    data = bytearray(content)
    for kind, where, how in damage:
        place = min(int(where * len(data)), len(data) - 1)
        if place < 0:
            break
        if kind == "flip":
            data[place] ^= 1 << how % 8
        elif kind == "digit":
            place = next((n for n in range(place, len(data)) if data[n : n + 1].isdigit()), place)
            data[place : place + 1] = b"%d" % (how % 10)
        elif kind == "cut":
            del data[place:]
        elif kind == "drop":
            del data[place : place + 1 + how]
        elif kind == "repeat":
            data[place:place] = data[place : place + 1 + how]
        else:
            data[place : place + 1 + how] = bytes(len(data[place : place + 1 + how]))
    return bytes(data)
