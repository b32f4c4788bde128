"""What registration and bias correction undo, and how long they take.

    python -m benchmarks.registration landmarks                 known motion of a phantom
    python -m benchmarks.registration landmarks --data DATA     known motion of real T1w volumes
    python -m benchmarks.registration pairs --data PREPARED     real pairs after their affine step
    python -m benchmarks.registration moved --data DATA         real pairs, moved 5 mm, 5 degrees
    python -m benchmarks.registration bias --data DATA          a known bias field on a real volume

DATA holds t1w_3t/ and pairs_t2w_t1w/, each with a cohort.csv. PREPARED is made by `distsynth
prepare --steps correct scale rigid affine resample`. One thread.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray

from benchmarks.motion import Motion, landmarks, random_motion
from benchmarks.registration_peers import PEERS
from sharding.registration import greedy
from sharding.registration.alignment import information
from sharding.registration.bias_correction import CorrectConfig, correct_bias
from sharding.registration.quality import jacobian_range
from sharding.registration.register import RegisterConfig, deformable_level, register_affine
from sharding.simulation.phantom import phantom_volume
from sharding.simulation.simulate import SimulationConfig, simulate_source
from sharding.volumes.cohort import read_cohort
from sharding.volumes.masks import foreground_mask
from sharding.volumes.transform import Transform
from sharding.volumes.volume import Volume, read_volume

POINTS = 2000
METHODS = ("greedy", *PEERS)


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


@dataclass(frozen=True)
class Pair:
    """What is registered, and what says how well.

    Attributes:
        measure: A transform to the table's cells.
    """

    name: str
    source: Volume
    target: Volume
    inside: NDArray[np.bool_]
    measure: Callable[[Transform], str]

    def print_row(self, step: str, found: Transform, seconds: str) -> None:
        """One line of the table."""
        low, high = jacobian_range(found, self.inside, self.target.affine)
        cells = f"{self.name} | {step} | {self.measure(found)} | {low:.2f} to {high:.2f}"
        print(f"| {cells} | {seconds} |", flush=True)


def known_motion(data: Path | None, names: list[str], methods: list[str]) -> None:
    """Landmark errors before, after the affine map and after each deformation that starts there."""
    cases: dict[str, tuple[Volume, Motion]] = {}
    if data is None:
        cases["phantom"] = (phantom_volume(), Motion(1.2, 0.12, 5, 0.8, 0.03))
    else:
        for name in names:
            volume = read_volume(data / "t1w_3t" / f"{name}_T1w.nii.gz")
            cases[name] = (volume, Motion(6, 0.12, 5, 5, 0.03))
    print("| volume | step | mean | median | 95 % | largest | Jacobian | processor s | wall s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, (target, how) in cases.items():
        motion = random_motion(target, how)
        moved, _ = motion.apply(target, target.shape, target.affine)
        source, _ = simulate_source(target.with_data(moved), SimulationConfig(), name)
        inside = foreground(target)
        points, truth = landmarks(target, inside, motion, POINTS)
        voxel = min(target.spacing_mm)

        def cells(found: Transform, points=points, truth=truth, voxel=voxel) -> str:
            return distribution(errors(found, points, truth), voxel)

        pair = Pair(name, source, target, inside, cells)
        pair.print_row("before", Transform.identity(), "- | -")
        watch = Stopwatch()
        start = register_affine(source, target, RegisterConfig(), inside)
        pair.print_row("affine", start, watch.cells())
        deform_by_each(pair, start, methods)


def real_pairs(prepared: Path, names: list[str], methods: list[str]) -> None:
    """Deformations of pairs whose truth is not known, by mutual information.

    Args:
        prepared: Made by `distsynth prepare --steps correct scale rigid affine resample`.
        names: Of its specimens.
        methods: To start from its affine maps.
    """
    print("| pair | step | mutual information | Jacobian | processor s | wall s |")
    print("|---|---|---|---|---|---|")
    for specimen in read_cohort(prepared):
        if specimen.name not in names:
            continue
        assert specimen.native_source and specimen.transform
        source, target = read_volume(specimen.native_source), read_volume(specimen.target)
        inside = foreground(target)

        def cells(found: Transform, source=source, target=target, inside=inside) -> str:
            return f"{information(source, target, found, inside):.3f}"

        pair = Pair(specimen.name, source, target, inside, cells)
        pair.print_row("before", Transform.identity(), "- | -")
        start = Transform.load(specimen.transform)
        pair.print_row("affine", start, "- | -")
        deform_by_each(pair, start, methods)


def deform_by_each(pair: Pair, start: Transform, methods: list[str]) -> None:
    """A row for each deformation that starts from an affine map."""
    config = RegisterConfig()
    level = deformable_level(pair.source, pair.target, start, config, pair.inside)
    for method in methods:
        function = PEERS.get(method, partial(greedy.deformable, config=config))
        watch = Stopwatch()
        try:
            field = function(level)
        except ImportError as error:
            print(f"{method} is left out: {error}", file=sys.stderr)
            continue
        pair.print_row(method, Transform(start.affine, field, level[0].affine), watch.cells())


class Stopwatch:
    """Processor and wall seconds since it was made."""

    def __init__(self) -> None:
        self.start = time.process_time(), time.perf_counter()

    def cells(self) -> str:
        """Two cells of a table."""
        used, passed = time.process_time() - self.start[0], time.perf_counter() - self.start[1]
        return f"{used:.0f} | {passed:.0f}"


def moved_pairs(data: Path) -> None:
    """How far alignment differs with and without an extra rigid motion of the source."""
    print("| pair | displaced, mean mm | residual: mean mm | 95 % | largest | seconds |")
    print("|---|---|---|---|---|---|")
    config = RegisterConfig()
    for index, specimen in enumerate(read_cohort(data / "pairs_t2w_t1w")):
        assert specimen.source
        source, target = read_volume(specimen.source), read_volume(specimen.target)
        inside = foreground(target)
        motion = random_motion(target, Motion(0, 0.12, 5, 5, 0, seed=index)).affine
        moved = replace(source, affine=np.linalg.inv(motion) @ source.affine)
        points = apply_affine(target.affine, np.argwhere(inside)[::500])
        shift = np.linalg.norm(apply_affine(np.linalg.inv(motion), points) - points, axis=1)
        plain = register_affine(source, target, config, inside)
        start = time.perf_counter()
        found = register_affine(moved, target, config, inside)
        seconds = time.perf_counter() - start
        # The extra motion undone, both should put a point in the same place of the source.
        back = apply_affine(motion, found.points(points))
        residual = np.linalg.norm(back - plain.points(points), axis=1)
        print(
            f"| {specimen.name} | {shift.mean():.2f} | {residual.mean():.2f} | "
            f"{np.percentile(residual, 95):.2f} | {residual.max():.2f} | {seconds:.0f} |",
            flush=True,
        )


def known_bias(data: Path) -> None:
    """What N4 leaves of a field, beside the one that it finds without it."""
    volume = read_volume(data / "t1w_3t" / "sub-03_T1w.nii.gz")
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
    parser.add_argument("table", choices=("landmarks", "pairs", "moved", "bias"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--specimens", nargs="+", default=["sub-03"], help="of landmarks and pairs")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    given = parser.parse_args()
    if given.table == "landmarks":
        known_motion(given.data, given.specimens, given.methods)
    elif given.data is None:
        parser.error(f"{given.table} needs --data")
    elif given.table == "pairs":
        real_pairs(given.data, given.specimens, given.methods)
    elif given.table == "moved":
        moved_pairs(given.data)
    else:
        known_bias(given.data)


if __name__ == "__main__":
    main()
