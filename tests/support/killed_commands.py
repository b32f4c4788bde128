"""Kill commands at moments that a seed draws, go on with them, and compare the end.

Moments are changes of files that the command makes, counted in the process: neither the load of the
machine nor its clock decides where a command is killed. Half of the files that are about to take
their names are cut short first, as if the process had died while it wrote them.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import random
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
from killing import Stop
from moments import FileMoment
from small_study import study_commands
from tiny_runs import same, start, tensors

import sharding.io.errors
from distsynth.cli.main import main

SECONDS = 280
"""A command that takes longer hangs."""
SETUP = {
    "shard": ("phantom",),
    "prepare": ("pair",),
    "train": ("phantom", "shard"),
    "sweep": ("phantom", "shard"),
    "reproduce": ("phantom", "shard"),
    "evaluate": ("phantom", "shard", "train"),
    "export": ("phantom", "shard", "train"),
}
"""Command to kill: what comes before it in a study."""
OWN_FOLDER = {"shard": "shards", "train": "run", "sweep": "sweeps", "reproduce": "reproduction"}
"""What a command writes to, below the study; else the folder has the command's name."""
RANDOM = {"wandb", "run_id", "sweep.json"}
"""What is never the same twice: random ids, and the names of W&B's files, which tell the time."""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
CLOCK = re.compile(r'("[^"]*(?:seconds|throughput|created|per_second)[^"]*": )[^,}\n]+')
"""Fields of JSON that depend on the clock."""

LAST_NUMBER = {
    ".txt": re.compile(r" +\d+$", re.MULTILINE),
    ".tex": re.compile(r"& \d+ \\\\$", re.MULTILINE),
    ".html": re.compile(r"<td[^>]*>\d+</td></tr>"),
}
"""Where the tables of a comparison have the seconds that a training took, in their last column."""


@dataclass(frozen=True)
class Kill:
    """A moment at which a command was killed.

    Attributes:
        count: Of the changes of files that the command makes, from 1.
        torn: Whether the file was cut short.
        event: The kind of change.
        path: Of the file, in the study.
    """

    count: int
    torn: bool
    event: str
    path: str


class Command:
    """A command of a small study, and how it ends when nobody disturbs it.

    Args:
        name: The command, one of `SETUP`.
        folder: Empty, for this command alone.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self._folder = name, folder
        self._base = folder / "base"
        for before in SETUP[name]:
            _end(_started(study_commands(self._base)[before], {}, folder / "log"), folder / "log")
        whole = self._study("whole")
        with tempfile.TemporaryDirectory() as notes:
            stop = Stop(None, Path(notes))
            self._run(whole, stop)
            self.changes = stop.changes(self._out(whole).parent)
        self._expected = self._found(whole)

    def moments(self, seed: int, kills: int) -> Iterator[Kill]:
        """Moments at which to kill it, drawn from a seed; other seeds draw others."""
        draw = random.Random(f"{self.name} {seed}")
        for _ in range(kills):
            count = draw.randrange(len(self.changes)) + 1
            event, path = self.changes[count - 1]
            torn = draw.random() < 0.5
            yield Kill(count, torn and event == "rename", event, path.split("/whole/")[-1])

    def check(self, kill: Kill) -> None:
        """Kill the command, go on with it, and compare what it leaves with what it should.

        Raises:
            AssertionError: If it cannot go on, or ends otherwise.
        """
        study = self._study("killed")
        with tempfile.TemporaryDirectory() as notes:
            pattern = f"{self._out(study).parent}/*"
            stop = Stop(FileMoment(pattern, count=kill.count, torn=kill.torn), Path(notes))
            log = self._folder / "log"
            process = _started(self._words(study), stop.environment, log)
            stop.wait(process)
            kill_family(process)
        self._run(study, None)
        found = self._found(study)
        assert found.keys() == self._expected.keys(), (kill, found.keys() ^ self._expected.keys())
        differing = [name for name in found if not _equal(found[name], self._expected[name])]
        assert not differing, (kill, differing)
        shutil.rmtree(study)

    def _study(self, name: str) -> Path:
        """A copy of what comes before, of the same length of name, for paths are written."""
        study = self._folder / name
        shutil.rmtree(study, ignore_errors=True)
        shutil.copytree(self._base, study, symlinks=True)
        return study

    def _words(self, study: Path) -> list[str]:
        words = study_commands(study)[self.name]
        if self.name in ("train", "sweep", "reproduce"):
            return [*words, "--resume"]
        return [*words, "--overwrite"] if self.name in ("evaluate", "export") else words

    def _out(self, study: Path) -> Path:
        return study / OWN_FOLDER.get(self.name, {"prepare": "prepared"}.get(self.name, self.name))

    def _run(self, study: Path, stop: Stop | None) -> None:
        log = self._folder / "log"
        _end(_started(self._words(study), stop.environment if stop else {}, log), log)

    def _found(self, study: Path) -> dict[str, Any]:
        """What the command left, by name, without what depends on the clock or the place."""
        before = {path.relative_to(self._base) for path in self._base.rglob("*")}
        found: dict[str, Any] = {}
        for path in sorted(study.rglob("*")):
            name = path.relative_to(study)
            if name not in before and path.is_file() and not RANDOM & {*name.parts}:
                found[name.as_posix()] = _content(path, study)
        return found


def command(words: list[str]) -> None:
    """Run a command in a process of the fork server."""
    status = main(words)
    if status:
        raise SystemExit(status)


def command_under_nohup(words: list[str]) -> None:
    """Run a command as `nohup` starts it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    command(words)


def command_on_a_small_disk(limit: int, words: list[str]) -> None:
    """Run a command that may not write files of more bytes."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    # The limit stands for a full disk, which the system reports by another number.
    sharding.io.errors.DISK_FULL.add(errno.EFBIG)
    command(words)


def _started(words: list[str], environment: dict[str, str], log: Path) -> Any:
    return start(command, words, environment=ENVIRONMENT | environment, log=log)


def _end(process: Any, log: Path) -> None:
    process.join(SECONDS)
    if process.is_alive():
        kill_family(process)
        raise TimeoutError(f"a command hangs: {log.read_text()}")
    assert process.exitcode == 0, log.read_text()


def kill_family(process: BaseProcess) -> None:
    """Kill a process and all that it has started, and wait until they have ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        family = [*parent.children(recursive=True), parent]
        for one in reversed(family):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(family[:-1], timeout=30)
    process.join(SECONDS)


def _content(path: Path, study: Path) -> Any:
    if path.suffix == ".pt":
        return tensors(path.parent, Path(path.name))
    if path.suffix in (".json", ".jsonl", ".csv", ".txt", ".html", ".md", ".tex"):
        try:
            text = path.read_text(encoding="utf-8").replace(str(study), "STUDY")
        except UnicodeDecodeError:
            # A leftover, whose name tells what it is.
            return path.read_bytes()
        if path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in text.splitlines()]
            return [
                {key: value for key, value in row.items() if not key.startswith("throughput")}
                for row in rows
            ]
        if path.name == "comparison.csv":
            rows = list(csv.DictReader(io.StringIO(text)))
            return [{**row, "seconds": None} for row in rows]
        if path.stem == "comparison" and path.suffix in LAST_NUMBER:
            text = LAST_NUMBER[path.suffix].sub("CLOCK", text)
            # A longer number makes the column of a text wider.
            return re.sub(r" +|-{2,}", " ", text)
        return CLOCK.sub(r"\1CLOCK", text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _equal(one: Any, other: Any) -> bool:
    return same(one, other) if isinstance(one, dict) else one == other
