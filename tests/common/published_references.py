"""Slow forward passes over state dicts of the original repositories, independent of our models and of timm's.

Written from the papers (ConvNeXt, arXiv 2201.03545; MetaFormer baselines, 2210.13452; FastViT, 2303.14189) and the
original code where the papers leave a choice open. DCLS layers are the dcls package's own.
"""

import torch
import torch.nn.functional as F
from DCLS.construct.modules import Dcls2d
from torch import Tensor

from common.dcls_spec import DclsSpec
from common.models.zoo import ZOO


class Reference:
    """The building blocks, by parameter name."""

    def __init__(self, name: str, state: dict[str, Tensor]) -> None:
        # A plain model never looks at it.
        self.spec = ZOO[name].dcls or DclsSpec("v0", 1, 1)
        self.state = {key: t.double() if t.is_floating_point() else t for key, t in state.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self.state[name]

    def blocks(self, prefix: str) -> list[str]:
        numbers = {int(name.removeprefix(prefix).split(".")[0]) for name in self.state if name.startswith(prefix)}
        return [f"{prefix}{number}" for number in sorted(numbers)]

    def conv(self, name: str, x: Tensor, stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
        return F.conv2d(x, self[f"{name}.weight"], self.state.get(f"{name}.bias"), stride, padding, 1, groups)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def layer_norm(self, name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self.state.get(f"{name}.bias"), eps)

    def batch_norm(self, name: str, x: Tensor) -> Tensor:
        mean, variance = self[f"{name}.running_mean"], self[f"{name}.running_var"]
        return F.batch_norm(x, mean, variance, self[f"{name}.weight"], self[f"{name}.bias"], eps=1e-5)

    def mixing(self, name: str, x: Tensor, side: int, groups: int, stride: int = 1) -> Tensor:
        """A spatial convolution: plain with a kernel of `side`, or DCLS where the state has positions."""
        if f"{name}.P" not in self.state:
            return self.conv(name, x, stride, side // 2, groups)
        padding = self.spec.dilated_kernel_size // 2
        return F.conv2d(x, self.dcls_kernel(name), self.state.get(f"{name}.bias"), stride, padding, 1, groups)

    def dcls_kernel(self, name: str) -> Tensor:
        """Dense kernel (Cout, Cin/g, K, K) as the dcls package makes it."""
        weight = self[f"{name}.weight"]
        # The package makes tensors of 2 K K numbers a weight: few output channels at a time stay in the cache.
        per_channel = 2 * self.spec.dilated_kernel_size**2 * weight[0].numel()
        step = next(n for n in (32, 16, 8, 4, 2, 1) if n * per_channel <= 500_000)
        layer = Dcls2d(
            step * weight.shape[1],
            step,
            kernel_count=self.spec.kernel_count,
            dilated_kernel_size=self.spec.dilated_kernel_size,
            groups=step,
            bias=False,
            version=self.spec.interpolation,
        ).double()
        kernels = []
        for first in range(0, len(weight), step):
            values = {"weight": weight[first : first + step]}
            for other in ("P", "SIG"):
                if f"{name}.{other}" in self.state:
                    values[other] = self[f"{name}.{other}"][:, first : first + step]
            layer.load_state_dict(values)
            kernels.append(layer.DCK(layer.weight, layer.P, layer.SIG))
        return torch.cat(kernels)


def channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def convnext(net: Reference, x: Tensor) -> Tensor:
    for stage in range(4):
        down = f"downsample_layers.{stage}"
        if stage == 0:
            x = net.conv(f"{down}.0", x, stride=4)
            x = channels_first(net.layer_norm(f"{down}.1", channels_last(x)))
        else:
            x = channels_first(net.layer_norm(f"{down}.0", channels_last(x)))
            x = net.conv(f"{down}.1", x, stride=2)
        for block in net.blocks(f"stages.{stage}."):
            y = channels_last(net.mixing(f"{block}.dwconv", x, 7, groups=x.shape[1]))
            y = F.gelu(net.linear(f"{block}.pwconv1", net.layer_norm(f"{block}.norm", y)))
            x = x + channels_first(net[f"{block}.gamma"] * net.linear(f"{block}.pwconv2", y))
    return net.linear("head", net.layer_norm("norm", x.mean((2, 3))))


def resnet50(net: Reference, x: Tensor) -> Tensor:
    x = F.relu(net.batch_norm("bn1", net.conv("conv1", x, stride=2, padding=3)))
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    for stage in (1, 2, 3, 4):
        for block in net.blocks(f"layer{stage}."):
            first = block.endswith(".0")
            stride = 2 if first and stage > 1 else 1
            y = F.relu(net.batch_norm(f"{block}.bn1", net.conv(f"{block}.conv1", x)))
            y = F.relu(net.batch_norm(f"{block}.bn2", net.mixing(f"{block}.conv2", y, 3, groups=1, stride=stride)))
            y = net.batch_norm(f"{block}.bn3", net.conv(f"{block}.conv3", y))
            if first:
                x = net.batch_norm(f"{block}.downsample.1", net.conv(f"{block}.downsample.0", x, stride=stride))
            x = F.relu(x + y)
    return net.linear("fc", x.mean((2, 3)))


def _attention(net: Reference, name: str, x: Tensor) -> Tensor:
    """Self-attention over (B, N, C) with heads of 32 channels."""
    batch, places, channels = x.shape
    query, key, value = net.linear(f"{name}.qkv", x).view(batch, places, 3, channels // 32, 32).permute(2, 0, 3, 1, 4)
    weights = torch.softmax(query @ key.mT / 32**0.5, dim=-1)
    return net.linear(f"{name}.proj", (weights @ value).transpose(1, 2).reshape(batch, places, channels))


def metaformer(net: Reference, x: Tensor, head_eps: float = 1e-5) -> Tensor:
    """`head_eps` is nn.LayerNorm's default in the original's head; timm has 1e-6 there."""

    def star_relu(name: str, x: Tensor) -> Tensor:
        return net[f"{name}.scale"] * F.relu(x) ** 2 + net[f"{name}.bias"]

    for stage in range(4):
        down = f"downsample_layers.{stage}"
        if stage == 0:
            x = channels_last(net.conv(f"{down}.conv", x, stride=4, padding=2))
            x = net.layer_norm(f"{down}.post_norm", x)
        else:
            x = channels_first(net.layer_norm(f"{down}.pre_norm", x))
            x = channels_last(net.conv(f"{down}.conv", x, stride=2, padding=1))
        for block in net.blocks(f"stages.{stage}."):
            mixer = f"{block}.token_mixer"
            y = net.layer_norm(f"{block}.norm1", x)
            if f"{mixer}.qkv.weight" in net.state:
                y = _attention(net, mixer, y.flatten(1, 2)).view(x.shape)
            else:
                y = channels_first(star_relu(f"{mixer}.act1", net.linear(f"{mixer}.pwconv1", y)))
                y = net.mixing(f"{mixer}.dwconv", y, 7, groups=y.shape[1])
                y = net.linear(f"{mixer}.pwconv2", channels_last(y))
            x = net.state.get(f"{block}.res_scale1.scale", 1) * x + y
            y = star_relu(f"{block}.mlp.act", net.linear(f"{block}.mlp.fc1", net.layer_norm(f"{block}.norm2", x)))
            x = net.state.get(f"{block}.res_scale2.scale", 1) * x + net.linear(f"{block}.mlp.fc2", y)
    x = net.layer_norm("norm", x.mean((1, 2)))
    x = F.relu(net.linear("head.fc1", x)) ** 2
    return net.linear("head.fc2", net.layer_norm("head.norm", x, head_eps))


def fastvit(net: Reference, x: Tensor) -> Tensor:
    def branches(name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        """Sum of what the block has of: k x k convolution, 1x1 convolution, identity, each with its BatchNorm."""
        total: Tensor | float = 0.0
        for branch in ("rbr_conv.0", "rbr_scale"):
            if f"{name}.{branch}.conv.weight" in net.state:
                padding = net[f"{name}.{branch}.conv.weight"].shape[-1] // 2
                y = net.conv(f"{name}.{branch}.conv", x, stride, padding, groups)
                total = total + net.batch_norm(f"{name}.{branch}.bn", y)
        if f"{name}.rbr_skip.weight" in net.state:
            total = total + net.batch_norm(f"{name}.rbr_skip", x)
        assert isinstance(total, Tensor)
        return total

    def conv_ffn(name: str, x: Tensor) -> Tensor:
        x = net.batch_norm(f"{name}.conv.bn", net.mixing(f"{name}.conv.conv", x, 7, groups=x.shape[1]))
        return net.conv(f"{name}.fc2", F.gelu(net.conv(f"{name}.fc1", x)))

    x = F.gelu(branches("patch_embed.0", x, stride=2))
    x = F.gelu(branches("patch_embed.1", x, stride=2, groups=64))
    x = F.gelu(branches("patch_embed.2", x))
    for place in (0, 2, 4):
        for block in net.blocks(f"network.{place}."):
            mixer = f"{block}.token_mixer"
            y = branches(f"{mixer}.mixer", x, groups=x.shape[1]) - branches(f"{mixer}.norm", x)
            x = x + net[f"{mixer}.layer_scale"] * y
            x = x + net[f"{block}.layer_scale"] * conv_ffn(f"{block}.convffn", x)
        large, groups = f"network.{place + 1}.proj.0", x.shape[1]
        # No activation here: the original computes one and throws it away.
        x = net.batch_norm(f"{large}.lkb_origin.bn", net.conv(f"{large}.lkb_origin.conv", x, 2, 3, groups)) + (
            net.batch_norm(f"{large}.small_conv.bn", net.conv(f"{large}.small_conv.conv", x, 2, 1, groups))
        )
        x = F.gelu(branches(f"network.{place + 1}.proj.1", x))
    x = x + net.mixing("network.6.pe", x, 7, groups=x.shape[1])
    for block in net.blocks("network.7."):
        y = net.batch_norm(f"{block}.norm", x).flatten(2).mT
        x = x + net[f"{block}.layer_scale_1"] * _attention(net, f"{block}.token_mixer", y).mT.reshape(x.shape)
        x = x + net[f"{block}.layer_scale_2"] * conv_ffn(f"{block}.convffn", x)
    x = branches("conv_exp", x, groups=x.shape[1])
    gate = F.relu(net.conv("conv_exp.se.reduce", x.mean((2, 3), keepdim=True)))
    x = F.gelu(x * torch.sigmoid(net.conv("conv_exp.se.expand", gate)))
    return net.linear("head", x.mean((2, 3)))


@torch.no_grad()
def reference_logits(name: str, state: dict[str, Tensor], x: Tensor, **options: float) -> Tensor:
    """Logits (B, 1000) in float64 of the original model `name` with `state`, for x (B, 3, H, W)."""
    family = {"convnext": convnext, "resnet50": resnet50, "fastvit": fastvit}.get(name.split("_")[0], metaformer)
    return family(Reference(name, state), x.double(), **options)
