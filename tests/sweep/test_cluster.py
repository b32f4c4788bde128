"""Joining a Ray cluster, without one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from distsynth.sweep import cluster
from distsynth.sweep.cluster import patient_start


@pytest.fixture
def services(monkeypatch):
    from ray._private import services

    monkeypatch.setattr(services, "get_node", lambda *_: answers.pop(0)())
    answers = []
    services_get = services.get_node
    yield services, answers
    assert services.get_node is services_get


def absent():
    raise RuntimeError("no such node")


def test_a_node_that_starts_late_is_waited_for(services):
    ray_services, answers = services
    answers += [absent, absent, lambda: "the node"]
    with patient_start():
        assert ray_services.get_node("address", "node") == "the node"
    assert not answers


def test_a_node_that_does_not_start_is_told_in_the_users_words(services, monkeypatch, refused):
    ray_services, answers = services
    answers += [absent] * 9
    monkeypatch.setattr(cluster, "START_SECONDS", 0)
    with patient_start(), pytest.raises(TimeoutError) as caught:
        ray_services.get_node("address", "node")
    with refused("local", "Ray did not start within 0 s", "less busy, or give --address"):
        raise cluster._refused("local", caught.value)


NICENESS = """
import os
from distsynth.sweep.cluster import cluster
def niceness():
    return os.nice(0)
with cluster(None):
    import ray
    print(niceness(), ray.get(ray.remote(niceness).remote()))
"""


@pytest.mark.slow
def test_workers_of_a_local_cluster_are_as_nice_as_the_sweep():
    kept = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
    words = [sys.executable, "-c", NICENESS]
    ended = subprocess.run(words, env=kept, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    own, worker = ended.stdout.split()
    assert worker == own
