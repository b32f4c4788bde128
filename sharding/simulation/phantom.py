"""Phantom specimens: folded layers, vessels and a dark background, for which the truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sharding.io.atomic import refuse_existing
from sharding.io.progress import progress
from sharding.simulation.simulate import SimulationConfig, simulate_cohort
from sharding.volumes.cohort import Specimen
from sharding.volumes.volume import Volume, write_volume

# Depth below the surface, as a share of the specimen's radius, and intensity from there on:
# an outer layer, three cortical bands of the kind that high-field scans tell apart, white matter.
LAYERS = ((0.00, 0.55), (0.07, 0.80), (0.13, 0.62), (0.19, 0.88), (0.27, 0.38))
VESSEL_INTENSITY = 0.12


def phantom_volume(
    shape: tuple[int, int, int] = (96, 96, 80), seed: int = 0, spacing_mm: float = 0.2
) -> Volume:
    """Make one specimen.

    A ball whose surface is folded by random waves; layers follow the folded surface, as cortex
    does; dark vessels run through it; a fine texture tells sharp from blurred.

    Args:
        shape: Voxels along each axis.
        seed: Determines the folds, vessels and texture.
        spacing_mm: Isotropic voxel size.

    Returns:
        Intensities from 0 (background) to about 1000.
    """
    rng = np.random.default_rng([seed, 94])
    grid = np.stack(
        np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    ).astype(np.float32)
    stretched = grid / rng.uniform(0.85, 1.05, (3, 1, 1, 1)).astype(np.float32)
    radius = np.sqrt((stretched**2).sum(0))
    depth = 0.78 + _waves(stretched, rng, count=14, frequency=(5, 14), size=0.035) - radius

    image = np.zeros(shape, np.float32)
    for start, intensity in LAYERS:
        image[depth > start] = intensity
    inside = depth > 0
    image[_vessels(grid, rng) & inside] = VESSEL_INTENSITY
    texture = ndimage.gaussian_filter(rng.normal(size=shape).astype(np.float32), 0.8)
    image += inside * texture * (0.03 / texture.std())
    image = ndimage.gaussian_filter(image, 0.45)
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    return Volume(np.clip(image * 1000, 0, None).astype(np.float32), affine)


def write_phantom_cohort(
    out: Path,
    specimens: int = 8,
    shape: tuple[int, int, int] = (96, 96, 80),
    seed: int = 0,
    simulation: SimulationConfig | None = None,
    overwrite: bool = False,
) -> Path:
    """Write phantom targets, their simulated sources and a cohort.csv; return the latter's path."""
    names = [f"phantom-{index:02d}" for index in range(specimens)]
    rows = [Specimen(name, target=out / f"{name}_target.nii.gz") for name in names]
    refuse_existing([out / "cohort.csv", *(row.target for row in rows)], overwrite)
    written = []
    try:
        for index, row in enumerate(progress(rows, "drawing phantoms", specimens)):
            written.append(row.target)
            write_volume(row.target, phantom_volume(shape, seed * 10_000 + index))
        return simulate_cohort(rows, out, simulation or SimulationConfig(seed=seed), overwrite)
    except BaseException:
        # Interrupted or failed, it leaves no targets that a second attempt would refuse to replace.
        if not (out / "cohort.csv").exists():
            for path in written:
                path.unlink(missing_ok=True)
        raise


def _waves(
    position: NDArray[np.float32],
    rng: np.random.Generator,
    count: int,
    frequency: tuple[float, float],
    size: float,
) -> NDArray[np.float32]:
    """A sum of plane waves of random direction, phase and frequency."""
    total = np.zeros(position.shape[1:], np.float32)
    for _ in range(count):
        direction = rng.normal(size=3)
        direction *= rng.uniform(*frequency) / np.linalg.norm(direction)
        phase = rng.uniform(0, 2 * np.pi)
        total += size * np.sin(np.tensordot(direction, position, 1) + phase)
    return total


def _vessels(
    grid: NDArray[np.float32], rng: np.random.Generator, count: int = 9
) -> NDArray[np.bool_]:
    """Bent tubes across the volume, one to two voxels thick."""
    tubes = np.zeros(grid.shape[1:], bool)
    thickness = 2.0 / min(grid.shape[1:])
    for _ in range(count):
        axis = int(rng.integers(3))
        along = grid[axis]
        across = [grid[dim] for dim in range(3) if dim != axis]
        distance = np.zeros_like(along)
        for coordinate in across:
            start, bend = rng.uniform(-0.5, 0.5, 2)
            course = start + 0.2 * np.sin(rng.uniform(1, 3) * along + 6 * bend)
            distance += (coordinate - course) ** 2
        tubes |= distance < (thickness * rng.uniform(0.8, 1.6)) ** 2
    return tubes
