"""What tests have run elsewhere: other processes find functions by their names, and load this."""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from sharding.io.errors import DataError
from sharding.io.parallel import run_each

SECONDS = 60


def root(number: int) -> tuple[int, float]:
    """The process, and the square root; of some numbers a failure, of one a bug."""
    if number < 0:
        raise DataError(f"item {number}", "must be >= 0", "Correct it")
    if number == 13:
        raise FileNotFoundError(2, "unlucky")
    if number == 666:
        raise ZeroDivisionError("a bug")
    return os.getpid(), number**0.5


def end_at(number: int, bad: int) -> int:
    """The number; a bad one ends the process."""
    if number == bad:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def wait_for(number: int, folder: Path) -> int:
    """Leave a file named by number, process and node of the cluster; wait for the file go."""
    ray = sys.modules.get("ray")
    node = ray.get_runtime_context().get_node_id() if ray else ""
    (folder / f"{number}-{os.getpid()}-{node}").touch()
    deadline = time.monotonic() + SECONDS
    while not (folder / "go").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return number


def run_waiting(folder: Path) -> None:
    """Eight that wait, in two processes."""
    list(run_each(partial(wait_for, folder=folder), range(8), 2))
