"""What registration and bias correction undo, and how long they take.

    python -m benchmarks.registration landmarks [--data DATA]   known motion: phantom and real T1w
    python -m benchmarks.registration pairs --data DATA         real pairs, moved 5 mm, 5 degrees
    python -m benchmarks.registration bias --data DATA          a known bias field on a real volume

DATA holds t1w_3t/ and pairs_t2w_t1w/, each with a cohort.csv. One thread.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray

from benchmarks.motion import Motion, landmarks, random_motion
from sharding.registration.bias_correction import CorrectConfig, correct_bias
from sharding.registration.register import RegisterConfig, register_affine, register_deformable
from sharding.simulation.phantom import phantom_volume
from sharding.simulation.simulate import SimulationConfig, simulate_source
from sharding.volumes.cohort import read_cohort
from sharding.volumes.masks import foreground_mask
from sharding.volumes.transform import Transform
from sharding.volumes.volume import Volume, read_volume

BACKENDS = tuple(
    RegisterConfig(backend=backend, metric=metric)
    for backend in ("simpleitk", "greedy")
    for metric in ("mutual-information", "correlation")
)
T1W, POINTS = "sub-03", 2000


def foreground(volume: Volume) -> NDArray[np.bool_]:
    """As `prepare` finds it."""
    return foreground_mask(volume.data / np.percentile(volume.data, 99.9), 0.05)


def distribution(errors_mm: NDArray[np.float64], voxel_mm: float) -> str:
    """Cells: mean, median, 95th percentile and maximum, in mm and voxels of the target."""
    values = [errors_mm.mean(), *np.percentile(errors_mm, (50, 95)), errors_mm.max()]
    return " | ".join(f"{value:.3f} ({value / voxel_mm:.2f})" for value in values)


def errors(found: Transform, points: NDArray[np.float64], truth: NDArray[np.float64]) -> NDArray:
    """Millimetres between where landmarks are put and where they are."""
    return np.linalg.norm(found.points(points) - truth, axis=1)


def known_motion(data: Path | None) -> None:
    """Landmark errors of each backend before, after the affine and after the deformable step."""
    phantom = phantom_volume()
    cases = {"phantom": (phantom, Motion(1.2, 0.12, 5, 0.8, 0.03))}
    if data:
        volume = read_volume(data / "t1w_3t" / f"{T1W}_T1w.nii.gz")
        cases[f"real T1w, {T1W}"] = (volume, Motion(6, 0.12, 5, 5, 0.03))
    print("| volume | backend, metric | step | mean | median | 95 % | largest | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (target, how) in cases.items():
        motion = random_motion(target, how)
        moved, _ = motion.apply(target, target.shape, target.affine)
        source, _ = simulate_source(target.with_data(moved), SimulationConfig(), name)
        inside = foreground(target)
        points, truth = landmarks(target, inside, motion, POINTS)
        voxel = min(target.spacing_mm)
        before = distribution(errors(Transform.identity(), points, truth), voxel)
        print(f"| {name} | - | before | {before} | - |", flush=True)
        for config in BACKENDS:
            start = time.perf_counter()
            found = register_affine(source, target, config, inside)
            between = time.perf_counter()
            deformed = register_deformable(source, target, found, config, inside)
            end = time.perf_counter()
            for step, transform, seconds in (
                ("affine", found, between - start),
                ("deformable", deformed, end - between),
            ):
                cells = distribution(errors(transform, points, truth), voxel)
                label = f"{name} | {config.backend}, {config.metric} | {step}"
                print(f"| {label} | {cells} | {seconds:.0f} |", flush=True)


def moved_pairs(data: Path, backends: list[str]) -> None:
    """How far alignment differs with and without an extra rigid motion of the source."""
    print("| pair | backend | displaced, mean mm | residual: mean mm | 95 % | largest | seconds |")
    print("|---|---|---|---|---|---|---|")
    for index, specimen in enumerate(read_cohort(data / "pairs_t2w_t1w")):
        assert specimen.source
        source, target = read_volume(specimen.source), read_volume(specimen.target)
        inside = foreground(target)
        motion = random_motion(target, Motion(0, 0.12, 5, 5, 0, seed=index)).affine
        moved = replace(source, affine=np.linalg.inv(motion) @ source.affine)
        points = apply_affine(target.affine, np.argwhere(inside)[::500])
        shift = np.linalg.norm(apply_affine(np.linalg.inv(motion), points) - points, axis=1)
        for config in (row for row in BACKENDS[::2] if row.backend in backends):
            plain = register_affine(source, target, config, inside)
            start = time.perf_counter()
            found = register_affine(moved, target, config, inside)
            seconds = time.perf_counter() - start
            # The extra motion undone, both should put a point in the same place of the source.
            back = apply_affine(motion, found.points(points))
            residual = np.linalg.norm(back - plain.points(points), axis=1)
            print(
                f"| {specimen.name} | {config.backend} | {shift.mean():.2f} | "
                f"{residual.mean():.2f} | {np.percentile(residual, 95):.2f} | "
                f"{residual.max():.2f} | {seconds:.0f} |",
                flush=True,
            )


def known_bias(data: Path) -> None:
    """What N4 leaves of a field, beside the one that it finds without it."""
    volume = read_volume(data / "t1w_3t" / f"{T1W}_T1w.nii.gz")
    inside = volume.data > 0.15 * np.percentile(volume.data, 99.9)
    x, y, z = np.ogrid[tuple(slice(-1, 1, complex(0, size)) for size in volume.shape)]
    fields = {
        "linear, 20 % an axis": 1 + 0.2 * x - 0.2 * y + 0.2 * z,
        "curved, 40 %": 1 + 0.4 * np.cos(2.5 * x) * np.cos(2 * y + 0.5) * np.cos(1.5 * z),
    }
    print(
        "| field | settings | before | after | largest after | seconds |\n|---|---|---|---|---|---|"
    )
    for config in (CorrectConfig(), CorrectConfig(shrink=6), CorrectConfig(spline_mm=100)):
        _, own = correct_bias(volume, config)
        for name, field in fields.items():
            biased = volume.with_data(volume.data * field)
            start = time.perf_counter()
            _, found = correct_bias(biased, config)
            seconds = time.perf_counter() - start
            before, after = (
                np.log(ratio[inside] / ratio[inside].mean())
                for ratio in (field, found / own / field)
            )
            print(
                f"| {name} | shrink {config.shrink}, spline {config.spline_mm or 'by size'} | "
                f"{before.std():.4f} | {after.std():.4f} | {np.abs(after).max():.3f} | "
                f"{seconds:.0f} |",
                flush=True,
            )


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", choices=("landmarks", "pairs", "bias"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--backends", nargs="+", default=["simpleitk", "greedy"])
    given = parser.parse_args()
    if given.table == "landmarks":
        known_motion(given.data)
    elif given.data is None:
        parser.error(f"{given.table} needs --data")
    elif given.table == "pairs":
        moved_pairs(given.data, given.backends)
    else:
        known_bias(given.data)


if __name__ == "__main__":
    main()
