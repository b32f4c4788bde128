"""Deformable registration by greedy, the tool of the authors' own laboratory."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from picsl_greedy import Greedy3D

from sharding.registration.config import Level, RegisterConfig
from sharding.registration.contrast import in_contrast_of
from sharding.registration.simpleitk import image
from sharding.volumes.header import RAS_TO_LPS


def deformable(level: Level, config: RegisterConfig) -> NDArray[np.float32]:
    """Maximise the correlation of small neighbourhoods by a stationary velocity field.

    greedy's correlation is signed and its mutual information inaccurate (measured), so the source
    is first brought to the target's contrast. The velocity field is integrated: what it gives does
    not fold, but for the errors of sampling.

    Args:
        level: Target, source on the same grid, and where the target counts.
        config: Radius, iterations and smoothing.

    Returns:
        Displacement in millimetres of the world, shape (x, y, z, 3), on the level's grid.

    Raises:
        RuntimeError: If greedy gives up.
    """
    fixed, moving, mask = level
    images: dict[str, object] = {
        "fixed": image(fixed),
        "moving": image(fixed, in_contrast_of(fixed.data, moving.data, mask)),
        "warp": None,
    }
    radius = "x".join([str(config.deform_radius)] * 3)
    iterations = "x".join(map(str, config.deform_iterations))
    options = (
        f"-m NCC {radius} -sv -n {iterations} -wp 0 -seed {config.seed + 1} "
        f"-s {config.update_smoothing}vox {config.field_smoothing}vox"
    )
    if mask is not None:
        images["inside"] = image(fixed, mask.astype(np.uint8))
        options += " -gm inside"
    # greedy adds a little noise to both, hence the seed. Sums over threads depend on their number.
    command = f"-i fixed moving {options} -o warp -threads 1 -V 0"
    greedy, said = Greedy3D(), io.StringIO()
    with _silence():
        greedy.execute(command, out=said, err=said, **images)
    values = sitk.GetArrayFromImage(greedy["warp"]).transpose(2, 1, 0, 3)
    return (values * np.diag(RAS_TO_LPS)[:3]).astype(np.float32)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Silence what greedy writes to standard output, where only results belong."""
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
