"""Generated scenes as a data set of the evaluation."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from PIL import Image

from common.data.scenes import CLASS_NAMES, SceneConfig, Scenes
from evaluate.data.interface import EvalData, ModelView, Picture, Source, hash_of

SCENES_COUNT = 1000


class ScenesData(EvalData):
    """Generated scenes that no training run has seen (their validation split)."""

    name = "scenes"
    has_boxes = True
    num_classes = len(CLASS_NAMES)

    def __init__(self, size: int, count: int = SCENES_COUNT, config: SceneConfig | None = None) -> None:
        config = config or SceneConfig()
        self.scenes = Scenes(count, SceneConfig(size, config.difficulty, config.seed), "val")
        self.class_names = list(CLASS_NAMES)

    @classmethod
    def opener(cls, source: Source) -> Callable[[ModelView], EvalData]:
        """Scenes of the size that a model takes."""
        made = cache(cls)
        return lambda model: made(model.size)

    def __len__(self) -> int:
        return len(self.scenes)

    def picture(self, index: int) -> Picture:
        """One scene, at the size the model takes."""
        scene = self.scenes[index]
        image = Image.fromarray(scene.image.permute(1, 2, 0).contiguous().numpy())
        return Picture(image, scene.human_map, scene.label, f"val/{index:06d}", [[float(v) for v in scene.box]])

    def fingerprint(self) -> str:
        """Hash of what the scenes are a function of."""
        return hash_of([f"{self.scenes.config} {len(self)}"])


ENTRIES = (ScenesData,)
