"""From raw scans to a cohort of prepared pairs, specimens in parallel, failures apart.

    OUT/cohort.csv      the prepared specimens: what `distsynth shard` reads
    OUT/quality.json    measures, flags, failures, configuration and versions
    OUT/quality.html    the same for people, with pictures
    OUT/SPECIMEN/       see sharding/registration/specimen.py

What is finished is kept: started again, after a kill or with another configuration, only what is
missing or follows from the change is done. The three files of the cohort are written last.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import logging
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from sharding.io.atomic import atomic_write
from sharding.io.errors import DataError
from sharding.io.parallel import run_each
from sharding.registration.plan import STEPS, PrepareConfig
from sharding.registration.quality import SpecimenQuality, flag_outliers
from sharding.registration.quality_page import quality_page
from sharding.registration.register import tool_version
from sharding.registration.specimen import LOCK, PICTURE, Outcome, prepare_specimen
from sharding.registration.step_cache import json_text, read_record, sweep
from sharding.volumes.cohort import Specimen, write_cohort
from sharding.volumes.transform import Transform
from sharding.volumes.volume import Volume, read_volume, write_volume

LOGGER = logging.getLogger(__name__)

__all__ = ["STEPS", "Preparation", "PrepareConfig", "carry_back", "prepare_cohort"]

COHORT = "cohort.csv"
QUALITY = "quality.json"
PAGE = "quality.html"

PACKAGES = ("distsynth", "SimpleITK", "numpy", "scipy", "scikit-image", "nibabel")
FULL = (errno.ENOSPC, errno.EDQUOT)
FOLDERS = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?/(?:[^\s/:;,'\"()]+/)+")
"""The folders of an absolute path."""


@dataclass(frozen=True)
class Preparation:
    """What became of a cohort.

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
) -> Preparation:
    """Prepare every specimen of a cohort that can be prepared.

    Args:
        specimens: With sources.
        out: New, empty, or the folder of an earlier run, finished or not, which is gone on with.
        config: What to do.
        workers: Specimens at a time; 0 takes one a core.
        address: A Ray cluster that shares this file system; None stays on this machine.

    Returns:
        What was prepared, what stands out, what failed and why. A failure does not stop the rest.

    Raises:
        DataError: If `out` holds something else, another run is writing there, or the disk is
            full. What is finished stays.
    """
    out = out.resolve()
    names = {specimen.name for specimen in specimens}
    for name in sorted(names & {COHORT, QUALITY, PAGE}):
        raise DataError(name, "a specimen cannot have the name of a file of ours", "Rename it")
    _check_folder(out)
    with _full_disk_named(out), _alone_in(out):
        sweep(out)
        # Until all is done, these would tell of another state than the folder's.
        for name in (COHORT, QUALITY, PAGE):
            (out / name).unlink(missing_ok=True)
        outcomes: dict[str, Outcome] = {}
        failures: dict[str, str] = {}
        function = partial(prepare_specimen, out=out, config=config)
        found = [_absolute(specimen) for specimen in specimens]
        for specimen, outcome in run_each(function, found, workers, "preparing", address):
            if isinstance(outcome, Outcome):
                outcomes[specimen.name] = outcome
            elif isinstance(outcome, OSError) and outcome.errno in FULL:
                raise outcome
            else:
                failures[specimen.name] = _cause(outcome, specimen, out)
        order = [specimen.name for specimen in specimens]
        done = [outcomes[name] for name in order if name in outcomes]
        rows = tuple(outcome.quality for outcome in done)
        preparation = Preparation(
            out=out,
            specimens=tuple(outcome.specimen for outcome in done),
            rows=rows,
            flags=flag_outliers(rows),
            failures={name: failures[name] for name in order if name in failures},
        )
        _write(preparation, config, {outcome.quality.name: outcome.steps for outcome in done})
    return preparation


def carry_back(
    folder: Path, volume: Path, out: Path, like: Path | None = None, overwrite: bool = False
) -> None:
    """Carry a volume on a prepared target's grid, such as a prediction, to the scanner's space.

    Args:
        folder: The specimen's folder within a prepared cohort.
        volume: On the target's grid, or another one in the target's space.
        out: NIfTI file to write, in the world of the raw source.
        like: Write on the grid of this volume; None takes the raw source's field of view at the
            target's spacing.
        overwrite: Replace an existing file.

    Raises:
        DataError: If the specimen's preparation did not resample or is unfinished, the transform
            cannot be inverted, a file is bad or `out` exists.
    """
    if out.exists() and not overwrite:
        raise DataError(out, "the file exists already", "Give --overwrite or another file")
    record = read_record(folder / "resample")
    if record is None:
        rule = "holds no finished step resample, so there is nothing to carry back by"
        raise DataError(folder, rule, "Give a specimen's folder of a prepared cohort")
    transform = Transform.identity()
    for step in ("affine", "deform"):
        if step in record.inputs:
            made = read_record(folder / step)
            if made is None or made.key != record.inputs[step]:
                rule = f"the step {step} is not the one that resample was done with"
                raise DataError(folder, rule, "Run the preparation again")
            transform = Transform.load(folder / step)
    given = read_volume(volume)
    if like is None:
        grid = record.measured["source_grid"], record.measured["target_grid"]
        shape, affine, header = *_refined(*grid), None
    else:
        wanted = read_volume(like, constant=True)
        shape, affine, header = wanted.shape, wanted.affine, wanted.header
    try:
        data, inside = transform.apply_inverse(given, shape, affine)
    except ValueError as error:
        raise DataError(folder, str(error), "Prepare again with a smoother deformation") from None
    low, high = given.data.min(), given.data.max()
    data = np.clip(data, low, high)
    data[~inside] = low
    write_volume(out, Volume(data, affine, header))


def _refined(
    source: Mapping[str, Any], target: Mapping[str, Any]
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """The source's field of view with voxels of the target's size.

    Args:
        source: Shape and affine.
        target: Likewise.

    Returns:
        Shape and affine of a grid along the source's axes.
    """
    affine, size = np.array(source["affine"]), np.array(source["shape"])
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    # How far a voxel of the target reaches along each axis of the source.
    per_mm = np.linalg.inv(np.array(target["affine"])[:3, :3]) @ (affine[:3, :3] / steps)
    wanted = 1 / np.linalg.norm(per_mm, axis=0)
    shape = np.maximum(np.ceil(size * steps / wanted - 1e-3), 2).astype(int)
    scale = wanted / steps
    # The outer faces of the first voxels coincide.
    matrix = np.diag([*scale, 1.0])
    matrix[:3, 3] = (scale - 1) / 2
    return (int(shape[0]), int(shape[1]), int(shape[2])), affine @ matrix


def _check_folder(out: Path) -> None:
    """Refuse to write among somebody else's files."""
    if out.exists() and not out.is_dir():
        raise DataError(out, "is a file", "Give a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / LOCK).is_file():
        rule = "the folder holds something else than a prepared cohort"
        raise DataError(out, rule, "Give a new folder, or that of an earlier run")


@contextlib.contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Make the folder and keep other runs out; the lock file, once made, marks it as ours."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / LOCK, blocking=False):
            yield
    except Timeout:
        rule = "another run is writing here"
        raise DataError(out, rule, "Wait for it, or give another folder") from None


@contextlib.contextmanager
def _full_disk_named(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        remedy = "Free some and start again: what is finished is kept"
        raise DataError(out, "no space is left on the disk", remedy) from error


def _absolute(specimen: Specimen) -> Specimen:
    """With paths that are valid in every process."""
    return replace(
        specimen,
        target=specimen.target.resolve(),
        source=specimen.source.resolve() if specimen.source else None,
        mask=specimen.mask.resolve() if specimen.mask else None,
    )


def _cause(error: Exception, specimen: Specimen, out: Path) -> str:
    """Why a specimen failed, without the folders of this machine."""
    text = str(error)
    if not isinstance(error, DataError):
        text = f"{type(error).__name__}: {text}"
        LOGGER.error("%s failed unexpectedly", specimen.name, exc_info=error)
    files = [specimen.source, specimen.target, specimen.mask]
    for folder in sorted({out, *(path.parent for path in files if path)}, reverse=True):
        text = text.replace(f"{folder}/", "")
    return FOLDERS.sub("", text)


def _write(
    preparation: Preparation, config: PrepareConfig, steps: Mapping[str, Mapping[str, str]]
) -> None:
    """Write the cohort's three files, what programs read last."""
    out = preparation.out
    versions = {
        "Python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }
    pictures = {row.name: (out / row.name / PICTURE).read_bytes() for row in preparation.rows}
    page = quality_page(
        preparation.rows,
        preparation.flags,
        preparation.failures,
        pictures,
        _head(config, versions),
    )
    atomic_write(out / PAGE, page)
    content = {
        "config": asdict(config),
        "versions": versions | {"registration": tool_version(config.register)},
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
