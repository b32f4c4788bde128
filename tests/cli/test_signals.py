"""Long commands in processes of their own that are asked to end by real signals."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from killed_commands import command, command_under_nohup, kill_family
from killing import CallMoment, FileMoment, Moment, Stop
from lab import until
from small_study import study_commands
from tiny_runs import start, start_ranks, tiny_config

from distsynth.cli.main import main
from distsynth.config import to_json
from distsynth.runs.checkpoint import load_checkpoint
from distsynth.runs.folder import LAST
from distsynth.sweep.folder import SweepFolder

pytestmark = pytest.mark.slow

SECONDS = 120
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
LONG = {"train.epochs": 100_000, "train.validate_every": 100_000}


class Program:
    """`distsynth` in a process of its own, a fork; what it says goes to a file."""

    def __init__(
        self, target: Callable[..., None], log: Path, *args: str | Path, **environment: str
    ) -> None:
        self.log = log
        log.touch()
        self.process = start(target, [*map(str, args)], environment=environment, log=log)

    @property
    def said(self) -> str:
        return self.log.read_text()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert self.process.is_alive(), self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.05)

    def send(self, number: signal.Signals) -> None:
        assert self.process.pid
        os.kill(self.process.pid, number)

    def end(self, number: signal.Signals) -> str:
        """Send a signal; check the status; return what was said."""
        self.send(number)
        return self.end_by(number)

    def end_by(self, number: signal.Signals) -> str:
        """Wait for the end by a signal that was sent; check the status; return what was said."""
        self.process.join(SECONDS)
        said = self.said
        assert self.process.exitcode == 128 + number, said
        assert said.rstrip().endswith(f"distsynth: interrupted by {number.name}"), said
        for word in ("Traceback", "***", "Fatal", "Aborted", "C++"):
            assert word not in said
        return said


@contextlib.contextmanager
def program(
    log: Path, *args: str | Path, target: Callable[..., None] = command, **environment: str
) -> Iterator[Program]:
    found = Program(target, log, *args, **environment)
    try:
        yield found
    finally:
        kill_family(found.process)


@contextlib.contextmanager
def stopped_program(
    folder: Path, moment: Moment, *args: str | Path
) -> Iterator[tuple[Program, int]]:
    """A program, and the number of the process of it that has stopped at a moment."""
    notes = folder / "notes"
    notes.mkdir()
    stop = Stop(moment, notes)
    with program(folder / "first", *args, **stop.environment) as found:
        yield found, stop.wait(found.process)


def command_to_continue(said: str, before: str = "to continue: ") -> list[str]:
    """The arguments of the command that an interrupted one shows, in the line before the last."""
    line = said.splitlines()[-2]
    assert line.startswith(before), said
    name, *args = shlex.split(line.removeprefix(before))
    assert name == "distsynth"
    return args


@pytest.mark.parametrize("number", SIGNALS)
def test_training_continues_with_the_command_that_it_shows(number, shard_folder, tmp_path):
    config = tmp_path / "a config.json"
    config.write_text(to_json(tiny_config(shard_folder, LONG)))
    run = tmp_path / "a run"
    last = run / LAST
    args = ["train", config, "-o", run]
    with program(tmp_path / "first", *args) as first:
        first.wait_until(last.exists)
        again = command_to_continue(first.end(number))
    assert again == [*map(str, args), "--resume"]
    with program(tmp_path / "second", *again) as second:
        second.wait_until(lambda: "resuming from step" in second.said)
        assert command_to_continue(second.end(number)) == again


@pytest.mark.parametrize("told", [(1,), (0, 1)])
def test_the_ranks_of_a_training_end_together(told, shard_folder, tmp_path):
    """A batch system tells all of them, or the one that it started."""
    config = tmp_path / "config.json"
    config.write_text(to_json(tiny_config(shard_folder, LONG)))
    run = tmp_path / "run"
    words = ["train", str(config), "-o", str(run)]
    ranks = start_ranks(command, words, ranks=2, log=tmp_path / "log")
    logs = [tmp_path / f"log-{rank}" for rank in (0, 1)]
    try:
        until(lambda: (run / LAST).exists() or not all(rank.is_alive() for rank in ranks))
        for rank in told:
            os.kill(ranks[rank].pid, signal.SIGTERM)
        for rank in ranks:
            rank.join(SECONDS)
        said = [log.read_text() for log in logs]
        assert [rank.exitcode for rank in ranks] == [128 + signal.SIGTERM] * 2, said
    finally:
        for rank in ranks:
            kill_family(rank)
    assert command_to_continue(said[0]) == [*words, "--resume"]
    assert load_checkpoint(run / LAST).position.step > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sharding_continues(number, tmp_path):
    cohort, shards = tmp_path / "cohort", tmp_path / "shards"
    assert main(["phantom", str(cohort), "--specimens", "5", "--shape", "32", "32", "32"]) == 0
    options = ["--patch-size", "16", "16", "--stride", "8", "--workers", "2", "--overwrite"]
    args = ["shard", cohort, "-o", shards, *options]
    # The third specimen is not finished before the signal comes, whoever cuts it.
    moment = FileMoment("*/parts/specimens/phantom-02.json", "rename")
    with stopped_program(tmp_path, moment, *args) as (first, stopped):
        first.send(number)
        os.kill(stopped, signal.SIGCONT)
        again = command_to_continue(first.end_by(number))
    assert (shards / "parts").is_dir()
    assert not (shards / "manifest.json").exists()
    assert again == [str(word) for word in args if word != "--overwrite"]
    assert main(again) == 0
    assert main(["verify", str(shards)]) == 0


@pytest.fixture(scope="module")
def small_study(tmp_path_factory) -> tuple[Path, dict[str, list[str]]]:
    """A cohort, its shards and a run, and the commands that go on from there."""
    folder = tmp_path_factory.mktemp("study")
    commands = study_commands(folder)
    for name in ("phantom", "shard", "train"):
        assert main(commands[name]) == 0
    cohort = folder / "cohort" / "cohort.csv"
    return folder, commands | {
        "pair": ["phantom", str(folder / "pair"), "--specimens", "2", "--shape", "16", "16", "16"],
        "simulate": ["simulate", str(cohort), "-o", str(folder / "simulated")],
    }


NOT_KEPT = {
    "pair": FileMoment("*/pair/phantom-01_target.nii.gz", "rename"),
    "simulate": FileMoment("*/phantom-02_source.nii.gz", "rename"),
    "predict": FileMoment("*/phantom-00_synthetic.nii.gz", "rename"),
    "evaluate": FileMoment("*/results.json", "rename"),
    "report": FileMoment("*/report.html", "rename"),
    "export": FileMoment("*/config.json", "any"),
}
"""Commands that write all at the end, and a moment before it."""


@pytest.mark.parametrize("name", NOT_KEPT)
def test_what_keeps_nothing_is_started_again_by_the_line_that_it_shows(name, small_study, tmp_path):
    folder, commands = small_study
    args = commands[name]
    if name == "report":
        args = ["report", str(folder / "run"), "-o", str(folder / "report.html")]
    before = sorted(folder.iterdir())
    with stopped_program(tmp_path, NOT_KEPT[name], *args) as (first, stopped):
        first.send(signal.SIGINT)
        os.kill(stopped, signal.SIGCONT)
        said = first.end_by(signal.SIGINT)
    assert command_to_continue(said, "nothing was kept; to start again: ") == args
    left = [path for path in folder.iterdir() if path not in before]
    assert not [file for path in left for file in path.rglob("*")]
    assert main(args) == 0


@pytest.mark.long
def test_a_study_continues(small_study, tmp_path):
    folder, _ = small_study
    cohort = folder / "cohort" / "cohort.csv"
    args = ["run", str(cohort), "-o", str(tmp_path / "study"), "--minutes", "0.02"]
    moment = FileMoment("*/model/checkpoints/last.pt", "rename")
    with stopped_program(tmp_path, moment, *args, "--workers", "1") as (first, stopped):
        first.send(signal.SIGINT)
        os.kill(stopped, signal.SIGCONT)
        again = command_to_continue(first.end_by(signal.SIGINT))
    assert again == [*args, "--workers", "1"]
    assert (tmp_path / "study" / "shards" / "manifest.json").exists()


def test_before_there_is_anything_to_continue_a_command_is_started_again(shard_folder, tmp_path):
    """An old run in the folder must not be continued by the line of one that would replace it."""
    args = ["train", "small", "-o", tmp_path / "run", "--data.shards", shard_folder, "--overwrite"]
    moment = CallMoment("distsynth.api:load_config")
    with stopped_program(tmp_path, moment, *args) as (first, stopped):
        first.send(signal.SIGINT)
        os.kill(stopped, signal.SIGCONT)
        said = first.end_by(signal.SIGINT)
    again = command_to_continue(said, "nothing was kept; to start again: ")
    assert again == list(map(str, args))


def test_preparing_continues(tmp_path):
    commands = study_commands(tmp_path)
    assert main([*commands["pair"], "--overwrite"]) == 0
    args = commands["prepare"]
    moment = FileMoment("*/phantom-00/resample", "rename")
    with stopped_program(tmp_path, moment, *args) as (first, stopped):
        first.send(signal.SIGTERM)
        os.kill(stopped, signal.SIGCONT)
        assert command_to_continue(first.end_by(signal.SIGTERM)) == args
    assert main(args) == 0


@pytest.mark.long
def test_a_sweep_ends_in_good_order(shard_folder, tmp_path):
    """By each of the signals, one after the other: each interrupts what the one before left."""
    config = tmp_path / "config.json"
    config.write_text(to_json(tiny_config(shard_folder, LONG)))
    storage = tmp_path / "sweeps"
    words = ["sweep", config, "--name", "tiny", "--space", "learning-rates", "--storage", storage]
    args = [*map(str, words), "--trials", "2", "--concurrent", "1"]
    folder = SweepFolder(storage / "tiny")

    def trained() -> list[int]:
        return [path.stat().st_mtime_ns for path in (storage / "tiny").rglob(LAST.name)]

    for number in SIGNALS:
        before = trained()
        with program(tmp_path / number.name, *args) as running:
            running.wait_until(lambda before=before: trained() != before)
            args = command_to_continue(running.end(number))
        assert args == ["sweep", "--resume", "tiny", "--storage", str(storage)]
        assert {record.status for record in folder.records().values()} <= {"waiting", "running"}


def test_a_reproduction_ends_in_good_order(tmp_path):
    commands = study_commands(tmp_path)
    for name in ("phantom", "shard"):
        assert main(commands[name]) == 0
    args = commands["reproduce"]
    plan = tmp_path / "reproduction" / "sweep.json"
    with program(tmp_path / "first", *args) as first:
        first.wait_until(plan.exists)
        assert command_to_continue(first.end(signal.SIGTERM)) == [*args, "--resume"]


@pytest.mark.parametrize(
    "moment",
    [
        CallMoment("distsynth.prediction.file:predict_scan"),
        FileMoment("*/out/synthetic.json", "rename"),
        FileMoment("*/out/synthetic.nii.gz", "rename"),
    ],
    ids=["predicting", "its record", "its volume"],
)
def test_a_prediction_leaves_nothing_behind(moment, small_study, tmp_path):
    folder, _ = small_study
    source, out = folder / "cohort" / "phantom-00_source.nii.gz", tmp_path / "out"
    out.mkdir()
    args = ["predict", folder / "run", source, "-o", out / "synthetic.nii.gz"]
    with stopped_program(tmp_path, moment, *args) as (first, stopped):
        first.send(signal.SIGHUP)
        os.kill(stopped, signal.SIGCONT)
        first.end_by(signal.SIGHUP)
    assert not list(out.iterdir())


def test_a_background_job_that_ignores_hangups_is_not_ended_by_one(shard_folder, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(to_json(tiny_config(shard_folder, LONG)))
    last = tmp_path / "run" / LAST
    words = ["train", config, "-o", tmp_path / "run"]
    with program(tmp_path / "first", *words, target=command_under_nohup) as first:
        first.wait_until(last.exists)
        first.send(signal.SIGHUP)
        written = last.stat().st_mtime_ns
        first.wait_until(lambda: last.stat().st_mtime_ns != written)
        first.end(signal.SIGTERM)
