"""What the head of a run remarks on its data and machine, and where it is silent."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from timm.data import ImageNetInfo

from tests.train.conftest import make_photographs
from train.configure import load_settings
from train.data.images import open_data
from train.watching import remarks as module
from train.watching.remarks import remarks

CPU, WORDNET = torch.device("cpu"), ImageNetInfo("imagenet-1k").label_names()
SMALL = ["batch_size=2", "global_batch=2", "data.image_size=32", "data.eval_size=32"]


def said(*given: str, device: torch.device = CPU) -> dict[str, str]:
    settings = load_settings(list(given))
    train, val = open_data(settings)
    settings.num_classes = settings.num_classes or train.num_classes
    return dict(remarks(train, val, settings, device))


def folders(*given: str) -> dict[str, str]:
    return said("recipe=convnext_t", *SMALL, *given)


def test_wordnet_folders_are_said_to_give_a_thousand_outputs(tmp_path: Path) -> None:
    make_photographs(tmp_path / "train", WORDNET[3:250:41], 1)
    make_photographs(tmp_path / "val", WORDNET[3:250:41], 1)
    found = folders(f"data.root={tmp_path}")
    assert found == {"classes": "7 class folders with WordNet ids: labels are ImageNet's, 1000 outputs"}


def test_classes_without_a_picture_on_one_side_are_counted(tmp_path: Path) -> None:
    make_photographs(tmp_path / "train", ("ant", "bee", "cat", "dog"), 1)
    make_photographs(tmp_path / "val", ("bee",), 1)
    assert folders(f"data.root={tmp_path}") == {"warning": "of 4 classes, 3 (ant, ...) have no image to validate on"}


def test_a_hold_out_that_leaves_classes_untrained_is_warned_of(tmp_path: Path) -> None:
    names = [f"class_{i}" for i in range(10)]
    make_photographs(tmp_path, names, 1)
    found = folders(f"data.root={tmp_path}", "data.val_fraction=0.3")["warning"]
    assert "of 10 classes, 3 (class_" in found and "have no image to train on and 7 (class_" in found
    assert "data.val_fraction sets the share held out" in found and "\n" not in found
    _, val = open_data(load_settings(["recipe=convnext_t", f"data.root={tmp_path}", "data.val_fraction=0.3"]))
    held = {names[val.records.read(i).label] for i in range(3)}  # type: ignore[attr-defined]
    assert found.partition("3 (")[2].partition(",")[0] in held


def test_one_class_is_named_without_others(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})
    picture = {"bytes": (make_photographs(tmp_path / "p", ("x",), 1) / "x" / "0.jpg").read_bytes(), "path": None}
    tables = {
        split: datasets.Dataset.from_dict({"image": [picture] * len(labels), "label": labels}, features=features)
        for split, labels in {"train": [0, 1, 1], "validation": [1]}.items()
    }
    datasets.DatasetDict(tables).save_to_disk(tmp_path / "set")
    assert folders(f"data.source=hf:{tmp_path}/set") == {
        "warning": "of 2 classes, 1 (even) have no image to validate on"
    }


def test_nothing_is_remarked_on_whole_data_and_small_runs(tmp_path: Path) -> None:
    make_photographs(tmp_path / "train", each=2)
    make_photographs(tmp_path / "val", each=1)
    assert not folders(f"data.root={tmp_path}")
    assert not said("recipe=demo", "data.train_images=4", "data.val_images=2")
    assert not said("recipe=convnext_t", "smoke=true")


@pytest.mark.parametrize(("cores", "hinted"), [(2, True), (16, True), (64, False)])
def test_an_imagenet_recipe_on_few_cores_is_told_what_it_costs(
    cores: int, hinted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: set(range(cores)))
    make_photographs(tmp_path, each=8)
    given = ["recipe=convnext_t_dcls", f"data.root={tmp_path}", "data.val_fraction=0.25"]
    found = said(*given)
    assert ("hint" in found) == hinted
    if hinted:
        assert all(word in found["hint"] for word in (f"{cores} CPU", "4096", "12.8 GiB", "smoke=true", "batch_size"))
        assert "hint" not in said(*given, device=torch.device("meta"))
        minutes = 4096 * np.ceil(0.4 / cores * 60) / 60 / 60
        assert cores > 2 or f"{int(minutes)} min" in found["hint"]
