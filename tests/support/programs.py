"""Programs as a user calls them: each in a process of its own, which ends with all it started."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil
from warm_workers import PROGRAMS, fork_of

SECONDS = 200
"""A program that takes longer hangs."""
SHIMS = Path(__file__).parent / "launch_shims"
UNDER_GUARD = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""Becomes the program of its arguments, which is killed if the process that started it is."""
FOREIGN = ("RAY_", "WANDB_", "TUNE_", "SLURM_")
"""Variables of the machine that runs the tests, which may belong to a cluster."""


class Program:
    """A program that was started; it leads a session, which names what it starts."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self._process, self._log = process, log
        self._deadline = time.monotonic() + SECONDS

    @property
    def said(self) -> str:
        """Its output and errors so far."""
        return os.pread(self._log.fileno(), 2**24, 0).decode()

    def runs(self) -> bool:
        """Whether it has not ended yet.

        Raises:
            TimeoutError: If it takes too long.
        """
        if time.monotonic() > self._deadline:
            raise TimeoutError(f"{self._process.args} hangs: {self.said}")
        return self._process.poll() is None

    def until_it_says(self, text: str) -> None:
        """Wait for a part of its output."""
        while self.runs() and text not in self.said:
            time.sleep(0.05)
        assert text in self.said, self.said

    def end(self) -> tuple[int, str]:
        """Wait for its end.

        Returns:
            Exit status, and what it said.
        """
        while self.runs():
            time.sleep(0.05)
        return self._process.returncode, self.said

    def family(self) -> list[psutil.Process]:
        """The processes of its session, and all that these started."""
        leader, known = self._process.pid, {}
        rest = dict.fromkeys(psutil.process_iter(), False)
        while rest:
            for process in rest:
                with contextlib.suppress(psutil.Error, OSError):
                    rest[process] = (
                        os.getsid(process.pid) == leader or process.ppid() in known
                    ) and process.status() != psutil.STATUS_ZOMBIE
            found = {process.pid: process for process, belongs in rest.items() if belongs}
            if not found:
                break
            for process in map(fork_of, list(found)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    found[process] = psutil.Process(process)
            known |= found
            rest = {process: False for process, belongs in rest.items() if not belongs}
        return list(known.values())

    def listens(self) -> set[tuple[str, str]]:
        """Process and address of every TCP socket that its family accepts connections on."""
        found = set()
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                for connection in process.net_connections("tcp"):
                    if connection.status == psutil.CONN_LISTEN:
                        found.add((process.name(), connection.laddr.ip))
        return found

    def send(self, number: signal.Signals) -> None:
        """A signal to the program alone; a stopped one gets it when it resumes."""
        self._process.send_signal(number)

    def resume(self) -> None:
        """Let every process of the family that has stopped go on."""
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def kill(self) -> None:
        """At once, with its family."""
        while family := self.family():
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.wait()
            psutil.wait_procs(family, timeout=1)
        self._process.wait()


@contextlib.contextmanager
def started(
    words: Sequence[str | Path], environment: dict[str, str], folder: Path | None = None
) -> Iterator[Program]:
    """A program that runs in `folder`; killed at the end of the block if it has not ended."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-c", UNDER_GUARD, *(str(word) for word in words)],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        program = Program(process, log)
        try:
            yield program
        finally:
            program.kill()


def finished(
    words: Sequence[str | Path], environment: dict[str, str], folder: Path | None = None
) -> tuple[int, str]:
    """Run a program to its end, in a process that may be a fork: see warm_workers.

    Returns:
        Exit status, and what it said.
    """
    with started(words, environment | PROGRAMS, folder) as program:
        return program.end()


@contextlib.contextmanager
def home_folder() -> Iterator[Path]:
    """An empty folder with a short name: those of sockets in it may not be long."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def environment(home: Path, **more: str) -> dict[str, str]:
    """What a user has who has just logged in and switched this virtual environment on."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(FOREIGN)}
    own = {
        "HOME": str(home),
        "TMPDIR": str(home),
        "RAY_TMPDIR": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        # Looking for this machine's fonts anew would take seconds.
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }
    return kept | own | more


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def with_path(*folders: Path, before: Mapping[str, str] | None = None) -> dict[str, str]:
    """PYTHONPATH with these folders in front of what is there, so that a checkout still wins.

    Args:
        folders: What a process shall import from.
        before: The environment that it extends; that of the tests by default.
    """
    there = (os.environ if before is None else before).get("PYTHONPATH", "")
    parts = [*(str(folder) for folder in folders), *filter(None, there.split(os.pathsep))]
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(parts))}
