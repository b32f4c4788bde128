"""DICOM: a folder of one series, or one of its files; images of one frame or of many.

pydicom is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sharding.volumes.formats.format import Shape, Stated, oriented_header
from sharding.volumes.slabs import Empty

if TYPE_CHECKING:
    from sharding.volumes.formats.dicom_headers import Slice

MAGIC, MAGIC_OFFSET = b"DICM", 128


class Dicom:
    """DICOM series. Lengths are in millimetres, the world is left, posterior, superior."""

    name = "DICOM"
    suffixes = (".dcm", ".ima")

    def has(self, path: Path) -> bool:
        """Whether a path is a folder or, whatever its name, a DICOM file."""
        return path.is_dir() or (path.is_file() and is_dicom(path))

    def files(self, path: Path) -> list[Path]:
        """The files of the series, by name."""
        from sharding.volumes.formats.dicom_series import read_series

        return sorted({one.path for one in read_series(path)})

    def open(self, path: Path) -> Stated:
        """Read the headers of the series."""
        from sharding.volumes.formats.dicom_series import affine_of, read_series

        slices = read_series(path, say=True)
        affine = affine_of(slices)

        def read(shape: Shape, empty: Empty) -> NDArray[np.float32]:
            return _read(slices, shape, empty)

        return Stated(
            shape=(*slices[0].size, len(slices)),
            dtype=max((one.dtype for one in slices), key=lambda dtype: dtype.itemsize),
            affine=affine,
            header=oriented_header(affine),
            read=read,
            held=sum(file.stat().st_size for file in {one.path for one in slices}),
            packing="jpeg" if any(one.packed for one in slices) else None,
            geometry_fields="PixelSpacing, ImageOrientationPatient and ImagePositionPatient",
        )


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do."""
    with path.open("rb") as file:
        return file.read(MAGIC_OFFSET + len(MAGIC))[MAGIC_OFFSET:] == MAGIC


def _read(slices: Sequence[Slice], shape: Shape, empty: Empty) -> NDArray[np.float32]:
    """Intensities by each slice's own slope and intercept; each file is read once."""
    from sharding.volumes.formats.dicom_pixels import read_frames

    data = empty(shape, np.float32, "F")
    places = {(one.path, one.frame): number for number, one in enumerate(slices)}
    for file in dict.fromkeys(one.path for one in slices):
        for frame, stored in enumerate(read_frames(file)):
            number = places[file, frame]
            one = slices[number]
            data[:, :, number] = stored.T * one.slope + one.intercept
    return data
