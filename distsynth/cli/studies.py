"""The commands that plan a study and carry it out, from scans to a verdict."""

# No "from __future__ import annotations" here: the arguments of a command are a dataclass within
# its function, whose annotations must be real types for the parser.

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from distsynth.cli.arguments import Cohort, Out, columns, parse
from distsynth.cli.continuing import continued_by
from distsynth.errors import ConfigError
from sharding.io.atomic import atomic_write, refuse_existing

if TYPE_CHECKING:
    from distsynth.study.plan import StudyPlan

MINUTES = 30.0
"""Minutes of training unless asked otherwise."""


def plan(args: Sequence[str]) -> None:
    """look at a cohort and at this machine, and plan a study"""

    @dataclass(frozen=True)
    class Plan:
        """Look at a cohort and at this machine, and write a plan with its reasons.

            distsynth plan cohort.csv --minutes 30 -o plan.json

        Change what you know better, and carry it out by distsynth run --plan plan.json.
        """

        cohort: Positional[Cohort]
        out: Out = Path("plan.json")
        """The file to write."""
        minutes: float = MINUTES
        """Time that the training may take; the other stages come on top."""
        gpus: int | None = None
        """0 trains on the processor, 1 on a GPU; by default on a GPU if there is one."""
        overwrite: bool = False
        """Replace the file."""

    given = parse("plan", Plan, args)
    refuse_existing([given.out], given.overwrite)
    made = _planned(given.cohort, given.minutes, given.gpus)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(given.out, made.to_json())
    print(_reasons(made))
    print(given.out)


def run(args: Sequence[str]) -> None:
    """go from a cohort to an evaluated model: plan, prepare, cut, train, evaluate, report"""

    @dataclass(frozen=True)
    class Run:
        """Go from a cohort to an evaluated model: plan, prepare, cut, train, evaluate, report.

            distsynth run cohort.csv -o study --minutes 30

        Run it again to continue where it was. The last line says what came out.
        """

        cohort: Positional[Cohort]
        out: Out
        """Folder of the study."""
        minutes: float | None = None
        """Time that the training may take; the other stages come on top. By default 30."""
        gpus: int | None = None
        """0 trains on the processor, 1 on a GPU; by default on a GPU if there is one."""
        plan: Annotated[
            Path | None, arg(metavar="PLAN", help="A plan that distsynth plan wrote.")
        ] = None
        workers: int = 0
        """Processes that prepare and cut; 0 starts one for each core."""

    given = parse("run", Run, args)
    from distsynth.study.plan import plan_from_json
    from distsynth.study.run import kept_plan, run_study
    from sharding.io.errors import file_errors

    if given.plan is not None:
        if given.minutes is not None or given.gpus is not None:
            raise ConfigError("--plan says the minutes and the GPUs: leave them out")
        with file_errors(given.plan):
            made = plan_from_json(given.plan.read_bytes(), str(given.plan))
    else:
        made = kept_plan(given.out)
        if made is None:
            made = _planned(
                given.cohort, MINUTES if given.minutes is None else given.minutes, given.gpus
            )
        _check_asked(made, given.cohort, given.minutes, given.gpus)
    print(_reasons(made))
    with continued_by("run", args):
        found = run_study(given.out, made, given.workers)
    print(f"report   {found.page}")
    scans = " ".join(name.upper() for name in made.survey.contrasts) or "SCAN"
    print(f"model    {found.model}   (distsynth predict {found.model} {scans} -o OUT)")
    print(found.verdict)


def _planned(cohort: Path, minutes: float, gpus: int | None) -> "StudyPlan":
    from distsynth.study.machine import available_gpus, measured_precision, timed_step
    from distsynth.study.plan import check_asked, plan_study
    from distsynth.study.survey import survey
    from sharding.volumes.cohort import read_cohort

    there = available_gpus()
    gpus = min(1, there) if gpus is None else gpus
    check_asked(minutes, gpus)
    if gpus > there:
        raise ConfigError(f"--gpus must be 0 here, got {gpus}: torch finds no GPU")
    return plan_study(
        _lasting(cohort),
        survey(read_cohort(cohort)),
        minutes,
        gpus,
        timed_step,
        measured_precision,
    )


def _check_asked(made: "StudyPlan", cohort: Path, minutes: float | None, gpus: int | None) -> None:
    """Refuse to continue a study as another one."""
    asked = {"cohort": _lasting(cohort), "minutes": minutes, "gpus": gpus}
    for name, value in asked.items():
        if value is not None and value != getattr(made, name):
            raise ConfigError(
                f"the study was planned with {name} {getattr(made, name)}, now {value} is asked "
                "for: choose another folder with -o"
            )


def _lasting(cohort: Path) -> str:
    """The cohort's absolute path; that of its file, however it was named."""
    file = cohort / "cohort.csv"
    return str((file if file.is_file() else cohort).resolve())


def _reasons(made: "StudyPlan") -> str:
    return columns([[topic, reason] for topic, reason in made.reasons.items()])
