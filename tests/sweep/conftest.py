"""A sweep that nobody disturbs, made once for every module."""

from __future__ import annotations

import pytest
from ray_cluster import Nodes
from tiny_sweeps import FinishedSweep, undisturbed_sweep


@pytest.fixture(scope="session")
def finished(nodes: Nodes, shard_folder, tmp_path_factory) -> FinishedSweep:
    """A finished sweep of three trials, one of them without an adversarial loss.

    They ran one after the other, in one and the same process. Whoever changes the folder changes it
    back.
    """
    with nodes.joined():
        return undisturbed_sweep(tmp_path_factory.mktemp("finished"), shard_folder, nodes.address)
