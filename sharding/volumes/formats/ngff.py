"""What the metadata of OME-Zarr (OME-NGFF 0.4 and 0.5) say of an image: its array, axes and place.

An array's index along an axis times the scale, plus the translation, is the place along this axis.
Where the axis points in the body is said by the field `orientation` of RFC-4, and by nothing else:
the specifications have no default, and the programs that assume one differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sharding.io.errors import DataError, one_line

if TYPE_CHECKING:
    from sharding.volumes.volume import Volume

DAMAGED = (ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError)
"""What metadata raise that lack what they must hold."""
ROOT, ROOT_V2 = "zarr.json", ".zattrs"
"""Files of a folder's attributes: of zarr 3, with NGFF 0.5, and of zarr 2, with NGFF 0.4."""
GROUP_V2 = ".zgroup"
SPACE = ("x", "y", "z")
MM = {
    "meter": 1000.0,
    "centimeter": 10.0,
    "millimeter": 1.0,
    "micrometer": 1e-3,
    "nanometer": 1e-6,
}
"""Units of length by the names that the specifications recommend, in millimetres."""
UNITS_MM = (
    MM
    | {name.replace("meter", "metre"): size for name, size in MM.items()}
    | {"m": 1000.0, "cm": 10.0, "mm": 1.0, "um": 1e-3, "\u00b5m": 1e-3, "nm": 1e-6}
    | {"micron": 1e-3}
)
DIRECTIONS = {
    "left-to-right": (0, 1),
    "right-to-left": (0, -1),
    "posterior-to-anterior": (1, 1),
    "anterior-to-posterior": (1, -1),
    "inferior-to-superior": (2, 1),
    "superior-to-inferior": (2, -1),
}
"""Orientation of an axis to the axis of this program's world (right, anterior, superior), and
whether both point the same way. Dorsal, rostral and others depend on the animal: not here."""
ALONG = 1e-4
"""Most that a component of an axis' unit vector may differ from 0 or 1 in what is written."""


@dataclass(frozen=True, eq=False)
class Image:
    """The highest resolution of the first multiscale of a folder.

    Attributes:
        level: The array's folder below that of the image.
        axes: Names in the order of the array.
        affine: Index (x, y, z) to world millimetres in NIfTI's axes, shape (4, 4); if the axes have
            no orientation, its voxel sizes hold and its directions say nothing.
        no_orientation: Why it has no orientation; "" if it has.
        has_unit: Whether an axis states a unit of length; otherwise millimetres are assumed, as
            they are for other formats.
    """

    level: str
    axes: tuple[str, ...]
    affine: NDArray[np.float64]
    no_orientation: str
    has_unit: bool


def read_image(folder: Path) -> Image:
    """Read the metadata of a folder.

    Raises:
        DataError: If they are damaged, hold no image of the versions that are read, name an axis
            twice or none of space, or give a unit or a transformation that is not read.
    """
    file, attributes = _attributes(folder)
    try:
        return _image(folder, file, attributes)
    except DataError:
        raise
    except DAMAGED as error:
        rule = f"its metadata lack what OME-Zarr needs ({type(error).__name__}: {one_line(error)})"
        raise DataError(file, rule, "Copy or export the folder again") from error


def _image(folder: Path, file: Path, attributes: Mapping[str, Any]) -> Image:
    if "multiscales" not in attributes:
        rule = "the folder holds no image of OME-Zarr (no multiscales)"
        inside = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        named = f"; it holds {', '.join(inside[:5])}" if inside else ""
        raise DataError(file, rule + named, "Name the folder of one image")
    image = attributes["multiscales"][0]
    version = str(attributes.get("version", image.get("version", "0.4")))
    if version not in ("0.4", "0.5"):
        rule = f"the version of OME-NGFF must be 0.4 or 0.5, found {version}"
        raise DataError(file, rule, "Convert it")
    axes = image["axes"]
    names = tuple(str(axis["name"]) for axis in axes)
    spatial = [axis["name"] for axis in axes if axis.get("type", "space") == "space"]
    if len({*names}) < len(names) or {*SPACE} - {*spatial} or {*spatial} & {*names} - {*SPACE}:
        rule = f"must have the axes of space x, y and z, found the axes {', '.join(names)}"
        raise DataError(file, rule, "Export one 3D image")
    level = image["datasets"][0]
    where = PurePosixPath(level["path"])
    if where.is_absolute() or ".." in where.parts:
        rule = f"the array must lie in the folder of the image, found {where}"
        raise DataError(file, rule, "Copy or export the folder again")
    transforms = [
        *level["coordinateTransformations"],
        *image.get("coordinateTransformations", []),
    ]
    scale, translation = _placed(file, transforms, len(axes))
    by_name = {
        name: (axis, scale[number], translation[number])
        for number, (name, axis) in enumerate(zip(names, axes, strict=True))
    }
    space = [by_name[name] for name in SPACE]
    units = [_unit_mm(file, axis) for axis, *_ in space]
    found = [_orientation(axis) for axis, *_ in space]
    ends = [unit * np.array(numbers) for unit, (_, *numbers) in zip(units, space, strict=True)]
    return Image(
        str(where),
        names,
        _affine(found, ends),
        _why_unoriented(found),
        any(axis.get("unit") for axis, *_ in space),
    )


def attributes_of(volume: Volume) -> dict[str, Any]:
    """The attributes of a folder that holds a volume as its only array, `0`, of axes (z, y, x).

    Raises:
        ValueError: If its axes are not those of the world, in any order and direction.
    """
    spacing = np.array(volume.spacing_mm)
    directions = volume.affine[:3, :3] / spacing
    rows = np.abs(directions).argmax(axis=0)
    signs = np.sign(directions[rows, range(3)])
    along = np.zeros((3, 3))
    along[rows, range(3)] = signs
    oblique = len({*rows}) < 3 or np.abs(directions - along).max() > ALONG
    if oblique and volume.has_orientation:
        raise ValueError("the axes are oblique")
    names = {place: name for name, place in DIRECTIONS.items()}
    axes: list[dict[str, Any]] = [
        {"name": name, "type": "space", "unit": "millimeter"} for name in SPACE
    ]
    transforms: list[dict[str, Any]] = [{"type": "scale", "scale": spacing[::-1].tolist()}]
    if volume.has_orientation:
        for axis, row, sign in zip(axes, rows, signs, strict=True):
            value = names[int(row), int(sign)]
            axis["orientation"] = {"type": "anatomical", "value": value}
        shift = signs * volume.affine[rows, 3]
        transforms.append({"type": "translation", "translation": shift[::-1].tolist()})
    image = {
        "axes": axes[::-1],
        "datasets": [{"path": "0", "coordinateTransformations": transforms}],
    }
    return {"ome": {"version": "0.5", "multiscales": [image]}}


def _attributes(folder: Path) -> tuple[Path, Mapping[str, Any]]:
    """The file of the attributes, and those of OME."""
    file = folder / ROOT
    if not file.is_file():
        file = folder / ROOT_V2
        if not folder.is_dir():
            rule = "it is a file, and OME-Zarr is a folder"
            raise DataError(folder, rule, "Copy or export it again")
        if not file.is_file():
            rule = f"the folder holds neither {ROOT} nor {ROOT_V2}"
            raise DataError(folder, rule, "Name the folder of an image, or copy it again")
    try:
        content = json.loads(file.read_bytes())
        if file.name == ROOT:
            content = content.get("attributes", {}).get("ome", {})
        return file, {**content}
    except DAMAGED as error:
        rule = f"does not hold the attributes of a folder as JSON ({one_line(error)})"
        raise DataError(file, rule, "Copy or export the folder again") from error


def _placed(
    file: Path, transforms: Iterable[Mapping[str, Any]], count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scale and translation along each axis, of all transformations one after the other."""
    scale, shift = np.ones(count), np.zeros(count)
    scaled = False
    for one in transforms:
        kind = one["type"]
        if kind == "identity":
            continue
        if kind not in ("scale", "translation") or kind not in one:
            rule = f"the coordinateTransformations must be scale and translation, found {kind}"
            raise DataError(file, rule, "Resample the image, or convert it to .nii.gz")
        numbers = np.array(one[kind], np.float64)
        if numbers.shape != (count,):
            raise ValueError(f"a {kind} of {numbers.size} numbers for {count} axes")
        if kind == "scale":
            scale, shift, scaled = scale * numbers, shift * numbers, True
        else:
            shift = shift + numbers
    if not scaled:
        rule = "the coordinateTransformations have no scale, so the voxel size is not known"
        raise DataError(file, rule, "Export the folder again")
    return scale, shift


def _unit_mm(file: Path, axis: Mapping[str, Any]) -> float:
    unit = axis.get("unit") or "millimeter"
    if unit not in UNITS_MM:
        rule = f"the unit of the axis {axis['name']} must be one of {', '.join(MM)}, found {unit}"
        raise DataError(file, rule, "Correct it")
    return UNITS_MM[unit]


def _orientation(axis: Mapping[str, Any]) -> str:
    """What an axis says of where it points; "" if it says nothing."""
    stated = axis.get("orientation", axis.get("anatomicalOrientation", ""))
    return str(stated["value"] if isinstance(stated, Mapping) else stated)


def _why_unoriented(found: Sequence[str]) -> str:
    if not any(found):
        return "its axes have no orientation (RFC-4)"
    if {DIRECTIONS[name][0] for name in found if name in DIRECTIONS} == {0, 1, 2}:
        return ""
    stated = ", ".join(name or "none" for name in found)
    return f"the orientations of its axes x, y and z are {stated}"


def _affine(found: Sequence[str], ends: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The affine of axes with these orientations, and scales and translations in mm."""
    affine = np.eye(4)
    if _why_unoriented(found):
        affine[range(3), range(3)] = [scale for scale, _ in ends]
        return affine
    affine[:3, :3] = 0
    for column, (name, (scale, translation)) in enumerate(zip(found, ends, strict=True)):
        row, sign = DIRECTIONS[name]
        affine[row, column], affine[row, 3] = sign * scale, sign * translation
    return affine
