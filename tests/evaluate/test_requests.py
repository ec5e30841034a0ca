"""Checkpoints and their names and architectures, as people type them; each is loaded once."""

import json

import pytest
import torch
from PIL import Image

from common.errors import UserError
from evaluate.cli.main import main
from evaluate.network import requests
from evaluate.network.requests import Checkpoints, Request, labels, read_requests
from tests.evaluate.conftest import save_untrained


def test_names_architectures_and_arguments_of_each_or_of_all():
    asked = read_requests(
        ["a=one.pth", "b=two.pth", "three.pth", "untrained"],
        ["b=timm:resnet18", "resnet50"],
        ["pad_type=same", "a:act_layer=x=y", "b:pad_type=none"],
    )
    assert [(r.name, r.spec, r.model) for r in asked] == [
        ("a", "one.pth", "resnet50"),
        ("b", "two.pth", "timm:resnet18"),
        (None, "three.pth", "resnet50"),
        (None, "untrained", "resnet50"),
    ]
    assert [r.model_args for r in asked] == [
        {"pad_type": "same", "act_layer": "x=y"},
        {"pad_type": None},
        {"pad_type": "same"},
        {"pad_type": "same"},
    ]


def test_a_weight_file_that_is_there_may_be_named_by_its_stem(tmp_path):
    for name in ("one.pth", "two.pth"):
        (tmp_path / name).write_bytes(b"")
    files = [str(tmp_path / "one.pth"), str(tmp_path / "two.pth")]
    asked = read_requests(files, ["one=resnet50", "two=resnet50_dcls"], ["two:drop_rate=0.5"])
    assert [(r.model, r.model_args) for r in asked] == [("resnet50", {}), ("resnet50_dcls", {"drop_rate": 0.5})]
    assert labels(asked) == ["one", "two"]


def test_an_equals_sign_in_a_path_makes_no_name_where_the_path_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1").mkdir()
    words = ["lr=0.1", "lr=0.2", "runs/lr=0.1/x.pth", "hf-hub:me/lr=1", "a=lr=0.1", "a b=x/y=z.pth"]
    assert [(r.name, r.spec) for r in read_requests(words, [], [])] == [
        (None, "lr=0.1"),
        ("lr", "0.2"),
        (None, "runs/lr=0.1/x.pth"),
        (None, "hf-hub:me/lr=1"),
        ("a", "lr=0.1"),
        ("a b", "x/y=z.pth"),
    ]


@pytest.mark.parametrize(
    ("words", "models", "arguments", "message"),
    [
        (["a=x.pth", "a=y.pth"], [], [], "--ckpt a=...: two checkpoints of that name"),
        (["abc=x.pth"], ["abd=resnet50"], [], "--model abd=resnet50: no checkpoint is called 'abd'; did you mean abc"),
        (["untrained"], ["a=resnet50"], [], "no checkpoint is called 'a'; name it by --ckpt NAME=CKPT"),
        (["a=x.pth"], [], ["b:pad_type=same"], "--model-arg b:pad_type=same: no checkpoint is called 'b'; known: a"),
        (["a=x.pth"], [], ["pad_type"], "--model-arg pad_type: expected KEY=VALUE"),
        (["a=x.pth"], ["resnet50", "resnet18"], [], "--model resnet50 and resnet18 for the same checkpoints"),
        (["a=timm:resnet50.a1_in1k"], ["a=resnet50"], [], "states its own architecture"),
    ],
)
def test_what_does_not_go_together_is_told(words, models, arguments, message):
    with pytest.raises(UserError, match=message):
        read_requests(words, models, arguments)


def test_two_untrained_baselines_and_a_comparison_by_typed_names_in_one_run(tmp_path, capsys):
    main(["--ckpt", "plain=untrained", "--ckpt", "twin=untrained", "--model", "plain=demo", "twin=demo_dcls",
          "--compare", "plain", "twin", "--data", "scenes", "--limit", "4", "--workers", "0",
          "--out", str(tmp_path / "out")])  # fmt: skip
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert {(s["checkpoint"], s["model"]) for s in scores} == {("plain", "demo"), ("twin", "demo_dcls")}
    assert "twin - plain" in capsys.readouterr().out


def test_options_given_twice_add_up(checkpoint, tmp_path):
    other = save_untrained(tmp_path / "other", seed=3)
    main(["--ckpt", str(checkpoint), "--ckpt", str(other), "--explainer", "grad_cam", "--explainer", "layer_cam",
          "--metric", "complexity", "--metric", "average_drop", "--protocol", "paper", "--protocol", "aligned",
          "--data", "scenes", "--limit", "3", "--workers", "0", "--out", str(tmp_path / "out")])  # fmt: skip
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert [(s["checkpoint"], s["explainer"], s["protocol"]) for s in scores] == [
        (c, e, p) for c in ("untrained_dcls", "other") for e in ("grad_cam", "layer_cam") for p in ("paper", "aligned")
    ]
    assert list(scores[0]["measures"]) == ["complexity", "average_drop"]


def test_explain_adds_explainers_up_and_takes_one_checkpoint(checkpoint, tmp_path):
    Image.new("RGB", (80, 60), "red").save(tmp_path / "a.png")
    given = ["explain", str(tmp_path / "a.png"), "--ckpt", str(checkpoint)]
    main([*given, "--explainer", "grad_cam", "--explainer", "centre", "--out", str(tmp_path / "out")])
    assert {path.name for path in (tmp_path / "out").glob("*.npy")} == {"a-grad_cam.npy", "a-centre.npy"}
    with pytest.raises(UserError, match="takes one --ckpt, 2 are given"):
        main([*given, "--ckpt", str(checkpoint)])


@pytest.mark.parametrize(("kept", "loads"), [(requests.KEPT_BYTES, 1), (0, 3)])
def test_a_checkpoint_is_loaded_once_in_a_run_where_memory_allows(checkpoint, tmp_path, monkeypatch, kept, loads):
    """Checked, measured, shown: three uses."""
    other, loaded, load = save_untrained(tmp_path / "other", seed=3), [], Request.load
    monkeypatch.setattr(requests, "KEPT_BYTES", kept)
    monkeypatch.setattr(Request, "load", lambda self, *given: loaded.append(self.spec) or load(self, *given))
    main(["--ckpt", str(checkpoint), str(other), "--data", "scenes", "--limit", "3", "--workers", "0",
          "--out", str(tmp_path / str(kept))])  # fmt: skip
    assert {spec: loaded.count(spec) for spec in loaded} == {str(checkpoint): loads, str(other): loads}


def test_a_checkpoint_is_handed_out_as_it_was_loaded(checkpoint):
    """Not compiled, whatever became of it in between."""
    checkpoints, cpu = Checkpoints([Request(str(checkpoint))], 0), torch.device("cpu")
    (name,) = checkpoints.requests
    with checkpoints.on(name, cpu) as subject:
        model = subject.model
    with pytest.raises(KeyError), checkpoints.on(name, cpu, compiled=True) as subject:
        assert subject.model is not model
        raise KeyError
    with checkpoints.on(name, cpu) as subject:
        assert subject.model is model
