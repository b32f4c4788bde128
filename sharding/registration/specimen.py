"""One specimen from its raw files to a prepared pair, step by step, and how good the pair is.

    SPECIMEN/correct/source.nii.gz target.nii.gz    N4 bias correction
    SPECIMEN/scale/source.nii.gz target.nii.gz      clipped by percentiles, scaled to [0, 1000]
    SPECIMEN/affine/affine.tfm                      affine registration
    SPECIMEN/deform/affine.tfm warp.nii.gz          deformable registration after the affine one
    SPECIMEN/resample/source.nii.gz mask.nii.gz     the source on the target's grid; what to judge
    SPECIMEN/quality.json picture.png               of the pair before and after

Each step's folder holds its record, step.json. The source is interpolated once, by all transforms
together. Nothing here depends on the clock or on other specimens: the same files, configuration
and tools give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from sharding.io.atomic import atomic_write
from sharding.io.errors import DataError
from sharding.registration.bias_correction import correct_bias
from sharding.registration.plan import SPLINE_ORDER, STEPS, Plan, PrepareConfig
from sharding.registration.quality import SpecimenQuality, noise_estimate, pair_quality
from sharding.registration.quality_pictures import pair_pictures
from sharding.registration.register import register_affine, register_deformable
from sharding.registration.step_cache import finished, json_text, run_step, sweep
from sharding.volumes.cohort import Specimen
from sharding.volumes.intensities import (
    SCALED_MAX,
    check_not_finer,
    fit_intensities,
    read_mask,
    source_of,
    specimen_foreground,
)
from sharding.volumes.resample import field_of_view
from sharding.volumes.transform import Transform
from sharding.volumes.volume import Volume, read_volume, write_volume

Role = Literal["source", "target"]

LOCK = ".prepare.lock"
QUALITY = "quality.json"
PICTURE = "picture.png"


@dataclass(frozen=True)
class Outcome:
    """A prepared specimen.

    Attributes:
        quality: Its line of the table.
        specimen: Its prepared files.
        steps: Name of each step -> its key.
    """

    quality: SpecimenQuality
    specimen: Specimen
    steps: dict[str, str]


def prepare_specimen(specimen: Specimen, out: Path, config: PrepareConfig) -> Outcome:
    """Do what is not yet done for one specimen.

    Args:
        specimen: Its raw files.
        out: The cohort's folder; the specimen's is made within.
        config: What to do.

    Raises:
        DataError: If the specimen cannot be prepared.
        OSError: If the disk is full.
    """
    source_of(specimen)
    folder = out / specimen.name
    folder.mkdir(exist_ok=True)
    # Waits for a process that outlived a killed run and still works on this specimen.
    with FileLock(folder / LOCK):
        sweep(folder)
        plan = Plan(specimen, config)
        work = _Work(plan, folder)
        quality = _read_quality(plan, folder)
        if quality is None:
            work.check_raw()
            for count, step in enumerate(plan.steps, start=1):
                run_step(folder, step, config.steps[:count], work.function(step.name))
            quality = _judge(work)
        steps = {step.name: step.key for step in plan.steps}
        return Outcome(quality, work.prepared, steps)


class _Work:
    """One specimen under way: where the steps' files lie, and what each step does.

    Args:
        plan: What is to be done.
        folder: The specimen's.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.specimen = plan.specimen
        self.config = plan.config
        self.folder = folder

    # Where files lie

    def volume(self, role: Role, before: str = "affine") -> Path:
        """The latest source or target on its own grid that was written before a step."""
        earlier = STEPS[: STEPS.index(before)]
        for step in ("scale", "correct"):
            if step in self.config.steps and step in earlier:
                return self.folder / step / f"{role}.nii.gz"
        return source_of(self.specimen) if role == "source" else self.specimen.target

    @property
    def transform(self) -> Transform:
        """All of the registration; the identity without any."""
        for step in ("deform", "affine"):
            if step in self.config.steps:
                return Transform.load(self.folder / step)
        return Transform.identity()

    @property
    def prepared(self) -> Specimen:
        """The prepared files."""
        done = replace(self.specimen, source=self.volume("source"), target=self.volume("target"))
        if "resample" not in self.config.steps:
            return done
        folder = self.folder / "resample"
        return replace(done, source=folder / "source.nii.gz", mask=folder / "mask.nii.gz")

    # What each step does

    def function(self, name: str) -> Callable[[Path], Mapping[str, Any]]:
        """The work of a step: writes its files into a folder and returns what it measured."""
        return {
            "correct": self._correct,
            "scale": self._scale,
            "affine": self._affine,
            "deform": self._deform,
            "resample": self._resample,
        }[name]

    def check_raw(self) -> None:
        """Refuse what no step could mend.

        Raises:
            DataError: If a file is bad, the source is finer than the target, the mask does not
                fit, or the fields of view lie apart.
        """
        where = source_of(self.specimen)
        source, target = read_volume(where), read_volume(self.specimen.target)
        check_not_finer(where, source, target, self.config.preprocess)
        if self.specimen.mask:
            read_mask(self.specimen.mask, target)
        if not field_of_view(source, target.shape, target.affine).any():
            raise DataError(
                where,
                f"source and target must overlap: no voxel of {self.specimen.target.name} lies in "
                "the source's field of view",
                "Check the affines, or that the files belong together",
            )

    def _correct(self, into: Path) -> dict[str, Any]:
        measured = {}
        for role in ("source", "target"):
            volume = read_volume(self.volume(role, "correct"))
            corrected, bias = correct_bias(volume, self.config.correct)
            write_volume(into / f"{role}.nii.gz", corrected)
            measured[role] = {"bias_min": float(bias.min()), "bias_max": float(bias.max())}
        return measured

    def _scale(self, into: Path) -> dict[str, Any]:
        measured = {}
        for role in ("source", "target"):
            path = self.volume(role, "scale")
            volume = read_volume(path)
            fitted = fit_intensities(path, volume, self.config.preprocess)
            scaled = volume.with_data(fitted.scale(volume.data) * np.float32(SCALED_MAX))
            write_volume(into / f"{role}.nii.gz", scaled)
            measured[role] = {"low": fitted.low, "high": fitted.high}
        return measured

    def _affine(self, into: Path) -> dict[str, Any]:
        source, target = read_volume(self.volume("source")), read_volume(self.volume("target"))
        foreground = self.foreground(target)
        found = register_affine(source, target, self.config.register, foreground)
        found.save(into)
        return {"determinant": float(np.linalg.det(found.affine[:3, :3]))}

    def _deform(self, into: Path) -> dict[str, Any]:
        source, target = read_volume(self.volume("source")), read_volume(self.volume("target"))
        foreground = self.foreground(target)
        if "affine" in self.config.steps:
            start = Transform.load(self.folder / "affine")
        else:
            start = Transform.identity()
            self._check_coverage(field_of_view(source, target.shape, target.affine), foreground)
        found = register_deformable(source, target, start, self.config.register, foreground)
        low, high = jacobian_range(found, foreground, target.affine)
        if low <= 0:
            raise DataError(
                self.specimen.name,
                f"the deformation folds space: its Jacobian determinant falls to {low:.3g}",
                "Make it smoother by --register options, or leave out the step deform",
            )
        found.save(into)
        return {"jacobian_min": low, "jacobian_max": high}

    def _resample(self, into: Path) -> dict[str, Any]:
        source, target = read_volume(self.volume("source")), read_volume(self.volume("target"))
        foreground = self.foreground(target)
        placed, inside = _placed(source, target, self.transform)
        mask = foreground & inside
        coverage = self._check_coverage(inside, foreground)
        write_volume(into / "source.nii.gz", target.with_data(placed))
        write_volume(into / "mask.nii.gz", target.with_data(mask))
        return {
            "coverage": coverage,
            "source_grid": _grid(source),
            "target_grid": _grid(target),
        }

    def _check_coverage(self, inside: NDArray[np.bool_], foreground: NDArray[np.bool_]) -> float:
        """Share of the foreground that the source covers.

        Raises:
            DataError: If it is too small.
        """
        coverage = float((foreground & inside).sum() / foreground.sum())
        least = self.config.preprocess.min_overlap
        if coverage < least:
            raise DataError(
                source_of(self.specimen),
                f"source and target must overlap: it covers {coverage:.0%} of the target's "
                f"foreground, at least {least:.0%} is needed",
                "Check the affines, or that the files belong together"
                + ("" if self.config.registers else "; or register"),
            )
        return coverage

    # Intensities

    def scaled(self, volume: Volume, role: Role) -> Volume:
        """A volume of ours in [0, 1000], whether or not scaling was one of the steps."""
        if "scale" in self.config.steps:
            return volume
        fitted = fit_intensities(self.volume(role), volume, self.config.preprocess)
        return volume.with_data(fitted.scale(volume.data) * np.float32(SCALED_MAX))

    def foreground(self, target: Volume) -> NDArray[np.bool_]:
        """The specimen's mask, or the target over the threshold."""
        scaled = self.scaled(target, "target")
        unit = scaled.with_data(scaled.data / np.float32(SCALED_MAX))
        return specimen_foreground(self.specimen, unit, self.config.preprocess)


def jacobian_range(
    transform: Transform, foreground: NDArray[np.bool_], affine: NDArray[np.float64]
) -> tuple[float, float]:
    """Least and largest volume change at the nodes of the field that the foreground depends on.

    Args:
        transform: From the target's space to the source's.
        foreground: On the target's grid, shape (x, y, z).
        affine: Of that grid, index to world millimetres.
    """
    change = transform.jacobian()
    if transform.field_affine is None:
        return float(change.min()), float(change.max())
    to_node = np.linalg.inv(transform.field_affine) @ affine
    last = np.array(change.shape) - 1
    near = np.zeros(change.shape, bool)
    for x, plane in enumerate(foreground):
        index = np.argwhere(plane)
        index = np.column_stack([np.full(len(index), x), index])
        node = np.floor(apply_affine(to_node, index)).astype(int)
        # All corners of the cell that holds the voxel.
        for corner in np.ndindex(2, 2, 2):
            near[tuple(np.clip(node + corner, 0, last).T)] = True
    return float(change[near].min()), float(change[near].max())


def _placed(
    source: Volume, target: Volume, transform: Transform
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The source on the target's grid, within its own range of intensities, and where it lies."""
    placed, inside = transform.apply(source, target.shape, target.affine, SPLINE_ORDER)
    low, high = source.data.min(), source.data.max()
    placed = np.clip(placed, low, high)
    placed[~inside] = low
    return placed, inside


def _judge(work: _Work) -> SpecimenQuality:
    """Measure the pair, draw its picture and write both."""
    config = work.config
    target = read_volume(work.volume("target"))
    source = work.scaled(read_volume(work.volume("source")), "source")
    foreground = work.foreground(target)
    target = work.scaled(target, "target")
    before, seen_before = _placed(source, target, Transform.identity())
    after, seen_after, changes = before, seen_before, (1.0, 1.0)
    if config.registers:
        transform = work.transform
        after, seen_after = _placed(source, target, transform)
        changes = jacobian_range(transform, foreground, target.affine)
    # Where the headers leave nothing in common, the prepared pair is measured all the same.
    seen = seen_before & seen_after
    seen = seen if (foreground & seen).any() else seen_after
    quality = SpecimenQuality(
        name=work.specimen.name,
        before=pair_quality(before, target.data, foreground & seen & seen_before, seen),
        after=pair_quality(after, target.data, foreground & seen, seen),
        jacobian_min=changes[0],
        jacobian_max=changes[1],
        coverage=float((foreground & seen_after).sum() / foreground.sum()),
        foreground=float(foreground.mean()),
        noise_source=noise_estimate(source.data),
        noise_target=noise_estimate(target.data),
    )
    upright = [target.with_data(data).reoriented("RAS") for data in (before, after, target.data)]
    picture = pair_pictures(
        upright[0].data,
        upright[1].data if config.registers else None,
        upright[2].data,
        upright[2].spacing_mm,
    )
    atomic_write(work.folder / PICTURE, picture)
    plan = work.plan
    record = {"key": plan.key, "raw_sha256": plan.raw_sha256, "quality": asdict(quality)}
    # Last: it says that the specimen is finished.
    atomic_write(work.folder / QUALITY, json_text(record))
    return quality


def _read_quality(plan: Plan, folder: Path) -> SpecimenQuality | None:
    """What was judged, if it and every step are finished and intact."""
    try:
        record = json.loads((folder / QUALITY).read_bytes())
        quality = TypeAdapter(SpecimenQuality).validate_python(record["quality"])
    except (FileNotFoundError, ValueError, KeyError, TypeError, ValidationError):
        return None
    if record.get("key") != plan.key or not (folder / PICTURE).is_file():
        return None
    done = all(finished(folder, step) for step in plan.steps)
    return quality if done else None


def _grid(volume: Volume) -> dict[str, Any]:
    return {"shape": list(volume.shape), "affine": volume.affine.tolist()}
