"""Rigid and affine registration by SimpleITK."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from sharding.io.errors import DataError
from sharding.registration.config import Level, RegisterConfig
from sharding.volumes.header import RAS_TO_LPS
from sharding.volumes.transform import is_orthogonal
from sharding.volumes.volume import Volume

BINS = 32
"""Bins of the joint histogram, for each of the two intensities."""
SAMPLES = 100_000
"""Voxels that the registration looks at."""
RIGID_STEP, AFFINE_STEP = 0.5, 1 / 16
"""First step of the descent, in voxels of the level. An affine map that takes long steps may shrink
the source away, where mutual information has another maximum: measured."""


def rigid(
    levels: list[Level], starts: list[NDArray[np.float64]], config: RegisterConfig
) -> NDArray[np.float64]:
    """Rotation and shift from the best start, on the coarser levels.

    Raises:
        DataError: If the two do not overlap anywhere.
    """
    found = _best_start(levels[0], starts, _centre(levels[0][0]), config)
    for level in levels[:2]:
        _optimise(level, found, RIGID_STEP, config)
    return _world_matrix(found)


def affine(
    levels: list[Level], start: NDArray[np.float64], config: RegisterConfig
) -> NDArray[np.float64]:
    """An affine map from a start, on the finer levels."""
    transform = sitk.AffineTransform(3)
    centre = np.array(_centre(levels[0][0]))
    matrix = RAS_TO_LPS @ start @ RAS_TO_LPS
    transform.SetCenter(centre.tolist())
    transform.SetMatrix(matrix[:3, :3].ravel().tolist())
    transform.SetTranslation((matrix[:3, :3] @ centre + matrix[:3, 3] - centre).tolist())
    for level in levels[1:] or levels:
        _optimise(level, transform, AFFINE_STEP, config)
    return _world_matrix(transform)


def image(volume: Volume, data: NDArray | None = None) -> sitk.Image:
    """A volume as ITK sees it, whose axes stand at exact right angles.

    Those of a header stand so up to the rounding of its numbers.

    Args:
        volume: Its grid is taken.
        data: Other voxels on that grid; None takes the volume's own.

    Raises:
        DataError: If its axes are sheared.
    """
    if not is_orthogonal(volume.affine):
        raise DataError(
            "registration",
            "the axes of a volume must stand at right angles, those of its affine do not",
            "Resample it to a grid without shear",
        )
    data = volume.data if data is None else data
    made = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
    world = RAS_TO_LPS @ volume.affine
    spacing = np.array(volume.spacing_mm)
    made.SetSpacing(spacing.tolist())
    made.SetOrigin(world[:3, 3].tolist())
    left, _, right = np.linalg.svd(world[:3, :3] / spacing)
    made.SetDirection((left @ right).ravel().tolist())
    return made


def _world_matrix(transform: Any) -> NDArray[np.float64]:
    """The matrix of a transform about a centre, in NIfTI's world."""
    centre = np.array(transform.GetCenter())
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    matrix[:3, 3] = centre + transform.GetTranslation() - matrix[:3, :3] @ centre
    return RAS_TO_LPS @ matrix @ RAS_TO_LPS


def _images(level: Level) -> tuple[sitk.Image, sitk.Image, sitk.Image | None]:
    fixed, moving, mask = level
    inside = None if mask is None else image(fixed, mask.astype(np.uint8))
    return image(fixed), image(moving), inside


def _method(mask: sitk.Image | None) -> sitk.ImageRegistrationMethod:
    method = sitk.ImageRegistrationMethod()
    # Sums over threads depend on their number.
    method.SetNumberOfThreads(1)
    method.SetNumberOfWorkUnits(1)
    method.SetInterpolator(sitk.sitkLinear)
    method.MetricUseFixedImageGradientFilterOff()
    method.MetricUseMovingImageGradientFilterOff()
    if mask is not None:
        method.SetMetricFixedMask(mask)
    return method


def _affine_method(level: Level, config: RegisterConfig) -> sitk.ImageRegistrationMethod:
    _, _, mask = _images(level)
    method = _method(mask)
    if config.affine_metric == "correlation":
        method.SetMetricAsCorrelation()
    else:
        method.SetMetricAsMattesMutualInformation(BINS)
    share = SAMPLES / level[0].data.size
    if share < 1:
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(share, config.seed + 1)
    return method


def _best_start(
    level: Level,
    starts: list[NDArray[np.float64]],
    centre: list[float],
    config: RegisterConfig,
) -> sitk.Euler3DTransform:
    fixed, moving, _ = _images(level)
    scored = []
    for start in starts:
        rigid = sitk.Euler3DTransform()
        rigid.SetCenter(centre)
        rigid.SetTranslation((RAS_TO_LPS @ start)[:3, 3].tolist())
        method = _affine_method(level, config)
        method.SetInitialTransform(rigid)
        try:
            scored.append((method.MetricEvaluate(fixed, moving), len(scored), rigid))
        except RuntimeError:  # No voxel of one lies in the other.
            continue
    if not scored:
        raise DataError(
            "registration",
            "source and target overlap from no start",
            "Check that the files belong together",
        )
    return min(scored)[2]


def _optimise(level: Level, transform: sitk.Transform, step: float, config: RegisterConfig) -> None:
    """Improve a transform in place, or leave it as it is."""
    fixed, moving, _ = _images(level)
    voxel = max(level[0].spacing_mm)
    method = _affine_method(level, config)
    method.SetOptimizerAsRegularStepGradientDescent(
        step * voxel, step * voxel / 1000, config.affine_iterations, 0.6, 1e-8
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, inPlace=True)
    before, parameters = method.MetricEvaluate(fixed, moving), transform.GetParameters()
    method.Execute(fixed, moving)
    if method.GetMetricValue() > before:
        transform.SetParameters(parameters)


def _centre(volume: Volume) -> list[float]:
    index = [*((np.array(volume.shape) - 1) / 2), 1]
    return (RAS_TO_LPS @ volume.affine @ index)[:3].tolist()
