"""Processes as forks of one that has loaded the libraries: each then starts at once.

A Python process that loads torch, Ray Tune and the program takes seconds of a core; the tests start
hundreds. A server loads them once for all processes of the tests (`warm_server.py`). A process that
starts finds the server in its environment (`stop_hook/sitecustomize.py` asks), hands over its
command line, environment, folder and open files, and stays as the handle of its fork: it ends as
the fork ends, and the fork ends with it. What runs in the fork is the script itself, unchanged.

That is so for workers of Ray and for the server of `multiprocessing` that forks processes. With
`PROGRAMS` in its environment a program of the command line does the same. That is for programs that
run to their end: who signals one, or measures what it loads, wants the process itself.

`fork_of` tells which fork belongs to a process that Ray has started. A test that traces the
processes of a cluster puts `COLD` into their environment: then all are as Ray starts them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VARIABLE = "DISTSYNTH_TESTS_WARM_WORKERS"
"""The environment variable with the server's socket."""
PROGRAMS = {"DISTSYNTH_TESTS_WARM_PROGRAMS": "1"}
"""In the environment of a program that may be a fork too, with all that it starts."""
COLD = {VARIABLE: ""}
"""In the environment of processes that start no forks."""
SETUP, WORKER = "/ray/_private/workers/setup_worker.py", "/ray/_private/workers/default_worker.py"
CONTEXT = "--serialized-runtime-env-context="
SCRIPTS = ("/bin/distsynth", "/jobs/tune_gan.py", "/support/small_study.py", "/quickstart.py")
FORK_SERVER = re.compile(r"from multiprocessing\.forkserver import main; main\((\d+), (\d+), ")
"""The program of Python's own server of forks; it is given two open files by their numbers."""
LIMIT = 2**20
POLL_SECONDS = 0.5


@contextlib.contextmanager
def server(folder: Path) -> Iterator[dict[str, str]]:
    """A server, which ends with the block or, at the latest, with this process.

    Args:
        folder: For its socket and log; its name may not be long.

    Yields:
        What processes need in their environment to find it.

    Raises:
        RuntimeError: If it cannot load the libraries.
    """
    import subprocess

    address = str(folder / "socket")
    log = folder / "log"
    pipe: Any = subprocess.PIPE
    words = [sys.executable, str(Path(__file__).with_name("warm_server.py")), address]
    with (
        log.open("wb") as output,
        subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=output) as process,
    ):
        assert process.stdout is not None
        # It listens; what comes before it has loaded the libraries waits.
        if process.stdout.readline() != b"listening\n":
            raise RuntimeError(f"no server of warm workers: {log.read_text()}")
        try:
            yield {VARIABLE: address}
        finally:
            ended = process.poll()
            process.kill()
        if ended is not None:
            raise RuntimeError(f"the server of warm workers ended: {log.read_text()}")


def fork_of(process: int) -> int:
    """The fork of a worker that a node has started; the process itself if it has none."""
    note = Path(f"{os.environ.get(VARIABLE)}-{process}")
    return int(note.read_text()) if note.exists() else process


def take_over() -> None:
    """If this process is one that may be a fork, and there is a server: never return."""
    address = os.environ.get(VARIABLE)
    if not address:
        return
    arguments = sys.orig_argv[1:]
    words, files = _worker_of(arguments), [0, 1, 2]
    if words is None:
        words, given = _fork_server_of(arguments)
        files += given
    if words is None and os.environ.keys() >= PROGRAMS.keys():
        words = _program_of(arguments)
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
            "files": files,
        }
        text = json.dumps(told).encode()
        assert len(text) < LIMIT
        socket.send_fds(connection, [len(text).to_bytes(4, "big") + text], files)
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


def _fork_server_of(words: list[str]) -> tuple[list[str] | None, list[int]]:
    """The command line of Python's own server of forks, and the files that it is given."""
    found = FORK_SERVER.match(words[-1]) if words[-2:-1] == ["-c"] else None
    if found is None:
        return None, []
    return words[-2:], [int(number) for number in found.groups()]


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
        except ConnectionResetError:  # the server has ended before it came to this request
            return 1
        return answer[0] if answer else 1
    return 1
