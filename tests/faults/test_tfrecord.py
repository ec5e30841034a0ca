"""ClickMe shards that are damaged give the right records or a line, whatever was damaged."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.data.clickme import ClickMe
from common.data.tfrecord import encode_example, index_records, iter_records, parse_example, write_records
from common.errors import UserError
from tests.faults.damage import bounded, damaged, damages, flipped

PAYLOADS = [encode_example({"image": bytes([n]) * (40 * n), "label": n, "weights": [0.5, n / 3]}) for n in range(5)]


@bounded
@given(damage=damages)
@example(damage=lambda content: content[:-1])
@example(damage=lambda content: content + b"\0")
def test_records_of_a_damaged_shard_are_right_up_to_a_line(tmp_path, damage):
    shard = tmp_path / "val-0.tfrecords"
    write_records(shard, PAYLOADS)
    whole = shard.read_bytes()
    changed = damaged(shard, whole, damage)
    found, line = [], None
    try:
        for payload in iter_records(shard):
            found.append(payload)
    except UserError as error:
        line = str(error)
    assert found == PAYLOADS[: len(found)]
    if line is None:  # it was cut off between two records, if at all, which a manifest would tell
        assert shard.stat().st_size == sum(len(payload) + 16 for payload in found)
    else:
        assert changed and str(shard) in line and "\n" not in line


@bounded
@given(damage=damages)
def test_a_damaged_message_is_parsed_or_refused(damage):
    payload = PAYLOADS[3]
    try:
        found = parse_example(damage(payload))
    except ValueError:
        return
    assert all(isinstance(value, bytes | float | int) for values in found.values() for value in values)


@bounded
@given(record=st.integers(0, 3), place=st.floats(0.1, 0.9), bit=st.integers(0, 7))
def test_a_damaged_record_of_clickme_is_named_and_the_others_are_read(clickme_root, tmp_path, record, place, bit):
    content = (clickme_root / "val-0.tfrecords").read_bytes()
    index = index_records(clickme_root / "val-0.tfrecords")
    start, end = (int(index.offsets[record]) + 12, int(index.offsets[record] + index.lengths[record]) + 12)
    path = tmp_path / "val-0.tfrecords"
    path.write_bytes(content[:start] + flipped(content[start:end], place, bit) + content[end:])
    expected, found = ClickMe(clickme_root / "val-0.tfrecords"), ClickMe(path)
    with pytest.raises(UserError, match=rf"val-0\.tfrecords: record {record} at byte .* is damaged"):
        found[record]
    other = (record + 1) % 4
    assert np.array_equal(found[other].image, expected[other].image) and found[other].label == expected[other].label
