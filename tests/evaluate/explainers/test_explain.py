"""`explain`: the model is left as it was, in every mode it may be called in; forms, sizes, errors."""

import gc
import subprocess
import sys
import warnings

import pytest
import timm
import torch
from torch import nn

import evaluate.network.passes as passes
from common.errors import UserError
from common.models.transform import ModelTransform
from evaluate.explainers.explain import explain
from evaluate.explainers.registry import EXPLAINERS

CHEAP = {"opti_cam": {"iterations": 2}, "rise": {"masks": 8}, "smooth_grad": {"samples": 2}}
BLACK = {"transform": ModelTransform()}
EVERY = {name: CHEAP.get(name, {}) for name, e in EXPLAINERS.items() if not e.needs}
GRADIENT = [name for name, e in EXPLAINERS.items() if e.family == "gradient"]


def state(model: nn.Module) -> tuple:
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]
    return (
        [m.training for m in model.modules()],
        hooks,
        [p.grad is None for p in model.parameters()],
        [p.requires_grad for p in model.parameters()],
        [b.clone() for b in model.buffers()],
    )


def same(a: tuple, b: tuple) -> bool:
    return a[:4] == b[:4] and all(torch.equal(x, y) for x, y in zip(a[4], b[4]))


@pytest.mark.parametrize("layer", [None, "stem.3", "norm"])
def test_every_explainer_leaves_the_model_as_it_was_even_in_training_mode(inplace_net, images, layer):
    inplace_net.train()
    inplace_net.norm.eval()  # a mixed state must come back too
    before = state(inplace_net)
    maps = explain(inplace_net, images, [0, None, 4], EVERY, layer=layer, **BLACK)
    assert same(before, state(inplace_net))
    assert set(maps) == set(EVERY)
    for name, found in maps.items():
        assert found.shape == (3, 32, 32) and found.dtype == torch.float32 and found.isfinite().all(), name
        assert not found.requires_grad, name
        if layer != "norm":  # where activations are signed, a ReLU may leave nothing
            assert not maps.degenerate[name].any(), name


def test_the_model_is_restored_when_something_fails(pooled_net, images):
    pooled_net.train()
    before = state(pooled_net)

    def fail(logits):
        raise RuntimeError("broken target")

    with pytest.raises(RuntimeError, match="broken target"):
        explain(pooled_net, images, fail, "grad_cam", layer="stem.3")
    with pytest.raises(UserError, match="gives a tuple"):
        pooled_net.act.register_forward_hook(lambda *_: (1, 2))
        explain(pooled_net, images, None, "grad_cam", layer="act")
    pooled_net.act._forward_hooks.clear()
    assert same(before, state(pooled_net))


@pytest.mark.parametrize("mode", ["no_grad", "inference", "frozen", "autocast", "bf16"])
def test_modes_give_the_same_maps(pooled_net, images, mode):
    expected = explain(pooled_net, images, 1, EVERY, **BLACK)
    if mode == "no_grad":
        with torch.no_grad():
            found = explain(pooled_net, images, 1, EVERY, **BLACK)
    elif mode == "inference":
        with torch.inference_mode():
            found = explain(pooled_net, images + 0, torch.tensor([1, 1, 1]), EVERY, **BLACK)
    elif mode == "frozen":
        found = explain(pooled_net.requires_grad_(False), images, 1, EVERY, **BLACK)
    elif mode == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            found = explain(pooled_net, images, 1, EVERY, **BLACK)
    else:
        found = explain(pooled_net, images, 1, EVERY, bf16=True, **BLACK)
    for name, value in expected.items():
        assert found[name].dtype == torch.float32 and not found[name].is_inference()
        if mode in ("no_grad", "inference", "frozen"):
            torch.testing.assert_close(found[name], value, msg=name)
        elif name in GRADIENT and name not in ("grad_cam_pp", "conceptor_cam", "xgrad_cam"):
            ours, theirs = found[name].flatten(1), value.flatten(1)
            assert torch.cosine_similarity(ours, theirs).min() > 0.97, name


def test_a_compiled_model_gives_the_same_maps(pooled_net, images):
    expected = explain(pooled_net, images, 1, EVERY, layer="stem.3", **BLACK)
    compiled = torch.compile(pooled_net, backend="eager")
    compiled(images)
    found = explain(compiled, images, 1, EVERY, layer="stem.3", **BLACK)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
    pooled_net.compile(backend="eager")
    pooled_net(images)
    again = explain(pooled_net, images, 1, GRADIENT, layer="stem.3")
    torch.testing.assert_close(again["grad_cam"], expected["grad_cam"])


def test_all_gradient_explainers_share_one_pass(pooled_net, images, monkeypatch):
    calls = []
    original = pooled_net.forward_features
    monkeypatch.setattr(pooled_net, "forward_features", lambda x: calls.append(torch.is_grad_enabled()) or original(x))
    explain(pooled_net, images, None, GRADIENT)
    assert calls == [False]  # once, and without a graph in the backbone


def test_a_named_layer_that_is_the_last_map_gives_what_the_head_pass_gives(inplace_net, images):
    default = explain(inplace_net, images, [0, 1, 2], GRADIENT)
    named = explain(inplace_net, images, [0, 1, 2], GRADIENT, layer="act")
    for name in GRADIENT:
        torch.testing.assert_close(default[name], named[name], msg=name)
    torch.testing.assert_close(default.logits, named.logits)


def test_a_head_that_works_in_place_does_not_change_the_maps(pooled_net, images):
    expected = explain(pooled_net, images, [0, 1, 2], GRADIENT)
    pooled_net.forward_head = lambda x: pooled_net.fc(x.mul_(2).mean((2, 3)) / 2)
    found = explain(pooled_net, images, [0, 1, 2], GRADIENT)
    for name in GRADIENT:
        torch.testing.assert_close(found[name], expected[name], msg=name)


def test_forms_and_sizes(pooled_net, images):
    own = {form: explain(pooled_net, images, 1, GRADIENT, form=form, size="own") for form in
           ("defined", "raw", "relu", "normalised")}  # fmt: skip
    for name in GRADIENT:
        assert own["defined"][name].shape == (3, 8, 8)
        if name != "threshold_grad_cam":
            torch.testing.assert_close(own["raw"][name].relu(), own["defined"][name])
        assert (own["relu"][name] >= 0).all()
        assert own["normalised"][name].amin() == 0 and (own["normalised"][name].amax((1, 2)) == 1).all()
    assert own["raw"]["threshold_grad_cam"].amax() != 1
    assert (own["raw"]["grad_cam"] < 0).any()
    assert explain(pooled_net, images, 1, size=(10, 20))["grad_cam"].shape == (3, 10, 20)


def test_degenerate_maps_are_flagged_and_never_nan(pooled_net, images):
    nn.init.zeros_(pooled_net.fc.weight)
    nn.init.zeros_(pooled_net.fc.bias)
    maps = explain(pooled_net, images, 1, EVERY, form="normalised", **BLACK)
    for name in [*GRADIENT, "ablation_cam"]:
        assert maps.degenerate[name].all() == (name not in ("eigen_cam",)), name
    assert all(found.isfinite().all() for found in maps.values())


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_maps_that_are_not_finite_become_zero_and_are_flagged(pooled_net, images, broken):
    """The other images of the batch keep their maps."""
    alone = explain(pooled_net, images, 1, EVERY, **BLACK)
    images[1, 0, 0, 0] = broken
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        maps = explain(pooled_net, images, 1, EVERY, **BLACK)
    for name, found in maps.items():
        assert found.isfinite().all(), name
        torch.testing.assert_close(found[[0, 2]], alone[name][[0, 2]], msg=name)
    for name in [*GRADIENT, "score_cam", "ablation_cam", "opti_cam"]:
        assert maps.degenerate[name].tolist() == [False, True, False], name
        assert (maps[name][1] == maps[name][1, 0, 0]).all(), name


def test_parameters_by_text_and_by_dict(pooled_net, images):
    text = "threshold_grad_cam:threshold=0.6,order=mean_first"
    maps = explain(pooled_net, images, 1, [text, "grad_cam"])
    by_dict = explain(pooled_net, images, 1, {"threshold_grad_cam": {"threshold": 0.6, "order": "mean_first"}})
    assert list(maps) == [text, "grad_cam"] and torch.equal(maps[text], by_dict["threshold_grad_cam"])
    assert maps[text].amin() >= 0.6 - 1e-6
    for no in ("false", "False"):
        signed = explain(pooled_net, images, 1, f"grad_cam:relu={no}")[f"grad_cam:relu={no}"]
        assert torch.equal(signed, explain(pooled_net, images, 1, form="raw")["grad_cam"]) and signed.amin() < 0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"methods": "grad_cam_plus"}, "did you mean"),
        ({"methods": "zzz"}, "known: grad_cam"),
        ({"methods": "grad_cam:gain=2"}, "no parameter 'gain'"),
        ({"methods": "grad_cam:relu"}, "KEY=VALUE"),
        ({"methods": "grad_cam:relu=maybe"}, "relu='maybe' is no true or false"),
        ({"methods": {"grad_cam": {"relu": 0}}}, "relu=0 is no true or false"),
        ({"methods": "threshold_grad_cam:threshold=abc"}, "threshold='abc' is no number"),
        ({"methods": "opti_cam:iterations=2.5"}, "iterations=2.5 is no whole number from 1 on"),
        ({"methods": "rise:cells=0"}, "cells=0 is no whole number from 1 on"),
        ({"methods": "opti_cam:learning_rate=-1"}, "learning_rate=-1 is no number from 0 on"),
        ({"methods": "threshold_grad_cam:order=3"}, "order=3 is no text"),
        ({"methods": "occlusion:window=2.5"}, "window=2.5 is no whole number from 1 on, names or none"),
        ({"layer": "stem.30"}, "no layer 'stem.30'.*stem.3"),
        ({"form": "pretty"}, "form 'pretty'"),
        ({"methods": "opti_cam"}, "mean and std"),
        ({"layer": "fc"}, "no map"),
    ],
)
def test_errors_say_what_to_do(pooled_net, images, kwargs, message):
    with pytest.raises(UserError, match=message):
        explain(pooled_net, images, **kwargs)
    assert not pooled_net.act._forward_hooks


def test_a_layer_that_runs_twice_or_never_is_refused(pooled_net, images):
    pooled_net.extra = nn.ReLU()
    with pytest.raises(UserError, match="runs 0 times"):
        explain(pooled_net, images, layer="extra")
    pooled_net.stem[2] = pooled_net.act
    with pytest.raises(UserError, match="runs 2 times"):
        explain(pooled_net, images, layer="act")


def test_wrong_number_of_targets(pooled_net, images):
    with pytest.raises(ValueError, match="2 targets for 3 images"):
        explain(pooled_net, images, [1, 2])


def test_a_plain_module_needs_a_layer(images):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(UserError, match="name the layer"):
        explain(net, images)
    assert explain(net, images, layer="1")["grad_cam"].shape == (3, 32, 32)
    assert explain(net, images, methods=["input_gradient", "random"])["random"].shape == (3, 32, 32)


def test_random_methods_repeat_with_their_seed(pooled_net, images):
    names = {"random": {}, "rise": {"masks": 6}, "smooth_grad": {"samples": 2}}
    one, two, other = (explain(pooled_net, images, 1, names, seed=s) for s in (0, 0, 1))
    for name in names:
        assert torch.equal(one[name], two[name]) and not torch.equal(one[name], other[name])


def test_what_is_said_of_each_explainer():
    assert all(explainer.summary.strip() for explainer in EXPLAINERS.values())
    assert [name for name, explainer in EXPLAINERS.items() if not explainer.verified] == ["conceptor_cam"]
    assert EXPLAINERS["conceptor_cam"].note == "reconstruction: not verified against the paper"
    assert "not verified against the paper" in EXPLAINERS["conceptor_cam"].summary


def test_the_human_map_of_another_image_is_shown_as_it_is_given_and_never_made_up(pooled_net, images):
    with pytest.raises(UserError, match="needs human maps"):
        explain(pooled_net, images, methods="other_human")
    given = torch.rand(3, 7, 7, generator=torch.Generator().manual_seed(0))
    maps = explain(pooled_net, images, methods=["other_human", "centre"], size="own", other_human=given)
    assert torch.equal(maps["other_human"], given)
    assert "other_human" not in maps.seconds and "centre" in maps.seconds  # what is given takes no time


def test_memory_does_not_grow(pooled_net, images):
    names = list(EVERY)

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    for layer in (None, "stem.3"):
        explain(pooled_net, images[:1], 1, EVERY, layer=layer, **BLACK)
    before = tensors()
    for call in range(1000):
        one = {name: EVERY[name] for name in [names[call % len(names)]]}
        explain(pooled_net, images[:1, :, :8, :8], 1, one, layer=(None, "stem.3")[call % 2], **BLACK)
    assert tensors() <= before


def test_class_token_transformers_are_explained_at_the_last_norm(images):
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=4, depth=2)
    assert passes.default_layer(vit) == "blocks.1.norm1"
    tokens = vit.forward_features(images).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(vit.forward_head(tokens)[:, 1].sum(), tokens)
    assert gradient[:, 1:].abs().max() == 0  # why the last map does not do
    found = explain(vit, images, 1, GRADIENT, size="own")
    assert found["layer_cam"].shape == (3, 2, 2)
    pooled = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=4, depth=2, global_pool="avg")
    assert passes.default_layer(pooled) is None
    assert explain(pooled, images, 1, GRADIENT, size="own")["hires_cam"].shape == (3, 2, 2)


def test_the_package_exports_explain_without_loading_torch():
    code = (
        "import sys, evaluate; assert 'torch' not in sys.modules; import evaluate.run.measure; print(evaluate.explain)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.startswith("<function explain")
