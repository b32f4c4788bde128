"""The command that shows a run, a sweep or a reproduction on one page."""

# No "from __future__ import annotations" here: the arguments of a command are a dataclass within
# its function, whose annotations must be real types for the parser.

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from distsynth.cli.arguments import Out, parse, refuse_existing
from distsynth.cli.messages import UsageError
from sharding.io.errors import DataError
from sharding.io.storage import Folder


def report(args: Sequence[str]) -> None:
    """write one HTML page about a run, a sweep or a reproduction"""

    @dataclass(frozen=True)
    class Report:
        """Write one HTML page about a run, a sweep or a reproduction: results, slices, curves.

        The page is self-contained: it can be sent, opened offline and printed.
        """

        folder: Positional[str]
        """Folder of a run, a sweep or a reproduction: a path or a URL."""
        out: Out = Path("report.html")
        """HTML file to write."""
        cohort: Annotated[
            Path | None, arg(help="the cohort that the shards were cut from; adds slices")
        ] = None
        split: Literal["val", "test"] = "test"
        """Split whose slices are shown; only evaluated specimens, if there was an evaluation."""
        most: int = 6
        """Largest number of specimens with slices."""
        evaluation: str | None = None
        """Folder that distsynth evaluate wrote, if it is not within the run's."""
        source_pattern: str | None = None
        """For a BIDS folder: glob of the source below each subject."""
        target_pattern: str | None = None
        """For a BIDS folder: glob of the target below each subject."""
        device: Literal["auto", "cpu"] = "auto"
        overwrite: bool = False

    given = parse("report", Report, args)
    refuse_existing(given.out, given.overwrite)
    if given.most < 1:
        raise UsageError(f"--most must be >= 1, got {given.most}")
    from distsynth.reporting.run_page import Extras, run_page
    from distsynth.reproduction.page import reproduction_page
    from distsynth.reproduction.task import TASK_FILE
    from distsynth.runs.folder import CONFIG_FILE
    from distsynth.sweep.folder import SweepFolder
    from distsynth.sweep.page import sweep_page
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
            "there is no run, sweep or reproduction in this folder",
            "Give the folder of one",
        )
    atomic_write(given.out, page)
    print(given.out)
