"""NIfTI-1 and NIfTI-2: single files, packed or not, and pairs of a header and an image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import FileBasedImage
from numpy.typing import NDArray

from sharding.io.errors import DataError
from sharding.volumes.formats.format import Shape, Stated
from sharding.volumes.formats.packed import Packing, open_unpacked, packing_of
from sharding.volumes.header import codes_of
from sharding.volumes.slabs import Empty, slabs

if TYPE_CHECKING:
    from sharding.volumes.volume import Volume

FREE_TEXT_FIELDS = ("descrip", "aux_file", "db_name", "data_type", "intent_name")
"""Header fields that scanners fill with names, dates and hosts; outputs leave them empty."""
PAIRS = {".hdr": ".img", ".hdr.gz": ".img.gz"}
"""Ending of a pair's header to that of its image."""
MOST_TRAILING_BYTES = 2**20
"""Most bytes that may follow the last voxel of a file."""


class Nifti:
    """NIfTI files."""

    name = "NIfTI"
    suffixes = (".nii.gz", ".nii.bz2", ".nii.zst", ".nii", *PAIRS, *PAIRS.values())

    def files(self, path: Path) -> list[Path]:
        """The file, or the header and the image of a pair, whichever of the two is named."""
        for header, image in PAIRS.items():
            for suffix in (header, image):
                if path.name.lower().endswith(suffix):
                    return _pair(path, suffix, header, image)
        return [path]

    def open(self, path: Path) -> Stated:
        """Open a file, which may name either file of a pair."""
        files = self.files(path)
        image = _load(path)
        if not isinstance(image, nib.Nifti1Pair):
            found = type(image).__name__
            rule = f"must be a NIfTI file, found {found}"
            if found.endswith(("AnalyzeImage", "Spm99AnalyzeImage", "Spm2AnalyzeImage")):
                rule += ", which does not say where its axes point"
            raise DataError(path, rule, "Convert it to .nii.gz from the scanner's export")
        proxy = image.dataobj
        assert isinstance(proxy, ArrayProxy)
        header = image.header
        assert isinstance(header, nib.Nifti1Header)
        # The first bytes of an image on its own are voxels.
        packing = None if files[-1].name.lower().endswith(".img") else packing_of(files[-1])
        voxels = Voxels(files[-1], packing, proxy.dtype, proxy.offset, proxy.slope, proxy.inter)

        return Stated(
            shape=tuple(int(side) for side in image.shape),
            dtype=np.dtype(image.get_data_dtype()),
            affine=np.asarray(image.affine, np.float64),
            header=header,
            read=voxels.read,
            held=files[-1].stat().st_size,
            packing=packing,
            geometry_fields="header's sform and qform",
            no_orientation="its qform and sform codes are both 0",
        )


def write_nifti(path: Path, volume: Volume) -> None:
    """Write float32, or integers as they are, without any free text.

    qform and sform codes are those of the header.
    """
    header = volume.header
    image = nib.Nifti1Image(volume.data, volume.affine, header)
    if header is not None and codes_of(image.header) != codes_of(header):
        # nibabel gives another affine codes of its own.
        qform, sform = codes_of(header)
        image.set_sform(volume.affine, sform)
        image.set_qform(volume.affine, qform)
    image.set_data_dtype(volume.data.dtype if volume.data.dtype.kind in "iu" else np.float32)
    image.header.set_slope_inter(1.0, 0.0)
    for field in FREE_TEXT_FIELDS:
        image.header[field] = b""
    # Extensions may hold whole DICOM headers.
    image.header.extensions.clear()
    image.header["cal_min"] = image.header["cal_max"] = 0
    nib.save(image, path)


@dataclass(frozen=True)
class Voxels:
    """Where the voxels of a file lie, and how they are stored.

    Attributes:
        path: The file.
        packing: How it is packed.
        dtype: Type of the stored voxels.
        offset: Byte of the first one, unpacked.
        slope: Intensity of a stored 1, less that of a 0.
        intercept: Intensity of a stored 0.
    """

    path: Path
    packing: Packing | None
    dtype: np.dtype
    offset: int
    slope: float = 1.0
    intercept: float = 0.0

    def read(self, shape: Shape, empty: Empty) -> NDArray[np.float32]:
        """Intensities, read once from the first voxel to the end of the file.

        nibabel stops at the last voxel, before the checksum of a compressed file.
        """
        plane = shape[0] * shape[1] * self.dtype.itemsize
        data = empty(shape, np.float32, "F")
        with open_unpacked(self.path, self.packing) as file:
            for slab in slabs(shape):
                low, high = slab[2].start, slab[2].stop
                part = ((*shape[:2], high - low), self.dtype, self.offset + low * plane)
                scaled = ArrayProxy(file, (*part, self.slope, self.intercept), mmap=False)
                data[slab] = np.asarray(scaled, dtype=np.float32)
            trailing = 0
            while rest := file.read(MOST_TRAILING_BYTES):
                trailing += len(rest)
                if trailing > MOST_TRAILING_BYTES:
                    raise ValueError("the file holds more than its header says")
        return data


def _load(path: Path) -> FileBasedImage:
    """Open by nibabel, which may not know how to unpack Zstandard."""
    if packing_of(path) != "zstd":
        return nib.load(path)
    with open_unpacked(path, "zstd") as file:
        first = file.read(4)
        file.seek(0)
        second_version = (540).to_bytes(4, "little"), (540).to_bytes(4, "big")
        kind = nib.Nifti2Image if first in second_version else nib.Nifti1Image
        return kind.from_stream(file)


def _pair(path: Path, suffix: str, header: str, image: str) -> list[Path]:
    """The header and the image; in another case if the named one is."""
    stem, given = path.name[: -len(suffix)], path.name[-len(suffix) :]
    found = []
    for ending in (header, image):
        name = stem + (ending.upper() if given.isupper() else ending)
        file = path if ending == suffix else path.with_name(name)
        if not file.is_file():
            raise DataError(file, f"the other file of the pair {path.name} is missing", "Copy it")
        found.append(file)
    return found
