"""Where `distsynth run` spends its processor time, stage by stage, from typing to reading.

    python -m benchmarks.waiting COHORT [--minutes M] [--prepare] [--profile FOLDER]

COHORT has sources and targets (`distsynth simulate` makes one of targets alone). Everything runs in
one thread and one process, children are counted, so that other programs change the seconds little.
The minutes of the training are processor time too. With --prepare the plan registers and corrects,
whatever the survey says. --profile writes a cProfile file of each stage, for `python -m pstats`.
"""

from __future__ import annotations

import argparse
import cProfile
import logging
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.startup import PYTHON, cost

FIRST = "import distsynth.cli.studies, distsynth.study.run, distsynth.study.machine"


class Stages:
    """Processor seconds of named stages, one after the other.

    Args:
        profiles: Folder for a profile of each; None profiles nothing.
    """

    def __init__(self, profiles: Path | None) -> None:
        self.seconds: dict[str, float] = {}
        self._profiles, self._open = profiles, ""
        self._since, self._profile = spent(), cProfile.Profile()

    def begin(self, name: str) -> None:
        """End the stage before, and begin this one; an empty name begins none."""
        now = spent()
        if self._open:
            self.seconds[self._open] = self.seconds.get(self._open, 0) + now - self._since
            if self._profiles:
                self._profile.disable()
                self._profile.dump_stats(self._profiles / f"{self._open.replace(' ', '-')}.prof")
        self._open, self._since = name, spent()
        if name and self._profiles:
            self._profile = cProfile.Profile(time.process_time)
            self._profile.enable()

    def within(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose seconds also count under this name."""

        def timed(*args: Any, **options: Any) -> Any:
            since = spent()
            try:
                return work(*args, **options)
            finally:
                self.seconds[name] = self.seconds.get(name, 0) + spent() - since

        return timed


class StageLog(logging.Handler):
    """Begins a stage where a study says that it does."""

    def __init__(self, stages: Stages) -> None:
        super().__init__()
        self._stages = stages

    def emit(self, record: logging.LogRecord) -> None:
        """The title of a record such as `stage %d of %d: %s (...)`."""
        if str(record.msg).startswith("stage ") and isinstance(record.args, tuple):
            self._stages.begin(str(record.args[2]))


def spent() -> float:
    """Processor seconds of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measure(cohort: Path, minutes: float, prepare: bool, profiles: Path | None) -> Stages:
    """Plan a study and carry it out."""
    import torch
    from accelerate import Accelerator

    from distsynth.config import TrainConfig
    from distsynth.study import run as study
    from distsynth.study.machine import measured_precision, timed_step
    from distsynth.study.plan import REGISTERED, plan_study
    from distsynth.study.survey import survey
    from distsynth.training.pace import Clock, Pace
    from distsynth.training.validation import Validator
    from sharding.volumes.cohort import read_cohort

    torch.set_num_threads(1)
    stages = Stages(profiles)
    stages.begin("surveying")
    seen = survey(read_cohort(cohort))
    stages.begin("planning")
    plan = plan_study(str(cohort.resolve()), seen, minutes, 0, timed_step, measured_precision)
    stages.begin("")
    if prepare:
        plan = replace(plan, prepare=REGISTERED)
    study.logger.setLevel(logging.INFO)
    study.logger.addHandler(StageLog(stages))

    def processor_pace(
        train: TrainConfig, steps: int, accelerator: Accelerator, clock: Clock
    ) -> Pace:
        del clock
        return Pace(steps * train.epochs, train.minutes, accelerator, time.process_time)

    validate = stages.within("of training: validations", Validator.__call__)
    with (
        tempfile.TemporaryDirectory(prefix="distsynth-waiting-") as folder,
        mock.patch.object(Validator, "__call__", validate),
        mock.patch("distsynth.training.run.run_pace", processor_pace),
    ):
        study.run_study(Path(folder), plan, workers=1)
        stages.begin("")
    return stages


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--profile", type=Path)
    given = parser.parse_args()
    if given.profile:
        given.profile.mkdir(parents=True, exist_ok=True)
    imports = cost([*PYTHON, FIRST]).cpu_seconds
    stages = measure(given.cohort, given.minutes, given.prepare, given.profile)
    print("| stage | processor s |\n|---|---|")
    for name, seconds in {"imports": imports, **stages.seconds}.items():
        print(f"| {name} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
