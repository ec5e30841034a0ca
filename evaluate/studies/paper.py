"""`--study paper`: the sixteen models of the study, each plain one against its DCLS twin."""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError
from common.models.zoo import STUDY_MODELS, lookup
from evaluate.network.requests import Request
from evaluate.studies.study import Study

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".pt")


def paper(weights_dir: Path | None) -> list[Request]:
    """The study's checkpoints: local files where `weights_dir` has them, else what is published.

    In `weights_dir` a model's file is `NAME.pth` (or another suffix of `WEIGHT_SUFFIXES`), NAME a name of the
    zoo, or bears the name it is published under.

    Raises:
        UserError: `weights_dir` is not a folder.
    """
    if weights_dir is not None and not weights_dir.is_dir():
        raise UserError(f"--weights-dir {weights_dir}: no such folder")
    return [_request(name, weights_dir) for name in STUDY_MODELS]


def _request(name: str, weights_dir: Path | None) -> Request:
    entry = lookup(name)
    if weights_dir is not None:
        names = [name + suffix for suffix in WEIGHT_SUFFIXES]
        if entry.published:
            names.insert(0, entry.published.url.rpartition("/")[2])
        for candidate in names:
            if (weights_dir / candidate).is_file():
                return Request(str(weights_dir / candidate), name, name=name)
    if entry.published:
        return Request(f"zenodo:{name}", name=name)
    return Request(f"timm:{entry.architecture}.{entry.tags[0]}", name=name)


ENTRIES = (
    Study(
        "paper",
        paper,
        pairs=tuple((name, f"{name}_dcls") for name in STUDY_MODELS if not name.endswith("_dcls")),
    ),
)
