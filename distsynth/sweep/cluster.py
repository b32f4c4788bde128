"""Joining a Ray cluster, or starting one on this machine that nobody else can reach."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator
from typing import Any

from sharding.io.errors import DataError
from sharding.io.interruption import kept_handlers
from sharding.io.parallel import available_cores

logger = logging.getLogger(__name__)

LOCAL = "local"
START_SECONDS = 180
"""How long a node may take to start; Ray itself waits for 30 s."""


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Hold a connection to a Ray cluster for the duration of the block.

    Args:
        address: Address of a running cluster, "auto" for the one that this machine belongs to.
            None or "local" starts one on this machine, on loopback, and ends it with the block. A
            connection that the process has already is used and kept.

    Raises:
        DataError: If no cluster answers there.
    """
    # Ray's usage statistics would leave the machine.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Trials work in the sweep's folder, not in one of Tune's.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    # Tune would write records of the trials beside those of this program.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    # An epoch without validation, and a trial that fails, report no score: by default that ends the
    # whole sweep.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    # Tune prints a table of the experiment's settings even at verbosity 0; ours is the live one.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Tune would handle SIGINT alone, and keep its handler after the search; see sweep.tuner.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    local = address in (None, LOCAL)
    if local:
        # All of Ray's ports on 127.0.0.1; read when ray is imported, and by what it starts.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # Ray's workers would yield to everything else on the machine: 15 steps of niceness.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # Otherwise Ray writes one into the home folder, which may be read-only.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray
    from ray._private import ray_constants

    if ray.is_initialized():
        yield
        return
    if local:
        ray_constants.ENABLE_RAY_CLUSTER = False
    if not local:
        _check_answers(str(address))
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    from ray.exceptions import AuthenticationError

    try:
        with kept_handlers():
            if local:
                with _without_dashboard(), patient_start():
                    cores = available_cores()
                    logger.info("starting Ray on this machine, for %d cores", cores)
                    ray.init(address=LOCAL, num_cpus=cores, include_dashboard=False, **quiet)
            else:
                ray.init(address=address, **quiet)
    except (
        AuthenticationError,
        ConnectionError,
        TimeoutError,
        ValueError,
        RuntimeError,
        SystemExit,
    ) as error:
        raise _refused(address or LOCAL, error) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def patient_start() -> Iterator[None]:
    """Give nodes of Ray that start in the block the time that they need on a busy machine.

    Raises:
        TimeoutError: If a node does not start within `START_SECONDS`.
    """
    from ray._private import services

    get_node = services.get_node

    def wait_for_node(address: str, node: str) -> Any:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return get_node(address, node)
            except RuntimeError as error:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"Ray did not start within {START_SECONDS} s") from error
                time.sleep(0.1)

    services.get_node = wait_for_node
    try:
        yield
    finally:
        services.get_node = get_node


@contextlib.contextmanager
def _without_dashboard() -> Iterator[None]:
    """Keep a cluster that starts in the block from starting the process of its dashboard.

    Ray starts it even without a dashboard, for its usage statistics, and even where these are off
    it asks the addresses at which the large clouds describe their machines.
    """
    from ray._private import services

    start = services.start_api_server
    services.start_api_server = lambda *_, **__: ("", None)
    try:
        yield
    finally:
        services.start_api_server = start


def _refused(address: str, error: BaseException) -> DataError:
    """The error that explains why the cluster could not be joined."""
    reason: BaseException | None = error
    while reason is not None:
        # Ray hands some of its errors on as text.
        if "AuthenticationError" in f"{type(reason).__name__}: {reason}":
            return DataError(
                address,
                "the cluster there admits only clients that have its token",
                "Set RAY_AUTH_MODE=token, with the token in ~/.ray/auth_token or RAY_AUTH_TOKEN",
            )
        reason = reason.__cause__ or reason.__context__
    if isinstance(error, TimeoutError):
        remedy = "Try again when the machine is less busy, or give --address of a running cluster"
        return DataError(address, str(error), remedy)
    return DataError(
        address,
        f"no Ray cluster answers there ({error})",
        "Start it, or give --local for one on this machine",
    )


def _check_answers(address: str) -> None:
    """Raise DataError if nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.rpartition("/")[2], int(port)), timeout=10).close()
    except OSError as error:
        rule = f"no Ray cluster answers there ({error})"
        raise DataError(
            address, rule, "Start it, or give --local for one on this machine"
        ) from None
