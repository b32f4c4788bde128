"""FreeSurfer's MGH and MGZ."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader

from sharding.volumes.formats.format import Stated, oriented_header, unoriented_header
from sharding.volumes.formats.nifti import Voxels
from sharding.volumes.formats.packed import open_unpacked, packing_of

if TYPE_CHECKING:
    from sharding.volumes.volume import Volume

HEADER_BYTES = 90
"""From the version to the end of Pxyz_c; the voxels begin later."""
FLAG = slice(28, 30)
"""Where goodRASFlag lies."""


class Mgh:
    """MGH files, and MGZ files, which are the same in gzip. Lengths are in millimetres."""

    name = "MGH"
    suffixes = (".mgz", ".mgh", ".mgh.gz")

    def files(self, path: Path) -> list[Path]:
        """The file."""
        return [path]

    def open(self, path: Path) -> Stated:
        """Open a file; one whose flag goodRASFlag is 0 has no orientation."""
        packing = packing_of(path)
        with open_unpacked(path, packing) as file:
            start = file.read(HEADER_BYTES)
        if len(start) < HEADER_BYTES:
            raise EOFError("it is shorter than a header")
        # nibabel replaces the flag by an orientation of its own.
        oriented = int.from_bytes(start[FLAG], "big", signed=True) > 0
        header = MGHHeader(start)
        affine = np.asarray(header.get_affine(), np.float64)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        stored = np.dtype(header.get_data_dtype()).newbyteorder(">")  # type: ignore[arg-type]
        return Stated(
            shape=tuple(int(side) for side in header.get_data_shape()),
            dtype=stored,
            affine=affine,
            header=oriented_header(affine) if oriented else unoriented_header(spacing),
            read=Voxels(path, packing, stored, header.get_data_offset()).read,
            held=path.stat().st_size,
            packing=packing,
            geometry_fields="header's delta, Mdc and Pxyz_c",
            no_orientation="its goodRASFlag is 0",
        )


def write_mgh(path: Path, volume: Volume) -> None:
    """Write float32 without tags, which hold the commands and paths that made a file."""
    image = nib.MGHImage(volume.data, volume.affine)  # type: ignore[arg-type]
    # Without a time and a name in the gzip: equal volumes give equal bytes.
    with path.open("wb") as file:
        if path.name.endswith(".mgh"):
            image.to_stream(file)
        else:
            with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
                image.to_stream(packed)
