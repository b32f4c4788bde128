"""A volume on a prepared target's grid, carried back to the scanner's space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray

from sharding.io.errors import DataError
from sharding.registration.config import REGISTRATION_STEPS
from sharding.registration.step_cache import read_record
from sharding.volumes.formats.registry import is_dicom_volume
from sharding.volumes.grid import refuse_apart
from sharding.volumes.header import Orientation
from sharding.volumes.output import Output
from sharding.volumes.transform import Transform
from sharding.volumes.volume import Volume, read_volume

LEAST_SHARE = 0.25
"""Share of the grid that the volume must cover, or the grid of the volume."""
SAMPLED = 40
"""Voxels along each axis that are looked at to find that share."""


def carry_back(
    folder: Path,
    volume: Path,
    out: Path,
    like: Path | None = None,
    overwrite: bool = False,
    orientation: Orientation = "header",
    keep_patient: bool = False,
) -> None:
    """Carry a volume on a prepared target's grid, such as a prediction, to the scanner's space.

    Args:
        folder: The specimen's folder within a prepared cohort.
        volume: On the target's grid, or another one in the target's space.
        out: What to write, in the world of the raw source, see sharding.volumes.output.Output.
        like: Write on the grid of this volume; None takes the raw source's field of view at the
            target's spacing.
        overwrite: Replace an existing file.
        orientation: See sharding.volumes.volume.read_volume.
        keep_patient: Copy the patient and the study of a DICOM `like`, or else of the volume, into
            a DICOM output.

    Raises:
        DataError: If the specimen's preparation did not resample or is unfinished, the transform
            cannot be inverted, a file is bad, the volume does not meet the grid, or `out` exists.
    """
    origin = like if like and like.exists() and is_dicom_volume(like) else volume
    output = Output(out, origin, "synthetic", keep_patient, overwrite)
    output.check()
    record = read_record(folder / "resample")
    if record is None:
        rule = "holds no finished step resample, so there is nothing to carry back by"
        raise DataError(folder, rule, "Give a specimen's folder of a prepared cohort")
    transform = Transform.identity()
    for step in REGISTRATION_STEPS:
        if step in record.inputs:
            made = read_record(folder / step)
            if made is None or made.key != record.inputs[step]:
                rule = f"the step {step} is not the one that resample was done with"
                raise DataError(folder, rule, "Run the preparation again")
            transform = Transform.load(folder / step)
    given = read_volume(volume, orientation=orientation)
    if like is None:
        grid = record.measured["source_grid"], record.measured["target_grid"]
        shape, affine, header = *_refined(*grid), _header(grid[0])
    else:
        wanted = read_volume(like, constant=True, orientation=orientation)
        shape, affine, header = wanted.shape, wanted.affine, wanted.header
    output.check_grid(Volume(np.empty((0, 0, 0), np.float32), affine, header))
    try:
        data, inside = transform.apply_inverse(given, shape, affine)
    except ValueError as error:
        raise DataError(folder, str(error), "Prepare again with a smoother deformation") from None
    of_volume = _share_within(given, transform, shape, affine)
    refuse_apart(like or volume, float(inside.mean()), of_volume, LEAST_SHARE)
    low, high = given.data.min(), given.data.max()
    data = np.clip(data, low, high)
    data[~inside] = low
    output.write(Volume(data, affine, header))


def _header(grid: Mapping[str, Any]) -> nib.Nifti1Header:
    """A header with the codes that the raw source was read with."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_xyzt_units("mm")
    for name in ("qform_code", "sform_code"):
        header[name] = grid[name]
    return header


def _share_within(
    volume: Volume, transform: Transform, shape: Sequence[int], affine: NDArray[np.float64]
) -> float:
    """Share of a volume's voxels that a transform takes into a grid; large ones are sampled."""
    steps = [math.ceil(size / SAMPLED) for size in volume.shape]
    index = np.stack(
        np.meshgrid(*map(np.arange, (0, 0, 0), volume.shape, steps), indexing="ij"), axis=-1
    ).reshape(-1, 3)
    world = transform.points(apply_affine(volume.affine, index))
    found = apply_affine(np.linalg.inv(affine), world)
    return float(((found > -0.5) & (found < np.array(shape) - 0.5)).all(axis=1).mean())


def _refined(
    source: Mapping[str, Any], target: Mapping[str, Any]
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """The source's field of view with voxels of the target's size.

    Args:
        source: Shape and affine.
        target: Shape and affine.

    Returns:
        Shape and affine of a grid along the source's axes.
    """
    affine, size = np.array(source["affine"]), np.array(source["shape"])
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    # How far a voxel of the target reaches along each axis of the source.
    per_mm = np.linalg.inv(np.array(target["affine"])[:3, :3]) @ (affine[:3, :3] / steps)
    wanted = 1 / np.linalg.norm(per_mm, axis=0)
    shape = np.maximum(np.ceil(size * steps / wanted - 1e-3), 2).astype(int)
    scale = wanted / steps
    # The outer faces of the first voxels coincide.
    matrix = np.diag([*scale, 1.0])
    matrix[:3, 3] = (scale - 1) / 2
    return (int(shape[0]), int(shape[1]), int(shape[2])), affine @ matrix
