"""The data sets by the names that people type."""

from __future__ import annotations

from evaluate.data.clickme import ClickMeData
from evaluate.data.folder import FolderData
from evaluate.data.interface import EvalData
from evaluate.data.scenes import ScenesData

DATA_SETS: dict[str, type[EvalData]] = {"clickme": ClickMeData, "scenes": ScenesData, "imagefolder": FolderData}
