"""Processes as forks of one that has loaded the libraries: each then starts at once.

A worker of Ray is a Python process that loads torch, Ray Tune and the program, which takes four
seconds of a core; the tests start more than a hundred. A server loads them once. A worker that
starts finds the server in its environment (`stop_hook/sitecustomize.py` asks), hands over its
command line, environment, folder and output, and stays as the handle of its fork: it ends as the
fork ends, and the fork ends with it. What runs in the fork is Ray's own script, unchanged.

With `PROGRAMS` in its environment a program of the command line does the same. That is for programs
that run to their end: who signals one, or measures what it loads, wants the process itself.

`fork_of` tells which fork belongs to a process that Ray has started. A test that traces the
processes of a cluster puts `COLD` into their environment: then all are as Ray starts them.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import selectors

VARIABLE = "DISTSYNTH_TESTS_WARM_WORKERS"
"""The environment variable with the server's socket."""
PROGRAMS = {"DISTSYNTH_TESTS_WARM_PROGRAMS": "1"}
"""In the environment of a program that may be a fork too, with all that it starts."""
COLD = {VARIABLE: ""}
"""In the environment of processes that start no forks."""
SETUP, WORKER = "/ray/_private/workers/setup_worker.py", "/ray/_private/workers/default_worker.py"
CONTEXT = "--serialized-runtime-env-context="
SCRIPTS = ("/bin/distsynth", "/jobs/tune_gan.py", "/support/small_study.py")
LIMIT = 2**20
POLL_SECONDS = 0.5
READ = 1
LIBRARIES = (
    "distsynth.training.loop",
    "distsynth.evaluation.evaluate",
    "torch.distributed.tensor",
    "torch._dynamo",
    "pandas",
    "pyarrow.fs",
    "jsonschema",
    "google.protobuf.message",
)
"""All but Ray and W&B: one keeps the environment, the other a folder, from when it was loaded."""


@contextlib.contextmanager
def server(folder: Path) -> Iterator[dict[str, str]]:
    """A server, which ends with the block or, at the latest, with this process.

    Args:
        folder: For its socket and log; its name may not be long.

    Yields:
        What processes need in their environment to find it.
    """
    import subprocess

    address = str(folder / "socket")
    log = folder / "log"
    pipe: Any = subprocess.PIPE
    words = [sys.executable, __file__, address]
    with (
        log.open("wb") as output,
        subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=output) as process,
    ):
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"no server of warm workers: {log.read_text()}")
        try:
            yield {VARIABLE: address}
        finally:
            process.kill()


def fork_of(process: int) -> int:
    """The fork of a worker that a node has started; the process itself if it has none."""
    note = Path(f"{os.environ.get(VARIABLE)}-{process}")
    return int(note.read_text()) if note.exists() else process


def take_over() -> None:
    """If this process is one that may be a fork, and there is a server: never return."""
    address = os.environ.get(VARIABLE)
    if not address:
        return
    words = _worker_of(sys.orig_argv[1:])
    if words is None and os.environ.keys() >= PROGRAMS.keys():
        words = _program_of(sys.orig_argv[1:])
    if words is None:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(address)
        except OSError:
            return
        told = {
            "process": os.getpid(),
            "words": words,
            "environment": dict(os.environ),
            "folder": os.getcwd(),  # noqa: PTH109
            "umask": _umask(),
        }
        text = json.dumps(told).encode()
        assert len(text) < LIMIT
        socket.send_fds(connection, [len(text).to_bytes(4, "big") + text], [0, 1, 2])
        os._exit(_until_it_ends(connection))


def _umask() -> int:
    found = os.umask(0o77)
    os.umask(found)
    return found


def _worker_of(words: list[str]) -> list[str] | None:
    """The command line of the worker that Ray starts by this one, if it needs nothing special."""
    while words and words[0].startswith("-"):
        words = words[1:]
    if words and words[0].endswith(WORKER):
        return words
    if not words or not words[0].endswith(SETUP):
        return None
    context = [word.removeprefix(CONTEXT) for word in words if word.startswith(CONTEXT)]
    if any(text not in ("", "{}") for text in context):
        return None
    rest = [word for word in words[1:] if not word.startswith((CONTEXT, "--language="))]
    return rest if rest and rest[0].endswith(WORKER) else None


def _program_of(words: list[str]) -> list[str] | None:
    """The command line of a program: its module or script, and the arguments."""
    if words[:2] == ["-m", "distsynth"]:
        return words[1:]
    return words if words and words[0].endswith(SCRIPTS) else None


def _until_it_ends(connection: socket.socket) -> int:
    """The exit status of the fork; if the node that started this process dies, that of a kill."""
    parent = os.getppid()
    connection.settimeout(POLL_SECONDS)
    while os.getppid() == parent:
        try:
            answer = connection.recv(1)
        except TimeoutError:
            continue
        return answer[0] if answer else 1
    return 1


def serve(address: str) -> None:
    """Fork workers until the process that started this one ends."""
    import selectors

    for library in LIBRARIES:
        __import__(library)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(address)
    listening.listen(64)
    waiting = selectors.DefaultSelector()
    waiting.register(listening, READ)
    waiting.register(0, READ)
    print("ready", flush=True)
    while True:
        for key, _ in waiting.select():
            if key.fileobj == 0:
                return
            if key.fileobj is listening:
                _fork(listening, waiting)
            else:
                _end(key.data, waiting)


def _fork(listening: socket.socket, waiting: selectors.BaseSelector) -> None:
    connection, _ = listening.accept()
    first, handles, _, _ = socket.recv_fds(connection, LIMIT, 3)
    text = first
    while len(text) < 4 + int.from_bytes(text[:4], "big"):
        text += connection.recv(LIMIT)
    told = json.loads(text[4:])
    process = os.fork()
    if process == 0:
        waiting.close()
        listening.close()
        connection.close()
        _become(told, handles)
    note = Path(f"{listening.getsockname()}-{told['process']}")
    note.write_text(str(process))
    for handle in handles:
        os.close(handle)
    fork = _Fork(process, note, os.pidfd_open(process), connection)
    for source in (fork.ended, connection):
        waiting.register(source, READ, fork)


class _Fork(NamedTuple):
    """A worker: its number, the note of it, what shows its end, and the process it stands for."""

    process: int
    note: Path
    ended: int
    connection: socket.socket


def _end(fork: _Fork, waiting: selectors.BaseSelector) -> None:
    """The fork has ended, or who asked for it has: then neither shall live."""
    if not fork.note.exists():
        return  # both have ended at once
    fork.note.unlink()  # before the number may be another process's
    with contextlib.suppress(ProcessLookupError):
        os.kill(fork.process, 9)
    _, status = os.waitpid(fork.process, 0)
    waiting.unregister(fork.ended)
    waiting.unregister(fork.connection)
    os.close(fork.ended)
    with contextlib.suppress(OSError):
        fork.connection.send(bytes([os.waitstatus_to_exitcode(status) & 0xFF]))
    fork.connection.close()


def _become(told: dict[str, Any], handles: list[int]) -> None:
    """Be the worker, in the fork. Never returns."""
    import atexit
    import ctypes
    import random
    import runpy
    import traceback

    import numpy as np
    from moments import watch_as_asked

    status = 1
    try:
        ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL: it ends with the server
        os.setpgid(0, 0)  # the node ends what is left of a worker by its group
        for number, handle in enumerate(handles):
            os.dup2(handle, number)
        os.environ.clear()
        os.environ.update(told["environment"])
        os.chdir(told["folder"])
        os.umask(told["umask"])
        sys.argv = told["words"]
        sys.orig_argv = [sys.executable, *sys.argv]
        random.seed()
        np.random.seed()  # noqa: NPY002
        watch_as_asked()
        if Path(sys.argv[0]).is_absolute():
            runpy.run_path(sys.argv[0], run_name="__main__")
        else:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
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


if __name__ == "__main__":
    serve(sys.argv[1])
