"""Deformable registration by tools that the project does not use, on the images that greedy gets.

Each function takes the target, the source on the same grid and the target's mask, and returns the
displacement in millimetres of the world on that grid, shape (x, y, z, 3). All run in one thread.
None of the packages is a dependency: `pip install antspyx convexadam itk-elastix`.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import warnings
from collections.abc import Callable

import numpy as np
import SimpleITK as sitk  # noqa: N813
from nibabel.affines import apply_affine
from numpy.typing import NDArray

from sharding.registration.config import Level
from sharding.registration.register import shrunken
from sharding.registration.simpleitk import image
from sharding.volumes.header import RAS_TO_LPS

STEPS = (0.5, 0.25, 0.12)
"""Largest change of SimpleITK's field in an iteration, in voxels, by thirds of the iterations."""
ITERATIONS = {4: 60, 2: 36}
"""Shrink factor against the original voxels -> iterations of SimpleITK's field."""
UPDATE_SMOOTHING, FIELD_SMOOTHING, BINS = 3.5, 0.5, 32
NODES = 12
ELASTIX = {
    "Registration": "MultiResolutionRegistration",
    "Metric": "AdvancedMattesMutualInformation",
    "NumberOfHistogramBins": "32",
    "Transform": "BSplineTransform",
    "GridSpacingSchedule": "4 2 1",
    "Optimizer": "AdaptiveStochasticGradientDescent",
    "AutomaticParameterEstimation": "true",
    "ASGDParameterEstimationMethod": "DisplacementDistribution",
    "MaximumNumberOfIterations": "500",
    "ImageSampler": "RandomCoordinate",
    "NumberOfSpatialSamples": "5000",
    "NewSamplesEveryIteration": "true",
    "RequiredRatioOfValidSamples": "0.05",
    "RandomSeed": "1",
    "Interpolator": "LinearInterpolator",
    "NumberOfResolutions": "3",
    "FixedImagePyramid": "FixedSmoothingImagePyramid",
    "MovingImagePyramid": "MovingSmoothingImagePyramid",
    "ImagePyramidSchedule": "4 4 4 2 2 2 1 1 1",
    "ErodeMask": "false",
    "AutomaticTransformInitialization": "false",
    "HowToCombineTransforms": "Compose",
    "Resampler": "DefaultResampler",
    "ResampleInterpolator": "FinalLinearInterpolator",
    "WriteResultImage": "false",
}
"""elastix's parameters."""


def simpleitk_field(level: Level) -> NDArray[np.float32]:
    """A field of displacements, mutual information of all voxels: the default until 2026-11-29."""
    fixed, moving, mask = level
    field = None
    for shrink, iterations in ITERATIONS.items():
        size_mm = shrink / 2 * min(fixed.spacing_mm)
        small, other = (shrunken(v, size_mm, 4_000_000, scale=False) for v in (fixed, moving))
        here = image(small)
        field = _on_grid(field, here)
        for step in STEPS:
            transform = sitk.DisplacementFieldTransform(sitk.Image(field))
            transform.SetSmoothingGaussianOnUpdate(UPDATE_SMOOTHING**2, FIELD_SMOOTHING**2)
            method = sitk.ImageRegistrationMethod()
            method.SetNumberOfThreads(1)
            method.SetNumberOfWorkUnits(1)
            method.SetInterpolator(sitk.sitkLinear)
            method.MetricUseFixedImageGradientFilterOff()
            method.MetricUseMovingImageGradientFilterOff()
            if mask is not None:
                method.SetMetricFixedMask(image(fixed, mask.astype(np.uint8)))
            method.SetMetricAsMattesMutualInformation(BINS)
            method.SetOptimizerAsGradientDescent(
                step, iterations // len(STEPS), 1e-9, 20, method.EachIteration
            )
            method.SetOptimizerScalesFromPhysicalShift()
            method.SetInitialTransform(transform, inPlace=True)
            method.Execute(here, image(other))
            field = transform.GetDisplacementField()
    assert field is not None
    return _from_itk(sitk.GetArrayFromImage(_on_grid(field, image(fixed))))


def _on_grid(field: sitk.Image | None, fixed: sitk.Image) -> sitk.Image:
    """A field on another grid; zero at first."""
    if field is None:
        zero = sitk.Image(fixed.GetSize(), sitk.sitkVectorFloat64, 3)
        zero.CopyInformation(fixed)
        return zero
    return sitk.TransformToDisplacementField(
        sitk.DisplacementFieldTransform(sitk.Image(field)),
        sitk.sitkVectorFloat64,
        fixed.GetSize(),
        fixed.GetOrigin(),
        fixed.GetSpacing(),
        fixed.GetDirection(),
    )


def elastix(level: Level) -> NDArray[np.float32]:
    """elastix: a B-spline with 12 control points along the mask, mutual information of samples."""
    with warnings.catch_warnings():
        # Its modules warn while they are loaded, which ends the process where warnings are errors.
        warnings.simplefilter("ignore", DeprecationWarning)
        import itk  # pyright: ignore[reportMissingImports]

        method_class = itk.ElastixRegistrationMethod
    fixed, moving, mask = level

    def made(data: NDArray) -> object:
        found = itk.image_from_array(np.ascontiguousarray(data.T))
        frame = image(fixed)
        found.SetSpacing(frame.GetSpacing())
        found.SetOrigin(frame.GetOrigin())
        found.SetDirection(itk.matrix_from_array(np.array(frame.GetDirection()).reshape(3, 3)))
        return found

    shape = np.array(fixed.shape)
    if mask is not None:
        where = np.argwhere(mask)
        shape = where.max(axis=0) - where.min(axis=0) + 1
    parameters = itk.ParameterObject.New()
    values = ELASTIX | {
        "FinalGridSpacingInPhysicalUnits": str((shape * fixed.spacing_mm).max() / NODES)
    }
    parameters.AddParameterMap({name: value.split() for name, value in values.items()})
    target = made(fixed.data)
    method = method_class.New(target, made(moving.data))
    method.SetParameterObject(parameters)
    if mask is not None:
        method.SetFixedMask(made(mask.astype(np.uint8)))
    method.SetNumberOfThreads(1)
    method.UpdateLargestPossibleRegion()
    result = itk.TransformixFilter.New(target)
    result.SetTransformParameterObject(method.GetTransformParameterObject())
    result.SetComputeDeformationField(True)
    with tempfile.TemporaryDirectory() as folder:
        # It writes the field to a file as well, by default into the working directory.
        result.SetOutputDirectory(folder)
        result.UpdateLargestPossibleRegion()
    return _from_itk(itk.array_from_image(result.GetOutputDeformationField()))


def ants(level: Level) -> NDArray[np.float32]:
    """ANTs's SyN with mutual information, as antsRegistrationSyNQuick.sh runs it at this level."""
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
    import ants as tool  # pyright: ignore[reportMissingImports]

    fixed, moving, mask = level

    def made(data: NDArray) -> object:
        found = tool.from_numpy(np.asarray(data, np.float32))
        itk = image(fixed)
        found.set_spacing(itk.GetSpacing())
        found.set_origin(itk.GetOrigin())
        found.set_direction(np.array(itk.GetDirection()).reshape(3, 3))
        return found

    found = tool.registration(
        made(fixed.data),
        made(moving.data),
        type_of_transform="SyNOnly",
        initial_transform="Identity",
        syn_metric="mattes",
        syn_sampling=BINS,
        reg_iterations=(100, 70, 20),
        mask=None if mask is None else made(mask),
        random_seed=1,
    )
    warp = next(path for path in found["fwdtransforms"] if path.endswith(".nii.gz"))
    values = tool.image_read(warp).numpy()
    return _lps(values)


def convexadam(level: Level) -> NDArray[np.float32]:
    """ConvexAdam: MIND features, a discrete search, then Adam; the settings of its paper."""
    import torch
    from convexAdam.convex_adam_MIND import (  # pyright: ignore[reportMissingImports]
        convex_adam_pt,
    )

    torch.set_num_threads(1)
    fixed, moving, _ = level
    with contextlib.redirect_stdout(io.StringIO()):
        voxels = convex_adam_pt(
            fixed.data.astype(np.float32) * 1000,
            moving.data.astype(np.float32) * 1000,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
    linear = fixed.affine.copy()
    linear[:3, 3] = 0
    return apply_affine(linear, np.asarray(voxels)).astype(np.float32)


def _from_itk(values: NDArray) -> NDArray[np.float32]:
    return _lps(values.transpose(2, 1, 0, 3))


def _lps(values: NDArray) -> NDArray[np.float32]:
    """Displacements of ITK's world in NIfTI's."""
    return (values * np.diag(RAS_TO_LPS)[:3]).astype(np.float32)


PEERS: dict[str, Callable[[Level], NDArray[np.float32]]] = {
    "elastix": elastix,
    "SimpleITK": simpleitk_field,
    "ANTs": ants,
    "ConvexAdam": convexadam,
}
