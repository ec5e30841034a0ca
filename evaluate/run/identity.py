"""What rows and results depend on, so that none are kept for another question."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from common.versions import library_versions
from evaluate.rows import Question
from evaluate.run.options import RunOptions
from evaluate.run.preflight import Plan

CHUNK, SLOW_CHUNK = 2048, 32
"""Images of a part, what a killed run can lose: of the shared pass alone, and with methods of many passes."""
ROWS_DEPEND_ON = (
    "common/**/*.py",
    *(f"evaluate/{room}/**/*.py" for room in ("data", "explainers", "maps", "metrics", "network", "run")),
    "evaluate/named.py",
    "evaluate/rows.py",
)
"""Code that makes rows; what comes after them (scores, report, the command) may change under finished parts."""


def chunk_size(options: RunOptions) -> int:
    """Images of a part."""
    families = {chosen.entry.family for chosen in options.explainers.values()}
    return SLOW_CHUNK if options.measures or families & {"perturbation", "optimisation"} else CHUNK


def code_digest(root: Path = Path(__file__).parents[2]) -> str:
    """Hash of the code that rows depend on, so that rows of other code are never mixed in.

    Args:
        root: of the tree that holds `common` and `evaluate`.
    """
    digest = hashlib.sha256()
    for path in sorted(path for pattern in ROWS_DEPEND_ON for path in root.glob(pattern)):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def run_question(plans: Sequence[Plan], options: RunOptions, limit: int | None, seed: int) -> Question:
    """What the results of a run depend on, but for versions of code and libraries."""
    question: Question = {"checkpoints": [plan.name for plan in plans]}
    for plan in plans:
        question |= {f"{what} of {plan.name}": value for what, value in _of_checkpoint(plan).items()}
    return question | _of_options(options) | {"limit": limit, "seed": seed}


def part_question(plan: Plan, columns: Sequence[str]) -> Question:
    """What the rows of a checkpoint's parts depend on."""
    return {
        **_of_checkpoint(plan),
        **_of_options(plan.options),
        "columns": columns,
        "part": chunk_size(plan.options),
        "indices": hashlib.sha256(str(plan.indices).encode()).hexdigest(),
        "versions": library_versions(),
        "code": code_digest(),
    }


def _of_checkpoint(plan: Plan) -> Question:
    return {
        "weights": plan.facts.weights_sha256,
        "model": plan.facts.model,
        "transform": plan.transform,
        "data": f"{plan.data.name} {plan.data.place}".strip(),
        "fingerprint": plan.facts.data.fingerprint,
    }


def _of_options(options: RunOptions) -> Question:
    return {
        "explainers": list(options.explainers),
        "metrics": list(options.measures),
        "protocols": options.protocols,
        "layer": options.layer,
        "target": options.target,
        "precision": "bf16" if options.bf16 else "fp32",
        "compile": options.compile,
        "device": options.device.type,
    }
