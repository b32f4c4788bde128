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
from distsynth.errors import ConfigError
from sharding.io.atomic import refuse_existing
from sharding.io.errors import list_causes
from sharding.volumes.contrasts import CONTRAST_NAME

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
            distsynth cohort scans --source t1="*_T1.nii" t2="*_T2.nii" --target "*_94T.nii" \
                -o cohort.csv
            distsynth cohort bids --target "sub-*/**/*_T1w.nii.gz" -o targets.csv
        """

        folder: Positional[Annotated[Path, arg(metavar="FOLDER")]]
        """Where the scans lie: files of any format that is read, or folders of DICOM series
        and of OME-Zarr."""
        target: Annotated[str, arg(metavar="PATTERN")]
        """Pattern of the high-field volumes below the folder."""
        out: Out
        """The cohort.csv to write; its paths are relative to it."""
        source: Annotated[tuple[str, ...], arg(metavar="PATTERN...")] = ()
        """Pattern of the low-field volumes; of several contrasts NAME=PATTERN for each, such as
        t1=*_T1.nii.gz t2=*_T2.nii.gz. Without it the cohort holds targets alone, for distsynth
        simulate."""
        mask: Annotated[str | None, arg(metavar="PATTERN")] = None
        """Pattern of masks on the grid of the targets."""
        overwrite: bool = False
        """Replace the file."""

    given = parse("cohort", FindCohort, args)
    from sharding.volumes.cohort import write_cohort
    from sharding.volumes.pairing import pair_files

    refuse_existing([given.out], given.overwrite)
    source = _contrasts(given.source)
    found = pair_files(given.folder, given.target, source, given.mask)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_cohort(given.out, found.specimens)
    named = ["source"] if isinstance(source, str) else [*(source or ())]
    rows = [["specimen", *named, "target", *(["mask"] if given.mask else []), "split"]]
    for row in found.specimens[:SHOWN]:
        files = [*row.sources, row.target, *([row.mask] if given.mask else [])]
        names = [str(file.relative_to(given.folder)) if file else "-" for file in files]
        rows.append([row.name, *names, row.split or "-"])
    print(columns(rows))
    if (more := len(found.specimens) - SHOWN) > 0:
        print(f"and {more} more")
    if found.left_out:
        count = len(found.left_out)
        logger.warning("%d files are in no pair:%s", count, list_causes(found.left_out))
    print(given.out)


def _contrasts(given: Sequence[str]) -> str | dict[str, str] | None:
    """The pattern of one source, or contrast -> pattern; None if there is none.

    Raises:
        ConfigError: If several patterns have no names of their own.
    """
    if len(given) < 2:
        return given[0] if given else None
    found = {name: pattern for name, _, pattern in (each.partition("=") for each in given)}
    if len(found) < len(given) or not all(map(CONTRAST_NAME.fullmatch, found)):
        raise ConfigError(
            "--source must name each of several contrasts in small letters, such as "
            f"t1=*_T1.nii.gz t2=*_T2.nii.gz, got {' '.join(given)}"
        )
    return found
