"""What `torch.compile` and `torch.export` make of DCLS layers and models for a GPU, traced without one.

The tensors are on `cuda` and have no memory. So Dynamo takes the branches of a GPU, in which the kernel is built by
sums of products and the convolution goes to cuDNN or to Triton. A backward pass cannot be run like this: autograd asks
the driver of the device; test_depthwise_triton.py compiles one in the interpreter.
"""

from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode

from common.dcls import INTERPOLATIONS, DclsConv2d
from common.models.zoo import create_model
from common.surgery import position_groups, set_depthwise

pytest.importorskip("triton")

WAYS = {"conv2d": "conv2d", "triton": "dcls_align.depthwise.default"}
"""How depthwise layers are computed, and the node of the graph that does it."""


@pytest.fixture
def bfloat16() -> Iterator[None]:
    """Autocast, set by hand: the context manager refuses a `cuda` that is not there."""
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    yield
    torch.set_autocast_enabled("cuda", False)
    torch.set_autocast_dtype("cuda", before)


def to_fake_gpu(model: nn.Module) -> nn.Module:
    """Put tensors without memory in the place of the model's; to be called within FakeTensorMode."""
    known: dict[int, tuple[Tensor, Tensor]] = {}  # the old one, so that its id is not given again, and the new one
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is None:
                    continue
                if id(old) not in known:
                    new = torch.empty(old.shape, dtype=old.dtype, device="cuda")
                    known[id(old)] = old, nn.Parameter(new) if isinstance(old, nn.Parameter) else new
                tensors[name] = known[id(old)][1]
    return model


def traced(model: nn.Module, image: Tensor) -> tuple[Tensor, fx.GraphModule]:
    """The result and the one graph; a graph break raises."""
    graphs: list[fx.GraphModule] = []

    def keep(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    out = torch.compile(model, backend=keep, fullgraph=True)(image)
    (graph,) = graphs
    return out, graph


def nodes(graph: fx.GraphModule) -> Counter[str]:
    """Names of what is called, in the graph and in those that it holds."""
    found: Counter[str] = Counter()
    for module in graph.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                if node.op in ("call_function", "call_method"):
                    target = node.target
                    found[str(target) if "dcls" in str(target) else getattr(target, "__name__", str(target))] += 1
    return found


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_layer_is_one_graph_with_the_kernel_of_a_gpu(interpolation: str, way: str) -> None:
    layer = DclsConv2d(8, 8, 5, padding=8, dilated_kernel_size=17, groups=8, interpolation=interpolation)
    set_depthwise(layer, way)
    with FakeTensorMode():
        out, graph = traced(to_fake_gpu(layer), torch.empty(2, 8, 14, 14, device="cuda"))
    found = nodes(graph)
    assert (out.shape, out.dtype, out.device.type) == ((2, 8, 14, 14), torch.bfloat16, "cuda")
    assert [found[node] for node in WAYS.values()] == [way == "conv2d", way == "triton"]
    assert found["autograd_function_apply"] == 1
    assert not found["scatter_add_"]  # `_BilinearKernel`, which is for CPUs
    assert not {"matmul", "mm", "bmm", "baddbmm", "einsum"} & set(found)  # they would round where TF32 is allowed


@pytest.mark.parametrize("way", WAYS)
def test_a_whole_model_is_one_graph(way: str) -> None:
    """Of five layers, with a stage that shares its positions and with drop path; in training, then in inference."""
    model = create_model("convnext_t_dcls", depths=[1, 1, 2, 1], drop_path_rate=0.1)
    set_depthwise(model, way)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    with FakeTensorMode():
        to_fake_gpu(model)
        assert [len(group.layers) for group in position_groups(model)] == [1, 1, 2, 1]
        image = torch.empty(2, 3, 64, 64, device="cuda").to(memory_format=torch.channels_last)
        for training in (True, False):
            with torch.set_grad_enabled(training):
                out, graph = traced(model.train(training), image)
            found = nodes(graph)
            assert out.requires_grad == training and out.device.type == "cuda"
            assert found["conv2d"] == convolutions + (5 if way == "conv2d" else 0)
            assert found[WAYS["triton"]] == (5 if way == "triton" else 0)


@pytest.mark.parametrize("way", WAYS)
def test_an_exported_layer_calls_what_was_set(way: str) -> None:
    layer = DclsConv2d(8, 8, 5, padding=8, dilated_kernel_size=17, groups=8)
    set_depthwise(layer, way)
    with FakeTensorMode(), torch.no_grad():
        exported = torch.export.export(to_fake_gpu(layer), (torch.empty(2, 8, 14, 14, device="cuda"),))
    targets = {str(node.target) for node in exported.graph.nodes}
    assert ("dcls_align.depthwise.default" in targets) == (way == "triton")
    assert ("aten.conv2d.default" in targets) == (way == "conv2d")
