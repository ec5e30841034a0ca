"""What can be told before the first image is; what does not fit one checkpoint keeps no other from its report."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
import torch

from common.errors import UserError
from evaluate.cli.main import main
from evaluate.data.clickme import ClickMeData
from evaluate.data.scenes import ScenesData
from evaluate.explainers.registry import EXPLAINERS
from evaluate.metrics.registry import MEASURES
from evaluate.network.requests import Checkpoints, Request
from evaluate.run import measure as runner
from evaluate.run import preflight
from evaluate.run.options import RunOptions
from evaluate.run.preflight import make_plans
from tests.evaluate.conftest import save_untrained
from tests.evaluate.test_cli import run

RESNET_AND_VIT = ["--ckpt", "cnn=untrained", "vit=untrained", "--model", "cnn=timm:resnet18",
                  "vit=timm:vit_tiny_patch16_224", "--workers", "0"]  # fmt: skip


@pytest.fixture
def no_image(monkeypatch):
    """Reading an image fails the test."""

    def read(*_):
        raise AssertionError("an image was read")

    for kind in (ScenesData, ClickMeData):
        monkeypatch.setattr(kind, "picture", read)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--ckpt", "/nowhere"], "--ckpt /nowhere: no such folder or file"),
        (["--ckpt", "b=untrained", "--model", "b=timm:resnet18"], "b distinguishes 1000 classes, scenes has 12"),
        (["--metric", "complexity", "--metric", "road:percentages=(0,)"], r"road:percentages=\(0,\): percentages"),
        (["--explainer", "grad_cam", "threshold_grad_cam:order=none_first"], "order 'none_first'"),
        (["--explainer", "opti_cam:objective=best"], "opti_cam: objective 'best'"),
        (["--layer", "stages.99"], r"no layer 'stages\.99'"),
        (["--metric", "cascading_randomisation:stages=('stages.99',)"], r"no layer 'stages\.99'"),
    ],
)
def test_a_run_that_cannot_be_done_is_refused_before_the_first_image(more, message, checkpoint, tmp_path, no_image):
    given = ["--ckpt", str(checkpoint), "--data", "scenes", "--workers", "0", "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match=message):
        main([*given, *more])
    assert not (tmp_path / "out").exists()


def test_everything_that_is_wrong_with_checkpoints_is_told_at_once(checkpoint, tmp_path, no_image):
    shutil.copytree(checkpoint, tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="2 reasons why this run cannot begin") as caught:
        main(["--ckpt", "/nowhere", str(checkpoint), str(tmp_path / "cut"), "--data", "scenes"])
    assert "/nowhere" in str(caught.value) and "has changed since it was published" in str(caught.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--metric", "pointing_game"], "pointing_game: .*needs objects"),
        (["--explainer", "guided_backprop"], "guided_backprop: VisionTransformer has no ReLU"),
    ],
)
def test_what_the_data_or_every_model_lacks_is_refused_before_the_first_image(
    more, message, clickme_root, tmp_path, no_image
):
    given = ["--ckpt", "untrained", "--model", "timm:vit_tiny_patch16_224", "--data-root", str(clickme_root)]
    with pytest.raises(UserError, match=message):
        main([*given, *more, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [["--compare", "a", "a"], ["--explainer", "other_human"]])
def test_what_needs_human_maps_is_refused_where_there_are_none(more, tmp_path):
    given = ["--ckpt", "a=untrained", "--model", "demo", "--data", "imagefolder", "--data-root", str(tmp_path)]
    with pytest.raises(UserError, match="human maps, which --data imagefolder has none of"):
        main([*given, *more])


def test_the_head_that_an_argument_gives_a_model_counts(tmp_path, no_image):
    given = ["--ckpt", "a=untrained", "--model", "demo", "--model-arg", "num_classes=5", "--data", "scenes"]
    with pytest.raises(UserError, match="a distinguishes 5 classes, scenes has 12"):
        main(given)


def test_an_explainer_that_fits_one_model_only_is_listed_and_the_rest_is_reported(clickme_root, tmp_path, capsys):
    out = tmp_path / "out"
    given = ["--data-root", str(clickme_root), "--explainer", "grad_cam", "guided_backprop", "--out", str(out)]
    assert main([*RESNET_AND_VIT, *given]) == 2
    told = "vit: guided_backprop: VisionTransformer has no ReLU"
    assert f"error: not measured:\n  {told}" in capsys.readouterr().err
    scores = json.loads((out / "scores.json").read_text())
    assert [(s["checkpoint"], s["explainer"]) for s in scores] == [
        ("cnn", "grad_cam"),
        ("cnn", "guided_backprop"),
        ("vit", "grad_cam"),
    ]
    assert len(scores[0]["lacking"]) == 1 and scores[0]["lacking"][0].startswith(told)
    for name in ("report.html", "report.md"):
        assert told in (out / name).read_text()


def test_with_several_processes_the_rest_is_reported_too(clickme_root, tmp_path):
    given = ["--data-root", clickme_root, "--explainer", "grad_cam", "guided_backprop", "--device", "cpu"]
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "evaluate")
    found = run(*RESNET_AND_VIT, *given, "--out", tmp_path, launcher=launcher, ACCELERATE_USE_CPU="true",
                OMP_NUM_THREADS="1")  # fmt: skip
    assert found.returncode != 0 and found.stderr.count("error: not measured:\n  vit: guided_backprop") == 1
    assert (tmp_path / "report.html").exists() and "SIGTERM" not in found.stderr


def test_a_measure_that_fits_one_model_only_is_empty_for_the_other(clickme_root, tmp_path):
    out = tmp_path / "out"
    metric = "cascading_randomisation:stages=('fc',)"
    given = ["--data-root", str(clickme_root), "--explainer", "grad_cam", "--metric", metric, "--out", str(out)]
    assert main([*RESNET_AND_VIT, *given]) == 2
    cnn, vit = json.loads((out / "scores.json").read_text())
    assert cnn["measures"][metric]["defined"] > 0
    assert vit["measures"][metric]["defined"] == 0 and vit["alignment"] is not None


def test_a_checkpoint_without_any_explainer_left_is_left_out(clickme_root, tmp_path, capsys):
    given = ["--data-root", str(clickme_root), "--explainer", "guided_backprop", "--out", str(tmp_path / "out")]
    assert main([*RESNET_AND_VIT, *given]) == 2
    assert "vit: no explainer is left" in capsys.readouterr().err
    assert {s["checkpoint"] for s in json.loads((tmp_path / "out" / "scores.json").read_text())} == {"cnn"}


@pytest.fixture
def two(checkpoint, tmp_path):
    other = save_untrained(tmp_path / "other", seed=3)
    return ["--ckpt", str(checkpoint), str(other), "--data", "scenes", "--limit", "4", "--workers", "0"]


def test_a_checkpoint_that_fails_on_the_way_is_listed_and_the_rest_is_reported(two, tmp_path, monkeypatch, capsys):
    explain = runner.explain

    def fails_for_the_first(model, *args, failing=[], **kwargs):  # noqa: B006
        failing.append(model)
        if model is failing[0]:
            raise UserError("this one has no map")
        return explain(model, *args, **kwargs)

    monkeypatch.setattr(runner, "explain", fails_for_the_first)
    assert main([*two, "--out", str(tmp_path / "out"), "--compare", "untrained_dcls", "other"]) == 2
    assert "untrained_dcls: this one has no map" in capsys.readouterr().err
    assert {s["checkpoint"] for s in json.loads((tmp_path / "out" / "scores.json").read_text())} == {"other"}
    table = pq.read_table(tmp_path / "out" / "per_image.parquet")
    assert set(table.column("checkpoint").to_pylist()) == {"other"}


def test_where_every_checkpoint_fails_there_is_no_report(two, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise UserError("no map")

    monkeypatch.setattr(runner, "explain", fails)
    with pytest.raises(UserError, match="untrained_dcls: no map\n  other: no map"):
        main([*two, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_an_image_that_cannot_be_read_stops_the_run_as_it_would_stop_every_checkpoint(two, tmp_path, monkeypatch):
    asked = []

    def picture(self, index):
        asked.append(index)
        raise UserError("no picture")

    monkeypatch.setattr(ScenesData, "picture", picture)
    with pytest.raises(UserError, match=r"^no picture$"):
        main([*two, "--out", str(tmp_path / "out")])
    assert len(asked) == 4  # of the first checkpoint


def test_a_trial_is_short_however_many_passes_a_method_has(checkpoint):
    checkpoints, passes = Checkpoints([Request(str(checkpoint))], 0), []
    slow = ("rise:masks=100000", "score_cam", "occlusion:stride=1", "opti_cam:iterations=100000", "smooth_grad")
    options = RunOptions(EXPLAINERS.choose(slow), measures=MEASURES.choose(["insertion:step=1", "road"]))
    with checkpoints.on("untrained_dcls", options.device) as subject:
        subject.model.register_forward_hook(lambda *_: passes.append(1))
    (plan,), told = make_plans(checkpoints, lambda _: ScenesData(64, 2), options, None, 0, False)
    assert plan.options == options and told == []
    assert 0 < len(passes) <= 1 + 7 * preflight.PASSES  # and one for its logits


@pytest.mark.parametrize("name", [*EXPLAINERS, *MEASURES])
def test_every_explainer_and_measure_passes_its_trial_on_a_model_of_relus(name, checkpoint):
    checkpoints = Checkpoints([Request(str(checkpoint))], 0)
    options = RunOptions(
        EXPLAINERS.choose(name if name in EXPLAINERS else "centre"),
        measures=MEASURES.choose([name] if name in MEASURES else []),
    )
    (plan,), told = make_plans(checkpoints, lambda _: ScenesData(64, 2), options, None, 0, False)
    assert plan.options == options and not told


def test_a_trial_leaves_the_model_as_it_was(checkpoint):
    checkpoints = Checkpoints([Request(str(checkpoint))], 0)
    before = preflight.state_digest(Request(str(checkpoint)).load(0, ""))
    options = RunOptions(
        EXPLAINERS.choose(["score_cam", "guided_backprop"]), measures=MEASURES.choose("cascading_randomisation")
    )
    make_plans(checkpoints, lambda _: ScenesData(64, 2), options, None, 0, False)
    with checkpoints.on("untrained_dcls", options.device) as subject:
        assert preflight.state_digest(subject) == before
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in subject.model.modules())


def test_a_model_that_does_not_fit_into_memory_is_told_before_the_first_image(two, monkeypatch, no_image):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("evaluate.network.subject.Subject.to", full)
    with pytest.raises(UserError, match="untrained_dcls does not fit into the memory of cpu"):
        main(two)
