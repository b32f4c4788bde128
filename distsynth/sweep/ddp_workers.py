"""The DDP workers of a trial: actors in the trial's own placement group, on any of its nodes.

The trial's process is rank 0. A rank that dies must not leave the others blocked in a collective
operation: rank 0 monitors the others, and they end with it, since it owns them.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory

logger = logging.getLogger(__name__)

GRACE_SECONDS = 20
"""How long rank 0 may take to notice that a rank has failed before its process is ended."""
RENDEZVOUS_SECONDS = 300
"""How long a rank waits for the others."""


def trial_resources(cpus: int, gpus: float, workers: int) -> PlacementGroupFactory:
    """One bundle for each rank, packed onto as few nodes as possible."""
    # Imported here: the other ranks load this module as well, and do not need Tune.
    from ray.tune import PlacementGroupFactory

    bundle = {"CPU": float(cpus)} | ({"GPU": gpus} if gpus else {})
    return PlacementGroupFactory([dict(bundle) for _ in range(workers)], strategy="PACK")


class DdpWorkers:
    """Ranks 1 to n - 1 of a trial; rank 0 is the process that makes it.

    Attributes:
        error: The error of the rank that failed, if one has.
    """

    def __init__(self, sweep: str, trial: str, config: dict[str, Any], ranks: int) -> None:
        """Start the ranks; they wait for this process to join them.

        Args:
            sweep: The sweep's folder.
            trial: The trial's name.
            config: The run's configuration as plain values.
            ranks: Their number, this one included.
        """
        self.error: BaseException | None = None
        self._ended = threading.Event()
        group = ray.util.get_current_placement_group()
        assert group is not None
        address = ray.util.get_node_ip_address()
        self._store = rendezvous_store(address, ranks)
        bundle = group.bundle_specs[0]
        self._workers = []
        for rank in range(1, ranks):
            place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
            options: Any = _Worker.options(  # type: ignore[attr-defined]
                num_cpus=bundle.get("CPU", 0),
                num_gpus=bundle.get("GPU", 0),
                scheduling_strategy=place,
            )
            self._workers.append(options.remote())
        addresses = [address, *ray.get([worker.address.remote() for worker in self._workers])]
        running = []
        for rank in range(ranks):
            environment = _environment(rank, addresses, self._store.port, bool(bundle.get("GPU")))
            if rank == 0:
                os.environ.update(environment)
            else:
                worker = self._workers[rank - 1]
                running.append(worker.run.remote(sweep, trial, config, environment))
        threading.Thread(target=self._monitor, args=(running,), daemon=True).start()

    def close(self) -> None:
        """End the other ranks, wherever they are."""
        self._ended.set()
        for worker in self._workers:
            ray.kill(worker)

    def _monitor(self, running: list[Any]) -> None:
        while running and not self._ended.is_set():
            done, running = ray.wait(running, num_returns=1, timeout=1)
            for task in done:
                try:
                    ray.get(task)
                except Exception as error:
                    if not self._ended.is_set():
                        self._fail(error)
                    return

    def _fail(self, error: Exception) -> None:
        """Keep the cause and end a collective operation that this process may be waiting in."""
        self.error = getattr(error, "cause", None) or error
        logger.error("a rank failed: %s", error)
        for worker in self._workers:
            ray.kill(worker)
        time.sleep(GRACE_SECONDS)
        if not self._ended.is_set():
            os._exit(1)


def rendezvous_store(address: str, ranks: int) -> TCPStore:
    """The store through which the ranks find each other; it listens at this address only.

    The one that torch.distributed would start listens on every interface.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as listening:
        listening.bind((address, 0))
        listening.listen()
        return TCPStore(
            address,
            listening.getsockname()[1],
            ranks,
            is_master=True,
            timeout=timedelta(seconds=RENDEZVOUS_SECONDS),
            wait_for_workers=False,
            master_listen_fd=listening.detach(),
        )


@ray.remote(max_restarts=0)
class _Worker:
    """One of the other ranks."""

    def address(self) -> str:
        """The address of its node."""
        return ray.util.get_node_ip_address()

    def run(
        self, sweep: str, trial: str, config: dict[str, Any], environment: dict[str, str]
    ) -> None:
        """Train, as rank 0 does."""
        os.environ.update(environment)
        from distsynth.config import from_dict
        from distsynth.sweep.folder import SweepFolder
        from distsynth.training.loop import train

        train(from_dict(config), SweepFolder(sweep).run_dir(trial), resume=True)


def _environment(rank: int, addresses: list[str], port: int, gpu: bool) -> dict[str, str]:
    """What torch.distributed and Accelerate look for."""
    own = addresses[rank]
    # Ray shows each process its own GPU alone, so that it is the first one there.
    local = 0 if gpu else addresses[:rank].count(own)
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(len(addresses)),
        "LOCAL_RANK": str(local),
        "LOCAL_WORLD_SIZE": str(addresses.count(own)),
        "MASTER_ADDR": addresses[0],
        "MASTER_PORT": str(port),
        # The store exists already: rank 0 connects to it like the others.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "ACCELERATE_USE_CPU": "false" if gpu else "true",
    }
