"""The card (`README.md`) of a published checkpoint: front matter for the hub, then what readers need."""

from __future__ import annotations

import shlex
from typing import Any

import yaml

from common.dcls_spec import SELECTION_RULES
from common.text import fenced, in_code, markdown

_LABELS = {
    "top1": "top-1 (%)",
    "top5": "top-5 (%)",
    "loss": "cross-entropy",
    "val_images": "validation images",
    "weights": "published weights",
    "top1_raw": "top-1 of the raw weights (%)",
    "top1_ema": "top-1 of the averaged weights (%)",
    "mean_displacement_px": "mean displacement of positions (px)",
    "train_seconds": "training time (s)",
}
"""What the card calls the figures of `config.json`."""


def model_card(name: str, config: dict[str, Any], pictures: list[str]) -> str:
    """Markdown card of a checkpoint.

    Args:
        name: the checkpoint's name.
        config: the fields of `CheckpointConfig` as plain values.
        pictures: file names of PNG pictures beside the card.
    """
    dcls = config["dcls"]
    front = {
        "license": str(config["license"]).lower(),
        "library_name": "dcls-align",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", *(["dcls"] if dcls else [])],
    }
    kind = "plain convolutions"
    if dcls:
        rules = [dcls["rule"]] if isinstance(dcls["rule"], str) else dcls["rule"]
        which = ", ".join(rule.replace("_", " ") if rule in SELECTION_RULES else in_code(rule) for rule in rules)
        start = ", started at the function of the plain ones" if dcls.get("init") == "preserve" else ""
        kind = (
            f"DCLS in place of its {which} convolutions ({dcls['kernel_count']} elements in "
            f"{dcls['dilated_kernel_size']}x{dcls['dilated_kernel_size']}, interpolation "
            f"{markdown(dcls['interpolation'])}{start})"
        )
    transform, source = config["transform"], (config["recipe"].get("data") or {}).get("source", "")
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        f"# {markdown(name)}",
        "",
        f"{in_code(config['model'])} with {config['num_classes']} classes and {kind}.",
        "",
        "| measured at the end of training | |",
        "|---|---|",
        *(
            f"| {markdown(_LABELS.get(key, key))} | {markdown(_figure(value))} |"
            for key, value in config["metrics"].items()
        ),
        "",
        f"Input: short side {transform['resize']} px ({markdown(transform['interpolation'])}), central "
        f"{transform['crop']} px, mean {transform['mean']}, standard deviation {transform['std']}.",
        "",
        "Evaluate it:",
        fenced(evaluate_command(f"checkpoints/{name}", source, config["num_classes"])),
        *(["Made by:", fenced(config["command"])] if config["command"] else []),
        *(f"![{picture.removesuffix('.png').replace('_', ' ')}]({picture})" for picture in pictures),
        "",
        "## Recipe",
        fenced(yaml.safe_dump(config["recipe"], sort_keys=False).strip(), "yaml"),
        "",
        f"Licence of the weights: {markdown(config['license'])}. SHA-256 of `model.safetensors`: "
        f"{in_code(config['weights_sha256'])}.",
        "",
        "Versions: " + ", ".join(markdown(f"{key} {value}") for key, value in config["versions"].items()) + ".",
        "",
    ]
    return "\n".join(lines)


def evaluate_command(checkpoint: str, source: str, num_classes: int) -> str:
    """The command that evaluates a checkpoint on data of its own classes.

    Args:
        checkpoint: its folder.
        source: `data.source` of the recipe.
        num_classes: of the model; ClickMe shows ImageNet's 1000.
    """
    data = "--data clickme --data-root /clickme" if num_classes == 1000 else "--data imagefolder --data-root DIR"
    if source.startswith("scenes"):
        data = "--data scenes"
    return f"python -m evaluate --ckpt {shlex.quote(checkpoint)} {data}"


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
