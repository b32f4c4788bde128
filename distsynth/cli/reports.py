"""The command that shows a run, a sweep or a reproduction on one page."""

# No "from __future__ import annotations" here: the arguments of a command are a dataclass within
# its function, whose annotations must be real types for the parser.

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from distsynth.cli.arguments import (
    COHORT_HELP,
    FolderOrUrl,
    Out,
    SourcePattern,
    TargetPattern,
    parse,
)


def report(args: Sequence[str]) -> None:
    """write one HTML page about a run, a sweep or a reproduction"""

    @dataclass(frozen=True)
    class Report:
        """Write one HTML page about a run, a sweep or a reproduction: results, slices, curves.

            distsynth report runs/small -o small.html --cohort cohort.csv

        The page is self-contained: it can be sent, opened offline and printed.
        """

        folder: Positional[FolderOrUrl]
        """Folder of a run, a sweep or a reproduction: a path or a URL."""
        out: Out = Path("report.html")
        """HTML file to write."""
        cohort: Annotated[
            Path | None,
            arg(
                metavar="COHORT",
                help=f"The cohort that the shards were cut from ({COHORT_HELP}); adds slices.",
            ),
        ] = None
        split: Literal["val", "test"] = "test"
        """Split whose slices are shown; only evaluated specimens, if there was an evaluation."""
        most: int = 6
        """Largest number of specimens with slices."""
        evaluation: Annotated[str | None, arg(metavar="FOLDER")] = None
        """Folder that distsynth evaluate wrote, if it is not within the run's."""
        source_pattern: SourcePattern = None
        target_pattern: TargetPattern = None
        device: Literal["auto", "cpu"] = "auto"
        overwrite: bool = False
        """Replace the file."""

    given = parse("report", Report, args)
    from distsynth.api import write_report
    from sharding.volumes.cohort import read_cohort

    specimens = None
    if given.cohort is not None:
        specimens = read_cohort(given.cohort, given.source_pattern, given.target_pattern)
    print(
        write_report(
            given.folder,
            given.out,
            specimens,
            split=given.split,
            most=given.most,
            evaluation=given.evaluation,
            device=given.device,
            overwrite=given.overwrite,
        )
    )
