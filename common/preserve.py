"""Give DCLS layers the function of the plain convolutions they replace: positions, widths and weights.

The taps of a k x k kernel lie on pixels of the dilated plane, with the kernel's centre on the plane's. As many elements
as taps: one on each tap, and the kernel is the same. More: the others lie on the free pixels nearest the centre, with
weights that are zero or nearly so. Fewer: taps must be left out, or an element must stand between two taps that are
neighbours, which it covers in the ratio of its distances. That is exact for two taps of one sign in one layer; where
layers share positions, it costs the smallest eigenvalue of the pair's 2x2 Gram matrix over the layers. Each kernel by
itself takes whichever of these steps costs least, until the number of elements is right; the kernels of layers that
share positions count alike, each divided by its norm. Weights are the least squares solution in float64 of the bumps
as they are, normalised, with their skirts.

Positions must be able to move. The slope of a `v1` bump at a whole position is 0, and so is that of |SIG| at 0: there
positions start a hair nearer to the plane's middle and widths a hair above the narrowest. A hair is what still makes a
difference to float32, and no more: 4e-6 px in a plane of 17x17, 2e-7 px of width. What leans over to a neighbour is
taken back there. The bumps of `gauss` are at least 0.27 px wide and have skirts, a thousandth of the element, which
cannot be taken back outside the taps. So with an element on each tap the outer ones lean inwards by a quarter of a
pixel, which leaves a fiftieth of that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.dcls import MIN_SIGMA, DclsConv2d, construct_kernel, row_axis

_LEAN = 0.25  # px; weights stay easy to solve for up to a half
_TOGETHER = 2**24  # values of bumps that are computed at once


def covered(conv: nn.Conv2d) -> tuple[int, int]:
    """Rows and columns that a convolution's kernel covers, the gaps of a dilated one included."""
    rows, columns = (d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size))
    return rows, columns


def in_plane(taps: Tensor, conv: nn.Conv2d, size: tuple[int, int]) -> Tensor:
    """Taps (..., k0, k1) of a convolution in the plane (..., K0, K1), pixel c // 2 of the c covered on pixel K // 2.

    Raises:
        ValueError: they do not fit.
    """
    reach = covered(conv)
    if reach[0] > size[0] or reach[1] > size[1]:
        raise ValueError(
            f"its kernel covers {reach[0]}x{reach[1]} pixels, too many to preserve it in {size[0]}x{size[1]}"
        )
    plane = taps.new_zeros(*taps.shape[:-2], *size)
    rows, columns = (slice(K // 2 - c // 2, K // 2 - c // 2 + c, d) for K, c, d in zip(size, reach, conv.dilation))
    plane[..., rows, columns] = taps
    return plane


@torch.no_grad()
def preserve(layers: Sequence[DclsConv2d], convs: Sequence[nn.Conv2d]) -> list[float]:
    """Give layers that share their positions, or a single one, the functions of convolutions.

    Args:
        layers: DCLS layers; their P, SIG, weight and bias are set in place.
        convs: for each layer, the convolution whose place it takes.

    Returns:
        For each layer, how far its kernels are from the convolution's: ||difference|| / ||kernels||.

    Raises:
        ValueError: a kernel does not fit into the plane.
    """
    with torch.device("cpu"):  # whatever the default; not every device has float64
        return _preserve(layers, convs)


def _preserve(layers: Sequence[DclsConv2d], convs: Sequence[nn.Conv2d]) -> list[float]:
    first = layers[0]
    size, count = first.dilated_kernel_size, first.kernel_count
    assert count <= size[0] * size[1]
    planes = [in_plane(conv.weight.detach().cpu().double(), conv, size) for conv in convs]
    taps = torch.stack([in_plane(torch.ones(conv.kernel_size), conv, size) for conv in convs]).sum(0) > 0
    values = torch.stack([plane[..., taps].flatten(0, 1) for plane in planes])  # (layers, N, taps)
    pixels = taps.nonzero()
    one_for_all = count >= len(pixels)
    if one_for_all:
        lean = _LEAN * _inwards(taps, pixels) if first.interpolation == "gauss" else torch.zeros_like(pixels)
        places = torch.cat((pixels + lean, _nearest_free(taps, count - len(pixels))))[None].double()
    else:
        places = _fewer(values, pixels, count, first.interpolation)
    _place(first, places - torch.tensor(size) // 2)
    weights = _least_squares(first, values, taps, one_for_all)
    errors = []
    for layer, conv, plane, weight in zip(layers, convs, planes, weights):
        layer.weight.copy_(weight.view_as(layer.weight))
        if layer.bias is not None and conv.bias is not None:
            layer.bias.copy_(conv.bias)
        errors.append(float((layer.kernel().cpu() - plane).norm() / plane.norm().clamp_min(1e-30)))
    return errors


def _nearest_free(taps: Tensor, count: int) -> Tensor:
    """The `count` pixels (row, column) nearest the centre of the plane (K0, K1) that are no taps."""
    free = (~taps).nonzero()
    distance = (free - torch.tensor(taps.shape) // 2).square().sum(1)
    return free[distance.argsort(stable=True)[:count]]


def _inwards(taps: Tensor, pixels: Tensor) -> Tensor:
    """Row and column (T, 2) of the way from each tap to its neighbour, on an axis where it has one on one side only."""
    taps = F.pad(taps.int(), (1, 1, 1, 1))
    row, column = (pixels + 1).unbind(1)
    down, up = taps[row + 1, column], taps[row - 1, column]
    right, left = taps[row, column + 1], taps[row, column - 1]
    return torch.stack((down - up, right - left), 1)


def _place(layer: DclsConv2d, places: Tensor) -> None:
    """Set P, and the narrowest SIG, from row and column of elements (N or 1, k, 2) in pixels from the centre."""
    size = torch.tensor(layer.dilated_kernel_size)
    epsilon = torch.finfo(layer.P.dtype).eps
    if layer.interpolation == "v1":
        limit = size // 2
        hair = epsilon * 2 ** math.ceil(math.log2(size.max()))  # exact beside every whole number of pixels
        inward = torch.where(places > (size - 1) / 2 - limit, -hair, hair)
        places = (places + inward).clamp(-limit, limit)
    positions = places.movedim(-1, 0)
    if row_axis(layer.interpolation) == 1:
        positions = positions.flip(0)
    kernels = layer.weight.shape[:2].numel()
    layer.P.copy_(positions.expand(-1, kernels, -1).reshape(layer.P.shape))
    if layer.SIG is not None:
        layer.SIG.fill_(2 * epsilon)  # so that 1 + SIG > 1


def _least_squares(layer: DclsConv2d, values: Tensor, taps: Tensor, one_for_all: bool) -> Tensor:
    """Weights (L, N, k) whose kernels are nearest to the values (L, N, T) at the taps and 0 elsewhere."""
    shape = (*values.shape[:2], layer.kernel_count)
    # Each element a kernel of its own: (2, N, k, 1).
    positions, sigma = (
        None if parameter is None else parameter.detach().cpu().double().flatten(1, 2)[..., None]
        for parameter in (layer.P, layer.SIG)
    )
    assert positions is not None
    if one_for_all:
        values = values.flatten(0, 1)[:, None]
    together = max(1, _TOGETHER // (layer.kernel_count * taps.numel()))
    found = []
    for start in range(0, values.shape[1], together):
        part = slice(start, min(start + together, values.shape[1]))
        widths = None if sigma is None else sigma[:, part]
        ones = torch.ones_like(positions[0, part])
        bumps = construct_kernel(ones, positions[:, part], widths, layer.dilated_kernel_size, layer.interpolation)
        gram = bumps.flatten(2) @ bumps.flatten(2).mT
        right = bumps[..., taps] @ values[:, part].permute(1, 2, 0)
        found.append(torch.linalg.solve(gram, right).permute(2, 0, 1))
    return torch.cat(found, 1).reshape(shape)


def _fewer(values: Tensor, pixels: Tensor, count: int, interpolation: str) -> Tensor:
    """Places (N, count, 2) of fewer elements than taps.

    Args:
        values: (L, N, T) at the taps, of the kernels of L layers that share their positions.
        pixels: (T, 2) row and column of the taps.
        count: elements of a kernel.
        interpolation: of the layers.
    """
    values = values / values.norm(dim=2, keepdim=True).clamp_min(1e-30)
    apart = (pixels[:, None] - pixels).abs().sum(-1)
    first, second = (apart.triu() == 1).nonzero(as_tuple=True)  # neighbours; empty where the taps are dilated
    energy = values.square().sum(0)  # (N, T)
    a, b = energy[:, first], energy[:, second]
    c = (values[..., first] * values[..., second]).sum(0)  # the Gram matrix of a pair is [[a, c], [c, b]]
    kept = (a + b) / 2 + ((a - b).square() / 4 + c.square()).sqrt()  # its largest eigenvalue
    lost = a + b - kept
    lost = torch.where(c > 0, torch.where(lost < 1e-12, 0, lost), torch.inf)  # of ties, the first in order of rows
    alive, pair = _merged(energy, lost, kept, first, second, len(pixels) - count)
    # The eigenvector says how much of an element goes to which tap of its pair.
    share = ((kept - a) / c.clamp_min(1e-30)).clamp_min(1e-30)
    if interpolation == "gauss":  # the ratio of two pixels at distances f and 1 - f is exp((f - 1/2) / width^2)
        fraction = (0.5 + MIN_SIGMA["gauss"] ** 2 * share.log()).clamp(0, 1)
    else:
        fraction = share / (1 + share)
    places = pixels.double().expand(len(energy), -1, -1).clone()
    kernel, tap = (alive & (pair >= 0)).nonzero(as_tuple=True)
    edge = pair[kernel, tap]
    places[kernel, tap] += fraction[kernel, edge, None] * (pixels[second] - pixels[first])[edge]
    return places[alive].view(len(energy), count, 2)


def _merged(
    energy: Tensor, lost: Tensor, kept: Tensor, first: Tensor, second: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Leave out a tap or an element, or join two taps, whichever costs least, `steps` times for each kernel.

    Args:
        energy: (N, T) what leaving a tap out costs.
        lost: (N, E) what one element for a pair of taps costs; infinite where that cannot be.
        kept: (N, E) what leaving out that element costs then.
        first: (E) the pair's first tap, under which its element goes on.
        second: (E) its second tap.
        steps: taps less elements.

    Returns:
        The taps that still have an element (N, T), and the pair that each stands for or -1 (N, T).
    """
    taps = torch.eye(energy.shape[1], dtype=torch.bool)
    involved = torch.cat((taps, taps[first] | taps[second]))  # (steps to choose from, T)
    goes_on = torch.cat((torch.zeros_like(taps), taps[first]))
    alive, pair = torch.ones_like(energy, dtype=torch.bool), torch.full_like(energy, -1, dtype=torch.long)
    for _ in range(steps):
        choice = torch.cat((energy, lost), 1).argmin(1, keepdim=True)
        gone, stays = involved[choice[:, 0]], goes_on[choice[:, 0]]
        rest = torch.cat((energy, kept), 1).gather(1, choice)
        energy = torch.where(stays, rest, energy.masked_fill(gone, torch.inf))
        lost = lost.masked_fill(gone[:, first] | gone[:, second], torch.inf)
        pair = torch.where(stays, choice - len(taps), pair)
        alive = alive & ~gone | stays
    return alive, pair
