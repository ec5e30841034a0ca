"""Every recipe runs: two updates on generated data, published and loaded again."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from common.checkpoint import load_checkpoint
from common.models.zoo import ZOO
from common.surgery import position_groups
from tests.train.conftest import metrics
from train.configure import recipe_names

SHALLOW = {"convnext": "depths=[1,1,1,1]", "fastvit": "layers=[1,1,1,1]", "resnet50": "layers=[1,1,1,1]"}
"""Fewer layers for the test, where timm lets them be set."""


def check(run: Path, checkpoint: Path, name: str) -> None:
    assert metrics(run, "train/loss").keys() == {1, 2}
    model, config = load_checkpoint(checkpoint)
    assert (config.model, config.num_classes) == (name.removesuffix("_from_plain"), 12)
    assert config.classes is not None and config.recipe["recipe"] == name
    twin = ZOO[config.model].dcls is not None
    assert bool(position_groups(model)) == twin == ("mean_displacement_px" in config.metrics)
    assert json.loads((run / "summary.json").read_text())["metrics"]["updates"] == 2
    card = (checkpoint / "README.md").read_text()
    assert "train/main.py" in card and "curve.png" in card


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_runs_small(name: str, train_here: Callable[..., Path], tmp_path: Path) -> None:
    shallow = next((f"model_args.{value}" for prefix, value in SHALLOW.items() if name.startswith(prefix)), None)
    small = ["data.image_size=32", "data.eval_size=32", "data.val_images=2"]
    run = train_here(f"recipe={name}", "smoke=true", *small, *([shallow] if shallow else []))
    check(run, tmp_path / "checkpoints" / f"{name}_smoke", name)


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_runs_whole(name: str, train_here: Callable[..., Path], tmp_path: Path) -> None:
    run = train_here(f"recipe={name}", "smoke=true")
    check(run, tmp_path / "checkpoints" / f"{name}_smoke", name)
