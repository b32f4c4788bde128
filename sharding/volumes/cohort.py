"""Specimens and their paired files, from a cohort.csv or a BIDS folder, and their split.

The specimen is the unit of splitting: all data of one specimen is in the same split.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from sharding.io.atomic import atomic_write
from sharding.io.errors import DataError, file_errors, list_causes
from sharding.volumes.cohort_table import REQUIRED, Row, read_table
from sharding.volumes.contrasts import (
    NATIVE,
    SOURCE,
    Contrast,
    common_contrasts,
    contrast_names,
)
from sharding.volumes.formats.registry import files_of

logger = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
SPECIMEN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Specimen:
    """One specimen's files.

    Attributes:
        name: Unique within the cohort; letters, digits, dot, dash and underscore.
        target: The high-field volume.
        source: The low-field volume; None until it is simulated.
        split: The split that the cohort states; None lets assign_splits choose one.
        mask: Foreground on the target's grid; None finds it by a threshold.
        native_source: The source of a prepared specimen on its own grid, before it was resampled.
        transform: The folder of the registration that aligned the native source of a prepared
            specimen with its target; None if the headers align the two.
        contrast: Name of the source's contrast where there are several, else empty.
        further: The other contrasts of the source, in order.
    """

    name: str
    target: Path
    source: Path | None = None
    split: Split | None = None
    mask: Path | None = None
    native_source: Path | None = None
    transform: Path | None = None
    contrast: str = ""
    further: tuple[Contrast, ...] = ()

    def resolved(self) -> Specimen:
        """The same with absolute paths, which are valid in every process."""
        paths = {name: getattr(self, name) for name in PATHS}
        further = tuple(
            replace(
                each,
                source=each.source.resolve(),
                native_source=each.native_source and each.native_source.resolve(),
            )
            for each in self.further
        )
        found = {name: path and path.resolve() for name, path in paths.items()}
        return replace(self, further=further, **found)

    @property
    def contrasts(self) -> tuple[str, ...]:
        """Names of the source's contrasts, in order; none where there is one source."""
        return (self.contrast, *(each.name for each in self.further)) if self.further else ()

    @property
    def sources(self) -> tuple[Path, ...]:
        """The source, one volume a contrast; empty until it is simulated."""
        return (self.source, *(each.source for each in self.further)) if self.source else ()

    @property
    def each_contrast(self) -> tuple[tuple[str, Path | None, Path | None], ...]:
        """Name, source and native source of each contrast; one of no name where there is one."""
        first = (self.contrast, self.source, self.native_source)
        return (first, *((each.name, each.source, each.native_source) for each in self.further))

    @property
    def volumes(self) -> list[Path]:
        """Every volume that the specimen has: a file, or a DICOM folder."""
        files = (self.source, self.target, self.mask, self.native_source)
        further = (file for each in self.further for file in (each.source, each.native_source))
        return [file for file in (*files, *further) if file]


PATHS = ("target", "source", "mask", "native_source", "transform")
"""Fields of a Specimen that name files."""


def read_cohort(
    path: str | Path,
    source_pattern: str | None = None,
    target_pattern: str | None = None,
) -> list[Specimen]:
    """Read a cohort file, a folder that holds one, or a BIDS folder.

    Args:
        path: A .csv file with the columns specimen, target and optionally source, mask, split,
            native_source and transform, separated by commas, semicolons or tabs, with paths
            relative to the file; several contrasts have a column source_NAME each in the place of
            source. Or a folder with a cohort.csv, or a BIDS folder (sub-*). Subjects of a BIDS
            folder that are not paired are left out and named in a warning.
        source_pattern: For BIDS: glob of the source below each subject's folder, such as
            "ses-7T/anat/*_T2w.nii.gz".
        target_pattern: The same for the target.

    Returns:
        The specimens, sorted by name.

    Raises:
        DataError: If a file, column or specimen is missing, listed twice or malformed, or no
            subject of a BIDS folder is paired.
    """
    path = Path(path)
    if path.is_dir() and (path / "cohort.csv").is_file():
        path = path / "cohort.csv"
    if path.is_dir():
        specimens = _read_bids(path, source_pattern, target_pattern)
    elif path.is_file():
        specimens = _read_table(path)
    else:
        raise DataError(path, "the cohort does not exist", "Give a cohort.csv or a BIDS folder")
    if not specimens:
        raise DataError(path, "the cohort holds no specimen", "Add a row for each specimen")
    _check(path, specimens)
    return sorted(specimens, key=lambda specimen: specimen.name)


def write_cohort(path: Path, specimens: Sequence[Specimen]) -> None:
    """Write a cohort.csv with paths relative to it, in one atomic step.

    The columns mask, native_source and transform are written if any specimen has them; several
    contrasts have a column each.

    Raises:
        DataError: If the specimens do not all have the same contrasts.
    """
    folder = path.parent.resolve()
    columns = _columns_of(specimens)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["specimen", *columns, "split"])
    for specimen in specimens:
        files = _files_of_columns(specimen)
        paths = [files.get(column) for column in columns]
        relative = [os.path.relpath(file.resolve(), folder) if file else "" for file in paths]
        rows.writerow([specimen.name, *relative, specimen.split or ""])
    atomic_write(path, text.getvalue())


def _columns_of(specimens: Sequence[Specimen]) -> list[str]:
    """The columns of files that a cohort of these specimens has."""
    contrasts = common_contrasts(specimens)
    used = {column for row in specimens for column, file in _files_of_columns(row).items() if file}
    if not contrasts:
        optional = ("mask", "native_source", "transform")
        return ["source", "target", *(column for column in optional if column in used)]
    sources = [f"{SOURCE}{name}" for name in contrasts]
    optional = ("mask", *(f"{NATIVE}{name}" for name in contrasts), "transform")
    return [*sources, "target", *(column for column in optional if column in used)]


def _files_of_columns(specimen: Specimen) -> dict[str, Path | None]:
    """Column -> file of a specimen."""
    files: dict[str, Path | None] = {
        "target": specimen.target,
        "mask": specimen.mask,
        "transform": specimen.transform,
    }
    if not specimen.further:
        return files | {"source": specimen.source, "native_source": specimen.native_source}
    for name, source, native in specimen.each_contrast:
        files |= {f"{SOURCE}{name}": source, f"{NATIVE}{name}": native}
    return files


def read_sources(path: Path) -> dict[str, dict[str, Path]]:
    """The sources of each specimen, as they were scanned, for which no target is needed.

    Args:
        path: A cohort file with the columns specimen and source, or source_NAME for each of several
            contrasts; or a folder that holds one. Of a prepared specimen these are the sources on
            their own grids.

    Returns:
        Specimen -> contrast -> file; the contrast of one source is empty.

    Raises:
        DataError: If a file, column or specimen is missing, listed twice or malformed.
    """
    path = path / "cohort.csv" if path.is_dir() else path
    columns, rows = read_table(path, ("specimen",))
    contrasts = contrast_names(path, columns)
    if not contrasts and "source" not in columns:
        rule = f"the column source is missing, found {', '.join(columns)}"
        raise DataError(path, rule, "Add it to the first row")
    wanted = {name: (f"{SOURCE}{name}", f"{NATIVE}{name}") for name in contrasts}
    wanted = wanted or {"": ("source", "native_source")}
    found: dict[str, dict[str, Path]] = {}
    for row in rows:
        row.require(["specimen"])
        name = row.values["specimen"]
        if not SPECIMEN_NAME.fullmatch(name) or name in found:
            rule = f"specimens must be named by letters, digits, dots, dashes, each once: {name!r}"
            raise DataError(row.where, rule, "Rename it or drop the row")
        given = {each: row.required_file(column) for each, (column, _) in wanted.items()}
        found[name] = {
            each: row.file(native) or given[each] for each, (_, native) in wanted.items()
        }
    if not found:
        raise DataError(path, "the cohort holds no specimen", "Add a row for each specimen")
    return dict(sorted(found.items()))


def _read_table(path: Path) -> list[Specimen]:
    """Read a cohort file of named columns."""
    columns, rows = read_table(path, REQUIRED)
    contrasts = contrast_names(path, columns)
    return [_specimen_of_row(row, contrasts) for row in rows]


def _specimen_of_row(row: Row, contrasts: Sequence[str]) -> Specimen:
    row.require(REQUIRED)
    first, *others = (f"_{name}" for name in contrasts) if contrasts else ("",)
    if contrasts:
        row.require([f"{SOURCE}{name}" for name in contrasts])
    native = row.file(f"native_source{first}")
    transform = row.file("transform")
    if transform and not native:
        rule = f"the field transform needs the field native_source{first}"
        remedy = "Give the source that was registered, or drop the transform"
        raise DataError(row.where, rule, remedy)
    further = tuple(
        Contrast(name, row.required_file(f"source{end}"), row.file(f"native_source{end}"))
        for name, end in zip(contrasts[1:], others, strict=True)
    )
    for each in further:
        if (each.native_source is None) != (native is None):
            rule = f"the fields {NATIVE}{contrasts[0]} and {NATIVE}{each.name} belong together"
            raise DataError(row.where, rule, "Fill in both, or neither")
    return Specimen(
        row.values["specimen"],
        row.required_file("target"),
        row.file(f"source{first}"),
        _split(row),
        row.file("mask"),
        native,
        transform,
        contrasts[0] if contrasts else "",
        further,
    )


def _split(row: Row) -> Split | None:
    given = row.values.get("split") or None
    if given is None:
        return None
    for split in SPLITS:
        if given.lower() == split:
            if given != split:
                logger.warning("%s: the split %s is read as %s", row.where, given, split)
            return split
    rule = f"split must be one of {', '.join(SPLITS)}, got {given}"
    raise DataError(row.where, rule, "Correct it")


def _read_bids(root: Path, source: str | None, target: str | None) -> list[Specimen]:
    subjects = sorted(folder for folder in root.glob("sub-*") if folder.is_dir())
    if not subjects:
        raise DataError(
            root,
            "found neither a cohort.csv nor BIDS subjects (sub-*)",
            "Write a cohort.csv with the columns specimen, source, target",
        )
    if not target:
        raise DataError(
            root,
            "a BIDS folder does not say which images are source and target",
            'Give --source-pattern and --target-pattern, e.g. "ses-7T/anat/*_T2w.nii.gz"',
        )
    for option, pattern in (("source", source), ("target", target)):
        path = Path(pattern or "*")
        if path.is_absolute() or ".." in path.parts or pattern == "":
            rule = f"must be a pattern below each subject's folder, got {pattern!r}"
            remedy = 'Give one such as "ses-7T/anat/*_T2w.nii.gz"'
            raise DataError(f"--{option}-pattern", rule, remedy)
    specimens, left_out = [], {}
    for subject in subjects:
        files, problems = {}, []
        for role, pattern in (("target", target), ("source", source)):
            found = sorted(subject.glob(pattern)) if pattern else []
            if pattern and len(found) != 1:
                problems.append(f"{role} {pattern} matches {len(found)} files")
            files[role] = found[0] if found else None
        if problems:
            left_out[subject.name] = "; ".join(problems)
        else:
            specimens.append(Specimen(subject.name, **files))
    if left_out and not specimens:
        raise DataError(
            root,
            f"no subject is paired: each pattern must match one file, {list_causes(left_out)}",
            "Narrow or correct the patterns",
        )
    if left_out:
        logger.warning(
            "%s: %d of %d subjects are not paired and are left out:%s",
            root,
            len(left_out),
            len(subjects),
            list_causes(left_out),
        )
    return specimens


def _parts(file: Path) -> list[Path]:
    """The files of a volume; all that lie in a DICOM folder, whose headers take long to read."""
    if file.is_dir():
        return [file, *(part for part in file.iterdir() if part.is_file())]
    try:
        return files_of(file)
    except (DataError, OSError, ValueError, KeyError):
        return [file]  # It is refused with its cause when it is read.


def _check(path: Path, specimens: Sequence[Specimen]) -> None:
    """Refuse malformed or repeated names, and a file that two specimens share."""
    owners: dict[Path, str] = {}
    names: set[str] = set()
    for specimen in specimens:
        name = specimen.name
        if not SPECIMEN_NAME.fullmatch(name):
            raise DataError(
                path,
                f"the specimen name {name!r} must be letters, digits, dots, dashes, underscores",
                "Rename it",
            )
        if name in names:
            raise DataError(path, f"the specimen {name} is listed twice", "Keep one row a specimen")
        names.add(name)
        files = specimen.volumes
        # A name may be too long, or a folder forbidden.
        with file_errors(path):
            if specimen.transform and not (specimen.transform / "affine.tfm").is_file():
                rule = f"the transform of {name} does not exist: the folder holds no affine.tfm"
                raise DataError(specimen.transform, rule, "Check its path")
            for file in files:
                if not file.exists():
                    raise DataError(file, f"the file of {name} does not exist", "Check its path")
        parts = [(part.resolve(), file) for file in files for part in _parts(file)]
        if len({part for part, _ in parts}) < len(parts):
            raise DataError(
                specimen.target,
                f"the volumes of {name} must be different files",
                "Give the specimen a file for each",
            )
        for part, file in parts:
            owner = owners.setdefault(part, name)
            if owner != name:
                raise DataError(
                    file,
                    f"{owner} and {name} share this file",
                    "Give each specimen its own files: a shared one leaks between splits",
                )
