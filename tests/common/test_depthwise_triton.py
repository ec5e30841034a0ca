"""The Triton kernels against `F.conv2d`: in Triton's interpreter on a CPU, compiled on a GPU, and for GPUs on a CPU."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from common.dcls import DclsConv2d, depthwise_conv2d
from common.errors import UserError
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
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "16 passed, 13 skipped" in done.stdout


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def by_triton(out: torch.Tensor) -> bool:
    """Whether a result, or what its bias was added to, comes from the operator."""
    nodes = [out.grad_fn, *(node for node, _ in out.grad_fn.next_functions)]
    return any("dcls_align_depthwise" in str(node) for node in nodes)


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
    assert by_triton(found)
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
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_rounds_neither_the_kernel_nor_its_gradient(half):
    torch.manual_seed(0)
    x = torch.randn(1, 3, 4, 4, device=device()).to(half)
    kernel = torch.randn(3, 1, 3, 3, device=device(), requires_grad=True)
    bias = torch.randn(3, device=device())
    upstream = torch.randn(1, 3, 4, 4, device=device()).to(half)
    with torch.autocast(device(), half):
        found = triton_depthwise_conv2d(x, kernel, bias, (1, 1))
    exact_kernel = kernel.detach().double().requires_grad_()
    exact = F.conv2d(x.double(), exact_kernel, bias.to(half).double(), 1, 1, 1, 3)
    assert found.dtype == half
    torch.testing.assert_close(found.double(), exact, atol=2**-6, rtol=2**-6)  # rounded twice: sum, bias
    (to_kernel,) = torch.autograd.grad(found, kernel, upstream)
    (expected,) = torch.autograd.grad(exact, exact_kernel, upstream.double())
    assert to_kernel.dtype == torch.float32
    torch.testing.assert_close(to_kernel.double(), expected, atol=1e-5, rtol=1e-5)


@kernels_run
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_kernel_in_half_precision_gets_its_gradient_in_it(half):
    x, kernel = (torch.randn(1, *shape, device=device()).to(half) for shape in ((2, 4, 4), (2, 3, 3)))
    kernel = kernel.transpose(0, 1).clone().requires_grad_()
    (to_kernel,) = torch.autograd.grad(triton_depthwise_conv2d(x, kernel, None, (1, 1)).float().sum(), kernel)
    assert to_kernel.dtype == half


@kernels_run
@pytest.mark.parametrize("of", ["input", "kernel"])
def test_a_second_derivative_is_refused_in_words(of):
    x = torch.randn(1, 2, 4, 4, device=device(), requires_grad=True)
    kernel = torch.randn(2, 1, 3, 3, device=device(), requires_grad=True)
    out = triton_depthwise_conv2d(x, kernel, None, (1, 1)).square().sum()
    (first,) = torch.autograd.grad(out, x if of == "input" else kernel, create_graph=True)
    with pytest.raises(UserError, match="depthwise=triton has no second derivative; take depthwise=conv2d or auto"):
        first.square().sum().backward()


@kernels_run
def test_the_operators_are_what_they_are_registered_as():
    """Schema, shapes and strides without data, autograd, and tracing with sizes left open: torch's own check."""
    torch.manual_seed(0)
    x = torch.randn(2, 2, 1, 3, device=device(), requires_grad=True)
    kernel = torch.randn(2, 1, 2, 2, device=device(), requires_grad=True)
    upstream = torch.randn(2, 2, 2, 2, device=device())
    operators = torch.ops.dcls_align
    torch.library.opcheck(operators.depthwise, (x, kernel, [1, 0]))
    first = ("test_schema", "test_faketensor")  # of the others, tracing goes through with the one above
    torch.library.opcheck(operators.depthwise_to_input, (upstream, kernel, [1, 0]), test_utils=first)
    half = x.bfloat16(), upstream.bfloat16()
    torch.library.opcheck(operators.depthwise_to_kernel, (*half, [2, 2], [1, 0]), test_utils=first)


@kernels_run
def test_a_compiled_layer_is_one_graph_and_computes_the_same():
    torch.manual_seed(0)
    layer = DclsConv2d(3, 3, 4, padding=1, dilated_kernel_size=3, groups=3, interpolation="gauss").to(device())
    set_depthwise(layer, "triton")
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 3, 3, device=device())
    results = []
    for run in (layer, compiled):
        image = x.clone().requires_grad_()
        layer.zero_grad()
        with torch.autocast(device(), torch.bfloat16):
            out = run(image)
        out.float().square().sum().backward()
        results.append([out.detach(), image.grad, *(p.grad for p in layer.parameters())])
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)


@kernels_run
def test_a_layer_takes_the_way_that_was_set():
    layer = DclsConv2d(2, 2, 3, padding=1, dilated_kernel_size=3, groups=2, interpolation="v1").to(device())
    x = torch.randn(1, 2, 4, 4, device=device())
    expected = layer(x)
    set_depthwise(layer, "triton")
    found = layer(x)
    assert by_triton(found)
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
    assert not by_triton(found)
    torch.testing.assert_close(found, F.conv2d(x, kernel, None, 1, 1, 1, 2), atol=1e-5, rtol=1e-4)


def test_an_unknown_way_and_a_missing_package_are_told(monkeypatch):
    layer = DclsConv2d(2, 2, 3, groups=2)
    with pytest.raises(ValueError, match="'fast' is unknown; take one of auto, conv2d, triton"):
        set_depthwise(layer, "fast")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package triton"):
        set_depthwise(layer, "triton")
    assert layer.depthwise is depthwise_conv2d


TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class Recorder:
    """Takes a kernel's place and its launches."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.launches.append((self.kernel, arguments, options))


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted, not compiled, in this process")
@pytest.mark.parametrize("size", [7, 17])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("capability", [80, 90])
def test_what_a_training_step_launches_compiles_for_a_gpu(capability, dtype, size, monkeypatch, tmp_path):
    """A100 and H100; neither is needed. The arguments are those of a layer's step, in autocast's types."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    launches = []
    for name in ("_correlate", "_weight_gradient"):
        monkeypatch.setattr(module, name, Recorder(getattr(module, name), launches))
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # launches without a GPU; Triton itself has read it before
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    layer = DclsConv2d(48, 48, 4, padding=size // 2, dilated_kernel_size=size, groups=48, interpolation="v1")
    set_depthwise(layer, "triton")
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        out = layer(torch.randn(2, 48, 9, 9, requires_grad=True))
    out.sum().backward()
    assert [kernel.__name__ for kernel, *_ in launches] == ["_correlate", "_correlate", "_weight_gradient"]
    for kernel, arguments, options in launches:
        signature, constants = {}, {}
        for parameter, value in zip(kernel.params, arguments, strict=True):
            if parameter.is_constexpr:
                signature[parameter.name], constants[parameter.name] = "constexpr", value
            else:
                signature[parameter.name] = f"*{TYPES[value.dtype]}" if isinstance(value, torch.Tensor) else "i32"
        assert signature["x"] == f"*{TYPES[dtype]}" and signature.get("kernel", signature.get("parts")) == "*fp32"
        source = ASTSource(kernel, signature, constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert f".target sm_{capability}" in compiled.asm["ptx"] and compiled.asm["cubin"].startswith(b"\x7fELF")
        assert compiled.metadata.num_warps == module._WARPS
