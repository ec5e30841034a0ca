"""Cascading randomisation, and the structural similarity it uses."""

import copy
import json
import types
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr

from common.errors import UserError
from evaluate.cli.main import main
from evaluate.explainers.explain import explain
from evaluate.metrics.case import Case
from evaluate.metrics.registry import measure_case
from evaluate.metrics.sanity import OWN, default_stages, randomise, reinitialise, ssim

DEMO = Path(__file__).parents[3] / "checkpoints" / "demo"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model("resnet10t", num_classes=10).eval()


def test_stages_run_from_the_logits_down(model):
    stages = default_stages(model)
    assert stages[0] == "fc" and stages[-1].startswith("conv1") and stages.index("layer4") < stages.index("layer1")
    covered = {id(p) for s in stages for p in model.get_submodule(s).parameters()}
    assert covered == {id(p) for p in model.parameters()}


def test_what_belongs_to_no_part_of_the_network_is_randomised_last():
    """A class-token transformer's class token and position embedding."""
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=10, depth=2).eval()
    stages = default_stages(vit)
    assert stages == ["head", "norm", "blocks.1", "blocks.0", "patch_embed", OWN]
    before = {name: value.clone() for name, value in vit.named_parameters()}
    randomise(vit, torch.Generator().manual_seed(0), recurse=False)
    changed = [name for name, value in vit.named_parameters() if not torch.equal(value, before[name])]
    assert changed == ["cls_token", "pos_embed"]
    with torch.no_grad():
        for name, value in vit.named_parameters():
            value.copy_(before[name])
    found = curve(vit, "grad_cam:relu=False").detail
    assert found.shape == (2, 6) and not torch.equal(found[:, -1], found[:, -2])
    only = curve(vit, "grad_cam:relu=False", stages=(OWN,)).detail
    twin, expected = copy.deepcopy(vit), []
    randomise(twin, torch.Generator().manual_seed(0), recurse=False)
    for net in (vit, twin):
        expected.append(explain(net, IMAGES, [1, 2], "grad_cam:relu=False")["grad_cam:relu=False"].flatten(1))
    for n in range(2):
        assert only[n, 0].item() == pytest.approx(spearmanr(expected[0][n], expected[1][n]).statistic, abs=1e-4)


IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def curve(model, explainer, **parameters):
    """(2, stages), by the measure."""

    def again(net, images):
        return explain(net, images, [1, 2], explainer, size="own")[explainer]

    case = Case(model, IMAGES, again(model, IMAGES), torch.tensor([1, 2]), explain=again)
    return measure_case(case, {"cascading_randomisation": parameters})["cascading_randomisation"]


@pytest.mark.parametrize("similarity", ["spearman", "spearman_abs", "ssim"])
def test_each_stage_is_randomised_on_top_of_those_before(model, similarity):
    """Against a copy randomised by hand and SciPy; the model stays as it is."""
    explainer, stages = "grad_cam:relu=False", ("fc", "layer4", "conv1")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = curve(model, explainer, stages=stages, similarity=similarity, seed=3)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    twin, generator = copy.deepcopy(model), torch.Generator().manual_seed(3)
    first = explain(model, IMAGES, [1, 2], explainer)[explainer]
    for n, stage in enumerate(stages):
        randomise(twin.get_submodule(stage), generator)
        for i, (a, b) in enumerate(zip(first, explain(twin, IMAGES, [1, 2], explainer)[explainer])):
            if similarity == "ssim":
                a, b = ((m - m.min()) / (m.max() - m.min()) for m in (a, b))
                expected = ssim(a[None], b[None]).item()
            else:
                a, b = (m.abs() if similarity == "spearman_abs" else m for m in (a, b))
                expected = spearmanr(a.flatten(), b.flatten()).statistic
            assert found.detail[i, n].item() == pytest.approx(expected, abs=1e-4)
    torch.testing.assert_close(found.values, found.detail.mean(1))


def test_the_initialisers_of_the_parts_can_be_run_again_as_in_the_authors_check(model):
    """Convolutions and the classifier begin with values that follow from their shape; batch norms as PyTorch has it."""

    def begin(self):
        n = self.weight.numel()
        self.weight.data.copy_(torch.linspace(-0.2, 0.3, n).sin().view_as(self.weight))
        if self.bias is not None:
            self.bias.data.zero_()

    net, explainer, stages = copy.deepcopy(model), "grad_cam:relu=False", ("fc", "layer4", "layer3")
    for part in net.modules():
        if isinstance(part, torch.nn.Conv2d | torch.nn.Linear):
            part.reset_parameters = types.MethodType(begin, part)
    net.fc.register_parameter("temperature", torch.nn.Parameter(torch.randn(1000)))
    found = curve(net, explainer, stages=stages, reset="initialiser").detail
    twin, first = copy.deepcopy(model), explain(model, IMAGES, [1, 2], explainer)[explainer]
    for n, stage in enumerate(stages):
        for part in twin.get_submodule(stage).modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.weight.data.fill_(1), part.bias.data.zero_()
                part.running_mean.zero_(), part.running_var.fill_(1)
            elif isinstance(part, torch.nn.Conv2d | torch.nn.Linear):
                begin(part)
        for i, (a, b) in enumerate(zip(first, explain(twin, IMAGES, [1, 2], explainer)[explainer])):
            assert found[i, n].item() == pytest.approx(spearmanr(a.flatten(), b.flatten()).statistic, abs=1e-4)


def test_initialisers_draw_by_the_seed_and_leave_the_callers_numbers_alone(model):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    given = {"stages": ("fc", "layer4"), "reset": "initialiser"}
    same, again, other = (curve(model, "grad_cam:relu=False", **given, seed=seed).detail for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(same, again) and not torch.equal(same, other)
    assert not torch.equal(same, curve(model, "grad_cam:relu=False", stages=("fc", "layer4"), seed=1).detail)


def test_what_has_no_initialiser_is_drawn_anew_all_the_same():
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=10, depth=1).eval()
    before = {name: value.clone() for name, value in vit.named_parameters()}
    reinitialise(vit, torch.Generator().manual_seed(0))
    assert not torch.equal(vit.cls_token, before["cls_token"]) and not torch.equal(vit.pos_embed, before["pos_embed"])
    assert (vit.norm.weight == 1).all() and not torch.equal(vit.head.weight, before["head.weight"])


def test_maps_that_depend_on_the_network_change_and_others_do_not(model):
    stages = ("fc", "layer4", "conv1")
    for similarity in ("spearman", "ssim"):
        unmoved = curve(model, "centre", stages=stages, similarity=similarity)
        torch.testing.assert_close(unmoved.detail, torch.ones(2, 3, dtype=torch.float64))
    assert (curve(model, "input_gradient", stages=stages).detail[:, -1].abs() < 0.6).all()
    assert curve(model, "centre").detail.shape[1] == len(default_stages(model))
    assert not torch.equal(curve(model, "grad_cam").detail, curve(model, "grad_cam", seed=1).detail)


def test_stages_with_a_constant_map_are_left_out_of_the_mean():
    net = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(3)))
    for similarity in ("spearman", "ssim"):
        maps = iter([torch.rand(1, 12, 12), torch.ones(1, 12, 12), torch.rand(1, 12, 12)])
        again = lambda _model, _images, maps=maps: next(maps)  # noqa: E731
        case = Case(net, torch.zeros(1, 3, 12, 12), torch.rand(1, 12, 12), explain=again)
        given = {"cascading_randomisation": {"similarity": similarity, "stages": ("2", "1", "0")}}
        found = measure_case(case, given)["cascading_randomisation"]
        assert found.detail.isnan().tolist() == [[False, True, False]]
        assert found.values.item() == pytest.approx(found.detail[0, [0, 2]].mean().item())


def test_what_cannot_be_done_is_said(model):
    with pytest.raises(UserError, match="no layer 'layer9'"):
        curve(model, "grad_cam", stages=("layer9",))
    with pytest.raises(UserError, match="spearman, spearman_abs, ssim"):
        curve(model, "grad_cam", similarity="pearson")
    with pytest.raises(UserError, match="reset 'zero'; take values or initialiser"):
        curve(model, "grad_cam", reset="zero")


def test_the_command_measures_it(tmp_path):
    """Grad-CAM of the trained demo network changes; a map that knows nothing of the network stays as it is."""
    name = "cascading_randomisation"
    main(["--ckpt", str(DEMO), "--data", "scenes", "--limit", "6", "--explainer", "grad_cam", "centre", "random",
          "--metric", name, "--workers", "0", "--out", str(tmp_path)])  # fmt: skip
    found = {s["explainer"]: s["measures"][name] for s in json.loads((tmp_path / "scores.json").read_text())}
    assert found["centre"]["value"] == pytest.approx(1, abs=1e-9) == found["random"]["value"]
    assert found["grad_cam"]["value"] < 0.8 and found["grad_cam"]["better"] == "lower"
    assert len(found["grad_cam"]["curve"]) == 12
    rows = [r for r in pq.read_table(tmp_path / "per_image.parquet").to_pylist() if r["explainer"] == "grad_cam"]
    assert found["grad_cam"]["value"] == pytest.approx(np.mean([row[name] for row in rows]))
    assert all(row[name] == pytest.approx(np.nanmean(row[f"{name} detail"])) for row in rows)
    assert name in (tmp_path / "report.html").read_text()


def test_randomise_keeps_the_scale_and_changes_every_parameter(model):
    twin = timm.create_model("resnet10t", num_classes=10)
    twin.load_state_dict(model.state_dict())
    twin(torch.randn(4, 3, 64, 64))  # in training mode: batch norms see something
    randomise(twin.layer3, torch.Generator().manual_seed(0))
    assert twin.layer3[0].bn1.running_mean.abs().max() == 0 and (twin.layer3[0].bn1.running_var == 1).all()
    assert twin.layer2[0].bn1.running_mean.abs().max() > 0
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
