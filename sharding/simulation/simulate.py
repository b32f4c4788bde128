"""A simulated low-field source for a high-field volume.

The model of a low-field scan, on intensities scaled to [0, 1] between the 0.1 and 99.9
percentiles:

1. contrast: x -> x ** gamma;
2. bias: times 1 + sum over axes of slope * position, position from -1 to 1 across the volume,
   each slope drawn evenly from [-bias, bias];
3. blur: Gaussian of `blur_voxels` standard deviation, in target voxels;
4. misalignment: an optional rigid motion about the centre that the affine does not record;
5. downsampling: every `factor`-th voxel along each axis;
6. Rician noise: sqrt((x + n1)^2 + n2^2), n1 and n2 normal with standard deviation `noise`.

Each specimen has its own bias field, motion and noise. Contrast and blur are the same for all
unless `gamma_spread` and `blur_spread` say otherwise: one curve for everybody is easy to learn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from sharding.io.atomic import atomic_write, refuse_existing
from sharding.io.errors import DataError
from sharding.io.interruption import deferred_signals
from sharding.io.progress import progress
from sharding.volumes.cohort import Specimen, write_cohort
from sharding.volumes.contrasts import CONTRAST_NAME, Contrast
from sharding.volumes.intensities import IntensityTransform
from sharding.volumes.volume import Volume, read_volume, write_volume

LIMITS = {
    "gamma": (0.01, 100),
    "gamma_spread": (0, 100),
    "bias": (0, 1),
    "blur_voxels": (0, 100),
    "blur_spread": (0, 100),
    "factor": (1, 100),
    "noise": (0, 10),
    "rotation_degrees": (0, 180),
    "shift_mm": (0, 1000),
    "seed": (0, 2**32 - 1),
}
"""Field -> limits within which the intensities of a simulated source are finite."""


@dataclass(frozen=True)
class SimulationConfig:
    """Strength of each effect; zero (or a gamma and factor of one) leaves it out."""

    gamma: float = 1.4
    """Exponent of the contrast change."""
    gamma_spread: float = 0.0
    """The exponent of each specimen is drawn evenly from gamma minus to gamma plus this."""
    bias: float = 0.0
    """Largest slope of the linear bias field along an axis: 0.2 is 20 % an axis."""
    blur_voxels: float = 0.85
    """Standard deviation of the blur in target voxels; 0.85 is a width of two voxels."""
    blur_spread: float = 0.0
    """The blur of each specimen is drawn evenly from blur_voxels minus to blur_voxels plus this."""
    factor: int = 2
    """Downsampling along each axis."""
    noise: float = 0.03
    """Standard deviation of the Rician noise, as a share of the intensity range."""
    rotation_degrees: float = 0.0
    """Largest rotation about each axis."""
    shift_mm: float = 0.0
    """Largest shift along each axis in millimetres."""
    contrasts: tuple[str, ...] = ()
    """Several sources of each target, such as t1=1.4 t2=0.6: the name of each contrast and its
    gamma, which takes the place of `gamma`. Each has bias, blur, motion and noise of its own."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            # NaN lies within no limits.
            if not low <= getattr(self, name) <= high:
                rule = f"must be from {low:g} to {high:g}"
                raise ValueError(f"{name} {rule}, got {getattr(self, name)}")
        for name, spread in (("gamma", "gamma_spread"), ("blur_voxels", "blur_spread")):
            low, _ = LIMITS[name]
            if getattr(self, name) - getattr(self, spread) < low:
                rule = f"must leave {name} at least {low:g} in every specimen"
                raise ValueError(f"{spread} {rule}, got {getattr(self, spread)}")
        self._check_contrasts()

    def _check_contrasts(self) -> None:
        """Raise ValueError unless there are none, or several of different names and good gammas."""
        parts = [each.partition("=") for each in self.contrasts]
        names = [name for name, _, _ in parts]
        named = all(CONTRAST_NAME.fullmatch(name) for name in names)
        if len(names) == 1 or len(set(names)) < len(names) or not named:
            raise ValueError(
                "contrasts must be two or more of different names in small letters, such as "
                f"t1=1.4 t2=0.6, got {' '.join(self.contrasts)}"
            )
        for name, _, gamma in parts:
            try:
                replace(self, contrasts=(), gamma=float(gamma))
            except ValueError as error:
                raise ValueError(f"contrasts must be NAME=GAMMA; {name}: {error}") from None

    @property
    def each_contrast(self) -> Mapping[str, SimulationConfig]:
        """Name -> how that contrast is simulated; one of no name where there is one source."""
        parts = [each.partition("=") for each in self.contrasts]
        found = {name: replace(self, contrasts=(), gamma=float(gamma)) for name, _, gamma in parts}
        return found or {"": self}


def simulate_source(
    target: Volume, config: SimulationConfig, name: str
) -> tuple[Volume, dict[str, Any]]:
    """Simulate the low-field scan of a target.

    Args:
        target: High-field volume, any intensity units.
        config: Strength of each effect; `contrasts` are for simulate_cohort.
        name: The specimen; with the seed it determines every random draw.

    Returns:
        The source on its own coarser grid, intensities in [0, 1] and noise; and what was applied,
        as plain values.

    Raises:
        ValueError: If the target is nearly constant or too small for the downsampling.
    """
    if min(target.shape) < 2 * config.factor:
        raise ValueError(f"too few voxels to downsample by {config.factor}: shape {target.shape}")
    rng = np.random.default_rng([config.seed, *name.encode()])
    data = IntensityTransform.fit(target.data, (0.1, 99.9)).scale(target.data)
    # A stream of its own, so that the other draws are the same with and without a spread.
    drawn = rng.spawn(1)[0].uniform(-1, 1, 2)
    gamma = config.gamma + config.gamma_spread * float(drawn[0])
    blur_voxels = config.blur_voxels + config.blur_spread * float(drawn[1])
    data = data**gamma

    slopes = rng.uniform(-config.bias, config.bias, 3)
    positions = np.ogrid[tuple(slice(-1, 1, complex(0, size)) for size in target.shape)]
    field = 1 + sum(slope * axis for slope, axis in zip(slopes, positions, strict=True))
    data = (data * field).astype(np.float32)

    if blur_voxels:
        blurred = ndimage.gaussian_filter(data, blur_voxels, mode="nearest")
        data = np.asarray(blurred, np.float32)
    angles = rng.uniform(-config.rotation_degrees, config.rotation_degrees, 3)
    shift = rng.uniform(-config.shift_mm, config.shift_mm, 3)
    if angles.any() or shift.any():
        data = _move(data, target.spacing_mm, angles, shift)

    step = config.factor
    data = data[::step, ::step, ::step]
    normal = rng.normal(0, config.noise, (2, *data.shape)).astype(np.float32)
    data = np.sqrt((data + normal[0]) ** 2 + normal[1] ** 2)

    affine = target.affine @ np.diag([step, step, step, 1])
    applied = {
        "specimen": name,
        "model": {key: value for key, value in asdict(config).items() if key != "contrasts"},
        "gamma": gamma,
        "blur_voxels": blur_voxels,
        "bias_slopes": slopes.tolist(),
        "rotation_degrees": angles.tolist(),
        "shift_mm": shift.tolist(),
    }
    return Volume(data.astype(np.float32), affine, target.header), applied


def simulate_cohort(
    specimens: Sequence[Specimen], out: Path, config: SimulationConfig, overwrite: bool = False
) -> Path:
    """Write a source and a record of its simulation for every target, and a cohort.csv.

    Args:
        specimens: The cohort; its targets are used where they are, existing sources ignored.
        out: Folder for NAME_source.nii.gz, NAME_source.json and cohort.csv; of several contrasts
            NAME_source_CONTRAST.nii.gz and its JSON file.
        config: Strength of each effect.
        overwrite: Replace those of these files that exist.

    Returns:
        The path of the new cohort.csv, written last.

    Raises:
        DataError: If one of these files exists, or a target is bad or would be replaced.
    """
    cohort_file = out / "cohort.csv"
    kinds = config.each_contrast
    ends = {kind: f"source_{kind}" if kind else "source" for kind in kinds}
    sources = {
        (specimen.name, kind): out / f"{specimen.name}_{end}.nii.gz"
        for specimen in specimens
        for kind, end in ends.items()
    }
    refuse_existing([cohort_file, *sources.values()], overwrite)
    targets = {specimen.target.resolve() for specimen in specimens}
    for path in sources.values():
        if path.resolve() in targets:
            raise DataError(path, "the source would replace a target", "Give another folder")
    out.mkdir(parents=True, exist_ok=True)
    # Written to a temporary folder and moved in the end: a bad target leaves nothing behind.
    with TemporaryDirectory(prefix=".simulating-", dir=out) as gathered:
        for specimen in progress(specimens, "simulating", len(specimens)):
            target = read_volume(specimen.target)
            for kind, own in kinds.items():
                # The name determines the draws, so that contrasts differ.
                name = f"{specimen.name} {kind}" if kind else specimen.name
                try:
                    source, applied = simulate_source(target, own, name)
                except ValueError as error:
                    remedy = "Leave the specimen out"
                    raise DataError(specimen.target, str(error), remedy) from error
                write_volume(Path(gathered, sources[specimen.name, kind].name), source)
                record = json.dumps(applied, indent=2) + "\n"
                atomic_write(Path(gathered, f"{specimen.name}_{ends[kind]}.json"), record)
        first, *others = kinds
        done = [
            replace(
                specimen,
                source=sources[specimen.name, first],
                contrast=first,
                further=tuple(Contrast(kind, sources[specimen.name, kind]) for kind in others),
            )
            for specimen in specimens
        ]
        # All of the files or none, if a signal arrives now.
        with deferred_signals():
            for path in sorted(Path(gathered).iterdir()):
                path.replace(out / path.name)
            write_cohort(cohort_file, done)
    return cohort_file


def _move(
    data: NDArray[np.float32],
    spacing_mm: Sequence[float],
    angles: NDArray[np.float64],
    shift_mm: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Rotate about the centre and shift, both in millimetres."""
    spacing = np.diag(spacing_mm)
    rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    matrix = np.linalg.inv(spacing) @ rotation @ spacing
    centre = (np.array(data.shape) - 1) / 2
    offset = centre - matrix @ centre + np.linalg.inv(spacing) @ shift_mm
    moved = ndimage.affine_transform(data, matrix, offset, order=3, mode="nearest")
    return moved.astype(np.float32)
