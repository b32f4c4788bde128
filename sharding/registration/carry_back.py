"""A volume on a prepared target's grid, carried back to the scanner's space."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharding.io.errors import DataError
from sharding.registration.step_cache import read_record
from sharding.volumes.transform import Transform
from sharding.volumes.volume import Volume, read_volume, write_volume


def carry_back(
    folder: Path, volume: Path, out: Path, like: Path | None = None, overwrite: bool = False
) -> None:
    """Carry a volume on a prepared target's grid, such as a prediction, to the scanner's space.

    Args:
        folder: The specimen's folder within a prepared cohort.
        volume: On the target's grid, or another one in the target's space.
        out: NIfTI file to write, in the world of the raw source.
        like: Write on the grid of this volume; None takes the raw source's field of view at the
            target's spacing.
        overwrite: Replace an existing file.

    Raises:
        DataError: If the specimen's preparation did not resample or is unfinished, the transform
            cannot be inverted, a file is bad or `out` exists.
    """
    if out.exists() and not overwrite:
        raise DataError(out, "the file exists already", "Give --overwrite or another file")
    record = read_record(folder / "resample")
    if record is None:
        rule = "holds no finished step resample, so there is nothing to carry back by"
        raise DataError(folder, rule, "Give a specimen's folder of a prepared cohort")
    transform = Transform.identity()
    for step in ("affine", "deform"):
        if step in record.inputs:
            made = read_record(folder / step)
            if made is None or made.key != record.inputs[step]:
                rule = f"the step {step} is not the one that resample was done with"
                raise DataError(folder, rule, "Run the preparation again")
            transform = Transform.load(folder / step)
    given = read_volume(volume)
    if like is None:
        grid = record.measured["source_grid"], record.measured["target_grid"]
        shape, affine, header = *_refined(*grid), None
    else:
        wanted = read_volume(like, constant=True)
        shape, affine, header = wanted.shape, wanted.affine, wanted.header
    try:
        data, inside = transform.apply_inverse(given, shape, affine)
    except ValueError as error:
        raise DataError(folder, str(error), "Prepare again with a smoother deformation") from None
    low, high = given.data.min(), given.data.max()
    data = np.clip(data, low, high)
    data[~inside] = low
    write_volume(out, Volume(data, affine, header))


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
