"""TFRecord shards and their tf.train.Example payloads, read and written without TensorFlow.

A shard is a row of records: uint64 length, masked CRC32C of those 8 bytes, payload, masked CRC32C of the
payload, all little-endian. A payload here is a protobuf message that maps names to lists of bytes, float32 or
int64 (tensorflow/core/example/{example,feature}.proto); fields that are not known are skipped.
"""

import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import google_crc32c
import numpy as np

from common.atomic import atomic_file
from common.errors import UserError

HEADER_BYTES, FOOTER_BYTES = 12, 4

PathLike = str | os.PathLike[str]
Value = bytes | float | int


class RecordIndex(NamedTuple):
    """Where the records of a shard lie: int64 arrays (n,), offset of the header and length of the payload."""

    offsets: np.ndarray
    lengths: np.ndarray


def masked_crc(data: bytes) -> int:
    """CRC32C rotated right by 15 bits, plus a constant: the checksum TFRecord stores."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def index_records(path: PathLike) -> RecordIndex:
    """Find every record of a shard by hopping from header to header; payloads are checked when read.

    Raises UserError: the file cannot be opened, ends within a record, or a length fails its checksum.
    """
    offsets: list[int] = []
    lengths: list[int] = []
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        offset = 0
        while offset < size:
            offsets.append(offset)
            lengths.append(_read_length(file, path, offset, size, len(lengths)))
            offset += HEADER_BYTES + lengths[-1] + FOOTER_BYTES
    return RecordIndex(np.array(offsets, dtype=np.int64), np.array(lengths, dtype=np.int64))


def read_record(path: PathLike, offset: int, number: int | None = None) -> bytes:
    """The payload of the record whose header lies at byte `offset`; `number` is for the error message.

    Raises UserError: the file cannot be opened, ends within the record, or a checksum fails.
    """
    with _open(path) as file:
        return _read_payload(file, path, offset, os.fstat(file.fileno()).st_size, number)


def iter_records(path: PathLike) -> Iterator[bytes]:
    """The payloads of a shard in order, both checksums of each checked. Raises like `read_record`."""
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        offset = number = 0
        while offset < size:
            yield (payload := _read_payload(file, path, offset, size, number))
            offset += HEADER_BYTES + len(payload) + FOOTER_BYTES
            number += 1


def write_records(path: PathLike, payloads: Iterable[bytes]) -> None:
    """Write a shard; the file appears under its name only once it is whole."""
    with atomic_file(Path(path)) as partial, partial.open("wb") as file:
        for payload in payloads:
            length = struct.pack("<Q", len(payload))
            file.write(length + struct.pack("<I", masked_crc(length)))
            file.write(payload + struct.pack("<I", masked_crc(payload)))


def parse_example(payload: bytes) -> dict[str, list[Value]]:
    """Decode a serialised tf.train.Example into the values of each feature.

    Raises ValueError: the bytes are no such message.
    """
    result: dict[str, list[Value]] = {}
    for features in _submessages(memoryview(payload), 1):
        for entry in _submessages(features, 1):
            name = b"".join(list(_submessages(entry, 1))[-1:]).decode()
            result[name] = [value for feature in _submessages(entry, 2) for value in _parse_feature(feature)]
    return result


def encode_example(features: Mapping[str, Value | Sequence[Value]]) -> bytes:
    """Serialise features, each a value or several of one kind, as a tf.train.Example.

    Numbers are packed, a float among them makes them all floats. Raises TypeError for other values.
    """
    entries = b"".join(
        _delimited(1, _delimited(1, name.encode()) + _delimited(2, _encode_feature(name, values)))
        for name, values in features.items()
    )
    return _delimited(1, entries)


def _open(path: PathLike) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"{path}: cannot open the shard ({error.strerror}): check the path.") from error


def _damaged(path: PathLike, offset: int, number: int | None, seen: str) -> UserError:
    record = "the record" if number is None else f"record {number}"
    return UserError(
        f"{path}: {record} at byte {offset} is damaged: {seen}. The file is cut short, corrupt or not a "
        "TFRecord file: download the shard again."
    )


def _read_length(file: BinaryIO, path: PathLike, offset: int, size: int, number: int | None) -> int:
    file.seek(offset)
    header = file.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        raise _damaged(path, offset, number, f"{len(header)} bytes are left of a header of {HEADER_BYTES}")
    length, stored = struct.unpack("<QI", header)
    if stored != (crc := masked_crc(header[:8])):
        raise _damaged(path, offset, number, f"length {length} has CRC {crc:#010x}, stored {stored:#010x}")
    needed, left = length + FOOTER_BYTES, size - offset - HEADER_BYTES
    if needed > left:
        raise _damaged(path, offset, number, f"{needed} bytes should follow its header, {left} do")
    return int(length)


def _read_payload(file: BinaryIO, path: PathLike, offset: int, size: int, number: int | None) -> bytes:
    length = _read_length(file, path, offset, size, number)
    payload = file.read(length)
    (stored,) = struct.unpack("<I", file.read(FOOTER_BYTES))
    if stored != (crc := masked_crc(payload)):
        raise _damaged(path, offset, number, f"payload has CRC {crc:#010x}, stored {stored:#010x}")
    return payload


# Protobuf wire types: https://protobuf.dev/programming-guides/encoding
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    """An unsigned varint and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("the message ends within a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), position
    raise ValueError("a number is longer than 10 bytes")


def _fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Field number, wire type and value (an int for varints, bytes otherwise) of each field of a message."""
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, position = _read_varint(data, position)
            yield number, wire, value
            continue
        if wire == _DELIMITED:
            length, position = _read_varint(data, position)
        elif (length := {_FIXED64: 8, _FIXED32: 4}.get(wire, 0)) == 0:
            raise ValueError(f"field {number} has wire type {wire}")
        if length > len(data) - position:
            raise ValueError(f"field {number} needs {length} bytes, {len(data) - position} are left")
        yield number, wire, data[position : position + length]
        position += length


def _submessages(data: memoryview, number: int) -> Iterator[memoryview]:
    for found, _, value in _fields(data):
        if found == number and isinstance(value, memoryview):
            yield value


# Which wire types the values of a bytes (1), float (2) or int64 list (3) may come in, packed ones included.
_LIST_WIRES = {1: (_DELIMITED,), 2: (_FIXED32, _DELIMITED), 3: (_VARINT, _DELIMITED)}


def _parse_feature(feature: memoryview) -> Iterator[Value]:
    for kind, kind_wire, content in _fields(feature):
        if kind not in _LIST_WIRES or kind_wire != _DELIMITED or isinstance(content, int):
            continue
        for number, wire, value in _fields(content):
            if number != 1 or wire not in _LIST_WIRES[kind]:
                continue
            if isinstance(value, int):
                yield _signed(value)
            elif kind == 1:
                yield bytes(value)
            elif kind == 2:
                if len(value) % 4:
                    raise ValueError(f"a float list has {len(value)} bytes")
                yield from struct.unpack(f"<{len(value) // 4}f", value)
            else:
                position = 0
                while position < len(value):
                    integer, position = _read_varint(value, position)
                    yield _signed(integer)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _varint(value: int) -> bytes:
    value &= 2**64 - 1  # two's complement: a negative int64 takes 10 bytes
    output = bytearray()
    while value >= 0x80:
        output.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*output, value])


def _delimited(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _DELIMITED) + _varint(len(content)) + content


def _encode_feature(name: str, values: Value | Sequence[Value]) -> bytes:
    items: list[Any] = [values] if isinstance(values, Value) else list(values)
    kinds = {type(item) for item in items}
    if kinds == {bytes}:
        return _delimited(1, b"".join(_delimited(1, item) for item in items))
    if kinds == {int}:
        return _delimited(3, _delimited(1, b"".join(_varint(item) for item in items)))
    if kinds <= {int, float}:
        return _delimited(2, _delimited(1, struct.pack(f"<{len(items)}f", *items)))
    raise TypeError(f"feature {name!r} must hold bytes only, or numbers only, got {items!r}")
