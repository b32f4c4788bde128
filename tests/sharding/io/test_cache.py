"""The cache of files that were fetched from object stores."""

from __future__ import annotations

import hashlib
import os

import pytest

from sharding.io.cache import Cache
from sharding.io.storage import Folder

CONTENT = os.urandom(100_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def test_a_hit_asks_nothing_of_the_server(s3, remote):
    remote.write("a", CONTENT)
    first = remote.fetch("a", SHA256, len(CONTENT))
    assert first.name == SHA256
    s3.requests.clear()
    assert Folder(remote.url).fetch("a", SHA256, len(CONTENT)) == first
    assert Folder(s3.new_folder()).fetch("the same elsewhere", SHA256, None) == first
    assert s3.requests == []


def test_without_a_checksum_a_changed_object_is_fetched_anew(s3, remote):
    remote.write("a", b"one")
    assert remote.fetch("a", None, None).read_bytes() == b"one"
    s3.requests.clear()
    assert remote.fetch("a", None, 3).read_bytes() == b"one"
    assert [method for method, _ in s3.requests] == ["HEAD"]
    remote.write("a", b"two")
    assert remote.fetch("a", None, None).read_bytes() == b"two"


def test_a_damaged_entry_is_discarded(remote):
    remote.write("a", CONTENT)
    path = remote.fetch("a", SHA256, len(CONTENT))
    path.write_bytes(CONTENT[:10])
    assert remote.fetch("a", SHA256, len(CONTENT)).read_bytes() == CONTENT


def test_the_cache_keeps_its_bound_and_what_was_just_used(s3, tmp_path):
    cache = Cache(tmp_path / "small", gigabytes=35_000 / 1e9)
    folder = Folder(s3.new_folder(), cache)
    contents = [bytes([index]) * 10_000 for index in range(6)]
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    for index, content in enumerate(contents):
        folder.write(str(index), content)

    def fetch(index: int) -> None:
        path = folder.fetch(str(index), digests[index], 10_000)
        assert path.read_bytes() == contents[index]

    def kept() -> set[int]:
        assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= 35_000
        return {index for index, digest in enumerate(digests) if (cache.folder / digest).exists()}

    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "diary.txt").write_text("not of the cache")
    for index in (0, 1, 2):
        fetch(index)
    assert kept() == {0, 1, 2}
    fetch(0)
    fetch(3)
    assert kept() == {0, 2, 3}
    for index in (4, 5, 4, 1, 5):
        fetch(index)
        assert index in kept()
    assert kept() == {1, 4, 5}
    assert (tmp_path / "small" / "diary.txt").exists()


def test_downloads_of_dead_processes_are_cleared_away(s3, tmp_path):
    cache = Cache(tmp_path / "cache")
    cache.folder.mkdir()
    old, young = (cache.folder / f".{SHA256}.{age}" for age in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    folder = Folder(s3.new_folder(), cache)
    folder.write("a", b"1")
    folder.fetch("a", None, None)
    assert not old.exists()
    assert young.exists()


def test_a_file_larger_than_the_cache_is_refused(s3, tmp_path, refused):
    folder = Folder(s3.new_folder(), Cache(tmp_path / "tiny", gigabytes=1e-6))
    folder.write("a", CONTENT)
    with refused(folder / "a", "more than the whole cache of 1e-06 GB", "more gigabytes"):
        folder.fetch("a", SHA256, len(CONTENT))
    with pytest.raises(ValueError, match="gigabytes must be > 0"):
        Cache(tmp_path, gigabytes=0)


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("DISTSYNTH_CACHE", str(tmp_path / "mine"))
    assert Folder("s3://scans").cache.folder == tmp_path / "mine"
    monkeypatch.delenv("DISTSYNTH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Cache().folder == tmp_path / "distsynth" / "shards"


def test_a_cache_that_cannot_be_is_named(remote, tmp_path, refused):
    (tmp_path / "file").write_text("in the way")
    folder = Folder(remote.url, Cache(tmp_path / "file" / "cache"))
    folder.write("a", CONTENT)
    with refused(tmp_path / "file", "cannot be read or written", "Check the path"):
        folder.fetch("a", SHA256, len(CONTENT))
