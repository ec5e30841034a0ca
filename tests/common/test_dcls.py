"""The DCLS layer against the dcls package, a slow loop over pixels, and `torch.nn.Conv2d`."""

import copy
import gc
import io
import logging
import math
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from DCLS.construct.modules import Dcls2d
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Conv2dSame

from common import dcls
from common.dcls import INTERPOLATIONS, DclsConv2d, SamePadding, construct_kernel, row_axis
from common.surgery import set_depthwise


def make_pair(interpolation: str, groups: int = 2, size: int = 7, spread: float = 1.5, **kwargs):
    """The package's layer and ours with the same float64 parameters, positions well spread and some out of range."""
    torch.manual_seed(0)
    theirs = Dcls2d(
        8, 4, 5, padding=size // 2, dilated_kernel_size=size, groups=groups, version=interpolation, **kwargs
    ).double()
    torch.nn.init.normal_(theirs.P, std=spread)
    if theirs.SIG is not None:
        torch.nn.init.normal_(theirs.SIG)
    ours = DclsConv2d(
        8, 4, 5, padding=size // 2, dilated_kernel_size=size, groups=groups, interpolation=interpolation, **kwargs
    ).double()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def slow_kernel(layer: DclsConv2d) -> torch.Tensor:
    """Dense kernel by its definition, one pixel at a time."""
    rows, columns = layer.dilated_kernel_size
    axis = row_axis(layer.interpolation)
    out = torch.zeros(layer.out_channels, layer.in_channels // layer.groups, rows, columns, dtype=torch.float64)
    for o in range(out.shape[0]):
        for i in range(out.shape[1]):
            for e in range(layer.kernel_count):
                y = layer.P[axis, o, i, e].item() + rows // 2
                x = layer.P[1 - axis, o, i, e].item() + columns // 2
                bump = torch.zeros(rows, columns, dtype=torch.float64)
                for r in range(rows):
                    for c in range(columns):
                        if layer.interpolation in ("v0", "v1"):
                            bump[r, c] = max(0.0, 1 - abs(r - y)) * max(0.0, 1 - abs(c - x))
                        else:
                            sy = abs(layer.SIG[axis, o, i, e].item())
                            sx = abs(layer.SIG[1 - axis, o, i, e].item())
                            if layer.interpolation == "max":
                                bump[r, c] = max(0.0, sy + 1 - abs(r - y)) * max(0.0, sx + 1 - abs(c - x))
                            else:
                                bump[r, c] = math.exp(
                                    -0.5 * (((r - y) / (sy + 0.27)) ** 2 + ((c - x) / (sx + 0.27)) ** 2)
                                )
                if layer.interpolation != "v0":
                    bump = bump / (bump.sum() + 1e-7)
                out[o, i] += layer.weight[o, i, e].item() * bump
    return out


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("groups,size", [(1, 7), (2, 7), (4, 17), (2, 4)])
def test_output_and_gradients_equal_the_package(interpolation, groups, size):
    theirs, ours = make_pair(interpolation, groups, size)
    x = torch.randn(2, 8, 12, 11, dtype=torch.float64)
    expected, found = theirs(x), ours(x)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    upstream = torch.randn_like(expected)
    expected.backward(upstream)
    found.backward(upstream)
    theirs_grads = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        reference = theirs_grads[name].grad
        assert (parameter.grad - reference).norm() <= 1e-5 * reference.norm(), name


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_gradients_equal_the_package_at_integer_positions(interpolation):
    theirs, ours = make_pair(interpolation)
    with torch.no_grad():
        theirs.P.round_()
        ours.P.round_()
    x = torch.randn(1, 8, 9, 9, dtype=torch.float64)
    theirs(x).square().sum().backward()
    ours(x).square().sum().backward()
    torch.testing.assert_close(ours.P.grad, theirs.P.grad, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", [(3, 7), (7, 3), (5, 5), (1, 9)])
def test_kernel_equals_its_definition_also_when_not_square(interpolation, size):
    torch.manual_seed(1)
    layer = DclsConv2d(4, 2, 3, dilated_kernel_size=size, groups=2, interpolation=interpolation).double()
    torch.nn.init.normal_(layer.P, std=1.5)
    layer.clamp_parameters()
    torch.testing.assert_close(layer.kernel(), slow_kernel(layer), atol=1e-9, rtol=0)


@settings(deadline=None, max_examples=60)
@given(
    interpolation=st.sampled_from(INTERPOLATIONS),
    row=st.floats(-6, 6),
    column=st.floats(-6, 6),
    sigma=st.floats(-2, 2),
)
def test_one_element_anywhere_equals_its_definition(interpolation, row, column, sigma):
    layer = DclsConv2d(1, 1, 1, dilated_kernel_size=(7, 9), interpolation=interpolation).double()
    axis = row_axis(interpolation)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.P[axis], layer.P[1 - axis] = row, column
        if layer.SIG is not None:
            layer.SIG.fill_(sigma)
    torch.testing.assert_close(layer.kernel(), slow_kernel(layer), atol=1e-9, rtol=0)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_axis_convention(interpolation):
    layer = DclsConv2d(1, 1, 1, dilated_kernel_size=7, bias=False, interpolation=interpolation)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.P[0], layer.P[1] = 2.0, -3.0
    place = divmod(int(layer.kernel().argmax()), 7)
    assert place == ((5, 0) if interpolation == "v0" else (0, 5))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_state_dicts_are_interchangeable_with_the_package(interpolation):
    theirs, ours = make_pair(interpolation)
    assert {k: v.shape for k, v in theirs.state_dict().items()} == {k: v.shape for k, v in ours.state_dict().items()}
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("interpolation", ["v0", "v1", "gauss"])
def test_initial_values_are_those_of_the_package(interpolation):
    torch.manual_seed(3)
    theirs = Dcls2d(8, 8, 5, dilated_kernel_size=7, groups=8, version=interpolation)
    torch.manual_seed(3)
    ours = DclsConv2d(8, 8, 5, dilated_kernel_size=7, groups=8, interpolation=interpolation)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)


def test_max_learns_its_widths_from_the_start():
    layer = DclsConv2d(2, 2, 3, padding=3, dilated_kernel_size=7, interpolation="max")
    layer(torch.randn(1, 2, 8, 8)).square().sum().backward()
    assert layer.SIG.grad.abs().min() > 0


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("stride", [1, (2, 1)])
def test_fold_is_the_same_function(padding_mode, stride):
    torch.manual_seed(0)
    layer = DclsConv2d(4, 6, 3, stride, (2, 3), (5, 7), 2, padding_mode=padding_mode, interpolation="gauss")
    conv = layer.fold()
    assert type(conv) is torch.nn.Conv2d
    x = torch.randn(2, 4, 11, 13)
    torch.testing.assert_close(conv(x), layer(x), rtol=1e-5, atol=1e-5)
    padded = F.pad(x, (3, 3, 2, 2), mode="constant" if padding_mode == "zeros" else padding_mode)
    expected = F.conv2d(padded, layer.kernel(), layer.bias, stride, groups=2)
    torch.testing.assert_close(conv(x), expected, rtol=1e-5, atol=1e-5)


def test_fold_keeps_type_and_absence_of_bias():
    conv = DclsConv2d(2, 2, 3, dilated_kernel_size=5, bias=False).to(torch.bfloat16).eval().fold()
    assert conv.weight.dtype == torch.bfloat16 and conv.bias is None and not conv.training


def test_construction_stays_float32_under_autocast_and_in_half_modules():
    _, layer = make_pair("gauss")
    exact = layer.kernel().float()
    layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        kernel = layer.kernel()
        out = layer(torch.randn(1, 8, 9, 9))
    assert kernel.dtype == torch.float32 and out.dtype == torch.bfloat16
    torch.testing.assert_close(kernel, exact, atol=1e-6, rtol=0)
    layer.half()
    assert layer.kernel().dtype == torch.float32


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_survives_deepcopy_pickle_and_a_move_after_use(interpolation):
    layer = DclsConv2d(2, 2, 3, padding=2, dilated_kernel_size=5, interpolation=interpolation)
    x = torch.randn(1, 2, 6, 6)
    expected = layer(x)
    torch.testing.assert_close(copy.deepcopy(layer)(x), expected)
    torch.testing.assert_close(pickle.loads(pickle.dumps(layer))(x), expected)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    torch.testing.assert_close(layer.double()(x.double()).float(), expected, rtol=1e-4, atol=1e-5)
    # No plain tensor may hang on the module: it would stay behind in a move.
    assert not [name for name, value in vars(layer).items() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("interpolation", ["v0", "gauss"])
def test_compiles_without_a_graph_break(interpolation):
    layer = DclsConv2d(2, 2, 3, padding=2, dilated_kernel_size=5, interpolation=interpolation)
    x = torch.randn(1, 2, 6, 6)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-6)
    for run in (layer, compiled):
        run(x).square().sum().backward()
    assert layer.P.grad is not None and layer.P.grad.isfinite().all()


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_backward_pass_under_autocast_is_no_less_exact(interpolation, compiled):
    torch.manual_seed(0)
    layer = DclsConv2d(8, 8, 5, padding=3, dilated_kernel_size=7, groups=8, interpolation=interpolation)
    torch.nn.init.uniform_(layer.P, -3, 3)
    call = torch.compile(layer, backend="aot_eager") if compiled else layer
    x = torch.randn(2, 8, 9, 9)

    def gradients(inside):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = (call if inside else layer)(x).float().square().sum()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        return [p.grad for p in layer.parameters()]

    torch.testing.assert_close(gradients(True), gradients(False), rtol=0, atol=0)


def test_a_batch_of_no_images_has_a_gradient_of_zeros():
    layer = DclsConv2d(4, 4, 3, padding=3, dilated_kernel_size=7, groups=4)
    x = torch.zeros(0, 4, 8, 8, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.shape == x.shape and not layer.weight.grad.any()


def shared_pair(interpolation):
    """Two depthwise layers of one stage, which share their positions."""
    pair = [DclsConv2d(3, 3, 4, dilated_kernel_size=7, groups=3, interpolation=interpolation) for _ in range(2)]
    pair[1].P = pair[0].P
    return pair


@pytest.mark.parametrize("interpolation", ["v0", "v1"])
def test_what_layers_of_a_stage_share_is_computed_once_until_positions_move(interpolation, monkeypatch):
    computed = []
    monkeypatch.setattr(dcls, "_taps", lambda *given, compute=dcls._taps: computed.append(1) or compute(*given))
    first, second = shared_pair(interpolation)
    (first.kernel() + second.kernel()).sum().backward()
    assert len(computed) == 1
    for move in (
        lambda: torch.nn.init.uniform_(first.P, -3, 3),
        lambda: first.P.data.neg_(),  # autograd's version counter does not see this one
        lambda: setattr(first.P, "data", torch.rand(2, 3, 1, 4)),
    ):
        move()
        found = torch.autograd.grad(second.kernel().square().sum(), second.P)[0]
        fresh = second.P.detach().clone().requires_grad_()
        expected = construct_kernel(second.weight, fresh, None, (7, 7), interpolation)
        torch.testing.assert_close(second.kernel(), expected, rtol=0, atol=0)
        torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum(), fresh)[0], rtol=0, atol=0)


def test_what_is_kept_of_a_stage_goes_with_its_positions():
    before = len(dcls._known_taps)
    first, second = shared_pair("v1")
    (first.kernel() + second.kernel()).sum().backward()
    assert len(dcls._known_taps) == before + 1
    del first, second
    gc.collect()
    assert len(dcls._known_taps) == before


def test_building_logs_nothing(caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        DclsConv2d(2, 2, 3, dilated_kernel_size=5)
    assert not caplog.records and capfd.readouterr() == ("", "")


def test_clamp_uses_each_axis_own_limit():
    for interpolation in INTERPOLATIONS:
        layer = DclsConv2d(1, 1, 4, dilated_kernel_size=(3, 9), interpolation=interpolation)
        torch.nn.init.constant_(layer.P, 100.0)
        layer.clamp_parameters()
        axis = row_axis(interpolation)
        assert (layer.P[axis] == 1).all() and (layer.P[1 - axis] == 4).all()


def test_construction_saves_far_less_than_the_package():
    def saved_bytes(layer):
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        x = torch.randn(1, 96, 17, 17)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            layer(x)
        return total

    ours = DclsConv2d(96, 96, 34, padding=8, dilated_kernel_size=17, groups=96, interpolation="v1")
    theirs = Dcls2d(96, 96, 34, padding=8, dilated_kernel_size=17, groups=96, version="v1")
    assert saved_bytes(ours) * 4 < saved_bytes(theirs)


@pytest.mark.parametrize("interpolation", ["v0", "v1"])
@pytest.mark.parametrize("size", [(7, 7), (4, 6)])
def test_four_pixels_an_element_equal_whole_rows_and_columns(interpolation, size):
    """A CPU builds bilinear kernels from the pixels that are not zero, a GPU from products."""
    torch.manual_seed(0)
    weight = torch.randn(3, 2, 5, dtype=torch.float64)
    positions = torch.randn(2, 3, 2, 5, dtype=torch.float64) * 3  # some outside the kernel
    positions[:, 0] = positions[:, 0].round()
    results = []
    for build in (
        lambda w, p: construct_kernel(w, p, None, size, interpolation),
        lambda w, p: dcls._KernelConstruction.apply(w, p, None, size, interpolation),
    ):
        leaves = weight.clone().requires_grad_(), positions.clone().requires_grad_()
        kernel = build(*leaves)
        results.append((kernel, *torch.autograd.grad(kernel.square().sum(), leaves)))
    torch.testing.assert_close(results[0], results[1])


def test_refuses_an_unknown_interpolation():
    with pytest.raises(ValueError, match=r"brownian.*v0, v1, max, gauss"):
        DclsConv2d(1, 1, 1, interpolation="brownian")


def test_the_packages_word_for_the_interpolation_is_refused_with_ours():
    with pytest.raises(TypeError, match=r"no argument version.*interpolation"):
        DclsConv2d(1, 1, 1, version="v1")


@pytest.mark.parametrize(
    "name,value",
    [
        ("kernel_count", 0),
        ("kernel_count", -3),
        ("dilated_kernel_size", 0),
        ("dilated_kernel_size", (7, -7)),
        ("stride", 0),
        ("stride", (1, -1)),
        ("groups", 0),
        ("in_channels", 0),
        ("out_channels", -2),
        ("padding", -1),
        ("padding", (0, -1)),
        ("padding", ((0, 0), (1, -1))),
    ],
)
def test_a_number_below_its_range_is_refused_by_name(name, value):
    given = {"in_channels": 2, "out_channels": 2, "kernel_count": 3, "dilated_kernel_size": 5, name: value}
    with pytest.raises(ValueError, match=rf"^{name} is .*{re.escape(str(value))}.* at least"):
        DclsConv2d(**given)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("size", [7, 4, (5, 2)])
@pytest.mark.parametrize("word", ["same", "valid"])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_padding_in_words_is_that_of_torch(word, size, padding_mode):
    torch.manual_seed(0)
    layer = DclsConv2d(4, 4, 3, 1, word, size, 4, padding_mode=padding_mode)
    theirs = torch.nn.Conv2d(4, 4, size, 1, word, groups=4, padding_mode=padding_mode)
    theirs.load_state_dict({"weight": layer.kernel(), "bias": layer.bias})
    x = torch.randn(2, 4, 9, 11)
    torch.testing.assert_close(layer(x), theirs(x))
    torch.testing.assert_close(layer.fold()(x), theirs(x))
    assert word == "valid" or layer(x).shape == x.shape


def test_padding_in_words_has_torchs_errors():
    with pytest.raises(ValueError, match="padding='same' is not supported for strided convolutions"):
        DclsConv2d(4, 4, 3, 2, "same", 7)
    with pytest.raises(ValueError, match=r"'samw'.*'same', 'valid'"):
        DclsConv2d(4, 4, 3, 1, "samw", 7)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "circular"])
@pytest.mark.parametrize("groups,stride", [(4, 1), (2, (2, 1))])
@pytest.mark.parametrize("sides", [((1, 3), (2, 0)), ((2, 2), (0, 1))])
def test_sides_padded_differently_and_their_fold(sides, groups, stride, padding_mode):
    torch.manual_seed(0)
    layer = DclsConv2d(4, 4, 3, stride, sides, (4, 5), groups, padding_mode=padding_mode)
    x = torch.randn(2, 4, 11, 12)
    (top, bottom), (left, right) = sides
    padded = F.pad(x, (left, right, top, bottom), mode="constant" if padding_mode == "zeros" else padding_mode)
    expected = F.conv2d(padded, layer.kernel(), layer.bias, stride, groups=groups)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)
    folded = layer.fold()
    assert type(folded) is torch.nn.Conv2d
    torch.testing.assert_close(folded(x), expected, rtol=1e-5, atol=1e-6)


def with_the_taps_of(conv: torch.nn.Conv2d, size: int) -> DclsConv2d:
    """A v0 layer with SAME padding and one element on each tap, placed by the definition in `SamePadding`."""
    (rows, columns), (gap, _) = conv.kernel_size, conv.dilation
    reach = tuple(gap * (k - 1) + 1 for k in conv.kernel_size)
    layer = DclsConv2d(
        conv.in_channels,
        conv.out_channels,
        rows * columns,
        conv.stride,
        SamePadding(reach),
        size,
        conv.groups,
        interpolation="v0",
    )
    with torch.no_grad():
        layer.bias.copy_(conv.bias)
        for row in range(rows):
            for column in range(columns):
                element = row * columns + column
                layer.P[0, ..., element] = gap * row - reach[0] // 2
                layer.P[1, ..., element] = gap * column - reach[1] // 2
                layer.weight[..., element] = conv.weight[..., row, column]
    return layer


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, (3, 2)])
@pytest.mark.parametrize("kernel", [1, 2, 3, (5, 3), (4, 5)])
@pytest.mark.parametrize("size", [9, 10])
def test_same_padding_keeps_size_and_alignment_of_tensorflows(kernel, stride, dilation, size):
    torch.manual_seed(0)
    conv = Conv2dSame(4, 4, kernel, stride, dilation=dilation, groups=2)
    layer = with_the_taps_of(conv, size)
    folded = layer.fold()
    for shape in ((4, 4), (7, 8), (12, 5), (1, 1), (13, 13)):
        x = torch.randn(2, 4, *shape)
        torch.testing.assert_close(layer(x), conv(x), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(folded(x), conv(x), rtol=1e-5, atol=1e-6)


def test_same_padding_compiles_without_a_graph_break():
    torch.manual_seed(0)
    layer = DclsConv2d(4, 4, 3, 2, SamePadding((4, 3)), 9, 4, interpolation="v1")
    x = torch.randn(2, 4, 12, 9)
    for same in (layer, layer.fold()):
        torch.compiler.reset()  # forward was compiled for layers of other tests, and there is a limit
        compiled = torch.compile(same, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), same(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding_survives_what_other_layers_do(stride):
    torch.manual_seed(0)
    layer = DclsConv2d(4, 4, 3, stride, SamePadding((4, 3)), 9, 4, interpolation="v1")
    x = torch.randn(2, 4, 12, 9)
    expected = layer(x)
    assert set(layer.state_dict()) == {"weight", "P", "bias"}
    for same in (layer, layer.fold()):
        for twin in (copy.deepcopy(same), pickle.loads(pickle.dumps(same))):
            torch.testing.assert_close(twin(x), expected, rtol=1e-5, atol=1e-6)
        last = x.contiguous(memory_format=torch.channels_last)
        out = same.to(memory_format=torch.channels_last)(last)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
        assert out.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(same(x[0]), expected[0], rtol=1e-5, atol=1e-6)
    set_depthwise(layer, "conv2d")
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


def test_gradcheck():
    torch.manual_seed(0)
    for interpolation in INTERPOLATIONS:
        shape = (2, 2, 3)
        weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        positions = (torch.rand(2, *shape, dtype=torch.float64) * 3 - 1.5 + 0.013).requires_grad_()
        sigma = None
        if interpolation in ("max", "gauss"):
            sigma = (torch.rand(2, *shape, dtype=torch.float64) * 0.5 + 0.2).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda w, p, s, i=interpolation: construct_kernel(w, p, s, (5, 7), i), (weight, positions, sigma)
        )


@pytest.mark.parametrize("size,padding", [((17, 17), (8, 8)), ((5, 3), (0, 2)), ((4, 7), (3, 1)), ((9, 9), (0, 0))])
@pytest.mark.parametrize("shape", [(2, 3, 14, 11), (1, 2, 7, 7), (3, 1, 9, 20)])
def test_depthwise_path_equals_conv2d_with_all_gradients(size, padding, shape):
    if size[0] > shape[2] + 2 * padding[0] or size[1] > shape[3] + 2 * padding[1]:
        padding = (size[0] // 2, size[1] // 2)
    torch.manual_seed(0)
    channels = shape[1]
    layer = DclsConv2d(channels, channels, 3, 1, padding, size, channels, interpolation="gauss").double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    found = layer(x)
    kernel = layer.kernel().detach().requires_grad_()
    bias = layer.bias.detach().clone().requires_grad_()
    expected = F.conv2d(x, kernel, bias, 1, padding, 1, channels)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    to_x, to_kernel, to_bias = torch.autograd.grad(expected, (x, kernel, bias), upstream)
    to_weight, to_positions = torch.autograd.grad(layer.kernel(), (layer.weight, layer.P), to_kernel)
    found.backward(upstream)
    for name, grad, reference in (
        ("x", x.grad, to_x),
        ("weight", layer.weight.grad, to_weight),
        ("P", layer.P.grad, to_positions),
        ("bias", layer.bias.grad, to_bias),
    ):
        torch.testing.assert_close(grad, reference, msg=lambda text, n=name: f"{n}: {text}")


def test_depthwise_path_under_autocast_gives_float32_gradients_to_parameters():
    torch.manual_seed(0)
    layer = DclsConv2d(4, 4, 3, padding=4, dilated_kernel_size=9, groups=4, interpolation="v1")
    x = torch.randn(2, 4, 12, 12, requires_grad=True)
    layer(x).square().mean().backward()
    exact = {name: p.grad.clone() for name, p in layer.named_parameters()}
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    out.float().square().mean().backward()
    assert out.dtype == torch.bfloat16
    for name, parameter in layer.named_parameters():
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad - exact[name]).norm() < 0.05 * exact[name].norm(), name


@pytest.mark.parametrize("cached", [1, 600, 2**17])  # images one by one, in twos, all at once
def test_weight_gradient_of_half_precision_is_summed_in_float32(cached, monkeypatch):
    monkeypatch.setattr(dcls, "_CACHED_VALUES", cached)
    torch.manual_seed(0)
    x, upstream = (torch.randn(7, 3, 9, 9).bfloat16() for _ in range(2))
    kernel = torch.zeros(3, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    (F.conv2d(x.double(), kernel, padding=2, groups=3) * upstream.double()).sum().backward()
    found = dcls._depthwise_weight_gradient(x, upstream, (2, 2))
    torch.testing.assert_close(found.double(), kernel.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding", [(3, 1), (1, 4)])
def test_padding_beyond_the_kernel_has_its_gradients(padding):
    torch.manual_seed(0)
    x, kernel = torch.randn(2, 2, 5, 5, requires_grad=True), torch.randn(2, 1, 3, 3, requires_grad=True)
    found = dcls.depthwise_conv2d(x, kernel, None, padding)
    expected = F.conv2d(x, kernel, None, 1, padding, 1, 2)
    upstream = torch.randn_like(expected)
    gradients = (torch.autograd.grad(out, (x, kernel), upstream) for out in (found, expected))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("interpolation", ["v0", "v1", "gauss"])
def test_second_derivatives_of_a_layer_exist(interpolation, groups):
    torch.manual_seed(0)
    layer = DclsConv2d(2, 2, 3, padding=2, dilated_kernel_size=5, groups=groups, interpolation=interpolation).double()
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    parameters = {name: p.detach().clone().requires_grad_() for name, p in layer.named_parameters()}

    def energy(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values)), (x,)).pow(3).sum()

    assert torch.autograd.gradgradcheck(energy, (x, *parameters.values()))


@pytest.mark.parametrize("interpolation", ["max", "gauss"])
def test_the_kernel_of_a_gpu_and_its_gradients_are_those_of_a_cpu(interpolation, monkeypatch):
    """A GPU sums products where a CPU multiplies matrices, see `_sum_of_products`."""
    torch.manual_seed(0)
    layer = DclsConv2d(6, 8, 5, padding=(3, 4), dilated_kernel_size=(7, 9), groups=2, interpolation=interpolation)
    layer = layer.double()
    weighting = torch.randn(8, 3, 7, 9, dtype=torch.float64)
    found = []
    for product in (dcls._product, dcls._sum_of_products):
        monkeypatch.setattr(dcls, "_product", product)
        kernel = layer.kernel()
        gradients = torch.autograd.grad((kernel * weighting).sum(), list(layer.parameters())[:3])
        found.append((kernel, *gradients))
    for cpu, gpu in zip(*found, strict=True):
        torch.testing.assert_close(cpu, gpu, rtol=1e-12, atol=1e-13)
