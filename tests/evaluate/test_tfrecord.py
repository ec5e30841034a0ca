"""TFRecord framing against hand-made bytes, and the protobuf parser against messages written out by hand."""

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.data import tfrecord
from common.errors import UserError

PAYLOADS = [b"first", b"", b"\x00\xff" * 300]
OFFSETS = [0, 12 + 5 + 4, 12 + 5 + 4 + 12 + 0 + 4]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "val-0.tfrecords"
    tfrecord.write_records(path, PAYLOADS)
    return path


def slow_crc32c(data: bytes) -> int:
    """Bit by bit, reflected Castagnoli polynomial."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def slow_mask(crc: int) -> int:
    bits = f"{crc:032b}"
    return (int(bits[-15:] + bits[:-15], 2) + 0xA282EAD8) % 2**32


def test_written_bytes_follow_the_format(shard: Path) -> None:
    expected = b""
    for payload in PAYLOADS:
        length = len(payload).to_bytes(8, "little")
        for part in (length, payload):
            expected += part + slow_mask(slow_crc32c(part)).to_bytes(4, "little")
    assert shard.read_bytes() == expected


def test_records_come_back_in_order_and_at_random(shard: Path) -> None:
    index = tfrecord.index_records(shard)
    assert index.offsets.tolist() == OFFSETS
    assert index.lengths.tolist() == [len(payload) for payload in PAYLOADS]
    assert list(tfrecord.iter_records(shard)) == PAYLOADS
    assert [tfrecord.read_record(shard, offset) for offset in reversed(OFFSETS)] == PAYLOADS[::-1]


def test_an_empty_file_has_no_records(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    assert len(tfrecord.index_records(path).offsets) == 0
    assert list(tfrecord.iter_records(path)) == []


def test_the_index_does_not_read_payloads(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    data[14] ^= 1
    shard.write_bytes(data)
    assert tfrecord.index_records(shard).offsets.tolist() == OFFSETS


@pytest.mark.parametrize("record", [0, 2])
@pytest.mark.parametrize("place", ["payload", "payload checksum"])
def test_a_flipped_bit_in_a_payload_is_named(shard: Path, record: int, place: str) -> None:
    data = bytearray(shard.read_bytes())
    data[OFFSETS[record] + 12 + (2 if place == "payload" else len(PAYLOADS[record]))] ^= 0x10
    shard.write_bytes(data)
    told = rf"val-0\.tfrecords: record {record} at byte {OFFSETS[record]} .*payload.*download the shard again"
    with pytest.raises(UserError, match=told):
        list(tfrecord.iter_records(shard))
    with pytest.raises(UserError, match=told):
        tfrecord.read_record(shard, OFFSETS[record], number=record)
    assert tfrecord.read_record(shard, OFFSETS[1]) == PAYLOADS[1]


@pytest.mark.parametrize("byte", [0, 7, 8, 11])
def test_a_flipped_bit_in_a_header_is_named(shard: Path, byte: int) -> None:
    data = bytearray(shard.read_bytes())
    data[OFFSETS[1] + byte] ^= 1
    shard.write_bytes(data)
    for read in (tfrecord.index_records, lambda path: list(tfrecord.iter_records(path))):
        with pytest.raises(UserError, match=rf"record 1 at byte {OFFSETS[1]} .*length.*download"):
            read(shard)


def test_a_file_cut_anywhere_is_refused(shard: Path) -> None:
    whole = shard.read_bytes()
    for size in set(range(1, len(whole))) - set(OFFSETS):
        shard.write_bytes(whole[:size])
        number = sum(offset < size for offset in OFFSETS) - 1
        for read in (tfrecord.index_records, lambda path: list(tfrecord.iter_records(path))):
            with pytest.raises(UserError, match=rf"record {number} at byte {OFFSETS[number]} .*download"):
                read(shard)


def test_a_file_that_cannot_be_opened_is_a_user_error(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(UserError, match="cannot open"):
            tfrecord.index_records(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(shard: Path) -> None:
    def failing():
        yield b"new"
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        tfrecord.write_records(shard, failing())
    assert [path.name for path in shard.parent.iterdir()] == [shard.name]
    assert list(tfrecord.iter_records(shard)) == PAYLOADS


def delimited(number: int, content: bytes) -> bytes:
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


def example(*features: tuple[str, bytes]) -> bytes:
    entries = (delimited(1, name.encode()) + delimited(2, feature) for name, feature in features)
    return delimited(1, b"".join(delimited(1, entry) for entry in entries))


MINUS_TWO = b"\xfe" + b"\xff" * 8 + b"\x01"
FLOATS = struct.pack("<2f", 0.5, -3.0)


@pytest.mark.parametrize(
    ("feature", "values"),
    [
        (delimited(1, delimited(1, b"ab") + delimited(1, b"")), [b"ab", b""]),
        (delimited(3, delimited(1, b"\x05\xac\x02" + MINUS_TWO)), [5, 300, -2]),
        (delimited(3, b"\x08\x05" + b"\x08\xac\x02" + b"\x08" + MINUS_TWO), [5, 300, -2]),
        (delimited(2, delimited(1, FLOATS)), [0.5, -3.0]),
        (delimited(2, b"\x0d" + FLOATS[:4] + b"\x0d" + FLOATS[4:]), [0.5, -3.0]),
        (delimited(3, b""), []),
        (b"", []),
    ],
)
def test_each_kind_of_list_is_read(feature: bytes, values: list) -> None:
    assert tfrecord.parse_example(example(("name", feature))) == {"name": values}


def test_unknown_fields_are_skipped_at_every_level() -> None:
    unknown = b"\x78\x96\x01" + b"\x79" + b"\xff" * 8 + b"\x7d" + b"\xff" * 4 + delimited(15, b"xx")
    wrong_wire = b"\x08\x01"  # field 1 as a number, where the message has bytes
    feature = unknown + delimited(1, unknown + wrong_wire + delimited(1, b"seen"))
    entry = unknown + delimited(1, b"k") + unknown + delimited(2, feature)
    payload = unknown + wrong_wire + delimited(1, unknown + wrong_wire + delimited(1, entry)) + unknown
    assert tfrecord.parse_example(payload) == {"k": [b"seen"]}


@pytest.mark.parametrize(
    "payload",
    [
        b"\x0a",  # no length
        b"\x0a\x05ab",  # shorter than its length
        b"\x08" + b"\x80" * 11 + b"\x01",  # a number of more than 10 bytes
        b"\x0b\x0c",  # a group, which proto3 does not have
        b"\x0d\x00\x00",  # half of a fixed32
        example(("name", delimited(2, delimited(1, b"abcde")))),  # floats of 5 bytes
        example(("name", delimited(3, delimited(1, b"\x80")))),  # a packed number that does not end
        delimited(1, delimited(1, delimited(1, b"\xff") + delimited(2, b""))),  # a name that is not UTF-8
    ],
)
def test_malformed_messages_raise_value_error(payload: bytes) -> None:
    with pytest.raises(ValueError):
        tfrecord.parse_example(payload)


@given(
    st.dictionaries(
        st.text(max_size=20),
        st.lists(st.binary(max_size=200))
        | st.lists(st.integers(-(2**63), 2**63 - 1))
        | st.lists(st.floats(width=32, allow_nan=False)),
    )
)
def test_encoding_and_parsing_are_inverse(features: dict) -> None:
    assert tfrecord.parse_example(tfrecord.encode_example(features)) == features


@given(st.binary(max_size=60))
def test_any_bytes_parse_or_raise_value_error(payload: bytes) -> None:
    with contextlib.suppress(ValueError):
        tfrecord.parse_example(payload)


def test_encoding_takes_single_values_and_refuses_others() -> None:
    features = {"image": b"jpeg", "label": 7, "scale": 0.5, "mixed": [1, 0.5]}
    expected = {"image": [b"jpeg"], "label": [7], "scale": [0.5], "mixed": [1.0, 0.5]}
    assert tfrecord.parse_example(tfrecord.encode_example(features)) == expected
    for wrong in (["text"], [b"a", 1]):
        with pytest.raises(TypeError, match="'label'"):
            tfrecord.encode_example({"label": wrong})


def test_published_layout_is_read(shared_data: Path) -> None:
    for record in tfrecord.iter_records(shared_data / "clickme_real" / "val-0.tfrecords"):
        features = tfrecord.parse_example(record)
        assert set(features) == {"image", "heatmap", "label"}
        again = tfrecord.encode_example({name: features[name] for name in ("image", "label", "heatmap")})
        assert again == record  # TensorFlow's own bytes, in its order of names
