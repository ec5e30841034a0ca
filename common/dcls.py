"""Dilated convolution with learnable spacings (DCLS): the layer and the construction of its dense kernel.

Needs torch and the `dcls` package only, so the file can be taken into other code as it is. Parameters,
their names, shapes and initial values are those of `DCLS.construct.modules.Dcls2d` (dcls 0.1.1); the
kernel construction is our own. A kernel is a sum of k bumps, and every bump is a product of a function
of the row and a function of the column, so for each pair of channels the kernel is one matrix product
(K0 x k) @ (k x K1) instead of a sum over tensors of shape (K0, K1, 2, Cout, Cin/g, k).

Sources: Khalfaoui-Hassani et al., arXiv 2112.03740 (bilinear interpolation), arXiv 2306.00817 (`max`, `gauss`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from DCLS.construct.modules import _DclsNd
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

INTERPOLATIONS = ("v0", "v1", "max", "gauss")
_NORMALISATION_EPS = 1e-7
_MIN_SIGMA = {"max": 1.0, "gauss": 0.27}  # added to |SIG|: the narrowest bump, in pixels
# The package starts `max` at SIG = 0, where d|SIG|/dSIG = 0, and so never learns it.
_INITIAL_SIG = {"max": 0.01, "gauss": 0.23}


def row_axis(interpolation: str) -> int:
    """Index along dim 0 of P (and SIG) that holds the row: 0 for `v0`, 1 for `v1`, `max` and `gauss`.

    The convention is that of dcls >= 0.0.6 and of every published v1, max and gauss checkpoint.
    """
    return 0 if interpolation == "v0" else 1


def _bump(position: Tensor, sigma: Tensor | None, size: int, interpolation: str) -> Tensor:
    """One axis of the bumps: (..., k) positions relative to the centre -> (..., k, size) values at the pixels."""
    pixel = torch.arange(size, device=position.device, dtype=position.dtype)
    centre = (position + size // 2).unsqueeze(-1)
    if interpolation == "v0":
        # Not relu(1 - |distance|): at an integer position the gradient is one-sided, as in the package.
        lower = centre.detach().floor()
        fraction = centre - lower
        return torch.where(pixel == lower, 1 - fraction, 0) + torch.where(pixel == lower + 1, fraction, 0)
    if interpolation == "v1":
        return (1 - (pixel - centre).abs()).relu()
    assert sigma is not None
    width = (sigma.abs() + _MIN_SIGMA[interpolation]).unsqueeze(-1)
    if interpolation == "max":
        return (width - (pixel - centre).abs()).relu()
    return torch.exp(-0.5 * ((pixel - centre) / width).square())


def construct_kernel(
    weight: Tensor,
    positions: Tensor,
    sigma: Tensor | None,
    dilated_kernel_size: tuple[int, int],
    interpolation: str,
) -> Tensor:
    """Dense kernel of a DCLS layer.

    Args:
        weight: (Cout, Cin/g, k) weights of the k elements.
        positions: P, (2, Cout, Cin/g, k), in pixels from the kernel's centre; see `row_axis`.
        sigma: SIG, (2, Cout, Cin/g, k), in pixels, for `max` and `gauss`; None otherwise.
        dilated_kernel_size: (rows, columns) of the dense kernel.
        interpolation: `v0`, `v1` (bilinear), `max` (triangle of learnt width) or `gauss`.

    Returns:
        (Cout, Cin/g, rows, columns), in float32, or float64 if the parameters are float64, whatever
        autocast says: half precision misplaces the elements.
    """
    with torch.autocast(weight.device.type, enabled=False):
        dtype = torch.promote_types(positions.dtype, torch.float32)
        weight, positions = weight.to(dtype), positions.to(dtype)
        row = row_axis(interpolation)
        sigma_row, sigma_column = (None, None) if sigma is None else (sigma[row].to(dtype), sigma[1 - row].to(dtype))
        rows = _bump(positions[row], sigma_row, dilated_kernel_size[0], interpolation)
        columns = _bump(positions[1 - row], sigma_column, dilated_kernel_size[1], interpolation)
        if interpolation != "v0":
            weight = weight / (rows.sum(-1) * columns.sum(-1) + _NORMALISATION_EPS)
        # (Cout, Cin/g, rows, k) @ (Cout, Cin/g, k, columns)
        return (rows * weight.unsqueeze(-1)).transpose(-1, -2) @ columns


class DclsConv2d(_DclsNd):
    """2-D convolution whose k kernel elements have learnable positions; takes the place of `torch.nn.Conv2d`.

    State dicts are interchangeable with `DCLS.construct.modules.Dcls2d`: `weight` (Cout, Cin/g, k),
    `P` (2, Cout, Cin/g, k), `SIG` (2, Cout, Cin/g, k) for `max` and `gauss` only, `bias` (Cout) or none.
    Unlike the package, non-square kernels are right for every interpolation and `max` learns its widths.

    Args:
        in_channels: Cin.
        out_channels: Cout.
        kernel_count: k, the number of elements.
        stride: as in `torch.nn.Conv2d`.
        padding: as in `torch.nn.Conv2d`; `dilated_kernel_size // 2` keeps the size of the map.
        dilated_kernel_size: rows and columns of the plane in which the elements move.
        groups: as in `torch.nn.Conv2d`.
        bias: as in `torch.nn.Conv2d`.
        padding_mode: `zeros`, `reflect`, `replicate` or `circular`.
        interpolation: `v0`, `v1`, `max` or `gauss` (`version` in the package).

    Shape: (B, Cin, H, W) -> (B, Cout, H', W') as a convolution with a kernel of `dilated_kernel_size`.

    Raises:
        ValueError: unknown interpolation or padding mode, or channels that groups do not divide.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilated_kernel_size: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        interpolation: str = "gauss",
    ) -> None:
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation {interpolation!r} is unknown; take one of {', '.join(INTERPOLATIONS)}")
        super().__init__(
            in_channels,
            out_channels,
            kernel_count,
            _pair(stride),
            _pair(padding),
            _pair(dilated_kernel_size),
            False,  # transposed
            _pair(0),  # output_padding
            groups,
            bias,
            padding_mode,
            interpolation,
        )

    @property
    def interpolation(self) -> str:
        """`v0`, `v1`, `max` or `gauss`."""
        return self.version

    def reset_parameters(self) -> None:
        """Initial values of the package: weight Kaiming-uniform, P normal(0, 0.5 px) clamped, SIG constant."""
        super().reset_parameters()
        if self.SIG is not None:
            nn.init.constant_(self.SIG, _INITIAL_SIG[self.version])
        self.clamp_parameters()

    @torch.no_grad()
    def clamp_parameters(self) -> None:
        """Bring every position back to within +-(K // 2) of the centre, on its own axis."""
        row = row_axis(self.version)
        for axis, size in ((row, self.dilated_kernel_size[0]), (1 - row, self.dilated_kernel_size[1])):
            self.P[axis].clamp_(-(size // 2), size // 2)

    def kernel(self) -> Tensor:
        """Dense kernel (Cout, Cin/g, K0, K1) in float32 or float64, with its graph to weight, P and SIG."""
        return construct_kernel(self.weight, self.P, self.SIG, self.dilated_kernel_size, self.version)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, Cin, H, W) with the kernel that the present positions make."""
        kernel = self.kernel().to(self.weight.dtype)
        if self.padding_mode == "zeros":
            return F.conv2d(x, kernel, self.bias, self.stride, self.padding, 1, self.groups)
        x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        return F.conv2d(x, kernel, self.bias, self.stride, 0, 1, self.groups)

    @torch.no_grad()
    def fold(self) -> nn.Conv2d:
        """The `torch.nn.Conv2d` that computes the same function, on the same device and in the same type."""
        conv = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.dilated_kernel_size,
            self.stride,
            self.padding,
            1,
            self.groups,
            self.bias is not None,
            self.padding_mode,
            self.weight.device,
            self.weight.dtype,
        )
        conv.weight.copy_(self.kernel())
        if self.bias is not None:
            assert conv.bias is not None
            conv.bias.copy_(self.bias)
        return conv.train(self.training)

    def extra_repr(self) -> str:
        """One line with the layer's shape."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_count={self.kernel_count}, "
            f"dilated_kernel_size={self.dilated_kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"groups={self.groups}, bias={self.bias is not None}, interpolation={self.version}"
        )
