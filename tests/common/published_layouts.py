"""Parameter names and shapes of the published files, from the code of the original repositories.

ConvNeXt: facebookresearch/ConvNeXt models/convnext.py. ResNet: torchvision's names, which timm keeps. CAFormer and
ConvFormer: sail-sg/metaformer metaformer_baselines.py. FastViT: apple/ml-fastvit models/fastvit.py. The layers
that DCLS replaces keep `weight` (Cout, Cin/g, k) and `bias` and get `P` (2, Cout, Cin/g, k), `SIG` with gauss.
"""

import argparse
from pathlib import Path

import torch

from common.models.zoo import ZOO

Shapes = dict[str, tuple[int, ...]]
CONVNEXT = {
    "convnext_t": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_s": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "convnext_b": ((3, 3, 27, 3), (128, 256, 512, 1024)),
}
FASTVIT_DEPTHS = {"fastvit_sa24": (4, 4, 12, 4), "fastvit_sa36": (6, 6, 18, 6)}
METAFORMER_DEPTHS, METAFORMER_DIMS = (3, 3, 9, 3), (64, 128, 320, 512)
FASTVIT_DIMS = (64, 128, 256, 512)
RESNET_DEPTHS, RESNET_DIMS = (3, 4, 6, 3), (64, 128, 256, 512)


class Layout(Shapes):
    """Collects names; `kernel_count` makes DCLS layers of those declared by `mixing`."""

    def __init__(self, kernel_count: int | None = None, sigma: bool = False) -> None:
        self.kernel_count, self.sigma = kernel_count, sigma

    def affine(self, name: str, *weight: int, bias: int | None = None) -> None:
        self[f"{name}.weight"] = weight
        if bias is not None:
            self[f"{name}.bias"] = (bias,)

    def norm(self, name: str, channels: int) -> None:
        self.affine(name, channels, bias=channels)

    def batch_norm(self, name: str, channels: int) -> None:
        self.norm(name, channels)
        self |= {f"{name}.running_mean": (channels,), f"{name}.running_var": (channels,)}
        self[f"{name}.num_batches_tracked"] = ()

    def mixing(self, name: str, out: int, per_group: int, side: int, bias: bool) -> None:
        """A spatial convolution of the kind that DCLS replaces."""
        if self.kernel_count is None:
            self.affine(name, out, per_group, side, side, bias=out if bias else None)
            return
        elements = (out, per_group, self.kernel_count)
        self.affine(name, *elements, bias=out if bias else None)
        self[f"{name}.P"] = (2, *elements)
        if self.sigma:
            self[f"{name}.SIG"] = (2, *elements)


def convnext(layout: Layout, depths: tuple[int, ...], dims: tuple[int, ...]) -> None:
    layout.affine("downsample_layers.0.0", dims[0], 3, 4, 4, bias=dims[0])
    layout.norm("downsample_layers.0.1", dims[0])
    for i in (1, 2, 3):
        layout.norm(f"downsample_layers.{i}.0", dims[i - 1])
        layout.affine(f"downsample_layers.{i}.1", dims[i], dims[i - 1], 2, 2, bias=dims[i])
    for stage, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
        for b in range(depth):
            block = f"stages.{stage}.{b}"
            layout[f"{block}.gamma"] = (dim,)
            layout.mixing(f"{block}.dwconv", dim, 1, 7, bias=True)
            layout.norm(f"{block}.norm", dim)
            layout.affine(f"{block}.pwconv1", 4 * dim, dim, bias=4 * dim)
            layout.affine(f"{block}.pwconv2", dim, 4 * dim, bias=dim)
    layout.norm("norm", dims[-1])
    layout.affine("head", 1000, dims[-1], bias=1000)


def resnet50(layout: Layout) -> None:
    layout.affine("conv1", 64, 3, 7, 7)
    layout.batch_norm("bn1", 64)
    width_in = 64
    for stage, (depth, width) in enumerate(zip(RESNET_DEPTHS, RESNET_DIMS, strict=True), 1):
        for b in range(depth):
            block = f"layer{stage}.{b}"
            layout.affine(f"{block}.conv1", width, width_in, 1, 1)
            layout.mixing(f"{block}.conv2", width, width, 3, bias=False)
            layout.affine(f"{block}.conv3", 4 * width, width, 1, 1)
            for number, channels in enumerate((width, width, 4 * width), 1):
                layout.batch_norm(f"{block}.bn{number}", channels)
            if b == 0:
                layout.affine(f"{block}.downsample.0", 4 * width, width_in, 1, 1)
                layout.batch_norm(f"{block}.downsample.1", 4 * width)
            width_in = 4 * width
    layout.affine("fc", 1000, 2048, bias=1000)


def metaformer(layout: Layout, attention_from: int) -> None:
    """`attention_from`: the first stage with attention instead of separable convolutions (4: none)."""
    dims = METAFORMER_DIMS
    for i, dim in enumerate(dims):
        side, before = (3, dims[i - 1]) if i else (7, 3)
        layout.affine(f"downsample_layers.{i}.conv", dim, before, side, side, bias=dim)
        layout.affine(f"downsample_layers.{i}.{'pre' if i else 'post'}_norm", before if i else dim)
    for stage, (depth, dim) in enumerate(zip(METAFORMER_DEPTHS, dims, strict=True)):
        for b in range(depth):
            block = f"stages.{stage}.{b}"
            layout.affine(f"{block}.norm1", dim)
            layout.affine(f"{block}.norm2", dim)
            mixer = f"{block}.token_mixer"
            if stage < attention_from:
                layout.affine(f"{mixer}.pwconv1", 2 * dim, dim)
                layout.affine(f"{mixer}.act1", 1, bias=1)
                layout.mixing(f"{mixer}.dwconv", 2 * dim, 1, 7, bias=False)
                layout.affine(f"{mixer}.pwconv2", dim, 2 * dim)
                layout[f"{mixer}.act1.scale"] = layout.pop(f"{mixer}.act1.weight")
            else:
                layout.affine(f"{mixer}.qkv", 3 * dim, dim)
                layout.affine(f"{mixer}.proj", dim, dim)
            layout.affine(f"{block}.mlp.fc1", 4 * dim, dim)
            layout |= {f"{block}.mlp.act.scale": (1,), f"{block}.mlp.act.bias": (1,)}
            layout.affine(f"{block}.mlp.fc2", dim, 4 * dim)
            if stage >= 2:
                layout |= {f"{block}.res_scale1.scale": (dim,), f"{block}.res_scale2.scale": (dim,)}
    layout.norm("norm", dims[-1])
    layout.affine("head.fc1", 4 * dims[-1], dims[-1], bias=4 * dims[-1])
    layout.norm("head.norm", 4 * dims[-1])
    layout.affine("head.fc2", 1000, 4 * dims[-1], bias=1000)


def _mobile_one(layout: Layout, name: str, channels: int, per_group: int, side: int, *, skip: int | None) -> None:
    """A block of parallel branches: convolution, 1x1 convolution where the first is wider, identity."""
    branches = {"rbr_conv.0": side} | ({"rbr_scale": 1} if side > 1 else {})
    for branch, branch_side in branches.items():
        layout.affine(f"{name}.{branch}.conv", channels, per_group, branch_side, branch_side)
        layout.batch_norm(f"{name}.{branch}.bn", channels)
    if skip:
        layout.batch_norm(f"{name}.rbr_skip", skip)


def _conv_ffn(layout: Layout, name: str, dim: int) -> None:
    layout.mixing(f"{name}.conv.conv", dim, 1, 7, bias=False)
    layout.batch_norm(f"{name}.conv.bn", dim)
    layout.affine(f"{name}.fc1", 4 * dim, dim, 1, 1, bias=4 * dim)
    layout.affine(f"{name}.fc2", dim, 4 * dim, 1, 1, bias=dim)


def fastvit(layout: Layout, depths: tuple[int, ...]) -> None:
    dims = FASTVIT_DIMS
    _mobile_one(layout, "patch_embed.0", dims[0], 3, 3, skip=None)
    _mobile_one(layout, "patch_embed.1", dims[0], 1, 3, skip=None)
    _mobile_one(layout, "patch_embed.2", dims[0], dims[0], 1, skip=dims[0])
    for stage, place in enumerate((0, 2, 4)):
        dim, wider = dims[stage], dims[stage + 1]
        for b in range(depths[stage]):
            block = f"network.{place}.{b}"
            layout.batch_norm(f"{block}.token_mixer.norm.rbr_skip", dim)
            _mobile_one(layout, f"{block}.token_mixer.mixer", dim, 1, 3, skip=dim)
            layout |= {f"{block}.token_mixer.layer_scale": (dim, 1, 1), f"{block}.layer_scale": (dim, 1, 1)}
            _conv_ffn(layout, f"{block}.convffn", dim)
        for branch, side in (("lkb_origin", 7), ("small_conv", 3)):
            layout.affine(f"network.{place + 1}.proj.0.{branch}.conv", wider, 1, side, side)
            layout.batch_norm(f"network.{place + 1}.proj.0.{branch}.bn", wider)
        _mobile_one(layout, f"network.{place + 1}.proj.1", wider, wider, 1, skip=wider)
    layout.mixing("network.6.pe", dims[3], 1, 7, bias=True)
    for b in range(depths[3]):
        block = f"network.7.{b}"
        layout.batch_norm(f"{block}.norm", dims[3])
        layout.affine(f"{block}.token_mixer.qkv", 3 * dims[3], dims[3])
        layout.affine(f"{block}.token_mixer.proj", dims[3], dims[3], bias=dims[3])
        layout |= {f"{block}.layer_scale_1": (dims[3], 1, 1), f"{block}.layer_scale_2": (dims[3], 1, 1)}
        _conv_ffn(layout, f"{block}.convffn", dims[3])
    last = 2 * dims[3]
    _mobile_one(layout, "conv_exp", last, 1, 3, skip=None)
    layout.affine("conv_exp.se.reduce", last // 16, last, 1, 1, bias=last // 16)
    layout.affine("conv_exp.se.expand", last, last // 16, 1, 1, bias=last)
    layout.affine("head", 1000, last, bias=1000)


def original_layout(name: str) -> Layout:
    """Names and shapes of the original file of a zoo model, plain or DCLS."""
    spec = ZOO[name].dcls
    layout = Layout(spec.kernel_count if spec else None, spec is not None and spec.interpolation == "gauss")
    plain = name.partition("_dcls")[0]
    if plain in CONVNEXT:
        convnext(layout, *CONVNEXT[plain])
    elif plain in FASTVIT_DEPTHS:
        fastvit(layout, FASTVIT_DEPTHS[plain])
    elif plain == "resnet50":
        resnet50(layout)
    else:
        metaformer(layout, attention_from=2 if plain == "caformer_s18" else 4)
    return layout


def empty_state(layout: Layout) -> dict[str, torch.Tensor]:
    """Tensors of the right shapes that take no room: each is one number, expanded."""
    return {
        name: torch.zeros((), dtype=torch.long if name.endswith("num_batches_tracked") else torch.float).expand(shape)
        for name, shape in layout.items()
    }


def random_state(layout: Layout, seed: int = 0) -> dict[str, torch.Tensor]:
    """Seeded weights of ordinary size, every scale and statistic away from 0 and 1; one P (and SIG) a stage."""
    generator = torch.Generator().manual_seed(seed)
    shared: dict[tuple[str, tuple[int, ...]], torch.Tensor] = {}
    state = {}
    for name, shape in layout.items():
        noise = torch.randn(shape, generator=generator)
        last = name.rpartition(".")[2]
        if last == "num_batches_tracked":
            state[name] = torch.tensor(7)
        elif last in ("P", "SIG"):  # a stage is what has one width
            state[name] = shared.setdefault((last, shape), 2 * noise if last == "P" else 0.3 + 0.1 * noise)
        elif last == "running_var":
            state[name] = 1 + 0.2 * noise.tanh()
        elif last == "weight" and len(shape) > 1:
            state[name] = noise / noise[0].numel() ** 0.5
        elif last in ("weight", "gamma", "scale") or "layer_scale" in last:
            state[name] = 0.8 + 0.1 * noise
        else:
            state[name] = 0.1 * noise
    return state


def write_published(path: Path, name: str, state: dict[str, torch.Tensor]) -> Path:
    """The file the authors would have made of a state: its key, the run's arguments, other weights beside it."""
    published = ZOO[name].published
    assert published is not None
    arguments = argparse.Namespace(lr=4e-3, output_dir=Path("/runs/x"), epochs=300)
    other = {} if published.key == "model" else {"state_dict": {"wrong": torch.zeros(1)}, "arch": "x", "metric": 80.1}
    torch.save({published.key: state, "args": arguments, "epoch": 299, **other}, path)
    return path
