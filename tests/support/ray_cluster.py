"""A Ray cluster of several nodes on this machine, which listens on loopback only."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import with_path


def node(cores: int) -> dict[str, Any]:
    """The arguments of a node."""
    return {"num_cpus": cores, "include_dashboard": False, "object_store_memory": 80 * 2**20}


@contextlib.contextmanager
def loopback_cluster(head: int, *others: int, **environment: str) -> Iterator[Any]:
    """Nodes with these cores; the environment is that of all their processes too.

    Yields:
        ray.cluster_utils.Cluster, which can add and lose nodes.
    """
    folder = tempfile.mkdtemp(prefix="ray-")  # short: the names of sockets may not be long
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_AUTH_TOKEN": "for-the-tests-of-this-machine-only",
            "RAY_TMPDIR": folder,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_health_check_initial_delay_ms": "500",
            "RAY_health_check_period_ms": "500",
            **with_path(Path(__file__).parent),
            "OMP_NUM_THREADS": "1",
            **environment,
        }.items():
            patch.setenv(name, value)
        import ray
        from ray._private import ray_constants
        from ray.cluster_utils import Cluster

        # Read when ray is imported, which another test may have done.
        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
        # Nodes of a cluster have working folders of their own.
        with contextlib.chdir(folder):
            cluster = Cluster(initialize_head=True, head_node_args=node(head))
        try:
            for cores in others:
                cluster.add_node(**node(cores))
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
