"""Cascading randomisation, and the structural similarity it uses."""

import numpy as np
import pytest
import timm
import torch
from scipy.ndimage import gaussian_filter

from common.errors import UserError
from evaluate.explanation import explain
from evaluate.metrics import cascading_randomisation
from evaluate.metrics.sanity import default_stages, randomise, ssim


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model("resnet10t", num_classes=10).eval()


def test_stages_run_from_the_logits_down(model):
    stages = default_stages(model)
    assert stages[0] == "fc" and stages[-1].startswith("conv1") and stages.index("layer4") < stages.index("layer1")
    covered = {id(p) for s in stages for p in model.get_submodule(s).parameters()}
    assert covered == {id(p) for p in model.parameters()}


def test_maps_that_depend_on_the_network_change_and_others_do_not(model):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def maps(net):
        return dict(explain(net, images, [1, 2], ["layer_cam", "input_gradient", "centre"], form="raw"))

    rows = cascading_randomisation(model, maps, ["fc", "layer4", "conv1"])
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    by = {(r["explainer"], r["stage"]): r for r in rows}
    assert len(rows) == 9 and by["centre", "conv1"]["depth"] == 3
    torch.testing.assert_close(by["centre", "conv1"]["spearman"], torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(by["centre", "conv1"]["ssim"], torch.ones(2, dtype=torch.float64))
    assert (by["input_gradient", "conv1"]["spearman"].abs() < 0.6).all()
    assert {"spearman", "spearman_abs", "ssim"} <= set(rows[0])
    with pytest.raises(UserError, match="no layer 'layer9'"):
        cascading_randomisation(model, maps, ["layer9"])


def test_randomise_keeps_the_scale_and_changes_every_parameter(model):
    twin = timm.create_model("resnet10t", num_classes=10)
    twin.load_state_dict(model.state_dict())
    randomise(twin.layer3, torch.Generator().manual_seed(0))
    for (name, new), old in zip(twin.layer3.named_parameters(), model.layer3.parameters()):
        if old.std() > 0:
            assert not torch.equal(new, old), name
        if old.numel() > 1000:
            torch.testing.assert_close(new.std(), old.std(), rtol=0.1, atol=0)
    assert torch.equal(twin.layer2[0].conv1.weight, model.layer2[0].conv1.weight)


def test_ssim_equals_its_definition_with_scipys_filter():
    generator = np.random.default_rng(0)
    a, b = generator.random((30, 25)), generator.random((30, 25))

    def local(values):
        return gaussian_filter(values, 1.5, truncate=3.5)

    ma, mb = local(a), local(b)
    va, vb, cov = local(a * a) - ma**2, local(b * b) - mb**2, local(a * b) - ma * mb
    whole = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    found = ssim(torch.tensor(a)[None], torch.tensor(b)[None])
    assert found.item() == pytest.approx(whole[5:-5, 5:-5].mean(), rel=1e-6)
    torch.testing.assert_close(ssim(torch.tensor(a)[None], torch.tensor(a)[None]).item(), 1.0)
