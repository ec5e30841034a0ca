"""Targets: labels, predictions, classes, functions; one per image, and errors that name the numbers."""

import numpy as np
import pytest
import torch

from evaluate.network.targets import resolve_targets

LOGITS = torch.tensor([[1.0, 5.0, 2.0], [7.0, 0.0, 3.0]])


@pytest.mark.parametrize(
    ("targets", "classes"),
    [
        (None, [1, 0]),
        (2, [2, 2]),
        (np.int64(2), [2, 2]),
        ([2, None], [2, 0]),
        ((0, 1), [0, 1]),
        (torch.tensor([2, 1]), [2, 1]),
        (torch.tensor(2), [2, 2]),
        (torch.tensor([2, 1], dtype=torch.int32), [2, 1]),
        (list(np.array([1, 2])), [1, 2]),
    ],
)
def test_classes(targets, classes):
    resolved = resolve_targets(targets, LOGITS)
    assert resolved.classes.tolist() == classes
    assert resolved.scores(LOGITS).tolist() == [LOGITS[i, c].item() for i, c in enumerate(classes)]


def test_rows_of_several_images():
    resolved = resolve_targets([2, 0], LOGITS)
    rows = torch.tensor([[0.0, 1, 2], [3, 4, 5], [6, 7, 8]])
    assert resolved.scores(rows, torch.tensor([1, 0, 0])).tolist() == [0, 5, 8]


def test_functions_one_for_all_and_one_per_image():
    margin = lambda logits: logits[:, 0] - logits[:, 1]  # noqa: E731
    assert resolve_targets(margin, LOGITS).scores(LOGITS).tolist() == [-4, 7]
    mixed = resolve_targets([margin, 2], LOGITS)
    assert mixed.classes is None and mixed.scores(LOGITS).tolist() == [-4, 3]
    assert mixed.scores(LOGITS[[1, 1]], torch.tensor([1, 0])).tolist() == [3, 7]
    with pytest.raises(ValueError, match="needs a class"):
        mixed.required_classes("a probability")


def test_functions_are_differentiable():
    leaf = LOGITS.clone().requires_grad_()
    resolve_targets([None, lambda row: row[:, 0] ** 2], LOGITS).scores(leaf).sum().backward()
    assert leaf.grad.tolist() == [[0, 1, 0], [14, 0, 0]]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([1], "1 targets for 2 images"),
        (torch.tensor([1, 2, 0]), "3 targets for 2 images"),
        ([1, 3], r"\[1, 3\].*0 .. 2"),
        (-1, "0 .. 2"),
        (torch.tensor([1.0, 2.0]), "class indices"),
        (["dog", 1], "'dog'"),
        (1.5, "got 1.5"),
        ([True, 1], "True"),
        ([lambda x: x, 1], r"\(N, K\) into"),
    ],
)
def test_what_does_not_fit_is_refused(targets, message):
    with pytest.raises(ValueError, match=message):
        resolve_targets(targets, LOGITS).scores(LOGITS)
