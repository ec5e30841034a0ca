"""What is reported: training time without its pauses, and pictures that are whole."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from train import loop
from train.runs.snapshots import list_snapshots
from train.watching.pictures import save_png


def test_training_time_leaves_validation_pictures_and_snapshots_out(
    train_here: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock where an update takes a second and everything else that it meets takes an hour."""
    now = [0.0]

    def takes(seconds: float, done: Callable[..., object]) -> Callable[..., object]:
        def timed(*given: object) -> object:
            now[0] += seconds
            return done(*given)

        return timed

    monkeypatch.setattr("train.watching.clock.time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(loop, "constrain", takes(1, loop.constrain))
    monkeypatch.setattr(loop, "validate", takes(3600, loop.validate))
    monkeypatch.setattr(loop, "save_snapshot", takes(3600, loop.save_snapshot))
    monkeypatch.setattr("train.watching.watch.Watch.positions", takes(3600, lambda *_: None))
    often = ["log.validate_every=0.01", "log.pictures_every=0.01", "snapshots.every_updates=1"]
    run = train_here("recipe=demo_dcls", "smoke=true", "updates=3", "snapshots.keep_last=3", "publish=false", *often)
    records = [json.loads((place / "state.json").read_text()) for place in list_snapshots(run / "snapshots")]
    assert [record["progress"]["seconds"] for record in records] == [1, 2, 3]
    assert json.loads((run / "summary.json").read_text())["metrics"]["train_seconds"] == 3


def test_a_picture_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pictures" / "x.png"
    save_png(path, np.zeros((4, 5, 3), np.uint8))
    before = path.read_bytes()

    def dies(image: Image.Image, place: Path, **_: object) -> None:
        Path(place).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", dies)
    with pytest.raises(OSError, match="disk full"):
        save_png(path, np.ones((4, 5, 3), np.uint8))
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
