"""Compiled networks: the figures of those that run as written, few programs, a clear word where none is made."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch._inductor import config as inductor

from common.errors import UserError
from common.models.transform import ModelTransform
from evaluate import explain
from evaluate.cli.main import main
from evaluate.network.compiled import CompiledModel
from tests.evaluate.explainers.conftest import PooledNet, randomise

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


@pytest.fixture
def net():
    torch.manual_seed(0)
    return randomise(PooledNet())


@pytest.fixture
def images():
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def traced(monkeypatch):
    """Sizes of the batches that programs get, where compiling leaves a function as it is."""
    seen = []

    def compile_nothing(function, **_):
        return lambda images: seen.append((len(images), images.is_contiguous())) or function(images)

    monkeypatch.setattr(torch, "compile", compile_nothing)
    return seen


@needs_compiler
@torch.no_grad()
def test_programs_give_what_the_network_gives_and_hold_its_weights(net, images):
    compiled = CompiledModel(net)
    for given in (images, images[:5], images[:2]):
        expected = net.forward_features(given)
        torch.testing.assert_close(compiled.forward_features(given), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(compiled(given), net(given), atol=1e-5, rtol=1e-4)
    before = compiled(images)
    net.norm.weight.zero_()  # has vanished into a convolution
    torch.testing.assert_close(compiled(images), before)


@needs_compiler
def test_a_compiled_network_is_explained_as_it_is(net, images):
    methods = [
        "grad_cam",
        "score_cam",
        "occlusion:window=8",
        "smooth_grad:samples=2",
        "guided_backprop",
        "ablation_cam",
    ]
    expected = explain(net, images[:3], 1, methods, transform=ModelTransform(), micro_batch=8, seed=3)
    found = explain(CompiledModel(net), images[:3], 1, methods, transform=ModelTransform(), micro_batch=8, seed=3)
    for name in methods:
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-3, msg=name)


@torch.no_grad()
def test_a_smaller_batch_is_filled_up_unless_it_is_half_as_large(net, images, traced):
    compiled = CompiledModel(net)
    for count in (6, 5, 4, 3, 2, 1, 8):
        torch.testing.assert_close(compiled(images[:count]), net(images[:count]))
    assert [size for size, _ in traced] == [6, 6, 6, 3, 3, 1, 8]
    assert not any(contiguous for _, contiguous in traced)  # one layout, so one program: channels_last


def test_a_pass_that_records_gradients_runs_as_written(net, images, traced):
    compiled = CompiledModel(net)
    compiled(images.requires_grad_()).sum().backward()
    assert not traced and images.grad is not None
    with torch.no_grad():
        compiled(images)
    assert [size for size, _ in traced] == [8]


@torch.no_grad()
def test_where_nothing_compiles_the_way_out_is_told(net, images, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    broken = inductor.patch({"cpp.cxx": ("/no/such/compiler",), "fx_graph_cache": False})
    with broken, pytest.raises(UserError, match=r"torch.compile failed: .*leave out --compile"):
        CompiledModel(net)(images)


@needs_compiler
def test_the_command_with_compile_gives_the_same_rows(checkpoint, tmp_path):
    given = ["--ckpt", str(checkpoint), "--data", "scenes", "--limit", "5", "--workers", "0", "--batch-size", "3"]
    given += ["--explainer", "grad_cam", "occlusion:window=32", "--metric", "average_drop"]
    tables = {}
    for name, option in (("written", []), ("compiled", ["--compile"])):
        assert main([*given, *option, "--out", str(tmp_path / name)]) == 0
        tables[name] = pq.read_table(tmp_path / name / "per_image.parquet").to_pylist()
        (told,) = {item["compile"] for item in json.loads((tmp_path / name / "scores.json").read_text())}
        assert told is (name == "compiled")
    assert len(tables["written"]) == 10
    for ours, theirs in zip(tables["compiled"], tables["written"]):
        for column in ("spearman", "average_drop"):
            assert ours[column] == pytest.approx(theirs[column], abs=1e-3), column


def test_photographs_may_be_explained_by_programs(checkpoint, tmp_path, traced):
    picture = tmp_path / "picture.png"
    Image.new("RGB", (80, 60), "red").save(picture)
    given = ["explain", str(picture), "--ckpt", str(checkpoint), "--explainer", "grad_cam", "occlusion:window=32"]
    assert main([*given, "--out", str(tmp_path / "written")]) == 0
    assert not traced
    assert main([*given, "--compile", "--out", str(tmp_path / "compiled")]) == 0
    assert traced


def test_rows_of_the_network_as_written_are_not_kept_for_the_compiled_one(checkpoint, tmp_path, traced):
    given = ["--ckpt", str(checkpoint), "--data", "scenes", "--limit", "2", "--workers", "0", "--out", str(tmp_path)]
    main(given)
    main([*given, "--compile", "--overwrite"])
    assert len(traced) == 1  # one batch, measured anew
