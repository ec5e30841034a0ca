"""Weight files: published layouts are read, code in a pickle is not run, every misfit is listed."""

import argparse
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from common.errors import UserError
from common.weights import clean_name, distinct_state, load_state, read_weights

STATE = {"a.weight": torch.arange(3.0), "a.bias": torch.ones(1)}


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("key", ["model", "state_dict", "state_dict_ema", None])
def test_published_layouts(tmp_path, key):
    content = STATE if key is None else {key: STATE, "epoch": 3, "args": argparse.Namespace(lr=1e-3)}
    torch.save(content, tmp_path / "x.pth.tar")
    found = read_weights(tmp_path / "x.pth.tar")
    assert set(found) == set(STATE) and torch.equal(found["a.weight"], STATE["a.weight"])


def test_an_explicit_key_wins_and_a_wrong_one_is_an_error(tmp_path):
    torch.save({"model": STATE, "state_dict_ema": {"b": torch.zeros(1)}}, tmp_path / "x.pth")
    assert set(read_weights(tmp_path / "x.pth")) == {"b"}
    assert set(read_weights(tmp_path / "x.pth", "model")) == set(STATE)
    with pytest.raises(UserError, match="no entry 'ema'; it has model, state_dict_ema"):
        read_weights(tmp_path / "x.pth", "ema")


def test_prefixes_of_wrappers_are_removed(tmp_path):
    save_file({"module._orig_mod.a.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert set(read_weights(tmp_path / "x.safetensors")) == {"a.weight"}
    assert clean_name("blocks._orig_mod.0.weight") == "blocks.0.weight"


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    trap = tmp_path / "trap"
    torch.save({"model": STATE, "x": RunsCode(str(trap))}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth was not read.*mkdir"):
        read_weights(tmp_path / "x.pth")
    assert not trap.exists()


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_cut_files(tmp_path, name):
    path = tmp_path / name
    if name.endswith("pth"):
        torch.save(STATE, path)
    else:
        save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=name):
        read_weights(path)
    path.write_bytes(b"not a weight file")
    with pytest.raises(UserError, match=name):
        read_weights(path)


def test_absent_file_and_file_without_a_state_dict(tmp_path):
    with pytest.raises(UserError, match="no weight file at"):
        read_weights(tmp_path / "x.pth")
    torch.save([1, 2], tmp_path / "x.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        read_weights(tmp_path / "x.pth")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm1d(2)
        self.b.weight = self.a.weight


def test_distinct_state_names_a_shared_tensor_once():
    tensors, aliases = distinct_state(Tied())
    assert aliases == {"b.weight": "a.weight"} and "norm.running_mean" in tensors and "b.weight" not in tensors


def test_load_takes_shared_names_once_or_repeated():
    source, target = Tied(), Tied()
    load_state(target, distinct_state(source)[0], "x")
    assert torch.equal(target.b.weight, source.a.weight) and target.a.weight is target.b.weight
    load_state(Tied(), source.state_dict(), "x")


def test_load_reports_everything_and_changes_nothing():
    target = Tied()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    state = {**Tied().state_dict(), "extra": torch.zeros(1), "a.bias": torch.zeros(7)}
    del state["norm.running_var"]
    state["b.weight"] = state["b.weight"] + 1
    with pytest.raises(UserError) as caught:
        load_state(target, state, "file.pth")
    message = str(caught.value)
    for part in (
        "file.pth",
        "4 names",
        "unexpected extra (1,)",
        "misshapen a.bias: (7,) in the file, (2,)",
        "missing norm.running_var",
        "different values for one shared tensor: a.weight and b.weight",
    ):
        assert part in message
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())
