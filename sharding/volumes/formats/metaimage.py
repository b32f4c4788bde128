"""MetaImage: MHA, and MHD with a file of voxels beside it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from sharding.io.errors import DataError
from sharding.volumes.formats import itk
from sharding.volumes.formats.format import Stated

LIBRARY = "MetaImageIO"
MATRIX = ("transformmatrix", "rotation", "orientation")
"""Names of the field that says where the axes point."""
INTENSITY = {"elementtointensityfunctionslope": 1.0, "elementtointensityfunctionoffset": 0.0}
"""Fields that the library reads and does not apply, with what changes nothing."""


class MetaImage:
    """MetaImage files. Lengths are in millimetres, the world is left, posterior, superior."""

    name = "MetaImage"
    suffixes = (".mha", ".mhd")

    def files(self, path: Path) -> list[Path]:
        """The file, and that of its voxels if it is a header of its own."""
        fields, _ = _fields(path)
        name = fields["elementdatafile"]
        if name.upper() == "LOCAL":
            return [path]
        return [path, itk.data_file(path, name, ".mha")]

    def open(self, path: Path) -> Stated:
        """Open a file; one without a TransformMatrix has no orientation."""
        *_, voxels = self.files(path)
        fields, end = _fields(path)
        for name, neutral in INTENSITY.items():
            if float(fields.get(name, neutral)) != neutral:
                rule = f"the field {name} must be {neutral:g}, for it is not applied"
                raise DataError(path, rule, "Write intensities instead of stored values")
        packed = fields.get("compresseddata", "false").lower() == "true"
        check = partial(itk.check_unpacks, voxels, "zlib", 0 if voxels != path else end)
        return itk.open_image(
            path,
            LIBRARY,
            any(name in fields for name in MATRIX),
            1.0,
            voxels.stat().st_size,
            "zlib" if packed else None,
            check if packed else _nothing,
            "it has no TransformMatrix",
            "TransformMatrix and ElementSpacing",
        )


def _fields(path: Path) -> tuple[dict[str, str], int]:
    return itk.text_fields(path, ("=",), "elementdatafile")


def _nothing(_size: int) -> None:
    """Raw voxels: the library finds whether they are all there."""
