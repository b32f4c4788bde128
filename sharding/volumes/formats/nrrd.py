"""NRRD: single files and headers with a file of voxels beside them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sharding.io.errors import DataError
from sharding.volumes.formats import itk
from sharding.volumes.formats.format import Stated
from sharding.volumes.formats.packed import Packing
from sharding.volumes.header import UNITS_MM

if TYPE_CHECKING:
    from sharding.volumes.volume import Volume

LIBRARY = "NrrdImageIO"
WORLDS = ("right-anterior-superior", "left-anterior-superior", "left-posterior-superior")
"""Values of the field `space` whose axes have names of anatomy, and that ITK converts."""
SHORT = {"ras": WORLDS[0], "las": WORLDS[1], "lps": WORLDS[2]}
PACKINGS: dict[str, Packing | None] = {
    "raw": None,
    "gzip": "gzip",
    "gz": "gzip",
    "bzip2": "bzip2",
    "bz2": "bzip2",
}
UNITS = {"mm": "mm", "millimeter": "mm", "millimeters": "mm", "millimetre": "mm"} | {
    "um": "micron",
    "\u00b5m": "micron",
    "micron": "micron",
    "microns": "micron",
    "micrometer": "micron",
    "m": "meter",
    "meter": "meter",
}
"""Units of length that `space units` may state, by NIfTI's names."""


class Nrrd:
    """NRRD files."""

    name = "NRRD"
    suffixes = (".nrrd", ".nhdr")

    def files(self, path: Path) -> list[Path]:
        """The file, and that of its voxels if it is a header of its own."""
        fields, _ = _fields(path)
        name = fields.get("data file", fields.get("datafile"))
        if name is None:
            return [path]
        return [path, itk.data_file(path, name, ".nrrd")]

    def open(self, path: Path) -> Stated:
        """Open a file; one without a named space has no orientation."""
        *_, voxels = self.files(path)
        fields, end = _fields(path)
        encoding = fields.get("encoding", "raw").lower()
        if encoding not in PACKINGS:
            rule = f"the encoding must be one of {', '.join(PACKINGS)}, found {encoding}"
            raise DataError(path, rule, "Write it again with the encoding gzip")
        packing = PACKINGS[encoding]
        skipped = [fields.get(name, "0") for name in ("line skip", "byte skip")]
        if packing and any(skip != "0" for skip in skipped):
            rule = "packed voxels must begin where the header ends, found a line skip or byte skip"
            raise DataError(path, rule, "Write it again without one")
        space = fields.get("space", "").lower()
        space = SHORT.get(space, space)
        oriented = space in WORLDS and "space directions" in fields
        offset = 0 if voxels != path else end
        return itk.open_image(
            path,
            LIBRARY,
            oriented,
            _unit_mm(path, fields),
            voxels.stat().st_size,
            packing,
            partial(itk.check_unpacks, voxels, packing, offset) if packing else _nothing,
            f"its space must be one of {', '.join(WORLDS)} with space directions, found "
            f"{space or 'none'}",
            "space directions",
        )


def write_nrrd(path: Path, volume: Volume) -> None:
    """Write float32 in gzip, in the world left, posterior, superior."""
    itk.write_image(path, volume, LIBRARY)


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """The header's fields without the pairs of key and value (:=), and where it ends."""
    with path.open("rb") as file:
        if not file.read(5).startswith(b"NRRD0"):
            raise ValueError("it does not begin with NRRD0")
    fields, end = itk.text_fields(path, (":=", ": ", ":"), "")
    return fields, end


def _unit_mm(path: Path, fields: dict[str, str]) -> float:
    """The file's unit of length in millimetres; one that is not stated is a millimetre."""
    stated = fields.get("space units", "").replace('"', " ").split()
    units = {UNITS.get(unit.lower(), unit) for unit in stated if unit not in ("", "none", "???")}
    if not units:
        return 1.0
    if len(units) > 1 or not units <= set(UNITS_MM):
        rule = f"the space units must be one unit of length, found {', '.join(sorted(units))}"
        raise DataError(path, rule, 'Write the header again in "mm"')
    return UNITS_MM[units.pop()]


def _nothing(_size: int) -> None:
    """Raw voxels: the library finds whether they are all there."""
