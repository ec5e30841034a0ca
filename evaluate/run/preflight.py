"""Before the first image: every checkpoint is loaded, and each explainer and metric tried on it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from common.errors import UserError
from evaluate.data.interface import EvalData
from evaluate.data.loader import choose_indices
from evaluate.explainers.explain import explain
from evaluate.explainers.explainer import Explainer
from evaluate.metrics.case import Case
from evaluate.metrics.registry import measure_case
from evaluate.named import Chosen
from evaluate.network.micro_batch import MicroBatch, is_out_of_memory
from evaluate.network.requests import Checkpoints
from evaluate.network.subject import Subject
from evaluate.rows import CheckpointFacts, DataFacts
from evaluate.run.options import RunOptions

PASSES = 4
"""Forward passes after which a trial is over: what has come so far fits, and there may be thousands of them."""


@dataclass(frozen=True)
class Plan:
    """What one checkpoint of a run is asked, after it was seen to fit."""

    name: str
    data: EvalData
    indices: list[int]
    """Places in the data set."""
    options: RunOptions
    """Only the explainers and measures that the model can have."""
    transform: str
    """The model's preprocessing, in full."""
    facts: CheckpointFacts


def make_plans(
    checkpoints: Checkpoints,
    open_data: Callable[[Subject], EvalData],
    options: RunOptions,
    limit: int | None,
    seed: int,
    shown: bool,
) -> tuple[list[Plan], list[str]]:
    """Load every checkpoint and see what it can be asked.

    Args:
        checkpoints: of the run.
        open_data: the data set for a model.
        options: how to measure.
        limit: a seeded random subset of so many images, or None.
        seed: of the subset.
        shown: whether a bar may be drawn.

    Returns:
        A plan for each checkpoint that is finite and can have any of the explainers, and what is wrong with or does not
        fit single checkpoints.

    Raises:
        UserError: no data, checkpoints that do not load or have other classes than the data, none that is finite, an
            explainer or a measure that no checkpoint can have.
    """
    plans: list[Plan] = []
    broken: dict[str, None] = {}  # in order, once
    misfits: dict[str, dict[str, str]] = {}
    unfit: list[str] = []
    fingerprints: dict[EvalData, str] = {}
    for name in tqdm(checkpoints.requests, "checking", unit="checkpoint", leave=False, disable=None if shown else True):
        try:
            with checkpoints.on(name, options.device) as subject:
                data = open_data(subject)
                _check_classes(subject, data)
                if reason := not_finite(subject, options):
                    unfit.append(reason)
                    continue
                for text, reason in _misfits(subject, data, options).items():
                    misfits.setdefault(text, {})[name] = reason
                if data not in fingerprints:
                    fingerprints[data] = data.fingerprint()
                weights = subject.weights_sha256 or state_digest(subject)
                indices = choose_indices(len(data), limit, seed).tolist()
                facts = _facts(subject, data, weights, fingerprints[data])
                plans.append(Plan(name, data, indices, options, str(subject.transform), facts))
        except UserError as error:
            if str(error) in broken:  # of the data, so it would come up with every checkpoint
                break
            broken[str(error)] = None
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            broken[f"{name} does not fit into the memory of {options.device}; take another --device"] = None
    if broken:
        several = f"{len(broken)} reasons why this run cannot begin:\n  " * (len(broken) > 1)
        raise UserError(several + "\n  ".join(broken))
    if not plans:
        raise UserError("\n  ".join(unfit))
    for text, reasons in misfits.items():
        if len(reasons) == len(plans):
            raise UserError(f"{text}: {next(iter(reasons.values()))}")
    told = [f"{name}: {text}: {reason}" for text, reasons in misfits.items() for name, reason in reasons.items()]
    plans = [_without(plan, [text for text, reasons in misfits.items() if plan.name in reasons]) for plan in plans]
    told += [
        f"{plan.name}: no explainer is left, so it is not measured" for plan in plans if not plan.options.explainers
    ]
    return [plan for plan in plans if plan.options.explainers], unfit + told


def _check_classes(subject: Subject, data: EvalData) -> None:
    if data.num_classes != subject.num_classes:
        raise UserError(
            f"{subject.name} distinguishes {subject.num_classes} classes, {data.name} has {data.num_classes}; "
            "evaluate it on the data it was trained for"
        )


def not_finite(subject: Subject, options: RunOptions) -> str:
    """Why a model cannot be measured, as its weights or what it makes of an image of noise are not finite; or ''."""
    for name, values in subject.model.state_dict().items():
        if not values.isfinite().all():
            held = _first_not_finite(values)
            return f"{subject.name}: {name} holds {held}: its training diverged, or its file is damaged"
    with torch.no_grad():
        logits = subject.model(_noise(subject, options))
    if not logits.isfinite().all():
        return (
            f"{subject.name}: its logits of an image of noise hold {_first_not_finite(logits)}, though its weights are "
            "finite; look at mean and std of its preprocessing"
        )
    return ""


def _first_not_finite(values: Tensor) -> float:
    return values[~values.isfinite()][0].item()


def _facts(subject: Subject, data: EvalData, weights: str, fingerprint: str) -> CheckpointFacts:
    return CheckpointFacts(
        model=subject.model_name,
        source=subject.source,
        weights_sha256=weights,
        num_params=subject.num_params,
        transform={"resize": subject.transform.resize, "crop": subject.transform.crop},
        data=DataFacts(name=data.name, root=data.place or None, n_images=len(data), fingerprint=fingerprint),
    )


def _without(plan: Plan, texts: Sequence[str]) -> Plan:
    explainers = {label: chosen for label, chosen in plan.options.explainers.items() if label not in texts}
    measures = {label: chosen for label, chosen in plan.options.measures.items() if label not in texts}
    return replace(plan, options=replace(plan.options, explainers=explainers, measures=measures))


def misfit_explainers(
    subject: Subject, explainers: Mapping[str, Chosen[Explainer]], options: RunOptions
) -> dict[str, str]:
    """Of each explainer that a model cannot have, why; found out on an image of noise."""
    images = _noise(subject, options)

    def trial(label: str) -> None:
        explain(
            subject.model,
            images,
            0,
            {label: explainers[label]},
            layer=options.layer,
            transform=subject.transform,
            micro_batch=1,
            bf16=options.bf16,
        )

    return _reasons(subject, explainers, trial)


def _misfits(subject: Subject, data: EvalData, options: RunOptions) -> dict[str, str]:
    """The same, and of each measure that the model or the data cannot have."""
    images = _noise(subject, options)
    maps = torch.rand(images.shape[0], *images.shape[2:], generator=torch.Generator().manual_seed(1)).to(images.device)
    case = Case(
        subject.model,
        images,
        maps,
        torch.zeros(1, dtype=torch.int64, device=images.device),
        transform=subject.transform,
        human=maps.flip(1) if data.has_human_maps else None,
        boxes=[torch.tensor([[0.0, 0.0, *(side / 2 for side in images.shape[2:])]])] if data.has_boxes else None,
        explain=lambda model, changed: maps,
        micro_batch=MicroBatch(1, options.device),
        bf16=options.bf16,
        image_keys=[0],
    )
    return misfit_explainers(subject, options.from_images, options) | _reasons(
        subject, options.measures, lambda label: measure_case(case, {label: options.measures[label]})
    )


class _Enough(Exception):
    """A trial has gone on for `PASSES` forward passes."""


def _reasons(subject: Subject, labels: Iterable[str], trial: Callable[[str], Any]) -> dict[str, str]:
    """Why a trial does not work, for those labels with which it does not."""
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1
        if passes > PASSES:
            raise _Enough

    found = {}
    handle = subject.model.register_forward_pre_hook(count)
    try:
        for label in labels:
            passes = 0
            try:
                trial(label)
            except _Enough:
                pass
            except UserError as error:
                found[label] = str(error)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                found[label] = "not even one image fits into memory"
    finally:
        handle.remove()
    return found


def _noise(subject: Subject, options: RunOptions) -> Tensor:
    """A normalised image (1, 3, crop, crop)."""
    shape = (1, 3, subject.transform.crop, subject.transform.crop)
    pixels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = subject.transform.normalise(pixels.to(options.device))
    return images.contiguous(memory_format=torch.channels_last)


def state_digest(subject: Subject) -> str:
    """SHA-256 of a model's weights, for models that come from no file."""
    digest = hashlib.sha256()
    for name, tensor in subject.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
