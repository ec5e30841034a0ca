"""One loader reads for all parts of a run; a batch that does not fit into memory is measured in halves."""

import json

import pyarrow.parquet as pq
import pytest
import torch

from common.errors import UserError
from evaluate.cli.main import main
from evaluate.data import loader as loading
from evaluate.data.loader import load_batches
from evaluate.data.scenes import ScenesData
from evaluate.network.subject import load_subject
from evaluate.run.measure import Unmeasurable, measure
from evaluate.run.options import RunOptions
from evaluate.run.pictures import gallery_column


@pytest.fixture
def given(checkpoint, monkeypatch):
    monkeypatch.setattr("evaluate.run.identity.CHUNK", 4)
    return ["--ckpt", str(checkpoint), "--data", "scenes", "--limit", "14", "--workers", "0", "--batch-size", "3"]


@pytest.fixture
def loaders(monkeypatch):
    """How many batches each loader that is made is asked for."""
    made, loader = [], loading.DataLoader

    def counted(items, batch_sampler, **kwargs):
        made.append([len(batch) for batch in batch_sampler])
        return loader(items, batch_sampler=batch_sampler, **kwargs)

    monkeypatch.setattr("evaluate.data.loader.DataLoader", counted)
    return made


@pytest.fixture
def read(monkeypatch):
    """Places of the images that are read."""
    places, picture = [], ScenesData.picture
    monkeypatch.setattr(ScenesData, "picture", lambda self, index: places.append(index) or picture(self, index))
    return places


def test_one_loader_reads_for_all_parts_and_batches_end_with_them(given, loaders, tmp_path):
    main([*given, "--out", str(tmp_path)])
    assert loaders[0] == [3, 1, 3, 1, 3, 1, 2] and len(loaders) == 2  # and one for the gallery
    rows = [pq.read_table(path).num_rows for path in sorted(tmp_path.glob("parts/*/*"))]
    assert rows == [8, 8, 8, 4]  # two explainers


def test_parts_that_are_finished_are_not_read_again(given, read, tmp_path, capsys):
    main([*given, "--out", str(tmp_path)])
    whole = pq.read_table(tmp_path / "per_image.parquet")
    parts = sorted(tmp_path.glob("parts/*/*"))
    second = pq.read_table(parts[1]).column("index").to_pylist()
    for part in (parts[1], parts[3]):
        part.unlink()
    read.clear()
    main([*given, "--out", str(tmp_path)])
    assert "2 of 4 parts kept" in capsys.readouterr().out
    assert read[:6] == [*dict.fromkeys(second), *dict.fromkeys(pq.read_table(parts[3]).column("index").to_pylist())]
    assert pq.read_table(tmp_path / "per_image.parquet").equals(whole)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_images_that_are_left_out_stay_with_their_part(given, tmp_path, monkeypatch, capsys, workers):
    picture = ScenesData.picture
    indices = loading.choose_indices(1000, 14, 0).tolist()
    damaged = {*indices[4:8], indices[13]}  # all of the second part, and the last

    def some(self, index):
        if index in damaged:
            raise UserError(f"no picture {index}")
        return picture(self, index)

    monkeypatch.setattr(ScenesData, "picture", some)
    arguments = [*given, "--workers", workers, "--out", str(tmp_path)]
    with pytest.raises(UserError, match=rf"no picture {indices[4]}\b"):
        main(arguments)
    assert len(list(tmp_path.glob("parts/*/*"))) == 1
    capsys.readouterr()
    main([*arguments, "--skip-bad"])
    printed = capsys.readouterr().out
    assert (
        "1 of 4 parts kept" in printed and "5 images left out" in printed and "untrained_dcls: 9 images in" in printed
    )
    assert ", 5 left out" in printed
    left_out = [json.loads(pq.read_schema(p).metadata[b"left_out"]) for p in sorted(tmp_path.glob("parts/*/*"))]
    assert left_out == [[], [f"no picture {n}" for n in indices[4:8]], [], [f"no picture {indices[13]}"]]
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores[0]["n_images"] == 9 and scores[0]["images_per_second"] == pytest.approx(9 / scores[0]["seconds"])
    with pytest.raises(UserError, match="no picture"):  # without --skip-bad such parts do not count as finished
        main(arguments)


class Hungry(torch.nn.Module):
    """A model whose passes run out of memory above a number of images, one way or the other."""

    def __init__(self, model, most, error):
        super().__init__()
        self.model, self.most, self.error, self.seen = model, most, error, []

    def __getattr__(self, name):
        return super().__getattr__(name) if name == "model" else getattr(self.model, name)

    def checked(self, images):
        self.seen.append(len(images))
        if len(images) > self.most:
            raise self.error
        return images

    def forward(self, images):
        return self.model(self.checked(images))

    def forward_features(self, images):
        return self.model.forward_features(self.checked(images))


OUT = torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("error", [OUT, RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_batch_that_does_not_fit_is_measured_in_halves_and_so_are_those_after_it(checkpoint, error):
    data = ScenesData(64, 20)
    options = RunOptions(("grad_cam", "random"), ("paper", "aligned"), ("average_drop", "pointing_game"), 8, 0)
    subject = load_subject(str(checkpoint))
    expected = [row for batch in measure(subject, data, range(20), RunOptions(**{**vars(options), "batch_size": 2}))
                for row in batch.rows]  # fmt: skip
    subject.model = Hungry(subject.model, 3, error)
    found = list(measure(subject, data, range(20), options))
    assert [batch.n_images for batch in found] == [8, 8, 4]
    assert [row for batch in found for row in batch.rows] == expected
    shared = [size for size in subject.model.seen if size != 1]
    assert shared[:3] == [8, 4, 2] and max(shared[3:]) == 2  # found out once


def test_the_gallery_is_made_in_halves_too(checkpoint):
    data, subject = ScenesData(64, 8), load_subject(str(checkpoint))
    options, items = RunOptions(("grad_cam",), batch_size=8, workers=0), list(range(8))
    expected = gallery_column(subject, data, items, options)
    subject.model = Hungry(subject.model, 3, OUT)
    found = gallery_column(subject, data, items, options)
    assert found.labels == expected.labels and found.pictures == expected.pictures and found.human == expected.human
    assert len(found.maps["grad_cam"]) == 8


def test_where_not_even_one_image_fits_that_is_told(checkpoint):
    subject = load_subject(str(checkpoint))
    subject.model = Hungry(subject.model, 0, OUT)
    with pytest.raises(Unmeasurable, match="not even one image at a time fits into the memory of cpu"):
        list(measure(subject, ScenesData(64, 4), range(4), RunOptions(batch_size=4, workers=0)))


def test_another_error_is_no_matter_of_memory(checkpoint):
    subject = load_subject(str(checkpoint))
    subject.model = Hungry(subject.model, 0, RuntimeError("a fault of ours"))
    with pytest.raises(RuntimeError, match="a fault of ours"):
        list(measure(subject, ScenesData(64, 4), range(4), RunOptions(batch_size=4, workers=0)))
    assert subject.model.seen == [4]


def test_parts_of_a_batch_are_what_was_read(tmp_path):
    data = ScenesData(64, 4)
    (batch,) = load_batches(data, load_subject("untrained", "demo").transform, range(4), 4, 0)
    part = batch.part(slice(1, 3))
    assert len(part) == 2 and part.image_ids == batch.image_ids[1:3]
    for name in ("pixels", "human", "labels", "indices"):
        assert torch.equal(getattr(part, name), getattr(batch, name)[1:3])
    assert all(map(torch.equal, part.boxes, batch.boxes[1:3]))
