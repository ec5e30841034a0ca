"""Layouts are told from the model and the shapes."""

import pytest
import torch
from torch import nn

from common.errors import UserError
from evaluate.network.layout import find_layout

IMAGES = torch.zeros(2, 3, 64, 64)
PLAIN = nn.Identity()


class Declared(nn.Module):
    def __init__(self, output_fmt="NCHW", prefix=0):
        super().__init__()
        self.output_fmt, self.num_prefix_tokens = output_fmt, prefix


@pytest.mark.parametrize(
    ("model", "shape", "layer", "kind", "grid", "prefix"),
    [
        (PLAIN, (2, 96, 8, 8), None, "NCHW", (8, 8), 0),
        (PLAIN, (2, 8, 8, 96), None, "NHWC", (8, 8), 0),
        (PLAIN, (2, 8, 8, 8), None, "NCHW", (8, 8), 0),
        (Declared("NHWC"), (2, 8, 8, 8), None, "NHWC", (8, 8), 0),
        (PLAIN, (2, 8, 8, 8), nn.Linear(1, 8), "NHWC", (8, 8), 0),
        (Declared("NHWC"), (2, 8, 8, 8), nn.Conv2d(1, 8, 1), "NCHW", (8, 8), 0),
        (PLAIN, (2, 16, 40), None, "tokens", (4, 4), 0),
        (Declared(prefix=1), (2, 17, 40), None, "tokens", (4, 4), 1),
        (Declared(prefix=5), (2, 21, 40), None, "tokens", (4, 4), 5),
        (Declared(prefix=1), (2, 16, 40), None, "tokens", (4, 4), 0),
    ],
)
def test_kinds(model, shape, layer, kind, grid, prefix):
    found = find_layout(model, torch.zeros(shape), IMAGES, layer)
    assert (found.kind, found.grid, found.prefix) == (kind, grid, prefix)


def test_oblong_images():
    images = torch.zeros(1, 3, 64, 96)
    assert find_layout(PLAIN, torch.zeros(1, 4, 6, 4), images).kind == "NHWC"
    assert find_layout(PLAIN, torch.zeros(1, 7, 4, 6), images).kind == "NCHW"
    assert find_layout(PLAIN, torch.zeros(1, 24, 7), images).grid == (4, 6)
    assert find_layout(Declared(prefix=1), torch.zeros(1, 25, 7), images).grid == (4, 6)


@pytest.mark.parametrize("shape", [(2, 10), (2, 7, 40), (6, 8, 8, 96), (2, 5, 9, 13)])
def test_an_output_without_a_map_is_refused(shape):
    with pytest.raises(UserError, match=r"no map.*name a layer"):
        find_layout(PLAIN, torch.zeros(shape), IMAGES)


def test_to_map_puts_every_value_in_its_place():
    values = torch.arange(2 * 16 * 3, dtype=torch.float).view(2, 4, 4, 3)
    expected = values.permute(0, 3, 1, 2)
    assert torch.equal(find_layout(PLAIN, values, IMAGES).to_map(values), expected)
    tokens = torch.cat([torch.full((2, 2, 3), -1.0), values.flatten(1, 2)], 1)
    assert torch.equal(find_layout(Declared(prefix=2), tokens, IMAGES).to_map(tokens), expected)
