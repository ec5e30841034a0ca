"""Networks with values that are not finite are told and not scored; those that say nothing are counted."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from common.checkpoint import load_checkpoint, save_checkpoint
from common.errors import UserError
from evaluate.cli.main import main
from evaluate.data.folder import FolderData
from evaluate.data.scenes import ScenesData
from evaluate.explainers.explain import Maps, explain
from evaluate.network.subject import load_subject
from evaluate.run import measure as runner
from evaluate.run.measure import Unmeasurable, measure
from evaluate.run.options import RunOptions
from evaluate.run.preflight import not_finite
from tests.evaluate.conftest import save_untrained

SCENES = ["--data", "scenes", "--workers", "0", "--limit", "6", "--device", "cpu"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("networks") / "sound")


@torch.no_grad()
def spoilt(sound: Path, folder: Path, spoil: Callable[[nn.Module], object]) -> Path:
    """A checkpoint whose values are others."""
    model, config = load_checkpoint(sound)
    spoil(model)
    shutil.rmtree(folder, ignore_errors=True)
    save_checkpoint(folder, model, config)
    return folder


def set_first(kind: str, value: float) -> Callable[[nn.Module], object]:
    """Puts a value at the first place of the first parameter or buffer whose name has `kind` in it."""

    def spoil(model: nn.Module) -> None:
        values = next(values for name, values in model.state_dict().items() if kind in name)
        values.view(-1)[0] = value

    return spoil


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [("weight", NAN, "nan"), ("bias", INF, "inf"), ("running_mean", NAN, "nan"), ("running_var", INF, "inf")],
)
def test_weights_and_buffers_that_are_not_finite_are_told_before_the_first_image(
    kind: str, value: float, said: str, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("an image was read")

    monkeypatch.setattr(ScenesData, "picture", read)
    folder = spoilt(sound, tmp_path / "bad", set_first(kind, value))
    message = rf"^bad: [\w.]*{kind} holds {said}: its training diverged, or its file is damaged$"
    with pytest.raises(UserError, match=message):
        main(["--ckpt", str(folder), *SCENES, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    with pytest.raises(UserError, match=message):
        main(["explain", str(tmp_path / "x.png"), "--ckpt", str(folder), "--out", str(tmp_path / "out")])


def test_the_other_checkpoints_are_scored(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad, out = spoilt(sound, tmp_path / "bad", set_first("weight", NAN)), tmp_path / "out"
    assert main(["--ckpt", str(bad), str(sound), *SCENES, "--out", str(out)]) == 2
    assert "error: not measured:\n  bad: " in capsys.readouterr().err
    scores = json.loads((out / "scores.json").read_text())
    assert {item["checkpoint"] for item in scores} == {"sound"}
    assert len(scores[0]["lacking"]) == 1 and scores[0]["lacking"][0].startswith("bad: ")


def test_finite_weights_whose_logits_are_not_are_told(sound: Path) -> None:
    subject = load_subject(str(sound))
    assert not_finite(subject, RunOptions()) == ""
    subject.transform = replace(subject.transform, mean=(NAN, NAN, NAN))
    assert "sound: its logits of an image of noise hold nan" in not_finite(subject, RunOptions())


def test_an_image_whose_logits_are_not_finite_is_named(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overflowing(*given: Any, **more: Any) -> Maps:
        maps = explain(*given, **more)
        maps.logits[1, 3] = -INF
        return maps

    monkeypatch.setattr(runner, "explain", overflowing)
    with pytest.raises(Unmeasurable, match=r"logits of image val/000001 are not finite, so it is not scored"):
        list(measure(load_subject(str(sound)), ScenesData(64, 4), range(4), RunOptions(workers=0)))


def silent(model: nn.Module) -> None:
    """All parameters are 0, so that no map says anything."""
    for values in model.parameters():
        values.zero_()


def test_a_network_that_says_nothing_has_no_score_and_all_its_maps_are_counted(sound: Path, tmp_path: Path) -> None:
    folder, out = spoilt(sound, tmp_path / "silent", silent), tmp_path / "out"
    measures = ["insertion", "deletion", "road", "pointing_game", "complexity", "saliency_metric"]
    given = ["--explainer", "grad_cam", "threshold_grad_cam", "--protocol", "paper", "aligned", "--metric"]
    assert main(["--ckpt", str(folder), *SCENES, *given, *measures, "--out", str(out)]) == 0
    scores = json.loads((out / "scores.json").read_text())
    assert len(scores) == 4
    for item in scores:
        assert item["n_degenerate"] == item["n_images"] == 6, item["explainer"]
        assert item["alignment"] == (0 if item["protocol"] == "aligned" else None)
        assert item["dice"] == item["iou"] == 0
        assert {name: found["defined"] for name, found in item["measures"].items()} == dict.fromkeys(measures, 0)


def test_constant_maps_are_counted_without_human_maps_too(sound: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for number in range(3):
        Image.fromarray(pixels).save(tmp_path / "data" / f"{number}.png")
    (tmp_path / "t.csv").write_text("file,label\n0.png,0\n1.png,1\n2.png,2\n")
    assert len(FolderData(tmp_path / "data", tmp_path / "t.csv", 12)) == 3
    given = ["--data", "imagefolder", "--data-root", str(tmp_path / "data"), "--labels", str(tmp_path / "t.csv")]
    for number, (folder, constant) in enumerate(((spoilt(sound, tmp_path / "silent", silent), 3), (sound, 0))):
        for more, expected in (([], None), (["--metric", "complexity", "--explainer", "threshold_grad_cam"], constant)):
            out = tmp_path / f"out_{number}_{expected}"
            assert main(["--ckpt", str(folder), *given, *more, "--workers", "0", "--out", str(out)]) == 0
            (item,) = json.loads((out / "scores.json").read_text())
            assert item["n_degenerate"] == expected
