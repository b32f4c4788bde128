"""Folders behave alike on disks and on object stores, and when the network does not behave."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from s3_server import BUCKET, S3Server
from stored_content import CONTENT, SHA256

from sharding.io.errors import DataError, MissingError
from sharding.io.storage import Folder, is_remote


@pytest.fixture(params=["local", "s3"])
def url(request, s3: S3Server, tmp_path) -> str:
    """Where both this process and others can write."""
    return str(tmp_path / "data") if request.param == "local" else s3.new_folder()


def _python(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Another process; `arguments` are its sys.argv[1:]."""
    command = [sys.executable, "-c", code, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def _finish(process: subprocess.Popen[str]) -> str:
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    return out


@contextlib.contextmanager
def _killed_after_first_line(process: subprocess.Popen[str]):
    """Enter when it has written a line; kill it at the end."""
    with process:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield
        process.send_signal(signal.SIGKILL)


# Names and content


def test_round_trip(folder):
    assert folder.names() == []
    assert not folder.exists("a/b.bin")
    assert folder.size("a/b.bin") is None
    folder.write("a/b.bin", CONTENT)
    folder.write("a/c.txt", "grüße")
    folder.write("empty", b"")
    with folder.writer("z.npy") as partial:
        assert partial.suffix == ".npy"
        partial.write_bytes(b"zzz")
    assert folder.names() == ["a/b.bin", "a/c.txt", "empty", "z.npy"]
    assert folder.names("a") == ["a/b.bin", "a/c.txt"]
    assert folder.names("nothing") == []
    assert folder.exists("a/b.bin")
    assert not folder.exists("a")
    assert folder.size("a/b.bin") == len(CONTENT)
    assert folder.read("a/b.bin") == CONTENT
    assert folder.read("a/c.txt").decode() == "grüße"
    assert folder.read("empty") == b""
    assert folder.read_range("a/b.bin", 10, 20) == CONTENT[10:30]
    assert folder.read_range("a/b.bin", 10, 0) == b""
    assert folder.fetch("a/b.bin", SHA256, len(CONTENT)).read_bytes() == CONTENT
    assert folder.fetch("empty", None, None).read_bytes() == b""
    folder.write("z.npy", b"another")
    assert folder.read("z.npy") == b"another"
    assert folder.size("z.npy") == 7
    folder.remove("z.npy")
    folder.remove("z.npy")
    assert folder.names() == ["a/b.bin", "a/c.txt", "empty"]


def test_many_small_files_go_and_come_in_order(folder):
    contents = {f"many/{number}.txt": f"content {number}" for number in (3, 1, 2)}
    folder.write_many(contents)
    names = [*contents]
    assert folder.read_many(names) == [text.encode() for text in contents.values()]
    assert folder.names("many") == sorted(names)
    with pytest.raises(MissingError):
        folder.read_many([*names, "many/absent.txt"])
    folder.write_many({})
    assert folder.read_many([]) == []


def test_a_listing_of_s3_gives_the_md5_of_a_file_and_others_give_none(folder):
    folder.write("a/b.bin", CONTENT)
    folder.write_many({"a/c.txt": "grüße", "a/d.txt": "d"})
    folder.write("a/d.txt", "another")
    contents = {"a/b.bin": CONTENT, "a/c.txt": "grüße".encode(), "a/d.txt": b"another"}
    on_s3 = folder.url.startswith("s3")
    expected = {
        name: hashlib.md5(content).hexdigest() if on_s3 else None
        for name, content in contents.items()
    }
    assert folder.digests("a") == folder.digests() == expected
    assert folder.digests("nothing") == {}


def test_what_others_write_is_seen_at_once(folder):
    other = Folder(folder.url)
    assert folder.names() == []
    other.write("new", b"1")
    assert folder.names() == ["new"]
    other.write("new", b"22")
    assert folder.size("new") == 2
    assert folder.read("new") == b"22"
    other.remove("new")
    assert folder.names() == []


def test_what_is_no_file_of_ours_is_not_listed(folder):
    folder.write("a/.b.bin.x1y2", b"half of a write")
    folder.write(".lock", b"")
    folder.write("a/b.bin", b"1")
    if folder.url.startswith("s3"):
        # As the console makes them for a folder.
        folder._connection.request(
            folder.url, lambda system, path: system.pipe_file(f"{path}/a/", b"")
        )
    assert folder.names() == folder.names("a") == ["a/b.bin"]


def test_relative_paths(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for url in (".", "below", "../beside"):
        folder = Folder(url)
        folder.write("a.txt", b"1")
        assert "a.txt" in folder.names()
        assert folder.read("a.txt") == b"1"
    assert Folder(tmp_path).names() == ["beside/a.txt", "here/a.txt", "here/below/a.txt"]


def test_full_names(tmp_path):
    assert Folder(tmp_path) / "a/b" == f"{tmp_path}/a/b"
    assert Folder("s3://scans/run/").join("a/b") == "s3://scans/run/a/b"
    assert Folder("s3://scans/run/").url == "s3://scans/run"
    assert Folder("s3://scans/run").local is None
    assert Folder(f"file://{tmp_path}").local == tmp_path
    assert Folder("/").local == Path("/")
    assert not is_remote(tmp_path)
    assert not is_remote("file:///data")
    assert is_remote("s3://scans")
    assert is_remote("memory://")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../up", "a/../../up", "/etc/passwd", "a//b", "a/", "./a", "a\\b", "\0"]
)
@pytest.mark.parametrize("url", ["data", "s3://scans/data"])
def test_names_that_lead_elsewhere_are_refused(name, url, refused):
    folder = Folder(url)
    uses = [
        folder.read,
        folder.size,
        folder.remove,
        lambda name: folder.write(name, b""),
        lambda name: folder.writer(name).__enter__(),
        lambda name: folder.fetch(name, None, None),
        lambda name: folder.read_range(name, 0, 1),
        folder.names if name else folder.read,
    ]
    for use in uses:
        with refused(folder.url, "not the name of a file inside the folder", "relative names"):
            use(name)


def test_a_digest_that_leads_elsewhere_is_refused(remote, refused):
    remote.write("a", b"1")
    with refused(remote / "a", "not a sha256", "Shard the cohort again"):
        remote.fetch("a", "../" + "0" * 61, 1)


def test_urls_that_cannot_be_used_are_refused(refused):
    with refused("s3:/scans/run", "looks like a URL", "s3://bucket/folder"):
        Folder(Path("s3://scans/run"))
    with refused("s3://", "names no bucket", "s3://bucket/folder"):
        Folder("s3://")
    with refused("sftp://...@host/data", "not hold a password", "environment"):
        Folder("sftp://me:secret@host/data")
    with pytest.raises(DataError) as caught:
        Folder("sftp://me:secret@host/data")
    assert "secret" not in str(caught.value)
    with refused("mars://x", "no storage is known as mars://", "a folder"):
        Folder("mars://x").names()


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is installed")
def test_a_missing_package_is_named(refused):
    with refused("gs://scans/a", "a package that is not installed", r"distsynth\[gs\]"):
        Folder("gs://scans").read("a")


# Whole or not at all


def test_a_failing_block_leaves_nothing(folder):
    folder.write("a", b"old")
    with pytest.raises(RuntimeError, match="boom"), folder.writer("a") as partial:
        partial.write_bytes(b"half")
        raise RuntimeError("boom")
    assert not partial.exists()
    assert folder.names() == ["a"]
    assert folder.read("a") == b"old"
    if folder.local:
        assert [path.name for path in folder.local.iterdir()] == ["a"]


def test_an_error_of_the_block_is_its_own(folder, tmp_path):
    with pytest.raises(FileNotFoundError), folder.writer("a"):
        (tmp_path / "missing").read_bytes()


def test_a_killed_writer_leaves_no_file(url):
    code = """
import sys
from sharding.io.storage import Folder
with Folder(sys.argv[1]).writer("a.bin") as partial:
    partial.write_bytes(b"half")
    print("half", flush=True)
    sys.stdin.read()
"""
    with _killed_after_first_line(_python(code, url)):
        assert Folder(url).names() == []
    assert Folder(url).names() == []
    assert not Folder(url).exists("a.bin")


def test_a_full_disk_is_named(tmp_path, refused):
    full = tmp_path / "data"
    with (
        refused(full, "no space left", "Free some"),
        Folder(full).writer("a"),
        Path("/dev/full").open("wb", buffering=0) as file,
    ):
        file.write(b"1")
    assert list(full.iterdir()) == []


def test_a_folder_that_may_not_be_is_named(tmp_path, refused):
    (tmp_path / "file").write_text("in the way")
    with refused(tmp_path / "file/a", "cannot be read or written", "permissions"):
        Folder(tmp_path / "file").write("a", b"1")
    with refused(tmp_path / "file/a", "cannot be read or written", "permissions"):
        Folder(tmp_path / "file").read("a")


# When the network does not behave


@pytest.mark.usefixtures("s3")
def test_missing_credentials_are_named(refused, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with refused(f"s3://{BUCKET}/run/a", "no credentials", "Set AWS_ACCESS_KEY_ID"):
        Folder(f"s3://{BUCKET}/run").read("a")


def test_an_endpoint_in_the_configuration_of_fsspec_is_taken(s3, monkeypatch):
    code = """
import sys
from sharding.io.storage import Folder
print(Folder(sys.argv[1]).read("a").decode())
"""
    url = s3.new_folder()
    Folder(url).write("a", "found")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("FSSPEC_S3_ENDPOINT_URL", s3.endpoint)
    assert _finish(_python(code, url)) == "found\n"


# Many processes

FETCH = """
import pickle, sys
folder, sha256 = pickle.loads(bytes.fromhex(sys.argv[1])), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
print(len(folder.fetch("a", sha256, None).read_bytes()))
"""


def test_two_processes_that_fetch_the_same_download_it_once(s3, remote):
    remote.write("a", CONTENT)
    s3.requests.clear()
    processes = [_python(FETCH, pickle.dumps(remote).hex(), SHA256) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.communicate("go\n", timeout=60)[0] == f"{len(CONTENT)}\n"
    assert [method for method, _ in s3.requests].count("GET") == 1
    assert [path.name for path in remote.cache.folder.iterdir()] == [SHA256]


def test_pickling(folder):
    folder.write("a", b"1")
    copy = pickle.loads(pickle.dumps(folder))
    assert copy.url == folder.url
    assert copy.cache == folder.cache
    assert copy.read("a") == b"1"


def test_a_fork_opens_connections_of_its_own(remote):
    code = """
import os, sys, warnings
from sharding.io.storage import Folder
folder = Folder(sys.argv[1])
folder.write("a", "1")
warnings.simplefilter("ignore")  # newer Pythons warn that forking with threads may hang
child = os.fork()
if child == 0:
    folder.write("b", folder.read("a"))
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(folder.names())
"""
    assert _finish(_python(code, remote.url)) == "['a', 'b']\n"
