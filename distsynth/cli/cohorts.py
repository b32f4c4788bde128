"""The command that finds the pairs of a folder."""

# No "from __future__ import annotations" here: the arguments of a command are a dataclass within
# its function, whose annotations must be real types for the parser.

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from distsynth.cli.arguments import Out, columns, parse
from sharding.io.atomic import refuse_existing
from sharding.io.errors import list_causes

logger = logging.getLogger(__name__)
SHOWN = 10
"""Pairs that are printed; the file has all."""


def cohort(args: Sequence[str]) -> None:
    """find the pairs of a folder and write them to a cohort.csv"""

    @dataclass(frozen=True)
    class FindCohort:
        """Find the source and the target of each specimen in a folder, by two patterns.

        Files are paired by what the wildcards stand for, or by the entities of BIDS names:

            distsynth cohort scans --source "*_7T.nii.gz" --target "*_94T.nii.gz" -o cohort.csv
            distsynth cohort bids --target "sub-*/**/*_T1w.nii.gz" -o targets.csv
        """

        folder: Positional[Annotated[Path, arg(metavar="FOLDER")]]
        """Where the scans lie: files of any format that is read, or folders of DICOM series."""
        target: Annotated[str, arg(metavar="PATTERN")]
        """Pattern of the high-field volumes below the folder."""
        out: Out
        """The cohort.csv to write; its paths are relative to it."""
        source: Annotated[str | None, arg(metavar="PATTERN")] = None
        """Pattern of the low-field volumes; without it the cohort holds targets alone, for
        distsynth simulate."""
        mask: Annotated[str | None, arg(metavar="PATTERN")] = None
        """Pattern of masks on the grid of the targets."""
        overwrite: bool = False
        """Replace the file."""

    given = parse("cohort", FindCohort, args)
    from sharding.volumes.cohort import write_cohort
    from sharding.volumes.pairing import pair_files

    refuse_existing([given.out], given.overwrite)
    found = pair_files(given.folder, given.target, given.source, given.mask)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_cohort(given.out, found.specimens)
    roles = ["source", "target", "mask"]
    roles = [role for role in roles if getattr(given, role)]
    rows = [["specimen", *roles, "split"]]
    for row in found.specimens[:SHOWN]:
        files = [getattr(row, role) for role in roles]
        names = [str(file.relative_to(given.folder)) if file else "-" for file in files]
        rows.append([row.name, *names, row.split or "-"])
    print(columns(rows))
    if (more := len(found.specimens) - SHOWN) > 0:
        print(f"and {more} more")
    if found.left_out:
        count = len(found.left_out)
        logger.warning("%d files are in no pair:%s", count, list_causes(found.left_out))
    print(given.out)
