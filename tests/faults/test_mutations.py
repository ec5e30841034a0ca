"""Twenty lines of the three packages, broken one by one in a copy: each time the test named here must fail.

A line is found by its text, wherever it stands; one that is no longer found, or twice, fails the check.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("common", "evaluate", "train")
SECONDS = 300
"""Of one test, on a busy machine."""


class Mutation(NamedTuple):
    line: str
    """The line as it is, without its indentation."""
    broken: str
    """What stands there in the copy."""
    test: str
    """The name of a test that must notice."""


MUTATIONS = (
    # common
    Mutation(
        "pixels = (nearest[:, row] * size[1])[:, None] + nearest[:, 1 - row]  # (2, 2, N, k)",
        "pixels = (nearest[:, row] * size[0])[:, None] + nearest[:, 1 - row]",
        "test_kernel_equals_its_definition_also_when_not_square",
    ),
    Mutation(
        "module.constrain()",
        "pass",
        "test_clamp_brings_shared_positions_back",
    ),
    Mutation(
        "terms.append((1 - distance).relu().mean())",
        "terms.append((1 - distance).mean())",
        "test_repulsive_loss_equals_a_loop_over_pairs",
    ),
    Mutation(
        "_become(layer, layer.fold())",
        "pass",
        "test_fold_removes_every_dcls_layer_and_keeps_the_function",
    ),
    Mutation(
        "target.copy_(state[given[id(target)]])",
        "pass",
        "test_load_takes_shared_names_once_or_repeated",
    ),
    Mutation(
        "if found != config.weights_sha256:",
        "if False:",
        "test_a_changed_byte_is_noticed",
    ),
    Mutation(
        "seen = self.crop / self.resize",
        "seen = 1.0",
        "test_boxes_in_view",
    ),
    # evaluate
    Mutation(
        "ranks[row][order] = np.repeat((bounds[:-1] + bounds[1:] + 1) / 2, np.diff(bounds))",
        "ranks[row][order] = np.repeat(bounds[:-1] + 1.0, np.diff(bounds))",
        "test_average_ranks_equal_scipy",
    ),
    Mutation(
        "weighted = channel_weights(gradients) * features",
        "weighted = gradients * features",
        "test_threshold_grad_cam_parameters",
    ),
    Mutation(
        "return scaled.clamp(min=threshold)",
        "return torch.where(scaled < threshold, 0, scaled)",
        "test_threshold_grad_cam_parameters",
    ),
    Mutation(
        "line = ((torch.arange(size, device=human.device) + 0.5) / size * 2 - 1) * seen",
        "line = (torch.arange(size, device=human.device) / size * 2 - 1) * seen",
        "test_aligned_is_the_central_part_enlarged",
    ),
    Mutation(
        "return (curve.sum(1) - curve[:, 0] / 2 - curve[:, -1] / 2) / (curve.shape[1] - 1)",
        "return curve.mean(1)",
        "test_area",
    ),
    Mutation(
        "return 2 * (ours & theirs).sum(1) / (ours.sum(1) + theirs.sum(1)).clamp(min=1)",
        "return (ours & theirs).sum(1) / (ours.sum(1) + theirs.sum(1)).clamp(min=1)",
        "test_dice_and_iou_follow_harmonization",
    ),
    Mutation(
        "highest = max(highest, min(1.0, p * (len(known) - rank)))",
        "highest = min(1.0, p * (len(known) - rank))",
        "test_holm_equals_a_hand_made_case",
    ),
    # train
    Mutation(
        'kind, scale = "positions", scale * positions.lr_scale',
        'kind, scale = "positions", scale',
        "test_positions_learn_five_times_faster_and_never_decay",
    ),
    Mutation(
        "torch._foreach_lerp_(list(mine), [t.detach() for t in theirs], 1 - decay)",
        "torch._foreach_lerp_(list(mine), [t.detach() for t in theirs], decay)",
        "test_each_distinct_tensor_is_averaged_once_per_update",
    ),
    Mutation(
        "first = (micro * self.world + self.rank) * self.batch_size",
        "first = (micro + self.rank) * self.batch_size",
        "test_an_update_sees_the_same_samples_under_any_number_of_processes",
    ),
    Mutation(
        "part = (update - self.warmup) / max(self.cosine_end - self.warmup, 1e-9)",
        "part = update / max(self.cosine_end, 1e-9)",
        "test_schedule_is_that_of_the_convnext_code",
    ),
    Mutation(
        "return repulsive_loss(self.model).square()",
        "return repulsive_loss(self.model)",
        "test_repulsion_begins_with_its_epoch",
    ),
    Mutation(
        "logits = logits[:real].float()",
        "logits = logits.float()",
        "test_scores_of_a_count_that_does_not_divide_are_those_of_a_slow_loop",
    ),
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the tests need, without what was made by running them."""
    place = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__", ".*", "runs", "results", "*.egg-info")
    for folder in (*PACKAGES, "tests", "recipes", "checkpoints"):
        shutil.copytree(ROOT / folder, place / folder, ignore=ignored)
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, place / file)
    return place


def _find(root: Path, line: str) -> tuple[Path, int]:
    """The one file that has this line, and its place there."""
    found = [
        (path, number)
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines())
        if text.strip() == line
    ]
    assert len(found) == 1, f"{line!r} stands in {len(found)} places: {found}; choose another line, or its new text"
    return found[0]


def _file_of(test: str) -> str:
    """The one file of tests that defines a test of this name."""
    found = [p for p in (ROOT / "tests").rglob("test_*.py") if f"def {test}(" in p.read_text(encoding="utf-8")]
    assert len(found) == 1, f"{test} is defined in {len(found)} files"
    return str(found[0].relative_to(ROOT))


def test_there_are_twenty_and_each_line_and_test_is_found_once() -> None:
    assert len({mutation.line for mutation in MUTATIONS}) == 20
    assert {_find(ROOT, mutation.line)[0].relative_to(ROOT).parts[0] for mutation in MUTATIONS} == set(PACKAGES)
    for mutation in MUTATIONS:
        assert _file_of(mutation.test)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.test.removeprefix("test_"))
def test_a_broken_line_makes_its_test_fail(mutation: Mutation, copy: Path) -> None:
    path, number = _find(copy, mutation.line)
    whole = path.read_text(encoding="utf-8")
    lines = whole.splitlines()
    lines[number] = lines[number].replace(mutation.line, mutation.broken)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    try:
        done = _run(copy, mutation.test)
    finally:
        path.write_text(whole, encoding="utf-8")
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert f"FAILED {_file_of(mutation.test)}::{mutation.test}" in done.stdout, done.stdout[-2000:]


@pytest.mark.slow
def test_the_same_tests_pass_in_the_copy_as_it_is(copy: Path) -> None:
    done = _run(copy, *dict.fromkeys(mutation.test for mutation in MUTATIONS))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def _run(copy: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    places = [f"{_file_of(test)}::{test}" for test in tests]
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-rf", "-p", "no:cacheprovider", *places]
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=SECONDS)
