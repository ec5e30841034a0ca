"""Downloads from a local server that supports Range, ignores it, cuts connections, fails, or is not there."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from common import download as download_module
from common.download import cache_folder, download
from common.errors import UserError
from tests.local_server import local_server

CONTENT = bytes(range(256)) * 4000  # 1,024,000 bytes


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("DCLS_ALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download_module, "FIRST_PAUSE", 0.01)
    with local_server() as server:
        server.files["/file.bin"] = CONTENT
        yield server


@pytest.fixture
def target(tmp_path):
    return tmp_path / "deep" / "file.bin"


def begun(target, content):
    """The part that an earlier download left, of the version that the server calls so now."""
    target.parent.mkdir()
    (target.parent / "file.bin.part").write_bytes(content)
    (target.parent / "file.bin.part.version").write_text(f'"{hashlib.sha256(CONTENT).hexdigest()[:8]}"')


def only_file(target):
    return [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_file_arrives_whole_and_is_not_fetched_twice(server, target):
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert download(server.url("/file.bin"), target, len(CONTENT), digest) == target
    assert target.read_bytes() == CONTENT and only_file(target)
    download(server.url("/file.bin"), target, len(CONTENT), digest)
    assert server.ranges == [None]


def test_cut_connections_are_resumed_where_they_ended(server, target):
    server.cuts = [300_000, 1, 500_000]
    download(server.url("/file.bin"), target)
    assert target.read_bytes() == CONTENT and only_file(target)
    assert server.ranges == [None, "bytes=300000-", "bytes=300001-", "bytes=800001-"]


def test_many_cuts_are_no_reason_to_give_up_while_bytes_arrive(server, target):
    server.cuts = [100_000] * 10
    download(server.url("/file.bin"), target)
    assert target.read_bytes() == CONTENT


def test_a_second_call_goes_on_from_the_part_that_is_there(server, target):
    begun(target, CONTENT[:700_000])
    download(server.url("/moved/file.bin"), target)
    assert target.read_bytes() == CONTENT
    assert server.ranges == ["bytes=700000-"] * 2  # asked again where the server sent us


@pytest.mark.parametrize("cuts", [[], [600_000]])
def test_a_server_that_ignores_range_sends_everything_again(server, target, cuts):
    server.supports_range = False
    server.cuts = cuts
    begun(target, b"x" * 700_000)
    download(server.url("/file.bin"), target)
    assert target.read_bytes() == CONTENT


def test_a_part_that_was_whole_already_is_taken(server, target):
    begun(target, CONTENT)
    download(server.url("/file.bin"), target, len(CONTENT))
    assert target.read_bytes() == CONTENT and server.ranges == ["bytes=1024000-"]


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_part_longer_than_the_file_is_dropped(server, target, size):
    begun(target, CONTENT + b"more")
    download(server.url("/file.bin"), target, size)
    assert target.read_bytes() == CONTENT


def test_an_unannounced_size_is_checked_against_the_expected_one(server, target):
    server.announces_size = False
    server.cuts = [10]
    download(server.url("/file.bin"), target, len(CONTENT))
    assert target.read_bytes() == CONTENT and server.ranges == [None, "bytes=10-"]
    with pytest.raises(UserError, match=r"does not say how long the file is"):
        download(server.url("/file.bin"), target.with_name("other"))
    server.cuts = [10]
    with pytest.raises(UserError, match=r"another file than the one known here: SHA-256"):
        download(server.url("/file.bin"), target.with_name("other"), sha256=hashlib.sha256(CONTENT).hexdigest())
    assert only_file(target)


def test_wrong_size_and_hash_keep_nothing(server, target):
    with pytest.raises(UserError, match="has 1,024,000 bytes on the server; 5 were expected"):
        download(server.url("/file.bin"), target, 5)
    with pytest.raises(UserError, match=r"SHA-256 .* instead of 00"):
        download(server.url("/file.bin"), target, sha256="00")
    assert not list(target.parent.iterdir())


def test_a_damaged_file_is_replaced(server, target):
    target.parent.mkdir()
    target.write_bytes(b"x" * len(CONTENT))
    download(server.url("/file.bin"), target, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    assert target.read_bytes() == CONTENT


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(server, target):
    server.statuses = [503, 429, 500]
    download(server.url("/file.bin"), target)
    assert target.read_bytes() == CONTENT
    server.requests.clear()
    with pytest.raises(UserError, match=r"/absent: the server answered 404"):
        download(server.url("/absent"), target.with_name("absent"))
    assert server.ranges == [None] and only_file(target)


def test_a_server_that_stays_busy_is_given_up(server, target):
    server.statuses = [503] * 50
    with pytest.raises(UserError, match=r"answered 503.*\(4 attempts\)"):
        download(server.url("/file.bin"), target)
    assert len(server.ranges) == 4


def test_without_a_connection_the_message_says_what_to_do(server, target):
    server.shutdown()
    server.server_close()
    begun(target, CONTENT[:1000])
    with pytest.raises(UserError, match=r"no connection.*after the 1,000 bytes.*may be put at .*file\.bin"):
        download(server.url("/file.bin"), target)
    assert (target.parent / "file.bin.part").read_bytes() == CONTENT[:1000]


def test_processes_that_want_one_file_take_turns(server, target):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: download(server.url("/file.bin"), target), range(4)))
    assert target.read_bytes() == CONTENT and server.ranges == [None]


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken"):
        download(server.url("/file.bin"), tmp_path / "taken" / "x" / "file.bin")


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("DCLS_ALIGN_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("DCLS_ALIGN_CACHE")
    assert cache_folder().parts[-2:] == (".cache", "dcls-align")
