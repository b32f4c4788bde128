"""The server of `warm_workers.py`: it has loaded the libraries, and forks a process when asked."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from moments import watch_as_asked
from warm_workers import LIMIT

PR_SET_PDEATHSIG = 1
LIBRARIES = (
    "torch.distributed.tensor",
    "torch._dynamo",
    "torch.export._trace",
    "torch.onnx._internal.exporter._core",
    "onnxscript.function_libs.torch_lib.ops",
    "pandas",
    "pyarrow.fs",
    "jsonschema",
    "google.protobuf.message",
    "scipy.stats",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "jinja2",
    "pydantic",
    "requests",
    "optuna",
    "sklearn.ensemble",
    "opentelemetry",
    "SimpleITK",
    "sharding.registration.prepare",
    "sharding.shards.write",
    "sharding.simulation.phantom",
    "distsynth.api",
    "distsynth.cli.main",
    "distsynth.training.loop",
    "distsynth.evaluation.evaluate",
    "distsynth.evaluation.forest",
    "distsynth.export.export",
    "distsynth.reporting.evaluation_files",
    "distsynth.reporting.viewer",
)
"""All but Ray and W&B: one keeps the environment, the other a folder, from when it was loaded."""


class Fork(NamedTuple):
    """A process that was forked: its number, the note of it, what shows its end, its handle."""

    process: int
    note: Path
    ended: int
    connection: socket.socket


class Server:
    """Forks processes, and ends those whose handles end.

    Args:
        listening: Where requests come from.
        alive: A pipe; the server ends when it is closed.
    """

    def __init__(self, listening: socket.socket, alive: int) -> None:
        self._address: str = listening.getsockname()
        self._listening = listening
        self._waiting = selectors.DefaultSelector()
        self._waiting.register(listening, selectors.EVENT_READ, self._fork)
        self._waiting.register(alive, selectors.EVENT_READ, lambda: os._exit(0))

    def run(self) -> NoReturn:
        """Serve. It returns in no fork either."""
        gc.collect()
        gc.freeze()
        while True:
            for key, _ in self._waiting.select():
                key.data()

    def _fork(self) -> None:
        told, connection, files = _accepted(self._listening)
        process = os.fork()
        if process == 0:
            self._waiting.close()
            self._listening.close()
            connection.close()
            _become(told, files)
        for file in files:
            os.close(file)
        note = Path(f"{self._address}-{told['process']}")
        note.write_text(str(process))
        fork = Fork(process, note, os.pidfd_open(process), connection)
        for source in (fork.ended, fork.connection):
            self._waiting.register(source, selectors.EVENT_READ, lambda: self._end(fork))

    def _end(self, fork: Fork) -> None:
        """The fork has ended, or who asked for it has: then neither shall live."""
        if not fork.note.exists():
            return  # both have ended at once
        fork.note.unlink()  # before the number may be another process's
        with contextlib.suppress(ProcessLookupError):
            os.kill(fork.process, signal.SIGKILL)
        _, status = os.waitpid(fork.process, 0)
        self._waiting.unregister(fork.ended)
        self._waiting.unregister(fork.connection)
        os.close(fork.ended)
        with contextlib.suppress(OSError):
            fork.connection.send(bytes([os.waitstatus_to_exitcode(status) & 0xFF]))
        fork.connection.close()


def serve(address: str) -> NoReturn:
    """Fork processes until the process that started this one ends."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(address)
    listening.listen(64)
    print("listening", flush=True)
    for library in LIBRARIES:
        importlib.import_module(library)
    Server(listening, 0).run()


def _accepted(listening: socket.socket) -> tuple[dict[str, Any], socket.socket, list[int]]:
    """The process that is asked for, what stands for it, and its open files."""
    connection, _ = listening.accept()
    first, files, _, _ = socket.recv_fds(connection, LIMIT, 5)
    text = first
    while len(text) < 4 + int.from_bytes(text[:4], "big"):
        text += connection.recv(LIMIT)
    return json.loads(text[4:]), connection, files


def _set_environment(values: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(values)
    tempfile.tempdir = None  # it was chosen in another environment


def _become(told: dict[str, Any], files: list[int]) -> NoReturn:
    """Be the process that was asked for, in the fork."""
    import numpy as np

    status = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # it ends with the server
        os.setpgid(0, 0)  # the node ends what is left of a worker by its group
        _take(files, told["files"])
        _set_environment(told["environment"])
        os.chdir(told["folder"])
        os.umask(told["umask"])
        sys.argv = told["words"]
        sys.orig_argv = [sys.executable, *sys.argv]
        random.seed()
        np.random.seed()  # noqa: NPY002
        watch_as_asked()
        _run(sys.argv)
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _take(files: list[int], numbers: list[int]) -> None:
    """Give open files the numbers that the process has for them."""
    above = max(*files, *numbers) + 1
    moved = [fcntl.fcntl(file, fcntl.F_DUPFD, above) for file in files]
    for file in files:
        os.close(file)
    for file, number in zip(moved, numbers, strict=True):
        os.dup2(file, number)
        os.close(file)


def _run(words: list[str]) -> None:
    if words[0] == "-c":
        sys.argv = words[:1]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    elif Path(words[0]).is_absolute():
        runpy.run_path(words[0], run_name="__main__")
    else:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    serve(sys.argv[1])
