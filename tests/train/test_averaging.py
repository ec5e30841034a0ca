"""The average of the weights, against a loop written out; tensors that layers share count once."""

import copy

import torch
from torch import nn

from common.models.zoo import create_model
from common.surgery import position_groups
from train.averaging import Ema, distinct_tensors


def walk(model: nn.Module) -> None:
    """Change every parameter and buffer."""
    with torch.no_grad():
        for tensor in distinct_tensors(model):
            tensor.add_(torch.rand_like(tensor) if tensor.is_floating_point() else 1)


def test_each_distinct_tensor_is_averaged_once_per_update() -> None:
    model = create_model("demo_dcls")
    shared = position_groups(model)[0]
    assert len(shared.layers) > 1
    ema = Ema(model, 0.9, warmup=False)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(3):
        walk(model)
        ema.update()
        for name, value in model.state_dict().items():
            old = expected[name]
            expected[name] = 0.9 * old + 0.1 * value if value.is_floating_point() else value.clone()
    found = ema.model.state_dict()
    assert any("running_mean" in name for name in found) and any("num_batches" in name for name in found)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    names = [f"{name}.P" for name, _ in shared.layers]
    own = dict(ema.model.named_modules())
    assert len({id(own[name.removesuffix(".P")].P) for name in names}) == 1  # still shared


def test_warmup_follows_the_weights_at_first() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = Ema(model, 0.9999)
    value = 0.0
    nn.init.ones_(model.weight)
    for t in range(1, 6):
        ema.update()
        decay = (1 + t) / (10 + t)
        value = decay * value + (1 - decay)
        assert abs(float(ema.model.weight) - value) < 1e-6


def test_the_average_is_a_model_of_its_own() -> None:
    model = create_model("demo")
    ema = Ema(model, 0.5)
    before = copy.deepcopy(ema.model.state_dict())
    walk(model)
    assert all(torch.equal(before[n], v) for n, v in ema.model.state_dict().items())
    assert not any(p.requires_grad for p in ema.model.parameters()) and not ema.model.training
