"""ClickMe against the output of the original TensorFlow pipeline, and against slow loops."""

import io
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from common.data.clickme import ClickMe, Record, blur_human_map, paper_image, tf_resize
from common.data.tfrecord import encode_example, write_records
from common.errors import UserError


def jpeg(mode: str = "RGB", side: int = 256, value: int = 90) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (side, side), (value,) * len(mode) if len(mode) > 1 else value).save(buffer, "JPEG")
    return buffer.getvalue()


def record(**changes: object) -> bytes:
    features = {"image": jpeg(), "heatmap": jpeg("L"), "label": 5} | changes
    return encode_example({name: value for name, value in features.items() if value is not None})


def write_shards(folder: Path, counts: dict[str, int]) -> None:
    """Shards whose labels count through all records, in the order given."""
    folder.mkdir(parents=True, exist_ok=True)
    label = 0
    for name, count in counts.items():
        write_records(folder / name, [record(label=label + i) for i in range(count)])
        label += count


@pytest.fixture(scope="module")
def expected(shared_data: Path) -> dict[str, np.ndarray]:
    return dict(np.load(shared_data / "clickme" / "expected.npz"))


@pytest.fixture(scope="module")
def batch(shared_data: Path) -> Record:
    dataset = ClickMe(shared_data / "clickme")
    return next(iter(DataLoader(dataset, batch_size=len(dataset))))


def test_images_agree_with_tensorflow(batch: Record, expected: dict[str, np.ndarray]) -> None:
    ours = paper_image(batch.image).permute(0, 2, 3, 1).numpy()
    assert ours.dtype == np.uint8
    difference = np.abs(ours.astype(int) - expected["image"])
    assert (difference <= 1).mean() >= 0.999
    assert (difference == 0).mean() >= 0.9999  # measured: all; 0.9997 with F.interpolate's rounding


def test_human_maps_agree_with_tensorflow(batch: Record, expected: dict[str, np.ndarray]) -> None:
    ours = blur_human_map(batch.heatmap)
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours.numpy(), expected["heatmap"], atol=1e-3, rtol=0)  # measured: 2.3e-5


def test_labels_and_ids_come_in_order(batch: Record, expected: dict[str, np.ndarray]) -> None:
    assert batch.label.tolist() == expected["label"].tolist()
    assert list(batch.image_id) == [f"val-{shard}/{number:05d}" for shard in (0, 1) for number in range(8)]


def test_real_maps_are_read(shared_data: Path) -> None:
    dataset = ClickMe(shared_data / "clickme_real")
    assert len(dataset) == 11
    for item in dataset:
        assert item.image.shape == (256, 256, 3)
        assert item.heatmap.shape == (256, 256)
        assert item.image.dtype == item.heatmap.dtype == np.uint8
        assert item.heatmap.max() > item.heatmap.min()


def test_shards_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write_shards(tmp_path, {"val-0.tfrecords": 1, "val-2.tfrecords": 3, "val-10.tfrecords": 2})
    (tmp_path / "val-x.tfrecords").write_text("not a shard")
    dataset = ClickMe(tmp_path)
    ids = ["val-0/00000", "val-2/00000", "val-2/00001", "val-2/00002", "val-10/00000", "val-10/00001"]
    assert len(dataset) == 6
    assert [item.label for item in dataset] == list(range(6))
    assert [item.image_id for item in dataset] == ids
    assert [dataset.image_id(i) for i in range(6)] == ids
    assert dataset[-1].label == 5
    assert dataset.missing_shards[:2] == ["val-1.tfrecords", "val-3.tfrecords"]
    assert len(dataset.missing_shards) == 17 - 3
    for index in (6, -7):
        with pytest.raises(IndexError, match=str(index)):
            dataset[index]


@pytest.mark.parametrize("place", ["", "val", "train"])
def test_shards_are_found_in_the_folder_and_its_subfolders(tmp_path: Path, place: str) -> None:
    name = f"{place or 'val'}-0.tfrecords"
    write_shards(tmp_path / place, {name: 2})
    assert [path.name for path in ClickMe(tmp_path).shards] == [name]
    alone = ClickMe(tmp_path / place / name)
    assert len(alone) == 2
    assert alone[1].image_id == f"{place or 'val'}-0/00001"


def test_validation_shards_go_before_training_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, {"train-0.tfrecords": 1})
    assert len(ClickMe(tmp_path).missing_shards) == 317
    write_shards(tmp_path / "val", {"val-0.tfrecords": 1})
    assert [path.name for path in ClickMe(tmp_path).shards] == ["val-0.tfrecords"]


def test_workers_give_the_same_as_one_process(tmp_path: Path) -> None:
    write_shards(tmp_path, {"val-0.tfrecords": 3, "val-1.tfrecords": 2})
    dataset = ClickMe(tmp_path)
    assert pickle.loads(pickle.dumps(dataset))[4].image_id == "val-1/00001"
    loader = DataLoader(dataset, batch_size=2, num_workers=2, multiprocessing_context="spawn")
    batches = list(loader)
    assert [name for batch in batches for name in batch.image_id] == [item.image_id for item in dataset]
    images = torch.cat([batch.image for batch in batches])
    assert torch.equal(images, torch.stack([torch.from_numpy(item.image) for item in dataset]))


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_shards_names_the_layout(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "clickme"
    if make:
        folder.mkdir()
    state = "holds no" if make else "does not exist"
    told = rf"clickme {state}.*val-0\.tfrecords .* val-16\.tfrecords.*serrelab"
    with pytest.raises(UserError, match=told):
        ClickMe(folder)


def test_an_empty_or_cut_shard_is_refused_at_once(tmp_path: Path) -> None:
    write_shards(tmp_path, {"val-0.tfrecords": 1, "val-1.tfrecords": 2})
    path = tmp_path / "val-1.tfrecords"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"val-1\.tfrecords: record 1 at byte \d+"):
        ClickMe(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"val-1\.tfrecords is empty"):
        ClickMe(tmp_path)


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (record(image=b"no picture"), "'image' does not decode"),
        (record(image=jpeg()[:-200]), "'image' does not decode"),
        (record(heatmap=jpeg("L", side=64)), r"'heatmap' .*64x64, not 256x256"),
        (record(heatmap=None), r"no feature 'heatmap', only \['image', 'label'\]"),
        (record(label=None), "no feature 'label'"),
        (record(label=[1, 2]), "'label' holds 2 values"),
        (record(label=1000), "label is 1000"),
        (record(image=3), r"'image' holds 1 values \['int'\], not one bytes"),
        (b"\x0a\xff", "ends within a number"),
    ],
)
def test_a_record_that_cannot_be_used_is_named(tmp_path: Path, payload: bytes, told: str) -> None:
    write_records(tmp_path / "val-3.tfrecords", [record(), payload, record()])
    dataset = ClickMe(tmp_path)
    assert dataset[2].image_id == "val-3/00002"
    with pytest.raises(UserError, match=rf"val-3\.tfrecords: record 1 .*{told}"):
        dataset[1]


def test_a_flipped_bit_in_a_picture_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "val-0.tfrecords"
    write_records(path, [record()])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"record 0 at byte 0 .*CRC"):
        ClickMe(tmp_path)[0]


def slow_resize(x: np.ndarray, size: int) -> np.ndarray:
    """(H, W) to (size, size), pixel by pixel in float64."""
    result = np.zeros((size, size))
    for row in range(size):
        for column in range(size):
            for i, y in around(row, x.shape[0], size):
                for j, w in around(column, x.shape[1], size):
                    result[row, column] += y * w * x[i, j]
    return result


def around(target: int, length: int, size: int) -> list[tuple[int, float]]:
    place = min(max((target + 0.5) * length / size - 0.5, 0), length - 1)
    below = math.floor(place)
    return [(below, 1 - place + below), (min(below + 1, length - 1), place - below)]


@pytest.mark.parametrize(("shape", "size"), [((9, 14), 7), ((5, 8), 12), ((6, 6), 6), ((1, 3), 4)])
def test_resize_equals_a_slow_loop(shape: tuple[int, int], size: int) -> None:
    x = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    ours = tf_resize(x, size)
    for b in range(2):
        for c in range(3):
            np.testing.assert_allclose(ours[b, c].numpy(), slow_resize(x[b, c].numpy(), size), atol=1e-6)


def test_flat_images_keep_their_grey_level() -> None:
    levels = torch.arange(3, 256, 12, dtype=torch.uint8)[:, None, None, None]
    assert torch.equal(paper_image(levels.expand(-1, 256, 256, 3)), levels.expand(-1, 3, 224, 224))


def test_images_are_cut_to_integers_not_rounded() -> None:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (1, 20, 20, 3), dtype=torch.uint8, generator=generator)
    exact = slow_resize(image[0, :, :, 1].numpy().astype(float), 224)
    ours = paper_image(image)[0, 1].numpy()
    clear = np.abs(exact - np.round(exact)) > 1e-3  # elsewhere float32 may fall on either side
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(ours[clear], np.floor(exact[clear]))


def slow_blur(x: np.ndarray) -> np.ndarray:
    """The 10x10 kernel of the original, summed tap by tap with zeros outside: 4 places before, 5 after."""
    taps = {
        (row, column): math.exp(-((4 - row) ** 2 + (column - 5) ** 2) / 200)
        for row in range(10)
        for column in range(10)
    }
    padded = np.pad(x, ((4, 5), (4, 5)))
    height, width = x.shape
    total = sum(taps.values())
    return sum(w / total * padded[r : r + height, c : c + width] for (r, c), w in taps.items())


@pytest.mark.parametrize("place", [(30, 12), (0, 0), (63, 63), (2, 61)])
def test_the_blur_of_a_point_equals_a_slow_loop(place: tuple[int, int]) -> None:
    heatmap = np.zeros((64, 64), dtype=np.uint8)
    heatmap[place] = 255
    ours = blur_human_map(torch.from_numpy(heatmap)[None])[0]
    assert ours.shape == (224, 224)
    wanted = slow_resize(slow_blur(heatmap.astype(float)), 224)
    np.testing.assert_allclose(ours.numpy(), wanted, atol=1e-4, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_gpu_agrees_with_the_cpu() -> None:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (4, 256, 256, 3), dtype=torch.uint8, generator=generator)
    assert torch.equal(paper_image(images.cuda()).cpu(), paper_image(images))
    maps = images[..., 0]
    torch.testing.assert_close(blur_human_map(maps.cuda()).cpu(), blur_human_map(maps), atol=1e-4, rtol=0)


def test_photographs_in_the_place_of_shards_are_told(tmp_path):
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "1.JPEG").write_bytes(b"")
    with pytest.raises(UserError, match="holds no ClickMe shards, but pictures: give --data imagefolder"):
        ClickMe(tmp_path)
