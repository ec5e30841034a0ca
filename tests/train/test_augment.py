"""Augmentation is timm's, draw for draw and bit for bit, with every Pillow and for every recipe."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from common.data.decoding import decode_image
from tests.train.conftest import make_photographs
from train.configure import load_settings, recipe_names
from train.data.augment import model_transform, training_transform
from train.data.batch import Batch, LoadFailure, SampleKey, to_input
from train.data.images import Photographs, open_data
from train.randomness import seeded
from train.settings import Settings

SMALL = ["data.image_size=32", "data.eval_size=32", "data.source=imagefolder", "data.val_fraction=0.25"]


def recipes_by_augmentation() -> dict[str, str]:
    """One recipe for each augmentation that recipes ask for, and all that ask for it."""
    groups: dict[str, list[str]] = {}
    for name in recipe_names():
        groups.setdefault(str(asdict(load_settings([f"recipe={name}"]).augment)), []).append(name)
    return {names[0]: ",".join(names) for names in groups.values()}


def photographs(name: str, tmp_path: Path, *more: str) -> tuple[Photographs, Settings]:
    make_photographs(tmp_path / "photos")
    settings = load_settings([f"recipe={name}", f"data.root={tmp_path}/photos", *SMALL, *more])
    source, _ = open_data(settings)
    assert isinstance(source, Photographs)
    return source, settings


def loaded(source: Photographs, epoch: int) -> Batch:
    batch = source.__getitems__([SampleKey(epoch, index, 0) for index in range(len(source))])
    assert not isinstance(batch, LoadFailure)
    return batch


def posterize_of_pillow_12(image: Image.Image, bits: int) -> Image.Image:
    """Its formula, from which 0 bits and fewer come out black; Pillow 13 refuses those."""
    return image.point([value & ~(2 ** (8 - bits) - 1) for value in range(256)] * 3)


def timms_own(settings: Settings) -> Callable[[Image.Image], Tensor]:
    """timm's complete transform: PIL image -> normalised and erased float32."""
    augment, transform = settings.augment, model_transform(settings)
    return create_transform(
        settings.data.image_size,
        is_training=True,
        scale=tuple(augment.scale),
        hflip=augment.hflip,
        color_jitter=augment.color_jitter,
        auto_augment=augment.auto,
        interpolation=augment.interpolation,
        mean=transform.mean,
        std=transform.std,
        re_prob=augment.erase_prob,
        re_mode=augment.erase_mode,
    )


@pytest.mark.parametrize("name", recipes_by_augmentation(), ids=recipes_by_augmentation().values())
def test_thousands_of_jpegs_pass_through_the_augmentation_of_every_recipe(name: str, tmp_path: Path) -> None:
    source, _ = photographs(name, tmp_path)
    for epoch in range(60):
        assert loaded(source, epoch).images.shape == (len(source), 3, 32, 32)


@pytest.mark.parametrize("name", recipes_by_augmentation())
@pytest.mark.parametrize("channels_last", [True, False])
def test_what_the_model_sees_is_what_timms_complete_transform_gives_to_the_bit(
    name: str, channels_last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, settings = photographs(name, tmp_path)
    transform, timm = model_transform(settings), timms_own(settings)
    monkeypatch.setattr("PIL.ImageOps.posterize", posterize_of_pillow_12)
    for epoch in range(8):
        batch = loaded(source, epoch)
        images = to_input(batch, transform, torch.device("cpu"), channels_last)
        assert batch.images.dtype == torch.uint8 and images.is_contiguous(
            memory_format=torch.channels_last if channels_last else torch.contiguous_format
        )
        for index, image in enumerate(images):
            record = source.records.read(index)
            with seeded(settings.seed, epoch, index, 0):
                expected = timm(decode_image(record.content, record.where))
            assert torch.equal(image, expected)


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_every_mode_of_erasing_is_timms_to_the_bit(mode: str, probability: float, tmp_path: Path) -> None:
    given = [f"augment.erase_prob={probability}", f"augment.erase_mode={mode}", "augment.auto=null"]
    source, settings = photographs("convnext_t", tmp_path, *given)
    timm = timms_own(settings)
    erased = 0
    for epoch in range(4):
        batch = loaded(source, epoch)
        assert (batch.erasing is None) == (probability == 0)
        erased += 0 if batch.erasing is None else len(batch.erasing.boxes)
        for index, image in enumerate(to_input(batch, model_transform(settings), torch.device("cpu"), True)):
            record = source.records.read(index)
            with seeded(settings.seed, epoch, index, 0):
                assert torch.equal(image, timm(decode_image(record.content, record.where)))
    assert erased == pytest.approx(probability * 4 * len(source), abs=0 if probability in (0, 1) else 15)


@pytest.mark.parametrize("auto", ["rand-m9-mstd0.5-inc1", "rand-m1", "rand-m9-t3aw", "v0", "original", "augmix-m9"])
def test_operations_that_keep_no_bits_leave_black_and_the_others_are_timms(auto: str) -> None:
    settings = load_settings(["recipe=convnext_t", f"augment.auto={auto}"])
    found = list(operations(training_transform(settings)))
    posterize = [operation for operation in found if operation.name.startswith("Posterize")]
    assert posterize and len(posterize) < len(found)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 8, 3), dtype=np.uint8))
    for operation in posterize:
        for bits in range(-2, 9):
            kept = operation.aug_fn(image, bits, **operation.kwargs)
            assert np.array_equal(np.asarray(kept), np.asarray(posterize_of_pillow_12(image, min(bits, 8))))
    for operation in found:
        assert operation in posterize or operation.aug_fn.__module__ == "timm.data.auto_augment"


def operations(step: Any) -> Iterator[Any]:
    """Every operation of timm's in a transform, however deep it lies."""
    if hasattr(step, "aug_fn"):
        yield step
    elif isinstance(step, list | tuple):
        for part in step:
            yield from operations(part)
    elif type(step).__module__.startswith(("timm.data", "torchvision.transforms")) and hasattr(step, "__dict__"):
        yield from operations([value for value in vars(step).values() if not isinstance(value, Enum)])


@pytest.mark.parametrize("name", recipe_names())
def test_a_smoke_run_takes_jpegs_through_the_recipes_own_augmentation(name: str) -> None:
    """Of the demo's recipes, whose scenes are not augmented, it takes their own way."""
    recipe, settings = load_settings([f"recipe={name}"]), load_settings([f"recipe={name}", "smoke=true"])
    assert settings.augment == recipe.augment
    source, val = open_data(settings)
    if name.startswith("demo"):
        assert settings.data.source == recipe.data.source == "scenes"
        return
    assert isinstance(source, Photographs) and isinstance(val, Photographs)
    assert (len(source), len(val), source.num_classes) == (24, 6, 12)
    content, label, where, _ = record = source.records.read(5)
    assert content.startswith(b"\xff\xd8") and source.records.read(5) == record
    assert content not in [val.records.read(i).content for i in range(len(val))]
    batch = source.__getitems__([SampleKey(1, 5, 0)])
    assert isinstance(batch, Batch) and batch.labels.tolist() == [label]
    with seeded(settings.seed, 1, 5, 0):
        expected = timms_own(settings)(decode_image(content, where))
    assert torch.equal(to_input(batch, model_transform(settings), torch.device("cpu"), False)[0], expected)
