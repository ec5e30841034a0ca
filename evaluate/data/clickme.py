"""ClickMe as a data set of the evaluation."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from common.data.clickme import HUMAN_CEILING, blur_human_map, paper_image
from common.data.clickme_table import open_clickme
from common.data.folders import names_of_classes
from evaluate.data.interface import EvalData, Picture, hash_of, state_of


class ClickMeData(EvalData):
    """ClickMe photographs and human maps (see `common.data.clickme`)."""

    name = "clickme"
    layout = "val-0.tfrecords ... val-16.tfrecords, or the Parquet that `python -m evaluate.clickme convert` wrote"
    ceiling = HUMAN_CEILING

    def __init__(self, root: Path) -> None:
        self.records = open_clickme(root.expanduser())
        absent, left_out = len(self.records.missing_shards), self.records.left_out
        reasons = [f"{absent} published shards absent"] * bool(absent)
        reasons += [f"{left_out} records left out by the conversion"] * bool(left_out)
        self.missing_parts = "; ".join(reasons)
        self.class_names = names_of_classes(self.num_classes)
        self.place = str(root.resolve())

    def __len__(self) -> int:
        return len(self.records)

    def picture(self, index: int) -> Picture:
        """The 224 px image the study feeds to the models' own transforms; the human map is still unblurred."""
        record = self.records[index]
        pixels = paper_image(torch.from_numpy(record.image)[None])[0].permute(1, 2, 0).numpy()
        return Picture(Image.fromarray(pixels), torch.from_numpy(record.heatmap), record.label, record.image_id)

    def human_maps(self, stored: Tensor) -> Tensor:
        """(B, 256, 256) uint8 -> (B, 224, 224), blurred as ClickMe's own code does."""
        return blur_human_map(stored)

    def fingerprint(self) -> str:
        """Hash of the shards' names, sizes and times of modification."""
        return hash_of((shard.name, state_of(shard)) for shard in self.records.shards)


ENTRIES = (ClickMeData,)
