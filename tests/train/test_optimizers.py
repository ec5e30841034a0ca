"""Parameter groups, schedule and learning rates, against formulas written out."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from timm.optim import list_optimizers
from torch import nn

from common.errors import UserError
from common.models.zoo import create_model
from common.surgery import position_groups
from train.optimizers import Schedule, create_optimizer, parameter_groups, set_learning_rates
from train.runs.state import Progress, TrainState
from train.settings import OptimSettings, PositionSettings, ScheduleSettings


def named_groups(model: nn.Module, **optim: Any) -> dict[str, dict[str, Any]]:
    groups = parameter_groups(model, OptimSettings(**optim), PositionSettings())
    named = {name: group for group in groups for name in group["names"]}
    parameters = dict(model.named_parameters())
    for group in groups:  # names and tensors belong together
        assert all(parameters[n] is p for n, p in zip(group["names"], group["params"], strict=True))
    assert sum(len(group["params"]) for group in groups) == len(parameters) == len(named)
    return named


@pytest.mark.parametrize("name", ["demo_dcls", "convnext_t_dcls_gauss"])
def test_positions_learn_five_times_faster_and_never_decay(name: str) -> None:
    extra = {"depths": [1, 1, 1, 1]} if name.startswith("conv") else {}
    model = create_model(name, **extra)
    named = named_groups(model, weight_decay=0.05)
    moving = {id(p) for g in position_groups(model) for p in (g.positions, g.sigma) if p is not None}
    for parameter_name, parameter in model.named_parameters():
        group = named[parameter_name]
        if id(parameter) in moving:
            assert (group["lr_scale"], group["weight_decay"]) == (5.0, 0.0)
        else:
            assert group["lr_scale"] == 1.0
            plain = parameter.ndim > 1 and not parameter_name.endswith("bias")
            assert group["weight_decay"] == (0.05 if plain else 0.0)
    assert any(n.endswith(".P") for n in named) and any(n.endswith(".SIG") for n in named) == ("gauss" in name)


def test_a_recipe_can_let_biases_decay_but_not_positions() -> None:
    named = named_groups(create_model("demo_dcls"), weight_decay=0.1, decay_norm_bias=True)
    assert {g["weight_decay"] for n, g in named.items() if not n.endswith((".P", ".SIG"))} == {0.1}
    assert {g["weight_decay"] for n, g in named.items() if n.endswith((".P", ".SIG"))} == {0.0}


def test_layer_decay_keeps_the_five() -> None:
    model = create_model("convnext_t_dcls", depths=[1, 1, 2, 1])
    named = named_groups(model, layer_decay=0.5)
    for name in ("stages.0.blocks.0.conv_dw", "stages.2.blocks.0.conv_dw", "stages.3.blocks.0.conv_dw"):
        assert named[f"{name}.P"]["lr_scale"] == 5 * named[f"{name}.weight"]["lr_scale"]
    scales = [named[f"{n}.weight"]["lr_scale"] for n in ("stem.0", "stages.0.blocks.0.conv_dw", "head.fc")]
    assert scales == sorted(scales) and scales[0] < scales[1] < scales[2] == 1.0
    assert math.log2(scales[0]) == int(math.log2(scales[0]))  # a power of the factor


def test_layer_decay_of_a_model_without_layers_is_refused() -> None:
    with pytest.raises(UserError, match="layer_decay"):
        named_groups(nn.Linear(2, 2), layer_decay=0.5)


def test_unknown_optimisers_and_arguments_are_refused() -> None:
    model = nn.Linear(2, 2)
    for optim in (OptimSettings(name="adamm"), OptimSettings(args={"epss": 1})):
        with pytest.raises(UserError, match=r"optim\.name="):
            create_optimizer(model, optim, PositionSettings(), torch.device("cpu"))


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_learning_rates_are_set_by_group(name: str) -> None:
    model = create_model("demo_dcls")
    optimizer = create_optimizer(model, OptimSettings(name=name), PositionSettings(), torch.device("cpu"))
    set_learning_rates(optimizer, 0.3)
    lr = {g["kind"]: g["lr"] for g in optimizer.param_groups}
    assert lr["positions"] == pytest.approx(1.5) and lr["decay"] == lr["no_decay"] == 0.3


def test_schedule_is_that_of_the_convnext_code() -> None:
    """facebookresearch/ConvNeXt utils.cosine_scheduler, as NumPy writes it."""
    epochs, warmup_epochs, per_epoch, peak, floor = 30, 5, 7, 4e-3, 1e-6
    warmup = warmup_epochs * per_epoch
    rest = np.arange(epochs * per_epoch - warmup)
    cosine = floor + 0.5 * (peak - floor) * (1 + np.cos(np.pi * rest / len(rest)))
    expected = np.concatenate((np.linspace(0, peak, warmup + 1)[:-1], cosine))
    schedule = Schedule(ScheduleSettings(warmup_epochs=warmup_epochs, min_lr=floor), peak, epochs, per_epoch)
    assert schedule.updates == len(expected)
    np.testing.assert_allclose([schedule(u) for u in range(schedule.updates)], expected, rtol=1e-9)


def test_schedule_cools_down_and_fits_itself_to_a_number_of_updates() -> None:
    shape = ScheduleSettings(warmup_epochs=20, warmup_lr=1e-6, min_lr=1e-5, cooldown_epochs=10)
    long = Schedule(shape, 1.0, 300, 100)
    assert long.updates == 31000
    assert long(0) == 1e-6 and long(2000) == 1.0 and {long(u) for u in (30000, 30999)} == {1e-5}
    short = Schedule(shape, 1.0, 300, 100, updates=310)
    assert short.updates == 310
    np.testing.assert_allclose([short(u) for u in range(310)], [long(100 * u) for u in range(310)], rtol=1e-9)
    assert Schedule(shape, 1.0, 300, 0.06, updates=3)(2) > 0


@pytest.mark.parametrize("name", list_optimizers(exclude_filters=["bnb*", "fused*", "adahessian"]))
def test_a_snapshot_of_the_same_settings_comes_back_whole(name: str) -> None:
    """Settings of this run replace the snapshot's; what an optimiser itself keeps beside them must not be lost."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    optimizers = [create_optimizer(model, OptimSettings(name=name), PositionSettings(), torch.device("cpu"))]
    for _ in range(2):
        model(torch.randn(5, 3, 4, 4)).square().sum().backward()
        optimizers[0].step()
    optimizers.append(create_optimizer(model, OptimSettings(name=name), PositionSettings(), torch.device("cpu")))
    progress = Progress(4, 0, 8, 2, 1)
    meters = torch.zeros(1)
    states = [TrainState(progress, model, optimizer, None, None, meters, {}) for optimizer in optimizers]
    states[1].restore({**states[0].common_part(), "processes": [states[0].own_part()]}, 0, "here")
    before, after = (
        [{k: v for k, v in group.items() if k != "params"} for group in o.param_groups] for o in optimizers
    )
    assert before == after


def test_sums_begin_anew_where_the_snapshot_counted_other_loss_terms() -> None:
    model = nn.Linear(2, 2)
    optimizer = create_optimizer(model, OptimSettings(), PositionSettings(), torch.device("cpu"))
    states = [TrainState(Progress(4, 0, 8, 2, 1), model, optimizer, None, None, m, {}) for m in torch.eye(3, 3)]
    states[2].meters = torch.zeros(4)  # one term more
    content = {**states[0].common_part(), "processes": [states[0].own_part()]}
    for state, expected in zip(states[1:], ([1, 0, 0], [0, 0, 0, 0]), strict=True):
        state.restore(content, 0, "here")
        assert state.meters.tolist() == expected
