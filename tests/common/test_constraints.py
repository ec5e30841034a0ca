"""Each layer's own constraint is restored after an update, once for parameters that layers share."""

import torch
from torch import nn

from common.constraints import constrain
from common.dcls import DclsConv2d
from common.models.zoo import create_model
from common.surgery import position_groups


class Masked(nn.Linear):
    """Some of its weights stay zero."""

    constrained = ("weight",)

    def constrain(self) -> None:
        with torch.no_grad():
            self.weight.tril_()


def test_every_layer_keeps_its_own_constraint():
    model = nn.Sequential(Masked(3, 3), nn.Linear(3, 3), nn.Sequential(DclsConv2d(2, 4, 5, dilated_kernel_size=(3, 9))))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.5)
    constrain(model)
    assert torch.equal(model[0].weight, torch.full((3, 3), 7.5).tril())
    assert (model[1].weight == 7.5).all()
    columns, rows = model[2][0].P  # of `gauss` the column comes first
    assert (rows == 1).all() and (columns == 4).all()


def test_positions_that_layers_share_are_brought_back_once(monkeypatch):
    model = create_model("demo_dcls")
    groups = position_groups(model)
    assert any(len(group.layers) > 1 for group in groups)
    with torch.no_grad():
        for group in groups:
            group.positions.fill_(-100)
    calls = []
    clamp = DclsConv2d.clamp_parameters
    monkeypatch.setattr(DclsConv2d, "clamp_parameters", lambda layer: calls.append(layer) or clamp(layer))
    constrain(model)
    assert calls == [group.layers[0][1] for group in groups]
    for group in groups:
        assert (group.positions == -(group.layers[0][1].dilated_kernel_size[0] // 2)).all()
