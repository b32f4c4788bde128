"""One process at a time writes to a folder, on any storage."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import pytest

from sharding.io import lease as lease_module
from sharding.io.lease import LEASE_FILE, Lease, lease, read_lease
from sharding.io.storage import Folder


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    url = tmp_path / "run" if request.param == "local" else f"memory://{tmp_path.name}/run"
    return Folder(url)


@pytest.fixture
def bucket(server, monkeypatch):
    """A folder on an S3 server."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(server, "conditions", "kept")
    return Folder(server.new_folder())


def elsewhere(age: float) -> Lease:
    """A lease of another machine, last renewed so many seconds ago."""
    own = Lease.own()
    return replace(own, token="theirs", host="elsewhere", renewed=own.renewed - age)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lease_module, "SETTLE_SECONDS", 0.01)
    monkeypatch.setattr(lease_module, "BEAT_SECONDS", 0.05)


def test_a_second_holder_is_refused_with_the_first_ones_name(folder, refused):
    with lease(folder.url):
        holder = read_lease(folder)
        assert holder is not None and holder.process == os.getpid()
        with (
            refused(folder.url, f"process {os.getpid()} on .* since 20", "Wait for it"),
            lease(folder.url),
        ):
            pass
        assert read_lease(folder).token == holder.token
    assert read_lease(folder) is None
    with lease(folder.url):
        pass
    if folder.local:
        assert not folder.local.exists()


def test_a_fresh_lease_of_another_machine_is_respected(folder, refused):
    theirs = elsewhere(age=30)
    folder.write(LEASE_FILE, theirs.to_json())
    with refused(folder.url, "on elsewhere since", "give another folder"), lease(folder.url):
        pass
    assert read_lease(folder) == theirs


def test_a_stale_lease_of_another_machine_is_taken_over(folder):
    folder.write(LEASE_FILE, elsewhere(age=1000).to_json())
    with lease(folder.url):
        assert read_lease(folder).process == os.getpid()


def test_a_lease_that_only_looks_stale_is_respected(folder, refused):
    """The clock of the other machine is behind, and it still renews."""
    ended = threading.Event()

    def renew() -> None:
        number = 0
        while not ended.wait(0.01):
            number += 1
            folder.write(LEASE_FILE, replace(elsewhere(1000), since=float(number)).to_json())

    thread = threading.Thread(target=renew)
    thread.start()
    time.sleep(0.1)
    try:
        with refused(folder.url, "on elsewhere", "Wait"), lease(folder.url):
            pass
    finally:
        ended.set()
        thread.join()


def test_a_holder_renews(folder):
    with lease(folder.url):
        first = read_lease(folder)
        deadline = time.monotonic() + 30
        while read_lease(folder).renewed == first.renewed and time.monotonic() < deadline:
            time.sleep(0.01)
        again = read_lease(folder)
        assert again.renewed > first.renewed
        assert replace(again, renewed=first.renewed) == first


def _hold(url: str, ready: str) -> None:
    with lease(url):
        Folder(ready).write("ready", "")
        time.sleep(600)


def test_the_lease_of_a_killed_process_is_taken_over_at_once(tmp_path):
    url, ready = str(tmp_path / "run"), Folder(tmp_path / "ready")
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(url, ready.url))
    process.start()
    while not ready.exists("ready"):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert read_lease(Folder(url)).process == process.pid
    with lease(url):
        assert read_lease(Folder(url)).process == os.getpid()


def test_who_lost_the_lease_is_interrupted_and_leaves_it_to_the_other(folder):
    with pytest.raises(KeyboardInterrupt):  # noqa: SIM117
        with lease(folder.url):
            folder.write(LEASE_FILE, elsewhere(0).to_json())
            # A long sleep would not notice an interruption from another thread.
            for _ in range(3000):
                time.sleep(0.01)
    assert read_lease(folder).host == "elsewhere"


def test_a_file_that_is_no_lease_is_replaced(folder):
    folder.write(LEASE_FILE, json.dumps(asdict(Lease.own()) | {"more": 1}))
    with lease(folder.url):
        assert read_lease(folder).process == os.getpid()


# Several processes at once


def winners(folder, content):
    """How many of six swaps of this content at once succeed."""
    start = threading.Barrier(6)
    new = [f"{number} after {content}".encode() for number in range(6)]

    def take(number):
        start.wait()
        return folder.swap(LEASE_FILE, content, new[number])

    with ThreadPoolExecutor(6) as pool:
        taken = list(pool.map(take, range(6)))
    assert folder.read(LEASE_FILE) == new[taken.index(True)]
    return sum(taken)


def test_one_of_several_that_swap_at_once_succeeds(tmp_path):
    for number in range(10):
        folder = Folder(tmp_path / str(number))
        assert winners(folder, None) == 1
        assert winners(folder, folder.read(LEASE_FILE)) == 1
        assert [path.name for path in folder.local.iterdir()] == [LEASE_FILE]


def test_so_it_does_on_s3(bucket):
    for name in "ab":
        folder = Folder(f"{bucket.url}/{name}")
        assert winners(folder, None) == 1
        assert winners(folder, folder.read(LEASE_FILE)) == 1


def test_a_swap_needs_the_content_that_it_names(folder):
    assert not folder.swap("file", b"old", b"new")
    assert not folder.exists("file")
    assert folder.swap("file", None, b"old")
    assert not folder.swap("file", None, b"new")
    assert folder.swap("file", b"old", b"new")
    assert folder.read("file") == b"new"


def taken_in_between(monkeypatch, theirs: Lease) -> None:
    """Let another process take the lease after it was read and before it is written."""
    before = Folder.swap

    def swap(self, name, old, new):
        monkeypatch.setattr(Folder, "swap", before)
        self.write(LEASE_FILE, theirs.to_json())
        return before(self, name, old, new)

    monkeypatch.setattr(Folder, "swap", swap)


@pytest.mark.parametrize("found", ["nothing", "an expired lease"])
def test_of_two_that_take_it_on_s3_the_second_is_refused(bucket, found, monkeypatch, refused):
    if found == "an expired lease":
        bucket.write(LEASE_FILE, elsewhere(age=1000).to_json())
    theirs = elsewhere(age=0)
    taken_in_between(monkeypatch, theirs)
    with refused(bucket.url, "on elsewhere since", "give another folder"), lease(bucket.url):
        pass
    assert read_lease(bucket) == theirs


def test_a_second_holder_and_an_expired_one_on_s3(bucket, refused):
    bucket.write(LEASE_FILE, elsewhere(age=1000).to_json())
    with lease(bucket.url):
        first = read_lease(bucket)
        assert first is not None and first.process == os.getpid()
        with refused(bucket.url, f"process {os.getpid()} on", "Wait for it"), lease(bucket.url):
            pass
        deadline = time.monotonic() + 30
        while read_lease(bucket).renewed == first.renewed and time.monotonic() < deadline:
            time.sleep(0.02)
        assert read_lease(bucket).renewed > first.renewed
        assert read_lease(bucket).token == first.token
    assert read_lease(bucket) is None


@pytest.mark.parametrize("conditions", ["ignored", "unknown"])
def test_a_server_without_conditional_writes_gives_it_to_the_last_writer(
    server, bucket, conditions, monkeypatch, refused
):
    monkeypatch.setattr(server, "conditions", conditions)
    monkeypatch.setattr(lease_module, "SETTLE_SECONDS", 0.5)
    with lease(bucket.url):
        assert read_lease(bucket).process == os.getpid()
    theirs = elsewhere(age=0)
    late = threading.Timer(0.1, bucket.write, (LEASE_FILE, theirs.to_json()))
    late.start()
    with refused(bucket.url, "on elsewhere since", "give another folder"), lease(bucket.url):
        pass
    late.join()
    assert read_lease(bucket) == theirs


def test_a_write_whose_answer_is_lost_and_that_is_repeated_has_succeeded(bucket):
    bucket.write("file", b"new")
    assert bucket.swap("file", None, b"new")
