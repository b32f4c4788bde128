"""Maps from one volume's space to another's: a smooth warp, then an affine map."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import ndimage

from sharding.io.atomic import atomic_path, atomic_write
from sharding.io.errors import DataError
from sharding.volumes.header import RAS_TO_LPS
from sharding.volumes.resample import FWHM_TO_SIGMA, SPLINE_PAD, blurred, spline_coefficients
from sharding.volumes.slabs import Empty, in_memory
from sharding.volumes.volume import UNREADABLE, Volume, check_claimed_size

AFFINE_FILE = "affine.tfm"
WARP_FILE = "warp.nii.gz"

READ_BYTES = 2**24
"""Bytes of a file that are unpacked at a time where only their checksum counts."""
SLAB_POINTS = 2**20
"""Voxels mapped at a time; bounds the memory that coordinates take."""
INVERSE_STEPS = (1.0, 0.5, 0.25, 0.1)
"""Step lengths of the inversion, shorter ones for points where the longer ones do not converge."""
INVERSE_ITERATIONS = 60
INVERSE_TOLERANCE = 1e-4
"""The inversion's accuracy, as a share of the field's smallest step."""
# The names that ITK and ANTs give to a transform of a matrix, a centre and a shift.
AFFINE_KINDS = tuple(
    f"{kind}_{precision}_3_3"
    for kind in ("AffineTransform", "MatrixOffsetTransformBase")
    for precision in ("double", "float")
)
NIFTI_INTENT_VECTOR = 1007
ORTHOGONAL = 5e-3
"""Largest cosine of the angle between axes that count as orthogonal: headers of fine voxels come
close to it when they are rounded to four decimals."""


@dataclass(frozen=True, eq=False)
class Transform:
    """A map from points p of the target's space to the source's: affine @ (p + u(p)).

    Attributes:
        affine: World millimetres to world millimetres, shape (4, 4).
        field: Displacement u in millimetres on a grid over the target's field of view, float32,
            shape (x, y, z, 3); linear between the nodes, the nearest border value beyond them.
        field_affine: Grid index of the field to world millimetres, shape (4, 4).

    Raises:
        ValueError: If a matrix is singular or not finite, or the field has the wrong shape.
    """

    affine: NDArray[np.float64]
    field: NDArray[np.float32] | None = None
    field_affine: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        _check_affine("affine", self.affine)
        if (self.field is None) != (self.field_affine is None):
            raise ValueError("field and field_affine must both be given or both be left out")
        if self.field is None or self.field_affine is None:
            return
        _check_affine("field_affine", self.field_affine)
        if self.field.ndim != 4 or self.field.shape[3] != 3 or min(self.field.shape) < 2:
            raise ValueError(
                f"field must have shape (x, y, z, 3), two nodes a side, got {self.field.shape}"
            )
        if not np.isfinite(self.field).all():
            raise ValueError("field must be finite")

    @classmethod
    def identity(cls) -> Transform:
        """The map that leaves every point where it is."""
        return cls(np.eye(4))

    def points(self, points: NDArray) -> NDArray[np.float64]:
        """Target world to source world, millimetres, shape (n, 3)."""
        points = np.asarray(points, np.float64)
        return apply_affine(self.affine, points + self._displacement(points))

    def inverse_points(self, points: NDArray) -> NDArray[np.float64]:
        """Source world to target world, millimetres, shape (n, 3).

        Raises:
            ValueError: If the inversion does not converge: the field folds space over itself.
        """
        before = apply_affine(np.linalg.inv(self.affine), np.asarray(points, np.float64))
        if self.field is None or self.field_affine is None:
            return before
        sides = np.linalg.norm(self.field_affine[:3, :3], axis=0)
        tolerance = INVERSE_TOLERANCE * sides.min()
        found = before - self._displacement(before)
        open_points = np.arange(len(found))
        for step in INVERSE_STEPS:
            for _ in range(INVERSE_ITERATIONS):
                here = found[open_points]
                miss = before[open_points] - here - self._displacement(here)
                still = (np.abs(miss) > tolerance).any(axis=1)
                open_points = open_points[still]
                if not len(open_points):
                    return found
                found[open_points] += step * miss[still]
        raise ValueError(
            f"the transform cannot be inverted at {len(open_points)} of {len(found)} points: "
            "its field folds"
        )

    def jacobian(self) -> NDArray[np.float64]:
        """Change of volume at each node of the field: the determinant of the whole map's gradient.

        Below zero, space is folded over itself.

        Returns:
            Shape (x, y, z) of the field by central differences; (1, 1, 1) without a field.
        """
        linear = float(np.linalg.det(self.affine[:3, :3]))
        if self.field is None or self.field_affine is None:
            return np.full((1, 1, 1), linear)
        to_index = np.linalg.inv(self.field_affine[:3, :3])
        field = self.field.astype(np.float64)
        gradient = np.stack([np.gradient(field, axis=axis) for axis in range(3)], axis=-1)
        return np.linalg.det(np.eye(3) + gradient @ to_index) * linear

    def apply(
        self,
        source: Volume,
        shape: tuple[int, int, int],
        affine: NDArray[np.float64],
        order: int = 3,
        empty: Empty = in_memory,
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Sample a source on a grid in the target's space.

        Where the grid is coarser than the source, the source is first blurred as
        `sharding.volumes.resample.resample` does.

        Args:
            source: What to sample.
            shape: Shape of the grid.
            affine: Grid index to the target's world millimetres, shape (4, 4).
            order: 0 nearest, 1 linear, 3 cubic B-spline.
            empty: Makes the arrays that are as large as a volume.

        Returns:
            The samples, the source's border value beyond its field of view; and which voxels of
            the grid lie in that field of view. Both have shape `shape`.
        """
        to_source = _index_map(self.affine @ affine, source)
        if self.field is None:
            return _sample(source, shape, to_source, None, order, empty)
        from_world = np.linalg.inv(source.affine) @ self.affine

        def place(index: NDArray[np.float64]) -> NDArray[np.float64]:
            world = apply_affine(affine, index)
            return apply_affine(from_world, world + self._displacement(world))

        return _sample(source, shape, to_source, place, order, empty)

    def apply_inverse(
        self,
        volume: Volume,
        shape: tuple[int, int, int],
        affine: NDArray[np.float64],
        order: int = 3,
        empty: Empty = in_memory,
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Carry a volume in the target's space back onto a grid in the source's.

        Args:
            volume: What to sample.
            shape: Shape of the grid.
            affine: Grid index to the source's world millimetres, shape (4, 4).
            order: 0 nearest, 1 linear, 3 cubic B-spline.
            empty: Makes the arrays that are as large as a volume.

        Returns:
            The samples and which voxels lie in the volume's field of view, as `apply` does.

        Raises:
            ValueError: If the transform cannot be inverted there.
        """
        to_volume = _index_map(np.linalg.inv(self.affine) @ affine, volume)
        if self.field is None:
            return _sample(volume, shape, to_volume, None, order, empty)
        from_world = np.linalg.inv(volume.affine)

        def place(index: NDArray[np.float64]) -> NDArray[np.float64]:
            return apply_affine(from_world, self.inverse_points(apply_affine(affine, index)))

        return _sample(volume, shape, to_volume, place, order, empty)

    def save(self, folder: Path) -> None:
        """Write affine.tfm and, with a field, warp.nii.gz: what ANTs, Slicer and SimpleITK read.

        ANTs applies them as `-t affine.tfm -t warp.nii.gz`.

        Raises:
            ValueError: If the field's grid is sheared, which ITK cannot read.
        """
        folder = Path(folder)
        if self.field is None or self.field_affine is None:
            (folder / WARP_FILE).unlink(missing_ok=True)
        else:
            if not is_orthogonal(self.field_affine):
                raise ValueError("the axes of the field's grid must be orthogonal to be written")
            _write_warp(folder / WARP_FILE, self.field, self.field_affine)
        matrix = RAS_TO_LPS @ self.affine @ RAS_TO_LPS
        numbers = [*matrix[:3, :3].ravel(), *matrix[:3, 3]]
        text = (
            "#Insight Transform File V1.0\n"
            "#Transform 0\n"
            "Transform: AffineTransform_double_3_3\n"
            f"Parameters: {' '.join(repr(float(number)) for number in numbers)}\n"
            "FixedParameters: 0 0 0\n"
        )
        atomic_write(folder / AFFINE_FILE, text)

    @classmethod
    def load(cls, folder: Path) -> Transform:
        """Read what `save` wrote.

        Raises:
            DataError: If affine.tfm is missing, or a file is damaged or of another kind.
        """
        folder = Path(folder)
        affine = _read_affine(folder / AFFINE_FILE)
        warp = folder / WARP_FILE
        if not warp.exists():
            return cls(affine)
        field, field_affine = _read_warp(warp)
        try:
            return cls(affine, field, field_affine)
        except ValueError as error:
            raise _damaged(warp, str(error)) from None

    def _displacement(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """u at points of the target's space, shape (n, 3)."""
        if self.field is None or self.field_affine is None:
            return np.zeros_like(points)
        index = apply_affine(np.linalg.inv(self.field_affine), points).T
        moved = np.empty_like(points)
        for axis in range(3):
            component = self.field[..., axis]
            moved[:, axis] = ndimage.map_coordinates(component, index, order=1, mode="nearest")
        return moved


def is_orthogonal(affine: NDArray[np.float64]) -> bool:
    """Whether the axes of a grid stand at right angles, so that ITK can hold it."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.allclose(axes.T @ axes, np.eye(3), atol=ORTHOGONAL))


def _check_affine(name: str, affine: NDArray[np.float64]) -> None:
    if affine.shape != (4, 4) or not np.array_equal(affine[3], [0, 0, 0, 1]):
        raise ValueError(f"{name} must be a 4 x 4 matrix whose last row is 0 0 0 1")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise ValueError(f"{name} must be finite and invertible")


def _index_map(to_world: NDArray[np.float64], volume: Volume) -> NDArray[np.float64]:
    """Grid index to the volume's index, without the field."""
    matrix = np.linalg.inv(volume.affine) @ to_world
    # Rounding in an inverted affine would otherwise turn the identity into an interpolation.
    return np.where(np.abs(matrix - matrix.round()) < 1e-6, matrix.round(), matrix)


def _sample(
    volume: Volume,
    shape: tuple[int, int, int],
    matrix: NDArray[np.float64],
    place: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None,
    order: int,
    empty: Empty,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Interpolate a volume at the voxels of a grid, slab by slab.

    Args:
        volume: What to sample.
        shape: Shape of the grid.
        matrix: Grid index to the volume's index, shape (4, 4); with `place` only its scale counts.
        place: Grid index to the volume's index where that is not affine, (n, 3) to (n, 3).
        order: Order of the spline.
        empty: Makes the arrays that are as large as a volume.
    """
    data, steps = volume.data, np.abs(matrix[:3, :3]).max(axis=1)
    if order and (steps > 1.01).any():
        data = blurred(data, np.where(steps > 1.01, steps * FWHM_TO_SIGMA, 0), empty)
    if place is None and np.array_equal(matrix, matrix.round()):
        order = 0  # Every sample is a voxel.
    last, pad, mode = np.array(volume.shape) - 1, 0, "mirror"
    if order > 1:
        # As sharding.volumes.resample does, so that a scan is the same by either way.
        data, pad, mode = spline_coefficients(data, order, empty), SPLINE_PAD, "nearest"
    values, inside = empty(shape), empty(shape, np.bool_)
    planes = max(1, SLAB_POINTS // (shape[0] * shape[1]))
    for start in range(0, shape[2], planes):
        slab = slice(start, min(start + planes, shape[2]))
        grid = np.mgrid[: shape[0], : shape[1], slab]
        index = grid.reshape(3, -1).T.astype(np.float64)
        found = apply_affine(matrix, index) if place is None else place(index)
        within = (found > -0.5 - 1e-3) & (found < last + 0.5 + 1e-3)
        inside[..., slab] = within.all(axis=1).reshape(grid.shape[1:])
        if not pad:
            # Clamping gives the border value beyond the volume and exact values on its rim.
            found = np.clip(found, 0, last)
        sampled = ndimage.map_coordinates(
            data,
            (found + pad).T,
            output=np.float32,
            order=order,
            mode=mode,
            prefilter=False,
        )
        values[..., slab] = sampled.reshape(grid.shape[1:])
    return values, inside


def _write_warp(path: Path, field: NDArray[np.float32], field_affine: NDArray[np.float64]) -> None:
    lps = field * np.diag(RAS_TO_LPS)[:3].astype(np.float32)
    image = nib.Nifti1Image(lps[:, :, :, None, :], field_affine)
    image.header.set_intent(NIFTI_INTENT_VECTOR)
    image.header.set_xyzt_units("mm")
    image.set_sform(field_affine, 1)
    image.set_qform(field_affine, 1)
    with atomic_path(path, ".nii.gz") as partial:
        nib.save(image, partial)


def _read_warp(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    try:
        image = nib.Nifti1Image.from_filename(path)
        claimed = math.prod(image.shape) * np.dtype(image.get_data_dtype()).itemsize
        check_claimed_size(path, claimed, path.stat().st_size, "gzip")
        data = np.asarray(image.dataobj, np.float32)
        with gzip.open(path) as file:
            # The whole file is read, so that its checksum is verified.
            while file.read(READ_BYTES):
                pass
    except DataError:
        raise
    except (*UNREADABLE, MemoryError) as error:
        raise _damaged(path, f"not a readable NIfTI file ({error})") from error
    if data.ndim != 5 or data.shape[3:] != (1, 3):
        raise _damaged(path, f"must have shape (x, y, z, 1, 3), found {data.shape}")
    field = data[:, :, :, 0, :] * np.diag(RAS_TO_LPS)[:3].astype(np.float32)
    return field, np.asarray(image.affine, np.float64)


def _read_affine(path: Path) -> NDArray[np.float64]:
    try:
        lines = path.read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, f"not a readable text file ({error})") from error
    pairs = (line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))
    fields = {key.strip(): value.strip() for key, value in pairs}
    if fields.get("Transform") not in AFFINE_KINDS:
        found = fields.get("Transform")
        raise _damaged(path, f"must hold an ITK affine transform, found {found}")
    try:
        numbers = np.array(fields.get("Parameters", "").split(), np.float64)
        centre = np.array(fields.get("FixedParameters", "").split(), np.float64)
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    if numbers.shape != (12,) or centre.shape != (3,):
        rule = f"must hold 12 parameters and a centre, found {numbers.size} and {centre.size}"
        raise _damaged(path, rule)
    matrix = np.eye(4)
    matrix[:3, :3] = numbers[:9].reshape(3, 3)
    matrix[:3, 3] = numbers[9:] + centre - matrix[:3, :3] @ centre
    affine = RAS_TO_LPS @ matrix @ RAS_TO_LPS
    try:
        _check_affine("affine", affine)
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    return affine


def _damaged(path: Path, rule: str) -> DataError:
    return DataError(path, rule, "Register again, or copy the file again")
