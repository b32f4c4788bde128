"""A cohort whose targets depend on two contrasts, neither of which tells the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sharding.simulation.phantom import phantom_volume
from sharding.simulation.simulate import SimulationConfig, simulate_source
from sharding.volumes.cohort import Specimen, write_cohort
from sharding.volumes.contrasts import Contrast
from sharding.volumes.volume import Volume, write_volume

SHAPE = (28, 26, 24)
NAMES = ("t1", "t2")
CLEAN = SimulationConfig(gamma=1.0, blur_voxels=0.3, factor=1, noise=0.005)


def write_two_contrasts(
    folder: Path, specimens: int = 5, factor: int = 1, shape: tuple[int, int, int] = SHAPE
) -> Path:
    """Write phantoms and a cohort.csv with the columns source_t1 and source_t2.

    The target is a third of one phantom and two thirds of another; T1 shows the former, T2 the
    latter on a grid that is `factor` times coarser.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(specimens):
        name = f"s{index}"
        first, second = (phantom_volume(shape, seed=10 * index + part) for part in (1, 2))
        target = first.with_data(first.data / 3 + second.data * (2 / 3))
        files = {role: folder / f"{name}_{role}.nii.gz" for role in (*NAMES, "target")}
        coarse = SimulationConfig(gamma=0.8, blur_voxels=0.3, factor=factor, noise=0.005)
        write_volume(files["target"], target)
        write_volume(files["t1"], simulate_source(first, CLEAN, f"{name}-t1")[0])
        write_volume(files["t2"], simulate_source(second, coarse, f"{name}-t2")[0])
        further = (Contrast("t2", files["t2"]),)
        rows.append(Specimen(name, files["target"], files["t1"], contrast="t1", further=further))
    write_cohort(folder / "cohort.csv", rows)
    return folder / "cohort.csv"


def moved(volume: Volume, millimetres: float) -> Volume:
    """A volume whose header says that it lies elsewhere along the first axis."""
    shift = np.eye(4)
    shift[0, 3] = millimetres
    return Volume(volume.data, shift @ volume.affine, volume.header)
