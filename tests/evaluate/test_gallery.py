"""The gallery's maps are the measured ones, made as many at a time."""

import numpy as np

import evaluate.run.measure as measure
from evaluate.data.loader import load_batches
from evaluate.data.scenes import ScenesData
from evaluate.maps.arithmetic import resize_saliency
from evaluate.maps.overlays import overlay
from evaluate.network.micro_batch import MicroBatch
from evaluate.network.subject import load_subject
from evaluate.run.measure import measure_batch
from evaluate.run.options import RunOptions
from evaluate.run.pictures import gallery_column

METHODS = ("random", "smooth_grad:samples=2", "opti_cam:iterations=2", "conceptor_cam")


def test_its_maps_are_those_that_were_measured(checkpoint, monkeypatch):
    """Random ones too, in bfloat16, with the run's micro-batch, layer and batch size."""
    data, subject = ScenesData(64, 8), load_subject(str(checkpoint))
    micro = MicroBatch(3, RunOptions().device)
    options = RunOptions(METHODS, batch_size=2, workers=0, bf16=True, micro_batch=micro, layer="stages.7")
    asked, sizes, measured = [], [], {}
    original = measure.explain

    def spy(model, images, *args, **kwargs):
        maps = original(model, images, *args, **kwargs)
        sizes.append(len(images))
        asked.append((kwargs["bf16"], kwargs["micro_batch"], kwargs["layer"]))
        for key, *values in zip(kwargs["image_keys"], *(maps[name] for name in METHODS)):
            measured.setdefault(key, []).append(values)
        return maps

    monkeypatch.setattr(measure, "explain", spy)
    indices = [6, 1, 3]
    for batch in load_batches(data, subject.transform, indices, 2, 0):
        measure_batch(subject, data, batch, options)
    column = gallery_column(subject, data, indices, options)
    assert sizes == [2, 1, 2, 1] and set(asked) == {(True, micro, "stages.7")}
    for place, index in enumerate(indices):
        first, second = measured[index]
        pixels = next(load_batches(data, subject.transform, [index], 1, 0)).pixels[0]
        assert np.array_equal(column.pictures[place], pixels.permute(1, 2, 0))
        for name, one, two in zip(METHODS, first, second):
            assert one.equal(two), name
            assert column.maps[name][place] == overlay(pixels, resize_saliency(one[None], 64)[0]), name
    assert len(column.human) == len(column.labels) == 3
