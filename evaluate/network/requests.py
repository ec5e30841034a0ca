"""What `--ckpt`, `--model` and `--model-arg` ask for: checkpoints under their names in tables, each loaded once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError, did_you_mean
from common.text import one_line
from evaluate.named import parse_value
from evaluate.network.subject import Subject, label_of, load_subject, states_model

KEPT_BYTES = 4 * 2**30
"""Weights of a run that stay in memory between their uses; a checkpoint beyond that is loaded again."""

_NAME = r"[^/:=]+"
"""A name that is typed before a checkpoint: never part of a path or of `timm:`, `hf-hub:`, `zenodo:`."""


@dataclass(frozen=True)
class Request:
    """One checkpoint to be evaluated."""

    spec: str
    """What follows `--ckpt`, without the name."""
    model: str | None = None
    """Architecture of a weight file."""
    model_args: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    """In tables; None: see `evaluate.network.subject.label_of`."""

    def load(self, seed: int, label: str) -> Subject:
        """Load the model under one of the names that `labels` gives."""
        subject = load_subject(self.spec, self.model, dict(self.model_args), seed)
        subject.name = label
        return subject


def labels(requests: Sequence[Request]) -> list[str]:
    """Names in tables; a name already taken gets a number, so that rows distinguish checkpoints."""
    found: list[str] = []
    for request in requests:
        name = label = one_line(request.name or label_of(request.spec, request.model))
        number = 2
        while label in found:
            label, number = f"{name} ({number})", number + 1
        found.append(label)
    return found


def read_requests(checkpoints: Sequence[str], models: Sequence[str], model_args: Sequence[str]) -> list[Request]:
    """The checkpoints that a command line names.

    Args:
        checkpoints: each `CKPT` or `NAME=CKPT`. If the whole word is an existing file or folder, it holds no name.
        models: `MODEL`, of all weight files without one of their own, and `NAME=MODEL`.
        model_args: `KEY=VALUE` and `NAME:KEY=VALUE`, likewise; a value may be what `parse_value` takes.

    Raises:
        UserError: a name given twice or that no checkpoint has; an architecture for one that states its own.
    """
    requests = [_named(word) for word in checkpoints]
    given = [request.name for request in requests if request.name]
    if twice := [name for name in given if given.count(name) > 1]:
        raise UserError(f"--ckpt {twice[0]}=...: two checkpoints of that name; give each its own")
    names = [_typeable(request) for request in requests]
    model, of_one = None, {}
    for text in models:
        name, equals, value = text.rpartition("=")
        if not equals and model not in (None, value):
            raise UserError(f"--model {model} and {value} for the same checkpoints; give NAME=MODEL for one of them")
        if equals:
            _check_name(name, names, f"--model {text}")
            of_one[name] = value
        else:
            model = value
    arguments: dict[str | None, dict[str, Any]] = {None: {}}
    for pair in model_args:
        key, equals, value = pair.partition("=")
        name, colon, key = key.rpartition(":")
        if not (key and equals):
            raise UserError(f"--model-arg {pair}: expected KEY=VALUE, such as pad_type=same")
        if colon:
            _check_name(name, names, f"--model-arg {pair}")
        arguments.setdefault(name if colon else None, {})[key] = parse_value(value)
    for request, name in zip(requests, names):
        if name in of_one and states_model(request.spec):
            raise UserError(f"--model {name}={of_one[name]}: {request.spec} states its own architecture; leave it out")
    return [
        replace(request, model=of_one.get(name, model), model_args=arguments[None] | arguments.get(name, {}))
        for request, name in zip(requests, names)
    ]


def _named(word: str) -> Request:
    """`NAME=CKPT` or `CKPT`."""
    match = re.fullmatch(rf"({_NAME})=(.+)", word)
    if match and not Path(word).expanduser().exists():
        return Request(match[2], name=match[1])
    return Request(word)


def _typeable(request: Request) -> str:
    """The name by which `--model` may refer to it, before its architecture is known."""
    return request.name or ("" if request.spec == "untrained" else label_of(request.spec))


def _check_name(name: str, names: Sequence[str], option: str) -> None:
    if name not in names:
        known = [known for known in names if known]
        hint = did_you_mean(name, known) if known else "name it by --ckpt NAME=CKPT"
        raise UserError(f"{option}: no checkpoint is called {name!r}; {hint}")


class Checkpoints:
    """The checkpoints of a run by their names in tables, each loaded once as far as `KEPT_BYTES` allow.

    Args:
        requests: what was asked for.
        seed: of untrained weights.
    """

    def __init__(self, requests: Sequence[Request], seed: int) -> None:
        self.requests = dict(zip(labels(requests), requests))
        self.seed = seed
        self._kept: dict[str, Subject] = {}

    @contextmanager
    def on(self, name: str, device: torch.device, compiled: bool = False) -> Iterator[Subject]:
        """The model on a device within the block; afterwards it is on the CPU, and not compiled.

        Raises:
            UserError: it cannot be loaded.
        """
        subject = self._kept.pop(name, None) or self.requests[name].load(self.seed, name)
        model = subject.model
        try:
            subject.to(device)
            if compiled:
                subject.compile()
            yield subject
        finally:
            subject.model = model
            subject.to(torch.device("cpu"))
            if sum(map(_bytes, self._kept.values())) + _bytes(subject) <= KEPT_BYTES:
                self._kept[name] = subject


def _bytes(subject: Subject) -> int:
    return sum(tensor.nbytes for tensor in subject.model.state_dict().values())
