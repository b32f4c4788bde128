"""A Ray cluster of several nodes on this machine, which listens on loopback only."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from killing import SUPPORT, FileMoment, Stop
from lab import children
from moments import controlled_by
from programs import with_path
from warm_workers import fork_of

from distsynth.sweep.cluster import patient_start

SETTINGS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_TOKEN": "for-the-tests-of-this-machine-only",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_worker_niceness": "0",
    # Nobody looks at what the agent of each node measures.
    "REPORTER_UPDATE_INTERVAL_MS": "600000",
    "RAY_DASHBOARD_AGENT_CHECK_PARENT_INTERVAL_S": "2",
    "OMP_NUM_THREADS": "1",
}


class Nodes:
    """The nodes of a cluster that tests share: whoever takes one away gives another one back.

    Attributes:
        address: Where drivers find the cluster, in `joined`.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._control = folder / "moment.json"
        self._environment = environment
        with self._prepared():
            from ray.cluster_utils import Cluster

            # Nodes of a cluster have working folders of their own.
            with contextlib.chdir(folder):
                self._cluster = Cluster(initialize_head=True, head_node_args=_node(0))
        self.address: str = self._cluster.address

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """This process, and those that it starts, may join the cluster."""
        import ray

        with _environment(self._environment):
            yield
            ray.shutdown()

    @contextlib.contextmanager
    def stopping(self, moment: FileMoment) -> Iterator[Stop]:
        """Processes of the nodes stop at a moment: the first that comes to it in the block."""
        with tempfile.TemporaryDirectory() as notes:
            text = json.dumps({"moment": asdict(moment), "notes": notes})
            written = self._control.with_suffix(".new")
            written.write_text(text)
            written.replace(self._control)
            try:
                yield Stop(moment, Path(notes))
            finally:
                # Another moment may have taken its place.
                if self._control.exists() and self._control.read_text() == text:
                    self._control.unlink()

    def add(self, cores: int) -> Any:
        """Start a node."""
        with self._prepared():
            return self._cluster.add_node(**_node(cores))

    def remove(self, node: Any) -> None:
        """Lose a node."""
        self._cluster.remove_node(node, allow_graceful=False)

    def all(self) -> list[Any]:
        """Every node, the head too."""
        return self._cluster.list_all_nodes()

    def processes(self, node: Any) -> list[int]:
        """The workers and agents of a node."""
        raylet = node.all_processes["raylet"][0].process.pid
        return [fork_of(process) for process in children(raylet)]

    def shut_down(self) -> None:
        """End all nodes."""
        import ray

        ray.shutdown()
        self._cluster.shutdown()

    @contextlib.contextmanager
    def _prepared(self) -> Iterator[None]:
        """The environment that a node and all its processes take over."""
        path = with_path(SUPPORT / "stop_hook", SUPPORT)
        more = path | controlled_by(str(self._control))
        with _environment(self._environment | more), patient_start():
            yield


@contextlib.contextmanager
def loopback_nodes(*cores: int, **environment: str) -> Iterator[Nodes]:
    """A head without cores, and nodes with these; the environment is that of all processes too."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: the names of sockets may not be long
    nodes = Nodes(folder, SETTINGS | environment | {"RAY_TMPDIR": str(folder)})
    try:
        for number in cores:
            nodes.add(number)
        yield nodes
    finally:
        nodes.shut_down()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def autoscaled(kinds: dict[str, int]) -> Iterator[None]:
    """The cluster that was joined says that an autoscaler runs nodes of these types."""
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import (
        _internal_kv_del,
        _internal_kv_put,
    )

    report = json.dumps({"autoscaler_report": {"active_nodes": kinds}})
    _internal_kv_put(DEBUG_AUTOSCALING_STATUS, report)
    try:
        yield
    finally:
        _internal_kv_del(DEBUG_AUTOSCALING_STATUS)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        from ray._private import ray_constants

        # Read when ray is imported, which another test may have done.
        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
        yield


def _node(cores: int) -> dict[str, Any]:
    """The arguments of a node."""
    return {"num_cpus": cores, "include_dashboard": False, "object_store_memory": 80 * 2**20}
