"""Shard sets on an object store: the same bytes, checked on arrival, kept in a bounded cache."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from killing import CallMoment
from lab import SMALL as BASE
from lab import break_target, make_lab, rows, stopped_before_the_manifest, stopped_sharding, tree
from s3_server import S3Server

from distsynth.config import DataConfig
from distsynth.data.loader import TrainingBatches, validation_batches
from distsynth.errors import ConfigError
from sharding.io import lease, retries
from sharding.io.cache import Cache
from sharding.io.errors import CohortError, DataError
from sharding.io.lease import LEASE_FILE
from sharding.io.storage import Folder
from sharding.shards.shard_set import ShardSet
from sharding.shards.verify import verify
from sharding.shards.write import write_shards

pytestmark = pytest.mark.slow

COHORT = "a train, b train, c train, d val, e test"
SMALL = replace(BASE, block=16, shard_mb=0.008)
"""Three shards a split: every request takes its time."""


@pytest.fixture
def s3(server: S3Server, monkeypatch, tmp_path):
    """The server, as the environment names it, with waits that are no waits."""
    (tmp_path / "scratch").mkdir()
    more = {
        "DISTSYNTH_CACHE": str(tmp_path / "cache"),
        "TMPDIR": str(tmp_path / "scratch"),
    }
    for name, value in (server.environment | more).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(retries, "PAUSES_SECONDS", (0.01,) * 4)
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0)
    server.spoil("cut", times=0)
    server.requests.clear()
    yield server
    server.spoil("cut", times=0)
    tempfile.tempdir = None


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The cohort, and its set on a disk in `whole`. Do not write into it."""
    folder = make_lab(tmp_path_factory.mktemp("local"), "abcdef")
    write_shards(rows(folder, COHORT), folder / "whole", SMALL, workers=1)
    return folder


@pytest.fixture
def remote(s3: S3Server, local):
    """A copy of the set in the bucket."""
    folder = Folder(s3.new_folder())
    for name, content in tree(local / "whole").items():
        folder.write(name, content)
    s3.requests.clear()
    return folder


def objects(folder):
    return {name: folder.read(name) for name in folder.names()}


def put(server, folder):
    """Objects of a folder, but its lease, that were written since the requests were cleared."""
    start = "/" + folder.url.removeprefix("s3://") + "/"
    found = [path for method, path in server.requests if method in ("PUT", "POST")]
    return {
        path.partition("?")[0].removeprefix(start) for path in found if path.startswith(start)
    } - {LEASE_FILE}


def assert_same(left, right):
    assert len(left) == len(right) > 0
    for one, other in zip(left, right, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def batches(shards, **config):
    data = DataConfig(**{"patch_size": (8, 8)} | config)
    loader = TrainingBatches(shards, data, 4, seed=1)
    return [batch for epoch in (0, 1) for batch in loader.epoch(epoch)]


# Writing


def test_the_objects_are_the_files_of_a_local_set(s3, local, tmp_path):
    folder = Folder(s3.new_folder())
    done = write_shards(rows(local, COHORT), folder.url, SMALL, workers=2)
    assert objects(folder) == tree(local / "whole")
    shards = ShardSet(folder.url)
    assert shards.manifest == done.manifest == ShardSet(local / "whole").manifest
    assert verify(shards) == []
    assert not list((tmp_path / "scratch").iterdir())
    s3.requests.clear()
    assert write_shards(rows(local, COHORT), folder.url, SMALL, workers=1) == done
    assert put(s3, folder) == set()


def test_transfers_that_break_off_while_writing_are_tried_again(s3, local):
    folder = Folder(s3.new_folder())
    s3.spoil("cut", times=3)
    write_shards(rows(local, COHORT), folder.url, SMALL, workers=1)
    assert s3.next_fault() is None, "all were met with"
    assert objects(folder) == tree(local / "whole")


def test_a_specimen_that_fails_leaves_the_others(s3, tmp_path, refused):
    home = make_lab(tmp_path, "abcde")
    folder = Folder(s3.new_folder())
    break_target(home, "b")
    with pytest.raises(CohortError, match=r"1 of 5 specimens failed:\n  b: "):
        write_shards(rows(home, COHORT), folder.url, SMALL, workers=1)
    with refused(f"{folder.url}/manifest.json", "not finished", "Run the same"):
        ShardSet(folder.url)
    parts = {f"parts/specimens/{name}.{kind}" for name in "acde" for kind in ("tar", "json")}
    assert {name for name in folder.names() if "parts" in name} == parts
    make_lab(home, "abcde")
    s3.requests.clear()
    write_shards(rows(home, COHORT), folder.url, SMALL, workers=1)
    assert not put(s3, folder) & parts
    write_shards(rows(home, COHORT), home / "out", SMALL, workers=1)
    assert objects(folder) == tree(home / "out")


def test_a_killed_run_is_gone_on_with(s3, local, tmp_path):
    folder = Folder(s3.new_folder())
    moment = CallMoment("sharding.io.storage:Folder.write", "parts/specimens/b.json", after=True)
    with stopped_sharding(
        moment, rows(local, COHORT), folder.url, SMALL, tmp_path / "log", s3.environment
    ):
        assert "parts/specimens/b.json" in folder.names()
    first = {name for name in folder.names() if name.endswith(".json")}
    assert "manifest.json" not in first
    cut = {name.replace("json", kind) for name in first for kind in ("json", "tar")}
    s3.requests.clear()
    count = len(ShardSet(local / "whole").manifest.shards)
    with stopped_before_the_manifest(
        rows(local, COHORT),
        folder.url,
        SMALL,
        tmp_path / "log",
        environment=s3.environment,
    ):
        assert len(folder.names("parts/shards")) == count
        with pytest.raises(DataError, match="not finished"):
            ShardSet(folder.url)
        assert not put(s3, folder) & {name for name in cut if "specimens" in name}
    s3.requests.clear()
    write_shards(rows(local, COHORT), folder.url, SMALL, workers=1)
    assert put(s3, folder) == {"manifest.json"}, "all shards were there"
    assert objects(folder) == tree(local / "whole")


def test_a_set_is_updated(s3, local, remote):
    grown = f"{COHORT}, f test"
    old = {shard.name for shard in ShardSet(remote.url).manifest.shards}
    s3.requests.clear()
    manifest = write_shards(rows(local, grown), remote.url, SMALL, workers=1, update=True).manifest
    assert not put(s3, remote) & old
    new = {shard.name for shard in manifest.shards} - old
    assert new
    assert new < put(s3, remote)
    moved = "a train, b train, c train, d test, e val, f test"
    write_shards(rows(local, moved), remote.url, SMALL, workers=1, update=True)
    assert verify(ShardSet(remote.url)) == []


def test_a_folder_that_is_no_shard_set_is_never_touched(s3, local, refused):
    folder = Folder(s3.new_folder())
    folder.write("thesis.txt", "years of work")
    with refused(folder.url, "this program did not write it", "Give another folder"):
        write_shards(rows(local, COHORT), folder.url, SMALL, workers=1, overwrite=True)
    assert objects(folder) == {"thesis.txt": b"years of work"}


# Reading


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_those_of_the_local_set(remote, local, workers):
    shards, whole = ShardSet(remote.url), ShardSet(local / "whole")
    assert_same(batches(shards, workers=workers), batches(whole))
    chosen = np.arange(shards.manifest.patches("val"))[::3]
    found, expected = (
        list(validation_batches(which, "val", chosen, 5)) for which in (shards, whole)
    )
    assert_same(found, expected)
    for row in shards.manifest.specimens:
        np.testing.assert_array_equal(shards.mask(row), whole.mask(row))


def test_each_shard_is_fetched_once(s3, remote):
    shards = ShardSet(remote.url)
    batches(shards)
    s3.requests.clear()
    batches(ShardSet(remote.url))
    assert [path for _, path in s3.requests if ".tar" in path] == []


@pytest.mark.parametrize("fault", ["cut", "busy", "flip"])
def test_what_breaks_on_the_way_is_fetched_again(s3, remote, local, fault):
    shards, expected = ShardSet(remote.url), batches(ShardSet(local / "whole"))
    s3.spoil(fault, times=1 if fault == "flip" else 3)
    assert_same(batches(shards), expected)
    assert s3.next_fault() is None


def test_a_changed_object_is_refused_by_its_name(remote, refused):
    shards = ShardSet(remote.url)
    name = shards.shards("train")[1].name
    content = bytearray(remote.read(name))
    content[-2000] ^= 1
    remote.write(name, bytes(content))
    with refused(f"{remote.url}/{name}", "its sha256 must be .* the object was changed", "again"):
        batches(shards)
    assert [fault.where for fault in verify(shards)] == [f"{remote.url}/{name}"]


def test_every_fault_is_named(remote):
    shards = ShardSet(remote.url)
    names = [shard.name for shard in shards.manifest.shards]
    remote.remove(names[0])
    remote.write(names[-1], remote.read(names[-1])[:-512])
    mask = next(name for name in remote.names("masks"))
    remote.remove(mask)
    remote.write("notes.txt", "a stranger")
    places = [fault.where.removeprefix(f"{remote.url}/") for fault in verify(ShardSet(remote.url))]
    assert sorted(places) == sorted([names[0], names[-1], mask, "notes.txt"])


def test_the_cache_stays_bounded(remote, local, tmp_path):
    whole = ShardSet(local / "whole")
    size = max(shard.bytes for shard in whole.shards("train"))
    limit = int(2.5 * size)
    cache = Cache(tmp_path / "small", gigabytes=limit / 1e9)
    shards = ShardSet(remote.url, cache)
    config = {"shuffle_shards": 2, "cache_gb": limit / 1e9}
    data = DataConfig(**{"patch_size": (8, 8)} | config)
    loader = TrainingBatches(shards, data, 4, seed=1)
    found, held = [], set()
    for epoch in (0, 1):
        for batch in loader.epoch(epoch):
            found.append(batch)
            held.add(sum(path.stat().st_size for path in cache.folder.iterdir()))
    assert size < max(held) <= limit
    assert sum(shard.bytes for shard in whole.shards("train")) > limit, "they do not all fit"
    assert_same(found, batches(whole, **config))
    assert verify(shards) == []
    assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= limit


@pytest.mark.parametrize(("window", "fits"), [(1, True), (2, False), (64, False)])
def test_a_cache_too_small_for_what_is_shuffled_is_refused(remote, local, window, fits):
    sizes = sorted(shard.bytes for shard in ShardSet(local / "whole").shards("train"))
    config = {"shuffle_shards": window, "cache_gb": sizes[-1] / 1e9}
    if fits:
        assert batches(ShardSet(remote.url), **config)
        return
    needed = sum(sizes[-window:]) / 1e9
    with pytest.raises(ConfigError, match=rf"^data\.cache_gb must be >= {needed:.3g}, the size of"):
        batches(ShardSet(remote.url), **config)
    assert batches(ShardSet(local / "whole"), **config), "a local set needs no cache"


def test_without_a_cache_folder_to_write_to_the_place_is_named(remote, tmp_path, refused):
    (tmp_path / "taken").write_text("in the way")
    shards = ShardSet(remote.url, Cache(tmp_path / "taken" / "cache"))
    with refused(tmp_path / "taken", "cannot be read or written", "Check the path"):
        batches(shards)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
