"""The checkpoint under evaluation: from what people type after `--ckpt` to a folded model ready to be measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import Tensor, nn

from common.checkpoint import load_checkpoint
from common.errors import UserError
from common.models.published import fetch_published, published_state
from common.models.transform import ModelTransform
from common.models.zoo import ZooModel, create_model, lookup
from common.surgery import fold_dcls
from common.text import without_tokens
from common.weights import load_state, sha256
from evaluate.network.compiled import CompiledModel


@dataclass
class Subject:
    """A checkpoint to be measured, with what its rows and scores say about it."""

    name: str
    """Label in tables, unique within a run."""
    model: nn.Module
    """Evaluation mode, DCLS layers folded, parameters without gradients."""
    model_name: str
    """Name in the zoo, or `timm:ARCHITECTURE`."""
    transform: ModelTransform
    num_classes: int
    source: str
    """What was typed."""
    weights_sha256: str
    """Of the weight file; empty for weights from the hub or none."""
    num_params: int
    """Distinct parameters before folding."""
    classes: list[str] | None = None
    """Name of every class, in order of index, if the checkpoint has them."""

    def to(self, device: torch.device) -> None:
        """Move the model; channels_last, in which convolutions run fastest."""
        self.model.to(device).to(memory_format=torch.channels_last)

    def see(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, crop, crop) on the model's device -> its float32 input, channels_last."""
        return self.transform.normalise(pixels).contiguous(memory_format=torch.channels_last)

    def compile(self) -> None:
        """Compile the model; it must be on its device."""
        self.model = CompiledModel(self.model)


def label_of(spec: str, model_name: str | None = None) -> str:
    """What a checkpoint is called in tables, see `load_subject`."""
    if spec == "untrained":
        return f"{lookup(_needed(model_name, spec)).name} (untrained)"
    if spec.startswith("timm:"):
        return spec
    if spec.startswith("zenodo:"):
        return lookup(spec.removeprefix("zenodo:")).name
    if spec.startswith("hf-hub:"):
        return spec.rpartition("/")[2]
    path = Path(spec).expanduser()
    return path.name.partition(".")[0] if path.is_file() else path.resolve().name


def states_model(spec: str) -> bool:
    """Whether what follows `--ckpt` determines its own architecture."""
    return spec.startswith(("timm:", "zenodo:", "hf-hub:")) or Path(spec).expanduser().is_dir()


def load_subject(
    spec: str, model_name: str | None = None, model_args: dict[str, Any] | None = None, untrained_seed: int = 0
) -> Subject:
    """Load what `--ckpt` names.

    Args:
        spec: a folder written by `train`; a `.pth`, `.pth.tar` or `.safetensors` file (with `model_name`), under
            timm's parameter names or those of the original repository; `zenodo:NAME`, the authors' file;
            `timm:ARCHITECTURE[.TAG]` or `hf-hub:ORG/NAME`, whose weights come from the hub; `untrained`
            (with `model_name`): random weights, as a baseline.
        model_name: the architecture of a weight file.
        model_args: arguments of that architecture.
        untrained_seed: seed of the random weights.

    Raises:
        UserError: nothing is there, or it does not fit.
    """
    model_args = model_args or {}
    label = label_of(spec, model_name)
    path = Path(spec).expanduser()
    if spec == "untrained":
        entry = lookup(_needed(model_name, spec))
        with torch.random.fork_rng():
            torch.manual_seed(untrained_seed)
            model = create_model(entry.name, **model_args)
        return _subject(label, model, entry.name, entry.transform, entry.num_classes, spec, "")
    if spec.startswith("timm:"):
        entry = lookup(spec)
        model = create_model(spec, pretrained=True, **model_args)
        return _subject(label, model, spec, entry.transform, entry.num_classes, spec, "")
    if spec.startswith("zenodo:"):
        entry = lookup(spec.removeprefix("zenodo:"))
        return _from_file(fetch_published(entry), entry, model_args, spec, label)
    if spec.startswith("hf-hub:"):
        path = _fetch_folder(spec)
    if path.is_dir():
        _refuse_run(path, spec)
        model, config = load_checkpoint(path)
        digest = config.weights_sha256
        subject = _subject(label, model, config.model, config.transform, config.num_classes, spec, digest)
        subject.classes = config.classes
        return subject
    if path.is_file():
        return _from_file(path, lookup(_needed(model_name, spec)), model_args, spec, label)
    raise UserError(
        f"--ckpt {spec}: no such folder or file. Give a folder written by train (it holds config.json and "
        "model.safetensors), a weight file with --model NAME, zenodo:NAME, timm:ARCHITECTURE.TAG or hf-hub:ORG/NAME"
    )


def _refuse_run(path: Path, spec: str) -> None:
    """A training run, or a snapshot of one, is not a checkpoint yet."""
    for place, run in ((path / "snapshots", path), (path / "state.json", path.parent.parent)):
        if place.exists() and not (path / "config.json").exists():
            raise UserError(
                f"--ckpt {spec} is a training run, not a checkpoint; publish it first: "
                f"python -m train.publish {run} --name NAME, then give --ckpt checkpoints/NAME"
            )


def _from_file(path: Path, entry: ZooModel, model_args: dict[str, Any], source: str, label: str) -> Subject:
    """A model with the weights of one file."""
    model = create_model(entry.name, **model_args)
    load_state(model, published_state(path, entry, model), str(path))
    return _subject(label, model, entry.name, entry.transform, entry.num_classes, source, sha256(path))


def _fetch_folder(spec: str) -> Path:
    """Download a checkpoint folder from the Hugging Face hub into its cache."""
    try:
        found = snapshot_download(
            spec.removeprefix("hf-hub:"), allow_patterns=["config.json", "model.safetensors", "README.md"]
        )
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = without_tokens(" ".join(str(error).split()))[:200]
        raise UserError(
            f"--ckpt {spec}: not available from the hub ({type(error).__name__}: {reason}). Check the name and the "
            "connection; for a private repository set HF_TOKEN. A timm model is taken as timm:ARCHITECTURE.TAG"
        ) from error
    return Path(found)


def _needed(model_name: str | None, spec: str) -> str:
    if model_name is None:
        raise UserError(f"--ckpt {spec} needs --model NAME, such as convnext_t_dcls or timm:ARCHITECTURE")
    return model_name


def _subject(
    name: str,
    model: nn.Module,
    model_name: str,
    transform: ModelTransform,
    num_classes: int,
    source: str,
    digest: str,
) -> Subject:
    num_params = sum(p.numel() for p in model.parameters())
    num_classes = getattr(model, "num_classes", num_classes)  # `--model-arg` may have changed it
    model = fold_dcls(model).eval().requires_grad_(False)
    return Subject(name, model, model_name, transform, num_classes, source, digest, num_params)
