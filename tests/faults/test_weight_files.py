"""Weight files that are damaged or hostile: one line or the same tensors, no memory, and nothing ever runs."""

import argparse
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors.torch import save_file
from torch import nn

from common.errors import UserError
from common.weights import load_state, read_weights, stored_shapes
from tests.faults.damage import damages

ROOT = Path(__file__).parents[2]


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7))


def archive(folder: Path, **options) -> Path:
    torch.save({"model": small_model().state_dict(), "args": argparse.Namespace(lr=1e-3)}, folder / "x.pth", **options)
    return folder / "x.pth"


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def rezipped(path: Path, change) -> Path:
    """An archive with `change(name, content) -> content` in every member, its checksums in order."""
    with zipfile.ZipFile(path) as before:
        members = {name: before.read(name) for name in before.namelist()}
    with zipfile.ZipFile(path, "w") as after:
        for name, content in members.items():
            after.writestr(name, change(name, content))
    return path


def test_an_intact_archive_is_read(tmp_path):
    path = rezipped(archive(tmp_path), lambda name, content: content)
    found = read_weights(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in small_model().state_dict().items())


def test_every_flipped_bit_of_a_tensor_in_an_archive_is_noticed(tmp_path):
    path = archive(tmp_path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        members = [member for member in file.infolist() if "/data/" in member.filename]
    places = []
    for member in members:  # a local header: 30 bytes, of which the last four are the lengths of a name and an extra
        lengths = content[member.header_offset + 26 : member.header_offset + 30]
        begin = member.header_offset + 30 + sum(int.from_bytes(lengths[i : i + 2], "little") for i in (0, 2))
        places += range(begin, begin + member.file_size)
    assert len(places) == 4 * (35 + 7 + 4 * 7) + 8
    for place in places[::5]:
        content[place] ^= 4
        path.write_bytes(content)
        assert "does not have its CRC-32" in refusal(path)
        content[place] ^= 4


def test_an_archive_that_unpacks_to_more_than_it_has_is_refused(tmp_path):
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/data.pkl", bytes(10**8))
    assert path.stat().st_size < 10**6 and "claim more bytes than the file has" in refusal(path)


@pytest.mark.parametrize("protocol", ["archive", "old format"])
@pytest.mark.parametrize("odd", ["sparse", "complex", "quantised", "meta"])
def test_tensors_of_another_kind_are_named(tmp_path, protocol, odd):
    tensor = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "complex": lambda: torch.zeros(3, dtype=torch.complex64),
        "quantised": lambda: torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8),
        "meta": lambda: torch.zeros(3, device="meta"),
    }[odd]()
    torch.save({"odd.weight": tensor}, tmp_path / "x.pth", _use_new_zipfile_serialization=protocol == "archive")
    assert "odd.weight" in refusal(tmp_path / "x.pth") or odd == "quantised"  # which newer versions of torch leave out


def test_keys_that_are_no_text_are_left_out(tmp_path):
    torch.save({1: torch.ones(1), ("a",): torch.ones(1), "a": torch.ones(2)}, tmp_path / "x.pth")
    assert set(read_weights(tmp_path / "x.pth")) == {"a"}


class Asks:
    """Asks the reader for bytes that are not there."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __reduce__(self):
        return bytearray, (self.size,)


LIMITED = """
import json, resource, sys, time
from pathlib import Path
from common.errors import UserError
from common.weights import read_weights
read_weights(Path(sys.argv[1]))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28,) * 2)
for path in map(Path, sys.argv[2:]):
    began = time.process_time()
    try:
        read_weights(path)
        said = "read"
    except UserError as error:
        said = str(error)
    print(json.dumps([said, time.process_time() - began]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_files_that_ask_for_more_memory_than_there_is_get_one_line(tmp_path):
    good = archive(tmp_path)
    paths = []
    for number, zipped in enumerate([True, False]):
        paths.append(tmp_path / f"{number}.pth")
        torch.save({"model": {"a": torch.ones(1)}, "x": Asks(10**11)}, paths[-1], _use_new_zipfile_serialization=zipped)
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**11], "data_offsets": [0, 4 * 10**11]}}).encode()
    paths.append(tmp_path / "x.safetensors")
    paths[-1].write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    paths.append(tmp_path / "y.safetensors")
    paths[-1].write_bytes((2**60).to_bytes(8, "little") + header)
    old = tmp_path / "huge.pth"
    torch.save({"a": torch.ones(3)}, old, _use_new_zipfile_serialization=False)
    paths.append(old)
    old.write_bytes(old.read_bytes().replace(b"K\x03", b"J\xff\xff\xff\x7f"))  # storage of 2**31 - 1 values
    command = [sys.executable, "-c", LIMITED, *map(str, [good, *paths])]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(paths), done.stderr[-2000:]
    for path, (said, seconds) in zip(paths, answers):
        assert str(path) in said and "\n" not in said and seconds < 5, said


FORMATS = {
    "archive": lambda state, path: torch.save(state, path),
    "old format": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "safetensors": lambda state, path: save_file(state, path),
    "bare pickle": lambda state, path: path.write_bytes(pickle.dumps({"a": 1})),
}


@pytest.mark.parametrize("form", FORMATS)
@settings(
    max_examples=80, deadline=20_000, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(damage=damages)
def test_a_damaged_file_gives_the_same_tensors_or_one_line(tmp_path, form, damage):
    path = tmp_path / ("x.safetensors" if form == "safetensors" else "x.pth")
    state = small_model().state_dict()
    FORMATS[form](state, path)
    path.write_bytes(damage(path.read_bytes()))
    model = small_model()
    try:
        if form == "safetensors":
            stored_shapes(path)
        load_state(model, read_weights(path), str(path))
    except UserError as error:
        assert str(path) in str(error)
        return
    if form == "archive":  # the others have no checksum
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
