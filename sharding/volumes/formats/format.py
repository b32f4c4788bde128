"""What a file format must do: say what a file states of its volume, then read its voxels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from sharding.volumes.formats.packed import Packing
from sharding.volumes.slabs import Empty

if TYPE_CHECKING:
    from sharding.volumes.volume import Volume

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Stated:
    """What a file states of its volume, before a voxel is read.

    Attributes:
        shape: Length of every dimension, also of more or fewer than three.
        dtype: Type of the stored voxels.
        affine: Voxel index to world in NIfTI's axes (right, anterior, superior), shape (4, 4), in
            the header's unit of length.
        header: States the unit of length and, by its qform and sform codes, whether the file says
            where its axes point.
        read: Reads the voxels of a volume of this shape, scaled to intensities, into an array
            that the given function makes. It may raise UNREADABLE.
        held: Bytes of all files of the volume.
        packing: How the voxels are packed.
        geometry_fields: The fields that give the affine, for messages.
        no_orientation: The rule that a file with both codes 0 breaks, for messages.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    affine: NDArray[np.float64]
    header: nib.Nifti1Header
    read: Callable[[Shape, Empty], NDArray[np.float32]]
    held: int
    packing: Packing | None = None
    geometry_fields: str = "header's geometry"
    no_orientation: str = "the file does not say where its axes point"


class Format(Protocol):
    """A file format that can be read."""

    @property
    def name(self) -> str:
        """As in "not a readable NIfTI file"."""
        ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Endings of its files, in lower case."""
        ...

    def files(self, path: Path) -> list[Path]:
        """All files of the volume that a path names, in a fixed order.

        Raises:
            DataError: If one is missing.
        """
        ...

    def open(self, path: Path) -> Stated:
        """What a file states of its volume. It may raise UNREADABLE or DataError."""
        ...


Write = Callable[[Path, "Volume"], None]
"""Writes a volume to a temporary file that has the ending of the format, or into an empty folder:
its geometry and voxels, and no text of the file that the volume was read from."""


Check = Callable[[Path, "Volume"], None]
"""Raises DataError if a volume cannot be written to a path; only its grid has to be set."""


def oriented_header(affine: NDArray[np.float64]) -> nib.Nifti1Header:
    """A header in millimetres whose codes say that the affine is that of a scanner."""
    header = unoriented_header(np.linalg.norm(affine[:3, :3], axis=0))
    header.set_sform(affine, 1)
    axes = affine[:3, :3] / np.where(voxel_sizes(affine) > 0, voxel_sizes(affine), 1)
    if np.allclose(axes.T @ axes, np.eye(3), atol=1e-4):
        # A qform cannot state a sheared grid.
        header.set_qform(affine, 1)
    return header


def unoriented_header(spacing_mm: NDArray[np.float64]) -> nib.Nifti1Header:
    """A header in millimetres whose codes say that the axes' directions are not known."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_xyzt_units("mm")
    header["pixdim"][1:4] = spacing_mm
    return header
