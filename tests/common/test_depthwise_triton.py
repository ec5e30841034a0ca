"""The Triton kernels against `F.conv2d`: in Triton's interpreter on a CPU, compiled on a GPU."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from common.dcls import DclsConv2d, depthwise_conv2d
from common.surgery import set_depthwise

module = pytest.importorskip("common.depthwise_triton", exc_type=ImportError)
triton_depthwise_conv2d = module.triton_depthwise_conv2d

RUNS = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
kernels_run = pytest.mark.skipif(not RUNS, reason="run by test_in_the_interpreter, in a process of its own")


@pytest.mark.skipif(RUNS, reason="the kernels run in this process")
def test_in_the_interpreter():
    """Triton decides for a whole process whether it interprets."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 passed, 1 skipped" in done.stdout


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@kernels_run
@pytest.mark.parametrize(
    "shape,size,padding",
    [
        ((2, 40, 3, 5), (5, 3), (2, 1)),  # more channels than a program takes
        ((1, 3, 2, 18), (3, 17), (1, 8)),  # more columns than a program takes; rows all beside the kernel's centre
        ((2, 2, 6, 5), (4, 3), (0, 2)),  # another size of the result
        ((9, 1, 8, 2), (1, 1), (0, 0)),  # 72 lines: parts that end behind the last
    ],
)
def test_convolution_and_gradients_equal_conv2d(shape, size, padding):
    torch.manual_seed(0)
    x = torch.randn(shape, device=device(), requires_grad=True)
    kernel = torch.randn(shape[1], 1, *size, device=device(), requires_grad=True)
    bias = torch.randn(shape[1], device=device(), requires_grad=True)
    found = triton_depthwise_conv2d(x, kernel, bias, padding)
    assert "TritonDepthwise" in str(found.grad_fn.next_functions)
    expected = F.conv2d(x, kernel, bias, 1, padding, 1, shape[1])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    upstream = torch.randn_like(expected)
    ours = torch.autograd.grad(found, (x, kernel, bias), upstream)
    theirs = torch.autograd.grad(expected, (x, kernel, bias), upstream)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@kernels_run
def test_bfloat16_is_summed_in_float32():
    torch.manual_seed(0)
    x = torch.randn(1, 2, 4, 4, device=device()).bfloat16()
    kernel = (torch.randn(2, 1, 7, 7, device=device())).bfloat16()
    found = triton_depthwise_conv2d(x, kernel, None, (3, 3))
    exact = F.conv2d(x.double(), kernel.double(), None, 1, 3, 1, 2)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, atol=1e-3, rtol=2**-7)  # one rounding; the interpreter cuts


@kernels_run
def test_a_layer_takes_the_way_that_was_set():
    layer = DclsConv2d(2, 2, 3, padding=1, dilated_kernel_size=3, groups=2, interpolation="v1").to(device())
    x = torch.randn(1, 2, 4, 4, device=device())
    expected = layer(x)
    set_depthwise(layer, "triton")
    found = layer(x)
    assert "TritonDepthwise" in str(found.grad_fn.next_functions)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    found.square().sum().backward()
    assert layer.P.grad.abs().sum() > 0
    for padding in ((3, 0), (0, 4)):  # not less than the kernel: what Triton does not serve
        wide = triton_depthwise_conv2d(x, layer.kernel(), None, padding)
        torch.testing.assert_close(wide, F.conv2d(x, layer.kernel(), None, 1, padding, 1, 2))


def test_without_a_gpu_triton_falls_back(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x, kernel = torch.randn(1, 2, 6, 6, requires_grad=True), torch.randn(2, 1, 3, 3)
    found = triton_depthwise_conv2d(x, kernel, None, (1, 1))
    assert "Triton" not in str(found.grad_fn)
    torch.testing.assert_close(found, F.conv2d(x, kernel, None, 1, 1, 1, 2), atol=1e-5, rtol=1e-4)


def test_an_unknown_way_and_a_missing_package_are_told(monkeypatch):
    layer = DclsConv2d(2, 2, 3, groups=2)
    with pytest.raises(ValueError, match="'fast' is unknown; take one of auto, conv2d, triton"):
        set_depthwise(layer, "fast")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package triton"):
        set_depthwise(layer, "triton")
    assert layer.depthwise is depthwise_conv2d
