"""Registration by greedy, the tool of the authors' own laboratory (package picsl_greedy)."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from picsl_greedy import Greedy3D

from sharding.registration.config import Level, RegisterConfig
from sharding.registration.simpleitk import image
from sharding.volumes.header import RAS_TO_LPS
from sharding.volumes.transform import Transform

NEIGHBOURHOOD = "2x2x2"
"""Radius in voxels of the local correlation."""
QUIET = "-threads 1 -V 0"


def rigid(
    levels: list[Level], starts: list[NDArray[np.float64]], config: RegisterConfig
) -> NDArray[np.float64]:
    """Rotation and shift, from the start under which the two agree best."""
    start = max(starts, key=lambda matrix: _agreement(levels[0], matrix))
    return _linear(levels, start, 6, config)


def affine(
    levels: list[Level], start: NDArray[np.float64], config: RegisterConfig
) -> NDArray[np.float64]:
    """An affine map from a start."""
    return _linear(levels, start, 12, config)


def _linear(
    levels: list[Level], start: NDArray[np.float64], freedom: int, config: RegisterConfig
) -> NDArray[np.float64]:
    # greedy makes its own pyramid from the finest level.
    iterations = "x".join([str(config.affine_iterations)] * len(levels))
    found = _run(
        f"-a -dof {freedom} -m {_metric(config)} -n {iterations} -seed {config.seed + 1}",
        _from(levels[-1], start),
        "matrix",
    )
    return start @ np.asarray(found, np.float64)


def deformable(levels: list[Level], config: RegisterConfig) -> NDArray[np.float32]:
    """A field of displacements on the grid of the finest level."""
    iterations = "x".join(map(str, config.deform_iterations))
    smoothing = f"{config.update_smoothing}vox {config.field_smoothing}vox"
    warp = _run(
        f"-m {_metric(config)} -n {iterations} -s {smoothing} -wp 0",
        levels[-1],
        "warp",
    )
    values = sitk.GetArrayFromImage(warp).transpose(2, 1, 0, 3)
    return (values * np.diag(RAS_TO_LPS)[:3]).astype(np.float32)


def _metric(config: RegisterConfig) -> str:
    return "NMI" if config.metric == "mutual-information" else f"NCC {NEIGHBOURHOOD}"


def _from(level: Level, start: NDArray[np.float64]) -> Level:
    """The level with the source moved to where a matrix puts it, on the target's grid."""
    fixed, moving, mask = level
    moved, _ = Transform(start).apply(moving, fixed.shape, fixed.affine, order=1)
    return fixed, fixed.with_data(moved), mask


def _agreement(level: Level, start: NDArray[np.float64]) -> float:
    """Mutual information of the two under a start."""
    fixed, moved, mask = _from(level, start)
    inside = np.ones(fixed.shape, bool) if mask is None else mask
    joint, _, _ = np.histogram2d(fixed.data[inside], moved.data[inside], bins=32)
    joint /= joint.sum()
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / apart[seen])).sum())


def _run(options: str, level: Level, result: str) -> Any:
    """Run greedy in memory; what it prints is dropped."""
    fixed, moving, mask = level
    images: dict[str, object] = {"fixed": image(fixed), "moving": image(moving), result: None}
    if mask is not None:
        images["inside"] = image(fixed, mask.astype(np.uint8))
        options += " -gm inside"
    greedy, said = Greedy3D(), io.StringIO()
    with _silence():
        greedy.execute(
            f"-i fixed moving {options} -o {result} {QUIET}", out=said, err=said, **images
        )
    return greedy[result]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Silence its optimiser, which writes to standard output, where only results belong."""
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
