"""The command that shows a run, a sweep or a reproduction on one page."""

# No "from __future__ import annotations" here: the arguments of a command are a dataclass within
# its function, whose annotations must be real types for the parser.

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from distsynth.cli.arguments import Out, parse
from sharding.io.errors import DataError
from sharding.io.storage import Folder


def report(args: Sequence[str]) -> None:
    """show a run, a sweep or a reproduction on one HTML page, with slices to slide through"""

    @dataclass(frozen=True)
    class Report:
        """Write one HTML page on a run, a sweep or a reproduction: results, slices, curves.

        The page needs nothing but itself: send it, open it offline, print it.
        """

        folder: Positional[str]
        """Folder of a run, a sweep or a reproduction: a path or a URL."""
        out: Out = Path("report.html")
        """HTML file to write."""
        cohort: Annotated[
            Path | None, arg(help="the cohort that the shards were cut from; gives slices")
        ] = None
        split: Literal["val", "test"] = "test"
        """Whose slices to show; judged specimens only, where some were judged."""
        most: int = 6
        """Specimens at most."""
        evaluation: str | None = None
        """Folder that distsynth evaluate wrote, where it is not in the run's."""
        source_pattern: str | None = None
        target_pattern: str | None = None
        device: Literal["auto", "cpu"] = "auto"
        overwrite: bool = False

    given = parse("report", Report, args)
    if given.out.exists() and not given.overwrite:
        raise DataError(given.out, "the file exists already", "Give --overwrite or another name")
    if given.most < 1:
        raise ValueError(f"--most must be >= 1, got {given.most}")
    from distsynth.reporting.run_page import Extras, run_page
    from distsynth.reproduction.report import reproduction_page
    from distsynth.reproduction.task import TASK_FILE
    from distsynth.runs.folder import CONFIG_FILE
    from distsynth.sweep.folder import SweepFolder
    from distsynth.sweep.report import sweep_page
    from sharding.io.atomic import atomic_write
    from sharding.volumes.cohort import read_cohort

    specimens = None
    if given.cohort is not None:
        specimens = read_cohort(given.cohort, given.source_pattern, given.target_pattern)
    extras = Extras(specimens, given.split, given.most, given.evaluation, given.device)
    folder, sweep = Folder(given.folder), SweepFolder(given.folder)
    if folder.exists(TASK_FILE):
        page = reproduction_page(sweep, extras)
    elif sweep.exists():
        page = sweep_page(sweep, extras)
    elif folder.exists(CONFIG_FILE):
        page = run_page(folder, extras)
    else:
        raise DataError(
            given.folder,
            "no run, sweep or reproduction lies here",
            "Give the folder of one",
        )
    atomic_write(given.out, page)
    print(given.out)
