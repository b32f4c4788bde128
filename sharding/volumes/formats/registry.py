"""The file formats: which one a path has, which files make up its volume, what can be written."""

from __future__ import annotations

from pathlib import Path

from sharding.io.errors import DataError
from sharding.volumes.formats.dicom import Dicom, is_dicom
from sharding.volumes.formats.format import Check, Format, Write
from sharding.volumes.formats.metaimage import MetaImage
from sharding.volumes.formats.mgh import Mgh, write_mgh
from sharding.volumes.formats.nifti import Nifti, write_nifti
from sharding.volumes.formats.nrrd import Nrrd, write_nrrd
from sharding.volumes.formats.ome_zarr import OmeZarr, check_ome_zarr, write_ome_zarr

DICOM, OME_ZARR = Dicom(), OmeZarr()
FORMATS: tuple[Format, ...] = (Nifti(), Mgh(), Nrrd(), MetaImage(), DICOM, OME_ZARR)
"""Every format that can be read. A new one is added here."""
WRITERS: dict[str, Write] = {
    ".nii.gz": write_nifti,
    ".nii": write_nifti,
    ".mgz": write_mgh,
    ".mgh": write_mgh,
    ".nrrd": write_nrrd,
    ".ome.zarr": write_ome_zarr,
}
"""Ending of an output to what writes it."""
FOLDERS = {".ome.zarr": "zarr.json"}
"""Endings of outputs that are folders, to the file that each of them holds."""
CHECKS: dict[str, Check] = {".ome.zarr": check_ome_zarr}
"""Ending of an output to what refuses a volume that its format cannot hold."""
KEEPS_NO_ORIENTATION = (".nii.gz", ".nii", ".ome.zarr")
"""Outputs that can say that the directions of their axes are not known."""
HEADERS = (".hdr", ".hdr.gz", ".nhdr", ".mhd")
"""Endings of files that hold no voxels."""
VOXELS = (".img", ".img.gz", ".raw", ".zraw", ".raw.gz", ".bin", ".dat")
"""Endings of the files of voxels beside them."""
PACKED = (".zst", ".xz", ".zip", ".gz", ".bz2", ".7z")


def format_of(path: Path) -> Format:
    """The format of a volume by its ending; a file without a known one may be DICOM, and so may a
    folder that is no OME-Zarr.

    Raises:
        DataError: If it is not known.
    """
    if OME_ZARR.has(path):
        return OME_ZARR
    for kind in FORMATS:
        if not path.is_dir() and path.name.lower().endswith(kind.suffixes):
            return kind
    if DICOM.has(path):
        return DICOM
    known = ", ".join(suffix for kind in FORMATS for suffix in kind.suffixes)
    rule = f"must be a DICOM folder or a file whose name ends in {known}, found {path.name}"
    packed = path.name.lower().endswith(PACKED)
    raise DataError(path, rule, "Unpack it" if packed else "Convert it to .nii.gz")


def files_of(path: Path) -> list[Path]:
    """All files of the volume that a path names, in a fixed order.

    Raises:
        DataError: If one is missing, or the format is not known.
    """
    if not path.exists():
        raise DataError(path, "the file does not exist", "Check the path")
    return format_of(path).files(path)


def stem(name: str) -> str:
    """The name of a file without the ending of its format, if it has one."""
    endings = (suffix for kind in FORMATS for suffix in kind.suffixes)
    known = [ending for ending in endings if name.lower().endswith(ending)]
    return name[: -len(max(known, key=len))] if known else name


def is_dicom_volume(path: Path) -> bool:
    """Whether a volume is a DICOM series."""
    return format_of(path) is DICOM


def is_header(path: Path) -> bool:
    """Whether a file is the header of a volume whose voxels lie in a file beside it."""
    return path.name.lower().endswith(HEADERS) and not path.is_dir()


def stem_of_voxels(path: Path) -> str:
    """The name of a file of voxels without its ending; of any other file its whole name."""
    endings = [ending for ending in VOXELS if path.name.lower().endswith(ending)]
    return path.name[: -len(max(endings, key=len))] if endings else path.name


def is_volume_folder(path: Path) -> bool:
    """Whether a path is a folder that is one volume: OME-Zarr, or with a DICOM file in it."""
    return path.is_dir() and (
        OME_ZARR.has(path) or any(file.is_file() and is_dicom(file) for file in path.iterdir())
    )


def volume_name(path: Path) -> str:
    """The name of a volume without the ending of its format; that of a DICOM folder as it is."""
    return path.name if path.is_dir() and not OME_ZARR.has(path) else stem(path.name)


def output_suffix(path: Path) -> str:
    """The ending of an output, which decides its format.

    Raises:
        DataError: If nothing is written with this ending.
    """
    for suffix in WRITERS:
        if path.name.lower().endswith(suffix):
            return suffix
    rule = f"the output must end in {', '.join(WRITERS)}"
    raise DataError(path, rule, "Rename it")
