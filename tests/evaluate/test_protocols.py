"""The two frames of a human map, and the resize of saliency maps."""

import pytest
import torch
import torchvision.transforms.v2 as v2

from evaluate.maps.arithmetic import resize_saliency
from evaluate.maps.frames import frame_human_map


def test_paper_leaves_the_human_map_alone():
    human = torch.rand(2, 224, 224)
    assert torch.equal(frame_human_map(human, 0.875, "paper"), human)


def test_aligned_is_the_central_part_enlarged():
    human = torch.rand(1, 224, 224)
    human = v2.functional.gaussian_blur(human, 21, 6.0)  # human maps are smooth
    found = frame_human_map(human, 0.875, "aligned")
    central = human[:, 14:210, 14:210]  # 196 = 0.875 * 224
    expected = torch.nn.functional.interpolate(central[:, None], (224, 224), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(found[:, 2:-2, 2:-2], expected[:, 2:-2, 2:-2], atol=1e-4, rtol=0)


def test_aligned_is_the_identity_when_the_model_sees_everything():
    human = torch.rand(1, 224, 224)
    assert torch.equal(frame_human_map(human, 1.0, "aligned"), human)


def test_a_mark_in_the_picture_and_in_the_human_map_coincide_after_alignment():
    """The same mark through the model's geometry and through the alignment lands on the same place."""
    from PIL import Image

    from common.models.transform import ModelTransform

    transform = ModelTransform(256, 224)
    frame = torch.zeros(224, 224)
    frame[60:70, 150:160] = 255
    image = Image.fromarray(frame.byte().numpy()).convert("RGB")
    seen = transform.geometry()(image)[0].float()
    aligned = frame_human_map(frame[None], transform.crop / transform.resize, "aligned")[0]

    def centre(x):
        rows, columns = torch.meshgrid(torch.arange(224.0), torch.arange(224.0), indexing="ij")
        return torch.stack(((x * rows).sum(), (x * columns).sum())) / x.sum()

    assert (centre(seen) - centre(aligned)).abs().max() < 0.5


@pytest.mark.parametrize("side", [7, 8])
def test_resize_equals_torchvisions_resize_on_tensors(side):
    saliency = torch.rand(3, side, side)
    expected = v2.Resize((224, 224))(saliency[:, None])[:, 0]
    torch.testing.assert_close(resize_saliency(saliency, 224), expected, atol=1e-6, rtol=1e-6)


def test_resize_gives_float32_contiguous_maps_whatever_comes_in():
    found = resize_saliency(torch.rand(2, 7, 7).to(torch.bfloat16).transpose(1, 2), 224)
    assert found.dtype == torch.float32 and found.is_contiguous()


@pytest.mark.parametrize("size", [4, 7, 8, 14, 256])
@pytest.mark.parametrize("to", [(64, 64), (224, 224), (100, 37)])
def test_a_constant_map_stays_constant_and_its_neighbours_are_torchs(size, to):
    """0.3 resized from 8 to 64 pixels is two values, a rank correlation of nothing."""
    maps = torch.rand(7, size, size, generator=torch.Generator().manual_seed(0))
    values = [0.3, 0.1, 1 / 3, 0.7, -2.6]
    for place, value in enumerate(values):
        maps[place] = value
    found = resize_saliency(maps, to)
    expected = torch.nn.functional.interpolate(maps[:, None], to, mode="bilinear", align_corners=False)[:, 0]
    assert found.shape == (7, *to) and torch.equal(found[5:], expected[5:])
    for place in range(5):
        assert (found[place] == maps[place, 0, 0]).all(), values[place]


def test_a_constant_human_map_stays_constant_in_the_models_view():
    human = torch.rand(4, 224, 224, generator=torch.Generator().manual_seed(0))
    human[:3] = torch.tensor([0.3, 0.1, 255 / 7])[:, None, None]
    framed = frame_human_map(human, 0.875, "aligned")
    assert all(len(framed[place].unique()) == 1 for place in range(3)) and len(framed[3].unique()) > 1000
