"""Stop a program at a named moment, look at what it has written, then kill it.

The program stops itself (SIGSTOP) at the moment that the test names, so that no load of the
machine decides how far it comes. Two kinds of moments: just before the N-th change of a file
(`FileMoment`), or before or after the N-th call of a function (`CallMoment`).

A program of the command line, as a user calls it:

    moment = FileMoment("*/out/phantom-01/*", "rename", count=2)
    with stopped_at(moment, ["distsynth", "prepare", cohort, "-o", out]) as program:
        ...                       # nothing moves now: look at the files
        program.kill()            # with all processes that it started; also done at the end
    # or, to see what a signal does:
        program.send(signal.SIGTERM); program.resume(); status, said = program.end()

A random kill test. First an undisturbed run, which tells all moments that there are, then runs
that are killed at some of them. Each is a number in the order of the changes, the same on any
machine, and `torn` leaves half of the file that was being written:

    changes = changes_of(["distsynth", "train", ...], under=out)     # [("write", path), ...]
    for count in random.Random(seed).sample(range(1, len(changes) + 1), 3):
        killed_at(FileMoment(f"{out}/*", count=count), ["distsynth", "train", ...])

The output folder of the killed run must be the one in the pattern. A process of the tests' fork
server (`tiny_runs.start`) takes `environment=Stop(moment, folder).environment`, and
`Stop.wait(process)` returns when it has stopped; then `process.kill()`.

Processes of a Ray cluster take their moment from a file, as they live longer than a test:
`Nodes.stopping(moment)` in `ray_cluster.py`.

Nothing of the program knows of this: the hook is in `moments.py`, and Python loads it through
`stop_hook/sitecustomize.py` on the path of the processes that are started here. What a library
writes from C++ shows only when it is renamed. Each process counts for itself, and the first one to
come to the moment stops; the others run on until all are killed.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from _thread import interrupt_main
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path

from moments import CallMoment, FileMoment, Moment, to_environment
from programs import Program, started, with_path

__all__ = [
    "CallMoment",
    "FileMoment",
    "Stop",
    "alongside",
    "changes_of",
    "is_stopped",
    "killed_at",
    "stopped_at",
]

SUPPORT = Path(__file__).parent
SECONDS = 240
"""A program that does not come to its moment in this time hangs."""


class Stop:
    """Asks processes that get its environment to stop at a moment.

    Args:
        moment: When. Without one nothing stops, and every change of a file is recorded.
        notes: Folder for notes of the processes, outside of what the program writes to.
    """

    def __init__(self, moment: Moment | None, notes: Path) -> None:
        self.moment, self._notes = moment, notes
        self.environment = with_path(SUPPORT / "stop_hook", SUPPORT)
        self.environment |= to_environment(moment, str(notes))

    def wait(self, process: BaseProcess) -> int:
        """Wait until a process has stopped.

        Returns:
            The id of the process that stopped: this one, or one that it started.
        """
        return self._wait(process.is_alive, lambda: "")

    def wait_for(self, program: Program) -> int:
        """The same for a program."""
        return self._wait(program.runs, lambda: program.said)

    def wait_anywhere(self) -> int:
        """The same for whatever process has the environment."""
        return self._wait(lambda: True, lambda: "")

    def changes(self, under: Path) -> list[tuple[str, str]]:
        """What was recorded by the process that changed most: event and path, in order."""
        found = [
            [
                (event, path)
                for event, _, path in (
                    line.partition("\t") for line in note.read_text().split("\n")
                )
                if path.startswith(f"{under}/")
            ]
            for note in self._notes.glob("trace-*")
        ]
        return max(found, key=len, default=[])

    def _wait(self, runs: Callable[[], bool], said: Callable[[], str]) -> int:
        note = self._notes / "stopped"
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            running = runs()
            text = note.read_text() if note.exists() else ""
            if text and is_stopped(int(text)):
                return int(text)
            assert running, f"it ended before {self.moment}: {said()}"
            time.sleep(0.002)
        raise TimeoutError(f"it did not come to {self.moment}: {said()}")


@contextlib.contextmanager
def alongside(action: Callable[[], None]) -> Iterator[None]:
    """Do something in a thread while the block runs; an error of it ends the block."""

    def interrupting() -> None:
        try:
            action()
        except BaseException:
            interrupt_main()
            raise

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(interrupting)
        try:
            yield
        except KeyboardInterrupt:
            if not done.done() or not done.exception():
                raise
        done.result()


@contextlib.contextmanager
def stopped_at(
    moment: Moment,
    words: Sequence[str | Path],
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Iterator[Program]:
    """A program that has stopped itself at a moment.

    Args:
        moment: When.
        words: The program and its arguments.
        environment: Its environment; that of the tests by default.
        folder: Where it runs.

    Yields:
        The program, which is killed with its family at the end of the block.

    Raises:
        AssertionError: If it ends without coming to the moment.
    """
    with tempfile.TemporaryDirectory() as notes:
        stop = Stop(moment, Path(notes))
        with started(words, _merged(environment, stop), folder) as program:
            stop.wait_for(program)
            yield program


def killed_at(
    moment: Moment,
    words: Sequence[str | Path],
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> str:
    """Run a program until a moment, and kill it there.

    Returns:
        What it said.
    """
    with stopped_at(moment, words, environment, folder) as program:
        return program.said


def changes_of(
    words: Sequence[str | Path],
    under: Path,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> list[tuple[str, str]]:
    """Run a program to its end.

    Returns:
        Event and path of every change that it made to files in the folder `under`, in order: the
        moments at which it can be killed. Of several processes, those of the one with most.

    Raises:
        AssertionError: If it fails.
    """
    with tempfile.TemporaryDirectory() as notes:
        stop = Stop(None, Path(notes))
        with started(words, _merged(environment, stop), folder) as program:
            status, said = program.end()
        assert status == 0, said
        return stop.changes(under)


def _merged(environment: Mapping[str, str] | None, stop: Stop) -> dict[str, str]:
    """An environment with what the hook needs; the path that it had comes after the hook's."""
    given = dict(os.environ if environment is None else environment)
    own = stop.environment
    return given | own | with_path(SUPPORT / "stop_hook", SUPPORT, before=given)


def _read(note: Path) -> list[tuple[str, str]]:
    parts = [line.partition("\t") for line in note.read_text().splitlines()]
    return [(event, path) for event, _, path in parts]


def is_stopped(process: int) -> bool:
    """Whether a process stands still after SIGSTOP."""
    try:
        return ") T" in Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
