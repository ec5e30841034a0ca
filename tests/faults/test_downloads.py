"""Downloads from servers that change their files, lie, drip, or lead to an unencrypted address."""

import hashlib
import http.server
import threading
import time

import pytest

from common import connection
from common import download as download_module
from common.download import download
from common.errors import UserError
from tests.local_server import local_server

OLD, NEW = bytes(300_000), b"\1" * 300_000


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("DCLS_ALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download_module, "FIRST_PAUSE", 0.0)
    with local_server() as server:
        server.files["/file.bin"] = OLD
        yield server


@pytest.fixture
def target(tmp_path):
    return tmp_path / "files" / "file.bin"


def refused(server, target, match, **known):
    with pytest.raises(UserError, match=match) as caught:
        download(server.url("/file.bin"), target, **known)
    assert "\n" not in str(caught.value)
    assert not target.exists()


def stop_half_way(server, target):
    """A download that ends for good after 100,000 bytes."""
    server.cuts = [100_000] + [0] * download_module.ATTEMPTS
    refused(server, target, "after the 100,000 bytes")
    server.cuts = []
    server.requests.clear()


@pytest.mark.parametrize("tag", ["as it should be", "none, but a date", "none", "weak"])
def test_a_file_that_changed_between_two_starts_is_fetched_anew(server, target, tag):
    date = {"ETag": "", "Last-Modified": "Sun, 01 Mar 2026 10:00:00 GMT"}
    heads = {"none, but a date": date, "none": {"ETag": ""}, "weak": {"ETag": 'W/"1"'}}.get(tag, {})
    server.heads = heads
    stop_half_way(server, target)
    server.files["/file.bin"] = NEW
    if tag == "none, but a date":
        server.heads = {**date, "Last-Modified": "Mon, 02 Mar 2026 10:00:00 GMT"}
    download(server.url("/file.bin"), target)
    assert target.read_bytes() == NEW
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]


def test_a_server_that_ignores_if_range_is_caught_by_its_new_tag(server, target):
    server.heads = {"ETag": '"old"'}
    stop_half_way(server, target)
    server.files["/file.bin"] = NEW
    server.heads = {"ETag": '"new"'}
    server.obeys_if_range = False
    download(server.url("/file.bin"), target)
    assert target.read_bytes() == NEW and server.ranges == ["bytes=100000-", None]


def test_a_file_whose_hash_is_known_goes_on_without_a_tag(server, target):
    server.heads = {"ETag": ""}
    stop_half_way(server, target)
    download(server.url("/file.bin"), target, sha256=hashlib.sha256(OLD).hexdigest())
    assert target.read_bytes() == OLD and server.ranges == ["bytes=100000-"]


def test_no_address_but_https_is_asked(server, target):
    class Plain(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)

    asked = []
    with http.server.HTTPServer(("127.0.0.1", 0), Plain) as plain:
        threading.Thread(target=plain.serve_forever, args=(0.01,), daemon=True).start()
        http_address = f"http://127.0.0.1:{plain.server_port}/file.bin"
        for address in (http_address, "ftp://127.0.0.1/file.bin", "file:///etc/hostname", "data:,x"):
            with pytest.raises(UserError, match="is not https"):
                download(address, target)
        for address in (http_address, "ftp://127.0.0.1/file.bin"):
            server.redirects["/file.bin"] = address
            refused(server, target, f"leads to {address}, which is not https")
        plain.shutdown()
    assert not asked


def test_a_certificate_that_nobody_vouches_for_is_refused(server, target, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    refused(server, target, "CERTIFICATE_VERIFY_FAILED")


def test_an_endless_redirect_ends(server, target):
    server.redirects["/file.bin"] = server.url("/file.bin")
    refused(server, target, "answered 302")


@pytest.mark.parametrize("known", [{"expected_size": 100_000}, {"at_most": 100_000}])
@pytest.mark.parametrize("announced", [True, False])
def test_no_more_is_written_than_a_file_may_have(server, target, known, announced):
    server.files["/file.bin"] = bytes(50 << 20)
    if not announced:
        server.announces_size = False
        server.heads = {"Transfer-Encoding": "chunked"}
        server.body = lambda handler: [handler.wfile.write(b"100000\r\n" + bytes(1 << 20) + b"\r\n") for _ in range(50)]
    refused(server, target, "100,000", **known)
    assert not list(target.parent.iterdir())


@pytest.mark.parametrize("length", ["abc", "-5", "", " ", "9" * 5000, "1e3"])
def test_a_length_that_makes_no_sense_is_no_length(server, target, length):
    server.heads = {"Content-Length": length}
    refused(server, target, "announced a length of|does not say how long|LineTooLong")


@pytest.mark.parametrize("span", ["bytes 5-299999/300000", "bytes x", "bytes 100000-299999/" + "9" * 5000, ""])
def test_a_range_that_was_not_asked_for_is_refused(server, target, span):
    stop_half_way(server, target)
    server.heads = {"Content-Range": span}
    refused(server, target, "asked for the bytes from 100000")


def test_a_body_shorter_than_announced_is_asked_for_again(server, target):
    server.cuts = [0, 250_000]
    download(server.url("/file.bin"), target)
    assert target.read_bytes() == OLD and server.ranges == [None, None, "bytes=250000-"]


def test_a_chunked_body_that_ends_early_is_asked_for_again(server, target):
    server.announces_size = False
    server.heads = {"Transfer-Encoding": "chunked"}

    def cut(handler):
        handler.wfile.write(b"186a0\r\n" + OLD[:100_000] + b"\r\n")
        server.body, server.heads, server.announces_size = None, {}, True

    server.body = cut
    download(server.url("/file.bin"), target)
    assert target.read_bytes() == OLD and server.ranges == [None, "bytes=100000-"]


@pytest.mark.parametrize("status", [204, 203, 205])
def test_a_status_that_brings_no_file_is_refused(server, target, status):
    server.success = status
    refused(server, target, f"answered {status}")


def test_an_empty_file_is_refused(server, target):
    server.files["/file.bin"] = b""
    refused(server, target, "is empty")


@pytest.mark.parametrize("kind", ["text/html", "TEXT/HTML; charset=utf-8", "application/xhtml+xml"])
def test_a_page_in_the_place_of_the_file_is_refused(server, target, kind):
    server.heads = {"Content-Type": kind}
    refused(server, target, "a web page came")


def drip(handler):
    """A byte now and then, for ever."""
    for _ in range(200):
        handler.wfile.write(b"x")
        time.sleep(0.05)


@pytest.mark.parametrize("where", ["body", "chunk size", "head"])
def test_a_server_that_drips_holds_no_download(server, target, monkeypatch, where):
    monkeypatch.setattr(connection, "WINDOW", 0.3)
    server.body = drip
    server.endless_head = where == "head"
    if where == "chunk size":
        server.heads = {"Content-Length": "", "Transfer-Encoding": "chunked"}
    start = time.monotonic()
    refused(server, target, r"fewer than 10,000 bytes per second \(4 attempts\)")
    assert time.monotonic() - start < 6
