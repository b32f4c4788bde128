"""What a folder does when the network does not behave: tried again, given up, named."""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from s3_server import BUCKET, closed_endpoint
from stored_content import CONTENT, SHA256

from sharding.io import retries, storage
from sharding.io.storage import Folder


@contextlib.contextmanager
def _silent_server():
    """The endpoint of a server that accepts connections and then says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("fault", ["cut", "busy"])
def test_an_interrupted_transfer_is_tried_again(fault, s3, remote, monkeypatch):
    monkeypatch.setattr(storage, "PIECE_BYTES", 40_000)
    remote.write("a", CONTENT)
    s3.spoil(fault, times=3)
    assert remote.fetch("a", SHA256, len(CONTENT)).read_bytes() == CONTENT
    s3.spoil(fault, times=2)
    assert remote.read("a") == CONTENT
    s3.spoil(fault, times=2)
    assert remote.read_range("a", 5, 50) == CONTENT[5:55]


@pytest.mark.parametrize("fault", ["cut", "busy"])
def test_a_transfer_that_never_succeeds_is_one_clear_error(fault, s3, remote, refused):
    remote.write("a", CONTENT)
    s3.spoil(fault, times=1000)
    s3.requests.clear()
    with refused(remote / "a", "the request to the storage failed", "Check the name, the network"):
        remote.fetch("a", SHA256, len(CONTENT))
    assert len([path for method, path in s3.requests if method == "GET"]) == 5
    with refused(remote / "a", "the request to the storage failed", "Check the name, the network"):
        remote.read("a")
    assert not [path for path in remote.cache.folder.iterdir() if path.stat().st_size]


def test_what_is_forbidden_is_asked_once(s3, remote, refused):
    remote.write("a", CONTENT)
    s3.spoil("forbid", times=1000)
    s3.requests.clear()
    with refused(remote / "a", "access is refused", "Set AWS_ACCESS_KEY_ID"):
        remote.read_range("a", 0, 10)
    assert len(s3.requests) == 1


def test_patience_ends(s3, remote, refused, monkeypatch):
    monkeypatch.setattr(retries, "PATIENCE_SECONDS", -1.0)
    remote.write("a", CONTENT)
    s3.spoil("busy", times=1)
    with refused(remote / "a", "ServiceUnavailable", "Check the name, the network"):
        remote.read_range("a", 0, 10)


def test_a_file_that_ends_too_early_is_named(folder, refused):
    folder.write("a", b"123")
    with refused(folder / "a", "asked for 5 bytes from 2 on, got 1", "Check the"):
        folder.read_range("a", 2, 5)
    with refused(folder / "a", "must have 4 bytes, found 3", "Copy it again"):
        folder.fetch("a", None, 4)


def test_a_changed_object_is_refused(s3, remote, refused):
    remote.write("a", CONTENT[::-1])
    s3.requests.clear()
    with refused(remote / "a", "sha256 must be .* found .* twice", "shard the cohort again"):
        remote.fetch("a", SHA256, len(CONTENT))
    assert [method for method, _ in s3.requests] == ["HEAD", "GET", "GET"]
    remote.write("a", CONTENT[1:])
    with refused(remote / "a", "must have 100000 bytes, found 99999", "shard the cohort again"):
        remote.fetch("a", SHA256, len(CONTENT))


def test_damage_on_the_way_is_repaired(s3, remote):
    remote.write("a", CONTENT)
    s3.spoil("flip", times=1)
    assert remote.fetch("a", SHA256, len(CONTENT)).read_bytes() == CONTENT


def test_missing_files(folder, refused):
    folder.write("b", b"1")
    for use in (folder.read, lambda name: folder.fetch(name, SHA256, None)):
        with refused(folder / "a", "no such file", "copy the file again"):
            use("a")


@pytest.mark.usefixtures("s3")
def test_a_missing_bucket_is_named(refused):
    lost = Folder("s3://no-such-bucket/run")
    uses = [
        lost.names,
        lambda: lost.exists("a"),
        lambda: lost.read("a"),
        lambda: lost.write("a", ""),
    ]
    for use in uses:
        with refused(lost.url, "the bucket does not exist", "Check its name"):
            use()


@pytest.mark.usefixtures("s3")
def test_a_web_server_is_no_empty_folder(refused, monkeypatch, tmp_path):
    pages = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), pages) as web:
        threading.Thread(target=web.serve_forever).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{web.server_address[1]}")
        with refused("s3://scans/run", "the bucket does not exist", "AWS_ENDPOINT_URL"):
            Folder("s3://scans/run").names()
        web.shutdown()


@pytest.mark.usefixtures("s3")
def test_a_server_that_is_not_there_is_named(refused, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", closed_endpoint())
    lost = Folder(f"s3://{BUCKET}/run")
    started = time.monotonic()
    for use in (lost.names, lambda: lost.fetch("a", SHA256, 3), lambda: lost.write("a", "")):
        with refused(lost.url, "Could not connect to the endpoint", "AWS_ENDPOINT_URL"):
            use()
    assert time.monotonic() - started < 10


@pytest.mark.usefixtures("s3")
def test_a_silent_server_is_given_up(refused, monkeypatch):
    monkeypatch.setattr(retries, "SILENCE_SECONDS", 0.05)
    with _silent_server() as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with refused(f"s3://{BUCKET}/run/a", "timeout", "AWS_ENDPOINT_URL"):
            Folder(f"s3://{BUCKET}/run").read("a")
