"""What README.md promises of DCLS layers in other people's networks; the rest of the list is in test_dcls.py."""

import copy
import io
import pickle

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from common.dcls import INTERPOLATIONS
from common.dcls_spec import DclsSpec
from common.surgery import fold_dcls, position_groups, replace_convs


def network(interpolation: str = "v1") -> nn.Module:
    """Two layers that share their positions, one of them padded as in TensorFlow, and a dense one."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 4, 7, padding=3, groups=4),
        nn.ReLU(),
        Conv2dSame(4, 4, 4, 2, groups=4),
        nn.Conv2d(4, 6, 3, padding=1, stride=2),
    )
    replace_convs(model, DclsSpec(interpolation, 9, 5, "*"))
    for group in position_groups(model):  # fresh positions lie near the centre; spread them
        nn.init.normal_(group.positions, std=2.0)
    return model.eval()


X = torch.randn(2, 4, 15, 16, generator=torch.Generator().manual_seed(1))


def saved_and_loaded(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("twin", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded])
def test_copies_share_their_positions_among_themselves_only(twin, interpolation):
    model = network(interpolation)
    other = twin(model)
    assert other[0].P is other[2].P is not model[0].P and other[0].SIG is other[2].SIG
    torch.testing.assert_close(other(X), model(X), rtol=0, atol=0)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_double_and_bfloat16(interpolation):
    model = network(interpolation)
    expected = model(X)
    torch.testing.assert_close(copy.deepcopy(model).double()(X.double()).float(), expected, rtol=1e-4, atol=1e-6)
    # Half precision misplaces the elements by up to 2^-7 px; all else is its rounding.
    found = copy.deepcopy(model).bfloat16()(X.bfloat16()).float()
    assert (found - expected).norm() < 0.05 * expected.norm()


def test_channels_last_stays_channels_last_and_changes_nothing():
    model = network()
    expected = model(X)
    layout = torch.channels_last
    found = model.to(memory_format=layout)(X.to(memory_format=layout))
    assert found.is_contiguous(memory_format=layout)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_functional_call_uses_the_parameters_it_is_given():
    model = network()
    moved = {name: value + 0.25 for name, value in model.named_parameters()}
    found = torch.func.functional_call(model, moved, X)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.25
    torch.testing.assert_close(found, model(X))


def test_replicas_of_data_parallel_compute_the_same():
    model = network()
    torch.testing.assert_close(nn.DataParallel(model)(X), model(X), rtol=0, atol=0)
    layer = model[0]
    replica = layer._replicate_for_data_parallel()  # what DataParallel does for every device but here with this one
    for name, parameter in layer._parameters.items():
        if parameter is None:
            replica._parameters[name] = None
        else:
            setattr(replica, name, parameter.clone())
    torch.testing.assert_close(replica(X), layer(X))


@pytest.mark.parametrize("fold", [False, True])
def test_exports(fold):
    model = network()
    expected = model(X)
    program = torch.export.export(fold_dcls(model) if fold else model, (X,))
    torch.testing.assert_close(program.module()(X), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_folding_is_exact(interpolation):
    model = network(interpolation).double()
    expected = model(X.double())
    found = fold_dcls(model)(X.double())
    assert not position_groups(model) and (found - expected).abs().max() < 1e-12


def test_a_folded_network_runs_as_onnx(tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    model = fold_dcls(network())
    torch.onnx.export(model, (X,), str(tmp_path / "x.onnx"), dynamo=True)
    session = runtime.InferenceSession(str(tmp_path / "x.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(X), rtol=1e-4, atol=1e-5)
