from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from distsynth.data import memory
from distsynth.data.memory import keep_freed_memory, keepable_bytes

CPU = torch.device("cpu")
LEFT_IN_GROUPS = memory._left_in_groups


def group(folder, limit, anon=0, shmem=0, cached=0):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.stat").write_text(f"anon {anon}\nfile {cached}\nshmem {shmem}\n")


@pytest.fixture(autouse=True)
def host(monkeypatch):
    """A host with 800 bytes available, without control groups."""
    host = SimpleNamespace(available=800)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: host)
    monkeypatch.setattr(memory, "_left_in_groups", lambda: iter(()))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)


def test_a_process_may_keep_a_quarter_of_what_its_host_has():
    assert keepable_bytes(CPU) == 200


def test_ranks_of_a_host_share_it(monkeypatch):
    assert keepable_bytes(CPU, ranks=4) == 50
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert keepable_bytes(CPU, ranks=4) == 100


def test_half_of_what_a_gpu_has_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (600, 1000))
    assert keepable_bytes(torch.device("cuda", 0), ranks=8) == 300


def test_the_tightest_control_group_counts(tmp_path, monkeypatch):
    own, root = tmp_path / "cgroup", tmp_path / "groups"
    own.write_text("0::/jobs/one\n")
    group(root / "jobs" / "one", "max")
    group(root / "jobs", 1000, anon=300, shmem=100, cached=600)
    group(root, 5000, anon=1000)
    found = list(LEFT_IN_GROUPS(own, root))
    assert found == [600, 4000]
    monkeypatch.setattr(memory, "_left_in_groups", lambda: iter(found))
    assert keepable_bytes(CPU) == 150


@pytest.mark.parametrize("name", ["0::/\n", "0::/of/the/host\n"])
def test_a_container_is_limited_by_its_root_group(name, tmp_path):
    own, root = tmp_path / "cgroup", tmp_path / "groups"
    own.write_text(name)
    group(root, 1000, anon=400)
    assert list(LEFT_IN_GROUPS(own, root)) == [600]


def test_a_group_over_its_limit_leaves_nothing(monkeypatch):
    monkeypatch.setattr(memory, "_left_in_groups", lambda: iter([-5]))
    assert keepable_bytes(CPU) == 0


def test_a_host_without_control_groups_has_no_such_limit(tmp_path):
    assert list(LEFT_IN_GROUPS(tmp_path / "none", tmp_path)) == []


def test_keeping_freed_memory_asks_nothing_of_other_c_libraries(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: SimpleNamespace())
    keep_freed_memory()
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    monkeypatch.setattr(memory.ctypes, "CDLL", None)
    keep_freed_memory()
