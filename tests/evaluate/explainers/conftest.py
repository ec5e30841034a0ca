"""Small networks with timm's interface, whose maps have closed forms."""

import pytest
import torch
from torch import nn


class PooledNet(nn.Module):
    """Convolutions with batch norm and ReLU, global average pooling, one linear layer."""

    def __init__(self, channels: int = 12, num_classes: int = 5, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), act(), nn.Conv2d(8, channels, 3, 2, 1)
        )
        self.norm = nn.BatchNorm2d(channels)
        self.act = act()
        self.fc = nn.Linear(channels, num_classes)

    def forward_features(self, x):
        return self.act(self.norm(self.stem(x)))

    def forward_head(self, x, pre_logits=False):
        return self.fc(x.mean((2, 3)))

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


def randomise(model: nn.Module) -> nn.Module:
    """Statistics and weights as after training, so that nothing is trivially 0 or 1."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
        if isinstance(module, nn.Linear):  # mostly evidence for, so that a ReLU leaves something of each map
            nn.init.uniform_(module.weight, -0.3, 0.7)
    return model.eval()


@pytest.fixture
def pooled_net():
    torch.manual_seed(0)
    return randomise(PooledNet())


@pytest.fixture
def inplace_net():
    torch.manual_seed(0)
    return randomise(PooledNet(act=lambda: nn.ReLU(inplace=True)))


@pytest.fixture
def images():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
