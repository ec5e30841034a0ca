"""A damaged checkpoint is the same model or an error of one line; a stranger's is a model or an error of one line."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.checkpoint import load_checkpoint, read_config
from common.errors import UserError
from tests.common.checkpoint_edits import sign
from tests.faults.damage import damages

SOURCE = Path(__file__).parents[2] / "checkpoints" / "demo_dcls"
BOUNDED = settings(
    max_examples=60,
    deadline=20_000,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of a committed checkpoint."""
    copied = tmp_path_factory.mktemp("checkpoint") / "net"
    copied.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(SOURCE / name, copied / name)
    return copied


@BOUNDED
@given(damage=damages)
def test_a_damaged_config_is_the_same_config_or_an_error(folder, damage):
    (folder / "config.json").write_bytes(damage((SOURCE / "config.json").read_bytes()))
    try:
        found = read_config(folder)
    except UserError as error:
        assert "config.json" in str(error) and "\n" not in str(error)
        return
    assert found == read_config(SOURCE)


@BOUNDED
@given(damage=damages)
def test_a_damaged_weight_file_of_a_checkpoint_is_noticed(folder, damage):
    shutil.copyfile(SOURCE / "config.json", folder / "config.json")
    before = (SOURCE / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(after := damage(before))
    try:
        if after == before:
            return
        with pytest.raises(UserError, match="has changed since it was published"):
            load_checkpoint(folder)
    finally:
        shutil.copyfile(SOURCE / "model.safetensors", folder / "model.safetensors")


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
NEAR = st.integers(-2, 70) | st.floats(-2, 2) | st.sampled_from(["", "v0", "demo", "convnext_t", "bilinear", "3x3"])
VALUES = (
    PLAIN
    | NEAR
    | st.recursive(
        PLAIN,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    )
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a JSON value holds others, without the recipe, which is free."""
    if isinstance(value, dict):
        pairs = [(key, inner) for key, inner in value.items() if (*path, key) != ("recipe",)]
    else:
        pairs = list(enumerate(value)) if isinstance(value, list) else []
    return [found for key, inner in pairs for found in ((*path, key), *places(inner, (*path, key)))]


ENTRIES = json.loads((SOURCE / "config.json").read_text()) | {"model_args": {"widths": [64, 96], "depths": [3, 1]}}
PLACES = places(ENTRIES)


@settings(BOUNDED, max_examples=40)
@given(changes=st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=2))
def test_a_strangers_config_with_its_checksum_in_order_is_a_model_or_an_error(folder, changes):
    raw = copy.deepcopy(ENTRIES)
    for (*groups, last), value in changes:
        inner = raw
        try:
            for key in groups:
                inner = inner[key]
            inner[last] = value
        except (TypeError, KeyError, IndexError):
            continue  # an earlier change took its place away
    sign(raw)
    (folder / "config.json").write_text(json.dumps(raw))
    try:
        model, config = load_checkpoint(folder)
    except UserError as error:
        assert str(folder) in str(error)
        return
    assert config.classes is None or len(config.classes) == config.num_classes == 12
    with torch.no_grad():
        shown = config.transform.normalise(torch.full((1, 3, 64, 64), 100, dtype=torch.uint8))
        assert model(shown).isfinite().all()
