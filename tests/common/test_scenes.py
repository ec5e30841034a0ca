"""The scenes data set: reproducible, fresh, balanced, solvable only by looking at shape and texture together."""

import dataclasses
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from common.data.scene_glyphs import SHAPES, TEXTURES, draw_glyphs
from common.data.scene_random import Draws, scene_keys
from common.data.scenes import CLASS_NAMES, SceneConfig, Scenes, render_scenes
from common.errors import UserError

CONFIG = SceneConfig(size=32, difficulty=0.7, seed=5)
N_CLASSES = len(CLASS_NAMES)


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


def test_shapes_and_types():
    scene = Scenes(4, SceneConfig(size=40))[1]
    assert scene.image.shape == (3, 40, 40) and scene.image.dtype == torch.uint8
    assert scene.mask.shape == (40, 40) and scene.mask.dtype == torch.bool
    assert scene.human_map.shape == (40, 40) and scene.human_map.dtype == torch.float32
    assert isinstance(scene.label, int) and 0 <= scene.label < N_CLASSES
    assert scene.human_map.min() >= 0 and scene.human_map.max() == 1
    rows, columns = torch.nonzero(scene.mask, as_tuple=True)
    assert scene.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_a_scene_depends_on_nothing_but_its_name():
    torch.manual_seed(0)
    np.random.seed(0)
    first = render_scenes([3, 4], CONFIG, epoch=2)
    torch.rand(7)
    np.random.rand(7)
    assert_same(first, render_scenes([3, 4], CONFIG, epoch=2))


@pytest.mark.parametrize("size", [32, 37, 64])
def test_a_scene_is_the_same_bits_alone_and_in_any_batch(size):
    config = dataclasses.replace(CONFIG, size=size)
    indices = [*range(40), 1000, 7]
    together = render_scenes(indices, config, epoch=1)
    backwards = render_scenes(indices[::-1], config, epoch=1)
    data = Scenes(1001, config, epoch=1)
    for place, index in enumerate(indices):
        alone = data[index]
        assert_same(alone, [field[place] for field in together])
        assert_same(alone, [field[-1 - place] for field in backwards])


def test_leaving_the_maps_out_changes_nothing_else():
    full, lean = (Scenes(30, CONFIG).batch(range(30), human_maps=maps) for maps in (True, False))
    assert lean.human_maps is None
    assert torch.equal(full.images, lean.images) and torch.equal(full.labels, lean.labels)
    assert full.images.is_contiguous(memory_format=torch.channels_last)


def test_training_scenes_are_fresh_in_every_epoch_and_validation_scenes_stay():
    train, val = Scenes(36, CONFIG, "train"), Scenes(36, CONFIG, "val")
    before, before_val = train.batch(range(36)), val.batch(range(36))
    train.set_epoch(1)
    val.set_epoch(1)
    after = train.batch(range(36))
    assert (before.images != after.images).flatten(1).any(dim=1).all()
    assert (before.labels != after.labels).any()
    assert_same(before_val, val.batch(range(36)))


def test_no_two_scenes_share_a_key():
    indices = np.array([*range(2000), (1 << 39) - 1], dtype=np.uint64)
    names = [("val", 0), *(("train", epoch) for epoch in (0, 1, 2, 77, (1 << 23) - 1))]
    keys = np.concatenate([scene_keys(3, split, epoch, indices) for split, epoch in names])
    assert len(np.unique(keys)) == len(names) * len(indices)
    assert not np.intersect1d(keys, scene_keys(4, "train", 0, indices)).size


def test_images_of_splits_epochs_and_seeds_differ():
    other_seed = dataclasses.replace(CONFIG, seed=6)
    drawn = [
        Scenes(48, CONFIG, "val"),
        Scenes(48, CONFIG),
        Scenes(48, CONFIG, epoch=1),
        Scenes(48, other_seed),
    ]
    images = torch.cat([scenes.batch(range(48), human_maps=False).images for scenes in drawn])
    assert len(torch.unique(images.flatten(1), dim=0)) == len(images)


def test_labels_are_balanced_and_in_no_fixed_order():
    blocks = Scenes(50 * N_CLASSES, CONFIG).batch(range(50 * N_CLASSES), human_maps=False).labels.view(50, N_CLASSES)
    assert torch.equal(blocks.sort(dim=1).values, torch.arange(N_CLASSES).expand(50, -1))
    # Every second scene, as one of two processes sees them, holds all classes about equally often, too.
    assert torch.bincount(blocks.flatten()[::2], minlength=N_CLASSES).min() > 12
    assert len(torch.unique(blocks, dim=0)) == 50


def test_a_class_is_a_pair_of_which_neither_part_is_enough():
    assert tuple(f"{texture} {shape}" for texture, shape in product(TEXTURES, SHAPES)) == CLASS_NAMES
    assert N_CLASSES >= 10 and min(len(SHAPES), len(TEXTURES)) >= 3


def test_the_object_has_the_shape_and_texture_of_its_label_and_distractors_never_have_both():
    draws = Draws(scene_keys(0, "train", 0, np.arange(600, dtype=np.uint64)))
    labels = np.arange(600) % N_CLASSES
    glyphs = draw_glyphs(draws, labels, 64, 1.0)
    assert (glyphs.outline[:, -1] == [SHAPES.index(CLASS_NAMES[n].split()[1]) for n in labels]).all()
    assert (glyphs.fill[:, -1] == [TEXTURES.index(CLASS_NAMES[n].split()[0]) for n in labels]).all()
    shaped = glyphs.outline[:, :-1] < len(SHAPES)
    textured = glyphs.fill[:, :-1] < len(TEXTURES)
    assert not (shaped & textured).any()
    # At full difficulty, distractors show every shape and every texture alike, whatever the object is.
    shown = glyphs.present[:, :-1]
    for kind, values, n in ((shaped, glyphs.outline, len(SHAPES)), (textured, glyphs.fill, len(TEXTURES))):
        counts = np.bincount(values[:, :-1][kind & shown], minlength=n)
        assert counts.sum() == 2 * 600 and counts.min() > 0.8 * counts.max()


def test_nothing_but_outline_and_fill_of_the_object_sees_the_label():
    keys = scene_keys(0, "train", 0, np.arange(50, dtype=np.uint64))
    one = draw_glyphs(Draws(keys), np.zeros(50, dtype=np.int64), 64, 0.5)
    other = draw_glyphs(Draws(keys), np.full(50, N_CLASSES - 1), 64, 0.5)
    for name, a, b in zip(one._fields, one, other, strict=True):
        if name in ("outline", "fill"):
            a, b = a[:, :-1], b[:, :-1]
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_difficulty_shrinks_the_object_and_adds_distractors():
    easy, hard = (render_scenes(range(60), SceneConfig(48, d), human_maps=False) for d in (0.0, 1.0))
    assert easy.masks.sum() > 1.5 * hard.masks.sum()
    draws = [Draws(scene_keys(0, "train", 0, np.arange(60, dtype=np.uint64))) for _ in range(3)]
    shown = [draw_glyphs(d, np.zeros(60, dtype=np.int64), 48, x).present.sum() for d, x in zip(draws, (0, 0.5, 1))]
    assert shown[0] == 60 < shown[1] < shown[2] == 7 * 60


def linear_accuracy(features, labels, test_features, test_labels):
    """Held-out accuracy of a multinomial logistic regression."""
    mean, std = features.mean(0), features.std(0) + 1e-6
    features, test_features = (features - mean) / std, (test_features - mean) / std
    model = torch.nn.Linear(features.shape[1], N_CLASSES)
    torch.nn.init.zeros_(model.weight)
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(features), labels) + 1e-3 * model.weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return (model(test_features).argmax(1) == test_labels).float().mean().item()


def colour_histogram(images):
    """(B, 3, H, W) uint8 -> (B, 4 * 4 * 4) shares of the colours."""
    bins = (images.long() // 64 * torch.tensor([16, 4, 1]).view(1, 3, 1, 1)).sum(1).flatten(1)
    return torch.zeros(len(images), 64).scatter_add_(1, bins, torch.ones(bins.shape)) / bins.shape[1]


def background_corners(images):
    """(B, 3, H, W) uint8 -> the four corners' mean colours, (B, 12)."""
    return torch.nn.functional.adaptive_avg_pool2d(images.float(), 4)[..., ::3, ::3].flatten(1)


def test_colour_position_and_background_do_not_tell_the_class():
    config = SceneConfig(size=48, difficulty=0.5)
    train = Scenes(3000, config).batch(range(3000), human_maps=False)
    test = Scenes(1500, config, "val").batch(range(1500), human_maps=False)
    cues = {
        "colour": colour_histogram,
        "corners": background_corners,
    }
    for name, cue in cues.items():
        accuracy = linear_accuracy(cue(train.images), train.labels, cue(test.images), test.labels)
        assert accuracy < 2 / N_CLASSES, name
    centres = [(batch.boxes[:, :2] + batch.boxes[:, 2:]).float() / 2 for batch in (train, test)]
    features = [torch.cat((c, c**2, c[:, :1] * c[:, 1:]), dim=1) for c in centres]
    assert linear_accuracy(features[0], train.labels, features[1], test.labels) < 2 / N_CLASSES
    # The instrument can tell the classes where there is a cue: the object's outline betrays the shape.
    outlines = [torch.nn.functional.interpolate(b.masks[:, None].float(), (12, 12)).flatten(1) for b in (train, test)]
    area = [torch.cat((o, b.boxes.float()), dim=1) for o, b in zip(outlines, (train, test), strict=True)]
    assert linear_accuracy(area[0], train.labels, area[1], test.labels) > 1.5 / N_CLASSES


def test_the_human_map_lies_on_the_object():
    batch = render_scenes(range(100), SceneConfig(size=64, difficulty=0.5))
    maps, masks = batch.human_maps, batch.masks
    peak_on_object = masks.flatten(1).gather(1, maps.flatten(1).argmax(1, keepdim=True)).float().mean()
    assert peak_on_object > 0.95
    near = torch.nn.functional.max_pool2d(masks[:, None].float(), 21, stride=1, padding=10)[:, 0]
    assert ((maps * near).sum((1, 2)) > 0.9 * maps.sum((1, 2))).all()
    # Clicks are a sample of the object, not the whole of it: the map is like the mask, and not equal to it.
    alike = np.mean([spearmanr(h.flatten(), m.flatten())[0] for h, m in zip(maps, masks, strict=True)])
    elsewhere = np.mean([spearmanr(h.flatten(), m.flatten())[0] for h, m in zip(maps, masks.roll(1, 0), strict=True)])
    assert alike > 0.5 > elsewhere + 0.2


@pytest.mark.parametrize("size", [16, 33, 50, 96, 224])
def test_any_size_holds_an_object(size):
    batch = render_scenes(range(12), SceneConfig(size=size, difficulty=1.0))
    assert batch.images.shape == (12, 3, size, size)
    share = batch.masks.float().mean((1, 2))
    assert share.min() > 0.03 and share.max() < 0.2
    assert (batch.boxes[:, :2] < batch.boxes[:, 2:]).all() and batch.boxes.min() >= 0 and batch.boxes.max() <= size


def test_a_picture_keeps_its_composition_at_another_size():
    small, large = (render_scenes(range(8), SceneConfig(size=size)) for size in (48, 96))
    assert torch.equal(small.labels, large.labels)
    assert (small.boxes * 2 - large.boxes).abs().max() <= 3


def test_the_data_loader_of_torch_takes_it():
    loader = torch.utils.data.DataLoader(Scenes(20, CONFIG), batch_size=10, num_workers=1)
    images = torch.cat([batch[0] for batch in loader])
    assert torch.equal(images, Scenes(20, CONFIG).batch(range(20)).images)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda: SceneConfig(difficulty=1.01), "difficulty=1.01"),
        (lambda: SceneConfig(difficulty=-0.1), "difficulty=-0.1"),
        (lambda: SceneConfig(difficulty=float("nan")), "difficulty=nan"),
        (lambda: SceneConfig(size=15), "size=15"),
        (lambda: SceneConfig(seed=-1), "seed=-1"),
        (lambda: Scenes(0, CONFIG), "count=0"),
        (lambda: Scenes(5, CONFIG, "test"), "'test'"),
        (lambda: Scenes(5, CONFIG).set_epoch(-1), "epoch=-1"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_the_value(wrong, named):
    with pytest.raises(UserError, match=named):
        wrong()


def test_an_index_past_the_end_ends_iteration():
    with pytest.raises(IndexError):
        Scenes(5, CONFIG)[5]
    assert len(list(Scenes(5, CONFIG))) == 5
