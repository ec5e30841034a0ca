"""What may stand after --ckpt: folders, files of every naming, the authors' files, untrained models, and mistakes."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from common import download as download_module
from common.checkpoint import save_checkpoint
from common.checkpoint_config import CheckpointConfig
from common.dcls import DclsConv2d
from common.errors import UserError
from common.models.zoo import ZOO, create_model, lookup
from evaluate.network import subject as subjects
from evaluate.network.subject import load_subject
from tests.common.published_layouts import empty_state, original_layout, write_published
from tests.local_server import local_server

BIAS = torch.arange(1000.0)


def marked_state(name):
    """A state of the original names, all zero but the classifier's bias, by which it is known again."""
    state = empty_state(original_layout(name))
    state[next(key for key in ("head.bias", "fc.bias", "head.fc2.bias") if key in state)] = BIAS
    return state


def check(subject, name):
    """The marked weights are in, and the model is ready: folded, frozen, in evaluation mode."""
    assert subject.model_name == name and subject.transform == ZOO[name].transform
    assert not any(isinstance(module, DclsConv2d) for module in subject.model.modules())
    assert not subject.model.training and not any(p.requires_grad for p in subject.model.parameters())
    classifier = [m for m in subject.model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    assert torch.equal(classifier[0].bias, BIAS)


def test_a_folder_written_by_train(tmp_path):
    model, entry = create_model("demo_dcls"), lookup("demo_dcls")
    config = CheckpointConfig("demo_dcls", entry.num_classes, entry.transform, entry.dcls)
    saved = save_checkpoint(tmp_path / "mine", model, config)
    subject = load_subject(str(tmp_path / "mine"))
    assert (subject.name, subject.model_name, subject.num_classes) == ("mine", "demo_dcls", entry.num_classes)
    assert subject.weights_sha256 == saved.weights_sha256 and len(subject.weights_sha256) == 64
    assert subject.num_params == sum(p.numel() for p in model.parameters())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(subject.model(x), model.eval()(x), rtol=1e-4, atol=1e-4)


# file name, model, entry of the file that holds the state dict
ORIGINALS = [
    ("convnext_tiny_1k_224_ema.pth", "convnext_t", "model"),
    ("caformer_s18.pth", "caformer_s18", None),
    ("fastvit_sa24.pth.tar", "fastvit_sa24", "state_dict"),
    ("resnet50_a1_0.pth", "resnet50", None),
]


@pytest.mark.parametrize(("file", "name", "key"), ORIGINALS)
def test_original_files_of_the_plain_models(tmp_path, file, name, key):
    state = marked_state(name)
    torch.save({key: state} if key else state, tmp_path / file)
    subject = load_subject(str(tmp_path / file), name)
    check(subject, name)
    assert subject.name == file.split(".")[0] and subject.source == str(tmp_path / file)


def test_the_authors_file_by_path_and_by_zenodo_name(tmp_path, monkeypatch):
    monkeypatch.setenv("DCLS_ALIGN_CACHE", str(tmp_path / "cache"))
    name = "convnext_t_dcls"
    local = write_published(tmp_path / "x.pth", name, marked_state(name))
    by_path = load_subject(str(local), name)
    check(by_path, name)
    with local_server() as server:
        entry = ZOO[name]
        path = entry.published.url.removeprefix("https://zenodo.org")
        server.files[path] = local.read_bytes()
        file = replace(entry.published, url=server.url(path), size=local.stat().st_size, sha256=by_path.weights_sha256)
        monkeypatch.setitem(ZOO, name, replace(entry, published=file))
        server.cuts = [500]
        subject = load_subject(f"zenodo:{name}")
    check(subject, name)
    assert (subject.name, subject.source) == (name, f"zenodo:{name}")
    assert subject.weights_sha256 == by_path.weights_sha256 and subject.num_params == 28_587_688
    assert server.ranges == [None, "bytes=500-"]
    check(load_subject(f"zenodo:{name}"), name)  # from the cache: the server is gone


def test_a_safetensors_file_under_timms_names(tmp_path):
    model = create_model("demo")
    save_file(model.state_dict(), tmp_path / "demo.safetensors")
    subject = load_subject(str(tmp_path / "demo.safetensors"), "demo")
    assert torch.equal(next(subject.model.parameters()), next(model.parameters()))


def test_untrained_models_are_seeded():
    first, again, other = (load_subject("untrained", "demo_dcls", untrained_seed=seed) for seed in (0, 0, 1))
    weights = [next(subject.model.parameters()) for subject in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert first.name == "demo_dcls (untrained)" and first.weights_sha256 == ""


def test_building_an_untrained_model_leaves_the_callers_random_numbers_alone():
    before = torch.get_rng_state()
    load_subject("untrained", "demo")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_checkpoint_of_the_hub_bears_its_name_and_its_classes(checkpoint, monkeypatch, tmp_path):
    snapshot = tmp_path / "snapshots" / "0123456789abcdef"  # how the hub's cache calls a folder
    shutil.copytree(checkpoint, snapshot)
    monkeypatch.setattr(subjects, "snapshot_download", lambda name, **_: str(snapshot))
    subject = load_subject("hf-hub:someone/demo-dcls")
    assert subject.name == "demo-dcls" and subject.source == "hf-hub:someone/demo-dcls"
    assert subject.classes == json.loads((snapshot / "config.json").read_text())["classes"]


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_mistakes_are_named(tmp_path):
    good, cut, code = (tmp_path / name for name in ("good.pth", "cut.pth", "code.pth"))
    torch.save(create_model("demo").state_dict(), good)
    cut.write_bytes(good.read_bytes()[:-5000])
    torch.save({"model": {}, "x": RunsCode(str(tmp_path / "trap"))}, code)
    for spec, model, message in [
        (str(good), None, "needs --model NAME"),
        ("untrained", None, "needs --model NAME"),
        (str(good), "demmo", "unknown model 'demmo'; did you mean demo"),
        (str(tmp_path / "absent"), "demo", "no such folder or file.*zenodo:NAME"),
        (str(cut), "demo", r"cut\.pth is not a readable weight file"),
        (str(code), "demo", "would run code when unpickled"),
        (str(good), "demo_dcls", "holds a plain model.*give --model demo$"),
        ("zenodo:resnet50", None, "published no such file; there are resnet50_dcls"),
        ("zenodo:resnet50_dlcs", None, "did you mean resnet50_dcls"),
    ]:
        with pytest.raises(UserError, match=message):
            load_subject(spec, model)
    assert not (tmp_path / "trap").exists()


def test_without_a_connection_zenodo_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("DCLS_ALIGN_CACHE", str(tmp_path))
    monkeypatch.setattr(download_module, "FIRST_PAUSE", 0.0)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    with pytest.raises(UserError, match=r"no connection.*may be put at .*resnet_dcls_kernel_5_model_best\.pth\.tar"):
        load_subject("zenodo:resnet50_dcls")


@pytest.mark.parametrize("place", ["", "snapshots/update_00000004"])
def test_a_training_run_is_told_from_a_checkpoint(tmp_path, place):
    snapshot = tmp_path / "run" / "snapshots" / "update_00000004"
    snapshot.mkdir(parents=True)
    (snapshot / "state.json").write_text("{}")
    with pytest.raises(
        UserError, match=rf"is a training run.* python -m train\.publish {tmp_path / 'run'} --name NAME"
    ):
        load_subject(str(tmp_path / "run" / place))


def test_the_outputs_of_the_model_count_its_classes():
    assert load_subject("untrained", "demo", {"num_classes": 5}).num_classes == 5
    assert load_subject("untrained", "timm:resnet18", {"num_classes": 7}).num_classes == 7
