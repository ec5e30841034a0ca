"""A token of the hub is in no message, wherever it is kept and whoever repeats it."""

import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

from common.entry import run_command
from common.errors import UserError
from common.text import without_tokens
from evaluate.network import subject as subjects
from train.publish import upload

ROOT = Path(__file__).parents[2]
TOKEN = "a.token-of+an(own)hub"


def in_environment(monkeypatch, tmp_path, name):
    monkeypatch.setenv(name, TOKEN)


def in_login_file(monkeypatch, tmp_path, name):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    monkeypatch.setenv(name, str(tmp_path / "token" if name == "HF_TOKEN_PATH" else tmp_path))


def in_default_login_file(monkeypatch, tmp_path, name):
    (tmp_path / ".cache" / "huggingface").mkdir(parents=True)
    (tmp_path / ".cache" / "huggingface" / "token").write_text(TOKEN)
    monkeypatch.setenv(name, str(tmp_path))


@pytest.fixture(
    params=[
        (in_environment, "HF_TOKEN"),
        (in_environment, "HUGGING_FACE_HUB_TOKEN"),
        (in_login_file, "HF_TOKEN_PATH"),
        (in_login_file, "HF_HOME"),
        (in_default_login_file, "HOME"),
    ],
    ids=lambda kept: kept[1],
)
def kept(request, monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    store, name = request.param
    store(monkeypatch, tmp_path, name)


def failing(error):
    def main():
        raise error

    return main


def test_every_message_of_a_command_masks_it(kept, capsys):
    refused = UserError(f"the proxy says: Bearer {TOKEN}")
    refused.add_note(f"asked with {TOKEN}")
    for error in (refused, PermissionError(13, "", f"/cache/{TOKEN}")):
        assert run_command(failing(error)) == 2
        told = capsys.readouterr().err
        assert TOKEN not in told and "***" in told


def test_the_hub_may_repeat_it(kept, monkeypatch, tmp_path):
    def repeat(*_, **__):
        raise OSError(f"401 for {TOKEN}\nand more")

    monkeypatch.setattr(subjects, "snapshot_download", repeat)
    with pytest.raises(UserError, match=r"401 for \*\*\* and more"):
        subjects.load_subject("hf-hub:org/name")
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", repeat)
    with pytest.raises(UserError, match=r"401 for \*\*\*"):
        upload(tmp_path, "org/name")


@pytest.mark.parametrize("error", ["UserError", "RuntimeError"])
def test_what_looks_like_a_token_is_masked_though_it_is_of_another_machine(error):
    text = "hf_" + "aB3" * 8
    code = (
        "from common.entry import run_command\nfrom common.errors import UserError\n"
        f"def main(): raise {error}('Bearer hf' + '_' + 'aB3' * 8)\nraise SystemExit(run_command(main))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == (2 if error == "UserError" else 1)
    assert text not in done.stderr and "Bearer ***" in done.stderr


def test_what_is_no_token_stays(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "none")
    for text in ("none of hf_hub, hf_transfer or HF_TOKEN", "hf_hub_download_of_a_long_name", "half_" + "a" * 30):
        assert without_tokens(text) == text
