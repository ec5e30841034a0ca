"""The card's advice; the rest of it is tested with the checkpoint it belongs to."""

import pytest

from common.model_card import evaluate_command


@pytest.mark.parametrize(
    ("source", "num_classes", "data"),
    [
        ("scenes", 12, "--data scenes"),
        ("scenes:jpeg", 12, "--data scenes"),
        ("imagefolder", 1000, "--data clickme --data-root /clickme"),
        ("hf:ILSVRC/imagenet-1k", 1000, "--data clickme --data-root /clickme"),
        ("imagefolder", 37, "--data imagefolder --data-root DIR"),
        ("", 10, "--data imagefolder --data-root DIR"),
    ],
)
def test_a_checkpoint_is_evaluated_on_data_of_its_own_classes(source, num_classes, data):
    assert evaluate_command("checkpoints/x", source, num_classes) == f"python -m evaluate --ckpt checkpoints/x {data}"
