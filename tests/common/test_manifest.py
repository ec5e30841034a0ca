"""Files of data are held against the manifest beside them."""

import hashlib
import json
import os

import pytest

from common.data import manifest
from common.data.manifest import MANIFEST, check_files, main
from common.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCLS_ALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path, capsys):
    """Two files and what the command makes of them."""
    (tmp_path / "data").mkdir()
    for name, content in {"a.bin": b"first", "b.bin": b"second"}.items():
        (tmp_path / "data" / name).write_bytes(content)
    assert main([str(tmp_path / "data")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'data' / MANIFEST}: 2 files\n"
    return tmp_path / "data"


def check(folder, pattern=None):
    check_files(sorted(folder.glob("*.bin")), pattern)


def test_a_manifest_lists_sizes_and_hashes(folder):
    assert json.loads((folder / MANIFEST).read_text()) == {
        "files": {
            "a.bin": {"size": 5, "sha256": hashlib.sha256(b"first").hexdigest()},
            "b.bin": {"size": 6, "sha256": hashlib.sha256(b"second").hexdigest()},
        }
    }
    check(folder)
    assert main([str(folder)]) == 0  # it does not list itself
    check(folder)


def test_without_a_manifest_nothing_is_read(folder, monkeypatch):
    (folder / MANIFEST).unlink()
    monkeypatch.setattr(manifest, "sha256", None)
    (folder / "c.bin").write_bytes(b"anything")
    check(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.bin", b"first!", r"a\.bin has 6 bytes, in manifest\.json 5; get it again"),
        ("a.bin", b"firsT", r"a\.bin has the SHA-256 [0-9a-f]{64}, not that in manifest\.json; get it again"),
        ("c.bin", b"first", r"c\.bin is not listed in manifest\.json; take it away"),
    ],
)
def test_what_is_not_as_listed_is_refused_every_time(folder, name, content, message):
    (folder / name).write_bytes(content)
    for _ in range(2):
        with pytest.raises(UserError, match=message + rf".*python -m common\.data\.manifest {folder}$"):
            check(folder)


def test_what_is_listed_and_fits_the_pattern_must_be_there(folder, monkeypatch):
    (folder / "b.bin").unlink()
    check(folder, str(folder / "a*"))
    with pytest.raises(UserError, match=r"b\.bin and 0 more of manifest\.json are missing"):
        check(folder, str(folder / "*.bin"))
    monkeypatch.chdir(folder.parent)
    with pytest.raises(UserError, match=r"data/b\.bin and 0 more"):
        check_files([(folder / "a.bin").relative_to(folder.parent)], "data/*.bin")


def test_a_file_is_hashed_once_and_again_when_it_changes(folder, monkeypatch, cache):
    hashed = []
    monkeypatch.setattr(manifest, "sha256", lambda path: hashed.append(path.name) or hashlib.sha256(
        path.read_bytes()).hexdigest())  # fmt: skip
    check(folder)
    assert hashed == []  # known since it was listed
    time = (folder / "b.bin").stat().st_mtime_ns
    (folder / "b.bin").write_bytes(b"sEcond")
    os.utime(folder / "b.bin", ns=(time, time + 1))
    for _ in range(2):
        with pytest.raises(UserError, match=r"b\.bin has the SHA-256"):
            check(folder)
    assert hashed == ["b.bin"]
    next(cache.glob("hashes/*.json")).write_text('{"b.bin": 7, "a.bin"')  # damaged: forgotten
    with pytest.raises(UserError, match=r"b\.bin has the SHA-256"):
        check(folder)
    assert hashed == ["b.bin", "a.bin", "b.bin"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"files": []}', '{"files": {"a.bin": 5}}', '{"files": {"a.bin": {"size": 5}}}', "[" * 10**5,
     '{"files": {"a.bin": {"size": 1e999, "sha256": ""}}}', '{"files": {"a.bin": {"size": 5, "sha256": 7}}}', "\udcff"],
)  # fmt: skip
def test_what_is_no_manifest_is_said_and_can_be_written_again(folder, text):
    (folder / MANIFEST).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"manifest\.json is no manifest .* python -m common\.data\.manifest"):
        check(folder)
    assert main([str(folder)]) == 0
    check(folder)
