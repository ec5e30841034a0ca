"""The names of classes that a run publishes: a line for each output, or none."""

import pytest

from train.publish import _class_names


@pytest.mark.parametrize(
    ("names", "outputs", "published"),
    [
        (["cat", "dog"], 2, ["cat", "dog"]),
        (["cat", "dog"], 3, None),  # num_classes was set to more than the data has
        (["cat\n", "hot\tdog\x1b[2J"], 2, ["cat", "hot dog [2J"]),
        (None, 2, None),
    ],
)
def test_there_is_a_name_of_one_line_for_each_output_or_none(names, outputs, published):
    assert _class_names(names, outputs) == published
