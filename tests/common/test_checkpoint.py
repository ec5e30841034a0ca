"""The checkpoint folder: a round trip, shared positions stored once, and every way a folder can be damaged."""

import dataclasses
import hashlib
import json
import logging

import pytest
import torch
from safetensors.torch import load_file

from common.checkpoint import load_checkpoint, save_checkpoint
from common.checkpoint_config import CheckpointConfig
from common.dcls_spec import DclsSpec
from common.errors import UserError
from common.models.zoo import create_model, lookup
from common.surgery import position_groups
from tests.common.checkpoint_edits import ABSENT, edit, put


def make_config(**changes) -> CheckpointConfig:
    entry = lookup("demo_dcls")
    config = CheckpointConfig(
        model="demo_dcls",
        num_classes=entry.num_classes,
        transform=entry.transform,
        dcls=entry.dcls,
        recipe={"data": {"source": "scenes"}, "epochs": 2},
        metrics={"top1": 91.25},
        command="python train/main.py recipe=demo_dcls",
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "demo_dcls", create_model("demo_dcls"), make_config())
    return tmp_path / "demo_dcls"


def test_round_trip(folder):
    torch.manual_seed(0)
    original = create_model("demo_dcls").eval()
    model, config = load_checkpoint(folder)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), original(x))
    assert not model.training and config.dcls == lookup("demo_dcls").dcls
    assert config.transform == lookup("demo_dcls").transform and config.metrics == {"top1": 91.25}


def test_shared_positions_are_stored_once_and_tied_again(folder):
    model, config = load_checkpoint(folder)
    stored = load_file(folder / "model.safetensors")
    groups = position_groups(model)
    assert sum(name.endswith(".P") for name in stored) == len(groups)
    assert all(layer.P is group.positions for group in groups for _, layer in group.layers)
    users = sum(len(group.layers) for group in groups)
    assert sum(name.endswith(".P") for name in config.shared) == users - len(groups)


def test_other_surgery_than_the_zoos_comes_back(tmp_path):
    spec = DclsSpec("v1", 9, 5)
    save_checkpoint(
        tmp_path / "x", create_model("demo", 5, dcls=spec), make_config(model="demo", num_classes=5, dcls=spec)
    )
    model, config = load_checkpoint(tmp_path / "x")
    assert config.dcls == spec and position_groups(model)[0].layers[0][1].kernel_count == 5


def test_every_field_of_a_surgery_comes_back(tmp_path):
    rule = ["stages.[01].depthwise", "stages.2.depthwise"]
    spec = DclsSpec("max", 9, 30, rule, share_positions=False, weight_init="kaiming", init="preserve")
    model = create_model("demo", dcls=spec)
    save_checkpoint(tmp_path / "x", model, make_config(model="demo", dcls=spec))
    loaded, config = load_checkpoint(tmp_path / "x")
    assert config.dcls == spec and config.dcls.rule == tuple(rule)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), model.eval()(x))
    card = (tmp_path / "x" / "README.md").read_text()
    assert "`stages.[01].depthwise`, `stages.2.depthwise` convolutions (30 elements in 9x9" in card
    assert "started at the function of the plain ones" in card


def test_a_checkpoint_of_before_the_newer_fields_loads(folder):
    older = ("interpolation", "dilated_kernel_size", "kernel_count")
    edit(folder, lambda raw: raw.update(dcls={key: raw["dcls"][key] for key in older}))
    assert load_checkpoint(folder)[1].dcls == lookup("demo_dcls").dcls


def test_card_tells_people_what_they_want_to_know(folder):
    card = (folder / "README.md").read_text()
    for part in (
        "license: mit",
        "# demo_dcls",
        "91.25",
        "python train/main.py recipe=demo_dcls",
        "python -m evaluate --ckpt checkpoints/demo_dcls --data scenes",
        "epochs: 2",
        "torch",
    ):
        assert part in card


def test_a_folder_that_stood_there_is_replaced_whole(folder):
    (folder / "stale.txt").write_text("old")
    save_checkpoint(folder, create_model("demo_dcls"), make_config(metrics={"top1": 1.0}))
    assert load_checkpoint(folder)[1].metrics == {"top1": 1.0}
    assert [p.name for p in folder.parent.iterdir()] == ["demo_dcls"] and not (folder / "stale.txt").exists()


def test_a_failed_write_leaves_the_old_folder(folder):
    before = (folder / "config.json").read_text()
    with pytest.raises(TypeError):
        save_checkpoint(folder, create_model("demo_dcls"), make_config(metrics={"top1": object()}))
    assert (folder / "config.json").read_text() == before
    assert [p.name for p in folder.parent.iterdir()] == ["demo_dcls"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        load_checkpoint(folder)


def test_a_changed_byte_is_noticed(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="has changed since it was published"):
        load_checkpoint(folder)


def test_the_checksum_of_a_config_is_that_of_its_entries_as_sorted_json_without_spaces(folder):
    raw = json.loads((folder / "config.json").read_text())
    stated = raw.pop("config_sha256")
    text = json.dumps(raw, sort_keys=True, separators=(",", ":"))
    assert text.startswith('{"classes":null,"command":"python train/main.py recipe=demo_dcls","dcls":{"dilated_kernel_')
    assert stated == hashlib.sha256(text.encode()).hexdigest() == load_checkpoint(folder)[1].config_sha256


def test_another_layout_of_the_same_config_is_no_damage(folder):
    edit(folder, lambda raw: None, signed=False)  # one line, instead of indented ones
    assert load_checkpoint(folder)[1].metrics == {"top1": 91.25}


def test_a_checkpoint_of_before_the_checksum_loads_with_a_note(folder, caplog):
    put(folder, "config_sha256", ABSENT, signed=False)
    with caplog.at_level(logging.WARNING):
        assert load_checkpoint(folder)[1].config_sha256 == ""
    assert "config.json has no config_sha256: a change in it would not be noticed" in caplog.text


def test_figures_that_are_not_finite_are_published_as_null(tmp_path):
    config = make_config(metrics={"loss": float("nan"), "top1": 1.5}, recipe={"limits": [float("inf"), 1.0]})
    save_checkpoint(tmp_path / "x", create_model("demo_dcls"), config)
    found = load_checkpoint(tmp_path / "x")[1]
    assert (found.metrics, found.recipe) == ({"loss": None, "top1": 1.5}, {"limits": [None, 1.0]})


@pytest.mark.parametrize(
    "changes", [{"num_classes": 0}, {"classes": ["a", "b"]}, {"model_args": {"act_layer": "relu"}}]
)
def test_what_could_not_be_read_is_not_written(tmp_path, changes):
    with pytest.raises(UserError, match=rf"config\.json.*{next(iter(changes))}"):
        save_checkpoint(tmp_path / "x", create_model("demo_dcls"), make_config(**changes))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{", '{"format": 1}', '{"format": 99}', "[]"])
def test_a_damaged_config_is_an_error_of_one_line(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        load_checkpoint(folder)


def test_all_misfits_are_reported_at_once(folder):
    put(folder, "dcls|kernel_count", 23)
    put(folder, "num_classes", 5)
    with pytest.raises(UserError) as caught:
        load_checkpoint(folder)
    message = str(caught.value)
    assert message.count("misshapen") > 3 and "head" in message and ".P" in message


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match="no checkpoint folder at"):
        load_checkpoint(tmp_path / "nowhere")
