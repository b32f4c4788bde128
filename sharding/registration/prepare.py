"""From raw scans to a cohort of prepared pairs, specimens in parallel, failures apart.

    OUT/cohort.csv      the prepared specimens: what `distsynth shard` reads
    OUT/quality.json    measures, flags, failures, configuration and versions
    OUT/quality.html    the same for people, with pictures
    OUT/prepare.json    configuration of the last run
    OUT/SPECIMEN/       see sharding/registration/specimen.py

What is finished is kept: started again, after a kill or with another configuration, only what is
missing or follows from the change is done. The three files of the cohort are written last.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sharding.io.atomic import atomic_write, remove_leftovers
from sharding.io.errors import DataError, cause
from sharding.io.lease import LEASE_FILE, lease
from sharding.io.parallel import run_each
from sharding.io.records import json_text
from sharding.registration.config import PrepareConfig
from sharding.registration.quality import SpecimenQuality, flag_outliers
from sharding.registration.quality_page import quality_page
from sharding.registration.specimen import (
    BIAS_PICTURE,
    MEASURE,
    PICTURE,
    PreparedSpecimen,
    prepare_specimen,
)
from sharding.volumes.cohort import Specimen, write_cohort
from sharding.volumes.contrasts import common_contrasts

COHORT = "cohort.csv"
QUALITY = "quality.json"
PAGE = "quality.html"
MARK = "prepare.json"
"""Configuration of the last run; written first, it tells a prepared cohort from other folders."""

PACKAGES = ("distsynth", "SimpleITK", "picsl_greedy", "numpy", "scipy", "scikit-image", "nibabel")
STEP_WEIGHTS = {
    "correct": 9.0,
    "scale": 1.0,
    "rigid": 5.0,
    "affine": 1.0,
    "deform": 4.0,
    "resample": 1.0,
    MEASURE: 1.0,
}
"""About how long a step takes compared with the others, for the time that is left."""
FULL = (errno.ENOSPC, errno.EDQUOT)
FOLDERS = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?/(?:[^\s/:;,'\"()]+/)+")
"""The folders of an absolute path."""


@dataclass(frozen=True)
class PreparedCohort:
    """The outcome of preparing a cohort.

    Attributes:
        out: The folder that was written.
        specimens: The prepared ones, in the order given; cohort.csv lists them.
        rows: Quality of each of these.
        flags: Specimen -> reasons why it stands out; it is prepared all the same.
        failures: Specimen -> why it could not be prepared.
    """

    out: Path
    specimens: tuple[Specimen, ...]
    rows: tuple[SpecimenQuality, ...]
    flags: dict[str, list[str]]
    failures: dict[str, str]


def prepare_cohort(
    specimens: Sequence[Specimen],
    out: Path,
    config: PrepareConfig,
    workers: int = 0,
    address: str | None = None,
) -> PreparedCohort:
    """Prepare every specimen of a cohort that can be prepared.

    Args:
        specimens: With sources.
        out: A new or empty folder, or that of an earlier run, finished or not, which is continued.
        config: What to do.
        workers: Specimens at a time; 0 takes one a core.
        address: A Ray cluster that shares this file system; None stays on this machine.

    Returns:
        What was prepared, what stands out, what failed and why. A failure does not stop the rest.

    Raises:
        DataError: If `out` holds something else, another process is writing there, specimens have
            different contrasts, or the disk is full. What is finished stays.
        Exception: Any other one that a step raises, which no specimen is to blame for.
    """
    common_contrasts(specimens)
    out = out.resolve()
    names = {specimen.name for specimen in specimens}
    for name in sorted(names & {COHORT, QUALITY, PAGE, MARK}):
        raise DataError(
            name, "a specimen cannot be named like a file that prepare writes", "Rename it"
        )
    _check_folder(out)
    with _full_disk_named(out), lease(out):
        remove_leftovers(out)
        atomic_write(out / MARK, json_text(asdict(config)))
        # Until all is done, these would not describe the folder's state.
        for name in (COHORT, QUALITY, PAGE):
            (out / name).unlink(missing_ok=True)
        outcomes: dict[str, PreparedSpecimen] = {}
        failures: dict[str, str] = {}
        function = partial(prepare_specimen, out=out, config=config)
        found = [specimen.resolved() for specimen in specimens]
        weights = {step: STEP_WEIGHTS[step] for step in (*config.steps, MEASURE)}
        each = run_each(function, found, workers, "preparing", address, weights)
        for specimen, outcome in each:
            if isinstance(outcome, PreparedSpecimen):
                outcomes[specimen.name] = outcome
            elif isinstance(outcome, OSError) and outcome.errno in FULL:
                raise outcome
            else:
                failures[specimen.name] = _cause(outcome, specimen, out)
        order = [specimen.name for specimen in specimens]
        done = [outcomes[name] for name in order if name in outcomes]
        rows = tuple(outcome.quality for outcome in done)
        preparation = PreparedCohort(
            out=out,
            specimens=tuple(outcome.specimen for outcome in done),
            rows=rows,
            flags=flag_outliers(rows),
            failures={name: failures[name] for name in order if name in failures},
        )
        _write(preparation, config, {outcome.quality.name: outcome.steps for outcome in done})
    return preparation


def _check_folder(out: Path) -> None:
    """Refuse a folder that holds anything but a prepared cohort."""
    if out.exists() and not out.is_dir():
        raise DataError(out, "is a file", "Give a folder")
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    # Files of a lease, whole or not, are all that one leaves that was killed at its very start.
    others = {name for name in found if LEASE_FILE not in name}
    if others and MARK not in found:
        rule = "the folder holds something else than a prepared cohort"
        raise DataError(out, rule, "Give a new folder, or that of an earlier run")


@contextlib.contextmanager
def _full_disk_named(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        remedy = "Free some space and start again: what is finished is kept"
        raise DataError(out, "no space is left on the disk", remedy) from error


def _cause(error: Exception, specimen: Specimen, out: Path) -> str:
    """Why a specimen failed, without the folders of this machine."""
    text = cause(error)
    for folder in sorted({out, *(path.parent for path in specimen.volumes)}, reverse=True):
        text = text.replace(f"{folder}/", "")
    return FOLDERS.sub("", text)


def _write(
    preparation: PreparedCohort, config: PrepareConfig, steps: Mapping[str, Mapping[str, str]]
) -> None:
    """Write the cohort's three files, ending with the one that programs read."""
    out = preparation.out
    versions = {
        "Python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }
    pictures, corrections = (
        {
            row.name: path.read_bytes()
            for row in preparation.rows
            if (path := out / row.name / file).is_file()
        }
        for file in (PICTURE, BIAS_PICTURE)
    )
    page = quality_page(
        preparation.rows,
        preparation.flags,
        preparation.failures,
        pictures,
        corrections,
        _head(config, versions),
    )
    atomic_write(out / PAGE, page)
    content = {
        "config": asdict(config),
        "versions": versions,
        "specimens": [asdict(row) | {"steps": steps[row.name]} for row in preparation.rows],
        "flags": preparation.flags,
        "failures": preparation.failures,
    }
    atomic_write(out / QUALITY, json_text(content))
    if preparation.specimens:
        write_cohort(out / COHORT, preparation.specimens)


def _head(config: PrepareConfig, versions: Mapping[str, str]) -> dict[str, str]:
    """What was done and with what, in words."""
    parts = {
        "Bias correction": config.correct if "correct" in config.steps else None,
        "Intensities and foreground": config.preprocess,
        "Registration": config.register if config.registers else None,
    }
    return {
        "Steps": ", ".join(config.steps),
        **{title: _words(part) if part else "left out" for title, part in parts.items()},
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def _words(config: Any) -> str:
    """Fields and values of a configuration."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in asdict(config).items())
