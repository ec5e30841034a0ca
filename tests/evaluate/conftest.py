"""A small checkpoint and a ClickMe shard that tests of the command share."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.checkpoint import save_checkpoint
from common.checkpoint_config import CheckpointConfig
from common.data.tfrecord import encode_example, write_records
from common.models.transform import ModelTransform
from common.models.zoo import create_model, lookup
from common.surgery import position_groups


def save_untrained(
    folder: Path, name: str = "demo_dcls", seed: int = 0, transform: ModelTransform | None = None, **model_args: object
) -> Path:
    """An untrained checkpoint whose positions are spread and whose BatchNorm has seen pictures."""
    torch.manual_seed(seed)
    entry = lookup(name)
    model = create_model(name, **model_args)
    for group in position_groups(model):
        torch.nn.init.normal_(group.positions, std=2.0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    with torch.no_grad():
        model(torch.randn(16, 3, 64, 64))
    config = CheckpointConfig(name, entry.num_classes, transform or entry.transform, entry.dcls, dict(model_args))
    save_checkpoint(folder, model, config)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """An untrained `demo_dcls` checkpoint."""
    return save_untrained(tmp_path_factory.mktemp("checkpoints") / "untrained_dcls")


def jpeg(array: np.ndarray) -> bytes:
    """A JPEG of a uint8 array."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def clickme_root(tmp_path_factory) -> Path:
    """Two shards of 4 and 3 records in the published layout; the last human map is blank."""
    generator = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("clickme")
    y, x = np.mgrid[:256, :256]
    number = 0
    for shard, count in enumerate((4, 3)):
        payloads = []
        for _ in range(count):
            coarse = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            image = np.asarray(Image.fromarray(coarse).resize((256, 256), Image.Resampling.BICUBIC))
            cy, cx = generator.uniform(60, 196, 2)
            human = 255 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * 40**2))
            if number == 6:
                human[:] = 0
            features = {"image": jpeg(image), "heatmap": jpeg(human.astype(np.uint8)), "label": int(100 + number)}
            payloads.append(encode_example(features))
            number += 1
        write_records(folder / f"val-{shard}.tfrecords", payloads)
    return folder
