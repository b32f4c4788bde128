"""What `predict` is given: one scan, a folder of scans, a cohort or a BIDS folder; and its outputs.

The outputs of several scans have the names of their inputs:

    scans/brain.nii.gz                          OUT/brain_synthetic.nii.gz
    cohort.csv, specimen mouse-1                OUT/mouse-1_synthetic.nii.gz
    bids/sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz
                                    OUT/sub-01/ses-2/anat/sub-01_ses-2_rec-distsynth_T1w.nii.gz
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sharding.io.errors import DataError
from sharding.volumes.cohort import read_sources
from sharding.volumes.contrasts import check_contrasts
from sharding.volumes.formats.registry import (
    FORMATS,
    is_header,
    is_volume_folder,
    stem,
    stem_of_voxels,
    volume_name,
)

logger = logging.getLogger(__name__)

ENDING = ".nii.gz"
SYNTHETIC, UNCERTAINTY = "synthetic", "uncertainty"
REC, DESC = "rec", "desc"
BEFORE_REC = ("sub", "ses", "sample", "task", "tracksys", "acq", "ce", "trc", "stain")
"""Entities that stand before `rec` in a BIDS name."""
ENTITY = re.compile(r"([A-Za-z0-9]+)-(.+)")
NAMED = 3
"""Files without a known format that are named."""


@dataclass(frozen=True)
class Input:
    """A scan to predict, and where its prediction goes.

    Attributes:
        sources: A file, or a folder that is one volume; of several contrasts one for each, in the
            order of the model.
        out: The prediction.
        uncertainty: The map of its uncertainty.
        name: What the scan is called in messages: its path below the folder, or its specimen.
        bids: Whether it lies in a BIDS folder.
    """

    sources: tuple[Path, ...]
    out: Path
    uncertainty: Path
    name: str
    bids: bool = False

    @property
    def source(self) -> Path:
        """The first contrast, which decides the grid and the units of the prediction."""
        return self.sources[0]

    @property
    def record(self) -> Path:
        """The JSON file beside the prediction."""
        return self.out.with_name(f"{stem(self.out.name)}.json")


def is_single(path: Path) -> bool:
    """Whether a path names one scan: a file that is no table, or a folder that is one volume."""
    if path.is_dir():
        return not (path / "cohort.csv").is_file() and is_volume_folder(path)
    return path.suffix.lower() != ".csv"


def are_one_scan(paths: Sequence[Path]) -> bool:
    """Whether paths name the contrasts of one scan, mostly one, and not many scans.

    Raises:
        DataError: If a folder of scans or a table is among several.
    """
    if len(paths) == 1:
        return is_single(paths[0])
    for path in paths:
        if not is_single(path):
            rule = "several paths must be the contrasts of one scan, and this holds many scans"
            raise DataError(path, rule, "Give the scans of one specimen, or this by itself")
    return True


def single_input(paths: Sequence[Path], out: Path) -> Input:
    """One scan, of one contrast or more, whose output is named."""
    uncertainty = out.with_name(f"{stem(out.name)}_{UNCERTAINTY}{_ending(out)}")
    return Input(tuple(paths), out, uncertainty, str(paths[0]))


def find_inputs(
    path: Path, out: Path, pattern: str | None = None, contrasts: Sequence[str] = ()
) -> list[Input]:
    """Every scan of a folder, a cohort or a BIDS folder, in the order of their names.

    Args:
        path: A cohort.csv or a folder with one; a BIDS folder; or a folder of files, DICOM series
            and OME-Zarr folders.
        out: Folder of the outputs.
        pattern: Glob of the scans: below each subject's folder of a BIDS folder, else below the
            folder.
        contrasts: Those that the model was trained on; none for one source. Only a cohort tells
            which scans are the contrasts of a specimen.

    Raises:
        DataError: If there is no scan, there are other contrasts than those of the model, the
            outputs would lie among the scans, two outputs have one name, or a BIDS folder holds
            several kinds of images and no pattern chooses.
    """
    if path.is_dir() and out.resolve() == path.resolve():
        raise DataError(out, "the scans lie in this folder", "Give another folder")
    if not path.exists():
        raise DataError(path, "the file does not exist", "Check the path")
    if path.is_file() or (path / "cohort.csv").is_file():
        if pattern:
            raise DataError(path, "a cohort names its scans itself", "Leave out --source-pattern")
        found = [
            _by_stem(_in_order(path, files, contrasts), out, name, name)
            for name, files in read_sources(path).items()
        ]
    elif contrasts:
        rule = (
            f"the model was trained on the contrasts {', '.join(contrasts)}, and this is a folder"
        )
        columns = ", ".join(f"source_{name}" for name in contrasts)
        remedy = (
            f"Give a cohort.csv with the columns specimen, {columns}; or the scans of one specimen"
        )
        raise DataError(path, rule, remedy)
    elif any(folder.is_dir() for folder in path.glob("sub-*")):
        found = list(_bids(path, out, pattern))
    else:
        found = list(_folder(path, out, pattern))
    _check_names(found)
    return found


def _folder(path: Path, out: Path, pattern: str | None) -> Iterator[Input]:
    listed = sorted(path.glob(pattern) if pattern else path.iterdir())
    folders = {file for file in listed if is_volume_folder(file)}
    scans, others = [], []
    for file in listed:
        if out.resolve() in (file.resolve(), *file.resolve().parents):
            continue
        if not folders.isdisjoint(file.parents):
            continue
        if file in folders or (file.is_file() and _is_volume(file, listed)):
            scans.append(file)
        elif file.is_file() and not _is_voxels(file, listed):
            others.append(file.name)
    if not scans:
        rule = f"there is no scan in this folder{f' that fits {pattern}' if pattern else ''}"
        raise DataError(path, rule, "Give a folder of volumes, a cohort.csv or a BIDS folder")
    if others:
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        logger.info("%s: left out, no volume: %s%s", path, ", ".join(others[:NAMED]), more)
    for file in scans:
        below = file.relative_to(path)
        yield _by_stem((file,), out / below.parent, volume_name(file), below.as_posix())


def _is_volume(file: Path, listed: Sequence[Path]) -> bool:
    """Whether a file is a volume by its ending, and not the voxels of a header beside it."""
    known = any(file.name.lower().endswith(kind.suffixes) for kind in FORMATS)
    return known and not _is_voxels(file, listed)


def _is_voxels(file: Path, listed: Sequence[Path]) -> bool:
    """Whether a file holds the voxels of a header that is listed too."""
    own = stem_of_voxels(file)
    if own == file.name:
        return False
    return any(is_header(other) and stem(other.name) == own for other in listed)


def _bids(path: Path, out: Path, pattern: str | None) -> Iterator[Input]:
    subjects = sorted(folder for folder in path.glob("sub-*") if folder.is_dir())
    files: list[Path] = []
    for subject in subjects:
        if pattern:
            files += sorted(subject.glob(pattern))
        else:
            anatomical = (*subject.glob("anat/*"), *subject.glob("ses-*/anat/*"))
            files += sorted(file for file in anatomical if file.name.endswith((ENDING, ".nii")))
    if not files:
        fits = f"that fits {pattern}" if pattern else "in an anat folder"
        raise DataError(path, f"no subject has a scan {fits}", "Correct --source-pattern")
    kinds = sorted({stem(file.name).rpartition("_")[2] for file in files})
    if len(kinds) > 1 and not pattern:
        raise DataError(
            path,
            f"the subjects have several kinds of images: {', '.join(kinds)}",
            f'Choose one, such as --source-pattern "**/*_{kinds[0]}.nii.gz"',
        )
    for file in files:
        below = file.relative_to(path)
        folder, name = out / below.parent, stem(file.name)
        yield Input(
            (file,),
            folder / f"{bids_name(name)}{ENDING}",
            folder / f"{bids_name(name, UNCERTAINTY)}{ENDING}",
            below.as_posix(),
            bids=True,
        )


def bids_name(name: str, desc: str = "") -> str:
    """A BIDS name with `rec-distsynth`, at the place that BIDS gives it, and `desc` before the end.

    A reconstruction that the scan has already stays in front: rec-norm gives rec-normdistsynth.
    """
    *entities, suffix = name.split("_")
    made = "distsynth"
    kept = []
    for entity in entities:
        found = ENTITY.fullmatch(entity)
        if found and found[1] == REC:
            made = f"{found[2]}distsynth"
        elif not (desc and found and found[1] == DESC):
            kept.append(entity)
    place = 0
    for number, entity in enumerate(kept, start=1):
        found = ENTITY.fullmatch(entity)
        if found and found[1] in BEFORE_REC:
            place = number
    kept.insert(place, f"{REC}-{made}")
    return "_".join([*kept, *([f"{DESC}-{desc}"] if desc else []), suffix])


def _in_order(path: Path, files: Mapping[str, Path], contrasts: Sequence[str]) -> tuple[Path, ...]:
    """The contrasts of a specimen in the order of the model."""
    names = [name for name in files if name]
    check_contrasts(path, names, contrasts)
    return tuple(files[name] for name in contrasts or ("",))


def _by_stem(sources: tuple[Path, ...], folder: Path, own: str, name: str) -> Input:
    out = folder / f"{own}_{SYNTHETIC}{ENDING}"
    return Input(sources, out, folder / f"{own}_{UNCERTAINTY}{ENDING}", name)


def _ending(out: Path) -> str:
    """The ending of an output; a map beside a DICOM series is a file."""
    return out.name[len(stem(out.name)) :] or ENDING


def _check_names(found: Sequence[Input]) -> None:
    owners: dict[Path, str] = {}
    for each in found:
        owner = owners.setdefault(each.out, each.name)
        if owner != each.name:
            rule = f"{owner} and {each.name} would both be written here"
            raise DataError(each.out, rule, "Rename one of the two")
